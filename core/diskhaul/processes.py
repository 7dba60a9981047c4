"""Running an external program so that it can neither hang nor outlive what its caller allows.

The program gets its own session (and process group), no standard input, no descriptors of ours, and never a shell. Its output
goes to an unlinked temporary file rather than to a pipe: a daemon that it leaves behind, and that still holds its output, then
cannot make anybody wait. On the deadline, on cancellation, on too much output and on any exception the whole process group
gets SIGTERM and, after a grace period, SIGKILL.

A process that leaves the group (``setsid``) is out of reach; that is also how a guest survives the command that started it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from .names import escape

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for when the environment does not say."""

KEPT_OUTPUT_BYTES = 64 * 1024
MAX_OUTPUT_BYTES = 64 << 20
GRACE_S = 2.0
"""Seconds between SIGTERM and SIGKILL."""
_KILLED_S = 5.0  # how long a killed process may take to disappear: one in an uninterruptible sleep never does
_POLL_S = 0.05

Ending = Literal["exited", "deadline", "cancelled", "output"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a program ended.

    Attributes:
        argv: what was run.
        ending: "exited" by itself; or ended by us: at its "deadline", because it was "cancelled", for too much "output".
        exit_code: 0..255; minus the signal's number when a signal ended it; None when not even SIGKILL did.
        output: the last bytes (at most `KEPT_OUTPUT_BYTES`) of standard output and error together.
        seconds: how long it ran.
    """

    argv: tuple[str, ...]
    ending: Ending
    exit_code: int | None
    output: bytes
    seconds: float

    @property
    def ok(self) -> bool:
        """It ended by itself, with exit code 0."""
        return self.ending == "exited" and self.exit_code == 0

    def describe(self) -> str:
        """How it ended, in a few words: ``exit code 3``, ``killed by SIGSEGV``, ``did not end within 60 s``."""
        if self.ending == "deadline":
            return f"did not end within {self.seconds:.3g} s"
        if self.ending == "cancelled":
            return "was cancelled"
        if self.ending == "output":
            return f"wrote more than {MAX_OUTPUT_BYTES >> 20} MiB of output"
        if self.exit_code is not None and self.exit_code < 0:
            try:
                return f"killed by {signal.Signals(-self.exit_code).name}"
            except ValueError:  # a real-time signal has no name
                return f"killed by signal {-self.exit_code}"
        return f"exit code {self.exit_code}"

    def last_lines(self, count: int = 3, *, width: int = 200) -> str:
        """The last lines that are not empty, joined by `` | ``, safe for a terminal: control characters are escaped."""
        lines = [line for line in self.output.decode("utf-8", "backslashreplace").splitlines() if line.strip()]
        return " | ".join(escape(line.strip())[:width] for line in lines[-count:])


def run(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    timeout_s: float,
    cwd: str | Path = "/",
    cancelled: Callable[[], bool] | None = None,
    end_group: bool = True,
    grace_s: float = GRACE_S,
    umask: int = -1,
) -> Finished:
    """Run a program and wait for it.

    Args:
        argv: program and arguments; a program without a slash is looked for in the environment's PATH.
        environment: all of its environment.
        timeout_s: seconds until its process group is ended.
        cwd: its working directory.
        cancelled: asked some twenty times a second; when it says True, the process group is ended.
        end_group: whether what is left of the process group is ended when the program itself ends. False leaves alone what
            a successful program started (a guest); a group that did not end by itself is ended in either case.
        grace_s: seconds from SIGTERM to SIGKILL.
        umask: for the program; -1 keeps ours.

    Thread-safe. An exception in here (Ctrl-C) ends the process group first.

    Raises:
        OSError: it could not be started (ENOENT, EACCES, ENOEXEC, ...), or its exit status was lost because this process
            ignores SIGCHLD.
    """
    with _output_file() as output:
        started = time.monotonic()
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=dict(environment),
            start_new_session=True,
            umask=umask,
        )
        try:
            with _watch(process.pid) as wait_for_exit:
                ending = _wait(wait_for_exit, output, started + timeout_s, cancelled)
                seconds = time.monotonic() - started
                if end_group or ending != "exited":
                    _end_group(process.pid, wait_for_exit, grace_s)
        except BaseException:
            _end_group_now(process)
            raise
        # Until here the program, even when it had ended, was not reaped: its process id, which is the group's, stayed ours.
        try:
            exit_code: int | None = process.wait(timeout=_KILLED_S)
        except subprocess.TimeoutExpired:
            exit_code = None
        return Finished(
            argv=tuple(argv),
            ending=ending,
            exit_code=exit_code,
            output=_tail(output),
            seconds=seconds,
        )


def _output_file() -> IO[bytes]:
    """On a disk, since a daemon may write to it for months; else in memory, since a guest is to be started all the same."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return open(os.memfd_create("output", os.MFD_CLOEXEC), "w+b")


def _wait(
    wait_for_exit: Callable[[float], bool], output: IO[bytes], deadline: float, cancelled: Callable[[], bool] | None
) -> Ending:
    """Wait until the program ends by itself, or there is a reason to end it."""
    while True:
        left = deadline - time.monotonic()
        if wait_for_exit(min(max(left, 0.0), _POLL_S)):
            return "exited"
        if left <= 0:
            return "deadline"
        if cancelled is not None and cancelled():
            return "cancelled"
        if os.fstat(output.fileno()).st_size > MAX_OUTPUT_BYTES:
            return "output"


@contextmanager
def _watch(pid: int) -> Iterator[Callable[[float], bool]]:
    """Give a function that waits up to so many seconds for the end of our child `pid`, without reaping it."""

    def has_ended() -> bool:
        # A lost exit status (ECHILD: SIGCHLD is ignored) must not pass for success, which is what Popen.wait makes of it.
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    try:
        descriptor = os.pidfd_open(pid)
    except OSError:  # no pidfd in this kernel or sandbox: look again and again instead
        descriptor = -1
    poll = select.poll()
    if descriptor >= 0:
        poll.register(descriptor, select.POLLIN)

    def wait_for_exit(seconds: float) -> bool:
        if has_ended():
            return True
        if descriptor >= 0:
            poll.poll(seconds * 1000)
        else:
            time.sleep(min(seconds, 0.01))
        return has_ended()

    try:
        yield wait_for_exit
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _end_group(group: int, wait_for_exit: Callable[[float], bool], grace_s: float) -> None:
    """End every process of `group`, whose leader has not been reaped yet, and return when all are gone (or cannot be)."""
    for number, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _KILLED_S)):
        if not _members(group):
            return
        _signal_group(group, number)
        deadline = time.monotonic() + patience
        while _members(group) and time.monotonic() < deadline:
            if wait_for_exit(_POLL_S):
                time.sleep(0.005)  # the leader is gone and others are not: nothing wakes us for those


