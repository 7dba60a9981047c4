"""What is asked of a fleet: checked by itself, and kept in its plan as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

from ..names import name_problem
from ..option_checks import MAX_BWLIMIT
from ..options import MAX_TIMEOUT_S
from .scheduler import Order

MAX_LIMIT = 1024
MAX_RETRIES = 100
ROUND_ROBIN, MOST_FREE = "round-robin", "most-free"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLimits:
    """How much may go on at a time, and how often what failed is tried again. A later run of a plan may have others.

    Attributes:
        bwlimit: bytes a second that all exports together may read; 0 is no limit.
        retries: further attempts after a failure that may pass.
        backoff_s: seconds before the first of them; twice as many before each one after it.
    """

    per_source: int = 2
    per_target: int = 2
    parallel: int = 8
    bwlimit: int = 0
    retries: int = 2
    backoff_s: float = 30.0

    def problems(self) -> list[str]:
        """What is wrong with them, one line each."""
        wrong = [
            f"{name}: must be a whole number from {least} to {most}, not {value!r}"
            for name, least, most in (
                ("per_source", 1, MAX_LIMIT),
                ("per_target", 1, MAX_LIMIT),
                ("parallel", 1, MAX_LIMIT),
                ("bwlimit", 0, MAX_BWLIMIT),
                ("retries", 0, MAX_RETRIES),
            )
            if type(value := getattr(self, name)) is not int or not least <= value <= most
        ]
        seconds = self.backoff_s
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or math.isnan(seconds):
            wrong.append("backoff_s: must be a number of seconds")
        elif not 0 <= seconds <= MAX_TIMEOUT_S:
            wrong.append(f"backoff_s: must be 0 to {MAX_TIMEOUT_S} seconds, not {seconds!r}")
        return wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetRequest:
    """Which instances are exported whereto, in what order, and with what options (of `diskhaul.ExportOptions`, by name)."""

    patterns: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    everything: bool = False
    to: str = ""
    nodes: tuple[str, ...] = ()
    order: Order = "largest"
    options: Mapping[str, Any] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """What is wrong with it, as far as that can be told without a cluster, one line each."""
        wrong = []
        if not self.to:
            wrong.append(f"to: is missing; give a node, {ROUND_ROBIN} or {MOST_FREE}")
        elif self.to not in (ROUND_ROBIN, MOST_FREE):
            if problem := name_problem("node", self.to):
                wrong.append(problem)
            if self.nodes:
                wrong.append(f"nodes: is for {ROUND_ROBIN} and {MOST_FREE}; everything goes to {self.to!a}")
        if self.order not in get_args(Order):
            wrong.append(f"order: must be one of {', '.join(get_args(Order))}, not {self.order!a}")
        return wrong

    def as_data(self) -> dict[str, Any]:
        """It as JSON has it; `from_data` is the way back."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> FleetRequest:
        known = {each.name for each in fields(cls)}
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items() if name in known
        }
        return cls(**given)
