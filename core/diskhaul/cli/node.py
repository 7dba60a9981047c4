"""``diskhaul node``."""

from __future__ import annotations

import sys

import click

from .invocation import Answer, Argument, Invocation, Operation, Option, common_options
from .json_output import jsonable
from .text import escape

ACTIONS = ("serve",)


@click.command("node", cls=Operation)
@click.argument("action", cls=Argument, metavar="ACTION", type=click.Choice(ACTIONS))
@click.option("--node", cls=Option, metavar="NODE", required=True, help="Which of the cluster's nodes this machine is.")
@common_options(hidden=True)
@click.pass_obj
def node_command(invocation: Invocation, action: str, node: str) -> Answer:
    """Run what a node runs for the others, until Ctrl-C or SIGTERM.

    serve runs the receiver of the configured transfer (tls), through which other nodes reach this one's exports. Says where it
    listens, and on standard error, in one line each, whom it refuses and why. What is being received when it stops is gone on
    with when it runs again.

    \b
    Examples:
      diskhaul node serve --node beta
    """
    from ..operations.base import RunContext
    from ..operations.serve import Served, serve_node

    def say(served: Served) -> None:
        if not invocation.quiet:
            print(f"diskhaul: {escape(f'node {served.node} listens on {served.address}')}", file=sys.stderr, flush=True)

    context = RunContext(invocation.cluster(), on_event=invocation.on_event, token=invocation.cancel)
    served = serve_node(context, node, when_ready=say)
    return Answer(document=jsonable(served), text=lambda: f"node {escape(served.node)} was served", chatter=True)
