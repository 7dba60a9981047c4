"""Chunk tables."""

from __future__ import annotations

import random
import threading
from itertools import accumulate

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from diskhaul.errors import RefusedError
from diskhaul.formats import chunk_table as tables
from diskhaul.formats.chunk_table import ChunkTable, chunk_digest, effective_chunk_size, stored_digest, zero_digest
from diskhaul.formats.codec import max_stored_length
from diskhaul.formats.corruption import CorruptError

CHUNK = 1 << 16


def filled(disk_size: int, encoded: bool, chunk: int = CHUNK, seed: int = 0) -> ChunkTable:
    noise = random.Random(seed)
    table = ChunkTable(disk_size, chunk, encoded)
    for index in range(table.count):
        if encoded:
            table.set(index, noise.randbytes(32), noise.randrange(1, table.chunk_length(index) + 1), noise.randbytes(16))
        else:
            table.set(index, noise.randbytes(32))
    return table


def read(data: bytes, like: ChunkTable, **digests: str) -> ChunkTable:
    return ChunkTable.from_bytes(data, disk_size=like.disk_size, chunk_size=like.chunk_size, encoded=like.encoded, **digests)


# --- chunk sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("disk_size", "wanted", "expected"),
    [
        (0, 4 << 20, 4 << 20),
        (1, 1 << 16, 1 << 16),
        (1 << 40, 4 << 20, 4 << 20),
        ((1 << 16) * tables.MAX_CHUNKS, 1 << 16, 1 << 16),
        ((1 << 16) * tables.MAX_CHUNKS + 1, 1 << 16, 1 << 17),
        (100 << 40, 4 << 20, 64 << 20),
        (2 << 50, 4 << 20, 1 << 30),
    ],
)
def test_chunks_grow_with_disks(disk_size: int, wanted: int, expected: int) -> None:
    assert effective_chunk_size(disk_size, wanted) == expected
    assert tables.chunk_count(disk_size, expected) <= tables.MAX_CHUNKS
    assert tables.is_effective_chunk_size(disk_size, expected)


def test_a_disk_beyond_the_largest_chunks_is_refused() -> None:
    with pytest.raises(RefusedError, match="too large"):
        effective_chunk_size((2 << 50) + 1, 4 << 20)


@pytest.mark.parametrize("wanted", [0, -1, -65536, 1, 4096, (1 << 16) + 1, 3 << 20, 128 << 20])
def test_a_chunk_size_out_of_range_is_refused(wanted: int) -> None:
    with pytest.raises(RefusedError, match="chunk size"):
        effective_chunk_size(1 << 30, wanted)


@pytest.mark.parametrize(
    ("disk_size", "chunk_size"),
    [
        (1 << 30, 0),
        (1 << 30, -65536),
        (1 << 30, 65535),
        (1 << 30, 32768),
        (1 << 30, 128 << 20),
        (1 << 40, 1 << 16),
        (2**63, 1 << 42),
    ],
)
def test_a_chunk_size_that_we_would_not_have_chosen_is_not_effective(disk_size: int, chunk_size: int) -> None:
    assert not tables.is_effective_chunk_size(disk_size, chunk_size)


# --- digests ----------------------------------------------------------------------------------------------------------


