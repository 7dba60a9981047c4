"""A result without free blocks is right where only what dumpe2fs calls free is zeros, and nothing else differs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from benches.comparison.checking import compare_zstd, free_ranges
from benches.comparison.disk import PARTITION
from benches.comparison.errors import ContestantError

MIB = 1 << 20
Requires = Callable[..., None]


@pytest.fixture
def disk(tmp_path: Path, requires: Requires) -> Path:
    """An ext4 filesystem in 16 MiB behind the first MiB of a disk, whose free blocks hold old data."""
    requires("mkfs.ext4", "dumpe2fs", "zstd")
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(18 * MIB))
    subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "1024", "-E", f"offset={PARTITION}", path, "16M"], check=True)
    with path.open("r+b") as file:
        for begin, end in free_ranges(path, PARTITION):
            file.seek(begin)
            file.write(b"\xa5" * (end - begin))
    return path


def compressed(disk: Path, *changes: tuple[int, int, bytes]) -> Path:
    """A copy of the disk with bytes (offset, length, value) changed, as zstd has it."""
    content = bytearray(disk.read_bytes())
    for offset, length, value in changes:
        content[offset : offset + length] = value * length
    packed = disk.with_suffix(".zst")
    packed.write_bytes(subprocess.run(["zstd", "-q", "-c"], input=content, capture_output=True, check=True).stdout)
    return packed


def test_free_blocks_may_be_zeros(disk: Path) -> None:
    free = free_ranges(disk, PARTITION)
    assert sum(end - begin for begin, end in free) > 10 * MIB
    compare_zstd(disk, compressed(disk, *((begin, end - begin, b"\0") for begin, end in free)), free)
    compare_zstd(disk, compressed(disk), free)


def test_what_is_not_free_may_not_differ(disk: Path) -> None:
    """Zeros over the superblock, of which the first byte is one anyway."""
    free = free_ranges(disk, PARTITION)
    with pytest.raises(ContestantError, match=f"differs from .* at offset {PARTITION + 1025}"):
        compare_zstd(disk, compressed(disk, (PARTITION + 1024, 1024, b"\0")), free)


def test_free_blocks_may_not_hold_anything_else(disk: Path) -> None:
    free = free_ranges(disk, PARTITION)
    with pytest.raises(ContestantError, match="differs"):
        compare_zstd(disk, compressed(disk, (free[0][0], 1024, b"x")), free)


def test_without_free_blocks_zeros_are_a_difference(disk: Path) -> None:
    begin, end = free_ranges(disk, PARTITION)[0]
    with pytest.raises(ContestantError, match="differs"):
        compare_zstd(disk, compressed(disk, (begin, end - begin, b"\0")))
