"""What replaying a journal would change, found by reading it: nothing is copied, and nothing is written.

The format is jbd2's (the kernel's Documentation/filesystems/ext4, `journal.rst`), and the log is gone through as the kernel's
recovery does: first to find its end, the first block that is not what should come next; then for revoked blocks; then for
the last copy of each block that is not revoked. Two things are stricter here. Where the kernel weighs whether a wrong checksum
means an old block or a damaged one, a transaction that has its commit block is damaged. And a log that contradicts itself
in any other way is not used, even where the kernel would go on.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from .errors import KeptError
from .libext2fs import Filesystem, Library
from .superblock import Bytes

MAGIC = 0xC03B3998
DESCRIPTOR, COMMIT, SUPERBLOCK_V1, SUPERBLOCK_V2, REVOKE = 1, 2, 3, 4, 5

# s_feature_compat and s_feature_incompat of the journal's superblock
COMPAT_CHECKSUM = 0x1
INCOMPAT_REVOKE, INCOMPAT_64BIT, INCOMPAT_CSUM_V2, INCOMPAT_CSUM_V3, INCOMPAT_FAST_COMMIT = 0x1, 0x2, 0x8, 0x10, 0x20
KNOWN_INCOMPAT = INCOMPAT_REVOKE | INCOMPAT_64BIT | INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3

# t_flags of a tag
ESCAPED, SAME_UUID, LAST_TAG = 0x1, 0x2, 0x8

HEADER, UUID, TAIL = 12, 16, 4  # bytes
NONE = 0xFFFFFFFF

MAX_PIECES = 1 << 16
"""Pieces that the journal's file may be in on the disk."""
MAX_BLOCKS = 1 << 19
"""Blocks of the journal that are gone through, and blocks that it may revoke: 2 GiB in blocks of 4 KiB, in which mke2fs makes
journals of 1 GiB at most unless it is told otherwise."""


@dataclass(frozen=True, slots=True)
class JournalFile:
    """Where the journal's blocks are on the disk: pieces in the order of the file, as parallel arrays.

    Attributes:
        first: number in the file of each piece's first block.
        start: number on the disk of each piece's first block.
        length: blocks of each piece.
        tree: blocks on the disk that hold the file's map.
    """

    first: array[int] = field(default_factory=lambda: array("Q"))
    start: array[int] = field(default_factory=lambda: array("Q"))
    length: array[int] = field(default_factory=lambda: array("Q"))
    tree: array[int] = field(default_factory=lambda: array("Q"))

    @property
    def blocks(self) -> int:
        """Blocks of the file."""
        return self.first[-1] + self.length[-1] if self.first else 0

    def on_disk(self, index: int) -> int:
        """The block on the disk that holds block `index` of the file, which has no holes."""
        piece = bisect_right(self.first, index) - 1
        return self.start[piece] + index - self.first[piece]

    def pieces(self) -> Iterator[tuple[int, int]]:
        """What must not be left out: first block on the disk, and number of blocks."""
        yield from zip(self.start, self.length, strict=True)
        for block in self.tree:
            yield block, 1


def find_journal(filesystem: Filesystem) -> JournalFile:
    """Where the journal of this filesystem lies on it.

    Raises:
        KeptError: it has none, or one that is damaged or too large.
    """
    s = filesystem.superblock
    if not 0 < s.journal_inode <= s.inodes:
        raise KeptError("its journal is not in the filesystem")
    inode = filesystem.inode(s.journal_inode)
    mode, links = struct.unpack_from("=H", inode, 0)[0], struct.unpack_from("=H", inode, 26)[0]
    if mode & 0xF000 != 0x8000 or links == 0:
        raise KeptError("its journal is no file")
    file = JournalFile()
    limit = min(s.blocks, MAX_BLOCKS * 16)
    fits = True

    def see(index: int, block: int) -> bool:
        nonlocal fits
        if not s.first_data_block <= block < s.blocks:
            fits = False
        elif index < 0:
            file.tree.append(block)
            fits = len(file.tree) <= MAX_PIECES
        elif index != file.blocks or index >= limit:
            fits = False  # a hole, or no end
        elif file.first and block == file.start[-1] + file.length[-1]:
            file.length[-1] += 1
        else:
            file.first.append(index)
            file.start.append(block)
            file.length.append(1)
            fits = len(file.first) <= MAX_PIECES
        return fits

    filesystem.each_block(s.journal_inode, see)
    if not fits or not file.blocks:
        raise KeptError("its journal has no proper place")
    return file


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """A journal's own superblock, checked. All numbers are of blocks in its file, transactions count modulo 2^32.

    Attributes:
        end: block behind the last one.
        first: the log goes round from here to `end`.
        start: where the log begins; 0: it is empty.
        sequence: the first transaction that is expected there.
        seed: of checksums; None where there are none.
        wide: block numbers have 64 bits.
        tag_size: bytes of a tag without the UUID behind it.
        full_checksums: those of blocks have 32 bits, not 16.
    """

    file: JournalFile
    block_size: int
    end: int
    first: int
    start: int
    sequence: int
    wide: bool
    seed: int | None
    full_checksums: bool
    tag_size: int
    has_fast_commits: bool
    error: int


