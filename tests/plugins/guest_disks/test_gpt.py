"""GUID partition tables as sgdisk, sfdisk and parted make them, and damaged ones."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from diskhaul_plugins.guest_disks.gpt import read_gpt
from diskhaul_plugins.guest_disks.reading import NotThisError
from diskhaul_plugins.guest_disks.tables import DamagedTableError, Table
from diskhaul_plugins.guest_disks.volume import WholeDisk

from .conftest import MIB, flip, image, programs, put, run, swap_space, walk

SIZE = 64 * MIB
LAST = SIZE - 512


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with swap space in the second of three partitions."""
    programs("sgdisk", "mkswap")
    work = tmp_path_factory.mktemp("gpt")
    made = image(work / "disk.raw", SIZE)
    run("sgdisk", "-n1:0:+4M", "-t1:ef02", "-n2:0:+16M", "-c2:swap \u263a", "-t2:8200", "-n5:0:0", made)
    put(made, 5 * MIB, swap_space(work / "swap", 16 * MIB))
    return made


@pytest.fixture
def disk(tmp_path: Path, original: Path) -> Path:
    """A copy of `original` to be changed."""
    copied = tmp_path / "disk.raw"
    run("cp", "--sparse=always", original, copied)
    return copied


def read(path: Path) -> Table:
    with open(path, "rb") as file:
        return read_gpt(WholeDisk(file.fileno(), path.stat().st_size))


def places(table: Table) -> list[tuple[int, int, int]]:
    return [(p.number, p.offset, p.size) for p in table.partitions]


