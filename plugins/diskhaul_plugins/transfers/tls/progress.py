"""How far the files of an export have come, kept so that it outlives the receiver's process.

Each file has a slot with room for two records, written in turn: one is whole whatever happens to the other. A record is
written after the data that it speaks of, and never waited for: it is for a process that was killed, whose writes the kernel
still has. What a machine that went down had not yet written is another matter, which is why a session ends with the machine's
boot.

Of a file that is written past the page cache, what is not worth a write lies in the record, until more comes.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from ..direct import LARGEST_BLOCK

_RECORD = struct.Struct("!QQQB3xI32s")
_CHECK_LENGTH = 16
_TAIL_ROOM = LARGEST_BLOCK
_RECORD_ROOM = 128 + _TAIL_ROOM  # there are holes where nothing was written
_SLOT = 2 * _RECORD_ROOM


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a file stands.

    Attributes:
        due: number of the frame that comes next; all before it have been written.
        length: bytes of all DATA frames.
        end: the file's size: where the next data are appended, or for a raw file what was last set.
        raw: its size is set, and data go anywhere.
        finished: its trailer has been found right, and it has been made durable.
        chain: of all frames before `due` (`wire.next_chain`).
        tail: the last bytes before `end`, which are not in the file yet.
    """

    due: int
    length: int
    end: int
    raw: bool
    finished: bool
    chain: bytes
    tail: bytes = b""


class ProgressFile:
    """The records of one export's files. Thread-safe for different slots."""

    def __init__(self, path: Path, *, new: bool) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT | os.O_EXCL if new else 0)
        self._descriptor, self._path = os.open(path, flags, 0o600), path

    def write(self, slot: int, progress: Progress) -> None:
        flags = progress.raw | progress.finished << 1
        record = _RECORD.pack(progress.due, progress.length, progress.end, flags, len(progress.tail), progress.chain)
        record += blake3(slot.to_bytes(4, "big") + record + progress.tail).digest(_CHECK_LENGTH) + progress.tail
        try:
            written = os.pwrite(self._descriptor, record, _SLOT * slot + _RECORD_ROOM * (progress.due & 1))
        except OSError as error:  # it may lie on another filesystem than the export
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        if written != len(record):
            raise OSError(errno.ENOSPC, f"{written} of {len(record)} bytes could be written", str(self._path))

    def read(self, slot: int) -> Progress | None:
        """The newest whole record of a slot; None when there is none."""
        found = [self._read(slot, half) for half in (0, 1)]
        return max((progress for progress in found if progress is not None), key=lambda progress: progress.due, default=None)

    def _read(self, slot: int, half: int) -> Progress | None:
        data = os.pread(self._descriptor, _RECORD_ROOM, _SLOT * slot + _RECORD_ROOM * half)
        record, check = data[: _RECORD.size], data[_RECORD.size : _RECORD.size + _CHECK_LENGTH]
        if len(check) != _CHECK_LENGTH:
            return None
        due, length, end, flags, tail_length, chain = _RECORD.unpack(record)
        tail = data[len(record) + _CHECK_LENGTH :][:tail_length]
        if check != blake3(slot.to_bytes(4, "big") + record + tail).digest(_CHECK_LENGTH):
            return None
        return Progress(due, length, end, bool(flags & 1), bool(flags & 2), chain, tail)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
