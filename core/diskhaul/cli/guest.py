"""``diskhaul guest``."""

from __future__ import annotations

import click

from .invocation import Answer, Argument, GuestOperation, Invocation, Option, checked, common_options
from .json_output import jsonable
from .numbers import parse_seconds
from .text import escape

ACTIONS = ("status", "start", "stop")


@click.command("guest", cls=GuestOperation)
@click.argument("action", cls=Argument, metavar="ACTION", type=click.Choice(ACTIONS))
@click.argument("instance", cls=Argument, metavar="INSTANCE")
@click.option(
    "--shutdown-timeout",
    "shutdown_timeout_s",
    cls=Option,
    type=checked("seconds", parse_seconds),
    metavar="S",
    help="stop: how long a clean shutdown may take, seconds. [default: 120]",
)
@click.option(
    "--move",
    cls=Option,
    metavar="RUN_ID",
    help="start, stop: on behalf of this move from another cluster. After a stop, a start with the same id is refused; after a "
    "start, a stop leaves the guest as it is.",
)
@click.option(
    "--disks",
    cls=Option,
    is_flag=True,
    help="status, with --json: of each disk of a guest that is down, where it is, its size, and a digest of its first MiB.",
)
@common_options(hidden=True)
@click.pass_obj
def guest_command(
    invocation: Invocation, action: str, instance: str, shutdown_timeout_s: float | None, move: str | None, disks: bool
) -> Answer:
    """Ask whether the guest of INSTANCE runs, start it, or stop it.

    Goes through the instance's runtime, under its lock, so that nothing else works on it meanwhile. What is so already is left
    alone: starting a guest that runs, or stopping one that is down, changes nothing.

    \b
    Examples:
      diskhaul guest status web1
      diskhaul guest stop web1 --shutdown-timeout 300
      diskhaul guest start web1
    """
    import diskhaul

    from .render import notes

    result = diskhaul.guest(
        next(known for known in ("status", "start", "stop") if known == action),
        instance,
        config=invocation.cluster(),
        shutdown_timeout_s=120.0 if shutdown_timeout_s is None else shutdown_timeout_s,
        move=move,
        disks=disks,
        on_event=invocation.on_event,
        cancel=invocation.cancel,
    )
    state = "runs" if result.running else "is down"
    return Answer(
        document=jsonable(result),
        text=lambda: f"{escape(result.instance)} {state}{'' if result.changed or action == 'status' else ' already'}.",
        notes=notes(warnings=result.warnings),
        chatter=action != "status",
    )
