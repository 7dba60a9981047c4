"""Streams that are cut anywhere are resumed within one window, or fail with nothing listed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest

from diskhaul.api import DigestingReader, ExportStore
from diskhaul.errors import DiskhaulError, StorageError, UnreachableNodeError
from diskhaul.formats.chunk_table import chunk_digest
from diskhaul.testing.conformance.storages import pattern
from diskhaul.testing.conformance.transfers import INSTANCE, MANIFEST, NEW, content, make
from diskhaul_plugins.transfers.directory import DirectoryStore
from diskhaul_plugins.transfers.tls import sessions
from diskhaul_plugins.transfers.tls.client_store import TlsWriter
from diskhaul_plugins.transfers.tls.client_stream import TlsFile
from diskhaul_plugins.transfers.tls.progress import Progress

from .conftest import LIMIT_S, Lab, wait_until
from .faulty_proxy import Fault, FaultyProxy

CHUNKS = [pattern(20_000 + number, seed=number) for number in range(5)]  # three TLS records each: fields, 16 KiB, the rest
BEGIN, CREATE, RESTART, STREAM, PUBLISH = 1, 2, 3, 4, 5
"""Connections in their order, after the one that finds out whether the receiver is there."""
CLIENTS_FIRST, SERVERS_FIRST = 6, 7
"""Records of a client before what it asks for (its handshake's, and HELLO), and of a server before READY (its handshake's)."""
MIB = 1 << 20


class Process:
    """The receiver of beta as a process of its own."""

    def __init__(self, lab: Lab) -> None:
        self._config = lab.work / "cluster.toml"
        self._config.write_text(
            f"""
[cluster]
name = "lab"
[backends]
transfer = "tls"
[backend_options.tls]
certificates = "{lab.certs}"
[nodes.alpha]
export_dir = "alpha"
[nodes.beta]
export_dir = "beta"
options = {{ address = "127.0.0.1:1", listen = "127.0.0.1:0" }}
[nodes.gamma]
export_dir = "gamma"
[instances."{INSTANCE}"]
node = "alpha"
"""
        )
        self.address = ""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Start it, and return where it listens."""
        command = [sys.executable, "-m", "diskhaul", "--config", str(self._config), "node", "serve", "--node", "beta"]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        assert "listens on" in line, line + self._process.stderr.read()
        return line.split()[-1]

    def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        assert self._process.stderr is not None
        self._process.send_signal(number)
        code = self._process.wait(LIMIT_S)
        self._process.stderr.close()
        self._process = None
        return code

    def slow_down(self, call: str, microseconds: int) -> subprocess.Popen[str]:
        """Have each `call` of the process take longer, until what is returned is killed."""
        assert self._process is not None
        inject = f"inject={call}:delay_enter={microseconds}"
        command = ["strace", "-f", "-qq", "-e", f"trace={call}", "-e", inject, "-o", "/dev/null", "-p", str(self._process.pid)]
        tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL, text=True)
        status = Path(f"/proc/{self._process.pid}/status")
        wait_until(lambda: "TracerPid:\t0" not in status.read_text(), "traced")
        return tracer

    def close(self) -> None:
        if self._process is not None:
            self.end(signal.SIGKILL)


@pytest.fixture
def process(lab: Lab) -> Iterator[Process]:
    made = Process(lab)
    yield made
    made.close()


@pytest.fixture
def proxy() -> Iterator[FaultyProxy]:
    made = FaultyProxy("127.0.0.1:1")
    yield made
    made.close()


def through(lab: Lab, proxy: FaultyProxy, **options: object) -> ExportStore:
    """Beta's store, through the proxy."""
    return lab.transfer("alpha", **options).store(lab.node("beta", proxy.address))


def send(store: ExportStore, parts: list[bytes]) -> TlsFile:
    writer = store.begin(INSTANCE, NEW)
    assert isinstance(writer, TlsWriter)
    file = writer.create("disk-0.raw.zst")
    for part in parts:
        file.append([part])
    file.finish()
    writer.publish(MANIFEST)
    return file


