"""What lies beneath a directory that others may write to, reached by descriptors.

All but `open_root` and `is_single` take a descriptor of the directory and a name of one component, follow no link, and touch
only directories and regular files: nothing that is put in the way meanwhile leads them elsewhere. Those that take a `place`
(the path, for the sentences) raise `StorageError` for what is missing or is not what it should be; those that look at an entry,
or create, rename or delete one, raise `OSError`, because only their caller knows what it was about to do. Descriptors that are
returned are the caller's to close. Thread-safe.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Callable
from functools import cache

from diskhaul.errors import StorageError

from ..storages.raw import storage_error

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RENAME_NOREPLACE = 1  # linux/fs.h


def is_single(name: str) -> bool:
    """True for one path component that stays where it is."""
    return bool(name) and name not in (".", "..") and "/" not in name and "\0" not in name


def names(directory: int, place: str) -> list[str]:
    """The names of all entries, in no order."""
    try:
        return os.listdir(directory)
    except OSError as error:
        raise storage_error("list", place, error) from error


def mode_of(directory: int, name: str) -> int | None:
    """The mode of an entry, of a link's own; None when it is not there."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def exists(directory: int, name: str) -> bool:
    """Whether there is anything of this name, a link that leads nowhere included."""
    return mode_of(directory, name) is not None


def is_directory(directory: int, name: str) -> bool:
    """Whether the entry is a directory, and no link to one."""
    mode = mode_of(directory, name)
    return mode is not None and stat.S_ISDIR(mode)


def open_root(path: str) -> int:
    """Open a directory that the operator named."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError as error:
        raise StorageError(f"{path}: is not a directory", path=path) from error
    except FileNotFoundError as error:
        raise StorageError(f"{path}: does not exist", path=path) from error
    except OSError as error:
        raise storage_error("open", path, error) from error


def open_regular(directory: int, name: str, place: str, *, writable: bool = False) -> tuple[int, int]:
    """Open a regular file for reading, or both, and return its descriptor and size; nothing else is even opened."""
    try:
        mode = mode_of(directory, name)
        if mode is None:
            raise StorageError(f"{place}: is missing", path=place)
        if not stat.S_ISREG(mode):  # opening a FIFO waits, opening a device may do something
            raise StorageError(f"{place}: is not a regular file", path=place)
        flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        raise storage_error("open", place, error) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise StorageError(f"{place}: is not a regular file", path=place)
    return descriptor, status.st_size


def create_file(directory: int, name: str) -> int:
    """Make a file that was not there, open for reading and writing, 0600 whatever the umask."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_below(directory: int, name: str, place: str) -> int:
    """Open a directory beneath another one, refusing links."""
    descriptor = find_below(directory, name, place)
    if descriptor is None:
        raise StorageError(f"{place}: does not exist", path=place)
    return descriptor


def find_below(directory: int, name: str, place: str) -> int | None:
    """As `open_below`, but None when it is not there."""
    try:
        return os.open(name, _DIRECTORY, dir_fd=directory)
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:  # what O_DIRECTORY with O_NOFOLLOW says of a link, too
        raise StorageError(f"{place}: is not a directory (a link is not followed): move it elsewhere", path=place) from error
    except OSError as error:
        raise storage_error("open", place, error) from error


def make_directory(root: int, name: str, place: str) -> int:
    """Open the directory `name` below `root`, making it durably if it is not there."""
    while True:
        try:
            os.mkdir(name, 0o700, dir_fd=root)
            made = True
        except FileExistsError:
            made = False
        directory = find_below(root, name, place)
        if directory is None:
            continue  # a removal has just taken the empty directory away
        if made:
            os.fchmod(directory, 0o700)
            os.fsync(root)
        return directory


@cache
def _renameat2() -> Callable[[int, bytes, int, bytes, int], int] | None:
    """The C library's renameat2, or None in one that has none (glibc before 2.28, older musl)."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]  # ctypes functions have no signature to check


def rename_new(directory: int, old: str, new: str) -> None:
    """Rename an entry; `FileExistsError` when the new name is taken, also by an empty directory."""
    function = _renameat2()
    if function is not None:
        if function(directory, os.fsencode(old), directory, os.fsencode(new), _RENAME_NOREPLACE) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOSYS):  # filesystems (NFS, some FUSE) and kernels without the flag
            raise OSError(number, os.strerror(number), new)
    if exists(directory, new):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
    os.rename(old, new, src_dir_fd=directory, dst_dir_fd=directory)


def delete_file(directory: int, name: str) -> None:
    """Delete an entry that is no directory. Nothing there, nothing done."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass


def delete(directory: int, name: str, place: str) -> None:
    """Delete a directory tree by descriptors, following no link. Nothing there, nothing done."""
    mode = mode_of(directory, name)
    if mode is None:
        return
    where = os.path.join(place, name)
    if not stat.S_ISDIR(mode):
        raise StorageError(f"{where}: is not a directory (a link is not followed): not removed", path=where)
    try:
        shutil.rmtree(name, dir_fd=directory)
    except RecursionError as error:
        raise StorageError(f"{where}: holds directories nested too deep: remove it by hand", path=where) from error
    os.fsync(directory)
