"""A cluster of three nodes in network namespaces: Dask workers that ``diskhaul node serve`` runs, and the transfer ``tls``.

Dask and the transfer speak TLS, with certificates of ``diskhaul certs``.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.network import Network
from tests.processes import end

import diskhaul
from diskhaul.journal import Journal

from .conftest import INSTANCE, Lab

LONG_S = 90.0
SERVED = ("alpha", "beta", "gamma")
LEASE_S = 3
SLOW = ("--bwlimit", "1M", "--chunk-size", "256K", "--compress", "none")
"""For exports that are to be met in the middle."""


class Nodes:
    """A namespace for each node, the scheduler in that of alpha, and in each what ``diskhaul node serve`` runs.

    Args:
        network: has machines named as the nodes; None makes one.
        etcd: endpoints of an etcd cluster. Then locks are there, and every node has a state directory of its own.
        tls: options of the transfer.
    """

    def __init__(
        self, lab: Lab, stack: ExitStack, *, network: Network | None = None, etcd: Sequence[str] = (), **tls: Any
    ) -> None:
        self.lab, self._stack, self._etcd, self._tls = lab, stack, etcd, tls
        self.network = network or stack.enter_context(Network(SERVED))
        self.lines: dict[str, list[str]] = {}
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
                "scheduler": f"tls://{self.network.address('alpha')}:8786",
                "ca": str(own / "ca.crt"),
                "cert": str(own / f"{name}.pem"),
                "key": str(own / f"{name}.pem"),
                "node_timeout_s": 3,
            },
            "tls": {"certificates": str(own)} | self._tls,
        }
        if self._etcd:
            document["cluster"]["state_dir"] = str(self.state_dir(name))
            document["backends"]["lock"] = "etcd"
            document["backend_options"]["etcd"] = {"endpoints": list(self._etcd), "lease_s": LEASE_S}
        else:
            document["backend_options"]["dask"]["shared_state_dir"] = True
        for other in SERVED:
            document["nodes"][other]["options"] = {"address": f"{self.network.address(other)}:7420"}
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

    def state_dir(self, name: str) -> Path:
        return self.lab.path / f"state-{name}" if self._etcd else self.lab.state_dir

    def network_of(self, name: str) -> str:
        """What ``/proc/PID/ns/net`` of a process of that node leads to."""
        command = self.network.command(name, "readlink", "/proc/self/ns/net")
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def start(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """Run ``diskhaul node ...`` in a namespace; returns once it says that it works."""
        command = self.network.command(name, *self.lab.command("node", *arguments, config=self.configs[name]))
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

    def client(self, *arguments: str, at: str = "alpha") -> subprocess.Popen[str]:
        """Run ``diskhaul`` on a machine of a node (the master), beside what serves the node there."""
        command = self.network.command(at, *self.lab.command("--json", *arguments, config=self.configs[at]))
        return subprocess.Popen(command, env=self.lab.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: str, at: str = "alpha") -> tuple[int, dict[str, Any]]:
        process = self.client(*arguments, at=at)
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
    """Runs that a node's journal calls unfinished; nodes may share one journal."""
    found = {nodes.state_dir(name) for name in SERVED}
    return [run.run_id for directory in found for run in Journal(directory).unfinished()]
