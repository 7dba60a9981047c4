"""Disks are read by a child process that may do nothing else, and whatever that does, the parent is not harmed by it."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diskhaul.testing.disks import Fault, FaultyDisk, MemoryDisk
from diskhaul_plugins.guest_disks import wire
from diskhaul_plugins.guest_disks.inspection import GuestDiskReaderError, inspect_disk
from diskhaul_plugins.storages.raw import RawReader

from .conftest import MIB, swap_space

SIZE = 8 * MIB

BAD = """
import sys, types
from diskhaul_plugins.guest_disks import readers
from diskhaul_plugins.guest_disks.reading import FreeRuns, Reading
from diskhaul_plugins.guest_disks.child import start
import os, signal, ctypes, socket, subprocess, threading
lock = threading.Lock()
lock.acquire()
bad = types.ModuleType("bad")
sys.modules["bad"] = bad
def read(volume):
    {body}
bad.read = read
readers.READERS = (readers.ReaderEntry("bad", "bad", "read"),)
start()
"""
"""A child with a reader of its own."""


def bad(body: str) -> str:
    return BAD.format(body=body)


@pytest.fixture
def disk(tmp_path: Path, requires: Callable[..., None]) -> Iterator[RawReader]:
    """An open image with swap space."""
    requires("mkswap")
    path = swap_space(tmp_path / "swap", SIZE)
    path.chmod(0o600)
    reader = RawReader(os.open(path, os.O_RDONLY | os.O_CLOEXEC), SIZE, str(path))
    yield reader
    reader.close()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """No process and no descriptor, besides those that were there before."""
    before, others = os.listdir("/proc/self/fd"), children()
    yield
    assert children() <= others
    assert len(os.listdir("/proc/self/fd")) <= len(before)


def children() -> set[int]:
    """Processes whose parent this one is, ended ones that nobody has waited for included."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                content = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            if int(content.rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(entry))
    return found


# --- what it finds ----------------------------------------------------------------------------------------------------


def test_a_disk_is_read_through_a_descriptor(disk: RawReader) -> None:
    found = inspect_disk(disk, ["swap"])
    assert [(extent.offset, extent.length) for extent in found.free] == [(4096, SIZE - 4096)]
    (region,) = found.regions
    assert (region.type, region.skipped, region.kept) == ("swap", SIZE - 4096, "")


def test_a_disk_without_a_descriptor_is_asked_for_its_bytes(disk: RawReader) -> None:
    memory = MemoryDisk(Path(disk.path).read_bytes())
    assert inspect_disk(memory, ["swap"]) == inspect_disk(disk, ["swap"])


def test_the_readers_descriptor_is_not_shared(disk: RawReader) -> None:
    """Its position and its flags are the parent's own: the child cannot even change those."""
    os.lseek(disk.fileno(), 77, os.SEEK_SET)
    inspect_disk(disk, ["bad"], program=bad("os.lseek(int(sys.argv[3][5:]), 5, 0); raise ValueError"))
    assert os.lseek(disk.fileno(), 0, os.SEEK_CUR) == 77


def test_what_cannot_be_read_is_kept(disk: RawReader) -> None:
    faulty = FaultyDisk(MemoryDisk(Path(disk.path).read_bytes()), Fault(on="read", offset=0))
    found = inspect_disk(faulty, ["swap"])
    assert len(found.free) == 0
    assert "cannot be read" in found.regions[0].kept


def test_families_that_were_not_asked_for_are_not_used(disk: RawReader) -> None:
    found = inspect_disk(disk, [])
    assert (len(found.free), found.regions[0].kept) == (0, "free space of swap is not known")


def test_a_reader_that_cannot_be_loaded_is_named(disk: RawReader) -> None:
    program = """
from diskhaul_plugins.guest_disks import readers
from diskhaul_plugins.guest_disks.child import start
readers.READERS = (readers.ReaderEntry("gone", "no_such_module", "read"),)
start()
"""
    found = inspect_disk(disk, ["gone"], program=program)
    assert found.regions[0].kept == "free space of swap is not known; gone: No module named 'no_such_module'"


# --- what it may do ---------------------------------------------------------------------------------------------------


