"""Writing only what is not zero."""

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
BLOCK = 4096


def test_blocks_of_zeros_stay_holes_and_are_not_counted(native: ModuleType, tmp_path: Path, opened: Opened) -> None:
    fd = opened(tmp_path / "file")
    os.ftruncate(fd, 8 * BLOCK)
    data = bytes(2 * BLOCK) + b"x" * BLOCK + bytes(BLOCK) + b"y" * 2 * BLOCK + bytes(2 * BLOCK)
    assert native.write_sparse(fd, data, 0) == 3 * BLOCK
    assert (tmp_path / "file").read_bytes() == data
    assert os.fstat(fd).st_blocks * 512 == 3 * BLOCK


def test_blocks_lie_at_multiples_in_the_file_not_in_the_buffer(native: ModuleType, tmp_path: Path, opened: Opened) -> None:
    fd = opened(tmp_path / "file")
    os.ftruncate(fd, 4 * BLOCK)
    data = b"x" + bytes(3 * BLOCK - 1)
    # The buffer starts in the middle of a block: only the rest of that block is written.
    assert native.write_sparse(fd, data, BLOCK // 2) == BLOCK // 2
    assert os.fstat(fd).st_blocks * 512 == BLOCK


def test_zero_blocks_are_left_alone_on_a_target_that_is_known_to_be_zero(
    native: ModuleType, tmp_path: Path, opened: Opened
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * 4 * BLOCK)
    native.write_sparse(opened(path), bytes(BLOCK) + b"x" * BLOCK, BLOCK)
    assert path.read_bytes() == b"\xff" * 2 * BLOCK + b"x" * BLOCK + b"\xff" * BLOCK


def test_zero_blocks_replace_old_bytes_and_become_holes(native: ModuleType, tmp_path: Path, opened: Opened) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * 8 * BLOCK)
    data = bytes(2 * BLOCK) + b"x" * BLOCK + bytes(5 * BLOCK)
    fd = opened(path)
    assert native.write_sparse(fd, data, 0, zero_holes=True) == BLOCK
    assert path.read_bytes() == data
    assert os.fstat(fd).st_blocks * 512 == BLOCK


def test_zeros_beyond_the_end_extend_a_file_when_holes_are_made(native: ModuleType, tmp_path: Path, opened: Opened) -> None:
    fd = opened(tmp_path / "file")
    assert native.write_sparse(fd, bytes(3 * BLOCK), 0, zero_holes=True) == 0
    assert (tmp_path / "file").read_bytes() == bytes(3 * BLOCK)


@settings(deadline=None, max_examples=150)
@given(
    pieces=st.lists(st.tuples(st.booleans(), st.integers(1, 9000)), max_size=8),
    offset=st.integers(0, 10_000),
    block_size=st.sampled_from([1, 7, 512, 1000, 4096, 65536]),
    zero_holes=st.booleans(),
)
def test_the_file_is_the_same_as_the_reference_makes_it(
    tmp_path_factory: pytest.TempPathFactory,
    pieces: list[tuple[bool, int]],
    offset: int,
    block_size: int,
    zero_holes: bool,
) -> None:
    data = b"".join((b"\x80" if is_data else b"\0") * length for is_data, length in pieces)
    results = []
    for module in (diskhaul_native, reference):
        path = tmp_path_factory.getbasetemp() / f"sparse-{module.__name__}"
        path.write_bytes(b"\xff" * 40_000)
        with open(path, "r+b") as file:
            written = module.write_sparse(file.fileno(), data, offset, block_size=block_size, zero_holes=zero_holes)
        results.append((written, path.read_bytes()))
    assert results[0] == results[1]
    if zero_holes:
        assert results[0][1][offset : offset + len(data)] == data


def test_a_dirty_block_device_gets_zeros_where_the_data_has_them(
    native: ModuleType, tmp_path: Path, loop_device: Callable[[Path], str], opened: Opened
) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"\xff" * (1 << 20))
    fd = opened(loop_device(image), os.O_RDWR)
    data = bytes(100) + b"x" * 5000 + bytes(300_000)
    native.write_sparse(fd, data, 12_345, block_size=512, zero_holes=True)
    native.fsync(fd)
    buffer = bytearray(1 << 20)
    native.read_into(fd, buffer, 0)
    assert buffer == b"\xff" * 12_345 + data + b"\xff" * ((1 << 20) - 12_345 - len(data))


def test_a_target_that_fills_up_fails_at_the_block_that_did_not_fit(
    native: ModuleType, tmpfs: Callable[[int], Path], opened: Opened
) -> None:
    fd = opened(tmpfs(1) / "file")
    os.ftruncate(fd, 8 << 20)
    data = bytes(1 << 20) + b"x" * (2 << 20)
    with pytest.raises(NativeIOError) as caught:
        native.write_sparse(fd, data, 0)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.offset is not None
    assert (1 << 20) <= caught.value.offset < (3 << 20)


def test_a_bad_sector_fails_the_second_run_of_data_at_its_offset(injected: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    expression = "diskhaul_native.write_sparse(fd, b'a' * 4096 + bytes(4096) + b'b' * 4096, 4096)"
    traced = injected(path, expression, "pwrite64:error=EIO:when=2")
    assert (traced.errno, traced.offset) == (errno.EIO, 3 * BLOCK)


def test_zeroing_that_fails_is_an_error_and_not_skipped(injected: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xff" * (1 << 20))
    expression = "diskhaul_native.write_sparse(fd, b'a' * 4096 + bytes(4096), 4096, zero_holes=True)"
    traced = injected(path, expression, "fallocate:error=EIO:when=1")
    assert (traced.errno, traced.offset) == (errno.EIO, 2 * BLOCK)
