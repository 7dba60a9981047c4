"""The zero scan: every kernel against the definition, at every alignment and length."""

from __future__ import annotations

import mmap
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import diskhaul_native
from diskhaul_native import reference


def test_there_is_a_scalar_reference_kernel_and_a_portable_one() -> None:
    assert diskhaul_native.KERNELS[:2] == ("scalar", "word")


def test_a_kernel_that_is_not_here_is_an_error_that_names_those_that_are(native: ModuleType) -> None:
    with pytest.raises(ValueError, match=rf"sse9.*{native.KERNELS[0]}"):
        native.is_zero(b"", kernel="sse9")


def test_an_empty_buffer_is_all_zero(native: ModuleType) -> None:
    assert native.is_zero(b"")


@pytest.mark.parametrize("kernel", [None, *diskhaul_native.KERNELS])
def test_one_bit_is_seen_at_every_position_of_every_short_length(kernel: str | None) -> None:
    for length in [*range(70), 127, 128, 129, 130, 191, 255, 256, 257, 300]:
        buffer = bytearray(length)
        assert diskhaul_native.is_zero(buffer, kernel=kernel)
        for position in range(length):
            buffer[position] = 1 << (position % 8)
            assert not diskhaul_native.is_zero(buffer, kernel=kernel), (length, position)
            buffer[position] = 0


@pytest.mark.parametrize("kernel", diskhaul_native.KERNELS)
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


@pytest.mark.parametrize("kernel", diskhaul_native.KERNELS)
def test_a_large_mapping_is_scanned_to_its_last_byte(kernel: str) -> None:
    with mmap.mmap(-1, (4 << 20) + 4096) as mapping:
        assert diskhaul_native.is_zero(mapping, kernel=kernel)
        mapping[len(mapping) - 1] = 1
        assert not diskhaul_native.is_zero(mapping, kernel=kernel)


def test_a_buffer_with_gaps_is_refused() -> None:
    with pytest.raises(BufferError):
        diskhaul_native.is_zero(memoryview(bytearray(10))[::2])


def test_the_buffer_is_let_go_afterwards() -> None:
    buffer = bytearray(10)
    diskhaul_native.is_zero(buffer)
    buffer.extend(b"more")  # BufferError if anything still held it
    assert len(buffer) == 14
