"""The page of a tuning run: what came of it, the settings, the plots, every figure. One file that needs nothing else."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path

from ..errors import StorageError
from ..names import escape as visible
from ..options import MIB
from ..profile import write_whole
from ..records import TuneResult, TuneTrial
from .figures import Figure, cpu, main_figure, setting_text, speed, stored

_AIMS = {"fastest": "fastest export", "smallest": "smallest export", "least-cpu": "least CPU time"}
_METHODS = {
    "optuna": "optuna's TPE sampler, told of every trial before it chose the next",
    "grid": "successive halving over a part of the grid, then single steps away from the best",
}

_BY_VALUE = (
    "All trials by the value they had; the bars are medians (brown the default, blue what was found); {better}. "
    "The other settings differ from trial to trial, so a bar tells of a tendency."
)

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: #1f2933; background: #fff;
       max-width: 940px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.55rem; margin: 0 0 .2rem; } h2 { font-size: 1.12rem; margin: 2.2rem 0 .5rem; }
p { margin: .4rem 0; } .quiet { color: #52606d; } code { font-size: .93em; overflow-wrap: anywhere; }
.outcome { border-left: 6px solid #8a4b08; background: #f7f4f0; padding: .7rem 1rem; margin: 1.1rem 0; }
.outcome.better { border-color: #0b62a4; background: #eef5fb; }
.outcome strong { font-size: 1.15rem; }
.figures { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1rem 0; }
.figures div { flex: 1 1 120px; border: 1px solid #e4e7eb; border-radius: 6px; padding: .5rem .8rem; }
.figures b { display: block; font-size: 1.2rem; font-variant-numeric: tabular-nums; }
.figures span { color: #52606d; font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; border-bottom: 2px solid #9aa5b1; }
th, td { padding: .26rem .7rem .26rem 0; vertical-align: top; } td { border-bottom: 1px solid #e4e7eb; }
.n { text-align: right; } .changed { color: #0b62a4; font-weight: 600; } .scroll { overflow-x: auto; }
img { width: 100%; height: auto; } summary { cursor: pointer; margin: .6rem 0; font-weight: 600; }
"""


def write_tune_report(result: TuneResult, path: Path | str) -> None:
    """Write the page to `path`, whole or not at all; with plots where matplotlib is installed.

    Raises:
        StorageError: it cannot be written.
    """
    file = Path(os.path.abspath(path))
    try:
        write_whole(file, tune_page(result).encode())
    except OSError as error:
        raise StorageError(f"{file}: cannot be written: {os.strerror(error.errno or 0)}", path=str(file)) from error


