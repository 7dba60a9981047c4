"""The threads that carry chunks of several disks through all steps, within one budget.

There are more threads than may compute at once: those that are over read ahead or write, so that no CPU waits for a disk, and
every chunk still stays with one thread.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Protocol

import diskhaul_native as native

from ..cancellation import CancellationToken
from ..errors import DiskhaulError, OperationFailedError, StorageError
from ..options import DEFAULT_CHUNK_SIZE, PathOptions
from .throttle import Throttle

MAX_DEFAULT_THREADS = 8
CHUNKS_PER_WORKER = 4
"""How many chunks' worth of memory a thread needs: the chunk, what it is encoded to, and pieces that wait for their turn."""
CANCEL_GRACE_S = 30.0
"""How long a cancelled run waits for threads that hang in a read or write before it goes on without them."""
_POLL_S = 0.1  # how soon a cancellation is noticed; the end of the work is notified, not polled


def thread_count(asked: int) -> int:
    """How many chunks to compute on at once: `asked`, or, where it is 0, one more than there are usable CPUs, at most eight.

    The one more keeps every CPU busy while a turn is handed over, which takes a CPU that has gone to sleep a while to notice.
    """
    return asked if asked > 0 else min(len(os.sched_getaffinity(0)) + 1, MAX_DEFAULT_THREADS)


def computing_count(options: PathOptions, chunk_size: int, encoder_memory: int = 0) -> int:
    """How many threads may compute at once: what `thread_count` says, as far as `options.memory` goes; one in any case.

    `encoder_memory` is what each of them takes for that, besides its chunks, in bytes.
    """
    affordable = options.memory // (CHUNKS_PER_WORKER * chunk_size + encoder_memory)
    return max(1, min(thread_count(options.threads), affordable))


