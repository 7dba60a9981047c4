"""Processes that tests start, and end whatever has become of them."""

from __future__ import annotations

import signal
import subprocess


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
