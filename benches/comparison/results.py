"""What was measured, and what follows from it: medians, ratios of paired runs, rows of a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from .running import Usage

FASTEST = ""  # instead of a name in `Entry.versus`: the fastest of the other programs


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What tables say of a contestant.

    Attributes:
        name: unique in its group.
        label: what it is called in tables.
        versus: the name of the contestant that its ratio is to, or FASTEST.
        own: diskhaul itself, which does its own fsync.
    """

    group: str
    name: str
    label: str
    versus: str
    own: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of one contestant.

    Attributes:
        cache: "hot" or "cold".
        usage: of the contestant's own commands.
        durable: the same followed by an fsync of the result; None when that was not measured. diskhaul's own runs end with an
            fsync, so both are the same there.
        apparent, allocated: bytes of the result: its length, and what it takes on the disk.
    """

    group: str
    name: str
    cache: str
    round: int
    usage: Usage
    durable: Usage | None
    apparent: int
    allocated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A contestant in one table. Seconds are medians over the rounds; `peak` is the largest.

    `ratio` says how many times as fast as `versus` it is, None when that one has no runs.
    """

    name: str
    label: str
    own: bool
    rounds: int
    wall_s: float
    fastest_s: float
    slowest_s: float
    ratio: float | None
    versus: str
    cpu_s: float
    peak: int
    apparent: int
    allocated: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of one group with one state of the page cache; `durable`: an fsync after the other programs is counted."""

    group: str
    cache: str
    durable: bool
    rows: tuple[Row, ...]


def paired_ratio(reference: Iterable[tuple[int, float]], measured: Iterable[tuple[int, float]]) -> float | None:
    """How many times as fast `measured` is as `reference`: the median of the ratios of runs of the same round.

    Both are pairs of round and seconds. Rounds that only one of them has do not count; None when they share none. The machine's
    speed may drift between rounds, hardly within one: hence the pairs.
    """
    of_reference = dict(reference)
    ratios = [of_reference[number] / seconds for number, seconds in measured if number in of_reference]
    return median(ratios) if ratios else None


def tables(runs: Sequence[Run], entries: Sequence[Entry]) -> list[Table]:
    """All tables, in the order of the entries: group by group, cold before hot, without the fsync before with it."""
    made = []
    for group in dict.fromkeys(entry.group for entry in entries):
        members = [entry for entry in entries if entry.group == group]
        for cache in ("cold", "hot"):
            here = [run for run in runs if run.group == group and run.cache == cache]
            for durable in (False, True):
                others = {member.name for member in members if not member.own}
                if durable and not any(run.durable for run in here if run.name in others):
                    continue  # it would be the same table again
                rows = _rows(here, members, durable=durable)
                if rows:
                    made.append(Table(group=group, cache=cache, durable=durable, rows=rows))
    return made


def _rows(runs: Sequence[Run], members: Sequence[Entry], *, durable: bool) -> tuple[Row, ...]:
    usages: dict[str, dict[int, Usage]] = {}
    for run in runs:
        usage = run.durable if durable else run.usage
        if usage is not None:
            usages.setdefault(run.name, {})[run.round] = usage
    present = [member for member in members if member.name in usages]
    fastest = _fastest_other(usages, present)
    rows = []
    for member in present:
        own = usages[member.name]
        versus = fastest if member.versus == FASTEST else member.versus
        rows.append(
            Row(
                name=member.name,
                label=member.label,
                own=member.own,
                rounds=len(own),
                wall_s=median(usage.wall_s for usage in own.values()),
                fastest_s=min(usage.wall_s for usage in own.values()),
                slowest_s=max(usage.wall_s for usage in own.values()),
                ratio=paired_ratio(_walls(usages.get(versus, {})), _walls(own)),
                versus=versus,
                cpu_s=median(usage.cpu_s for usage in own.values()),
                peak=max(usage.peak for usage in own.values()),
                apparent=_last(runs, member).apparent,
                allocated=_last(runs, member).allocated,
            )
        )
    return tuple(rows)


def _fastest_other(usages: dict[str, dict[int, Usage]], members: Sequence[Entry]) -> str:
    """The name of the program with the smallest median that is not diskhaul; "" when there is none."""
    others = {member.name: median(usage.wall_s for usage in usages[member.name].values()) for member in members if not member.own}
    return min(others, key=lambda name: others[name]) if others else ""


def _walls(usages: dict[int, Usage]) -> list[tuple[int, float]]:
    return [(number, usage.wall_s) for number, usage in usages.items()]


def _last(runs: Sequence[Run], member: Entry) -> Run:
    return [run for run in runs if run.name == member.name][-1]
