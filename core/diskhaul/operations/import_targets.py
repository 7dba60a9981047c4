"""Where an import writes: new files that get their name when they are whole, or disks that stay marked until they are."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from ..api import DiskWriter, Storage
from ..errors import StorageError
from ..model import Disk

INCOMPLETE = ".incomplete"
"""What a file that is being restored is called, after its name, until it is whole."""
_HEAD = 4096  # where partition tables and superblocks begin: nobody takes a disk without it for a good one


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportTarget:
    """One disk's target.

    Attributes:
        disk: the disk to be, with its storage's name and its final path.
        size: bytes; the exported size, or more.
        storage: opens it.
    """

    disk: Disk
    size: int
    storage: Storage

    @property
    def is_file(self) -> bool:
        """True for image files, which are written beside their name and renamed."""
        return self.disk.storage == "file" and self.disk.path is not None

    @property
    def place(self) -> str:
        """How messages and results call it."""
        return str(self.disk.path) if self.disk.path is not None else self.disk.label

    def problems(self, *, force: bool, new_directory: Path | None = None) -> list[str]:
        """Reasons why it cannot be written. Changes nothing; `new_directory` will be made before anything is written."""
        if not self.is_file:
            return []  # only opening it for writing tells, which `open` does for all targets before anything is written
        path = self.disk.path
        assert path is not None
        if new_directory is not None and path.parent == new_directory and not new_directory.exists():
            return []
        if not path.parent.is_dir():
            return [f"{path}: its directory does not exist: create it first"]
        if not os.access(path.parent, os.W_OK | os.X_OK):
            return [f"{path}: its directory cannot be written"]
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return []
        if not force:
            return [f"{path}: exists already: choose another path, or overwrite it with --force"]
        if not stat.S_ISREG(found.st_mode):
            return [f"{path}: is not a regular file (links are not followed): choose another path"]
        try:
            # Opening an existing file for writing checks that nobody uses it, and empties it only at the first write.
            self.storage.create(self.disk, self.size, overwrite=True).close()
        except (StorageError, OSError) as error:
            return [str(error)]
        return []

    def open(self, *, force: bool, label: str) -> OpenTarget:
        """Open it for writing.

        Raises:
            StorageError: it cannot be.
        """
        if self.is_file:
            assert self.disk.path is not None
            beside = replace(self.disk, path=self.disk.path.with_name(self.disk.path.name + INCOMPLETE))
            return FileTarget(self, self.storage.create(beside, self.size, overwrite=force))
        return InPlaceTarget(self.storage.create(self.disk, self.size, overwrite=force), label)


class OpenTarget:
    """A target that is being written. `writer` takes the chunks; then `complete`, or just `close`."""

    def __init__(self, writer: DiskWriter) -> None:
        self.writer = writer

    def complete(self) -> None:
        """Make it count as whole, durably. Everything has been written and flushed."""
        raise NotImplementedError

    def close(self) -> None:
        """Close it; a target that was not completed stays marked as incomplete."""
        self.writer.close()


class FileTarget(OpenTarget):
    """An image file, written as ``NAME.incomplete`` and renamed: what it replaces stays whole until then."""

    def __init__(self, target: ImportTarget, writer: DiskWriter) -> None:
        super().__init__(writer)
        assert target.disk.path is not None
        self._path: Path = target.disk.path

    def complete(self) -> None:
        beside = self._path.with_name(self._path.name + INCOMPLETE)
        try:
            if self._path.exists():  # overwritten with --force: its owner and mode stay
                before = self._path.stat()
                os.chown(beside, before.st_uid, before.st_gid)
                os.chmod(beside, stat.S_IMODE(before.st_mode))
            os.rename(beside, self._path)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise StorageError(f"{self._path}: cannot get its name: {error.strerror}", path=str(self._path)) from error


class InPlaceTarget(OpenTarget):
    """A disk that exists (a device, a plugin's storage): its first bytes say "incomplete" until everything else is there."""

    def __init__(self, writer: DiskWriter, label: str) -> None:
        self._inner = writer
        self._head: bytes | None = None
        self._marker = f"diskhaul: incomplete import of {label}\n".encode()
        if writer.size >= _HEAD:
            self._inner.write(0, memoryview(self._marker.ljust(_HEAD, b"\0")))
            self._inner.flush()
        super().__init__(_HeadKeeper(writer, self))

    def keep_head(self, head: bytes) -> None:
        self._head = head

    def complete(self) -> None:
        if self._inner.size >= _HEAD:
            self._inner.write(0, memoryview(self._head or bytes(_HEAD)))
            self._inner.flush()

    def close(self) -> None:
        self._inner.close()


class _HeadKeeper:
    """Passes everything on but the first bytes, which it leaves with its target."""

    def __init__(self, writer: DiskWriter, target: InPlaceTarget) -> None:
        self._writer, self._target = writer, target

    @property
    def size(self) -> int:
        return self._writer.size

    @property
    def reads_zero(self) -> bool:
        return self._writer.reads_zero

    def write(self, offset: int, buffer: memoryview, /) -> None:
        if offset == 0 and self._writer.size >= _HEAD:
            self._target.keep_head(bytes(buffer[:_HEAD]))
            if len(buffer) > _HEAD:
                self._writer.write(_HEAD, buffer[_HEAD:])
        else:
            self._writer.write(offset, buffer)

    def zero(self, offset: int, length: int, /) -> None:
        if offset == 0 and self._writer.size >= _HEAD:
            if length > _HEAD:
                self._writer.zero(_HEAD, length - _HEAD)
        else:
            self._writer.zero(offset, length)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
