"""Block groups: which clusters their bitmaps call free, and whether that can be true."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from diskhaul_native import clear_bit_runs

from ..reading import FreeRuns
from .errors import KeptError
from .libext2fs import Filesystem
from .superblock import FLEX_BG, MMP

MAX_RUNS = 1 << 21
"""Ranges that are remembered (32 MiB). Where there are more, the shortest ones are kept on the disk instead."""


def free_runs(filesystem: Filesystem) -> tuple[FreeRuns, int]:
    """The ranges that all groups call free, and how many bytes that are together; more than the ranges, where those are too many.

    Raises:
        KeptError: a description, a bitmap, a checksum or a count contradicts another.
        OSError: it cannot be read.
    """
    s = filesystem.superblock
    cluster_size = s.cluster_blocks * s.block_size
    end = s.blocks * s.block_size
    runs = FreeRuns()
    free = shortest = 0
    for group in range(s.groups):
        start = s.group_start(group) * s.block_size
        clear = _free_clusters(filesystem, group)
        for first, count in _pairs(clear):
            offset = start + first * cluster_size
            length = min(count * cluster_size, end - offset)  # the last cluster may be cut short
            free += length
            if length >= shortest:
                runs.add(offset, length)
        if len(runs) > MAX_RUNS:
            shortest = max(2 * shortest, 2 * cluster_size)
            runs.drop_shorter(shortest)
    return runs, free


def _free_clusters(filesystem: Filesystem, group: int) -> array[int]:
    """The runs of free clusters of a group, counted from its first: number of the first one, length, and so on in turn."""
    s = filesystem.superblock
    clusters = -(-s.group_blocks(group) // s.cluster_blocks)
    if not filesystem.has_valid_checksum(group):
        raise KeptError(f"the checksum of group {group}'s description is wrong")
    place = filesystem.block_bitmap(group)
    if not s.first_data_block < place < s.blocks:
        raise KeptError(f"the bitmap of group {group} is nowhere")
    if filesystem.is_bitmap_missing(group):
        clear = _gaps(filesystem, group, clusters)
    else:
        bitmap = filesystem.read_block(place)
        if not filesystem.is_bitmap_valid(group, bitmap):
            raise KeptError(f"the checksum of group {group}'s bitmap is wrong")
        if clear_bit_runs(bitmap, clusters, 8 * s.block_size - clusters):
            raise KeptError(f"group {group} has free blocks behind its end")
        clear = clear_bit_runs(bitmap, 0, clusters)
    if sum(clear[1::2]) != filesystem.free_clusters(group):
        raise KeptError(f"group {group} has another number of free blocks than it says")
    return clear


def _gaps(filesystem: Filesystem, group: int, clusters: int) -> array[int]:
    """What is free in a group whose bitmap was never written: all but its own metadata."""
    s = filesystem.superblock
    start = s.group_start(group)
    used = [
        (max(0, first - start) // s.cluster_blocks, -(-min(first + length - start, s.group_blocks(group)) // s.cluster_blocks))
        for first, length in (*filesystem.copies(group), *filesystem.tables(group))
        if first < start + s.group_blocks(group) and first + length > start
    ]
    clear = array("Q")
    position = 0
    for first, end in sorted([*used, (clusters, clusters)]):
        if first > position:
            clear.extend((position, first - position))
        position = max(position, end)
    return clear


def metadata(filesystem: Filesystem) -> Iterator[tuple[int, int]]:
    """What is in use in any case: pairs of first block and number of blocks, in no order.

    Raises:
        KeptError: a table lies where there can be none.
    """
    s = filesystem.superblock
    for group in range(s.groups):
        yield from filesystem.copies(group)
        for first, length in filesystem.tables(group):
            if first <= s.first_data_block:
                raise KeptError(f"a table of group {group} is nowhere")
            yield first, length
    if s.mmp_block and s.incompat & MMP:
        yield s.mmp_block, 1


def check_tables(filesystem: Filesystem) -> None:
    """See that each group's bitmaps and inode table are its own: a group that has another's calls what it has in use free.

    Checksums do not tell, where there are any at all: a bitmap's does not depend on its group. What does is where the copies of
    the descriptions say that it lies, which never change but when tables are moved; and, without flex_bg, its own group.

    Raises:
        KeptError: one is not.
        OSError: a copy cannot be read.
    """
    s = filesystem.superblock
    if not s.incompat & FLEX_BG:
        for group in range(s.groups):
            start, end = s.group_start(group), s.group_start(group) + s.group_blocks(group)
            if any(first < start or first + length > end for first, length in filesystem.tables(group)):
                raise KeptError(f"a table of group {group} lies outside of it")
    for group, places in filesystem.tables_by_copies():
        if places != tuple(first for first, _ in filesystem.tables(group)):
            raise KeptError(f"the tables of group {group} lie elsewhere by the copy of its description")


def check_in_use(filesystem: Filesystem, blocks: Iterable[tuple[int, int]], runs: FreeRuns) -> None:
    """Compare what must be in use with what is called free.

    Raises:
        KeptError: some of it is called free, or is not in the filesystem.
    """
    s = filesystem.superblock
    for first, length in blocks:
        if first + length > s.blocks:
            raise KeptError("metadata is behind its end")
        if runs.overlaps(first * s.block_size, length * s.block_size):
            raise KeptError(f"metadata is in blocks that are called free ({first})")


def _pairs(numbers: array[int]) -> Iterator[tuple[int, int]]:
    iterator = iter(numbers)
    return zip(iterator, iterator, strict=True)
