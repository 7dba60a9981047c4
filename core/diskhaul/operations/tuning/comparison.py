"""Whether the settings found are better than the defaults: judged by rounds in which both were measured one after the other."""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the rounds say.

    Attributes:
        better: the settings found are better by more than the noise.
        ratio: their figure by that of the defaults: the median over the rounds; None without rounds.
        noise: by how much the ratio may be off.
        words: the outcome in a sentence.
    """

    better: bool
    words: str
    ratio: float | None = None
    noise: float | None = None


def judge(rounds: Sequence[TuneRound], objective: Objective) -> Verdict:
    """Judge the settings found.

    Better means: in the median of the rounds' ratios by more than the noise and than `SMALLEST_GAIN`; in every round, or in all
    but one of five or more; and within the limits of `objective`; or just within limits that the defaults break. The noise is
    twice the standard error of the median, from the median absolute deviation of the ratios (1.4826 and 1.2533 make both what
    they are for a normal distribution).
    """
    if len(rounds) < MIN_ROUNDS:
        return Verdict(False, f"there was no time for {MIN_ROUNDS} rounds of comparison: the defaults stand")
    ratios = [objective.value(_cost(each.found)) / max(objective.value(_cost(each.defaults)), 1e-9) for each in rounds]
    ratio = statistics.median(ratios)
    spread = 1.4826 * statistics.median(abs(each - ratio) for each in ratios)
    noise = 2 * 1.2533 * spread / len(ratios) ** 0.5
    needed = SMALLEST_GAIN / 10 if objective.aim == "smallest" else SMALLEST_GAIN
    lost = sum(each >= 1 for each in ratios)
    what = {"fastest": "time", "smallest": "stored bytes", "least-cpu": "CPU time"}[objective.aim]
    figures = f"{ratio:.3f} of the defaults' {what} (+- {noise:.3f}, {len(ratios)} rounds)"
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
    if ratio > 1 - max(noise, needed) or lost > (1 if len(ratios) >= 5 else 0):
        return Verdict(False, f"no better than the defaults by more than the noise, {figures}: the defaults stand", ratio, noise)
    return Verdict(True, f"better than the defaults: {figures}", ratio, noise)


def _cost(trial: TuneTrial) -> Cost:
    return Cost(trial.seconds, trial.cpu_seconds, trial.stored_bytes)
