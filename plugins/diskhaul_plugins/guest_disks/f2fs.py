"""F2FS (Linux: include/linux/f2fs_fs.h, Documentation/filesystems/f2fs.rst).

The segment information table has a bitmap for each segment of the main area, and the checkpoint says which of the table's two
halves is in use for each of its blocks. It is believed when the last checkpoint was made by unmounting, nothing was written and
fsynced since, its checksum is right, and bitmaps, their counts and the checkpoint's agree.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from .bitmaps import clear_runs, mirrored
from .doubts import damaged, dirty, not_read, read_or_keep
from .reading import FreeRuns, NotThisError, Reading
from .volume import Volume

_MAGIC = 0xF2F52010
_BLOCK = 4096
_SEGMENT_BLOCKS = 512
_SUPERBLOCK_AT = 1024
_ZONED = 0x0002  # feature

_UNMOUNTED, _COMPACT, _ERROR, _FSCK = 0x1, 0x4, 0x8, 0x10  # flags of a checkpoint
_LARGE_NAT, _QUOTA_FSCK, _DISABLED, _DISABLED_QUICK, _RESIZING = 0x400, 0x800, 0x1000, 0x2000, 0x4000
_IN_TROUBLE = _ERROR | _FSCK | _QUOTA_FSCK | _DISABLED | _DISABLED_QUICK | _RESIZING

_ENTRY = struct.Struct("<H64sQ")  # blocks in use (10 bits), their bitmap, time
_ENTRIES = _BLOCK // _ENTRY.size
_COUNT, _EMPTY = 0x3FF, bytes(64)
_JOURNAL_SIZE = 507
_JOURNAL_AT = _SEGMENT_BLOCKS * 7  # in a summary block, behind a summary of each block
_WARM = 1  # of the three kinds of data, and of nodes
_NODE_VERSION_AT = _BLOCK - 12  # in the footer that ends a block of a node
_COLD_DATA = 2  # of the six segments that are being written: hot, warm and cold data, then nodes
_BITMAPS_AT = 192  # in a checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class _Superblock:
    """Addresses and counts in blocks of 4096 bytes, and in segments."""

    blocks: int
    segments: int
    sit_segments: int
    main_segments: int
    checkpoint_at: int
    sit_at: int
    main_at: int
    checkpoint_payload: int
    features: int
    devices: bool
    label: str


def read_f2fs(volume: Volume) -> Reading:
    """Free blocks of the main area.

    Raises:
        NotThisError: it is no F2FS.
        OSError: it cannot be read.
    """
    raw = volume.read(0, _BLOCK) if volume.size >= 2 * _BLOCK else b""
    if raw[_SUPERBLOCK_AT : _SUPERBLOCK_AT + 4] != struct.pack("<I", _MAGIC):
        raise NotThisError
    superblock = _superblock(raw[_SUPERBLOCK_AT:])
    known = Reading(
        type="f2fs",
        label=superblock.label,
        size=min(superblock.blocks * _BLOCK, volume.size),
        block_size=_BLOCK,
        state="",
        free=None,
    )
    return read_or_keep(known, lambda: _free(volume, superblock))


def _superblock(raw: bytes) -> _Superblock:
    log_block, log_segment, per_section, per_zone = struct.unpack_from("<4I", raw, 16)
    (blocks,) = struct.unpack_from("<Q", raw, 36)
    segments, _, sit, _, _, main, _, checkpoint_at, sit_at, _, _, main_at = struct.unpack_from("<12I", raw, 48)
    if log_block != 12 or log_segment != 9 or per_section == 0 or per_zone == 0:
        raise NotThisError  # of pages of another size: not read, and not mounted by most systems either
    return _Superblock(
        blocks=blocks,
        segments=segments,
        sit_segments=sit,
        main_segments=main,
        checkpoint_at=checkpoint_at,
        sit_at=sit_at,
        main_at=main_at,
        checkpoint_payload=struct.unpack_from("<I", raw, 1664)[0],
        features=struct.unpack_from("<I", raw, 2180)[0],
        devices=raw[2201] != 0,
        label=raw[124:1148].decode("utf-16-le", "replace").partition("\0")[0],
    )


def _free(volume: Volume, superblock: _Superblock) -> tuple[int, FreeRuns]:
    main_end = superblock.main_at + superblock.main_segments * _SEGMENT_BLOCKS
    if superblock.blocks * _BLOCK > volume.size or main_end > superblock.blocks:
        raise damaged("larger than what it lies on")
    if not 0 < superblock.checkpoint_at < superblock.sit_at < superblock.main_at:
        raise damaged("its areas are not in their order")
    if superblock.devices or superblock.features & _ZONED:
        raise not_read("several devices, or zones")
    pack = _last_checkpoint(volume, superblock)
    pack.check()
    _check_nothing_followed(volume, superblock, pack)
    runs = FreeRuns()
    current = pack.current_segments()
    in_use = free_segments = 0
    for segment, count, bitmap in _entries(volume, superblock, pack):
        begin = superblock.main_at + segment * _SEGMENT_BLOCKS
        if count == 0 and bitmap == _EMPTY:
            free_segments += segment not in current
            runs.add(begin * _BLOCK, _SEGMENT_BLOCKS * _BLOCK)
            continue
        if count != int.from_bytes(bitmap, "little").bit_count():
            raise damaged(f"segment {segment} has another number of blocks than it notes")
        in_use += count
        for bit, length in clear_runs(mirrored(bitmap), _SEGMENT_BLOCKS):
            runs.add((begin + bit) * _BLOCK, length * _BLOCK)
    # Blocks that were promised to files, and not yet given, count in the checkpoint only.
    if free_segments != pack.free_segments or in_use > pack.valid_blocks:
        raise damaged(f"notes {pack.free_segments} free segments and has {free_segments}")
    return runs.total, runs


# --- checkpoint -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """One of the two packs of a checkpoint: its first block(s), and where it begins."""

    at: int
    raw: bytes

    @property
    def version(self) -> int:
        return int(struct.unpack_from("<Q", self.raw)[0])

    @property
    def valid_blocks(self) -> int:
        return int(struct.unpack_from("<Q", self.raw, 16)[0])

    @property
    def free_segments(self) -> int:
        return int(struct.unpack_from("<I", self.raw, 32)[0])

    @property
    def flags(self) -> int:
        return int(struct.unpack_from("<I", self.raw, 132)[0])

    @property
    def blocks(self) -> int:
        return int(struct.unpack_from("<I", self.raw, 136)[0])

    @property
    def summaries_at(self) -> int:
        return self.at + int(struct.unpack_from("<I", self.raw, 140)[0])

    def current_segments(self) -> set[int]:
        """The six segments that are written to next; they do not count as free."""
        return {*struct.unpack_from("<3I", self.raw, 36), *struct.unpack_from("<3I", self.raw, 84)}

    @property
    def next_node_at(self) -> int:
        """Where the next node of a file's data goes, in blocks from the beginning of the main area."""
        segment = struct.unpack_from("<I", self.raw, 36 + 4 * _WARM)[0]
        return int(segment * _SEGMENT_BLOCKS + struct.unpack_from("<H", self.raw, 68 + 2 * _WARM)[0])

    def check(self) -> None:
        if self.flags & _IN_TROUBLE:
            raise damaged("its checkpoint asks for a check, or was made while something was wrong")
        if not self.flags & _UNMOUNTED:
            raise dirty("is mounted, or was not unmounted")

    def sit_bitmap(self, payload: int) -> bytes:
        """Which half of the table is in use, one bit for each of its blocks."""
        sit_size, nat_size = struct.unpack_from("<II", self.raw, 156)
        at = _BITMAPS_AT
        if self.flags & _LARGE_NAT:
            at += nat_size + 4
        elif payload:
            at = _BLOCK
        if at + sit_size > len(self.raw):
            raise damaged("its checkpoint is too short")
        return self.raw[at : at + sit_size]


