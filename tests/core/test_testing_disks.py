"""The disks of diskhaul.testing do what they say, or tests that use them prove nothing."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import diskhaul.testing
from diskhaul.api import DiskReader, Extent, ExtentKind
from diskhaul.errors import StorageError
from diskhaul.model import Disk
from diskhaul.testing import Fault, FaultyDisk, MemoryDisk, MemoryStorage, RecordingDisk, SparseMemoryDisk
from diskhaul.testing.conformance.storages import StorageConformance, pattern, read
from diskhaul.testing.disks import Call

KIB, MIB, TIB = 1 << 10, 1 << 20, 1 << 40


class TestMemoryStorage(StorageConformance):
    test_extents_are_in_order_and_what_they_leave_out_reads_as_zeros = None  # a MemoryDisk has no extents
    test_a_descriptor_gives_the_same_bytes = None  # and no descriptor

    @pytest.fixture
    def storage(self) -> MemoryStorage:
        return MemoryStorage()

    @pytest.fixture
    def make_disk(self, storage: MemoryStorage) -> Callable[[bytes], Disk]:
        def make(content: bytes) -> Disk:
            name = f"disk-{len(storage.disks)}"
            storage.disks[name] = MemoryDisk(content)
            return Disk(storage="memory", options={"name": name})

        return make

    @pytest.fixture
    def missing_disk(self) -> Disk:
        return Disk(storage="memory", options={"name": "missing"})

    @pytest.fixture
    def make_target(self) -> Callable[[], Disk] | None:
        return lambda: Disk(storage="memory", options={"name": "new"})


class TestSparseMemoryDisks(TestMemoryStorage):
    test_extents_are_in_order_and_what_they_leave_out_reads_as_zeros = (
        StorageConformance.test_extents_are_in_order_and_what_they_leave_out_reads_as_zeros
    )

    @pytest.fixture
    def make_disk(self, storage: MemoryStorage) -> Callable[[bytes], Disk]:
        def make(content: bytes) -> Disk:
            name = f"disk-{len(storage.disks)}"
            disk = storage.disks[name] = SparseMemoryDisk(len(content))
            for offset in range(0, len(content), 64 * KIB):
                piece = content[offset : offset + 64 * KIB]
                if any(piece):
                    disk.write(offset, piece)
            disk.mark_used()
            return Disk(storage="memory", options={"name": name})

        return make


def test_every_public_name_can_be_imported() -> None:
    for name in diskhaul.testing.__all__:
        assert getattr(diskhaul.testing, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = diskhaul.testing.NoSuchThing


def test_a_disk_without_a_name_is_refused() -> None:
    for options in ({}, {"name": ""}, {"name": 3}):
        with pytest.raises(StorageError, match="name"):
            MemoryStorage().open(Disk(storage="memory", options=options))


# --- MemoryDisk -------------------------------------------------------------------------------------------------------


def test_a_huge_memory_disk_takes_only_what_was_written() -> None:
    disk = SparseMemoryDisk(TIB)
    disk.write(TIB - 5, b"at en")
    disk.write(MIB, b"x")
    assert disk.kept_bytes == 128 * KIB
    assert read(disk, TIB - 5, 5) == b"at en"
    assert [(e.offset, e.length) for e in disk.extents() if e.kind is ExtentKind.DATA] == [
        (MIB, 64 * KIB),
        (TIB - 64 * KIB, 64 * KIB),
    ]
    disk.zero(0, TIB - MIB)
    assert disk.kept_bytes == 64 * KIB


def test_extents_cover_a_disk_of_odd_size() -> None:
    disk = SparseMemoryDisk(200_001)
    disk.write(200_000, b"x")
    disk.write(65_536, b"x")
    assert list(disk.extents()) == [
        Extent(0, 65_536, ExtentKind.HOLE),
        Extent(65_536, 65_536, ExtentKind.DATA),
        Extent(131_072, 65_536, ExtentKind.HOLE),
        Extent(196_608, 3393, ExtentKind.DATA),
    ]


def test_a_target_full_of_old_bytes_says_so_and_keeps_them() -> None:
    disk = MemoryDisk(300_000, fill=0xAA)
    assert not disk.reads_zero
    disk.write(100_000, b"new")
    disk.zero(65_536, 10)
    disk.zero(131_072, 65_536)
    expected = bytearray(b"\xaa" * 300_000)
    expected[100_000:100_003] = b"new"
    expected[65_536:65_546] = bytes(10)
    expected[131_072:196_608] = bytes(65_536)
    assert disk.content() == bytes(expected)


def test_only_a_new_memory_disk_reads_as_zeros() -> None:
    assert MemoryDisk(4096).reads_zero
    assert not MemoryDisk(bytes(4096)).reads_zero
    storage = MemoryStorage({"old": MemoryDisk(4096)})
    disk = Disk(storage="memory", options={"name": "old"})
    assert not storage.create(disk, 4096, overwrite=True).reads_zero
    with pytest.raises(StorageError, match="bytes"):
        storage.create(disk, 8192, overwrite=True)


def test_it_counts_flushes_and_closes() -> None:
    disk = MemoryDisk(1)
    disk.flush()
    disk.close()
    disk.close()
    assert (disk.flushes, disk.closes) == (1, 2)


# --- RecordingDisk ----------------------------------------------------------------------------------------------------


def test_calls_are_recorded_in_order_and_carried_out() -> None:
    inner = MemoryDisk(MIB)
    disk = RecordingDisk(inner)
    disk.write(10, b"abc")
    disk.zero(11, 1)
    disk.flush()
    assert read(disk, 10, 3) == b"a\0c"
    disk.close()
    assert disk.calls == (
        Call(method="write", offset=10, length=3),
        Call(method="zero", offset=11, length=1),
        Call(method="flush"),
        Call(method="read_into", offset=10, length=3),
        Call(method="close"),
    )
    assert disk.of("zero", "close") == (Call(method="zero", offset=11, length=1), Call(method="close"))
    assert (inner.flushes, inner.closes) == (1, 1)


def test_a_wrapped_disk_has_what_the_inner_one_has_but_no_descriptor(tmp_path: Path) -> None:
    class OnlyReads:
        size = 5

        def read_into(self, offset: int, buffer: memoryview, /) -> None:
            buffer[:] = b"bytes"[offset : offset + len(buffer)]

        def fileno(self) -> int:
            return 0

    for wrap in (RecordingDisk, FaultyDisk):
        reader = wrap(OnlyReads())
        assert isinstance(reader, DiskReader)
        assert not hasattr(reader, "fileno")
        assert not hasattr(reader, "extents")
        assert not hasattr(reader, "write")
        assert read(reader, 1, 3) == b"yte"
        writer = wrap(SparseMemoryDisk(MIB))
        assert all(hasattr(writer, name) for name in ("size", "write", "zero", "flush", "close"))
        assert writer.reads_zero
        assert list(writer.extents()) == [Extent(0, MIB, ExtentKind.HOLE)]


def test_calls_of_many_threads_are_all_recorded() -> None:
    disk = RecordingDisk(MemoryDisk(MIB))
    threads = [threading.Thread(target=lambda: [read(disk, number, 1) for number in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(call.offset or 0 for call in disk.calls) == sorted(list(range(200)) * 4)


# --- FaultyDisk -------------------------------------------------------------------------------------------------------


def test_a_fault_at_an_offset_hits_every_call_over_it_and_no_other() -> None:
    disk = FaultyDisk(MemoryDisk(pattern(MIB)), Fault(on="read", offset=5000))
    assert read(disk, 0, 5000) == pattern(MIB)[:5000]
    assert read(disk, 5001, 100) == pattern(MIB)[5001:5101]
    for offset, length in ((5000, 1), (0, 5001), (4999, 2)):
        with pytest.raises(OSError, match="offset") as caught:
            read(disk, offset, length)
        assert caught.value.errno == errno.EIO
    disk.write(5000, b"x")


def test_the_nth_call_fails_and_the_next_does_not() -> None:
    disk = FaultyDisk(MemoryDisk(MIB), Fault(on="write", nth=2, error=errno.ENOSPC), Fault(on="read", nth=1))
    disk.write(0, b"1")
    with pytest.raises(OSError, match="No space") as caught:
        disk.write(1, b"2")
    assert caught.value.errno == errno.ENOSPC
    disk.write(2, b"3")
    with pytest.raises(OSError, match="read"):
        read(disk, 0, 3)
    assert read(disk, 0, 3) == b"1\x003"


@pytest.mark.parametrize("operation", ["zero", "flush", "close"])
def test_any_operation_can_fail(operation: str) -> None:
    inner = MemoryDisk(b"\xff" * 4096)
    disk = FaultyDisk(inner, Fault(on=operation))  # type: ignore[arg-type]
    with pytest.raises(OSError, match=operation):
        getattr(disk, operation)(*((0, 4096) if operation == "zero" else ()))
    assert (inner.flushes, inner.closes, inner.content()) == (0, 0, b"\xff" * 4096)


def test_a_short_call_does_the_first_half_and_says_so() -> None:
    inner = MemoryDisk(b"\xff" * 100)
    disk = FaultyDisk(inner, Fault(on="read", kind="short", nth=1), Fault(on="write", kind="short", nth=1))
    buffer = bytearray(10)
    with pytest.raises(OSError, match="read"):
        disk.read_into(0, memoryview(buffer))
    assert buffer == b"\xff" * 5 + bytes(5)
    with pytest.raises(OSError, match="write"):
        disk.write(0, b"0123456789")
    assert inner.content()[:10] == b"01234" + b"\xff" * 5


def test_a_disk_that_shrank_keeps_its_size_and_refuses_to_read_behind_its_end() -> None:
    disk = FaultyDisk(MemoryDisk(pattern(MIB)))
    disk.shrink(1000)
    assert disk.size == MIB
    assert read(disk, 0, 1000) == pattern(MIB)[:1000]
    with pytest.raises(OSError, match="ends") as caught:
        read(disk, 999, 2)
    assert caught.value.errno == errno.ENODATA


def test_a_hanging_call_waits_to_be_released_and_then_goes_on() -> None:
    disk = FaultyDisk(MemoryDisk(pattern(4096)), Fault(on="read", kind="hang", offset=100))
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(read(disk, 0, 4096)), daemon=True)
    reader.start()
    assert disk.hanging.wait(60)
    assert read(disk, 200, 10) == pattern(4096)[200:210]  # others are not held up
    assert not found
    disk.release()
    reader.join(60)
    assert found == [pattern(4096)]
