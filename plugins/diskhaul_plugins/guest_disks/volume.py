"""Linear ranges of bytes on a guest's disk: the disk itself, a partition, a logical volume."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol


class OutsideVolumeError(ValueError):
    """Something points behind the end of what it lies on."""


class Volume(Protocol):
    """A linear range of bytes. Readers see nothing else of a disk."""

    @property
    def size(self) -> int:
        """Size in bytes."""
        ...

    def read(self, offset: int, length: int, /) -> bytes:
        """Exactly `length` bytes from `offset` on.

        Raises:
            OutsideVolumeError: not all of it lies on the volume.
            OSError: it cannot be read.
        """
        ...

    def on_disk(self, offset: int, length: int, /) -> Iterator[tuple[int, int]]:
        """Where these bytes lie on the whole disk: pairs of offset and length, in any order (a stripe's pieces are joined).

        Raises:
            OutsideVolumeError: not all of it lies on the volume.
        """
        ...


def _check(volume: Volume, offset: int, length: int) -> None:
    if offset < 0 or length < 0 or offset + length > volume.size:
        raise OutsideVolumeError(f"{length} bytes at {offset} are not on a volume of {volume.size} bytes")


@dataclass(frozen=True, slots=True)
class WholeDisk:
    """The disk behind a descriptor that is good for reading."""

    descriptor: int
    size: int

    def read(self, offset: int, length: int, /) -> bytes:
        _check(self, offset, length)
        parts: list[bytes] = []
        while length:
            part = os.pread(self.descriptor, length, offset)
            if not part:
                raise OSError(f"the disk ends at {offset}")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def on_disk(self, offset: int, length: int, /) -> Iterator[tuple[int, int]]:
        _check(self, offset, length)
        if length:
            yield offset, length


@dataclass(frozen=True, slots=True)
class Part:
    """A range of another volume, as a partition is."""

    parent: Volume
    offset: int
    size: int

    def __post_init__(self) -> None:
        _check(self.parent, self.offset, self.size)

    def read(self, offset: int, length: int, /) -> bytes:
        _check(self, offset, length)
        return self.parent.read(self.offset + offset, length)

    def on_disk(self, offset: int, length: int, /) -> Iterator[tuple[int, int]]:
        _check(self, offset, length)
        return self.parent.on_disk(self.offset + offset, length)


class Joined:
    """Ranges of other volumes one behind the other, as the segments of a logical volume are."""

    def __init__(self, pieces: Sequence[tuple[Volume, int, int]]) -> None:
        """`pieces`: volume, offset on it, and length in bytes (more than 0) of each.

        Raises:
            OutsideVolumeError: a piece is not on its volume.
        """
        for volume, offset, length in pieces:
            _check(volume, offset, length)
        self._pieces = tuple(pieces)
        self._ends = tuple(accumulate(length for _, _, length in pieces))
        self.size = self._ends[-1] if self._ends else 0

    def _cut(self, offset: int, length: int) -> Iterator[tuple[Volume, int, int]]:
        _check(self, offset, length)
        index = bisect_right(self._ends, offset)
        while length:
            volume, start, piece_length = self._pieces[index]
            inside = offset - (self._ends[index] - piece_length)
            part = min(length, piece_length - inside)
            yield volume, start + inside, part
            offset += part
            length -= part
            index += 1

    def read(self, offset: int, length: int, /) -> bytes:
        return b"".join(volume.read(start, part) for volume, start, part in self._cut(offset, length))

    def on_disk(self, offset: int, length: int, /) -> Iterator[tuple[int, int]]:
        for volume, start, part in self._cut(offset, length):
            yield from volume.on_disk(start, part)


class Striped:
    """Columns of other volumes, filled in turn with `stripe_size` bytes each, as a striped segment of a logical volume is."""

    def __init__(self, columns: Sequence[tuple[Volume, int]], column_size: int, stripe_size: int) -> None:
        """`columns`: volume and offset on it of each; `column_size`: bytes of each, a multiple of `stripe_size`.

        Raises:
            OutsideVolumeError: a column is not on its volume.
            ValueError: the sizes do not fit.
        """
        if not columns or stripe_size <= 0 or column_size % stripe_size:
            raise ValueError(f"{len(columns)} columns of {column_size} bytes cannot be striped by {stripe_size}")
        for volume, offset in columns:
            _check(volume, offset, column_size)
        self._columns = tuple(columns)
        self._stripe_size = stripe_size
        self.size = column_size * len(columns)

    def read(self, offset: int, length: int, /) -> bytes:
        _check(self, offset, length)
        parts: list[bytes] = []
        while length:
            stripe, inside = divmod(offset, self._stripe_size)
            row, index = divmod(stripe, len(self._columns))
            part = min(length, self._stripe_size - inside)
            volume, start = self._columns[index]
            parts.append(volume.read(start + row * self._stripe_size + inside, part))
            offset += part
            length -= part
        return b"".join(parts)

    def on_disk(self, offset: int, length: int, /) -> Iterator[tuple[int, int]]:
        """A range lies in one piece on each column: from where its first stripe there begins to where its last one ends."""
        _check(self, offset, length)
        if not length:
            return
        for index, (volume, start) in enumerate(self._columns):
            begin, end = self._in_column(offset, index), self._in_column(offset + length, index)
            if end > begin:
                yield from volume.on_disk(start + begin, end - begin)

    def _in_column(self, offset: int, index: int) -> int:
        """How many bytes of column `index` lie before `offset` of the volume."""
        stripe, inside = divmod(offset, self._stripe_size)
        row, at = divmod(stripe, len(self._columns))
        return row * self._stripe_size + (self._stripe_size if index < at else inside if index == at else 0)
