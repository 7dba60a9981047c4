"""What is in the page cache, forgetting it, and writing it back."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import diskhaul_native
from diskhaul_native import NativeIOError, reference

Opened = Callable[..., int]
PAGE = os.sysconf("SC_PAGESIZE")
MIB = 1 << 20
CACHESTAT = 451


def only_pages(fd: int, *numbers: int) -> None:
    """Leave nothing but these pages of the file in the cache."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
    diskhaul_native.drop_cache(fd)
    for number in numbers:
        os.pread(fd, 1, number * PAGE)


def test_synced_clean_pages_can_be_dropped(native: ModuleType, content: tuple[Path, bytes], opened: Opened) -> None:
    fd = opened(content[0])
    native.fsync(fd)
    assert native.cached_bytes(fd, 0, 100_000) == 100_000
    native.drop_cache(fd, 4 * PAGE, 8 * PAGE)  # advice: the kernel may keep pages in larger pieces than this
    native.drop_cache(fd)
    assert native.cached_bytes(fd, 0, 100_000) == 0
    buffer = bytearray(100_000)
    native.read_into(fd, buffer, 0)
    assert buffer == content[1]


def test_cached_bytes_are_counted_to_the_byte(native: ModuleType, content: tuple[Path, bytes], opened: Opened) -> None:
    fd = opened(content[0])
    only_pages(fd, 0, 3, 100_000 // PAGE)
    assert native.cached_bytes(fd, 0, 100_000) == 2 * PAGE + 100_000 % PAGE
    assert native.cached_bytes(fd, 0, 1 << 60) == 2 * PAGE + 100_000 % PAGE
    assert native.cached_bytes(fd, 3 * PAGE + 10, 20) == 20
    assert native.cached_bytes(fd, 3 * PAGE - 10, 20) == 10
    assert native.cached_bytes(fd, 4 * PAGE - 10, 20) == 10
    assert native.cached_bytes(fd, PAGE, 2 * PAGE) == 0
    assert native.cached_bytes(fd, 100, 3 * PAGE) == PAGE - 100 + 100
    assert native.cached_bytes(fd, 5, 0) == native.cached_bytes(fd, 100_000, 10) == native.cached_bytes(fd, 1 << 40, 10) == 0


def test_both_ways_to_ask_agree_on_every_range(content: tuple[Path, bytes], opened: Opened) -> None:
    fd = opened(content[0])
    only_pages(fd, *range(0, 24, 3), 24)
    edges = [page * PAGE + shift for page in (0, 1, 2, 3, 7, 23, 24) for shift in (0, 1, PAGE - 1)]
    for start in edges:
        for end in edges:
            if start <= end:
                counted = diskhaul_native.cached_bytes(fd, start, end - start)
                assert counted == reference.cached_bytes(fd, start, end - start), (start, end)


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM], ids=["an old kernel", "a container's filter"])
def test_without_cachestat_the_pages_are_counted_by_mincore(
    content: tuple[Path, bytes], opened: Opened, refused: Callable[..., Any], error: int
) -> None:
    only_pages(opened(content[0]), 0, 3, 24)
    expression = "[diskhaul_native.cached_bytes(fd, *range) for range in ((0, 100_000), (10, 20), (12287, 4097), (4096, 8192))]"
    assert refused(content[0], expression, CACHESTAT, error) == [2 * PAGE + 100_000 % PAGE, 20, PAGE, 0]


