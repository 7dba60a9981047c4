"""Free space laid over what is allocated."""

from __future__ import annotations

import pytest
from diskhaul.api import Extent, ExtentKind
from diskhaul.pipeline.free_space import checked_free_extents, overlay
from hypothesis import given
from hypothesis import strategies as st

SIZE = 64


def _cut(marks: list[int], kinds: list[ExtentKind]) -> list[Extent]:
    """Extents from 0 to SIZE, cut at `marks`, of `kinds` in turn."""
    edges = sorted({0, SIZE, *marks})
    return [
        Extent(begin, end - begin, kinds[number % len(kinds)])
        for number, (begin, end) in enumerate(zip(edges, edges[1:], strict=False))
    ]


def _bytes(extents: list[Extent]) -> list[ExtentKind]:
    return [extent.kind for extent in extents for _ in range(extent.length)]


@given(
    st.lists(st.integers(1, SIZE - 1)),
    st.lists(st.integers(1, SIZE - 1)),
    st.booleans(),
    st.booleans(),
)
def test_only_data_becomes_free_and_every_byte_is_covered_once(
    disk_marks: list[int], free_marks: list[int], hole_first: bool, free_first: bool
) -> None:
    kinds = [ExtentKind.HOLE, ExtentKind.DATA] if hole_first else [ExtentKind.DATA, ExtentKind.HOLE]
    disk = _cut(disk_marks, kinds)
    everything = _cut(free_marks, [ExtentKind.FREE, ExtentKind.DATA] if free_first else [ExtentKind.DATA, ExtentKind.FREE])
    free = [extent for extent in everything if extent.kind is ExtentKind.FREE]
    laid = list(overlay(disk, free))
    expected = [
        ExtentKind.FREE if kind is ExtentKind.DATA and is_free is ExtentKind.FREE else kind
        for kind, is_free in zip(_bytes(disk), _bytes(everything), strict=True)
    ]
    assert _bytes(laid) == expected
    assert [extent.offset for extent in laid] == [sum(e.length for e in laid[:i]) for i in range(len(laid))]


@pytest.mark.parametrize(
    "found",
    [
        [Extent(0, 10, ExtentKind.FREE), Extent(5, 10, ExtentKind.FREE)],
        [Extent(60, 10, ExtentKind.FREE)],
        [Extent(-1, 2, ExtentKind.FREE)],
        [Extent(0, 0, ExtentKind.FREE)],
        [Extent(0, 10, ExtentKind.DATA)],
    ],
    ids=["overlap", "past the end", "before the start", "empty", "another kind"],
)
def test_free_extents_that_cannot_be_are_believed_in_no_part(found: list[Extent]) -> None:
    with pytest.raises(ValueError, match="on a disk of 64 bytes"):
        checked_free_extents(found, SIZE)


def test_free_extents_come_out_sorted() -> None:
    late, early = Extent(32, 8, ExtentKind.FREE), Extent(0, 8, ExtentKind.FREE)
    assert checked_free_extents([late, early], SIZE) == (early, late)
