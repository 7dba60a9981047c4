"""The log of XFS: whether it is clean (xfs_filesystem_structure, "Journaling Log"; Linux: fs/xfs/xfs_log_recover.c).

Each 512 bytes of it carry the number of the cycle in which they were written. So the head, behind which the oldest cycle
begins, is found by bisection. The log is clean when the record that ends there says nothing but that the filesystem was
unmounted, or when nothing but the superblock would be replayed, as when it is frozen.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import diskhaul_native as native

from .doubts import damaged, dirty
from .volume import Volume

_BLOCK = 512
_MAGIC = 0xFEEDBABE
_START, _COMMIT, _UNMOUNT = 0x01, 0x02, 0x20  # flags of operations
_OPERATION = struct.Struct(">IIBBH")  # transaction, length, who, flags
_BUFFER_ITEM = 0x123C  # XFS_LI_BUF
_FEW_BLOCKS = 64
"""How far the tail may be behind for the records to be looked at: a superblock takes two blocks."""
_LARGEST_RECORD = 256 << 10  # bytes
_IN_FLIGHT = 8 * _LARGEST_RECORD
"""Bytes that may have been on their way when the machine stopped, and so lie there in any order (XLOG_MAX_ICLOGS)."""

_SMALLEST, _LARGEST = 512 * 512, 2 << 30


def check_log_is_clean(volume: Volume, begin: int, length: int, uuid: bytes) -> bool:
    """See that the log of `length` bytes at `begin` was closed by unmounting (True), or would only write the superblock (False).

    Raises:
        DoubtError: it was not, or it cannot be told.
    """
    return _Log(volume, begin, length, uuid).check()


class _Log:
    def __init__(self, volume: Volume, begin: int, length: int, uuid: bytes) -> None:
        if not _SMALLEST <= length <= _LARGEST or length % _BLOCK:
            raise damaged("its log has no possible size")
        self._volume, self._begin, self._uuid = volume, begin, uuid
        self._blocks = length // _BLOCK

    def check(self) -> bool:
        first, last = self._cycle(0), self._cycle(self._blocks - 1)
        if first == 0:
            raise dirty("its log was never written")
        if first == last:
            head, expected = self._blocks, first  # the last record ends where the log does
        else:
            if last not in (0, first - 1):
                raise dirty("its log has cycles that do not follow each other")
            head, expected = self._bisect(first), first
        self._check_cycles(head, expected, last)
        return self._check_records(head, expected)

    def _read(self, block: int, count: int) -> bytes:
        return self._volume.read(self._begin + block * _BLOCK, count * _BLOCK)

    def _cycle(self, block: int) -> int:
        return _cycle_of(self._read(block, 1))

    def _bisect(self, cycle: int) -> int:
        """The first block that was not written in `cycle`, as block 0 was and the last one was not."""
        low, high = 0, self._blocks - 1
        while high - low > 1:
            middle = (low + high) // 2
            if self._cycle(middle) == cycle:
                low = middle
            else:
                high = middle
        return high

    def _check_cycles(self, head: int, cycle: int, older: int) -> None:
        """What was in flight has to have arrived: nothing of the old cycle before the head, nothing of the new one behind it."""
        window = min(_IN_FLIGHT // _BLOCK, self._blocks)
        begin, end = max(0, head - window), min(self._blocks, head + window)
        content = self._read(begin, end - begin)
        for number in range(begin, end):
            found = _cycle_of(content[(number - begin) * _BLOCK : (number - begin + 1) * _BLOCK])
            if found != (cycle if number < head else older):
                raise dirty("its log was not written to its end")
        left = window - head
        if left > 0 and head < self._blocks and older:  # the window goes around: the end of the log is one cycle older
            content = self._read(self._blocks - left, left)
            if any(_cycle_of(content[at : at + _BLOCK]) != older for at in range(0, len(content), _BLOCK)):
                raise dirty("its log was not written to its end")

    def _check_records(self, head: int, cycle: int) -> bool:
        """See what would be replayed: what stands from the tail on, which the last record names, to the head."""
        begin = max(0, head - (_LARGEST_RECORD // _BLOCK + 8))
        content = self._read(begin, head - begin)
        for at in range(len(content) - _BLOCK, -1, -_BLOCK):  # the last header is that of the last record
            if struct.unpack_from(">I", content, at)[0] == _MAGIC:
                break
        else:
            raise dirty("its log ends with no record")
        last = self._record(begin + at // _BLOCK, head, cycle, content[at:])
        if last.is_unmount():
            return True
        tail_cycle, tail = last.tail >> 32, last.tail & 0xFFFFFFFF
        if tail_cycle != cycle or not 0 <= last.place - tail <= _FEW_BLOCKS:
            raise dirty("its log is not empty: it is mounted, or was not unmounted")
        place = tail
        while place < head:
            record = self._record(place, head, cycle, self._read(place, min(head - place, _FEW_BLOCKS)))
            if not record.is_only_the_superblock():
                raise dirty("its log is not empty: it is mounted, or was not unmounted")
            place = record.end
        return False

    def _record(self, place: int, head: int, cycle: int, content: bytes) -> _Record:
        """Read the record at block `place`; `content` begins there."""
        mark, found_cycle, version, length, lsn, tail, checksum, _, operations = struct.unpack_from(">IIIIQQIII", content)
        (size,) = struct.unpack_from(">I", content, 320)
        headers = -(-size // (32 << 10)) if version & 2 and size > 32 << 10 else 1
        if (mark, found_cycle, lsn) != (_MAGIC, cycle, cycle << 32 | place) or content[304:320] != self._uuid:
            raise dirty("its log ends with a record of something else")
        end = place + headers + -(-length // _BLOCK)
        if version not in (1, 2) or length == 0 or end > head or (end - place) * _BLOCK > len(content):
            raise dirty("its log ends in the middle of a record")
        record = _Record(place, end, tail, operations, content[headers * _BLOCK :][:length], content[:328])
        # Records that mkfs and repair write have none.
        if checksum and headers == 1 and struct.unpack_from("<I", content, 32)[0] != record.checksum():
            raise dirty("the checksum of a record in its log is wrong")
        return record


@dataclass(frozen=True, slots=True)
class _Record:
    """A record of the log: blocks from `place` to `end`.

    Attributes:
        tail: cycle and block from which on records are still needed.
        operations: how many there are in `content`.
        header: without the padding to a block.
    """

    place: int
    end: int
    tail: int
    operations: int
    content: bytes
    header: bytes

    def checksum(self) -> int:
        return native.crc32c(
            self.content, native.crc32c(self.header[36:], native.crc32c(bytes(4), native.crc32c(self.header[:32])))
        )

    def is_unmount(self) -> bool:
        return self.operations == 1 and len(self.content) > 9 and bool(self.content[9] & _UNMOUNT)

    def is_only_the_superblock(self) -> bool:
        """Whether replaying it would write nothing but the superblock, as is logged of a frozen or idle filesystem.

        All else it had to say has then been written to its place already.
        """
        at = 0
        content = self._unpacked()
        regions_left = 0
        for _ in range(self.operations):
            if at + _OPERATION.size > len(content):
                return False
            _, length, _, flags, _ = _OPERATION.unpack_from(content, at)
            at += _OPERATION.size
            region = content[at : at + length]
            at += length
            if flags & ~(_START | _COMMIT) or len(region) < length:
                return False  # goes on in another record, or is something else
            if length == 0 or region[:4] in (b"TRAN", b"NART"):
                continue  # the marks around a transaction, and its header
            if regions_left:
                regions_left -= 1  # bytes of the buffer that was announced
                continue
            for order in "<>":  # that of the machine which wrote it
                kind, regions, _, count, block = struct.unpack_from(f"{order}HHHHq", region.ljust(16, b"\xff"))
                if (kind, count) == (_BUFFER_ITEM, 1) and block == 0 and 1 <= regions <= 4:
                    regions_left = regions - 1
                    break
            else:
                return False
        return regions_left == 0

    def _unpacked(self) -> bytes:
        """The content with the words that the cycle number took the place of."""
        content = bytearray(self.content)
        for number in range(min(-(-len(content) // _BLOCK), 64)):
            content[number * _BLOCK : number * _BLOCK + 4] = self.header[44 + 4 * number : 48 + 4 * number]
        return bytes(content)


def _cycle_of(block: bytes) -> int:
    """The first word; that of a record's header is a mark, and the cycle is the next one."""
    first, second = struct.unpack_from(">II", block)
    return int(second if first == _MAGIC else first)