def with_right_checksums(path: Path, change: Callable[[bytearray, bytearray], None]) -> None:
    """Let `change` alter first header and entries, in both copies alike, and make all checksums right again."""
    content = bytearray(path.read_bytes())
    header, entries = content[512:1024], content[1024 : 1024 + 128 * 128]
    change(header, entries)
    struct.pack_into("<I", header, 88, zlib.crc32(entries))
    for at, entries_at, own, other in ((512, 2, 1, LAST // 512), (LAST, (LAST - 128 * 128) // 512, LAST // 512, 1)):
        struct.pack_into("<QQ", header, 24, own, other)
        struct.pack_into("<Q", header, 72, entries_at)
        struct.pack_into("<I", header, 16, 0)
        struct.pack_into("<I", header, 16, zlib.crc32(header[:92]))
        content[at : at + 512] = header
        content[entries_at * 512 : entries_at * 512 + len(entries)] = entries
    path.write_bytes(content)


def test_partitions_are_where_sgdisk_says(disk: Path) -> None:
    table = read(disk)
    wanted = []
    for line in run("sgdisk", "-p", disk).splitlines():
        words = line.split()
        if words and words[0].isdigit():
            wanted.append((int(words[0]), int(words[1]) * 512, (int(words[2]) - int(words[1]) + 1) * 512))
    assert places(table) == wanted
    assert [p.number for p in table.partitions] == [1, 2, 5]
    assert table.partitions[1].name == "swap \u263a"
    assert table.partitions[1].kind == "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"


def test_what_is_in_a_partition_is_found_and_the_rest_kept(disk: Path) -> None:
    found = walk(disk)
    assert found.types == [("disk", "gpt"), ("partition 1", "unknown"), ("partition 2", "swap"), ("partition 5", "unknown")]
    assert found.free == [(5 * MIB + 4096, 16 * MIB - 4096)]


def test_sectors_of_4096_bytes_are_understood(tmp_path: Path, requires: Callable[..., None], loop_device: object) -> None:
    requires("sfdisk", "mkswap", "losetup", root=True)
    disk = image(tmp_path / "disk.raw", SIZE)
    device = run("losetup", "-f", "--show", "-b", "4096", disk).strip()
    try:
        run("sfdisk", device, text="label: gpt\nstart=2560, size=4096, type=S\n")
    finally:
        run("losetup", "-d", device)
    put(disk, 2560 * 4096, swap_space(tmp_path / "swap", 16 * MIB))
    table = read(disk)
    assert table.sector_size == 4096
    assert places(table) == [(1, 2560 * 4096, 16 * MIB)]
    assert walk(disk).free == [(2560 * 4096 + 4096, 16 * MIB - 4096)]


def test_parteds_table_is_understood(tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("parted")
    disk = image(tmp_path / "disk.raw", SIZE)
    run("parted", "-s", disk, "mklabel", "gpt", "mkpart", "root", "ext4", "1MiB", "9MiB", "mkpart", "x", "9MiB", "100%")
    assert places(read(disk))[0] == (1, MIB, 8 * MIB)


@pytest.mark.parametrize(
    "offset",
    [
        pytest.param(512 + 24, id="the first header"),
        pytest.param(512 + 70, id="the first header's disk id"),
        pytest.param(1024 + 40, id="the first entries"),
        pytest.param(1024 + 127 * 128 + 5, id="the last of the first entries"),
        pytest.param(LAST + 40, id="the second header"),
        pytest.param(LAST - 128 * 128 + 33, id="the second entries"),
        pytest.param(LAST, id="the second signature"),
    ],
)
def test_a_damaged_copy_means_that_all_is_kept(disk: Path, offset: int) -> None:
    flip(disk, offset)
    with pytest.raises(DamagedTableError):
        read(disk)
    found = walk(disk)
    assert found.types == [("disk", "partition table")]
    assert found.at("disk").kept
    assert found.free == []


def test_a_missing_first_header_behind_a_protective_mbr_is_damage(disk: Path) -> None:
    put(disk, 512, bytes(512))
    with pytest.raises(DamagedTableError, match="missing"):
        read(disk)


def test_a_header_without_a_protective_mbr_is_damage(disk: Path) -> None:
    put(disk, 446, bytes(64))
    with pytest.raises(DamagedTableError, match="without a protective MBR"):
        read(disk)


def test_what_an_older_table_left_at_the_end_does_not_count(disk: Path) -> None:
    put(disk, 0, bytes(1024))
    with pytest.raises(NotThisError):
        read(disk)


def test_copies_that_differ_are_not_believed_though_each_is_whole(disk: Path, tmp_path: Path) -> None:
    other = image(tmp_path / "other.raw", SIZE)
    run("sgdisk", "-n1:0:+8M", other)
    put(disk, LAST - 128 * 128, other.read_bytes()[LAST - 128 * 128 :])
    with pytest.raises(DamagedTableError, match="differ"):
        read(disk)


def test_a_hybrid_mbr_is_fine_as_long_as_it_says_the_same(disk: Path) -> None:
    run("sgdisk", "-h2", disk)
    assert walk(disk).free == [(5 * MIB + 4096, 16 * MIB - 4096)]
    start = bytearray(disk.read_bytes()[446 : 446 + 64])
    entry = next(at for at in range(0, 64, 16) if start[at + 4] not in (0, 0xEE))
    flip(disk, 446 + entry + 12)
    with pytest.raises(DamagedTableError, match="other partitions"):
        read(disk)


def test_a_table_from_before_the_disk_grew_is_believed(disk: Path) -> None:
    """Its second copy is where it always was; until the guest moves it there is nothing behind it."""
    with open(disk, "r+b") as file:
        file.truncate(2 * SIZE)
    assert walk(disk).free == [(5 * MIB + 4096, 16 * MIB - 4096)]


def test_a_table_of_a_larger_disk_is_not_believed(disk: Path) -> None:
    with open(disk, "r+b") as file:
        file.truncate(SIZE // 2)
    with pytest.raises(DamagedTableError, match="not on the disk"):
        read(disk)


def _entry(entries: bytearray, index: int, first: int, last: int) -> None:
    struct.pack_into("<QQ", entries, index * 128 + 32, first, last)


def test_nothing_is_skipped_in_partitions_that_overlap_and_others_are_read(disk: Path, tmp_path: Path) -> None:
    with_right_checksums(disk, lambda header, entries: _entry(entries, 0, 2048, 5 * MIB // 512))
    found = walk(disk)
    assert found.kept["partition 1"] == "overlaps partition 2"
    assert found.kept["partition 2"] == "overlaps partition 1"
    assert found.free == []
    put(disk, 30 * MIB, swap_space(tmp_path / "swap", 16 * MIB))
    with_right_checksums(disk, lambda header, entries: _entry(entries, 4, 30 * MIB // 512, 46 * MIB // 512 - 1))
    assert walk(disk).free == [(30 * MIB + 4096, 16 * MIB - 4096)]


@pytest.mark.parametrize(
    ("first", "last"), [(1, 4000), (5000, 4000), (2048, 2**40), (2048, 2**64 - 1), (2**64 - 1, 2**64 - 1), (0, 0)]
)
def test_a_partition_that_lies_elsewhere_spoils_the_table(disk: Path, first: int, last: int) -> None:
    with_right_checksums(disk, lambda header, entries: _entry(entries, 0, first, last))
    with pytest.raises(DamagedTableError):
        read(disk)


@pytest.mark.parametrize(
    ("at", "kind", "value"),
    [
        pytest.param(84, "<I", 64, id="entries too small"),
        pytest.param(84, "<I", 2**31, id="entries of two gigabytes"),
        pytest.param(80, "<I", 2**32 - 1, id="four billion entries"),
        pytest.param(80, "<I", 0, id="no entries"),
        pytest.param(40, "<Q", 3, id="usable from among the entries on"),
        pytest.param(48, "<Q", LAST // 512, id="usable up to the second header"),
        pytest.param(8, "<I", 0x20000, id="another revision"),
        pytest.param(12, "<I", 2**32 - 1, id="a header of four gigabytes"),
        pytest.param(12, "<I", 10, id="a header of ten bytes"),
    ],
)
def test_headers_that_say_something_impossible_with_right_checksums_are_not_believed(
    disk: Path, at: int, kind: str, value: int
) -> None:
    with_right_checksums(disk, lambda header, entries: struct.pack_into(kind, header, at, value))
    with pytest.raises(DamagedTableError):
        read(disk)


def test_a_disk_without_a_table_has_none(tmp_path: Path) -> None:
    for size in (0, 1, 511, 512, 4096, MIB):
        with pytest.raises(NotThisError):
            read(image(tmp_path / f"{size}", size))
