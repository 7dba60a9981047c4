"""How fast bytes get in and out of files in C: sparse copies, sparse writes, whole reads and writes, buffered and direct."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import diskhaul_native as native

from .conftest import KINDS, MIB, write_data_set

SIZE = 64 * MIB
CHUNK = 4 * MIB


@pytest.mark.parametrize("kind", KINDS)
def test_copy_range(measured: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    write_data_set(tmp_path / "source", kind, SIZE)
    with open(tmp_path / "source", "rb") as source, open(tmp_path / "target", "wb") as target:

        def empty() -> None:
            target.truncate(0)
            target.truncate(SIZE)

        result = measured(
            lambda: native.copy_range(source.fileno(), target.fileno(), 0, SIZE), size=SIZE, rounds=10, before=empty, kind=kind
        )
        assert result.read <= SIZE


@pytest.mark.parametrize("kind", ["zeros", "random", "mixed", "last-byte-set"])
@pytest.mark.parametrize("block_size", [4096, 65536])
def test_write_sparse(measured: Callable[..., Any], tmp_path: Path, kind: str, block_size: int) -> None:
    write_data_set(tmp_path / "source", kind, SIZE)
    pieces = [native.aligned_buffer(CHUNK) for _ in range(SIZE // CHUNK)]
    with open(tmp_path / "source", "rb") as source, open(tmp_path / "target", "wb") as target:
        for number, piece in enumerate(pieces):
            native.read_into(source.fileno(), piece, number * CHUNK)

        def empty() -> None:
            target.truncate(0)
            target.truncate(SIZE)

        def write() -> None:
            for number, piece in enumerate(pieces):
                native.write_sparse(target.fileno(), piece, number * CHUNK, block_size=block_size)

        measured(write, size=SIZE, rounds=10, before=empty, kind=kind, block_size=block_size)


@contextmanager
def opened(path: Path, flags: int, *, direct: bool) -> Iterator[int]:
    """A descriptor; skips where the filesystem has no direct I/O."""
    try:
        fd = os.open(path, flags | (os.O_DIRECT if direct else 0), 0o600)
    except OSError as error:
        if direct and error.errno == errno.EINVAL:
            pytest.skip("no direct I/O on this filesystem")
        raise
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize("scan", [False, True], ids=["plain", "scan"])
@pytest.mark.parametrize("how", ["cached", "cold", "direct"])
def test_read(measured: Callable[..., Any], tmp_path: Path, how: str, scan: bool) -> None:
    path = tmp_path / "source"
    write_data_set(path, "last-byte-set", SIZE)
    buffer = native.aligned_buffer(CHUNK)
    function = native.read_scan if scan else native.read_into
    with opened(path, os.O_RDONLY, direct=how == "direct") as fd:

        def drop() -> None:
            if how == "cold":
                native.drop_cache(fd, 0, SIZE)

        def read() -> None:
            for offset in range(0, SIZE, CHUNK):
                function(fd, buffer, offset)

        measured(read, size=SIZE, rounds=10, before=drop, how=how, scan=scan, chunk=CHUNK)


@pytest.mark.parametrize("how", ["buffered", "direct"])
def test_write_and_fsync(measured: Callable[..., Any], tmp_path: Path, how: str) -> None:
    buffer = native.aligned_buffer(CHUNK)
    buffer[:] = os.urandom(CHUNK)
    with opened(tmp_path / "target", os.O_WRONLY | os.O_CREAT, direct=how == "direct") as fd:

        def write() -> None:
            for offset in range(0, SIZE, CHUNK):
                native.write_from(fd, buffer, offset)
            native.fsync(fd)

        measured(write, size=SIZE, rounds=10, before=lambda: os.ftruncate(fd, 0), how=how, chunk=CHUNK)
