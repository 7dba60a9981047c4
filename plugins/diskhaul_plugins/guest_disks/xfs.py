"""XFS (xfs_filesystem_structure; Linux: fs/xfs/libxfs/xfs_format.h).

Each allocation group has a B-tree of its free extents. They are believed when the log is clean, all checksums are right, and
extents, allocation groups and superblock agree on how much is free. Blocks that a group holds in reserve for its own B-trees
("free list") count as free and are kept all the same.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import diskhaul_native as native

from .bitmaps import touch
from .doubts import damaged, not_read, read_or_keep
from .reading import FreeRuns, NotThisError, Reading
from .volume import Volume
from .xfs_log import check_log_is_clean

_FREE_INODE_BTREE, _REVERSE_MAP, _REFLINK, _INODE_COUNTS = 1, 2, 4, 8  # "read-only compatible" features
_KNOWN_RO_COMPAT = _FREE_INODE_BTREE | _REVERSE_MAP | _REFLINK | _INODE_COUNTS
# File types, sparse inodes, metadata UUID, big timestamps, large extent counts, exchanging ranges, parent pointers.
_KNOWN_INCOMPAT = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80
_NEEDS_REPAIR = 0x10
_LARGEST_LEVEL = 9  # XFS_BTREE_MAXLEVELS, and more than 2^32 blocks need


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """What is needed of it. Blocks are of `block_size` bytes.

    Attributes:
        log_begin: offset of the log in bytes, -1 when it is on another device.
        uuid: what metadata carries.
        log_uuid: what records of the log carry.
        version: 4, or 5 where metadata has checksums.
    """

    block_size: int
    sector_size: int
    blocks: int
    group_blocks: int
    groups: int
    log_begin: int
    log_length: int
    root_block: int
    free: int
    version: int
    uuid: bytes
    log_uuid: bytes
    label: str
    in_progress: bool
    features: tuple[int, int, int] = (0, 0, 0)
    lazy_counters: bool = True


def read_xfs(volume: Volume) -> Reading:
    """Free extents.

    Raises:
        NotThisError: it is no XFS filesystem.
        OSError: it cannot be read.
    """
    raw = volume.read(0, 512) if volume.size >= 512 else b""
    if raw[:4] != b"XFSB":
        raise NotThisError
    superblock = _superblock(raw)
    known = Reading(
        type="xfs",
        label=superblock.label,
        size=min(superblock.blocks * superblock.block_size, volume.size),
        block_size=superblock.block_size,
        state="",
        free=None,
    )
    return read_or_keep(known, lambda: _free(volume, superblock))


def _superblock(raw: bytes) -> Superblock:
    (block_size, blocks) = struct.unpack_from(">IQ", raw, 4)
    (log_start, root) = struct.unpack_from(">QQ", raw, 48)
    group_blocks, groups, _, log_blocks, version, sector_size = struct.unpack_from(">IIIIHH", raw, 84)
    block_log, _, _, inodes_log, group_log = struct.unpack_from(">5B", raw, 120)
    (free,) = struct.unpack_from(">Q", raw, 144)
    (features2,) = struct.unpack_from(">I", raw, 200)
    _, ro_compat, incompat, log_incompat = struct.unpack_from(">4I", raw, 208)
    if (
        not 9 <= block_log <= 16
        or block_size != 1 << block_log
        or sector_size not in (512, 1024, 2048, 4096, 8192, 16384, 32768)
        or not 0 < group_blocks <= 1 << min(group_log, 31)
        or inodes_log > 8
    ):
        raise NotThisError
    number = version & 0x0F
    uuid = raw[32:48]
    has_meta_uuid = number == 5 and incompat & 0x4

    def place(block: int) -> int:
        return int((block >> group_log) * group_blocks + (block & (1 << group_log) - 1))

    return Superblock(
        block_size=block_size,
        sector_size=sector_size,
        blocks=blocks,
        group_blocks=group_blocks,
        groups=groups,
        log_begin=place(log_start) * block_size if log_start else -1,
        log_length=log_blocks * block_size,
        root_block=place(root >> inodes_log),
        free=free,
        version=number,
        uuid=raw[248:264] if has_meta_uuid else uuid,
        log_uuid=uuid,
        label=raw[108:120].rstrip(b"\0").decode("utf-8", "replace"),
        in_progress=raw[126] != 0,
        features=(ro_compat, incompat, log_incompat) if number == 5 else (0, 0, 0),
        lazy_counters=number == 5 or bool(version & 0x8000 and features2 & 0x2),
    )


def _free(volume: Volume, superblock: Superblock) -> tuple[int, FreeRuns]:
    _check_superblock(volume, superblock)
    is_unmounted = check_log_is_clean(volume, superblock.log_begin, superblock.log_length, superblock.log_uuid)
    runs = FreeRuns()
    counted = 0
    for number in range(superblock.groups):
        group = _Group(volume, superblock, number)
        begin = number * superblock.group_blocks
        for block, count in group.extents:
            runs.add((begin + block) * superblock.block_size, count * superblock.block_size)
        counted += group.counted
    # While it is mounted the superblock's count is behind: it is made anew from the groups when need be.
    if is_unmounted and superblock.lazy_counters and counted != superblock.free:
        raise damaged(f"notes {superblock.free} free blocks and has {counted}")
    return counted * superblock.block_size, runs


def _check_superblock(volume: Volume, superblock: Superblock) -> None:
    if superblock.version not in (4, 5):
        raise not_read(f"version {superblock.version}")
    if superblock.version == 5 and not _checksum_is_right(volume.read(0, superblock.sector_size), 224):
        raise damaged("the checksum of its superblock is wrong")
    ro_compat, incompat, log_incompat = superblock.features
    if incompat & _NEEDS_REPAIR:
        raise damaged("is marked as in need of repair")
    if ro_compat & ~_KNOWN_RO_COMPAT or incompat & ~_KNOWN_INCOMPAT or log_incompat:
        raise not_read("a feature of newer versions")
    if superblock.in_progress:
        raise damaged("its mkfs has not finished")
    if superblock.blocks * superblock.block_size > volume.size:
        raise damaged("larger than what it lies on")
    if superblock.block_size < superblock.sector_size:
        raise damaged("its blocks are smaller than its sectors")
    if superblock.groups != -(-superblock.blocks // superblock.group_blocks):
        raise damaged("its allocation groups do not cover it")
    if superblock.log_begin < 0:
        raise not_read("a log on another device")
    if superblock.log_begin + superblock.log_length > superblock.blocks * superblock.block_size:
        raise damaged("its log lies behind its end")


def _checksum_is_right(block: bytes, at: int) -> bool:
    """CRC-32C of the block with zeros in the checksum's place; it is kept in little-endian order, as nothing else is."""
    expected = native.crc32c(block[:at] + bytes(4) + block[at + 4 :])
    return bool(struct.unpack_from("<I", block, at)[0] == expected)


