"""Measuring what this machine can do, and what an export would run into here. The measuring itself is `benching`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path

from ..errors import RefusedError, StorageError
from ..feedback import Feedback
from ..formats.codec import parse_compress
from ..machine import machine_facts, same_device
from ..model import Disk
from ..option_checks import option_problems
from ..options import DirectIO, ExportOptions
from ..pipeline.source import Source
from ..pipeline.workers import thread_count, worker_count
from ..profile import PROFILE_OPTION_NAMES
from ..records import BenchResult, Measurement
from .base import Operation, RunContext
from .benching.data import made_up_sample, sample_of
from .benching.disks import SCRATCH_BYTES, SMALLEST_SCRATCH, TargetFile, source_works
from .benching.limits import path_limits
from .benching.processor import best_kernel, processor_works
from .benching.rates import Work, measure
from .plugin_answers import failure_lines
from .scratch import free_bytes, scratch_directory, target_problems
from .tuning.request import MAX_TIME_S, MIN_TIME_S, expand_compressions
from .tuning.sample import Unit, units_of

DEFAULT_COMPRESSIONS = ("zstd:-5", "zstd:-1", "zstd:1", "zstd:3", "zstd:6", "zstd:9", "gzip:1")
_ROOM_SHARE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRequest:
    """What is to be measured; `diskhaul.bench` describes each."""

    source: Disk | None = None
    target: Path | None = None
    options: ExportOptions
    compressions: tuple[str, ...] = DEFAULT_COMPRESSIONS
    time_limit_s: float


class BenchOperation(Operation[BenchResult]):
    """Measures. Takes no locks: the source is only read, and what is written is a scratch file of its own.

    Raises (from `run`):
        RefusedError: nothing was touched.
        StorageError: the source cannot be read, or the target not be written.
        InterruptedRunError: cancelled; nothing is left.
    """

    name = "bench"

    def __init__(self, context: RunContext, request: BenchRequest) -> None:
        super().__init__(context)
        self._begun = time.monotonic()
        self._request = request
        self._units: list[Unit] = []
        self._room = 0

    # --- before anything is touched ---------------------------------------------------------------------------------

    def check_arguments(self) -> None:
        request = self._request
        problems = option_problems(request.options)
        if not MIN_TIME_S <= request.time_limit_s <= MAX_TIME_S:
            problems.append(f"time_limit_s: must be from {MIN_TIME_S:g} to {MAX_TIME_S:g} seconds, not {request.time_limit_s!r}")
        try:
            expand_compressions(request.compressions)
        except RefusedError as error:
            problems += error.problems
        if problems:
            raise RefusedError(problems)

    def check_prerequisites(self) -> None:
        problems = [*self._source_problems(), *self._target_problems()]
        if problems:
            raise RefusedError(problems)

    def _source_problems(self) -> list[str]:
        disk = self._request.source
        if disk is None:
            return []
        try:
            problems = list(self.host.storage(disk.storage).check(disk))
            if not problems:
                source = self._open(disk, "never")
                try:
                    self._units = list(units_of(0, source.extents(), self._request.options.chunk_size))
                finally:
                    source.close()
                if not self._units:
                    problems.append(f"{disk.label} holds no data: there is nothing to measure")
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            problems = failure_lines(disk.label, error)
        return problems

    def _target_problems(self) -> list[str]:
        target, disk = self._request.target, self._request.source
        if target is None:
            return []
        problems = target_problems(target, [] if disk is None else [disk])
        if not problems:
            self._room = int(free_bytes(target) * _ROOM_SHARE)
            if self._room < SMALLEST_SCRATCH:
                problems.append(f"target: {target} has no room")
        return problems

    def _open(self, disk: Disk, direct_io: DirectIO) -> Source:
        return Source(self.host.storage(disk.storage).open(disk), disk.label, direct_io=direct_io)

    # --- the work ---------------------------------------------------------------------------------------------------

    def execute(self, feedback: Feedback) -> BenchResult:
        request, options = self._request, self._request.options
        notes: list[str] = []
        threads = thread_count(options.threads)
        readers = worker_count(options, options.chunk_size)
        with ExitStack() as stack:
            chunks = self._sample(stack, notes)
            works: list[Work] = []
            if request.source is not None:
                works += source_works(self._opener(stack, request.source), self._units, options.chunk_size, readers, self.token)
            if request.target is not None:
                works += self._target_file(stack, request.target, chunks).works(self.token)
            compressions = dict.fromkeys((*expand_compressions(request.compressions), str(parse_compress(options.compress))))
            works += processor_works(chunks, list(compressions), threads, self.token)
            with feedback.stage("measure", f"{len(works)} rates, 3 rounds"):
                measure(works, self._begun + request.time_limit_s, self.token, lambda number: None)
        self.token.raise_if_cancelled()
        return self._result(works, notes, threads, readers)

    def _opener(self, stack: ExitStack, disk: Disk) -> Callable[[DirectIO], Source]:
        """Opens the source; it is closed with `stack`."""

        def opened(direct_io: DirectIO) -> Source:
            source = self._open(disk, direct_io)
            stack.callback(source.close)
            return source

        return opened

    def _target_file(self, stack: ExitStack, target: Path, chunks: Sequence[memoryview]) -> TargetFile:
        """A scratch file below the target; it goes with `stack`."""
        try:
            scratch = stack.enter_context(scratch_directory(target))
            return stack.enter_context(TargetFile(scratch / "file", min(SCRATCH_BYTES, self._room), chunks))
        except OSError as error:
            raise StorageError(f"target: {target}: {error.strerror or error}", path=str(target)) from error

    def _sample(self, stack: ExitStack, notes: list[str]) -> Sequence[memoryview]:
        disk, chunk_size = self._request.source, self._request.options.chunk_size
        if disk is not None:
            chunks = sample_of(self._opener(stack, disk)("auto"), self._units, chunk_size)
            if chunks:
                return chunks
            notes.append("the source holds zeros only: digest and compression are measured on made-up data")
        else:
            notes.append("there is no source: digest and compression are measured on made-up data")
        return made_up_sample(chunk_size)

    def _result(self, works: Sequence[Work], notes: list[str], threads: int, readers: int) -> BenchResult:
        request, options = self._request, self._request.options
        measurements = tuple(work.measurement() for work in works)
        measured: dict[tuple[str, int], Measurement] = {(each.name, each.threads): each for each in measurements}
        path = request.source.path if request.source is not None else None
        one_device = path is not None and request.target is not None and same_device(path, request.target)
        limits = path_limits(measured, options, threads=threads, readers=readers, kernel=best_kernel(), one_device=one_device)
        complete = request.source is not None and request.target is not None
        if not complete:
            notes.append("source and target were not both measured: an export may run into what is not listed")
        notes.append("caches of the disk itself, or of a host below this machine, cannot be told apart from the disk")
        fewest = min(len(work.rounds) for work in works)
        if fewest < 3:
            notes.append(f"the time was enough for {fewest} round(s) only: give more for reliable figures")
        return BenchResult(
            run_id=self.context.run_id,
            source=str(path or (request.source.label if request.source is not None else "")),
            target=str(request.target or ""),
            machine=machine_facts(source=path, target=request.target),
            measurements=measurements,
            limits=limits,
            predicted_rate=limits[0].rate if complete else 0.0,
            options={field.name: getattr(options, field.name) for field in fields(options) if field.name in PROFILE_OPTION_NAMES},
            notes=tuple(notes),
            seconds=time.monotonic() - self._begun,
        )
