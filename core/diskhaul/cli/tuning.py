"""``diskhaul bench`` and ``diskhaul tune``."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from ..options import MAX_TIMEOUT_S, Aim
from .export import CHUNK
from .invocation import PATH, Answer, Invocation, Operation, Option, checked, common_options
from .json_output import jsonable
from .numbers import parse_seconds, parse_size
from .path_options import path_options, profile_option

if TYPE_CHECKING:
    from ..records import Profile

_RATIO = re.compile(r"[0-9]{1,4}(\.[0-9]{1,4})?x")
_SAMPLE = checked("a size", partial(parse_size, smallest=1 << 20, largest=1 << 50))


def parse_within(text: str) -> tuple[float | None, float | None]:
    """Return ``S`` or ``Ss`` as seconds and no ratio, ``1.5x`` as no seconds and a ratio.

    Raises:
        ValueError: it is something else.
    """
    if _RATIO.fullmatch(text) and (ratio := float(text[:-1])) > 0:
        return None, ratio
    try:
        seconds = parse_seconds(text.removesuffix("s"))
    except ValueError:
        seconds = 0.0
    if not seconds:
        raise ValueError(f"{text[:40]!a} is neither a number of seconds (such as 300) nor a ratio (such as 1.5x)")
    return seconds, None


def _time(text: str) -> float:
    seconds = parse_seconds(text)
    if not 1 <= seconds <= MAX_TIMEOUT_S:
        raise ValueError(f"{text} is less than a second: too short to measure anything")
    return seconds


TIME = checked("seconds", _time)


@click.command("bench", cls=Operation)
@click.option(
    "--source", cls=Option, type=PATH, metavar="DISK", help="An image or block device to read; nothing is written to it."
)
@click.option(
    "--target", cls=Option, type=PATH, metavar="DIR", help="Where exports would lie. A scratch file is made and removed."
)
@click.option(
    "--time", "time_limit_s", cls=Option, type=TIME, metavar="S", help="About how long to measure, seconds. [default: 20]"
)
@click.option("--compress", cls=Option, metavar="C", help="Of the export that is predicted, as all options below.")
@click.option("--chunk-size", cls=Option, type=CHUNK, metavar="SIZE", help="Unit of reading, digests and compression.")
@path_options
@profile_option
@common_options(hidden=True)
@click.pass_obj
def bench_command(
    invocation: Invocation,
    /,
    source: Path | None,
    target: Path | None,
    time_limit_s: float | None,
    profile: Profile | None,
    **given: Any,
) -> Answer:
    """Measure this machine's limits, and say which of them an export will hit.

    Reads the source (past the page cache, and from it), writes a scratch file of at most 256 MiB below the target, reads it
    back, and measures memory, zero scan, digest and compression on data of the source, by one thread and by as many as an export
    uses. Every rate is the median of three rounds.

    \b
    Examples:
      diskhaul bench --source /dev/vg/web1 --target /srv/exports
      diskhaul bench --source disk.raw --target . --compress zstd:3 --threads 4
      diskhaul --json bench
    """
    import diskhaul
    from diskhaul.library import DEFAULT_BENCH_TIME_S

    from .render_tuning import bench_text

    cluster = invocation.cluster_if_any() or diskhaul.Cluster(name="none", state_dir=Path("/nonexistent"))
    if profile is not None:
        cluster = diskhaul.with_profile(cluster, profile)
    result = diskhaul.bench(
        source=source,
        target=target,
        config=cluster,
        options=diskhaul.export_options(cluster, **given),
        on_event=invocation.on_event,
        cancel=invocation.cancel,
        time_limit_s=DEFAULT_BENCH_TIME_S if time_limit_s is None else time_limit_s,
    )
    return Answer(document=jsonable(result), text=lambda: bench_text(result))


@click.command("tune", cls=Operation)
@click.option("--source", cls=Option, type=PATH, metavar="DISK", help="The image or block device to tune for; it is only read.")
@click.option("--instance", cls=Option, metavar="I", help="In its place: an instance of the configuration, with all its disks.")
@click.option(
    "--target", cls=Option, type=PATH, required=True, metavar="DIR", help="Where exports would lie. All is removed again."
)
@click.option("--aim", cls=Option, type=click.Choice(get_args(Aim)), help="What is best. [default: fastest]")
@click.option(
    "--within",
    cls=Option,
    type=checked("within", parse_within),
    metavar="S|Rx",
    help="For smallest: seconds for the whole source, or how many times as long as with the defaults. [default: 2x]",
)
@click.option("--time", "time_limit_s", cls=Option, type=TIME, metavar="S", help="Seconds after which all is over. [default: 60]")
@click.option(
    "--compress-range",
    cls=Option,
    metavar="LIST",
    help="Compressions to search, such as zstd:-5..6,none. [default: none are, but for smallest]",
)
@click.option("--sample", "sample_bytes", cls=Option, type=_SAMPLE, metavar="SIZE", help="Most that a trial reads. [default: 1G]")
@click.option(
    "--write-limit", cls=Option, type=_SAMPLE, metavar="SIZE", help="Most that all trials together write. [default: 64G]"
)
@click.option(
    "--search",
    cls=Option,
    type=click.Choice(("auto", "optuna", "grid")),
    help="How to choose what to try. [default: optuna where it is installed, else grid]",
)
@click.option("--seed", cls=Option, type=click.IntRange(0, (1 << 32) - 1), metavar="N", help="Of what is drawn. [default: 0]")
@click.option("--out", cls=Option, type=PATH, metavar="FILE", help="The profile to write. [default: profile.toml]")
@click.option("--report", cls=Option, type=PATH, metavar="FILE", help="An HTML page to write, with plots.")
@click.option("--resume", cls=Option, is_flag=True, help="Go on with the trials of an interrupted run.")
@click.option("--compress", cls=Option, metavar="C", help="Given instead of searched, as all options below.")
@click.option("--chunk-size", cls=Option, type=CHUNK, metavar="SIZE", help="Unit of reading, digests and compression.")
@path_options
@common_options(hidden=True)
@click.pass_obj
def tune_command(
    invocation: Invocation,
    /,
    source: Path | None,
    instance: str | None,
    target: Path,
    within: tuple[float | None, float | None] | None,
    compress_range: str | None,
    out: Path | None,
    report: Path | None,
    resume: bool,
    **given: Any,
) -> Answer:
    """Search the settings with which a disk is exported best, and write a profile for --profile.

    A sample of the source is exported to the target again and again, with other settings each time, and removed. What is given
    is kept as it is, the rest is searched: chunk size, threads, read-ahead, direct I/O; the compression for smallest, or with
    --compress-range. In the end what was found is compared with the defaults, in turn: the profile holds it only if it is better
    by more than the noise. Interrupted, nothing is left but the trials, for --resume.

    \b
    Examples:
      diskhaul tune --source /dev/vg/web1 --target /srv/exports
      diskhaul tune --instance web1 --target /srv/exports --time 300 --report report.html
      diskhaul tune --source disk.raw --target . --aim smallest --within 1.5x --out small.toml
    """
    import diskhaul

    from .render import notes
    from .render_tuning import tune_text

    names = ("aim", "time_limit_s", "sample_bytes", "write_limit", "search", "seed")
    asked = {name: value for name in names if (value := given.pop(name)) is not None}
    within_s, within_ratio = within or (None, None)
    result = diskhaul.tune(
        source=source,
        instance=instance,
        target=target,
        config=invocation.cluster() if instance is not None else invocation.cluster_if_any(),
        within_s=within_s,
        within_ratio=within_ratio,
        compress_range=tuple(filter(None, (compress_range or "").split(","))),
        fixed={name: value for name, value in given.items() if value is not None},
        out=out or Path("profile.toml"),
        report=report,
        resume=resume,
        on_event=invocation.on_event,
        cancel=invocation.cancel,
        **asked,
    )
    return Answer(document=jsonable(result), text=lambda: tune_text(result), notes=notes(warnings=result.warnings))
