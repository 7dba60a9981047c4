"""Disks sent into a real export directory and read back: every codec, size and kind of extent."""

from __future__ import annotations

import errno
import gzip
import os
import random
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diskhaul.api import BackendContext, ExportReader, ExportWriter, Extent, ExtentKind
from diskhaul.cancellation import CancellationToken
from diskhaul.errors import SnapshotError, StorageError
from diskhaul.formats.adaptive_level import AdaptiveLevel
from diskhaul.formats.chunk_table import chunk_digest
from diskhaul.formats.codec import Codec, ZstdCodec, codec_for, parse_compress
from diskhaul.formats.corruption import CorruptError
from diskhaul.formats.manifest import DiskRecord
from diskhaul.model import Cluster, Node
from diskhaul.options import PathOptions
from diskhaul.pipeline import chunk_plan
from diskhaul.pipeline.meter import Meter
from diskhaul.pipeline.raw_restore import RawRestoreJob
from diskhaul.pipeline.readback import MAX_FINDINGS, ReadBackJob, open_stored_disk
from diskhaul.pipeline.send import SendJob
from diskhaul.pipeline.source import Source
from diskhaul.pipeline.workers import run_jobs
from diskhaul.testing import Fault, FaultyDisk, MemoryDisk, RecordingDisk
from diskhaul_plugins.transfers.directory import DirectoryTransfer

CHUNK = 64 << 10
CODECS = ["none", "zstd:1", "zstd:-5", "gzip:1"]
EXPORT_ID = "20261122T103308Z-1a2b3c4d"
DATA, HOLE, FREE = ExtentKind.DATA, ExtentKind.HOLE, ExtentKind.FREE


class MappedDisk(MemoryDisk):
    """A disk that says what its extents are, whatever it holds."""

    def __init__(self, content: bytes, extents: Sequence[Extent]) -> None:
        super().__init__(content)
        self._extents = extents

    def extents(self) -> Iterable[Extent]:
        return self._extents


