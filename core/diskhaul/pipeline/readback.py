"""Store to nothing, or to a disk: every stored chunk is read, checked, and restored where a writer is given."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ..api import DiskWriter, ExportReader
from ..errors import StorageError
from ..formats.chunk_table import STORED_DIGEST_LENGTH, ChunkTable, chunk_digest, stored_digest, zero_digest
from ..formats.codec import Codec, Decoder, codec_for, max_stored_length, parse_compress
from ..formats.corruption import CorruptError, first_difference
from ..formats.manifest import DiskRecord
from ..options import DirectIO
from .chunk_plan import chunk_runs, longest_run
from .meter import Meter
from .source import Source
from .workers import Scratch

_NOT_EXPORTED = "the chunk is not what was exported (digest mismatch)"
_NOT_WRITTEN = "the stored bytes are not those that were written (digest mismatch)"
MAX_FINDINGS = 100
"""Corrupt places remembered for one disk; a rotten disk does not need a million lines."""


@dataclass(frozen=True, slots=True)
class StoredDisk:
    """A disk of an export, opened and found to have the right shape; its chunks are not yet checked."""

    record: DiskRecord
    table: ChunkTable
    source: Source
    codec: Codec


def open_stored_disk(export: ExportReader, record: DiskRecord, *, direct_io: DirectIO = "auto") -> StoredDisk:
    """Open disk `record` of `export` and check all that can be checked without reading its chunks.

    Raises:
        CorruptError: sizes, digests of the chunk table, or the trailer are not what the manifest says.
        StorageError: a file is missing, is not a regular file, or cannot be read.
    """
    compression = parse_compress(record.compress)
    codec = codec_for(compression.name, compression.level)
    table = read_chunk_table(export, record, codec)
    reader = export.open(record.file)
    source = Source(reader, f"{export.location}/{record.file}", direct_io=direct_io)
    try:
        _check_shape(source, record, table, codec)
    except BaseException:
        source.close()
        raise
    return StoredDisk(record, table, source, codec)


def read_chunk_table(export: ExportReader, record: DiskRecord, codec: Codec) -> ChunkTable:
    """Read and check the chunk table of a disk; raises as `open_stored_disk`."""
    expected = ChunkTable.stored_size(record.chunk_count, codec.encoded)
    reader = export.open(record.chunks_file)
    source = Source(reader, f"{export.location}/{record.chunks_file}")
    try:
        if source.size != expected:
            problem = f"{record.chunks_file} has {source.size} bytes instead of {expected}"
            raise CorruptError(problem, file=record.chunks_file)
        data = bytearray(expected)
        source.fill(0, memoryview(data))
    finally:
        source.close()
    try:
        return ChunkTable.from_bytes(
            data,
            disk_size=record.size,
            chunk_size=record.chunk_size,
            encoded=codec.encoded,
            root_digest=record.root_digest,
            stored_root=record.stored_root,
        )
    except CorruptError as corrupt:
        problem = f"{record.chunks_file}: {corrupt.problem}"
        raise CorruptError(problem, corrupt.offset, file=record.chunks_file, file_offset=corrupt.file_offset) from corrupt


def _check_shape(source: Source, record: DiskRecord, table: ChunkTable, codec: Codec) -> None:
    if source.size != record.stored_size:
        raise CorruptError(f"{record.file} has {source.size} bytes instead of {record.stored_size}")
    if not codec.encoded:
        if source.size != record.size:
            raise CorruptError(f"{record.file} has {source.size} bytes for a disk of {record.size}")
        return
    end = table.stored_offsets()[-1]
    trailer = b"".join(codec.trailer(table.stored_lengths(), table.chunk_lengths()))
    if end + len(trailer) != source.size:
        raise CorruptError(f"{record.file}: its {table.count} frames end at {end + len(trailer)}, the file at {source.size}")
    found = bytearray(len(trailer))
    source.fill(end, memoryview(found))
    if found != trailer:
        problem = f"{record.file}: the seek table at its end does not match its frames"
        raise CorruptError(problem, file_offset=end + first_difference(found, trailer))


@dataclass(frozen=True, slots=True)
class _Run:
    """Chunks read back together: one data chunk, or several zero ones."""

    first: int
    count: int
    zero: bool


class ReadBackJob:
    """Reads one stored disk back.

    Args:
        disk: what to read.
        writer: where to restore it, or None to check only.
        decode: decode every frame and check the chunk's digest; False checks the stored bytes only (needs no writer).
        stop_at_first: fail at the first corrupt chunk instead of collecting them.
        checked: a byte for each chunk, not 0 for those that need not be read; may be empty.

    Attributes:
        findings: corrupt places, with offsets in the disk.
        error: what made the job fail, or None.
        finished: whether all of the disk has been read.
        meter: how many bytes were read of the store, and written to the writer.
    """

    def __init__(
        self,
        disk: StoredDisk,
        *,
        writer: DiskWriter | None,
        decode: bool,
        stop_at_first: bool,
        meter: Meter,
        checked: Sequence[int] = (),
    ) -> None:
        self.error: BaseException | None = None
        self.findings: list[CorruptError] = []
        self.finished = False
        self.meter = meter
        self._disk, self._writer, self._decode, self._stop_at_first = disk, writer, decode, stop_at_first
        self._offsets = disk.table.stored_offsets() if disk.codec.encoded else None
        runs = self._encoded_runs() if disk.codec.encoded else self._raw_runs()
        self._runs = self._unchecked(runs, checked) if checked else runs
        self._finding = threading.Lock()

    # --- which chunks -----------------------------------------------------------------------------------------------

    def _encoded_runs(self) -> Iterator[_Run]:
        table, chunk_size = self._disk.table, self._disk.record.chunk_size
        zero, whole = zero_digest(chunk_size), self._disk.record.size // chunk_size
        longest = longest_run(len(self._disk.codec.zero_frame(chunk_size))) if whole else 0
        index = 0
        while index < table.count:
            count = table.run_length(index, zero, min(longest, whole - index)) if index < whole else 0
            yield _Run(index, count or 1, zero=count > 0)
            index += count or 1

    def _raw_runs(self) -> Iterator[_Run]:
        record = self._disk.record
        for run in chunk_runs(self._disk.source.extents(), record.size, record.chunk_size):
            yield _Run(run.first, run.count, zero=not run.segments)

    def _unchecked(self, runs: Iterator[_Run], checked: Sequence[int]) -> Iterator[_Run]:
        for run in runs:
            if run.count > 1 or not checked[run.first]:
                yield run
            else:
                self.meter.add(done=self._disk.table.chunk_length(run.first))

    # --- the work ---------------------------------------------------------------------------------------------------

    def take(self) -> _Run | None:
        return next(self._runs, None)

    def run(self, task: _Run, scratch: Scratch, /) -> None:
        if task.zero and self._is_run_of_zeros(task, scratch):
            return
        # One by one, also where a run that should be zero is not quite what it should be: each chunk has its own offset.
        for index in range(task.first, task.first + task.count):
            self._one_chunk(index, scratch)

    def _one_chunk(self, index: int, scratch: Scratch) -> None:
        offset = index * self._disk.record.chunk_size
        try:
            if self._offsets is None:
                self._raw_chunk(index, scratch)
            else:
                self._encoded_chunk(index, scratch)
        except CorruptError as corrupt:
            located = CorruptError(corrupt.problem, offset, file=self._disk.record.file)
            if self._stop_at_first:
                raise located from corrupt
            self._found(located)
        except StorageError as error:
            if self._stop_at_first:
                raise
            # A place of the store that cannot be read: the rest may be readable, and is worth knowing about.
            self._found(CorruptError(str(error), offset, file=self._disk.record.file))

    def _found(self, corrupt: CorruptError) -> None:
        with self._finding:
            if len(self.findings) < MAX_FINDINGS:
                self.findings.append(corrupt)

    def _raw_chunk(self, index: int, scratch: Scratch) -> None:
        length = self._disk.table.chunk_length(index)
        scratch.admit(length)
        if not self._decode:
            digest = self._disk.source.range_digest(index * self._disk.record.chunk_size, length)
            if digest is not None:
                if digest != self._disk.table.digest(index):
                    raise CorruptError(_NOT_EXPORTED)
                self.meter.add(done=length, read=length)
                return
        view = scratch.buffer(length)
        self._disk.source.fill(index * self._disk.record.chunk_size, view)
        with scratch.computing:
            self._check(index, view)
        self.meter.add(done=length, read=length, written=self._restore(index, view))

    def _encoded_chunk(self, index: int, scratch: Scratch) -> None:
        assert self._offsets is not None
        table = self._disk.table
        length = table.chunk_length(index)
        stored = table.stored_length(index)
        if not 0 < stored <= max_stored_length(length):
            raise CorruptError(f"the stored frame has {stored} bytes for a chunk of {length}")
        scratch.admit(stored)
        digest = None if self._decode else self._disk.source.range_digest(self._offsets[index], stored)
        chunk: memoryview | None = None
        if digest is not None:
            if digest[:STORED_DIGEST_LENGTH] != table.stored_digest(index):
                raise CorruptError(_NOT_WRITTEN)
        else:
            frame = self._disk.source.fetch(self._offsets[index], stored, scratch)
            with scratch.computing:
                if stored_digest(frame) != table.stored_digest(index):
                    raise CorruptError(_NOT_WRITTEN)
                if self._decode:
                    decoder: Decoder = scratch.kept((self._disk.codec.name, "decoder"), self._disk.codec.decoder)
                    chunk = scratch.kept("decoded", Scratch).buffer(length)  # the other one holds the frame
                    decoder.decode_into(frame, chunk)
                    self._check(index, chunk)
        written = self._restore(index, chunk) if chunk is not None else 0
        self.meter.add(done=length, read=stored, written=written)

    def _check(self, index: int, chunk: memoryview) -> None:
        if chunk_digest(chunk) != self._disk.table.digest(index):
            raise CorruptError(_NOT_EXPORTED)

    def _restore(self, index: int, chunk: memoryview) -> int:
        """Write a chunk that is right, where there is a writer; return how many bytes were written."""
        if self._writer is None:
            return 0
        offset = index * self._disk.record.chunk_size
        if self._disk.table.digest(index) == zero_digest(len(chunk)):
            self._zero(offset, len(chunk))
            return 0
        count = self._write(self._writer.write, offset, chunk)
        return count if isinstance(count, int) else len(chunk)

    def _is_run_of_zeros(self, task: _Run, scratch: Scratch) -> bool:
        """Deal with a run that should be zero at once; False, and nothing done, where its chunks have to be looked at singly."""
        table, chunk_size = self._disk.table, self._disk.record.chunk_size
        indexes = range(task.first, task.first + task.count)
        length = (task.count - 1) * chunk_size + table.chunk_length(indexes[-1])
        read = 0
        if self._offsets is None:  # a hole
            last = indexes[-1]
            if table.digest(last) != zero_digest(table.chunk_length(last)):
                return False
            if task.count > 1 and table.run_length(task.first, zero_digest(chunk_size), task.count - 1) < task.count - 1:
                return False
        else:
            frame = self._disk.codec.zero_frame(chunk_size)
            read = self._offsets[indexes[-1] + 1] - self._offsets[task.first]
            if read != len(frame) * task.count:  # made by another version of the compressor
                return False
            if not table.is_run(task.first, task.count, stored_digest(frame)):
                return False
            view = scratch.buffer(read)
            try:
                self._disk.source.fill(self._offsets[task.first], view)
            except StorageError:
                return False  # chunk by chunk it will show which one
            if view != frame * task.count:
                return False
        self._zero(task.first * chunk_size, length)
        self.meter.add(done=length, read=read)
        return True

    def _zero(self, offset: int, length: int) -> None:
        if self._writer is not None and not self._writer.reads_zero:
            self._write(self._writer.zero, offset, length)

    def _write(self, method: Callable[..., object], offset: int, what: memoryview | int) -> object:
        try:
            return method(offset, what)
        except StorageError:
            raise
        except Exception as error:  # a plugin's writer may raise anything
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            label = f"disk {self._disk.record.index}"
            raise StorageError(f"{label}: cannot write it at offset {offset}: {reason}", path=label, offset=offset) from error

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.flush()
        self.meter.finish()
        self.finished = True

    def fail(self) -> None:
        """Nobody waits inside `run`."""
        self.meter.silence()
