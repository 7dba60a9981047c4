"""The superblock of ext2, ext3 and ext4: the filesystem's description of itself, read without trusting it.

The format is described in the kernel's Documentation/filesystems/ext4 (`super.rst`), the names are those used there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import Protocol

from ..reading import NotThisError
from .errors import KeptError

OFFSET, SIZE = 1024, 1024
MAGIC = 0xEF53
MAX_GROUPS = 1 << 19
"""More block groups than this (64 bytes of memory each, and tens of microseconds) are not read: 64 TiB in blocks of 4 KiB."""

# s_feature_compat
HAS_JOURNAL, SPARSE_SUPER2, FAST_COMMIT = 0x4, 0x200, 0x400
KNOWN_COMPAT = 0x1 | 0x2 | HAS_JOURNAL | 0x8 | 0x10 | 0x20 | SPARSE_SUPER2 | FAST_COMMIT | 0x800 | 0x1000
"""dir_prealloc, imagic_inodes, ext_attr, resize_inode, dir_index, stable_inodes, orphan_file besides those with names."""

# s_feature_ro_compat
GDT_CSUM, BIGALLOC, METADATA_CSUM, ORPHAN_PRESENT = 0x10, 0x200, 0x400, 0x10000
KNOWN_RO_COMPAT = (
    0x1 | 0x2 | 0x4 | 0x8 | GDT_CSUM | 0x20 | 0x40 | 0x100 | BIGALLOC | METADATA_CSUM | 0x1000 | 0x2000 | 0x8000 | ORPHAN_PRESENT
)
"""sparse_super, large_file, btree_dir, huge_file, dir_nlink, extra_isize, quota, readonly, project, verity besides those
with names."""

# s_feature_incompat
RECOVER, JOURNAL_DEV, META_BG, EXTENTS, BITS64, MMP, FLEX_BG = 0x4, 0x8, 0x10, 0x40, 0x80, 0x100, 0x200
CSUM_SEED, INLINE_DATA = 0x2000, 0x8000
KNOWN_INCOMPAT = (
    0x2 | RECOVER | META_BG | EXTENTS | BITS64 | MMP | FLEX_BG | 0x400 | CSUM_SEED | 0x4000 | INLINE_DATA | 0x10000 | 0x20000
)
"""filetype, ea_inode, largedir, encrypt, casefold besides those with names."""

# What ext3 has not; libblkid tells ext4 from ext3 by the same features.
EXT3_RO_COMPAT, EXT3_INCOMPAT = 0x1 | 0x2 | 0x4, 0x2 | RECOVER | META_BG

# s_state
VALID_FS, ERROR_FS = 0x1, 0x2


class Bytes(Protocol):
    """What is read here and by libext2fs; a `Volume` is one."""

    @property
    def size(self) -> int:
        """Size in bytes."""
        ...

    def read(self, offset: int, length: int, /) -> bytes:
        """Exactly `length` bytes from `offset` on. Raises OSError, or ValueError where that is no part of it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """What of it is used here. Sizes in bytes, all other amounts in blocks, inodes or groups.

    Attributes:
        raw: its 1024 bytes.
        cluster_blocks: blocks that are allocated together (a power of two): 1 without bigalloc.
        blocks_per_group: of all groups but the last.
        descriptor_size: of a group's description.
        free_blocks: the filesystem's own count, exact only when it was unmounted (or frozen).
    """

    raw: bytes
    label: str
    uuid: bytes
    block_size: int
    cluster_blocks: int
    blocks: int
    first_data_block: int
    blocks_per_group: int
    clusters_per_group: int
    inodes: int
    inodes_per_group: int
    inode_size: int
    descriptor_size: int
    reserved_descriptor_blocks: int
    first_meta_group: int
    free_blocks: int
    revision: int
    state: int
    compat: int
    ro_compat: int
    incompat: int
    journal_inode: int
    journal_device: int
    mmp_block: int

    @property
    def type(self) -> str:
        """What it is called: "ext2", "ext3" or "ext4"."""
        if self.ro_compat & ~EXT3_RO_COMPAT or self.incompat & ~EXT3_INCOMPAT:
            return "ext4"
        return "ext3" if self.compat & HAS_JOURNAL else "ext2"

    @property
    def groups(self) -> int:
        """How many block groups there are."""
        return -((self.first_data_block - self.blocks) // self.blocks_per_group)

    @property
    def descriptor_blocks(self) -> int:
        """Blocks that hold the groups' descriptions."""
        return -(-self.groups // (self.block_size // self.descriptor_size))

    @property
    def inode_blocks_per_group(self) -> int:
        """Blocks of a group's inode table."""
        return -(-self.inodes_per_group * self.inode_size // self.block_size)

    @property
    def needs_recovery(self) -> bool:
        """Does its journal have to be replayed (which may change nothing)?"""
        return bool(self.incompat & RECOVER)

    @property
    def has_journal(self) -> bool:
        return bool(self.compat & HAS_JOURNAL)

    @property
    def has_group_checksums(self) -> bool:
        """Do groups have checksums? Only then a group's bitmap may not have been written yet."""
        return bool(self.ro_compat & (GDT_CSUM | METADATA_CSUM))

    def group_blocks(self, group: int) -> int:
        """Blocks of a group; the last one may be shorter."""
        return min(self.blocks_per_group, self.blocks - self.group_start(group))

    def group_start(self, group: int) -> int:
        """A group's first block."""
        return self.first_data_block + group * self.blocks_per_group

    def is_laid_out_as(self, other: Superblock) -> bool:
        """Do both describe the same filesystem, but for what changes while one is in use?"""
        return self == replace(
            other,
            raw=self.raw,
            label=self.label,
            free_blocks=self.free_blocks,
            state=self.state,
            ro_compat=other.ro_compat & ~ORPHAN_PRESENT | self.ro_compat & ORPHAN_PRESENT,
            incompat=other.incompat & ~RECOVER | self.incompat & RECOVER,
        )


def read_superblock(volume: Bytes) -> Superblock:
    """Read the superblock at its usual place.

    Raises:
        NotThisError: there is none.
        OSError: it cannot be read.
    """
    if volume.size < OFFSET + SIZE:
        raise NotThisError
    raw = volume.read(OFFSET, SIZE)
    if _number("H", raw, 0x38) != MAGIC:
        raise NotThisError
    revision = _number("I", raw, 0x4C)
    dynamic = revision > 0
    compat, incompat, ro_compat = struct.unpack_from("<III", raw, 0x5C) if dynamic else (0, 0, 0)
    high = bool(incompat & BITS64)
    log_block, log_cluster = _number("I", raw, 0x18), _number("I", raw, 0x1C)
    bigalloc = bool(ro_compat & BIGALLOC)
    return Superblock(
        raw=raw,
        label=raw[0x78:0x88].split(b"\0")[0].decode("utf-8", "replace"),
        uuid=raw[0x68:0x78],
        block_size=1024 << min(log_block, 32),
        cluster_blocks=1 << min(max(log_cluster - log_block, 0), 32) if bigalloc else 1,
        blocks=_number("I", raw, 0x4) | (_number("I", raw, 0x150) << 32 if high else 0),
        first_data_block=_number("I", raw, 0x14),
        blocks_per_group=_number("I", raw, 0x20),
        clusters_per_group=_number("I", raw, 0x24) if bigalloc else _number("I", raw, 0x20),
        inodes=_number("I", raw, 0x0),
        inodes_per_group=_number("I", raw, 0x28),
        inode_size=_number("H", raw, 0x58) if dynamic else 128,
        descriptor_size=_number("H", raw, 0xFE) if high else 32,
        reserved_descriptor_blocks=_number("H", raw, 0xCE),
        first_meta_group=_number("I", raw, 0x104),
        free_blocks=_number("I", raw, 0xC) | (_number("I", raw, 0x158) << 32 if high else 0),
        revision=revision,
        state=_number("H", raw, 0x3A),
        compat=compat,
        ro_compat=ro_compat,
        incompat=incompat,
        journal_inode=_number("I", raw, 0xE0),
        journal_device=_number("I", raw, 0xE4),
        mmp_block=_number("Q", raw, 0x168),
    )


def _number(kind: str, raw: bytes, offset: int) -> int:
    return int(struct.unpack_from("<" + kind, raw, offset)[0])


def check_features(superblock: Superblock) -> None:
    """Refuse what this reader does not know.

    Raises:
        KeptError: a feature, or a revision of the format, is unknown.
    """
    if superblock.revision > 1:
        raise KeptError(f"unknown revision {superblock.revision}")
    if superblock.incompat & JOURNAL_DEV:
        raise KeptError("the journal of another filesystem")
    for name, features, known in (
        ("incompatible", superblock.incompat, KNOWN_INCOMPAT),
        ("read-only compatible", superblock.ro_compat, KNOWN_RO_COMPAT),
        ("compatible", superblock.compat, KNOWN_COMPAT),
    ):
        if features & ~known:
            raise KeptError(f"unknown {name} features {features & ~known:#x}")


def check_geometry(superblock: Superblock, size: int) -> None:
    """Refuse sizes and counts that contradict each other, or what lies on a volume of `size` bytes, or are beyond all bounds.

    Raises:
        KeptError: one of them does.
    """
    s = superblock
    bits = 8 * s.block_size
    whole = (
        s.block_size <= 65536
        and s.first_data_block == (1 if s.block_size == 1024 and not s.ro_compat & BIGALLOC else 0)
        and s.first_data_block < s.blocks
        and 0 < s.clusters_per_group <= bits
        and s.clusters_per_group % 8 == 0
        and s.blocks_per_group == s.clusters_per_group * s.cluster_blocks
        and 0 < s.inodes_per_group <= bits
        and s.inode_size in (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
        and s.inode_size <= s.block_size
        and s.descriptor_size == (64 if s.incompat & BITS64 else 32)
    )
    if not whole:
        raise KeptError("sizes that contradict each other")
    if s.blocks * s.block_size > size:
        raise KeptError("it ends behind the volume's end")
    if s.groups > MAX_GROUPS:
        raise KeptError(f"{s.groups} block groups are too many")
    if s.inodes != s.groups * s.inodes_per_group:
        raise KeptError("sizes that contradict each other")
    if s.free_blocks > s.blocks:
        raise KeptError("more free blocks than blocks")
