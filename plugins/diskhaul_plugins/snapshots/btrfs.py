"""Snapshots ``btrfs``: a read-only snapshot of the subvolume that holds the disk's file.

The snapshot is called ``.diskhaul-<run id>-disk<index>`` and lies at the top of that subvolume. Creating it writes out what
the subvolume's files still have in the cache and commits the transaction (``create_snapshot`` in the kernel), so it holds
what had been written by then, also of files without copy on write (``chattr +C``). Done by ioctl: no program is needed.
The numbers and structures are those of ``linux/btrfs.h``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import stat
import struct

from diskhaul.api import BackendContext, Capability, Snapshot, Snapshots
from diskhaul.errors import SnapshotError
from diskhaul.model import Disk
from diskhaul.mounts import mount_of

from ..storages.raw import RawReader
from .place import check_run_id, entry_exists, open_directory, remove_entry, split_reference

NAME = "btrfs"
_ROOT_INODE = 256  # BTRFS_FIRST_FREE_OBJECTID: the inode of every subvolume's top directory
_SNAP_CREATE_V2 = 0x50009417  # _IOW(0x94, 23, struct btrfs_ioctl_vol_args_v2)
_SNAP_DESTROY = 0x5000940F  # _IOW(0x94, 15, struct btrfs_ioctl_vol_args)
_SUBVOL_GETFLAGS = 0x80089419  # _IOR(0x94, 25, __u64)
_SUBVOL_RDONLY = 1 << 1
_VOL_ARGS_V2 = struct.Struct("=qQQ32s4040s")  # fd, transid, flags, unused, name
_VOL_ARGS = struct.Struct("=q4088s")  # fd, name
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def capability() -> Capability:
    """Works for root on a kernel with btrfs; whether a disk lies on one is only known disk by disk."""
    if os.geteuid() != 0:
        return Capability(works=False, detail="needs root: btrfs lets nobody else remove snapshots")
    try:
        with open("/proc/filesystems", encoding="ascii") as table:
            known = any(line.split()[-1:] == ["btrfs"] for line in table)
    except OSError:
        known = False
    return Capability(works=True, detail="disks in files on btrfs" if known else "no btrfs is loaded in this kernel yet")


class BtrfsSnapshots(Snapshots):
    """Read-only subvolume snapshots. Stateless and thread-safe."""

    def __init__(self, context: BackendContext) -> None:
        self._context = context

    def refuses(self, disk: Disk, /) -> str | None:
        if disk.storage != "file" or disk.path is None:
            return f"btrfs snapshots are for disks of storage 'file', not {disk.storage!r}"
        try:
            _subvolume_of(os.path.realpath(disk.path))
        except SnapshotError as error:
            return str(error)
        if os.geteuid() != 0:
            return "btrfs lets only root remove snapshots: run as root"
        return None

    def plan(self, disk: Disk, run_id: str, /) -> Snapshot:
        if disk.path is None:
            raise SnapshotError(f"{disk.label}: a disk without a path lies in no subvolume")
        check_run_id(disk, run_id)
        top = _subvolume_of(os.path.realpath(disk.path))
        return Snapshot(
            backend=NAME, disk=disk, run_id=run_id, reference=os.path.join(top, f".diskhaul-{run_id}-disk{disk.index}")
        )

    def create(self, snapshot: Snapshot, /) -> None:
        top, name = _place(snapshot)
        label = snapshot.disk.label
        origin = _disk_in(snapshot)  # refuses a disk that is no longer in this subvolume
        try:
            subvolume = open_directory(top)
        except OSError as error:
            raise SnapshotError(f"{label}: {top}: {os.strerror(error.errno or 0)}") from error
        try:
            if _subvolume_flags(subvolume) is None:
                raise SnapshotError(f"{label}: {top} is no longer a btrfs subvolume")
            try:
                inode = os.stat(os.path.join(top, origin)).st_ino
            except OSError as error:
                raise SnapshotError(f"{label}: {top} lacks {origin}: {os.strerror(error.errno or 0)}") from error
            try:
                _ioctl(subvolume, _SNAP_CREATE_V2, _VOL_ARGS_V2.pack(subvolume, 0, _SUBVOL_RDONLY, b"", os.fsencode(name)))
            except OSError as error:
                raise SnapshotError(f"{label}: btrfs made no snapshot of {top}: {_reason(error)}") from error
            try:
                self._check_created(subvolume, name, origin, snapshot, inode)
            except BaseException as failure:
                try:
                    _destroy(subvolume, name)
                except OSError as error:
                    failure.add_note(f"and {snapshot.reference} could not be removed: {error}")
                raise
        finally:
            os.close(subvolume)

    def open(self, snapshot: Snapshot, /) -> RawReader:
        top, name = _place(snapshot)
        relative = _disk_in(snapshot)
        try:
            subvolume = open_directory(top)
            try:
                descriptor = _open_inside(subvolume, name, relative, snapshot)
            finally:
                os.close(subvolume)
        except FileNotFoundError as error:
            raise SnapshotError(f"{snapshot.reference}: the snapshot, or {relative} in it, is gone") from error
        except OSError as error:
            raise SnapshotError(
                f"{snapshot.reference}: the snapshot cannot be opened: {os.strerror(error.errno or 0)}"
            ) from error
        return RawReader(descriptor, os.fstat(descriptor).st_size, os.path.join(snapshot.reference, relative))

    def exists(self, snapshot: Snapshot, /) -> bool:
        _place(snapshot)
        return entry_exists(snapshot.reference)

    def remove(self, snapshot: Snapshot, /) -> None:
        def remove(subvolume: int, name: str) -> None:
            os.close(_open_snapshot(subvolume, name, snapshot))
            _destroy(subvolume, name)

        remove_entry(*_place(snapshot), remove, _reason)

    def _check_created(self, subvolume: int, name: str, relative: str, snapshot: Snapshot, inode: int) -> None:
        """Look for ourselves: a snapshot that can be written to, or lacks the disk, is none. Files keep their inodes' numbers."""
        try:
            disk = _open_inside(subvolume, name, relative, snapshot)
            try:
                found = os.fstat(disk).st_ino
            finally:
                os.close(disk)
            if found != inode:
                raise SnapshotError(
                    f"{snapshot.disk.label}: {relative} in the new snapshot is another file: is something mounted over it?"
                )
        except OSError as error:
            raise SnapshotError(
                f"{snapshot.disk.label}: the new snapshot {snapshot.reference} lacks {relative}: {os.strerror(error.errno or 0)}"
            ) from error


