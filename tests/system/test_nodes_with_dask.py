"""A cluster whose nodes are network namespaces with Dask workers: exports run on the node the guest lives on, whatever dies.

Dask and the transfer speak TLS, with certificates of ``diskhaul certs``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import diskhaul
from diskhaul.journal import Journal

from ..processes import end
from .test_interrupted_programs import INSTANCE

if TYPE_CHECKING:
    from .conftest import Lab

LONG_S = 90.0
SERVED = ("alpha", "beta", "gamma")
SLOW = ("--bwlimit", "1M", "--chunk-size", "256K", "--compress", "none")
"""For exports that are to be met in the middle."""


class Nodes:
    """Namespaces on a bridge, the scheduler in that of alpha, and in each what ``diskhaul node serve`` runs."""

    def __init__(self, lab: Lab, stack: ExitStack, **tls: Any) -> None:
        self.lab, self._stack, self._tls = lab, stack, tls
        self.tag = f"dh{os.getpid() % 10000}"
        self.subnet = f"10.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 250}"
        self.lines: dict[str, list[str]] = {}
        self._ip(f"link add {self.tag} type bridge")
        stack.callback(self._ip, f"link del {self.tag}")
        self._ip(f"addr add {self.subnet}.254/24 dev {self.tag}")
        self._ip(f"link set {self.tag} up")
        for number, name in enumerate(SERVED, 1):
            space = self.space(name)
            self._ip(f"netns add {space}")
            stack.callback(self._ip, f"netns del {space}")
            self._ip(f"link add {self.tag}{name[0]} type veth peer name eth0 netns {space}")
            self._ip(f"link set {self.tag}{name[0]} master {self.tag} up")
            self._ip(f"-n {space} addr add {self.subnet}.{number}/24 dev eth0")
            self._ip(f"-n {space} link set eth0 up")
            self._ip(f"-n {space} link set lo up")
        self._certificates = self._made_certificates()
        hooks = self._hooks()
        self.configs = {name: self._config(name, hooks) for name in SERVED}

    def _made_certificates(self) -> Path:
        """A directory for each node, with the authority's certificate and its own."""
        directory = self.lab.path / "certs"
        for arguments in (["init", "--cluster", "lab"], ["node", *SERVED]):
            command = [sys.executable, "-m", "diskhaul", "certs", *arguments, "--dir", str(directory)]
            subprocess.run(command, env=self.lab.environment(), check=True, capture_output=True)
        for name in SERVED:
            (directory / name).mkdir(mode=0o700)
            shutil.copy2(directory / "ca.crt", directory / name)
            (directory / f"{name}.pem").rename(directory / name / f"{name}.pem")
        return directory

    def _config(self, name: str, hooks: Path) -> Path:
        """The cluster's configuration as it lies on node `name`: with that node's certificate."""
        own = self._certificates / name
        document = self.lab.document()
        document["cluster"]["hook_dir"] = str(hooks)
        document["defaults"] = {"lock_timeout_s": 5.0}
        document["backends"] = {"engine": "dask", "transfer": "tls"}
        document["backend_options"] = {
            "dask": {
                "scheduler": f"tls://{self.subnet}.1:8786",
                "ca": str(own / "ca.crt"),
                "cert": str(own / f"{name}.pem"),
                "key": str(own / f"{name}.pem"),
                "shared_state_dir": True,
                "node_timeout_s": 3,
            },
            "tls": {"certificates": str(own)} | self._tls,
        }
        for number, other in enumerate(SERVED, 1):
            document["nodes"][other]["options"] = {"address": f"{self.subnet}.{number}:7420"}
        del document["nodes"]["delta"]
        return self.lab.write_config(document).rename(self.lab.path / f"cluster-{name}.toml")

    def _hooks(self) -> Path:
        """A script for both phases that notes the node's name and the namespace it runs in."""
        for phase in ("pre", "post"):
            folder = self.lab.path / "hooks" / f"instance-export-{phase}.d"
            folder.mkdir(parents=True, mode=0o755)
            script = folder / "10-note"
            note = f'"{phase} $DISKHAUL_NODE $DISKHAUL_INSTANCE_NAME $(readlink /proc/self/ns/net)"'
            script.write_text(f"#!/bin/sh\necho {note} >> {self.lab.path}/hooks/notes\n")
            script.chmod(0o755)
        return self.lab.path / "hooks"

    def space(self, name: str) -> str:
        return f"{self.tag}-{name}"

    def network_of(self, name: str) -> str:
        """What ``/proc/PID/ns/net`` of a process of that node leads to."""
        found = subprocess.run(
            ["ip", "netns", "exec", self.space(name), "readlink", "/proc/self/ns/net"], capture_output=True, text=True, check=True
        )
        return found.stdout.strip()

    def _ip(self, arguments: str) -> None:
        subprocess.run(["ip", *arguments.split()], check=True, capture_output=True)

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """Run ``diskhaul node ...`` in a namespace; returns once it says that it works."""
        command = ["ip", "netns", "exec", self.space(name), *self.lab.command("node", *arguments, config=self.configs[name])]
        process = subprocess.Popen(command, env=self.lab.environment(), stderr=subprocess.PIPE, text=True)
        self._stack.callback(end, process, LONG_S)
        lines = self.lines.setdefault(name, [])
        ready = threading.Event()

        def read() -> None:
            assert process.stderr is not None
            for line in process.stderr:
                lines.append(line)
                if "at work" in line or "listening" in line:
                    ready.set()
            ready.set()

        threading.Thread(target=read, daemon=True).start()
        assert ready.wait(LONG_S)
        assert process.poll() is None, lines
        return process

    def serve(self, name: str) -> subprocess.Popen[str]:
        return self.start(name, "serve", "--node", name)

    def serve_all(self) -> dict[str, subprocess.Popen[str]]:
        return {"scheduler": self.start("alpha", "scheduler"), **{name: self.serve(name) for name in SERVED}}

    def client(self, *arguments: str) -> subprocess.Popen[str]:
        """Run ``diskhaul`` on the master, beside what serves the node there."""
        command = ["ip", "netns", "exec", self.space("alpha")]
        command += self.lab.command("--json", *arguments, config=self.configs["alpha"])
        return subprocess.Popen(command, env=self.lab.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        process = self.client(*arguments)
        output, complaint = process.communicate(timeout=LONG_S)
        assert output, complaint
        return process.returncode, json.loads(output)

    def begin_slow_export(self) -> subprocess.Popen[str]:
        """Begin an export, and return when its disk is being sent."""
        events = self.lab.path / "events"
        events.unlink(missing_ok=True)
        process = self.client("--events", str(events), "export", INSTANCE, "--node", "beta", *SLOW)
        until = time.monotonic() + LONG_S
        while not events.exists() or '"disk-progress"' not in events.read_text():
            assert time.monotonic() < until, events.read_text() if events.exists() else "no events"
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        return process


@pytest.fixture
def nodes(lab: Lab, requires: Callable[..., None]) -> Iterator[Nodes]:
    requires("ip", root=True)
    lab.add_guest()
    with ExitStack() as stack:
        yield Nodes(lab, stack, retry_s=5)


@pytest.fixture
def served(nodes: Nodes) -> dict[str, subprocess.Popen[str]]:
    return nodes.serve_all()


def ended(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    output, complaint = process.communicate(timeout=LONG_S)
    assert output, complaint
    return process.returncode, json.loads(output)


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


# What is checked with the local engine: the lab's own cluster has every node on this machine.


def listed(nodes: Nodes) -> list[tuple[str, str]]:
    found = diskhaul.list_exports(config=nodes.lab.cluster(backends={}), instance=INSTANCE)
    assert [record.problem for record in found.exports if record.problem] == []
    return [(record.node, record.export_id) for record in found.exports]


def partials(nodes: Nodes) -> list[Path]:
    return [path for name in SERVED for path in nodes.lab.export_dir(name).glob("*/.*.partial")]


def unfinished(nodes: Nodes) -> list[str]:
    return [run.run_id for run in Journal(nodes.lab.state_dir).unfinished()]


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
    # Another process for the same node: it waits for the lock that the frozen one holds, and touches nothing.
    second = nodes.configs["alpha"]
    second.write_text(second.read_text().replace("[nodes.alpha.options]", '[nodes.alpha.options]\nlisten = ":7421"'))
    nodes.serve("alpha")
    recovery = [line for line in nodes.lines["alpha"] if "recovery:" in line]
    assert len(recovery) == 1
    assert f"{INSTANCE}: still being worked on" in recovery[0]
    code, document = nodes.run("export", INSTANCE, "--node", "gamma")
    assert code == 5, json.dumps(document)

    served["alpha"].send_signal(signal.SIGCONT)
    check_nothing_left(nodes)  # it has gone on with what it was doing, or was told that nobody waits for it
    listed(nodes)
    code, document = nodes.run("export", INSTANCE, "--node", "gamma")
    assert code == 0, json.dumps(document)
    assert listed(nodes) == [("gamma", document["export"]["export_id"])]
