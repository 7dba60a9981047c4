"""Cutting extents into runs of chunks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskhaul.api import Extent, ExtentKind
from diskhaul.pipeline.chunk_plan import MAX_RUN, MAX_RUN_BYTES, ChunkRun, chunk_runs, longest_run

DATA, HOLE, FREE = ExtentKind.DATA, ExtentKind.HOLE, ExtentKind.FREE
CHUNK = 8


def laid_out(*parts: tuple[int, ExtentKind]) -> list[Extent]:
    """Extents one after the other, by length and kind."""
    extents: list[Extent] = []
    position = 0
    for length, kind in parts:
        extents.append(Extent(position, length, kind))
        position += length
    return extents


def runs(*parts: tuple[int, ExtentKind], max_run: int = MAX_RUN) -> list[ChunkRun]:
    extents = laid_out(*parts)
    return list(chunk_runs(extents, extents[-1].end if extents else 0, CHUNK, max_run))


def test_a_disk_of_no_bytes_has_no_run() -> None:
    assert runs() == []


def test_a_disk_smaller_than_a_chunk_is_one_run() -> None:
    assert runs((3, DATA)) == [ChunkRun(0, 1, ((0, 3),))]
    assert runs((3, HOLE)) == [ChunkRun(0, 1, ())]
    assert runs((3, FREE)) == [ChunkRun(0, 1, (), 3)]


def test_data_is_cut_at_every_chunk_and_the_last_may_be_short() -> None:
    assert runs((2 * CHUNK + 1, DATA)) == [
        ChunkRun(0, 1, ((0, 8),)),
        ChunkRun(1, 1, ((8, 8),)),
        ChunkRun(2, 1, ((16, 1),)),
    ]


def test_whole_empty_chunks_are_one_run_also_with_a_short_one_at_the_end() -> None:
    assert runs((5 * CHUNK, HOLE)) == [ChunkRun(0, 5, ())]
    assert runs((5 * CHUNK + 3, HOLE)) == [ChunkRun(0, 6, ())]
    assert runs((5 * CHUNK + 3, FREE)) == [ChunkRun(0, 6, (), 5 * CHUNK + 3)]


def test_an_empty_run_does_not_swallow_the_chunk_in_which_data_begins() -> None:
    assert runs((2 * CHUNK + 3, HOLE), (5, DATA)) == [ChunkRun(0, 2, ()), ChunkRun(2, 1, ((19, 5),))]


def test_parts_of_one_chunk_are_gathered_and_neighbouring_data_is_read_at_once() -> None:
    assert runs((1, HOLE), (2, DATA), (1, DATA), (1, FREE), (3, DATA)) == [ChunkRun(0, 1, ((1, 3), (5, 3)), 1)]


def test_a_chunk_of_holes_and_free_pieces_reads_as_zeros_and_counts_what_is_free() -> None:
    assert runs((3, HOLE), (2, FREE), (3, HOLE)) == [ChunkRun(0, 1, (), 2)]


def test_holes_and_free_space_side_by_side_are_counted_apart() -> None:
    assert runs((2 * CHUNK, HOLE), (3 * CHUNK, FREE)) == [ChunkRun(0, 2, ()), ChunkRun(2, 3, (), 3 * CHUNK)]


def test_long_empty_runs_are_cut() -> None:
    assert runs((7 * CHUNK, HOLE), max_run=3) == [ChunkRun(0, 3, ()), ChunkRun(3, 3, ()), ChunkRun(6, 1, ())]
    assert [run.count for run in runs(((2 * MAX_RUN + 1) * CHUNK, HOLE))] == [MAX_RUN, MAX_RUN, 1]


def test_runs_are_made_as_they_are_asked_for() -> None:
    def endless() -> Iterator[Extent]:
        yield Extent(0, CHUNK, DATA)
        raise AssertionError("asked for more than was wanted")

    assert next(chunk_runs(endless(), 10 * CHUNK, CHUNK)) == ChunkRun(0, 1, ((0, CHUNK),))


@pytest.mark.parametrize("frame", [1, 18, 200, 4096, 65536, MAX_RUN_BYTES, 10 * MAX_RUN_BYTES])
def test_the_frames_of_a_run_stay_small_together(frame: int) -> None:
    assert 1 <= longest_run(frame) <= MAX_RUN
    assert longest_run(frame) == 1 or longest_run(frame) * frame <= MAX_RUN_BYTES


LAYOUTS = st.lists(st.tuples(st.integers(1, 5 * CHUNK), st.sampled_from(ExtentKind)), max_size=30)


@given(parts=LAYOUTS, max_run=st.integers(1, 5))
def test_any_layout_gives_runs_that_are_the_disk(parts: list[tuple[int, ExtentKind]], max_run: int) -> None:
    extents = laid_out(*parts)
    size = extents[-1].end if extents else 0
    kinds = b"".join(kind.value[:1].encode() * length for length, kind in parts)
    found = bytearray(b"z" * size)
    free = 0
    following = 0
    for run in chunk_runs(extents, size, CHUNK, max_run):
        assert run.first == following, "ascending and without gaps"
        assert 1 <= run.count <= max_run
        following = run.first + run.count
        begin, end = run.first * CHUNK, min(following * CHUNK, size)
        assert begin < end
        assert not run.segments or run.count == 1
        position = begin
        for offset, length in run.segments:
            assert position <= offset, "segments ascend"
            assert length > 0
            assert offset + length <= end, "segments stay in their chunk"
            found[offset : offset + length] = b"d" * length
            position = offset + length + 1  # and do not touch: they would have been one
        assert run.free == kinds[begin:end].count(b"f")
        free += run.free
    assert following == -(-size // CHUNK)
    assert found == kinds.replace(b"h", b"z").replace(b"f", b"z"), "exactly the data is read"
    assert free == kinds.count(b"f")
