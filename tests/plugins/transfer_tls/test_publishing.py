"""What becomes of an export whose publishing is interrupted: it has been published or never will be, and the sender knows."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import cast

import pytest

from diskhaul.errors import DiskhaulError, LockLostError, StorageError, UnreachableNodeError
from diskhaul.testing.conformance.transfers import INSTANCE, MANIFEST, NEW, put
from diskhaul_plugins.transfers import beneath
from diskhaul_plugins.transfers.tls.client_store import TlsStore, TlsWriter
from diskhaul_plugins.transfers.tls.connection import Connection
from diskhaul_plugins.transfers.tls.service import _while_working

from .conftest import LIMIT_S, Lab, wait_until
from .faulty_proxy import Fault, FaultyProxy
from .test_resuming import CLIENTS_FIRST, SERVERS_FIRST, Process

PARTIAL = f".{NEW}.partial"
Requires = Callable[..., None]


@pytest.fixture
def proxy() -> Iterator[FaultyProxy]:
    made = FaultyProxy("127.0.0.1:1")
    yield made
    made.close()


@pytest.fixture
def process(lab: Lab) -> Iterator[Process]:
    made = Process(lab)
    yield made
    made.close()


def through(lab: Lab, proxy: FaultyProxy, **options: object) -> TlsStore:
    store = lab.transfer("alpha", **options).store(lab.node("beta", proxy.address))
    assert isinstance(store, TlsStore)
    return store


def sent(store: TlsStore) -> TlsWriter:
    """An export of which only the publishing is left."""
    writer = store.begin(INSTANCE, NEW)
    put(writer.create("disk-0.raw"), b"bytes")
    return writer


def own_exports(lab: Lab) -> list[str]:
    return list(lab.transfer("beta").store(lab.node("beta")).exports(INSTANCE))


class Publishing(threading.Thread):
    """A `publish` on a thread of its own."""

    def __init__(self, writer: TlsWriter) -> None:
        super().__init__()
        self._writer = writer
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._writer.publish(MANIFEST)
        except DiskhaulError as error:
            self.error = error


def test_an_abort_while_the_receiver_publishes_keeps_the_export_from_appearing(
    lab: Lab, proxy: FaultyProxy, process: Process, requires: Requires
) -> None:
    requires("strace")
    proxy.upstream = process.start()
    writer = sent(through(lab, proxy))
    slow = process.slow_down("fsync", 1_000_000)
    try:
        publishing = Publishing(writer)
        partial = lab.work / "beta" / INSTANCE / PARTIAL
        wait_until(lambda: (partial / ".manifest.json.tmp").exists(), "publishing")
        writer.abort()
        assert own_exports(lab) == []
        publishing.join(LIMIT_S)
    finally:
        slow.kill()
        slow.wait(LIMIT_S)
    assert isinstance(publishing.error, StorageError)
    assert "given up" in str(publishing.error)
    assert own_exports(lab) == []
    assert not (lab.work / "beta" / INSTANCE).exists()
    assert list((lab.work / "state" / "receiver-beta").iterdir()) == []


def test_recover_s_removal_while_the_receiver_publishes_keeps_the_export_from_appearing(
    lab: Lab, proxy: FaultyProxy, process: Process, requires: Requires
) -> None:
    requires("strace")
    proxy.upstream = process.start()
    store = through(lab, proxy)
    writer = sent(store)
    slow = process.slow_down("fsync", 1_000_000)
    try:
        publishing = Publishing(writer)
        partial = lab.work / "beta" / INSTANCE / PARTIAL
        wait_until(lambda: (partial / ".manifest.json.tmp").exists(), "publishing")
        store.remove_partial(INSTANCE, NEW)
        publishing.join(LIMIT_S)
    finally:
        slow.kill()
        slow.wait(LIMIT_S)
    assert publishing.error is not None
    assert own_exports(lab) == []
    assert not (lab.work / "beta" / INSTANCE).exists()


def test_a_sender_that_did_not_hear_that_it_has_published_finds_out(lab: Lab, proxy: FaultyProxy) -> None:
    proxy.upstream = lab.serve().address
    writer = sent(through(lab, proxy, retry_s=0))
    proxy.faults = [Fault(proxy.connections, "server", SERVERS_FIRST + 1)]
    writer.publish(MANIFEST)
    assert proxy.struck == 1
    assert own_exports(lab) == [NEW]
    writer.abort()
    assert own_exports(lab) == [NEW]


def test_a_publish_that_was_not_heard_and_fails_never_succeeds(lab: Lab, proxy: FaultyProxy) -> None:
    proxy.upstream = lab.serve().address
    writer = sent(through(lab, proxy, retry_s=0))
    proxy.faults = [Fault(proxy.connections, "client", CLIENTS_FIRST)]
    with pytest.raises(UnreachableNodeError):
        writer.publish(MANIFEST)
    assert proxy.struck == 1
    direct = lab.transfer("alpha").store(lab.node("beta"))
    assert list(direct.exports(INSTANCE)) == []
    assert list(direct.partials(INSTANCE)) == [], "it was given up at once"
    with pytest.raises(StorageError, match="is no longer being written"):
        writer.publish(MANIFEST)


def test_a_removal_that_failed_is_made_when_it_is_asked_for_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.serve()
    store = lab.transfer("alpha").store(lab.node("beta"))
    assert isinstance(store, TlsStore)
    writer = sent(store)

    def fails(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(beneath, "delete", fails)
        for _ in range(2):
            with pytest.raises(StorageError, match="Input/output error"):
                writer.abort()
            assert list(store.partials(INSTANCE)) == [NEW]
    writer.abort()
    assert list(store.partials(INSTANCE)) == []
    assert own_exports(lab) == []


def test_what_is_done_just_when_its_time_is_over_is_no_failure() -> None:
    class DoneLate(Future[bytes]):
        def result(self, timeout: float | None = None) -> bytes:
            if timeout is not None:
                self.set_result(b"done")
                raise TimeoutError
            return super().result()

    assert _while_working(cast(Connection, None), DoneLate(), 1.0) == b"done"


@pytest.mark.parametrize("again", [False, True], ids=["asked once", "asked again"])
def test_what_is_heard_after_an_abort_brings_nothing_back(lab: Lab, again: bool) -> None:
    lab.serve()
    store = lab.transfer("alpha").store(lab.node("beta"))
    assert isinstance(store, TlsStore)
    writer = sent(store)
    asked = writer._named | writer._credentials
    for _ in range(2 if again else 1):
        assert not store._caller.call("abort", asked)["published"]
    with pytest.raises(StorageError, match="no longer being received"):
        store._caller.call("begin", asked)
    with pytest.raises(StorageError, match="knows nothing"):
        store._caller.call("publish", asked, MANIFEST)
    assert own_exports(lab) == []
    assert list(store.partials(INSTANCE)) == []


@pytest.mark.parametrize("restarted", [False, True], ids=["the same receiver", "a later one"])
def test_an_abort_that_comes_too_late_is_told_that_the_export_is_published(lab: Lab, restarted: bool) -> None:
    lab.serve()
    store = lab.transfer("alpha").store(lab.node("beta"))
    assert isinstance(store, TlsStore)
    writer = sent(store)
    writer.publish(MANIFEST)
    if restarted:
        lab.stop()
        lab.serve()
        store = lab.transfer("alpha").store(lab.node("beta"))
        assert isinstance(store, TlsStore)
    assert store._caller.call("abort", writer._named | writer._credentials)["published"]
    assert own_exports(lab) == [NEW]


@pytest.mark.parametrize("call", ["publish", "abort"])
def test_what_a_receiver_published_that_has_died_since_is_made_durable_before_the_next_one_says_so(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It may have died between the rename and the fsync of the directory."""
    lab.serve()
    writer = sent(lab.transfer("alpha").store(lab.node("beta")))
    writer.publish(MANIFEST)
    lab.stop()
    lab.serve()
    store = lab.transfer("alpha").store(lab.node("beta"))
    synced: list[int] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        fsync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", watched)
    store._caller.call(call, writer._named | writer._credentials, MANIFEST if call == "publish" else None)
    assert (lab.work / "beta" / INSTANCE).stat().st_ino in synced

    def failing(descriptor: int) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StorageError, match="make durable"):
        store._caller.call(call, writer._named | writer._credentials, MANIFEST if call == "publish" else None)


