"""Bitmaps of blocks in use, as most filesystems keep them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import diskhaul_native as native

_PIECE = 1 << 16  # runs of bits are found for so many bytes of bitmap at a time
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def mirrored(bitmap: bytes) -> bytes:
    """The bitmap with the bits of each byte in the other order: for those that begin with the highest."""
    return bitmap.translate(_MIRRORED)


def clear_runs(bitmap: bytes, count: int) -> Iterator[tuple[int, int]]:
    """Runs of bits that are 0 among the first `count`: number of the first bit, and how many.

    Bit 0 is the lowest of byte 0. They ascend; neighbours may touch.

    Raises:
        ValueError: the bitmap is shorter than `count`.
    """
    for first in range(0, count, _PIECE * 8):
        numbers = iter(native.clear_bit_runs(bitmap, first, min(_PIECE * 8, count - first)))
        yield from zip(numbers, numbers, strict=True)


def touch(runs: Iterable[tuple[int, int]], others: Iterable[tuple[int, int]]) -> bool:
    """Whether one of `runs`, which ascend, and one of `others`, in any order, share anything. Both are starts and lengths."""
    waiting = iter(sorted(other for other in others if other[1]))
    other = next(waiting, None)
    for begin, length in runs:
        while other is not None and sum(other) <= begin:
            other = next(waiting, None)
        if other is None:
            return False
        if other[0] < begin + length:
            return True
    return False
