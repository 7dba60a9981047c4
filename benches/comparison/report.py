"""Tables for a terminal and for a README, the JSON file, the chart."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from .contestants import GROUPS
from .disk import GIB, MIB
from .errors import ComparisonError
from .results import Entry, Run, Table, tables
from .running import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that was found out; what is written as JSON and read back from it.

    Attributes:
        machine, versions: as `machine.facts` and `machine.versions` give them.
        disk: what the disk holds, with its path.
        settings: how it was measured.
        commands: "group/name" to the command lines.
        left_out: contestants that are missing programs, one line each.
        failed: contestants that failed, or whose result was wrong, one line each.
    """

    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    disk: Mapping[str, Any]
    settings: Mapping[str, Any]
    entries: Sequence[Entry]
    commands: Mapping[str, Sequence[str]]
    runs: Sequence[Run]
    left_out: Sequence[str]
    failed: Sequence[str]

    @property
    def tables(self) -> list[Table]:
        return tables(self.runs, self.entries)


def save(report: Report, path: Path) -> None:
    """Write the report as JSON, with its tables for those who read it with other programs."""
    document = {**asdict(report), "tables": [asdict(table) for table in report.tables]}
    unfinished = path.with_name(f"{path.name}.partial")
    unfinished.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(unfinished, path)


def load(path: Path) -> Report:
    """Read what `save` has written. Raises ComparisonError when it is something else."""
    try:
        document = json.loads(path.read_text())
        document.pop("tables")
        runs = [
            Run(**{**run, "usage": Usage(**run["usage"]), "durable": Usage(**run["durable"]) if run["durable"] else None})
            for run in document.pop("runs")
        ]
        entries = [Entry(**entry) for entry in document.pop("entries")]
        return Report(runs=runs, entries=entries, **document)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ComparisonError(f"{path} holds no results of this program: {error}") from error


def merge(reports: Sequence[Report]) -> Report:
    """One report of several that were measured on the same machine, disk and versions, such as a group each, or a few rounds.

    Rounds are numbered on, so that only runs of the same report are paired. Raises ComparisonError for what does not belong
    together.
    """
    first = reports[0]
    runs: list[Run] = []
    entries: dict[tuple[str, str], Entry] = {}
    for number, report in enumerate(reports, start=1):
        same_disk = all(report.disk.get(key) == first.disk.get(key) for key in ("path", "size"))
        if report.machine != first.machine or not same_disk:
            raise ComparisonError(f"results {number} are of another machine or another disk than the first")
        differing = [
            name for name in report.versions.keys() & first.versions.keys() if report.versions[name] != first.versions[name]
        ]
        if differing:
            raise ComparisonError(f"results {number} are of another version than the first: {', '.join(sorted(differing))}")
        done = max((run.round for run in runs), default=0)
        runs += [replace(run, round=run.round + done) for run in report.runs]
        entries |= {(entry.group, entry.name): entry for entry in report.entries}
    places = {group: place for place, group in enumerate(GROUPS)}
    rounds = Counter((run.group, run.name, run.cache) for run in runs)
    return replace(
        first,
        versions={name: version for report in reports for name, version in report.versions.items()},
        settings={
            **first.settings,
            "rounds": max(rounds.values(), default=0),
            "durable": any(report.settings["durable"] for report in reports),
            "trial": any(report.settings["trial"] for report in reports),
        },
        entries=sorted(entries.values(), key=lambda entry: places[entry.group]),
        commands={name: lines for report in reports for name, lines in report.commands.items()},
        runs=runs,
        left_out=list(dict.fromkeys(line for report in reports for line in report.left_out)),
        failed=list(dict.fromkeys(line for report in reports for line in report.failed)),
    )


# --- tables -----------------------------------------------------------------------------------------------------------


def title(table: Table) -> str:
    """What a table is of, in one line."""
    fsync = ", fsync included" if table.durable else ""
    return f"{GROUPS[table.group]}, {table.cache} cache{fsync}"


def text(report: Report) -> str:
    """All tables and what they were measured on, for a terminal."""
    parts = [describe(report)]
    parts += [f"{t.group}: {title(t)}\n{_aligned([_HEAD, *(_cells(row) for row in t.rows)])}" for t in report.tables]
    parts += [f"left out: {line}" for line in report.left_out]
    parts += [f"FAILED: {line}" for line in report.failed]
    return "\n\n".join(parts) + "\n"


_HEAD = ("program", "wall s", "(min-max)", "x as fast", "as", "CPU s", "peak MiB", "size MiB", "on disk MiB")


