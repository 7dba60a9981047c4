"""How a rate is measured."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ...cancellation import CancellationToken
from ...records import Measurement

ROUNDS = 3


@dataclass(slots=True, kw_only=True)
class Work:
    """Something whose rate is measured.

    Attributes:
        run: does it for about so many seconds (once at least) and returns bytes per second.
        note: filled in by `run` where what it finds is worth saying.
    """

    name: str
    threads: int
    run: Callable[[float], float]
    ratio: float | None = None
    note: str = ""
    rounds: list[float] = field(default_factory=list)

    def measurement(self) -> Measurement:
        return Measurement(
            name=self.name,
            threads=self.threads,
            rate=statistics.median(self.rounds),
            rounds=tuple(self.rounds),
            ratio=self.ratio,
            note=self.note,
        )


def measure(works: Sequence[Work], until: float, token: CancellationToken, on_round: Callable[[int], object]) -> None:
    """Measure every work in each of `ROUNDS` rounds, so that what changes meanwhile on the machine meets all alike.

    Args:
        until: moment of the monotonic clock. The first round is finished whatever it takes; later ones are not begun after it.
        on_round: told the number of each round as it begins.

    Raises:
        InterruptedRunError: cancelled.
    """
    for number in range(ROUNDS):
        on_round(number + 1)
        for place, work in enumerate(works):
            token.raise_if_cancelled()
            left = until - time.monotonic()
            if number and left <= 0:
                return
            still_to_do = (ROUNDS - number) * len(works) - place
            work.rounds.append(work.run(max(left, 0.0) / still_to_do))


def together(step: Callable[[int], int], threads: int, token: CancellationToken) -> Callable[[float], float]:
    """Return what runs ``step(thread)`` again and again on so many threads at once, for `Work.run`.

    A step does one piece and returns its bytes. What a step raises is raised.
    """

    def run(seconds: float) -> float:
        if threads == 1:
            return _repeat(step, 0, seconds, token)
        rates = [0.0] * threads
        failures: list[BaseException] = []
        start = threading.Barrier(threads)

        def work(number: int) -> None:
            try:
                start.wait()
                rates[number] = _repeat(step, number, seconds, token)
            except BaseException as error:  # handed to the caller below
                failures.append(error)

        workers = [threading.Thread(target=work, args=(number,), name=f"diskhaul-bench-{number}") for number in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if failures:
            raise failures[0]
        return sum(rates)

    return run


def _repeat(step: Callable[[int], int], number: int, seconds: float, token: CancellationToken) -> float:
    done = 0
    began = now = time.perf_counter()
    while not done or (now - began < seconds and not token.cancelled):
        done += step(number)
        now = time.perf_counter()
    return done / max(now - began, 1e-9)
