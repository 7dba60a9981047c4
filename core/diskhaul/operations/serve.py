"""What a node runs for the others, until it is told to stop: the receiver of its transfer, and the worker of its engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from ..api import Receiver
from ..cancellation import CancellationToken
from ..errors import ConfigurationError, DiskhaulError
from ..model import Node
from ..names import expand_name
from ..this_node import ThisNode, serve_as
from .base import RunContext
from .recover import RecoverOperation

_RECOVERY_LOCK_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A node that was served, and has been told to stop.

    Attributes:
        address: where its receiver could be reached, or "".
    """

    node: str
    address: str


def serve_node(context: RunContext, name: str, *, tell: Callable[[str], object]) -> Served:
    """Serve the node `name`, which is this machine, until the context's token is cancelled.

    What runs on it have left that were killed is recovered first.

    Args:
        tell: called with lines about what happens, the first once it can be reached. From several threads.

    Raises:
        UnknownNameError: there is no such node.
        ConfigurationError: neither transfer nor engine needs anything here, or one is not rightly configured.
        StorageError: it cannot listen.
    """
    inventory, host, token = context.host.inventory(), context.host, context.token
    nodes = inventory.nodes()
    node = nodes[expand_name("node", name, nodes)]
    receiver = host.transfer().receiver(node, inventory)
    engine = host.engine()
    if receiver is None and not engine.distributed:
        raise ConfigurationError(f"node {node.name}: the configured transfer and engine need nothing to be run on nodes")
    address = receiver.address if receiver is not None else ""
    if context.cluster.source is not None:
        serve_as(ThisNode(name=node.name, config=context.cluster.source))
    with ExitStack() as stack:
        if receiver is not None:
            _start_receiver(receiver, node, token, tell, stack)
        _recover(context, tell)
        if engine.distributed:
            engine.serve(node, token=token, tell=tell)
        while not token.wait(1.0):
            pass
    return Served(node=node.name, address=address)


def _start_receiver(
    receiver: Receiver, node: Node, token: CancellationToken, tell: Callable[[str], object], stack: ExitStack
) -> None:
    """Run `receiver` on a thread of its own; `stack` ends it. When it fails, so does the node."""

    def receive() -> None:
        try:
            receiver.serve_forever()
        except BaseException as error:  # told, and the end of this process: a node that others cannot reach is none
            tell(f"node {node.name}: its receiver failed: {type(error).__name__}: {error}")
            token.cancel("the receiver failed")

    thread = threading.Thread(target=receive, name="diskhaul-receiver", daemon=True)
    stack.callback(thread.join)
    stack.callback(receiver.close)
    thread.start()
    tell(f"node {node.name} listens on {receiver.address}")


def _recover(context: RunContext, tell: Callable[[str], object]) -> None:
    """Undo what dead runs left here; what cannot be done now is told, and no reason not to serve."""
    try:
        recovered = RecoverOperation(RunContext(context.cluster, token=context.token), None, _RECOVERY_LOCK_S).run()
        for line in (*recovered.done, *recovered.incomplete):
            tell(f"recovery: {line}")
    except DiskhaulError as error:
        tell(f"recovery: {error}; run 'diskhaul recover' once that is mended")