def _end_group_now(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole group, for the way out of an exception."""
    if process.returncode is None:
        _signal_group(process.pid, signal.SIGKILL)
        try:
            process.wait(timeout=_KILLED_S)
        except subprocess.TimeoutExpired:  # in an uninterruptible sleep; the exception at hand says more
            pass


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # all gone; or only processes of another user (setuid) are left
        pass


def _members(group: int) -> list[int]:
    """Process ids of the group that still run; zombies do not."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            fields = process_stat(int(entry))
            if fields is not None and fields[0] not in ("Z", "X") and int(fields[2]) == group:
                found.append(int(entry))
    return found


def process_stat(pid: int) -> list[str] | None:
    """Fields of ``/proc/PID/stat`` from the third one (the state) on, or None when there is no such process.

    In the numbering of proc(5), field N is at index N - 3: the state 0, the process group 2, the start time 19.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read().decode("ascii", "replace")
    except OSError:  # ENOENT, or ESRCH when it ends while being read
        return None
    return text[text.rindex(")") + 2 :].split()  # the name in front may itself hold spaces and parentheses


def _tail(output: IO[bytes]) -> bytes:
    size = os.fstat(output.fileno()).st_size
    return os.pread(output.fileno(), KEPT_OUTPUT_BYTES, max(0, size - KEPT_OUTPUT_BYTES))
