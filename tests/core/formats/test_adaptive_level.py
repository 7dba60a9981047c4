"""The adaptive level, in simulated runs: threads take chunks from a disk, encode them, and hand them in order to a target."""

from __future__ import annotations

import heapq
import random
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskhaul.formats.adaptive_level import CEILING, AdaptiveLevel

LEVELS = range(1, CEILING + 1)
WORK_S = dict(zip(LEVELS, (0.011, 0.013, 0.018, 0.021, 0.028, 0.040, 0.050, 0.062, 0.074), strict=True))
"""A chunk of 4 MiB, digests included. Like the ratios, in the proportions measured on a disk full of programs and their data."""
RATIO = dict(zip(LEVELS, (0.339, 0.319, 0.306, 0.304, 0.297, 0.291, 0.288, 0.287, 0.280), strict=True))

Seconds = Callable[[int], float]
Share = Callable[[random.Random], float]


def as_all(chance: random.Random) -> float:
    return 1.0


@dataclass
class Run:
    """A run of `chunks` chunks, event by event, as the data path does it.

    Each of the threads reads a chunk, waits for its turn to compute, encodes it, and hands it over; whoever brings the piece that
    is due writes it and those behind it. `turns` of them may compute at once.

    Args:
        read_s: by chunk number; the disk reads one chunk after the other.
        write_s: by chunk number, for a chunk that does not compress; the target takes one chunk after the other.
        share: of the work in the table that a chunk takes.
        window: how many chunks a thread may be ahead of what has been written.
    """

    adaptive: AdaptiveLevel | int
    read_s: Seconds
    write_s: Seconds
    chunks: int = 3000
    turns: int = 2
    read_ahead: int = 2
    window: int = 8
    share: Share = as_all
    levels: list[int] = field(default_factory=list)  # by chunk
    seconds: float = 0.0
    stored: float = 0.0  # in chunks that do not compress

    def __post_init__(self) -> None:
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = count()
        self._chance = random.Random(7)
        self._disk_free_at = 0.0
        self._free_turns = deque([0.0] * self.turns)  # since when
        self._for_a_turn: deque[int] = deque()
        self._encoded: set[int] = set()
        self._for_the_window: dict[int, list[int]] = {}
        self._due = 0
        self._writing = False
        for _ in range(self.turns + self.read_ahead):
            self._at(0.0, self._take)
        while self._events:
            self.seconds, _, event = heapq.heappop(self._events)
            event(self.seconds)
        assert self._due == self.chunks

    def _at(self, time: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), event))

    def _take(self, now: float) -> None:
        if len(self.levels) < self.chunks:
            index = len(self.levels)
            self.levels.append(0)
            self._disk_free_at = max(now, self._disk_free_at) + self.read_s(index)
            self._at(self._disk_free_at, lambda time: self._wait_for_a_turn(index, time))

    def _wait_for_a_turn(self, index: int, now: float) -> None:
        self._for_a_turn.append(index)
        self._encode_next(now)

    def _encode_next(self, now: float) -> None:
        if not (self._free_turns and self._for_a_turn):
            return
        index, idle_s = self._for_a_turn.popleft(), now - self._free_turns.popleft()
        level = self.adaptive if isinstance(self.adaptive, int) else self.adaptive.level
        self.levels[index] = level
        self.stored += RATIO[level]
        work_s = WORK_S[level] * self.share(self._chance)
        self._at(now + work_s, lambda time: self._hand_over(index, idle_s, work_s, time))

    def _hand_over(self, index: int, idle_s: float, work_s: float, now: float) -> None:
        if isinstance(self.adaptive, AdaptiveLevel):
            self.adaptive.observe(work_s, idle_s)
        self._free_turns.append(now)
        self._encode_next(now)
        self._put(index, now)

    def _put(self, index: int, now: float) -> None:
        if index - self._due >= self.window:
            self._for_the_window.setdefault(index - self.window + 1, []).append(index)
            return
        self._encoded.add(index)
        if self._writing:
            self._take(now)
        else:
            self._writing = True
            self._write(now)

    def _write(self, now: float) -> None:
        """Write what is due and all behind it, and then take another chunk."""
        if self._due in self._encoded:
            self._at(now + self.write_s(self._due) * RATIO[self.levels[self._due]], self._written)
        else:
            self._writing = False
            self._take(now)

    def _written(self, now: float) -> None:
        self._due += 1
        for index in self._for_the_window.pop(self._due, ()):
            self._put(index, now)
        self._write(now)


def fast(index: int) -> float:
    return 0.0005


def steadily(seconds: float) -> Seconds:
    return lambda index: seconds


def changes(levels: list[int]) -> int:
    return sum(before != after for before, after in pairwise(levels))


SLOW_TARGETS = {"a little slow": 0.03, "slow": 0.07, "very slow": 0.7}
SLOW_DISKS = {"a little slow": 0.012, "slow": 0.03, "very slow": 0.2}
LOADS: dict[str, tuple[Seconds, Seconds]] = {
    "all is fast": (fast, fast),
    **{f"the disk is {how}": (steadily(seconds), fast) for how, seconds in SLOW_DISKS.items()},
    **{f"the target is {how}": (fast, steadily(seconds)) for how, seconds in SLOW_TARGETS.items()},
    "both are slow": (steadily(0.02), steadily(0.07)),
}


def some_take_six_times_as_long(chance: random.Random) -> float:
    return chance.uniform(1 / 6, 1.0)


def other_programs_want_the_cpu(chance: random.Random) -> float:
    """A thread that loses its CPU now and then: half of the chunks are as usual, one in fifty takes ten times as long."""
    return min(chance.lognormvariate(0.0, 1.1), 20.0)