def assert_stored(lab: Lab, whole: bytes) -> None:
    """Looked at on the node itself."""
    store = lab.transfer("beta").store(lab.node("beta"))
    assert list(store.exports(INSTANCE)) == [NEW]
    assert list(store.partials(INSTANCE)) == []
    assert list(store.open(INSTANCE, NEW).names()) == ["disk-0.raw.zst", "manifest.json"]
    assert content(store.open(INSTANCE, NEW), "disk-0.raw.zst") == whole
    assert os.listdir(lab.work / "state" / "receiver-beta") == []


@pytest.mark.parametrize("inside", [False, True], ids=["at a boundary", "inside a record"])
@pytest.mark.parametrize("how", ["reset", "silence"])
@pytest.mark.parametrize("sent_by", ["client", "server"])
def test_a_stream_cut_at_any_record_is_resumed_within_one_window(
    lab: Lab, proxy: FaultyProxy, sent_by: Literal["client", "server"], how: Literal["reset", "silence"], inside: bool
) -> None:
    proxy.upstream = lab.serve().address
    # All there are: of the client's as many as its chunks have and the trailer; of the server's READY and the answers.
    records = CLIENTS_FIRST + 3 * len(CHUNKS) + 1 if sent_by == "client" else SERVERS_FIRST + 1 + len(CHUNKS) + 1
    patience = {"silence_s": 0.3, "connect_timeout_s": 0.5} if how == "silence" else {}

    def cut_at(record: int) -> int:
        """Send with a fault there; return how many came to pass."""
        proxy.connections = proxy.struck = 0
        proxy.faults = [Fault(STREAM, sent_by, record, inside, how)]
        store = through(lab, proxy, **patience)
        file = send(store, CHUNKS)
        assert file.resent <= sum(map(len, CHUNKS))
        assert_stored(lab, b"".join(CHUNKS))
        store.remove(INSTANCE, NEW)
        return proxy.struck

    for record in range(records):
        # A machine that is too busy is silent, too: a stream that breaks before its fault has another number afterwards.
        assert any(cut_at(record) == 1 for _ in range(5)), f"the fault at record {record} has come to pass"


@pytest.mark.parametrize("connection", [BEGIN, CREATE, RESTART, PUBLISH])
@pytest.mark.parametrize("sent_by", ["client", "server"])
def test_a_call_that_is_cut_anywhere_is_made_again(
    lab: Lab, proxy: FaultyProxy, connection: int, sent_by: Literal["client", "server"]
) -> None:
    proxy.upstream = lab.serve().address
    for record in range(CLIENTS_FIRST + 1 if sent_by == "client" else SERVERS_FIRST + 2):
        proxy.connections = 0
        proxy.faults = [Fault(connection, sent_by, record)]
        store = through(lab, proxy)
        send(store, CHUNKS)
        assert_stored(lab, b"".join(CHUNKS))
        store.remove(INSTANCE, NEW)
    assert proxy.struck == record + 1


@pytest.mark.parametrize("streams", [1, 3])
def test_what_is_sent_again_is_no_more_than_one_window_for_each_cut(lab: Lab, proxy: FaultyProxy, streams: int) -> None:
    proxy.upstream = lab.serve().address
    whole = pattern(12 * MIB)
    proxy.faults = [Fault(number, "client", 40 + 5 * number) for number in range(STREAM, STREAM + 30)]
    file = send(
        through(lab, proxy, window_mib=2, streams=streams), [whole[begin : begin + MIB] for begin in range(0, len(whole), MIB)]
    )
    assert proxy.struck >= 3
    assert 0 < file.resent <= 2 * MIB * proxy.struck
    assert_stored(lab, whole)


