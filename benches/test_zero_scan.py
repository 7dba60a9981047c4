"""How fast the zero scan is, by kernel, size and data, and beside it what merely reading the same memory costs.

64 KiB and 1 MiB lie in the caches of one core, 16 MiB in the last one, 256 MiB in none.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest

import diskhaul_native

from .conftest import MIB, data_set

SIZES = {"64KiB": 1 << 16, "1MiB": MIB, "16MiB": 16 * MIB, "256MiB": 256 * MIB}
ROUNDS = 21


def filled(kind: str, size: int) -> memoryview:
    """An aligned buffer. It is written to: pages that never were are all the same page of zeros, which is always in the cache."""
    buffer = diskhaul_native.aligned_buffer(size)
    if kind == "random" and size > MIB:
        piece = data_set(kind, MIB)
        for start in range(0, size, MIB):
            buffer[start : start + MIB] = piece
    else:
        buffer[:] = data_set(kind, size)
    return buffer


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["zeros", "last-byte-set", "random"])
@pytest.mark.parametrize("kernel", diskhaul_native.KERNELS)
def test_scan(measured: Callable[..., Any], kernel: str, kind: str, size: str) -> None:
    if kernel == "scalar" and SIZES[size] > 16 * MIB:
        pytest.skip("the reference takes a second for each round, and says nothing new")
    buffer = filled(kind, SIZES[size])
    result = measured(
        lambda: diskhaul_native.is_zero(buffer, kernel=kernel),
        size=SIZES[size],
        kernel_name=kernel,
        content=kind,
        in_use=diskhaul_native.BEST_KERNEL,
    )
    assert result == (kind == "zeros")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel", diskhaul_native.KERNELS)
def test_sum_words(measured: Callable[..., Any], kernel: str, size: str) -> None:
    buffer = filled("zeros", SIZES[size])
    total = measured(
        lambda: diskhaul_native.sum_words(buffer, kernel=kernel),
        size=SIZES[size],
        kernel_name=kernel,
        in_use=diskhaul_native.BEST_KERNEL,
    )
    assert total == 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel", [kernel for kernel in diskhaul_native.KERNELS if kernel != "scalar"])
def test_scan_of_zeros_compared_with_sum_words(
    benchmark: Any, capsys: pytest.CaptureFixture[str], kernel: str, size: str
) -> None:
    """Pairs of runs, one after the other, so that both see the same machine; the ratio of speeds is printed and recorded."""
    buffer = filled("zeros", SIZES[size])
    repeats = max(1, 64 * MIB // SIZES[size])

    def seconds(function: Callable[..., object]) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            function(buffer, kernel=kernel)
        return time.perf_counter() - start

    pairs: list[float] = []

    def pair() -> None:
        pairs.append(seconds(diskhaul_native.sum_words) / seconds(diskhaul_native.is_zero))

    benchmark.pedantic(pair, rounds=ROUNDS, warmup_rounds=1)
    low, median, high = statistics.quantiles(pairs, n=4)
    benchmark.extra_info.update(bytes=SIZES[size], kernel_name=kernel, speed_compared_with_sum_words=median)
    with capsys.disabled():
        print(f"\n{kernel} {size}: {median:.2f} of sum_words (quartiles {low:.2f} to {high:.2f})", end="")
