"""What a receiver does for one connection whose peer it knows: calls, a file's stream, or reading."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, TypeVar

from diskhaul.api import ExportReader
from diskhaul.errors import DiskhaulError, StorageError, UnreachableNodeError
from diskhaul.model import Node

from ...storages.raw import RawReader
from ..directory import MANIFEST, DirectoryReader, DirectoryStore
from .authorization import Authorization, ForbiddenError
from .connection import Connection
from .identities import Peer
from .range_digests import RangeDigests
from .received_file import ReceivedFile
from .sessions import ID_LENGTH, KEY_LENGTH, MAGIC_LENGTH, TOKEN_LENGTH, BusyReceiverError, NoSessionError, Session, Sessions
from .settings import Settings
from .wire import MAX_BODY, MAX_DATA, PROTOCOL, READ_FIELDS, VERSION, Kind, WireError, binary_field, field

MAX_STREAMS = 16
_FRAMES_AHEAD = 3  # of a stream: received while earlier ones are written; each has its buffer
_SIGN_OF_LIFE_S = 2.0  # at the most
T = TypeVar("T")
Document = Mapping[str, Any]
_Call = Callable[[Peer, Document, bytearray], Document]


class Service:
    """Serves authenticated connections. Thread-safe.

    Args:
        store: gives the node's own store, or raises `UnreachableNodeError`.
        log: told, in one line each, of what was refused.
    """

    def __init__(
        self,
        node: Node,
        cluster: str,
        store: Callable[[], DirectoryStore],
        sessions: Sessions,
        authorization: Authorization,
        settings: Settings,
        log: Callable[[str], object],
    ) -> None:
        self._node, self._cluster, self._store = node, cluster, store
        self._sessions, self._authorization, self._settings, self._log = sessions, authorization, settings, log
        self._calls: Mapping[str, _Call] = {
            "identity": self._identity,
            "free_bytes": self._free_bytes,
            "check": self._check,
            "instances": self._instances,
            "exports": self._exports,
            "partials": self._partials,
            "names": self._names,
            "remove": self._remove,
            "remove_partial": self._remove_partial,
            "begin": self._begin,
            "create": self._create,
            "restart": self._restart,
            "publish": self._publish,
            "abort": self._abort,
        }

    def serve(self, connection: Connection, peer: Peer) -> None:
        """Serve until the connection ends. What goes wrong is told to the peer, and logged.

        Raises:
            BrokenConnectionError: the peer is gone, or silent.
        """
        try:
            _, hello = connection.receive_document(Kind.HELLO)
            self._authorization.admit(peer)
            purpose = self._greeted(hello)
            connection.set_timeout(self._settings.idle_timeout_s)
            if purpose == "calls":
                connection.send_document(Kind.READY, {"version": VERSION})
                self._serve_calls(connection, peer, _sign_of_life_s(hello))
            elif purpose == "stream":
                self._serve_stream(connection, peer, hello)
            else:
                self._serve_reading(connection, peer, hello)
        except (WireError, ForbiddenError, DiskhaulError, OSError) as error:
            self._log(f"{peer}: refused: {error}")
            connection.send_document(Kind.REFUSED, _told(error))
            connection.linger()

    def _greeted(self, hello: Document) -> str:
        if hello.get("protocol") != PROTOCOL:
            raise WireError(f"this receiver speaks {PROTOCOL} only")
        if hello.get("version") != VERSION:
            raise WireError(
                f"this receiver speaks version {VERSION} of {PROTOCOL} only: install the same version of diskhaul on both nodes"
            )
        if field(hello, "cluster", str) != self._cluster or field(hello, "to", str) != self._node.name:
            raise WireError(f"this is node {self._node.name} of cluster {self._cluster}")
        purpose = field(hello, "for", str)
        if purpose not in ("calls", "stream", "read"):
            raise WireError("a connection is for calls, stream or read")
        return str(purpose)

    # --- calls ------------------------------------------------------------------------------------------------------

    def _serve_calls(self, connection: Connection, peer: Peer, sign_of_life_s: float) -> None:
        while True:
            _, document = connection.receive_document(Kind.CALL)
            call = self._calls.get(field(document, "call", str))
            if call is None:
                raise WireError("there is no such call")
            try:
                answer = {"ok": True} | dict(self._done(connection, peer, document, call, sign_of_life_s))
            except (ForbiddenError, DiskhaulError, OSError) as error:
                if not isinstance(error, NoSessionError):
                    self._log(f"{peer}: {document['call']}: {error}")
                answer = {"ok": False} | dict(_told(error))
            connection.send_document(Kind.RESULT, answer)

    def _done(self, connection: Connection, peer: Peer, document: Document, call: _Call, sign_of_life_s: float) -> Document:
        with ThreadPoolExecutor(1, "diskhaul-tls-call") as pool:
            body = bytearray()
            if "body" in document:
                check = pool.submit(self._check_publisher, peer, document)
                body = self._body(connection, document, lambda: _while_working(connection, check, sign_of_life_s))
            return _while_working(connection, pool.submit(call, peer, document, body), sign_of_life_s)

    def _body(self, connection: Connection, document: Document, check: Callable[[], object]) -> bytearray:
        """What comes with a call; nothing of it is kept when `check` raises."""
        length = field(document, "body", int)
        if document["call"] != "publish" or not 0 <= length <= MAX_BODY:
            raise WireError(f"{document['call']} with a body of {length} bytes")
        try:
            check()
        except (ForbiddenError, DiskhaulError, OSError):
            connection.discard(Kind.BODY, length)
            raise
        connection.receive_head_of(Kind.BODY, length)
        body = bytearray(length)
        connection.receive_into(memoryview(body))
        return body

    def _check_publisher(self, peer: Peer, asked: Document) -> None:
        instance, export_id = self._instance(peer, asked, writing=True), field(asked, "export_id", str)
        try:
            session = self._session(peer, asked)
        except NoSessionError:
            return  # it may have been published: the manifest will tell
        if (session.instance, session.export_id) != (instance, export_id):
            raise StorageError("this session is of another export", path=instance)

    def _identity(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        return {"identity": self._store().identity}

    def _free_bytes(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        return {"bytes": self._store().free_bytes()}

    def _check(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        instance, for_writing = field(asked, "instance", str), field(asked, "for_writing", bool)
        try:
            self._authorization.check(peer, instance, writing=for_writing)
        except ForbiddenError as error:
            return {"problems": [str(error)]}  # and nothing of what lies here
        return {"problems": list(self._store().check(instance, for_writing=for_writing))}

    def _instances(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        return {"names": self._authorization.readable(peer, self._store().instances())}

    def _exports(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        return {"names": list(self._store().exports(self._instance(peer, asked, writing=False)))}

    def _partials(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        return {"names": list(self._store().partials(self._instance(peer, asked, writing=False)))}

    def _names(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        with self._reader(peer, asked) as reader:
            return {"location": reader.location, "names": list(reader.names())}

    def _remove(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        self._store().remove(self._instance(peer, asked, writing=True), field(asked, "export_id", str))
        return {}

    def _remove_partial(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        instance, export_id = self._instance(peer, asked, writing=True), field(asked, "export_id", str)
        self._sessions.drop(instance, export_id)
        self._store().remove_partial(instance, export_id)
        return {}

    def _begin(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        instance, export_id = self._instance(peer, asked, writing=True), field(asked, "export_id", str)
        session = self._sessions.begin(peer, *_credentials(asked), instance, export_id)
        return {"location": session.writer.location}

    def _create(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        magic = binary_field(asked, "magic", MAGIC_LENGTH)
        self._sessions.create(self._session(peer, asked), field(asked, "name", str), magic)
        return {}

    def _restart(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        count = field(asked, "streams", int)
        if not 0 < count <= MAX_STREAMS:
            raise StorageError(f"a file has from 1 to {MAX_STREAMS} streams", path=peer.name)
        _, progress, tokens = self._sessions.tokens(self._session(peer, asked), field(asked, "name", str), count)
        return {"due": progress.due, "finished": progress.finished, "tokens": [token.hex() for token in tokens]}

    def _publish(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        instance, export_id = self._instance(peer, asked, writing=True), field(asked, "export_id", str)
        try:
            session = self._session(peer, asked)
            self._sessions.publish(session, bytes(body))
        except NoSessionError:
            # The answer to an earlier call may have been lost: then the export is there, with this very manifest.
            if not _has_manifest(self._store(), instance, export_id, body):
                raise
            self._store().make_durable(instance)
        return {}

    def _abort(self, peer: Peer, asked: Document, body: bytearray) -> Document:
        instance, export_id = self._instance(peer, asked, writing=True), field(asked, "export_id", str)
        try:
            published = self._sessions.abort(self._session(peer, asked))
        except NoSessionError:
            # The answer to an earlier call may have been lost, of a publish or an abort.
            self._sessions.forget(_credentials(asked)[0], instance, export_id)
            self._store().remove_partial(instance, export_id)
            published = export_id in self._store().exports(instance)
            if published:
                self._store().make_durable(instance)
        return {"published": published}

    # --- a file's stream --------------------------------------------------------------------------------------------

    def _serve_stream(self, connection: Connection, peer: Peer, hello: Document) -> None:
        token, magic = binary_field(hello, "token", TOKEN_LENGTH), binary_field(hello, "magic", MAGIC_LENGTH)
        session, file, round_ = self._sessions.redeem(peer, token, magic)
        with self._sessions.used(session):
            file.join(connection, round_)
            try:
                connection.send_document(Kind.READY, {"due": file.progress.due})
                with ThreadPoolExecutor(1, "diskhaul-tls-writer") as writer:
                    self._receive_frames(connection, file, round_, writer, _sign_of_life_s(hello))
            finally:
                file.leave(connection)

    def _receive_frames(
        self, connection: Connection, file: ReceivedFile, round_: int, writer: ThreadPoolExecutor, sign_of_life_s: float
    ) -> None:
        """Receive frames while `writer` checks and writes those before them; acknowledge what has been written."""
        buffers = deque(memoryview(bytearray(0)) for _ in range(_FRAMES_AHEAD))
        working: deque[tuple[Kind, Future[bytes]]] = deque()

        def stop_when_one_failed() -> None:
            for _, written in working:
                if written.done():
                    written.result()

        while True:
            # When there is nothing to receive, the sender may be waiting for the answer to what it has sent.
            while working and (working[0][1].done() or len(working) == _FRAMES_AHEAD or not connection.readable()):
                kind, written = working.popleft()
                answer = Kind.DURABLE if kind is Kind.TRAILER else Kind.ACKNOWLEDGED
                connection.send(answer, _while_working(connection, written, sign_of_life_s))
            kind, length = connection.receive_head(Kind.DATA, Kind.SIZE, Kind.TRAILER)
            buffer = buffers.popleft()
            if length > len(buffer):
                buffer = memoryview(bytearray(length))
            connection.receive_into_unless(buffer[:length], stop_when_one_failed)
            take = partial(file.take, round_, kind, buffer[:length], timeout_s=self._settings.idle_timeout_s)
            working.append((kind, writer.submit(take)))
            buffers.append(buffer)

    # --- reading ----------------------------------------------------------------------------------------------------

    def _serve_reading(self, connection: Connection, peer: Peer, hello: Document) -> None:
        with self._reader(peer, hello) as reader, closing(reader.open(field(hello, "name", str))) as file:
            status = os.fstat(file.fileno())
            connection.send_document(Kind.READY, {"size": file.size, "file": f"{status.st_dev}:{status.st_ino}"})
            self._answer_reads(connection, file, _sign_of_life_s(hello), grows=hello.get("grows") is True)

    def _answer_reads(self, connection: Connection, file: RawReader, sign_of_life_s: float, *, grows: bool) -> None:
        """Of a file that `grows` nothing is digested but what the medium holds: the cache has what has just come."""
        buffer = memoryview(bytearray(0))
        with closing(RangeDigests(file)) as digests, ThreadPoolExecutor(1, "diskhaul-tls-digest") as pool:
            while True:
                kind, fields = connection.receive(Kind.READ, Kind.DIGEST)
                if len(fields) != READ_FIELDS.size:
                    raise WireError(f"{len(fields)} bytes are no request to read")
                offset, length = READ_FIELDS.unpack(fields)
                if grows and offset + length > file.size:
                    file.measure()
                if (kind is Kind.READ and length > MAX_DATA) or offset + length > file.size:
                    raise WireError(f"{length} bytes at {offset} cannot be read of a file of {file.size}")
                if kind is Kind.DIGEST:
                    digest = _while_working(connection, pool.submit(digests.digest, offset, length), sign_of_life_s)
                    connection.send(Kind.DIGESTED, digest if digests.direct or not grows else b"")
                    continue
                if length > len(buffer):
                    buffer = memoryview(bytearray(length))
                file.read_into(offset, buffer[:length])
                connection.send(Kind.BYTES, buffer[:length])

    @contextmanager
    def _reader(self, peer: Peer, asked: Document) -> Iterator[DirectoryReader]:
        """An export that is published, or with a session's id one that is being received."""
        if "session" in asked:
            session = self._session(peer, asked)
            with self._sessions.used(session):
                yield session.writer.reader()
        else:
            instance = self._instance(peer, asked, writing=False)
            yield self._store().open(instance, field(asked, "export_id", str))

    # --- what calls have in common ----------------------------------------------------------------------------------

    def _instance(self, peer: Peer, asked: Document, *, writing: bool) -> str:
        instance: str = field(asked, "instance", str)
        self._authorization.check(peer, instance, writing=writing)
        return instance

    def _session(self, peer: Peer, asked: Document) -> Session:
        session = self._sessions.find(peer, *_credentials(asked))
        self._authorization.check(peer, session.instance, writing=True)
        return session


