"""Looking through whole disks: bounds, and that nothing a guest can write makes it do anything but answer."""

from __future__ import annotations

import struct
import uuid
import zlib
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diskhaul_plugins.guest_disks import walk as walking
from diskhaul_plugins.guest_disks.readers import FAMILIES, load_readers
from diskhaul_plugins.guest_disks.reading import FreeRuns, Reading
from diskhaul_plugins.guest_disks.swap import read_swap
from diskhaul_plugins.guest_disks.volume import OutsideVolumeError, Volume
from diskhaul_plugins.guest_disks.walk import Walk

KIB, MIB = 1 << 10, 1 << 20


class Sparse:
    """A disk of which only some places hold something."""

    def __init__(self, size: int, content: dict[int, bytes]) -> None:
        self.size = size
        self._content = content
        self.read_bytes = 0

    def read(self, offset: int, length: int, /) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutsideVolumeError
        self.read_bytes += length
        result = bytearray(length)
        for at, part in self._content.items():
            first, last = max(at, offset), min(at + len(part), offset + length)
            if first < last:
                result[first - offset : last - offset] = part[first - at : last - at]
        return bytes(result)

    def on_disk(self, offset: int, length: int, /) -> Iterator[tuple[int, int]]:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutsideVolumeError
        if length:
            yield offset, length