def _cells(row: Any) -> tuple[str, ...]:
    return (
        row.label,
        f"{row.wall_s:.2f}",
        f"({row.fastest_s:.2f}-{row.slowest_s:.2f})",
        "-" if row.ratio is None else f"{row.ratio:.2f}",
        row.versus or "-",
        f"{row.cpu_s:.2f}",
        f"{row.peak / MIB:.0f}",
        f"{row.apparent / MIB:.0f}",
        f"{row.allocated / MIB:.0f}",
    )


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns, the words on the left and the numbers on the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    left = {0, 4}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def describe(report: Report) -> str:
    """The machine, the disk and the way of measuring, a few lines."""
    machine, disk, settings = report.machine, report.disk, report.settings
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    memory = f"{machine['memory_bytes'] / GIB:.1f} GiB of memory"
    deleted = f" ({disk['deleted_bytes'] / GIB:.2f} GiB in deleted files)" if "deleted_bytes" in disk else ""
    lines = [
        f"{machine['cpu']}, {machine['cpus']} CPUs, {memory}, Linux {machine['kernel']}",
        f"{machine['filesystem']}; Python {machine['python']}",
        f"disk of {disk['size'] / GIB:.1f} GiB, {disk['data'] / GIB:.2f} GiB of it data{deleted}",
        f"rounds: {settings['rounds']}, interleaved; times are medians, ratios the medians of the ratios of each round",
        versions,
    ]
    if settings.get("trial"):
        lines.insert(0, "A TRIAL: too small, or too few rounds, to say anything")
    return "\n".join(lines)


def readme(report: Report) -> str:
    """The tables as Markdown."""
    lines = []
    for table in report.tables:
        versus = {row.versus for row in table.rows if row.versus}
        lines += [f"{title(table)[0].upper()}{title(table)[1:]}:", ""]
        column = f"times as fast as {_label(table, versus.pop())}" if len(versus) == 1 else "times as fast"
        lines += [f"| | seconds (min-max) | {column} | CPU seconds | peak MiB | size, MiB on disk |"]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
        for row in table.rows:
            name, wall, spread, ratio, _, cpu, peak, _, allocated = _cells(row)
            bold = "**" if row.own else ""
            lines.append(f"| {bold}{name}{bold} | {wall} {spread} | {ratio} | {cpu} | {peak} | {allocated} |")
        lines.append("")
    lines += [*describe(report).splitlines(), *(f"Left out: {line}" for line in report.left_out)]
    return "\n".join(lines) + "\n"


def _label(table: Table, name: str) -> str:
    return next((f"`{row.label}`" for row in table.rows if row.name == name), name)


# --- the chart --------------------------------------------------------------------------------------------------------


def chart(report: Report, path: Path) -> str:
    """Draw the tables as bars into a PNG file: a row for each group, a column for cold and hot.

    Returns "", or why there is no chart: matplotlib is not installed, nothing was measured.
    """
    try:
        import matplotlib  # type: ignore[import-not-found, unused-ignore]

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return "no chart: matplotlib is not installed (the extra 'bench' has it)"
    found = {(table.group, table.cache, table.durable): table for table in report.tables}
    groups = list(dict.fromkeys(group for group, _, _ in found))
    caches = list(dict.fromkeys(cache for _, cache, _ in found))
    if not found:
        return "no chart: nothing was measured"
    heights = [max(len(table.rows) for table in report.tables if table.group == group) for group in groups]
    figure, axes = pyplot.subplots(
        *(len(groups), len(caches)),
        figsize=(1 + 6.5 * len(caches), 1 + sum(heights) * 0.32 + len(groups) * 0.7),
        height_ratios=heights,
        squeeze=False,
        sharey="row",
    )
    for line, group in zip(axes, groups, strict=True):
        for axis, cache in zip(line, caches, strict=True):
            if (group, cache, False) in found:
                _bars(axis, found[group, cache, False], found.get((group, cache, True)))
            else:
                axis.set_axis_off()
        line[0].invert_yaxis()  # the first row on top; shared by all columns
    machine, rounds = report.machine, report.settings["rounds"]
    figure.suptitle(
        f"seconds (rounds: {rounds}; median, minimum, maximum), times as fast as the reference; light: fsync of the result\n"
        f"{machine['cpu']}, {machine['cpus']} CPUs, Linux {machine['kernel']}",
        fontsize=9,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return ""


def _bars(axis: Any, table: Table, durable: Table | None) -> None:
    """One group in one state of the page cache: a bar for each program, and behind it how long it takes with an fsync."""
    rows = table.rows
    places = range(len(rows))
    if durable is not None:
        longer = [row.wall_s for row in durable.rows]
        axis.barh(places, longer, color=["#e0b0aa" if row.own else "#cfd9e3" for row in durable.rows])
    spread = [[row.wall_s - row.fastest_s for row in rows], [row.slowest_s - row.wall_s for row in rows]]
    colors = ["#b5483a" if row.own else "#8aa0b5" for row in rows]
    axis.barh(places, [row.wall_s for row in rows], xerr=spread, color=colors, error_kw={"linewidth": 0.8})
    axis.set_yticks(places, [row.label for row in rows])
    axis.set_title(f"{table.group}, {table.cache} cache", fontsize=10, loc="left")
    ends = [row.slowest_s for row in rows]
    if durable is not None:
        ends = [max(end, row.wall_s) for end, row in zip(ends, durable.rows, strict=True)]
    axis.set_xlim(0, max(ends) * 1.22)
    for place, (row, end) in enumerate(zip(rows, ends, strict=True)):
        ratio = "" if row.ratio is None else f", {row.ratio:.2f} x"
        axis.text(end, place, f" {row.wall_s:.1f} s{ratio}", va="center", fontsize=7)
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