def test_mincore_is_asked_piece_by_piece(tmp_path: Path, opened: Opened, refused: Callable[..., Any]) -> None:
    path = tmp_path / "large"
    fd = opened(path)
    os.ftruncate(fd, 40 * MIB)
    only_pages(fd, 0, 4095, 4096, 4097, 40 * MIB // PAGE - 1)
    assert refused(path, "diskhaul_native.cached_bytes(fd, 1, 40 << 20)", CACHESTAT, errno.ENOSYS) == 5 * PAGE - 1


STRANGER = """
import errno, os, sys
import diskhaul_native
fd = os.open(sys.argv[1], os.O_RDONLY)
os.setresuid(65534, 65534, 65534)
try:
    print(diskhaul_native.cached_bytes(fd, 0, 100_000))
except diskhaul_native.NativeIOError as error:
    print(error.errno == errno.EOPNOTSUPP)
"""


def test_who_may_not_know_what_is_cached_is_not_told_a_guess(
    content: tuple[Path, bytes], opened: Opened, requires: Callable[..., None]
) -> None:
    requires(root=True)
    only_pages(opened(content[0]), 0)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", STRANGER, str(content[0])]
    child = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    # A kernel either tells everybody or nobody but the owner; "everything is cached" would be mincore's polite lie.
    assert child.stdout.strip() in (str(PAGE), "True")


def test_a_block_device_has_cached_bytes_too(
    native: ModuleType, tmp_path: Path, loop_device: Callable[[Path], str], opened: Opened
) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(MIB))
    fd = opened(loop_device(image), os.O_RDWR)
    only_pages(fd, 1, 7)
    assert native.cached_bytes(fd, 0, 2 * MIB) == 2 * PAGE
    assert native.cached_bytes(fd, PAGE + 10, PAGE) == PAGE - 10


@pytest.mark.parametrize("function", ["cached_bytes", "direct_alignment"])
def test_a_pipe_has_no_cache_and_no_alignment(native: ModuleType, function: str) -> None:
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(NativeIOError) as caught:
            getattr(native, function)(read_end, *((0, 10) if function == "cached_bytes" else ()))
        assert caught.value.errno == errno.EOPNOTSUPP
    finally:
        os.close(read_end)
        os.close(write_end)


def test_what_was_written_back_has_reached_the_device(
    native: ModuleType, tmp_path: Path, loop_device: Callable[[Path], str], opened: Opened
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4 * MIB))
    fd = opened(loop_device(image), os.O_RDWR)
    data = os.urandom(4 * MIB)
    native.write_from(fd, data, 0)
    native.wait_writeback(fd, MIB, MIB)
    assert image.read_bytes()[MIB : 2 * MIB] == data[MIB : 2 * MIB]
    native.start_writeback(fd)
    native.wait_writeback(fd)
    assert image.read_bytes() == data


def test_a_device_that_fails_fails_the_wait(
    native: ModuleType, tmpfs: Callable[[int], Path], loop_device: Callable[[Path], str], opened: Opened
) -> None:
    image = tmpfs(1) / "image"
    with open(image, "wb") as file:
        file.truncate(8 * MIB)  # more than there is room for
    fd = opened(loop_device(image), os.O_RDWR)
    native.write_from(fd, os.urandom(4 * MIB), 0)
    with pytest.raises(NativeIOError) as caught:
        native.wait_writeback(fd, 0, 4 * MIB, name="disk 0")
    assert caught.value.errno in (errno.EIO, errno.ENOSPC)
    assert (caught.value.offset, caught.value.filename) == (0, "disk 0")


@pytest.mark.parametrize(
    ("function", "flags"),
    [
        ("start_writeback", "SYNC_FILE_RANGE_WRITE"),
        ("wait_writeback", "SYNC_FILE_RANGE_WAIT_BEFORE|SYNC_FILE_RANGE_WRITE|SYNC_FILE_RANGE_WAIT_AFTER"),
    ],
)
def test_writeback_is_asked_for_again_after_an_interruption_only(
    injected: Callable[..., Any], content: tuple[Path, bytes], function: str, flags: str
) -> None:
    expression = f"diskhaul_native.{function}(fd, 4096, 8192)"
    traced = injected(content[0], expression, "sync_file_range:error=EINTR:when=1..2")
    assert (traced.errno, len(traced.calls)) == (None, 3)
    assert f", 4096, 8192, {flags})" in traced.calls[-1]
    traced = injected(content[0], expression, "sync_file_range:error=EIO:when=1")
    assert (traced.errno, traced.offset, len(traced.calls)) == (errno.EIO, 4096, 1)


def test_there_is_nothing_to_write_back_in_a_pipe(native: ModuleType) -> None:
    read_end, write_end = os.pipe()
    try:
        for function in (native.start_writeback, native.wait_writeback):
            with pytest.raises(NativeIOError) as caught:
                function(write_end)
            assert caught.value.errno == errno.ESPIPE
    finally:
        os.close(read_end)
        os.close(write_end)
