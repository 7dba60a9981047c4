"""Whether the settings found are better than the defaults: judged by rounds in which both were measured one after the other."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from ...records import TuneRound, TuneTrial
from .objective import Objective
from .trial import Cost

MIN_ROUNDS = 3
MAX_ROUNDS = 9
SMALLEST_GAIN = 0.02
"""Less than this is not worth a profile, however sure it is; for stored bytes, which are the same each time, a tenth of it."""
_T_99 = {3: 6.965, 4: 4.541, 5: 3.747, 6: 3.365, 7: 3.143, 8: 2.998, 9: 2.896}
"""Student's t by the number of rounds (one less are the degrees of freedom): exceeded by chance once in a hundred times."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rounds say.

    Attributes:
        better: the settings found are better by more than the noise.
        ratio: their figure by that of the defaults, geometric mean of the rounds; None without enough rounds.
        noise: by how much the ratio may be off, as a share.
        words: the outcome in a sentence.
    """

    better: bool
    words: str
    ratio: float | None = None
    noise: float | None = None


def judge(rounds: Sequence[TuneRound], objective: Objective) -> Verdict:
    """Judge the settings found.

    They are better when the mean of the rounds' ratios (of their logarithms, that is) is below 1 by more than `SMALLEST_GAIN`
    and by more than the noise: a paired one-sided t test at the level of 1 %, so that no better settings pass for better once
    in a hundred runs. And they have to keep the limits of `objective`; where the defaults break those, that alone is enough.
    """
    if len(rounds) < MIN_ROUNDS:
        return Verdict(False, f"there was no time for {MIN_ROUNDS} rounds of comparison: the defaults stand")
    logarithms = [math.log(_value(each.found, objective) / _value(each.defaults, objective)) for each in rounds]
    ratio = math.exp(statistics.fmean(logarithms))
    noise = _T_99[min(len(rounds), MAX_ROUNDS)] * statistics.stdev(logarithms) / len(rounds) ** 0.5
    what = {"fastest": "time", "smallest": "stored bytes", "least-cpu": "CPU time"}[objective.aim]
    figures = f"{ratio:.3f} of the defaults' {what} (+- {noise:.3f}, {len(rounds)} rounds)"
    typical = Cost(
        statistics.median(each.found.seconds for each in rounds),
        statistics.median(each.found.cpu_seconds for each in rounds),
        int(statistics.median(each.found.stored_bytes for each in rounds)),
    )
    if not objective.allows(typical):
        broken = "takes longer than it may" if typical.seconds > objective.seconds_limit else "stores more than it may"
        return Verdict(False, f"what was found {broken}, measured again: the defaults stand", ratio, noise)
    if sum(not objective.allows(_cost(each.defaults)) for each in rounds) * 2 > len(rounds):
        return Verdict(True, f"the defaults break the limit that was given, what was found keeps it: {figures}", ratio, noise)
    gain = SMALLEST_GAIN / 10 if objective.aim == "smallest" else SMALLEST_GAIN
    if math.log(ratio) >= min(-noise, math.log(1 - gain)):
        return Verdict(False, f"no better than the defaults by more than the noise, {figures}: the defaults stand", ratio, noise)
    return Verdict(True, f"better than the defaults: {figures}", ratio, noise)


def _value(trial: TuneTrial, objective: Objective) -> float:
    return max(objective.value(_cost(trial)), 1e-9)


def _cost(trial: TuneTrial) -> Cost:
    return Cost(trial.seconds, trial.cpu_seconds, trial.stored_bytes)
