"""A receiver that is full, or is sent what it need not hear out."""

from __future__ import annotations

import resource
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from diskhaul.api import StoreFile
from diskhaul.errors import StorageError, UnreachableNodeError
from diskhaul.testing.conformance.storages import pattern
from diskhaul.testing.conformance.transfers import INSTANCE, MANIFEST, NEW, OLD, content, make, put
from diskhaul_plugins.transfers.tls.client_store import TlsStore, TlsWriter
from diskhaul_plugins.transfers.tls.connection import Connection
from diskhaul_plugins.transfers.tls.wire import MAX_BODY, Kind, data_frame, dump, head

from .conftest import LIMIT_S, Lab, wait_until

OTHER = "other.example.com"


def store_of(lab: Lab, this: str = "alpha", **options: object) -> TlsStore:
    store = lab.transfer(this, **options).store(lab.node("beta"))
    assert isinstance(store, TlsStore)
    return store


def begun(store: TlsStore, instance: str = INSTANCE, export_id: str = NEW) -> TlsWriter:
    writer = store.begin(instance, export_id)
    assert isinstance(writer, TlsWriter)
    return writer


# --- connections ------------------------------------------------------------------------------------------------------


class Watched(dict[socket.socket, float]):
    """A receiver's connections that are not authenticated yet; remembers whether somebody went through them without its lock."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__()
        self._lock, self.bare = lock, 0

    def _look(self) -> None:
        self.bare += not self._lock.locked()

    def __iter__(self) -> Iterator[socket.socket]:
        self._look()
        return super().__iter__()

    def items(self) -> Any:
        self._look()
        return super().items()

    def values(self) -> Any:
        self._look()
        return super().values()


def test_connections_that_others_take_out_are_gone_through_under_the_lock(lab: Lab) -> None:
    receiver = lab.serve(max_pending=2, handshake_timeout_s=0.3)
    watched = Watched(receiver._lock)
    receiver._pending = watched
    idle = [lab.connect() for _ in range(5)]
    try:
        make(store_of(lab), NEW)
        wait_until(lambda: not watched, "no connection that is not authenticated")
    finally:
        for connection in idle:
            connection.close()
    assert watched.bare == 0


def test_a_node_that_has_too_many_connections_is_waited_for(lab: Lab) -> None:
    lab.serve(max_per_peer=1)
    store = store_of(lab)
    make(store, OLD)
    reader = store.open(INSTANCE, OLD).open("disk-0.raw")
    done: list[str] = []
    thread = threading.Thread(target=lambda: done.append(make(store, NEW)))
    thread.start()
    try:
        lab.wait_for_line("node alpha", "this node has 1 connections already")
        assert not done
    finally:
        reader.close()
        thread.join(LIMIT_S)
    assert done
    assert list(store.exports(INSTANCE)) == [OLD, NEW]


def test_a_node_that_has_too_many_connections_for_longer_than_retry_s_is_told_so(lab: Lab) -> None:
    lab.serve(max_per_peer=1)
    store = store_of(lab, retry_s=0.2)
    make(store, OLD)
    reader = store.open(INSTANCE, OLD).open("disk-0.raw")
    try:
        with pytest.raises(UnreachableNodeError, match=r"node beta .*: this node has 1 connections already"):
            store.exports(INSTANCE)
    finally:
        reader.close()


# --- exports that are being received ----------------------------------------------------------------------------------


def test_an_export_whose_sender_has_died_does_not_keep_others_out_for_ever(lab: Lab) -> None:
    lab.serve(max_sessions=1, session_timeout_s=0.5)
    left = begun(store_of(lab))
    put(left.create("disk-0.raw"), b"bytes")
    make(store_of(lab), OLD, instance=OTHER)
    lab.wait_for_line(f"{INSTANCE}@{NEW}", "is no longer being received")
    with pytest.raises(StorageError, match="knows nothing"):
        left.publish(MANIFEST)
    store = store_of(lab)
    assert list(store.exports(INSTANCE)) == []
    assert list(store.partials(INSTANCE)) == [NEW], "it is for 'recover' to remove"
    store.remove_partial(INSTANCE, NEW)
    assert list(store.partials(INSTANCE)) == []


def test_an_export_that_is_read_back_or_has_a_stream_is_being_received_however_long_that_takes(lab: Lab) -> None:
    receiver = lab.serve(session_timeout_s=0.05)
    writer = begun(store_of(lab))
    put(writer.create("disk-0.raw"), b"bytes")
    reading = writer.reader().open("disk-0.raw")
    streamed = writer.create("disk-1.raw.zst")
    streamed.append([b"more"])
    (session,) = receiver._sessions._sessions.values()
    wait_until(lambda: session.users == 2, "a reader and a stream")
    waited = time.monotonic() + 0.1
    wait_until(lambda: time.monotonic() > waited, "longer than the receiver bears")
    make(store_of(lab), OLD, instance=OTHER)
    buffer = bytearray(5)
    reading.read_into(0, memoryview(buffer))
    assert buffer == b"bytes"
    reading.close()
    streamed.finish()
    writer.publish(MANIFEST)
    assert content(store_of(lab).open(INSTANCE, NEW), "disk-1.raw.zst") == b"more"


def test_a_session_whose_sender_comes_back_while_another_expires_goes_on(lab: Lab) -> None:
    receiver = lab.serve(session_timeout_s=0.2)
    store = store_of(lab)
    dead, alive = store.begin(OTHER, NEW), begun(store)
    first, second = receiver._sessions._sessions.values()
    waited = time.monotonic() + 0.3
    wait_until(lambda: time.monotonic() > waited, "longer than the receiver bears")
    leave = first.writer.leave

    def leave_while_the_other_is_heard_of() -> None:
        leave()
        put(alive.create("disk-0.raw"), b"bytes")

    first.writer.leave = leave_while_the_other_is_heard_of  # type: ignore[method-assign]  # where the receiver takes its time
    make(store_of(lab), OLD, instance=OTHER)
    assert first.ended
    assert not second.ended
    alive.publish(MANIFEST)
    assert content(store.open(INSTANCE, NEW), "disk-0.raw") == b"bytes"
    with pytest.raises(StorageError):
        dead.publish(MANIFEST)


def test_a_session_that_an_earlier_process_left_expires_as_well(lab: Lab) -> None:
    lab.serve()
    begun(store_of(lab))
    lab.stop()
    lab.serve(session_timeout_s=0.05)
    state = lab.work / "state" / "receiver-beta"
    assert len(list(state.iterdir())) == 2

    def begin_another() -> bool:
        make(store_of(lab), OLD, instance=OTHER)
        store_of(lab).remove(OTHER, OLD)
        return list(state.iterdir()) == []

    wait_until(begin_another, "no state of the session that was left")
    assert list(store_of(lab).partials(INSTANCE)) == [NEW]


def test_a_receiver_with_as_many_exports_as_it_may_have_is_waited_for(lab: Lab) -> None:
    lab.serve(max_sessions=1)
    first = begun(store_of(lab))
    with pytest.raises(UnreachableNodeError, match=r"1 exports are being received already .*'diskhaul recover'"):
        store_of(lab, retry_s=0.2).begin(OTHER, OLD)
    done: list[str] = []
    thread = threading.Thread(target=lambda: done.append(make(store_of(lab), OLD, instance=OTHER)))
    thread.start()
    lab.wait_for_line("begin: 1 exports are being received already")
    first.abort()
    thread.join(LIMIT_S)
    assert done


def test_files_beyond_the_limit_of_descriptors_are_refused_and_those_before_it_are_stored(lab: Lab) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = 40
    lab.serve(max_connections=10, max_pending=10)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * (room + 64), limits[1]))
    try:
        writer = begun(store_of(lab))
        files: list[StoreFile] = []
        with pytest.raises(
            StorageError, match=r"files open .* of \d+ that its limit of 208 descriptors leaves: raise LimitNOFILE"
        ):
            files.extend(writer.create(f"disk-{number}.raw") for number in range(200))
        assert room < len(files) < 2 * (room + 64)
        for file in files:
            put(file, b"bytes")
        last = writer.create("another")  # those that are finished hold none
        put(last, b"bytes")
        writer.publish(MANIFEST)
        assert len(store_of(lab).open(INSTANCE, NEW).names()) == len(files) + 2
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# --- what need not be heard out ---------------------------------------------------------------------------------------


def call_with_body(store: TlsStore, name: str, length: int, **asked: object) -> Connection:
    """A connection over which a call has been made whose body is announced, and not sent."""
    connection, _ = store._caller.dialler.dial("calls")
    connection.send(Kind.CALL, dump({"call": name, "body": length, "instance": INSTANCE, "export_id": NEW} | asked))
    return connection


def test_a_body_of_a_peer_that_may_not_publish_is_not_kept(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    receive_into = Connection.receive_into

    def watch(self: Connection, view: memoryview) -> None:
        kept.append(len(view))
        receive_into(self, view)

    monkeypatch.setattr(Connection, "receive_into", watch)
    lab.serve()
    writer = begun(store_of(lab))
    theirs = store_of(lab, "gamma")
    connection = call_with_body(theirs, "publish", MAX_BODY, **writer._credentials)
    try:
        connection.send_raw(head(Kind.BODY, MAX_BODY))
        for _ in range(MAX_BODY >> 20):
            connection.send_raw(bytes(1 << 20))
        answer = connection.receive_document(Kind.RESULT)[1]
        assert not answer["ok"]
        assert "node gamma may not write" in answer["message"]
        connection.send_document(Kind.CALL, {"call": "identity"})
        assert connection.receive_document(Kind.RESULT)[1]["ok"], "the connection is as good as before"
    finally:
        connection.close()
    assert max(kept) <= 1 << 16
    put(writer.create("disk-0.raw"), b"bytes")
    writer.publish(MANIFEST)


def test_a_body_for_another_export_s_session_or_with_another_call_is_refused(lab: Lab) -> None:
    lab.serve()
    store = store_of(lab)
    writer = begun(store)
    caller = store._caller
    for asked, reason in (
        ({"instance": OTHER, "export_id": NEW}, "session is of another export"),
        ({"instance": INSTANCE, "export_id": NEW, "key": "00" * 32}, "sent by somebody else"),
    ):
        with pytest.raises(StorageError, match=reason):
            caller.call("publish", writer._credentials | asked, MANIFEST)
    with pytest.raises((StorageError, UnreachableNodeError), match="abort with a body of 2 bytes"):
        caller.call("abort", writer._named | writer._credentials, b"{}")
    connection = call_with_body(store, "publish", MAX_BODY + 1, **writer._credentials)
    try:
        assert f"a body of {MAX_BODY + 1} bytes" in connection.receive_document(Kind.REFUSED)[1]["message"]
    finally:
        connection.close()
    connection = call_with_body(store, "publish", 100, **writer._credentials)
    try:
        connection.send(Kind.BODY, b"{}")
        assert "another length" in connection.receive_document(Kind.REFUSED)[1]["message"]
    finally:
        connection.close()
    writer.abort()


def test_a_peer_that_may_not_write_is_told_nothing_else_about_the_store(lab: Lab) -> None:
    lab.serve()
    (lab.work / "beta" / INSTANCE).mkdir()
    (lab.work / "beta" / INSTANCE / "foreign").touch()
    assert "foreign" in "\n".join(store_of(lab).check(INSTANCE, for_writing=True))
    (problem,) = store_of(lab, "gamma").check(INSTANCE, for_writing=True)
    assert "node gamma may not write" in problem


@pytest.fixture
def stream(lab: Lab) -> Iterator[tuple[Connection, TlsWriter]]:
    """A stream of a raw file, to which nothing has been sent."""
    lab.serve()
    store = store_of(lab)
    writer = begun(store)
    file = writer.create("disk-0.raw.zst")
    asked = writer._credentials | {"name": file.name, "streams": 1}
    token = store._caller.call("restart", asked)["tokens"][0]
    connection, _ = store._caller.dialler.dial("stream", token=token, magic=file._sender._magic.hex())
    yield connection, writer
    connection.close()
    writer.abort()


def test_a_damaged_frame_ends_the_stream_while_the_next_one_is_on_its_way(stream: tuple[Connection, TlsWriter]) -> None:
    connection, _ = stream
    damaged = bytearray(data_frame(0, 0, pattern(10_000)).parts[0])
    connection.send_raw(damaged, b"x" * 10_000)
    following = data_frame(1, 10_000, pattern(1 << 20))
    connection.send_raw(following.parts[0], following.payload[: 1 << 19])  # and no more
    assert "digest mismatch" in connection.receive_document(Kind.REFUSED)[1]["message"]
