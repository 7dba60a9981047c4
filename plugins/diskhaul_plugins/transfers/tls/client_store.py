"""The export store of another node, as its receiver gives it."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence

from diskhaul.api import ExportReader, ExportStore, RetryingExportWriter
from diskhaul.errors import DiskhaulError, StorageError, UnreachableNodeError

from .calls import Caller
from .client_reader import TlsFileReader
from .client_stream import TlsFile
from .connection import BrokenConnectionError
from .sessions import ID_LENGTH, KEY_LENGTH, MAGIC_LENGTH
from .wire import MAX_BODY, WireError, field


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
