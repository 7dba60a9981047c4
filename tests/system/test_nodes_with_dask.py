"""A cluster whose nodes are network namespaces with Dask workers: exports run on the node the guest lives on, whatever dies.

Dask and the transfer speak TLS, with certificates of ``diskhaul certs``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import diskhaul

from .conftest import INSTANCE
from .three_nodes import Nodes, ended, listed, partials, unfinished, wait_until

if TYPE_CHECKING:
    from .conftest import Lab


@pytest.fixture
def nodes(lab: Lab, requires: Callable[..., None]) -> Iterator[Nodes]:
    requires("ip", root=True)
    lab.add_guest()
    with ExitStack() as stack:
        yield Nodes(lab, stack, retry_s=5)


@pytest.fixture
def served(nodes: Nodes) -> dict[str, subprocess.Popen[str]]:
    return nodes.serve_all()


def locks(nodes: Nodes) -> list[str]:
    return [path.name for path in (nodes.lab.state_dir / "locks").iterdir() if path.name != "counter"]


def check_nothing_left(nodes: Nodes) -> None:
    """What must hold after every end: the guest runs; no part of an export, no snapshot, note or lock is left."""
    wait_until(lambda: not unfinished(nodes) and not locks(nodes))  # the client may have gone before
    assert nodes.lab.guests[INSTANCE].running
    assert partials(nodes) == []
    assert [path.name for path in nodes.lab.disks.iterdir()] == [f"{INSTANCE}-0.raw"]
    assert [path for path in nodes.lab.temporary.iterdir() if not path.name.startswith("diskhaul-node-")] == []


def test_an_export_runs_on_the_node_of_its_guest_and_hooks_on_theirs(
    nodes: Nodes, served: dict[str, subprocess.Popen[str]]
) -> None:
    code, first = nodes.run("export", INSTANCE, "--node", "gamma")
    assert code == 0, json.dumps(first)
    code, second = nodes.run("export", INSTANCE, "--node", "beta")
    assert code == 0, json.dumps(second)

    # The guest was started again by a process of alpha's, and so lives in alpha's network.
    guest = nodes.lab.guests[INSTANCE]
    assert guest.running
    assert os.readlink(f"/proc/{guest.pid}/ns/net") == nodes.network_of("alpha")
    # Scripts ran on master and source (both alpha) and on the target, in both phases, each on its own node.
    notes = (nodes.lab.path / "hooks" / "notes").read_text().splitlines()
    expected = [(phase, name) for phase in ("pre", "post") for name in ("alpha", "beta")]
    assert notes[4:] == [f"{phase} {name} {INSTANCE} {nodes.network_of(name)}" for phase, name in expected]
    # The export on gamma was superseded.
    assert listed(nodes) == [("beta", second["export"]["export_id"])]
    code, checked = nodes.run("verify", INSTANCE)
    assert code == 0, checked


def test_the_export_is_the_same_as_with_the_local_engine(nodes: Nodes, served: dict[str, subprocess.Popen[str]]) -> None:
    guest = nodes.lab.guests[INSTANCE]
    subprocess.run([str(guest.program), "stop"], check=True)
    code, far = nodes.run("export", INSTANCE, "--node", "beta")
    assert code == 0, far
    near = diskhaul.export(INSTANCE, node="gamma", config=nodes.lab.cluster(backends={"cleanup": "none"}))
    assert near.export is not None
    for name in ("disk-0.raw.zst", "disk-0.chunks"):
        assert Path(far["export"]["path"], name).read_bytes() == Path(near.export.path, name).read_bytes()


def test_ctrl_c_at_the_client_stops_the_export_on_its_node(nodes: Nodes, served: dict[str, subprocess.Popen[str]]) -> None:
    client = nodes.begin_slow_export()
    client.send_signal(signal.SIGINT)
    code, document = ended(client)
    assert code == 130, json.dumps(document)
    assert listed(nodes) == []
    check_nothing_left(nodes)


def test_a_refusal_of_the_node_comes_back_whole(nodes: Nodes, served: dict[str, subprocess.Popen[str]]) -> None:
    nodes.lab.guests[INSTANCE].disturb("status", "fail", times=5)
    code, document = nodes.run("export", INSTANCE, "--node", "beta")
    assert code == 2
    assert INSTANCE in document["error"]["problems"][0]


def test_the_export_of_a_client_that_is_killed_is_stopped_and_undone(
    nodes: Nodes, served: dict[str, subprocess.Popen[str]]
) -> None:
    client = nodes.begin_slow_export()
    assert partials(nodes) != []
    client.kill()
    client.communicate()
    check_nothing_left(nodes)
    assert listed(nodes) == []
    code, document = nodes.run("export", INSTANCE, "--node", "beta")
    assert code == 0, json.dumps(document)


def test_a_node_that_dies_fails_its_export_and_recovers_when_it_is_back(
    nodes: Nodes, served: dict[str, subprocess.Popen[str]]
) -> None:
    client = nodes.begin_slow_export()
    served["alpha"].kill()
    code, document = ended(client)
    assert code == 3, json.dumps(document)
    assert "node alpha does not answer" in document["error"]["message"]
    assert listed(nodes) == []

    nodes.serve("alpha")
    assert any("recovery:" in line for line in nodes.lines["alpha"])
    assert nodes.lab.guests[INSTANCE].running
    check_nothing_left(nodes)
    code, document = nodes.run("export", INSTANCE, "--node", "beta")
    assert code == 0, json.dumps(document)


def test_a_node_that_is_gone_for_good_is_unreachable(nodes: Nodes, served: dict[str, subprocess.Popen[str]]) -> None:
    served["alpha"].kill()
    code, document = nodes.run("export", INSTANCE, "--node", "beta")
    assert code == 3, json.dumps(document)
    assert "node alpha does not answer" in document["error"]["message"]


def test_a_target_that_dies_fails_the_export_that_goes_there_and_no_other(
    nodes: Nodes, served: dict[str, subprocess.Popen[str]]
) -> None:
    client = nodes.begin_slow_export()
    served["beta"].kill()
    code, document = ended(client)
    assert code == 3, json.dumps(document)
    assert "beta" in document["error"]["message"]
    assert nodes.lab.guests[INSTANCE].running
    assert locks(nodes) == []
    assert listed(nodes) == []
    code, document = nodes.run("export", INSTANCE, "--node", "gamma")  # beta stays away
    assert code == 4, json.dumps(document)
    assert [(name, export_id) for name, export_id in listed(nodes)] == [("gamma", document["export"]["export_id"])]

    nodes.serve("beta")
    code, document = nodes.run("recover")
    assert code == 0, json.dumps(document)
    check_nothing_left(nodes)


def test_a_scheduler_that_dies_leaves_the_export_to_its_node(nodes: Nodes, served: dict[str, subprocess.Popen[str]]) -> None:
    client = nodes.begin_slow_export()
    served["scheduler"].kill()
    code, document = ended(client)
    assert code == 3, json.dumps(document)
    wait_until(lambda: len(listed(nodes)) == 1)  # nobody heard of it, and it is whole
    check_nothing_left(nodes)
    nodes.start("alpha", "scheduler")
    code, document = nodes.run("export", INSTANCE, "--node", "gamma")
    assert code == 0, json.dumps(document)


def test_a_node_that_is_frozen_is_given_up_and_harms_nothing_when_it_comes_back(
    nodes: Nodes, served: dict[str, subprocess.Popen[str]]
) -> None:
    client = nodes.begin_slow_export()
    served["alpha"].send_signal(signal.SIGSTOP)
    code, document = ended(client)
    assert code == 3, json.dumps(document)
    assert listed(nodes) == []
    # Another process for the same node: the frozen one shows no sign of life for as long as its lease, and so counts as dead.
    second = nodes.configs["alpha"]
    second.write_text(second.read_text().replace("[nodes.alpha.options]", '[nodes.alpha.options]\nlisten = ":7421"'))
    nodes.serve("alpha")
    recovery = [line for line in nodes.lines["alpha"] if "recovery:" in line]
    assert any("the unfinished export" in line and "was removed" in line for line in recovery), recovery
    code, document = nodes.run("export", INSTANCE, "--node", "gamma")
    assert code == 0, json.dumps(document)

    served["alpha"].send_signal(signal.SIGCONT)
    time.sleep(3.0)  # long enough to go on with what it was doing, had it not lost its lock
    check_nothing_left(nodes)
    assert listed(nodes) == [("gamma", document["export"]["export_id"])]
    assert nodes.lab.guests[INSTANCE].running
