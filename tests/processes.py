"""Processes that tests start, and end whatever has become of them."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable


def end(process: subprocess.Popen[str], timeout_s: float) -> None:
    """Ask `process` to stop, also one that is frozen, and wait; kill it and fail when it does not within `timeout_s`."""
    process.send_signal(signal.SIGCONT)
    process.terminate()
    try:
        process.wait(timeout_s)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def wait_for(condition: Callable[[], bool], what: str, limit_s: float, while_runs: subprocess.Popen[str] | None = None) -> None:
    """Wait until `condition` holds, which `while_runs` is to bring about: tell what that process said when it does not.

    A process that still runs then is asked for the stacks of its threads, which those with PYTHONFAULTHANDLER write when aborted.
    """
    until = time.monotonic() + limit_s
    while not condition():
        if while_runs is not None and while_runs.poll() is not None and not condition():
            said = "".join(while_runs.communicate(timeout=limit_s))
            raise AssertionError(f"{what}: ended with exit code {while_runs.returncode} before it:\n{said}")
        if time.monotonic() >= until:
            said = ""
            if while_runs is not None:
                while_runs.send_signal(signal.SIGABRT)
                said = "".join(while_runs.communicate(timeout=limit_s))
            raise AssertionError(f"{what}: not within {limit_s:g} s\n{said}")
        time.sleep(0.02)
