"""The plots of a tuning report, as SVG. Needs matplotlib, which is imported with this module.

Only figures of their own are used, never `pyplot`, whose figures belong to the whole program: a tuning run may be one of several
threads.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas

from ..options import MIB, Setting
from ..records import TuneResult, TuneTrial
from .figures import Figure, main_figure, setting_text, speed, stored

WIDTH_IN = 9.2
_DEFAULTS, _FOUND, _OTHERS, _INK, _GRID = "#8a4b08", "#0b62a4", "#9aa5b1", "#1f2933", "#e4e7eb"
_MOST_PANELS = 6


def comparison_plot(result: TuneResult) -> str:
    """The rounds of the final comparison: both settings in each round, joined."""
    figure = main_figure(result)
    canvas, (axes,) = _canvas(1, 1, 3.0)
    numbers = range(1, len(result.rounds) + 1)
    before = [figure.of(each.defaults) for each in result.rounds]
    after = [figure.of(each.found) for each in result.rounds]
    axes.vlines(numbers, before, after, color=_OTHERS, linewidth=2, zorder=1)
    axes.scatter(numbers, before, s=70, color=_DEFAULTS, marker="s", label="defaults", zorder=3)
    axes.scatter(numbers, after, s=75, color=_FOUND, marker="o", label="found", zorder=3)
    axes.set_xlabel("round (both settings one right after the other)")
    axes.set_ylabel(_wrapped(figure.label))
    axes.set_xticks(list(numbers))
    axes.set_xlim(0.5, len(result.rounds) + 0.5)
    _from_zero(axes, [*before, *after])
    _legend(axes)
    return _svg(canvas)


def history_plot(result: TuneResult) -> str:
    """Every trial in its order, and the best so far."""
    figure = main_figure(result)
    canvas, (axes,) = _canvas(1, 1, 3.2)
    done = _done(result.trials)
    if not done:
        return _svg(canvas)
    groups = (
        ("defaults", _DEFAULTS, "s", [t for t in done if t.settings == result.defaults]),
        ("found", _FOUND, "o", [t for t in done if t.settings == result.found and t.settings != result.defaults]),
        ("other settings", _OTHERS, "o", [t for t in done if t.settings not in (result.defaults, result.found)]),
    )
    for label, color, marker, trials in groups:
        if trials:
            xs, ys = [t.number for t in trials], [figure.of(t) for t in trials]
            axes.scatter(xs, ys, s=32, color=color, marker=marker, label=label, zorder=2 if color == _OTHERS else 3)
    stopped = [t.number for t in result.trials if t.problem]
    if stopped:
        axes.scatter(
            stopped, [0] * len(stopped), s=28, color=_INK, marker="x", label="stopped or failed", zorder=3, clip_on=False
        )
    for row, (phase, label) in enumerate((("confirm", "best ones again"), ("compare", "comparison"))):
        first = next((t.number for t in result.trials if t.phase == phase), None)
        if first is not None:
            axes.axvline(first - 0.5, color=_INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            axes.annotate(
                label,
                (first - 0.5, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(4, 14 - 11 * row),  # one above the other: the phases may be short
                textcoords="offset points",
                fontsize=8.5,
                color=_INK,
            )
    axes.set_xlabel("trial")
    axes.set_ylabel(_wrapped(figure.label))
    axes.set_xlim(0, len(result.trials) + 1)
    _from_zero(axes, [figure.of(t) for t in done])
    _legend(axes)
    return _svg(canvas)


def parameter_plot(result: TuneResult) -> str:
    """For each parameter all trials by its value, and the medians."""
    figure = main_figure(result)
    done = _done(result.trials)
    names = [name for name in result.searched if any(t.settings[name] != result.defaults[name] for t in done)][:_MOST_PANELS]
    columns = min(2, len(names)) or 1
    rows = math.ceil(len(names) / columns) or 1
    canvas, panels = _canvas(rows, columns, 2.5 * rows + 0.2, share_y=True)
    for axes, name in zip(panels, names, strict=False):
        _panel(axes, name, result, done, figure)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    for row in range(rows):
        panels[row * columns].set_ylabel(_wrapped(figure.label))
    _from_zero(panels[0], [figure.of(t) for t in done])
    return _svg(canvas)


def _panel(axes: Any, name: str, result: TuneResult, done: Sequence[TuneTrial], figure: Figure) -> None:
    values = result.searched[name]
    for place, value in enumerate(values):
        ys = [figure.of(t) for t in done if t.settings[name] == value]
        if not ys:
            continue
        spread = [place + 0.28 * ((number * 0.618) % 1 - 0.5) for number in range(len(ys))]
        axes.scatter(spread, ys, s=16, color=_OTHERS, zorder=2)
        median = sorted(ys)[len(ys) // 2]
        axes.hlines(median, place - 0.28, place + 0.28, color=_color(value, name, result), linewidth=3, zorder=3)
    axes.set_xticks(range(len(values)))
    axes.set_xticklabels([_tick(name, value) for value in values], fontsize=8.5 if len(values) < 9 else 7)
    axes.set_xlim(-0.6, len(values) - 0.4)
    axes.set_title(name, fontsize=10, loc="left", color=_INK, fontweight="bold")


def tradeoff_plot(result: TuneResult) -> str:
    """Speed against stored size; for runs that searched the compression."""
    x, y = speed(result), stored(result)
    canvas, (axes,) = _canvas(1, 1, 3.6)
    done = _done(result.trials)
    best: dict[Setting, TuneTrial] = {}
    for trial in done:
        name = trial.settings["compress"]
        if name not in best or x.of(trial) > x.of(best[name]):
            best[name] = trial
    axes.scatter([x.of(t) for t in done], [y.of(t) for t in done], s=18, color=_OTHERS, label="every trial", zorder=2)
    for name, trial in best.items():
        color = _color(name, "compress", result)
        axes.scatter([x.of(trial)], [y.of(trial)], s=45, color=color, zorder=3)
        axes.annotate(str(name), (x.of(trial), y.of(trial)), xytext=(5, 5), textcoords="offset points", fontsize=8.5, color=_INK)
    axes.set_xlabel(x.label)
    axes.set_ylabel(_wrapped(y.label))
    axes.margins(0.12)
    axes.set_xlim(left=0)
    return _svg(canvas)


def _color(value: Setting, name: str, result: TuneResult) -> str:
    if value == result.found[name] and result.found[name] != result.defaults[name]:
        return _FOUND
    return _DEFAULTS if value == result.defaults[name] else _INK


def _tick(name: str, value: Setting) -> str:
    if name == "chunk_size" and isinstance(value, int):
        return f"{value / MIB:g} MiB"
    return "0 (auto)" if name == "threads" and value == 0 else setting_text(name, value)


def _done(trials: Iterable[TuneTrial]) -> list[TuneTrial]:
    return [trial for trial in trials if not trial.problem and trial.seconds > 0]


def _canvas(rows: int, columns: int, height_in: float, *, share_y: bool = False) -> tuple[Canvas, list[Any]]:
    canvas = Canvas(figsize=(WIDTH_IN, height_in), layout="constrained")
    FigureCanvasSVG(canvas)
    panels = list(canvas.subplots(rows, columns, sharey=share_y, squeeze=False).flat)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_OTHERS)
        axes.tick_params(colors=_INK, labelsize=9)
        axes.grid(axis="y", color=_GRID, linewidth=0.9)
        axes.set_axisbelow(True)
        axes.xaxis.label.set_color(_INK)
        axes.yaxis.label.set_color(_INK)
    return canvas, panels


def _from_zero(axes: Any, values: Sequence[float]) -> None:
    axes.set_ylim(0, max(values, default=1.0) * 1.1 or 1.0)


def _legend(axes: Any) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9, borderaxespad=0.3, handletextpad=0.3)


def _wrapped(label: str) -> str:
    """The unit on a line of its own."""
    return label.replace(" (", "\n(", 1)


def _svg(canvas: Canvas) -> str:
    written = io.StringIO()
    canvas.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return written.getvalue()
