"""Counting, and telling about it now and then."""

from __future__ import annotations

import threading

from diskhaul.events import DiskProgress
from diskhaul.pipeline.meter import Meter


def test_everything_is_counted_also_from_several_threads() -> None:
    told: list[DiskProgress] = []
    meter = Meter(2, "send", 8000, told.append)

    def work() -> None:
        for _ in range(1000):
            meter.add(done=2, read=1, written=3)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (meter.done, meter.read, meter.written) == (8000, 4000, 12000)
    assert meter.finish() >= 0
    last = told[-1]
    assert (last.disk, last.activity, last.total) == (2, "send", 8000)
    assert (last.done, last.read, last.written, last.finished) == (8000, 4000, 12000, True)


def test_the_first_step_and_the_end_are_told_and_not_every_step_between() -> None:
    told: list[DiskProgress] = []
    meter = Meter(0, "restore", 100_000, told.append)
    for _ in range(100_000):
        meter.add(done=1)
    meter.finish()
    assert told[0].finished is False
    assert [event.finished for event in told].count(True) == 1
    assert len(told) < 10_000
    assert [event.done for event in told] == sorted(event.done for event in told)


def test_of_a_disk_that_has_failed_nothing_is_told_any_more() -> None:
    told: list[DiskProgress] = []
    meter = Meter(0, "send", 100, told.append)
    meter.silence()
    meter.add(done=10)
    meter.finish()
    assert told == []
    assert meter.done == 10
