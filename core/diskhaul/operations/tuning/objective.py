"""What is better: one number for each trial, less is better, by what the run is for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...options import Aim
from .trial import Cost

LARGER_ALLOWED = 1.02
"""How much more than with the defaults may be stored where compression is not searched."""
_PER_SECOND = 0.02  # of two settings that take the same CPU time the faster one is better


@dataclass(frozen=True, slots=True)
class Objective:
    """Judges costs.

    Attributes:
        aim: "fastest": seconds; "smallest": stored bytes, within `seconds_limit`; "least-cpu": CPU seconds.
        seconds_limit: for the sample; infinite for none.
        stored_limit: likewise, bytes.
    """

    aim: Aim
    seconds_limit: float = math.inf
    stored_limit: float = math.inf

    def value(self, cost: Cost) -> float:
        """The figure that the aim is about."""
        if self.aim == "smallest":
            return float(cost.stored_bytes)
        if self.aim == "least-cpu":
            return cost.cpu_seconds
        return cost.seconds

    def allows(self, cost: Cost) -> bool:
        return cost.seconds <= self.seconds_limit and cost.stored_bytes <= self.stored_limit

    def score(self, cost: Cost) -> float:
        """What the search is to bring down: the value, and far more than any that is allowed for what breaks a limit."""
        score = self.value(cost) + (_PER_SECOND * cost.seconds if self.aim == "least-cpu" else 0.0)
        over = max(cost.seconds / self.seconds_limit, cost.stored_bytes / self.stored_limit)
        return score if over <= 1 else score * 10 * over
