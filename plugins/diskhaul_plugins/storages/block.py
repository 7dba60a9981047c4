"""Storage ``block``: a disk that is a block device.

A device is opened once and everything is asked of the descriptor, so that a path that changes its mind meanwhile does no
harm. Symbolic links are followed: ``/dev/disk/by-id`` and ``/dev/mapper`` consist of them. Reading a device that a guest
has open is fine; writing to one that anybody uses is refused.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator

import diskhaul_native as native
from diskhaul.api import BackendContext, Capability, Storage
from diskhaul.errors import StorageError
from diskhaul.model import Disk

from . import usage, writers
from .raw import RawInPlace, RawReader, RawWriter, disk_path, storage_error

_BLKROGET = 0x125E  # linux/fs.h: _IO(0x12, 94)


def capability() -> Capability:
    """Works on every Linux."""
    return Capability(works=True, detail="block devices")


class BlockStorage(Storage):
    """Disks that are block devices. Stateless."""

    def __init__(self, context: BackendContext) -> None:
        self._context = context

    def open(self, disk: Disk, /) -> RawReader:
        path = disk_path(disk)
        descriptor = _open_device(path, os.O_RDONLY)
        try:
            size = native.block_device_size(descriptor)
            if size == 0:
                raise StorageError(f"{path}: has no medium (0 bytes): attach or activate it", path=path)
            return RawReader(descriptor, size, path)
        except OSError as error:
            os.close(descriptor)
            raise storage_error("ask for the size of", path, error) from error
        except BaseException:
            os.close(descriptor)
            raise

    def check(self, disk: Disk, /) -> Iterator[str]:
        if disk.path is None:
            yield f"{disk.label}: 'path' is not set: storage 'block' needs the path of the device"
            return
        try:
            self.open(disk).close()
        except StorageError as error:
            yield f"{disk.label}: {_reason(error)}"

    def in_use(self, disk: Disk, /) -> Iterator[str]:
        if disk.path is None:
            return
        status = os.stat(disk.path)
        if stat.S_ISBLK(status.st_mode):
            yield from writers.device_writers(status.st_rdev)

    def create(self, disk: Disk, size: int, /, *, overwrite: bool) -> RawWriter:
        path = disk_path(disk)
        if not overwrite:
            # A device is never new: whatever is on it will be gone.
            raise StorageError(f"{path}: is an existing device: overwrite it with --force", path=path)
        if size < 0:
            raise StorageError(f"{path}: a disk cannot be {size} bytes large", path=path)
        descriptor = _open_device(path, os.O_RDONLY)
        try:
            device = os.fstat(descriptor).st_rdev
            if _is_read_only(descriptor):
                raise StorageError(f"{path}: is read-only: make it writable (blockdev --setrw) or choose another", path=path)
            available = native.block_device_size(descriptor)
            if available < size:
                raise StorageError(f"{path}: has {available} bytes, the disk needs {size}", path=path)
            users = list(usage.device_users(device))
            if users:
                raise StorageError(f"{path}: {', '.join(users)}: end that first", path=path)
        except OSError as error:
            raise storage_error("examine", path, error) from error
        finally:
            os.close(descriptor)
        # The second open is the one that is written to: it has to be the device that was examined.
        descriptor = _open_device(path, os.O_RDWR | os.O_EXCL)
        try:
            if os.fstat(descriptor).st_rdev != device or native.block_device_size(descriptor) < size:
                raise StorageError(f"{path}: became another device while it was opened", path=path)
            if users := list(writers.device_writers(device)):  # not all open it exclusively: QEMU does not
                raise StorageError(f"{path}: {', '.join(users)}: end that first", path=path)
        except BaseException:
            os.close(descriptor)
            raise
        return RawWriter(descriptor, size, path, reads_zero=False)

    def open_in_place(self, disk: Disk, /) -> RawInPlace:
        """Opened exclusively: meanwhile nobody mounts it, nor opens it exclusively."""
        path = disk_path(disk)
        descriptor = _open_device(path, os.O_RDWR | os.O_EXCL)
        try:
            if _is_read_only(descriptor):
                raise StorageError(f"{path}: is read-only: make it writable (blockdev --setrw)", path=path)
            device, size = os.fstat(descriptor).st_rdev, native.block_device_size(descriptor)
            return RawInPlace(descriptor, size, path, lambda: writers.device_writers(device))
        except BaseException:
            os.close(descriptor)
            raise

    def check_in_place(self, disk: Disk, /) -> Iterator[str]:
        try:
            descriptor = _open_device(disk_path(disk), os.O_RDONLY)
        except StorageError:
            return  # `check` has said so
        try:
            if _is_read_only(descriptor):
                yield f"{disk.label}: cannot be zeroed in place: it is read-only"
        finally:
            os.close(descriptor)

    def location(self, disk: Disk, /) -> str:
        """The file behind a loop device (it may be a disk itself), else ``block:MAJOR:MINOR``, which no link disguises."""
        if disk.path is None:
            return ""
        try:
            status = os.stat(disk.path)
        except (OSError, ValueError):
            return os.path.realpath(disk.path)
        if not stat.S_ISBLK(status.st_mode):
            return os.path.realpath(disk.path)
        backing = usage.loop_backing(status.st_rdev)
        if backing is not None:
            path, offset = backing
            return os.path.realpath(path) + (f"@{offset}" if offset else "")
        return f"block:{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _open_device(path: str, flags: int) -> int:
    """Open `path`, which has to be a block device.

    Raises:
        StorageError: it is something else, is in use (with O_EXCL), or cannot be opened.
    """
    try:
        if not stat.S_ISBLK(os.stat(path).st_mode):  # first: opening a character device may already do something
            raise _not_a_device(path)
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise StorageError(f"{path}: is in use (mounted, or held by another program): end that first", path=path) from error
        raise storage_error("open", path, error) from error
    if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_a_device(path)
    return descriptor


def _not_a_device(path: str) -> StorageError:
    return StorageError(f'{path}: is not a block device: use storage = "file" for an image', path=path)


def _is_read_only(descriptor: int) -> bool:
    answer = bytearray(4)
    fcntl.ioctl(descriptor, _BLKROGET, answer)
    return bool(struct.unpack("i", answer)[0])


def _reason(error: StorageError) -> str:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno == errno.ENOENT:
        return "does not exist"
    return str(error).removeprefix(f"{error.path}: ")
