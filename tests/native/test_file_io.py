"""Reading and writing whole buffers, syncing, and what the failures of all functions on descriptors say."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import diskhaul_native
from diskhaul_native import NativeIOError

Opened = Callable[..., int]


@pytest.mark.parametrize(("offset", "length"), [(0, 100_000), (1, 4096), (99_999, 1), (0, 0), (100_000, 0)])
def test_a_read_fills_the_buffer_from_the_offset(
    native: ModuleType, content: tuple[Path, bytes], opened: Opened, offset: int, length: int
) -> None:
    buffer = bytearray(length)
    native.read_into(opened(content[0]), buffer, offset)
    assert buffer == content[1][offset : offset + length]


def test_a_read_leaves_the_file_position_alone(native: ModuleType, content: tuple[Path, bytes], opened: Opened) -> None:
    fd = opened(content[0])
    os.lseek(fd, 123, os.SEEK_SET)
    native.read_into(fd, bytearray(1000), 5000)
    assert os.lseek(fd, 0, os.SEEK_CUR) == 123


def test_a_read_with_a_scan_knows_zeros_from_data(native: ModuleType, tmp_path: Path, opened: Opened) -> None:
    fd = opened(tmp_path / "file")
    os.ftruncate(fd, 1 << 20)
    os.pwrite(fd, b"\1", 700_000)
    buffer = bytearray(b"\xff" * 100_000)
    assert native.read_scan(fd, buffer, 0) is True
    assert not any(buffer)
    assert native.read_scan(fd, buffer, 600_001) is False
    assert buffer[700_000 - 600_001] == 1


def test_a_read_past_the_end_says_that_the_file_ends_and_where(
    native: ModuleType, content: tuple[Path, bytes], opened: Opened
) -> None:
    with pytest.raises(NativeIOError, match=r"the file ends before the range.*content") as caught:
        native.read_into(opened(content[0]), bytearray(4096), 99_000)
    assert (caught.value.errno, caught.value.offset, caught.value.filename) == (errno.ENODATA, 100_000, str(content[0]))


def test_a_file_that_shrank_fails_the_scan_too(native: ModuleType, content: tuple[Path, bytes], opened: Opened) -> None:
    fd = opened(content[0])
    os.ftruncate(fd, 10)
    with pytest.raises(NativeIOError) as caught:
        native.read_scan(fd, bytearray(4096), 0, name="disk 0")
    assert (caught.value.errno, caught.value.offset, caught.value.filename) == (errno.ENODATA, 10, "disk 0")


@pytest.mark.parametrize("offset", [0, 1, 99_990, 200_000])
def test_a_write_puts_the_whole_buffer_at_the_offset(
    native: ModuleType, content: tuple[Path, bytes], opened: Opened, offset: int
) -> None:
    data = os.urandom(50_000)
    native.write_from(opened(content[0]), data, offset)
    expected = bytearray(max(100_000, offset + 50_000))
    expected[:100_000] = content[1]
    expected[offset : offset + 50_000] = data
    assert content[0].read_bytes() == expected


def test_a_block_device_is_read_and_written_up_to_its_last_byte(
    native: ModuleType, tmp_path: Path, loop_device: Callable[[Path], str], opened: Opened
) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(1 << 20))
    fd = opened(loop_device(image), os.O_RDWR)
    native.write_from(fd, b"last", (1 << 20) - 4)
    buffer = bytearray(10)
    native.read_into(fd, buffer, (1 << 20) - 10)
    assert buffer == image.read_bytes()[-10:-4] + b"last"
    with pytest.raises(NativeIOError) as caught:
        native.write_from(fd, b"beyond", (1 << 20) - 4)
    assert (caught.value.errno, caught.value.offset) == (errno.ENOSPC, 1 << 20)
    with pytest.raises(NativeIOError) as caught:
        native.read_into(fd, bytearray(8), (1 << 20) - 4)
    assert (caught.value.errno, caught.value.offset) == (errno.ENODATA, 1 << 20)


def test_the_size_of_a_block_device_is_in_bytes(
    native: ModuleType, tmp_path: Path, loop_device: Callable[[Path], str], opened: Opened
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(3 << 20))
    assert native.block_device_size(opened(loop_device(image), os.O_RDONLY)) == 3 << 20
    with pytest.raises(NativeIOError) as caught:
        native.block_device_size(opened(image))
    assert caught.value.errno == errno.ENOTBLK


def test_an_aligned_buffer_is_as_large_as_asked(native: ModuleType) -> None:
    assert len(native.aligned_buffer(5000)) == 5000
    assert not any(native.aligned_buffer(5000))
    with pytest.raises(ValueError, match="0"):
        native.aligned_buffer(0)


BAD_DESCRIPTOR: dict[str, Callable[[Any, int], object]] = {
    "read_into": lambda native, fd: native.read_into(fd, bytearray(1), 0),
    "read_scan": lambda native, fd: native.read_scan(fd, bytearray(1), 0),
    "write_from": lambda native, fd: native.write_from(fd, b"x", 0),
    "write_sparse": lambda native, fd: native.write_sparse(fd, b"x", 0),
    "write_sparse, zeroing": lambda native, fd: native.write_sparse(fd, bytes(1), 0, zero_holes=True),
    "extents": lambda native, fd: list(native.extents(fd, 10)),
    "copy_range, source": lambda native, fd: native.copy_range(fd, 0, 0, 10),
    "copy_range, target": lambda native, fd: native.copy_range(0, fd, 0, 10),
    "zero_range": lambda native, fd: native.zero_range(fd, 0, 10),
    "clone": lambda native, fd: native.clone(0, fd),
    "fsync": lambda native, fd: native.fsync(fd),
    "drop_cache": lambda native, fd: native.drop_cache(fd),
    "cached_bytes": lambda native, fd: native.cached_bytes(fd, 0, 1),
    "start_writeback": lambda native, fd: native.start_writeback(fd),
    "wait_writeback": lambda native, fd: native.wait_writeback(fd),
    "open_direct": lambda native, fd: native.open_direct(fd),
    "direct_alignment": lambda native, fd: native.direct_alignment(fd),
    "read_direct": lambda native, fd: native.read_direct(fd, bytearray(1), 0, 1),
    "block_device_size": lambda native, fd: native.block_device_size(fd),
}


@pytest.mark.parametrize("function", BAD_DESCRIPTOR)
def test_a_closed_descriptor_is_an_error_everywhere(native: ModuleType, tmp_path: Path, function: str) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    os.close(fd)
    with pytest.raises(NativeIOError) as caught:
        BAD_DESCRIPTOR[function](native, fd)
    assert caught.value.errno == errno.EBADF
    assert caught.value.filename == f"descriptor {fd}"


@pytest.mark.parametrize("write", ["write_from", "write_sparse", "zero_range"])
def test_a_descriptor_for_reading_only_is_not_written_to(
    native: ModuleType, content: tuple[Path, bytes], opened: Opened, write: str
) -> None:
    fd = opened(content[0], os.O_RDONLY)
    with pytest.raises(NativeIOError) as caught:
        getattr(native, write)(fd, *((0, 10) if write == "zero_range" else (b"x", 0)))
    assert caught.value.errno == errno.EBADF
    assert content[0].read_bytes() == content[1]


@pytest.mark.parametrize(
    "call",
    [
        lambda native: native.read_into(0, bytearray(1), -1),
        lambda native: native.read_scan(0, bytearray(2), 2**63 - 2),
        lambda native: native.write_from(0, b"x", 2**64),
        lambda native: native.write_sparse(0, b"x", -1),
        lambda native: native.write_sparse(0, b"x", 0, block_size=0),
        lambda native: native.extents(0, 10, start=-1),
        lambda native: native.copy_range(0, 1, -1, 5),
        lambda native: native.copy_range(0, 1, 0, 5, target_offset=2**63 - 5),
        lambda native: native.zero_range(0, 0, -1),
        lambda native: native.zero_range(0, 0, 1, method="magic"),
        lambda native: native.clone(0, 1, source_offset=-4096),
        lambda native: native.drop_cache(0, -1),
        lambda native: native.cached_bytes(0, -1, 1),
        lambda native: native.start_writeback(0, 0, -1),
        lambda native: native.wait_writeback(0, 1, 2**63 - 1),
        lambda native: native.read_direct(0, bytearray(1), -1, 1),
    ],
)
def test_what_is_no_range_is_refused_before_any_system_call(native: ModuleType, call: Callable[[Any], object]) -> None:
    with pytest.raises(ValueError, match=r"not a range|block size|method"):
        call(native)


def test_a_read_needs_a_writable_buffer() -> None:
    with pytest.raises(BufferError):
        diskhaul_native.read_into(0, b"constant", 0)  # type: ignore[arg-type]


def test_pipes_and_directories_are_errors_not_data(native: ModuleType, tmp_path: Path, opened: Opened) -> None:
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(NativeIOError) as caught:
            native.read_into(read_end, bytearray(1), 0)
        assert caught.value.errno == errno.ESPIPE
        with pytest.raises(NativeIOError) as caught:
            native.write_from(write_end, b"x", 0)
        assert caught.value.errno == errno.ESPIPE
    finally:
        os.close(read_end)
        os.close(write_end)
    with pytest.raises(NativeIOError) as caught:
        native.read_into(opened(tmp_path, os.O_RDONLY), bytearray(1), 0)
    assert caught.value.errno == errno.EISDIR


def test_a_full_device_is_an_error_at_the_first_byte(native: ModuleType, opened: Opened) -> None:
    fd = opened("/dev/full", os.O_RDWR)
    with pytest.raises(NativeIOError, match="No space left on device") as caught:
        native.write_from(fd, b"x" * 10, 4096)
    assert (caught.value.errno, caught.value.offset, caught.value.filename) == (errno.ENOSPC, 4096, "/dev/full")


def test_a_filesystem_that_fills_up_is_an_error_where_it_was_full(
    native: ModuleType, tmpfs: Callable[[int], Path], opened: Opened
) -> None:
    fd = opened(tmpfs(1) / "file")
    with pytest.raises(NativeIOError) as caught:
        native.write_from(fd, b"x" * (2 << 20), 0)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.offset == os.fstat(fd).st_size > 0


def test_an_ext4_that_fills_up_fails_the_write(native: ModuleType, loop_filesystem: Callable[..., Any], opened: Opened) -> None:
    filesystem = loop_filesystem("ext4", size_mib=8)
    fd = opened(filesystem.path / "file")
    with pytest.raises(NativeIOError) as caught:
        native.write_from(fd, b"x" * (16 << 20), 0)
    assert caught.value.errno == errno.ENOSPC


LIMITED = """
import resource, signal, sys, os
import diskhaul_native, errno
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
try:
    diskhaul_native.write_from(fd, b"x" * 65536, 0)
