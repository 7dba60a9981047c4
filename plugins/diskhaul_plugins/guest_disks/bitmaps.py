"""Bitmaps of blocks in use, as most filesystems keep them."""

from __future__ import annotations

import re
from collections.abc import Iterator

_PIECES = re.compile(rb"\x00+|\xff+|[^\x00\xff]+")


def _zeros_of(byte: int) -> tuple[tuple[int, int], ...]:
    runs: list[tuple[int, int]] = []
    for bit in range(8):
        if not byte >> bit & 1:
            if runs and sum(runs[-1]) == bit:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1)
            else:
                runs.append((bit, 1))
    return tuple(runs)


_ZEROS = tuple(map(_zeros_of, range(256)))
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
    if len(bitmap) * 8 < count:
        raise ValueError(f"a bitmap of {len(bitmap)} bytes for {count} blocks")
    for piece in _PIECES.finditer(bitmap):
        begin = piece.start() * 8
        if begin >= count:
            return
        first = bitmap[piece.start()]
        if first == 0:
            yield begin, min(piece.end() * 8, count) - begin
        elif first != 0xFF:
            for number in range(piece.start(), piece.end()):
                for bit, length in _ZEROS[bitmap[number]]:
                    start = number * 8 + bit
                    if start < count:
                        yield start, min(length, count - start)


def all_set(bitmap: bytes, first: int, count: int) -> bool:
    """Whether `count` bits from `first` on are all 1; False where the bitmap ends before."""
    if first < 0 or count < 0 or first + count > len(bitmap) * 8:
        return False
    if count == 0:
        return True
    begin, end = first // 8, -(-(first + count) // 8)
    bits = int.from_bytes(bitmap[begin:end], "little") >> first % 8
    wanted = (1 << count) - 1
    return bits & wanted == wanted
