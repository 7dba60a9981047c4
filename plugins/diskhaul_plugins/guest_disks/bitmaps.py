"""Bitmaps of blocks in use, as most filesystems keep them."""

from __future__ import annotations

from collections.abc import Iterator

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


def all_set(bitmap: bytes, first: int, count: int) -> bool:
    """Whether `count` bits from `first` on are all 1; False where the bitmap ends before."""
    if first < 0 or count < 0 or first + count > len(bitmap) * 8:
        return False
    return not native.clear_bit_runs(bitmap, first, count)