def test_a_publish_is_not_tried_again_once_the_lock_is_lost(lab: Lab, proxy: FaultyProxy) -> None:
    proxy.upstream = lab.serve().address
    writer = sent(through(lab, proxy))
    first = proxy.connections
    proxy.faults = [Fault(number, "client", CLIENTS_FIRST) for number in range(first, first + 100)]
    tries: list[int] = []

    def check() -> None:
        tries.append(proxy.connections)
        if len(tries) == 3:
            raise LockLostError("lost meanwhile")

    with pytest.raises(LockLostError):
        writer.publish_while(MANIFEST, check)
    assert tries == [first, first + 1, first + 2]
    proxy.faults = []
    writer.abort()
    assert own_exports(lab) == []


def test_an_abort_ends_a_publish_that_is_being_tried_again(lab: Lab, proxy: FaultyProxy) -> None:
    proxy.upstream = lab.serve().address
    writer = sent(through(lab, proxy, retry_s=3600))
    proxy.upstream, reachable = "127.0.0.1:1", proxy.upstream
    publishing = Publishing(writer)
    wait_until(lambda: proxy.turned_away >= 2, "tried again")
    proxy.upstream = reachable
    writer.abort()
    publishing.join(LIMIT_S)
    assert not publishing.is_alive()
    assert isinstance(publishing.error, StorageError)
    assert own_exports(lab) == []
