"""What a tuning run is asked for."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ...errors import RefusedError
from ...formats.codec import parse_compress
from ...model import Disk
from ...names import suggestion
from ...option_checks import value_problem
from ...options import MIB, Aim, Setting
from ...profile import PROFILE_OPTION_NAMES, profile_target_problem

SearchMethod = Literal["auto", "optuna", "grid"]

DEFAULT_TIME_S = 60.0
DEFAULT_SAMPLE = 1 << 30
DEFAULT_WRITE_LIMIT = 64 << 30
DEFAULT_WITHIN_RATIO = 2.0
MIN_TIME_S = 1.0
MAX_TIME_S = 7 * 24 * 3600.0
MIN_SAMPLE = MIB
MAX_COMPRESSIONS = 64

_RANGE = re.compile(r"(zstd|gzip):(-?[0-9]{1,6})\.\.(-?[0-9]{1,6})\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRequest:
    """What a tuning run is asked for; `diskhaul.tune` describes each.

    Attributes:
        compressions: what is tried of compressors and levels; nothing: what the aim asks for.
    """

    target: Path
    source: Disk | None = None
    instance: str | None = None
    aim: Aim = "fastest"
    within_s: float | None = None
    within_ratio: float | None = None
    time_limit_s: float = DEFAULT_TIME_S
    fixed: Mapping[str, Setting] = field(default_factory=dict)
    compressions: tuple[str, ...] = ()
    sample_bytes: int = DEFAULT_SAMPLE
    write_limit: int = DEFAULT_WRITE_LIMIT
    search: SearchMethod = "auto"
    seed: int = 0
    out: Path | None = None
    report: Path | None = None
    resume: bool = False


def expand_compressions(asked: Sequence[str]) -> tuple[str, ...]:
    """Return compressions, in the order given: ``zstd:-5..3`` stands for nine of them (there is no level 0 of its own).

    Raises:
        RefusedError: one that does not exist, the same one twice, or too many; every reason, one line each.
    """
    found: list[str] = []
    problems: list[str] = []
    for text in asked:
        match = _RANGE.match(text)
        if match is None:
            expanded = [text]
        else:
            first, last = int(match[2]), int(match[3])
            if first > last or last - first >= MAX_COMPRESSIONS:
                problems.append(f"compress_range: {text!a} must go up, and through at most {MAX_COMPRESSIONS} levels")
                continue
            expanded = [f"{match[1]}:{level}" for level in range(first, last + 1) if level]
        for each in expanded:
            try:
                name = str(parse_compress(each))
            except RefusedError as error:
                problems += [f"compress_range: {problem}" for problem in error.problems]
                continue
            if name in found:
                problems.append(f"compress_range: {name} stands twice")
            found.append(name)
    if len(found) > MAX_COMPRESSIONS:
        problems.append(f"compress_range: {len(found)} compressions are more than the {MAX_COMPRESSIONS} that can be searched")
    if problems:
        raise RefusedError(problems)
    return tuple(found)


def request_problems(request: TuneRequest) -> list[str]:
    """Say everything that is wrong with what is asked for, as far as it can be told without looking at disks; one line each."""
    problems = [*_choice_problems(request), *_number_problems(request), *_fixed_problems(request.fixed)]
    if (request.source is None) == (request.instance is None):
        problems.append("source: give either a disk (--source) or an instance (--instance)")
    try:
        expand_compressions(request.compressions)
    except RefusedError as error:
        problems += error.problems
    if request.compressions and "compress" in request.fixed:
        problems.append("compress: is both given and to be searched (--compress-range); leave one of them out")
    if request.resume and request.out is None:
        problems.append("resume: needs the file that the interrupted run was to write (--out)")
    if request.out is not None and (problem := profile_target_problem(request.out)):
        problems.append(f"out: {request.out}: {problem}")
    if request.report is not None and not request.report.absolute().parent.is_dir():
        problems.append(f"report: {request.report.absolute().parent} is not a directory; make it first")
    return problems


def _choice_problems(request: TuneRequest) -> Iterable[str]:
    for name, value, choices in (
        ("aim", request.aim, get_args(Aim)),
        ("search", request.search, get_args(SearchMethod)),
    ):
        if value not in choices:
            yield f"{name}: must be one of {', '.join(choices)}, not {str(value)[:40]!a}"
    if request.aim != "smallest" and (request.within_s is not None or request.within_ratio is not None):
        yield f"within: is for the aim smallest, and has no meaning for {request.aim}; leave it out"
    if request.within_s is not None and request.within_ratio is not None:
        yield "within: give seconds, or a ratio to the defaults, not both"


def _number_problems(request: TuneRequest) -> Iterable[str]:
    for name, value, least, most, unit in (
        ("time_limit_s", request.time_limit_s, MIN_TIME_S, MAX_TIME_S, " seconds"),
        ("within", request.within_s, 1e-3, MAX_TIME_S, " seconds"),
        ("within", request.within_ratio, 0.01, 1000.0, " times as long"),
        ("sample_bytes", request.sample_bytes, MIN_SAMPLE, 1 << 50, " bytes"),
        ("write_limit", request.write_limit, MIN_SAMPLE, 1 << 60, " bytes"),
        ("seed", request.seed, 0, (1 << 32) - 1, ""),
    ):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or not least <= value <= most:
            yield f"{name}: must be from {least:g} to {most:g}{unit}, not {value!r}"


def _fixed_problems(fixed: Mapping[str, Setting]) -> Iterable[str]:
    for name, value in fixed.items():
        if name not in PROFILE_OPTION_NAMES:
            yield f"{str(name)[:40]!a}: is not an option that can be given here; {suggestion(name, PROFILE_OPTION_NAMES)}"
        elif problem := value_problem(name, value):
            yield problem
