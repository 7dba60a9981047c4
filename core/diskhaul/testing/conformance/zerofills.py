"""What every zero-fill backend has to do: a block wrongly called free is lost data."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from diskhaul.api import DiskMap, DiskReader, ExtentKind, ZeroFill
from diskhaul.errors import DiskhaulError
from diskhaul.host import with_defaults
from diskhaul.model import Disk
from diskhaul.pipeline.free_space import checked_disk_map

from ..disks import MemoryDisk
from .storages import descriptors

MIB = 1 << 20


class OpenedImage:
    """An image file, opened for reading, with a descriptor."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  # closed by `close`
        self.size = path.stat().st_size

    def fileno(self) -> int:
        return self._file.fileno()

    def read_into(self, offset: int, buffer: memoryview, /) -> int:
        return os.preadv(self._file.fileno(), [buffer], offset)

    def close(self) -> None:
        self._file.close()


class ImageInPlace(OpenedImage):
    """An image file, opened so that ranges of it can be made zero: a `diskhaul.api.DiskInPlace`.

    Attributes:
        used_by: what `users` says.
        fails: whether zeroing raises.
        flushed: nothing was zeroed since the last `flush`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._written = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.used_by: tuple[str, ...] = ()
        self.fails = False
        self.flushed = True

    def zero(self, offset: int, length: int, /) -> None:
        if self.fails:
            raise OSError(errno.EIO, "scripted")
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OSError(errno.EINVAL, "outside the disk")
        self.flushed = False
        while length:
            part = os.pwrite(self._written, bytes(min(length, MIB)), offset)
            offset += part
            length -= part

    def users(self) -> tuple[str, ...]:
        return self.used_by

    def flush(self) -> None:
        os.fsync(self._written)
        self.flushed = True

    def close(self) -> None:
        super().close()
        os.close(self._written)


class ZeroFillConformance:
    """Subclass it, and give the fixtures that say how to make the backend, and a disk whose free space it knows::

        class TestMyFill(ZeroFillConformance):
            @pytest.fixture
            def zerofill(self):
                return MyFill(...)

            @pytest.fixture
            def image(self, tmp_path):  # a file: a disk with free space
                return make_filesystem(tmp_path / "disk.raw")

            @pytest.fixture
            def in_use(self):  # ranges of it (offset, length) that are not free, whatever happens
                return [(0, 4096)]

            @pytest.fixture
            def free_bytes(self):  # how much of it is free, as somebody else counts it; None where nobody does
                return 12345

            @pytest.fixture
            def unsupported_disk(self):  # where the backend refuses some disks
                return Disk(storage="memory")

    A backend that writes is also asked to zero, and must be able to with `image`. Setting a test to None in the subclass leaves
    it out.
    """

    deadline_s: float = 120.0
    """Seconds that zeroing `image` may take."""

    @pytest.fixture
    def zerofill(self) -> ZeroFill:
        raise NotImplementedError("define the fixture 'zerofill'")

    @pytest.fixture
    def backend(self, zerofill: ZeroFill) -> ZeroFill:
        """The backend as operations see it: with its Protocol's defaults for what it leaves out."""
        return with_defaults("zerofill", zerofill)

    @pytest.fixture
    def image(self) -> Path:
        raise NotImplementedError("define the fixture 'image'")

    @pytest.fixture
    def disk(self, image: Path) -> Disk:
        """The disk that the image is."""
        return Disk(path=image)

    @pytest.fixture
    def in_use(self) -> Sequence[tuple[int, int]]:
        return ()

    @pytest.fixture
    def free_bytes(self) -> int | None:
        return None

    @pytest.fixture
    def unsupported_disk(self) -> Disk | None:
        return None

    @pytest.fixture
    def reader(self, image: Path) -> Iterator[OpenedImage]:
        opened = OpenedImage(image)
        yield opened
        opened.close()

    @pytest.fixture
    def target(self, image: Path) -> Iterator[ImageInPlace]:
        opened = ImageInPlace(image)
        yield opened
        opened.close()

    @pytest.fixture
    def found(self, backend: ZeroFill, disk: Disk, reader: OpenedImage) -> DiskMap:
        """What the backend says of the image; that it can be believed has been checked."""
        return checked_disk_map(backend.inspect(disk, reader), reader.size)

    def test_it_says_whether_it_writes(self, backend: ZeroFill) -> None:
        assert isinstance(backend.writes, bool)

    def test_a_disk_it_serves_is_not_refused(self, backend: ZeroFill, disk: Disk) -> None:
        assert backend.refuses(disk) is None

    def test_a_disk_it_does_not_serve_is_refused_in_one_line(self, backend: ZeroFill, unsupported_disk: Disk | None) -> None:
        if unsupported_disk is None:  # it serves every disk
            assert backend.refuses(Disk(storage="of-somebody-else", options={"any": "thing"})) is None
            return
        reason = backend.refuses(unsupported_disk)
        assert reason
        assert "\n" not in reason

    def test_something_is_free(self, found: DiskMap) -> None:
        assert len(found.free) > 0

    def test_as_much_is_free_as_others_count(self, found: DiskMap, free_bytes: int | None) -> None:
        total = sum(extent.length for extent in found.free)
        assert total == free_bytes if free_bytes is not None else 0 < total < found.size

    def test_nothing_that_is_in_use_is_called_free(self, found: DiskMap, in_use: Sequence[tuple[int, int]]) -> None:
        wrong = [
            (extent, offset)
            for extent in found.free
            for offset, length in in_use
            if extent.offset < offset + length and offset < extent.end
        ]
        assert wrong == []

    def test_regions_tell_where_it_is_free(self, found: DiskMap) -> None:
        total = sum(extent.length for extent in found.free)
        assert sum(region.skipped for region in found.regions) == (total if found.regions else 0)
        assert not [region for region in found.regions if region.kept and region.skipped]

    def test_extents_and_map_say_the_same(self, backend: ZeroFill, disk: Disk, reader: OpenedImage, found: DiskMap) -> None:
        extents = list(backend.free_extents(disk, reader))
        assert extents == list(found.free)
        assert {extent.kind for extent in extents} <= {ExtentKind.FREE}

    def test_asking_changes_nothing(self, backend: ZeroFill, disk: Disk, image: Path, reader: OpenedImage) -> None:
        before = _digest(image)
        backend.refuses(disk)
        backend.inspect(disk, reader)
        list(backend.free_extents(disk, reader))
        assert _digest(image) == before

    def test_it_can_be_asked_again(self, backend: ZeroFill, disk: Disk, reader: OpenedImage, found: DiskMap) -> None:
        assert list(backend.inspect(disk, reader).free) == list(found.free)

    def test_it_can_be_asked_by_several_threads(self, backend: ZeroFill, disk: Disk, reader: OpenedImage, found: DiskMap) -> None:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: list(backend.inspect(disk, reader).free), range(4)))
        assert answers == [list(found.free)] * 4

    def test_a_disk_without_a_descriptor_will_do(self, backend: ZeroFill, disk: Disk, image: Path, found: DiskMap) -> None:
        memory = MemoryDisk(image.stat().st_size)
        with open(image, "rb") as file:
            offset = 0
            while part := file.read(MIB):
                if any(part):
                    memory.write(offset, part)
                offset += len(part)
        assert list(backend.inspect(disk, memory).free) == list(found.free)

    @pytest.mark.parametrize("content", ["noise", "zeros"])
    def test_of_what_it_does_not_know_nothing_is_free(self, backend: ZeroFill, disk: Disk, content: str) -> None:
        memory = MemoryDisk(random.Random(1).randbytes(MIB) if content == "noise" else 64 * MIB)
        assert _free(backend, disk, memory) == []

    def test_of_half_a_disk_nothing_outside_is_free(self, backend: ZeroFill, disk: Disk, image: Path) -> None:
        half = image.stat().st_size // 2
        with open(image, "rb") as file:
            memory = MemoryDisk(file.read(half))
        for offset, length in _free(backend, disk, memory):
            assert offset + length <= half

    def test_no_descriptor_is_left_open(self, backend: ZeroFill, disk: Disk, reader: OpenedImage) -> None:
        backend.inspect(disk, reader)  # whatever a backend keeps for itself is there from now on
        before = descriptors()
        backend.inspect(disk, reader)
        list(backend.free_extents(disk, reader))
        assert descriptors() == before

    def test_what_does_not_write_refuses_to(self, backend: ZeroFill, disk: Disk, image: Path, target: ImageInPlace) -> None:
        if backend.writes:
            return
        before = _digest(image)
        with pytest.raises(DiskhaulError):
            backend.zero(disk, target, deadline_s=self.deadline_s, cancelled=lambda: False)
        assert _digest(image) == before

    def test_what_is_free_becomes_zero_and_all_else_stays(
        self, backend: ZeroFill, disk: Disk, image: Path, target: ImageInPlace, found: DiskMap
    ) -> None:
        if not backend.writes:  # it refuses to: the test above
            return
        wanted = hashlib.blake2b()
        for part in _zeroed(image, found):
            wanted.update(part)
        backend.zero(disk, target, deadline_s=self.deadline_s, cancelled=lambda: False)
        assert _digest(image) == wanted.hexdigest()
        assert target.flushed

    @pytest.mark.parametrize("why", ["out of time", "cancelled", "the disk fails"])
    def test_stopped_half_way_it_has_changed_nothing_that_is_in_use(
        self, backend: ZeroFill, disk: Disk, image: Path, target: ImageInPlace, found: DiskMap, why: str
    ) -> None:
        if not backend.writes:  # it refuses to: the test above
            return
        kept = _digest_of_the_rest(image, found)
        deadline_s = 0.0 if why == "out of time" else self.deadline_s
        target.fails = why == "the disk fails"
        with pytest.raises((DiskhaulError, OSError)):
            backend.zero(disk, target, deadline_s=deadline_s, cancelled=lambda: why == "cancelled")
        assert _digest_of_the_rest(image, found) == kept

    def test_a_disk_that_somebody_uses_is_not_zeroed(
        self, backend: ZeroFill, disk: Disk, image: Path, target: ImageInPlace
    ) -> None:
        if not backend.writes:  # it refuses to: the test above
            return
        before = _digest(image)
        target.used_by = ("is open for writing in process 7 (qemu)",)
        with pytest.raises(DiskhaulError):
            backend.zero(disk, target, deadline_s=self.deadline_s, cancelled=lambda: False)
        assert _digest(image) == before


