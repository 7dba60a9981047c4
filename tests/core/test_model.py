"""The model: frozen data that checks its names and numbers its disks."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path

import pytest

from diskhaul.errors import ConfigurationError, RefusedError
from diskhaul.model import Cluster, Disk, Instance, Nic, Node


def a_cluster() -> Cluster:
    web = Instance(
        name="web1.example.com",
        node="alpha",
        disks=[Disk(path=Path("/a")), Disk(path=Path("/b"), index=7)],
        nics=(Nic(mac="aa:00:00:00:00:01"),),
        private={"password": "hunter2"},
    )
    return Cluster(
        name="lab", state_dir=Path("/state"), nodes=(Node(name="alpha", export_dir=Path("/exports")),), instances=(web,)
    )


def test_disks_are_numbered_by_their_place() -> None:
    assert [disk.index for disk in a_cluster().instances[0].disks] == [0, 1]
    assert isinstance(a_cluster().instances[0].disks, tuple)


def test_a_disk_is_called_by_its_index_and_path() -> None:
    assert [disk.label for disk in a_cluster().instances[0].disks] == ["disk 0 (/a)", "disk 1 (/b)"]
    assert Disk(storage="san").label == "disk 0"


def test_private_options_are_not_shown() -> None:
    assert "hunter2" not in repr(a_cluster())


def test_a_cluster_can_be_sent_to_other_processes_and_taken_apart() -> None:
    cluster = a_cluster()
    assert pickle.loads(pickle.dumps(cluster)) == cluster  # engines do that
    assert copy.deepcopy(cluster) == cluster
    assert asdict(cluster)["instances"][0]["disks"][1]["index"] == 1


def test_no_two_objects_share_a_default_table() -> None:
    assert Disk().options is not Disk().options


@pytest.mark.parametrize("name", ["../x", "", "-x", "x" * 300, "a\nb"])
def test_a_bad_name_is_refused_for_clusters_nodes_and_instances(name: str) -> None:
    with pytest.raises(RefusedError, match="cluster name"):
        Cluster(name=name, state_dir=Path("/state"))
    with pytest.raises(RefusedError, match="node name"):
        Node(name=name, export_dir=Path("/exports"))
    with pytest.raises(RefusedError, match="instance name"):
        Instance(name=name, node="alpha")


def test_names_that_stand_twice_are_all_reported() -> None:
    node = Node(name="alpha", export_dir=Path("/exports"))
    web = Instance(name="web", node="alpha")
    with pytest.raises(ConfigurationError) as caught:
        Cluster(name="lab", state_dir=Path("/state"), nodes=(node, node, node), instances=(web, web))
    assert caught.value.problems == ("nodes: 'alpha' stands twice", "instances: 'web' stands twice")


def test_nothing_of_it_can_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        a_cluster().name = "other"  # type: ignore[misc]
