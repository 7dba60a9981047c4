"""An inspected disk as text for people, and as a document. Everything shown is escaped (see `text`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TextIO

from ..api import DiskRegion
from ..records import InspectedDisk
from ..report.disk_picture import KINDS, MEANINGS, kinds, merged
from .json_output import jsonable
from .text import escape, facts, iec, table

_PER_LINE, _MOST_LINES = 64, 4
_MOST_REGIONS = 60  # lines of the table


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How the kinds of `report.disk_picture` are drawn.

    Attributes:
        marks: one character for each.
        colours: a terminal's code (SGR) for each; {} for none.
    """

    marks: Mapping[str, str]
    colours: Mapping[str, str]


PLAIN = Style(marks={"used": "#", "kept": "?", "free": ".", "hole": "-"}, colours={})
_BLOCKS = {"used": "\u2588", "kept": "\u2593", "free": "\u2591", "hole": "\u00b7"}
_COLOURS = {"used": "34", "kept": "33", "free": "32", "hole": "90"}


def style_of(stream: TextIO, environment: Mapping[str, str]) -> Style:
    """Blocks in colours on a terminal, plain characters elsewhere; ``NO_COLOR`` (https://no-color.org) is heeded."""
    if not stream.isatty() or environment.get("TERM", "dumb") in ("dumb", "unknown"):
        return PLAIN
    try:
        "".join(_BLOCKS.values()).encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        marks = PLAIN.marks
    else:
        marks = _BLOCKS
    return Style(marks=marks, colours={} if environment.get("NO_COLOR") else _COLOURS)


def disk_document(result: InspectedDisk) -> dict[str, Any]:
    """The result for ``--json``: free extents as pairs of offset and length."""
    return {**jsonable(result), "free": [list(each) for each in result.free.ranges()]}


def disk_text(result: InspectedDisk, style: Style = PLAIN) -> str:
    """Say what is where, how much of it can be left out, and draw the disk."""
    doubtful = sum(result.picture.kept)
    data = iec(result.data_bytes) + (f", {iec(doubtful)} of it not understood, or in doubt" if doubtful else "")
    rows = [
        ("size", iec(result.size)),
        ("never written", iec(result.hole_bytes)),
        ("free", f"{iec(result.free_bytes)} of the rest, which may be left out (found by {result.backend})"),
        ("to keep", data),
        ("picture", result.svg_path),
    ]
    parts = [escape(result.disk), facts(rows), "", _regions(result.regions), "", *_map(result, style)]
    return "\n".join(parts)


def _regions(regions: tuple[DiskRegion, ...]) -> str:
    rows = [
        (
            f"  {region.place}",
            region.type,
            region.label,
            iec(region.length),
            "" if region.free is None else iec(max(region.length - region.free, 0)),
            "" if region.free is None else iec(region.free),
            iec(region.skipped) if region.skipped else "",
            region.kept or region.state,
        )
        for region in regions[:_MOST_REGIONS]
    ]
    headings = ("  where", "what", "label", "size", "used", "free", "skippable", "state, or why it is kept")
    found = table(headings, rows, right=("size", "used", "free", "skippable"))
    left = len(regions) - _MOST_REGIONS
    return f"{found}\n  and {left} more (--json has all)" if left > 0 else found


def _map(result: InspectedDisk, style: Style) -> list[str]:
    """A few lines of characters, each for what most of its bytes are, and what they mean."""
    picture = merged(result.picture, _PER_LINE * _MOST_LINES)
    drawn = kinds(picture)
    lines = [drawn[first : first + _PER_LINE] for first in range(0, len(drawn), _PER_LINE)]
    parts = [
        "  " + "".join(_painted(kind, style.marks[kind] * len(list(run)), style) for kind, run in groupby(line)) for line in lines
    ]
    present = [kind for kind in KINDS if any(getattr(result.picture, kind))]
    legend = "   ".join(f"{_painted(kind, style.marks[kind], style)} {MEANINGS[kind]}" for kind in present)
    return [*parts, f"  {legend}", f"  each character: {iec(picture.cell_size)}"]


def _painted(kind: str, text: str, style: Style) -> str:
    return f"\033[{style.colours[kind]}m{text}\033[0m" if kind in style.colours else text
