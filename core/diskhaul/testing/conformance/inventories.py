"""What every inventory has to do. Subclass `InventoryConformance` in a test module and override `inventory`."""

from __future__ import annotations

import pytest

from ...api import Inventory
from ...host import with_defaults
from ...model import Instance, Node
from ...names import name_problem


class InventoryConformance:
    """Override `inventory` with a fixture; the inventory has at least one node and one instance."""

    @pytest.fixture
    def inventory(self) -> Inventory:
        raise NotImplementedError("override the fixture 'inventory'")

    @pytest.fixture
    def backend(self, inventory: Inventory) -> Inventory:
        """The inventory as operations see it: with its Protocol's defaults for what it leaves out."""
        return with_defaults("inventory", inventory)

    def test_it_is_not_empty(self, backend: Inventory) -> None:
        assert len(backend.nodes()) > 0
        assert len(backend.instances()) > 0

    def test_nodes_stand_under_their_own_legal_names(self, backend: Inventory) -> None:
        for name, node in backend.nodes().items():
            assert isinstance(node, Node)
            assert node.name == name
            assert name_problem("node", name) is None

    def test_instances_stand_under_their_own_legal_names(self, backend: Inventory) -> None:
        for name, instance in backend.instances().items():
            assert isinstance(instance, Instance)
            assert instance.name == name
            assert name_problem("instance", name) is None

    def test_every_instance_lives_on_a_known_node(self, backend: Inventory) -> None:
        nodes = backend.nodes()
        assert all(instance.node in nodes for instance in backend.instances().values())

    def test_disks_are_numbered_in_order(self, backend: Inventory) -> None:
        for instance in backend.instances().values():
            assert [disk.index for disk in instance.disks] == list(range(len(instance.disks)))

    def test_asking_twice_gives_the_same(self, backend: Inventory) -> None:
        assert dict(backend.nodes()) == dict(backend.nodes())
        assert dict(backend.instances()) == dict(backend.instances())
