"""What a node runs for the others, until it is told to stop: the receiver of its transfer, and the worker of its engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, repeat

from ..api import Receiver
from ..cancellation import CancellationToken
from ..errors import ConfigurationError
from ..model import Node
from ..names import expand_name
from ..this_node import ThisNode, serve_as
from .base import RunContext
from .recover import RecoverOperation

_RECOVERY_LOCK_S = 5.0
_RECOVERY_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Between recoveries; the last one for ever. A dead run's lease may last longer than a node takes to be started again."""
_RECOVERY_END_S = 10.0
"""How long the end of serving waits for a recovery that is going on, which can be repeated."""


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

    What runs on it have left that were killed is recovered first; what cannot be done then is tried again while it is served.

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
        recovery = _Recovery(context, tell)
        if not recovery.attempt():
            _go_on(recovery, token, stack)
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


class _Recovery:
    """Undoes what dead runs have left here that were there when it was made; what began later is not waited for."""

    def __init__(self, context: RunContext, tell: Callable[[str], object]) -> None:
        self._context, self._tell = context, tell
        self._left: frozenset[str] | None = None
        self._told: tuple[str, ...] = ()

    def attempt(self) -> bool:
        """Return whether all is done. What cannot be done now is told, once, and no reason not to serve."""
        context = RunContext(self._context.cluster, plugins=self._context.plugins, token=self._context.token)
        try:
            if self._left is None:
                self._left = frozenset(run.run_id for run in context.journal.unfinished())
            recovered = RecoverOperation(context, None, _RECOVERY_LOCK_S, runs=self._left).run()
        except (Exception, SystemExit) as error:  # a plugin may raise anything
            self._say((f"{str(error) or type(error).__name__}; it is tried again",))
            return False
        for line in recovered.done:
            self._tell(f"recovery: {line}")
        self._say(recovered.incomplete)
        return not recovered.incomplete

    def _say(self, lines: tuple[str, ...]) -> None:
        for line in lines:
            if line not in self._told:
                self._tell(f"recovery: {line}")
        self._told = lines


def _go_on(recovery: _Recovery, token: CancellationToken, stack: ExitStack) -> None:
    """Repeat `recovery` on a thread of its own until all is done; `stack` ends it, and with it `token`."""

    def recover() -> None:
        for pause_s in chain(_RECOVERY_PAUSES_S, repeat(_RECOVERY_PAUSES_S[-1])):
            if token.wait(pause_s) or recovery.attempt():
                return

    thread = threading.Thread(target=recover, name="diskhaul-recovery", daemon=True)
    stack.callback(thread.join, _RECOVERY_END_S)
    stack.callback(token.cancel, "the node is no longer served")
    thread.start()
