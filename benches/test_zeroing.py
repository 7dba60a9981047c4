"""How fast a range full of data is made zero, by each method, on a file and on a block device, with the fsync that it takes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diskhaul_native as native

from .conftest import MIB

SIZE = 64 * MIB


def measure_zeroing(measured: Callable[..., Any], path: Path, method: str, **settings: object) -> None:
    block = os.urandom(4 * MIB)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:

        def fill() -> None:
            for offset in range(0, SIZE, len(block)):
                native.write_from(fd, block, offset)
            native.fsync(fd)

        def zero() -> None:
            native.zero_range(fd, 0, SIZE, method=method)
            native.fsync(fd)

        try:
            measured(zero, size=SIZE, rounds=5, before=fill, method=method, **settings)
        except native.NativeIOError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            pytest.skip(f"no {method} here")
        assert os.pread(fd, SIZE, 0) == bytes(SIZE)
    finally:
        os.close(fd)


@pytest.mark.parametrize("method", ["auto", "punch", "zero-range", "write"])
def test_zeroing_a_file(measured: Callable[..., Any], tmp_path: Path, method: str) -> None:
    measure_zeroing(measured, tmp_path / "file", method, target="file")


@pytest.mark.parametrize("method", ["auto", "punch", "zero-range", "blkzeroout", "write"])
def test_zeroing_a_loop_device(measured: Callable[..., Any], loop_device: Callable[[int], Path], method: str) -> None:
    measure_zeroing(measured, loop_device(SIZE), method, target="loop device")
