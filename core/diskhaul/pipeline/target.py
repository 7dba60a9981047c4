"""One face for every disk that is written: past the page cache where it has a descriptor that takes that, through the object's
own methods where not."""

from __future__ import annotations

import errno
import os
import threading

import diskhaul_native as native

from ..api import Buffer, DiskWriter
from ..errors import StorageError
from ..options import DirectIO
from .source import descriptor_of

_BLOCK = 4096  # what direct writes begin and end at, and what is left as a hole when it is zero
_ZERO_BLOCK = 64 * 1024
"""Bytes: shorter runs of zeros are written with what lies around them where they cannot be left as holes. Zeroing them one by one
takes longer."""
_SMALLEST = 64 * 1024  # bytes; shorter writes gain nothing from it

_NO_WRITEBACK = (errno.EINVAL, errno.EOPNOTSUPP, errno.ESPIPE, errno.ENOSYS)


class Target:
    """Wraps a `DiskWriter`, and is one.

    Whether its descriptor takes direct writes is found out once, at the first write that could be one; then that is remembered.
    What is not aligned (the end of a disk, mostly), and all of it where direct writes are not possible, goes through the writer's
    own `write`, and the kernel is told to begin storing it, so that `flush` has little left to wait for.

    Blocks of zeros are left out of a disk that reads as zeros, so nothing may be written to a place twice: what has to be is
    written through the writer itself. Thread-safe as `DiskWriter` says. After a direct write that failed, everything but
    `close` fails.

    Attributes:
        size, reads_zero: the writer's.
        label: how messages call it.
    """

    def __init__(self, writer: DiskWriter, label: str, *, direct_io: DirectIO = "never") -> None:
        self.size = writer.size
        self.reads_zero = writer.reads_zero
        self.label = label
        self._writer = writer
        self._mode = direct_io
        self._lock = threading.Lock()
        self._looked = False
        self._descriptor: int | None = None  # the writer's
        self._direct = -1
        self._refused = False  # found out at a write: others may be in one, so the descriptor stays open
        self._writes_back = True
        self._failure: OSError | None = None

    def write(self, offset: int, buffer: Buffer, /) -> int:
        """Write `buffer`; return how many bytes were not left as holes."""
        view = memoryview(buffer)
        direct = self._ready()
        begin, end = _aligned_part(offset, view) if direct >= 0 and not self._refused else (0, 0)
        if begin == end:
            return self._write_cached(offset, view)
        if begin == 0 and end == len(view):
            return self._write_directly(direct, offset, view)
        written = self._write_cached(offset, view[:begin]) if begin else 0
        written += self._write_directly(direct, offset + begin, view[begin:end])
        return written + (self._write_cached(offset + end, view[end:]) if end < len(view) else 0)

    def _write_directly(self, direct: int, offset: int, view: memoryview) -> int:
        block_size = _BLOCK if self.reads_zero else _ZERO_BLOCK
        try:
            return native.write_sparse(
                direct, view, offset, block_size=block_size, zero_holes=not self.reads_zero, name=self.label
            )
        except OSError as error:
            if error.errno not in native.DIRECT_IO_REFUSED or self._mode == "always":
                raise self._failed(error, offset) from error
        self._refused = True
        return self._write_cached(offset, view)

    def _write_cached(self, offset: int, view: memoryview) -> int:
        count = self._writer.write(offset, view)
        if self._descriptor is not None and self._writes_back:
            try:
                native.start_writeback(self._descriptor, offset, len(view), name=self.label)
            except OSError as error:
                if error.errno not in _NO_WRITEBACK:
                    raise self._failed(error, offset) from error
                self._writes_back = False
        return count if isinstance(count, int) else len(view)

    def zero(self, offset: int, length: int, /) -> None:
        self._ready()
        self._writer.zero(offset, length)

    def flush(self) -> None:
        self._ready()
        self._writer.flush()

    def close(self) -> None:
        """Close it, and the writer. Nobody may be writing."""
        with self._lock:
            direct, self._direct, self._looked = self._direct, -1, True
        try:
            if direct >= 0:
                os.close(direct)
        finally:
            self._writer.close()

    def _ready(self) -> int:
        """The descriptor for direct writes, or -1 when there is none."""
        with self._lock:
            if self._failure is not None:
                reason = os.strerror(self._failure.errno or 0)
                raise StorageError(f"{self.label}: an earlier write failed: {reason}", path=self.label) from self._failure
            if not self._looked:
                self._looked = True
                self._descriptor = descriptor_of(self._writer)
                if self._mode != "never":
                    self._direct = self._open_directly()
            return self._direct

    def _open_directly(self) -> int:
        reason: str | None = None
        if self._descriptor is None:
            reason = "its storage gives no file descriptor"
        else:
            try:
                if 0 < native.direct_alignment(self._descriptor) <= _BLOCK:
                    return native.open_direct(self._descriptor, writable=True, name=self.label)
            except OSError as error:
                reason = os.strerror(error.errno or 0)
        if self._mode == "always":
            reason = reason or "its filesystem has no direct I/O"
            raise StorageError(f"{self.label}: direct_io = always: {reason}; use direct_io = auto", path=self.label)
        return -1

    def _failed(self, error: OSError, offset: int) -> StorageError:
        with self._lock:
            self._failure = self._failure or error
        place = getattr(error, "offset", None)
        offset = place if isinstance(place, int) else offset
        reason = os.strerror(error.errno or 0)
        if error.errno in native.DIRECT_IO_REFUSED:
            reason += " (direct_io = always: direct I/O is not possible here; use direct_io = auto)"
        return StorageError(f"{self.label}: cannot write at offset {offset}: {reason}", path=self.label, offset=offset)


def _aligned_part(offset: int, view: memoryview) -> tuple[int, int]:
    """Which bytes of `view` can be written directly at `offset`: first and end, equal when it is not worth it."""
    begin = -offset % _BLOCK
    end = len(view) - (offset + len(view)) % _BLOCK
    if end - begin < _SMALLEST or (native.address_of(view) + begin) % _BLOCK:
        return 0, 0
    return begin, end
