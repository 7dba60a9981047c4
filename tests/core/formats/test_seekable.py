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
from diskhaul.formats.corruption import CorruptError
from diskhaul.formats.seekable import announced_length, read_seek_table, seek_table_bytes, seek_table_length

LENGTHS = st.lists(st.tuples(st.integers(1, 2**32 - 1), st.integers(1, 2**32 - 1)), max_size=40)


def table_of(entries: list[tuple[int, int]]) -> bytes:
    return b"".join(seek_table_bytes([stored for stored, _ in entries], [decoded for _, decoded in entries]))


def reference(entries: list[tuple[int, int]]) -> bytes:
    """Written straight from the format's description."""
    body = b"".join(struct.pack("<II", stored, decoded) for stored, decoded in entries)
    footer = struct.pack("<IBI", len(entries), 0, 0x8F92EAB1)
    return struct.pack("<II", 0x184D2A5E, len(body) + len(footer)) + body + footer


@given(LENGTHS)
def test_a_table_is_what_the_format_says_and_reads_back(entries: list[tuple[int, int]]) -> None:
    table = table_of(entries)
    assert table == reference(entries)
    assert len(table) == seek_table_length(len(entries))
    size = len(table) + sum(stored for stored, _ in entries)
    assert announced_length(table[-9:], size) == len(table)
    for tail in (table, b"frames before it" + table):
        if len(tail) <= size:
            found = read_seek_table(tail, size)
            assert list(zip(found.stored_lengths, found.chunk_lengths, strict=True)) == entries


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
    assert length == seek_table_length(2**21)
    assert peak < 8 << 20


def test_lengths_that_do_not_fit_are_errors() -> None:
    with pytest.raises(ValueError, match="2 stored lengths"):
        list(seek_table_bytes([1, 2], [1]))
    with pytest.raises(OverflowError):
        list(seek_table_bytes([2**32], [1]))
    with pytest.raises(ValueError, match="holds"):
        list(seek_table_bytes(range(seekable.MAX_FRAMES + 1), range(seekable.MAX_FRAMES + 1)))


GOOD = table_of([(10, 100), (20, 100), (5, 7)])
SIZE = len(GOOD) + 35


def footer(count: int, descriptor: int = 0, magic: int = 0x8F92EAB1) -> bytes:
    return GOOD[:-9] + struct.pack("<IBI", count, descriptor, magic)


@pytest.mark.parametrize(
    ("tail", "size"),
    [
        (b"", 0),
        (b"", SIZE),
        (GOOD[-8:], SIZE),
        (GOOD[-9:], SIZE),
        (GOOD[:-1], SIZE),
        (GOOD[1:], SIZE),
        (GOOD + b"\0", SIZE),
        (GOOD, SIZE - 1),
        (GOOD, SIZE + 1),
        (GOOD, len(GOOD)),
        (GOOD, 10),
        (footer(2), SIZE),
        (footer(4), SIZE),
        (footer(2**32 - 1), SIZE),
        (footer(2**32 - 1), 2**63),
        (footer(seekable.MAX_FRAMES + 1), 2**63),
        (footer(seekable.MAX_FRAMES), SIZE),
        (footer(seekable.MAX_FRAMES), 2**63),
        (footer(3, 0x80), SIZE),
        (footer(3, 0x40), SIZE),
        (footer(3, 0x01), SIZE),
        (footer(3, magic=0), SIZE),
        (b"\x5d" + GOOD[1:], SIZE),
        (GOOD[:4] + b"\0\0\0\0" + GOOD[8:], SIZE),
        (table_of([(0, 100), (35, 7)]), seek_table_length(2) + 35),
        (table_of([(10, 0), (25, 7)]), seek_table_length(2) + 35),
        (table_of([(2**32 - 1, 1)] * 3), seek_table_length(3) + 35),
    ],
)
def test_a_hostile_table_is_refused(tail: bytes, size: int) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError):
            read_seek_table(tail, size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(("count", "size"), [(4, seek_table_length(4) - 1), (2**32 - 1, 2**40), (seekable.MAX_FRAMES + 1, 2**63)])
def test_a_table_that_cannot_be_there_is_refused_before_anyone_makes_room_for_it(count: int, size: int) -> None:
    with pytest.raises(CorruptError, match=f"claims {count} frames"):
        announced_length(footer(count)[-9:], size)


@given(st.binary(max_size=200), st.integers(0, 2**63))
def test_noise_is_refused(tail: bytes, size: int) -> None:
    with pytest.raises(CorruptError):
        read_seek_table(tail, size)
