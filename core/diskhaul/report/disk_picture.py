"""A picture of what lies where on a disk: as cells to be drawn anywhere, and as an SVG file."""

from __future__ import annotations

import os
import stat
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path

from ..api import DiskMap, DiskRegion, Extent, ExtentKind
from ..errors import StorageError
from ..names import escape as visible
from ..profile import write_whole
from ..records import DiskPicture, InspectedDisk

MOST_CELLS = 1024
KINDS = ("used", "kept", "free", "hole")
MEANINGS = {
    "used": "in use",
    "kept": "kept: not understood, or in doubt",
    "free": "free, may be left out",
    "hole": "hole: never written",
}
COLOURS = {"used": "#0b62a4", "kept": "#8a4b08", "free": "#9fd39b", "hole": "#eceff2"}
"""Those of reports; told apart by brightness as well."""

_UNIT = 4096
_INK, _QUIET, _GRID = "#1f2933", "#52606d", "#9aa5b1"
_WIDTH, _MARGIN, _CELL, _ROW = 960, 20, 15, 22
_PER_LINE = (_WIDTH - 2 * _MARGIN) // _CELL
_MOST_LISTED = 60
_MOST_TEXT = 60


def picture_of(extents: Iterable[Extent], found: DiskMap, *, most_cells: int = MOST_CELLS) -> DiskPicture:
    """Count what is where.

    Where a volume lies in several pieces, it is taken to be one piece from its first byte on.

    Args:
        extents: of the whole disk, ascending, without gaps; what is free among them as such.
        found: the disk's map; of its regions it is taken which ones are kept.
        most_cells: into how many cells the disk is divided at most.
    """
    cell = max(-(-found.size // most_cells), 1)
    cell = -(-cell // _UNIT) * _UNIT
    count = -(-found.size // cell)
    cells = {kind: [0] * count for kind in KINDS}
    doubts = _Doubts(found.regions, found.size)
    for extent in extents:
        if extent.kind is ExtentKind.DATA:
            for begin, end, doubtful in doubts.between(extent.offset, extent.end):
                _add(cells["kept" if doubtful else "used"], begin, end, cell)
        else:
            _add(cells["free" if extent.kind is ExtentKind.FREE else "hole"], extent.offset, extent.end, cell)
    return DiskPicture(cell_size=cell, **{kind: tuple(counts) for kind, counts in cells.items()})


def _add(counts: list[int], begin: int, end: int, cell: int) -> None:
    first, last = begin // cell, (end - 1) // cell
    if first == last:
        counts[first] += end - begin
        return
    counts[first] += (first + 1) * cell - begin
    for index in range(first + 1, last):
        counts[index] += cell
    counts[last] += end - last * cell


class _Doubts:
    """Which bytes of a disk lie in a region that is kept. What lies in another region counts by itself."""

    def __init__(self, regions: Sequence[DiskRegion], size: int) -> None:
        spans = [(each.offset, min(each.offset + each.length, size), bool(each.kept)) for each in regions]
        spans = [span for span in spans if span[0] < span[1]]
        self._bounds = sorted({0, size, *(edge for begin, end, _ in spans for edge in (begin, end))})
        self._doubtful = bytearray(len(self._bounds))
        for begin, end, kept in spans:  # inner ones follow what they lie in
            first, last = bisect_left(self._bounds, begin), bisect_left(self._bounds, end)
            self._doubtful[first:last] = bytes([kept]) * (last - first)

    def between(self, begin: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """The pieces from `begin` to `end`, each with whether it is kept."""
        index = bisect_right(self._bounds, begin) - 1
        while begin < end:
            until = min(self._bounds[index + 1], end)
            yield begin, until, bool(self._doubtful[index])
            begin, index = until, index + 1


def merged(picture: DiskPicture, most: int) -> DiskPicture:
    """The picture with at most `most` cells, each made of as many neighbours."""
    count = len(picture.used)
    group = max(-(-count // most), 1)
    return DiskPicture(
        cell_size=picture.cell_size * group,
        **{kind: tuple(sum(getattr(picture, kind)[first : first + group]) for first in range(0, count, group)) for kind in KINDS},
    )


def kinds(picture: DiskPicture) -> list[str]:
    """What most of each cell is; of equal shares the first of `KINDS` counts."""
    return [
        max(zip(KINDS, shares, strict=True), key=lambda each: each[1])[0]
        for shares in zip(*(getattr(picture, kind) for kind in KINDS), strict=True)
    ]


# --- as SVG -------------------------------------------------------------------------------------------------------------


def svg_problem(path: Path) -> str | None:
    """Why a picture cannot be written to `path`, in one line; None when all is well. What is there and is no SVG stays."""
    file = Path(os.path.abspath(path))
    if not file.parent.is_dir():
        return f"{file.parent} is not a directory; make it first"
    if not os.access(file.parent, os.W_OK):
        return f"{file.parent} cannot be written to by this user; choose another place"
    try:
        status = os.lstat(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{file}: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return f"{file} is there and is no regular file; choose another name"
    try:
        with open(file, "rb") as opened:
            begin = opened.read(256).lstrip()
    except OSError as error:
        return f"{file}: {error.strerror}"
    if begin and not (begin.startswith(b"<svg") or (begin.startswith(b"<?xml") and b"<svg" in begin)):
        return f"{file} is there and is no SVG picture: it would be lost; choose another name"
    return None


def write_disk_svg(result: InspectedDisk, path: Path | str) -> None:
    """Write the picture to `path`, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    file = Path(os.path.abspath(path))
    try:
        write_whole(file, disk_svg(result).encode())
    except OSError as error:
        raise StorageError(f"{file}: cannot be written: {os.strerror(error.errno or 0)}", path=str(file)) from error


def disk_svg(result: InspectedDisk) -> str:
    """The picture as text: cells from left to right and top to bottom, a legend, and what lies where."""
    parts = [_label(_MARGIN, 30, f"{_short(result.disk)}: {_size(result.size)}", size=17)]
    cells = _cells(result.picture)
    lines = -(-len(result.picture.used) // _PER_LINE)
    top = 46
    parts += [f'<g transform="translate({_MARGIN},{top})">', *cells, "</g>"]
    y = top + lines * _CELL + 26
    sums = {kind: sum(getattr(result.picture, kind)) for kind in KINDS}
    for kind in KINDS:
        parts.append(_box(_MARGIN, y - 11, 13, COLOURS[kind]))
        parts.append(_label(_MARGIN + 20, y, f"{MEANINGS[kind]}: {_size(sums[kind])}"))
        y += _ROW
    y += 12
    parts += _regions(result.regions, y)
    y += (min(len(result.regions), _MOST_LISTED) + 1 + (len(result.regions) > _MOST_LISTED)) * _ROW
    note = f"Each square is {_size(result.picture.cell_size)}, in the colours of what it holds by their shares."
    parts.append(_label(_MARGIN, y, note, colour=_QUIET))
    height = y + _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="system-ui, DejaVu Sans, sans-serif" font-size="13">\n'
        f"<title>{_text('diskhaul inspect: ' + _short(result.disk))}</title>\n"
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _cells(picture: DiskPicture) -> Iterator[str]:
    """A square for each cell, divided from bottom to top by what it holds."""
    inner = _CELL - 1
    for index, shares in enumerate(zip(*(getattr(picture, kind) for kind in KINDS), strict=True)):
        x, y = index % _PER_LINE * _CELL, index // _PER_LINE * _CELL
        total, done = sum(shares), 0
        for kind, share in zip(KINDS, shares, strict=True):
            if share:
                above, below = inner - inner * (done + share) / total, inner - inner * done / total
                yield (
                    f'<rect x="{x}" y="{y + above:.4g}" width="{inner}" height="{below - above:.4g}" fill="{COLOURS[kind]}"/>'
                    if share < total
                    else f'<rect x="{x}" y="{y}" width="{inner}" height="{inner}" fill="{COLOURS[kind]}"/>'
                )
                done += share


_COLUMNS = (
    ("where", 0),
    ("what", 185),
    ("label", 260),
    ("size", 375),
    ("free", 450),
    ("skippable", 525),
    ("state, or why it is kept", 605),
)


def _regions(regions: Sequence[DiskRegion], y: int) -> Iterator[str]:
    def line(y: int, cells: Sequence[str], colour: str = _INK) -> str:
        return "".join(_label(_MARGIN + x, y, text, colour=colour) for text, (_, x) in zip(cells, _COLUMNS, strict=True) if text)

    yield line(y, [name for name, _ in _COLUMNS], _QUIET)
    for region in regions[:_MOST_LISTED]:
        y += _ROW
        yield line(
            y,
            (
                _short(region.place, 26),
                _short(region.type, 10),
                _short(region.label, 15),
                _size(region.length),
                "" if region.free is None else _size(region.free),
                _size(region.skipped) if region.skipped else "",
                _short(region.kept or region.state, 46),
            ),
        )
    if len(regions) > _MOST_LISTED:
        yield _label(_MARGIN, y + _ROW, f"and {len(regions) - _MOST_LISTED} more")


def _box(x: int, y: int, side: int, colour: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="{colour}" stroke="{_GRID}" stroke-width=".5"/>'


def _label(x: int, y: int, text: str, *, size: int = 13, colour: str = _INK) -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}">{_text(text)}</text>'


def _short(text: str, most: int = _MOST_TEXT) -> str:
    shown = visible(text[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "\u2026"


def _text(text: str) -> str:
    """Text for a picture: nothing in it is markup, or acts on a reader."""
    return escape(visible(text))


def _size(size: int) -> str:
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size} B"
