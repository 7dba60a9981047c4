"""What plugins are made of: the objects that do the work, and the specs that announce them.

A plugin answers a provider hook (`diskhaul.hookspecs`) with specs; a spec names a backend and says how to make it; the backend
is any object with the methods of its Protocol here. Subclassing the Protocol is optional, and brings the defaults of the
methods that have one. All offsets, lengths and sizes are bytes. All methods may be called from any thread; the methods of one
*opened* object (a reader, a writer, a store file) are called by several threads only where said.

Errors: raise `OSError` or any `diskhaul.DiskhaulError`; the operation names the disk, instance or node it was working on.
"""

from __future__ import annotations

import operator
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, overload, runtime_checkable

from .cancellation import CancellationToken
from .errors import ConfigurationError, GuestError, StorageError
from .model import Cluster, Disk, Instance, Node, Options
from .options import DirectIO, Setting

if TYPE_CHECKING:
    from .records import ExportRecord

API_VERSION = 1
"""The plugin API described here. A plugin may state the one it was built for as ``diskhaul_api = 1``."""

Buffer = bytes | bytearray | memoryview


# --- disks ------------------------------------------------------------------------------------------------------------


class ExtentKind(Enum):
    """What a byte range of a disk is."""

    DATA = "data"
    HOLE = "hole"
    """Never written: reads as zeros."""
    FREE = "free"
    """Allocated, but unused by the guest's filesystem: may be treated as zeros."""


@dataclass(frozen=True, slots=True)
class Extent:
    """A byte range of a disk and what it is."""

    offset: int
    length: int
    kind: ExtentKind

    @property
    def end(self) -> int:
        return self.offset + self.length


@runtime_checkable
class DiskReader(Protocol):
    """An opened disk (or snapshot, or stored file) that is read.

    Two things are needed: `size` and `read_into`. Three more are used where the object has them:

    - ``fileno() -> int``: a descriptor whose byte 0 is the disk's byte 0. Reading then happens in C, without the GIL, and
      holes are found with SEEK_DATA.
    - ``extents() -> Iterable[Extent]``: what is where, ascending and without overlap; gaps count as data.
    - ``close() -> None``.
    """

    @property
    def size(self) -> int:
        """Size in bytes; must not change while the disk is open."""
        ...

    def read_into(self, offset: int, buffer: memoryview, /) -> object:
        """Fill the whole of `buffer` from `offset` on. Called by several threads at once.

        Raises:
            OSError: or `StorageError`; anything less than the whole buffer is an error, never zeros.
        """
        ...


@runtime_checkable
class DiskWriter(Protocol):
    """An opened disk that is written by an import.

    Where the object has ``fileno() -> int``, a descriptor whose byte 0 is the disk's byte 0 and that is good for reading and
    writing, what is large and aligned is written through it (in C, past the page cache, zeros left out where `reads_zero`
    says so) and not by `write`. Writers that do more than pass bytes on (count them, encrypt them) have no ``fileno``.

    Ranges that are never written, nor zeroed, keep what was there: the importer zeroes what has to be zero unless
    `reads_zero` says that the whole target already is.
    """

    @property
    def size(self) -> int: ...

    @property
    def reads_zero(self) -> bool:
        """True when every byte not yet written reads as zero (a new sparse file)."""
        ...

    def write(self, offset: int, buffer: memoryview, /) -> object:
        """Write the whole of `buffer` at `offset`, and best return how many bytes were not left as holes.

        Called by several threads at once, never for overlapping ranges.
        """
        ...

    def zero(self, offset: int, length: int, /) -> object:
        """Make a range read as zeros. Called by several threads at once."""
        ...

    def flush(self) -> object:
        """Return once everything written is durable (fsync). A failure is final: it is not retried."""
        ...

    def close(self) -> object: ...


class DiskInPlace(DiskReader, Protocol):
    """An existing disk of a guest that is off, opened so that ranges of it can be made zero, and nothing else."""

    def zero(self, offset: int, length: int, /) -> object:
        """Make a range read as zeros, best without giving it blocks that it does not have. Called by one thread at a time.

        Interrupted anywhere, each byte of the range is what it was or zero, and no other byte has changed.
        """
        ...

    def users(self) -> Iterable[str]:
        """Who else may be writing to the disk right now, one phrase each, as `Storage.in_use`; asked of what was opened."""
        ...

    def flush(self) -> object:
        """Return once all zeros are durable (fsync). A failure is final: it is not retried."""
        ...

    def close(self) -> object: ...


