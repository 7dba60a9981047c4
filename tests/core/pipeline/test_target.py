"""Writing past the page cache: what is written so, what is not, what stays a hole, and disks and filesystems that refuse."""

from __future__ import annotations

import errno
import io
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import diskhaul_native as native
from diskhaul.api import BackendContext, DiskWriter
from diskhaul.errors import StorageError
from diskhaul.model import Cluster, Disk
from diskhaul.options import DirectIO
from diskhaul.pipeline.direct import direct_io_problem
from diskhaul.pipeline.target import Target
from diskhaul.testing import Fault, FaultyDisk, MemoryDisk, RecordingDisk
from diskhaul_plugins.storages.block import BlockStorage
from diskhaul_plugins.storages.file import FileStorage

MIB = 1 << 20
PAGE = 4096
SIZE = 8 * MIB + 1000
OLD = 0xA5


def aligned(content: bytes) -> memoryview:
    view = native.aligned_buffer(max(1, len(content)))[: len(content)]
    view[:] = content
    return view


def context(path: Path) -> BackendContext:
    return BackendContext(cluster=Cluster(name="lab", state_dir=path / "state"))


def file_writer(path: Path, size: int = SIZE) -> DiskWriter:
    return FileStorage(context(path.parent)).create(Disk(path=path), size, overwrite=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where an image will be, on a filesystem with direct I/O."""
    descriptor = os.open(tmp_path, os.O_RDWR | os.O_TMPFILE)
    problem = direct_io_problem(descriptor)
    os.close(descriptor)
    if problem:
        pytest.skip(f"the temporary directory: {problem}")
    return tmp_path / "disk.raw"


@pytest.fixture
def target(file: Path) -> Iterator[Callable[..., Target]]:
    """``target("auto")``: a new image of `SIZE` bytes."""
    made: list[Target] = []

    def make(mode: DirectIO, size: int = SIZE) -> Target:
        made.append(Target(file_writer(file, size), str(file), direct_io=mode))
        return made[-1]

    yield make
    for each in made:
        each.close()


def cached(path: Path, offset: int, length: int) -> int:
    with open(path, "rb") as opened:
        return native.cached_bytes(opened.fileno(), offset, length)


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "always"])
def test_what_is_aligned_is_written_directly_and_stays_out_of_the_cache(
    target: Callable[..., Target], file: Path, mode: DirectIO
) -> None:
    content = noise(2 * MIB)
    made = target(mode)
    assert made.write(MIB, aligned(content)) == len(content)
    assert cached(file, MIB, 2 * MIB) == 0
    made.flush()
    assert file.read_bytes() == bytes(MIB) + content + bytes(SIZE - 3 * MIB)


def test_never_writes_all_of_it_through_the_cache(target: Callable[..., Target], file: Path) -> None:
    made = target("never")
    made.write(MIB, aligned(noise(2 * MIB)))
    assert cached(file, MIB, 2 * MIB) == 2 * MIB
    made.flush()
    assert file.read_bytes()[MIB : 3 * MIB] == noise(2 * MIB)


def test_the_unaligned_end_of_a_disk_goes_through_the_cache(target: Callable[..., Target], file: Path) -> None:
    content = noise(MIB + 1000)
    made = target("always")
    assert made.write(7 * MIB, aligned(content)) == len(content)
    assert cached(file, 7 * MIB, MIB) == 0
    assert cached(file, 8 * MIB, 1000) == 1000
    made.flush()
    assert file.read_bytes() == bytes(7 * MIB) + content


@pytest.mark.parametrize("mode", ["auto", "always", "never"])
@pytest.mark.parametrize(
    ("begin", "offset"), [(100, 0), (0, 100), (100, 100), (PAGE, PAGE), (100, PAGE + 100)], ids=lambda number: str(number)
)
def test_what_is_not_aligned_is_written_all_the_same(
    target: Callable[..., Target], file: Path, mode: DirectIO, begin: int, offset: int
) -> None:
    content = noise(2 * MIB)
    made = target(mode)
    assert made.write(offset, aligned(content)[begin:]) == len(content) - begin
    made.flush()
    assert file.read_bytes() == bytes(offset) + content[begin:] + bytes(SIZE - offset - len(content) + begin)


@pytest.mark.parametrize("mode", ["auto", "never"])
def test_zeros_stay_holes(target: Callable[..., Target], file: Path, mode: DirectIO) -> None:
    """Page by page: 4 KiB of data in 4 MiB of zeros, and the other way round."""
    content = bytearray(8 * MIB)
    content[MIB : MIB + PAGE] = noise(PAGE)
    content[4 * MIB :] = noise(4 * MIB)
    content[5 * MIB : 5 * MIB + PAGE] = bytes(PAGE)
    made = target(mode)
    assert made.write(0, aligned(bytes(content[: 4 * MIB]))) == PAGE
    assert made.write(4 * MIB, aligned(bytes(content[4 * MIB :]))) == 4 * MIB - PAGE
    made.flush()
    assert file.read_bytes() == content + bytes(1000)
    assert file.stat().st_blocks * 512 <= 4 * MIB + 64 * 1024
    with open(file, "rb") as opened:
        data = [(offset, length) for offset, length, is_data in native.extents(opened.fileno(), SIZE) if is_data]
    assert data == [(MIB, PAGE), (4 * MIB, MIB), (5 * MIB + PAGE, 3 * MIB - PAGE)]


def test_an_old_file_is_emptied_by_the_first_write_only(file: Path) -> None:
    file.write_bytes(bytes([OLD]) * (9 * MIB))
    made = Target(file_writer(file), str(file), direct_io="always")
    assert set(file.read_bytes()) == {OLD}
    made.write(MIB, aligned(noise(MIB)))
    made.flush()
    made.close()
    assert file.read_bytes() == bytes(MIB) + noise(MIB) + bytes(SIZE - 2 * MIB)


def test_closing_leaves_no_descriptor(file: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    made = Target(file_writer(file), str(file), direct_io="always")
    made.write(0, aligned(noise(MIB)))
    made.close()
    made.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.tuples(st.integers(1, 40), st.sampled_from(["zeros", "noise", "text"])), max_size=30),
    odd=st.sampled_from([0, 1, 511, 512, 4095]),
    chunk=st.sampled_from([64 << 10, 256 << 10, MIB]),
    mode=st.sampled_from(["auto", "never"]),
)
def test_a_disk_of_any_layout_written_by_several_threads_is_right_and_as_sparse_either_way(
    file: Path, pieces: list[tuple[int, str]], odd: int, chunk: int, mode: DirectIO
) -> None:
    made = {"zeros": bytes, "noise": noise, "text": lambda length: (b"text" * length)[:length]}
    content = b"".join(made[kind](pages * PAGE) for pages, kind in pieces) + noise(odd)
    target = Target(file_writer(file, len(content)), str(file), direct_io=mode)
    try:
        with ThreadPoolExecutor(4) as threads:
            offsets = range(0, len(content), chunk)
            written = sum(threads.map(lambda offset: target.write(offset, aligned(content[offset : offset + chunk])), offsets))
        target.flush()
    finally:
        target.close()
    assert file.read_bytes() == content
    zeros = sum(pages * PAGE for pages, kind in pieces if kind == "zeros")
    assert written == len(content) - zeros
    assert file.stat().st_blocks * 512 <= written + PAGE + 32 * 1024


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["auto", "always", "never"])
@pytest.mark.parametrize("odd", [0, 512, 3584])
def test_a_device_full_of_old_bytes_holds_the_disk_and_nothing_else(
    tmp_path: Path, loop_device: Callable[[Path], str], mode: DirectIO, odd: int
) -> None:
    """Also one whose size is no multiple of a page."""
    image, size = tmp_path / "image", 4 * MIB + odd
    image.write_bytes(bytes([OLD]) * (size + MIB))
    disk = Disk(storage="block", path=Path(loop_device(image)))
    content = bytearray(noise(size))
    for offset, length in ((0, 1000), (MIB, PAGE), (MIB + 9 * PAGE, 40 * PAGE), (2 * MIB, MIB), (size - 300, 300)):
        content[offset : offset + length] = bytes(length)
    target = Target(BlockStorage(context(tmp_path)).create(disk, size, overwrite=True), "device", direct_io=mode)
    try:
        for offset in range(0, size, MIB):
            piece = content[offset : offset + MIB]
            if any(piece):
                target.write(offset, aligned(bytes(piece)))
            else:
                target.zero(offset, len(piece))
        target.flush()
    finally:
        target.close()
    assert disk.path is not None
    with open(disk.path, "rb") as device:
        assert device.read(size) == content
        assert set(device.read()) == {OLD}, "behind the disk"


def test_short_runs_of_zeros_on_a_device_are_written_and_long_ones_zeroed(
    tmp_path: Path, loop_device: Callable[[Path], str]
) -> None:
    """Each zeroing is a call of its own, and can take the device a while."""
    image = tmp_path / "image"
    image.write_bytes(bytes([OLD]) * (4 * MIB))
    disk = Disk(storage="block", path=Path(loop_device(image)))
    content = bytearray(noise(4 * MIB))
    for page in range(1, 256, 2):
        content[page * PAGE : (page + 1) * PAGE] = bytes(PAGE)
    content[2 * MIB : 3 * MIB] = bytes(MIB)
    for mode in ("auto", "never"):
        target = Target(BlockStorage(context(tmp_path)).create(disk, 4 * MIB, overwrite=True), "device", direct_io=mode)
        assert target.write(0, aligned(bytes(content))) == 3 * MIB
        target.flush()
        target.close()
        assert disk.path is not None
        assert disk.path.read_bytes() == content


# --- disks of other kinds ---------------------------------------------------------------------------------------------


class Described(MemoryDisk):
    """A disk whose ``fileno`` only says that there is none, as `io` classes do."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation("fileno")


@pytest.mark.parametrize("kind", [MemoryDisk, Described])
def test_a_disk_without_a_descriptor_is_written_by_its_own_methods(kind: type[MemoryDisk]) -> None:
    disk = RecordingDisk(kind(2 * MIB))
    target = Target(disk, "disk 0", direct_io="auto")
    assert target.write(0, aligned(noise(MIB))) == MIB
    target.zero(MIB, MIB)
    target.flush()
    target.close()
    assert [call.method for call in disk.calls] == ["write", "zero", "flush", "close"]
    assert disk.content() == noise(MIB) + bytes(MIB)


def test_direct_io_that_has_to_be_is_refused_where_there_is_no_descriptor() -> None:
    disk = MemoryDisk(2 * MIB, fill=OLD)
    target = Target(disk, "disk 0", direct_io="always")
    with pytest.raises(StorageError, match=r"disk 0: direct_io = always: .* no file descriptor; use direct_io = auto"):
        target.write(0, aligned(noise(MIB)))
    target.close()
    assert set(disk.content()) == {OLD}


def test_a_filesystem_without_direct_io_is_written_through_the_cache_unless_it_has_to_be_direct(
    tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("mount", root=True)
    mounted = tmp_path / "ramfs"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "none", str(mounted)], check=True)
    try:
        path = mounted / "disk.raw"
        with open(path, "wb") as opened:
            assert direct_io_problem(opened.fileno())
        target = Target(file_writer(path), str(path), direct_io="auto")
        target.write(0, aligned(noise(MIB)))
        target.flush()
        target.close()
        assert path.read_bytes() == noise(MIB) + bytes(SIZE - MIB)
        target = Target(file_writer(path), str(path), direct_io="always")
        with pytest.raises(StorageError, match=r"disk\.raw: direct_io = always: .*; use direct_io = auto"):
            target.write(0, aligned(noise(MIB)))
        target.close()
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_other_filesystems_take_it_too(loop_filesystem: Callable[..., Any], kind: str) -> None:
    path = loop_filesystem(kind, size_mib=400).path / "disk.raw"
    target = Target(file_writer(path), str(path), direct_io="always")
    content = noise(2 * MIB) + bytes(4 * MIB) + noise(2 * MIB + 1000)
    for offset in range(0, SIZE, 2 * MIB):
        target.write(offset, aligned(content[offset : offset + 2 * MIB]))
    target.flush()
    target.close()
    assert path.read_bytes() == content
    assert path.stat().st_blocks * 512 < 5 * MIB


