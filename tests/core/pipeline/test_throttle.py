"""The bandwidth limit: when bytes may pass."""

from __future__ import annotations

import threading

import pytest

from diskhaul.cancellation import CancellationToken
from diskhaul.errors import InterruptedRunError
from diskhaul.options import PathOptions
from diskhaul.pipeline.throttle import Throttle
from diskhaul.pipeline.workers import Scratch, run_jobs


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_first_bytes_pass_at_once_and_the_next_once_those_would_have_gone_through() -> None:
    clock = Clock()
    throttle = Throttle(1000, clock)
    assert throttle.delay_s(500) == 0.0
    assert throttle.delay_s(2000) == 0.5
    assert throttle.delay_s(1) == 2.5


def test_time_that_nobody_used_is_not_saved_up() -> None:
    clock = Clock()
    throttle = Throttle(1000, clock)
    throttle.delay_s(1000)
    clock.now += 3600.0
    assert throttle.delay_s(1000) == 0.0
    assert throttle.delay_s(1000) == 1.0


def test_several_threads_together_get_no_more_than_the_rate() -> None:
    throttle = Throttle(1000, Clock())
    delays: list[float] = []
    threads = [threading.Thread(target=lambda: delays.append(throttle.delay_s(100))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [round(delay, 6) for delay in sorted(delays)] == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


class Limited:
    """A disk of two tasks, each of which moves `length` bytes."""

    def __init__(self, length: int) -> None:
        self.error: BaseException | None = None
        self.length = length
        self.begun = threading.Event()
        self._left = 2

    def take(self) -> int | None:
        self._left -= 1
        return None if self._left < 0 else self._left

    def run(self, task: int, scratch: Scratch, /) -> None:
        scratch.admit(self.length)
        self.begun.set()

    def finish(self) -> None: ...
    def fail(self) -> None: ...


def test_waiting_for_the_limit_is_no_stall_and_ends_when_the_run_is_cancelled() -> None:
    job, token = Limited(1 << 40), CancellationToken()  # the second task would wait for twelve days
    options = PathOptions(threads=1, read_ahead=0, bwlimit=1 << 20)

    def cancel_later() -> None:
        assert job.begun.wait(30)
        assert not token.wait(1.5)  # longer than it takes to call a run stalled
        token.cancel("enough")

    canceller = threading.Thread(target=cancel_later)
    canceller.start()
    try:
        with pytest.raises(InterruptedRunError, match="enough"):
            run_jobs([job], options, token=token, stall_timeout_s=1.2)
    finally:
        canceller.join()
    assert job.error is None