class Sent:
    """One disk as it lies in an unpublished export."""

    def __init__(self, job: SendJob, writer: ExportWriter, codec: Codec, compress: str) -> None:
        self.job = job
        self.reader: ExportReader = writer.reader()
        file = writer.create("disk-0.chunks")
        file.append(tuple(job.table.parts()))
        file.finish()
        self.name = f"disk-0{codec.suffix}"
        self.path = Path(self.reader.location) / self.name
        self.record = DiskRecord(
            index=0,
            size=job.table.disk_size,
            file=self.name,
            format=codec.suffix.removeprefix("."),
            compress=compress,
            stored_size=job.stored_bytes,
            chunk_size=CHUNK,
            chunk_count=job.table.count,
            chunks_file="disk-0.chunks",
            root_digest=job.table.root_digest(),
            stored_root=job.table.stored_root(),
            data_bytes=job.data_bytes,
            zero_bytes=job.zero_bytes,
            free_bytes=job.free_bytes,
            consistency="stopped",
        )

    def read_back(self, writer: Any = None, *, decode: bool = True, stop_at_first: bool = False) -> ReadBackJob:
        disk = open_stored_disk(self.reader, self.record)
        try:
            meter = Meter(0, "verify", self.record.size, lambda event: None)
            job = ReadBackJob(disk, writer=writer, decode=decode, stop_at_first=stop_at_first, meter=meter)
            run_jobs([job], PathOptions(threads=3, read_ahead=0), token=CancellationToken(), stall_timeout_s=60)
            return job
        finally:
            disk.source.close()

    def restored(self, *, fill: int = 0) -> bytes:
        target = MemoryDisk(self.record.size, fill=fill)
        job = self.read_back(target)
        assert job.error is None
        assert job.findings == []
        assert job.finished
        assert target.flushes == 1
        assert job.meter.done == self.record.size
        return target.content()

    def flip(self, offset: int) -> None:
        with open(self.path, "r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 0x40]))


Send = Callable[..., Sent]


@pytest.fixture
def send(tmp_path: Path) -> Iterator[Send]:
    """Send a disk: ``send(disk, "zstd:1")``. Raises what made it fail."""
    writers: list[ExportWriter] = []
    cluster = Cluster(name="lab", state_dir=tmp_path / "state")
    transfer = DirectoryTransfer(BackendContext(cluster=cluster))

    def make(disk: Any, compress: str, *, threads: int = 3, when_sent: Callable[[], object] = lambda: None) -> Sent:
        directory = tmp_path / f"node-{len(writers)}"
        directory.mkdir()
        writer = transfer.store(Node(name="beta", export_dir=directory)).begin("web1", EXPORT_ID)
        writers.append(writer)
        compression = parse_compress(compress)
        codec = codec_for(compression.name, compression.level)
        source = Source(disk, "disk 0")
        job = SendJob(
            source,
            writer.create(f"disk-0{codec.suffix}"),
            chunk_size=CHUNK,
            codec=codec,
            meter=Meter(0, "send", source.size, lambda event: None),
            window=2 * threads,
            when_sent=when_sent,
        )
        run_jobs([job], PathOptions(threads=threads, read_ahead=0), token=CancellationToken(), stall_timeout_s=60)
        if job.error is not None:
            assert not job.sent
            raise job.error
        assert job.sent
        return Sent(job, writer, codec, compress)

    yield make
    for writer in writers:
        writer.abort()


def mixed(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress, that do, and zeros, in turns of uneven length."""
    chance = random.Random(seed)
    content = bytearray()
    while len(content) < size:
        length = chance.choice([100, 4096, CHUNK, 3 * CHUNK])
        content += chance.choice([chance.randbytes, bytes, lambda length: b"text" * (length // 4 + 1)])(length)
    return bytes(content[:size])


def stock(sent: Sent) -> bytes:
    """The disk as programs without diskhaul restore it."""
    if sent.name.endswith(".zst"):
        return subprocess.run(["zstd", "-dcq", str(sent.path)], check=True, capture_output=True).stdout
    if sent.name.endswith(".gz"):
        return gzip.decompress(sent.path.read_bytes())
    return sent.path.read_bytes()


@pytest.mark.parametrize("size", [0, 1, 511, CHUNK - 1, CHUNK, CHUNK + 1, 7 * CHUNK + 513])
@pytest.mark.parametrize("compress", CODECS)
def test_disks_of_every_size_come_back(send: Send, requires: Callable[..., None], compress: str, size: int) -> None:
    requires("zstd")
    for content in (mixed(size), bytes(size), random.Random(1).randbytes(size)):
        sent = send(MemoryDisk(content), compress)
        assert sent.restored() == content
        assert sent.restored(fill=0xA5) == content, "also onto a target full of old bytes"
        assert stock(sent) == content
        job = sent.job
        assert job.data_bytes + job.zero_bytes + job.free_bytes == size
        assert job.stored_bytes == sent.path.stat().st_size
        assert job.meter.done == size
        assert sent.read_back(decode=False).findings == []


@pytest.mark.parametrize("compress", CODECS)
def test_a_chunk_of_zeros_counts_as_zeros_and_not_as_data(send: Send, compress: str) -> None:
    job = send(MemoryDisk(b"x" * CHUNK + bytes(2 * CHUNK) + b"y"), compress).job
    assert (job.data_bytes, job.zero_bytes, job.free_bytes) == (CHUNK + 1, 2 * CHUNK, 0)
    assert job.meter.read == 3 * CHUNK + 1


@pytest.mark.parametrize("compress", CODECS)
def test_free_extents_are_not_read_and_come_back_as_zeros(send: Send, compress: str) -> None:
    size = 6 * CHUNK + 100
    content = random.Random(2).randbytes(size)
    extents = [
        Extent(0, 1000, DATA),
        Extent(1000, 2 * CHUNK, FREE),
        Extent(1000 + 2 * CHUNK, 500, HOLE),
        Extent(4 * CHUNK, 2 * CHUNK, FREE),  # what lies between is data
    ]
    wanted = bytearray(content)
    for extent in extents[1:]:
        wanted[extent.offset : extent.end] = bytes(extent.length)
    disk = RecordingDisk(MappedDisk(content, extents))
    sent = send(disk, compress)
    assert sent.restored(fill=0xFF) == wanted
    job = sent.job
    assert (job.free_bytes, job.zero_bytes) == (4 * CHUNK, 500)
    assert job.data_bytes == size - 4 * CHUNK - 500
    skipped = [extent for extent in extents if extent.kind is not DATA]
    for call in disk.of("read_into"):
        assert call.offset is not None
        assert call.length is not None
        end = call.offset + call.length
        assert all(end <= extent.offset or call.offset >= extent.end for extent in skipped), f"read at {call.offset}"
    assert job.meter.read == job.data_bytes


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.tuples(st.integers(1, 3 * CHUNK), st.sampled_from(ExtentKind)), max_size=8),
    compress=st.sampled_from(CODECS),
    max_run=st.sampled_from([1, 2, 4096]),
)
def test_any_layout_comes_back_and_adds_up(send: Send, parts: list[tuple[int, ExtentKind]], compress: str, max_run: int) -> None:
    extents: list[Extent] = []
    content = bytearray()
    wanted = bytearray()
    for length, kind in parts:
        extents.append(Extent(len(content), length, kind))
        piece = bytes(length) if kind is HOLE else random.Random(length).randbytes(length)
        content += piece
        wanted += piece if kind is DATA else bytes(length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_plan, "MAX_RUN", max_run)
        sent = send(MappedDisk(bytes(content), extents), compress)
        assert sent.restored(fill=0x5A) == wanted
    job = sent.job
    assert job.data_bytes + job.zero_bytes + job.free_bytes == len(content)
    assert job.free_bytes == sum(length for length, kind in parts if kind is FREE)
    if not any(kind is HOLE for _, kind in parts):
        assert job.zero_bytes == 0


@pytest.mark.parametrize("compress", CODECS)
def test_runs_of_zeros_longer_than_one_run_may_be_come_back(send: Send, monkeypatch: pytest.MonkeyPatch, compress: str) -> None:
    monkeypatch.setattr(chunk_plan, "MAX_RUN", 8)
    content = b"a" + bytes(50 * CHUNK) + b"z"
    hole = Extent(CHUNK, 49 * CHUNK, HOLE)
    for disk in (MemoryDisk(content), MappedDisk(content, [hole])):
        sent = send(disk, compress)
        assert sent.restored(fill=1) == content
        assert [sent.job.table.digest(index) == chunk_digest(bytes(CHUNK)) for index in range(51)] == [False, *[True] * 49, False]


@pytest.mark.parametrize("compress", CODECS)
def test_an_empty_disk_reads_nothing_and_stores_little(send: Send, compress: str) -> None:
    disk = RecordingDisk(MappedDisk(bytes(100 * CHUNK), [Extent(0, 100 * CHUNK, HOLE)]))
    sent = send(disk, compress)
    assert disk.of("read_into") == ()
    assert sent.path.stat().st_blocks * 512 < CHUNK


def test_a_raw_file_has_holes_where_the_disk_has_zeros(send: Send) -> None:
    sent = send(MemoryDisk(b"x" * CHUNK + bytes(62 * CHUNK) + b"y" * CHUNK), "none")
    assert sent.path.stat().st_size == 64 * CHUNK
    assert sent.path.stat().st_blocks * 512 <= 3 * CHUNK


@pytest.mark.parametrize("compress", CODECS)
@pytest.mark.parametrize("kind", ["error", "short"])
def test_a_read_error_fails_the_disk_and_names_the_place(send: Send, compress: str, kind: Any) -> None:
    disk = FaultyDisk(MemoryDisk(mixed(9 * CHUNK)), Fault(on="read", kind=kind, offset=5 * CHUNK + 7))
    with pytest.raises(StorageError, match=f"disk 0: cannot read it at offset {5 * CHUNK}") as caught:
        send(disk, compress)
    assert caught.value.offset == 5 * CHUNK


def test_a_disk_that_shrinks_fails(send: Send) -> None:
    disk = FaultyDisk(MemoryDisk(mixed(9 * CHUNK)))
    disk.shrink(8 * CHUNK + 1)
    with pytest.raises(StorageError, match="the disk ends at byte"):
        send(disk, "zstd:1")


def test_a_disk_is_not_sent_when_its_snapshot_turns_out_invalid(send: Send) -> None:
    def invalid() -> None:
        raise SnapshotError("it overflowed")

    with pytest.raises(SnapshotError, match="it overflowed"):
        send(MemoryDisk(mixed(CHUNK)), "zstd:1", when_sent=invalid)


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("compress", CODECS)
def test_every_damaged_chunk_is_found_at_its_own_offset(send: Send, compress: str, decode: bool) -> None:
    """Also inside a run of zeros, of which all frames are compared at once."""
    content = random.Random(3).randbytes(4 * CHUNK) + bytes(6 * CHUNK) + random.Random(4).randbytes(CHUNK + 5)
    sent = send(MemoryDisk(content), compress)
    offsets = sent.job.table.stored_offsets()
    for chunk in (1, 5, 7, 9, 11):
        sent.flip(offsets[chunk] + 4)
    job = sent.read_back(decode=decode)
    assert job.error is None
    assert sorted(finding.offset or 0 for finding in job.findings) == [chunk * CHUNK for chunk in (1, 5, 7, 9, 11)]


class DigestingExport:
    """An export whose data files are digested where they lie: nothing but the ends of the file is handed out."""

    def __init__(self, export: ExportReader, digest: Callable[[bytes], object] = chunk_digest) -> None:
        self.location, self._export, self._digest = export.location, export, digest
        self.read_bytes = 0

    def names(self) -> Sequence[str]:
        return self._export.names()

    def open(self, name: str, /) -> Any:
        return _DigestedFile(self, self._export.open(name), self._digest)


class _DigestedFile:
    def __init__(self, export: DigestingExport, file: Any, digest: Callable[[bytes], object]) -> None:
        self._export, self._file, self._digest, self.size = export, file, digest, file.size

    def read_into(self, offset: int, buffer: memoryview, /) -> None:
        self._file.read_into(offset, buffer)
        self._export.read_bytes += len(buffer)

    def range_digest(self, offset: int, length: int, /) -> Any:
        found = bytearray(length)
        self._file.read_into(offset, memoryview(found))
        return self._digest(bytes(found))

    def close(self) -> None:
        self._file.close()


@pytest.mark.parametrize("compress", CODECS)
def test_what_is_digested_where_it_lies_is_checked_without_being_read(send: Send, compress: str) -> None:
    content = random.Random(3).randbytes(20 * CHUNK + 5)
    sent = send(MemoryDisk(content), compress)
    there = DigestingExport(sent.reader)
    sent.reader = there
    job = sent.read_back(decode=False)
    assert (job.error, job.findings, job.meter.done) == (None, [], len(content))
    assert there.read_bytes < 2 * CHUNK, "the chunk table and the trailer"
    for chunk in (0, 7, 20):
        sent.flip(sent.job.table.stored_offsets()[chunk] + 4)
    assert sorted(finding.offset or 0 for finding in sent.read_back(decode=False).findings) == [0, 7 * CHUNK, 20 * CHUNK]
    before = there.read_bytes
    assert len(sent.read_back(decode=True).findings) == 3
    assert there.read_bytes - before > 18 * CHUNK, "what is to be decoded is read"


@pytest.mark.parametrize("answer", [None, b"", bytes(16), bytearray(32), OSError(errno.EIO, "no")])
@pytest.mark.parametrize("compress", ["none", "zstd:1"])
def test_what_is_no_digest_is_not_taken_for_one(send: Send, compress: str, answer: Any) -> None:
    sent = send(MemoryDisk(random.Random(3).randbytes(2 * CHUNK)), compress)

    def digest(content: bytes) -> object:
        if isinstance(answer, OSError):
            raise answer
        return answer

    sent.reader = DigestingExport(sent.reader, digest)
    assert len(sent.read_back(decode=False).findings) == 2
    assert isinstance(sent.read_back(decode=False, stop_at_first=True).error, StorageError)


@pytest.mark.parametrize("compress", CODECS)
def test_a_restore_stops_at_damage_and_names_the_offset(send: Send, compress: str) -> None:
    sent = send(MemoryDisk(mixed(20 * CHUNK)), compress)
    sent.flip(sent.job.table.stored_offsets()[13] + 6)
    target = MemoryDisk(20 * CHUNK)
    job = sent.read_back(target, stop_at_first=True)
    assert isinstance(job.error, CorruptError)
    assert job.error.offset == 13 * CHUNK
    assert not job.finished
    assert target.flushes == 0
    assert target.content()[13 * CHUNK : 14 * CHUNK] == bytes(CHUNK), "a damaged chunk is not written"


def test_of_a_rotten_disk_some_findings_are_enough(send: Send) -> None:
    sent = send(MemoryDisk(random.Random(5).randbytes((MAX_FINDINGS + 20) * CHUNK)), "none")
    for index in range(MAX_FINDINGS + 20):
        sent.flip(index * CHUNK)
    assert len(sent.read_back().findings) == MAX_FINDINGS


def test_a_hole_in_a_raw_file_where_data_was_is_found(send: Send, requires: Callable[..., None]) -> None:
    requires("fallocate")
    sent = send(MemoryDisk(random.Random(6).randbytes(8 * CHUNK)), "none")
    subprocess.run(["fallocate", "-p", "-o", str(2 * CHUNK), "-l", str(3 * CHUNK), str(sent.path)], check=True)
    assert sorted(finding.offset or 0 for finding in sent.read_back().findings) == [2 * CHUNK, 3 * CHUNK, 4 * CHUNK]


@pytest.mark.parametrize("level", [-131072, -100, 19])
def test_zeros_stored_in_another_way_are_still_zeros(send: Send, level: int) -> None:
    """Another version of the compressor makes other frames of zeros; they are decoded then."""
    assert codec_for("zstd", level).zero_frame(CHUNK) != codec_for("zstd", 1).zero_frame(CHUNK)
    content = b"x" * CHUNK + bytes(9 * CHUNK)
    sent = send(MemoryDisk(content), f"zstd:{level}")
    sent.record = replace(sent.record, compress="zstd:1")
    assert sent.restored(fill=7) == content
    sent.flip(sent.job.table.stored_offsets()[4] + 4)
    assert [finding.offset for finding in sent.read_back().findings] == [4 * CHUNK]


@pytest.mark.parametrize("compress", CODECS)
def test_a_target_that_fails_fails_the_restore_and_names_the_place(send: Send, compress: str) -> None:
    sent = send(MemoryDisk(mixed(9 * CHUNK, seed=1)), compress)
    for on in ("write", "flush"):
        target = FaultyDisk(MemoryDisk(9 * CHUNK, fill=1), Fault(on=on, error=errno.ENOSPC))  # type: ignore[arg-type]
        job = sent.read_back(target, stop_at_first=True)
        assert "No space left" in str(job.error)
        assert not job.finished


# --- raw dumps without digests ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", [0, 0x77])
@pytest.mark.parametrize("size", [0, 1, 511, (4 << 20) - 1, 4 << 20, (9 << 20) + 3])
def test_a_raw_dump_is_copied_and_its_holes_are_zeros(tmp_path: Path, size: int, fill: int) -> None:
    path = tmp_path / "dump"
    with open(path, "wb") as file:
        file.truncate(size)
        file.write(random.Random(size).randbytes(min(size, 100_000)))
        if size > (8 << 20):
            file.seek(size - 10)
            file.write(b"the end...")
    with open(path, "rb") as file:

        class Dump:
            def __init__(self) -> None:
                self.size = size

            def fileno(self) -> int:
                return file.fileno()

            def read_into(self, offset: int, buffer: memoryview) -> object:
                raise AssertionError("there is a descriptor")

        target = RecordingDisk(MemoryDisk(size, fill=fill))
        job = RawRestoreJob(Source(Dump(), "dump"), target, Meter(0, "restore", size, lambda event: None))
        run_jobs([job], PathOptions(threads=2, read_ahead=0), token=CancellationToken(), stall_timeout_s=60)
    assert job.error is None
    assert target.content() == path.read_bytes()
    assert len(target.of("flush")) == 1
    assert bool(target.of("zero")) == (fill != 0 and size > (8 << 20)), "holes are zeroed only where old bytes may be"


def test_a_raw_dump_onto_a_failing_target_fails() -> None:
    target = FaultyDisk(MemoryDisk(100), Fault(on="write", error=errno.EIO))
    job = RawRestoreJob(Source(MemoryDisk(b"x" * 100), "dump"), target, Meter(0, "restore", 100, lambda event: None))
    run_jobs([job], PathOptions(threads=1, read_ahead=0), token=CancellationToken(), stall_timeout_s=60)
    assert isinstance(job.error, StorageError)
    assert "offset 0" in str(job.error)


def test_the_adaptive_level_is_told_of_every_chunk_that_is_encoded_and_of_no_other() -> None:
    told: list[tuple[float, float]] = []

    class Watched(AdaptiveLevel):
        def observe(self, work_s: float, idle_s: float) -> None:
            told.append((work_s, idle_s))
            super().observe(work_s, idle_s)

    codec = ZstdCodec(1, Watched(1))
    disk = MemoryDisk(os.urandom(3 * CHUNK) + bytes(2 * CHUNK) + os.urandom(CHUNK))
    job = SendJob(
        Source(disk, "disk 0"),
        Discards(),
        chunk_size=CHUNK,
        codec=codec,
        meter=Meter(0, "send", disk.size, lambda event: None),
        window=8,
        when_sent=lambda: None,
    )
    run_jobs([job], PathOptions(threads=2), token=CancellationToken(), stall_timeout_s=60)
    assert job.error is None
    assert len(told) == 4
    assert all(work_s > 0 and idle_s >= 0 for work_s, idle_s in told)


class Discards:
    """A file of an export that keeps nothing."""

    name = "disk-0"

    def append(self, parts: Sequence[Any], /) -> None: ...
    def write(self, offset: int, buffer: Any, /) -> None: ...
    def set_size(self, size: int, /) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...
