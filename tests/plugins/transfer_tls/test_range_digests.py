"""Digests of ranges are those of what the medium holds; where it cannot be read past the page cache they say so."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

import diskhaul_native as native
from diskhaul.errors import StorageError
from diskhaul.formats.chunk_table import chunk_digest
from diskhaul.testing.conformance.storages import pattern
from diskhaul_plugins.storages.raw import RawReader
from diskhaul_plugins.transfers.tls.range_digests import RangeDigests

WHOLE = pattern(9_000_001)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[RawReader]:
    path = tmp_path / "file"
    path.write_bytes(WHOLE)
    reader = RawReader(os.open(path, os.O_RDONLY), len(WHOLE), str(path))
    yield reader
    reader.close()


def fail_with(number: int) -> Callable[..., None]:
    def read_direct(*args: object, **more: object) -> None:
        raise OSError(number, os.strerror(number))

    return read_direct


@pytest.mark.parametrize(("offset", "length"), [(0, 9_000_001), (1, 4095), (4095, 4_200_000), (9_000_000, 1), (5, 0)])
def test_a_range_may_begin_and_end_anywhere(file: RawReader, offset: int, length: int) -> None:
    with closing(RangeDigests(file)) as digests:
        assert digests.digest(offset, length) == chunk_digest(WHOLE[offset : offset + length])


def test_a_medium_that_cannot_be_read_is_not_looked_up_in_the_cache(file: RawReader, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(RangeDigests(file)) as digests:
        assert digests.direct, "the filesystem of the tests has direct I/O"
        monkeypatch.setattr(native, "read_direct", fail_with(errno.EIO))
        begin = 5000 - 5000 % native.direct_alignment(file.fileno())
        with pytest.raises(StorageError, match=f"cannot read at offset {begin}: Input/output error"):
            digests.digest(5000, 10_000)


@pytest.mark.parametrize("number", native.DIRECT_IO_REFUSED)
def test_what_refuses_direct_reads_is_read_through_the_cache_and_says_so(
    file: RawReader, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(native, "read_direct", fail_with(number))
    with closing(RangeDigests(file)) as digests:
        assert digests.digest(5000, 10_000) == chunk_digest(WHOLE[5000:15_000])
        assert not digests.direct
