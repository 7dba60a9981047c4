"""Transfer ``directory``: exports in directories that this machine sees, local or mounted.

    <export_dir>/.diskhaul-store                              the store's identity
    <export_dir>/<instance>/<export id>/                      a published export
    <export_dir>/<instance>/.<export id>.partial/             one that is being made
    <export_dir>/<instance>/.<export id>.removing/            one that is being removed

What lies there is not trusted: everything below the export directory is opened beneath a descriptor of its parent, one
component at a time and following no link, and only directories and regular files are touched. Directories are made 0700 and
files 0600 whatever the umask. The export directory itself is the operator's, and may be a link.

An export becomes visible by one rename, after its files, its manifest and its directory are durable, and it becomes
invisible by one rename, before its first file is deleted: at every moment in between it is listed whole or not at all.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import diskhaul_native as native
from diskhaul.api import (
    BackendContext,
    Buffer,
    Capability,
    CloneStoreFile,
    DirectStoreFile,
    ExportReader,
    ExportStore,
    ExportWriter,
    Transfer,
)
from diskhaul.errors import ConfigurationError, DiskhaulError, StorageError, UnreachableNodeError
from diskhaul.formats.export_id import is_export_id, parse_partial, parse_removing, partial_name, removing_name
from diskhaul.model import Node
from diskhaul.names import name_problem, printable
from diskhaul.options import DirectIO

from ..storages.raw import BLOCK_SIZE, RawReader, storage_error
from . import beneath
from .checked_names import check_export_id, check_instance_name
from .direct import DirectWrites
from .identity import keep_identity, read_identity
from .sharing import can_clone, clone_whole

MANIFEST = "manifest.json"
_MANIFEST_BEING_WRITTEN = f".{MANIFEST}.tmp"
_GANETI_CONFIG = "config.ini"
_GANETI_CONFIG_LIMIT = 1 << 20  # bytes; what Ganeti writes is a few KiB
_NOT_AN_INSTANCE = frozenset({"lost+found"})
_MAX_PARTS = 1024  # IOV_MAX of Linux
_WRITEBACK_STEP = 16 << 20  # bytes


def capability() -> Capability:
    """Works on every machine."""
    return Capability(works=True, detail="export directories on this machine")


class DirectoryTransfer(Transfer):
    """Reaches export directories through the filesystem. Stateless and thread-safe."""

    def __init__(self, context: BackendContext) -> None:
        self._context = context

    def store(self, node: Node, /) -> DirectoryStore:
        if node.export_dir is None:
            raise ConfigurationError(f'nodes.{node.name}.export_dir: is missing; add export_dir = "exports"')
        path = os.path.abspath(node.export_dir)
        try:
            os.stat(path)
        except OSError as error:
            what = "does not exist: create it or mount it" if error.errno == errno.ENOENT else os.strerror(error.errno or 0)
            raise UnreachableNodeError(node.name, f"node {node.name}: export directory {path}: {what}") from error
        return DirectoryStore(path)

    def open_path(self, path: str, /) -> DirectoryReader:
        if "\0" in path:
            raise StorageError(f"{printable(path)}: a path cannot contain NUL", path=printable(path))
        place = os.path.realpath(path)
        return DirectoryReader(place, lambda: beneath.open_root(place))


class DirectoryStore(ExportStore):
    """One export directory. Keeps no descriptor open between calls; thread-safe."""

    def __init__(self, path: str) -> None:
        self._path = path

    @property
    def identity(self) -> str:
        """The uuid in ``.diskhaul-store``, or ``path:DEVICE:INODE`` of a directory that no export was ever begun in.

        Read anew each time: the first `begin` gives every node that mounts the directory the same new uuid.
        """
        with self._root() as root:
            kept = read_identity(root, self._path)
            if kept:
                return kept
            status = os.fstat(root)
            return f"path:{status.st_dev}:{status.st_ino}"

    def check(self, instance: str, /, *, for_writing: bool) -> Iterator[str]:
        problem = name_problem("instance", instance)
        if problem:
            yield problem
            return
        try:
            root = beneath.open_root(self._path)
        except StorageError as error:
            yield str(error)
            return
        try:
            yield from _directory_problems(root, self._path, for_writing=for_writing)
            try:
                read_identity(root, self._path)
            except StorageError as error:
                yield str(error)
            yield from self._check_instance(root, instance, for_writing=for_writing)
        finally:
            os.close(root)

    def direct_io_problem(self) -> str | None:
        with self._root() as root:
            try:
                descriptor = os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=root)
                try:
                    DirectWrites(descriptor, self._path).close()
                finally:
                    os.close(descriptor)
            except OSError as error:
                return f"{self._path}: {os.strerror(error.errno or 0)}"
        return None

    def shares_blocks(self, instance: str, descriptor: int, /) -> bool:
        with self._root() as root, self._instance(instance) as directory:
            try:
                return can_clone(descriptor, root if directory is None else directory)
            except OSError:
                return False  # a filesystem without reflinks, or without files that have no name: not worth a reason

    def amend(self, instance: str, export_id: str, files: Mapping[str, Sequence[Buffer]], manifest: bytes, /) -> None:
        check_export_id(export_id)
        check_instance_name(instance)
        place = self._place(instance, export_id)
        for name in files:
            if not beneath.is_single(name) or name in (MANIFEST, _MANIFEST_BEING_WRITTEN):
                raise StorageError(f"{place}: {printable(name)} cannot be the name of an export's file", path=place)
        with self._instance(instance) as directory:
            if directory is None:
                raise StorageError(f"{place}: does not exist", path=place)
            export = beneath.open_below(directory, export_id, place)
        try:
            _amend(export, files, manifest, place)
        except OSError as error:
            raise storage_error("add to", place, error) from error
        finally:
            os.close(export)

    def free_bytes(self) -> int | None:
        try:
            status = os.statvfs(self._path)
        except OSError as error:
            raise storage_error("ask for the free space of", self._path, error) from error
        return status.f_bavail * status.f_frsize

    def instances(self) -> Sequence[str]:
        with self._root() as root:
            return sorted(
                name
                for name in beneath.names(root, self._path)
                if name not in _NOT_AN_INSTANCE and not name_problem("instance", name) and beneath.is_directory(root, name)
            )

    def exports(self, instance: str, /) -> Sequence[str]:
        with self._instance(instance) as directory:
            if directory is None:
                return []
            names = beneath.names(directory, self._place(instance))
            return sorted(name for name in names if is_export_id(name) and beneath.is_directory(directory, name))

    def partials(self, instance: str, /) -> Sequence[str]:
        with self._instance(instance) as directory:
            if directory is None:
                return []
            names = beneath.names(directory, self._place(instance))
            found = {parse_partial(name) or parse_removing(name) for name in names if beneath.is_directory(directory, name)}
            return sorted(export_id for export_id in found if export_id)

    def begin(self, instance: str, export_id: str, /) -> DirectoryWriter:
        check_export_id(export_id)
        check_instance_name(instance)
        return self._begin(instance, export_id, attempts=5)

    def resume(self, instance: str, export_id: str, kept: Sequence[KeptFile]) -> DirectoryWriter:
        """Go on with an export that was begun and then left (`DirectoryWriter.leave`), also by a process that is gone.

        Files in it that are not among `kept` are deleted. The caller knows that nobody else is writing it.

        Raises:
            StorageError: it is not there, or a file of `kept` is not, or is shorter than it was.
        """
        check_export_id(export_id)
        check_instance_name(instance)
        with self._instance(instance) as directory:
            if directory is None:
                raise StorageError(f"{self._place(instance, export_id)}: does not exist", path=self._place(instance))
            own = os.dup(directory)
        try:
            return DirectoryWriter(self._place(instance), own, export_id, lambda: self._drop_if_empty(instance), kept)
        except BaseException:
            os.close(own)
            raise

    def _begin(self, instance: str, export_id: str, attempts: int) -> DirectoryWriter:
        with self._root() as root:
            try:
                keep_identity(root, self._path)
                directory = beneath.make_directory(root, instance, self._place(instance))
            except OSError as error:
                raise storage_error("begin an export below", self._path, error) from error
        try:
            return DirectoryWriter(self._place(instance), directory, export_id, lambda: self._drop_if_empty(instance))
        except StorageError as error:
            os.close(directory)
            if isinstance(error.__cause__, FileNotFoundError) and attempts > 1:
                return self._begin(instance, export_id, attempts - 1)  # a removal took the empty directory away just now
            raise
        except BaseException:
            os.close(directory)
            raise

    def make_durable(self, instance: str) -> None:
        """Make durable which exports of `instance` there are: who has published one may have died before that was.

        Raises:
            StorageError: it cannot be.
        """
        check_instance_name(instance)
        with self._instance(instance) as directory:
            if directory is not None:
                try:
                    os.fsync(directory)
                except OSError as error:
                    raise storage_error("make durable", self._place(instance), error) from error

    def open(self, instance: str, export_id: str, /) -> DirectoryReader:
        check_export_id(export_id)
        check_instance_name(instance)
        place = self._place(instance, export_id)

        def enter() -> int:
            with self._instance(instance) as directory:
                if directory is None:
                    raise StorageError(f"{place}: does not exist", path=place)
                return beneath.open_below(directory, export_id, place)

        return DirectoryReader(place, enter)

    def remove(self, instance: str, export_id: str, /) -> None:
        check_export_id(export_id)
        self._remove(instance, export_id, visible=True)

    def remove_partial(self, instance: str, export_id: str, /) -> None:
        check_export_id(export_id)
        self._remove(instance, export_id, visible=False)

    def _remove(self, instance: str, export_id: str, *, visible: bool) -> None:
        with self._instance(instance) as directory:
            if directory is None:
                return
            place = self._place(instance)
            try:
                if visible:
                    _retire(directory, export_id, export_id, place)
                else:
                    beneath.delete(directory, partial_name(export_id), place)
                    beneath.delete(directory, removing_name(export_id), place)
            except OSError as error:
                raise _removal_error(self._place(instance, export_id), error) from error
        self._drop_if_empty(instance)

    def _drop_if_empty(self, instance: str) -> None:
        with self._root() as root:
            try:
                os.rmdir(instance, dir_fd=root)
                os.fsync(root)
            except OSError:
                pass  # it holds other exports, or is held by somebody: an empty directory does no harm

    def _check_instance(self, root: int, instance: str, *, for_writing: bool) -> Iterator[str]:
        place = self._place(instance)
        try:
            directory = beneath.find_below(root, instance, place)
        except StorageError as error:
            yield str(error)
            return
        if directory is None:
            return
        try:
            yield from _directory_problems(directory, place, for_writing=for_writing)
            if for_writing:
                for name in _foreign_entries(directory, place):
                    yield f"{place}: holds {printable(name)}, which is no export: move it elsewhere"
        finally:
            os.close(directory)

    def _place(self, *names: str) -> str:
        return os.path.join(self._path, *names)

    @contextmanager
    def _root(self) -> Iterator[int]:
        root = beneath.open_root(self._path)
        try:
            yield root
        finally:
            os.close(root)

    @contextmanager
    def _instance(self, instance: str) -> Iterator[int | None]:
        """A descriptor of the instance's directory, or None when it has none here."""
        check_instance_name(instance)
        with self._root() as root:
            directory = beneath.find_below(root, instance, self._place(instance))
        try:
            yield directory
        finally:
            if directory is not None:
                os.close(directory)