class Storage(Protocol):
    """How a disk's bytes are reached."""

    def open(self, disk: Disk, /) -> DiskReader:
        """Open `disk` for reading. Must not change it."""
        ...

    def check(self, disk: Disk, /) -> Iterable[str]:
        """Reasons why `disk` cannot be read, one line each; nothing when all is well. Must not change anything."""
        return ()

    def in_use(self, disk: Disk, /) -> Iterable[str]:
        """Who may be writing to `disk` right now, one phrase each ("is open for writing in process 7 (qemu)"). Only looks.

        Asked of the disks of a guest that is off, or has just stopped: whatever its runtime says, a disk that is written to must
        not be taken for a disk at rest. Who only reads does not count, nor does this process. Nothing where nothing is known.

        Raises:
            OSError: or `StorageError`; it cannot be found out, and the export does not go on.
        """
        return ()

    def create(self, disk: Disk, size: int, /, *, overwrite: bool) -> DiskWriter:
        """Open `disk` for writing by an import, making it if need be, `size` bytes large.

        Raises:
            StorageError: it exists and `overwrite` is false, is too small, is in use, or cannot be written.
        """
        raise StorageError("this storage cannot be written: choose --to-dir or --disk", path=disk.label)

    def check_target(self, disk: Disk, size: int, /, *, overwrite: bool) -> Iterable[str]:
        """Reasons why `create` would fail with these arguments, one line each. Must not change anything.

        A storage that has it lets an import be refused before anything is written; otherwise `create` fails half-way.
        """
        return ()

    def open_in_place(self, disk: Disk, /) -> DiskInPlace:
        """Open the existing `disk` to zero ranges of it, kept from others as far as that can be had. Changes nothing yet.

        Raises:
            StorageError: it is in use, or cannot be written.
        """
        raise StorageError("this storage cannot zero disks in place", path=disk.label)

    def check_in_place(self, disk: Disk, /) -> Iterable[str]:
        """Reasons why `open_in_place` would fail even once the guest is off, one line each. Must not change anything."""
        return (f"{disk.label}: its storage cannot zero disks in place",)

    def location(self, disk: Disk, /) -> str:
        """A stable name for where the disk's bytes are, to recognise that two disks are one. "" when there is none."""
        return str(disk.path.resolve()) if disk.path is not None else ""


# --- guests -----------------------------------------------------------------------------------------------------------


STOP_GRACE_S = 10.0
"""Seconds that a guest's stop may take beyond its timeout, to pull the plug on one that did not react in time."""


class Runtime(Protocol):
    """What runs a guest. States are asked for again after every change: a claim is checked, not believed."""

    def is_running(self, instance: Instance, /) -> bool:
        """True when the guest is running now.

        Raises:
            GuestError: it cannot be found out (which is not the same as "no").
        """
        ...

    def stop(self, instance: Instance, /, *, timeout_s: float) -> object:
        """Stop the guest and return once it has stopped; `timeout_s` is for a clean shutdown, `STOP_GRACE_S` for what follows."""
        ...

    def start(self, instance: Instance, /) -> object:
        """Start the guest and return once it runs."""
        ...

    def remove(self, instance: Instance, /) -> object:
        """Remove the stopped instance for good, disks included."""
        raise GuestError(f"{instance.name}: this runtime cannot remove instances")

    def check(self, instance: Instance, /) -> Iterable[str]:
        """Reasons why the instance's configuration cannot be used, one line each. Must not change anything."""
        return ()

    def longest_call_s(self, instance: Instance, /) -> float:
        """After how many seconds a call to this runtime counts as hanging (for `stop` the shutdown's timeout comes on top).

        A call that hangs is left behind, the guest is seen to, and the operation fails.
        """
        return 300.0

    def can_freeze(self, instance: Instance, /) -> bool:
        """True when `freeze` and `thaw` work for this guest now."""
        return False

    def freeze(self, instance: Instance, /) -> object:
        """Flush and freeze the guest's filesystems, so that snapshots taken until `thaw` are filesystem-consistent."""
        raise GuestError(f"{instance.name}: this runtime cannot freeze guests")

    def thaw(self, instance: Instance, /) -> object:
        """Undo `freeze`; harmless when not frozen."""

    def can_trim(self, instance: Instance, /) -> bool:
        """True when `trim` works for this guest now."""
        return False

    def trim(self, instance: Instance, /, *, timeout_s: float) -> object:
        """Have the running guest discard what its filesystems do not use (fstrim), and return once it has, within `timeout_s`.

        Where the guest's disks hand discards on, their storage has holes there afterwards.
        """
        raise GuestError(f"{instance.name}: this runtime cannot have guests trim their filesystems")

    def activate_disks(self, instance: Instance, /) -> bool:
        """Make a stopped instance's disks readable; return True when this call changed something."""
        return False

    def deactivate_disks(self, instance: Instance, /) -> object:
        """Undo `activate_disks`."""


