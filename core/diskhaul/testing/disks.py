"""Disks for tests: in memory, recorded, and faulty ones. None has a descriptor, so every byte goes through their methods."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..api import BackendContext, Buffer, Extent, ExtentKind, Storage, StorageSpec
from ..errors import StorageError
from ..hookspecs import hookimpl
from ..model import Disk

_PAGE = 64 << 10  # bytes; what a MemoryDisk keeps together


class MemoryDisk:
    """A disk in memory: a `diskhaul.api.DiskReader` and `DiskWriter` in one.

    Only pages that were written take memory, so a disk of 1 TiB is fine. Thread-safe. It may be opened any number of times:
    `close` only counts.

    Args:
        content: what it holds, or its size in bytes.
        fill: the byte that it reads as where nothing was written; other than 0 for a target full of old bytes.

    Attributes:
        flushes: how often `flush` was called.
        closes: how often `close` was called.
    """

    def __init__(self, content: bytes | int, *, fill: int = 0) -> None:
        self._size = content if isinstance(content, int) else len(content)
        self._fill = fill
        self._pages: dict[int, bytearray] = {}
        self._lock = threading.Lock()
        self._fresh = fill == 0 and isinstance(content, int)
        self.flushes = 0
        self.closes = 0
        if not isinstance(content, int):
            self._put(0, memoryview(content))

    @property
    def size(self) -> int:
        return self._size

    @property
    def reads_zero(self) -> bool:
        return self._fresh

    def mark_used(self) -> None:
        """From now on say that it may hold old bytes (`reads_zero` is False)."""
        self._fresh = False

    def read_into(self, offset: int, buffer: memoryview, /) -> None:
        view = memoryview(buffer).cast("B")
        self._check_range(offset, view.nbytes)
        done = 0
        with self._lock:
            while done < view.nbytes:
                number, start = divmod(offset + done, _PAGE)
                length = min(_PAGE - start, view.nbytes - done)
                page = self._pages.get(number)
                view[done : done + length] = bytes([self._fill]) * length if page is None else page[start : start + length]
                done += length

    def write(self, offset: int, buffer: Buffer, /) -> None:
        view = memoryview(buffer).cast("B")
        self._check_range(offset, view.nbytes)
        self._put(offset, view)

    def zero(self, offset: int, length: int, /) -> None:
        self._check_range(offset, length)
        end = offset + length
        with self._lock:
            numbers: Iterable[int] = range(offset // _PAGE, -(-end // _PAGE))
            if self._fill == 0:
                numbers = [number for number in self._pages if number in numbers]  # the others are zero as they are
            for number in numbers:
                start, stop = max(offset - number * _PAGE, 0), min(end - number * _PAGE, _PAGE)
                if stop - start == _PAGE and self._fill == 0:
                    self._pages.pop(number, None)
                else:
                    self._page(number)[start:stop] = bytes(stop - start)

    def flush(self) -> None:
        with self._lock:
            self.flushes += 1

    def close(self) -> None:
        with self._lock:
            self.closes += 1

    def content(self) -> bytes:
        """The whole disk."""
        buffer = bytearray(self._size)
        self.read_into(0, memoryview(buffer))
        return bytes(buffer)

    @property
    def kept_bytes(self) -> int:
        """Memory that it takes up: pages that were written, zeros included."""
        with self._lock:
            return len(self._pages) * _PAGE

    def _put(self, offset: int, view: memoryview) -> None:
        done = 0
        with self._lock:
            while done < view.nbytes:
                number, start = divmod(offset + done, _PAGE)
                length = min(_PAGE - start, view.nbytes - done)
                self._page(number)[start : start + length] = view[done : done + length]
                done += length

    def _page(self, number: int) -> bytearray:
        page = self._pages.get(number)
        if page is None:
            page = self._pages[number] = bytearray([self._fill]) * _PAGE
        return page

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            message = f"memory disk: bytes {offset} to {offset + length} lie outside its {self._size}"
            raise StorageError(message, path="memory disk", offset=offset)


class SparseMemoryDisk(MemoryDisk):
    """A `MemoryDisk` that also says what is data and what was never written."""

    def extents(self) -> Iterator[Extent]:
        with self._lock:
            numbers = sorted(self._pages)
        position = index = 0
        while position < self.size:
            if index < len(numbers) and position == numbers[index] * _PAGE:
                index += 1
                while index < len(numbers) and numbers[index] == numbers[index - 1] + 1:
                    index += 1
                end, kind = (numbers[index - 1] + 1) * _PAGE, ExtentKind.DATA
            else:
                end, kind = (numbers[index] * _PAGE if index < len(numbers) else self.size), ExtentKind.HOLE
            end = min(end, self.size)
            yield Extent(position, end - position, kind)
            position = end


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a disk's method. `offset` and `length` are None where the method has none."""

    method: str
    offset: int | None = None
    length: int | None = None


