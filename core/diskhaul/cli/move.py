"""``diskhaul move``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .export import cluster_with, move_options
from .invocation import Answer, Argument, GuestOperation, Invocation, Option, checked, common_options
from .json_output import jsonable
from .restore import grow_option
from .text import duration, escape

if TYPE_CHECKING:
    from ..records import MoveResult, Profile

NIC_KEYS = ("mac", "ip", "network", "name", "mode", "link")


def parse_nic(text: str) -> dict[str, str]:
    """Return ``KEY=VALUE[,KEY=VALUE]...`` as the fields of a network interface.

    Raises:
        ValueError: it is something else.
    """
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or not value or key not in NIC_KEYS or key in fields or not value.isprintable():
            said = escape(text, longest=80)
            raise ValueError(f"'{said}' is not KEY=VALUE[,KEY=VALUE]... with each KEY once, one of {', '.join(NIC_KEYS)}")
        fields[key] = value
    return fields


@click.command("move", cls=GuestOperation)
@click.argument("instance", cls=Argument, metavar="INSTANCE")
@click.option("--to", cls=Option, required=True, metavar="CLUSTER", help="One of the [clusters] of the configuration.")
@click.option("--node", cls=Option, required=True, metavar="N", help="The node of that cluster that takes the instance.")
@click.option("--instance-name", cls=Option, metavar="NEW", help="What the instance is called there.")
@click.option(
    "--nic",
    "nics",
    cls=Option,
    type=checked("KEY=VALUE,...", parse_nic),
    multiple=True,
    metavar="KEY=VALUE,...",
    help="Record this network interface in place of the instance's own; once for each.",
)
@grow_option
@click.option("--force", cls=Option, is_flag=True, help="Overwrite disks that exist there.")
@click.option("--keep-source-instance", cls=Option, is_flag=True, help="Leave the instance here, stopped.")
@move_options
@click.option("--dry-run", cls=Option, is_flag=True, default=None, help="Look at both sides, and touch nothing.")
@common_options(hidden=True)
@click.pass_obj
def move_command(
    invocation: Invocation,
    /,
    instance: str,
    to: str,
    node: str,
    instance_name: str | None,
    nics: tuple[dict[str, str], ...],
    grow: tuple[tuple[int, int], ...],
    force: bool,
    keep_source_instance: bool,
    profile: Profile | None,
    **given: Any,
) -> Answer:
    """Move INSTANCE to another cluster.

    The guest is stopped, exported, imported at the other cluster, started there if it ran, and then removed here. When one side
    fails, it runs here as before; it never runs at both. What a killed move left, 'recover' brings to one of its two ends.

    \b
    Examples:
      diskhaul move web1 --to west --node gamma
      diskhaul move web1 --to west --node gamma --instance-name web2.example.org --grow 0=20GiB --keep-source-instance
    """
    import diskhaul

    from ..option_defaults import move_options as options_of_move
    from .render import notes

    cluster = cluster_with(invocation, profile)
    result = diskhaul.move(
        instance,
        to=to,
        node=node,
        config=cluster,
        instance_name=instance_name,
        nics=[diskhaul.Nic(**nic) for nic in nics] or None,
        grow=dict(grow),
        force=force,
        keep_source_instance=keep_source_instance,
        options=options_of_move(cluster, **given),
        on_event=invocation.on_event,
        cancel=invocation.cancel,
    )
    return Answer(
        document=jsonable(result),
        text=lambda: _text(result),
        exit_code=result.exit_code,
        notes=notes(warnings=result.warnings, incomplete=result.incomplete),
        chatter=not result.dry_run,
    )


def _text(result: MoveResult) -> str:
    if result.export is None:
        steps = [f"  {number}. {escape(step)}" for number, step in enumerate(result.steps, 1)]
        return "\n".join([*steps, "Dry run: nothing was changed."])
    state = "where it runs" if result.started else "where it is down, as it was here"
    here = "removed here" if result.removed else "not removed here" if result.incomplete else "left here, stopped"
    return (
        f"Moved {escape(result.instance)} to cluster {escape(result.cluster)}, {state} as {escape(result.name)}; it was {here}. "
        f"That took {duration(result.timings['total'])}."
    )
