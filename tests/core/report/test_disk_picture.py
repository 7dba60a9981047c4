"""The picture of a disk: every byte is counted once, and nothing that guests call things gets out of its text."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from diskhaul.api import DiskMap, DiskRegion, Extent, ExtentKind
from diskhaul.cli.render_inspection import PLAIN, Style, disk_text
from diskhaul.errors import StorageError
from diskhaul.records import DiskPicture, InspectedDisk
from diskhaul.report.disk_picture import COLOURS, KINDS, disk_svg, kinds, merged, picture_of, svg_problem, write_disk_svg

KIB, MIB = 1 << 10, 1 << 20
HOSTILE = "\x1b[2J</text><script>alert(1)</script>\u202e&\n"


def region(place: str, offset: int, length: int, **more: object) -> DiskRegion:
    return DiskRegion(place=place, offset=offset, length=length, type="ext4", **more)  # type: ignore[arg-type]


def extents(*lengths: tuple[int, ExtentKind]) -> list[Extent]:
    found, offset = [], 0
    for length, kind in lengths:
        found.append(Extent(offset, length, kind))
        offset += length
    return found


def inspected(label: str = "root", *, regions: int = 1) -> InspectedDisk:
    found = DiskMap(size=4 * MIB, regions=tuple(region(f"partition {n}", 0, 2 * MIB, label=label) for n in range(regions)))
    picture = picture_of(extents((MIB, ExtentKind.DATA), (MIB, ExtentKind.FREE), (2 * MIB, ExtentKind.HOLE)), found, most_cells=4)
    return InspectedDisk(
        run_id="r", disk=f"/srv/{label}", backend="skip", size=found.size, regions=found.regions, picture=picture
    )


def total(picture: DiskPicture) -> int:
    return sum(sum(getattr(picture, kind)) for kind in KINDS)


def test_every_byte_is_counted_in_its_cell_as_what_it_is() -> None:
    found = DiskMap(size=40 * KIB, regions=())
    parts = extents((6 * KIB, ExtentKind.DATA), (20 * KIB, ExtentKind.FREE), (14 * KIB, ExtentKind.HOLE))
    picture = picture_of(parts, found, most_cells=5)
    assert picture.cell_size == 8 * KIB
    assert picture.used == (6 * KIB, 0, 0, 0, 0)
    assert picture.free == (2 * KIB, 8 * KIB, 8 * KIB, 2 * KIB, 0)
    assert picture.hole == (0, 0, 0, 6 * KIB, 8 * KIB)
    assert kinds(picture) == ["used", "free", "free", "hole", "hole"]


@pytest.mark.parametrize("size", [1, 511, 4096, 4097, 10 * MIB + 1, (1 << 40) + 512])
def test_a_disk_of_any_size_has_few_cells_of_whole_pages_that_add_up(size: int) -> None:
    picture = picture_of([Extent(0, size, ExtentKind.DATA)], DiskMap(size=size, regions=()))
    assert 1 <= len(picture.used) <= 1024
    assert picture.cell_size % 4096 == 0
    assert total(picture) == size


def test_what_lies_in_a_region_that_is_kept_counts_as_such_but_not_what_is_understood_in_it() -> None:
    regions = (
        region("disk", 0, 64 * KIB),
        region("partition 1", 16 * KIB, 32 * KIB, kept="in doubt"),
        region("volume a", 24 * KIB, 8 * KIB),
    )
    found = DiskMap(size=64 * KIB, regions=regions)
    picture = picture_of([Extent(0, 64 * KIB, ExtentKind.DATA)], found, most_cells=8)
    assert kinds(picture) == ["used", "used", "kept", "used", "kept", "kept", "used", "used"]


def test_a_region_that_reaches_beyond_the_disk_is_cut_off() -> None:
    found = DiskMap(size=8 * KIB, regions=(region("partition 1", 4 * KIB, 1 << 62, kept="in doubt"),))
    picture = picture_of([Extent(0, 8 * KIB, ExtentKind.DATA)], found)
    assert (picture.used, picture.kept) == ((4 * KIB, 0), (0, 4 * KIB))


def test_neighbours_are_put_together_without_losing_a_byte() -> None:
    size = 7 * 4096 - 5
    picture = picture_of([Extent(0, size, ExtentKind.DATA)], DiskMap(size=size, regions=()))
    fewer = merged(picture, 3)
    assert (fewer.cell_size, len(fewer.used)) == (3 * 4096, 3)
    assert total(fewer) == size
    assert merged(picture, 100) == picture


def test_in_text_each_cell_is_one_character_with_a_legend_of_what_is_there() -> None:
    lines = disk_text(inspected()).splitlines()
    assert "  #.--" in lines
    assert lines[-2] == "  # in use   . free, may be left out   - hole: never written"
    assert lines[-1] == "  each character: 1.0 MiB"


def test_on_a_terminal_runs_of_one_kind_are_coloured_together() -> None:
    style = Style(marks=PLAIN.marks, colours={"used": "34", "hole": "90"})
    assert "  \x1b[34m#\x1b[0m.\x1b[90m--\x1b[0m" in disk_text(inspected(), style).splitlines()


def test_hostile_text_is_escaped_in_text_and_in_the_picture() -> None:
    result = inspected(HOSTILE)
    assert all(line.isprintable() for line in disk_text(result).splitlines())
    svg = disk_svg(result)
    assert "<script" not in svg
    assert "\x1b" not in svg
    assert "\u202e" not in svg
    root = ElementTree.fromstring(svg)
    assert {each.tag.rpartition("}")[2] for each in root.iter()} == {"svg", "title", "rect", "g", "text"}


def test_the_squares_of_the_picture_have_the_area_of_what_they_stand_for() -> None:
    svg = ElementTree.fromstring(disk_svg(inspected()))
    (cells,) = svg.findall("{*}g")
    area = dict.fromkeys(COLOURS.values(), 0.0)
    for each in cells:
        area[each.attrib["fill"]] += float(each.attrib["width"]) * float(each.attrib["height"])
    assert area[COLOURS["used"]] == area[COLOURS["free"]] == area[COLOURS["hole"]] / 2 > 0


def test_a_disk_with_very_many_regions_has_a_picture_of_some_of_them() -> None:
    svg = disk_svg(inspected(regions=500))
    assert "partition 59" in svg
    assert "partition 60" not in svg
    assert "and 440 more" in svg
    assert "and 440 more" in disk_text(inspected(regions=500))


def test_a_picture_that_is_there_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    path = tmp_path / "disk.svg"
    assert svg_problem(path) is None
    write_disk_svg(inspected(), path)
    assert svg_problem(path) is None
    write_disk_svg(replace(inspected(), disk="/srv/other"), path)
    assert "/srv/other" in path.read_text()
    assert os.listdir(tmp_path) == ["disk.svg"]

    other = tmp_path / "disk.raw"
    other.write_bytes(b"\0" * 4096)
    (tmp_path / "link.svg").symlink_to(path)
    os.mkfifo(tmp_path / "fifo")
    assert "is no SVG picture" in str(svg_problem(other))
    assert "no regular file" in str(svg_problem(tmp_path / "link.svg"))
    assert "no regular file" in str(svg_problem(tmp_path / "fifo"))
    assert "no regular file" in str(svg_problem(tmp_path))
    assert "make it first" in str(svg_problem(tmp_path / "missing/disk.svg"))
    with pytest.raises(StorageError, match="cannot be written"):
        write_disk_svg(inspected(), tmp_path / "missing/disk.svg")
