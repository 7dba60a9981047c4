"""FAT12, FAT16 and FAT32 (Microsoft, "FAT32 File System Specification", 2000; Linux: fs/fat/inode.c).

The table of clusters is all there is, so it is read itself: an entry of 0 is a free cluster. It is believed when the volume was
unmounted cleanly, all copies of the table agree, and the count of free clusters that FAT32 notes is right.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .doubts import damaged, dirty, not_read, read_or_keep
from .reading import FreeRuns, NotThisError, Reading
from .volume import Volume

_SECTOR_SIZES = (512, 1024, 2048, 4096)
_PIECE = 1 << 20  # bytes of the table that are looked at together
_FAT12_BELOW, _FAT16_BELOW = 4085, 65525  # clusters
_MARGIN = 16  # systems differ by a few clusters about where FAT12 and FAT16 end
_DIRTY = 0x01  # Linux: FAT_STATE_DIRTY, in a byte that the specification reserves
_FREE_RUNS = {
    # Cells are consumed whole, so that a match never begins inside of one. The upper four bits of a FAT32 entry are reserved.
    2: re.compile(rb"(?s:(?P<used>(?:(?!\0\0)..)+)|(?P<free>(?:\0\0)+))"),
    4: re.compile(rb"(?s:(?P<used>(?:(?!\0\0\0[\0\x10\x20\x30\x40\x50\x60\x70\x80\x90\xa0\xb0\xc0\xd0\xe0\xf0])....)+)"
                  rb"|(?P<free>(?:\0\0\0[\0\x10\x20\x30\x40\x50\x60\x70\x80\x90\xa0\xb0\xc0\xd0\xe0\xf0])+))"),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where things are, in bytes, and how many."""

    bits: int
    sector_size: int
    cluster_size: int
    tables: int
    table_at: int
    table_length: int
    data_at: int
    clusters: int
    size: int


def read_fat(volume: Volume) -> Reading:
    """Free clusters.

    Raises:
        NotThisError: it is no FAT volume.
        OSError: it cannot be read.
    """
    boot = volume.read(0, 512) if volume.size >= 512 else b""
    layout = _layout(boot)
    label = boot[71:82] if layout.bits == 32 else boot[43:54]
    known = Reading(
        type=f"fat{layout.bits}",
        label=label.decode("ascii", "replace").strip(" \0"),
        size=min(layout.size, volume.size),
        block_size=layout.cluster_size,
        state="",
        free=None,
    )
    return read_or_keep(known, lambda: _free(volume, boot, layout))


