"""Ranges of a disk: what is read through them, and where it lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskhaul_plugins.guest_disks.volume import Joined, OutsideVolumeError, Part, Striped, Volume, WholeDisk


class Bytes:
    """A disk whose bytes are all different from their neighbours'."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.content = bytes((index * 7 + index // 251) % 256 for index in range(size))

    def read(self, offset: int, length: int, /) -> bytes:
        if offset < 0 or offset + length > self.size:
            raise OutsideVolumeError
        return self.content[offset : offset + length]

    def on_disk(self, offset: int, length: int, /) -> Iterator[tuple[int, int]]:
        if offset < 0 or offset + length > self.size:
            raise OutsideVolumeError
        if length:
            yield offset, length


DISK = Bytes(4096)


def volumes() -> st.SearchStrategy[tuple[Volume, list[int]]]:
    """Volumes of every kind on `DISK`, each with the places of its bytes in their order, found in the simplest way."""

    @st.composite
    def made(draw: st.DrawFn) -> tuple[Volume, list[int]]:
        kind = draw(st.sampled_from(["part", "joined", "striped", "nested"]))
        if kind == "part":
            offset = draw(st.integers(0, 4000))
            size = draw(st.integers(0, 4096 - offset))
            return Part(DISK, offset, size), list(range(offset, offset + size))
        if kind == "joined":
            pieces = draw(st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 96)), max_size=6))
            places = [place for offset, length in pieces for place in range(offset, offset + length)]
            return Joined([(DISK, offset, length) for offset, length in pieces]), places
        count, stripe, rows = draw(st.integers(1, 4)), draw(st.integers(1, 16)), draw(st.integers(1, 8))
        columns = [index * 1024 + draw(st.integers(0, 1024 - stripe * rows)) for index in range(count)]
        striped = Striped([(DISK, column) for column in columns], stripe * rows, stripe)
        places = [column + row * stripe + byte for row in range(rows) for column in columns for byte in range(stripe)]
        if kind == "striped":
            return striped, places
        begin = draw(st.integers(0, striped.size - 1))
        return Joined([(Part(striped, begin, striped.size - begin), 0, striped.size - begin)]), places[begin:]

    return made()


@given(volume=volumes(), data=st.data())
def test_bytes_are_read_from_where_they_are_said_to_lie(volume: tuple[Volume, list[int]], data: st.DataObject) -> None:
    through, places = volume
    assert through.size == len(places)
    offset = data.draw(st.integers(0, through.size))
    length = data.draw(st.integers(0, through.size - offset))
    own = places[offset : offset + length]
    assert through.read(offset, length) == bytes(DISK.content[place] for place in own)
    pieces = list(through.on_disk(offset, length))
    assert all(piece > 0 for _, piece in pieces)
    assert sorted(place for at, piece in pieces for place in range(at, at + piece)) == sorted(own)


@given(volume=volumes(), offset=st.integers(-5, 5000), length=st.integers(-5, 5000))
def test_what_is_outside_is_refused(volume: tuple[Volume, list[int]], offset: int, length: int) -> None:
    through, _ = volume
    if offset >= 0 and length >= 0 and offset + length <= through.size:
        return
    with pytest.raises(OutsideVolumeError):
        through.read(offset, length)
    with pytest.raises(OutsideVolumeError):
        list(through.on_disk(offset, length))


def test_a_large_range_of_a_striped_volume_lies_in_one_piece_on_each_column() -> None:
    class Huge(Bytes):
        def __init__(self) -> None:
            self.size = 1 << 50

    striped = Striped([(Huge(), 0), (Huge(), 1 << 48)], 1 << 45, 4096)
    assert list(striped.on_disk(4096, (1 << 46) - 4096)) == [(4096, (1 << 45) - 4096), (1 << 48, 1 << 45)]


@pytest.mark.parametrize(("columns", "size", "stripe"), [(0, 10, 5), (2, 10, 0), (2, 10, 3), (2, 10, -5)])
def test_stripes_that_do_not_fit_are_refused(columns: int, size: int, stripe: int) -> None:
    with pytest.raises(ValueError, match="striped"):
        Striped([(DISK, 0)] * columns, size, stripe)


def test_parts_of_volumes_must_lie_on_them() -> None:
    for made in (
        lambda: Part(DISK, 4000, 97),
        lambda: Part(DISK, -1, 5),
        lambda: Joined([(DISK, 4096, 1)]),
        lambda: Striped([(DISK, 4090)], 8, 4),
    ):
        with pytest.raises(OutsideVolumeError):
            made()


def test_a_disk_that_ends_too_early_is_an_error_and_not_zeros(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"x" * 100)
    descriptor = os.open(tmp_path / "disk", os.O_RDONLY)
    try:
        disk = WholeDisk(descriptor, 200)
        assert disk.read(50, 50) == b"x" * 50
        with pytest.raises(OSError, match="ends at 100"):
            disk.read(50, 100)
    finally:
        os.close(descriptor)