class Watched(MemoryDisk):
    """Notes what the process that asks for its first byte is."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.others = children()

    def look(self) -> None:
        (child,) = children() - self.others
        self.status = dict(line.split(":\t") for line in Path(f"/proc/{child}/status").read_text().splitlines() if ":\t" in line)
        limits = Path(f"/proc/{child}/limits").read_text().splitlines()[1:]
        self.limits = {line[:26].strip(): line[26:].split()[:2] for line in limits}
        self.namespaces = {name: os.readlink(f"/proc/{child}/ns/{name}") for name in ("net", "ipc")}
        self.open = sorted(os.readlink(f"/proc/{child}/fd/{number}") for number in os.listdir(f"/proc/{child}/fd"))
        self.session = os.getsid(child)
        self.child = child

    def read_into(self, offset: int, buffer: memoryview, /) -> None:
        if not hasattr(self, "status"):
            self.look()
        super().read_into(offset, buffer)


def test_before_the_first_byte_is_read_the_child_is_nobody_and_has_limits(requires: Callable[..., None]) -> None:
    requires(root=True)
    disk = Watched(SIZE)
    inspect_disk(disk, ["swap"])
    status = disk.status
    assert status["Uid"].split() == ["65534"] * 4
    assert status["Gid"].split() == ["65534"] * 4
    assert status["Groups"].split() == []
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    for name in ("Max file size", "Max core file size", "Max processes"):
        assert disk.limits[name] == ["0", "0"]
    for name, most in (("Max address space", 400 * MIB), ("Max cpu time", 300), ("Max open files", 64)):
        soft, hard = map(int, disk.limits[name])
        assert soft <= hard <= most
    assert disk.namespaces["net"] != os.readlink("/proc/self/ns/net")
    assert disk.namespaces["ipc"] != os.readlink("/proc/self/ns/ipc")
    assert disk.session == disk.child
    assert disk.open[0] == "/dev/null"
    assert [name.partition(":")[0] for name in disk.open[1:]] == ["pipe", "pipe", "socket"]


def test_it_works_for_other_users_than_root(tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("mkswap")
    space = swap_space(tmp_path / "swap", SIZE)
    program = f"""
