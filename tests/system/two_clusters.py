"""Two clusters on two networks' machines that share a cluster-domain secret and nothing else."""

from __future__ import annotations

import json
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import tomli_w
from tests.network import Network
from tests.processes import end

import diskhaul
from diskhaul.remote.secret import make_secret

from .conftest import INSTANCE, Lab

LIMIT_S = 120.0
NEW_NAME = "web2.example.org"


class Reception:
    """A ``diskhaul receive`` that is waiting. `destination` is what it announced."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        line = process.stdout.readline()
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not line:
            self.process.wait(LIMIT_S)
            self._reader.join(LIMIT_S)
            raise AssertionError("".join(self.said))
        self.destination: dict[str, Any] = json.loads(line)

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.said += self.process.stderr

    def ended(self) -> tuple[int, str]:
        """Wait for its end; its exit code, and what it said on standard error."""
        code = self.process.wait(LIMIT_S)
        self._reader.join(LIMIT_S)
        return code, "".join(self.said)


class TwoClusters:
    """East, which is `lab` with its guest on alpha, and west, with one node gamma, each in a network namespace."""

    def __init__(self, lab: Lab, network: Network, stack: ExitStack) -> None:
        self.lab, self.network, self._stack = lab, network, stack
        self.west_dir = lab.path / "west"
        self.west_exports = self.west_dir / "gamma"
        self.west_exports.mkdir(parents=True, mode=0o700)
        secret = make_secret(lab.path / "east-certs")
        (lab.path / "west-certs").mkdir(mode=0o700)
        self.west_secret = lab.path / "west-certs" / secret.name
        self.west_secret.touch(mode=0o600)
        self.west_secret.write_bytes(secret.read_bytes())
        document = lab.document()
        document["cluster"] |= {"name": "east", "cluster_domain_secret": str(secret)}
        document["defaults"] = {"chunk_size": 262144}
        document["backend_options"] = {"tls": {"retry_s": 15, "connect_timeout_s": 15, "window_mib": 1}}
        self.east_document = document
        self.east_config = self.write("east.toml", document)
        self.west_document: dict[str, Any] = {
            "cluster": {
                "name": "west",
                "state_dir": str(self.west_dir / "state"),
                "cluster_domain_secret": str(self.west_secret),
            },
            "nodes": {
                "gamma": {
                    "export_dir": str(self.west_exports),
                    "options": {"remote_address": f"{network.address('west')}:0"},
                }
            },
        }
        self.west_config = self.write("west.toml", self.west_document)

    def write(self, name: str, document: dict[str, Any]) -> Path:
        file = self.lab.path / name
        file.write_text(tomli_w.dumps(document))
        file.chmod(0o600)
        return file

    def command(self, side: str, *arguments: str | Path) -> list[str]:
        config = self.east_config if side == "east" else self.west_config
        return self.network.command(side, *self.lab.command(*arguments, config=config))

    def start(self, side: str, *arguments: str | Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.command(side, *arguments),
            env=self.lab.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.lab.path,
        )
        self._stack.callback(end, process, LIMIT_S)
        return process

    def run(self, side: str, *arguments: str | Path, code: int = 0) -> str:
        """Run a command, which has to end with `code`; return all that it said."""
        done = subprocess.run(
            self.command(side, *arguments),
            env=self.lab.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            cwd=self.lab.path,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def prepare(self) -> Path:
        file = self.lab.path / "web1.prepared"
        self.run("east", "prepare", "web1", "--out", file)
        return file

    def receive(self, *more: str | Path, prepared: Path | None = None) -> Reception:
        """Start a reception; returns once it has announced its destination."""
        return Reception(self.start("west", "receive", prepared or self.prepare(), "--node", "gamma", *more))

    def write_destination(self, destination: dict[str, Any]) -> Path:
        file = self.lab.path / "web1.destination"
        file.write_text(json.dumps(destination))
        return file

    def export(self, destination: dict[str, Any], *more: str, code: int = 0) -> str:
        return self.run("east", "export", "web1", "--remote", self.write_destination(destination), *more, code=code)

    def received(self, instance: str = INSTANCE) -> list[diskhaul.ExportRecord]:
        """The exports of west; one that is not valid fails the test."""
        found = diskhaul.list_exports(config=self.west_config)
        assert [record.problem for record in found.exports if record.problem] == []
        return [record for record in found.exports if record.instance == instance]

    def left_in_west(self) -> list[str]:
        """What of exports lies in west's directory, and what of receivers in its state."""
        exports = [str(path) for path in self.west_exports.glob("*/*")]
        return exports + [str(path) for path in (self.west_dir / "state").glob("remote/receiving/*")]

    def keys_in_east(self) -> list[Path]:
        return list((self.lab.state_dir / "remote" / "keys").glob("*"))
