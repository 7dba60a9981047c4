"""What every storage has to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from diskhaul.api import ExtentKind, Storage
from diskhaul.errors import DiskhaulError
from diskhaul.host import with_defaults
from diskhaul.model import Disk

KIB = 1024


def pattern(length: int, seed: int = 1) -> bytes:
    """`length` bytes without a zero among them; another `seed` gives others at every place."""
    tile = bytes((index * 31 + (index >> 8) * 7 + seed) % 255 + 1 for index in range(64 * KIB))
    return (tile * (length // len(tile) + 1))[:length]


def read(reader: Any, offset: int, length: int) -> bytes:
    """Read a range through ``read_into``, into a buffer that did not hold zeros before."""
    buffer = bytearray(b"\xee" * length)
    reader.read_into(offset, memoryview(buffer))
    return bytes(buffer)


class StorageConformance:
    """Subclass it, and give the fixtures that say how to make the storage and its disks::

        class TestMySan(StorageConformance):
            @pytest.fixture
            def storage(self):
                return MySan(...)

            @pytest.fixture
            def make_disk(self):  # called with the bytes the disk has to hold, of length `size`
                return lambda content: Disk(storage="my-san", options={"volume": put_on_san(content)})

            @pytest.fixture
            def missing_disk(self):
                return Disk(storage="my-san", options={"volume": "no such volume"})

    A storage that imports can write to also has ``make_target``, which makes a disk that `create` may write without
    `overwrite` (a new file, say), or None where there is no such thing; a storage that only reads sets ``writable = False``.
    What a storage does not have is skipped with a reason; setting a test to None in the subclass leaves it out.
    """

    size: int = 192 * KIB + 4096
    """Size of the disks that the suite makes, a multiple of the sector size."""

    writable: bool = True

    @pytest.fixture
    def storage(self) -> Storage:
        raise NotImplementedError("define the fixture 'storage'")

    @pytest.fixture
    def backend(self, storage: Storage) -> Storage:
        """The storage as operations see it: with its Protocol's defaults for what it leaves out."""
        return with_defaults("storage", storage)

    @pytest.fixture
    def make_disk(self) -> Callable[[bytes], Disk]:
        raise NotImplementedError("define the fixture 'make_disk'")

    @pytest.fixture
    def missing_disk(self) -> Disk:
        raise NotImplementedError("define the fixture 'missing_disk'")

    @pytest.fixture
    def make_target(self) -> Callable[[], Disk] | None:
        return None

    @pytest.fixture
    def only_if_writable(self) -> None:
        if not self.writable:
            pytest.skip("this storage only reads")

    def test_an_opened_disk_has_its_size_and_its_bytes(self, backend: Storage, make_disk: Callable[[bytes], Disk]) -> None:
        content = pattern(self.size)
        reader = backend.open(make_disk(content))
        try:
            assert reader.size == self.size
            assert read(reader, 0, self.size) == content
        finally:
            _close(reader)

    def test_any_range_can_be_read(self, backend: Storage, make_disk: Callable[[bytes], Disk]) -> None:
        content = pattern(self.size)
        reader = backend.open(make_disk(content))
        try:
            for offset, length in ((0, 1), (1, 511), (4095, 2), (self.size - 1, 1), (self.size - 5000, 5000), (777, 100_001)):
                assert read(reader, offset, length) == content[offset : offset + length], (offset, length)
        finally:
            _close(reader)

    def test_several_threads_read_at_once(self, backend: Storage, make_disk: Callable[[bytes], Disk]) -> None:
        content = pattern(self.size)
        reader = backend.open(make_disk(content))
        offsets = [(number * 7919) % (self.size - 4096) for number in range(200)]
        try:
            with ThreadPoolExecutor(4) as threads:
                found = list(threads.map(lambda offset: read(reader, offset, 4096), offsets))
        finally:
            _close(reader)
        assert found == [content[offset : offset + 4096] for offset in offsets]

    def test_reading_behind_the_end_is_an_error_and_never_zeros(
        self, backend: Storage, make_disk: Callable[[bytes], Disk]
    ) -> None:
        reader = backend.open(make_disk(pattern(self.size)))
        try:
            for offset, length in ((self.size, 1), (self.size - 100, 101), (self.size + 4096, 4096)):
                with pytest.raises((OSError, DiskhaulError)):
                    read(reader, offset, length)
        finally:
            _close(reader)

    def test_a_good_disk_has_no_problems(self, backend: Storage, make_disk: Callable[[bytes], Disk]) -> None:
        disk = make_disk(pattern(self.size))
        assert list(backend.check(disk)) == []
        assert list(backend.check(replace(disk, size=self.size))) == []

    def test_a_missing_disk_is_a_problem_and_cannot_be_opened(
        self, storage: Storage, backend: Storage, missing_disk: Disk
    ) -> None:
        problems = list(backend.check(missing_disk))
        if getattr(type(storage), "check", Storage.check) is not Storage.check:  # the default finds nothing, ever
            assert problems, "check() finds nothing wrong with a disk that is not there"
        assert not any("\n" in problem for problem in problems), "a problem is one line"
        with pytest.raises((OSError, DiskhaulError)):
            backend.open(missing_disk)

    def test_looking_changes_nothing(self, backend: Storage, make_disk: Callable[[bytes], Disk]) -> None:
        content = pattern(self.size)
        disk = make_disk(content)
        list(backend.check(disk))
        for _ in range(2):
            reader = backend.open(disk)
            try:
                assert read(reader, 0, self.size) == content
            finally:
                _close(reader)

    def test_a_location_tells_disks_apart(self, backend: Storage, make_disk: Callable[[bytes], Disk]) -> None:
        one, other = make_disk(pattern(self.size)), make_disk(pattern(self.size))
        assert backend.location(one) == backend.location(one)
        if backend.location(one):
            assert backend.location(one) != backend.location(other)

    def test_extents_are_in_order_and_what_they_leave_out_reads_as_zeros(
        self, backend: Storage, make_disk: Callable[[bytes], Disk]
    ) -> None:
        content = pattern(64 * KIB) + bytes(64 * KIB) + pattern(self.size - 128 * KIB)
        reader = backend.open(make_disk(content))
        try:
            if not hasattr(reader, "extents"):
                pytest.skip("this storage has no extents")
            position = 0
            for extent in reader.extents():
                assert extent.offset >= position
                assert extent.length > 0
                position = extent.end
                if extent.kind is ExtentKind.HOLE:
                    assert not any(content[extent.offset : extent.end]), extent
            assert position <= self.size
        finally:
            _close(reader)

    def test_a_descriptor_gives_the_same_bytes(self, backend: Storage, make_disk: Callable[[bytes], Disk]) -> None:
        content = pattern(self.size)
        reader = backend.open(make_disk(content))
        try:
            if not hasattr(reader, "fileno"):
                pytest.skip("this storage has no descriptor")
            assert os.pread(reader.fileno(), 5000, 70_001) == content[70_001:75_001]
        finally:
            _close(reader)

    def test_no_descriptor_is_left_open(self, backend: Storage, make_disk: Callable[[bytes], Disk], missing_disk: Disk) -> None:
        disk = make_disk(pattern(self.size))
        _close(backend.open(disk))  # whatever a storage keeps for itself is there from now on
        before = descriptors()
        for _ in range(3):
            _close(backend.open(disk))
            list(backend.check(disk))
            with pytest.raises((OSError, DiskhaulError)):
                backend.open(missing_disk)
        assert descriptors() == before

    @pytest.mark.usefixtures("only_if_writable")
    def test_what_is_written_is_read_back(self, backend: Storage, make_disk: Callable[[bytes], Disk]) -> None:
        disk = make_disk(pattern(self.size))
        content = pattern(self.size, seed=2)
        writer = backend.create(disk, self.size, overwrite=True)
        try:
            assert writer.size == self.size
            step = 40_000
            with ThreadPoolExecutor(4) as threads:
                offsets = range(0, self.size, step)
                list(threads.map(lambda offset: writer.write(offset, memoryview(content)[offset : offset + step]), offsets))
            writer.flush()
        finally:
            writer.close()
        assert self._content(backend, disk) == content

    @pytest.mark.usefixtures("only_if_writable")
    def test_zeros_replace_old_bytes(self, backend: Storage, make_disk: Callable[[bytes], Disk]) -> None:
        disk = make_disk(pattern(self.size))
        writer = backend.create(disk, self.size, overwrite=True)
        try:
            zeroed = [(0, 4096), (8192, 100_000), (self.size - 5000, 5000)]
            for offset, length in zeroed:
                writer.zero(offset, length)
            writer.write(120_000, memoryview(bytes(8192)))
            writer.flush()
            known_zero = writer.reads_zero
        finally:
            writer.close()
        found = self._content(backend, disk)
        for offset, length in [*zeroed, (120_000, 8192)]:
            assert not any(found[offset : offset + length]), (offset, length)
        if known_zero:
            assert not any(found)

    @pytest.mark.usefixtures("only_if_writable")
    def test_what_is_written_again_replaces_what_was_written(self, backend: Storage, make_disk: Callable[[bytes], Disk]) -> None:
        disk = make_disk(pattern(self.size))
        writer = backend.create(disk, self.size, overwrite=True)
        try:
            writer.write(0, memoryview(pattern(16384, seed=2)))
            writer.flush()
            writer.write(4096, memoryview(bytes(8192)))
            writer.flush()
        finally:
            writer.close()
        expected = pattern(4096, seed=2) + bytes(8192) + pattern(16384, seed=2)[12288:]
        assert self._content(backend, disk)[:16384] == expected

    @pytest.mark.usefixtures("only_if_writable")
    def test_writing_behind_the_end_is_an_error(self, backend: Storage, make_disk: Callable[[bytes], Disk]) -> None:
        disk = make_disk(pattern(self.size))
        writer = backend.create(disk, self.size, overwrite=True)
        try:
            with pytest.raises((OSError, DiskhaulError)):
                writer.write(self.size - 10, memoryview(b"x" * 11))
            with pytest.raises((OSError, DiskhaulError)):
                writer.zero(self.size - 10, 11)
        finally:
            writer.close()

    @pytest.mark.usefixtures("only_if_writable")
    def test_an_existing_disk_is_overwritten_only_when_asked(self, backend: Storage, make_disk: Callable[[bytes], Disk]) -> None:
        content = pattern(self.size)
        disk = make_disk(content)
        with pytest.raises(DiskhaulError):
            backend.create(disk, self.size, overwrite=False)
        assert self._content(backend, disk) == content

    @pytest.mark.usefixtures("only_if_writable")
    def test_a_new_disk_is_made(self, backend: Storage, make_target: Callable[[], Disk] | None) -> None:
        if make_target is None:
            pytest.skip("this storage makes no new disks")
        disk = make_target()
        writer = backend.create(disk, self.size, overwrite=False)
        try:
            if not writer.reads_zero:
                writer.zero(0, self.size)
            writer.write(4096, memoryview(b"x" * 4096))
            writer.flush()
        finally:
            writer.close()
        assert self._content(backend, disk) == bytes(4096) + b"x" * 4096 + bytes(self.size - 8192)

    def _content(self, backend: Storage, disk: Disk) -> bytes:
        reader = backend.open(disk)
        try:
            return read(reader, 0, reader.size)
        finally:
            _close(reader)


def descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def _close(reader: object) -> None:
    close = getattr(reader, "close", None)
    if close is not None:
        close()