class _Wrapper:
    """A disk around another one. It has the methods that the inner disk has, except ``fileno``: through a descriptor,
    bytes would pass it by."""

    _WRAPPED = frozenset({"write", "zero", "flush", "close", "extents"})

    def __init__(self, disk: Any) -> None:
        self._disk = disk

    @property
    def size(self) -> int:
        return int(self._disk.size)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "fileno":
            raise AttributeError(f"{type(self).__name__} has no {name}")
        inner = getattr(self._disk, name)  # AttributeError when the inner disk has none
        return self._around(name, inner) if name in self._WRAPPED else inner

    def _around(self, name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        raise NotImplementedError


class RecordingDisk(_Wrapper):
    """Wraps a disk and records every call in order, before it is carried out. Thread-safe."""

    def __init__(self, disk: Any) -> None:
        super().__init__(disk)
        self._calls: list[Call] = []
        self._lock = threading.Lock()

    @property
    def calls(self) -> tuple[Call, ...]:
        """All calls so far, oldest first."""
        with self._lock:
            return tuple(self._calls)

    def of(self, *methods: str) -> tuple[Call, ...]:
        """The calls of these methods so far: ``disk.of("write", "zero")``."""
        return tuple(call for call in self.calls if call.method in methods)

    def read_into(self, offset: int, buffer: memoryview, /) -> object:
        self._record(Call(method="read_into", offset=offset, length=memoryview(buffer).nbytes))
        result: object = self._disk.read_into(offset, buffer)
        return result

    def _around(self, name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(*arguments: Any) -> Any:
            self._record(_call(name, arguments))
            return inner(*arguments)

        return recorded

    def _record(self, call: Call) -> None:
        with self._lock:
            self._calls.append(call)


Operation = Literal["read", "write", "zero", "flush", "close"]
FaultKind = Literal["error", "short", "hang"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong with a `FaultyDisk`, each time that it applies.

    Attributes:
        on: the operation.
        kind: "error" raises `OSError`; "short" does the first half of a read or write, then raises; "hang" waits until
            `FaultyDisk.release`, then goes on as if nothing had been.
        error: errno of what is raised.
        offset: applies to calls whose range contains this byte; None to all.
        nth: applies to the nth such operation only, counted from 1; None to all.
    """

    on: Operation
    kind: FaultKind = "error"
    error: int = errno.EIO
    offset: int | None = None
    nth: int | None = None


class FaultyDisk(_Wrapper):
    """Wraps a disk and lets scripted faults happen. Thread-safe.

    ::

        disk = FaultyDisk(MemoryDisk(content), Fault(on="read", offset=1 << 20), Fault(on="flush", error=errno.ENOSPC))
        disk.shrink(4096)              # from now on there is nothing behind byte 4096

    A hanging call sets `hanging`, so that a test waits for it instead of sleeping, and ends it with `release`.
    """

    def __init__(self, disk: Any, *faults: Fault) -> None:
        super().__init__(disk)
        self._faults = faults
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._end: int | None = None
        self._released = threading.Event()
        self.hanging = threading.Event()

    def shrink(self, size: int) -> None:
        """From now on, reading behind byte `size` fails as it does in a file that was truncated; `size` stays what it was."""
        with self._lock:
            self._end = size

    def release(self) -> None:
        """Let calls that hang, or would, go on."""
        self._released.set()

    def read_into(self, offset: int, buffer: memoryview, /) -> object:
        view = memoryview(buffer).cast("B")
        fault = self._next("read", offset, view.nbytes)
        if fault is not None and fault.kind == "short":
            self._disk.read_into(offset, view[: view.nbytes // 2])
        self._apply(fault, "read", offset)
        with self._lock:
            end = self._end
        if end is not None and offset + view.nbytes > end:
            raise OSError(errno.ENODATA, f"the disk ends at byte {end}")
        result: object = self._disk.read_into(offset, view)
        return result

    def _around(self, name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*arguments: Any) -> Any:
            call = _call(name, arguments)
            fault = self._next(name, call.offset, call.length)
            if fault is not None and fault.kind == "short" and name == "write":
                view = memoryview(arguments[1]).cast("B")
                inner(arguments[0], view[: view.nbytes // 2])
            self._apply(fault, name, call.offset)
            return inner(*arguments)

        return faulty

    def _next(self, operation: str, offset: int | None, length: int | None) -> Fault | None:
        with self._lock:
            self._counts[operation] += 1
            count = self._counts[operation]
        for fault in self._faults:
            here = fault.offset is None or (offset is not None and offset <= fault.offset < offset + (length or 0))
            if fault.on == operation and here and fault.nth in (None, count):
                return fault
        return None

    def _apply(self, fault: Fault | None, operation: str, offset: int | None) -> None:
        if fault is None:
            return
        if fault.kind == "hang":
            self.hanging.set()
            self._released.wait()
            return
        where = "" if offset is None else f" at offset {offset}"
        raise OSError(fault.error, f"{os.strerror(fault.error)} (scripted fault in {operation}{where})")


class MemoryStorage(Storage):
    """A plugin whose storage ``memory`` serves disks by name: ``Disk(storage="memory", options={"name": "root"})``.

    ::

        storage = MemoryStorage({"root": MemoryDisk(content)})
        diskhaul.export("web1", node="beta", config=cluster, plugins=[storage])

    Any disk object may stand in `disks`. An import makes new ones in it, or overwrites with ``force``. Thread-safe.
    """

    def __init__(self, disks: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), *, name: str = "memory") -> None:
        self.disks: dict[str, Any] = dict(disks)
        self._name = name
        self._lock = threading.Lock()

    @hookimpl
    def diskhaul_storages(self) -> Iterable[StorageSpec]:
        return [StorageSpec(name=self._name, create=self._create, summary="disks in memory, for tests")]

    def open(self, disk: Disk, /) -> Any:
        name = self._key(disk)
        try:
            return self.disks[name]
        except KeyError:
            raise StorageError(f"{disk.label}: there is no memory disk {name!r}", path=name) from None

    def check(self, disk: Disk, /) -> Iterable[str]:
        try:
            self.open(disk)
        except StorageError as error:
            return [str(error)]
        return []

    def create(self, disk: Disk, size: int, /, *, overwrite: bool) -> Any:
        name = self._key(disk)
        with self._lock:
            present = self.disks.get(name)
            if present is None:
                self.disks[name] = SparseMemoryDisk(size)
            elif not overwrite:
                raise StorageError(f"{disk.label}: memory disk {name!r} exists already", path=name)
            elif present.size != size:
                raise StorageError(f"{disk.label}: memory disk {name!r} has {present.size} bytes, not {size}", path=name)
            elif isinstance(present, MemoryDisk):
                present.mark_used()
            return self.disks[name]

    def location(self, disk: Disk, /) -> str:
        return f"{self._name}:{disk.options.get('name', '')}"

    def _create(self, context: BackendContext) -> MemoryStorage:
        return self

    def _key(self, disk: Disk) -> str:
        name = disk.options.get("name")
        if not isinstance(name, str) or not name:
            raise StorageError(f"{disk.label}: options need the 'name' of a memory disk", path=disk.label)
        return name


def _call(name: str, arguments: tuple[Any, ...]) -> Call:
    if name == "write":
        return Call(method=name, offset=arguments[0], length=memoryview(arguments[1]).nbytes)
    if name == "zero":
        return Call(method=name, offset=arguments[0], length=arguments[1])
    return Call(method=name)
