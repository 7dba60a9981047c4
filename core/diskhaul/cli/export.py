"""``diskhaul export`` and ``diskhaul plan``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from ..errors import RefusedError
from ..options import MAX_CHUNK_SIZE, MIN_CHUNK_SIZE, DigestTime
from .invocation import PATH, Answer, Argument, GuestOperation, Invocation, Operation, Option, checked, common_options
from .json_output import jsonable
from .numbers import parse_seconds, parse_size
from .path_options import path_options, profile_option

if TYPE_CHECKING:
    from pathlib import Path

    from ..model import Cluster
    from ..records import Profile

F = TypeVar("F", bound=Callable[..., Any])
SECONDS = checked("seconds", parse_seconds)
CHUNK = checked("a size", partial(parse_size, smallest=MIN_CHUNK_SIZE, largest=MAX_CHUNK_SIZE))

# All defaults are None, "not given": the configuration's [defaults] decide then, and each flag has its opposite to override them.
_OPTIONS = (
    ("--shutdown/--no-shutdown", "shutdown", None, "Stop the guest for the snapshots, or export it live. [default: --shutdown]"),
    ("--shutdown-timeout", "shutdown_timeout_s", SECONDS, "How long a clean shutdown may take, seconds. [default: 120]"),
    (
        "--long-sleep/--no-long-sleep",
        "long_sleep",
        None,
        "Where snapshots are impossible, keep the guest down while its disks are sent.",
    ),
    (
        "--zero-free-space/--no-zero-free-space",
        "zero_free_space",
        None,
        "Leave out, or zero, what the guest's filesystems do not use (docs/free-space.md).",
    ),
    ("--zero-fill", "zero_fill", str, "How free space is found. [default: the first backend that can]"),
    ("--zeroing-timeout-fixed", "zeroing_timeout_fixed_s", SECONDS, "Limit for zeroing, seconds. [default: 300]"),
    (
        "--zeroing-timeout-per-mib",
        "zeroing_timeout_per_mib_s",
        SECONDS,
        "Further seconds for each MiB of the disks. [default: 0.05]",
    ),
    (
        "--compress",
        "compress",
        str,
        "none, zstd:LEVEL, zstd:adaptive[:FLOOR] (as high as disk and target leave time for) or gzip:LEVEL. [default: zstd:1]",
    ),
    (
        "--remove-instance/--no-remove-instance",
        "remove_instance",
        None,
        "Remove the instance once its export has been read back.",
    ),
    (
        "--ignore-remove-failures/--no-ignore-remove-failures",
        "ignore_remove_failures",
        None,
        "A removal that fails does not make the result incomplete.",
    ),
    ("--layout", "layout", click.Choice(("diskhaul", "ganeti")), "How the export is laid out. [default: diskhaul]"),
    ("--chunk-size", "chunk_size", CHUNK, "Unit of reading, digests and compression, a power of two. [default: 4M]"),
    (
        "--verify",
        "verify",
        click.Choice(("stored", "full", "none")),
        "Read back what was stored, decode it too, or neither (then no superseded export is removed). [default: stored]",
    ),
    (
        "--digest",
        "digest",
        click.Choice(get_args(DigestTime)),
        "Read raw disks that are not copied, but share their blocks, now, or leave that to verify. [default: now]",
    ),
)
_METAVARS = {"--zero-fill": "BACKEND", "--compress": "C", "--chunk-size": "SIZE"}


def _export_options(function: F, but: Collection[str] = ()) -> F:
    for declaration, name, kind, text in reversed([option for option in _OPTIONS if option[1] not in but]):
        function = click.option(
            declaration,
            name,
            cls=Option,
            type=bool if kind is None else kind,
            default=None,
            metavar="S" if kind is SECONDS else _METAVARS.get(declaration),
            help=text,
        )(function)
    return function


def cluster_with(invocation: Invocation, profile: Profile | None) -> Cluster:
    """The cluster, with what the profile sets over its defaults."""
    import diskhaul

    cluster = invocation.cluster()
    return cluster if profile is None else diskhaul.with_profile(cluster, profile)


def all_export_options(function: F) -> F:
    """Add the options of an export, but for ``--dry-run``; the command gets them by their names, and ``profile``."""
    return _export_options(path_options(profile_option(function)))


def move_options(function: F) -> F:
    """Add the options of an export that a move leaves open."""
    decided = ("shutdown", "long_sleep", "remove_instance", "ignore_remove_failures", "layout", "digest")
    return _export_options(path_options(profile_option(function)), but=decided)


def _further_problems(ctx: click.Context) -> Sequence[str]:
    """What an export with the parameters that could be read would be refused for: its options and its names."""
    instance, node = ctx.params.get("instance"), ctx.params.get("node")
    if instance is None or node is None:  # that has been told, and is only a slip: nothing heavy is loaded for it
        return ()

    from ..operations.base import RunContext
    from ..operations.export import ExportOperation
    from ..option_defaults import export_options

    given = {name: value for name, value in ctx.params.items() if name not in ("instance", "node", "remote")}
    try:
        cluster = ctx.ensure_object(Invocation).cluster()
        options = export_options(cluster, **given)
        operation = ExportOperation(RunContext(cluster), instance, node, options)
        operation.check_arguments()
        operation.expand_names()
    except RefusedError as error:
        return error.problems
    return ()


def _or_remote(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Exactly one of ``--node`` and ``--remote``, which is looked at first, has to be there."""
    if value is None and ctx.params.get("remote") is None and not ctx.resilient_parsing:
        raise click.MissingParameter(ctx=ctx, param=param)
    if value is not None and ctx.params.get("remote") is not None:
        raise click.BadParameter("goes to a node here, and --remote to another cluster: give one of them")
    return value