# --- snapshots --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A snapshot of one disk by one run: planned first, then created, opened, removed.

    Attributes:
        backend: the snapshot backend's name.
        disk: the disk it is of.
        run_id: the run it belongs to; must be part of whatever names it on the host.
        reference: what finds it again, also in another process: a path, a volume name.
    """

    backend: str
    disk: Disk
    run_id: str
    reference: str


class Snapshots(Protocol):
    """Point-in-time copies of disks.

    The plan is written to the journal before `create` is called, so that a snapshot of a run that was killed in between is
    found and removed. `remove` must therefore accept a snapshot that was never created.
    """

    def refuses(self, disk: Disk, /) -> str | None:
        """Why this backend cannot snapshot `disk`, in one line, or None when it can. Leaves nothing behind."""
        ...

    def plan(self, disk: Disk, run_id: str, /) -> Snapshot:
        """Say what the snapshot will be called. Creates nothing."""
        ...

    def create(self, snapshot: Snapshot, /) -> object:
        """Create it; all or nothing."""
        ...

    def open(self, snapshot: Snapshot, /) -> DiskReader:
        """Open it for reading.

        Raises:
            SnapshotError: it is not there, or has turned invalid.
        """
        ...

    def exists(self, snapshot: Snapshot, /) -> bool:
        """True when the snapshot is there now, whichever process created it. Asked after `create` and after `remove`.

        Raises:
            OSError: or `SnapshotError`; it cannot be found out (which is not the same as "no").
        """
        ...

    def remove(self, snapshot: Snapshot, /) -> object:
        """Remove it. Removing what is not there is fine; touching anything without the run's id is not."""
        ...


# --- free space -------------------------------------------------------------------------------------------------------


class FreeExtents(Sequence[Extent]):
    """Extents of kind FREE, ascending and without overlap, in sixteen bytes each: a fragmented disk has hundreds of thousands."""

    __slots__ = ("_numbers", "total")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """`ranges`: offset and length of each.

        Raises:
            ValueError: they do not ascend, overlap, or one is empty.
        """
        self._numbers = array("Q")
        self.total = 0
        """Bytes of all extents together."""
        end = 0
        for offset, length in ranges:
            if length <= 0 or offset < end:
                raise ValueError(f"{length} bytes at {offset} after offset {end}")
            self._numbers.extend((offset, length))
            self.total += length
            end = offset + length

    @property
    def end(self) -> int:
        """Where the last one ends; 0 where there is none."""
        return self._numbers[-2] + self._numbers[-1] if self._numbers else 0

    def __len__(self) -> int:
        return len(self._numbers) // 2

    @overload
    def __getitem__(self, index: int) -> Extent: ...

    @overload
    def __getitem__(self, index: slice) -> FreeExtents: ...

    def __getitem__(self, index: int | slice) -> Extent | FreeExtents:
        if isinstance(index, slice):
            return FreeExtents((self[place].offset, self[place].length) for place in range(*index.indices(len(self))))
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        return Extent(self._numbers[2 * place], self._numbers[2 * place + 1], ExtentKind.FREE)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Offset and length of each."""
        numbers = iter(self._numbers)
        return zip(numbers, numbers, strict=True)

    def within(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Where those parts begin and end that lie between `begin` and `end`."""
        numbers = self._numbers
        index = bisect_right(range(len(self)), begin, key=lambda place: numbers[2 * place]) - 1
        for place in range(2 * max(index, 0), len(numbers), 2):
            offset = numbers[place]
            if offset >= end:
                return
            first, last = max(offset, begin), min(offset + numbers[place + 1], end)
            if first < last:
                yield first, last

    def __iter__(self) -> Iterator[Extent]:
        return (Extent(offset, length, ExtentKind.FREE) for offset, length in self.ranges())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, FreeExtents):
            return self._numbers == other._numbers
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __repr__(self) -> str:
        return f"<FreeExtents: {len(self)} with {self.total} bytes>"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRegion:
    """What stands somewhere on a guest's disk: a partition table, a filesystem, swap space, something unknown.

    Attributes:
        place: where, for people: "disk", "partition 1", "partition 2, volume vg0/root".
        offset: where it begins on the disk, in bytes (for a volume in several pieces, its first one).
        length: bytes from there on, or of all pieces.
        type: "gpt", "mbr", "lvm", "ext4", "xfs", "swap", "luks", "unknown", ...
        label: what the guest calls it; any text.
        state: "clean", "journal replayed", "dirty", "has errors"; "" where that makes no sense.
        block_size: unit of allocation in bytes, 0 where there is none.
        free: bytes that the filesystem itself calls free, or None where that is not known.
        skipped: bytes of `DiskMap.free` that are here.
        kept: why nothing is skipped here, in a few words; "" where something is.
    """

    place: str
    offset: int
    length: int
    type: str
    label: str = ""
    state: str = ""
    block_size: int = 0
    free: int | None = None
    skipped: int = 0
    kept: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskMap:
    """What a disk holds, and which of its bytes may be left out.

    Attributes:
        size: of the disk, in bytes.
        regions: in the order of their place; nested ones follow what they lie in.
        free: extents of kind FREE, ascending, without overlap.
    """

    size: int
    regions: tuple[DiskRegion, ...]
    free: Sequence[Extent] = ()