@dataclass(slots=True)
class _Group:
    """An allocation group, read and checked.

    Attributes:
        extents: first block in the group, and how many; ascending.
        counted: what it adds to the superblock's count: free blocks, those held in reserve, and the B-trees' own.
    """

    volume: Volume
    superblock: Superblock
    number: int
    extents: list[tuple[int, int]] = field(default_factory=list)
    counted: int = 0
    _used: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        superblock = self.superblock
        size = superblock.sector_size
        raw = self.volume.read(self._at(0) + size, size)
        magic, version, number, blocks, root = struct.unpack_from(">4s4I", raw)
        levels, reserve, free, longest, btree_blocks = (struct.unpack_from(">I", raw, at)[0] for at in (28, 48, 52, 56, 60))
        first = self.number * superblock.group_blocks
        if (magic, version, number) != (b"XAGF", 1, self.number):
            raise damaged(f"allocation group {self.number} has no header")
        if superblock.version == 5 and not (_checksum_is_right(raw, 216) and raw[64:80] == superblock.uuid):
            raise damaged(f"the checksum of allocation group {self.number} is wrong")
        if blocks != min(superblock.group_blocks, superblock.blocks - first):
            raise damaged(f"allocation group {self.number} is not as large as it should be")
        if self.volume.read(self._at(0), 4) != b"XFSB":
            raise damaged(f"allocation group {self.number} has no copy of the superblock")
        # The superblock's copy and the three other headers take a sector each.
        self._used = [(0, -(-4 * size // superblock.block_size))]
        self._walk(root, levels - 1, blocks)
        self._check_extents(blocks, free, longest)
        self.counted = free + reserve + btree_blocks

    def _at(self, block: int) -> int:
        return (self.number * self.superblock.group_blocks + block) * self.superblock.block_size

    def _walk(self, block: int, level: int, blocks: int) -> None:
        """Read a block of the B-tree by place, and all below it, from left to right."""
        if not 0 <= level < _LARGEST_LEVEL or not 0 < block < blocks or (block, 1) in self._used:
            raise damaged(f"the free extents of allocation group {self.number} cannot be found")
        has_checksums = self.superblock.version == 5
        raw = self.volume.read(self._at(block), self.superblock.block_size)
        magic, found_level, count = struct.unpack_from(">4sHH", raw)
        if (magic, found_level) != (b"AB3B" if has_checksums else b"ABTB", level):
            raise damaged(f"the free extents of allocation group {self.number} are no tree")
        if has_checksums:
            (place,) = struct.unpack_from(">Q", raw, 16)
            (owner,) = struct.unpack_from(">I", raw, 48)
            right = place * 512 == self._at(block) and owner == self.number and raw[32:48] == self.superblock.uuid
            if not right or not _checksum_is_right(raw, 52):
                raise damaged(f"the checksum of free extents in allocation group {self.number} is wrong")
        header = 56 if has_checksums else 16
        most = (len(raw) - header) // (8 if level == 0 else 12)
        if count > most:
            raise damaged(f"a block of free extents in allocation group {self.number} has more than it can hold")
        self._used.append((block, 1))
        if level == 0:
            numbers = iter(struct.unpack_from(f">{2 * count}I", raw, header))
            self.extents.extend(zip(numbers, numbers, strict=True))
        else:
            for child in struct.unpack_from(f">{count}I", raw, header + most * 8):
                self._walk(child, level - 1, blocks)

    def _check_extents(self, blocks: int, free: int, longest: int) -> None:
        """See that the extents ascend, add up to what the header notes, and leave out what has to be in use."""
        superblock = self.superblock
        begin = self.number * superblock.group_blocks
        log = (superblock.log_begin // superblock.block_size - begin, superblock.log_length // superblock.block_size)
        root = (superblock.root_block - begin, 1)
        needed = (*self._used, *(used for used in (log, root) if 0 <= used[0] < blocks))
        position, total, largest = 0, 0, 0
        for block, count in self.extents:
            if block < position or count == 0 or block + count > blocks:
                raise damaged(f"the free extents of allocation group {self.number} overlap")
            position = block + count
            total += count
            largest = max(largest, count)
        if touch(self.extents, needed):
            raise damaged(f"allocation group {self.number} calls free what it needs itself")
        if (total, largest) != (free, longest):
            raise damaged(f"allocation group {self.number} notes {free} free blocks and has {total}")
