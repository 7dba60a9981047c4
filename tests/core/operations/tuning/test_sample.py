from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from diskhaul.api import Extent, ExtentKind
from diskhaul.model import Disk
from diskhaul.operations.tuning.sample import UNIT, SampleReader, SampleStorage, Unit, choose_units, units_of
from diskhaul.pipeline.source import Source
from diskhaul.testing import MemoryDisk, MemoryStorage, RecordingDisk
from diskhaul_plugins.storages.raw import RawReader

MIB = 1 << 20
DATA, HOLE = ExtentKind.DATA, ExtentKind.HOLE


def test_units_hold_the_data_between_two_multiples_of_their_size_and_no_holes() -> None:
    extents = [Extent(0, 10, DATA), Extent(10, UNIT - 20, HOLE), Extent(UNIT - 10, UNIT, DATA), Extent(2 * UNIT - 10, 99, HOLE)]
    assert list(units_of(3, extents, MIB)) == [
        Unit(3, ((0, 10), (UNIT - 10, 10))),
        Unit(3, ((UNIT, UNIT - 10),)),
    ]


def test_units_are_never_smaller_than_the_largest_chunk() -> None:
    assert [unit.length for unit in units_of(0, [Extent(0, 4 * UNIT, DATA)], 2 * UNIT)] == [2 * UNIT, 2 * UNIT]


def units(disk: int, count: int) -> list[Unit]:
    return list(units_of(disk, [Extent(0, count * UNIT, DATA)], MIB))


def test_a_sample_is_spread_evenly_and_no_larger_than_asked_for() -> None:
    disk = units(0, 100)
    chosen = choose_units(disk, 10 * UNIT)
    assert sum(unit.length for unit in chosen) == 10 * UNIT
    places = [disk.index(unit) for unit in chosen]
    assert {later - earlier for earlier, later in pairwise(places)} == {10}
    assert 0 < places[0] < 10, "neither the partition table nor the end is over-represented"
    assert choose_units(disk, 10 * UNIT) == chosen


def test_what_is_small_enough_is_taken_whole() -> None:
    assert choose_units(units(0, 3), 3 * UNIT) == tuple(units(0, 3))


def test_every_disk_gets_its_share_and_at_least_one_unit() -> None:
    both = [*units(0, 90), *units(1, 10)]
    counts = [[unit.disk for unit in choose_units(both, size * UNIT)].count(1) for size in (20, 1)]
    assert counts == [2, 1]


def test_a_sampled_disk_shows_only_the_sample_and_reads_the_disk_itself() -> None:
    content = bytes(range(256)) * 64
    reader = RecordingDisk(MemoryDisk(content))
    source = Source(SampleReader(reader, [(4096, 1000), (8192, 10)]), "disk")
    assert source.size == len(content)
    assert list(source.extents()) == [
        Extent(0, 4096, HOLE),
        Extent(4096, 1000, DATA),
        Extent(5096, 8192 - 5096, HOLE),
        Extent(8192, 10, DATA),
        Extent(8202, len(content) - 8202, HOLE),
    ]
    view = memoryview(bytearray(1000))
    source.fill(4096, view)
    assert view == content[4096:5096]


def test_the_descriptor_of_a_disk_is_that_of_its_sample(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * 8192)
    with path.open("rb") as file:
        reader = SampleReader(RawReader(file.fileno(), 8192, "disk"), [(0, 4096)])
        assert reader.fileno() == file.fileno()
    with pytest.raises(AttributeError):
        _ = SampleReader(MemoryDisk(b"x"), []).fileno  # as the disk's own reader has none


def test_the_storage_of_samples_opens_disks_through_their_own_storages() -> None:
    memory = MemoryStorage({"a": MemoryDisk(b"a" * 10), "b": MemoryDisk(b"b" * 20)})
    disks = [Disk(storage="memory", options={"name": name}) for name in "ab"]
    storage = SampleStorage(disks, [memory, memory], {0: [(0, 5)], 1: [(5, 5)]})
    assert [storage.open(Disk(index=index)).size for index in (0, 1)] == [10, 20]
    assert len({storage.location(Disk(index=index)) for index in (0, 1)}) == 2

    def data(index: int) -> Iterator[tuple[int, int]]:
        source = Source(storage.open(Disk(index=index)), "disk")
        return ((extent.offset, extent.length) for extent in source.extents() if extent.kind is DATA)

    assert [list(data(index)) for index in (0, 1)] == [[(0, 5)], [(5, 5)]]
