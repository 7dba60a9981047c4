"""Reading past the page cache: what is read so, what is not, and what comes out either way."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import diskhaul_native as native
from diskhaul.errors import StorageError
from diskhaul.options import DirectIO
from diskhaul.pipeline.direct import DirectReads, direct_io_problem
from diskhaul.pipeline.source import Source
from diskhaul.pipeline.workers import Scratch
from diskhaul_plugins.storages.raw import RawReader

SIZE = (4 << 20) + 1000
MIB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Iterator[tuple[int, bytes]]:
    """A file of 4 MiB and 1000 bytes that is not in the page cache: its descriptor, and the bytes."""
    path = tmp_path / "disk.raw"
    content = os.urandom(SIZE)
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    if direct_io_problem(descriptor):
        pytest.skip("the temporary directory's filesystem has no direct I/O")
    os.fsync(descriptor)
    native.drop_cache(descriptor)
    assert native.cached_bytes(descriptor, 0, SIZE) == 0
    yield descriptor, content
    os.close(descriptor)


@pytest.fixture
def reads(file: tuple[int, bytes]) -> Iterator[Callable[[DirectIO], DirectReads]]:
    made: list[DirectReads] = []

    def make(mode: DirectIO) -> DirectReads:
        made.append(DirectReads(file[0], mode))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_what_is_not_cached_is_read_directly_and_stays_out_of_the_cache(
    file: tuple[int, bytes], reads: Callable[[DirectIO], DirectReads]
) -> None:
    view = native.aligned_buffer(2 * MIB)
    assert reads("auto").read(view, MIB, name="disk 0") == 2 * MIB
    assert view == file[1][MIB : 3 * MIB]
    assert native.cached_bytes(file[0], 0, SIZE) == 0


def test_what_is_cached_is_left_to_the_cache(file: tuple[int, bytes], reads: Callable[[DirectIO], DirectReads]) -> None:
    os.pread(file[0], SIZE, 0)
    view = native.aligned_buffer(MIB)
    assert reads("auto").read(view, 0, name="disk 0") == 0
    assert reads("always").read(view, 0, name="disk 0") == MIB


def test_a_source_knows_what_the_cache_holds_whole(file: tuple[int, bytes]) -> None:
    source = Source(RawReader(os.dup(file[0]), SIZE, "disk.raw"), "disk 0", direct_io="auto")
    try:
        assert not source.is_cached(0, MIB)
        os.pread(file[0], 2 * MIB, 0)
        assert source.is_cached(0, MIB)
        native.drop_cache(file[0], MIB // 2, 64 << 10)
        assert not source.is_cached(0, MIB)
    finally:
        source.close()


def test_bytes_that_were_written_and_not_yet_synced_are_read(
    file: tuple[int, bytes], reads: Callable[[DirectIO], DirectReads]
) -> None:
    os.pwrite(file[0], b"new" * 1000, 2 * MIB)
    view = native.aligned_buffer(MIB)
    assert reads("always").read(view, 2 * MIB, name="disk 0") == MIB
    assert view[:3000] == b"new" * 1000


def test_the_unaligned_end_is_left_to_the_cache(file: tuple[int, bytes], reads: Callable[[DirectIO], DirectReads]) -> None:
    view = native.aligned_buffer(MIB + 1000)
    done = reads("auto").read(view, 3 * MIB, name="disk 0")
    assert MIB <= done == MIB + 1000 - (MIB + 1000) % native.direct_alignment(file[0])
    assert view[:done] == file[1][3 * MIB : 3 * MIB + done]


@pytest.mark.parametrize(("begin", "offset"), [(0, 100), (100, 0)], ids=["in the file", "in memory"])
def test_what_is_not_aligned_is_left_to_the_cache(reads: Callable[[DirectIO], DirectReads], begin: int, offset: int) -> None:
    view = native.aligned_buffer(2 * MIB)[begin : begin + MIB]
    assert reads("always").read(view, offset, name="disk 0") == 0


def test_a_device_without_direct_io_is_read_through_the_cache_unless_it_has_to_be_direct() -> None:
    with open("/dev/zero", "rb") as zeros:
        view = native.aligned_buffer(MIB)
        assert DirectReads(zeros.fileno(), "auto").read(view, 0, name="disk 0") == 0
        with pytest.raises(OSError, match="Operation not supported") as refused:
            DirectReads(zeros.fileno(), "always").read(view, 0, name="disk 0")
        assert refused.value.errno == errno.EOPNOTSUPP
        assert direct_io_problem(zeros.fileno()) == "direct I/O: Operation not supported"


def test_a_descriptor_that_refuses_a_read_stays_open_for_those_that_are_in_one(
    reads: Callable[[DirectIO], DirectReads], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it closed, another file could be given its number, and be read in place of this one."""
    used: list[int] = []

    def refuse(descriptor: int, *_: object, name: str) -> None:
        used.append(descriptor)
        raise OSError(errno.EINVAL, "Invalid argument", name)

    monkeypatch.setattr(native, "read_direct", refuse)
    direct, view = reads("auto"), native.aligned_buffer(MIB)
    assert direct.read(view, 0, name="disk 0") == 0
    assert direct.read(view, 0, name="disk 0") == 0
    (descriptor,) = used
    os.fstat(descriptor)
    direct.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("mode", ["auto", "always", "never"])
def test_a_source_gives_the_same_bytes_in_every_mode(file: tuple[int, bytes], mode: DirectIO) -> None:
    source = Source(RawReader(os.dup(file[0]), SIZE, "disk.raw"), "disk 0", direct_io=mode)
    try:
        whole = native.aligned_buffer(SIZE)
        source.fill(0, whole)
        assert whole == file[1]
        for offset, length in ((0, SIZE), (1, MIB), (4095, 3 * MIB + 7), (SIZE - 1, 1), (SIZE - MIB - 3, MIB + 3)):
            assert source.fetch(offset, length, Scratch()) == file[1][offset : offset + length]
    finally:
        source.close()


def test_a_disk_that_shrank_is_an_error_when_it_is_read_directly(file: tuple[int, bytes]) -> None:
    source = Source(RawReader(os.dup(file[0]), SIZE, "disk.raw"), "disk 0", direct_io="always")
    try:
        os.ftruncate(file[0], 2 * MIB)
        with pytest.raises(StorageError, match="disk 0: cannot read it at offset"):
            source.fill(MIB, native.aligned_buffer(2 * MIB))
    finally:
        source.close()


def test_closing_a_source_closes_every_descriptor_it_opened(file: tuple[int, bytes]) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    source = Source(RawReader(os.dup(file[0]), SIZE, "disk.raw"), "disk 0", direct_io="always")
    source.fill(0, native.aligned_buffer(MIB))
    source.close()
    source.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
