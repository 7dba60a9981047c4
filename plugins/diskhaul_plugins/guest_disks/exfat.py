"""exFAT (Microsoft, "exFAT file system specification", 2019).

The allocation bitmap is found through the root directory. It is believed when the boot region's checksum is right, the volume
was unmounted cleanly, and what is needed to find the bitmap is in use by it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .bitmaps import clear_runs, touch
from .doubts import damaged, dirty, not_read, read_or_keep
from .reading import FreeRuns, NotThisError, Reading
from .volume import Volume

_BOOT_SECTORS = 12
_ROOT_LIMIT = 256 << 20  # bytes: the longest directory that the specification allows
_ENTRY_SIZE = 32
_BITMAP, _UPCASE, _LABEL = 0x81, 0x82, 0x83  # types of directory entries, in use


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """The boot sector, in bytes where nothing else is said."""

    sector_size: int
    cluster_size: int
    size: int
    table_at: int
    table_length: int
    heap_at: int
    clusters: int
    root: int
    flags: int
    tables: int


def read_exfat(volume: Volume) -> Reading:
    """Free clusters.

    Raises:
        NotThisError: it is no exFAT volume.
        OSError: it cannot be read.
    """
    boot = volume.read(0, 512) if volume.size >= 512 else b""
    layout = _layout(boot)
    known = Reading(
        type="exfat",
        size=min(layout.size, volume.size),
        block_size=layout.cluster_size,
        state="",
        free=None,
    )
    reading = read_or_keep(known, lambda: _free(volume, layout))
    return reading if reading.kept else replace(reading, label=_label(volume, layout))


def _layout(boot: bytes) -> _Layout:
    if len(boot) < 512 or boot[3:11] != b"EXFAT   " or boot[510:] != b"\x55\xaa" or boot[11:64].strip(b"\0"):
        raise NotThisError
    sectors, table_at, table_length, heap_at, clusters, root = struct.unpack_from("<QIIIII", boot, 72)
    flags, sector_shift, cluster_shift, tables = struct.unpack_from("<HBBB", boot, 106)
    if not 9 <= sector_shift <= 12 or cluster_shift > 25 - sector_shift:
        raise NotThisError
    return _Layout(
        sector_size=1 << sector_shift,
        cluster_size=1 << sector_shift + cluster_shift,
        size=sectors << sector_shift,
        table_at=table_at << sector_shift,
        table_length=table_length << sector_shift,
        heap_at=heap_at << sector_shift,
        clusters=clusters,
        root=root,
        flags=flags,
        tables=tables,
    )


def _check_boot_region(volume: Volume, layout: _Layout) -> None:
    if layout.size > volume.size:
        raise damaged("larger than what it lies on")
    region = volume.read(0, _BOOT_SECTORS * layout.sector_size)
    # Section 3.4: rotate right and add, over eleven sectors without the flags and the percentage that change while it is in use.
    checksum = 0
    for number, byte in enumerate(region[: (_BOOT_SECTORS - 1) * layout.sector_size]):
        if number not in (106, 107, 112):
            checksum = ((checksum << 31 | checksum >> 1) + byte) & 0xFFFFFFFF
    if region[-layout.sector_size :] != struct.pack("<I", checksum) * (layout.sector_size // 4):
        raise damaged("the checksum of its boot sectors is wrong")
    if layout.tables != 1:
        raise not_read("two tables, as TexFAT has")
    if layout.flags & 0x02:
        raise dirty("is mounted, or was not unmounted")
    if layout.flags & 0x04:
        raise damaged("the medium failed when it was last used")
    if layout.flags & 0x01:
        raise damaged("uses a table that it does not have")
    if (layout.clusters + 2) * 4 > layout.table_length or layout.table_at + layout.table_length > layout.heap_at:
        raise damaged("its table is too short for its clusters")
    if layout.heap_at + layout.clusters * layout.cluster_size > layout.size:
        raise damaged("has more clusters than it has room for")


def _chain(volume: Volume, layout: _Layout, cluster: int, limit: int) -> Iterator[int]:
    """The clusters from `cluster` on, at most `limit`."""
    for _ in range(limit):
        if not 2 <= cluster < layout.clusters + 2:
            raise damaged("a chain of clusters leads nowhere")
        yield cluster
        (cluster,) = struct.unpack("<I", volume.read(layout.table_at + cluster * 4, 4))
        if cluster == 0xFFFFFFFF:
            return
    raise damaged("a chain of clusters is longer than it can be")


def _cluster(volume: Volume, layout: _Layout, cluster: int) -> bytes:
    return volume.read(layout.heap_at + (cluster - 2) * layout.cluster_size, layout.cluster_size)


def _root_entries(volume: Volume, layout: _Layout) -> Iterator[bytes]:
    """Entries of the root directory that are in use, without those of files."""
    for cluster in _chain(volume, layout, layout.root, max(1, _ROOT_LIMIT // layout.cluster_size)):
        content = _cluster(volume, layout, cluster)
        for at in range(0, len(content), _ENTRY_SIZE):
            if content[at] == 0:
                return
            if content[at] in (_BITMAP, _UPCASE, _LABEL):
                yield content[at : at + _ENTRY_SIZE]


def _label(volume: Volume, layout: _Layout) -> str:
    labels = (entry for entry in _root_entries(volume, layout) if entry[0] == _LABEL)
    return next((entry[2 : 2 + 2 * min(entry[1], 11)].decode("utf-16-le", "replace") for entry in labels), "")


def _free(volume: Volume, layout: _Layout) -> tuple[int, FreeRuns]:
    _check_boot_region(volume, layout)
    entries = list(_root_entries(volume, layout))
    bitmaps = [entry for entry in entries if entry[0] == _BITMAP]
    tables = [entry for entry in entries if entry[0] == _UPCASE]
    if len(bitmaps) != 1 or bitmaps[0][1] & 1 or len(tables) != 1:
        raise damaged("its root directory does not have one allocation bitmap and one up-case table")
    first, length = struct.unpack_from("<IQ", bitmaps[0], 20)
    if length != -(-layout.clusters // 8):
        raise damaged("the length of its allocation bitmap is not that of its clusters")
    chain = list(_chain(volume, layout, first, -(-length // layout.cluster_size)))
    if len(chain) * layout.cluster_size < length:
        raise damaged("its allocation bitmap ends too early")
    runs = FreeRuns()
    unit, first = layout.cluster_size, 0
    for cluster in chain:
        count = min(unit * 8, layout.clusters - first)
        for bit, bits in clear_runs(_cluster(volume, layout, cluster), count):
            runs.add(layout.heap_at + (first + bit) * unit, bits * unit)
        first += count

    upcase_at, upcase_length = struct.unpack_from("<IQ", tables[0], 20)
    upcase = _chain(volume, layout, upcase_at, max(1, -(-upcase_length // unit)))
    root = _chain(volume, layout, layout.root, max(1, _ROOT_LIMIT // unit))
    needed = [(layout.heap_at + (cluster - 2) * unit, unit) for cluster in (*chain, *upcase, *root)]
    if touch(runs, needed):
        raise damaged("its allocation bitmap calls free what it needs itself")
    return runs.total, runs