def swap_header(size: int) -> bytes:
    header = bytearray(4096)
    struct.pack_into("<III", header, 1024, 1, size // 4096 - 1, 0)
    header[-10:] = b"SWAPSPACE2"
    return bytes(header)


def mbr(*parts: tuple[int, int, int]) -> bytes:
    entries = b"".join(struct.pack("<B3sB3sII", 0, b"", kind, b"", start, count) for kind, start, count in parts)
    return bytes(446) + entries.ljust(64, b"\0") + b"\x55\xaa"


def ranges(through: Walk) -> list[tuple[int, int]]:
    numbers = iter(through.free_ranges())
    return list(zip(numbers, numbers, strict=True))


def reads(size: int, *runs: tuple[int, int], kept: str = "") -> Walk:
    """A walk whose only reader answers so."""

    def reader(volume: Volume) -> Reading:
        free = FreeRuns()
        for run in runs:
            free.add(*run)
        return Reading(type="x", size=size, block_size=512, state="clean", free=free.total, runs=free, kept=kept)

    return Walk((reader,))


def test_free_bytes_outside_of_a_filesystem_mean_that_nothing_of_it_is_believed() -> None:
    through = reads(100, (0, 50), (60, 41))
    through.run(Sparse(200, {}))
    (region,) = through.regions()
    assert (region.kept, region.skipped, ranges(through)) == ("calls bytes free that are not its own", 0, [])


def test_a_filesystem_that_is_larger_than_its_volume_is_kept() -> None:
    through = reads(201, (0, 50))
    through.run(Sparse(200, {}))
    assert (through.regions()[0].kept, ranges(through)) == ("larger than what it lies on", [])


def test_what_its_reader_keeps_is_kept() -> None:
    through = reads(100, (0, 50), kept="for a reason")
    through.run(Sparse(200, {}))
    assert (through.regions()[0].kept, ranges(through)) == ("for a reason", [])


@pytest.mark.parametrize("error", [ValueError("odd"), MemoryError(), RecursionError(), OSError(5, "bad"), struct.error("x")])
def test_a_reader_that_fails_keeps_its_region_only(error: Exception) -> None:
    swap = 16 * MIB
    disk = Sparse(64 * MIB, {0: mbr((0x83, 2048, 2048), (0x82, 8192, swap // 512)), 4 * MIB: swap_header(swap)})

    def fails(volume: Volume) -> Reading:
        if volume.size == MIB:
            raise error
        return read_swap(volume)

    through = Walk((fails,))
    through.run(disk)
    assert through.regions()[1].kept.startswith("cannot be understood: ")
    assert ranges(through) == [(4 * MIB + 4096, swap - 4096)]


def test_of_too_many_free_ranges_the_shortest_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walking, "MAX_RANGES", 100)
    runs = [(index * 64 * KIB, 4 * KIB if index % 4 else 32 * KIB) for index in range(300)]
    through = reads(64 * MIB, *runs)
    through.run(Sparse(64 * MIB, {}))
    found = ranges(through)
    assert set(found) <= set(runs)
    assert len(found) <= 100
    assert {length for _, length in found} == {32 * KIB}
    assert through.regions()[0].skipped == sum(length for _, length in found)


def test_ranges_of_several_regions_are_put_in_order() -> None:
    found = array("Q", [100, 10, 300, 5, 0, 20, 20, 30, 110, 10])
    assert list(walking._sorted_ranges(found)) == [0, 50, 100, 20, 300, 5]


def test_regions_that_share_free_bytes_are_not_believed_at_all() -> None:
    with pytest.raises(ValueError, match="two regions"):
        walking._sorted_ranges(array("Q", [100, 10, 105, 10]))


def hibernated(size: int) -> bytes:
    return swap_header(size)[:-10] + b"S1SUSPEND\0"


@pytest.mark.parametrize("knows_swap", [True, False], ids=["its reader asked", "its reader not asked"])
def test_where_a_system_hibernates_nothing_on_the_disk_is_free(knows_swap: bool) -> None:
    """It has its filesystems mounted, and knows of blocks in use that their own records call free."""

    def reader(volume: Volume) -> Reading:
        if volume.read(4086, 9) in (b"S1SUSPEND", b"SWAPSPACE"):
            return (
                read_swap(volume)
                if knows_swap
                else Reading(type="swap", size=MIB, block_size=4096, state="", free=None, kept="?")
            )
        free = FreeRuns()
        free.add(0, MIB)
        return Reading(type="x", size=MIB, block_size=512, state="clean", free=MIB, runs=free)

    table = mbr((0x83, 2048, 2048), (0x82, 4096, 2048), (0x83, 6144, 2048))
    for header, free in ((swap_header(MIB), 2 + knows_swap), (hibernated(MIB), 0)):
        through = Walk((reader,))
        through.run(Sparse(8 * MIB, {0: table, 2 * MIB: header}))
        assert sum(length for _, length in ranges(through)) // (MIB - 4096) == free
        kept = [region.kept for region in through.regions() if region.type == "x"]
        assert kept == (["", ""] if free else ["a system hibernates on this disk"] * 2)


def guid(text: str) -> bytes:
    return uuid.UUID(text).bytes_le


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("5808c8aa-7e8f-42e0-85d2-e1e90434cfb3", "dynamic disk"),
        ("af9b60a0-1431-4f62-bc68-3311714a69ad", "dynamic disk"),
        ("e75caf8f-f680-4cee-afa3-b001e56efc2d", "storage pool"),
    ],
)
def test_partitions_of_windows_volumes_of_several_pieces_are_kept(kind: str, name: str) -> None:
    """What they begin with is the first piece of a volume, of which others may lie elsewhere."""
    assert ranges(_walked(gpt()))
    through = _walked(gpt(guid(kind)))
    assert ranges(through) == []
    assert name in through.regions()[-1].kept


def test_a_windows_dynamic_disk_with_an_mbr_is_kept() -> None:
    content = {MIB: swap_header(MIB)}
    assert ranges(_walked({0: mbr((0x07, 2048, 2048)), **content}))
    assert ranges(_walked({0: mbr((0x42, 2048, 2048)), **content})) == []
    assert ranges(_walked({0: mbr((0x07, 2048, 2048)), 6 * 512: b"PRIVHEAD", **content})) == []


def _walked(content: dict[int, bytes]) -> Walk:
    through = Walk((read_swap,))
    through.run(Sparse(SIZE, content))
    return through


def test_tables_in_tables_are_followed_so_far_and_no_further() -> None:
    size = 64 * MIB
    content = {index * 512: mbr((0x83, 1, size // 512 - index - 1)) for index in range(10)}
    through = Walk((read_swap,))
    through.run(Sparse(size, content))
    regions = through.regions()
    assert len(regions) == walking.MAX_DEPTH + 1
    assert regions[-1].kept == "nested too deep"


def test_more_regions_than_are_looked_at_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walking, "MAX_REGIONS", 3)
    swap = MIB
    parts = [(0x82, 2048 * (2 * index + 1), 2048) for index in range(4)]
    content = {0: mbr(*parts)} | {start * 512: swap_header(swap) for _, start, _ in parts}
    through = Walk((read_swap,))
    through.run(Sparse(64 * MIB, content))
    assert [region.kept for region in through.regions()] == ["", "", "", *["more regions than are looked at"] * 2]
    assert len(ranges(through)) == 2


def test_a_huge_empty_disk_is_looked_through_in_a_moment() -> None:
    disk = Sparse(1 << 62, {})
    through = Walk(load_readers(FAMILIES).readers)
    through.run(disk)
    assert disk.read_bytes < 8 * MIB


# --- anything a guest can write ---------------------------------------------------------------------------------------

READERS = load_readers(FAMILIES).readers
SIZE = 8 * MIB
SWAP = MIB


def gpt(kind: bytes = b"kind" * 4) -> dict[int, bytes]:
    """A whole GPT with swap space in it."""
    last = SIZE // 512 - 1
    entry = struct.pack("<16s16sQQQ72s", kind, b"uuid" * 4, 2048, 2048 + SWAP // 512 - 1, 0, "swap".encode("utf-16-le"))
    entries = entry.ljust(128 * 128, b"\0")

    def header(own: int, other: int, entries_at: int) -> bytes:
        fields = (own, other, 34, last - 33, b"disk" * 4, entries_at, 128, 128, zlib.crc32(entries))
        packed = struct.pack("<8s4sIIIQQQQ16sQIII", b"EFI PART", b"\0\0\1\0", 92, 0, 0, *fields)
        return packed[:16] + struct.pack("<I", zlib.crc32(packed)) + packed[20:]

    return {
        0: mbr((0xEE, 1, last)),
        512: header(1, last, 2),
        1024: entries,
        (last - 32) * 512: entries,
        last * 512: header(last, 1, last - 32),
        MIB: swap_header(SWAP),
    }


def logical() -> dict[int, bytes]:
    return {
        0: mbr((0x05, 2048, 12000), (0x82, 1024, 1024)),
        MIB: mbr((0x82, 64, 2048), (0x05, 4096, 4000)),
        MIB + 64 * 512: swap_header(MIB),
        (2048 + 4096) * 512: mbr((0x82, 64, 2048)),
        512 * KIB: swap_header(512 * KIB),
    }


def lvm() -> dict[int, bytes]:
    def crc(content: bytes) -> int:
        return zlib.crc32(content, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF

    text = b"""vg { id = "g" seqno = 1 format = "lvm2" status = ["READ", "WRITE"] flags = [] extent_size = 128
physical_volumes { pv0 { id = "01234567890123456789012345678901" status = [] flags = [] pe_start = 2048 pe_count = 100 } }
logical_volumes { swap { id = "l" status = ["READ", "WRITE", "VISIBLE"] flags = [] segment_count = 1
segment1 { start_extent = 0 extent_count = 16 type = "striped" stripe_count = 2 stripe_size = 8
stripes = ["pv0", 3, "pv0", 40] } } }
}
contents = "Text Format Volume Group"
version = 1
"""
    body = struct.pack("<16sIQQ", b" LVM2 x[5A%r0N*>", 1, 4096, 1044480) + struct.pack("<QQII", 512, len(text), crc(text), 0)
    area = body.ljust(508, b"\0")
    pv = b"01234567890123456789012345678901" + struct.pack("<QQQQQQQQQ", SIZE, MIB, 0, 0, 0, 4096, 1044480, 0, 0)
    label = struct.pack("<I8s", 32, b"LVM2 001") + pv
    rest = label.ljust(492, b"\0")
    column = (MIB + 3 * 65536, MIB + 40 * 65536)
    header = swap_header(16 * 65536)
    return {
        512: struct.pack("<8sQI", b"LABELONE", 1, crc(rest)) + rest,
        4096: struct.pack("<I", crc(area)) + area,
        4096 + 512: text,
        column[0]: header,
    }


SEEDS = {"gpt": gpt(), "logical": logical(), "lvm": lvm(), "swap": {0: swap_header(SIZE)}, "nothing": {}}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_seeds_are_understood(seed: str) -> None:
    """So that what is made of them is near to what is real."""
    through = Walk(READERS)
    through.run(Sparse(SIZE, SEEDS[seed]))
    assert bool(ranges(through)) == (seed != "nothing"), through.regions()


def _check(content: dict[int, bytes], size: int = SIZE) -> None:
    through = Walk(READERS)
    through.run(Sparse(size, content))
    found = ranges(through)
    regions = through.regions()
    position = 0
    for offset, length in found:
        assert length > 0
        assert offset >= position
        position = offset + length
    assert position <= size
    assert sum(length for _, length in found) == sum(region.skipped for region in regions)
    assert not [region for region in regions if region.kept and region.skipped]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.sampled_from(sorted(SEEDS)),
    changes=st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 1 << 14), st.binary(min_size=1, max_size=16)), min_size=1, max_size=8
    ),
    size=st.sampled_from([SIZE, SIZE // 2, SIZE + 512, 0, 513, 65537]),
)
def test_whatever_is_changed_in_a_disk_it_is_looked_through(seed: str, changes: list[tuple[int, int, bytes]], size: int) -> None:
    content = dict(SEEDS[seed])
    for number, offset, written in changes:
        places = sorted(content) or [0]
        at = places[number % len(places)]
        part = bytearray(content.get(at, bytes(512)))
        begin = offset % max(len(part), 1)
        part[begin : begin + len(written)] = written
        content[at] = bytes(part)
    _check(content, size)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.sampled_from(["gpt", "lvm"]),
    at=st.integers(0, 511),
    value=st.sampled_from([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x100, 0x20000]),
    width=st.sampled_from(["<I", "<Q"]),
)
def test_whatever_stands_in_headers_with_right_checksums_they_are_looked_through(
    seed: str, at: int, value: int, width: str
) -> None:
    content = dict(SEEDS[seed])
    if seed == "gpt":
        for place in (512, SIZE - 512):
            header = bytearray(content[place])
            struct.pack_into(width, header, min(at % 92, 92 - struct.calcsize(width)), value)
            struct.pack_into("<I", header, 16, 0)
            struct.pack_into("<I", header, 16, zlib.crc32(header))
            content[place] = bytes(header)
    else:
        for place, begin in ((512, 20), (4096, 4)):
            header = bytearray(content[place])
            struct.pack_into(width, header, min(max(at, begin), len(header) - struct.calcsize(width)), value)
            crc = zlib.crc32(bytes(header[begin:]), 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
            struct.pack_into("<I", header, 16 if place == 512 else 0, crc)
            content[place] = bytes(header)
    _check(content)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=st.lists(st.tuples(st.integers(0, 900), st.sampled_from('{}[]"=0159a,#-\\ ')), min_size=1, max_size=6))
def test_whatever_stands_in_lvms_metadata_they_are_looked_through(changes: list[tuple[int, str]]) -> None:
    content = dict(SEEDS["lvm"])
    text = bytearray(content[4096 + 512])
    for at, letter in changes:
        text[at % len(text)] = ord(letter)
    area = bytearray(content[4096])
    crc = zlib.crc32(bytes(text), 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    struct.pack_into("<I", area, 40 + 16, crc)
    struct.pack_into("<I", area, 0, zlib.crc32(bytes(area[4:512]), 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF)
    content[4096], content[4096 + 512] = bytes(area), bytes(text)
    _check(content)
