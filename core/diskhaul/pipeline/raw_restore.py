"""A raw dump without digests (Ganeti's own exports) to a disk: nothing to check it against."""

from __future__ import annotations

from collections.abc import Iterator

from ..api import DiskWriter
from ..options import DEFAULT_CHUNK_SIZE
from .chunk_plan import ChunkRun, chunk_runs
from .meter import Meter
from .source import Source
from .workers import Scratch, as_diskhaul_error


class RawRestoreJob:
    """Copies one raw dump to a writer, holes as holes. A `workers.DiskJob`."""

    def __init__(self, source: Source, writer: DiskWriter, meter: Meter) -> None:
        self.error: BaseException | None = None
        self.meter = meter
        self._source, self._writer = source, writer
        self._runs: Iterator[ChunkRun] = chunk_runs(source.extents(), source.size, DEFAULT_CHUNK_SIZE)

    def take(self) -> ChunkRun | None:
        return next(self._runs, None)

    def run(self, task: ChunkRun, scratch: Scratch, /) -> None:
        offset = task.first * DEFAULT_CHUNK_SIZE
        length = min(task.count * DEFAULT_CHUNK_SIZE, self._source.size - offset)
        if task.segments:
            scratch.admit(length)
            view = scratch.buffer(length)
            self._source.fill(offset, view)
        try:
            if task.segments:
                self._writer.write(offset, view)
            elif not self._writer.reads_zero:
                self._writer.zero(offset, length)
        except Exception as error:  # a plugin's writer may raise anything
            raise as_diskhaul_error(error, f"{self._source.label}: its restored disk at offset {offset}") from error
        read = length if task.segments else 0
        self.meter.add(done=length, read=read, written=read)

    def finish(self) -> None:
        self._writer.flush()
        self.meter.finish()

    def fail(self) -> None:
        """Nobody waits inside `run`."""
        self.meter.silence()
