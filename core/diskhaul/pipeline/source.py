"""One face for every opened disk: in C where there is a descriptor, through the object's own methods where not."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import diskhaul_native as native

from ..api import DigestingReader, DigestingStoreFile, DiskReader, DiskWriter, Extent, ExtentKind, FreeExtents
from ..errors import DiskhaulError, StorageError
from ..formats.chunk_table import DIGEST_LENGTH
from ..options import DirectIO
from .direct import DirectReads, direct_io_problem
from .free_space import covered_bytes, overlay

if TYPE_CHECKING:
    from .workers import PipelineStalledError, Scratch

_PAGE = 4096  # what direct reads may begin and end at, on every device so far


class Source:
    """Wraps a `DiskReader`; every failure comes out as `StorageError` with label and offset.

    `fill` may be called by several threads at once, `extents` by one.

    Attributes:
        size: bytes.
        label: how messages call it.
        reader: what it wraps.
        free: what the guest's filesystems do not use; `extents` gives it as FREE instead of DATA.
    """

    def __init__(self, reader: DiskReader, label: str, *, direct_io: DirectIO = "never") -> None:
        self.label = label
        self.free = FreeExtents()
        self.reader = reader
        self._closed = False
        size = reader.size
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise StorageError(f"{label}: its storage gives the size {size!r}, which is not a number of bytes", path=label)
        self.size = size
        self._fd = descriptor_of(reader)
        self._direct = DirectReads(self._fd, direct_io) if self._fd is not None and direct_io != "never" else None

    def direct_io_problem(self) -> str | None:
        """Why this disk cannot be read past the page cache, or None when it can."""
        if self._fd is None:
            return "its storage gives no file descriptor"
        return direct_io_problem(self._fd)

    def is_cached(self, offset: int, length: int) -> bool:
        """Whether reading a range is known to be no more than copying it from the page cache."""
        return self._direct is not None and self._direct.cached_bytes(offset, length) >= length

    def whole_file(self) -> int | None:
        """The descriptor, where the disk is all of a regular file and nothing of it is to be left out; else None."""
        if self._fd is None or self.free:
            return None
        status = os.fstat(self._fd)
        return self._fd if stat.S_ISREG(status.st_mode) and status.st_size == self.size else None

    def fill(self, offset: int, view: memoryview) -> None:
        """Read the whole of `view` from `offset` on; less is an error, never zeros."""
        try:
            if self._fd is not None:
                done = self._direct.read(view, offset, name=self.label) if self._direct is not None else 0
                if done < len(view):
                    native.read_into(self._fd, view[done:], offset + done, name=self.label)
                return
            count = self.reader.read_into(offset, view)
        except DiskhaulError:
            raise
        except Exception as error:  # a plugin's reader may raise anything
            raise self._failure("read", offset, error) from error
        if isinstance(count, int) and not isinstance(count, bool) and count != len(view):
            raise StorageError(
                f"{self.label}: short read at offset {offset}: {count} of {len(view)} bytes", path=self.label, offset=offset
            )

    def range_digest(self, offset: int, length: int) -> bytes | None:
        """BLAKE3 of a range where the reader finds it without handing out the bytes, else None."""
        if not isinstance(self.reader, DigestingReader):
            return None
        found = digest_there(self.reader, self.label, offset, length)
        if found is None:
            raise _no_digest(self.label, offset)
        return found

    def fetch(self, offset: int, length: int, scratch: Scratch) -> memoryview:
        """Read `length` bytes from `offset` on into the thread's buffer; the view is valid until that is used again.

        What lies before and behind is read along where direct I/O asks for whole pages.
        """
        begin, end = offset, offset + length
        if self._direct is not None:
            begin, end = begin - begin % _PAGE, min(end + -end % _PAGE, self.size)
        buffer = scratch.buffer(end - begin)
        self.fill(begin, buffer)
        return buffer[offset - begin : offset - begin + length]

    def fill_used(self, offset: int, view: memoryview) -> int:
        """Read the whole of `view` from `offset` on, and make zero what is free there; return how many bytes are.

        Where it cannot be read, only what is in use is tried: a bad sector in free space does no harm.
        """
        free = [(begin - offset, end - offset) for begin, end in self.free.within(offset, offset + len(view))]
        try:
            self.fill(offset, view)
        except StorageError:
            if not free:
                raise
            position = 0
            for begin, end in (*free, (len(view), len(view))):
                if begin > position:
                    self.fill(offset + position, view[position:begin])
                position = end
        for begin, end in free:
            view[begin:end] = bytes(end - begin)
        return sum(end - begin for begin, end in free)

    def extents(self, *, least: int = 1) -> Iterator[Extent]:
        """What is where, ascending, without gaps or overlap, covering the whole disk. Checked: plugins get this wrong.

        What is free in pieces of less than `least` bytes is given as DATA.
        """
        return overlay(self._checked_extents(), self.free, least=least)

    def totals(self) -> dict[ExtentKind, int]:
        """How many bytes of each kind there are."""
        found = dict.fromkeys(ExtentKind, 0)

        def counted() -> Iterator[Extent]:
            for extent in self._checked_extents():
                found[extent.kind] += extent.length
                yield extent

        free = covered_bytes(counted(), self.free)
        found[ExtentKind.DATA] -= free
        found[ExtentKind.FREE] += free
        return found

    def _checked_extents(self) -> Iterator[Extent]:
        position = 0
        try:
            for extent in self._claimed_extents():
                if not _is_extent(extent):
                    # A kind that is none would otherwise pass for a hole, and data for zeros.
                    raise StorageError(
                        f"{self.label}: its storage gives {extent!r} after offset {position}, which is no extent",
                        path=self.label,
                        offset=position,
                    )
                if extent.offset < position or extent.length <= 0 or extent.end > self.size:
                    raise StorageError(
                        f"{self.label}: its storage gives the extent {extent.offset}+{extent.length} "
                        f"after offset {position} on a disk of {self.size} bytes",
                        path=self.label,
                        offset=extent.offset,
                    )
                if extent.offset > position:
                    yield Extent(position, extent.offset - position, ExtentKind.DATA)
                yield extent
                position = extent.end
        except DiskhaulError:
            raise
        except Exception as error:
            raise self._failure("find the extents of", position, error) from error
        if position < self.size:
            yield Extent(position, self.size - position, ExtentKind.DATA)

    def _claimed_extents(self) -> Iterable[Extent]:
        own = getattr(self.reader, "extents", None)
        if callable(own):
            found: Iterable[Extent] = own()
            yield from found
        elif self._fd is not None:
            for offset, length, is_data in native.extents(self._fd, self.size, name=self.label):
                yield Extent(offset, length, ExtentKind.DATA if is_data else ExtentKind.HOLE)

    def close(self) -> None:
        """Close the disk; closing it twice is fine. Nobody may be reading."""
        close = getattr(self.reader, "close", None)
        if not self._closed:
            self._closed = True
            try:
                if self._direct is not None:
                    self._direct.close()
                if callable(close):
                    close()
            except BaseException:  # a plugin may raise anything
                pass  # what was read has been read; a failure here must neither hide another one nor keep other disks open

    def _failure(self, doing: str, offset: int, error: Exception) -> StorageError:
        return _failure(self.label, doing, offset, error)


def digest_there(file: DigestingReader | DigestingStoreFile, label: str, offset: int, length: int) -> bytes | None:
    """BLAKE3 of a range of `file`, which messages call `label`, found where its bytes lie; None where `file` has none.

    Raises:
        StorageError: it cannot be had.
    """
    try:
        found = file.range_digest(offset, length)
    except DiskhaulError:
        raise
    except Exception as error:  # as in `Source.fill`
        raise _failure(label, "digest", offset, error) from error
    if found is not None and (not isinstance(found, bytes) or len(found) != DIGEST_LENGTH):
        raise _no_digest(label, offset)
    return found


def _no_digest(label: str, offset: int) -> StorageError:
    return StorageError(f"{label}: no digest came for offset {offset}", path=label, offset=offset)


def _failure(label: str, doing: str, offset: int, error: Exception) -> StorageError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return StorageError(f"{label}: cannot {doing} it at offset {offset}: {reason}", path=label, offset=offset)


def close_sources(sources: Sequence[Source], stalled: PipelineStalledError | None) -> None:
    """Close `sources`; those that a thread of a stalled run hangs in (they are its jobs, in order) once it lets go."""
    for index, source in enumerate(sources):
        if stalled is not None and index in stalled.stuck:
            stalled.when_free(index, source.close)
        else:
            source.close()


def descriptor_of(opened: DiskReader | DiskWriter) -> int | None:
    """The descriptor of an opened disk; None where it has none, also where ``fileno`` only says so (`io` classes)."""
    fileno = getattr(opened, "fileno", None)
    if not callable(fileno):
        return None
    try:
        number: int = fileno()
    except io.UnsupportedOperation:
        return None
    return number


def _is_extent(extent: object) -> bool:
    """Whether it is an `Extent` of whole bytes and of a kind there is."""
    return (
        isinstance(extent, Extent)
        and type(extent.offset) is int
        and type(extent.length) is int
        and isinstance(extent.kind, ExtentKind)
    )