class _ExportCommand(GuestOperation):
    further_problems = staticmethod(_further_problems)


class _PlanCommand(Operation):
    further_problems = staticmethod(_further_problems)


@click.command("export", cls=_ExportCommand)
@click.argument("instance", cls=Argument, metavar="INSTANCE")
@click.option("--node", cls=Option, metavar="N", callback=_or_remote, help="The node the export goes to.")
@click.option(
    "--remote",
    cls=Option,
    type=PATH,
    metavar="FILE",
    is_eager=True,
    help="The destination at another cluster, in place of a node.",
)
@all_export_options
@click.option(
    "--dry-run", cls=Option, is_flag=True, default=None, help="Check everything, run the pre hook scripts, and touch nothing."
)
@common_options(hidden=True)
@click.pass_obj
def export_command(
    invocation: Invocation, /, instance: str, node: str | None, remote: Path | None, profile: Profile | None, **given: Any
) -> Answer:
    """Export INSTANCE to a node, or to another cluster.

    The guest is stopped, its disks are snapshotted, it is started again, and the snapshots are sent. Whatever fails, a guest
    that was running is running afterwards. The new export supersedes those that the clean-up policy names.

    \b
    Examples:
      diskhaul export web1 --node beta
      diskhaul export web1 --node beta --no-shutdown --compress zstd:3
      diskhaul export db1 --node beta --compress zstd:9 --verify full --dry-run
      diskhaul export web1 --remote web1.destination
    """
    import diskhaul

    from .render import export_text, notes

    cluster = cluster_with(invocation, profile)
    result = diskhaul.export(
        instance,
        node=node,
        remote=remote,
        config=cluster,
        options=diskhaul.export_options(cluster, **given),
        on_event=invocation.on_event,
        cancel=invocation.cancel,
    )
    return Answer(
        document=jsonable(result),
        text=lambda: export_text(result),
        exit_code=result.exit_code,
        notes=notes(warnings=result.warnings, incomplete=result.incomplete),
        chatter=result.export is not None,
    )


@click.command("plan", cls=_PlanCommand)
@click.argument("instance", cls=Argument, metavar="INSTANCE")
@click.option("--node", cls=Option, required=True, metavar="N", help="The node the export would go to.")
@all_export_options
@common_options(hidden=True)
@click.pass_obj
def plan_command(invocation: Invocation, /, instance: str, node: str, profile: Profile | None, **given: Any) -> Answer:
    """Say what an export of INSTANCE would do.

    Shows the steps in order, for how long the guest would be down, how much would be read, about how much would be written, and
    which exports would be superseded. Takes the options of export. Nothing is changed.

    \b
    Examples:
      diskhaul plan web1 --node beta
      diskhaul plan web1 --node beta --no-shutdown --compress zstd:9
    """
    import diskhaul

    from .render import plan_text

    cluster = cluster_with(invocation, profile)
    plan = diskhaul.plan(
        instance,
        node=node,
        config=cluster,
        options=diskhaul.export_options(cluster, **given),
        on_event=invocation.on_event,
        cancel=invocation.cancel,
    )
    return Answer(document=jsonable(plan), text=lambda: plan_text(plan))