class ZeroFill(Protocol):
    """Finds free space of guests' filesystems, and may zero it."""

    writes: bool
    """True when `zero` writes to the disk, so that the instance has to be off."""

    trims: bool = False
    """True when the guest itself is to give back its free space (`Runtime.trim`), before it is stopped or snapshotted."""

    def refuses(self, disk: Disk, /) -> str | None:
        """Why this backend cannot tell the free space of `disk`, in one line, or None when it can. Changes nothing."""
        ...

    def free_extents(self, disk: Disk, reader: DiskReader, /) -> Iterable[Extent]:
        """FREE extents of the disk behind `reader`; empty when nothing is known for sure."""
        ...

    def inspect(self, disk: Disk, reader: DiskReader, /) -> DiskMap:
        """What the disk behind `reader` holds, and its free extents. Without it a disk's map has no regions.

        `reader` is a snapshot or the disk of a stopped guest, unless only an estimate is wanted. What it cannot make sense of is
        a region that is kept; a failure means that nothing of the disk is skipped.
        """
        return DiskMap(size=reader.size, regions=(), free=tuple(self.free_extents(disk, reader)))

    def zero(self, disk: Disk, target: DiskInPlace, /, *, deadline_s: float, cancelled: Callable[[], bool]) -> object:
        """Zero the free space of `disk` in place, and return once that is durable; best return a `DiskMap` of what was done.

        `target` is the disk. Its `zero` raises once the time is over or the run was cancelled; then, and whenever else something
        fails, nothing more is written, and what was not zeroed stays as it is.

        Args:
            deadline_s: seconds it may take.
            cancelled: whether to stop before that.
        """
        raise StorageError("this zero-fill backend does not write", path=disk.label)


# --- locks ------------------------------------------------------------------------------------------------------------


class LockMode(Enum):
    SHARED = "shared"
    EXCLUSIVE = "exclusive"


class HeldLock(Protocol):
    """A lock that is held."""

    @property
    def token(self) -> int:
        """The fencing token: grows each time the lock is taken exclusively."""
        ...

    def check(self) -> object:
        """Raise `LockLostError` unless the lock is still held, asked of the lock service, not of memory."""
        ...

    def release(self) -> object:
        """Give it back; harmless when already lost or released."""
        ...


class Locks(Protocol):
    """Shared and exclusive locks by name, with lease, deadline and fencing token."""

    def acquire(
        self,
        name: str,
        mode: LockMode,
        /,
        *,
        owner: str,
        deadline_s: float,
        on_wait: Callable[[str], object],
        cancelled: Callable[[], bool],
    ) -> HeldLock:
        """Take the lock `name` (``level/name``) for `owner` (a line that says who and what for, shown to those who wait).

        `on_wait` is called with the present holder's line, once per holder waited for. `cancelled` is asked while waiting.

        Raises:
            LockTimeoutError: not free within `deadline_s` seconds.
            InterruptedRunError: `cancelled` said so.
            LockError: the lock service does not work.
        """
        ...

    def check(self) -> Iterable[str]:
        """Reasons why the lock service cannot be used, one line each."""
        return ()


# --- where exports lie ------------------------------------------------------------------------------------------------


class StoreFile(Protocol):
    """A file of an export that is being written."""

    @property
    def name(self) -> str: ...

    def append(self, parts: Sequence[Buffer], /) -> object:
        """Write `parts` at the end, in order. Called by one thread at a time."""
        ...

    def write(self, offset: int, buffer: Buffer, /) -> object:
        """Write at `offset` (raw layout), and best return how many bytes were not left as holes.

        Called by several threads at once, never for overlapping ranges.
        """
        ...

    def set_size(self, size: int, /) -> object:
        """Make the file `size` bytes large; what was not written reads as zeros.

        Of a raw file it is called before the first `write`, and again after the last.
        """
        ...

    def finish(self) -> object:
        """Make the file durable (fsync) and close it. A failure is final: it is not retried."""
        ...

    def close(self) -> object:
        """Close without caring for durability; harmless after `finish`."""
        ...


