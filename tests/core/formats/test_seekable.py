"""The seek table."""

from __future__ import annotations

import random
import struct
import tracemalloc
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskhaul.formats import seekable
from diskhaul.formats.seekable import seek_table_bytes

LENGTHS = st.lists(st.tuples(st.integers(1, 2**32 - 1), st.integers(1, 2**32 - 1)), max_size=40)


def table_of(entries: list[tuple[int, int]]) -> bytes:
    return b"".join(seek_table_bytes([stored for stored, _ in entries], [decoded for _, decoded in entries]))


def reference(entries: list[tuple[int, int]]) -> bytes:
    """Written straight from the format's description."""
    body = b"".join(struct.pack("<II", stored, decoded) for stored, decoded in entries)
    footer = struct.pack("<IBI", len(entries), 0, 0x8F92EAB1)
    return struct.pack("<II", 0x184D2A5E, len(body) + len(footer)) + body + footer


@given(LENGTHS)
def test_a_table_is_what_the_format_says(entries: list[tuple[int, int]]) -> None:
    assert table_of(entries) == reference(entries)


def test_lists_and_arrays_give_the_same_table_over_many_pieces() -> None:
    count = 3 * seekable._PIECE_FRAMES + 5
    noise = random.Random(1)
    stored = [noise.randrange(1, 2**32) for _ in range(count)]
    chunks = [4 << 20] * count
    pieces = list(seek_table_bytes(array("I", stored), array("I", chunks)))
    assert max(map(len, pieces)) <= 512 << 10
    assert b"".join(pieces) == b"".join(seek_table_bytes(stored, chunks)) == reference(list(zip(stored, chunks, strict=True)))


def test_a_table_of_a_large_disk_is_written_in_bounded_memory() -> None:
    stored, chunks = array("I", [1000]) * 2**21, array("I", [4 << 20]) * 2**21
    tracemalloc.start()
    try:
        length = sum(len(piece) for piece in seek_table_bytes(stored, chunks))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert length == 8 + 8 * 2**21 + 9
    assert peak < 8 << 20


def test_lengths_that_do_not_fit_are_errors() -> None:
    with pytest.raises(ValueError, match="2 stored lengths"):
        list(seek_table_bytes([1, 2], [1]))
    with pytest.raises(OverflowError):
        list(seek_table_bytes([2**32], [1]))
    with pytest.raises(ValueError, match="holds"):
        list(seek_table_bytes(range(seekable.MAX_FRAMES + 1), range(seekable.MAX_FRAMES + 1)))
