"""Laying what is free over what is allocated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..api import DiskMap, DiskRegion, Extent, ExtentKind, FreeExtents

MAX_REGION_TEXT = 1000


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
