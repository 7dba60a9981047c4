"""Telling cheaply that a chunk will not compress: media files, archives, encrypted disks."""

from __future__ import annotations

from functools import lru_cache

PIECES, PIECE = 16, 4096
SMALLEST = 4 * PIECES * PIECE
"""Shorter chunks are simply compressed: a sample of them would not be much cheaper."""
_GOLDEN = 0.6180339887498949  # its multiples modulo 1 are spread evenly: what a disk repeats at regular distances is not missed
_SAVING = 0.99  # what the sample has to shrink to for the chunk to be worth a compressor's time


@lru_cache(maxsize=16)
def sample_offsets(length: int) -> tuple[int, ...]:
    """Where the pieces of a sample of `length` bytes begin: one in each sixteenth, each at another place of it."""
    step = length // PIECES
    return tuple(number * step + int(number * _GOLDEN % 1 * (step - PIECE)) for number in range(PIECES))


class Sampler:
    """Compresses pieces from all over a chunk, quickly, to see whether they shrink; belongs to one thread.

    Repetitions that lie far apart in a chunk of otherwise random bytes are not seen: such a chunk is stored, larger than it
    could be, and comes back like any other.
    """

    __slots__ = ("_compress",)

    def __init__(self) -> None:
        import zstandard  # here, so that listing codecs does not load it

        self._compress = zstandard.ZstdCompressor(level=1, write_dict_id=False).compress

    def finds_incompressible(self, chunk: memoryview) -> bool:
        """True when sixteen pieces of 4 KiB do not shrink by a hundredth together. Takes some 20 us."""
        if len(chunk) < SMALLEST:
            return False
        sample = b"".join([chunk[at : at + PIECE] for at in sample_offsets(len(chunk))])
        return len(self._compress(sample)) > _SAVING * len(sample)
