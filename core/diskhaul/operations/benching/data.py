"""The bytes that are digested and compressed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import diskhaul_native as native

from ...pipeline.source import Source
from ..tuning.sample import Unit, choose_units

SAMPLE_BYTES = 64 << 20
_WORDS = 4000


def sample_of(source: Source, units: Sequence[Unit], chunk_size: int) -> list[memoryview]:
    """Chunks of the source's data, spread evenly over it; those of zeros left out, as an export does not compress them.

    Raises:
        StorageError: it cannot be read.
    """
    chunks: list[memoryview] = []
    taken = 0
    for unit in choose_units(units, SAMPLE_BYTES):
        for offset, length in unit.fragments:
            for position in range(offset, offset + length, chunk_size):
                if taken >= SAMPLE_BYTES:
                    return chunks
                view = native.aligned_buffer(min(chunk_size, offset + length - position))
                source.fill(position, view)
                if not native.is_zero(view):
                    chunks.append(view)
                    taken += len(view)
    return chunks


def made_up_sample(chunk_size: int, seed: int = 0) -> list[memoryview]:
    """Chunks as a disk may hold them: half text, a quarter random bytes, a quarter that repeats itself a little."""
    draw = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 10))) for _ in range(_WORDS)]
    weights = [1 / (rank + 1) for rank in range(_WORDS)]  # as words are distributed in texts (Zipf's law)
    text = " ".join(draw.choices(words, weights, k=min(chunk_size, 4 << 20) // 5)).encode()
    record = b"".join(draw.randbytes(12) + bytes(20) for _ in range(4096))
    contents = [text, text[len(text) // 3 :] + text, draw.randbytes(chunk_size), record]
    return [_filled(content, chunk_size) for content in contents]


def _filled(content: bytes, size: int) -> memoryview:
    view = native.aligned_buffer(size)
    view[:] = (content * -(-size // len(content)))[:size]
    return view
