"""What readers of partition tables give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

MAX_PARTITIONS = 1024
"""More than a kernel makes devices for; a table that has more is not believed."""


class DamagedTableError(Exception):
    """It is a partition table, and not to be believed. The text says why, in a few words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition.

    Attributes:
        number: as the guest's kernel counts, from 1.
        offset, size: bytes, on what the table partitions.
        kind: the table's word for what is in it: a GUID, or two hex digits.
        name: what the table calls it; anything may stand there.
        problem: why nothing in it is believed; "" otherwise.
    """

    number: int
    offset: int
    size: int
    kind: str
    name: str = ""
    problem: str = ""

    @property
    def end(self) -> int:
        return self.offset + self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A partition table: "gpt" or "mbr", with the sector size in bytes that it counts in."""

    type: str
    sector_size: int
    partitions: tuple[Partition, ...]


def with_overlaps_marked(partitions: Sequence[Partition]) -> tuple[Partition, ...]:
    """The same, in the same order; each that shares bytes with another has that as its problem."""
    overlapping: dict[int, int] = {}
    last: Partition | None = None  # of those before, the one that ends last
    for partition in sorted(partitions, key=lambda p: (p.offset, p.end)):
        if last is not None and partition.offset < last.end:
            overlapping[partition.number] = last.number
            overlapping.setdefault(last.number, partition.number)
        if last is None or partition.end > last.end:
            last = partition
    return tuple(
        replace(p, problem=f"overlaps partition {overlapping[p.number]}") if p.number in overlapping and not p.problem else p
        for p in partitions
    )
