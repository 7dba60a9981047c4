"""What starting costs: CPU seconds (not wall time) of whole processes, interpreter included."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

COMMANDS = {
    "python": ("-c", "pass"),
    "import": ("-c", "import diskhaul"),
    "version": ("-m", "diskhaul", "--version"),
    "help": ("-m", "diskhaul", "--help"),
    "export-help": ("-m", "diskhaul", "export", "--help"),
    "plugins": ("-m", "diskhaul", "plugins"),
}


def cpu_of_children() -> float:
    """CPU seconds of the processes that this one has started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.benchmark(timer=cpu_of_children)
@pytest.mark.parametrize("command", COMMANDS)
def test_startup(measured: Callable[..., Any], command: str) -> None:
    argv = [sys.executable, *COMMANDS[command]]
    measured(lambda: subprocess.run(argv, check=True, stdout=subprocess.DEVNULL), rounds=15, timer="CPU seconds of the process")
