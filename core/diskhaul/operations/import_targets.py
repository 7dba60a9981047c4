"""Where an import writes: new files that get their name when they are whole, or disks that stay marked until they are."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from ..api import DiskWriter, Storage
from ..errors import DiskhaulError, StorageError
from ..model import Disk
from ..options import DirectIO
from ..pipeline.direct import direct_io_problem
from ..pipeline.source import Source, descriptor_of
from ..pipeline.target import Target
from ..pipeline.workers import as_diskhaul_error
from .plugin_answers import problems_from

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

    def problems(self, *, force: bool, new_directory: Path | None = None, direct_io: DirectIO = "auto") -> list[str]:
        """Reasons why it cannot be written. Changes nothing; `new_directory` will be made before anything is written."""
        problems = self._writing_problems(force=force, new_directory=new_directory)
        if not problems and direct_io == "always" and (problem := self._direct_io_problem()):
            problems.append(f"{self.place}: direct_io = always: {problem}; use direct_io = auto")
        return problems

    def _writing_problems(self, *, force: bool, new_directory: Path | None) -> list[str]:
        if self.is_file:
            return self._file_problems(force=force, new_directory=new_directory)
        if self.disk.storage == "block":
            return self.opening_problems(self.disk, force=force)
        return problems_from(self.disk.label, lambda: self.storage.check_target(self.disk, self.size, overwrite=force))

    def _file_problems(self, *, force: bool, new_directory: Path | None) -> list[str]:
        path = self.disk.path
        assert path is not None
        if new_directory is not None and path.parent == new_directory and not new_directory.exists():
            return []
        if not path.parent.is_dir():
            return [f"{path}: its directory does not exist: create it first"]
        if not os.access(path.parent, os.W_OK | os.X_OK):
            return [f"{path}: its directory cannot be written"]
        problems: list[str] = []
        for disk in (self.disk, self._beside):
            assert disk.path is not None
            try:
                found = os.lstat(disk.path)
            except FileNotFoundError:
                continue
            if not force:
                problems.append(f"{disk.path}: exists already: choose another path, or overwrite it with --force")
            elif not stat.S_ISREG(found.st_mode):
                problems.append(f"{disk.path}: is not a regular file (links are not followed): choose another path")
            else:
                problems += self.opening_problems(disk, force=True)
        return problems

    def opening_problems(self, disk: Disk, *, force: bool) -> list[str]:
        """What opening an existing file or device for writing says. Its first write would empty a file, opening it does not."""
        try:
            self.storage.create(disk, self.size, overwrite=force).close()
        except (DiskhaulError, OSError) as error:
            return [str(error)]
        return []

    def _direct_io_problem(self) -> str | None:
        """Why it cannot be written directly, or None: also when only opening it for writing will tell."""
        if self.is_file:
            assert self.disk.path is not None
            return _directory_problem(next(parent for parent in self.disk.path.parents if parent.exists()))
        try:
            reader = self.storage.open(self.disk)
        except Exception:  # it does not exist yet
            return None
        try:
            descriptor = descriptor_of(reader)
            return "its storage gives no file descriptor" if descriptor is None else direct_io_problem(descriptor)
        finally:
            Source(reader, self.disk.label).close()

    @property
    def _beside(self) -> Disk:
        """The file that is written until it is whole."""
        assert self.disk.path is not None
        return replace(self.disk, path=self.disk.path.with_name(self.disk.path.name + INCOMPLETE))

    def open(self, *, force: bool, label: str, direct_io: DirectIO) -> OpenTarget:
        """Open it for writing; nothing is written yet.

        Args:
            force: overwrite what is there.
            label: of the import, for the mark of a disk that is incomplete.
            direct_io: as in `diskhaul.PathOptions`.

        Raises:
            StorageError: it cannot be.
        """
        if self.is_file:
            writer = self.storage.create(self._beside, self.size, overwrite=force)
            return FileTarget(self, Target(writer, str(self._beside.path), direct_io=direct_io), overwrite=force)
        try:
            writer = self.storage.create(self.disk, self.size, overwrite=force)
            return InPlaceTarget(writer, Target(writer, self.place, direct_io=direct_io), label)
        except Exception as error:  # a plugin may raise anything, and need not know which disk of the instance it is
            raise as_diskhaul_error(error, self.disk.label) from error


class OpenTarget:
    """A target that is being written: `begin`, chunks into `writer`, then `prepare` and `complete`, or just `close`."""

    def __init__(self, writer: DiskWriter) -> None:
        self.writer = writer

    def begin(self) -> None:
        """Mark it as incomplete, durably. Called when all targets have been opened, before anything else is written."""

    def prepare(self) -> None:
        """Do all that may be refused before `complete`; called once everything has been written and flushed, on all targets.

        Raises:
            StorageError: it could not be completed, or somebody has begun to use what is to be replaced.
        """

    def complete(self) -> None:
        """Make it count as whole, durably, and close it. All targets have been prepared."""
        raise NotImplementedError

    def close(self) -> None:
        """Close it; a target that was not completed stays marked as incomplete."""
        self.writer.close()


class FileTarget(OpenTarget):
    """An image file, written as ``NAME.incomplete`` and renamed: what it replaces stays whole until then."""

    def __init__(self, target: ImportTarget, writer: Target, *, overwrite: bool) -> None:
        super().__init__(writer)
        assert target.disk.path is not None
        self._target = target
        self._path: Path = target.disk.path
        self._beside = self._path.with_name(self._path.name + INCOMPLETE)
        self._overwrite = overwrite

    def prepare(self) -> None:
        self.writer.close()  # what closing reports must not come after the file has its name
        try:
            before = self._path.lstat() if os.path.lexists(self._path) else None
            if before is None:
                return
            if not (self._overwrite and stat.S_ISREG(before.st_mode)):
                raise StorageError(f"{self._path}: appeared while it was restored to {self._beside.name}", path=str(self._path))
            if problems := self._target.opening_problems(self._target.disk, force=True):
                raise StorageError("; ".join(problems), path=str(self._path))
            # Its owner and mode stay.
            os.chown(self._beside, before.st_uid, before.st_gid, follow_symlinks=False)
            os.chmod(self._beside, stat.S_IMODE(before.st_mode))
        except OSError as error:
            raise self._failure(error) from error

    def complete(self) -> None:
        try:
            os.rename(self._beside, self._path)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> StorageError:
        return StorageError(f"{self._path}: cannot get its name: {error.strerror}", path=str(self._path))


class InPlaceTarget(OpenTarget):
    """A disk that exists (a device, a plugin's storage): its first bytes say "incomplete" until everything else is there."""

    def __init__(self, writer: DiskWriter, target: Target, label: str) -> None:
        self._inner = writer  # what is written twice does not go through a `Target`
        self._head: bytes | None = None
        self._marker = f"diskhaul: incomplete import of {label}\n".encode()[:_HEAD]
        super().__init__(_HeadKeeper(target, self))

    def begin(self) -> None:
        if self._inner.size >= _HEAD:
            self._inner.write(0, memoryview(self._marker.ljust(_HEAD, b"\0")))
            self._inner.flush()

    def keep_head(self, head: bytes) -> None:
        self._head = head

    def complete(self) -> None:
        if self._inner.size >= _HEAD:
            self._inner.write(0, memoryview(self._head or bytes(_HEAD)))
            self._inner.flush()
        self.writer.close()


class _HeadKeeper:
    """Passes everything on but the first bytes, which it leaves with its target."""

    def __init__(self, writer: Target, target: InPlaceTarget) -> None:
        self._writer, self._target = writer, target

    @property
    def size(self) -> int:
        return self._writer.size

    @property
    def reads_zero(self) -> bool:
        return self._writer.reads_zero

    def write(self, offset: int, buffer: memoryview, /) -> int:
        if offset or self._writer.size < _HEAD:
            return self._writer.write(offset, buffer)
        self._target.keep_head(bytes(buffer[:_HEAD]))
        return _HEAD + (self._writer.write(_HEAD, buffer[_HEAD:]) if len(buffer) > _HEAD else 0)

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


def _directory_problem(directory: Path) -> str | None:
    """Why files in `directory` cannot have direct I/O, or None: they can, or nobody knows before there is one."""
    try:
        descriptor = os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        return direct_io_problem(descriptor)
    finally:
        os.close(descriptor)
