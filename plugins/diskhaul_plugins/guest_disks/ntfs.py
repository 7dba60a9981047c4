"""NTFS (layout as documented by the Linux-NTFS project; Linux: fs/ntfs3/ntfs.h).

The bitmap of clusters is the file ``$Bitmap``. It is believed when the volume is not marked dirty, its log was closed, no
hibernated Windows lies on it, it has no shadow copies, and what is needed to find all that is in use by the bitmap.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .bitmaps import clear_runs, touch
from .doubts import DoubtError, damaged, dirty, not_read, read_or_keep
from .reading import FreeRuns, NotThisError, Reading
from .volume import Volume

_MFT, _LOG, _VOLUME, _ROOT, _BITMAP = 0, 2, 3, 5, 6  # numbers of files
_NAME_ATTRIBUTE, _LIST_ATTRIBUTE, _VOLUME_NAME, _VOLUME_INFORMATION = 0x30, 0x20, 0x60, 0x70
_DATA, _INDEX_ROOT, _INDEX_ALLOCATION = 0x80, 0x90, 0xA0
_END = 0xFFFFFFFF
_FIXUP_UNIT = 512  # bytes between the marks that show a torn write, whatever the sector's size
_MODIFIED_BY_CHKDSK = 0x8000
_NO_CLIENT, _LOG_IS_CLEAN = 0xFFFF, 0x0002
_SHADOWS_AT, _SHADOWS_SIZE, _SHADOW_CATALOG_AT = 0x1E00, 512, 48
_SHADOWS = bytes.fromhex("6b87083876c1484eb7ae04046e6cc752")  # {3808876b-c176-4e48-b7ae-04046e6cc752}, as libvshadow documents it
_PIECE = 1 << 20  # bytes of the bitmap that are looked at together
_LARGEST_INDEX = 64 << 20  # bytes of a root directory that are looked through

_Runs = list[tuple[int, int]]
"""Where a file lies: number of the first cluster (-1 for a hole) and how many, in the file's order."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """The boot sector, in bytes where nothing else is said."""

    sector_size: int
    cluster_size: int
    sectors: int
    mft: int
    mft_copy: int
    record_size: int
    index_size: int

    @property
    def clusters(self) -> int:
        return self.sectors * self.sector_size // self.cluster_size


@dataclass(frozen=True, slots=True)
class _Attribute:
    """One attribute of a file: its content where that lies in the record, else where it lies.

    Attributes:
        size: bytes of content.
        initialized: bytes of it that were ever written; what follows reads as zeros.
    """

    type: int
    name: str
    content: bytes
    runs: _Runs | None
    size: int
    initialized: int


def read_ntfs(volume: Volume) -> Reading:
    """Free clusters.

    Raises:
        NotThisError: it is no NTFS volume.
        OSError: it cannot be read.
    """
    layout = _layout(volume.read(0, 512) if volume.size >= 512 else b"")
    known = Reading(
        type="ntfs",
        # The copy of the boot sector behind the last sector belongs to it.
        size=min((layout.sectors + 1) * layout.sector_size, volume.size),
        block_size=layout.cluster_size,
        state="",
        free=None,
    )
    found = _Ntfs(volume, layout)
    reading = read_or_keep(known, found.free)
    return replace(reading, label=found.label)


def _layout(boot: bytes) -> _Layout:
    if len(boot) < 512 or boot[3:11] != b"NTFS    " or boot[510:] != b"\x55\xaa":
        raise NotThisError
    sector_size, per_cluster = struct.unpack_from("<HB", boot, 11)
    sectors, mft, mft_copy, per_record, per_index = struct.unpack_from("<QQQbxxxb", boot, 40)
    if per_cluster > 0x80:  # since clusters of more than 64 KiB: minus the logarithm
        per_cluster = 1 << min(256 - per_cluster, 31)
    if sector_size not in (256, 512, 1024, 2048, 4096) or per_cluster == 0 or per_cluster & (per_cluster - 1):
        raise NotThisError
    cluster_size = sector_size * per_cluster
    record_size, index_size = (
        1 << -count if -31 <= count < 0 else count * cluster_size if count > 0 else 0 for count in (per_record, per_index)
    )
    if not 256 <= record_size <= 64 << 10 or not 256 <= index_size <= 2 << 20 or cluster_size > 2 << 20:
        raise NotThisError
    return _Layout(sector_size, cluster_size, sectors, mft, mft_copy, record_size, index_size)