def test_a_raw_file_is_resumed_with_its_holes(lab: Lab, proxy: FaultyProxy) -> None:
    proxy.upstream = lab.serve().address
    proxy.faults = [Fault(STREAM, "client", 30), Fault(STREAM + 2, "server", 5)]
    writer = through(lab, proxy).begin(INSTANCE, NEW)
    file = writer.create("disk-0.raw")
    file.set_size(8 * MIB)
    for offset in (6 * MIB, 0, 3 * MIB):
        file.write(offset, pattern(MIB, seed=offset))
    file.set_size(8 * MIB)
    file.finish()
    writer.publish(MANIFEST)
    assert proxy.struck == 2
    expected = bytearray(8 * MIB)
    for offset in (6 * MIB, 0, 3 * MIB):
        expected[offset : offset + MIB] = pattern(MIB, seed=offset)
    stored = lab.work / "beta" / INSTANCE / NEW / "disk-0.raw"
    assert stored.read_bytes() == expected
    assert stored.stat().st_blocks * 512 < 5 * MIB


def test_reading_goes_on_over_another_connection(lab: Lab, proxy: FaultyProxy) -> None:
    proxy.upstream = lab.serve().address
    whole = pattern(5 * MIB)
    store = through(lab, proxy)
    send(store, [whole])
    reading = proxy.connections + 1
    proxy.faults = [Fault(reading, "server", 20), Fault(reading + 1, "client", 6, inside=True), Fault(reading + 2, "server", 100)]
    file = store.open(INSTANCE, NEW).open("disk-0.raw.zst")
    try:
        found = bytearray(len(whole))
        for begin in range(0, len(whole), 100_000):
            file.read_into(begin, memoryview(found)[begin : begin + 100_000])
    finally:
        file.close()
    assert found == whole
    assert proxy.struck == 3


def test_a_receiver_that_does_not_come_back_fails_the_file_and_nothing_is_listed(lab: Lab, proxy: FaultyProxy) -> None:
    proxy.upstream = lab.serve().address

    def go_away() -> None:
        proxy.upstream = "127.0.0.1:1"

    proxy.faults = [Fault(STREAM, "client", 7, how=go_away)]
    writer = through(lab, proxy, retry_s=0.3).begin(INSTANCE, NEW)
    file = writer.create("disk-0.raw.zst")
    file.append([CHUNKS[0]])
    file.append([CHUNKS[1]])
    with pytest.raises(StorageError, match="node beta"):
        file.finish()
    with pytest.raises(DiskhaulError, match="not finished"):
        writer.publish(MANIFEST)
    with pytest.raises(UnreachableNodeError):
        writer.abort()
    own = lab.transfer("beta").store(lab.node("beta"))
    assert list(own.exports(INSTANCE)) == []
    assert list(own.partials(INSTANCE)) == [NEW]
    proxy.upstream = str(lab.node("beta").options["address"])
    through(lab, proxy).remove_partial(INSTANCE, NEW)
    assert list(own.partials(INSTANCE)) == []
    assert os.listdir(lab.work / "state" / "receiver-beta") == []


def test_closing_a_file_that_waits_for_its_receiver_ends_the_wait(lab: Lab, proxy: FaultyProxy) -> None:
    proxy.upstream = lab.serve().address
    proxy.faults = [Fault(STREAM, "client", 9, how="silence")]
    writer = through(lab, proxy, silence_s=3600, window_mib=1).begin(INSTANCE, NEW)
    file = writer.create("disk-0.raw.zst")
    failed: list[BaseException] = []

    def append() -> None:
        try:
            for number in range(40):
                file.append([pattern(100_000, seed=number)])
        except StorageError as error:
            failed.append(error)

    thread = threading.Thread(target=append)
    thread.start()
    wait_until(lambda: proxy.struck == 1, "silence")
    writer.abort()
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert failed
    assert list(lab.transfer("beta").store(lab.node("beta")).partials(INSTANCE)) == []