def _place(snapshot: Snapshot) -> tuple[str, str]:
    """Directory and name of a snapshot; refuses what does not carry the name of this backend and this run."""
    pattern = rf"\.diskhaul-{re.escape(snapshot.run_id)}-disk[0-9]+"
    return split_reference(snapshot, NAME, lambda name: re.fullmatch(pattern, name) is not None)


def _disk_in(snapshot: Snapshot) -> str:
    """The disk's path relative to the top of its subvolume."""
    if snapshot.disk.path is None:
        raise SnapshotError(f"{snapshot.disk.label}: a disk without a path lies in no subvolume")
    path = os.path.realpath(snapshot.disk.path)
    relative = os.path.relpath(path, os.path.dirname(snapshot.reference))
    if relative.split("/")[0] == "..":
        raise SnapshotError(f"{snapshot.disk.label}: does not lie in {os.path.dirname(snapshot.reference)}")
    return relative


def _subvolume_of(path: str) -> str:
    """The top directory of the btrfs subvolume that holds the regular file `path` (resolved)."""
    try:
        status = os.stat(path, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            raise SnapshotError(f"{path}: is not a regular file")
        top = os.path.dirname(path)
        while os.stat(top).st_dev == status.st_dev:  # each subvolume has a device number of its own
            if os.stat(top).st_ino == _ROOT_INODE:
                descriptor = open_directory(top)
                try:
                    found = _subvolume_flags(descriptor) is not None
                finally:
                    os.close(descriptor)
                if found and mount_of(path) != mount_of(top):
                    raise SnapshotError(f"{path}: something is mounted between it and the top of its subvolume, {top}")
                if found:
                    return top
            if top == "/":
                break
            top = os.path.dirname(top)
    except OSError as error:
        raise SnapshotError(f"{path}: {os.strerror(error.errno or 0)}") from error
    raise SnapshotError(f"{path}: lies in no btrfs subvolume that can be seen from here")


def _subvolume_flags(descriptor: int) -> int | None:
    """The flags of a subvolume, or None when `descriptor` is not the top of one."""
    answer = bytearray(8)
    try:
        fcntl.ioctl(descriptor, _SUBVOL_GETFLAGS, answer)
    except OSError as error:
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise
    return int(struct.unpack("=Q", answer)[0])


def _open_snapshot(subvolume: int, name: str, snapshot: Snapshot) -> int:
    """Open the top of a snapshot, having made sure that it is a subvolume."""
    try:
        top = os.open(name, _DIRECTORY, dir_fd=subvolume)
    except NotADirectoryError as error:
        raise SnapshotError(f"{snapshot.reference}: is not a directory, so it is no snapshot: not touched") from error
    try:
        flags = _subvolume_flags(top)
        if flags is None:
            raise SnapshotError(f"{snapshot.reference}: is not a btrfs subvolume, so it is no snapshot: not touched")
    except BaseException:
        os.close(top)
        raise
    return top


def _open_inside(subvolume: int, name: str, relative: str, snapshot: Snapshot) -> int:
    """Open the disk inside a snapshot, one component at a time and following no link."""
    top = _open_snapshot(subvolume, name, snapshot)
    try:
        if not (_subvolume_flags(top) or 0) & _SUBVOL_RDONLY:
            raise SnapshotError(f"{snapshot.reference}: can be written to, so it proves nothing")
        *parents, last = relative.split("/")
        for parent in parents:
            below = os.open(parent, _DIRECTORY, dir_fd=top)
            os.close(top)
            top = below
        descriptor = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=top)
    finally:
        os.close(top)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SnapshotError(f"{snapshot.reference}: {relative} in it is not a regular file")
    return descriptor


def _destroy(subvolume: int, name: str) -> None:
    _ioctl(subvolume, _SNAP_DESTROY, _VOL_ARGS.pack(0, os.fsencode(name)))


def _ioctl(descriptor: int, request: int, argument: bytes) -> None:
    """As `fcntl.ioctl`, which has all other threads wait for calls with an argument of this size, and these take their time."""
    buffer = ctypes.create_string_buffer(argument, len(argument))
    if ctypes.CDLL(None, use_errno=True).ioctl(descriptor, ctypes.c_ulong(request), buffer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _reason(error: OSError) -> str:
    return {
        errno.EPERM: "not permitted: run as root, or mount with user_subvol_rm_allowed",
        errno.EACCES: "not permitted: run as root, or mount with user_subvol_rm_allowed",
        errno.EROFS: "the filesystem is mounted read-only",
        errno.ETXTBSY: "a file in the subvolume is swap space in use",
        errno.ENOSPC: "no room",
        errno.EEXIST: "there is something of that name",
    }.get(error.errno or 0, os.strerror(error.errno or 0))
