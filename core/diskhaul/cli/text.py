"""Texts for terminals: escaping, units, tables.

Names, problems and manifests come from disks and stores that others write to. Whatever is shown goes through `escape` (tables
and lines made here do it by themselves), so that none of it can move the cursor, change colours or start a new line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from .. import names

LONGEST_CELL = 300


def escape(text: object, *, longest: int | None = None) -> str:
    """Return `text` as `names.escape` does; a text longer than `longest` characters is cut and ends in "..."."""
    shown = str(text)
    return names.escape(shown if longest is None or len(shown) <= longest else shown[:longest] + "...")


def iec(size: int | float) -> str:
    """Return a number of bytes in IEC units: ``512 B``, ``1.5 KiB``, ``10.0 GiB``."""
    if abs(size) < 1024:
        return f"{size:.0f} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        value /= 1024
        if abs(value) < 1023.95:  # 1023.95 would come out as "1024.0"
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} EiB"


def duration(seconds: float) -> str:
    """Return a time span: ``0.35 s``, ``12.0 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min"


def ratio(whole: int, part: int) -> str:
    """Return how many times `part` goes into `whole`, as ``4.0 to 1``, or "" where that says nothing."""
    return f"{whole / part:.1f} to 1" if whole > 0 and part > 0 else ""


def utc(moment: datetime) -> str:
    """Return a moment as ``2026-01-31 13:05:00Z``; a moment without a time zone is taken as UTC."""
    return moment.astimezone(UTC).strftime("%F %TZ") if moment.tzinfo else moment.strftime("%F %TZ")


def count(number: int, noun: str) -> str:
    """Return ``1 export``, ``3 exports``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> str:
    """Return an aligned table, one line per row; columns named in `right` are right-aligned. Cells are escaped."""
    lines = [list(headings)] + [[escape(cell, longest=LONGEST_CELL) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if heading in right else cell.ljust(width)
            for cell, width, heading in zip(line, widths, headings, strict=True)
        ).rstrip()
        for line in lines
    )


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Return indented lines ``name  value``, aligned; a pair whose value is "" is left out. Values are escaped."""
    shown = [(name, escape(value, longest=4096)) for name, value in pairs if value != ""]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"  {name.ljust(width)}  {value}" for name, value in shown)
