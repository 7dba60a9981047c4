"""Direct I/O: another descriptor of the same file, its alignment, and reads up to an end in the middle of a block."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from diskhaul_native import NativeIOError, aligned_buffer

Opened = Callable[..., int]
MIB = 1 << 20
STATX = {"x86_64": 332, "aarch64": 291}


@pytest.fixture
def direct(native: ModuleType) -> Any:
    """``fd = direct(fd)``: `open_direct`, closed when the test ends."""
    descriptors: list[int] = []

    def open_it(fd: int, **options: Any) -> int:
        descriptors.append(native.open_direct(fd, **options))
        return descriptors[-1]

    yield open_it
    for descriptor in descriptors:
        os.close(descriptor)


def test_the_second_descriptor_is_direct_and_the_first_stays_as_it_is(
    content: tuple[Path, bytes], opened: Opened, direct: Opened
) -> None:
    fd = opened(content[0])
    second = direct(fd)
    assert fcntl.fcntl(second, fcntl.F_GETFL) & os.O_DIRECT
    assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
    assert not os.get_inheritable(second)
    assert os.path.sameopenfile(fd, second)


def test_it_is_the_open_file_whatever_its_path_leads_to_by_now(
    native: ModuleType, content: tuple[Path, bytes], opened: Opened, direct: Opened
) -> None:
    fd = opened(content[0])
    content[0].unlink()
    content[0].write_bytes(b"\xff" * 100_000)
    buffer = aligned_buffer(8192)
    native.read_into(direct(fd), buffer, 4096)
    assert buffer == content[1][4096 : 4096 + 8192]


def test_it_writes_only_when_asked_to(native: ModuleType, content: tuple[Path, bytes], opened: Opened, direct: Opened) -> None:
    fd = opened(content[0])
    buffer = aligned_buffer(8192)
    buffer[:] = b"n" * 8192
    with pytest.raises(NativeIOError) as caught:
        native.write_from(direct(fd), buffer, 4096)
    assert caught.value.errno == errno.EBADF
    native.write_from(direct(fd, writable=True), buffer, 4096)
    assert content[0].read_bytes() == content[1][:4096] + b"n" * 8192 + content[1][12288:]


SWAPPED = """
import errno, os, subprocess, sys
import diskhaul_native
given, other = sys.argv[1:]
fd = os.open(given, os.O_RDONLY)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/proc"], check=True)
os.makedirs("/proc/self/fd")
os.symlink(other, f"/proc/self/fd/{fd}")
try:
    diskhaul_native.open_direct(fd, name="disk 0")
except diskhaul_native.NativeIOError as error:
    print(errno.errorcode[error.errno])