def tune_page(result: TuneResult) -> str:
    """The page as text."""
    measured = _text(str(result.profile.measurements.get("measured", "")))
    way = f"from <code>{_text(result.source)}</code> to <code>{_text(result.target)}</code>"
    parts = [
        f"<h1>Settings for the {_AIMS[result.aim]}</h1>",
        f"<p class=quiet>{way}, measured {measured}</p>",
        _outcome(result),
        _key_figures(result),
        "<h2>Settings</h2>",
        _settings(result),
        *_plots(result),
        *_rounds(result),
        "<h2>How it was measured</h2>",
        _method(result),
        "<h2>Machine</h2>",
        _table(("", ""), [(name.replace("_", " "), _fact(name, value)) for name, value in result.profile.machine.items()]),
        "<h2>All trials</h2>",
        _trials(result),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>diskhaul tune: {_text(result.source)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _outcome(result: TuneResult) -> str:
    headline = "The defaults stand."
    if result.better and result.ratio is not None:
        percent = 100 * (1 - result.ratio)
        what = {"fastest": "less time", "smallest": "less is stored", "least-cpu": "less CPU time"}[result.aim]
        headline = f"{percent:.1f} % {what} than with the defaults."
    kind = "outcome better" if result.better else "outcome"
    return f'<div class="{kind}"><strong>{headline}</strong><br>{_text(result.verdict[:1].upper() + result.verdict[1:])}.</div>'


def _key_figures(result: TuneResult) -> str:
    shown: list[tuple[str, str]] = []
    if result.rounds:
        for figure in (speed(result), stored(result), cpu(result)):
            before = figure.median(each.defaults for each in result.rounds)
            after = figure.median(each.found for each in result.rounds)
            shown.append((f"{figure.text(before)} / {figure.text(after)}", f"{figure.label}: defaults / found, medians"))
    shown.append((str(len(result.trials)), f"trials of {_size(result.sample_bytes)} each, of {_size(result.data_bytes)} of data"))
    shown.append((f"{result.seconds:.0f} s", f"of at most {result.time_limit_s:.0f} s"))
    return '<div class="figures">' + "".join(f"<div><b>{_text(a)}</b><span>{_text(b)}</span></div>" for a, b in shown) + "</div>"


def _settings(result: TuneResult) -> str:
    rows = []
    for name, values in result.searched.items():
        before, after = setting_text(name, result.defaults[name]), setting_text(name, result.found[name])
        rows.append(
            (name, before, _Changed(after) if after != before else after, ", ".join(setting_text(name, v) for v in values))
        )
    fixed = ", ".join(f"{name} {setting_text(name, value)}" for name, value in result.fixed.items())
    note = "" if result.better else " What was found is not in the profile."
    return (
        _table(("searched", "defaults", "found", "tried from"), rows) + f"<p class=quiet>Not searched: {_text(fixed)}.{note}</p>"
    )


def _plots(result: TuneResult) -> list[str]:
    if find_spec("matplotlib") is None:
        return ["<p class=quiet>There are no plots, since matplotlib is not installed (the extra diskhaul[tune] brings it).</p>"]
    from . import plots

    figure = main_figure(result)
    better = "higher is better" if figure.higher_is_better else "lower is better"
    shown: list[tuple[bool, str, str, Callable[[TuneResult], str]]] = [
        (
            bool(result.rounds),
            "Measured again: defaults against found",
            f"Squares are the defaults, circles what was found; {better}.",
            plots.comparison_plot,
        ),
        (
            len(result.trials) > 1,
            "Every trial, in order",
            f"Each point is one export of the sample; {better}.",
            plots.history_plot,
        ),
        (
            len(result.trials) > 1,
            "What each setting does",
            _BY_VALUE.format(better=better),
            plots.parameter_plot,
        ),
        (
            "compress" in result.searched,
            "Speed against size",
            "The fastest trial of each compression has its name.",
            plots.tradeoff_plot,
        ),
    ]
    parts = []
    for wanted, title, caption, draw in shown:
        if wanted:
            data = base64.b64encode(draw(result).encode()).decode()
            image = f'<img alt="{_text(title)}" src="data:image/svg+xml;base64,{data}">'
            parts.append(f"<h2>{_text(title)}</h2><p class=quiet>{_text(caption)}</p>{image}")
    return parts


def _rounds(result: TuneResult) -> list[str]:
    if not result.rounds:
        return []
    figures = (speed(result), stored(result), cpu(result))
    head = ["round", *(f"{figure.short}, {who}" for figure in figures for who in ("defaults", "found"))]
    rows = [
        (number, *(figure.text(figure.of(t)) for figure in figures for t in (each.defaults, each.found)))
        for number, each in enumerate(result.rounds, 1)
    ]
    return ["<h2>The rounds of the comparison</h2>", _table(head, rows, numbers=range(1, len(head)))]


def _method(result: TuneResult) -> str:
    sample, data, written = _size(result.sample_bytes), _size(result.data_bytes), _size(result.written_bytes)
    text = f"""
Each trial is a real export of the same sample: {sample} of the {data} that the source holds, spread evenly over it. What the page
cache held of it was dropped before each trial. The time is from the first byte read to the published export, with digests, fsync
and verification of what was stored; CPU time is that of the whole process.

Chosen by {_METHODS.get(result.method, result.method)}. All trials together wrote {written} below the target, and removed it.

The caches of the disk itself, or of a host below this machine, cannot be dropped. Others who used the machine meanwhile are part
of the noise.
"""
    return "".join(f"<p>{_text(' '.join(paragraph.split()))}</p>" for paragraph in text.split("\n\n"))


def _trials(result: TuneResult) -> str:
    names = list(result.searched)
    figures = (speed(result), stored(result), cpu(result))
    rows = [
        (trial.number, trial.phase, *(setting_text(name, trial.settings[name]) for name in names), *_cells(trial, figures))
        for trial in result.trials
    ]
    head = ["trial", "phase", *names, *(figure.short for figure in figures)]
    table = _table(head, rows, numbers=range(2 + len(names), len(head)))
    return f"<details><summary>{len(rows)} trials, as a table</summary><div class=scroll>{table}</div></details>"


def _cells(trial: TuneTrial, figures: Sequence[Figure]) -> list[str]:
    if trial.problem:
        return [trial.problem, "", ""]
    return [figure.text(figure.of(trial)) if trial.seconds else "" for figure in figures]


class _Changed(str):
    """A cell that is set off."""

    __slots__ = ()


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Iterable[int] = ()) -> str:
    right = set(numbers)

    def cell(tag: str, column: int, value: object) -> str:
        classes = ["n"] if column in right else []
        classes += ["changed"] if isinstance(value, _Changed) else []
        attribute = f' class="{" ".join(classes)}"' if classes else ""
        return f"<{tag}{attribute}>{_text(str(value))}</{tag}>"

    lines = ["<tr>" + "".join(cell("th", i, name) for i, name in enumerate(head)) + "</tr>"] if any(head) else []
    lines += ["<tr>" + "".join(cell("td", i, value) for i, value in enumerate(row)) + "</tr>" for row in rows]
    return "<table>" + "\n".join(lines) + "</table>"


def _fact(name: str, value: object) -> str:
    return _size(value) if name == "memory" and isinstance(value, int) else str(value)


def _size(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / MIB:.0f} MiB"


def _text(text: str) -> str:
    """Text for a page: nothing in it is markup, or acts on a reader."""
    return escape(visible(text))
