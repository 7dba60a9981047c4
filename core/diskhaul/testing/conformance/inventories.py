"""What every inventory has to do. Subclass `InventoryConformance` in a test module and override `inventory`."""

from __future__ import annotations

import pytest

from ...api import Inventory
from ...model import Instance, Node
from ...names import name_problem


class InventoryConformance:
    """Override `inventory` with a fixture; the inventory has at least one node and one instance."""

    @pytest.fixture
    def inventory(self) -> Inventory:
        raise NotImplementedError("override the fixture 'inventory'")

    def test_it_is_not_empty(self, inventory: Inventory) -> None:
        assert len(inventory.nodes()) > 0
        assert len(inventory.instances()) > 0

    def test_nodes_stand_under_their_own_legal_names(self, inventory: Inventory) -> None:
        for name, node in inventory.nodes().items():
            assert isinstance(node, Node)
            assert node.name == name
            assert name_problem("node", name) is None

    def test_instances_stand_under_their_own_legal_names(self, inventory: Inventory) -> None:
        for name, instance in inventory.instances().items():
            assert isinstance(instance, Instance)
            assert instance.name == name
            assert name_problem("instance", name) is None

    def test_every_instance_lives_on_a_known_node(self, inventory: Inventory) -> None:
        nodes = inventory.nodes()
        assert all(instance.node in nodes for instance in inventory.instances().values())

    def test_disks_are_numbered_in_order(self, inventory: Inventory) -> None:
        for instance in inventory.instances().values():
            assert [disk.index for disk in instance.disks] == list(range(len(instance.disks)))

    def test_asking_twice_gives_the_same(self, inventory: Inventory) -> None:
        assert dict(inventory.nodes()) == dict(inventory.nodes())
        assert dict(inventory.instances()) == dict(inventory.instances())