"""


def test_a_proc_that_leads_elsewhere_is_noticed(
    content: tuple[Path, bytes], tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("unshare", root=True)
    (tmp_path / "other").write_bytes(content[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["unshare", "--mount", sys.executable, "-c", SWAPPED, str(content[0]), str(tmp_path / "other")]
    child = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert child.stdout == "ESTALE\n"


def test_permissions_are_checked_anew(native: ModuleType, opened: Opened) -> None:
    fd = opened(Path(sys.executable).resolve(), os.O_RDONLY)
    with pytest.raises(NativeIOError) as caught:  # a running program is not written to, not even by root
        native.open_direct(fd, writable=True, name="disk 0")
    assert caught.value.errno in (errno.ETXTBSY, errno.EACCES)
    assert caught.value.filename == "disk 0"


def test_a_filesystem_without_direct_io_says_so(native: ModuleType, opened: Opened) -> None:
    fd = opened("/proc/self/status", os.O_RDONLY)
    with pytest.raises(NativeIOError) as caught:
        native.open_direct(fd)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_pipes_terminals_and_directories_are_not_opened_again(native: ModuleType, tmp_path: Path, opened: Opened) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", "/dev/null", "/dev/ptmx"):
        fd = opened(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        for function in (native.open_direct, native.direct_alignment):
            with pytest.raises(NativeIOError) as caught:
                function(fd)
            assert caught.value.errno == errno.EOPNOTSUPP, path


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "block device"])
def test_what_is_aligned_as_told_is_read_and_written(
    native: ModuleType,
    loop_filesystem: Callable[..., Any],
    loop_device: Callable[[Path], str],
    tmp_path: Path,
    opened: Opened,
    direct: Opened,
    kind: str,
) -> None:
    data = os.urandom(MIB)
    path = tmp_path / "image" if kind == "block device" else loop_filesystem(kind).path / "file"
    path.write_bytes(data)
    fd = opened(loop_device(path)) if kind == "block device" else opened(path)
    os.fsync(fd)
    alignment = native.direct_alignment(fd)
    assert alignment in (512, 1024, 2048, 4096)
    window = aligned_buffer(MIB)[alignment : 4 * alignment]
    second = direct(fd, writable=True)
    native.read_into(second, window, alignment)
    assert window == data[alignment : 4 * alignment]
    native.write_from(second, window, 5 * alignment)
    back = bytearray(MIB)
    native.read_into(fd, back, 0)
    assert back == data[: 5 * alignment] + data[alignment : 4 * alignment] + data[8 * alignment :]


def test_the_alignment_of_a_device_with_large_sectors_is_a_sector(
    native: ModuleType, tmp_path: Path, opened: Opened, loop_device: Callable[..., str], direct: Opened
) -> None:
    (tmp_path / "image").write_bytes(bytes(MIB))
    device = loop_device(tmp_path / "image")
    subprocess.run(["losetup", "--sector-size", "4096", device], check=True)
    fd = opened(device)
    assert native.direct_alignment(fd) == 4096
    with pytest.raises(NativeIOError) as caught:
        native.read_into(direct(fd), aligned_buffer(4096), 512)
    assert (caught.value.errno, caught.value.offset) == (errno.EINVAL, 512)


def test_a_file_whose_data_goes_through_the_journal_has_no_direct_io(
    native: ModuleType, loop_filesystem: Callable[..., Any], opened: Opened
) -> None:
    filesystem = loop_filesystem("ext4", size_mib=64)
    subprocess.run(["umount", str(filesystem.path)], check=True)
    subprocess.run(["mount", "-o", "loop,data=journal", str(filesystem.image), str(filesystem.path)], check=True)
    assert native.direct_alignment(opened(filesystem.path / "file")) == 0


def test_where_the_kernel_does_not_say_it_is_a_sector_or_4096(
    content: tuple[Path, bytes], tmp_path: Path, loop_device: Callable[[Path], str], refused: Callable[..., Any]
) -> None:
    (tmp_path / "image").write_bytes(bytes(MIB))
    device = loop_device(tmp_path / "image")
    statx = STATX[platform.machine()]
    assert refused(content[0], "diskhaul_native.direct_alignment(fd)", statx, errno.ENOSYS) == 4096
    assert refused(device, "diskhaul_native.direct_alignment(fd)", statx, errno.ENOSYS) == 512


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs"])
def test_a_file_is_read_to_its_last_byte_by_whole_blocks(
    native: ModuleType,
    loop_filesystem: Callable[..., Any],
    tmpfs: Callable[[int], Path],
    opened: Opened,
    direct: Opened,
    kind: str,
) -> None:
    directory = tmpfs(4) if kind == "tmpfs" else loop_filesystem(kind).path
    for size in (1, 511, 512, 4095, 4096, 4097, 99_840, 100_000):
        data = os.urandom(size)
        path = directory / str(size)
        path.write_bytes(data)
        fd = opened(path)
        if kind != "tmpfs":  # which has direct I/O since Linux 6.6 only; the function does not depend on it
            fd = direct(fd)
        for offset in {0, size // 4096 * 4096} - {size}:
            buffer = aligned_buffer(128 * 1024)
            native.read_direct(fd, buffer, offset, size - offset)
            assert buffer[: size - offset] == data[offset:]
            with pytest.raises(NativeIOError, match="the file ends") as caught:
                native.read_direct(fd, buffer, offset, size - offset + 1, name="disk 0")
            assert (caught.value.errno, caught.value.offset, caught.value.filename) == (errno.ENODATA, size, "disk 0")


def test_nothing_needed_is_nothing_read(native: ModuleType, content: tuple[Path, bytes], opened: Opened) -> None:
    native.read_direct(opened(content[0]), aligned_buffer(4096), 1 << 30, 0)


def test_more_than_the_buffer_takes_cannot_be_needed(native: ModuleType, content: tuple[Path, bytes], opened: Opened) -> None:
    for needed in (-1, 4097):
        with pytest.raises(ValueError, match=rf"4096.*{needed}"):
            native.read_direct(opened(content[0]), aligned_buffer(4096), 0, needed)


def test_a_read_that_is_not_aligned_is_an_error(
    native: ModuleType, loop_filesystem: Callable[..., Any], opened: Opened, direct: Opened
) -> None:
    path = loop_filesystem("xfs").path / "file"
    path.write_bytes(os.urandom(8192))
    with pytest.raises(NativeIOError) as caught:
        native.read_direct(direct(opened(path)), aligned_buffer(4096), 100, 4096)
    assert (caught.value.errno, caught.value.offset) == (errno.EINVAL, 100)


READ = "(diskhaul_native.read_direct(fd, buffer, 4096, 65536), buffer.hex())[1]"


def test_a_short_direct_read_goes_on_at_the_last_aligned_offset(
    injected: Callable[..., Any], content: tuple[Path, bytes]
) -> None:
    traced = injected(content[0], READ, "pread64:retval=5000:when=1")
    # The call that was made to look short read nothing; what is read again after it is right.
    assert bytes.fromhex(traced.result) == b"d" * 4096 + content[1][8192 : 4096 + 65536]
    assert ", 61440, 8192)" in traced.calls[1]


def test_an_interrupted_direct_read_is_repeated(injected: Callable[..., Any], content: tuple[Path, bytes]) -> None:
    traced = injected(content[0], READ, "pread64:error=EINTR:when=1..3")
    assert bytes.fromhex(traced.result) == content[1][4096 : 4096 + 65536]
    assert len(traced.calls) == 4


def test_a_bad_sector_fails_the_direct_read_at_its_offset(injected: Callable[..., Any], content: tuple[Path, bytes]) -> None:
    traced = injected(content[0], READ, "pread64:error=EIO:when=1")
    assert (traced.errno, traced.offset) == (errno.EIO, 4096)


def test_the_end_of_a_file_with_larger_blocks_is_an_end_and_no_mistake(
    injected: Callable[..., Any], content: tuple[Path, bytes]
) -> None:
    expression = "diskhaul_native.read_direct(fd, buffer, 98304, {needed})"
    traced = injected(content[0], expression.format(needed=1697), "pread64:error=EINVAL:when=2")
    assert (traced.errno, traced.offset) == (errno.ENODATA, 100_000)
    traced = injected(content[0], expression.format(needed=1696), "pread64:error=EINVAL:when=1")
    assert (traced.errno, traced.offset) == (errno.EINVAL, 98304)
