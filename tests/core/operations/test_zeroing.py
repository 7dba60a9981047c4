"""A disk that is zeroed in place is written to while there is time, and never after it was given up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator

import pytest

from diskhaul.api import DiskInPlace, DiskReader, Extent, Storage, ZeroFill
from diskhaul.cancellation import CancellationToken
from diskhaul.errors import InterruptedRunError, OperationFailedError, StorageError
from diskhaul.model import Disk
from diskhaul.operations import zeroing
from diskhaul.operations.zeroing import GuardedDisk, zero_in_place

DISK = Disk(path="disk.raw")


class Memory(DiskInPlace):
    """A disk of 4096 bytes; `hold` makes its next zeroing wait."""

    size = 4096

    def __init__(self) -> None:
        self.content = bytearray(b"x" * self.size)
        self.hold: threading.Event | None = None
        self.held = threading.Event()
        self.closed = 0

    def read_into(self, offset: int, buffer: memoryview, /) -> None:
        buffer[:] = self.content[offset : offset + len(buffer)]

    def zero(self, offset: int, length: int, /) -> None:
        if self.hold is not None:
            self.held.set()
            assert self.hold.wait(60)
        self.content[offset : offset + length] = bytes(length)

    def users(self) -> Iterable[str]:
        return ()

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


class MemoryStorage(Storage):
    def __init__(self, disk: Memory) -> None:
        self.disk = disk

    def open(self, disk: Disk, /) -> DiskReader:
        return self.disk

    def open_in_place(self, disk: Disk, /) -> DiskInPlace:
        return self.disk


class Zeroes(ZeroFill):
    """Does what it is given to do."""

    writes = True

    def __init__(self, work: Callable[[DiskInPlace], object]) -> None:
        self._work = work

    def refuses(self, disk: Disk, /) -> str | None:
        return None

    def free_extents(self, disk: Disk, reader: DiskReader, /) -> Iterator[Extent]:
        yield from ()

    def zero(self, disk: Disk, target: DiskInPlace, /, *, deadline_s: float, cancelled: Callable[[], bool]) -> object:
        return self._work(target)


def _run(
    disk: Memory, work: Callable[[DiskInPlace], object], token: CancellationToken | None = None, limit_s: float = 60.0
) -> object:
    storage = MemoryStorage(disk)
    return zero_in_place(Zeroes(work), storage, DISK, limit_s=limit_s, stall_s=60.0, token=token or CancellationToken())


def test_what_the_backend_zeroes_is_zero_and_its_answer_comes_back() -> None:
    disk = Memory()

    def work(target: DiskInPlace) -> object:
        target.zero(0, 512)
        target.flush()
        return target.size

    assert _run(disk, work) == 4096
    assert disk.content == bytes(512) + b"x" * 3584
    assert disk.closed == 1


def test_a_backend_cannot_go_on_once_the_time_is_over() -> None:
    disk = Memory()
    with pytest.raises(OperationFailedError, match="no time left"):
        _run(disk, lambda target: target.zero(0, 512), limit_s=0.0)
    assert disk.content == b"x" * 4096
    assert disk.closed == 1


def test_a_backend_cannot_go_on_once_the_run_is_cancelled() -> None:
    disk, token = Memory(), CancellationToken()

    def work(target: DiskInPlace) -> object:
        target.zero(0, 512)
        token.cancel("enough")
        return target.zero(512, 512)

    with pytest.raises(InterruptedRunError, match="enough"):
        _run(disk, work, token)
    assert disk.content == bytes(512) + b"x" * 3584


def test_a_backend_that_was_left_behind_writes_nothing_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zeroing, "NOTICE_S", 0.05)
    disk, go_on, tried = Memory(), threading.Event(), threading.Event()
    refused: list[BaseException] = []

    def work(target: DiskInPlace) -> object:
        assert go_on.wait(60)
        try:
            target.zero(0, 4096)
        except OperationFailedError as error:
            refused.append(error)
        tried.set()
        return None

    with pytest.raises(OperationFailedError, match="left behind"):
        _run(disk, work, limit_s=0.05)
    go_on.set()
    assert tried.wait(60)
    assert len(refused) == 1
    assert disk.content == b"x" * 4096


def test_the_end_waits_for_a_write_that_is_under_way() -> None:
    disk = Memory()
    disk.hold = threading.Event()
    guarded = GuardedDisk(disk, "disk 0", float("inf"), CancellationToken())
    writer = threading.Thread(target=lambda: guarded.zero(0, 4096))
    writer.start()
    assert disk.held.wait(60)
    assert not guarded.end(0.01)
    disk.hold.set()
    assert guarded.end(60.0)
    assert disk.content == bytes(4096)
    writer.join()
    for call in (lambda: guarded.zero(0, 1), guarded.flush, guarded.users):
        with pytest.raises(OperationFailedError, match="no longer"):
            call()


def test_a_storage_that_cannot_do_it_says_so() -> None:
    class Plain(MemoryStorage):
        open_in_place = Storage.open_in_place  # type: ignore[assignment]

    with pytest.raises(StorageError, match="cannot zero disks in place"):
        zero_in_place(Zeroes(lambda target: None), Plain(Memory()), DISK, limit_s=60.0, stall_s=60.0, token=CancellationToken())