class DirectoryReader(ExportReader):
    """An export directory that is read.

    It is entered anew for each call, so nothing is left open; a directory that took its place meanwhile is refused.
    With `from_medium` the kernel is asked to forget what it has cached of a file before it is read: what comes back was stored.
    Thread-safe.
    """

    def __init__(self, location: str, enter: Callable[[], int], *, from_medium: bool = False) -> None:
        self._location = location
        self._enter = enter
        self._from_medium = from_medium
        directory = enter()
        try:
            self._status = os.fstat(directory)
        finally:
            os.close(directory)

    @property
    def location(self) -> str:
        return self._location

    def names(self) -> Sequence[str]:
        with self._directory() as directory:
            return sorted(beneath.names(directory, self._location))

    def open(self, name: str, /) -> RawReader:
        place = os.path.join(self._location, name)
        if not beneath.is_single(name):
            raise StorageError(f"{printable(place)}: {printable(name)} is not the name of a file in an export", path=place)
        with self._directory() as directory:
            descriptor, size = beneath.open_regular(directory, name, place)
        if self._from_medium:
            try:
                native.drop_cache(descriptor)
            except OSError:
                pass  # advice that this filesystem does not take
        return RawReader(descriptor, size, place)

    @contextmanager
    def _directory(self) -> Iterator[int]:
        directory = self._enter()
        try:
            if not os.path.samestat(os.fstat(directory), self._status):
                raise StorageError(f"{self._location}: was replaced while it was read", path=self._location)
            yield directory
        finally:
            os.close(directory)


