"""MBR tables as sfdisk and parted make them, with logical partitions, and damaged ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from diskhaul_plugins.guest_disks.mbr import read_mbr
from diskhaul_plugins.guest_disks.reading import NotThisError
from diskhaul_plugins.guest_disks.tables import DamagedTableError, Table
from diskhaul_plugins.guest_disks.volume import WholeDisk

from .conftest import MIB, image, put, run, swap_space, walk

SIZE = 64 * MIB
FIRST_EBR = 20 * MIB


def read(path: Path) -> Table:
    with open(path, "rb") as file:
        return read_mbr(WholeDisk(file.fileno(), path.stat().st_size))


def places(table: Table) -> list[tuple[int, int, int]]:
    return [(p.number, p.offset, p.size) for p in table.partitions]


@pytest.fixture
def disk(tmp_path: Path, requires: Callable[..., None]) -> Path:
    """One primary partition, and three logical ones, of which the second holds swap space."""
    requires("sfdisk", "mkswap")
    made = image(tmp_path / "disk.raw", SIZE)
    parts = (
        "start=1MiB, size=8MiB",
        "start=20MiB, type=5",
        "start=21MiB, size=8MiB",
        "start=30MiB, size=16MiB, type=82",
        "start=50MiB, size=4MiB",
    )
    run("sfdisk", made, text="\n".join(("label: dos", *parts, "")))
    put(made, 30 * MIB, swap_space(tmp_path / "swap", 16 * MIB))
    return made


def entry(kind: int, start: int, count: int, boot: int = 0) -> bytes:
    return struct.pack("<B3sB3sII", boot, b"\0\0\0", kind, b"\0\0\0", start, count)


def table(*entries: bytes) -> bytes:
    return bytes(446) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"


def test_partitions_are_where_sfdisk_says(disk: Path) -> None:
    wanted = []
    for number, part in enumerate(json.loads(run("sfdisk", "-J", disk))["partitiontable"]["partitions"]):
        if part["type"] != "5":
            wanted.append((int(part["node"].removeprefix(str(disk))), part["start"] * 512, part["size"] * 512))
        assert number < 5
    assert places(read(disk)) == wanted
    assert [p.number for p in read(disk).partitions] == [1, 5, 6, 7]


def test_what_is_in_a_logical_partition_is_found_and_the_rest_kept(disk: Path) -> None:
    found = walk(disk)
    assert found.types == [
        ("disk", "mbr"),
        ("partition 1", "unknown"),
        ("partition 5", "unknown"),
        ("partition 6", "swap"),
        ("partition 7", "unknown"),
    ]
    assert found.free == [(30 * MIB + 4096, 16 * MIB - 4096)]


def test_parteds_table_is_understood(tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("parted")
    disk = image(tmp_path / "disk.raw", SIZE)
    run("parted", "-s", disk, "mklabel", "msdos", "mkpart", "primary", "1MiB", "9MiB", "mkpart", "extended", "9MiB", "100%")
    run("parted", "-s", disk, "mkpart", "logical", "10MiB", "20MiB")
    assert places(read(disk)) == [(1, MIB, 8 * MIB), (5, 10 * MIB, 10 * MIB)]


def test_sectors_of_4096_bytes_are_told_by_what_lies_there(tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.raw", SIZE)
    put(disk, 0, table(entry(0x82, 256, 4096)))
    assert read(disk).sector_size == 512
    put(disk, MIB, swap_space(tmp_path / "swap", 16 * MIB))
    assert read(disk).sector_size == 4096
    assert walk(disk).free == [(MIB + 4096, 16 * MIB - 4096)]
    put(disk, 128 * 1024, swap_space(tmp_path / "small", MIB // 2))
    with pytest.raises(DamagedTableError, match="two sector sizes"):
        read(disk)


def test_partitions_that_overlap_are_kept(tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.raw", SIZE)
    put(disk, 0, table(entry(0x82, 2048, 8192), entry(0x83, 10239, 100), entry(0x82, 20480, 32768)))
    put(disk, MIB, swap_space(tmp_path / "one", 4 * MIB))
    put(disk, 10 * MIB, swap_space(tmp_path / "two", 16 * MIB))
    found = walk(disk)
    assert found.kept["partition 1"] == "overlaps partition 2"
    assert found.free == [(10 * MIB + 4096, 16 * MIB - 4096)]


def test_a_partition_over_the_table_itself_is_kept(tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.raw", SIZE)
    put(disk, 0, table(entry(0x83, 0, 2048)))
    assert walk(disk).kept["partition 1"] == "overlaps partition 0"


def test_a_logical_partition_over_the_table_of_another_is_kept(disk: Path, tmp_path: Path) -> None:
    ebr = bytearray(disk.read_bytes()[FIRST_EBR : FIRST_EBR + 512])
    start, count = struct.unpack_from("<II", ebr, 446 + 8)
    assert (start, count) == (2048, 16384)
    struct.pack_into("<I", ebr, 446 + 12, 20 * MIB // 512)
    put(disk, FIRST_EBR, bytes(ebr))
    found = walk(disk)
    assert "overlaps" in found.kept["partition 5"]
    assert "overlaps" in found.kept["partition 6"]
    assert found.free == []


def _chain(disk: Path, *tables: tuple[int, bytes]) -> None:
    put(disk, 0, table(entry(0x0F, 2048, 2048 * 16)))
    for sector, content in tables:
        put(disk, sector * 512, content)


@pytest.mark.parametrize(
    "tables",
    [
        pytest.param([(2048, table(entry(0x83, 10, 10), entry(5, 0, 100)))], id="a table that names itself"),
        pytest.param(
            [(2048, table(entry(0x83, 10, 10), entry(5, 100, 100))), (2148, table(entry(0x83, 10, 10), entry(5, 0, 100)))],
            id="a circle of two",
        ),
        pytest.param([(2048, table(entry(0x83, 10, 10), entry(5, 2**32 - 1, 1)))], id="a table outside"),
        pytest.param([(2048, table(entry(0x83, 10, 10), entry(5, 100, 100)))], id="a missing table"),
        pytest.param([], id="no first table"),
        pytest.param([(2048, table(entry(0x83, 10, 2**31)))], id="a partition that ends outside"),
        pytest.param([(2048, table(entry(0x83, 10, 10), entry(0x83, 30, 10)))], id="two partitions in one table"),
        pytest.param([(2048, table(entry(0x83, 10, 10), b"", entry(0x83, 30, 10)))], id="a third entry"),
        pytest.param([(2048, table(entry(5, 10, 10)))], id="an extended one in place of a logical one"),
        pytest.param([(2048 + n, table(entry(0x83, 5000, 1), entry(5, n + 1, 1))) for n in range(200)], id="two hundred of them"),
    ],
)
def test_logical_partitions_without_end_or_order_spoil_the_table(tmp_path: Path, tables: list[tuple[int, bytes]]) -> None:
    disk = image(tmp_path / "disk.raw", SIZE)
    _chain(disk, *tables)
    with pytest.raises(DamagedTableError):
        read(disk)
    assert walk(disk).free == []


def test_an_extended_partition_without_logical_ones_is_fine(tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.raw", SIZE)
    _chain(disk, (2048, table()))
    assert places(read(disk)) == []


def test_a_partition_that_reaches_behind_the_disk_spoils_the_table(tmp_path: Path) -> None:
    disk = image(tmp_path / "disk.raw", SIZE)
    put(disk, 0, table(entry(0x83, 2048, SIZE // 512)))
    with pytest.raises(DamagedTableError, match="not on the disk"):
        read(disk)
    assert walk(disk).types == [("disk", "partition table")]


@pytest.mark.parametrize(
    "sector",
    [
        pytest.param(bytes(512), id="zeros"),
        pytest.param(table(), id="an empty table"),
        pytest.param(b"\xeb\x63" + b"\x90" * 508 + b"\x55\xaa", id="code"),
        pytest.param(table(entry(0x83, 10, 10))[:510] + b"\xaa\x55", id="no signature"),
        pytest.param(table(entry(0x83, 10, 10, boot=1)), id="a boot flag that is none"),
    ],
)
def test_other_boot_sectors_are_no_tables(tmp_path: Path, sector: bytes) -> None:
    disk = image(tmp_path / "disk.raw", MIB)
    put(disk, 0, sector)
    with pytest.raises(NotThisError):
        read(disk)


def test_a_table_in_a_partition_is_followed(tmp_path: Path, disk: Path) -> None:
    """As on a disk whose guest hands a partition to a guest of its own."""
    outer = image(tmp_path / "outer.raw", 80 * MIB)
    put(outer, 0, table(entry(0x83, 2048, SIZE // 512)))
    put(outer, MIB, disk)
    found = walk(outer)
    assert ("partition 1, partition 6", "swap") in found.types
    assert found.free == [(31 * MIB + 4096, 16 * MIB - 4096)]
