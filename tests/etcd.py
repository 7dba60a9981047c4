"""An etcd cluster of three members, each on a machine of its own of a test's network."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .network import Network

NAMES = ("one", "two", "three")
_START_S = 60.0


class EtcdCluster:
    """Started when made; `close` ends it. Needs root, ``ip`` and ``etcd``.

    Args:
        machines: names of further machines that reach the members.

    Attributes:
        network: the members' machines, by `NAMES`, and the further ones.
    """

    def __init__(self, machines: Sequence[str] = ()) -> None:
        memory = Path("/dev/shm")  # elections take long where fsync does
        self._work = Path(tempfile.mkdtemp(prefix="diskhaul-etcd-", dir=memory if memory.is_dir() else None))
        self._members: dict[str, subprocess.Popen[bytes]] = {}
        try:
            self.network = Network((*NAMES, *machines))
            for name in NAMES:
                self.start(name)
            self.wait_for_quorum()
        except BaseException:
            self.close()
            raise

    @property
    def endpoints(self) -> list[str]:
        return [self.endpoint(name) for name in NAMES]

    def endpoint(self, name: str) -> str:
        return f"http://{self.network.address(name)}:2379"

    def start(self, name: str) -> None:
        peer = f"http://{self.network.address(name)}:2380"
        everybody = ",".join(f"{each}=http://{self.network.address(each)}:2380" for each in NAMES)
        command = ["etcd", "--name", name, "--data-dir", str(self._work / name), "--initial-cluster", everybody]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--listen-client-urls", self.endpoint(name), "--advertise-client-urls", self.endpoint(name)]
        command += ["--heartbeat-interval", "50", "--election-timeout", "500", "--logger", "zap", "--log-level", "error"]
        with open(self._work / f"{name}.log", "ab") as log:
            self._members[name] = subprocess.Popen(self.network.command(name, *command), stdout=log, stderr=log)

    def kill(self, name: str) -> None:
        self._members[name].kill()
        self._members[name].wait()

    def leader(self) -> str:
        """Who leads; waits until somebody does."""
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            for name in NAMES:
                status = self._ask(name, "maintenance/status")
                if status is not None and status.get("leader") == status["header"]["member_id"]:
                    return name
            time.sleep(0.05)
        raise TimeoutError("etcd has no leader")

    def wait_for_quorum(self, *names: str) -> None:
        """Wait until each of `names` (all, if none is given) answers a linearizable read."""
        until = time.monotonic() + _START_S
        for name in names or NAMES:
            while self._ask(name, "kv/range", key="Lw==") is None:
                if time.monotonic() > until:
                    raise TimeoutError(f"etcd member {name}: {(self._work / f'{name}.log').read_text()[-2000:]}")
                time.sleep(0.05)

    def mend(self) -> None:
        """Connect every member, start those that do not run, and wait until all work."""
        for name in NAMES:
            self.network.connect(name)
            if self._members[name].poll() is not None:
                self.start(name)
        self.wait_for_quorum()

    def keys(self) -> int:
        """How many keys diskhaul has in it."""
        found = self._ask(self.leader(), "kv/range", key="L2Rpc2toYXVsLw==", range_end="L2Rpc2toYXVsMA==", count_only=True)
        assert found is not None
        return int(found.get("count", 0))

    def close(self) -> None:
        try:
            for process in self._members.values():
                process.kill()
                process.wait()
            if hasattr(self, "network"):
                self.network.close()
        finally:
            shutil.rmtree(self._work, ignore_errors=True)

    def _ask(self, name: str, path: str, **body: Any) -> dict[str, Any] | None:
        request = urllib.request.Request(f"{self.endpoint(name)}/v3/{path}", json.dumps(body).encode())
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=1) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (OSError, ValueError):
            return None
