"""Inventory ``toml``."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskhaul.api import BackendContext, Inventory
from diskhaul.model import Cluster, Disk, Instance, Node
from diskhaul.testing.conformance.inventories import InventoryConformance
from diskhaul_plugins.inventories.toml import TomlInventory

CLUSTER = Cluster(
    name="lab",
    state_dir=Path("/nonexistent"),
    nodes=(Node(name="alpha", export_dir=Path("/srv/a")), Node(name="beta", export_dir=Path("/srv/b"), offline=True)),
    instances=(
        Instance(name="web1.example.com", node="alpha", disks=(Disk(path=Path("/a")), Disk(path=Path("/b")))),
        Instance(name="web2.example.com", node="beta"),
    ),
)


class TestTomlInventory(InventoryConformance):
    @pytest.fixture
    def inventory(self) -> Inventory:
        return TomlInventory(BackendContext(cluster=CLUSTER))


def test_it_gives_the_nodes_and_instances_of_the_cluster() -> None:
    inventory = TomlInventory(BackendContext(cluster=CLUSTER))
    assert list(inventory.nodes().values()) == list(CLUSTER.nodes)
    assert list(inventory.instances().values()) == list(CLUSTER.instances)


def test_what_it_gives_cannot_be_changed() -> None:
    inventory = TomlInventory(BackendContext(cluster=CLUSTER))
    with pytest.raises(TypeError):
        inventory.nodes()["gamma"] = CLUSTER.nodes[0]  # type: ignore[index]
