"""What the benchmarks work on: data of known kinds, and how results say what they were measured on."""

from __future__ import annotations

import os
import platform
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20


def data_set(kind: str, size: int) -> bytes:
    """`size` bytes of a kind: zeros, random, text, mixed (a quarter of each, and zeros), last-byte-set."""
    if kind == "zeros":
        return bytes(size)
    if kind == "last-byte-set":
        return bytes(size - 1) + b"\1"
    if kind == "random":
        return os.urandom(size)
    if kind == "text":
        words = [line.split(maxsplit=1)[0] for line in Path(__file__).read_text().splitlines() if line.strip()]
        chooser = random.Random(1)
        text = " ".join(chooser.choices(words, k=size // 4)).encode()
        return (text * (size // len(text) + 1))[:size]
    if kind == "mixed":
        quarter = size // 4
        return data_set("text", quarter) + data_set("random", quarter) + bytes(size - 2 * quarter)
    raise ValueError(kind)


@pytest.fixture
def measured(benchmark: Any) -> Callable[..., Any]:
    """Run a function under the benchmark and record how many bytes it deals with, on what machine, with what settings."""

    def run(function: Callable[[], Any], *, size: int, **settings: object) -> Any:
        benchmark.extra_info.update(
            bytes=size, machine=platform.machine(), cpus=os.cpu_count(), kernel=platform.release(), **settings
        )
        result = benchmark(function)
        if benchmark.stats is not None:
            benchmark.extra_info["mib_per_s"] = round(size / MIB / benchmark.stats.stats.median)
        return result

    return run
