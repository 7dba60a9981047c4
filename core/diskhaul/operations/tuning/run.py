"""A tuning run in order: a probe, the search, the best ones once more, the comparison with the defaults; all within the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ...cancellation import CancellationToken
from ...errors import DiskhaulError, InterruptedRunError, OperationFailedError
from ...events import TrialFinished
from ...feedback import Feedback
from ...options import MIB
from ...records import TuneRound, TuneTrial
from .comparison import MAX_ROUNDS, MIN_ROUNDS, Verdict, judge
from .objective import LARGER_ALLOWED, Objective
from .request import DEFAULT_WITHIN_RATIO, TuneRequest
from .sample import Unit, choose_units
from .search import Searcher, Standings
from .space import Settings, Space
from .trial import Cost, TrialRunner, TrialTooLongError
from .trial_log import TrialLog

Phase = Literal["search", "confirm", "compare"]

_COMPARE_SHARE = 0.35  # of the time
_CONFIRM_SHARE = 0.10
_TRIALS = 24  # as many as these should fit into the search
_FIRST_PROBE = 64 * MIB
_PROBES_GROW = 4
_SMALLEST_SAMPLE = 64 * MIB
_CONFIRMED = 3  # so many of the best ones are tried until each has been tried so often
_SLACK = 1.15  # a trial may take so much longer than the last one
_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to. `found` are the best settings, whether they are better than the defaults or not."""

    found: Settings
    verdict: Verdict
    rounds: tuple[TuneRound, ...]
    trials: tuple[TuneTrial, ...]
    sample_bytes: int
    objective: Objective


