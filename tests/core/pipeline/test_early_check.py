"""Reading back while a disk is still being sent: what is checked early, what is left for later, and what is found."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

import pytest

from diskhaul.api import Buffer
from diskhaul.cancellation import CancellationToken
from diskhaul.errors import StorageError
from diskhaul.formats.chunk_table import ChunkTable, chunk_digest, stored_digest
from diskhaul.formats.codec import codec_for
from diskhaul.options import PathOptions
from diskhaul.pipeline.early_check import EarlyCheck, StoredFrame
from diskhaul.pipeline.meter import Meter
from diskhaul.pipeline.send import SendJob
from diskhaul.pipeline.source import Source
from diskhaul.pipeline.workers import Scratch, run_jobs
from diskhaul.testing import MemoryDisk

MIB = 1 << 20
PAGE = 4096


class Medium:
    """A file in memory that can be read back, as far as `settles` says; what comes back can be made wrong."""

    name = "disk-0"

    def __init__(self, size: int = 0, *, settles: bool = True) -> None:
        self.content = bytearray(size)
        self.read: list[tuple[int, int]] = []
        self.rot_at: int | None = None
        self._settles = settles
        self._lock = threading.Lock()

    def use_direct_io(self, mode: str, /) -> None: ...

    @property
    def settled(self) -> int:
        return len(self.content) // PAGE * PAGE if self._settles else 0

    def read_back(self, offset: int, buffer: memoryview, /) -> bool:
        assert offset % PAGE == len(buffer) % PAGE == 0
        if not self._settles:
            return False
        with self._lock:
            self.read.append((offset, len(buffer)))
            found = self.content[offset : offset + len(buffer)]
        if self.rot_at is not None and offset <= self.rot_at < offset + len(found):
            found[self.rot_at - offset] ^= 1
        buffer[:] = found
        return True

    def append(self, parts: Sequence[Buffer], /) -> None:
        for part in parts:
            self.content += part

    def write(self, offset: int, buffer: Buffer, /) -> None:
        self.content[offset : offset + len(buffer)] = buffer

    def set_size(self, size: int, /) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


class DistantMedium(Medium):
    """One that is not read but digests."""

    use_direct_io = read_back = None  # type: ignore[assignment]  # it has none

    def __init__(self) -> None:
        super().__init__()
        self.answer: Callable[[bytes], object] = chunk_digest

    def range_digest(self, offset: int, length: int, /) -> object:
        assert offset + length <= self.settled
        with self._lock:
            self.read.append((offset, length))
            found = self.content[offset : offset + length]
        if self.rot_at is not None and offset <= self.rot_at < offset + length:
            found[self.rot_at - offset] ^= 1
        return self.answer(bytes(found))


def send(disk: MemoryDisk, medium: Medium, compress: str = "zstd", *, early: bool = True, chunk: int = MIB) -> SendJob:
    job = SendJob(
        Source(disk, "disk 0"),
        medium,
        chunk_size=chunk,
        codec=codec_for(compress),
        meter=Meter(0, "send", disk.size, lambda event: None),
        window=8,
        when_sent=lambda: None,
        check_early=early,
    )
    run_jobs([job], PathOptions(threads=2, read_ahead=2), token=CancellationToken(), stall_timeout_s=60, chunk_size=chunk)
    return job


@pytest.mark.parametrize("compress", ["zstd", "gzip"])
def test_most_frames_are_checked_while_the_disk_is_sent_and_none_twice(compress: str) -> None:
    medium = Medium()
    job = send(MemoryDisk(os.urandom(32 * MIB)), medium, compress)
    assert job.error is None
    assert sum(job.checked) >= 20  # 32 chunks, and what is less than a batch is left
    assert len(medium.read) <= 11  # of three frames or four
    assert sum(length for _, length in medium.read) < len(medium.content) + len(medium.read) * 2 * PAGE


@pytest.mark.parametrize("compress", ["zstd", "gzip"])
def test_frames_are_digested_where_they_lie_while_the_disk_is_sent(compress: str) -> None:
    medium = DistantMedium()
    job = send(MemoryDisk(os.urandom(32 * MIB)), medium, compress)
    assert job.error is None
    assert sum(job.checked) == len(medium.read) >= 8


def test_one_thread_at_a_time_asks_another_node() -> None:
    medium, frame = DistantMedium(), os.urandom(MIB)
    table = ChunkTable(16 * MIB, MIB, True)
    early = EarlyCheck(medium, table, "disk 0")
    for index in range(16):
        medium.append([frame])
        table.set(index, chunk_digest(frame), MIB, stored_digest(frame))
        early.stored(StoredFrame(index, index * MIB, MIB))
    first = early.take()
    assert [taken.index for taken in first] == [0, 1, 2, 3]
    assert early.take() == ()
    early.check(first, Scratch())
    assert [taken.index for taken in early.take()] == [4, 5, 6, 7]
    assert list(early.checked) == [1] * 4 + [0] * 12


def test_what_cannot_be_digested_now_is_left_for_later() -> None:
    medium = DistantMedium()
    medium.answer = lambda found: None
    job = send(MemoryDisk(os.urandom(32 * MIB)), medium)
    assert job.error is None
    assert medium.read
    assert not any(job.checked)


def test_what_is_digested_as_something_else_fails_the_disk_with_the_offset() -> None:
    medium = DistantMedium()
    medium.rot_at = MIB + MIB // 2
    job = send(MemoryDisk(os.urandom(32 * MIB)), medium)
    assert isinstance(job.error, StorageError)
    assert "not what was written" in str(job.error)
    assert job.error.offset == MIB


@pytest.mark.parametrize("nonsense", [b"", b"x" * 33, "text"])
def test_an_answer_that_is_no_digest_fails_the_disk(nonsense: object) -> None:
    medium = DistantMedium()
    medium.answer = lambda found: nonsense
    job = send(MemoryDisk(os.urandom(32 * MIB)), medium)
    assert isinstance(job.error, StorageError)
    assert "no digest came for offset" in str(job.error)


def test_raw_chunks_of_a_file_that_digests_are_left_for_later() -> None:
    medium = DistantMedium()
    medium.content = bytearray(8 * MIB)
    job = send(MemoryDisk(os.urandom(8 * MIB)), medium, "none")
    assert job.error is None
    assert not any(job.checked)


def test_raw_chunks_are_checked_as_soon_as_they_are_written() -> None:
    medium = Medium(8 * MIB + 100)
    job = send(MemoryDisk(os.urandom(8 * MIB + 100)), medium, "none")
    assert job.error is None
    assert list(job.checked) == [1] * 8 + [0]  # the last one is no whole page


@pytest.mark.parametrize("rot_at", [0, 5 * MIB + MIB // 2, 9 * MIB + MIB // 2])
def test_a_medium_that_gives_back_something_else_fails_the_disk_with_the_offset(rot_at: int) -> None:
    medium = Medium()
    medium.rot_at = rot_at
    job = send(MemoryDisk(os.urandom(32 * MIB)), medium)
    assert isinstance(job.error, StorageError)
    assert "not what was written" in str(job.error)
    assert job.error.offset == (rot_at // MIB) * MIB  # frames of random bytes are hardly longer than their chunks
    assert not job.sent


def test_a_raw_chunk_that_comes_back_different_fails_the_disk() -> None:
    medium = Medium(8 * MIB)
    medium.rot_at = 3 * MIB + 77
    job = send(MemoryDisk(os.urandom(8 * MIB)), medium, "none")
    assert isinstance(job.error, StorageError)
    assert job.error.offset == 3 * MIB


@pytest.mark.parametrize("settles", [True, False])
def test_nothing_is_read_back_where_it_was_not_asked_for_or_cannot_be(settles: bool) -> None:
    medium = Medium(settles=settles)
    job = send(MemoryDisk(os.urandom(16 * MIB)), medium, early=not settles)
    assert job.error is None
    assert not any(job.checked)
    assert medium.read == []


def test_chunks_of_zeros_are_left_for_later() -> None:
    medium = Medium()
    job = send(MemoryDisk(bytes(16 * MIB) + os.urandom(16 * MIB)), medium)
    assert job.error is None
    assert not any(job.checked[:16])
    assert any(job.checked[16:])