def _free(backend: ZeroFill, disk: Disk, reader: DiskReader) -> list[tuple[int, int]]:
    """What is free, after the checks that operations do; nothing where the backend says that it cannot tell."""
    try:
        found = checked_disk_map(backend.inspect(disk, reader), reader.size)
    except DiskhaulError:
        return []
    return [(extent.offset, extent.length) for extent in found.free]


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _pieces(path: Path, found: DiskMap) -> Iterator[tuple[int, int, bool]]:
    """Offset, length and whether it is free, of all of an image, in pieces of a MiB at the most."""
    position, size = 0, path.stat().st_size
    for extent in found.free:
        yield from _cut(position, extent.offset, False)
        yield from _cut(extent.offset, extent.end, True)
        position = extent.end
    yield from _cut(position, size, False)


def _cut(begin: int, end: int, free: bool) -> Iterator[tuple[int, int, bool]]:
    while begin < end:
        length = min(MIB, end - begin)
        yield begin, length, free
        begin += length


def _zeroed(path: Path, found: DiskMap) -> Iterator[bytes]:
    """An image as it is to be once its free bytes are zero."""
    with open(path, "rb") as file:
        for offset, length, free in _pieces(path, found):
            yield bytes(length) if free else os.pread(file.fileno(), length, offset)


def _digest_of_the_rest(path: Path, found: DiskMap) -> str:
    """Of all that is not free."""
    digest = hashlib.blake2b()
    with open(path, "rb") as file:
        for offset, length, free in _pieces(path, found):
            if not free:
                digest.update(os.pread(file.fileno(), length, offset))
    return digest.hexdigest()
