"""Runs the real command line in a process of its own, and makes results to render."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    "HOME": "/nonexistent",
    "TERM": "dumb",
    "LANG": "C.UTF-8",
}


def take_signals_as_from_a_shell() -> None:
    """Undo that a test run in the background of a shell ignores Ctrl-C."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@dataclass(frozen=True)
class Ran:
    """What a run of the command line came to."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on standard output."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)

    @property
    def problems(self) -> list[str]:
        """Lines on standard error."""
        return self.err.splitlines()


@pytest.fixture
def diskhaul(tmp_path: Path) -> Callable[..., Ran]:
    """Run ``diskhaul ARGUMENTS`` in an empty directory."""
    work = tmp_path / "work"
    work.mkdir()

    def run(*arguments: str | Path, **settings: Any) -> Ran:
        environment = ENVIRONMENT | settings.pop("env", {})
        done = subprocess.run(
            [sys.executable, "-m", "diskhaul", *map(str, arguments)],
            env=environment,
            cwd=settings.pop("cwd", work),
            stdin=subprocess.DEVNULL,
            capture_output="stdout" not in settings,
            text=True,
            timeout=120,
            preexec_fn=take_signals_as_from_a_shell,
            **settings,
        )
        return Ran(done.returncode, done.stdout or "", done.stderr or "")

    return run


CONFIGURATION = """
[cluster]
name = "lab"
state_dir = "state"

[backends]
cleanup = "none"

[nodes.alpha]
export_dir = "alpha"
[nodes.beta]
export_dir = "beta"
[nodes.drained]
export_dir = "beta"
drained = true

[instances."web1.example.com"]
node = "alpha"
state = "down"
runtime = "none"
[[instances."web1.example.com".disks]]
path = "disks/web1.raw"

[instances."web2.example.com"]
node = "alpha"
runtime = "none"
[[instances."web2.example.com".disks]]
path = "disks/web2.raw"

[instances."web2.other.example"]
node = "alpha"
runtime = "none"
[[instances."web2.other.example".disks]]
path = "disks/web2-other.raw"

[instances."empty.example.com"]
node = "alpha"
runtime = "none"
"""


@dataclass(frozen=True)
class Lab:
    """A cluster of two nodes, with instances that are disks without guests."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "cluster.toml"

    @property
    def disk(self) -> Path:
        return self.path / "disks/web1.raw"

    def with_offline_node(self) -> Path:
        """A second configuration of the same cluster, with one more node, which does not answer."""
        config = self.path / "with-offline-node.toml"
        config.write_text(self.config.read_text() + '\n[nodes.offline]\nexport_dir = "offline"\noffline = true\n')
        config.chmod(0o600)
        return config

    def state(self) -> dict[str, tuple[int, int]]:
        """Everything there is outside the state directory, with size and time of change."""
        return {
            str(path.relative_to(self.path)): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in self.path.rglob("*")
            if "state" not in path.relative_to(self.path).parts
        }


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """A small cluster with nothing exported yet."""
    made = Lab(tmp_path / "lab")
    for directory in ("", "alpha", "beta", "disks"):
        (made.path / directory).mkdir(mode=0o700)
    made.config.write_text(CONFIGURATION)
    made.config.chmod(0o600)
    for number, name in enumerate(("web1", "web2", "web2-other")):
        with open(made.path / f"disks/{name}.raw", "wb") as disk:
            disk.write(bytes([number + 1]) * 100_000)
            disk.truncate(8 << 20)  # ends in a hole
    return made
