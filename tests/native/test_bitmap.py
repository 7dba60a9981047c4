"""Runs of clear bits: the C core against the definition, at every border of bytes, words and calls."""

from __future__ import annotations

import errno
import random
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

import diskhaul_native
from diskhaul_native import _core, reference
from diskhaul_native.low_level import RUNS


def test_the_lowest_bit_of_a_byte_is_its_first(native: ModuleType) -> None:
    assert list(native.clear_bit_runs(bytes([0b11111110, 0b01111111]), 0, 16)) == [0, 1, 15, 1]


def test_a_bitmap_of_zeros_is_one_run_and_one_of_ones_none(native: ModuleType) -> None:
    assert list(native.clear_bit_runs(bytes(4096), 0, 32768)) == [0, 32768]
    assert list(native.clear_bit_runs(b"\xff" * 4096, 0, 32768)) == []


def test_no_bits_have_no_runs(native: ModuleType) -> None:
    assert list(native.clear_bit_runs(b"", 0, 0)) == []
    assert list(native.clear_bit_runs(b"\0", 8, 0)) == []


def test_only_the_bits_asked_for_count(native: ModuleType) -> None:
    assert list(native.clear_bit_runs(bytes(64), 3, 200)) == [3, 200]
    assert list(native.clear_bit_runs(b"\xf0\x0f", 5, 6)) == [] == list(native.clear_bit_runs(b"\xff\xff", 5, 6))
    assert list(native.clear_bit_runs(b"\x0f\xf0", 5, 6)) == [5, 6]


@pytest.mark.parametrize(("first", "count"), [(-1, 1), (0, -1), (0, 17), (16, 1), (17, 0), (2**64, 1)])
def test_bits_that_the_bitmap_does_not_have_are_refused(native: ModuleType, first: int, count: int) -> None:
    with pytest.raises(ValueError, match="bitmap of 2 bytes"):
        native.clear_bit_runs(b"\0\0", first, count)


@pytest.mark.parametrize("runs", [RUNS - 1, RUNS, RUNS + 1, 2 * RUNS, 3 * RUNS + 7])
def test_more_runs_than_one_call_finds_are_all_found(native: ModuleType, runs: int) -> None:
    bitmap = b"\x7f\xfe\xff" * runs  # the last bit of a byte and the first of the next, and a byte in use
    expected = [number for run in range(runs) for number in (24 * run + 7, 2)]
    assert list(native.clear_bit_runs(bitmap, 0, 24 * runs)) == expected


@given(st.binary(max_size=80), st.data())
def test_any_bits_of_any_bitmap_are_as_in_the_reference(bitmap: bytes, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, 8 * len(bitmap)))
    count = data.draw(st.integers(0, 8 * len(bitmap) - first))
    expected = reference.clear_bit_runs(bitmap, first, count)
    assert diskhaul_native.clear_bit_runs(bitmap, first, count) == expected


@pytest.mark.parametrize("longest", [1, 3, 70, 300])
def test_long_and_short_runs_are_as_in_the_reference(longest: int) -> None:
    generator = random.Random(longest)
    bits = 0
    position = 0
    while position < 40_000:
        length = generator.randint(1, longest)
        bits |= ((1 << length) - 1) << position
        position += length + generator.randint(1, longest)
    bitmap = bits.to_bytes(6_000, "little")
    for first, count in [(0, 48_000), (1, 47_999), (63, 20_001), (64, 64), (12_345, 30_000)]:
        assert diskhaul_native.clear_bit_runs(bitmap, first, count) == reference.clear_bit_runs(bitmap, first, count)


@pytest.mark.parametrize(("length", "position", "end", "room"), [(1, 0, 9, 1), (1, 5, 4, 1), (1, 0, 8, 0), (1, 0, 2**64 - 1, 1)])
def test_the_core_itself_refuses_what_is_no_part_of_the_bitmap(length: int, position: int, end: int, room: int) -> None:
    bitmap, runs = _core.ffi.new("char[8]"), _core.ffi.new("uint64_t[2]")
    assert _core.lib.dh_clear_bit_runs(bitmap, length, _core.ffi.new("uint64_t *", position), end, runs, room) == -errno.EINVAL
