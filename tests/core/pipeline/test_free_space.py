"""Laying free extents over the disk's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskhaul.api import Extent, ExtentKind
from diskhaul.pipeline.free_space import checked_free_extents, overlay

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
    assert letters(list(overlay(extents, [Extent(offset, length, FREE) for offset, length in free]))) == wanted


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
    spots = [Extent(position, 1, FREE) for position, letter in enumerate(free) if letter == "f"]
    wanted = "".join("f" if own == "d" and over == "f" else own for own, over in zip(kinds, free, strict=True))
    assert letters(list(overlay(extents, spots))) == wanted


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
