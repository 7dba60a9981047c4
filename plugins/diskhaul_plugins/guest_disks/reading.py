"""What a reader of a filesystem (or of swap space) takes and gives."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from .volume import Volume


class NotThisError(Exception):
    """The volume holds something else than this reader reads. The next one is asked."""


class FreeRuns:
    """Ranges that are free, ascending and without overlap, in bytes from the volume's start. Sixteen bytes a range."""

    def __init__(self) -> None:
        self._numbers = array("Q")
        self.total = 0
        """Bytes of all ranges together."""

    def add(self, offset: int, length: int) -> None:
        """Append a range; one that begins where the last one ends is joined with it.

        Raises:
            ValueError: it is empty, or begins before the last one ends.
        """
        numbers = self._numbers
        end = numbers[-2] + numbers[-1] if numbers else 0
        if length <= 0 or offset < end:
            raise ValueError(f"{length} bytes at {offset}, after a range that ends at {end}")
        if numbers and offset == end:
            numbers[-1] += length
        else:
            numbers.extend((offset, length))
        self.total += length

    def overlaps(self, offset: int, length: int) -> bool:
        """Is any of these bytes (at least one) in a range?"""
        numbers = self._numbers
        after = bisect_left(
            range(len(self)), offset + length, key=lambda index: numbers[2 * index]
        )  # those that begin before its end
        return after > 0 and numbers[2 * after - 2] + numbers[2 * after - 1] > offset

    def drop_shorter(self, length: int) -> None:
        """Forget ranges of less than `length` bytes."""
        kept = array("Q")
        for offset, size in self:
            if size >= length:
                kept.extend((offset, size))
        self._numbers = kept
        self.total = sum(kept[1::2])

    def __len__(self) -> int:
        return len(self._numbers) // 2

    def __iter__(self) -> Iterator[tuple[int, int]]:
        numbers = iter(self._numbers)
        return zip(numbers, numbers, strict=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was read of one filesystem.

    Attributes:
        type: its usual name: "ext4", "xfs", "swap".
        label: what its owner called it; anything may stand there.
        size: bytes of the volume that it covers.
        block_size: unit of its allocation in bytes (clusters, where it has them).
        state: "clean", "journal replayed" (bitmaps were read as its journal will leave them), "dirty", "has errors", ...
        free: bytes that it calls free by its own counters, or None where that is not known.
        runs: what may be left out; empty where `kept` says why not.
        kept: why nothing of it is left out, in a few words; "" otherwise.
    """

    type: str
    label: str = ""
    size: int
    block_size: int
    state: str
    free: int | None
    runs: FreeRuns = field(default_factory=FreeRuns)
    kept: str = ""


class Reader(Protocol):
    """Reads one kind of filesystem. Runs in a child process without privileges; may raise anything: then all is kept."""

    def __call__(self, volume: Volume, /) -> Reading:
        """Read which bytes of `volume` are free.

        Raises:
            NotThisError: its signature is another's.
        """
        ...