@runtime_checkable
class DirectStoreFile(StoreFile, Protocol):
    """A `StoreFile` that can be written past every cache, so that it can be read back while it is still being written.

    Files need not have this. Those that do are checked while the rest of the disk is being sent; the others afterwards.
    """

    def use_direct_io(self, mode: DirectIO, /) -> object:
        """Called once, before anything is written, with the run's `PathOptions.direct_io`.

        Raises:
            StorageError: `mode` is "always" and it cannot be done.
        """
        ...

    @property
    def settled(self) -> int:
        """How many bytes from the file's beginning have been appended and lie on the medium by now; only grows."""
        ...

    def read_back(self, offset: int, buffer: memoryview, /) -> bool:
        """Fill `buffer` from the medium, not from a cache; False where that cannot be had, and nothing is in `buffer`.

        `offset` and length are multiples of 4096, and the range has settled, or has been written with `write`. Called by several
        threads at once, and while others append or write elsewhere.
        """
        ...


@runtime_checkable
class DigestingStoreFile(StoreFile, Protocol):
    """A `StoreFile` that digests where its bytes lie what was appended to it, while more is appended.

    Files need not have this. Those that do are checked while the rest of the disk is being sent, as a `DirectStoreFile` is, and
    what was stored need not travel for that.
    """

    @property
    def settled(self) -> int:
        """How many bytes from the file's beginning have been appended and can be digested by now; only grows."""
        ...

    def range_digest(self, offset: int, length: int, /) -> bytes | None:
        """BLAKE3 (32 bytes) of a range that has settled, as the medium holds it, not a cache; None where that cannot be had now.

        Called by one thread at a time, while others append. What is not digested here is read back in the end.

        Raises:
            OSError: or `StorageError`; the range cannot be read.
        """
        ...


@runtime_checkable
class DigestedStoreFile(StoreFile, Protocol):
    """A `StoreFile` that has use for the digest of what is appended, as one that is sent with it.

    Files need not have this.
    """

    def append_digested(self, part: Buffer, digest: bytes, /) -> object:
        """Write `part` at the end, as `append` does; `digest` is its BLAKE3 (32 bytes)."""
        ...


@runtime_checkable
class MovingStoreFile(StoreFile, Protocol):
    """A `StoreFile` whose `write`, `append` or `finish` may take long although the file moves on.

    Files need not have this. Of those that do not, a call that takes `stall_timeout_s` counts as stalled.
    """

    @property
    def moved(self) -> int:
        """How many bytes have arrived by now; only grows, and is answered at once."""
        ...


@runtime_checkable
class CloneStoreFile(StoreFile, Protocol):
    """A `StoreFile` that can be made of another file's blocks, where both lie on one filesystem with reflinks.

    Files need not have this. A raw disk in a regular file is then not copied, whatever its size. Nothing is taken on trust: the
    blocks of both files are compared through their descriptors, and where that does not tell, the bytes are.
    """

    def clone_from(self, descriptor: int, size: int, /) -> bool:
        """Have this file, in which nothing was written, share all blocks of the open regular file `descriptor`, of `size` bytes.

        False, and nothing has changed, where that cannot be.

        Raises:
            StorageError: it can be, and failed (no room for metadata), or the other file is no longer `size` bytes large.
        """
        ...

    def fileno(self) -> int:
        """This file's descriptor, until `finish`."""
        ...


class StoreReader(Protocol):
    """A file of an export that is read back. Also a `DiskReader`; ``fileno()`` where it has one."""

    @property
    def size(self) -> int: ...

    def read_into(self, offset: int, buffer: memoryview, /) -> object: ...

    def close(self) -> object: ...


@runtime_checkable
class DigestingReader(StoreReader, Protocol):
    """A `StoreReader` that digests where the bytes lie, so that they need not travel to be compared."""

    def range_digest(self, offset: int, length: int, /) -> bytes:
        """BLAKE3 (32 bytes) of `length` bytes from `offset` on, read anew from the store. Called by several threads at once.

        Raises:
            OSError: or `StorageError`; anything less than the whole range can be read.
        """
        ...


class ExportReader(Protocol):
    """A published export (or a directory that claims to be one)."""

    @property
    def location(self) -> str: ...

    def names(self) -> Sequence[str]:
        """Every entry, whatever it is, sorted."""
        ...

    def open(self, name: str, /) -> StoreReader:
        """Open a regular file of the export, following no link.

        Raises:
            StorageError: missing, not a regular file, or unreadable.
        """
        ...


