"""The exception of this package: an errno error that knows the file and the offset.

OSError
+-- NativeIOError     errno, strerror, filename, offset
"""

from __future__ import annotations

import errno as errno_codes
import os

DIRECT_IO_REFUSED = (errno_codes.EINVAL, errno_codes.EOPNOTSUPP)
"""How a file or filesystem says that it does not take direct I/O, at opening or at the first read or write. What it does to a
valid range is told by other numbers."""


class NativeIOError(OSError):
    """A system call failed, or a file ended before the range that was asked for (errno ENODATA).

    `errno`, `strerror` and `filename` are OSError's; `filename` is the name the caller gave, else what the descriptor
    refers to. `offset` is the byte at which the failure happened (bytes before it were processed), or None
    where an operation has no offset.
    """

    offset: int | None

    def __init__(self, errno: int, strerror: str, filename: str | None = None, *, offset: int | None = None) -> None:
        super().__init__(errno, strerror, filename)
        self.offset = offset


def io_error(errno: int, action: str, fd: int, *, name: str = "", offset: int | None = None) -> NativeIOError:
    """The NativeIOError for `errno` while doing `action` ("reading") on `fd`."""
    reason = (
        "the file ends before the range (it is shorter than expected, or shrank)"
        if errno == errno_codes.ENODATA
        else os.strerror(errno)
    )
    place = f" at offset {offset}" if offset is not None else ""
    return NativeIOError(errno, f"{action}{place}: {reason}", name or described(fd), offset=offset)


def described(fd: int) -> str:
    """What an open descriptor refers to, for messages only."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # a closed descriptor, or no /proc: the number is all there is to say
        return f"descriptor {fd}"
