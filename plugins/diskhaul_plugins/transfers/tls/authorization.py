"""Which node may do what with the exports of which instance, by the receiver's own configuration.

    write (begin, send, publish, abort, remove)    the instance's primary node; the master
    read                                           the instance's primary and secondary nodes; the master
    ask for the store's identity and room          every node of the cluster

An instance that is not configured has no nodes: only the master may touch its exports. A node that is not configured may do
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from diskhaul.api import Inventory
from diskhaul.names import printable

from .identities import Peer


class ForbiddenError(Exception):
    """The peer is who it says, and may not do this."""


class Authorization:
    """Asks the configuration anew each time. Thread-safe as the inventory."""

    def __init__(self, master: str, inventory: Inventory) -> None:
        self._master, self._inventory = master, inventory

    def admit(self, peer: Peer) -> None:
        """Raise `ForbiddenError` unless `peer` is a node of this cluster."""
        if peer.name not in self._inventory.nodes():
            raise ForbiddenError(f"{printable(peer.name)} is not a node of this cluster's configuration")

    def check(self, peer: Peer, instance: str, *, writing: bool) -> None:
        """Raise `ForbiddenError` unless `peer` may read, or with `writing` change, exports of `instance`."""
        if not self._allowed(peer, instance, writing=writing):
            what = "write" if writing else "read"
            raise ForbiddenError(f"{peer} may not {what} exports of {printable(instance)}: it is neither its node nor the master")

    def readable(self, peer: Peer, instances: Sequence[str]) -> list[str]:
        """Those of `instances` whose exports `peer` may read."""
        return [instance for instance in instances if self._allowed(peer, instance, writing=False)]

    def _allowed(self, peer: Peer, instance: str, *, writing: bool) -> bool:
        if self._master and peer.name == self._master:
            return True
        configured = self._inventory.instances().get(instance)
        if configured is None:
            return False
        return peer.name == configured.node or (not writing and peer.name in configured.secondaries)
