"""Writing a file of an export past the page cache, and reading it back from the medium."""

from __future__ import annotations

import errno
import os

import diskhaul_native as native

STAGE_SIZE = 4 << 20
"""Bytes that are gathered before they are written: a multiple of every alignment there is."""
LARGEST_BLOCK = 64 << 10
"""Bytes: the largest alignment that is taken, and the least that is worth a write."""


class DirectWrites:
    """Direct I/O on a file that is open for reading and writing. One thread at a time, but for `write_sparse` and `read_back`.

    Appended bytes are gathered into whole stages, unless `drain` writes what there is. A filesystem that takes direct I/O at
    opening and refuses it when it comes to writing is found out at the first write; from then on `refused` is true, and nothing
    is written here any more.

    Args:
        end: where the first appended byte belongs.

    Attributes:
        settled: bytes from the file's beginning that have been appended directly: they lie on the medium.
        refused: the file does not take direct writes after all.

    Raises:
        OSError: EOPNOTSUPP where the file cannot have direct I/O, or not from `end` on.
    """

    def __init__(self, descriptor: int, name: str, end: int = 0) -> None:
        self._name = name
        self.settled = end
        self.refused = False
        self._stage: memoryview | None = None
        self._filled = 0
        self._alignment = native.direct_alignment(descriptor)
        if not self._alignment or LARGEST_BLOCK % self._alignment or end % self._alignment:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), name)
        self._direct = native.open_direct(descriptor, writable=True, name=name)

    @property
    def left(self) -> memoryview:
        """What has been gathered and not written; it belongs at `settled`."""
        return self._stage[: self._filled] if self._stage is not None else memoryview(b"")

    def append(self, part: memoryview) -> int:
        """Gather `part`, writing each stage that is full; return how many bytes were gathered: all, unless `refused`."""
        taken = 0
        while taken < len(part) and not self.refused:
            if self._stage is None:
                self._stage = native.aligned_buffer(STAGE_SIZE)
            piece = part[taken : taken + STAGE_SIZE - self._filled]
            self._stage[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            taken += len(piece)
            if self._filled == STAGE_SIZE:
                self.drain()
        return taken

    def drain(self) -> None:
        """Write the whole blocks of what has been gathered, if that is `LARGEST_BLOCK`: less is left, unless `refused`."""
        if self._filled < LARGEST_BLOCK or self._stage is None:
            return
        whole = self._filled - self._filled % self._alignment
        try:
            native.write_from(self._direct, self._stage[:whole], self.settled, name=self._name)
        except OSError as error:
            self._refuse(error)
        else:
            left = self._filled - whole
            self._stage[:left] = self._stage[whole : self._filled]
            self.settled += whole
            self._filled = left

    def write_sparse(self, view: memoryview, offset: int, block_size: int) -> int | None:
        """Write the blocks of `view` that are not zero; return their bytes, or None where it has to go through the cache."""
        if self.refused or not self._takes(offset, view):
            return None
        try:
            return native.write_sparse(self._direct, view, offset, block_size=block_size, name=self._name)
        except OSError as error:
            self._refuse(error)
            return None

    def read_back(self, offset: int, view: memoryview) -> bool:
        """Fill `view` from the medium; False where that cannot be done directly."""
        if not self._takes(offset, view):
            return False
        try:
            native.read_direct(self._direct, view, offset, len(view), name=self._name)
        except OSError as error:
            if error.errno not in native.DIRECT_IO_REFUSED:
                raise
            return False
        return True

    def close(self) -> None:
        """Harmless when closed. Nobody may be reading. What has been gathered is dropped."""
        self._stage, self._filled = None, 0
        direct, self._direct = self._direct, -1
        if direct >= 0:
            os.close(direct)

    def _takes(self, offset: int, view: memoryview) -> bool:
        """Whether the range is aligned, in the file and in memory."""
        return not (offset % self._alignment or len(view) % self._alignment or native.address_of(view) % self._alignment)

    def _refuse(self, error: OSError) -> None:
        """Remember that the file takes no direct writes; raise `error` if that is not what it says."""
        if error.errno not in native.DIRECT_IO_REFUSED:
            raise error
        self.refused = True
