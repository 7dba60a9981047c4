"""Disk to store: every chunk is read, scanned, digested, compressed, stored, and where that can be had early, read back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import diskhaul_native as native

from ..api import Buffer, MovingStoreFile, StoreFile
from ..formats.chunk_table import STORED_DIGEST_LENGTH, ChunkTable, chunk_digest, stored_digest, zero_digest
from ..formats.codec import Codec
from .chunk_plan import MAX_RUN, ChunkRun, chunk_runs, longest_run
from .early_check import EarlyCheck, StoredFrame
from .meter import Meter
from .ordered import OrderedAppender
from .sharing import Shared, Sharing
from .source import Source
from .workers import Scratch

_READ_ALONG = 64 << 10
"""What is free in shorter pieces than this is read with its neighbours, and made zero in memory. On a disk with a free block
after each block in use, reading around them took more than twice as long as reading all."""


@dataclass(frozen=True, slots=True)
class _Task:
    number: int
    run: ChunkRun


class SendJob:
    """Sends one disk into one file of an export.

    A raw file that is to be checked early (`check_early`) must have the disk's size already.

    After `finish`, `table` holds the digests and the byte counts below are final. Of a disk whose blocks are shared
    (``sharing.shared`` is `Shared.PROVEN`) nothing has been read: `table` is empty, and `data_bytes` is all that is no hole.

    Attributes:
        error: what made it fail, or None.
        sent: the file is complete and durable, and the disk is no longer needed.
        seconds: from the making of the meter to that moment.
        checked: a byte for each chunk: 1 when what is stored for it has been read back from the medium already.
        data_bytes, zero_bytes, free_bytes: the disk by what it holds; together its size.
        stored_bytes: size of the file written (of a raw one, holes included).
        sharing: what became of `share`.
    """

    def __init__(
        self,
        source: Source,
        file: StoreFile,
        *,
        chunk_size: int,
        codec: Codec,
        meter: Meter,
        window: int,
        when_sent: Callable[[], object],
        check_early: bool = False,
        share: Callable[[Source, StoreFile], Sharing] | None = None,
    ) -> None:
        self.error: BaseException | None = None
        self.sent = False
        self.seconds = 0.0
        self.table = ChunkTable(source.size, chunk_size, codec.encoded)
        self.sharing = Sharing(Shared.NO)
        self.data_bytes = self.zero_bytes = self.free_bytes = self.stored_bytes = 0
        self.meter = meter
        self._source, self._file, self._codec = source, file, codec
        self._moving = file if isinstance(file, MovingStoreFile) else None
        self._chunk_size = chunk_size
        self._when_sent, self._share = when_sent, share
        self._early = EarlyCheck(file, self.table, source.label) if check_early else None
        self._chunks_of: dict[int, int] = {}  # the chunk that a piece is the frame of, until it has been appended
        self._appender = OrderedAppender(file, window, self._appended)
        self._tasks = self._numbered()
        self._counting = threading.Lock()

    def _numbered(self) -> Iterator[_Task]:
        if self._share is not None:
            self.sharing = self._share(self._source, self._file)
        if self.sharing.shared is Shared.PROVEN:
            self._count_shared()
            return
        several = self._codec.encoded and self._source.size >= self._chunk_size
        max_run = longest_run(len(self._codec.zero_frame(self._chunk_size))) if several else MAX_RUN
        runs = chunk_runs(self._source.extents(least=_READ_ALONG), self._source.size, self._chunk_size, max_run)
        for number, run in enumerate(runs):
            yield _Task(number, run)

    def _count_shared(self) -> None:
        data, size = self.sharing.data_bytes, self._source.size
        self._count(data=data, zero=size - data, free=0)
        self.meter.add(done=size)

    @property
    def moved(self) -> int:
        """What the file says of its own progress; while that grows the disk is not stalled."""
        if self._moving is None:
            return 0
        try:
            return self._moving.moved
        except Exception:  # then its calls have to end in time
            return 0

    @property
    def checked(self) -> Sequence[int]:
        return self._early.checked if self._early is not None else ()

    def take(self) -> _Task | Sequence[StoredFrame] | None:
        """Stored frames to check, where there are enough, or else the next run of chunks to send."""
        frames = self._early.take() if self._early is not None else ()
        return frames or next(self._tasks, None)

    def run(self, task: _Task | Sequence[StoredFrame], scratch: Scratch, /) -> None:
        if not isinstance(task, _Task):
            self._check(task, scratch)
        elif task.run.segments:
            self._send_data(task, scratch)
        else:
            self._send_zeros(task)

    def _check(self, frames: Sequence[StoredFrame], scratch: Scratch) -> None:
        assert self._early is not None
        scratch.admit(sum(frame.length for frame in frames))
        self._early.check(frames, scratch)

    def _appended(self, number: int, offset: int, length: int) -> None:
        index = self._chunks_of.pop(number, None)
        if self._early is not None and index is not None:
            self._early.stored(StoredFrame(index, offset, length))

    def _send_data(self, task: _Task, scratch: Scratch) -> None:
        index = task.run.first
        offset = index * self._chunk_size
        length = self.table.chunk_length(index)
        view = scratch.buffer(length)
        read = sum(segment_length for _, segment_length in task.run.segments)
        scratch.admit(read)
        # What the page cache has is copied right before the work on it, and still in the CPU's own caches then; what has to come
        # from the disk is waited for while other threads compute.
        cached = self._source.is_cached(offset, length)
        free = task.run.free
        if not cached:
            free += self._fill(task.run, offset, view)
        with scratch.computing as idle_s:
            begun = time.perf_counter()
            if cached:
                free += self._fill(task.run, offset, view)
            stored, digest = self._encode(index, view, scratch)
            if stored is not None and self._codec.adaptation is not None:
                self._codec.adaptation.observe(time.perf_counter() - begun, idle_s)
        if stored is None:
            self._store_zero(task)
            written = 0
        elif self._codec.encoded:
            self._chunks_of[task.number] = index
            self._appender.put(task.number, (stored,), digest)
            written = len(stored)
        else:
            written = self._write_raw(index, view, scratch)
        data = read - (free - task.run.free) if stored is not None else 0
        self._count(data=data, zero=length - free - data, free=free)
        self.meter.add(done=length, read=read, written=written)

    def _fill(self, run: ChunkRun, offset: int, view: memoryview) -> int:
        """Read a chunk; what no segment covers is zeros, and so is what is free in them. Returns how many bytes that are."""
        if run.segments != ((offset, len(view)),):
            view[:] = bytes(len(view))
        return sum(
            self._source.fill_used(position, view[position - offset : position - offset + length])
            for position, length in run.segments
        )

    def _encode(self, index: int, view: memoryview, scratch: Scratch) -> tuple[Buffer | None, bytes]:
        """Digest a chunk; return what is to be stored for it, None when all of it is zeros, and the BLAKE3 of that."""
        if native.is_zero(view):
            return None, b""
        digest = chunk_digest(view)
        if not self._codec.encoded:
            self.table.set(index, digest)
            return view, digest
        frame: Buffer = scratch.kept(self, self._codec.encoder).encode(view)
        digest_of_frame = chunk_digest(frame)
        self.table.set(index, digest, len(frame), digest_of_frame[:STORED_DIGEST_LENGTH])
        return frame, digest_of_frame

    def _write_raw(self, index: int, view: memoryview, scratch: Scratch) -> int:
        count: object = 0
        if self.sharing.shared is Shared.NO:
            count = self._file.write(index * self._chunk_size, view)
        if self._early is not None:
            scratch.admit(len(view))
            self._early.check_raw(index, view, scratch)
        return count if isinstance(count, int) else len(view)

    def _send_zeros(self, task: _Task) -> None:
        length = self._store_zero(task)
        self._count(data=0, zero=length - task.run.free, free=task.run.free)
        self.meter.add(done=length)

    def _store_zero(self, task: _Task) -> int:
        """Store a run of zero chunks; return how many bytes of the disk it covers."""
        first, count = task.run.first, task.run.count
        last_length = self.table.chunk_length(first + count - 1)
        pieces = [(first, count - 1, self._chunk_size), (first + count - 1, 1, last_length)]
        if last_length == self._chunk_size:
            pieces = [(first, count, self._chunk_size)]
        parts = []
        for start, number, length in pieces:
            if not number:
                continue
            if self._codec.encoded:
                frame = self._codec.zero_frame(length)
                self.table.set_run(start, number, zero_digest(length), len(frame), stored_digest(frame))
                parts.append(frame * number)
            else:
                self.table.set_run(start, number, zero_digest(length), 0, b"")
        if self._codec.encoded:
            self._appender.put(task.number, parts)
        return (count - 1) * self._chunk_size + last_length

    def _count(self, *, data: int, zero: int, free: int) -> None:
        with self._counting:
            self.data_bytes += data
            self.zero_bytes += zero
            self.free_bytes += free

    def finish(self) -> None:
        """Make the file complete and durable, then say that the disk is no longer needed."""
        if self._codec.encoded:
            trailer = list(self._codec.trailer(self.table.stored_lengths(), self.table.chunk_lengths()))
            if trailer:
                self._file.append(trailer)
            self.stored_bytes = self._appender.written + sum(len(part) for part in trailer)
        else:
            if self.sharing.shared is Shared.NO:  # else it has its size, and setting that again would unshare the last block
                self._file.set_size(self._source.size)  # zeros at the end have not been written
            self.stored_bytes = self._source.size
        self._file.finish()
        self._when_sent()
        self.sent = True
        self.seconds = self.meter.finish()

    def fail(self) -> None:
        self.meter.silence()
        self._appender.fail()
