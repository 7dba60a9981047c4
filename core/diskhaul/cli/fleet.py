"""``diskhaul fleet export``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ..errors import RefusedError
from .export import SECONDS, all_export_options, cluster_with
from .fleet_progress import fleet_reporter
from .invocation import Answer, Argument, GuestOperation, Invocation, Option, common_options
from .json_output import jsonable

if TYPE_CHECKING:
    from ..records import Profile

ORDERS = ("largest", "smallest", "name")
_LIMITS = ("per_source", "per_target", "parallel", "bwlimit", "retries", "backoff_s")
_OWN = ("patterns", "tags", "all_instances", "to", "nodes", "order", "plan", "resume", "discard", "dry_run", *_LIMITS)


class _Group(click.Group):
    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the whole first paragraph of the help, as that of other commands."""
        return " ".join((self.help or "").partition("\n\n")[0].split())


def _further_problems(ctx: click.Context) -> Sequence[str]:
    """What a fleet with the parameters that could be read would be refused for."""
    from ..library import fleet_operation
    from ..option_defaults import export_options

    given = {name: value for name, value in ctx.params.items() if value is not None and name != "profile"}
    own = {name: given.pop(name) for name in _OWN if name in given}
    try:
        cluster = ctx.ensure_object(Invocation).cluster()
        fleet_operation(cluster=cluster, options=export_options(cluster, **given), **own).check_arguments()
    except RefusedError as error:
        from .flags import in_flags

        return in_flags(error, ctx.command).problems
    return ()


class _FleetExport(GuestOperation):
    reporter = staticmethod(fleet_reporter)
    further_problems = staticmethod(_further_problems)


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    return tuple(value.split(",")) if value is not None else None


@click.group("fleet", cls=_Group, no_args_is_help=False)
@common_options(hidden=True)
def fleet_command() -> None:
    """Export many instances at once, within limits, by a plan that survives a crash of this program.

    \b
    Examples:
      diskhaul fleet export --all --to round-robin
      diskhaul fleet export --resume
    """


@fleet_command.command("export", cls=_FleetExport)
@click.argument("patterns", cls=Argument, metavar="[PATTERN]...", nargs=-1)
@click.option("--tag", "tags", cls=Option, multiple=True, metavar="T", help="Only instances with this tag (or another --tag).")
@click.option("--all", "all_instances", cls=Option, is_flag=True, help="Every instance.")
@click.option("--to", cls=Option, metavar="NODE", help="A node, or: round-robin, most-free.")
@click.option(
    "--nodes", cls=Option, metavar="A,B", callback=_names, help="Nodes to choose from. [default: all that take exports]"
)
@click.option("--per-source", cls=Option, type=int, metavar="N", help="Exports at a time from one node. [default: 2]")
@click.option("--per-target", cls=Option, type=int, metavar="N", help="Exports at a time to one node. [default: 2]")
@click.option("--parallel", cls=Option, type=int, metavar="N", help="Exports at a time, together. [default: 8]")
@click.option("--order", cls=Option, type=click.Choice(ORDERS), help="What comes first. [default: largest]")
@click.option("--retries", cls=Option, type=int, metavar="N", help="Further attempts where a failure may pass. [default: 2]")
@click.option(
    "--backoff", "backoff_s", cls=Option, type=SECONDS, metavar="S", help="Seconds before the first, then doubled. [default: 30]"
)
@click.option("--plan", cls=Option, metavar="NAME", help="What the plan is called. [default: made up]")
@click.option("--resume", cls=Option, is_flag=True, help="Go on with an unfinished plan, and try again what failed.")
@click.option("--discard", cls=Option, is_flag=True, help="Give up an unfinished plan that is in the way.")
@all_export_options
@click.option("--dry-run", cls=Option, is_flag=True, help="Say which instance would go where, in which order.")
@common_options(hidden=True)
@click.pass_obj
def fleet_export_command(invocation: Invocation, /, profile: Profile | None, **given: Any) -> Answer:
    """Export the instances that PATTERNs (names or globs) and tags choose.

    Each is exported as 'diskhaul export' does, with the same options; --bwlimit is for all of them together. What fails in a way
    that may pass is tried again. When this is stopped or killed, --resume goes on. The exit code is that of the worst export.

    \b
    Examples:
      diskhaul fleet export --all --to round-robin --per-source 2 --per-target 4
      diskhaul fleet export 'web*' db1 --to beta --bwlimit 200M
      diskhaul fleet export --tag nightly --to most-free --nodes beta,gamma --plan nightly
      diskhaul fleet export --resume --plan nightly --parallel 4
    """
    import diskhaul

    from .render import notes
    from .render_fleet import fleet_text

    cluster = cluster_with(invocation, profile)
    own = {name: given.pop(name) for name in _OWN}
    resumed = own["resume"] and not any(value is not None for value in given.values())
    result = diskhaul.fleet_export(
        config=cluster,
        options=None if resumed else diskhaul.export_options(cluster, **given),
        on_event=invocation.on_event,
        cancel=invocation.cancel,
        **{name: value for name, value in own.items() if value is not None},
    )
    states = [member.state for member in result.members]
    counts = {state: states.count(state) for state in ("done", "failed", "pending")}
    incomplete = [f"{member.instance}: {line}" for member in result.members for line in member.incomplete]
    return Answer(
        document=jsonable(result) | counts,
        text=lambda: fleet_text(result),
        exit_code=result.exit_code,
        notes=notes(warnings=result.warnings, incomplete=incomplete),
        chatter=result.exit_code == 0 and not result.dry_run,
    )