def _check_nothing_followed(volume: Volume, superblock: _Superblock, pack: _Checkpoint) -> None:
    """See that no fsync has written nodes since the checkpoint, which makes no new one: mounting would find them.

    They form a chain that begins where the checkpoint says, and have its version in their footers (Linux: fs/f2fs/recovery.c,
    fs/f2fs/node.h). Mounting alone does not change the checkpoint.
    """
    if pack.next_node_at >= superblock.main_segments * _SEGMENT_BLOCKS:
        return
    node = volume.read((superblock.main_at + pack.next_node_at) * _BLOCK, _BLOCK)
    if node[_NODE_VERSION_AT : _NODE_VERSION_AT + 4] == pack.raw[:4]:  # above these 32 bits may be the checkpoint's checksum
        raise dirty("has been written to since it was unmounted")


def _last_checkpoint(volume: Volume, superblock: _Superblock) -> _Checkpoint:
    places = (superblock.checkpoint_at, superblock.checkpoint_at + _SEGMENT_BLOCKS)
    packs = [pack for pack in (_checkpoint(volume, superblock, at) for at in places) if pack is not None]
    if not packs:
        raise damaged("has no valid checkpoint")
    # Of two with one version it is the first, as the kernel has it: sload.f2fs changes that one in place.
    return max(packs, key=lambda pack: pack.version)


