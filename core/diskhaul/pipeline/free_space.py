"""Laying what is free over what is allocated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..api import DiskMap, DiskRegion, Extent, ExtentKind, FreeExtents

MAX_REGION_TEXT = 1000
_NONE = (1 << 64, 1 << 64)
"""Behind the last range: one that no disk reaches."""


def checked_free_extents(found: Iterable[Extent], size: int) -> FreeExtents:
    """Free extents as a backend gives them, sorted.

    Raises:
        ValueError: one is of another kind, lies outside the disk, or overlaps another: then none of them can be believed.
    """
    if isinstance(found, FreeExtents):
        free = found
    else:
        listed = sorted(found, key=lambda extent: extent.offset)
        strange = next((extent for extent in listed if extent.kind is not ExtentKind.FREE), None)
        if strange is not None:
            raise ValueError(f"{strange} as a free extent, on a disk of {size} bytes")
        try:
            free = FreeExtents((extent.offset, extent.length) for extent in listed)
        except (ValueError, OverflowError, TypeError) as error:
            raise ValueError(f"{error}, on a disk of {size} bytes") from error
    if free.end > size:
        raise ValueError(f"free bytes up to {free.end} on a disk of {size} bytes")
    return free


def checked_disk_map(found: DiskMap, size: int) -> DiskMap:
    """A disk's map as a backend gives it, its free extents sorted.

    Raises:
        ValueError: it is no map of a disk of `size` bytes, or its extents cannot be believed.
    """
    if not isinstance(found, DiskMap) or found.size != size:
        raise ValueError(f"{found!r:.200} is no map of a disk of {size} bytes")
    regions = tuple(found.regions)
    for region in regions:
        _check_region(region, size)
    return DiskMap(size=size, regions=regions, free=checked_free_extents(found.free, size))


def _check_region(region: DiskRegion, size: int) -> None:
    """Raise unless it is one that can be shown, and recorded."""
    if not isinstance(region, DiskRegion):
        raise ValueError(f"{region!r:.200} is no region")  # noqa: TRY004  # a plugin's nonsense is one error, whatever its kind
    for text in (region.place, region.type, region.label, region.state, region.kept):
        if not isinstance(text, str) or len(text) > MAX_REGION_TEXT or _has_surrogates(text):
            raise ValueError(f"{text!r:.200} is no text of a region")
    numbers = (region.offset, region.length, region.block_size, region.skipped, 0 if region.free is None else region.free)
    if any(type(number) is not int or not 0 <= number < 1 << 63 for number in numbers) or region.offset > size:
        raise ValueError(f"a region at {region.offset!r:.40} that is not on a disk of {size} bytes")


def _has_surrogates(text: str) -> bool:
    """Whether there are halves of characters in it, which no file can hold."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def overlay(extents: Iterable[Extent], free: FreeExtents, *, least: int = 1) -> Iterator[Extent]:
    """`extents` with those parts of their data turned into FREE that `free` covers; holes stay holes.

    What is free in pieces of less than `least` bytes stays data: to read around it would take longer than to read it.
    Both ascend without overlap; so does what comes out, and it covers the same bytes.
    """
    ranges = free.ranges()
    begin, length = next(ranges, _NONE)
    for extent in extents:
        if extent.kind is not ExtentKind.DATA:
            yield extent
            continue
        position, end = extent.offset, extent.end
        while position < end:
            while begin + length <= position or length < least:
                begin, length = next(ranges, _NONE)
            if begin >= end:
                yield Extent(position, end - position, ExtentKind.DATA)
                break
            if begin > position:
                yield Extent(position, begin - position, ExtentKind.DATA)
                position = begin
            until = min(begin + length, end)
            yield Extent(position, until - position, ExtentKind.FREE)
            position = until


def covered_bytes(extents: Iterable[Extent], free: FreeExtents) -> int:
    """How much of the data among `extents` is free. Both ascend without overlap."""
    covered = 0
    ranges = free.ranges()
    begin, length = next(ranges, _NONE)
    for extent in extents:
        if extent.kind is ExtentKind.DATA:
            while begin < extent.end:
                covered += max(0, min(begin + length, extent.end) - max(begin, extent.offset))
                if begin + length > extent.end:
                    break
                begin, length = next(ranges, _NONE)
    return covered
