"""One face for disks with and without a descriptor, also for those that lie."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diskhaul.api import Extent, ExtentKind, FreeExtents
from diskhaul.errors import SnapshotError, StorageError
from diskhaul.pipeline.source import Source
from diskhaul.testing import Fault, FaultyDisk, MemoryDisk, RecordingDisk

DATA, HOLE, FREE = ExtentKind.DATA, ExtentKind.HOLE, ExtentKind.FREE
CONTENT = bytes(range(256)) * 32
SIZE = len(CONTENT)


class Plain:
    """The least a plugin's disk can be."""

    def __init__(self, size: Any = SIZE) -> None:
        self.size = size

    def read_into(self, offset: int, buffer: memoryview) -> object:
        buffer[:] = CONTENT[offset : offset + len(buffer)]
        return None


class WithDescriptor(Plain):
    def __init__(self, path: Path, size: int | None = None) -> None:
        super().__init__(path.stat().st_size if size is None else size)
        self.file = open(path, "rb")  # noqa: SIM115  # closed by `close`
        self.closes = 0

    def fileno(self) -> int:
        return self.file.fileno()

    def read_into(self, offset: int, buffer: memoryview) -> object:
        raise AssertionError("a disk with a descriptor is read through it")

    def close(self) -> None:
        self.closes += 1
        self.file.close()


def with_extents(extents: Iterable[Any], size: int = 100) -> Source:
    class Mapped(Plain):
        def extents(self) -> Iterable[Any]:
            return extents

    return Source(Mapped(size), "disk 0")


def filled(source: Source, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    source.fill(offset, memoryview(buffer))
    return bytes(buffer)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(CONTENT)
    return path


def test_a_disk_without_a_descriptor_is_read_through_its_method() -> None:
    disk = RecordingDisk(MemoryDisk(CONTENT))
    source = Source(disk, "disk 0")
    assert source.size == len(CONTENT)
    assert filled(source, 100, 300) == CONTENT[100:400]
    assert [(call.offset, call.length) for call in disk.of("read_into")] == [(100, 300)]
    assert list(source.extents()) == [Extent(0, len(CONTENT), DATA)]


def test_a_disk_with_a_descriptor_is_read_through_it(image: Path) -> None:
    source = Source(WithDescriptor(image), "disk 0")
    assert filled(source, 100, 300) == CONTENT[100:400]
    assert list(source.extents()) == [Extent(0, len(CONTENT), DATA)]
    source.close()


def test_holes_of_a_descriptor_are_found(tmp_path: Path) -> None:
    path = tmp_path / "sparse.raw"
    with open(path, "wb") as file:
        file.truncate(1 << 20)
        file.seek(512 << 10)
        file.write(b"x" * 4096)
    source = Source(WithDescriptor(path), "disk 0")
    assert list(source.extents()) == [
        Extent(0, 512 << 10, HOLE),
        Extent(512 << 10, 4096, DATA),
        Extent((512 << 10) + 4096, (512 << 10) - 4096, HOLE),
    ]
    source.close()


def test_a_fileno_that_only_says_there_is_none_is_none() -> None:
    class File(io.BytesIO):
        size = len(CONTENT)

        def read_into(self, offset: int, buffer: memoryview) -> int:
            self.seek(offset)
            return self.readinto(buffer)

    assert filled(Source(File(CONTENT), "disk 0"), 5, 50) == CONTENT[5:55]


@pytest.mark.parametrize("size", [-1, 1.0, "100", None, True])
def test_a_size_that_is_none_is_refused(size: Any) -> None:
    with pytest.raises(StorageError, match=r"disk 0: its storage gives the size .* not a number of bytes"):
        Source(Plain(size), "disk 0")


@pytest.mark.parametrize("count", [0, 1, 99, 101, -1])
def test_a_read_of_another_length_is_an_error_and_never_zeros(count: int) -> None:
    class Short(Plain):
        def read_into(self, offset: int, buffer: memoryview) -> int:
            return count

    with pytest.raises(StorageError, match=f"disk 0: short read at offset 700: {count} of 100 bytes") as caught:
        filled(Source(Short(), "disk 0"), 700, 100)
    assert caught.value.offset == 700


@pytest.mark.parametrize("answer", [100, None, True, "done"])
def test_a_reader_that_gives_no_count_is_believed(answer: object) -> None:
    class Answering(Plain):
        def read_into(self, offset: int, buffer: memoryview) -> object:
            super().read_into(offset, buffer)
            return answer

    assert filled(Source(Answering(), "disk 0"), 0, 100) == CONTENT[:100]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (ValueError("a plugin's own"), "a plugin's own"),
        (KeyError(), "KeyError"),
    ],
)
def test_whatever_a_reader_raises_names_disk_and_offset(error: Exception, reason: str) -> None:
    class Failing(Plain):
        def read_into(self, offset: int, buffer: memoryview) -> object:
            raise error

    with pytest.raises(StorageError, match=f"disk 0: cannot read it at offset 4096: .*{reason}") as caught:
        Source(Failing(), "disk 0").fill(4096, memoryview(bytearray(512)))
    assert caught.value.offset == 4096
    assert caught.value.__cause__ is error


