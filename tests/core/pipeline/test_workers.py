"""The threads that work on several disks at once, and what they do when something goes wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from diskhaul.cancellation import CancellationToken
from diskhaul.errors import InterruptedRunError, OperationFailedError, SnapshotError, StorageError
from diskhaul.options import PathOptions
from diskhaul.pipeline import workers
from diskhaul.pipeline.workers import (
    PipelineStalledError,
    Scratch,
    Turns,
    as_diskhaul_error,
    computing_count,
    run_jobs,
    thread_count,
    worker_count,
)

END_S = 30.0
NEVER_S = 300.0


class Job:
    """`count` tasks; `on` says what happens at a task's number, at "take", "finish" or "fail"."""

    def __init__(self, count: int, **on: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self.done: list[int] = []
        self.finishes = self.fails = 0
        self.open = True
        self._count, self._on = count, on
        self._given = 0
        self._lock = threading.Lock()
        self._taking = threading.Lock()

    def take(self) -> int | None:
        assert self._taking.acquire(blocking=False), "two threads take from one disk at once"
        try:
            if self._given == self._count:
                return None
            self._given += 1
            self._on.get(f"take{self._given - 1}", bool)()
            return self._given - 1
        finally:
            self._taking.release()

    def run(self, task: int, scratch: Scratch, /) -> None:
        assert isinstance(scratch, Scratch)
        assert not self.finishes, "finished before it was done"
        self._on.get(f"task{task}", bool)()
        with self._lock:
            self.done.append(task)

    def finish(self) -> None:
        self.finishes += 1
        self._on.get("finish", bool)()

    def fail(self) -> None:
        with self._lock:
            self.fails += 1
        self._on.get("fail", bool)()


def go(*jobs: Job, threads: int = 3, stall_s: float = NEVER_S, token: CancellationToken | None = None, **more: Any) -> None:
    run_jobs(
        jobs, PathOptions(threads=threads, read_ahead=0), token=token or CancellationToken(), stall_timeout_s=stall_s, **more
    )


def raising(error: BaseException) -> Callable[[], object]:
    def happen() -> None:
        raise error

    return happen


def threads_of_the_pool() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("diskhaul-chunk")]


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Any:
    yield
    for thread in threads_of_the_pool():
        thread.join(END_S)
    assert threads_of_the_pool() == []


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_every_task_of_every_disk_is_done_once_and_each_disk_finished_once(threads: int) -> None:
    jobs = [Job(50), Job(1), Job(0), Job(23)]
    go(*jobs, threads=threads)
    assert [sorted(job.done) for job in jobs] == [list(range(50)), [0], [], list(range(23))]
    assert [job.finishes for job in jobs] == [1, 1, 1, 1]
    assert [job.error for job in jobs] == [None] * 4
    assert [job.fails for job in jobs] == [0] * 4


def test_no_disk_is_no_work() -> None:
    go()


def test_disks_take_turns() -> None:
    order: list[str] = []

    class Named(Job):
        def __init__(self, name: str, count: int) -> None:
            super().__init__(count)
            self.name = name

        def run(self, task: int, scratch: Scratch, /) -> None:
            order.append(self.name)

    go(Named("a", 30), Named("b", 30), Named("c", 30), threads=1)
    for third in range(10):
        assert Counter(order[third * 9 : third * 9 + 9]) == {"a": 3, "b": 3, "c": 3}


def test_a_failing_task_fails_its_disk_and_no_other() -> None:
    error = OSError(errno.EIO, "Input/output error")
    bad, good = Job(1000, task3=raising(error)), Job(40)
    go(bad, good)
    assert bad.error is error
    assert bad.finishes == 0
    assert bad.fails >= 1
    assert len(bad.done) < 999, "the rest of a failed disk is left"
    assert good.error is None
    assert good.finishes == 1
    assert sorted(good.done) == list(range(40))


def test_the_first_error_of_a_disk_is_kept() -> None:
    both, first_raised = threading.Barrier(2), threading.Event()
    first, second = OSError("first"), OSError("second")

    def fail_first() -> None:
        both.wait(END_S)
        raise first

    def fail_second() -> None:
        both.wait(END_S)
        assert first_raised.wait(END_S)
        raise second

    job = Job(2, task0=fail_first, task1=fail_second, fail=first_raised.set)
    go(job, threads=2)
    assert job.error is first


def test_with_stop_together_the_first_failure_ends_all_without_errors_of_theirs() -> None:
    error = OSError("bad")
    release = threading.Event()
    bad, other = Job(3, task0=raising(error)), Job(1000, task0=lambda: release.wait(END_S), fail=release.set)
    go(bad, other, threads=2, stop_together=True)
    assert bad.error is error
    assert other.error is None
    assert other.finishes == 0
    assert other.fails >= 1, "whoever waits inside a task is woken"
    assert len(other.done) < 1000