def test_a_receiver_without_room_fails_the_file_with_the_reason_and_at_once(lab: Lab, requires: Callable[..., None]) -> None:
    requires("mount", "umount", root=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(lab.work / "beta")], check=True)
    try:
        lab.serve()
        store = lab.transfer("alpha", retry_s=3600).store(lab.node("beta"))
        writer = store.begin(INSTANCE, NEW)
        file = writer.create("disk-0.raw.zst")
        file.append([pattern(4 * MIB)])
        with pytest.raises(StorageError, match="No space left on device"):
            file.finish()
        writer.abort()
        assert list(store.partials(INSTANCE)) == []
        make(store, NEW)
        lab.stop()
    finally:
        subprocess.run(["umount", str(lab.work / "beta")], check=True)


def test_a_receiver_whose_fsync_takes_longer_than_the_sender_bears_silence_says_that_it_lives(
    lab: Lab, proxy: FaultyProxy, process: Process, requires: Callable[..., None]
) -> None:
    requires("strace")
    proxy.upstream = process.start()
    slow = process.slow_down("fsync", 700_000)
    try:
        send(through(lab, proxy, silence_s=0.4, retry_s=0), CHUNKS)
    finally:
        slow.kill()
        slow.wait(LIMIT_S)
    assert_stored(lab, b"".join(CHUNKS))


# --- a receiver's process that is killed ------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_receiver_that_is_killed_and_started_again_goes_on_where_it_was(
    lab: Lab, proxy: FaultyProxy, process: Process, number: signal.Signals
) -> None:
    def begin_anew() -> None:
        process.end(number)
        proxy.upstream = process.start()

    proxy.upstream = process.start()
    whole = pattern(6 * MIB)
    cuts = [(STREAM, "client", 12), (STREAM + 2, "client", 100), (STREAM + 4, "server", 3), (STREAM + 6, "client", 61)]
    proxy.faults = [Fault(at, by, record, how=begin_anew) for at, by, record in cuts]  # type: ignore[arg-type]  # literals
    file = send(through(lab, proxy, window_mib=1), [whole[begin : begin + 130_001] for begin in range(0, len(whole), 130_001)])
    assert proxy.struck == len(cuts)
    assert file.resent <= MIB * len(cuts)
    assert_stored(lab, whole)
    assert process.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("connection", [BEGIN, CREATE, STREAM, PUBLISH])
def test_a_receiver_that_is_killed_while_it_answers_is_asked_again(
    lab: Lab, proxy: FaultyProxy, process: Process, connection: int
) -> None:
    def begin_anew() -> None:
        process.end(signal.SIGKILL)
        proxy.upstream = process.start()

    proxy.upstream = process.start()
    # The last record: what was asked has been done then, and the answer is lost. Of the stream: the trailer's.
    last = SERVERS_FIRST + (1 + len(CHUNKS) if connection == STREAM else 1)
    proxy.faults = [Fault(connection, "server", last, how=begin_anew)]
    send(through(lab, proxy), CHUNKS)
    assert proxy.struck == 1
    assert_stored(lab, b"".join(CHUNKS))


def test_what_has_settled_is_digested_by_the_receiver_that_was_started_anew(
    lab: Lab, proxy: FaultyProxy, process: Process
) -> None:
    proxy.upstream = process.start()
    whole = pattern(40 * MIB)
    writer = through(lab, proxy).begin(INSTANCE, NEW)
    file = writer.create("disk-0.raw.zst")
    assert isinstance(file, TlsFile)
    file.append([whole[: 36 * MIB]])
    wait_until(lambda: file.settled == 4 * MIB, "all but what the kernel may still be writing has settled")
    assert file.range_digest(MIB + 5, 3 * MIB - 5) == chunk_digest(whole[MIB + 5 : 4 * MIB])
    process.end(signal.SIGKILL)
    assert file.range_digest(MIB + 5, 3 * MIB - 5) is None, "that is no reason to fail"
    proxy.upstream = process.start()
    file.append([whole[36 * MIB :]])
    assert file.range_digest(MIB + 5, 3 * MIB - 5) == chunk_digest(whole[MIB + 5 : 4 * MIB])
    (stored,) = (lab.work / "beta").rglob("disk-0.raw.zst")
    with stored.open("r+b") as medium:
        medium.seek(2 * MIB)
        medium.write(b"rot")
    assert file.range_digest(MIB, 3 * MIB) != chunk_digest(whole[MIB : 4 * MIB])
    with stored.open("r+b") as medium:
        medium.seek(2 * MIB)
        medium.write(whole[2 * MIB : 2 * MIB + 3])
    file.finish()
    writer.publish(MANIFEST)
    assert_stored(lab, whole)


