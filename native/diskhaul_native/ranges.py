"""Checks of arguments, and results: what the C face and the reference share besides errors."""

from __future__ import annotations

from typing import NamedTuple

MAX_OFFSET = 2**63 - 1
ZERO_METHODS = ("auto", "punch", "zero-range", "blkzeroout", "write")  # the index is the number the C core uses
IO_LEVELS = ("normal", "low", "idle")  # likewise


class CopyResult(NamedTuple):
    """What `copy_range` did: source bytes read (holes are not), data bytes written (zeroing is not counted)."""

    read: int
    written: int


class SharedBlocks(NamedTuple):
    """What `shared_blocks` found: up to where (bytes) two files are the same blocks, and how much of that is data, not holes."""

    end: int
    data: int


def check_range(offset: int, length: int) -> None:
    """Raise ValueError unless 0 <= offset, 0 <= length and the end is a valid file offset (below 2^63)."""
    if offset < 0 or length < 0 or offset + length > MAX_OFFSET:
        raise ValueError(f"not a range of a file: offset {offset}, length {length}")


def check_block_size(block_size: int) -> None:
    """Raise ValueError unless block_size is between 1 and 2^30 bytes."""
    if not 1 <= block_size <= 1 << 30:
        raise ValueError(f"not a block size in bytes: {block_size}")


def check_bits(first: int, count: int, size: int) -> None:
    """Raise ValueError unless a bitmap of `size` bytes has these bits."""
    if first < 0 or count < 0 or first + count > 8 * size:
        raise ValueError(f"not bits of a bitmap of {size} bytes: {count} from {first} on")


def zero_method_number(method: str) -> int:
    """The C core's number of a zeroing method; ValueError for an unknown name."""
    try:
        return ZERO_METHODS.index(method)
    except ValueError:
        raise ValueError(f"unknown zeroing method {method!r}: one of {', '.join(ZERO_METHODS)}") from None


def io_level_number(level: str) -> int:
    """The C core's number of an I/O priority; ValueError for an unknown name."""
    try:
        return IO_LEVELS.index(level)
    except ValueError:
        raise ValueError(f"unknown I/O priority {level!r}: one of {', '.join(IO_LEVELS)}") from None


def check_needed(needed: int, size: int) -> None:
    """Raise ValueError unless 0 <= needed <= the buffer's size (bytes)."""
    if not 0 <= needed <= size:
        raise ValueError(f"a buffer of {size} bytes cannot take {needed}")
