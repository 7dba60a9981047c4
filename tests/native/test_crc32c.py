"""CRC-32C: the processor's instruction, the table and the definition agree."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

import diskhaul_native
from diskhaul_native import _core, reference


@pytest.mark.parametrize(
    ("content", "checksum"),
    [  # RFC 3720, appendix B.4, and the usual check value
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"", 0),
    ],
)
def test_known_checksums(native: ModuleType, content: bytes, checksum: int) -> None:
    assert native.crc32c(content) == checksum


@given(st.binary(max_size=300), st.integers(0, 2**32 - 1))
def test_instruction_table_and_definition_agree(content: bytes, before: int) -> None:
    with _core.ffi.from_buffer("char[]", content) as data:
        by_table = _core.lib.dh_crc32c_table(before, data, len(data))
    assert diskhaul_native.crc32c(content, before) == by_table == reference.crc32c(content, before)


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_it_goes_on_where_it_stopped(first: bytes, then: bytes) -> None:
    assert diskhaul_native.crc32c(then, diskhaul_native.crc32c(first)) == diskhaul_native.crc32c(first + then)


@pytest.mark.parametrize("before", [-1, 1 << 32])
def test_what_is_no_checksum_is_refused(native: ModuleType, before: int) -> None:
    with pytest.raises(OverflowError):
        native.crc32c(b"", before)