def test_giving_up_ends_a_wait_for_a_digest(lab: Lab, proxy: FaultyProxy) -> None:
    proxy.upstream = lab.serve().address
    file = through(lab, proxy, silence_s=3600).begin(INSTANCE, NEW).create("disk-0.raw.zst")
    assert isinstance(file, TlsFile)
    file.append([pattern(36 * MIB)])
    wait_until(lambda: file.settled == 4 * MIB, "it has settled")
    proxy.faults = [Fault(proxy.connections, "client", CLIENTS_FIRST, how="silence")]
    answers: list[bytes | None] = []
    asking = threading.Thread(target=lambda: answers.append(file.range_digest(0, MIB)))
    asking.start()
    wait_until(lambda: proxy.struck == 1, "it waits")
    file.close()
    asking.join(LIMIT_S)
    assert not asking.is_alive()
    assert answers in ([], [None])  # [] where it was told that the file is closed
    with pytest.raises(StorageError, match="is closed"):
        file.range_digest(0, MIB)


def test_a_receiver_that_cannot_read_its_medium_digests_nothing_before_the_end(lab: Lab, requires: Callable[..., None]) -> None:
    requires("mount", "umount", root=True)
    subprocess.run(["mount", "-t", "ramfs", "ramfs", str(lab.work / "beta")], check=True)
    try:
        lab.serve()
        whole = pattern(36 * MIB)
        writer = lab.transfer("alpha").store(lab.node("beta")).begin(INSTANCE, NEW)
        file = writer.create("disk-0.raw.zst")
        assert isinstance(file, TlsFile)
        file.append([whole])
        wait_until(lambda: file.settled == 4 * MIB, "it has settled")
        assert file.range_digest(0, MIB) is None
        file.finish()
        reader = writer.reader().open("disk-0.raw.zst")
        assert isinstance(reader, DigestingReader)
        assert reader.range_digest(0, MIB) == chunk_digest(whole[:MIB])
        reader.close()
        writer.publish(MANIFEST)
        assert_stored(lab, whole)
        lab.stop()
    finally:
        subprocess.run(["umount", str(lab.work / "beta")], check=True)


