"""The export store of another node, as its receiver gives it."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from diskhaul.api import DigestingReader, ExportReader, ExportStore, RetryingExportWriter
from diskhaul.errors import DiskhaulError, StorageError, UnreachableNodeError

from .calls import Caller, Patience
from .client_stream import TlsFile
from .connection import BrokenConnectionError, Connection, failure
from .sessions import ID_LENGTH, KEY_LENGTH, MAGIC_LENGTH
from .wire import DIGEST_LENGTH, MAX_BODY, MAX_DATA, READ_FIELDS, Kind, WireError, field, load


class TlsStore(ExportStore):
    """The exports of one node, through its receiver. Keeps nothing open between calls; thread-safe."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    @property
    def identity(self) -> str:
        return self._caller.field(self._caller.call("identity"), "identity", str)

    def check(self, instance: str, /, *, for_writing: bool) -> Sequence[str]:
        answer = self._caller.call("check", {"instance": instance, "for_writing": for_writing})
        return [f"node {self._caller.dialler.node.name}: {problem}" for problem in self._caller.texts(answer, "problems")]

    def free_bytes(self) -> int | None:
        answer = self._caller.call("free_bytes")
        return None if answer.get("bytes") is None else self._caller.field(answer, "bytes", int)

    def instances(self) -> Sequence[str]:
        return self._caller.texts(self._caller.call("instances"), "names")

    def exports(self, instance: str, /) -> Sequence[str]:
        return self._caller.texts(self._caller.call("exports", {"instance": instance}), "names")

    def partials(self, instance: str, /) -> Sequence[str]:
        return self._caller.texts(self._caller.call("partials", {"instance": instance}), "names")

    def begin(self, instance: str, export_id: str, /) -> TlsWriter:
        credentials = {"session": secrets.token_bytes(ID_LENGTH).hex(), "key": secrets.token_bytes(KEY_LENGTH).hex()}
        return TlsWriter(self._caller, instance, export_id, credentials)

    def open(self, instance: str, export_id: str, /) -> TlsReader:
        return TlsReader(self._caller, {"instance": instance, "export_id": export_id})

    def remove(self, instance: str, export_id: str, /) -> None:
        self._caller.call_until_answered("remove", {"instance": instance, "export_id": export_id})

    def remove_partial(self, instance: str, export_id: str, /) -> None:
        self._caller.call_until_answered("remove_partial", {"instance": instance, "export_id": export_id})


class TlsWriter(RetryingExportWriter):
    """An export that is being sent. `create` may be called by several threads; `abort` ends a `publish` that is tried again."""

    def __init__(self, caller: Caller, instance: str, export_id: str, credentials: Mapping[str, str]) -> None:
        self._caller = caller
        self._named = {"instance": instance, "export_id": export_id}
        self._credentials = dict(credentials)
        self._files: list[TlsFile] = []
        self._ended = self._given_up = False
        self._lock = threading.Lock()
        answer = caller.call_until_answered("begin", self._named | self._credentials)
        self._location = caller.field(answer, "location", str)

    @property
    def location(self) -> str:
        return self._location

    def create(self, name: str, /) -> TlsFile:
        magic = secrets.token_bytes(MAGIC_LENGTH)
        self._caller.call_until_answered("create", self._credentials | {"name": name, "magic": magic.hex()})
        file = TlsFile(self._caller, self._credentials, name, magic)
        with self._lock:
            self._files.append(file)
        return file

    def reader(self) -> TlsReader:
        return TlsReader(self._caller, self._credentials)

    def publish(self, manifest: bytes, /) -> None:
        self.publish_while(manifest, lambda: None)

    def publish_while(self, manifest: bytes, check: Callable[[], object], /) -> None:
        if len(manifest) > MAX_BODY:
            raise StorageError(f"{self.location}: a manifest of {len(manifest)} bytes: more than {MAX_BODY}", path=self.location)
        with self._lock:
            if self._ended:
                raise StorageError(f"{self.location}: is no longer being written", path=self.location)
            unfinished = [file.name for file in self._files if not file.durable]
        if unfinished:
            raise StorageError(f"{self.location}: not published: {', '.join(unfinished)} not finished", path=self.location)

        def check_all() -> None:
            if self._given_up:
                raise StorageError(f"{self.location}: not published: it was given up meanwhile", path=self.location)
            check()

        try:
            self._caller.call_until_answered("publish", self._named | self._credentials, manifest, check=check_all)
        except UnreachableNodeError:  # the receiver may have heard of it all the same
            if not self._was_published():
                raise
        self._ended = True

    def _was_published(self) -> bool:
        """Whether it is there. If not, and the receiver can say so, it never will be."""
        try:
            answer = self._caller.ask("abort", self._named | self._credentials)
            published = field(answer, "published", bool)
        except (BrokenConnectionError, WireError, DiskhaulError):
            return False
        self._ended = True
        return bool(published)

    def abort(self) -> None:
        self._given_up = True
        for file in self._files:
            file.close()
        if self._ended:
            return  # published, or aborted before
        self._caller.call_until_answered("abort", self._named | self._credentials)
        self._ended = True


