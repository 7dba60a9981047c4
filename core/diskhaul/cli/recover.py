"""``diskhaul recover``."""

from __future__ import annotations

import click

from .invocation import Answer, Argument, GuestOperation, Invocation, common_options
from .json_output import jsonable


@click.command("recover", cls=GuestOperation)
@click.argument("instance", cls=Argument, metavar="[INSTANCE]", required=False)
@common_options(hidden=True)
@click.pass_obj
def recover_command(invocation: Invocation, instance: str | None) -> Answer:
    """Finish or undo what an interrupted run left (of INSTANCE, or all).

    For use after a power cut or a SIGKILL: snapshots and unfinished exports of dead runs are removed, guests that such a run
    had stopped are started. Runs that are alive are left alone. It can be repeated, and interrupted, at will.

    \b
    Examples:
      diskhaul recover
      diskhaul recover web1
    """
    import diskhaul

    from .render import notes, recover_text

    result = diskhaul.recover(instance, config=invocation.cluster(), on_event=invocation.on_event, cancel=invocation.cancel)
    return Answer(
        document=jsonable(result),
        text=lambda: recover_text(result),
        exit_code=result.exit_code,
        notes=notes(incomplete=result.incomplete),
        chatter=True,
    )
