"""How fast the C core is: reading with a scan, and copying. The scan by itself: test_zero_scan.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import diskhaul_native

CHUNK = 4 << 20


@pytest.mark.parametrize("content", ["zeros", "data"])
def test_reading_a_cached_chunk_with_a_scan(benchmark: BenchmarkFixture, tmp_path: Path, content: str) -> None:
    path = tmp_path / "chunk"
    path.write_bytes(bytes(CHUNK) if content == "zeros" else os.urandom(CHUNK))
    buffer = diskhaul_native.aligned_buffer(CHUNK)
    benchmark.extra_info["bytes"] = CHUNK
    with open(path, "rb") as file:
        assert benchmark(diskhaul_native.read_scan, file.fileno(), buffer, 0) == (content == "zeros")


def test_copying_a_sparse_file(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    with open(tmp_path / "source", "w+b") as source, open(tmp_path / "target", "w+b") as target:
        for file in (source, target):
            os.ftruncate(file.fileno(), 256 << 20)
        for megabyte in range(0, 256, 4):
            os.pwrite(source.fileno(), os.urandom(1 << 20), megabyte << 20)
        result = benchmark(diskhaul_native.copy_range, source.fileno(), target.fileno(), 0, 256 << 20)
        assert result.read == 64 << 20
