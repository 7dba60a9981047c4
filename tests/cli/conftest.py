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
