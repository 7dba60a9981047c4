"""The "no copy on write" flag of files on btrfs, which shares blocks only between files that agree about it."""

from __future__ import annotations

import errno
import fcntl
import struct

_FS_IOC_GETFLAGS = 0x80086601  # linux/fs.h
_FS_IOC_SETFLAGS = 0x40086602
_FS_NOCOW_FL = 0x00800000


def inherit_nocow(source: int, target: int) -> bool:
    """Give the empty file `target` the flag as `source` has it; return whether it had to be changed. Raises `OSError`."""
    try:
        theirs, ours = _flags(source), _flags(target)
        if not (theirs ^ ours) & _FS_NOCOW_FL:
            return False
        fcntl.ioctl(target, _FS_IOC_SETFLAGS, struct.pack("i", ours ^ _FS_NOCOW_FL))
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):  # a filesystem without such flags
            raise
        return False
    return True


def toggle_nocow(target: int) -> None:
    """Turn the flag of the empty file `target` around. Raises `OSError`."""
    fcntl.ioctl(target, _FS_IOC_SETFLAGS, struct.pack("i", _flags(target) ^ _FS_NOCOW_FL))


def _flags(descriptor: int) -> int:
    answer = bytearray(8)  # declared as long, used as int
    fcntl.ioctl(descriptor, _FS_IOC_GETFLAGS, answer)
    return int(struct.unpack_from("i", answer)[0])