class _Ntfs:
    """An NTFS volume that is read."""

    def __init__(self, volume: Volume, layout: _Layout) -> None:
        self._volume, self._layout = volume, layout
        self._mft: _Runs = []
        self.label = ""

    def free(self) -> tuple[int, FreeRuns]:
        """Free clusters, if they can be believed."""
        layout = self._layout
        if layout.sectors * layout.sector_size > self._volume.size:
            raise damaged("larger than what it lies on")
        record = self._volume.read(layout.mft * layout.cluster_size, layout.record_size)
        self._mft = self._data(self._attributes(record)).runs or []
        if not self._mft or self._mft[0][0] != layout.mft:
            raise damaged("its table of files is not where the boot sector says")
        self._check_volume_flags()
        log = self._check_log()
        self._check_not_hibernated()
        self._check_no_shadow_copies()
        attribute = self._data(self._file(_BITMAP))
        if attribute.initialized < -(-layout.clusters // 8):
            raise damaged("its bitmap ends too early")
        runs = FreeRuns()
        for first in range(0, layout.clusters, _PIECE * 8):
            count = min(_PIECE * 8, layout.clusters - first)
            for cluster, length in clear_runs(self._content(attribute, -(-count // 8), first // 8), count):
                runs.add((first + cluster) * layout.cluster_size, length * layout.cluster_size)
        needed = [(0, 1), (layout.mft_copy, 1), *self._mft, *log, *(attribute.runs or [])]
        in_bytes = [(cluster * layout.cluster_size, count * layout.cluster_size) for cluster, count in needed if cluster >= 0]
        if touch(runs, in_bytes):
            raise damaged("its bitmap calls free what it needs itself")
        return runs.total, runs

    # --- what has to be in order ---

    def _check_volume_flags(self) -> None:
        attributes = self._file(_VOLUME)
        self.label = next((a.content.decode("utf-16-le", "replace") for a in attributes if a.type == _VOLUME_NAME), "")
        information = next((a.content for a in attributes if a.type == _VOLUME_INFORMATION), b"")
        if len(information) < 12:
            raise damaged("has no volume information")
        major, minor, flags = struct.unpack_from("<BBH", information, 8)
        if (major, minor) not in ((1, 2), (3, 0), (3, 1)):
            raise not_read(f"version {major}.{minor}")
        if flags & ~_MODIFIED_BY_CHKDSK:
            raise dirty("is marked dirty, or something is left to be done on it")

    def _check_log(self) -> _Runs:
        """See that the log was closed, and say where it lies."""
        attribute = self._data(self._file(_LOG))
        head = self._content(attribute, min(attribute.size, 64 << 10))
        runs = attribute.runs or []
        if not runs or len(head) < 8192:
            raise damaged("its log is too short")
        if not head.strip(b"\xff"):  # emptied, by mkntfs or ntfs-3g
            whole = all(not piece.strip(b"\xff") for piece in self._pieces(attribute))
            if not whole:
                raise dirty("its log has no beginning")
            return runs
        pages = [page for page in (_restart_page(head, 0), _restart_page(head, None)) if page is not None]
        if not pages:
            raise dirty("its log cannot be read")
        newest = max(pages)
        if not newest[1]:
            raise dirty("its log is open: it is mounted, or was not unmounted")
        if any(sequence == newest[0] and not closed for sequence, closed in pages):
            raise dirty("its log is both open and closed")
        return runs

    def _pieces(self, attribute: _Attribute) -> Iterator[bytes]:
        cluster_size = self._layout.cluster_size
        for cluster, count in attribute.runs or []:
            at, left = cluster * cluster_size, count * cluster_size
            if cluster < 0:
                raise damaged("its log has a hole")
            while left:
                size = min(left, 1 << 20)
                yield self._volume.read(at, size)
                at, left = at + size, left - size

    def _check_not_hibernated(self) -> None:
        """Windows writes "hibr" at the beginning of ``hiberfil.sys``; "wake" once it has resumed, zeros where it never slept."""
        number = self._find_in_root("hiberfil.sys")
        if number is None:
            return
        attribute = self._data(self._file(number))
        head = self._content(attribute, min(attribute.size, 4096))
        if head[:4].lower() not in (b"wake", b"") and head.strip(b"\0"):
            raise DoubtError("holds a hibernated Windows", state="hibernated")

    def _check_no_shadow_copies(self) -> None:
        """See that no state of the volume is kept: what a file that was deleted since had is free, and part of that state.

        Only what is overwritten is copied for it; the rest is read where it lies.
        """
        head = self._volume.read(_SHADOWS_AT, _SHADOWS_SIZE)
        if head.startswith(_SHADOWS) and any(head[_SHADOW_CATALOG_AT : _SHADOW_CATALOG_AT + 8]):
            raise DoubtError("has shadow copies, which go on using what was deleted since", state="clean")

    def _find_in_root(self, name: str) -> int | None:
        """The number of a file in the root directory. All entries are looked at, in whatever order they are."""
        attributes = self._file(_ROOT)
        root = next((a for a in attributes if a.type == _INDEX_ROOT and a.name == "$I30"), None)
        if root is None or root.runs is not None or len(root.content) < 32:
            raise damaged("its root directory cannot be read")
        nodes = [root.content[16:]]
        allocation = next((a for a in attributes if a.type == _INDEX_ALLOCATION and a.name == "$I30"), None)
        if allocation is not None:
            if allocation.size > _LARGEST_INDEX:
                raise not_read("a root directory of this size")
            content = self._content(allocation, allocation.size)
            for at in range(0, len(content) - self._layout.index_size + 1, self._layout.index_size):
                block = content[at : at + self._layout.index_size]
                if block[:4] == b"INDX":  # others were never used
                    nodes.append(_without_fixup(block)[24:])
        for node in nodes:
            for number, found in _index_entries(node):
                if found.lower() == name:
                    return number
        return None

    # --- files ---

    def _file(self, number: int) -> list[_Attribute]:
        return self._attributes(self._read_runs(self._mft, number * self._layout.record_size, self._layout.record_size))

    def _attributes(self, record: bytes) -> list[_Attribute]:
        if record[:4] != b"FILE":
            raise damaged("a record of its table of files has no signature")
        record = _without_fixup(record)
        at, flags = struct.unpack_from("<HH", record, 20)
        if not flags & 1:
            raise damaged("a file that it needs is not in use")
        found: list[_Attribute] = []
        while at + 8 <= len(record):
            kind, length = struct.unpack_from("<II", record, at)
            if kind == _END:
                return found
            if length < 24 or length % 8 or at + length > len(record):
                break
            found.append(_attribute(record[at : at + length]))
            at += length
        raise damaged("a record of its table of files has no end")

    def _data(self, attributes: list[_Attribute]) -> _Attribute:
        if any(attribute.type == _LIST_ATTRIBUTE for attribute in attributes):
            raise not_read("a system file in so many pieces that they do not fit in one record")
        data = [attribute for attribute in attributes if attribute.type == _DATA and not attribute.name]
        if len(data) != 1:
            raise damaged("a system file has no content")
        return data[0]

    def _content(self, attribute: _Attribute, length: int, offset: int = 0) -> bytes:
        """`length` bytes of an attribute from `offset` on."""
        if offset + length > attribute.size:
            raise damaged("a system file is too short")
        if attribute.runs is None:
            return attribute.content[offset : offset + length]
        written = max(0, min(length, attribute.initialized - offset))
        return self._read_runs(attribute.runs, offset, written).ljust(length, b"\0")

    def _read_runs(self, runs: _Runs, offset: int, length: int) -> bytes:
        cluster_size = self._layout.cluster_size
        parts = []
        begin = 0
        for cluster, count in runs:
            end = begin + count * cluster_size
            if length and begin <= offset < end:
                part = min(length, end - offset)
                if cluster < 0:
                    raise damaged("a system file has a hole")
                parts.append(self._volume.read(cluster * cluster_size + offset - begin, part))
                offset, length = offset + part, length - part
            begin = end
        if length:
            raise damaged("a system file is too short")
        return b"".join(parts)


def _without_fixup(block: bytes) -> bytes:
    """Put back the last two bytes of each 512, which on the disk are a number that shows whether all of it was written."""
    at, count = struct.unpack_from("<HH", block, 4)
    if count != len(block) // _FIXUP_UNIT + 1 or at + 2 * count > _FIXUP_UNIT - 2 or at % 2:
        raise damaged("a block of metadata has no valid update sequence")
    whole = bytearray(block)
    for number in range(1, count):
        end = number * _FIXUP_UNIT
        if block[end - 2 : end] != block[at : at + 2]:
            raise damaged("a block of metadata was not written as a whole")
        whole[end - 2 : end] = block[at + 2 * number : at + 2 * number + 2]
    return bytes(whole)


def _attribute(raw: bytes) -> _Attribute:
    kind, _, elsewhere, name_length, name_at, flags = struct.unpack_from("<IIBBHH", raw)
    name = raw[name_at : name_at + 2 * name_length].decode("utf-16-le", "replace")
    if not elsewhere:
        length, at = struct.unpack_from("<IH", raw, 16)
        if at + length > len(raw):
            raise damaged("an attribute ends behind its record")
        return _Attribute(kind, name, raw[at : at + length], None, length, length)
    if len(raw) < 64 or (flags and kind in (_DATA, _INDEX_ALLOCATION) and not name):
        raise damaged("a system file is compressed or encrypted")
    (first,) = struct.unpack_from("<Q", raw, 16)
    (runs_at,) = struct.unpack_from("<H", raw, 32)
    size, initialized = struct.unpack_from("<QQ", raw, 48)
    return _Attribute(kind, name, b"", _runs(raw[runs_at:]) if first == 0 else [], size, min(size, initialized))


def _runs(packed: bytes) -> _Runs:
    """Unpack where a file lies: lengths and differences of places, each with its number of bytes in front."""
    runs: _Runs = []
    at, cluster = 0, 0
    while at < len(packed) and packed[at]:
        length_size, place_size = packed[at] & 15, packed[at] >> 4
        body = packed[at + 1 : at + 1 + length_size + place_size]
        if not 0 < length_size <= 8 or place_size > 8 or len(body) < length_size + place_size:
            break
        count = int.from_bytes(body[:length_size], "little")
        cluster += int.from_bytes(body[length_size:], "little", signed=True)
        if count == 0 or cluster < 0:
            break
        runs.append((cluster if place_size else -1, count))
        at += 1 + length_size + place_size
    else:
        if at < len(packed):
            return runs
    raise damaged("the places of a file make no sense")


def _restart_page(head: bytes, at: int | None) -> tuple[int, bool] | None:
    """Read one of the two pages that the log begins with: its sequence number, and whether the log was closed.

    Args:
        at: where it is; None for the second one, which follows the first, whose size it is told by.
    """
    if at is None:
        sizes = [size for size in (struct.unpack_from("<I", head, 16)[0], 4096) if size in (4096, 8192, 16384, 32768)]
        at = next((size for size in sizes if head[size : size + 4] == b"RSTR"), -1)
    if at < 0 or head[at : at + 4] != b"RSTR":
        return None
    page_size, _, area_at = struct.unpack_from("<IIH", head, at + 16)
    if page_size not in (4096, 8192, 16384, 32768) or at + page_size > len(head) or not 30 <= area_at <= _FIXUP_UNIT - 32:
        return None
    page = _without_fixup(head[at : at + page_size])
    sequence, _, _, in_use, flags = struct.unpack_from("<QHHHH", page, area_at)
    return sequence, in_use == _NO_CLIENT or bool(flags & _LOG_IS_CLEAN)


def _index_entries(node: bytes) -> Iterator[tuple[int, str]]:
    """Numbers and names of files in one node of a directory; `node` begins with its header."""
    at, end = struct.unpack_from("<II", node)
    if end > len(node):
        raise damaged("a node of its root directory ends behind its block")
    while at + 16 <= end:
        reference, length, key_length, flags = struct.unpack_from("<QHHH", node, at)
        if flags & 2:  # the last one has no key
            return
        if length < 16 or length % 8 or at + length > end:
            break
        if key_length >= 66:
            characters = node[at + 16 + 64]
            yield reference & 0xFFFFFFFFFFFF, node[at + 82 : at + 82 + 2 * characters].decode("utf-16-le", "replace")
        at += length
    raise damaged("a node of its root directory has no end")
