"""``diskhaul list``, ``show``, ``verify``, ``remove`` and ``prune``: exports that exist."""

from __future__ import annotations

import click

from .invocation import Answer, Argument, Command, Invocation, Operation, Option, checked, common_options
from .json_output import jsonable
from .numbers import parse_count

COUNT = checked("count", parse_count)


@click.command("list", cls=Command)
@click.argument("instance", cls=Argument, metavar="[INSTANCE]", required=False)
@click.option("--node", cls=Option, metavar="N", help="Ask this node only.")
@common_options(hidden=True)
@click.pass_obj
def list_command(invocation: Invocation, instance: str | None, node: str | None) -> Answer:
    """List exports (of INSTANCE, or all), with what is wrong with those that are not valid.

    Nodes that do not answer are named on standard error, and the exit code is 4 then.

    \b
    Examples:
      diskhaul list
      diskhaul list web1 --node beta
    """
    import diskhaul

    from .render import list_text

    result = diskhaul.list_exports(instance, config=invocation.cluster(), node=node)
    return Answer(
        document=jsonable(result),
        text=lambda: list_text(result),
        exit_code=result.exit_code,
        notes=_unreachable(result.unreachable),
    )


@click.command("show", cls=Command)
@click.argument("export", cls=Argument, metavar="EXPORT")
@click.option("--node", cls=Option, metavar="N", help="Look on this node only.")
@common_options(hidden=True)
@click.pass_obj
def show_command(invocation: Invocation, export: str, node: str | None) -> Answer:
    """Show one export and its manifest.

    EXPORT is a directory, INSTANCE for its newest valid export, or INSTANCE@ID.

    \b
    Examples:
      diskhaul show web1
      diskhaul --json show web1@20260131T130500Z-1a2b3c4d
    """
    import diskhaul

    from .render import details_text

    details = diskhaul.show(export, config=invocation.cluster_for(export), node=node)
    return Answer(document=jsonable(details), text=lambda: details_text(details.record, details.manifest))


@click.command("verify", cls=Operation)
@click.argument("export", cls=Argument, metavar="[EXPORT]", required=False)
@click.option("--node", cls=Option, metavar="N", help="Look on this node only.")
@common_options(hidden=True)
@click.pass_obj
def verify_command(invocation: Invocation, export: str | None, node: str | None) -> Answer:
    """Read EXPORT, or every export, and compare every byte with its digest.

    EXPORT is a directory, INSTANCE for all exports of it, or INSTANCE@ID. What is wrong is named with disk and offset, and the
    exit code is 6 then.

    \b
    Examples:
      diskhaul verify
      diskhaul verify web1 --node beta
      diskhaul verify /backup/web1.example.com/20260131T130500Z-1a2b3c4d
    """
    import diskhaul

    from .render import verify_text

    result = diskhaul.verify(
        export,
        config=invocation.cluster() if export is None else invocation.cluster_for(export),
        node=node,
        on_event=invocation.on_event,
        cancel=invocation.cancel,
    )
    return Answer(
        document=jsonable(result),
        text=lambda: verify_text(result),
        exit_code=result.exit_code,
        notes=(*_unreachable(result.unreachable), *result.skipped),
        chatter=not result.findings,
    )


@click.command("remove", cls=Operation)
@click.argument("exports", cls=Argument, metavar="EXPORT...", nargs=-1, required=True)
@click.option("--all", "all_exports", cls=Option, is_flag=True, help="EXPORT is an INSTANCE: remove every export of it.")
@click.option("--node", cls=Option, metavar="N", help="Remove from this node only.")
@click.option("--dry-run", cls=Option, is_flag=True, help="Say what would be removed, and remove nothing.")
@common_options(hidden=True)
@click.pass_obj
def remove_command(
    invocation: Invocation, exports: tuple[str, ...], all_exports: bool, node: str | None, dry_run: bool
) -> Answer:
    """Remove exports, without asking.

    EXPORT is INSTANCE@ID, or INSTANCE with --all. The instance itself may be gone; then give its full name. When any of several
    EXPORTs is refused, none is removed.

    \b
    Examples:
      diskhaul remove web1@20260131T130500Z-1a2b3c4d
      diskhaul remove --all old1.example.com old2.example.com --dry-run
    """
    from .removal import remove_several
    from .render import notes, removal_text

    result = remove_several(exports, invocation=invocation, all_exports=all_exports, node=node, dry_run=dry_run)
    return Answer(
        document=jsonable(result),
        text=lambda: removal_text(result),
        exit_code=result.exit_code,
        notes=notes(incomplete=result.incomplete),
        chatter=not dry_run,
    )


@click.command("prune", cls=Operation)
@click.argument("instance", cls=Argument, metavar="[INSTANCE]", required=False)
@click.option("--keep-last", "last", cls=Option, type=COUNT, default="0", metavar="N", help="Keep the N newest.")
@click.option("--keep-daily", "daily", cls=Option, type=COUNT, default="0", metavar="N", help="Keep the newest of N days.")
@click.option("--keep-weekly", "weekly", cls=Option, type=COUNT, default="0", metavar="N", help="Keep the newest of N weeks.")
@click.option("--keep-monthly", "monthly", cls=Option, type=COUNT, default="0", metavar="N", help="Keep the newest of N months.")
@click.option("--keep-yearly", "yearly", cls=Option, type=COUNT, default="0", metavar="N", help="Keep the newest of N years.")
@click.option("--node", cls=Option, metavar="N", help="Prune this node only.")
@click.option("--dry-run", cls=Option, is_flag=True, help="Say what would be removed and kept, and remove nothing.")
@common_options(hidden=True)
@click.pass_obj
def prune_command(
    invocation: Invocation,
    instance: str | None,
    last: int,
    daily: int,
    weekly: int,
    monthly: int,
    yearly: int,
    node: str | None,
    dry_run: bool,
) -> Answer:
    """Remove the exports (of INSTANCE, or all) that no --keep option keeps.

    Days, weeks (ISO), months and years are UTC, and count only where there are exports. At least one --keep option is needed.

    \b
    Examples:
      diskhaul prune web1 --keep-last 3 --dry-run
      diskhaul prune --keep-daily 7 --keep-weekly 4 --keep-monthly 12
    """
    import diskhaul

    from .render import notes, removal_text

    result = diskhaul.prune(
        instance,
        config=invocation.cluster(),
        node=node,
        policy=diskhaul.KeepPolicy(last=last, daily=daily, weekly=weekly, monthly=monthly, yearly=yearly),
        dry_run=dry_run,
        on_event=invocation.on_event,
        cancel=invocation.cancel,
    )
    return Answer(
        document=jsonable(result),
        text=lambda: removal_text(result),
        exit_code=result.exit_code,
        notes=notes(incomplete=result.incomplete),
        chatter=not dry_run,
    )


def _unreachable(nodes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"warning: {node}" for node in nodes)
