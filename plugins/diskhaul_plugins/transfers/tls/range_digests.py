"""Digests of ranges of a stored file, found where it lies: read past the page cache where the file takes that."""

from __future__ import annotations

import os

from blake3 import blake3

import diskhaul_native as native

from ...storages.raw import RawReader, storage_error

_PIECE = 4 << 20  # bytes that are read at a time


class RangeDigests:
    """Digests ranges of `file`, which stays the caller's. One thread at a time.

    Attributes:
        direct: it is read past the page cache, until that has been refused.
    """

    def __init__(self, file: RawReader) -> None:
        self._file = file
        self._buffer = memoryview(b"")
        self._direct, self._alignment = -1, 0
        try:
            self._alignment = native.direct_alignment(file.fileno())
            if self._alignment and _PIECE % self._alignment == 0:
                self._direct = native.open_direct(file.fileno())
        except OSError:
            pass  # then through the page cache

    @property
    def direct(self) -> bool:
        return self._direct >= 0

    def digest(self, offset: int, length: int) -> bytes:
        """BLAKE3 (32 bytes) of `length` bytes from `offset` on.

        Raises:
            StorageError: they cannot be read.
        """
        if not self._buffer:
            self._buffer = native.aligned_buffer(_PIECE)
        hasher, end = blake3(), offset + length
        while offset < end:
            begin = offset - offset % self._alignment if self._direct >= 0 else offset
            length = min(_PIECE, end - begin)
            hasher.update(self._read(begin, length)[offset - begin :])
            offset = begin + length
        return hasher.digest()

    def _read(self, begin: int, length: int) -> memoryview:
        """So many bytes, directly in whole blocks, or else through the page cache."""
        if self._direct >= 0:
            try:
                blocks = self._buffer[: length + -length % self._alignment]  # of the file's last one there is only a part
                native.read_direct(self._direct, blocks, begin, length)
                return self._buffer[:length]
            except OSError as error:
                if error.errno not in native.DIRECT_IO_REFUSED:
                    raise storage_error("read", self._file.path, error, begin) from error
                self.close()
        self._file.read_into(begin, self._buffer[:length])
        return self._buffer[:length]

    def close(self) -> None:
        direct, self._direct = self._direct, -1
        if direct >= 0:
            os.close(direct)