def _layout(boot: bytes) -> _Layout:
    """Read the boot sector. What makes no sense in it makes it something else than FAT: its signature is on any boot sector."""
    if len(boot) < 512 or boot[510:] != b"\x55\xaa" or not (boot[0] == 0xE9 or (boot[0] == 0xEB and boot[2] == 0x90)):
        raise NotThisError
    sector_size, per_cluster, reserved, tables = struct.unpack_from("<HBHB", boot, 11)
    root_entries, sectors16, media, length16 = struct.unpack_from("<HHBH", boot, 17)
    (sectors32,) = struct.unpack_from("<I", boot, 32)
    (length32,) = struct.unpack_from("<I", boot, 36)
    is_fat32 = length16 == 0  # how every system tells: a FAT12 or FAT16 without a table there could not be read
    sectors = sectors16 or sectors32
    length = length16 or length32
    root_sectors = -(-root_entries * 32 // sector_size) if sector_size else 0
    if (
        sector_size not in _SECTOR_SIZES
        or per_cluster == 0
        or per_cluster & (per_cluster - 1)
        or reserved == 0
        or not 1 <= tables <= 4
        or not (media == 0xF0 or media >= 0xF8)
        or length == 0
        or (root_entries == 0) != is_fat32
    ):
        raise NotThisError
    data_at = reserved + tables * length + root_sectors
    clusters = (sectors - data_at) // per_cluster
    if clusters < 1:
        raise NotThisError
    return _Layout(
        bits=32 if is_fat32 else 12 if clusters < _FAT12_BELOW else 16,
        sector_size=sector_size,
        cluster_size=per_cluster * sector_size,
        tables=tables,
        table_at=reserved * sector_size,
        table_length=length * sector_size,
        data_at=data_at * sector_size,
        clusters=clusters,
        size=sectors * sector_size,
    )


def _free(volume: Volume, boot: bytes, layout: _Layout) -> tuple[int, FreeRuns]:
    if layout.size > volume.size:
        raise damaged("larger than what it lies on")
    if layout.bits != 32 and abs(layout.clusters - _FAT12_BELOW) <= _MARGIN:
        raise not_read("so many clusters that it may be FAT12 or FAT16")
    if layout.bits == 16 and layout.clusters >= _FAT16_BELOW:
        raise damaged("more clusters than FAT16 has")
    entries = layout.clusters + 2
    used_length = -(-entries * layout.bits // 8)
    if used_length > layout.table_length:
        raise damaged("its table is too short for its clusters")
    if boot[65 if layout.bits == 32 else 37] & _DIRTY:
        raise dirty("is mounted, or was not unmounted")
    table_at = _active_table(volume, boot, layout, used_length)
    _check_clean(volume, layout, table_at)
    runs = FreeRuns()
    if layout.bits == 12:
        cells = _free_12(volume, table_at, used_length)
    else:
        cells = _free_cells(volume, table_at, used_length, layout.bits // 8)
    for cell, count in cells:
        begin, end = max(cell, 2), min(cell + count, entries)
        if begin < end:
            runs.add(layout.data_at + (begin - 2) * layout.cluster_size, (end - begin) * layout.cluster_size)
    if layout.bits == 32:
        _check_root(volume, boot, layout, table_at)
        _check_noted_count(volume, boot, layout, runs.total // layout.cluster_size)
    return runs.total, runs


def _active_table(volume: Volume, boot: bytes, layout: _Layout, length: int) -> int:
    """Where the table in use is. Copies that are kept alike have to be alike."""
    flags: int = struct.unpack_from("<H", boot, 40)[0]
    if layout.bits == 32 and flags & 0x80:
        if flags & 0x0F >= layout.tables:
            raise damaged("uses a table that it does not have")
        return layout.table_at + (flags & 0x0F) * layout.table_length
    for offset in range(0, length, _PIECE):
        size = min(_PIECE, length - offset)
        pieces = {volume.read(layout.table_at + table * layout.table_length + offset, size) for table in range(layout.tables)}
        if len(pieces) > 1:
            raise damaged("the copies of its table differ")
    return layout.table_at


def _check_clean(volume: Volume, layout: _Layout, table_at: int) -> None:
    """Entry 0 repeats the media byte; entry 1 has two bits that are cleared while something is wrong (FAT12 has none)."""
    (media,) = volume.read(21, 1)
    head = volume.read(table_at, 8)
    if head[0] != media:
        raise damaged("its table does not begin with its media byte")
    if layout.bits == 16:
        (entry,) = struct.unpack_from("<H", head, 2)
        clean, without_errors = entry & 0x8000, entry & 0x4000
    elif layout.bits == 32:
        (entry,) = struct.unpack_from("<I", head, 4)
        clean, without_errors = entry & 0x08000000, entry & 0x04000000
    else:
        return
    if not clean:
        raise dirty("is mounted, or was not unmounted")
    if not without_errors:
        raise damaged("errors were met when it was last used")


def _free_cells(volume: Volume, table_at: int, length: int, cell_size: int) -> Iterator[tuple[int, int]]:
    for offset in range(0, length, _PIECE):
        piece = volume.read(table_at + offset, min(_PIECE, length - offset))
        for match in _FREE_RUNS[cell_size].finditer(piece):
            if match["free"] is not None:
                yield (offset + match.start()) // cell_size, (match.end() - match.start()) // cell_size


def _free_12(volume: Volume, table_at: int, length: int) -> Iterator[tuple[int, int]]:
    table = volume.read(table_at, length)
    for cell in range(length * 8 // 12):
        at = cell * 3 // 2
        pair = int.from_bytes(table[at : at + 2], "little")
        if (pair >> 4 if cell & 1 else pair & 0xFFF) == 0:
            yield cell, 1


def _check_root(volume: Volume, boot: bytes, layout: _Layout, table_at: int) -> None:
    """The root directory of FAT32 is a chain of clusters like any other: it ends, and none of it is free."""
    (cluster,) = struct.unpack_from("<I", boot, 44)
    seen = set()
    while cluster < 0x0FFFFFF7:
        if not 2 <= cluster < layout.clusters + 2 or cluster in seen:
            raise damaged("its root directory is no chain of clusters in use")
        seen.add(cluster)
        cluster = struct.unpack("<I", volume.read(table_at + cluster * 4, 4))[0] & 0x0FFFFFFF
    if cluster == 0x0FFFFFF7:
        raise damaged("its root directory lies on a bad cluster")


def _check_noted_count(volume: Volume, boot: bytes, layout: _Layout, free: int) -> None:
    """Compare with the count in the "FSInfo" sector, where that has one."""
    (sector,) = struct.unpack_from("<H", boot, 48)
    if sector in (0, 0xFFFF) or (sector + 1) * layout.sector_size > layout.table_at:
        return
    info = volume.read(sector * layout.sector_size, 512)
    if info[:4] != b"RRaA" or info[484:488] != b"rrAa":
        return
    (noted,) = struct.unpack_from("<I", info, 488)
    if noted not in (free, 0xFFFFFFFF):
        raise damaged(f"notes {noted} free clusters and has {free}")