class DirectoryFile(DirectStoreFile, CloneStoreFile):
    """A file of an export that is being written. Thread-safe as `diskhaul.api.DirectStoreFile` says."""

    def __init__(self, name: str, descriptor: int, path: str, *, end: int = 0, durable: bool = False) -> None:
        self._name = name
        self._descriptor = descriptor
        self._path = path
        self._end = end
        self._failure: OSError | None = None
        self._durable = durable
        self._lock = threading.Lock()
        self._users = 0
        self._close_late = -1  # closed by the last of those who were in a call when `close` came
        self._direct: DirectWrites | None = None
        self._writing_back = end  # up to where the cache has been told to write

    @property
    def name(self) -> str:
        return self._name

    @property
    def durable(self) -> bool:
        """True once `finish` has succeeded."""
        return self._durable

    def fileno(self) -> int:
        with self._lock:
            return self._checked("write")

    def use_direct_io(self, mode: DirectIO, /) -> None:
        if mode == "never":
            return
        with self._using("write") as descriptor:
            try:
                self._direct = DirectWrites(descriptor, self._path, self._end)
            except OSError as error:
                if mode == "always":
                    raise self._failed("write past the page cache (direct_io = always)", error) from error

    def clone_from(self, descriptor: int, size: int, /) -> bool:
        with self._using("share blocks") as own:
            try:
                return clone_whole(descriptor, own, size, self._path)
            except OSError as error:
                raise self._failed("share the blocks of the disk", error) from error

    def append(self, parts: Sequence[Buffer], /) -> None:
        pending = [view for part in parts if (view := memoryview(part).cast("B")).nbytes]
        with self._using("write") as descriptor:
            try:
                if self._direct is not None and not self._direct.refused:
                    pending = self._append_directly(self._direct, pending)
                self._append_cached(descriptor, pending)
            except OSError as error:
                raise self._failed("write", error, self._end) from error

    def _append_directly(self, direct: DirectWrites, pending: list[memoryview]) -> list[memoryview]:
        """Append past the cache; return what has to go through it after all."""
        for number, part in enumerate(pending):
            taken = direct.append(part)
            if direct.refused:
                self._end = direct.settled
                return [direct.left, part[taken:], *pending[number + 1 :]]
            self._end += taken
        return []

    def drain(self) -> bytes:
        """Write what `append` has only gathered, as far as it is worth a write; return the rest, less than `LARGEST_BLOCK`.

        That rest is the end of what has been appended, and lies nowhere but here until more comes, or `finish`.
        """
        with self._using("write") as descriptor:
            direct = self._direct
            if direct is None or direct.refused:
                return b""
            try:
                direct.drain()
                if direct.refused:
                    self._append_left(descriptor, direct)
                    return b""
            except OSError as error:
                raise self._failed("write", error, direct.settled) from error
            return bytes(direct.left)

    def _append_left(self, descriptor: int, direct: DirectWrites) -> None:
        """Append through the cache what has only been gathered."""
        self._end = direct.settled
        self._append_cached(descriptor, [direct.left])

    def _append_cached(self, descriptor: int, pending: list[memoryview]) -> None:
        while pending:
            written = os.pwritev(descriptor, pending[:_MAX_PARTS], self._end)
            self._end += written
            pending = _after(pending, written)
        if self._end - self._writing_back >= _WRITEBACK_STEP:
            # What is written early need not be waited for in the end.
            native.start_writeback(descriptor, self._writing_back, self._end - self._writing_back, name=self._path)
            self._writing_back = self._end

    @property
    def settled(self) -> int:
        return self._direct.settled if self._direct is not None else 0

    def read_back(self, offset: int, buffer: memoryview, /) -> bool:
        with self._using("read back"):
            try:
                return self._direct is not None and self._direct.read_back(offset, buffer)
            except OSError as error:
                raise self._failed("read back", error, offset) from error

    def write(self, offset: int, buffer: Buffer, /) -> int:
        with self._using("write") as descriptor:
            try:
                if self._direct is not None:
                    written = self._direct.write_sparse(memoryview(buffer), offset, BLOCK_SIZE)
                    if written is not None:
                        return written
                written = native.write_sparse(descriptor, buffer, offset, block_size=BLOCK_SIZE, name=self._path)
                native.start_writeback(descriptor, offset, memoryview(buffer).nbytes, name=self._path)
                return written
            except OSError as error:
                raise self._failed("write", error, offset) from error

    def set_size(self, size: int, /) -> None:
        with self._using(f"make it {size} bytes large") as descriptor:
            try:
                os.ftruncate(descriptor, size)
            except OSError as error:
                raise self._failed(f"make it {size} bytes large", error) from error

    def finish(self) -> None:
        with self._using("finish") as descriptor:
            try:
                if self._direct is not None and not self._direct.refused and self._direct.left:
                    self._append_left(descriptor, self._direct)
                native.fsync(descriptor, name=self._path)
            except OSError as error:
                raise self._failed("make it durable", error) from error
        with self._lock:
            descriptor = self._checked("close")
            self._descriptor = -1
        try:
            self._close(descriptor)
        except OSError as error:
            raise self._failed("close", error) from error
        self._durable = True

    def close(self) -> None:
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
            if self._users:
                # A write that hangs would go on in whatever file gets this number next.
                self._close_late, descriptor = max(descriptor, self._close_late), -1
        if descriptor >= 0:
            try:
                self._close(descriptor)
            except OSError as error:
                raise self._failed("close", error) from error

    def _close(self, descriptor: int) -> None:
        try:
            if self._direct is not None:
                self._direct.close()
        finally:
            os.close(descriptor)

    @contextmanager
    def _using(self, action: str) -> Iterator[int]:
        """The descriptor, which stays open while the block runs, whatever another thread does."""
        with self._lock:
            descriptor = self._checked(action)
            self._users += 1
        try:
            yield descriptor
        finally:
            with self._lock:
                self._users -= 1
                late = -1
                if not self._users:
                    late, self._close_late = self._close_late, -1
            if late >= 0:
                self._close(late)  # what was written has been given up: a failure says nothing new

    def _checked(self, action: str) -> int:
        """The descriptor, when it may still be used. Called with the lock."""
        if self._failure is not None:
            # The kernel forgets which pages were lost once it has told: a second fsync would report success.
            reason = f"an earlier write failed: {os.strerror(self._failure.errno or 0)}"
            raise StorageError(f"{self._path}: cannot {action}: {reason}", path=self._path) from self._failure
        if self._descriptor < 0:
            raise StorageError(f"{self._path}: cannot {action}: is closed", path=self._path)
        return self._descriptor

    def _failed(self, action: str, error: OSError, offset: int | None = None) -> StorageError:
        with self._lock:
            self._failure = self._failure or error
        return storage_error(action, self._path, error, offset)


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A file of an export that is gone on with: up to where it is good, and whether it had been finished."""

    name: str
    size: int
    finished: bool


class DirectoryWriter(ExportWriter):
    """An export that is being made in ``.<export id>.partial``. `create` may be called by several threads.

    Holds descriptors of the export's and the instance's directory until `publish` has succeeded or `abort` or `leave` was called.
    With `kept`, an export that is there already is gone on with.
    """

    def __init__(
        self,
        place: str,
        directory: int,
        export_id: str,
        when_aborted: Callable[[], object],
        kept: Sequence[KeptFile] | None = None,
    ) -> None:
        self._place = place
        self._when_aborted = when_aborted
        self._directory = directory  # closed by this object, once it exists
        self._export_id = export_id
        self._partial_place = os.path.join(place, partial_name(export_id))
        self._files: dict[str, DirectoryFile] = {}
        self._lock = threading.Lock()
        self._open = True
        self._visible = self._aborting = False
        if kept is not None:
            self._partial = beneath.open_below(directory, partial_name(export_id), self._partial_place)
            try:
                self._take_up(kept)
            except BaseException:
                self._close_files()
                os.close(self._partial)
                raise
            return
        try:
            if beneath.exists(directory, export_id):
                raise StorageError(f"{self.location}: exists already", path=self.location)
            os.mkdir(partial_name(export_id), 0o700, dir_fd=directory)
        except FileExistsError as error:
            raise StorageError(f"{self._partial_place}: exists already: remove what an earlier run left", path=place) from error
        except OSError as error:
            raise storage_error("create", self._partial_place, error) from error
        self._partial = beneath.open_below(directory, partial_name(export_id), self._partial_place)
        try:
            os.fchmod(self._partial, 0o700)  # whatever the umask
            os.fsync(directory)
        except OSError as error:
            os.close(self._partial)
            raise storage_error("create", self._partial_place, error) from error

    @property
    def location(self) -> str:
        return os.path.join(self._place, self._export_id)

    def _take_up(self, kept: Sequence[KeptFile]) -> None:
        """Open what is kept, and delete the rest."""
        for name in beneath.names(self._partial, self._partial_place):
            if name not in {file.name for file in kept}:
                try:
                    beneath.delete_file(self._partial, name)
                except OSError as error:
                    raise _removal_error(self._partial_place, error) from error
        for file in kept:
            path = os.path.join(self._partial_place, file.name)
            descriptor, size = beneath.open_regular(self._partial, file.name, path, writable=not file.finished)
            try:
                if size < file.size:
                    raise StorageError(f"{path}: has {size} bytes, and had {file.size}", path=path)
                if not file.finished:
                    os.ftruncate(descriptor, file.size)
            except OSError as error:
                os.close(descriptor)
                raise storage_error("go on with", path, error) from error
            except BaseException:
                os.close(descriptor)
                raise
            if file.finished:
                os.close(descriptor)
                descriptor = -1
            self._files[file.name] = DirectoryFile(file.name, descriptor, path, end=file.size, durable=file.finished)

    def file(self, name: str) -> DirectoryFile | None:
        """The file `name` that `create` made, or that was kept."""
        return self._files.get(name)

    def leave(self) -> None:
        """Close everything and leave the export as it is, for `DirectoryStore.resume`; harmless when it is done."""
        with self._lock:
            if self._open:
                self._close_files()
                self._close()

    def _close_files(self) -> None:
        for file in self._files.values():
            try:
                file.close()
            except StorageError:
                pass  # what was not finished is not taken for durable

    def create(self, name: str, /) -> DirectoryFile:
        path = os.path.join(self._partial_place, name)
        if not beneath.is_single(name) or name in (MANIFEST, _MANIFEST_BEING_WRITTEN):
            raise StorageError(f"{printable(path)}: {printable(name)} cannot be the name of an export's file", path=path)
        with self._lock:
            self._check_open()
            try:
                file = DirectoryFile(name, beneath.create_file(self._partial, name), path)
            except OSError as error:
                raise storage_error("create", path, error) from error
            self._files[name] = file
            return file

    def reader(self) -> DirectoryReader:
        def enter() -> int:
            with self._lock:
                if self._open:
                    # Opened anew: btrfs lists for a descriptor what was there when it was opened.
                    return beneath.open_below(self._partial, ".", self._partial_place)
            raise StorageError(f"{self.location}: is no longer being written", path=self.location)

        return DirectoryReader(self._partial_place, enter, from_medium=True)

    def publish(self, manifest: bytes, /) -> None:
        with self._lock:
            self._check_open()
            unfinished = sorted(name for name, file in self._files.items() if not file.durable)
            if unfinished:
                raise StorageError(f"{self.location}: not published: {', '.join(unfinished)} not finished", path=self.location)
            try:
                self._write_manifest(manifest)
                os.fsync(self._partial)
                self._check_not_aborting()
                beneath.rename_new(self._directory, partial_name(self._export_id), self._export_id)
                self._visible = True
                os.fsync(self._directory)
                self._check_not_aborting()
            except OSError as error:
                self._hide(error)
                if error.errno == errno.ECANCELED:
                    raise StorageError(f"{self.location}: not published: {error.strerror}", path=self.location) from error
                raise storage_error("publish", self.location, error) from error
            self._close()

    def give_up(self) -> None:
        """Have a `publish` that is under way fail, unless it has succeeded; does not wait. `abort` or `leave` comes next."""
        self._aborting = True

    def abort(self) -> None:
        self.give_up()  # before waiting for the lock: a `publish` that hangs in there must not succeed afterwards
        with self._lock:
            if not self._open:
                return  # published, or aborted before
            self._close_files()
            try:
                if self._visible:
                    _retire(self._directory, self._export_id, self._export_id, self._place)
                beneath.delete(self._directory, partial_name(self._export_id), self._place)
                os.fsync(self._directory)
            except OSError as error:
                raise _removal_error(self._partial_place, error) from error
            finally:
                self._close()
        self._when_aborted()

    def _write_manifest(self, manifest: bytes) -> None:
        _write_whole(self._partial, _MANIFEST_BEING_WRITTEN, [manifest], self._partial_place)
        beneath.rename_new(self._partial, _MANIFEST_BEING_WRITTEN, MANIFEST)

    def _hide(self, failure: OSError) -> None:
        """Undo a rename whose durability is unknown: what is reported as failed must not be listed."""
        if not self._visible:
            return
        try:
            beneath.rename_new(self._directory, self._export_id, partial_name(self._export_id))
            self._visible = False
        except OSError as error:
            failure.add_note(f"and it could not be hidden again: {error}")

    def _check_not_aborting(self) -> None:
        if self._aborting:
            raise OSError(errno.ECANCELED, "the export was given up meanwhile")

    def _check_open(self) -> None:
        if not self._open:
            raise StorageError(f"{self.location}: is no longer being written", path=self.location)

    def _close(self) -> None:
        self._open = False
        os.close(self._partial)
        os.close(self._directory)


# --- exports in a directory ---------------------------------------------------------------------------------------------


def _after(parts: list[memoryview], written: int) -> list[memoryview]:
    """What is left of `parts` once their first `written` bytes are done."""
    for index, part in enumerate(parts):
        if written < part.nbytes:
            return [part[written:], *parts[index + 1 :]]
        written -= part.nbytes
    return []


def _write_whole(directory: int, name: str, parts: Sequence[Buffer], place: str) -> None:
    """Make a file that was not there, durably but for its name."""
    file = DirectoryFile(name, beneath.create_file(directory, name), os.path.join(place, name))
    try:
        file.append(parts)
        file.finish()
    finally:
        file.close()


def _amend(export: int, files: Mapping[str, Sequence[Buffer]], manifest: bytes, place: str) -> None:
    """Write `files` into a published export, then replace its manifest; each by one rename, so that it is there whole or not."""
    if not stat.S_ISREG(beneath.mode_of(export, MANIFEST) or 0):
        raise StorageError(f"{place}: has no {MANIFEST}: not changed", path=place)
    contents = {**files, MANIFEST: [manifest]}
    try:
        for name, parts in contents.items():
            beneath.delete_file(export, _being_written(name))  # what an interrupted call left
            _write_whole(export, _being_written(name), parts, place)
    except BaseException as failure:
        for name in contents:
            try:
                beneath.delete_file(export, _being_written(name))
            except OSError as error:
                failure.add_note(f"and {_being_written(name)} in {place} could not be deleted: {error.strerror}")
        raise
    for name in contents:
        if name == MANIFEST:
            os.fsync(export)  # what it speaks of has its name for good
        os.rename(_being_written(name), name, src_dir_fd=export, dst_dir_fd=export)
    os.fsync(export)


def _being_written(name: str) -> str:
    return f".{name}.tmp"


def _retire(directory: int, name: str, export_id: str, place: str) -> None:
    """Make the export `name` invisible by one durable rename, then delete it. Nothing there, nothing done."""
    removing = removing_name(export_id)
    beneath.delete(directory, removing, place)  # what an interrupted removal left would be in the way
    mode = beneath.mode_of(directory, name)
    if mode is None:
        return
    if not stat.S_ISDIR(mode):
        where = os.path.join(place, name)
        raise StorageError(f"{where}: is not a directory (a link is not followed): not removed", path=where)
    beneath.rename_new(directory, name, removing)
    os.fsync(directory)
    beneath.delete(directory, removing, place)


def _removal_error(place: str, error: OSError) -> StorageError:
    named = f" ({printable(str(error.filename))})" if error.filename else ""
    return StorageError(f"{place}: cannot be removed completely{named}: {os.strerror(error.errno or 0)}", path=place)


# --- what is wrong with a directory -------------------------------------------------------------------------------------


def _directory_problems(directory: int, place: str, *, for_writing: bool) -> Iterator[str]:
    status = os.fstat(directory)
    if not os.access(f"/proc/self/fd/{directory}", os.R_OK | os.X_OK, effective_ids=True):
        yield f"{place}: cannot be read: permission denied"
    if not for_writing:
        return
    if stat.S_IMODE(status.st_mode) & 0o002:
        yield f"{place}: everybody may write there, and so replace exports: chmod o-w it"
    volume = os.statvfs(directory)
    if volume.f_flag & os.ST_RDONLY:
        yield f"{place}: lies on a filesystem that is mounted read-only: remount it writable"
    elif not os.access(f"/proc/self/fd/{directory}", os.W_OK | os.X_OK, effective_ids=True):
        yield f"{place}: cannot be written: change its owner, mode or attributes (chattr)"
    if volume.f_files and not volume.f_favail:
        yield f"{place}: lies on a filesystem without free inodes: remove files there"


def _foreign_entries(directory: int, place: str) -> Iterator[str]:
    """Names that neither diskhaul nor Ganeti puts into an instance's directory."""
    names = sorted(beneath.names(directory, place))
    ganeti = _ganeti_names(directory, place) if _GANETI_CONFIG in names else frozenset[str]()
    for name in names:
        ours = is_export_id(name) or parse_partial(name) or parse_removing(name)
        if ours:
            if not beneath.is_directory(directory, name):
                yield name
        elif name not in ganeti:
            yield name


def _ganeti_names(directory: int, place: str) -> frozenset[str]:
    """The files of a Ganeti export: ``config.ini`` and the dumps that it names; nothing when it is not one."""
    import configparser

    try:
        descriptor, size = beneath.open_regular(directory, _GANETI_CONFIG, os.path.join(place, _GANETI_CONFIG))
        with os.fdopen(descriptor, "rb") as file:
            text = file.read(_GANETI_CONFIG_LIMIT + 1) if size <= _GANETI_CONFIG_LIMIT else b""
        parser = configparser.RawConfigParser()
        parser.read_string(text.decode("utf-8"))
    except (OSError, DiskhaulError, UnicodeDecodeError, configparser.Error):
        return frozenset()
    if not parser.has_section("export") or not parser.has_section("instance"):
        return frozenset()
    dumps = {value for key, value in parser.items("instance") if key.startswith("disk") and key.endswith("_dump")}
    regular = {name for name in dumps if beneath.is_single(name) and stat.S_ISREG(beneath.mode_of(directory, name) or 0)}
    return frozenset(regular | {_GANETI_CONFIG})
