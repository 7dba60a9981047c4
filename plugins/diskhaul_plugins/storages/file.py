"""Storage ``file``: a raw disk image in a regular file.

The configured path is the operator's and may be a symbolic link when it is read. A file that is written is opened without
following one, so that nobody can swap the target for a link to something else between the check and the write. The format
of an image is configured, never probed: whatever its first bytes look like, the file is the disk.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

import diskhaul_native as native
from diskhaul.api import BackendContext, Capability, Storage
from diskhaul.errors import StorageError
from diskhaul.model import Disk

from . import usage, writers
from .raw import RawInPlace, RawReader, RawWriter, disk_path, storage_error


def capability() -> Capability:
    """Works on every machine."""
    return Capability(works=True, detail="raw images in regular files")


class FileWriter(RawWriter):
    """A regular file that an import writes.

    An existing file is emptied by the first call that needs it empty (`write`, `zero`, `flush`, `fileno`), not when it is
    opened: an import that is refused because of its second disk has then not touched the first.
    """

    def __init__(self, descriptor: int, directory: int, size: int, path: str) -> None:
        super().__init__(descriptor, size, path, reads_zero=True)
        self._directory = directory
        self._emptied = False

    def close(self) -> None:
        with self._lock:
            directory, self._directory = self._directory, -1
        try:
            super().close()
        finally:
            if directory >= 0:
                os.close(directory)

    def _prepare(self, descriptor: int) -> None:
        # Truncation makes old bytes zeros and holes at once; it gives up space that was reserved for the old file.
        if not self._emptied:
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, self._size)
            self._emptied = True

    def _flush(self, descriptor: int) -> None:
        super()._flush(descriptor)
        native.fsync(self._directory, name=os.path.dirname(self._path))


class FileStorage(Storage):
    """Raw disk images in regular files. Stateless."""

    def __init__(self, context: BackendContext) -> None:
        self._context = context

    def open(self, disk: Disk, /) -> RawReader:
        path = disk_path(disk)
        try:
            descriptor = _open_to_read(path)
        except OSError as error:
            raise storage_error("open", path, error) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise StorageError(f"{path}: {_not_regular(status)}", path=path)
            return RawReader(descriptor, status.st_size, path)
        except BaseException:
            os.close(descriptor)
            raise

    def check(self, disk: Disk, /) -> Iterator[str]:
        if disk.path is None:
            yield f"{disk.label}: 'path' is not set: storage 'file' needs the path of the image"
            return
        try:
            status = os.stat(disk.path)
        except (OSError, ValueError) as error:
            yield f"{disk.label}: {_reason(error)}"
            return
        if not stat.S_ISREG(status.st_mode):
            yield f"{disk.label}: {_not_regular(status)}"
            return
        try:
            self.open(disk).close()
        except StorageError as error:
            yield f"{disk.label}: {_reason(error.__cause__ or error)}"

    def in_use(self, disk: Disk, /) -> Iterator[str]:
        if disk.path is not None and stat.S_ISREG(os.stat(disk.path).st_mode):
            yield from writers.file_writers(os.fspath(disk.path))

    def create(self, disk: Disk, size: int, /, *, overwrite: bool) -> FileWriter:
        path = disk_path(disk)
        if size < 0:
            raise StorageError(f"{path}: a disk cannot be {size} bytes large", path=path)
        parent, name = os.path.split(os.path.abspath(path))
        try:
            directory = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise storage_error("open the directory of", path, error) from error
        try:
            descriptor = self._open_target(directory, name, path, overwrite=overwrite)
        except BaseException:
            os.close(directory)
            raise
        return FileWriter(descriptor, directory, size, path)

    def open_in_place(self, disk: Disk, /) -> RawInPlace:
        """The configured path may be a link, as when it is read: what is opened is what will be looked at."""
        path = disk_path(disk)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as error:
            raise storage_error("open for writing", path, error) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise StorageError(f"{path}: {_not_regular(status)}", path=path)
            return RawInPlace(descriptor, status.st_size, path, lambda: writers.file_writers(f"/proc/self/fd/{descriptor}"))
        except BaseException:
            os.close(descriptor)
            raise

    def check_in_place(self, disk: Disk, /) -> Iterator[str]:
        if disk.path is None or not os.path.isfile(disk.path):
            return  # `check` has said so
        if not os.access(disk.path, os.W_OK):
            yield f"{disk.label}: cannot be zeroed in place: it is not writable"

    def location(self, disk: Disk, /) -> str:
        return os.path.realpath(disk.path) if disk.path is not None else ""

    def _open_target(self, directory: int, name: str, path: str, *, overwrite: bool) -> int:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=directory)
        except FileExistsError:
            if not overwrite:
                raise StorageError(
                    f"{path}: exists already: choose another path, or overwrite it with --force", path=path
                ) from None
        except OSError as error:
            raise storage_error("create", path, error) from error
        else:
            os.fchmod(descriptor, 0o600)  # whatever the umask
            return descriptor
        try:
            before = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if not stat.S_ISREG(before.st_mode):
                raise StorageError(f"{path}: {_not_regular(before)}", path=path)
            descriptor = os.open(name, flags, dir_fd=directory)
        except OSError as error:
            raise storage_error("open to overwrite", path, error) from error
        try:
            self._check_target(descriptor, path)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _check_target(self, descriptor: int, path: str) -> None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StorageError(f"{path}: {_not_regular(status)}", path=path)
        if status.st_nlink != 1:
            raise StorageError(
                f"{path}: has {status.st_nlink} names (hard links) and would change under all of them: give it a file of its own",
                path=path,
            )
        users = list(usage.file_users(descriptor))
        if not users and usage.open_elsewhere(descriptor, path):
            users = ["is open in another process"]
        if users:
            raise StorageError(f"{path}: {', '.join(users)}: end that first", path=path)


def _open_to_read(path: str) -> int:
    """Open `path` without waiting for anything, should it be a FIFO by now."""
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)


def _not_regular(status: os.stat_result) -> str:
    mode = status.st_mode
    if stat.S_ISBLK(mode):
        return 'is a block device: use storage = "block"'
    if stat.S_ISLNK(mode):
        return "is a symbolic link: name the file itself"
    kind = "a directory" if stat.S_ISDIR(mode) else "a FIFO" if stat.S_ISFIFO(mode) else "not a regular file"
    return f"is {kind}: storage 'file' needs a regular file"


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno:
        return {
            errno.ENOENT: "does not exist",
            errno.EACCES: "cannot be read: permission denied",
        }.get(error.errno, os.strerror(error.errno))
    return str(error)
