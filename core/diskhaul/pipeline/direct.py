"""Reading past the page cache, where that is possible and useful."""

from __future__ import annotations

import errno
import os
import threading

import diskhaul_native as native

from ..options import DirectIO

_SMALLEST = 256 * 1024
"""Bytes: shorter reads gain nothing from it."""


def direct_io_problem(descriptor: int) -> str | None:
    """Why what is open there cannot be read directly, or None when it can."""
    try:
        if native.direct_alignment(descriptor):
            os.close(native.open_direct(descriptor))
            return None
    except OSError as error:
        return f"direct I/O: {os.strerror(error.errno or 0)}"
    return "its filesystem has no direct I/O"


class DirectReads:
    """Direct reads of an opened file or device.

    Whether it takes them is found out once, at the first read that could be one; then that is remembered. Under "auto" what
    lies in the page cache is left to be read from there. Thread-safe but for `close`, after which nothing is read directly.

    Args:
        descriptor: open for reading; stays the caller's.
        mode: not "never".
    """

    def __init__(self, descriptor: int, mode: DirectIO) -> None:
        self._descriptor = descriptor
        self._mode = mode
        self._lock = threading.Lock()
        self._direct = -1
        self._alignment = 0
        self._open = True
        self._refused = False  # found out at a read: others may be in one, so the descriptor stays open
        self._cache_tells = mode == "auto"

    def read(self, view: memoryview, offset: int, *, name: str) -> int:
        """Read a part of `view`, from its beginning, directly; return how many bytes, which may be none.

        Raises:
            OSError: the file cannot be read there; under "always" also EOPNOTSUPP, when it takes no direct I/O.
        """
        if len(view) < _SMALLEST:
            return 0
        direct = self._ready(name)
        if direct < 0 or offset % self._alignment or native.address_of(view) % self._alignment:
            return 0
        length = len(view) - len(view) % self._alignment
        if not length or self.cached_bytes(offset, length) > length // 2:
            return 0
        try:
            native.read_direct(direct, view[:length], offset, length, name=name)
        except OSError as error:
            if error.errno not in native.DIRECT_IO_REFUSED or self._mode == "always":
                raise
            self._refused = True
            return 0
        return length

    def cached_bytes(self, offset: int, length: int) -> int:
        """How many bytes of a range are in the page cache and would be read from there; 0 where nobody can tell."""
        if not self._cache_tells:
            return 0
        try:
            return native.cached_bytes(self._descriptor, offset, length)
        except OSError:
            self._cache_tells = False  # this kernel cannot tell
            return 0

    def _ready(self, name: str) -> int:
        """The descriptor for direct reads, or -1 when there is none."""
        if self._refused:
            return -1
        with self._lock:
            if self._direct < 0 and self._open:
                self._open = False  # tried once
                try:
                    self._alignment = native.direct_alignment(self._descriptor)
                    if self._alignment:
                        self._direct = native.open_direct(self._descriptor)
                except OSError as error:
                    if error.errno not in native.DIRECT_IO_REFUSED or self._mode == "always":
                        raise
                if self._direct < 0 and self._mode == "always":
                    raise OSError(errno.EOPNOTSUPP, "direct I/O is not supported here: use direct_io = auto", name)
            return self._direct

    def close(self) -> None:
        """Read nothing directly any more. Nobody may be reading."""
        with self._lock:
            direct, self._direct, self._open = self._direct, -1, False
        if direct >= 0:
            os.close(direct)