class TuneRun:
    """One run. Use once.

    Args:
        units: what the disks hold.
        room: bytes that may lie below the target at once.
        earlier: trials of the run that is resumed, all of the same sample.
        sample_limit: of that run, or None for a new one.
        begin_log: begins the log, once the sample's limit (bytes) is known.
        until: moment of the monotonic clock at which everything has to have ended.
    """

    def __init__(
        self,
        request: TuneRequest,
        space: Space,
        runner: TrialRunner,
        searcher: Searcher,
        feedback: Feedback,
        token: CancellationToken,
        *,
        units: Sequence[Unit],
        room: int,
        earlier: Sequence[TuneTrial],
        sample_limit: int | None,
        begin_log: Callable[[int], TrialLog | None],
        until: float,
    ) -> None:
        self._request, self._space, self._runner = request, space, runner
        self._searcher, self._feedback, self._token = searcher, feedback, token
        self._units, self._room, self._sample_limit = units, room, sample_limit
        self._begin_log = begin_log
        self._log: TrialLog | None = None
        self._until = until
        left_s = max(0.0, until - time.monotonic())
        self._search_until = until - left_s * (_COMPARE_SHARE + _CONFIRM_SHARE)
        self._confirm_until = until - left_s * _COMPARE_SHARE
        self._trials = list(earlier)
        self._standings = Standings()
        self._objective = Objective(request.aim)
        self._sample_bytes = 0
        self._wall_s = 0.0  # how long the last trial took, with everything around it

    def run(self) -> Outcome:
        """Search, and compare.

        Raises:
            OperationFailedError: the defaults do not work, or not within the time.
            InterruptedRunError: cancelled.
        """
        with self._feedback.stage("baseline"):
            self._choose_sample()
            self._measure_baseline()
        with self._feedback.stage("search"):
            self._search()
        candidates = [settings for settings in self._standings.best(_CONFIRMED + 1) if settings != self._space.defaults]
        with self._feedback.stage("confirm"):
            self._confirm(candidates[:_CONFIRMED])
        candidates = [settings for settings in self._standings.best(2) if settings != self._space.defaults]
        rounds: list[TuneRound] = []
        if candidates:
            with self._feedback.stage("compare"):
                rounds = self._compare(candidates[0])
            verdict = judge(rounds, self._objective)
        else:
            verdict = Verdict(False, "nothing else worked within the time: the defaults stand")
        return Outcome(
            found=self._space.ordered(candidates[0] if candidates else self._space.defaults),
            verdict=verdict,
            rounds=tuple(rounds),
            trials=tuple(self._trials),
            sample_bytes=self._sample_bytes,
            objective=self._objective,
        )

    # --- the sample, and the defaults -------------------------------------------------------------------------------

    def _choose_sample(self) -> None:
        """Take as much of the disks as lets the wanted number of trials fit into the time."""
        most = min(self._request.sample_bytes, self._room)
        limit = self._sample_limit if self._sample_limit is not None else self._affordable(most)
        sample = choose_units(self._units, limit)
        self._sample_bytes = sum(unit.length for unit in sample)
        self._runner.use(sample)
        self._log = self._begin_log(limit)

    def _affordable(self, most: int) -> int:
        """How many bytes, at most `most`, the sample may have.

        Found with growing samples: what an export takes besides moving bytes counts for much in the first one, and for little
        in those that are worth a trial.
        """
        limit = min(_FIRST_PROBE, most)
        before: tuple[int, float] | None = None
        while True:
            probe = choose_units(self._units, limit)
            self._runner.use(probe)
            began = time.monotonic()
            cost = self._must_work(self._space.defaults)
            size, wall_s = sum(unit.length for unit in probe), time.monotonic() - began
            trial_s = max(0.0, self._search_until - time.monotonic()) / _TRIALS
            if before is None or size <= before[0]:
                rate = size / max(cost.seconds, 1e-3)
            else:
                rate = (size - before[0]) / max(cost.seconds - before[1], 1e-3)
            affordable = size + int(rate * (trial_s - wall_s))
            if limit >= most or affordable < size * _PROBES_GROW:
                return max(min(most, affordable), min(most, _SMALLEST_SAMPLE))
            before = size, cost.seconds
            limit = min(most, limit * _PROBES_GROW)

    def _measure_baseline(self) -> None:
        first = next((trial for trial in self._trials if trial.settings == self._space.defaults and not trial.problem), None)
        began = time.monotonic()
        now = self._must_work(self._space.defaults)
        self._wall_s = time.monotonic() - began
        self._objective = self._limits(Cost(first.seconds, first.cpu_seconds, first.stored_bytes) if first else now)
        for trial in self._trials:
            self._tell(trial)
        self._note("search", self._space.defaults, now)

    def _limits(self, baseline: Cost) -> Objective:
        request = self._request
        objective = Objective(request.aim)
        if request.aim == "smallest":
            if request.within_s is not None:
                data = sum(unit.length for unit in self._units)
                return replace(objective, seconds_limit=request.within_s * self._sample_bytes / max(data, 1))
            return replace(objective, seconds_limit=baseline.seconds * (request.within_ratio or DEFAULT_WITHIN_RATIO))
        if any(parameter.name == "compress" for parameter in self._space.parameters):
            return objective
        return replace(objective, stored_limit=baseline.stored_bytes * LARGER_ALLOWED)

    def _must_work(self, settings: Settings) -> Cost:
        try:
            return self._runner.run(settings, self._until)
        except InterruptedRunError:
            raise
        except TrialTooLongError as error:
            raise OperationFailedError(
                "not even the defaults came to an end within the time limit: give more time (--time), or a smaller --sample"
            ) from error
        except (DiskhaulError, OSError) as error:
            raise OperationFailedError(f"an export of the sample with the defaults failed: {error}") from error

    # --- the phases -------------------------------------------------------------------------------------------------

    def _search(self) -> None:
        while self._has_time(self._search_until) and (settings := self._searcher.ask()) is not None:
            self._try("search", settings, self._search_until)

    def _confirm(self, candidates: Sequence[Settings]) -> None:
        for wanted in range(2, _CONFIRMED + 1):
            for settings in candidates:
                while self._standings.count(settings) < wanted:
                    if not self._has_time(self._confirm_until):
                        return
                    self._try("confirm", settings, self._confirm_until)

    def _compare(self, found: Settings) -> list[TuneRound]:
        """Rounds of both, in an order that turns around each time, until the time is up."""
        rounds: list[TuneRound] = []
        most = MIN_ROUNDS + 2 if self._request.aim == "smallest" else MAX_ROUNDS
        round_s = 2 * self._wall_s
        while len(rounds) < most and time.monotonic() + round_s * _SLACK < self._until:
            if len(rounds) >= MIN_ROUNDS and not self._may_write(trials=2):
                break
            began = time.monotonic()
            both = [self._space.defaults, found]
            if len(rounds) % 2:
                both.reverse()
            trials = [self._try("compare", settings, self._until) for settings in both]
            if any(trial.problem for trial in trials):
                break
            if len(rounds) % 2:
                trials.reverse()
            rounds.append(TuneRound(defaults=trials[0], found=trials[1]))
            round_s = time.monotonic() - began
        return rounds

    def _has_time(self, until: float) -> bool:
        """Whether there is time for one more trial until then, and room for it below the limit of what may be written."""
        self._token.raise_if_cancelled()
        return self._may_write(trials=1 + 2 * MIN_ROUNDS) and time.monotonic() + self._wall_s * _SLACK < until

    def _may_write(self, *, trials: int) -> bool:
        largest = max((trial.stored_bytes for trial in self._trials), default=0)
        return self._runner.written_bytes + trials * largest <= self._request.write_limit

    # --- a trial ----------------------------------------------------------------------------------------------------

    def _try(self, phase: Phase, settings: Settings, until: float) -> TuneTrial:
        began = time.monotonic()
        limit = until if phase == "compare" else min(until, began + self._patience_s())
        try:
            cost = self._runner.run(settings, limit)
        except InterruptedRunError:
            raise
        except TrialTooLongError:
            return self._note(phase, settings, None, f"stopped after {time.monotonic() - began:.1f} s")
        except (DiskhaulError, OSError) as error:
            return self._note(phase, settings, None, str(error) or type(error).__name__)
        self._wall_s = time.monotonic() - began
        return self._note(phase, settings, cost)

    def _patience_s(self) -> float:
        """After how long a trial cannot be among the best any more."""
        done = [trial.seconds for trial in self._trials if not trial.problem]
        around_s = max(0.0, self._wall_s - (done[-1] if done else 0.0))
        longest = {"fastest": 3 * min(done), "smallest": 1.25 * self._objective.seconds_limit, "least-cpu": 4 * done[0]}
        return longest[self._request.aim] + around_s + _PATIENCE_S

    def _note(self, phase: Phase, settings: Settings, cost: Cost | None, problem: str = "") -> TuneTrial:
        trial = TuneTrial(
            number=len(self._trials) + 1,
            phase=phase,
            settings=dict(settings),
            seconds=cost.seconds if cost else 0.0,
            cpu_seconds=cost.cpu_seconds if cost else 0.0,
            stored_bytes=cost.stored_bytes if cost else 0,
            problem=problem,
        )
        before = self._standings.best(1)
        score = self._tell(trial)
        self._trials.append(trial)
        if self._log is not None:
            self._log.add(trial)
        self._feedback.emit(
            TrialFinished(
                number=trial.number,
                phase=phase,
                settings=trial.settings,
                seconds=trial.seconds,
                cpu_seconds=trial.cpu_seconds,
                stored_bytes=trial.stored_bytes,
                rate=self._sample_bytes / cost.seconds if cost and cost.seconds else 0.0,
                best=cost is not None and (not before or score <= self._standings.score(before[0])),
                problem=problem,
            )
        )
        return trial

    def _tell(self, trial: TuneTrial) -> float:
        """Let the search know; return the trial's score."""
        cost = Cost(trial.seconds, trial.cpu_seconds, trial.stored_bytes)
        score = self._objective.score(cost) if not trial.problem else float("inf")
        self._standings.add(trial.settings, score)
        self._searcher.tell(trial.settings, score)
        return score