def read_journal(filesystem: Filesystem, library: Library) -> Journal:
    """Read the superblock of the journal of a filesystem, from where it lies on the disk.

    Raises:
        KeptError: something about it does not fit, or is unknown.
    """
    file = find_journal(filesystem)
    block_size = filesystem.superblock.block_size
    raw = filesystem.read_block(file.on_disk(0))[:1024]
    magic, kind = struct.unpack_from(">II", raw, 0)
    size, end, first, sequence, start, error = struct.unpack_from(">IIIIIi", raw, 12)
    compat, incompat, ro_compat = struct.unpack_from(">III", raw, 36) if kind == SUPERBLOCK_V2 else (0, 0, 0)
    if magic != MAGIC or kind not in (SUPERBLOCK_V1, SUPERBLOCK_V2):
        raise KeptError("its journal has no superblock")
    if compat or ro_compat or incompat & ~(KNOWN_INCOMPAT | INCOMPAT_FAST_COMMIT):
        raise KeptError("its journal has features that are not known here")
    checksums = incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3)
    if checksums == INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3:
        raise KeptError("its journal has two kinds of checksums")
    if checksums:
        (found,) = struct.unpack_from(">I", raw, 0xFC)
        if raw[0x50] != 4 or found != library.crc32c(NONE, raw[:0xFC] + bytes(4) + raw[0x100:]):
            raise KeptError("the checksum of its journal's superblock is wrong")
    if size != block_size or not 0 < first < end <= file.blocks or (start and not first <= start < end):
        raise KeptError("its journal's superblock does not fit")
    wide, full = bool(incompat & INCOMPAT_64BIT), bool(incompat & INCOMPAT_CSUM_V3)
    return Journal(
        file=file,
        block_size=block_size,
        end=end,
        first=first,
        start=start,
        sequence=sequence,
        wide=wide,
        seed=library.crc32c(NONE, raw[48:64]) if checksums else None,
        full_checksums=full,
        tag_size=16 if full else 8 + (4 if wide else 0) + (2 if checksums else 0),
        has_fast_commits=bool(incompat & INCOMPAT_FAST_COMMIT),
        error=error,
    )


class _Log:
    """Reads a log's blocks, one after the other and round, and checks them."""

    def __init__(self, journal: Journal, source: Bytes, library: Library) -> None:
        self.journal = journal
        self._source = source
        self._library = library

    def read(self, index: int) -> bytes:
        """Block `index` of the journal."""
        size = self.journal.block_size
        return self._source.read(self.journal.file.on_disk(index) * size, size)

    def after(self, index: int, count: int = 1) -> int:
        """The block that is `count` (at most what the log has) behind block `index`."""
        index += count
        return index if index < self.journal.end else index - self.journal.end + self.journal.first

    def is_sound(self, block: bytes, at: int) -> bool:
        """Does the block fit the checksum that stands in it at `at`? True where there are none."""
        seed = self.journal.seed
        if seed is None:
            return True
        (found,) = struct.unpack_from(">I", block, at)
        return bool(found == self._library.crc32c(seed, block[:at] + bytes(4) + block[at + 4 :]))

    def is_copy_sound(self, block: bytes, sequence: int, expected: int) -> bool:
        """Does a copy of a filesystem's block fit the checksum in its tag? True where there are none."""
        seed = self.journal.seed
        if seed is None:
            return True
        found = self._library.crc32c(self._library.crc32c(seed, sequence.to_bytes(4, "big")), block)
        return expected == (found if self.journal.full_checksums else found & 0xFFFF)

    def tags(self, block: bytes) -> Iterator[tuple[int, int, int]]:
        """What a descriptor block describes, in the order of the copies behind it: filesystem's block, flags, checksum."""
        journal = self.journal
        limit = journal.block_size - (0 if journal.seed is None else TAIL)
        at = HEADER
        flags = 0
        while at + journal.tag_size <= limit and not flags & LAST_TAG:
            if journal.full_checksums:
                low, flags, high, checksum = struct.unpack_from(">IIII", block, at)
                flags &= 0xFFFF
            else:
                low, checksum, flags = struct.unpack_from(">IHH", block, at)
                high = struct.unpack_from(">I", block, at + 8)[0] if journal.wide else 0
            yield low | (high << 32 if journal.wide else 0), flags, checksum
            at += journal.tag_size + (0 if flags & SAME_UUID else UUID)

    def revoked(self, block: bytes) -> Iterator[int]:
        """The filesystem's blocks that a revoke block names.

        Raises:
            KeptError: it says that it is longer than it can be.
        """
        (length,) = struct.unpack_from(">I", block, HEADER)
        if length > len(block) - (0 if self.journal.seed is None else TAIL):
            raise KeptError("its journal has a revoke block that is too long")
        record = struct.Struct(">Q" if self.journal.wide else ">I")
        for at in range(HEADER + 4, length - record.size + 1, record.size):
            yield record.unpack_from(block, at)[0]