@pytest.mark.parametrize("where", ["resume", "progress"])
def test_a_receiver_that_lacks_something_while_it_takes_an_export_up_is_asked_again(
    lab: Lab, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    proxy.upstream = lab.serve().address
    failures = [errno.EMFILE, errno.ENOSPC]
    owner, name = {"resume": (DirectoryStore, "resume"), "progress": (sessions, "ProgressFile")}[where]
    real = getattr(owner, name)

    def scarce(*arguments: object, **options: object) -> object:
        if failures:
            number = failures.pop()
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    def begin_anew() -> None:
        lab.stop()
        monkeypatch.setattr(owner, name, scarce)
        proxy.upstream = lab.serve().address

    proxy.faults = [Fault(STREAM, "client", 9, how=begin_anew)]
    send(through(lab, proxy), CHUNKS)
    assert proxy.struck == 1
    assert not failures
    assert_stored(lab, b"".join(CHUNKS))


def test_an_export_of_which_too_little_is_left_is_given_up_at_once(lab: Lab, proxy: FaultyProxy) -> None:
    def begin_anew() -> None:
        (left,) = (lab.work / "beta").rglob("disk-0.raw.zst")
        wait_until(lambda: left.stat().st_size > 0, "something written")  # less than a block lies in the note of it
        lab.stop()
        os.truncate(left, left.stat().st_size - 1)
        proxy.upstream = lab.serve().address

    proxy.upstream = lab.serve().address
    proxy.faults = [Fault(STREAM, "client", 60, how=begin_anew)]
    with pytest.raises(StorageError, match="cannot be gone on with"):
        send(through(lab, proxy, retry_s=30), [pattern(200_000, seed=number) for number in range(8)])
    assert list(lab.transfer("beta").store(lab.node("beta")).exports(INSTANCE)) == []


def test_a_receiver_that_starts_removes_the_state_of_what_was_killed_while_it_began(lab: Lab) -> None:
    state = lab.serve()._sessions._directory
    lab.stop()
    left = [state / f"{number:032x}{suffix}" for number, suffix in ((1, ".progress"), (2, ".tmp"))]
    for place in left:
        place.write_bytes(b"")
    lab.serve()
    wait_until(lambda: not any(place.exists() for place in left), "both removed")


def test_a_receiver_that_cannot_look_at_its_store_when_it_starts_forgets_nothing(
    lab: Lab, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.upstream = lab.serve().address

    def begin_anew() -> None:
        lab.stop()
        with monkeypatch.context() as patched:
            patched.setattr(DirectoryStore, "partials", _unreadable)
            proxy.upstream = lab.serve().address
            lab.wait_for_line("not known whether it can be gone on with", "Input/output error")

    proxy.faults = [Fault(STREAM, "client", 9, how=begin_anew)]
    send(through(lab, proxy), CHUNKS)
    assert proxy.struck == 1
    assert_stored(lab, b"".join(CHUNKS))


def _unreadable(*arguments: object) -> None:
    raise StorageError(f"exports: {os.strerror(errno.EIO)}", path="exports")


def test_a_file_that_could_not_be_noted_is_not_taken_for_made_when_it_is_asked_for_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would go on, and be gone after a restart of the receiver."""
    receiver = lab.serve()
    lab.transfer("alpha").store(lab.node("beta")).begin(INSTANCE, NEW)
    (session,) = receiver._sessions._sessions.values()
    magic = bytes(sessions.MAGIC_LENGTH)

    def fails(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(sessions.Sessions, "_write", fails)
        with pytest.raises(OSError, match="No space left on device"):
            receiver._sessions.create(session, "disk-0.raw.zst", magic)
    with pytest.raises(StorageError, match="exists"):
        receiver._sessions.create(session, "disk-0.raw.zst", magic)


def test_a_state_directory_that_is_full_is_named(tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("mount", "umount", root=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=True)
    try:
        with closing(sessions.ProgressFile(tmp_path / "a.progress", new=True)) as state:
            (tmp_path / "full").write_bytes(bytes(64 << 10))
            with pytest.raises(OSError, match=f"No space left on device.*{tmp_path}/a.progress"):
                state.write(0, Progress(0, 0, 0, False, False, bytes(32)))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_an_export_is_not_gone_on_with_after_its_machine_went_down(
    lab: Lab, proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.upstream = lab.serve().address
    rebooted: Callable[[], str] = lambda: "another boot"  # noqa: E731  # read from the kernel, which cannot be had otherwise

    def reboot() -> None:
        lab.stop()
        monkeypatch.setattr(sessions, "_boot_id", rebooted)
        proxy.upstream = lab.serve().address

    stopped = threading.Event()
    proxy.faults = [Fault(STREAM, "client", 9, how=stopped.set)]
    writer = through(lab, proxy).begin(INSTANCE, NEW)
    file = writer.create("disk-0.raw.zst")
    file.append([CHUNKS[0]])
    file.append([CHUNKS[1]])
    file.append([CHUNKS[2]])
    assert stopped.wait(LIMIT_S)
    reboot()
    with pytest.raises(StorageError, match=r"knows nothing|cannot be gone on with"):
        file.finish()
    lab.wait_for_line("cannot be gone on with", "started anew")
    own = lab.transfer("beta").store(lab.node("beta"))
    assert list(own.exports(INSTANCE)) == []
    writer.abort()
    assert list(own.partials(INSTANCE)) == []
