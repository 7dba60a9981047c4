"""``diskhaul node``."""

from __future__ import annotations

import sys

import click

from ..errors import RefusedError
from .invocation import Answer, Argument, Invocation, Option, Service, common_options
from .json_output import jsonable
from .text import escape

ACTIONS = ("serve", "scheduler")


@click.command("node", cls=Service)
@click.argument("action", cls=Argument, metavar="ACTION", type=click.Choice(ACTIONS))
@click.option("--node", cls=Option, metavar="NODE", help="serve: which of the cluster's nodes this machine is.")
@common_options(hidden=True)
@click.pass_obj
def node_command(invocation: Invocation, action: str, node: str | None) -> Answer:
    """Run what a node runs for the others, until Ctrl-C or SIGTERM.

    serve runs the receiver of the configured transfer (tls), through which other nodes reach this one's exports, and the worker
    of the configured engine (dask), which exports the instances that live here. It first recovers what was interrupted. On
    standard error it says where it listens and, in one line each, whom it refuses and why. What is being received when it stops
    is gone on with when it runs again; what it exports is cancelled cleanly.

    scheduler runs what the engine dask has one of in a cluster, best on the master.

    \b
    Examples:
      diskhaul node serve --node beta
      diskhaul node scheduler
    """
    from ..operations.base import RunContext
    from ..operations.serve import serve_node

    def tell(line: str) -> None:
        if not invocation.quiet:
            print(f"diskhaul: {escape(line)}", file=sys.stderr, flush=True)

    context = RunContext(invocation.cluster(), on_event=invocation.on_event, token=invocation.cancel)
    if action == "scheduler":
        if node is not None:
            raise RefusedError("--node: a scheduler is that of the whole cluster; leave it out")
        context.host.engine().coordinate(token=context.token, tell=tell)
        return Answer(document={}, text=lambda: "the scheduler has ended", chatter=True)
    if node is None:
        raise RefusedError("--node is missing: say which of the cluster's nodes this machine is")
    served = serve_node(context, node, tell=tell)
    return Answer(document=jsonable(served), text=lambda: f"node {escape(served.node)} was served", chatter=True)
