"""Results of ``bench`` and ``tune`` as text for people. Everything shown is escaped (see `text`)."""

from __future__ import annotations

from ..options import Setting
from ..records import BenchResult, Measurement, PathLimit, TuneResult, TuneTrial
from .text import count, duration, escape, facts, iec, table

_AIMS = {"fastest": "the fastest export", "smallest": "the smallest export", "least-cpu": "the export that takes the least CPU"}
_SIZES = ("chunk_size", "memory", "bwlimit")


def bench_text(result: BenchResult) -> str:
    """Return every rate, then what an export runs into, then what keeps this from being the whole truth."""
    rows = [
        (
            each.name,
            each.threads,
            f"{iec(each.rate)}/s",
            _spread(each),
            f"{each.ratio:.2f}" if each.ratio is not None else "",
            each.note,
        )
        for each in result.measurements
    ]
    rates = table(("what", "threads", "median", "from - to", "ratio", ""), rows, right=("threads", "median", "ratio"))
    settings = ", ".join(f"{name} {setting_text(name, value)}" for name, value in result.options.items())
    limits = [f"  {_limit(each)}{'' if number else ' <- the limit'}" for number, each in enumerate(result.limits)]
    parts = [rates, "", f"An export with {escape(settings)}", "would run at most at:", *limits]
    if result.predicted_rate:
        following = f"; next: {result.limits[1].name}, {iec(result.limits[1].rate)}/s" if len(result.limits) > 1 else ""
        parts.append(f"Limit: {result.limits[0].name}, {iec(result.predicted_rate)}/s of the disk's data{following}.")
    return "\n".join([*parts, *(f"Note: {escape(note)}." for note in result.notes)])


def _spread(measurement: Measurement) -> str:
    return f"{iec(min(measurement.rounds))} - {iec(max(measurement.rounds))}"


def _limit(limit: PathLimit) -> str:
    return f"{iec(limit.rate) + '/s':>12}  {escape(limit.name)} ({escape(limit.detail)})"


def tune_text(result: TuneResult) -> str:
    """Say what was found, how much better it is, and where the profile is."""
    trials = f"{count(len(result.trials), 'trial')} ({result.method}) of {iec(result.sample_bytes)} each"
    rows = [
        ("searched for", f"{_AIMS[result.aim]} of {result.source} to {result.target}"),
        ("with", f"{trials}, of {iec(result.data_bytes)} that the source holds, in {duration(result.seconds)}"),
        ("outcome", result.verdict),
        ("profile", f"{result.profile_path} (export, plan and import take it with --profile)" if result.profile_path else ""),
        ("trials", result.trials_path),
        ("report", result.report_path),
    ]
    settings = table(
        ("  setting", "defaults", "found", "searched in"),
        [
            (
                f"  {name}",
                setting_text(name, result.defaults[name]),
                setting_text(name, result.found[name]),
                ", ".join(setting_text(name, value) for value in values),
            )
            for name, values in result.searched.items()
        ],
    )
    parts = [facts(rows), settings]
    if result.rounds:
        parts.append(_rounds(result))
    return "\n".join(parts)


def _rounds(result: TuneResult) -> str:
    def cells(trial: TuneTrial) -> tuple[str, str, str]:
        rate = result.sample_bytes / trial.seconds if trial.seconds else 0.0
        return f"{iec(rate)}/s", f"{trial.cpu_seconds:.2f} s", iec(trial.stored_bytes)

    headings = ("  round", "defaults", "CPU", "stored", "found", "CPU ", "stored ")
    rows = [(f"  {number}", *cells(each.defaults), *cells(each.found)) for number, each in enumerate(result.rounds, 1)]
    return table(headings, rows, right=headings[1:])


def setting_text(name: str, value: Setting) -> str:
    """A setting as people read it: sizes in IEC units, true and false as in TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if name in _SIZES and isinstance(value, int) and value:
        return iec(value)
    return str(value)
