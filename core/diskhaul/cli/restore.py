"""``diskhaul import``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..sizes import MAX_SIZE
from .invocation import PATH, Answer, Argument, Invocation, Operation, Option, checked, common_options
from .json_output import jsonable
from .numbers import parse_size
from .path_options import path_options, profile_option
from .text import escape

if TYPE_CHECKING:
    from ..records import Profile

F = TypeVar("F", bound=Callable[..., Any])
_DISK = re.compile(r"([0-9]{1,4})=(.+)", re.DOTALL)


def parse_disk(text: str) -> tuple[int, Path]:
    """Return ``N=PATH`` as disk index and path.

    Raises:
        ValueError: it is something else.
    """
    match = _DISK.fullmatch(text)
    if match is None:
        raise ValueError(f"'{escape(text, longest=80)}' is not N=PATH (such as 0=/dev/vg/web1)")
    return int(match.group(1)), Path(match.group(2))


def _by_index(ctx: click.Context, param: click.Parameter, value: tuple[tuple[int, Path], ...]) -> dict[int, Path] | None:
    disks: dict[int, Path] = {}
    for index, path in value:
        if index in disks:
            raise click.BadParameter(f"disk {index} is given twice")
        disks[index] = path
    return disks or None


def parse_growth(text: str) -> tuple[int, int]:
    """Return ``N=SIZE`` as disk index and bytes.

    Raises:
        ValueError: it is something else.
    """
    index, equals, size = text.partition("=")
    if not equals or not re.fullmatch(r"[0-9]{1,4}", index):
        raise ValueError(f"'{escape(text, longest=80)}' is not N=SIZE (such as 0=20GiB)")
    return int(index), parse_size(size, smallest=1, largest=MAX_SIZE)


def _once(ctx: click.Context, param: click.Parameter, value: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    if len(dict(value)) != len(value):
        raise click.BadParameter("a disk is given twice")
    return value


def grow_option(function: F) -> F:
    """Add ``--grow``; the command gets pairs of disk index and bytes as ``grow``."""
    return click.option(
        "--grow",
        cls=Option,
        type=checked("N=SIZE", parse_growth),
        multiple=True,
        callback=_once,
        metavar="N=SIZE",
        help="Make disk N this large; once for each disk. A disk may grow, never shrink.",
    )(function)


@click.command("import", cls=Operation)
@click.argument("export", cls=Argument, metavar="EXPORT")
@click.option("--node", cls=Option, metavar="N", help="Look for the export on this node only.")
@click.option("--to-dir", cls=Option, type=PATH, metavar="D", help="Put every disk into directory D, as files.")
@click.option(
    "--disk",
    "disks",
    cls=Option,
    type=checked("N=PATH", parse_disk),
    multiple=True,
    callback=_by_index,
    metavar="N=PATH",
    help="Put disk N into this file or device; once for each disk.",
)
@click.option("--instance-name", cls=Option, metavar="NEW", help="Call the instance NEW.")
@grow_option
@click.option("--force", cls=Option, is_flag=True, help="Overwrite targets that exist.")
@click.option("--dry-run", cls=Option, is_flag=True, help="Check everything and write nothing.")
@path_options
@profile_option
@common_options(hidden=True)
@click.pass_obj
def import_command(
    invocation: Invocation,
    /,
    export: str,
    node: str | None,
    to_dir: Path | None,
    disks: dict[int, Path] | None,
    instance_name: str | None,
    grow: tuple[tuple[int, int], ...],
    force: bool,
    dry_run: bool,
    profile: Profile | None,
    **path: Any,
) -> Answer:
    """Bring the disks of EXPORT back.

    EXPORT is the directory of an export, or INSTANCE for its newest valid export, or INSTANCE@ID. Without --to-dir and --disk the
    disks go where the configuration has them. Every chunk is checked against its digest before it counts; holes come back as
    holes. A directory needs no configuration when the disks go to --to-dir or --disk.

    \b
    Examples:
      diskhaul import web1 --to-dir /srv/restored
      diskhaul import web1@20260131T130500Z-1a2b3c4d --disk 0=/dev/vg/web1 --force
      diskhaul import /backup/web1.example.com/20260131T130500Z-1a2b3c4d --to-dir .
    """
    import diskhaul

    from .render import import_text, notes

    cluster = invocation.cluster_for(export)
    if cluster is not None and profile is not None:
        cluster = diskhaul.with_profile(cluster, profile)
    result = diskhaul.import_(
        export,
        config=cluster,
        node=node,
        to_dir=to_dir,
        disks=disks,
        instance_name=instance_name,
        options=diskhaul.import_options(profile=profile, grow=grow, force=force, dry_run=dry_run, **path),
        on_event=invocation.on_event,
        cancel=invocation.cancel,
    )
    return Answer(
        document=jsonable(result),
        text=lambda: import_text(result),
        exit_code=result.exit_code,
        notes=notes(warnings=result.warnings),
        chatter=not result.dry_run,
    )
