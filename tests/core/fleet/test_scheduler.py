"""Within limits, in order, past what has to wait, and at a cost that does not depend on how many wait."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from diskhaul.fleet.scheduler import LOOK_AHEAD, Job, Order, Scheduler, Start
from diskhaul.fleet.targets import Targets

NODES = ("alpha", "beta", "gamma", "delta")


def scheduler(targets: Targets, *, order: Order = "largest", per_source: int = 2, parallel: int = 8, **more: Any) -> Scheduler:
    return Scheduler(order=order, per_source=per_source, parallel=parallel, targets=targets, **more)


def all_that_can_start(of: Scheduler) -> list[Start]:
    started = []
    while (start := of.next()) is not None:
        started.append(start)
    return started


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("choice", ["round-robin", "most-free"])
def test_limits_are_never_exceeded_and_used_to_the_full_while_enough_waits(choice: Any, seed: int) -> None:
    chance = random.Random(seed)
    per_source, per_target, parallel = chance.randint(1, 4), chance.randint(1, 4), chance.randint(1, 12)
    targets = Targets(NODES, per_target, choice)
    under_test = scheduler(targets, per_source=per_source, parallel=parallel)
    for number in range(300):
        under_test.add(Job(f"vm{number}", NODES[number % 4], size=chance.randrange(1000)))
    running: list[Start] = []
    ended = 0
    while ended < 300:
        running += all_that_can_start(under_test)
        sources, chosen = Counter(start.job.source for start in running), Counter(start.target for start in running)
        assert len(running) <= parallel
        assert max(sources.values()) <= per_source
        assert max(chosen.values()) <= per_target
        assert all(start.target != start.job.source for start in running)
        if under_test.pending > 250:  # every node has some that wait
            # One less may be the best there is: the last open place can be on the node that all that may start lie on.
            assert len(running) >= min(parallel, 4 * per_source, 4 * per_target) - (per_source == per_target) * per_target
        under_test.ended(running.pop(chance.randrange(len(running))))
        ended += 1
    assert not running
    assert under_test.pending == 0


class CountedSize(int):
    """A size that counts how often it is compared."""

    compared = 0

    def __neg__(self) -> CountedSize:
        return CountedSize(-int(self))

    def __lt__(self, other: int) -> bool:
        CountedSize.compared += 1
        return int(self) < int(other)

    def __eq__(self, other: object) -> bool:
        CountedSize.compared += 1
        return int(self) == other

    __hash__ = int.__hash__


def comparisons_per_export(number: int) -> float:
    chance = random.Random(7)
    under_test = scheduler(Targets(NODES, 2, "round-robin"))
    CountedSize.compared = 0
    for index in range(number):
        under_test.add(Job(f"vm{index}", NODES[index % 4], size=CountedSize(chance.randrange(1 << 40))))
    running: list[Start] = []
    while under_test.pending or running:
        running += all_that_can_start(under_test)
        under_test.ended(running.pop(0))
    return CountedSize.compared / number


def test_what_an_export_costs_grows_no_faster_than_the_logarithm_of_how_many_wait() -> None:
    few, many = comparisons_per_export(500), comparisons_per_export(32_000)  # 64 times as many: 6 levels more in a heap
    assert few > 1
    assert many - few < 6 * 6  # a scan of all that waits would make it tens of thousands


def test_a_saturated_source_does_not_hold_up_smaller_ones_of_others() -> None:
    under_test = scheduler(Targets(("alpha", "beta"), 9, "round-robin"), per_source=1)
    for number in range(5):
        under_test.add(Job(f"large{number}", "gamma", size=100 - number))
    under_test.add(Job("small", "delta", size=1))
    assert [start.job.instance for start in all_that_can_start(under_test)] == ["large0", "small"]


def test_an_instance_that_only_its_own_node_could_take_now_does_not_hold_up_others() -> None:
    targets = Targets(("alpha", "beta"), 1, "round-robin")
    under_test = scheduler(targets)
    under_test.add(Job("first", "gamma", size=9))
    under_test.add(Job("second", "beta", size=8))  # alpha is taken by the first: beta alone is open
    under_test.add(Job("third", "gamma", size=7))
    starts = {start.job.instance: start.target for start in all_that_can_start(under_test)}
    assert starts == {"first": "alpha", "third": "beta"}


@pytest.mark.parametrize(
    ("order", "expected"), [("largest", ["c", "a", "b"]), ("smallest", ["b", "a", "c"]), ("name", ["a", "b", "c"])]
)
def test_they_start_in_the_order_that_was_asked_for(order: Order, expected: list[str]) -> None:
    under_test = scheduler(Targets(("beta",), 9, "fixed"), order=order, per_source=9)
    for name, size in (("a", 2), ("b", 1), ("c", 3)):
        under_test.add(Job(name, "alpha", size=size))
    assert [start.job.instance for start in all_that_can_start(under_test)] == expected


def test_unknown_sizes_are_measured_once_each_and_only_some_ahead() -> None:
    measured: list[str] = []

    def measure(name: str) -> int:
        measured.append(name)
        return int(name)

    under_test = scheduler(Targets(("beta",), 1, "fixed"), per_source=1, measure=measure)
    for number in range(1000):
        under_test.add(Job(str(number), "alpha"))
    first = under_test.next()
    assert first is not None
    assert int(first.job.instance) == LOOK_AHEAD - 1
    assert len(measured) <= LOOK_AHEAD + 1
    under_test.ended(first)
    while (start := under_test.next()) is not None:
        under_test.ended(start)
    assert sorted(measured, key=int) == [str(number) for number in range(1000)]


def test_one_that_is_tried_again_has_no_more_of_the_others_measured() -> None:
    measured: list[str] = []

    def measure(name: str) -> int:
        measured.append(name)
        return 1

    under_test = scheduler(Targets(("beta",), 1, "fixed"), per_source=1, measure=measure)
    for number in range(1000):
        under_test.add(Job(f"{number:04}", "alpha"))
    for _ in range(10):
        start = under_test.next()
        assert start is not None
        assert start.job.instance == "0000"
        under_test.ended(start)
        under_test.add(start.job)
    assert len(measured) <= LOOK_AHEAD + 1


def test_nothing_is_measured_where_the_order_does_not_need_it() -> None:
    def measure(name: str) -> int:
        raise AssertionError(name)

    under_test = scheduler(Targets(("beta",), 1, "fixed"), order="name", measure=measure)
    under_test.add(Job("a", "alpha"))
    assert under_test.next() is not None
