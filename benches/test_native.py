"""How fast the C core is: the zero scan by kernel."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import diskhaul_native

CHUNK = 4 << 20


@pytest.mark.parametrize("kernel", diskhaul_native.KERNELS)
def test_scanning_a_chunk_of_zeros(benchmark: BenchmarkFixture, kernel: str) -> None:
    buffer = diskhaul_native.aligned_buffer(CHUNK)
    benchmark.extra_info["bytes"] = CHUNK
    assert benchmark(diskhaul_native.is_zero, buffer, kernel=kernel)