def worker_count(options: PathOptions, chunk_size: int, encoder_memory: int = 0) -> int:
    """How many threads to start: those that compute, and those that read ahead as far as `options.memory` goes then."""
    computing = computing_count(options, chunk_size, encoder_memory)
    left = options.memory - computing * (CHUNKS_PER_WORKER * chunk_size + encoder_memory)
    return computing + max(0, min(options.read_ahead, left // (CHUNKS_PER_WORKER * chunk_size)))


class Turns:
    """Lets `count` threads in at once: ``with turns as idle_s:``, which is for how many seconds nobody had taken the turn.

    Made of a queue, which hands over in C: a semaphore is slow Python. Turns go round with the time when they were given back.
    """

    def __init__(self, count: int = 1) -> None:
        self._free: SimpleQueue[float] = SimpleQueue()
        for _ in range(count):
            self._free.put(time.perf_counter())

    def __enter__(self) -> float:
        since = self._free.get()
        return time.perf_counter() - since

    def __exit__(self, *_: object) -> None:
        self._free.put(time.perf_counter())


def _no_limit(length: int) -> None:
    """Let `length` bytes through."""


class Scratch:
    """What one worker thread keeps from chunk to chunk: an aligned buffer and its encoders or decoders.

    Attributes:
        computing: held (``with``) while the CPU is used in earnest; as many threads at once as `PathOptions.threads` says.
        admit: to be called with the number of bytes before they are read; returns when the bandwidth limit allows it.
    """

    def __init__(self, computing: Turns | None = None, admit: Callable[[int], object] = _no_limit) -> None:
        self.computing = computing or Turns()
        self.admit = admit
        self._buffer: memoryview | None = None
        self._kept: dict[object, Any] = {}

    def buffer(self, length: int) -> memoryview:
        """A page-aligned buffer of exactly `length` bytes, valid until the next call."""
        if self._buffer is None or len(self._buffer) < length:
            self._buffer = native.aligned_buffer(length)
        return self._buffer[:length]

    def kept(self, key: object, make: Callable[[], Any]) -> Any:
        """What `make` gave when first asked for `key` on this thread."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


class DiskJob(Protocol):
    """The work on one disk. It may have a number `moved`: while that changes, a call of it that takes long is no stall."""

    error: BaseException | None

    def take(self) -> Any | None:
        """The next task, or None when there are no more. Called by one thread at a time."""
        ...

    def run(self, task: Any, scratch: Scratch, /) -> None:
        """Do one task. Called by several threads at once."""
        ...

    def finish(self) -> None:
        """Called once, when all tasks have been done."""
        ...

    def fail(self) -> None:
        """Called when a task failed: wake whoever waits inside `run`."""
        ...


class _State:
    """One job and how far the pool is with it."""

    def __init__(self, job: DiskJob) -> None:
        self.job = job
        self.running = 0
        self.taking = False  # a thread is in `take`
        self.exhausted = False
        self.ended = False
        self.when_free: Callable[[], object] | None = None  # what is left to do once no thread is in it any more


class _Pool:
    def __init__(self, jobs: Sequence[DiskJob], options: PathOptions, *, computing: int, stop_together: bool) -> None:
        self.states = [_State(job) for job in jobs]
        self._options = options
        self._computing = Turns(computing)
        self._throttle = Throttle(options.bwlimit) if options.bwlimit else None
        self.changed = threading.Condition()
        self.stop_together = stop_together
        self.stopping = False
        self.progress = 0
        self.working = 0
        self._turn = 0

    def work(self) -> None:
        scratch = Scratch(self._computing, self._admit if self._throttle is not None else _no_limit)
        try:
            _lower_priority(self._options)
        except OSError as error:
            for state in self.states:
                self._failed(state, OperationFailedError(f"the priority of a thread cannot be lowered: {error.strerror}"))
        while (claimed := self._claim()) is not None:
            state, task = claimed
            try:
                state.job.run(task, scratch)
            except BaseException as error:  # also what plugins raise to end the process: it ends the disk
                self._failed(state, error)
            self._release(state)
        with self.changed:
            self.working -= 1
            self.changed.notify_all()

    def _admit(self, length: int) -> None:
        """Wait until `length` more bytes may be moved, or the run is stopped."""
        assert self._throttle is not None
        until = time.monotonic() + self._throttle.delay_s(length)
        with self.changed:
            while not self.stopping and (left_s := until - time.monotonic()) > 0:
                self.progress += 1  # to wait on purpose is no stall
                self.changed.wait(min(left_s, 1.0))

    def _claim(self) -> tuple[_State, Any] | None:
        """The next task of the next disk in turn; None when no disk has one."""
        while (state := self._next_disk()) is not None:
            task = None
            try:
                task = state.job.take()  # without the lock: it asks the disk for its extents, which may hang
            except BaseException as error:
                self._failed(state, error)
            with self.changed:
                state.taking = False
                state.exhausted = task is None
                self.changed.notify_all()
            if task is not None:
                return state, task
            self._release(state)
        return None

    def _next_disk(self) -> _State | None:
        """The next disk in turn, marked as being asked for a task; None when all tasks have been given out."""
        with self.changed:
            while not self.stopping:
                having = [s for s in self.states if not s.exhausted and s.job.error is None]
                if not having:
                    return None
                ready = [s for s in having if not s.taking]
                if ready:
                    self._turn += 1
                    state = ready[self._turn % len(ready)]
                    state.running += 1
                    state.taking = True
                    return state
                self.changed.wait()
            return None

    def _release(self, state: _State) -> None:
        """One thread less on this disk; the last one finishes it."""
        with self.changed:
            self.progress += 1
            state.running -= 1
            over = state.exhausted or state.job.error is not None or self.stopping
            if state.running or not over or state.ended:
                self.changed.notify_all()
                self._free(state)
                return
            state.ended = True
            state.running += 1  # `finish` counts as running: nobody may close the disk under it
        try:
            if state.job.error is None and not self.stopping:
                state.job.finish()
        except BaseException as error:
            self._failed(state, error)
        with self.changed:
            state.running -= 1
            self.progress += 1
            self.changed.notify_all()
            self._free(state)

    def _free(self, state: _State) -> None:
        """Do what was put off until no thread is in this disk. Called with the lock."""
        if state.running == 0 and state.when_free is not None:
            state.when_free()
            state.when_free = None

    def moved(self) -> list[int]:
        """What tells, besides ended calls, that something moves. Nothing does once the run is stopped: then calls have to end."""
        return [] if self.stopping else [getattr(state.job, "moved", 0) for state in self.states]

    def when_free(self, number: int, action: Callable[[], object]) -> None:
        """Call `action` as soon as no thread is in disk `number`; at once if none is."""
        with self.changed:
            self.states[number].when_free = action
            self._free(self.states[number])

    def _failed(self, state: _State, error: BaseException) -> None:
        with self.changed:
            state.job.error = state.job.error or error
            self.stopping = self.stopping or self.stop_together
            failed = [s for s in self.states if s is state or self.stop_together]
            self.changed.notify_all()
        for each in failed:
            each.job.fail()

    def stop(self) -> None:
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
        for state in self.states:
            state.job.fail()


def run_jobs(
    jobs: Sequence[DiskJob],
    options: PathOptions,
    *,
    token: CancellationToken,
    stall_timeout_s: float,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    encoder_memory: int = 0,
    stop_together: bool = False,
) -> None:
    """Work on all `jobs` at once with the threads, memory, bandwidth and priorities of `options`; return when all have ended.

    `chunk_size` is that of the largest chunks of the jobs, `encoder_memory` what an encoder takes besides, both in bytes.

    A job that failed has its `error` set; this raises only for what concerns all of them. With `stop_together` the first
    failure stops the other jobs as well, without an error of their own.

    Raises:
        InterruptedRunError: `token` was cancelled; every thread has let go of its chunk.
        PipelineStalledError: nothing moved for `stall_timeout_s` seconds. Threads that still hang are abandoned, so the files
            of the jobs in its `stuck` must not be closed (their numbers could be given to other files).
    """
    computing = computing_count(options, chunk_size, encoder_memory)
    pool = _Pool(jobs, options, computing=computing, stop_together=stop_together)
    _start_threads(pool, worker_count(options, chunk_size, encoder_memory))
    since, patience_s, cancelling = time.monotonic(), stall_timeout_s, False
    seen: tuple[int, list[int]] = (-1, [])
    with pool.changed:
        while pool.working:
            pool.changed.wait(_POLL_S)
            if (now := (pool.progress, pool.moved())) != seen:
                seen, since = now, time.monotonic()
            if token.cancelled and not cancelling:
                cancelling = True
                pool.stop()
                patience_s, since = min(stall_timeout_s, CANCEL_GRACE_S), time.monotonic()
            if pool.working and time.monotonic() - since > patience_s:
                pool.stop()
                stuck = [number for number, state in enumerate(pool.states) if state.running]
                first = next((state.job.error for state in pool.states if state.job.error is not None), None)
                before = f", after another disk had failed: {first}" if first is not None else ""
                raise PipelineStalledError(
                    f"nothing moved for {patience_s:g} s{before}", stuck=stuck, when_free=pool.when_free
                ) from first
    token.raise_if_cancelled()


def _start_threads(pool: _Pool, count: int) -> None:
    """Start `count` threads, or as many as the system allows; one is enough."""
    for number in range(count):
        with pool.changed:
            pool.working += 1
        try:
            threading.Thread(target=pool.work, name=f"diskhaul-chunk-{number}", daemon=True).start()
        except RuntimeError as error:  # a limit on threads
            with pool.changed:
                pool.working -= 1
            if number == 0:
                raise OperationFailedError(f"no thread could be started: {error}") from error
            return


def _lower_priority(options: PathOptions) -> None:
    """Give the calling thread the priorities of `options`; on Linux they belong to threads, not processes."""
    if options.nice:
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + options.nice))
    if options.io_priority != "normal":
        native.set_io_priority(options.io_priority)


class PipelineStalledError(OperationFailedError):
    """Reading or writing hangs. Threads inside were abandoned.

    Attributes:
        stuck: indexes of the jobs that they are in.
        when_free: ``when_free(index, action)`` calls `action` once no thread is in that job any more, which may be never;
            a file that a thread hangs in must not be closed before, since its number could be given to another file.
    """

    def __init__(self, message: str, *, stuck: Sequence[int], when_free: Callable[[int, Callable[[], object]], None]) -> None:
        super().__init__(message)
        self.stuck = tuple(stuck)
        self.when_free = when_free


def as_diskhaul_error(error: BaseException, label: str) -> DiskhaulError:
    """`error` itself if it is ours, else a `StorageError` that says what a plugin or the system did to `label`."""
    if isinstance(error, StorageError) and error.path == label and label not in str(error):
        # A plugin's error names its disk in `path`, and the message is what people see.
        named = StorageError(f"{label}: {error}", path=label, offset=error.offset)
        named.__cause__ = error
        return named
    if isinstance(error, DiskhaulError):
        return error
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    wrapped = StorageError(f"{label}: {type(error).__name__}: {reason}", path=label)
    wrapped.__cause__ = error
    return wrapped