@dataclass(frozen=True, slots=True)
class _Found:
    """The log up to its end: where its descriptor and revoke blocks are, with the transactions they belong to."""

    descriptors: list[tuple[int, int]] = field(default_factory=list)
    revokes: list[tuple[int, int]] = field(default_factory=list)


def _find_end(log: _Log) -> _Found:
    """Go through the log up to the first block that is not what should come next. Only whole transactions count."""
    journal = log.journal
    found, pending = _Found(), _Found()
    index, sequence = journal.start, journal.sequence
    left = journal.end - journal.first
    damaged = False
    if left > MAX_BLOCKS:
        raise KeptError("its journal is too large")
    while left > 0:
        block = log.read(index)
        magic, kind, number = struct.unpack_from(">III", block, 0)
        if magic != MAGIC or number != sequence:
            return found
        length = 1
        if kind == DESCRIPTOR:
            damaged |= not log.is_sound(block, journal.block_size - TAIL)
            pending.descriptors.append((index, sequence))
            length += sum(1 for _ in log.tags(block))
        elif kind == REVOKE:
            damaged |= not log.is_sound(block, journal.block_size - TAIL)
            pending.revokes.append((index, sequence))
        elif kind == COMMIT:
            if damaged or not log.is_sound(block, 16):
                raise KeptError(f"checksums of its journal's transaction {sequence} are wrong")
            found.descriptors.extend(pending.descriptors)
            found.revokes.extend(pending.revokes)
            pending = _Found()
            sequence = (sequence + 1) & 0xFFFFFFFF
        else:
            return found
        left -= length
        if left < 0:
            break
        index = log.after(index, length)
    raise KeptError("its journal goes round more than once")


def _find_revoked(log: _Log, found: _Found) -> dict[int, int]:
    """The last transaction that revokes each revoked block, counted from the log's first one."""
    revoked: dict[int, int] = {}
    for index, sequence in found.revokes:
        age = (sequence - log.journal.sequence) & 0xFFFFFFFF
        for block in log.revoked(log.read(index)):
            revoked[block] = age  # ascending, so the last one stays
        if len(revoked) > MAX_BLOCKS:
            raise KeptError("its journal revokes too many blocks")
    return revoked


def replay(journal: Journal, source: Bytes, library: Library) -> dict[int, int]:
    """Which blocks a replay changes, and where the content is that they get.

    Returns for each changed block of the filesystem twice the number of the block on the disk that holds its content, plus 1
    where the first four bytes of that are to be replaced by `MAGIC`.

    Raises:
        KeptError: the journal is damaged, or contradicts itself; or it is too large.
        OSError: it cannot be read.
    """
    log = _Log(journal, source, library)
    found = _find_end(log)
    revoked = _find_revoked(log, found)
    own = _OwnBlocks(journal.file)
    changed: dict[int, int] = {}
    for index, sequence in found.descriptors:
        age = (sequence - journal.sequence) & 0xFFFFFFFF
        for block, flags, checksum in log.tags(log.read(index)):
            index = log.after(index)
            if revoked.get(block, -1) >= age:
                continue
            place = journal.file.on_disk(index)
            if journal.seed is not None and not log.is_copy_sound(log.read(index), sequence, checksum):
                raise KeptError(f"a checksum in its journal's transaction {sequence} is wrong")
            if (block + 1) * journal.block_size > source.size or block in own:
                raise KeptError("its journal changes what it must not")
            changed[block] = place << 1 | (flags & ESCAPED)
    return changed


class _OwnBlocks:
    """Is a block of the disk one of the journal's?"""

    def __init__(self, file: JournalFile) -> None:
        pieces = sorted(file.pieces())
        self._starts = array("Q", (start for start, _ in pieces))
        self._ends = array("Q", (start + length for start, length in pieces))

    def __contains__(self, block: int) -> bool:
        piece = bisect_right(self._starts, block) - 1
        return piece >= 0 and block < self._ends[piece]


class Replayed:
    """The disk as it will be when the journal has been replayed."""

    def __init__(self, source: Bytes, block_size: int, changed: dict[int, int]) -> None:
        """`changed`: what `replay` returned."""
        self._source = source
        self._block_size = block_size
        self._changed = changed

    @property
    def size(self) -> int:
        return self._source.size

    def read(self, offset: int, length: int, /) -> bytes:
        """Exactly `length` bytes from `offset` on, at a time some blocks. Raises what the disk raises."""
        first, last = offset // self._block_size, (offset + length - 1) // self._block_size
        if not any(block in self._changed for block in range(first, last + 1)):
            return self._source.read(offset, length)
        whole = b"".join(self._block(block) for block in range(first, last + 1))
        begin = offset - first * self._block_size
        return whole[begin : begin + length]

    def _block(self, block: int) -> bytes:
        place = self._changed.get(block, block << 1)
        content = self._source.read((place >> 1) * self._block_size, self._block_size)
        return MAGIC.to_bytes(4, "big") + content[4:] if place & 1 else content
