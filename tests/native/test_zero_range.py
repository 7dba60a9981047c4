"""Making zeros: every method on every kind of target, and which one is next when one is not there."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diskhaul_native
from diskhaul_native import NativeIOError, low_level, reference

Opened = Callable[..., int]
MIB = 1 << 20
LOOP_SET_BLOCK_SIZE = 0x4C09
RANGES = [(0, MIB), (4096, 8192), (1, 1), (511, 2), (5, 4000), (4095, 4098), (100, 100_000), (MIB - 1, 1), (0, 0)]


def expected(offset: int, length: int) -> bytes:
    return b"\xff" * offset + bytes(length) + b"\xff" * (MIB - offset - length)


@pytest.mark.parametrize("method", ["auto", "punch", "zero-range", "write"])
@pytest.mark.parametrize(("offset", "length"), RANGES)
def test_exactly_the_range_of_a_file_becomes_zero(
    native: ModuleType, tmp_path: Path, opened: Opened, method: str, offset: int, length: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * MIB)
    assert native.zero_range(opened(path), offset, length, method=method) == ("punch" if method == "auto" else method)
    assert path.read_bytes() == expected(offset, length)


@pytest.mark.parametrize("method", ["auto", "punch", "zero-range", "blkzeroout", "write"])
@pytest.mark.parametrize("sector", [512, 4096])
def test_exactly_the_range_of_a_block_device_becomes_zero(
    native: ModuleType, tmp_path: Path, loop_device: Callable[[Path], str], opened: Opened, method: str, sector: int
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"\xff" * MIB)
    fd = opened(loop_device(image), os.O_RDWR)
    fcntl.ioctl(fd, LOOP_SET_BLOCK_SIZE, sector)
    for offset, length in RANGES:
        native.write_from(fd, b"\xff" * MIB, 0)
        assert native.zero_range(fd, offset, length, method=method) == ("punch" if method == "auto" else method)
        buffer = bytearray(MIB)
        native.read_into(fd, buffer, 0)
        assert buffer == expected(offset, length), (offset, length)
    os.fsync(fd)
    assert image.read_bytes() == expected(0, 0)


def test_punching_frees_the_space_and_zeroing_keeps_it(native: ModuleType, tmp_path: Path, opened: Opened) -> None:
    fd = opened(tmp_path / "file")
    os.pwrite(fd, b"\xff" * MIB, 0)
    native.zero_range(fd, 0, MIB, method="zero-range")
    assert os.fstat(fd).st_blocks * 512 == MIB
    native.zero_range(fd, 0, MIB, method="punch")
    assert os.fstat(fd).st_blocks == 0


def test_punching_a_block_device_frees_the_space_below(
    native: ModuleType, tmp_path: Path, loop_device: Callable[[Path], str], opened: Opened
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"\xff" * MIB)
    fd = opened(loop_device(image), os.O_RDWR)
    native.zero_range(fd, 0, MIB)
    assert image.stat().st_blocks == 0


@pytest.mark.parametrize("method", ["auto", "punch", "zero-range", "write"])
def test_a_file_that_ends_before_is_extended_so_that_the_range_reads_as_zeros(
    native: ModuleType, tmp_path: Path, opened: Opened, method: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * 1000)
    native.zero_range(opened(path), 500, 100_000, method=method)
    assert path.read_bytes() == b"\xff" * 500 + bytes(100_000)


@pytest.mark.parametrize("method", ["auto", "punch", "zero-range", "blkzeroout", "write"])
def test_a_range_beyond_a_block_device_is_an_error_and_changes_nothing(
    native: ModuleType, tmp_path: Path, loop_device: Callable[[Path], str], opened: Opened, method: str
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"\xff" * MIB)
    fd = opened(loop_device(image), os.O_RDWR)
    with pytest.raises(NativeIOError) as caught:
        native.zero_range(fd, MIB - 4096, 8192, method=method)
    assert caught.value.errno == errno.ENOSPC
    assert image.read_bytes() == expected(0, 0)


def test_a_named_method_that_is_missing_is_an_error_and_not_replaced(
    native: ModuleType, tmp_path: Path, tmpfs: Callable[[int], Path], opened: Opened
) -> None:
    for path, method in [(tmp_path / "file", "blkzeroout"), (tmpfs(4) / "file", "zero-range")]:
        path.write_bytes(b"\xff" * MIB)
        with pytest.raises(NativeIOError) as caught:
            native.zero_range(opened(path), 0, MIB, method=method)
        assert caught.value.errno == errno.EOPNOTSUPP
        assert path.read_bytes() == expected(0, 0)


def test_what_has_no_method_but_writing_is_written(native: ModuleType, opened: Opened) -> None:
    assert native.zero_range(opened("/dev/null", os.O_RDWR), 0, 3 * MIB) == "write"
    with pytest.raises(NativeIOError) as caught:
        native.zero_range(opened("/dev/full", os.O_RDWR), 4096, 10)
    assert (caught.value.errno, caught.value.offset) == (errno.ENOSPC, 4096)


@pytest.mark.parametrize("unsupported", ["EOPNOTSUPP", "ENOSYS", "EINVAL", "ENODEV"])
def test_a_file_without_fallocate_is_written(injected: Callable[..., Any], tmp_path: Path, unsupported: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * MIB)
    traced = injected(path, "diskhaul_native.zero_range(fd, 10, 200000)", f"fallocate:error={unsupported}")
    assert (traced.result, len(traced.calls)) == ("write", 2)
    assert path.read_bytes() == expected(10, 200_000)


def test_a_file_that_cannot_be_punched_has_its_range_zeroed(injected: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * MIB)
    traced = injected(path, "diskhaul_native.zero_range(fd, 10, 200000)", "fallocate:error=EOPNOTSUPP:when=1")
    assert traced.result == "zero-range"
    assert path.read_bytes() == expected(10, 200_000)


def test_a_block_device_without_fallocate_is_zeroed_by_its_ioctl_and_without_that_is_written(
    injected: Callable[..., Any], tmp_path: Path, loop_device: Callable[[Path], str]
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"\xff" * MIB)
    device = loop_device(image)
    zero = "(diskhaul_native.zero_range(fd, 100, 9000), os.fsync(fd))[0]"
    assert injected(device, zero, "fallocate:error=EOPNOTSUPP").result == "blkzeroout"
    assert image.read_bytes() == expected(100, 9000)
    zero = "(diskhaul_native.zero_range(fd, 20000, 9000), os.fsync(fd))[0]"
    # The first two ioctls ask for the size and the sector; the third is BLKZEROOUT.
    traced = injected(device, zero, "fallocate:error=EOPNOTSUPP", "ioctl:error=ENOTTY:when=3")
    assert traced.result == "write"
    assert any("BLKZEROOUT" in call and "INJECTED" in call for call in traced.calls)
    assert image.read_bytes()[20_000 - 1 : 29_000 + 1] == b"\xff" + bytes(9000) + b"\xff"


def test_a_method_that_failed_is_not_replaced_by_the_next(injected: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * MIB)
    traced = injected(path, "diskhaul_native.zero_range(fd, 4096, 8192)", "fallocate:error=EIO:when=1")
    assert (traced.errno, traced.offset, len(traced.calls)) == (errno.EIO, 4096, 1)
    assert path.read_bytes() == expected(0, 0)


def test_an_interrupted_call_is_repeated(injected: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * MIB)
    traced = injected(path, "diskhaul_native.zero_range(fd, 0, 8192)", "fallocate:error=EINTR:when=1..2")
    assert (traced.result, len(traced.calls)) == ("punch", 3)
    assert path.read_bytes() == expected(0, 8192)


def test_short_writes_of_zeros_are_continued(injected: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * MIB)
    zero = "diskhaul_native.zero_range(fd, 0, 300000, method='write')"
    # The call that was made to look short wrote nothing: its bytes stay, all others must be zero.
    injected(path, zero, "pwritev:retval=1000:when=1")
    assert path.read_bytes() == b"\xff" * 1000 + bytes(299_000) + b"\xff" * (MIB - 300_000)


def test_a_filesystem_that_fills_up_says_where(tmpfs: Callable[[int], Path], opened: Opened) -> None:
    fd = opened(tmpfs(1) / "file")
    with pytest.raises(NativeIOError) as caught:
        diskhaul_native.zero_range(fd, 0, 4 * MIB, method="write")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.offset == os.fstat(fd).st_size > 0


def test_a_range_larger_than_one_call_is_zeroed_to_its_end(
    tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(low_level, "SLICE", 8192)
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * MIB)
    assert diskhaul_native.zero_range(opened(path), 100, 100_001) == "punch"
    assert path.read_bytes() == expected(100, 100_001)


@settings(deadline=None, max_examples=80)
@given(
    offset=st.integers(0, 50_000), length=st.integers(0, 50_000), method=st.sampled_from(["auto", "punch", "zero-range", "write"])
)
def test_the_file_is_the_same_as_the_reference_makes_it(
    tmp_path_factory: pytest.TempPathFactory, offset: int, length: int, method: str
) -> None:
    results = []
    for module in (diskhaul_native, reference):
        path = tmp_path_factory.getbasetemp() / f"zero-{module.__name__}"
        path.write_bytes(b"\xff" * 60_000)
        with open(path, "r+b") as file:
            results.append((module.zero_range(file.fileno(), offset, length, method=method), path.read_bytes()))
    assert results[0] == results[1]