@pytest.mark.parametrize("error", [ValueError("bad extents"), StorageError("gone", path="x"), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("when", ["take0", "take2", "task1", "finish"])
def test_whatever_is_raised_wherever_ends_the_disk_and_not_the_process(when: str, error: BaseException) -> None:
    bad, good = Job(5, **{when: raising(error)}), Job(5)
    go(bad, good)
    assert bad.error is error
    assert bad.finishes == (1 if when == "finish" else 0)
    assert (good.error, good.finishes, len(good.done)) == (None, 1, 5)


def test_cancelling_stops_before_the_next_task_and_is_raised() -> None:
    token = CancellationToken()
    job = Job(100_000, task3=token.cancel)
    with pytest.raises(InterruptedRunError):
        go(job, token=token)
    assert job.finishes == 0
    assert job.fails >= 1
    assert len(job.done) < 100_000
    assert threads_of_the_pool() == [] or all(not thread.is_alive() for thread in _joined())


def _joined() -> list[threading.Thread]:
    threads = threads_of_the_pool()
    for thread in threads:
        thread.join(END_S)
    return threads


def test_cancelling_wakes_a_task_that_waits() -> None:
    token, woken = CancellationToken(), threading.Event()

    def wait_for_its_turn() -> None:
        token.cancel()
        assert woken.wait(END_S)

    job = Job(10, task0=wait_for_its_turn, fail=woken.set)
    with pytest.raises(InterruptedRunError):
        go(job, token=token, threads=1)
    assert job.done == [0], "a task that was begun is ended, and no other is begun"


def test_a_cancelled_token_lets_nothing_begin_for_long() -> None:
    token = CancellationToken()
    token.cancel("early")
    with pytest.raises(InterruptedRunError, match="early"):
        go(Job(3), token=token)


@pytest.mark.parametrize("where", ["take0", "take1", "task0", "task2", "finish"])
def test_a_disk_that_hangs_stalls_the_run_and_is_named(where: str) -> None:
    release = threading.Event()
    good, bad = Job(3), Job(3, **{where: lambda: release.wait(END_S)})
    try:
        with pytest.raises(PipelineStalledError, match=r"nothing moved for 0\.5 s") as caught:
            go(good, bad, threads=2, stall_s=0.5)
        assert caught.value.stuck == (1,)
        assert good.finishes == 1
        assert caught.value.exit_code == 3
    finally:
        release.set()
    for thread in _joined():
        assert not thread.is_alive()


class MovingJob(Job):
    """One of which something is heard all the time."""

    asked = 0

    @property
    def moved(self) -> int:
        self.asked += 1
        return self.asked


def test_a_disk_whose_file_moves_on_is_not_stalled_however_long_a_call_takes() -> None:
    class LongMovingJob(MovingJob):
        @property
        def moved(self) -> int:
            """Grows for longer than the run would wait for a disk of which nothing is heard."""
            if time.monotonic() > until:
                release.set()
            return super().moved

    release = threading.Event()
    until = time.monotonic() + 1.5
    job = LongMovingJob(1, task0=lambda: release.wait(END_S))
    go(job, stall_s=0.5)
    assert job.done == [0]
    assert job.finishes == 1


def test_a_stall_does_not_hide_an_error_that_came_first() -> None:
    release, failed = threading.Event(), threading.Event()
    error = OSError("disk full")

    def hang() -> None:
        assert failed.wait(END_S)
        release.wait(END_S)

    bad, hanging = Job(1, task0=raising(error), fail=failed.set), Job(1, task0=hang)
    try:
        with pytest.raises(PipelineStalledError, match="after another disk had failed: disk full") as caught:
            go(bad, hanging, threads=2, stall_s=0.5, stop_together=True)
        assert caught.value.__cause__ is error
        assert caught.value.stuck == (1,)
    finally:
        release.set()


@pytest.mark.parametrize(("kind", "where"), [(Job, "take0"), (Job, "task0"), (MovingJob, "task0")])
def test_a_cancelled_run_waits_only_a_little_for_a_hanging_disk_also_for_one_that_moves(
    monkeypatch: pytest.MonkeyPatch, kind: type[Job], where: str
) -> None:
    monkeypatch.setattr(workers, "CANCEL_GRACE_S", 0.5)
    token, release = CancellationToken(), threading.Event()

    def hang() -> None:
        token.cancel()
        release.wait(END_S)

    try:
        with pytest.raises(PipelineStalledError) as caught:
            go(kind(1, **{where: hang}), token=token)
        assert caught.value.stuck == (0,)
    finally:
        release.set()


def test_cancelling_after_a_failure_shortens_the_wait_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "CANCEL_GRACE_S", 0.5)
    token, release, failed = CancellationToken(), threading.Event(), threading.Event()

    def hang() -> None:
        assert failed.wait(END_S)
        token.cancel()
        release.wait(END_S)

    jobs = (Job(1, task0=raising(OSError("bad")), fail=failed.set), Job(1, task0=hang))
    try:
        with pytest.raises(PipelineStalledError):
            go(*jobs, token=token, threads=2, stop_together=True)
    finally:
        release.set()


def test_a_disk_slow_to_say_what_comes_next_does_not_hold_up_the_others() -> None:
    others_done = threading.Event()
    slow, quick = Job(2, take0=lambda: others_done.wait(END_S)), Job(20, finish=others_done.set)
    go(slow, quick, threads=2)
    assert others_done.is_set()
    assert (slow.finishes, quick.finishes) == (1, 1)


def test_fewer_threads_than_asked_for_are_enough_and_none_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    start, allowed = threading.Thread.start, [1]

    def limited(thread: threading.Thread) -> None:
        if not allowed[0]:
            raise RuntimeError("can't start new thread")
        allowed[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    job = Job(5)
    go(job, threads=4)
    assert sorted(job.done) == [0, 1, 2, 3, 4]
    with pytest.raises(OperationFailedError, match="no thread could be started"):
        go(Job(5), threads=4)


def test_each_thread_keeps_its_own_buffer_and_what_it_made() -> None:
    scratch = Scratch()
    small = scratch.buffer(100)
    small[:] = b"x" * 100
    assert scratch.buffer(50).obj is small.obj
    assert len(scratch.buffer(5000)) == 5000
    made = scratch.kept("key", object)
    assert scratch.kept("key", object) is made
    assert Scratch().kept("key", object) is not made


def test_no_more_threads_compute_at_once_than_asked_for_and_the_others_go_on_reading() -> None:
    computing, most, reading = 0, 0, threading.Barrier(4, timeout=END_S)
    lock = threading.Lock()

    class Computes(Job):
        def run(self, task: int, scratch: Scratch, /) -> None:
            nonlocal computing, most
            if task < 4:
                reading.wait()  # four threads are here at once, or this breaks
            with scratch.computing:
                with lock:
                    computing += 1
                    most = max(most, computing)
                os.sched_yield()
                with lock:
                    computing -= 1
            super().run(task, scratch)

    job = Computes(40)
    run_jobs([job], PathOptions(threads=2, read_ahead=2), token=CancellationToken(), stall_timeout_s=NEVER_S)
    assert job.error is None
    assert sorted(job.done) == list(range(40))
    assert most <= 2


@pytest.mark.parametrize(
    ("threads", "read_ahead", "memory_mib", "chunk_mib", "encoder_mib", "computing", "workers"),
    [
        (4, 2, 192, 4, 0, 4, 6),
        (4, 0, 192, 4, 0, 4, 4),
        (64, 2, 192, 4, 0, 12, 12),
        (4, 2, 192, 64, 0, 1, 1),
        (1, 0, 16, 1024, 0, 1, 1),
        (4, 2, 192, 4, 16, 4, 6),
        (4, 2, 192, 4, 30, 4, 4),
        (4, 2, 192, 4, 50, 2, 4),
        (8, 2, 192, 4, 500, 1, 1),
    ],
)
def test_there_are_as_many_workers_as_the_memory_is_for(
    threads: int, read_ahead: int, memory_mib: int, chunk_mib: int, encoder_mib: int, computing: int, workers: int
) -> None:
    options = PathOptions(threads=threads, read_ahead=read_ahead, memory=memory_mib << 20)
    assert computing_count(options, chunk_mib << 20, encoder_mib << 20) == computing
    assert worker_count(options, chunk_mib << 20, encoder_mib << 20) == workers


def test_the_workers_are_nicer_and_the_caller_is_not() -> None:
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    found: list[tuple[int, str]] = []

    def look() -> None:
        shown = subprocess.run(["ionice", "-p", str(threading.get_native_id())], capture_output=True, text=True, check=True)
        found.append((os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), shown.stdout.strip()))

    job = Job(1, task0=look)
    options = PathOptions(threads=1, read_ahead=0, nice=3, io_priority="idle")
    run_jobs([job], options, token=CancellationToken(), stall_timeout_s=NEVER_S)
    assert job.error is None
    assert found == [(min(19, own + 3), "idle")]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


def test_the_number_of_threads_is_what_was_asked_for_or_that_of_the_processors() -> None:
    assert thread_count(5) == 5
    assert 1 <= thread_count(0) <= workers.MAX_DEFAULT_THREADS


def test_errors_of_others_become_ours_and_ours_stay() -> None:
    mine = SnapshotError("gone")
    assert as_diskhaul_error(mine, "disk 0") is mine
    error = OSError(errno.EIO, "Input/output error")
    wrapped = as_diskhaul_error(error, "disk 0")
    assert str(wrapped) == "disk 0: OSError: Input/output error"
    assert wrapped.__cause__ is error
    assert str(as_diskhaul_error(SystemExit(3), "disk 0")) == "disk 0: SystemExit: 3"
    assert str(as_diskhaul_error(KeyError(), "disk 0")) == "disk 0: KeyError: KeyError"


def test_whoever_gets_a_turn_is_told_how_long_nobody_had_it() -> None:
    turns = Turns(1)
    with turns:
        begun = time.perf_counter()
    with turns as idle_s:
        assert 0 <= idle_s <= time.perf_counter() - begun
