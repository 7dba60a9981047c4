"""How fast chunks are digested: one BLAKE3 for each, as the path does it, on one thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from blake3 import blake3

import diskhaul_native as native

from .conftest import MIB, data_set

TOTAL = 16 * MIB


@pytest.mark.parametrize("chunk_size", [64 << 10, 256 << 10, MIB, 4 * MIB, 16 * MIB])
def test_blake3_of_chunks(measured: Callable[..., Any], chunk_size: int) -> None:
    data = native.aligned_buffer(TOTAL)
    data[:] = data_set("random", TOTAL)
    chunks = [data[offset : offset + chunk_size] for offset in range(0, TOTAL, chunk_size)]
    digests = measured(lambda: [blake3(chunk).digest() for chunk in chunks], size=TOTAL, chunk_size=chunk_size)
    assert len(set(digests)) == TOTAL // chunk_size
