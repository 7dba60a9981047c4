#!/usr/bin/env python3
"""How much faster one saved run of the benchmarks is than another: benches/diff.py BEFORE AFTER.

Runs are saved by `make bench NAME=before`. The ratio is the median of BEFORE divided by the median of AFTER:
above 1, AFTER is faster. It stands in parentheses where the middle halves of the two runs overlap, so that
the difference may be chance.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Any

SAME = ("machine", "cpu", "cpus", "kernel")
"""What two runs on one machine have in common, of a benchmark's extra_info."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One benchmark of a saved run; seconds: the median, and the ends of the middle half."""

    median: float
    q1: float
    q3: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A benchmark that both runs have. `certain`: the middle halves do not overlap."""

    name: str
    before: float
    after: float
    certain: bool

    @property
    def ratio(self) -> float:
        return self.before / self.after


def find(name: str, storage: Path) -> Path:
    """The file of a saved run: a path, or the newest run of that name. FileNotFoundError when there is none."""
    if name.endswith(".json"):
        return Path(name)
    found = sorted(storage.glob(f"*/[0-9][0-9][0-9][0-9]_{name}.json"))
    if not found:
        names = sorted({path.stem[5:] for path in storage.glob("*/[0-9][0-9][0-9][0-9]_*.json")})
        there = f"there are: {', '.join(names)}" if names else "there is none: run 'make bench NAME=...' first"
        raise FileNotFoundError(f"no saved run {name!r} in {storage}; {there}")
    return found[-1]


def read(path: Path) -> tuple[dict[str, Measured], dict[str, Any]]:
    """The benchmarks of a saved run by name, and what they say of the machine."""
    document = json.loads(path.read_text())
    found = {}
    machine: dict[str, Any] = {}
    for one in document["benchmarks"]:
        stats = one["stats"]
        found[one["fullname"]] = Measured(median=stats["median"], q1=stats["q1"], q3=stats["q3"])
        machine |= {key: one["extra_info"][key] for key in SAME if key in one["extra_info"]}
    return found, machine


def differences(before: dict[str, Measured], after: dict[str, Measured]) -> list[Difference]:
    """What both runs have, by name."""
    return [
        Difference(
            name=name,
            before=before[name].median,
            after=after[name].median,
            certain=before[name].q1 > after[name].q3 or after[name].q1 > before[name].q3,
        )
        for name in sorted(before.keys() & after.keys())
    ]


def table(found: Sequence[Difference]) -> str:
    """A line for each benchmark, and the geometric mean of all."""
    width = max(len(one.name) for one in found)
    lines = [f"{'benchmark'.ljust(width)}  {'before':>10}  {'after':>10}     ratio"]
    for one in found:
        ratio = f"{one.ratio:.2f}" if one.certain else f"({one.ratio:.2f})"
        lines.append(f"{one.name.ljust(width)}  {_seconds(one.before):>10}  {_seconds(one.after):>10}  {ratio:>8}")
    mean = exp(sum(log(one.ratio) for one in found) / len(found))
    lines.append(f"{'geometric mean'.ljust(width)}  {'':>10}  {'':>10}  {mean:>8.2f}")
    return "\n".join(lines)


def _seconds(seconds: float) -> str:
    for unit, length in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= length:
            return f"{seconds / length:.2f} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def main(given: Sequence[str] | None = None) -> int:
    """Print the table; 2 when there is nothing to compare."""
    parser = argparse.ArgumentParser(prog="diff.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="name of a saved run, or its JSON file")
    parser.add_argument("after", help="likewise")
    parser.add_argument(
        "--storage", type=Path, default=Path(".benchmarks"), metavar="DIR", help="where runs are saved (.benchmarks)"
    )
    arguments = parser.parse_args(given)
    try:
        (before, machine), (after, other_machine) = (
            read(find(name, arguments.storage)) for name in (arguments.before, arguments.after)
        )
    except (OSError, ValueError, KeyError) as error:
        print(f"diff.py: {error}", file=sys.stderr)
        return 2
    found = differences(before, after)
    if not found:
        print("diff.py: the two runs have no benchmark in common", file=sys.stderr)
        return 2
    print(table(found))
    if machine != other_machine:
        print(f"\nNot the same machine: {machine} and {other_machine}")
    alone = len(before.keys() ^ after.keys())
    if alone:
        print(f"\n{alone} benchmarks are in one of the runs only")
    return 0


if __name__ == "__main__":
    sys.exit(main())