def test_a_small_tmpfs_that_fills_up_is_an_error_that_stays(tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("mount", root=True)
    mounted = tmp_path / "tmpfs"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(mounted)], check=True)
    try:
        check_full(mounted / "disk.raw")
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_small_filesystem_that_fills_up_is_an_error_that_stays(loop_filesystem: Callable[..., Any]) -> None:
    check_full(loop_filesystem("ext4", size_mib=16).path / "disk.raw")


def check_full(path: Path) -> None:
    target = Target(file_writer(path, 64 * MIB), str(path), direct_io="auto")

    def fill() -> None:
        for offset in range(0, 64 * MIB, MIB):
            target.write(offset, aligned(noise(MIB)))

    try:
        with pytest.raises(StorageError, match=r"disk\.raw: cannot write at offset \d+: No space left on device") as caught:
            fill()
        assert caught.value.offset is not None
        assert caught.value.offset >= MIB
        assert caught.value.path == str(path)
        for again in (target.flush, lambda: target.zero(0, PAGE), lambda: target.write(0, aligned(noise(MIB)))):
            with pytest.raises(StorageError, match="an earlier write failed"):
                again()
    finally:
        target.close()


def test_errors_of_a_plugins_writer_pass_unchanged() -> None:
    disk = FaultyDisk(MemoryDisk(2 * MIB), Fault(on="write", error=errno.ENOSPC), Fault(on="flush"))
    target = Target(disk, "disk 0", direct_io="auto")
    with pytest.raises(OSError, match="No space left"):
        target.write(0, aligned(noise(MIB)))
    with pytest.raises(OSError, match="Input/output error"):
        target.flush()