def test_an_error_that_is_ours_stays_what_it_is() -> None:
    mine = SnapshotError("it overflowed")

    class Failing(Plain):
        def read_into(self, offset: int, buffer: memoryview) -> object:
            raise mine

    with pytest.raises(SnapshotError) as caught:
        filled(Source(Failing(), "disk 0"), 0, 10)
    assert caught.value is mine


def test_a_file_that_shrank_is_an_error_and_never_zeros(image: Path) -> None:
    source = Source(WithDescriptor(image), "disk 0")
    os.truncate(image, 1000)
    try:
        with pytest.raises(StorageError, match="disk 0: cannot read it at offset 512"):
            source.fill(512, memoryview(bytearray(4096)))
    finally:
        source.close()


def test_gaps_between_extents_count_as_data() -> None:
    source = with_extents([Extent(10, 5, HOLE), Extent(40, 10, FREE)])
    assert list(source.extents()) == [
        Extent(0, 10, DATA),
        Extent(10, 5, HOLE),
        Extent(15, 25, DATA),
        Extent(40, 10, FREE),
        Extent(50, 50, DATA),
    ]
    assert list(with_extents([]).extents()) == [Extent(0, 100, DATA)]


@pytest.mark.parametrize(
    "wrong",
    [
        [Extent(0, 10, HOLE), Extent(9, 10, HOLE)],
        [Extent(50, 10, HOLE), Extent(0, 10, HOLE)],
        [Extent(95, 6, HOLE)],
        [Extent(-1, 5, HOLE)],
        [Extent(0, 0, HOLE)],
        [Extent(10, -5, HOLE)],
        [Extent(100, 1, HOLE)],
    ],
)
def test_extents_that_cannot_be_are_refused(wrong: list[Extent]) -> None:
    with pytest.raises(StorageError, match=r"disk 0: its storage gives the extent .* on a disk of 100 bytes"):
        list(with_extents(wrong).extents())


@pytest.mark.parametrize(
    "wrong",
    [(0, 10, "hole"), None, Extent(0, 10, "data"), Extent(0, 10, None), Extent(0.0, 10, DATA), Extent(0, True, DATA)],  # type: ignore[arg-type]
)
def test_what_is_no_extent_never_passes_for_a_hole(wrong: Any) -> None:
    with pytest.raises(StorageError, match=r"disk 0: its storage gives .* which is no extent"):
        list(with_extents([wrong]).extents())


def test_an_error_while_extents_are_listed_says_how_far_it_came() -> None:
    def breaking() -> Iterator[Extent]:
        yield Extent(0, 60, HOLE)
        raise OSError(errno.EIO, "Input/output error")

    extents = with_extents(breaking()).extents()
    assert next(extents) == Extent(0, 60, HOLE)
    with pytest.raises(StorageError, match="disk 0: cannot find the extents of it at offset 60: Input/output error"):
        next(extents)


def test_free_space_laid_over_the_disk_takes_the_place_of_data() -> None:
    source = with_extents([Extent(0, 50, DATA), Extent(50, 50, HOLE)])
    source.free = FreeExtents([(40, 20)])
    assert list(source.extents()) == [Extent(0, 40, DATA), Extent(40, 10, FREE), Extent(50, 50, HOLE)]


def test_a_disk_is_closed_once(image: Path) -> None:
    disk = WithDescriptor(image)
    source = Source(disk, "disk 0")
    source.close()
    source.close()
    assert disk.closes == 1
    Source(Plain(), "disk 0").close()  # has nothing to close


# --- free space -------------------------------------------------------------------------------------------------------


def test_what_is_free_is_zero_in_what_is_read_along() -> None:
    source = Source(MemoryDisk(CONTENT), "disk 0")
    source.free = FreeExtents([(10, 5), (90, 20), (8000, 100)])
    buffer = bytearray(b"\xee" * 100)
    assert source.fill_used(5, memoryview(buffer)) == 20
    wanted = bytearray(CONTENT[5:105])
    wanted[5:10], wanted[85:100] = bytes(5), bytes(15)
    assert buffer == wanted


def test_a_bad_sector_in_free_space_does_no_harm() -> None:
    source = Source(FaultyDisk(MemoryDisk(CONTENT), Fault(on="read", offset=512)), "disk 0")
    source.free = FreeExtents([(500, 100)])
    buffer = bytearray(1000)
    assert source.fill_used(0, memoryview(buffer)) == 100
    assert bytes(buffer) == CONTENT[:500] + bytes(100) + CONTENT[600:1000]


def test_a_bad_sector_in_what_is_in_use_fails() -> None:
    source = Source(FaultyDisk(MemoryDisk(CONTENT), Fault(on="read", offset=512)), "disk 0")
    source.free = FreeExtents([(600, 100)])
    with pytest.raises(StorageError, match="offset 0"):
        source.fill_used(0, memoryview(bytearray(1000)))


def test_totals_count_what_is_free_as_such() -> None:
    source = with_extents([Extent(0, 40, DATA), Extent(40, 20, HOLE), Extent(60, 10, FREE)])
    source.free = FreeExtents([(10, 5), (35, 10), (68, 12)])
    assert source.totals() == {DATA: 40 + 30 - 5 - 5 - 10, HOLE: 20, FREE: 10 + 5 + 5 + 10}