class ExportWriter(Protocol):
    """An export that is being made, invisible until `publish`."""

    @property
    def location(self) -> str:
        """Where the export will be once published."""
        ...

    def create(self, name: str, /) -> StoreFile:
        """Make the file `name` (a plain file name, no path) of this export and open it, empty.

        Raises:
            OSError: or `StorageError`; it exists already, or cannot be made.
        """
        ...

    def reader(self) -> ExportReader:
        """Read back what has been written so far, from the medium rather than a cache where that can be had."""
        ...

    def publish(self, manifest: bytes, /) -> object:
        """Make the export visible, atomically and durably: manifest to a temporary name, fsync, rename, fsync of directories."""
        ...

    def abort(self) -> object:
        """Remove everything of this unpublished export; harmless when there is nothing."""
        ...


@runtime_checkable
class RetryingExportWriter(ExportWriter, Protocol):
    """An `ExportWriter` whose `publish` may try again, for longer than the run's locks can be relied on.

    Writers need not have this.
    """

    def publish_while(self, manifest: bytes, check: Callable[[], object], /) -> object:
        """`publish`, which calls `check` before each try.

        Raises:
            LockLostError: or whatever `check` raises: there is no further try, and none that was made is still under way once
                `abort` has returned.
        """
        ...


class ExportStore(Protocol):
    """The exports of one node."""

    @property
    def identity(self) -> str:
        """The store's own id. Two nodes that mount the same directory give the same one."""
        ...

    def check(self, instance: str, /, *, for_writing: bool) -> Iterable[str]:
        """Reasons why an export of `instance` cannot be read or put here, one line each. Leaves nothing behind."""
        ...

    def direct_io_problem(self) -> str | None:
        """Why files here cannot be written past the page cache, in one line, or None when they can. Leaves nothing behind."""
        return "this store knows no direct I/O"

    def shares_blocks(self, instance: str, descriptor: int, /) -> bool:
        """Whether files of exports of `instance` can share the blocks of the open file `descriptor` (`CloneStoreFile`).

        Leaves nothing behind. A store that says so has `amend` as well.
        """
        return False

    def amend(self, instance: str, export_id: str, files: Mapping[str, Sequence[Buffer]], manifest: bytes, /) -> object:
        """Add `files` (the parts of each by its plain name) to a published export, and replace its manifest.

        First the files, durably; those that an earlier call left, which was interrupted, are replaced. Then the manifest,
        atomically and durably. Interrupted anywhere, the export has the one manifest or the other; beside the old one, at the
        most, some of `files`, and parts of them and of the manifest named ``.NAME.tmp``. The caller has the export to itself.

        Raises:
            StorageError: it could not be done; the export is as it was, or both manifests are as good.
        """
        raise StorageError("this store cannot change a published export", path=f"{instance}@{export_id}")

    def free_bytes(self) -> int | None:
        """Room for new exports, or None when there is no telling."""
        ...

    def instances(self) -> Sequence[str]:
        """Full names of instances that have a directory here."""
        ...

    def exports(self, instance: str, /) -> Sequence[str]:
        """Ids of the published exports of `instance`, oldest first."""
        ...

    def partials(self, instance: str, /) -> Sequence[str]:
        """Ids of exports of `instance` that were begun, or half removed, and are not visible."""
        ...

    def begin(self, instance: str, export_id: str, /) -> ExportWriter:
        """Begin the export `export_id` of `instance`: from here on `partials` lists it, until it is published or aborted.

        Raises:
            OSError: or `StorageError`; there is one with this id, or it cannot be made.
        """
        ...

    def open(self, instance: str, export_id: str, /) -> ExportReader:
        """Open a published export.

        Raises:
            OSError: or `StorageError`; there is none, or it cannot be read.
        """
        ...

    def remove(self, instance: str, export_id: str, /) -> object:
        """Remove an export: invisible first (rename), then gone. Removing what is not there is fine."""
        ...

    def remove_partial(self, instance: str, export_id: str, /) -> object:
        """Remove what `partials` listed."""
        ...


