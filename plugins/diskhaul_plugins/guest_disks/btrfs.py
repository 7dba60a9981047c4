"""btrfs on one device (btrfs on-disk format; Linux: include/uapi/linux/btrfs_tree.h).

The filesystem has addresses of its own; chunks map them to the device, once ("single") or twice ("DUP"). What the extent tree
does not list is free, in each copy; so is what no chunk maps. Nothing on it is overwritten in place, so all that its superblock
leads to is current, mounted or not, unless there is a log of recent fsyncs. It is believed when all checksums on the way are
right and the extents add up to what the superblock notes.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import diskhaul_native as native

from .doubts import damaged, dirty, not_read, read_or_keep
from .reading import FreeRuns, NotThisError, Reading
from .volume import Volume

_SUPERBLOCK_AT = 64 << 10
_SUPERBLOCK_SIZE = 4096
_COPIES_AT = (64 << 20, 256 << 30)
_COPY_SPACE = 64 << 10
"""Around each copy of the superblock nothing is allocated (BTRFS_STRIPE_LEN)."""
_RESERVED = 1 << 20
"""Nothing is allocated at the beginning: boot loaders live there (BTRFS_DEVICE_RANGE_RESERVED)."""

_ERROR_FLAG = 1 << 2
_WRITTEN, _RELOCATED = 1 << 0, 1 << 1  # flags that may be set on a superblock of which nothing more is to be said
# Mixed backrefs, default subvolume, mixed groups, lzo, zstd, big metadata, extended irefs, skinny metadata, no holes,
# metadata UUID, simple quotas.
_KNOWN_INCOMPAT = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | 0x400 | 0x10000
_METADATA_UUID = 0x400
_KNOWN_RO_COMPAT = 0x1 | 0x2 | 0x4 | 0x8  # free space tree, and that it is valid; verity; block group tree
_SINGLE, _DUP = 0, 1 << 5
_PROFILES = 0x7F8  # RAID0, RAID1, DUP, RAID10, RAID5, RAID6, RAID1C3, RAID1C4
_EXTENT_TREE, _CHUNK_TREE, _ROOT_TREE = 2, 3, 1
_CHUNK_OBJECT = 256
_ROOT_ITEM, _EXTENT_ITEM, _METADATA_ITEM, _CHUNK_ITEM = 132, 168, 169, 228

_HEADER = struct.Struct("<32s16sQQ16sQQIB")
_KEY = struct.Struct("<QBQ")
_ITEM = struct.Struct("<QBQII")
_POINTER = struct.Struct("<QBQQQ")
_CHUNK = struct.Struct("<QQQQIIIHH")
_STRIPE = struct.Struct("<QQ16s")
_LARGEST_LEVEL = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Superblock:
    size: int
    used: int
    generation: int
    chunk_generation: int
    sector_size: int
    node_size: int
    checksum_type: int
    root: int
    root_level: int
    chunk_root: int
    chunk_level: int
    uuid: bytes
    device_size: int
    device: int
    label: str


@dataclass(frozen=True, slots=True, order=True)
class _Chunk:
    """`length` bytes of addresses from `begin` on, and where each copy lies on the device."""

    begin: int
    length: int
    copies: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.begin + self.length


def read_btrfs(volume: Volume) -> Reading:
    """What is free in chunks, and what no chunk uses.

    Raises:
        NotThisError: it is no btrfs.
        OSError: it cannot be read.
    """
    end = _SUPERBLOCK_AT + _SUPERBLOCK_SIZE
    raw = volume.read(_SUPERBLOCK_AT, _SUPERBLOCK_SIZE) if volume.size >= end else b""
    if raw[64:72] != b"_BHRfS_M":
        raise NotThisError
    superblock = _superblock(raw)
    known = Reading(
        type="btrfs",
        label=superblock.label,
        size=min(superblock.device_size, volume.size),
        block_size=superblock.sector_size,
        state="",
        free=None,
    )

    def find() -> tuple[int, FreeRuns]:
        _check_superblock(volume, superblock, raw)
        return _Btrfs(volume, superblock).free(raw)

    return read_or_keep(known, find)


def prepare() -> None:
    """Have the hash functions loaded."""
    hashlib.sha256(b"").digest()


def _superblock(raw: bytes) -> _Superblock:
    generation, root, chunk_root = struct.unpack_from("<QQQ", raw, 72)
    size, used = struct.unpack_from("<QQ", raw, 112)
    sector_size, node_size = struct.unpack_from("<II", raw, 144)
    (chunk_generation,) = struct.unpack_from("<Q", raw, 164)
    (incompat,) = struct.unpack_from("<Q", raw, 188)
    checksum_type, root_level, chunk_level = struct.unpack_from("<HBB", raw, 196)
    device, device_size = struct.unpack_from("<QQ", raw, 201)
    if sector_size not in (4096, 8192, 16384, 32768, 65536) or node_size not in (4096, 8192, 16384, 32768, 65536):
        raise NotThisError
    return _Superblock(
        size=size,
        used=used,
        generation=generation,
        chunk_generation=chunk_generation,
        sector_size=sector_size,
        node_size=node_size,
        checksum_type=checksum_type,
        root=root,
        root_level=root_level,
        chunk_root=chunk_root,
        chunk_level=chunk_level,
        uuid=raw[571:587] if incompat & _METADATA_UUID else raw[32:48],
        device_size=device_size,
        device=device,
        label=raw[299:555].partition(b"\0")[0].decode("utf-8", "replace"),
    )


def _check_superblock(volume: Volume, superblock: _Superblock, raw: bytes) -> None:
    if superblock.checksum_type not in _CHECKSUMS:
        raise not_read("checksums of a kind that is not known here")
    if not _checksum_is_right(raw, superblock.checksum_type):
        raise damaged("the checksum of its superblock is wrong")
    place, flags = struct.unpack_from("<QQ", raw, 48)
    (log_root,) = struct.unpack_from("<Q", raw, 96)
    (devices,) = struct.unpack_from("<Q", raw, 136)
    _, ro_compat, incompat = struct.unpack_from("<QQQ", raw, 172)
    if place != _SUPERBLOCK_AT:
        raise damaged("its superblock belongs elsewhere")
    if flags & _ERROR_FLAG:
        raise damaged("errors were met when it was last used")
    if flags & ~(_WRITTEN | _RELOCATED):
        raise not_read("a seed, an image of metadata, or a filesystem that is being changed")
    if incompat & ~_KNOWN_INCOMPAT or ro_compat & ~_KNOWN_RO_COMPAT:
        raise not_read("a feature like RAID5 or zones, or of newer versions")
    if devices != 1:
        raise not_read(f"{devices} devices")
    if log_root:
        raise dirty("has a log of recent fsyncs: it is mounted, or was not unmounted")
    if superblock.device_size > volume.size or superblock.device_size != superblock.size:
        raise damaged("is not as large as it says")


def _blake2b(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=32).digest()


_CHECKSUMS = {
    0: lambda content: native.crc32c(content).to_bytes(4, "little"),
    2: lambda content: hashlib.sha256(content).digest(),
    3: _blake2b,
}


def _checksum_is_right(block: bytes, checksum_type: int) -> bool:
    expected = _CHECKSUMS[checksum_type](block[32:])
    return block[: len(expected)] == expected


class _Btrfs:
    """A btrfs that is read."""

    def __init__(self, volume: Volume, superblock: _Superblock) -> None:
        self._volume, self._superblock = volume, superblock
        self._chunks: list[_Chunk] = []
        self._begins: list[int] = []

    def free(self, raw: bytes) -> tuple[int, FreeRuns]:
        superblock = self._superblock
        self._set_chunks(self._system_chunks(raw))
        chunk_items = self._items(superblock.chunk_root, superblock.chunk_level, superblock.chunk_generation, _CHUNK_TREE)
        chunks = [self._chunk(key, content) for key, content in chunk_items if key[:2] == (_CHUNK_OBJECT, _CHUNK_ITEM)]
        self._set_chunks(chunks)
        gaps, total = self._gaps()
        if total != superblock.used:
            raise damaged(f"notes {superblock.used} bytes in use and has {total}")
        free = FreeRuns()
        position = 0
        for begin, chunk in sorted((copy, mapped) for mapped in self._chunks for copy in mapped.copies):
            if begin > position:
                free.add(position, begin - position)  # no chunk has it
            for offset, length in gaps[chunk.begin]:
                free.add(begin + offset, length)
            position = begin + chunk.length
        if superblock.device_size > position:
            free.add(position, superblock.device_size - position)
        return free.total, _without(free, ((0, _RESERVED), *((at, _COPY_SPACE) for at in _COPIES_AT)))

    # --- addresses ---

    def _system_chunks(self, raw: bytes) -> list[_Chunk]:
        """The chunks that the superblock itself has, since the tree of chunks lies in them."""
        (length,) = struct.unpack_from("<I", raw, 160)
        if length > 2048:
            raise damaged("its superblock has more chunks than it can hold")
        area, at = raw[811 : 811 + length], 0
        chunks = []
        while at < length:
            if at + _KEY.size + _CHUNK.size > length:
                raise damaged("its superblock has half a chunk")
            key = _KEY.unpack_from(area, at)
            if key[:2] != (_CHUNK_OBJECT, _CHUNK_ITEM):
                raise damaged("its superblock has something else among its chunks")
            at += _KEY.size
            stripes = _CHUNK.unpack_from(area, at)[7]
            size = _CHUNK.size + stripes * _STRIPE.size
            chunks.append(self._chunk(key, area[at : at + size]))
            at += size
        return chunks

    def _chunk(self, key: tuple[int, int, int], content: bytes) -> _Chunk:
        if len(content) < _CHUNK.size:
            raise damaged("a chunk is too short")
        length, _, _, kind, _, _, _, stripes, _ = _CHUNK.unpack_from(content)
        profile = kind & _PROFILES
        if profile not in (_SINGLE, _DUP) or stripes != (2 if profile == _DUP else 1):
            raise not_read("a RAID profile")
        if (
            len(content) != _CHUNK.size + stripes * _STRIPE.size
            or length == 0
            or (key[2] | length) % self._superblock.sector_size
        ):
            raise damaged("a chunk is too short")
        copies = []
        for number in range(stripes):
            device, offset, _ = _STRIPE.unpack_from(content, _CHUNK.size + number * _STRIPE.size)
            if device != self._superblock.device or not _RESERVED <= offset <= self._superblock.device_size - length:
                raise damaged("a chunk does not lie on its device")
            copies.append(offset)
        return _Chunk(key[2], length, tuple(copies))

    def _set_chunks(self, chunks: list[_Chunk]) -> None:
        """Use these chunks from now on. Neither their addresses nor their places may overlap."""
        self._chunks = sorted(chunks, key=lambda chunk: chunk.begin)
        self._begins = [chunk.begin for chunk in self._chunks]
        addresses = [(chunk.begin, chunk.length) for chunk in self._chunks]
        places = sorted((offset, chunk.length) for chunk in self._chunks for offset in chunk.copies)
        for ranges in (addresses, places):
            position = 0
            for begin, length in ranges:
                if begin < position:
                    raise damaged("its chunks overlap")
                position = begin + length

    def _chunk_of(self, address: int, length: int) -> _Chunk:
        index = bisect_right(self._begins, address) - 1
        if index < 0 or address + length > self._chunks[index].end:
            raise damaged("an address that no chunk has")
        return self._chunks[index]

    # --- trees ---

    def _items(self, address: int, level: int, generation: int, owner: int) -> Iterator[tuple[tuple[int, int, int], bytes]]:
        """All items of a tree, ascending: key and content."""
        last = (-1, 0, 0)
        for node in self._walk(address, level, generation, owner):
            (count,) = struct.unpack_from("<I", node, 96)
            if _HEADER.size + count * _ITEM.size > len(node):
                raise damaged("a leaf has more than it can hold")
            if count == 0 and level:
                raise damaged("a leaf of a tree is empty")
            for number in range(count):
                *key, offset, size = _ITEM.unpack_from(node, _HEADER.size + number * _ITEM.size)
                found = (key[0], key[1], key[2])
                if found <= last or _HEADER.size + offset + size > len(node):
                    raise damaged("the items of a tree do not ascend")
                last = found
                yield found, node[_HEADER.size + offset : _HEADER.size + offset + size]

    def _walk(self, address: int, level: int, generation: int, owner: int) -> Iterator[bytes]:
        """The leaves below (or at) a node of a tree, from left to right."""
        node = self._node(address, level, generation, owner)
        if level == 0:
            yield node
            return
        (count,) = struct.unpack_from("<I", node, 96)
        if count == 0 or _HEADER.size + count * _POINTER.size > len(node):
            raise damaged("a node has more than it can hold")
        for number in range(count):
            _, _, _, child, its_generation = _POINTER.unpack_from(node, _HEADER.size + number * _POINTER.size)
            yield from self._walk(child, level - 1, its_generation, owner)

    def _node(self, address: int, level: int, generation: int, owner: int) -> bytes:
        superblock = self._superblock
        if not 0 <= level < _LARGEST_LEVEL or address % superblock.sector_size:
            raise damaged("a node of a tree is where none can be")
        chunk = self._chunk_of(address, superblock.node_size)
        node = self._volume.read(chunk.copies[0] + address - chunk.begin, superblock.node_size)
        if not _checksum_is_right(node, superblock.checksum_type):
            raise damaged("the checksum of a node of a tree is wrong")
        _, uuid, place, _, _, its_generation, its_owner, _, its_level = _HEADER.unpack_from(node)
        if (uuid, place, its_generation, its_owner, its_level) != (superblock.uuid, address, generation, owner, level):
            raise damaged("a node of a tree belongs elsewhere")
        return node

    # --- what is in use ---

    def _gaps(self) -> tuple[dict[int, FreeRuns], int]:
        """By the beginning of each chunk, what no extent uses of it: offsets in it and lengths. And the bytes of all extents."""
        gaps = {chunk.begin: FreeRuns() for chunk in self._chunks}
        chunks = iter(self._chunks)
        chunk, position, total, has_root = next(chunks, None), 0, 0, False

        def close(until: int) -> None:
            """What is left of the chunk up to `until` is free."""
            assert chunk is not None
            begin = max(position, chunk.begin)
            if until > begin:
                gaps[chunk.begin].add(begin - chunk.begin, until - begin)

        for begin, length in self._extents():
            while chunk is not None and begin >= chunk.end:
                close(chunk.end)
                chunk = next(chunks, None)
            if chunk is None or begin < chunk.begin or begin + length > chunk.end:
                raise damaged("an address that no chunk has")
            close(begin)
            position = begin + length
            total += length
            has_root = has_root or begin == self._superblock.root
        while chunk is not None:
            close(chunk.end)
            chunk = next(chunks, None)
        if not has_root:
            raise damaged("its extents leave out what it needs itself")
        return gaps, total

    def _extents(self) -> Iterator[tuple[int, int]]:
        """All extents: address and length, ascending, without overlap."""
        superblock = self._superblock
        roots = self._items(superblock.root, superblock.root_level, superblock.generation, _ROOT_TREE)
        extent_roots = [content for key, content in roots if key[:2] == (_EXTENT_TREE, _ROOT_ITEM)]
        if len(extent_roots) != 1 or len(extent_roots[0]) < 239:
            raise damaged("has no tree of extents")
        root = extent_roots[0]
        (generation,) = struct.unpack_from("<Q", root, 160)
        (address,) = struct.unpack_from("<Q", root, 176)
        position = 0
        for key, _ in self._items(address, root[238], generation, _EXTENT_TREE):
            begin, kind, length = key
            if kind == _METADATA_ITEM:
                length = superblock.node_size  # the key has the level in this place
            elif kind != _EXTENT_ITEM:
                continue
            if begin < position or length == 0 or length % superblock.sector_size:
                raise damaged("its extents overlap")
            position = begin + length
            yield begin, length


def _without(runs: FreeRuns, kept: Iterable[tuple[int, int]]) -> FreeRuns:
    """`runs` without the ranges `kept`, which ascend."""
    kept = tuple(kept)
    left = FreeRuns()
    for begin, length in runs:
        position, end = begin, begin + length
        for at, size in kept:
            if at < end and at + size > position:
                if at > position:
                    left.add(position, at - position)
                position = max(position, at + size)
        if position < end:
            left.add(position, end - position)
    return left