# --- faults of the kernel's -------------------------------------------------------------------------------------------

CHILD = """
import random, sys
from pathlib import Path
import diskhaul_native as native
from diskhaul.errors import StorageError
from tests_target import MIB, SIZE, Target, aligned, cached, file_writer, noise

path, mode = Path(sys.argv[1]), sys.argv[2]
target = Target(file_writer(path), str(path), direct_io=mode)
try:
    for offset in range(0, 8 * MIB, 2 * MIB):
        target.write(offset, aligned(noise(2 * MIB, offset)))
    target.write(8 * MIB, aligned(noise(1000)))
    target.flush()
    print("cached", cached(path, 0, 8 * MIB))
except StorageError as error:
    print("error", error)
    try:
        target.flush()
    except StorageError as error:
        print("again", error)
target.close()
"""


def traced(tmp_path: Path, fault: str, mode: DirectIO) -> str:
    """Write a disk in a process whose system calls on its file fail as `fault` says; return what it printed."""
    (tmp_path / "tests_target.py").write_text(Path(__file__).read_text())
    log = tmp_path / "strace.log"
    path = tmp_path / "disk.raw"
    strace = ["strace", "-f", "-qq", "-o", str(log), "-P", str(path), f"--trace={fault.split(':')[0]}", f"--inject={fault}"]
    finished = subprocess.run(
        [*strace, os.path.realpath(sys.executable), "-c", CHILD, str(path), mode],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    assert "INJECTED" in log.read_text(), "no fault was injected"
    return finished.stdout


WHOLE = b"".join(noise(2 * MIB, offset) for offset in range(0, 8 * MIB, 2 * MIB)) + noise(1000)


@pytest.mark.parametrize("call", [1, 3])
def test_a_filesystem_that_refuses_direct_writes_only_when_it_comes_to_them_is_written_through_the_cache(
    file: Path, requires: Callable[..., None], call: int
) -> None:
    requires("strace")
    out = traced(file.parent, f"pwrite64:error=EINVAL:when={call}", "auto")
    assert out == f"cached {8 * MIB - (call - 1) * 2 * MIB}\n", "what is known once is not tried again"
    assert file.read_bytes() == WHOLE


def test_the_same_is_an_error_where_it_has_to_be_direct(file: Path, requires: Callable[..., None]) -> None:
    requires("strace")
    out = traced(file.parent, "pwrite64:error=EINVAL:when=2", "always").splitlines()
    assert out[0].startswith(f"error {file}: cannot write at offset {2 * MIB}: Invalid argument")
    assert "use direct_io = auto" in out[0]
    assert "an earlier write failed" in out[1]


@pytest.mark.parametrize("mode", ["auto", "never"])
def test_an_error_of_the_medium_is_final(file: Path, requires: Callable[..., None], mode: DirectIO) -> None:
    requires("strace")
    out = traced(file.parent, "pwrite64:error=EIO:when=2", mode).splitlines()
    assert out[0] == f"error {file}: cannot write at offset {2 * MIB}: Input/output error"
    assert "an earlier write" in out[1]


@pytest.mark.parametrize("mode", ["auto", "never"])
def test_a_flush_that_fails_fails_again(file: Path, requires: Callable[..., None], mode: DirectIO) -> None:
    requires("strace")
    out = traced(file.parent, "fsync:error=EIO:when=1", mode).splitlines()
    assert out[0] == f"error {file}: cannot flush: Input/output error"
    assert "earlier write or flush failed" in out[1]


def test_writeback_that_fails_is_an_error_and_a_kernel_without_it_is_none(file: Path, requires: Callable[..., None]) -> None:
    requires("strace")
    out = traced(file.parent, "sync_file_range:error=EIO:when=2", "never").splitlines()
    assert out[0] == f"error {file}: cannot write at offset {2 * MIB}: Input/output error"
    file.unlink()
    assert traced(file.parent, "sync_file_range:error=ENOSYS", "never").startswith("cached")
    assert file.read_bytes() == WHOLE
