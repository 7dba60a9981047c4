"""Snapshots ``reflink``: a copy that shares the disk's blocks (FICLONE), on XFS, btrfs and whatever else can.

The copy lies beside the disk as ``.<name>.diskhaul-<run id>.snap``, mode 0600. The filesystem makes it under the disk
file's lock, after it has written out what was still in its cache, so it holds exactly what had been written by then:
ioctl_ficlone(2), and ``vfs_clone_file_range`` in the kernel.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat

import diskhaul_native as native
from diskhaul.api import BackendContext, Capability, Snapshot, Snapshots
from diskhaul.errors import SnapshotError
from diskhaul.model import Disk
from diskhaul.mounts import mount_of

from ..storages.nocow import inherit_nocow
from ..storages.raw import RawReader
from .place import check_run_id, entry_exists, open_directory, remove_entry, split_reference

NAME = "reflink"
_MAX_NAME_BYTES = 255  # NAME_MAX


def capability() -> Capability:
    """Works where a filesystem has reflinks: which disks those are is only known disk by disk."""
    return Capability(works=True, detail="disks in files on XFS, btrfs and other filesystems with reflinks")


class ReflinkSnapshots(Snapshots):
    """Whole-file clones. Stateless and thread-safe."""

    def __init__(self, context: BackendContext) -> None:
        self._context = context

    def refuses(self, disk: Disk, /) -> str | None:
        if disk.storage != "file" or disk.path is None:
            return f"reflinks are for disks of storage 'file', not {disk.storage!r}"
        path = os.path.realpath(disk.path)
        try:
            source = _open_origin(path)
        except OSError as error:
            return f"{path}: {os.strerror(error.errno or 0)}"
        except SnapshotError as error:
            return str(error)
        try:
            # A file without a name, gone with its descriptor: the trial leaves nothing, however it ends.
            trial = os.open(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                inherit_nocow(source, trial)
                status = os.fstat(source)
                one_block = status.st_blksize if status.st_size >= status.st_blksize else 0
                native.clone(source, trial, length=one_block, name=path)
            finally:
                os.close(trial)
        except OSError as error:
            return _refusal(path, error)
        finally:
            os.close(source)
        return None

    def plan(self, disk: Disk, run_id: str, /) -> Snapshot:
        if disk.path is None:
            raise SnapshotError(f"{disk.label}: a disk without a path cannot be reflinked")
        check_run_id(disk, run_id)
        directory, name = os.path.split(os.path.realpath(disk.path))
        return Snapshot(backend=NAME, disk=disk, run_id=run_id, reference=os.path.join(directory, _snapshot_name(name, run_id)))

    def create(self, snapshot: Snapshot, /) -> None:
        if snapshot.disk.path is None:
            raise SnapshotError(f"{snapshot.disk.label}: a disk without a path cannot be reflinked")
        origin = os.path.realpath(snapshot.disk.path)
        parent, name = _place(snapshot)
        try:
            source = _open_origin(origin)
            try:
                directory = open_directory(parent)
                try:
                    self._clone(source, directory, name, snapshot)
                finally:
                    os.close(directory)
            finally:
                os.close(source)
        except OSError as error:
            raise SnapshotError(f"{snapshot.disk.label}: no snapshot: {_refusal(origin, error)}") from error

    def open(self, snapshot: Snapshot, /) -> RawReader:
        parent, name = _place(snapshot)
        path = snapshot.reference
        try:
            directory = open_directory(parent)
            try:
                if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                    raise SnapshotError(f"{path}: the snapshot was replaced by something else")
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
            finally:
                os.close(directory)
        except FileNotFoundError as error:
            raise SnapshotError(f"{path}: the snapshot is gone") from error
        except OSError as error:
            raise SnapshotError(f"{path}: the snapshot cannot be opened: {os.strerror(error.errno or 0)}") from error
        return RawReader(descriptor, os.fstat(descriptor).st_size, path)

    def exists(self, snapshot: Snapshot, /) -> bool:
        _place(snapshot)
        return entry_exists(snapshot.reference)

    def remove(self, snapshot: Snapshot, /) -> None:
        def remove(directory: int, name: str) -> None:
            if not stat.S_ISREG(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                raise SnapshotError(f"{snapshot.reference}: is not a regular file, so it is no snapshot: not removed")
            os.unlink(name, dir_fd=directory)

        remove_entry(*_place(snapshot), remove)

    def _clone(self, source: int, directory: int, name: str, snapshot: Snapshot) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(name, flags, 0o600, dir_fd=directory)
        try:
            try:
                os.fchmod(target, 0o600)  # whatever the umask
                inherit_nocow(source, target)
                native.clone(source, target, name=snapshot.reference)
                native.fsync(target, name=snapshot.reference)
                cloned, origin = os.fstat(target).st_size, os.fstat(source).st_size
                if cloned != origin:
                    raise SnapshotError(f"{snapshot.disk.label}: the snapshot has {cloned} bytes, the disk {origin}")
            finally:
                os.close(target)
        except BaseException as failure:
            try:
                os.unlink(name, dir_fd=directory)
            except OSError as error:
                failure.add_note(f"and {snapshot.reference} could not be removed: {error}")
            raise


def _snapshot_name(disk_name: str, run_id: str) -> str:
    """The name of the copy; a disk's name that leaves no room is cut, and told apart by a digest of the whole."""
    suffix = f".diskhaul-{run_id}.snap"
    if len(os.fsencode(f".{disk_name}{suffix}")) <= _MAX_NAME_BYTES:
        return f".{disk_name}{suffix}"
    digest = hashlib.blake2s(os.fsencode(disk_name), digest_size=8).hexdigest()
    room = _MAX_NAME_BYTES - len(os.fsencode(f".-{digest}{suffix}"))
    return f".{os.fsdecode(os.fsencode(disk_name)[:room])}-{digest}{suffix}"


def _place(snapshot: Snapshot) -> tuple[str, str]:
    """Directory and name of a snapshot; refuses what does not carry the name of this backend and this run."""
    suffix = f".diskhaul-{snapshot.run_id}.snap"
    return split_reference(snapshot, NAME, lambda name: name.startswith(".") and name.endswith(suffix))


def _open_origin(path: str) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SnapshotError(f"{path}: is not a regular file")
    return descriptor


def _refusal(path: str, error: OSError) -> str:
    if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EISDIR, errno.EINVAL, errno.EXDEV):
        mount = mount_of(path)
        kind = mount.kind if mount is not None else "the filesystem"
        return f"{path}: {kind} has no reflinks here: keep the disk on XFS (reflink=1) or btrfs, or use another snapshot backend"
    reasons = {errno.ETXTBSY: "is a swap file in use", errno.ENOSPC: "no room for a snapshot beside it"}
    return f"{path}: {reasons.get(error.errno or 0, os.strerror(error.errno or 0))}"
