"""What a node runs so that others reach its exports: the receiver of the configured transfer, until it is told to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from ..names import expand_name
from .base import RunContext


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A node that was served, and has been told to stop.

    Attributes:
        address: where it could be reached.
    """

    node: str
    address: str


def serve_node(context: RunContext, node: str, *, when_ready: Callable[[Served], object]) -> Served:
    """Serve `node`, which is this machine, until the context's token is cancelled.

    Args:
        when_ready: called once it can be reached.

    Raises:
        UnknownNameError: there is no such node.
        ConfigurationError: it has no receiver, or not rightly configured.
        StorageError: it cannot listen.
    """
    inventory = context.host.inventory()
    nodes = inventory.nodes()
    found = nodes[expand_name("node", node, nodes)]
    receiver = context.host.transfer().receiver(found, inventory)
    ended = threading.Event()

    def close_when_cancelled() -> None:
        while not ended.is_set() and not context.token.wait(0.5):
            pass
        receiver.close()

    watch = threading.Thread(target=close_when_cancelled, daemon=True, name="diskhaul-serve")
    try:
        served = Served(node=found.name, address=receiver.address)
        when_ready(served)
        watch.start()
        receiver.serve_forever()
    finally:
        ended.set()
        receiver.close()
    return served