def test_digests_are_blake3_whole_and_halved() -> None:
    data = bytearray(b"chunk" * 1000)
    assert chunk_digest(memoryview(data)) == blake3(bytes(data)).digest()
    assert stored_digest(data) == blake3(bytes(data)).digest()[:16]
    assert chunk_digest(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"  # BLAKE3's test vector


@pytest.mark.parametrize("length", [0, 1, 65536, (1 << 20) - 1, 1 << 20, (3 << 20) + 5])
def test_a_zero_digest_is_that_of_zeros(length: int) -> None:
    assert zero_digest(length) == chunk_digest(bytes(length))


# --- tables -----------------------------------------------------------------------------------------------------------


@given(disk_size=st.integers(0, 40 * CHUNK), encoded=st.booleans(), seed=st.integers(0, 1000))
@settings(max_examples=80, deadline=None)
def test_a_table_comes_back(disk_size: int, encoded: bool, seed: int) -> None:
    table = filled(disk_size, encoded, seed=seed)
    data = table.to_bytes()
    assert len(data) == ChunkTable.stored_size(table.count, encoded)
    assert b"".join(table.parts()) == data
    back = read(data, table, root_digest=table.root_digest(), stored_root=table.stored_root())
    assert back.to_bytes() == data
    assert sum(back.chunk_lengths()) == disk_size
    for index in range(table.count):
        assert back.digest(index) == table.digest(index)
        assert back.stored_length(index) == table.stored_length(index)
        assert back.stored_digest(index) == table.stored_digest(index)
        assert back.chunk_length(index) == back.chunk_lengths()[index]
    assert list(back.stored_offsets()) == list(accumulate(back.stored_lengths(), initial=0))


def test_the_stored_form_is_exactly_what_the_module_says() -> None:
    table = ChunkTable(CHUNK + 1, CHUNK, encoded=True)
    table.set(0, b"A" * 32, 300, b"a" * 16)
    table.set(1, b"B" * 32, 14, b"b" * 16)
    header = (
        b"dhchunks"
        + (1).to_bytes(4, "little")
        + (1).to_bytes(4, "little")
        + CHUNK.to_bytes(8, "little")
        + (CHUNK + 1).to_bytes(8, "little")
        + (2).to_bytes(8, "little")
        + bytes(24)
    )
    lengths = (300).to_bytes(4, "little") + (14).to_bytes(4, "little")
    stored = b"a" * 16 + b"b" * 16
    assert table.to_bytes() == header + b"A" * 32 + b"B" * 32 + lengths + stored
    assert table.root_digest() == blake3(b"A" * 32 + b"B" * 32).hexdigest()
    assert table.stored_root() == blake3(lengths + stored).hexdigest()
    assert list(table.stored_offsets()) == [0, 300, 314]


@pytest.mark.parametrize("encoded", [False, True])
def test_a_disk_of_no_bytes_has_a_table_too(encoded: bool) -> None:
    table = ChunkTable(0, CHUNK, encoded)
    assert table.count == 0
    assert list(table.stored_offsets()) == [0]
    assert len(table.to_bytes()) == 64
    assert table.root_digest() == blake3(b"").hexdigest()
    assert table.stored_root() == (blake3(b"").hexdigest() if encoded else "")
    assert read(table.to_bytes(), table).count == 0


def test_a_run_is_as_good_as_single_chunks() -> None:
    one, many = ChunkTable(100 * CHUNK + 5, CHUNK, True), ChunkTable(100 * CHUNK + 5, CHUNK, True)
    for index in range(3, 100):
        one.set(index, b"z" * 32, 18, b"s" * 16)
    many.set_run(3, 97, b"z" * 32, 18, b"s" * 16)
    for table in (one, many):
        assert table.first_unset() == 0
        table.set_run(0, 3, b"x" * 32, 19, b"t" * 16)
        assert table.first_unset() == 100
        table.set(100, b"y" * 32, 20, b"u" * 16)
        assert table.first_unset() is None
    assert one.to_bytes() == many.to_bytes()


def test_a_terabyte_of_zeros_is_one_assignment() -> None:
    table = ChunkTable(1 << 40, 4 << 20, True)
    table.set_run(0, table.count, zero_digest(4 << 20), 150, b"s" * 16)
    assert table.count == 262144
    assert table.stored_offsets()[-1] == 262144 * 150
    assert read(table.to_bytes(), table, root_digest=table.root_digest(), stored_root=table.stored_root()).count == table.count


def test_a_table_with_a_chunk_missing_is_not_written() -> None:
    table = filled(5 * CHUNK, False)
    table.set(2, b"\1" + bytes(31))  # its zeros and those of the next, unset one run into each other
    fresh = ChunkTable(5 * CHUNK, CHUNK, False)
    for index in (0, 1, 2, 4):
        fresh.set(index, table.digest(index))
    assert fresh.first_unset() == 3
    with pytest.raises(ValueError, match="chunk 3 was never recorded"):
        fresh.to_bytes()
    fresh.set(3, bytes(31) + b"\1")
    assert fresh.first_unset() is None


def test_setting_what_a_table_cannot_hold_changes_nothing() -> None:
    encoded, raw = filled(3 * CHUNK + 1, True), filled(3 * CHUNK + 1, False)
    before = encoded.to_bytes(), raw.to_bytes()
    digest, short = b"d" * 32, b"s" * 16
    for first, count in ((-1, 1), (4, 1), (0, 0), (0, 5), (3, 2)):
        with pytest.raises(IndexError):
            encoded.set_run(first, count, digest, 5, short)
    for arguments in (
        (b"d" * 31, 5, short),
        (digest, 5, b"s" * 15),
        (digest, 0, short),
        (digest, max_stored_length(CHUNK) + 1, short),
    ):
        with pytest.raises(ValueError, match=r"digest|stored"):
            encoded.set(0, *arguments)
    with pytest.raises(ValueError, match="shorter"):
        encoded.set_run(2, 2, digest, 5, short)
    with pytest.raises(ValueError, match="stored as they are"):
        raw.set(0, digest, 5, short)
    for index in (-1, 4):
        for method in (raw.digest, raw.chunk_length, raw.stored_length, raw.stored_digest, raw.chunk_offset):
            with pytest.raises(IndexError):
                method(index)
    assert (encoded.to_bytes(), raw.to_bytes()) == before


def test_several_threads_may_set_different_chunks() -> None:
    expected = filled(400 * CHUNK, True)
    table = ChunkTable(400 * CHUNK, CHUNK, True)

    def work(start: int) -> None:
        for index in range(start, 400, 4):
            table.set(index, expected.digest(index), expected.stored_length(index), expected.stored_digest(index))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert table.to_bytes() == expected.to_bytes()


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoded", [False, True])
def test_every_flipped_bit_of_a_table_is_found(encoded: bool) -> None:
    table = filled(5 * CHUNK + 99, encoded)
    data = bytearray(table.to_bytes())
    roots = {"root_digest": table.root_digest(), "stored_root": table.stored_root()}
    assert read(bytes(data), table, **roots).count == 6
    for at in range(len(data)):
        for bit in range(8):
            data[at] ^= 1 << bit
            with pytest.raises(CorruptError):
                read(bytes(data), table, **roots)
            data[at] ^= 1 << bit


@pytest.mark.parametrize("encoded", [False, True])
def test_a_table_that_was_cut_or_lengthened_is_refused_wherever(encoded: bool) -> None:
    table = filled(2 * CHUNK, encoded)
    data = table.to_bytes()
    for length in range(len(data)):
        with pytest.raises(CorruptError, match="bytes, not"):
            read(data[:length], table)
    with pytest.raises(CorruptError, match="bytes, not"):
        read(data + b"\0", table)


@pytest.mark.parametrize(
    ("disk_size", "chunk_size", "encoded"),
    [(3 * CHUNK - 1, CHUNK, True), (3 * CHUNK, CHUNK, False), (6 * CHUNK, 2 * CHUNK, True)],
)
def test_another_disks_table_is_refused(disk_size: int, chunk_size: int, encoded: bool) -> None:
    data = filled(3 * CHUNK, True).to_bytes()
    with pytest.raises(CorruptError):
        ChunkTable.from_bytes(data, disk_size=disk_size, chunk_size=chunk_size, encoded=encoded)


@pytest.mark.parametrize(
    ("index", "length"), [(0, 0), (2, 0), (1, max_stored_length(CHUNK) + 1), (2, max_stored_length(9) + 1), (0, 2**32 - 1)]
)
def test_a_stored_length_that_no_codec_makes_is_refused_with_its_place(index: int, length: int) -> None:
    table = filled(2 * CHUNK + 9, True)
    data = bytearray(table.to_bytes())
    at = 64 + 3 * 32 + index * 4
    data[at : at + 4] = length.to_bytes(4, "little")
    with pytest.raises(CorruptError) as caught:
        read(bytes(data), table)
    assert caught.value.offset == index * CHUNK


@given(st.binary(max_size=400))
def test_noise_is_no_table(data: bytes) -> None:
    with pytest.raises(CorruptError):
        ChunkTable.from_bytes(data, disk_size=3 * CHUNK, chunk_size=CHUNK, encoded=True)


# --- runs -------------------------------------------------------------------------------------------------------------


@given(
    runs=st.lists(st.tuples(st.booleans(), st.sampled_from((1, 2, 3, 1023, 1024, 1025, 3000))), min_size=1, max_size=6),
    first=st.integers(0, 4000),
    longest=st.integers(0, 5000),
)
def test_a_run_is_as_long_as_its_chunks_are_alike(runs: list[tuple[bool, int]], first: int, longest: int) -> None:
    alike = [same for same, count in runs for _ in range(count)]
    table = ChunkTable(len(alike) * CHUNK, CHUNK, encoded=True)
    at = 0
    for same, count in runs:
        table.set_run(at, count, (b"a" if same else b"b") * 32, 7, (b"c" if same else b"d") * 16)
        at += count
    first %= len(alike)
    rest = alike[first : first + longest]
    expected = rest.index(False) if False in rest else len(rest)
    assert table.run_length(first, b"a" * 32, longest) == expected
    if expected:
        assert table.is_run(first, expected, b"c" * 16)
    if expected < len(rest):
        assert not table.is_run(first, expected + 1, b"c" * 16)
