"""Laying what is free over what is allocated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..api import Extent, ExtentKind


def checked_free_extents(found: Iterable[Extent], size: int) -> tuple[Extent, ...]:
    """Free extents as a backend gives them, sorted.

    Raises:
        ValueError: one is of another kind, lies outside the disk, or overlaps another: then none of them can be believed.
    """
    free = tuple(sorted(found, key=lambda extent: extent.offset))
    position = 0
    for extent in free:
        if extent.kind is not ExtentKind.FREE or extent.offset < position or extent.length <= 0 or extent.end > size:
            raise ValueError(f"{extent} after offset {position} on a disk of {size} bytes")
        position = extent.end
    return free


def overlay(extents: Iterable[Extent], free: Sequence[Extent]) -> Iterator[Extent]:
    """`extents` with those parts of their data turned into FREE that `free` covers; holes stay holes.

    Both ascend without overlap; so does what comes out, and it covers the same bytes.
    """
    index = 0
    for extent in extents:
        if extent.kind is not ExtentKind.DATA:
            yield extent
            continue
        position = extent.offset
        while position < extent.end:
            while index < len(free) and free[index].end <= position:
                index += 1
            if index == len(free) or free[index].offset >= extent.end:
                yield Extent(position, extent.end - position, ExtentKind.DATA)
                break
            begin, end = max(free[index].offset, position), min(free[index].end, extent.end)
            if begin > position:
                yield Extent(position, begin - position, ExtentKind.DATA)
            yield Extent(begin, end - begin, ExtentKind.FREE)
            position = end