class Receiver(Protocol):
    """What a node runs so that others can reach its exports. Listens from when it is made."""

    @property
    def address(self) -> str:
        """Where it can be reached, for people."""
        ...

    def serve_forever(self) -> object:
        """Serve until `close`."""
        ...

    def close(self) -> object:
        """Let `serve_forever` return; exports that are being received stay as they are. May be called from any thread."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteParty:
    """One side of an export to another cluster. It is known by its certificate, and by no other.

    Attributes:
        name: the instance, of the source; the node, of the receiver.
        certificate: PEM; signed by nobody but itself.
    """

    cluster: str
    name: str
    certificate: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteTerms:
    """What both sides of an export to another cluster know before they speak to each other.

    Attributes:
        own: private key and certificate of the side that holds this, PEM.
        instance: what the instance is called at the destination.
        tokens: of each disk by index, 32 bytes that its sender has to know; together good for one export.
    """

    source: RemoteParty
    receiver: RemoteParty
    own: bytes = field(repr=False)
    instance: str
    tokens: tuple[bytes, ...] = field(repr=False)


class RemoteStore(ExportStore, Protocol):
    """Where a remote export goes: takes one export, and lets it be read, and removed, while its receiver waits."""

    def farewell(self) -> object:
        """Say that the published export has been looked at and stands; the receiver ends then."""
        ...


RemoteStage = Literal["waiting", "receiving", "published", "settled", "given up"]
"""How far a remote export has come, as its receiver knows; "settled" once the source has said farewell."""


class RemoteReceiver(Receiver, Protocol):
    """Takes one export from another cluster into a node's store. Listens from when it is made."""

    @property
    def place(self) -> tuple[str, int]:
        """Host and port at which the source reaches it."""
        ...

    @property
    def stage(self) -> RemoteStage: ...

    @property
    def busy(self) -> bool:
        """Whether the source is connected now."""
        ...

    def drop(self, export_id: str, /) -> object:
        """Remove what of an export is not visible. Called after `close`."""
        ...


class Transfer(Protocol):
    """Reaches the export stores of nodes."""

    def store(self, node: Node, /) -> ExportStore:
        """The store of `node`.

        Raises:
            UnreachableNodeError: the node, or its export directory, is not there.
        """
        ...

    def open_path(self, path: str, /) -> ExportReader:
        """An export by its place rather than by node and id, for ``diskhaul import DIRECTORY``."""
        raise StorageError("this transfer cannot open exports by path", path=path)

    def receiver(self, node: Node, inventory: Inventory, /) -> Receiver | None:
        """What `node`, which is this machine, runs so that others can reach its store (``diskhaul node serve``), if anything.

        Args:
            inventory: who the nodes and the instances are, asked anew each time.

        Raises:
            ConfigurationError: it is not configured, or not rightly.
            StorageError: it cannot listen.
        """
        return None

    def remote_store(self, terms: RemoteTerms, host: str, port: int, /) -> RemoteStore:
        """The place at another cluster that `terms` were agreed on for. Nothing is asked of it yet.

        Raises:
            ConfigurationError: this transfer does not go to other clusters.
        """
        raise ConfigurationError("the configured transfer does not go to other clusters")

    def remote_receiver(
        self,
        node: Node,
        terms: RemoteTerms,
        /,
        *,
        state_dir: Path,
        begun: Callable[[str], object],
        accept: Callable[[bytes], object],
    ) -> RemoteReceiver:
        """What takes the export that `terms` were agreed on for into the store of `node`, which is this machine.

        Args:
            state_dir: a directory of its own.
            begun: called with the export's id before anything of it is there; when it raises, nothing will be.
            accept: called with the manifest before the export becomes visible; when it raises, it does not.

        Raises:
            ConfigurationError: this transfer does not go to other clusters, or the node has no address.
            StorageError: it cannot listen.
        """
        raise ConfigurationError("the configured transfer does not go to other clusters")


# --- clean-up, engines, inventories -----------------------------------------------------------------------------------


class Cleanup(Protocol):
    """Which exports a new one supersedes. Only chooses; removing is the operation's.

    A backend that never chooses anything says so with ``removes_exports = False``: nodes are then not even asked, and one that
    does not answer leaves nothing undone.
    """

    removes_exports: bool = True

    def superseded(self, new: ExportRecord, existing: Sequence[ExportRecord], /) -> Iterable[ExportRecord]:
        """Choose from `existing` (all other valid exports of the instance, on all nodes that answer)."""
        ...


T = TypeVar("T")


class Link(Protocol):
    """What a function that runs on a node has of the one who asked for it. Thread-safe."""

    @property
    def token(self) -> CancellationToken:
        """Cancelled once the one who asked does not want the work any more."""
        ...

    def send(self, message: object, /) -> object:
        """Hand `message` to the one who asked, in order. Messages get lost where the way to them does; never the result."""
        ...


