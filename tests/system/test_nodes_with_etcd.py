"""Three nodes that share no directory: their locks lie in an etcd cluster, and a node that was given up has lost its own.

Dask may have a frozen node's work done a second time; leases and fencing make that harmless.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from tests.conftest import requires
from tests.etcd import EtcdCluster

from .conftest import INSTANCE
from .three_nodes import SERVED, Nodes, ended, listed, partials, unfinished, wait_until

if TYPE_CHECKING:
    from .conftest import Lab


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    requires("ip", "etcd", root=True)
    cluster = EtcdCluster(SERVED)
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def nodes(lab: Lab, etcd: EtcdCluster) -> Iterator[Nodes]:
    lab.add_guest()
    with ExitStack() as stack:
        yield Nodes(lab, stack, network=etcd.network, etcd=etcd.endpoints, retry_s=5)


@pytest.fixture
def served(nodes: Nodes) -> dict[str, subprocess.Popen[str]]:
    return nodes.serve_all()


def check_nothing_left(nodes: Nodes, etcd: EtcdCluster) -> None:
    """What must hold after every end: the guest runs; no part of an export, no snapshot, note or lock is left."""
    wait_until(lambda: not unfinished(nodes) and not etcd.keys())
    assert nodes.lab.guests[INSTANCE].running
    assert partials(nodes) == []
    assert [path.name for path in nodes.lab.disks.iterdir()] == [f"{INSTANCE}-0.raw"]


def reads_disks(process: subprocess.Popen[str], nodes: Nodes) -> bool:
    """Whether it has one of the lab's disks open, or a snapshot of one, also when that was deleted."""
    directory = f"/proc/{process.pid}/fd"
    for number in os.listdir(directory):
        try:
            if os.readlink(f"{directory}/{number}").startswith(f"{nodes.lab.disks}/"):
                return True
        except FileNotFoundError:
            pass  # closed meanwhile
    return False


def test_an_export_over_nodes_keeps_others_from_its_instance_and_supersedes_what_is_elsewhere(
    nodes: Nodes, served: dict[str, subprocess.Popen[str]], etcd: EtcdCluster
) -> None:
    code, first = nodes.run("export", INSTANCE, "--node", "gamma")
    assert code == 0, json.dumps(first)
    assert listed(nodes) == [("gamma", first["export"]["export_id"])]
    impatient = nodes.configs["gamma"]
    impatient.write_text(impatient.read_text().replace("lock_timeout_s = 5.0", "lock_timeout_s = 0.2"))
    client = nodes.begin_slow_export()
    code, refused = nodes.run("export", INSTANCE, "--node", "gamma", at="gamma")
    assert code == 5, json.dumps(refused)
    assert INSTANCE in refused["error"]["message"]
    code, second = ended(client)
    assert code == 0, json.dumps(second)
    assert listed(nodes) == [("beta", second["export"]["export_id"])]
    check_nothing_left(nodes, etcd)


def test_what_a_frozen_node_goes_on_with_when_its_lease_is_over_comes_to_nothing(
    nodes: Nodes, served: dict[str, subprocess.Popen[str]], etcd: EtcdCluster
) -> None:
    client = nodes.begin_slow_export()
    frozen = served["alpha"]
    frozen.send_signal(signal.SIGSTOP)
    assert reads_disks(frozen, nodes)
    code, document = ended(client)
    assert code == 3, json.dumps(document)
    assert listed(nodes) == []
    # Another process for the same node: once the lease is over it undoes what the frozen one has begun, and works.
    config = nodes.configs["alpha"]
    config.write_text(config.read_text().replace("[nodes.alpha.options]", '[nodes.alpha.options]\nlisten = ":7421"'))
    nodes.serve("alpha")
    assert any("recovery:" in line for line in nodes.lines["alpha"]), nodes.lines
    check_nothing_left(nodes, etcd)
    code, document = nodes.run("export", INSTANCE, "--node", "gamma")
    assert code == 0, json.dumps(document)
    expected = [("gamma", document["export"]["export_id"])]
    assert listed(nodes) == expected

    frozen.send_signal(signal.SIGCONT)
    wait_until(lambda: not reads_disks(frozen, nodes))
    check_nothing_left(nodes, etcd)
    assert listed(nodes) == expected
    code, document = nodes.run("verify", INSTANCE)
    assert code == 0, json.dumps(document)


def test_a_node_that_is_cut_off_for_longer_than_its_lease_fails_its_export_and_works_again_afterwards(
    nodes: Nodes, served: dict[str, subprocess.Popen[str]], etcd: EtcdCluster
) -> None:
    client = nodes.begin_slow_export()
    nodes.network.disconnect("alpha")
    try:
        code, document = ended(client)
        assert code == 3, json.dumps(document)
        assert nodes.lab.guests[INSTANCE].running
        assert listed(nodes) == []
        wait_until(lambda: not etcd.keys())
    finally:
        nodes.network.connect("alpha")
    wait_until(lambda: nodes.run("recover", INSTANCE)[0] == 0)
    check_nothing_left(nodes, etcd)
    code, document = nodes.run("export", INSTANCE, "--node", "beta")
    assert code == 0, json.dumps(document)
    assert listed(nodes) == [("beta", document["export"]["export_id"])]
