"""Files of an export that share the blocks of a disk (FICLONE), where both lie on one filesystem with reflinks."""

from __future__ import annotations

import errno
import os
import stat

import diskhaul_native as native

from ..storages.nocow import inherit_nocow, toggle_nocow

_CANNOT_BE = frozenset({errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ETXTBSY, errno.EBADF, errno.EISDIR})
"""Other filesystems, and those without reflinks; files of different kinds (btrfs: with and without checksums); swap files."""


def clone_whole(source: int, target: int, size: int, name: str) -> bool:
    """Have `target`, in which nothing was written, share the blocks of `source`, which is `size` bytes large.

    Returns:
        False where it cannot be; `target` is then as it was.

    Raises:
        OSError: it failed; `target` may hold a part. ESTALE: `source` has another size by now.
    """
    status = os.fstat(source)
    if not stat.S_ISREG(status.st_mode) or status.st_size != size:
        return False
    before = os.fstat(target).st_size
    os.ftruncate(target, 0)  # flags can be changed of empty files only
    changed = inherit_nocow(source, target)
    try:
        native.clone(source, target, name=name)
    except OSError as error:
        if error.errno not in _CANNOT_BE:
            raise
        if changed:
            toggle_nocow(target)  # a copy is better off with checksums
        os.ftruncate(target, before)
        return False
    if os.fstat(target).st_size != size:
        raise OSError(errno.ESTALE, "the disk changed its size meanwhile", name)
    return True


def can_clone(source: int, directory: int) -> bool:
    """Whether files in `directory` can share blocks with `source`: tried with a file that has no name. Raises `OSError`."""
    status = os.fstat(source)
    if not stat.S_ISREG(status.st_mode):
        return False
    trial = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        inherit_nocow(source, trial)
        one_block = status.st_blksize if status.st_size >= status.st_blksize else 0
        native.clone(source, trial, length=one_block)
    finally:
        os.close(trial)
    return True
