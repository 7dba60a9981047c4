"""Inventory ``toml``: the nodes and instances that stand in the configuration (or in a `Cluster` built in code)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from diskhaul.api import BackendContext, Capability, Inventory
from diskhaul.model import Instance, Node


def capability() -> Capability:
    return Capability(works=True)


class TomlInventory(Inventory):
    """Answers from the cluster it was made with; thread-safe, since nothing in it changes."""

    def __init__(self, context: BackendContext) -> None:
        self._nodes = MappingProxyType({node.name: node for node in context.cluster.nodes})
        self._instances = MappingProxyType({instance.name: instance for instance in context.cluster.instances})

    def nodes(self) -> Mapping[str, Node]:
        return self._nodes

    def instances(self) -> Mapping[str, Instance]:
        return self._instances