def _checkpoint(volume: Volume, superblock: _Superblock, at: int) -> _Checkpoint | None:
    """Read a pack; None where its first and its last block are not of one valid checkpoint."""
    head = volume.read(at * _BLOCK, _BLOCK)
    if not _is_valid(head):
        return None
    pack = _Checkpoint(at, head)
    if not superblock.checkpoint_payload + 2 <= pack.blocks <= _SEGMENT_BLOCKS:
        return None
    tail = volume.read((at + pack.blocks - 1) * _BLOCK, _BLOCK)
    if not _is_valid(tail) or tail[:8] != head[:8]:
        return None
    return _Checkpoint(at, volume.read(at * _BLOCK, (1 + superblock.checkpoint_payload) * _BLOCK))


def _is_valid(block: bytes) -> bool:
    (at,) = struct.unpack_from("<I", block, 164)
    if not _BITMAPS_AT <= at <= _BLOCK - 4:
        return False
    return bool(_crc(block[:at]) == struct.unpack_from("<I", block, at)[0])


def _crc(content: bytes) -> int:
    """CRC-32 that begins with the magic number and is not inverted at either end, unlike zlib's."""
    return zlib.crc32(content, _MAGIC ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


# --- segments ---------------------------------------------------------------------------------------------------------


def _entries(volume: Volume, superblock: _Superblock, pack: _Checkpoint) -> Iterator[tuple[int, int, bytes]]:
    """All segments of the main area: number, blocks in use, and their bitmap, from the table and the journal over it."""
    bitmap = pack.sit_bitmap(superblock.checkpoint_payload)
    half = superblock.sit_segments // 2 * _SEGMENT_BLOCKS
    segments = superblock.main_segments
    table_blocks = -(-segments // _ENTRIES)
    if table_blocks > half or table_blocks > len(bitmap) * 8 or superblock.sit_at + 2 * half > superblock.main_at:
        raise damaged("its table of segments is too short")
    newer = {segment: (blocks, valid) for segment, blocks, valid in _journal(volume, pack)}
    if any(segment >= segments for segment in newer):
        raise damaged("its journal has a segment that it does not have")
    for number in range(table_blocks):
        second = bitmap[number // 8] >> (7 - number % 8) & 1
        block = volume.read((superblock.sit_at + second * half + number) * _BLOCK, _BLOCK)
        first = number * _ENTRIES
        there = min(_ENTRIES, segments - first) * _ENTRY.size
        for segment, (blocks, valid, _) in enumerate(_ENTRY.iter_unpack(block[:there]), first):
            blocks, valid = newer.get(segment, (blocks, valid))
            yield segment, blocks & _COUNT, valid


def _journal(volume: Volume, pack: _Checkpoint) -> list[tuple[int, int, bytes]]:
    """Entries that are newer than the table: segment, blocks in use, bitmap."""
    if pack.flags & _COMPACT:
        block = volume.read(pack.summaries_at * _BLOCK, _BLOCK)
        raw = block[_JOURNAL_SIZE : 2 * _JOURNAL_SIZE]  # behind the journal of nodes
    else:
        # An unmounted filesystem has summaries of all six segments, which end right before the checkpoint's last block.
        at = pack.at + pack.blocks - 1 - 6
        if at != pack.summaries_at:
            raise damaged("its summaries are not where they should be")
        block = volume.read((at + _COLD_DATA) * _BLOCK, _BLOCK)
        raw = block[_JOURNAL_AT : _JOURNAL_AT + _JOURNAL_SIZE]
    (count,) = struct.unpack_from("<H", raw)
    size = 4 + _ENTRY.size
    if 2 + count * size > len(raw):
        raise damaged("its journal has more than it can hold")
    found = []
    for number in range(count):
        at = 2 + number * size
        blocks, valid, _ = _ENTRY.unpack_from(raw, at + 4)
        found.append((struct.unpack_from("<I", raw, at)[0], blocks, valid))
    return found