def _credentials(asked: Document) -> tuple[bytes, bytes]:
    return binary_field(asked, "session", ID_LENGTH), binary_field(asked, "key", KEY_LENGTH)


def _sign_of_life_s(hello: Document) -> float:
    """How often a peer has to hear something, by how long it waits for an answer."""
    silence_ms = field(hello, "silence_ms", int)
    if silence_ms < 1:
        raise WireError("the field silence_ms is not above 0")
    return min(_SIGN_OF_LIFE_S, float(min(silence_ms, 86_400_000)) / 3000)


def _while_working(connection: Connection, work: Future[T], sign_of_life_s: float) -> T:
    """Wait for what may take long, and say all the while that it is being done."""
    while True:
        try:
            return work.result(timeout=sign_of_life_s)
        except TimeoutError:
            if work.done():  # just now, or with a `TimeoutError` of its own
                return work.result()
            connection.send(Kind.WORKING)


def _has_manifest(store: DirectoryStore, instance: str, export_id: str, manifest: bytearray) -> bool:
    try:
        reader: ExportReader = store.open(instance, export_id)
        file = reader.open(MANIFEST)
    except DiskhaulError:
        return False
    try:
        content = bytearray(file.size) if file.size == len(manifest) else bytearray()
        file.read_into(0, memoryview(content))
        return content == manifest
    finally:
        file.close()


def _told(error: Exception) -> Document:
    answer: dict[str, Any] = {"message": str(error)[:4000]}
    if isinstance(error, UnreachableNodeError):
        answer["unreachable"] = True
    if isinstance(error, BusyReceiverError):
        answer["busy"] = True
    if isinstance(error, NoSessionError):
        answer["no_session"] = True
    return answer
