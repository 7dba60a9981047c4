"""Which chunks a disk has, and which parts of them have to be read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..api import Extent, ExtentKind

MAX_RUN = 4096
"""Chunks in one run of empty chunks at the most."""

MAX_RUN_BYTES = 1 << 20
"""What the frames of one run may take together: several runs per thread are in memory at once."""


def longest_run(frame_length: int) -> int:
    """How many frames of zeros, each `frame_length` bytes, make one run (gzip needs 4 KiB for 4 MiB, zstd 200 bytes)."""
    return max(1, min(MAX_RUN, MAX_RUN_BYTES // frame_length))


@dataclass(frozen=True, slots=True)
class ChunkRun:
    """Neighbouring chunks that are treated alike.

    Attributes:
        first, count: chunk indexes; a run with segments is one chunk.
        segments: the parts (offset and length on the disk) that hold data; none means that the run reads as zeros.
        free: bytes of the run that the guest's filesystem does not use.
    """

    first: int
    count: int
    segments: tuple[tuple[int, int], ...]
    free: int = 0


def chunk_runs(extents: Iterable[Extent], size: int, chunk_size: int, max_run: int = MAX_RUN) -> Iterator[ChunkRun]:
    """Cut a disk of `size` bytes into runs, ascending and complete; empty ones have at most `max_run` chunks.

    `extents` must cover the disk without gaps or overlap (`Source.extents`).
    """
    pending: list[tuple[int, int]] = []  # data segments of the chunk being gathered
    pending_free = 0
    chunk = 0  # the chunk being gathered

    for extent in extents:
        position = extent.offset
        while position < extent.end:
            index = position // chunk_size
            chunk_end = min((index + 1) * chunk_size, size)
            free = extent.kind is ExtentKind.FREE
            if extent.kind is ExtentKind.DATA:
                end = min(extent.end, chunk_end)
                if pending and pending[-1][0] + pending[-1][1] == position:
                    pending[-1] = (pending[-1][0], pending[-1][1] + end - position)
                else:
                    pending.append((position, end - position))
            elif position == index * chunk_size and extent.end >= chunk_end:
                # Whole empty chunks: as many at once as there are.
                whole = (extent.end - position) // chunk_size if extent.end < size else -(-(size - position) // chunk_size)
                count = min(whole, max_run)
                end = min(position + count * chunk_size, size)
                yield ChunkRun(index, count, (), end - position if free else 0)
                chunk = index + count
            else:
                end = min(extent.end, chunk_end)
                pending_free += end - position if free else 0
            position = end
            if position == chunk_end and chunk == index:
                yield ChunkRun(chunk, 1, tuple(pending), pending_free)
                pending, pending_free, chunk = [], 0, index + 1
