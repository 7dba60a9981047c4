"""What the source gives and the target takes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path

import diskhaul_native as native

from ...cancellation import CancellationToken
from ...errors import StorageError
from ...options import DirectIO
from ...pipeline.source import Source
from ..tuning.sample import Unit
from .rates import Work, together

SCRATCH_BYTES = 256 << 20
"""The most that lies below the target at once."""
_CACHED_BYTES = 128 << 20
_DIRECT_STAGE = 4 << 20
SMALLEST_SCRATCH = 2 * _DIRECT_STAGE


def source_works(
    opened: Callable[[DirectIO], Source], units: Sequence[Unit], chunk_size: int, threads: int, token: CancellationToken
) -> list[Work]:
    """Reading the source: from the medium, by one thread and by `threads`, and from the page cache.

    Args:
        opened: opens the source with a given `DirectIO`; closed by whoever gave it.
    """
    positions = [
        (position, min(chunk_size, offset + length - position))
        for unit in units
        for offset, length in unit.fragments
        for position in range(offset, offset + length, chunk_size)
    ]
    works: list[Work] = []
    descriptor = _descriptor(opened("never"))
    try:
        direct = opened("always")
        direct.fill(positions[0][0], native.aligned_buffer(chunk_size)[: positions[0][1]])
        note = "past the page cache (direct I/O)" if descriptor >= 0 else "through its storage's own reader"
    except StorageError:
        direct, note = opened("never"), "no direct I/O here: through the page cache, which was asked to forget it first"
    counts = (1, threads) if threads > 1 else (1,)
    works += [_reading("source read", direct, positions, chunk_size, n, token, note, forget=descriptor) for n in counts]
    if descriptor >= 0:
        few = positions[: max(1, _CACHED_BYTES // chunk_size)]
        cached = opened("never")
        works += [_reading("source read cached", cached, few, chunk_size, n, token, "", warm=descriptor) for n in counts]
    return works


def _reading(
    name: str,
    source: Source,
    positions: Sequence[tuple[int, int]],
    chunk_size: int,
    threads: int,
    token: CancellationToken,
    note: str,
    *,
    forget: int = -1,
    warm: int = -1,
) -> Work:
    """Read one position after the other, again and again.

    Args:
        forget: descriptor of what the page cache is asked to forget before each round; -1 for none.
        warm: of what is read once before, so that the cache has it; -1 for none.
    """
    buffers = [native.aligned_buffer(chunk_size) for _ in range(threads)]
    endless = cycle(positions)
    taking = threading.Lock()

    def step(number: int) -> int:
        with taking:
            offset, length = next(endless)
        source.fill(offset, buffers[number][:length])
        return length

    timed = together(step, threads, token)

    def run(seconds: float) -> float:
        if forget >= 0:
            native.drop_cache(forget)
        if warm >= 0:
            for offset, length in positions:
                source.fill(offset, buffers[0][:length])
            work.note = _cached_note(warm, positions)
        return timed(seconds)

    work = Work(name=name, threads=threads, run=run, note=note)
    return work


def _cached_note(descriptor: int, positions: Sequence[tuple[int, int]]) -> str:
    total = sum(length for _, length in positions)
    try:
        cached = sum(native.cached_bytes(descriptor, offset, length) for offset, length in positions)
    except OSError:
        return f"{total >> 20} MiB that had just been read; whether they were cached, the kernel does not tell"
    return f"{100 * cached // max(total, 1)} % of {total >> 20} MiB were in the page cache"


class TargetFile:
    """A file of at most `size` bytes below the target that is written, and read again. Use as a context manager."""

    def __init__(self, path: Path, size: int, chunks: Sequence[memoryview]) -> None:
        self._path, self._size = path, size
        self._stages = _stages(chunks)
        self._file = self._direct = -1
        self._written = 0
        self.note = ""

    def __enter__(self) -> TargetFile:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if native.direct_alignment(self._file):
                self._direct = native.open_direct(self._file, writable=True)
        except OSError:
            pass  # it is written through the page cache then
        self.note = "past the page cache (direct I/O)" if self._direct >= 0 else "through the page cache"
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self._direct, self._file):
            if descriptor >= 0:
                os.close(descriptor)

    def works(self, token: CancellationToken) -> list[Work]:
        """Writing it with fsync, from the beginning in each round; and reading back what the last round has written."""
        reading = Work(name="target read", threads=1, run=lambda seconds: self._read(seconds, token), note=self.note)
        writing = Work(name="target write", threads=1, run=lambda seconds: self._write(seconds, token))
        writing.note = f"{self.note}, fsync included, at most {self._size >> 20} MiB at once"
        return [writing, reading]

    def _write(self, seconds: float, token: CancellationToken) -> float:
        os.ftruncate(self._file, 0)  # an export's file is new, too: its blocks have to be found
        descriptor = self._direct if self._direct >= 0 else self._file
        self._written = 0
        began = time.perf_counter()
        for stage in cycle(self._stages):
            native.write_from(descriptor, stage, self._written)
            self._written += len(stage)
            if time.perf_counter() - began >= seconds or self._written + len(stage) > self._size or token.cancelled:
                break
        native.fsync(self._file)
        return self._written / (time.perf_counter() - began)

    def _read(self, seconds: float, token: CancellationToken) -> float:
        descriptor = self._direct if self._direct >= 0 else self._file
        if self._direct < 0:
            native.drop_cache(self._file)
        buffer = native.aligned_buffer(_DIRECT_STAGE)
        places = cycle(range(0, self._written, _DIRECT_STAGE))

        def step(_: int) -> int:
            native.read_into(descriptor, buffer, next(places))
            return len(buffer)

        return together(step, 1, token)(seconds)


def _stages(chunks: Sequence[memoryview]) -> list[memoryview]:
    """The bytes of `chunks`, in pieces that direct I/O takes: real data, since zeros are too easy for some devices."""
    stages = []
    for chunk in chunks[:8]:
        stage = native.aligned_buffer(_DIRECT_STAGE)
        piece = chunk[:_DIRECT_STAGE]
        for start in range(0, _DIRECT_STAGE, len(piece)):
            part = piece[: _DIRECT_STAGE - start]
            stage[start : start + len(part)] = part
        stages.append(stage)
    return stages


def _descriptor(source: Source) -> int:
    fileno = getattr(source.reader, "fileno", None)
    try:
        return int(fileno()) if callable(fileno) else -1
    except OSError:
        return -1
