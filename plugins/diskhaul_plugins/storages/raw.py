"""Disks behind a descriptor: reading and writing them, whatever kind of file it is."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator

import diskhaul_native as native
from diskhaul.api import Buffer, Extent, ExtentKind
from diskhaul.errors import StorageError
from diskhaul.model import Disk

BLOCK_SIZE = 4096
"""Zero blocks of this size stay holes in a written file: the page size, and the block size of usual filesystems."""

_ZERO_BLOCK_SIZE = 64 << 10
"""Where zeros have to be made instead of left out, shorter runs of them are written with their neighbours: that is quicker."""
_CELL_SIZE = 4 << 20  # bytes; how finely a writer remembers where it has been
_SCAN_SIZE = 4 << 20  # bytes that are read together to find out whether they have to be zeroed


def disk_path(disk: Disk) -> str:
    """The path of a disk that has to have one."""
    if disk.path is None:
        raise StorageError(f"{disk.label}: 'path' is not set", path=disk.label)
    path = os.fspath(disk.path)
    if "\0" in path:
        raise StorageError(f"{disk.label!r}: a path cannot contain NUL", path=repr(path))
    return path


def storage_error(action: str, path: str, error: OSError, offset: int | None = None) -> StorageError:
    """The `StorageError` for an `OSError`: which file, where in it, and what the system said."""
    place = getattr(error, "offset", None)
    offset = place if isinstance(place, int) else offset
    where = "" if offset is None else f" at offset {offset}"
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno == errno.ENODATA:
        reason = "the file ends before that: it has shrunk"
    return StorageError(f"{path}: cannot {action}{where}: {reason}", path=path, offset=offset)


class RawReader:
    """A file (or block device) opened for reading; closes `descriptor` when it is closed.

    Thread-safe but for `close`, which belongs to the one who opened it, after the last read.
    """

    def __init__(self, descriptor: int, size: int, path: str) -> None:
        self._descriptor = descriptor
        self._size = size
        self._path = path

    @property
    def size(self) -> int:
        return self._size

    def measure(self) -> None:
        """Take the size that a regular file has now."""
        status = os.fstat(self.fileno())
        if stat.S_ISREG(status.st_mode):
            self._size = status.st_size

    @property
    def path(self) -> str:
        """What messages call it."""
        return self._path

    def fileno(self) -> int:
        if self._descriptor < 0:
            raise StorageError(f"{self._path}: is closed", path=self._path)
        return self._descriptor

    def read_into(self, offset: int, buffer: memoryview, /) -> None:
        if offset < 0 or offset + buffer.nbytes > self._size:
            raise StorageError(f"{self._path}: read beyond its {self._size} bytes", path=self._path, offset=offset)
        try:
            native.read_into(self.fileno(), buffer, offset, name=self._path)
        except OSError as error:
            raise storage_error("read", self._path, error, offset) from error

    def extents(self) -> Iterator[Extent]:
        """What the file holds and where it has holes.

        Raises:
            StorageError: the file has shrunk: what is missing at its end looks like a hole, and must not pass for zeros.
        """
        try:
            for offset, length, is_data in native.extents(self.fileno(), self._size, name=self._path):
                self._check_not_shrunk()
                yield Extent(offset, length, ExtentKind.DATA if is_data else ExtentKind.HOLE)
        except OSError as error:
            raise storage_error("map the holes", self._path, error) from error

    def close(self) -> None:
        """Close it; harmless when closed."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _check_not_shrunk(self) -> None:
        status = os.fstat(self.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_size < self._size:
            raise OSError(errno.ENODATA, "shrunk", self._path)


class RawInPlace(RawReader):
    """A file or block device whose ranges are made zero; closes `descriptor`, which is good for both, when it is closed.

    The kernel takes blocks away where it can ("punch"): nothing is read then. Where it cannot, what is zero already is left
    alone, so that a thin volume does not get blocks for zeros. Short ranges are written in any case: that takes a tenth of the
    time, and a file does not fall to pieces for a few blocks.
    """

    def __init__(self, descriptor: int, size: int, path: str, users: Callable[[], Iterable[str]]) -> None:
        super().__init__(descriptor, size, path)
        self._users = users
        self._is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._punches = True
        self._failure: BaseException | None = None
        self._scratch: memoryview | None = None

    def users(self) -> Iterable[str]:
        return self._users()

    def zero(self, offset: int, length: int, /) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise StorageError(f"{self._path}: {length} bytes are not on a disk of {self._size}", path=self._path, offset=offset)
        self._check_sound()
        try:
            if length < _ZERO_BLOCK_SIZE and self._is_file:  # which was asked for its holes
                native.zero_range(self.fileno(), offset, length, method="write", name=self._path)
            elif length < _ZERO_BLOCK_SIZE or not (self._punches and self._punch(offset, length)):
                self._zero_what_is_not(offset, length)
        except OSError as error:
            self._failure = error
            raise storage_error("zero", self._path, error, offset) from error

    def flush(self) -> None:
        self._check_sound()
        try:
            native.fsync(self.fileno(), name=self._path)
        except OSError as error:
            self._failure = error
            raise storage_error("flush", self._path, error) from error

    def _check_sound(self) -> None:
        if self._failure is not None:
            raise StorageError(f"{self._path}: an earlier zeroing or flush failed", path=self._path) from self._failure

    def _punch(self, offset: int, length: int) -> bool:
        """False, and never tried again, where the target has no such thing."""
        try:
            native.zero_range(self.fileno(), offset, length, method="punch", name=self._path)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._punches = False
        return self._punches

    def _zero_what_is_not(self, offset: int, length: int) -> None:
        """Read, and zero the cells that are not zero, neighbours in one call."""
        if self._scratch is None:
            self._scratch = native.aligned_buffer(_SCAN_SIZE)
        descriptor, end = self.fileno(), offset + length
        while offset < end:
            piece = self._scratch[: min(_SCAN_SIZE - offset % _SCAN_SIZE, end - offset)]
            if not native.read_scan(descriptor, piece, offset, name=self._path):
                for begin, size in _nonzero_cells(piece, offset):
                    native.zero_range(descriptor, offset + begin, size, name=self._path)
            offset += len(piece)


def _nonzero_cells(piece: memoryview, offset: int) -> Iterator[tuple[int, int]]:
    """Runs of cells that hold something: where in `piece`, and how long. `offset` is the disk's for the piece."""
    run, position = 0, 0
    while position < len(piece):
        size = min(_ZERO_BLOCK_SIZE - (offset + position) % _ZERO_BLOCK_SIZE, len(piece) - position)
        if native.is_zero(piece[position : position + size]):
            if run:
                yield position - run, run
            run = 0
        else:
            run += size
        position += size
    if run:
        yield position - run, run


class RawWriter:
    """A file or block device that an import writes; closes `descriptor` when it is closed.

    After a write or a flush that failed, every other call fails too: the kernel forgets which pages were lost once it has
    told, and a second fsync would report success. Thread-safe as `diskhaul.api.DiskWriter` says.
    """

    def __init__(self, descriptor: int, size: int, path: str, *, reads_zero: bool) -> None:
        self._descriptor = descriptor
        self._size = size
        self._path = path
        self._reads_zero = reads_zero
        self._failure: BaseException | None = None
        self._written: set[int] = set()  # cells of a target that read as zeros
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        return self._size

    @property
    def reads_zero(self) -> bool:
        return self._reads_zero

    def fileno(self) -> int:
        return self._ready("write")

    def write(self, offset: int, buffer: Buffer, /) -> int:
        view = memoryview(buffer)
        self._check_range(offset, view.nbytes)
        descriptor = self._ready("write")
        # Zero blocks can be left out where the target is still zero, but not where something was written before.
        zero_holes = not self._is_untouched(offset, view.nbytes)
        block_size = BLOCK_SIZE if self._reads_zero else _ZERO_BLOCK_SIZE
        try:
            return native.write_sparse(descriptor, view, offset, block_size=block_size, zero_holes=zero_holes, name=self._path)
        except OSError as error:
            raise self._failed("write", error, offset) from error

    def zero(self, offset: int, length: int, /) -> None:
        self._check_range(offset, length)
        descriptor = self._ready("zero")
        if length == 0:
            return
        try:
            native.zero_range(descriptor, offset, length, name=self._path)
        except OSError as error:
            raise self._failed("zero", error, offset) from error

    def flush(self) -> None:
        descriptor = self._ready("flush")
        try:
            self._flush(descriptor)
        except OSError as error:
            raise self._failed("flush", error) from error

    def close(self) -> None:
        """Close it; harmless when closed.

        Raises:
            StorageError: the system reports a lost write.
        """
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            try:
                os.close(descriptor)
            except OSError as error:
                raise storage_error("close", self._path, error) from error

    def _prepare(self, descriptor: int) -> None:
        """Called before anything is written, under the lock, until it has succeeded once or failed."""

    def _flush(self, descriptor: int) -> None:
        native.fsync(descriptor, name=self._path)

    def _ready(self, action: str) -> int:
        with self._lock:
            if self._failure is not None:
                raise StorageError(
                    f"{self._path}: cannot {action}: an earlier write or flush failed", path=self._path
                ) from self._failure
            if self._descriptor < 0:
                raise StorageError(f"{self._path}: is closed", path=self._path)
            try:
                self._prepare(self._descriptor)
            except OSError as error:
                self._failure = error
                raise storage_error(f"make it {self._size} bytes large", self._path, error) from error
            return self._descriptor

    def _is_untouched(self, offset: int, length: int) -> bool:
        """True when all of a range is known to read as zeros; from now on it is not."""
        if not self._reads_zero:
            return False
        cells = range(offset // _CELL_SIZE, -(-(offset + length) // _CELL_SIZE))
        with self._lock:
            untouched = self._written.isdisjoint(cells)
            self._written.update(cells)
        return untouched

    def _failed(self, action: str, error: OSError, offset: int | None = None) -> StorageError:
        with self._lock:
            self._failure = self._failure or error
        return storage_error(action, self._path, error, offset)

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise StorageError(
                f"{self._path}: {length} bytes do not fit in a disk of {self._size}", path=self._path, offset=offset
            )
