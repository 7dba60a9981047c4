"""The figures that a report shows of trials: what they are called, in which unit, and which direction is better."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..options import MIB, Aim, Setting
from ..records import TuneResult, TuneTrial

_SIZES = ("chunk_size", "memory", "bwlimit")


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a trial.

    Attributes:
        label: with its unit, for an axis.
        short: likewise, for a column.
        of: its value; of trials that came to an end only.
        higher_is_better: else lower is.
        form: a format specification for the value.
    """

    label: str
    short: str
    of: Callable[[TuneTrial], float]
    higher_is_better: bool
    form: str

    def text(self, value: float) -> str:
        return format(value, self.form)

    def median(self, trials: Iterable[TuneTrial]) -> float:
        return statistics.median(map(self.of, trials))


def speed(result: TuneResult) -> Figure:
    return Figure("speed (MiB of the disk per second)", "MiB/s", lambda t: result.sample_bytes / MIB / t.seconds, True, ".0f")


def cpu(result: TuneResult) -> Figure:
    scale = (1 << 30) / result.sample_bytes
    return Figure("CPU time (seconds per GiB of the disk)", "CPU s/GiB", lambda t: t.cpu_seconds * scale, False, ".2f")


def stored(result: TuneResult) -> Figure:
    scale = 100 / result.sample_bytes
    return Figure("stored (% of what was read)", "stored %", lambda t: t.stored_bytes * scale, False, ".1f")


def main_figure(result: TuneResult) -> Figure:
    """What the run was about."""
    makers: dict[Aim, Callable[[TuneResult], Figure]] = {"fastest": speed, "smallest": stored, "least-cpu": cpu}
    return makers[result.aim](result)


def setting_text(name: str, value: Setting) -> str:
    """A setting as people read it."""
    if isinstance(value, bool):
        return str(value).lower()
    if name == "threads" and value == 0:
        return "0 (one more than CPUs)"
    if name in _SIZES and isinstance(value, int) and value:
        return f"{value / MIB:g} MiB"
    return str(value)