class Engine(Protocol):
    """Runs functions on nodes.

    An engine whose nodes are other processes says so with ``distributed = True``. Functions and arguments are pickled then,
    operations are run by the node that an instance lives on, and exports are reached by the transfer, from wherever that is.

    Attributes:
        distributed: see above.
        shared_state_dir: its nodes are said to see one state directory, and so one journal.
    """

    distributed: bool = False
    shared_state_dir: bool = False

    def here(self, node: Node, /) -> bool:
        """Whether this process works for `node`, so that its functions can as well be called."""
        return True

    def run(self, node: Node, function: Callable[..., T], /, *arguments: Any) -> T:
        """Run ``function(*arguments)`` on `node` and return what it returns, or raise what it raises.

        Raises:
            UnreachableNodeError: the node does not answer.
        """
        ...

    def run_linked(
        self,
        node: Node,
        function: Callable[..., T],
        /,
        *arguments: Any,
        on_message: Callable[[Any], object],
        token: CancellationToken,
        brief: bool = False,
    ) -> T:
        """Run ``function(link, *arguments)`` on `node`; what it sends over its `Link` is given to `on_message`.

        When `token` is cancelled, the link's is, and the function's end is waited for, as long as it can be heard of. How many of
        them run on a node at once may be limited; those that are `brief` never wait for the others, nor does what `run` runs.

        Raises:
            UnreachableNodeError: the node does not answer (any more).
            InterruptedRunError: cancelled before the function was begun.
        """
        token.raise_if_cancelled()
        return self.run(node, function, _DirectLink(token, on_message), *arguments)

    def serve(self, node: Node, /, *, token: CancellationToken, tell: Callable[[str], object]) -> object:
        """Work for `node` in this process until `token` is cancelled; then cancel what is going on, wait for it, and return.

        For engines that are `distributed`. `tell` is called with lines about what happens (at work, a connection lost), for the
        node's administrator. What can pass by itself is waited for, not raised.
        """
        raise ConfigurationError(f"node {node.name}: the configured engine needs no process on nodes")

    def coordinate(self, *, token: CancellationToken, tell: Callable[[str], object]) -> object:
        """Be what the cluster has one of, between those who ask and the nodes, until `token` is cancelled; `tell` as in `serve`.

        Raises:
            OperationFailedError: it cannot listen.
        """
        raise ConfigurationError("the configured engine needs no scheduler")


class _DirectLink(Link):
    """Of a function that is called in this process."""

    def __init__(self, token: CancellationToken, on_message: Callable[[Any], object]) -> None:
        self._token, self._on_message = token, on_message

    @property
    def token(self) -> CancellationToken:
        return self._token

    def send(self, message: object, /) -> None:
        self._on_message(message)


class Inventory(Protocol):
    """Which nodes and instances there are."""

    def nodes(self) -> Mapping[str, Node]: ...

    def instances(self) -> Mapping[str, Instance]: ...


# --- specs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """Whether a backend works on this machine, and what it found or misses, in a few words."""

    works: bool
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendContext:
    """What a backend is made with.

    Attributes:
        cluster: the cluster it will serve.
        options: its own ``[backend_options.NAME]``.
    """

    cluster: Cluster
    options: Options = field(default_factory=dict)

    @property
    def directory(self) -> Path | None:
        """The configuration file's directory, from which relative paths are taken; None for a cluster built in code."""
        return self.cluster.source.parent if self.cluster.source is not None else None


def _assume_it_works() -> Capability:
    return Capability(works=True)


B = TypeVar("B", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec(Generic[B]):
    """Announces one backend of a stage.

    Attributes:
        name: what configurations call it; unique in its stage.
        create: makes the backend; called once per operation that uses it.
        summary: one line for ``diskhaul plugins``.
        capability: says whether it works on this machine; must be quick and change nothing.
    """

    name: str
    create: Callable[[BackendContext], B]
    summary: str = ""
    capability: Callable[[], Capability] = _assume_it_works


class InventorySpec(BackendSpec[Inventory]):
    __slots__ = ()


class RuntimeSpec(BackendSpec[Runtime]):
    __slots__ = ()


class StorageSpec(BackendSpec[Storage]):
    __slots__ = ()


class LockSpec(BackendSpec[Locks]):
    __slots__ = ()


class SnapshotSpec(BackendSpec[Snapshots]):
    __slots__ = ()


class ZeroFillSpec(BackendSpec[ZeroFill]):
    __slots__ = ()


class TransferSpec(BackendSpec[Transfer]):
    __slots__ = ()


class CleanupSpec(BackendSpec[Cleanup]):
    __slots__ = ()


class EngineSpec(BackendSpec[Engine]):
    __slots__ = ()


# --- tuning -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunable:
    """An option of a backend that ``diskhaul tune`` searches besides its own parameters.

    Attributes:
        backend: the backend's name, as in ``[backend_options.NAME]``.
        option: the key there.
        values: what is tried, at least two, without repetition; numbers best ascending, since neighbours are taken to be alike.
        default: what the backend does without the option; one of `values`.
        applies: asked with each disk that is tuned for; the option is searched where it says True of one. None: of disks whose
            `storage` is the backend.
    """

    backend: str
    option: str
    values: Sequence[Setting]
    default: Setting
    applies: Callable[[Disk], bool] | None = None

    @property
    def name(self) -> str:
        """What results and profiles call it: ``BACKEND.OPTION``."""
        return f"{self.backend}.{self.option}"