class TlsReader(ExportReader):
    """An export that is read through the receiver: a published one, or one that is being sent. Thread-safe."""

    def __init__(self, caller: Caller, asked: Mapping[str, str]) -> None:
        self._caller, self._asked = caller, dict(asked)
        self._location = caller.field(caller.call_until_answered("names", self._asked), "location", str)

    @property
    def location(self) -> str:
        return self._location

    def names(self) -> Sequence[str]:
        return self._caller.texts(self._caller.call_until_answered("names", self._asked), "names")

    def open(self, name: str, /) -> TlsFileReader:
        return TlsFileReader(self._caller, self._asked | {"name": name}, f"{self._location}/{name}")


class TlsFileReader(DigestingReader):
    """A file that is read through the receiver; over another connection when one breaks. Thread-safe: one read at a time."""

    def __init__(self, caller: Caller, asked: Mapping[str, str], place: str) -> None:
        self._dialler, self._asked, self._place = caller.dialler, dict(asked), place
        self._connection: Connection | None = None
        self._file = ""
        self._size = -1
        self._closed = False
        self._lock = threading.Lock()
        self._patiently(self._connect)

    @property
    def size(self) -> int:
        return self._size

    def read_into(self, offset: int, buffer: memoryview, /) -> None:
        view = memoryview(buffer).cast("B")
        with self._lock:
            for begin in range(0, len(view), MAX_DATA):
                piece = view[begin : begin + MAX_DATA]
                self._patiently(partial(self._read, offset + begin, piece))

    def range_digest(self, offset: int, length: int, /) -> bytes:
        digest = bytearray(DIGEST_LENGTH)
        with self._lock:
            self._patiently(partial(self._ask, Kind.DIGEST, offset, length, Kind.DIGESTED, memoryview(digest)))
        return bytes(digest)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._disconnect()

    def _patiently(self, attempt: Callable[[], object]) -> None:
        patience = Patience(self._dialler)
        while True:
            try:
                attempt()
                return
            except BrokenConnectionError as error:
                self._disconnect()
                patience.wait(error)
            except WireError as error:
                self._disconnect()
                raise self._dialler.unreachable(error) from error
            except BaseException:
                self._disconnect()
                raise

    def _read(self, offset: int, view: memoryview) -> None:
        self._ask(Kind.READ, offset, len(view), Kind.BYTES, view)

    def _ask(self, what: Kind, offset: int, length: int, expected: Kind, answer: memoryview) -> None:
        """Ask `what` of a range; fill `answer` with what comes."""
        if self._closed:
            raise StorageError(f"{self._place}: is closed", path=self._place)
        if offset + length > self._size:
            raise StorageError(f"{self._place}: ends at {self._size}", path=self._place, offset=offset)
        connection = self._connect()
        connection.send(what, READ_FIELDS.pack(offset, length))
        kind = Kind.WORKING
        while kind is Kind.WORKING:
            kind, count = connection.receive_head(expected, Kind.REFUSED, Kind.WORKING)
        if kind is Kind.REFUSED:
            content = bytearray(count)
            connection.receive_into(memoryview(content))
            raise failure(self._dialler, load(content))
        if count != len(answer):
            raise WireError(f"{count} bytes came instead of {len(answer)}")
        connection.receive_into(answer)

    def _connect(self) -> Connection:
        if self._connection is None:
            self._connection, answer = self._dialler.dial("read", **self._asked)
            size, file = field(answer, "size", int), field(answer, "file", str)
            if self._size < 0:
                self._size, self._file = size, file
            elif (size, file) != (self._size, self._file):
                raise StorageError(f"{self._place}: was replaced while it was read", path=self._place)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
