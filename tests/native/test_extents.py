"""Where data and holes are."""

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
from diskhaul_native import NativeIOError, reference

Opened = Callable[..., int]
MIB = 1 << 20


@pytest.fixture
def sparse(tmp_path: Path, opened: Opened) -> int:
    """Holes of 1 MiB around data of 1 MiB, 5 MiB in all."""
    fd = opened(tmp_path / "sparse")
    os.ftruncate(fd, 5 * MIB)
    os.pwrite(fd, b"x" * MIB, MIB)
    os.pwrite(fd, b"y" * MIB, 3 * MIB)
    return fd


def test_data_and_holes_alternate_and_cover_everything(native: ModuleType, sparse: int) -> None:
    assert list(native.extents(sparse, 5 * MIB)) == [
        (0, MIB, False),
        (MIB, MIB, True),
        (2 * MIB, MIB, False),
        (3 * MIB, MIB, True),
        (4 * MIB, MIB, False),
    ]


def test_the_map_starts_and_ends_inside_extents(native: ModuleType, sparse: int) -> None:
    assert list(native.extents(sparse, 4 * MIB - 5, start=MIB + 7)) == [
        (MIB + 7, MIB - 7, True),
        (2 * MIB, MIB, False),
        (3 * MIB, MIB - 5, True),
    ]
    assert list(native.extents(sparse, 10, start=3)) == [(3, 7, False)]
    assert list(native.extents(sparse, 0)) == list(native.extents(sparse, 5, start=5)) == []


def test_a_file_of_nothing_but_a_hole_is_one_hole(native: ModuleType, tmp_path: Path, opened: Opened) -> None:
    fd = opened(tmp_path / "hole")
    os.ftruncate(fd, 1 << 40)
    assert list(native.extents(fd, 1 << 40)) == [(0, 1 << 40, False)]


@pytest.mark.parametrize("size", [5 * MIB + 1, 6 * MIB, 1 << 40])
def test_what_a_file_is_missing_is_an_error_and_never_a_hole(native: ModuleType, sparse: int, size: int) -> None:
    with pytest.raises(NativeIOError, match="the file ends before the range") as caught:
        list(native.extents(sparse, size))
    assert (caught.value.errno, caught.value.offset) == (errno.ENODATA, 5 * MIB)


def test_a_start_beyond_the_end_is_an_error_there(native: ModuleType, sparse: int) -> None:
    with pytest.raises(NativeIOError) as caught:
        list(native.extents(sparse, 9 * MIB, start=7 * MIB))
    assert (caught.value.errno, caught.value.offset) == (errno.ENODATA, 7 * MIB)


def test_a_file_that_shrinks_while_it_is_mapped_is_an_error(native: ModuleType, sparse: int) -> None:
    extents = native.extents(sparse, 5 * MIB)
    next(extents)
    os.ftruncate(sparse, 2 * MIB)
    with pytest.raises(NativeIOError) as caught:
        list(extents)
    assert (caught.value.errno, caught.value.offset) == (errno.ENODATA, 2 * MIB)


def test_a_block_device_is_one_extent_of_data(
    native: ModuleType, tmp_path: Path, loop_device: Callable[[Path], str], opened: Opened
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    fd = opened(loop_device(image), os.O_RDONLY)
    assert list(native.extents(fd, MIB)) == [(0, MIB, True)]
    assert list(native.extents(fd, MIB, start=512)) == [(512, MIB - 512, True)]


def test_what_cannot_tell_is_one_extent_of_data(native: ModuleType, opened: Opened) -> None:
    read_end, write_end = os.pipe()
    try:
        assert list(native.extents(read_end, 100)) == [(0, 100, True)]
    finally:
        os.close(read_end)
        os.close(write_end)
    assert list(native.extents(opened("/dev/zero", os.O_RDONLY), 100, start=10)) == [(10, 90, True)]


@pytest.mark.parametrize("error", ["EINVAL", "EOPNOTSUPP"])
def test_an_old_filesystem_that_cannot_seek_for_holes_is_one_extent_of_data(
    injected: Callable[..., Any], tmp_path: Path, error: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    traced = injected(path, "list(diskhaul_native.extents(fd, 100))", f"lseek:error={error}")
    assert traced.result == [[0, 100, True]]


def test_a_seek_that_fails_is_an_error(injected: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    traced = injected(path, "list(diskhaul_native.extents(fd, 100))", "lseek:error=EIO:when=1")
    assert (traced.errno, traced.offset) == (errno.EIO, 0)


def test_a_hole_that_appears_between_the_two_seeks_is_read_as_data(injected: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    traced = injected(path, "list(diskhaul_native.extents(fd, 100))", "lseek:retval=0:when=2")
    assert traced.result == [[0, 100, True]]


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_every_filesystem_shows_its_holes(loop_filesystem: Callable[..., Any], opened: Opened, kind: str) -> None:
    path = loop_filesystem(kind).path / "file"
    fd = opened(path)
    os.ftruncate(fd, 64 * MIB)
    os.pwrite(fd, b"x" * MIB, 16 * MIB)
    os.pwrite(fd, b"y" * MIB, 48 * MIB)
    extents = list(diskhaul_native.extents(fd, 64 * MIB))
    assert extents == list(reference.extents(fd, 64 * MIB))
    assert [(offset, length) for offset, length, is_data in extents if is_data] == [(16 * MIB, MIB), (48 * MIB, MIB)]


@settings(deadline=None, max_examples=60)
@given(
    blocks=st.lists(st.booleans(), max_size=40),
    tail=st.integers(0, 4095),
    start=st.integers(0, 100_000),
)
def test_the_map_is_the_reference_s_and_has_no_gaps(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[bool], tail: int, start: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "extents"
    size = len(blocks) * 4096 + tail
    start = min(start, size)
    with open(path, "w+b") as file:
        fd = file.fileno()
        os.ftruncate(fd, size)
        for number, is_data in enumerate(blocks):
            if is_data:
                os.pwrite(fd, b"x" * 4096, number * 4096)
        extents = list(diskhaul_native.extents(fd, size, start=start))
        assert extents == list(reference.extents(fd, size, start=start))
        position = start
        for offset, length, is_data in extents:
            assert offset == position
            assert length > 0
            assert is_data or not any(os.pread(fd, length, offset))
            position += length
        assert position == size
