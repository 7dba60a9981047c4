"""The zero scan: every kernel against the definition, at every alignment and length."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diskhaul_native
from diskhaul_native import _core, reference

KERNELS = diskhaul_native.KERNELS


def test_there_is_a_scalar_reference_kernel_and_a_portable_one() -> None:
    assert diskhaul_native.KERNELS[:2] == ("scalar", "word")


def test_a_kernel_that_is_not_here_is_an_error_that_names_those_that_are(native: ModuleType) -> None:
    with pytest.raises(ValueError, match=rf"sse9.*{native.KERNELS[0]}"):
        native.is_zero(b"", kernel="sse9")


def test_the_kernel_in_use_has_a_name_among_those_that_are_here(native: ModuleType) -> None:
    assert native.BEST_KERNEL in native.KERNELS
    assert diskhaul_native.BEST_KERNEL not in ("scalar", "word") or len(KERNELS) == 2


def test_every_kernel_that_the_processor_has_is_here() -> None:
    flags = set(next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "").split())
    assert ("avx2" in KERNELS, "avx512" in KERNELS) == ("avx2" in flags, "avx512f" in flags)
    assert ("neon" in KERNELS) == (os.uname().machine == "aarch64")


def test_the_core_itself_refuses_a_kernel_that_is_missing(content: tuple[Path, bytes], opened: Callable[..., int]) -> None:
    missing = next(number for number in range(_core.lib.DH_KERNEL_COUNT) if not _core.lib.dh_kernel_available(number))
    total, done = _core.ffi.new("uint64_t *"), _core.ffi.new("size_t *")
    buffer = bytearray(b"untouched")
    with _core.ffi.from_buffer("char[]", buffer) as data:
        assert _core.lib.dh_is_zero(missing, data, len(data)) == -errno.EOPNOTSUPP
        assert _core.lib.dh_sum_words(missing, data, len(data), total) == -errno.EOPNOTSUPP
        assert _core.lib.dh_read_scan(opened(content[0]), missing, data, len(data), 0, done) == -errno.EOPNOTSUPP
    assert (buffer, done[0]) == (b"untouched", 0)


def test_an_empty_buffer_is_all_zero(native: ModuleType) -> None:
    assert native.is_zero(b"")


@pytest.mark.parametrize("kernel", [None, *KERNELS])
def test_one_bit_is_seen_at_every_position_of_every_length(kernel: str | None) -> None:
    buffer = bytearray(1101)
    view = memoryview(buffer)
    for length in [*range(140), *(multiple + shift for multiple in range(192, 1101, 64) for shift in (-1, 0, 1)), 1100]:
        window = view[:length]
        assert diskhaul_native.is_zero(window, kernel=kernel)
        for position in range(length):
            buffer[position] = 1 << (position % 8)
            assert not diskhaul_native.is_zero(window, kernel=kernel), (length, position)
            buffer[position] = 0


@pytest.fixture(scope="module")
def fenced() -> Iterator[memoryview]:
    """Two pages between two that must not be touched: reading a byte before or after ends the process."""
    page = mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    whole = mmap.mmap(-1, 4 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(whole))
    for guard in (start, start + 3 * page):
        assert libc.mprotect(guard, page, 0) == 0, os.strerror(ctypes.get_errno())
    yield memoryview(whole)[page : 3 * page]
    for guard in (start, start + 3 * page):
        libc.mprotect(guard, page, mmap.PROT_READ | mmap.PROT_WRITE)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(deadline=None, max_examples=300)
@given(data=st.data(), length=st.integers(0, 1100), at_the_end=st.booleans())
def test_a_kernel_looks_at_nothing_but_the_buffer(
    fenced: memoryview, kernel: str, data: st.DataObject, length: int, at_the_end: bool
) -> None:
    # At the end of the mapping the alignment follows from the length; elsewhere all are tried, with bytes that are set around.
    start = len(fenced) - length if at_the_end else data.draw(st.integers(0, 64), label="start")
    fenced[:] = b"\xff" * len(fenced)
    window = fenced[start : start + length]
    window[:] = bytes(length)
    assert diskhaul_native.is_zero(window, kernel=kernel)
    if length:
        position = data.draw(st.integers(0, length - 1), label="position")
        window[position] = data.draw(st.integers(1, 255), label="value")
        assert not diskhaul_native.is_zero(window, kernel=kernel)
        assert not reference.is_zero(window)
    assert diskhaul_native.sum_words(window, kernel=kernel) == reference.sum_words(window)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_stops_at_both_ends_of_what_is_mapped(fenced: memoryview, kernel: str) -> None:
    fenced[:] = bytes(len(fenced))
    for length in range(1101):
        for window in (fenced[:length], fenced[len(fenced) - length :]):
            assert diskhaul_native.is_zero(window, kernel=kernel)
            assert diskhaul_native.sum_words(window, kernel=kernel) == 0


@pytest.mark.parametrize("kernel", KERNELS)
@settings(deadline=None, max_examples=200)
@given(
    start=st.integers(0, 130),
    length=st.integers(0, 5000),
    marks=st.lists(st.tuples(st.integers(0, 5300), st.integers(1, 255)), max_size=2),
)
def test_kernels_agree_with_the_reference_and_look_only_at_the_buffer(
    kernel: str, start: int, length: int, marks: list[tuple[int, int]]
) -> None:
    whole = bytearray(b"\xff" * 5300)  # what surrounds the buffer is not zero
    whole[start : start + length] = bytes(length)
    for position, value in marks:
        whole[position % len(whole)] = value
    window = memoryview(whole)[start : start + length]
    assert diskhaul_native.is_zero(window, kernel=kernel) == reference.is_zero(window)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_large_mapping_is_scanned_to_its_last_byte(kernel: str) -> None:
    with mmap.mmap(-1, (4 << 20) + 4096) as mapping:
        assert diskhaul_native.is_zero(mapping, kernel=kernel)
        mapping[len(mapping) - 1] = 1
        assert not diskhaul_native.is_zero(mapping, kernel=kernel)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(deadline=None, max_examples=100)
@given(start=st.integers(0, 64), data=st.binary(max_size=1100))
def test_sums_of_words_agree_with_the_reference(kernel: str, start: int, data: bytes) -> None:
    whole = b"\xff" * start + data + b"\xff" * 64
    window = memoryview(whole)[start : start + len(data)]
    assert diskhaul_native.sum_words(window, kernel=kernel) == reference.sum_words(data)


def test_a_sum_is_taken_modulo_two_to_the_64(native: ModuleType) -> None:
    assert native.sum_words(b"") == 0
    assert native.sum_words(b"\xff" * 8 * 3) == 2**64 - 3
    with pytest.raises(ValueError, match="sse9"):
        native.sum_words(b"", kernel="sse9")


@pytest.mark.parametrize("kernel", [None, *KERNELS])
def test_a_read_can_be_scanned_by_any_kernel(tmp_path: Path, opened: Callable[..., int], kernel: str | None) -> None:
    fd = opened(tmp_path / "file")
    os.ftruncate(fd, 1 << 20)
    os.pwrite(fd, b"\1", 700_000)
    assert diskhaul_native.read_scan(fd, bytearray(100_000), 0, kernel=kernel) is True
    assert diskhaul_native.read_scan(fd, bytearray(100_000), 600_001, kernel=kernel) is False


def test_a_read_is_not_scanned_by_a_kernel_that_is_not_here(native: ModuleType) -> None:
    with pytest.raises(ValueError, match="sse9"):
        native.read_scan(0, bytearray(1), 0, kernel="sse9")


def test_a_buffer_with_gaps_is_refused() -> None:
    with pytest.raises(BufferError):
        diskhaul_native.is_zero(memoryview(bytearray(10))[::2])


def test_the_buffer_is_let_go_afterwards() -> None:
    buffer = bytearray(10)
    diskhaul_native.is_zero(buffer)
    buffer.extend(b"more")  # BufferError if anything still held it
    assert len(buffer) == 14
