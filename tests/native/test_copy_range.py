"""Copying ranges without filling their holes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diskhaul_native
from diskhaul_native import CopyResult, NativeIOError, low_level
from diskhaul_native._core import ffi, lib

Opened = Callable[..., int]
MIB = 1 << 20
SIZE = 5 * MIB


@pytest.fixture
def source(tmp_path: Path, opened: Opened) -> int:
    """Holes of 1 MiB around data of 1 MiB, 5 MiB in all."""
    fd = opened(tmp_path / "source")
    os.ftruncate(fd, SIZE)
    os.pwrite(fd, os.urandom(MIB), MIB)
    os.pwrite(fd, os.urandom(MIB), 3 * MIB)
    return fd


def content(fd: int) -> bytes:
    return os.pread(fd, 1 << 30, 0)


def test_holes_stay_holes_and_only_data_is_read(native: ModuleType, source: int, tmp_path: Path, opened: Opened) -> None:
    target = opened(tmp_path / "target")
    os.ftruncate(target, SIZE)
    assert native.copy_range(source, target, 0, SIZE) == CopyResult(read=2 * MIB, written=2 * MIB)
    assert content(target) == content(source)
    assert list(native.extents(target, SIZE)) == list(native.extents(source, SIZE))


def test_holes_replace_old_bytes_where_that_is_asked(native: ModuleType, source: int, tmp_path: Path, opened: Opened) -> None:
    target = opened(tmp_path / "target")
    os.pwrite(target, b"\xff" * SIZE, 0)
    native.copy_range(source, target, 0, SIZE, zero_holes=True)
    assert content(target) == content(source)
    assert list(native.extents(target, SIZE)) == list(native.extents(source, SIZE))


def test_holes_are_left_alone_where_the_target_is_known_to_be_zero(
    native: ModuleType, source: int, tmp_path: Path, opened: Opened
) -> None:
    target = opened(tmp_path / "target")
    os.pwrite(target, b"\xff" * SIZE, 0)
    native.copy_range(source, target, 0, SIZE)
    assert content(target)[:MIB] == b"\xff" * MIB
    assert content(target)[MIB : 2 * MIB] == content(source)[MIB : 2 * MIB]


def test_a_part_lands_at_another_offset_and_nothing_else_changes(
    native: ModuleType, source: int, tmp_path: Path, opened: Opened
) -> None:
    target = opened(tmp_path / "target")
    os.pwrite(target, b"\xff" * SIZE, 0)
    offset, length, target_offset = MIB // 2 + 1, MIB + 77, 1234
    native.copy_range(source, target, offset, length, target_offset=target_offset, zero_holes=True)
    expected = bytearray(b"\xff" * SIZE)
    expected[target_offset : target_offset + length] = content(source)[offset : offset + length]
    assert content(target) == expected


def test_nothing_to_copy_copies_nothing(native: ModuleType, source: int, tmp_path: Path, opened: Opened) -> None:
    assert native.copy_range(source, opened(tmp_path / "target"), 5, 0) == (0, 0)
    assert content(opened(tmp_path / "target")) == b""


def test_block_devices_are_copied_from_and_to(
    native: ModuleType, source: int, tmp_path: Path, loop_device: Callable[[Path], str], opened: Opened
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"\xff" * SIZE)
    device = opened(loop_device(image), os.O_RDWR)
    native.copy_range(source, device, 0, SIZE, zero_holes=True)
    os.fsync(device)
    assert image.read_bytes() == content(source)
    back = opened(tmp_path / "back")
    os.ftruncate(back, SIZE)
    # The device cannot tell holes from data: all is read, and its zeros are not written.
    assert native.copy_range(device, back, 0, SIZE) == (SIZE, 2 * MIB)
    assert content(back) == content(source)
    assert os.fstat(back).st_blocks * 512 == 2 * MIB


def test_files_on_different_filesystems_are_copied(
    native: ModuleType, source: int, tmpfs: Callable[[int], Path], opened: Opened
) -> None:
    target = opened(tmpfs(16) / "target")
    os.ftruncate(target, SIZE)
    assert native.copy_range(source, target, 0, SIZE) == (2 * MIB, 2 * MIB)
    assert content(target) == content(source)


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_filesystems_with_reflinks_copy_right(loop_filesystem: Callable[..., Any], opened: Opened, kind: str) -> None:
    path = loop_filesystem(kind).path
    source, target = opened(path / "source"), opened(path / "target")
    os.ftruncate(source, SIZE)
    os.pwrite(source, os.urandom(MIB), MIB)
    os.pwrite(target, b"\xff" * SIZE, 0)
    assert diskhaul_native.copy_range(source, target, 0, SIZE, zero_holes=True) == (MIB, MIB)
    assert content(target) == content(source)


def test_a_copy_in_slices_is_the_same_copy(source: int, tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_level, "SLICE", 100_001)
    target = opened(tmp_path / "target")
    os.pwrite(target, b"\xff" * SIZE, 0)
    assert diskhaul_native.copy_range(source, target, 0, SIZE, zero_holes=True) == (2 * MIB, 2 * MIB)
    assert content(target) == content(source)


def test_a_used_up_budget_ends_the_call_so_that_signals_get_their_turn(source: int, tmp_path: Path, opened: Opened) -> None:
    target = opened(tmp_path / "target")
    os.ftruncate(target, SIZE)
    progress = ffi.new("struct dh_copy_progress *")
    scratch = ffi.from_buffer("char[]", bytearray(4096))
    positions = []
    while lib.dh_copy_range(source, target, 0, SIZE, 0, False, scratch, 4096, MIB - 1, progress) == 1:
        positions.append(progress.position)
    assert positions == [2 * MIB - 1, 4 * MIB - 2]  # holes cost nothing
    assert content(target) == content(source)


def test_a_source_that_ends_before_the_range_is_an_error_there(
    native: ModuleType, source: int, tmp_path: Path, opened: Opened
) -> None:
    target = opened(tmp_path / "target")
    os.ftruncate(source, 2 * MIB - 5)
    with pytest.raises(NativeIOError, match="the file ends before the range") as caught:
        native.copy_range(source, target, 0, SIZE)
    assert (caught.value.errno, caught.value.offset) == (errno.ENODATA, 2 * MIB - 5)
    assert caught.value.filename == str(tmp_path / "source")


@pytest.mark.parametrize("target_offset", [0, 1, MIB - 1])
def test_overlapping_ranges_of_one_file_are_refused(
    native: ModuleType, source: int, tmp_path: Path, opened: Opened, target_offset: int
) -> None:
    before = content(source)
    with pytest.raises(NativeIOError) as caught:
        native.copy_range(source, opened(tmp_path / "source"), 0, MIB, target_offset=target_offset)
    assert caught.value.errno == errno.EINVAL
    assert content(source) == before


def test_ranges_of_one_file_that_only_touch_are_copied(native: ModuleType, source: int) -> None:
    before = content(source)
    native.copy_range(source, source, MIB, MIB, target_offset=2 * MIB)
    assert content(source) == before[: 2 * MIB] + before[MIB : 2 * MIB] + before[3 * MIB :]


def test_a_target_that_fills_up_is_named_with_its_own_offset(source: int, tmpfs: Callable[[int], Path], opened: Opened) -> None:
    path = tmpfs(1) / "target"
    target = opened(path)
    with pytest.raises(NativeIOError, match="writing the target") as caught:
        diskhaul_native.copy_range(source, target, MIB, 3 * MIB, target_offset=10 * MIB)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert caught.value.offset == 12 * MIB


def prepare(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    with open(path, "wb") as file:
        file.write(b"s" * 200_000)
        file.truncate(MIB)
    return path


TO_ITSELF = "list(diskhaul_native.copy_range(fd, fd, 0, 200000, target_offset=500000))"


@pytest.mark.parametrize("error", ["EXDEV", "EINVAL", "ENOSYS", "EOPNOTSUPP", "EPERM", "EIO"])
def test_where_the_kernel_does_not_copy_it_is_done_by_hand(injected: Callable[..., Any], tmp_path: Path, error: str) -> None:
    path = prepare(tmp_path)
    traced = injected(path, TO_ITSELF, f"copy_file_range:error={error}")
    assert (traced.result, len(traced.calls)) == ([200_000, 200_000], 1)
    assert path.read_bytes()[500_000:700_000] == b"s" * 200_000


def test_a_kernel_that_copies_nothing_is_not_believed(injected: Callable[..., Any], tmp_path: Path) -> None:
    path = prepare(tmp_path)
    assert injected(path, TO_ITSELF, "copy_file_range:retval=0").result == [200_000, 200_000]
    assert path.read_bytes()[500_000:700_000] == b"s" * 200_000


def test_a_copy_that_was_interrupted_is_repeated(injected: Callable[..., Any], tmp_path: Path) -> None:
    path = prepare(tmp_path)
    traced = injected(path, TO_ITSELF, "copy_file_range:error=EINTR:when=1..2")
    assert (traced.result, len(traced.calls)) == ([200_000, 200_000], 3)
    assert path.read_bytes()[500_000:700_000] == b"s" * 200_000


def test_a_bad_sector_of_the_source_fails_the_copy(injected: Callable[..., Any], tmp_path: Path) -> None:
    traced = injected(prepare(tmp_path), TO_ITSELF, "copy_file_range:error=EIO", "pread64:error=EIO")
    assert (traced.errno, traced.offset) == (errno.EIO, 0)


def test_a_bad_sector_of_the_target_fails_the_copy_with_the_target_s_offset(injected: Callable[..., Any], tmp_path: Path) -> None:
    traced = injected(prepare(tmp_path), TO_ITSELF, "copy_file_range:error=EIO", "pwrite64:error=EIO")
    assert (traced.errno, traced.offset) == (errno.EIO, 500_000)


@settings(deadline=None, max_examples=60)
@given(
    blocks=st.lists(st.sampled_from(["hole", "data", "zeros"]), min_size=1, max_size=30),
    cut=st.tuples(st.integers(0, 100_000), st.integers(0, 130_000)),
    target_offset=st.integers(0, 20_000),
    zero_holes=st.booleans(),
)
def test_the_range_arrives_and_nothing_else_changes(
    tmp_path_factory: pytest.TempPathFactory,
    blocks: list[str],
    cut: tuple[int, int],
    target_offset: int,
    zero_holes: bool,
) -> None:
    base = tmp_path_factory.getbasetemp()
    size = len(blocks) * 4096
    offset = min(cut[0], size)
    length = min(cut[1], size - offset)
    old = b"\xff" if zero_holes else b"\0"
    with open(base / "copy-source", "w+b") as source, open(base / "copy-target", "w+b") as target:
        os.ftruncate(source.fileno(), size)
        for number, kind in enumerate(blocks):
            if kind != "hole":
                os.pwrite(source.fileno(), (b"x" if kind == "data" else b"\0") * 4096, number * 4096)
        os.pwrite(target.fileno(), old * 160_000, 0)
        result = diskhaul_native.copy_range(
            source.fileno(), target.fileno(), offset, length, target_offset=target_offset, zero_holes=zero_holes
        )
        expected = bytearray(old * 160_000)
        expected[target_offset : target_offset + length] = content(source.fileno())[offset : offset + length]
        assert content(target.fileno()) == expected
        data = sum(n for _, n, is_data in diskhaul_native.extents(source.fileno(), offset + length, start=offset) if is_data)
        assert result.read == data
        assert result.written <= data
