"""One measured run: starts the processes of a job, waits for all of them, and says what they used.

Wall time runs from the first start to the last end; a service is there before and after, but its CPU time and its memory count.
CPU time is what the kernel accounts to the processes and to those of their
children that they waited for (wait4). Peak memory comes from GNU time, which each process is started through: Linux gives a
process that is started by a large one (this Python) the starter's memory as its first peak, and GNU time is small. A process with
children counts with the largest of them; the processes of a pipeline, which run at the same time, are added up.
"""

from __future__ import annotations

import os
import re
import select
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import ComparisonError, ContestantError

PORT = "@PORT@"  # in an argument: the port that the listening pipeline before has been given
SEARCH_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
_LISTENING = re.compile(rb"listen(?:ing|s) on (?:AF=2 )?127\.0\.0\.1:(\d+)")
_STOP_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Processes that run at the same time, each reading what the one before writes.

    Attributes:
        stages: their arguments.
        output: the file that the last one's standard output goes to; None throws it away.
        listens: the first process says on which port it listens, as socat or diskhaul; the next pipeline starts when it has.
        serves: the time before it listens does not count, and it is ended with SIGTERM once the others are over.
    """

    stages: tuple[tuple[str, ...], ...]
    output: Path | None = None
    listens: bool = False
    serves: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a job needed: seconds, seconds of CPU time in user and system mode, and bytes of memory at the peak."""

    wall_s: float
    user_s: float
    system_s: float
    peak: int

    @property
    def cpu_s(self) -> float:
        return self.user_s + self.system_s

    def followed_by(self, later: Usage) -> Usage:
        """This and something that ran after it."""
        return Usage(
            wall_s=self.wall_s + later.wall_s,
            user_s=self.user_s + later.user_s,
            system_s=self.system_s + later.system_s,
            peak=max(self.peak, later.peak),
        )


@dataclass(slots=True)
class _Process:
    argv: Sequence[str]
    pid: int
    memory: Path  # where GNU time writes the peak, KiB
    log: Path


def measure(pipelines: Sequence[Pipeline], *, scratch: Path, limit_s: float) -> Usage:
    """Run pipelines at the same time and return what they used. `scratch` is an empty directory for logs.

    Raises:
        ContestantError: a process failed, or they took longer than `limit_s` seconds; none of them runs any more.
        ComparisonError: a program could not be started.
    """
    running: list[_Process] = []
    serving: list[_Process] = []
    user_s = system_s = 0.0
    started = time.monotonic()
    deadline = started + limit_s
    try:
        port = ""
        for pipeline in pipelines:
            first = len(running)
            _start(pipeline, port, scratch, running)
            if pipeline.listens:
                port = _port(running[first], deadline)
            if pipeline.serves:
                serving += running[first:]
                started = time.monotonic()
        waiting = [process for process in running if process not in serving]
        wall_s = 0.0
        while waiting or serving:
            if not waiting:
                wall_s = time.monotonic() - started
                for process in serving:
                    _end_child(process)
                waiting, serving = serving, []
            process = _next_ended(waiting, deadline)
            _, status, used = os.wait4(process.pid, 0)
            waiting.remove(process)
            running.remove(process)
            user_s += used.ru_utime
            system_s += used.ru_stime
            if status != 0:
                raise ContestantError(_failure(process, status))
        wall_s = wall_s or time.monotonic() - started
    finally:
        _end(running)
    return Usage(wall_s=wall_s, user_s=user_s, system_s=system_s, peak=_peak(scratch))


def _start(pipeline: Pipeline, port: str, scratch: Path, running: list[_Process]) -> None:
    environment = {"PATH": SEARCH_PATH, "LC_ALL": "C", "HOME": os.environ.get("HOME", "/")}
    given = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for number, stage in enumerate(pipeline.stages):
            argv = [argument.replace(PORT, port) for argument in stage]
            name = f"{len(running)}-{Path(argv[0]).name}"
            memory, log = scratch / f"{name}.peak", scratch / f"{name}.log"
            following = -1
            if number + 1 < len(pipeline.stages):
                following, written = os.pipe()  # neither is inherited but as the standard stream below
            else:
                written = os.open(pipeline.output or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                full = ["time", "--quiet", "--format=%M", f"--output={memory}", *argv]
                streams = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((given, written, said))]
                # Python ignores SIGPIPE, and what it starts would inherit that.
                pid = os.posix_spawnp("time", full, environment, file_actions=streams, setpgroup=0, setsigdef=[signal.SIGPIPE])
            except OSError as error:
                if following >= 0:
                    os.close(following)
                raise ComparisonError(f"time (package time) cannot be started: {error.strerror}") from error
            finally:
                os.close(written)
                os.close(said)
            running.append(_Process(argv, pid, memory, log))
            os.close(given)
            given = following
    finally:
        if given >= 0:
            os.close(given)


def _port(listener: _Process, deadline: float) -> str:
    pidfd = os.pidfd_open(listener.pid)
    try:
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        while True:
            over = bool(ended.poll(5))  # milliseconds; also the pause between two looks
            if found := _LISTENING.search(listener.log.read_bytes()):
                return found[1].decode()
            if over or time.monotonic() > deadline:
                raise ContestantError(f"{listener.argv[0]} does not listen: {_last_line(listener.log)}")
    finally:
        os.close(pidfd)


def _next_ended(waiting: Sequence[_Process], deadline: float) -> _Process:
    """The next process that has ended, not yet waited for."""
    pidfds = {os.pidfd_open(process.pid): process for process in waiting}
    try:
        ended = select.poll()
        for pidfd in pidfds:
            ended.register(pidfd, select.POLLIN)
        found = ended.poll(max(0.0, deadline - time.monotonic()) * 1000)
        if not found:
            raise ContestantError(f"{waiting[0].argv[0]} did not end within the limit")
        return pidfds[found[0][0]]
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def _end(running: Sequence[_Process]) -> None:
    """End processes that still run, with their children; each is the leader of a group of its own."""
    for process in running:
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    for process in running:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # GNU time: dies of SIGTERM at once
        while _others_run(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)  # its child is not ours, so there is nothing to wait on
        os.killpg(process.pid, signal.SIGKILL)
        os.wait4(process.pid, 0)


def _end_child(process: _Process) -> None:
    """Have what GNU time runs end by itself, so that GNU time can account for it."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGTERM)


def _others_run(group: int) -> bool:
    """Whether a process of the group, other than its leader, has not ended."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != group:
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, _, found = file.read().rpartition(b")")[2].split()[:3]
            except OSError:  # gone meanwhile
                continue
            if int(found) == group and state != b"Z":
                return True
    return False


def _failure(process: _Process, status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    how = f"status {code}" if code >= 0 else f"signal {-code}"
    return f"{Path(process.argv[0]).name} failed ({how}): {_last_line(process.log)}"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _peak(scratch: Path) -> int:
    """Bytes: the sum of the peaks that GNU time has written."""
    return sum(int(file.read_text()) for file in scratch.glob("*.peak")) * 1024


def sizes(path: Path) -> tuple[int, int]:
    """Bytes of a file, or of all files in a directory: their lengths, and what they take on the disk."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    found = [file.stat() for file in files]
    return sum(one.st_size for one in found), sum(one.st_blocks * 512 for one in found)
