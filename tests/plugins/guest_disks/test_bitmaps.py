"""Bitmaps, and ranges that touch each other."""

from __future__ import annotations

import random

import pytest

from diskhaul_plugins.guest_disks.bitmaps import clear_runs, mirrored, touch


def test_clear_bits_are_found_up_to_the_count() -> None:
    assert list(clear_runs(b"\xf0\xff\x0f", 24)) == [(0, 4), (20, 4)]
    assert list(clear_runs(b"\xf0\xff\x0f", 22)) == [(0, 4), (20, 2)]
    assert list(clear_runs(b"\xff", 8)) == []
    with pytest.raises(ValueError, match="bits"):
        list(clear_runs(b"\xff", 9))


def test_bits_of_large_bitmaps_are_those_of_small_ones() -> None:
    generator = random.Random(1)
    bitmap = generator.randbytes(1000) + bytes(200_000) + generator.randbytes(1000)
    found = {bit for begin, length in clear_runs(bitmap, len(bitmap) * 8 - 3) for bit in range(begin, begin + length)}
    assert found == {bit for bit in range(len(bitmap) * 8 - 3) if not bitmap[bit // 8] >> bit % 8 & 1}


def test_the_highest_bit_becomes_the_lowest() -> None:
    assert mirrored(b"\x80\x01\xf0\x00") == b"\x01\x80\x0f\x00"


def test_ranges_touch_where_sets_have_something_in_common() -> None:
    generator = random.Random(2)
    for _ in range(3000):
        runs, position = [], 0
        for _ in range(generator.randrange(5)):
            position += generator.randrange(1, 6)
            runs.append((position, generator.randrange(1, 5)))
            position = sum(runs[-1])
        others = [(generator.randrange(30), generator.randrange(4)) for _ in range(generator.randrange(4))]
        common = {n for begin, length in runs for n in range(begin, begin + length)} & {
            n for begin, length in others for n in range(begin, begin + length)
        }
        assert touch(runs, others) == bool(common), (runs, others)
