"""Linear ranges of bytes on a guest's disk: the disk itself, a partition, a logical volume."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
        """Where these bytes lie on the whole disk: pairs of offset and length, in the volume's order.

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
    """Ranges of other volumes one behind the other, as the pieces of a logical volume are."""

    def __init__(self, pieces: Sequence[tuple[Volume, int, int]]) -> None:
        """`pieces`: volume, offset on it, and length in bytes (more than 0) of each.

        Raises:
            OutsideVolumeError: a piece is not on its volume.
        """
        for volume, offset, length in pieces:
            _check(volume, offset, length)
        self._pieces = tuple(pieces)
        self.size = sum(length for _, _, length in pieces)

    def _cut(self, offset: int, length: int) -> Iterator[tuple[Volume, int, int]]:
        _check(self, offset, length)
        begin = 0
        for volume, start, piece_length in self._pieces:
            end = begin + piece_length
            if length and begin <= offset < end:
                part = min(length, end - offset)
                yield volume, start + offset - begin, part
                offset += part
                length -= part
            begin = end

    def read(self, offset: int, length: int, /) -> bytes:
        return b"".join(volume.read(start, part) for volume, start, part in self._cut(offset, length))

    def on_disk(self, offset: int, length: int, /) -> Iterator[tuple[int, int]]:
        for volume, start, part in self._cut(offset, length):
            yield from volume.on_disk(start, part)
