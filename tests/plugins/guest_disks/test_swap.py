"""Swap space as mkswap makes it: everything but its header is free, unless a hibernated system lies there."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from diskhaul_plugins.guest_disks.reading import NotThisError, Reading
from diskhaul_plugins.guest_disks.swap import HIBERNATION, PAGE_SIZES, read_swap
from diskhaul_plugins.guest_disks.volume import WholeDisk

from .conftest import MIB, image, put, run, swap_space, walk

SIZE = 8 * MIB


def read(path: Path) -> Reading:
    with open(path, "rb") as file:
        return read_swap(WholeDisk(file.fileno(), path.stat().st_size))


@pytest.mark.parametrize("page_size", PAGE_SIZES)
@pytest.mark.parametrize("order", ["<", ">"], ids=["little endian", "big endian"])
def test_all_but_the_first_page_is_free(tmp_path: Path, page_size: int, order: str, requires: Callable[..., None]) -> None:
    requires("mkswap")
    space = swap_space(tmp_path / "swap", SIZE, "-p", str(page_size), "-L", "my swap")
    put(space, 1024, struct.pack(f"{order}III", 1, SIZE // page_size - 1, 0))
    reading = read(space)
    assert (reading.type, reading.label, reading.block_size, reading.size) == ("swap", "my swap", page_size, SIZE)
    assert list(reading.runs) == [(page_size, SIZE - page_size)]
    assert reading.free == SIZE - page_size
    assert reading.kept == ""


def test_without_what_is_free_it_is_still_the_same_swap_space(tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("mkswap", "blkid")
    space = swap_space(tmp_path / "swap", SIZE, "-L", "back again")
    before = run("blkid", "-p", space)
    for offset, length in read(space).runs:
        put(space, offset, b"\0" * length)
    assert run("blkid", "-p", space) == before
    assert "back again" in before


def test_what_lies_behind_the_space_is_kept(tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("mkswap")
    disk = image(tmp_path / "disk", 2 * SIZE)
    put(disk, 0, swap_space(tmp_path / "swap", SIZE))
    assert list(read(disk).runs) == [(4096, SIZE - 4096)]


def test_bad_pages_are_kept(tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("mkswap")
    space = swap_space(tmp_path / "swap", SIZE)
    put(space, 1024 + 8, struct.pack("<I", 3))
    put(space, 1536, struct.pack("<3I", 9, 1, 10))
    assert list(read(space).runs) == [(2 * 4096, 7 * 4096), (11 * 4096, SIZE - 11 * 4096)]


@pytest.mark.parametrize("signature", HIBERNATION, ids=repr)
@pytest.mark.parametrize("page_size", [4096, 65536])
def test_where_a_system_hibernates_nothing_is_free(
    tmp_path: Path, signature: bytes, page_size: int, requires: Callable[..., None]
) -> None:
    requires("mkswap")
    space = swap_space(tmp_path / "swap", SIZE, "-p", str(page_size))
    put(space, page_size - 10, signature.ljust(10, b"\0"))
    reading = read(space)
    assert reading.kept == "holds a hibernated system"
    assert list(reading.runs) == []
    found = walk(space)
    assert (found.types, found.free) == ([("disk", "swap")], [])


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        pytest.param(1024, 2, "unknown version", id="version"),
        pytest.param(1028, SIZE // 4096, "larger than what it lies on", id="one page more than there are"),
        pytest.param(1028, 2**32 - 1, "larger than what it lies on", id="many more pages"),
        pytest.param(1028, 0, "larger than what it lies on", id="no pages"),
        pytest.param(1032, 638, "more bad pages", id="bad pages over the signature"),
        pytest.param(1032, 1, "bad pages that it does not have", id="a bad header page"),
    ],
)
def test_a_header_that_cannot_be_means_that_nothing_is_free(
    tmp_path: Path, at: int, value: int, why: str, requires: Callable[..., None]
) -> None:
    requires("mkswap")
    space = swap_space(tmp_path / "swap", SIZE)
    put(space, at, struct.pack("<I", value))
    reading = read(space)
    assert why in reading.kept
    assert list(reading.runs) == []


def test_the_old_format_is_kept(tmp_path: Path) -> None:
    space = image(tmp_path / "swap", SIZE)
    put(space, 4086, b"SWAP-SPACE")
    assert read(space).kept == "an old format"


def test_signatures_of_two_page_sizes_are_not_believed(tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("mkswap")
    space = swap_space(tmp_path / "swap", SIZE)
    put(space, 65536 - 10, b"SWAPSPACE2")
    assert read(space).kept == "signatures of two page sizes"


@pytest.mark.parametrize("size", [0, 100, 4096, MIB])
def test_other_things_are_no_swap_space(tmp_path: Path, size: int) -> None:
    with pytest.raises(NotThisError):
        read(image(tmp_path / "disk", size))