import os, sys
sys.path += {sys.path!r}
from diskhaul_plugins.guest_disks.inspection import inspect_disk
from diskhaul_plugins.storages.raw import RawReader
found = inspect_disk(RawReader(0, {SIZE}, "swap"), ["swap"])
print(os.geteuid(), found.free.total)
"""
    user = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            with open(space, "rb") as file:
                finished = subprocess.run(
                    [python, "-I", "-c", program], stdin=file, capture_output=True, text=True, check=False, cwd="/", **user
                )
            break
        except OSError:
            continue
    else:
        pytest.skip("nobody may not run this Python")
    assert finished.stdout.split()[1:] == [str(SIZE - 4096)], finished.stderr


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("open('/etc/hostname')", id="open a file"),
        pytest.param("open('/tmp/diskhaul-was-here', 'w')", id="make a file"),
        pytest.param("socket.socket()", id="open a socket"),
        pytest.param("os.fork()", id="fork"),
        pytest.param("subprocess.run(['/bin/true'])", id="run a program"),
        pytest.param("os.kill(os.getppid(), 0)", id="signal its parent"),
        pytest.param("os.setuid(0)", id="become root"),
        pytest.param("os.mkdir('/tmp/diskhaul-was-here')", id="make a directory"),
        pytest.param("os.pwrite(int(sys.argv[3][5:]), b'x', 0)", id="write to the disk"),
        pytest.param("os.ftruncate(int(sys.argv[3][5:]), 0)", id="cut the disk"),
        pytest.param("import fcntl; fcntl.ioctl(int(sys.argv[3][5:]), 0x1277)", id="an ioctl on the disk"),
        pytest.param("os.listdir('/')", id="look around"),
    ],
)
def test_a_reader_can_do_nothing_but_read_the_disk(disk: RawReader, body: str) -> None:
    before = Path(disk.path).read_bytes()
    found = inspect_disk(disk, ["bad"], program=bad(body))
    assert "cannot be understood: " in found.regions[0].kept
    assert "ermi" in found.regions[0].kept or "Bad file descriptor" in found.regions[0].kept  # EPERM, EBADF
    assert Path(disk.path).read_bytes() == before
    assert not os.path.exists("/tmp/diskhaul-was-here")


# --- what may go wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param("ctypes.string_at(8)", "was killed by SIGSEGV", id="segmentation fault"),
        pytest.param("os._exit(7)", "failed with exit code 7", id="sudden end"),
        pytest.param("os.abort()", "was killed by SIG", id="abort"),
        pytest.param("os.write(2, b'x' * 200000)", "says too much", id="endless complaints"),
        pytest.param("\n    while True: os.write(1, b'x' * 65536)", "says too much", id="endless answer"),
        pytest.param("os.write(1, b'hello'); os._exit(0)", "answered nonsense", id="nonsense"),
        pytest.param("os._exit(0)", "answered nonsense: it ends after 0 bytes", id="no answer"),
        pytest.param("os.write(2, b'a\\n\\x1b[31mred'); os._exit(1)", r"failed: \\x1b[31mred", id="escapes"),
    ],
)
def test_a_child_that_fails_is_an_error_that_says_how(disk: RawReader, body: str, why: str) -> None:
    with pytest.raises(GuestDiskReaderError) as caught:
        inspect_disk(disk, ["bad"], program=bad(body))
    assert why.replace("\\\\", "\\") in str(caught.value)


@pytest.mark.parametrize("body", ["lock.acquire()", "\n    while True: pass", "os.close(1); os.close(2); lock.acquire()"])
def test_a_child_that_hangs_is_ended(disk: RawReader, body: str) -> None:
    with pytest.raises(GuestDiskReaderError, match=r"took too long|was killed by SIGKILL"):
        inspect_disk(disk, ["bad"], program=bad(body), deadline_s=1.0)


def test_a_child_that_wants_too_much_memory_does_not_get_it(disk: RawReader) -> None:
    found = inspect_disk(disk, ["bad"], program=bad("x = bytearray(1 << 30)"))
    assert found.regions[0].kept == "cannot be understood: MemoryError"


def test_what_a_child_leaves_running_ends_with_it(disk: RawReader) -> None:
    """A reader that runs programs, and forgets one."""
    body = "subprocess.Popen(['/bin/sleep', '1000'], stdout=2); raise ValueError"
    program = bad(body).replace('"bad", "read"', '"bad", "read", True')
    found = []
    before = set(sleepers())

    def look() -> None:
        try:
            inspect_disk(disk, ["bad"], program=program, deadline_s=2.0)
        except GuestDiskReaderError as error:
            found.append(str(error))

    look()
    assert len(found) == 1  # it holds the pipe open
    assert "took too long" in found[0]
    for survivor in set(sleepers()) - before:  # killed, and maybe not gone yet
        descriptor = os.pidfd_open(survivor)
        try:
            assert select.select([descriptor], [], [], 30.0)[0]
        finally:
            os.close(descriptor)


def sleepers() -> Iterator[int]:
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and Path(f"/proc/{entry}/cmdline").read_bytes() == b"/bin/sleep\x001000\x00":
                state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z":
                    yield int(entry)
        except OSError:
            continue


def test_an_interruption_ends_the_child() -> None:
    class Interrupts(MemoryDisk):
        def read_into(self, offset: int, buffer: memoryview, /) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inspect_disk(Interrupts(SIZE), ["swap"])


def test_an_interpreter_that_is_not_there_is_an_error(disk: RawReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(GuestDiskReaderError, match="cannot be started"):
        inspect_disk(disk, ["swap"])


def test_it_can_be_used_by_several_threads_at_once(disk: RawReader) -> None:
    found = []
    threads = [threading.Thread(target=lambda: found.append(inspect_disk(disk, ["swap"]).free.total)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [SIZE - 4096] * 8


def test_it_works_where_child_processes_are_ignored(disk: RawReader) -> None:
    """A program that uses the library may not care for its children's ends."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert inspect_disk(disk, ["swap"]).free.total == SIZE - 4096
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_request_for_what_is_not_on_the_disk_is_refused() -> None:
    """However a child asks."""
    body = """
    channel = volume._channel
    for request in ((2**63, 100), (2**64 - 1, 1), (0, 2**32 - 1), (8 << 20, 1)):
        channel.sendall(__import__("struct").pack("<QI", *request))
        assert channel.recv(1) == b"\\\\1", request
    channel.sendall(b"half")
    os._exit(3)
"""
    with pytest.raises(GuestDiskReaderError, match="exit code 3"):
        inspect_disk(MemoryDisk(SIZE), ["bad"], program=bad(body.strip().replace("\\\\", "\\")))


def test_a_disk_of_a_tebibyte_in_memory_takes_no_more_than_is_read() -> None:
    left, right = socket.socketpair()
    left.close()
    right.close()
    found = inspect_disk(MemoryDisk(1 << 40), ["swap"])
    assert (found.size, len(found.free)) == (1 << 40, 0)


def test_the_answer_survives_the_way(disk: RawReader) -> None:
    found = inspect_disk(disk, ["swap"])
    numbers = [number for pair in found.free.ranges() for number in pair]
    from array import array

    again = wire.decode(wire.encode(found.regions, array("Q", numbers)), SIZE)
    assert again == found
