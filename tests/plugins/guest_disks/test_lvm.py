"""LVM2's physical and logical volumes, written by LVM2's own tools; where a volume's bytes are is also asked of these."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from diskhaul_plugins.guest_disks.lvm_text import MetadataError, parse_metadata

from .conftest import MIB, Lvm, flip, image, put, run, swap_space, walk

DISK = 400 * MIB
PARTS = ((MIB, 150 * MIB), (160 * MIB, 150 * MIB))


@pytest.fixture
def disk(tmp_path: Path, requires: Callable[..., None]) -> Path:
    """A disk with two empty partitions."""
    requires("sfdisk", "mkswap")
    made = image(tmp_path / "disk.raw", DISK)
    run("sfdisk", made, text="label: gpt\n" + "".join(f"start={at // 512}, size={size // 512}\n" for at, size in PARTS))
    return made


@pytest.fixture
def group(disk: Path, lvm: Callable[..., Lvm]) -> Lvm:
    """The group ``vg`` on both partitions."""
    tools = lvm(disk, *PARTS)
    tools("pvcreate", *tools.devices)
    tools("vgcreate", "vg", *tools.devices)
    return tools


def pieces(tools: Lvm, name: str, stripe: int = 0) -> list[tuple[int, int]]:
    """Where a volume's bytes are on the disk, in its order, as LVM's own tools say. `stripe`: the stripes' size in bytes."""
    found: list[tuple[int, int]] = []
    for stripes in tools.segments(name):
        columns = []
        for device, first, last in stripes:
            begin, size = tools.geometry(tools.devices[device])
            columns.append((PARTS[device][0] + begin + first * size, (last + 1 - first) * size))
        if len(columns) == 1:
            found += columns
            continue
        for row in range(columns[0][1] // stripe):
            found += [(at + row * stripe, stripe) for at, _ in columns]
    return found


def put_into(disk: Path, places: list[tuple[int, int]], content: Path) -> None:
    with open(disk, "r+b") as file, open(content, "rb") as source:
        for offset, length in places:
            file.seek(offset)
            file.write(source.read(length))
        assert source.read() == b""


def merged(places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for offset, length in sorted(places):
        if found and sum(found[-1]) == offset:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((offset, length))
    return found


def without_header(places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """All of a volume's bytes but its first page."""
    (offset, length), *rest = places
    return merged([(offset + 4096, length - 4096), *rest])


def test_a_linear_volume_is_read(disk: Path, group: Lvm, tmp_path: Path) -> None:
    group.volume("32m", "swap")
    places = pieces(group, "swap")
    put_into(disk, places, swap_space(tmp_path / "swap", 32 * MIB))
    found = walk(disk)
    assert found.types == [("disk", "gpt"), ("partition 1", "lvm"), ("volume vg/swap", "swap"), ("partition 2", "lvm")]
    assert found.free == without_header(places)
    assert found.at("partition 1").label == "vg"


def test_a_volume_of_several_segments_on_two_partitions_is_read(disk: Path, group: Lvm, tmp_path: Path) -> None:
    group.volume("8m", "swap")
    group.volume("8m", "between")
    group("lvextend", "-L", "+24m", "vg/swap", group.devices[1])
    group("lvextend", "-L", "+8m", "vg/swap", group.devices[0])
    places = pieces(group, "swap")
    assert len(places) == 3
    put_into(disk, places, swap_space(tmp_path / "swap", 40 * MIB))
    found = walk(disk)
    assert found.free == without_header(places)
    assert found.at("volume vg/swap").skipped == 40 * MIB - 4096


@pytest.mark.parametrize("stripe_kib", [4, 64, 4096])
def test_a_striped_volume_is_read(disk: Path, group: Lvm, tmp_path: Path, stripe_kib: int) -> None:
    group.volume("64m", "swap", "-i2", "-I", f"{stripe_kib}k")
    places = pieces(group, "swap", stripe_kib << 10)
    put_into(disk, places, swap_space(tmp_path / "swap", 64 * MIB))
    found = walk(disk)
    assert found.free == without_header(places)


def test_a_group_on_an_unpartitioned_disk_is_read(tmp_path: Path, lvm: Callable[..., Lvm], requires: Callable[..., None]) -> None:
    requires("mkswap")
    disk = image(tmp_path / "bare.raw", 64 * MIB)
    tools = lvm(disk, (0, 64 * MIB))
    tools("pvcreate", "--pvmetadatacopies", "2", *tools.devices)
    tools("vgcreate", "-s", "1m", "vg", *tools.devices)
    tools.volume("16m", "swap")
    begin, size = tools.geometry(tools.devices[0])
    [[(_, first, last)]] = tools.segments("swap")
    put(disk, begin + first * size, swap_space(tmp_path / "swap", 16 * MIB))
    assert (last + 1 - first) * size == 16 * MIB
    assert walk(disk).free == [(begin + first * size + 4096, 16 * MIB - 4096)]


def test_unallocated_extents_are_kept(disk: Path, group: Lvm) -> None:
    group.volume("8m", "empty")
    found = walk(disk)
    assert found.free == []
    assert found.at("volume vg/empty").kept == "nothing that is known"


def test_a_group_that_reaches_to_another_disk_is_kept(
    disk: Path, tmp_path: Path, lvm: Callable[..., Lvm], requires: Callable[..., None]
) -> None:
    tools = lvm(disk, PARTS[0])
    other = lvm(image(tmp_path / "other.raw", 64 * MIB), (0, 64 * MIB))
    both = Lvm(tmp_path / "lvm", [*tools.devices, *other.devices])
    both("vgcreate", "vg", *both.devices)
    both.volume("8m", "swap")
    [[(device, first, _)]] = both.segments("swap")
    begin, size = both.geometry(both.devices[device])
    put(disk, PARTS[0][0] + begin + first * size, swap_space(tmp_path / "swap", 8 * MIB))
    found = walk(disk)
    assert found.kept["partition 1"] == "a volume group that reaches to other disks"
    assert found.free == []


def test_a_physical_volume_of_no_group_is_kept(disk: Path, lvm: Callable[..., Lvm]) -> None:
    tools = lvm(disk, PARTS[0])
    tools("pvcreate", *tools.devices)
    assert walk(disk).kept["partition 1"] == "no volume group"


def rewritten(disk: Path, change: Callable[[str], str]) -> None:
    """Let `change` alter the metadata on every partition, and make the checksums right."""

    def crc(content: bytes) -> int:
        return zlib.crc32(content, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF

    for part, _ in PARTS:
        area = part + 4096
        with open(disk, "r+b") as file:
            file.seek(area)
            header = bytearray(file.read(512))
            at, length = struct.unpack_from("<QQ", header, 40)
            file.seek(area + at)
            text = change(file.read(length).decode()).encode()
            file.seek(area + at)
            file.write(text)
            struct.pack_into("<QI", header, 48, len(text), crc(text))
            struct.pack_into("<I", header, 0, crc(bytes(header[4:])))
            file.seek(area)
            file.write(header)


@pytest.fixture
def swapped(disk: Path, group: Lvm, tmp_path: Path) -> Path:
    """A disk whose volume ``vg/swap`` would be skipped."""
    group.volume("16m", "swap")
    put_into(disk, pieces(group, "swap"), swap_space(tmp_path / "swap", 16 * MIB))
    assert walk(disk).free
    return disk


OTHER = """
other {
id = "5TQJtO-cGFd-4Cbw-MCSg-xpr2-CBAo-x1ypsl"
status = ["READ", "WRITE", "VISIBLE"]
flags = []
segment_count = 1

segment1 {
start_extent = 0
extent_count = 1
%s
}
}
swap {"""


@pytest.mark.parametrize(
    ("segment", "why"),
    [
        pytest.param('type = "snapshot"\nchunk_size = 8\norigin = "swap"\ncow_store = "other2"', "made of it", id="origin"),
        pytest.param('type = "snapshot"\nchunk_size = 8\norigin = "x"\ncow_store = "swap"', "made of it", id="snapshot"),
        pytest.param('type = "thin-pool"\nmetadata = "m"\npool = "swap"', "made of it", id="thin pool's data"),
        pytest.param('type = "thin"\nthin_pool = "p"\nexternal_origin = "swap"', "made of it", id="external origin"),
        pytest.param('type = "raid1"\nraids = ["swap", "b"]', "made of it", id="raid image"),
        pytest.param('type = "mirror"\nmirrors = ["swap", 0, "b", 0]', "made of it", id="mirror image"),
        pytest.param('type = "cache"\ncache_pool = "c"\norigin = "swap"', "made of it", id="cached"),
        pytest.param('type = "striped"\nstripe_count = 1\nstripes = ["swap", 0]', "made of it", id="stacked"),
    ],
)
def test_what_other_volumes_are_made_of_is_kept(swapped: Path, segment: str, why: str) -> None:
    """Free in the origin of a snapshot is not free in the snapshot, and so on."""
    rewritten(swapped, lambda text: text.replace("\nswap {", OTHER % segment, 1))
    found = walk(swapped)
    assert why in found.at("volume vg/swap").kept
    assert found.free == []


@pytest.mark.parametrize(
    "kind", ["thin", "raid5_ls", "raid1", "mirror", "snapshot", "cache", "vdo", "zero", "error", "striped+X"]
)
def test_a_volume_of_another_kind_is_kept_and_named(swapped: Path, kind: str) -> None:
    rewritten(swapped, lambda text: text.replace('type = "striped"', f'type = "{kind}"'))
    found = walk(swapped)
    assert found.at("volume vg/swap").kept == f"a volume of kind {kind}"
    assert found.free == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param('"VISIBLE"]', '"VISIBLE", "PVMOVE"]', id="being moved"),
        pytest.param(', "VISIBLE"]', "]", id="hidden"),
        pytest.param("extent_count = 4\n", "extent_count = 5\n", id="a segment on another's extents, or outside"),
        pytest.param("start_extent = 0", "start_extent = 1", id="a hole before the first segment"),
        pytest.param("segment_count = 1", "segment_count = 2", id="a missing segment"),
        pytest.param("stripe_count = 1", "stripe_count = 2", id="a missing stripe"),
        pytest.param('"pv0", 0', '"pv0", 36', id="extents that it does not have"),
        pytest.param('"pv0", 0', '"pv0", -1', id="extents before the first"),
        pytest.param('"pv0", 0', '"pv7", 0', id="a physical volume that is not there"),
        pytest.param("pe_start = 2048", "pe_start = 8", id="extents over the metadata"),
        pytest.param("pe_count = 37", "pe_count = 38", id="more extents than fit"),
        pytest.param("extent_size = 8192", "extent_size = 0", id="extents without a size"),
        pytest.param("extent_size = 8192", "extent_size = 9999999999999999999", id="huge extents"),
        pytest.param('format = "lvm2"', 'format = "lvm3"', id="another format"),
        pytest.param('"RESIZEABLE"', '"RESIZEABLE", "CLUSTERED"', id="a clustered group"),
        pytest.param("max_lv = 0", 'max_lv = 0\nlock_type = "sanlock"', id="a shared group"),
        pytest.param("max_lv = 0", "max_lv = ", id="a missing value"),
        pytest.param("physical_volumes {", "physical_volumes { {", id="brackets"),
        pytest.param("max_lv = 0", "max_lv = 0 \x01", id="a control character"),
    ],
)
def test_metadata_that_cannot_be_are_not_believed(swapped: Path, old: str, new: str) -> None:
    def change(text: str) -> str:
        assert old in text or old == "pe_count = 37"
        old_count = re.search(r"pe_count = (\d+)", text)
        assert old_count is not None
        if old == "pe_count = 37":
            return text.replace(old_count.group(), f"pe_count = {int(old_count.group(1)) + 1}")
        return text.replace(old, new)

    rewritten(swapped, change)
    if old == "extent_count = 4\n":  # one extent more is fine by itself: let somebody else have it
        assert walk(swapped).at("volume vg/swap").length == 20 * MIB
        taken = OTHER % 'type = "striped"\nstripe_count = 1\nstripes = ["pv0", 4]'
        rewritten(swapped, lambda text: text.replace("\nswap {", taken, 1))
    found = walk(swapped)
    assert found.free == []
    assert found.kept


@pytest.mark.parametrize(
    "offset", [512 + 3, 512 + 40, 4096 + 4, 4096 + 30, 4096 + 45], ids=["mark", "uuid", "area mark", "area start", "text place"]
)
def test_a_damaged_header_means_that_all_of_the_group_is_kept(swapped: Path, offset: int) -> None:
    flip(swapped, PARTS[0][0] + offset)
    found = walk(swapped)
    assert found.free == []
    assert found.at("partition 1").kept


def test_damage_in_one_copy_of_the_metadata_is_enough_to_keep_all(swapped: Path) -> None:
    with open(swapped, "rb") as file:
        file.seek(PARTS[1][0] + 4096)
        (at,) = struct.unpack_from("<Q", file.read(512), 40)
    flip(swapped, PARTS[1][0] + 4096 + at + 20)
    found = walk(swapped)
    assert found.free == []
    assert "checksum" in found.kept["partition 2"]


def test_copies_that_differ_are_not_believed(swapped: Path) -> None:
    parts = iter(range(len(PARTS)))
    rewritten(swapped, lambda text: text.replace("max_lv = 0", f"max_lv = {next(parts)}"))
    found = walk(swapped)
    assert found.free == []
    assert found.kept["partition 1"] == "copies of its metadata differ"


def test_the_same_physical_volume_twice_is_not_believed(swapped: Path) -> None:
    with open(swapped, "rb") as file:
        file.seek(PARTS[0][0])
        start = file.read(MIB)
    put(swapped, PARTS[1][0], start)
    found = walk(swapped)
    assert found.free == []
    assert set(found.kept) >= {"partition 1", "partition 2"}


@pytest.mark.parametrize(
    "text", ["a {", "a }", "a = [", "a = [1", "a = {", "a", "= 1", "a = 1\na = 2", 'a = "x', "a {" * 20 + "}" * 20]
)
def test_texts_that_are_cut_or_nested_too_deep_are_refused(text: str) -> None:
    with pytest.raises(MetadataError):
        parse_metadata(text)


def test_a_text_is_read_with_its_escapes_and_comments() -> None:
    text = '# c\na = "x\\"y\\\\" # d\nb { c = [1, "2", -3]\n d {} }\n'
    assert parse_metadata(text) == {"a": 'x"y\\', "b": {"c": [1, "2", -3], "d": {}}}
