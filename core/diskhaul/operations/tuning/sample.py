"""Which part of the source every trial reads, and the disk that shows just that part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...api import BackendContext, DiskReader, Extent, ExtentKind, Storage, StorageSpec
from ...hookspecs import hookimpl
from ...model import Disk
from ...options import MIB

STORAGE_NAME = "tune-sample"
UNIT = 32 * MIB
"""What is taken of a disk at once: long enough to be read as a whole disk is."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Neighbouring data of one disk, between two multiples of the unit's size.

    Attributes:
        disk: index.
        fragments: offset and length of the data in it, ascending.
    """

    disk: int
    fragments: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        return sum(length for _, length in self.fragments)


def units_of(disk: int, extents: Iterable[Extent], largest_chunk: int) -> Iterator[Unit]:
    """Cut the data of a disk into units. No chunk of a trial begins in one unit and ends in the next."""
    size = max(UNIT, largest_chunk)
    number = -1
    fragments: list[tuple[int, int]] = []
    for extent in extents:
        if extent.kind is not ExtentKind.DATA:
            continue
        position = extent.offset
        while position < extent.end:
            if position // size != number:
                if fragments:
                    yield Unit(disk, tuple(fragments))
                number, fragments = position // size, []
            end = min(extent.end, (number + 1) * size)
            fragments.append((position, end - position))
            position = end
    if fragments:
        yield Unit(disk, tuple(fragments))


def choose_units(units: Sequence[Unit], limit: int) -> tuple[Unit, ...]:
    """Choose units spread evenly over the data of each disk, about `limit` bytes together; at least one of each disk.

    Disks get their share by what they hold. The same units and limit give the same choice.
    """
    total = sum(unit.length for unit in units)
    if total <= limit:
        return tuple(units)
    chosen: list[Unit] = []
    for disk in sorted({unit.disk for unit in units}):
        own = [unit for unit in units if unit.disk == disk]
        data = sum(unit.length for unit in own)
        average = data / len(own)
        count = max(1, round(limit * data / total / average))
        step = len(own) / count
        chosen += [own[int((number + 0.5) * step)] for number in range(count)]
    return tuple(chosen)


class SampleReader:
    """Shows a disk in which everything is a hole but the sample. Reading, and the descriptor, are the disk's own."""

    def __init__(self, reader: DiskReader, fragments: Sequence[tuple[int, int]]) -> None:
        self._reader = reader
        self._fragments = fragments

    def __getattr__(self, name: str) -> Any:
        # Whatever the pipeline may look for on a reader, such as `fileno`, it finds if the disk's own reader has it.
        return getattr(self._reader, name)

    @property
    def size(self) -> int:
        return self._reader.size

    def read_into(self, offset: int, buffer: memoryview, /) -> object:
        return self._reader.read_into(offset, buffer)

    def extents(self) -> Iterator[Extent]:
        position = 0
        for offset, length in self._fragments:
            if offset > position:
                yield Extent(position, offset - position, ExtentKind.HOLE)
            yield Extent(offset, length, ExtentKind.DATA)
            position = offset + length
        if position < self.size:
            yield Extent(position, self.size - position, ExtentKind.HOLE)


class SampleStorage(Storage):
    """A storage, and the plugin that provides it: disk N shows the sample of disk N that is tuned for.

    Args:
        disks: the disks themselves.
        storages: the storage of each, made with a trial's options.
        sample: offset and length of what is shown, by disk.
    """

    def __init__(
        self, disks: Sequence[Disk], storages: Sequence[Storage], sample: Mapping[int, Sequence[tuple[int, int]]]
    ) -> None:
        self._disks, self._storages, self._sample = disks, storages, sample

    @hookimpl
    def diskhaul_storages(self) -> Iterator[StorageSpec]:
        yield StorageSpec(name=STORAGE_NAME, summary="what a tuning run reads of a disk", create=self._itself)

    def _itself(self, context: BackendContext) -> Storage:
        return self

    def open(self, disk: Disk, /) -> DiskReader:
        reader = self._storages[disk.index].open(self._disks[disk.index])
        shown: DiskReader = SampleReader(reader, self._sample.get(disk.index, ()))
        return shown

    def location(self, disk: Disk, /) -> str:
        return f"{STORAGE_NAME}:{disk.index}"