def simulated(load: str, adaptive: AdaptiveLevel | int, *, turns: int = 2, share: Share = as_all) -> Run:
    read_s, write_s = LOADS[load]
    return Run(adaptive, read_s, write_s, turns=turns, window=2 * (turns + 2), share=share)


# --- where it comes to rest -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("turns", [1, 2, 4])
def test_under_a_steady_load_it_comes_to_rest(load: str, turns: int) -> None:
    levels = simulated(load, AdaptiveLevel(1), turns=turns).levels
    assert len(set(levels[500:])) == 1
    assert levels == sorted(levels)  # and never rose too high on the way


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("turns", [2, 4])
def test_where_chunks_differ_it_moves_within_a_step_and_not_often(load: str, turns: int) -> None:
    levels = simulated(load, AdaptiveLevel(1), turns=turns, share=some_take_six_times_as_long).levels
    assert max(levels[1000:]) - min(levels[1000:]) <= 1
    assert changes(levels[1000:]) <= 20  # in 2000 chunks


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("turns", [1, 2, 4, 8])
@pytest.mark.parametrize("share", [as_all, some_take_six_times_as_long])
def test_it_takes_no_longer_than_its_floor_and_stores_no_more(load: str, turns: int, share: Share) -> None:
    adaptive = simulated(load, AdaptiveLevel(1), turns=turns, share=share)
    fixed = simulated(load, 1, turns=turns, share=share)
    assert adaptive.seconds <= fixed.seconds * 1.02
    assert adaptive.stored <= fixed.stored


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("turns", [2, 4])
def test_beside_other_programs_it_takes_little_longer_than_its_floor(load: str, turns: int) -> None:
    """Threads then wait for each other, which looks as if they waited for the target."""
    adaptive = simulated(load, AdaptiveLevel(1), turns=turns, share=other_programs_want_the_cpu)
    fixed = simulated(load, 1, turns=turns, share=other_programs_want_the_cpu)
    assert adaptive.seconds <= fixed.seconds * 1.15


def test_where_the_cpu_is_the_limit_it_stays_at_its_floor() -> None:
    for floor in (1, 4):
        assert set(simulated("all is fast", AdaptiveLevel(floor), turns=2).levels) == {floor}


@pytest.mark.parametrize("load", ["the disk is very slow", "the target is very slow"])
def test_where_the_cpu_idles_it_rises_to_the_ceiling(load: str) -> None:
    run = simulated(load, AdaptiveLevel(1), turns=2)
    assert run.levels[-1] == CEILING
    assert run.levels.index(CEILING) < 240


def test_a_slow_target_makes_it_faster_than_its_floor() -> None:
    adaptive = simulated("the target is slow", AdaptiveLevel(1), turns=2)
    assert adaptive.seconds < 0.95 * simulated("the target is slow", 1, turns=2).seconds


def test_it_follows_a_target_that_is_slow_now_and_then() -> None:
    period = 400
    run = Run(AdaptiveLevel(1), fast, lambda index: 0.7 if index // period % 2 else 0.0005)
    for begin in range(0, 2400, 2 * period):
        assert set(run.levels[begin + 300 : begin + period]) == {1}
        assert run.levels[begin + period + 300 : begin + 2 * period] == [CEILING] * (period - 300)


def test_a_level_that_proved_too_slow_is_left_alone_longer_each_time() -> None:
    """A step that takes thirty times the CPU, which no gap between the limits allows for."""
    adaptive = AdaptiveLevel(1)
    raises = []
    for number in range(40_000):
        before = adaptive.level
        adaptive.observe(0.01 if before == 1 else 0.3, 0.03)
        if adaptive.level > before:
            raises.append(number)
    waits = [after - before for before, after in pairwise(raises)]
    assert len(waits) > 5
    assert waits[-1] > 5 * waits[0]
    assert waits == sorted(waits)


# --- what it never does -----------------------------------------------------------------------------------------------

SECONDS = st.floats(0, 1000, allow_nan=False)


@given(
    floor=st.sampled_from([-131072, -100, -99, -7, -1, 0, 1, 5, CEILING, 19]),
    seen=st.lists(st.tuples(SECONDS, SECONDS, st.integers(1, 40)), max_size=60),
)
def test_it_moves_by_single_steps_between_floor_and_ceiling_whatever_it_is_told(
    floor: int, seen: list[tuple[float, float, int]]
) -> None:
    adaptive = AdaptiveLevel(floor)
    assert adaptive.level == floor
    steps = [floor, *(level for level in (-100, -50, -20, -10, -5, -1, *LEVELS) if level > (floor or 3))]
    at = 0
    for work_s, idle_s, times in seen:
        for _ in range(times):
            adaptive.observe(work_s, idle_s)
            now = steps.index(adaptive.level)
            assert abs(now - at) <= 1
            at = now


def test_a_floor_of_0_is_the_level_that_zstd_takes_it_for() -> None:
    adaptive = AdaptiveLevel(0)
    while adaptive.level == 0:
        adaptive.observe(0.0, 1.0)
    assert adaptive.level == 4


def test_observations_of_no_time_at_all_change_nothing() -> None:
    adaptive = AdaptiveLevel(1)
    for _ in range(1000):
        adaptive.observe(0.0, 0.0)
    assert adaptive.level == 1


def test_equal_observations_give_equal_levels() -> None:
    first, second = (simulated("both are slow", AdaptiveLevel(1), share=some_take_six_times_as_long) for _ in range(2))
    assert first.levels == second.levels


def test_many_threads_may_tell_at_once() -> None:
    adaptive = AdaptiveLevel(1)
    seen: list[set[int]] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        mine = set()
        for _ in range(3000):
            adaptive.observe(chance.random(), chance.random())
            mine.add(adaptive.level)
        seen.append(mine)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert set().union(*seen) <= set(LEVELS)
