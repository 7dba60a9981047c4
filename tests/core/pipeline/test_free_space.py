"""Laying free extents over the disk's own."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskhaul.api import Extent, ExtentKind, FreeExtents
from diskhaul.pipeline.free_space import checked_free_extents, covered_bytes, overlay

DATA, HOLE, FREE = ExtentKind.DATA, ExtentKind.HOLE, ExtentKind.FREE
SIZE = 100


def letters(extents: list[Extent]) -> str:
    """One letter per byte; fails unless the extents follow each other without gaps."""
    text = ""
    for extent in extents:
        assert extent.offset == len(text)
        assert extent.length > 0
        text += extent.kind.value[0] * extent.length
    return text


@pytest.mark.parametrize(
    ("free", "wanted"),
    [
        ([], "ddddhhhhdddd"),
        ([(0, 12)], "ffffhhhhffff"),
        ([(0, 1), (2, 1)], "fdfdhhhhdddd"),
        ([(3, 6)], "dddfhhhhfddd"),
        ([(4, 4)], "ddddhhhhdddd"),
        ([(11, 1)], "ddddhhhhdddf"),
    ],
)
def test_free_space_is_only_taken_from_data(free: list[tuple[int, int]], wanted: str) -> None:
    extents = [Extent(0, 4, DATA), Extent(4, 4, HOLE), Extent(8, 4, DATA)]
    assert letters(list(overlay(extents, FreeExtents(free)))) == wanted
    assert covered_bytes(extents, FreeExtents(free)) == wanted.count("f")


@given(
    kinds=st.text("dhf", min_size=1, max_size=60),
    cuts=st.lists(st.booleans(), min_size=60, max_size=60),
    free=st.text("-f", min_size=60, max_size=60),
)
def test_every_byte_is_what_it_was_unless_it_was_data_and_is_free(kinds: str, cuts: list[bool], free: str) -> None:
    by_letter = {kind.value[0]: kind for kind in ExtentKind}
    extents: list[Extent] = []
    for position, letter in enumerate(kinds):
        if extents and extents[-1].kind is by_letter[letter] and not cuts[position]:
            extents[-1] = Extent(extents[-1].offset, extents[-1].length + 1, extents[-1].kind)
        else:
            extents.append(Extent(position, 1, by_letter[letter]))
    free = free[: len(kinds)]
    spots = FreeExtents((position, 1) for position, letter in enumerate(free) if letter == "f")
    joined = FreeExtents((match.start(), len(match.group())) for match in re.finditer("f+", free))
    wanted = "".join("f" if own == "d" and over == "f" else own for own, over in zip(kinds, free, strict=True))
    assert letters(list(overlay(extents, spots))) == letters(list(overlay(extents, joined))) == wanted
    taken = sum(own == "d" and over == "f" for own, over in zip(kinds, free, strict=True))
    assert covered_bytes(extents, spots) == covered_bytes(extents, joined) == taken
    long = "".join(
        match.group().replace("f", "-") if len(match.group()) < 3 else match.group() for match in re.finditer("f+|-+", free)
    )
    wanted = "".join("f" if own == "d" and over == "f" else own for own, over in zip(kinds, long, strict=True))
    assert letters(list(overlay(extents, joined, least=3))) == wanted


def test_free_extents_are_sorted() -> None:
    first, second = Extent(0, 10, FREE), Extent(50, 10, FREE)
    assert checked_free_extents([second, first], SIZE) == (first, second)


@pytest.mark.parametrize(
    "wrong",
    [
        [Extent(0, 10, DATA)],
        [Extent(0, 10, HOLE)],
        [Extent(0, 0, FREE)],
        [Extent(0, -1, FREE)],
        [Extent(-1, 10, FREE)],
        [Extent(95, 6, FREE)],
        [Extent(0, 10, FREE), Extent(9, 10, FREE)],
        [Extent(0, 10, FREE), Extent(0, 10, FREE)],
    ],
)
def test_of_wrong_free_extents_none_is_believed(wrong: list[Extent]) -> None:
    with pytest.raises(ValueError, match="on a disk of 100 bytes"):
        checked_free_extents(wrong, SIZE)


def test_extents_of_any_order_and_kind_of_list_become_compact_ones() -> None:
    ranges = [(index * 10, 5) for index in range(1000)]
    free = checked_free_extents([Extent(*pair, FREE) for pair in reversed(ranges)], 10_000)
    assert list(free.ranges()) == ranges
    assert (len(free), free.total, free.end) == (1000, 5000, 9995)
    assert checked_free_extents(free, 10_000) is free


@given(
    ranges=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=20),
    begin=st.integers(0, 200),
    length=st.integers(0, 80),
)
def test_what_is_free_within_a_range_is_found(ranges: list[tuple[int, int]], begin: int, length: int) -> None:
    places, position = [], 0
    for gap, size in ranges:
        places.append((position + gap, size))
        position += gap + size
    free = FreeExtents(places)
    bytes_free = {byte for offset, size in places for byte in range(offset, offset + size)}
    found = [byte for first, last in free.within(begin, begin + length) for byte in range(first, last)]
    assert found == sorted(bytes_free & set(range(begin, begin + length)))


def test_compact_extents_are_a_sequence() -> None:
    listed = [Extent(0, 5, FREE), Extent(10, 5, FREE), Extent(20, 5, FREE)]
    free = FreeExtents((extent.offset, extent.length) for extent in listed)
    assert list(free) == listed
    assert free == listed
    assert free == tuple(listed)
    assert free != listed[:2]
    assert (free[0], free[-1], free[1:]) == (listed[0], listed[2], listed[1:])
    assert listed[1] in free
    with pytest.raises(IndexError):
        free[3]
    for wrong in ([(5, 5), (9, 1)], [(0, 0)], [(-1, 5)], [(1 << 64, 1)]):
        with pytest.raises((ValueError, OverflowError)):
            FreeExtents(wrong)