except diskhaul_native.NativeIOError as error:
    print(errno.errorcode[error.errno], error.offset, os.fstat(fd).st_size)
"""


def test_a_short_write_is_continued_until_the_limit_says_why(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "file")]
    child = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert child.stdout.split() == ["EFBIG", "10000", "10000"]


def test_a_read_that_was_interrupted_is_repeated(injected: Callable[..., Any], content: tuple[Path, bytes]) -> None:
    expression = "(diskhaul_native.read_into(fd, buffer, 7), buffer.hex())[1]"
    traced = injected(content[0], expression, "pread64:error=EINTR:when=1..3")
    assert bytes.fromhex(traced.result) == content[1][7 : 7 + 65536]
    assert len(traced.calls) == 4


def test_a_write_that_was_interrupted_is_repeated(injected: Callable[..., Any], content: tuple[Path, bytes]) -> None:
    traced = injected(content[0], "diskhaul_native.write_from(fd, buffer, 7)", "pwrite64:error=EINTR:when=1..3")
    assert (traced.errno, len(traced.calls)) == (None, 4)
    assert content[0].read_bytes() == content[1][:7] + b"d" * 65536 + content[1][7 + 65536 :]


def test_a_short_read_is_continued_where_it_stopped(injected: Callable[..., Any], content: tuple[Path, bytes]) -> None:
    expression = "(diskhaul_native.read_into(fd, buffer, 1000), buffer.hex())[1]"
    traced = injected(content[0], expression, "pread64:retval=500:when=1")
    # The call that was made to look short read nothing: its part of the buffer is untouched, the rest must be right.
    assert bytes.fromhex(traced.result) == b"d" * 500 + content[1][1500 : 1000 + 65536]


def test_a_short_write_is_continued_where_it_stopped(injected: Callable[..., Any], content: tuple[Path, bytes]) -> None:
    injected(content[0], "diskhaul_native.write_from(fd, buffer, 1000)", "pwrite64:retval=500:when=1")
    data = content[1]
    assert content[0].read_bytes() == data[:1500] + b"d" * (65536 - 500) + data[1000 + 65536 :]


def test_a_write_that_accepts_nothing_fails_instead_of_going_on_for_ever(
    injected: Callable[..., Any], content: tuple[Path, bytes]
) -> None:
    traced = injected(content[0], "diskhaul_native.write_from(fd, buffer, 0)", "pwrite64:retval=0")
    assert (traced.errno, traced.offset) == (errno.EIO, 0)


@pytest.mark.parametrize("function", ["read_into", "read_scan"])
def test_a_bad_sector_fails_the_read_at_its_offset(
    injected: Callable[..., Any], content: tuple[Path, bytes], function: str
) -> None:
    traced = injected(content[0], f"diskhaul_native.{function}(fd, buffer, 100)", "pread64:error=EIO:when=1")
    assert (traced.errno, traced.offset) == (errno.EIO, 100)


def test_a_bad_sector_fails_the_write_at_its_offset(injected: Callable[..., Any], content: tuple[Path, bytes]) -> None:
    traced = injected(content[0], "diskhaul_native.write_from(fd, buffer, 100)", "pwrite64:error=EIO:when=1")
    assert (traced.errno, traced.offset) == (errno.EIO, 100)


def test_a_failed_sync_is_reported_and_never_repeated(injected: Callable[..., Any], content: tuple[Path, bytes]) -> None:
    traced = injected(content[0], "diskhaul_native.fsync(fd)", "fsync:error=EIO:when=1")
    assert (traced.errno, traced.offset, len(traced.calls)) == (errno.EIO, None, 1)


def test_a_sync_that_was_interrupted_is_waited_for_again(injected: Callable[..., Any], content: tuple[Path, bytes]) -> None:
    traced = injected(content[0], "diskhaul_native.fsync(fd)", "fsync:error=EINTR:when=1..2")
    assert (traced.errno, len(traced.calls)) == (None, 3)


def test_an_error_survives_pickling() -> None:
    error = NativeIOError(errno.EIO, "reading at offset 5: it broke", "disk", offset=5)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.errno, copy.strerror, copy.filename, copy.offset) == (
        NativeIOError,
        errno.EIO,
        error.strerror,
        "disk",
        5,
    )


def test_an_error_lets_go_of_the_buffer() -> None:
    buffer = bytearray(10)
    with pytest.raises(NativeIOError):
        diskhaul_native.read_into(-1, buffer, 0)
    buffer.extend(b"more")
    assert len(buffer) == 14
