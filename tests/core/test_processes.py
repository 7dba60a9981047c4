"""Running external programs: they end in time, with all they started, and cannot make anybody wait."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskhaul import processes
from diskhaul.names import escape
from diskhaul.processes import Finished, process_stat, run

ENVIRONMENT = {"PATH": processes.SEARCH_PATH}
LONG_S = 60.0
SHELL = "/bin/sh"


def shell(script: str, *words: str, timeout_s: float = LONG_S, **options: object) -> Finished:
    return run([SHELL, "-c", script, "sh", *words], environment=ENVIRONMENT, timeout_s=timeout_s, **options)  # type: ignore[arg-type]


def is_alive(pid: int) -> bool:
    fields = process_stat(pid)
    return fields is not None and fields[0] not in ("Z", "X")


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + LONG_S
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.01)


@pytest.fixture
def children() -> Iterator[None]:
    """Fails a test that leaves a child process, running or not reaped."""

    def listed() -> set[str]:
        tasks = Path("/proc/self/task").glob("*/children")
        return {pid for task in tasks for pid in task.read_text().split()}

    before = listed()
    yield
    assert listed() <= before


pytestmark = pytest.mark.usefixtures("children")


def test_output_and_exit_code_are_those_of_the_program() -> None:
    finished = shell("echo out; echo err >&2; exit 7")
    assert (finished.exit_code, finished.ending, finished.ok) == (7, "exited", False)
    assert finished.output == b"out\nerr\n"
    assert finished.describe() == "exit code 7"


def test_a_program_is_run_where_no_temporary_file_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    finished = shell("echo said; exit 3")
    assert (finished.exit_code, finished.output) == (3, b"said\n")


def test_a_program_without_slash_is_found_in_the_path_of_its_environment(tmp_path: Path) -> None:
    program = tmp_path / "only-here"
    program.write_text("#!/bin/sh\nexit 0\n")
    program.chmod(0o755)
    assert run(["only-here"], environment={"PATH": str(tmp_path)}, timeout_s=LONG_S).ok
    with pytest.raises(FileNotFoundError):
        run(["only-here"], environment=ENVIRONMENT, timeout_s=LONG_S)


def test_arguments_reach_the_program_without_a_shell() -> None:
    finished = run(["/usr/bin/printf", "%s|", "$HOME", "`id`", "a b", ";exit 3"], environment=ENVIRONMENT, timeout_s=LONG_S)
    assert finished.output == b"$HOME|`id`|a b|;exit 3|"


def test_the_environment_is_exactly_the_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_CALLER", "1")
    finished = run(["/usr/bin/env"], environment={"A": "1", "B": "x y"}, timeout_s=LONG_S)
    assert sorted(finished.output.splitlines()) == [b"A=1", b"B=x y"]


def test_the_program_has_no_input_a_session_of_its_own_and_no_descriptors_of_ours(tmp_path: Path) -> None:
    with open(tmp_path / "ours", "wb") as ours:
        os.set_inheritable(ours.fileno(), True)
        finished = shell("cat; ls -l /proc/$$/fd; cat /proc/$$/stat", umask=0o027, cwd=tmp_path)
    text = finished.output.decode()
    assert str(tmp_path / "ours") not in text
    stat = text.splitlines()[-1].rsplit(")", 1)[1].split()
    pid = text.splitlines()[-1].split()[0]
    assert stat[2] == stat[3] == pid, "group and session are its own"


def test_working_directory_and_umask_are_the_given_ones(tmp_path: Path) -> None:
    assert shell("pwd; umask", umask=0o027, cwd=tmp_path).output.decode().split() == [str(tmp_path), "0027"]


def test_a_death_by_signal_is_named() -> None:
    finished = shell("kill -SEGV $$")
    assert finished.exit_code == -signal.SIGSEGV
    assert finished.describe() == "killed by SIGSEGV"


def test_a_program_that_overruns_is_ended() -> None:
    finished = shell("sleep 1000 & wait", timeout_s=0.2)
    assert finished.ending == "deadline"
    assert re.fullmatch(r"did not end within [0-9.]+ s", finished.describe())
    assert finished.exit_code == -signal.SIGTERM


def test_a_program_that_is_ended_takes_its_whole_group_with_it(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    finished = shell(
        "sleep 1000 & echo $! ; sh -c 'sleep 1000 & echo $!; touch $1; wait' x $1 & wait", str(ready), cancelled=ready.exists
    )
    assert (finished.ending, finished.exit_code) == ("cancelled", -signal.SIGTERM)
    pids = [int(pid) for pid in finished.output.split()]
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids), "gone when run returns, not some time later"


def test_a_program_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = "trap '' TERM; touch $1; while :; do sleep 1000; done"
    finished = shell(script, str(ready), cancelled=ready.exists, grace_s=0.2)
    assert (finished.ending, finished.exit_code) == ("cancelled", -signal.SIGKILL)


def test_a_program_that_is_stopped_is_killed(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    def stopped() -> bool:
        fields = process_stat(int(pid_file.read_text())) if pid_file.exists() else None
        return fields is not None and fields[0] == "T"

    script = "echo $$ > $1.new; mv $1.new $1; kill -STOP $$"
    finished = shell(script, str(pid_file), cancelled=stopped, grace_s=0.2)
    assert (finished.ending, finished.exit_code) == ("cancelled", -signal.SIGKILL)


def test_a_program_may_clean_up_when_it_is_ended(tmp_path: Path) -> None:
    ready, done = tmp_path / "ready", tmp_path / "done"
    script = "trap 'echo cleaned > $2; exit 5' TERM; sleep 1000 & touch $1; wait"
    finished = shell(script, str(ready), str(done), cancelled=ready.exists, grace_s=LONG_S)
    assert (finished.ending, finished.exit_code) == ("cancelled", 5)
    assert not finished.ok
    assert done.read_text() == "cleaned\n"


def test_what_a_program_leaves_in_the_background_is_ended_with_it() -> None:
    finished = shell("sleep 1000 & echo $!; trap '' TERM; sh -c 'while :; do sleep 1000; done' & echo $!", grace_s=0.2)
    assert finished.ok
    assert not any(is_alive(int(pid)) for pid in finished.output.split())


def test_a_daemon_that_holds_the_output_open_makes_nobody_wait(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    away = "setsid sh -c 'echo $$; touch $1; exec sleep 1000' x $1 &"
    finished = shell(f"{away} while ! test -e $1; do :; done", str(ready))
    pid = int(finished.output)
    try:
        assert finished.ok
        assert is_alive(pid), "a process that left the group is out of reach, and lives"
    finally:
        os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)


def test_what_a_successful_program_started_may_be_left_alone() -> None:
    finished = shell("sleep 1000 & echo $!", end_group=False)
    pid = int(finished.output)
    try:
        assert is_alive(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)


def test_a_cancelled_program_is_ended(tmp_path: Path) -> None:
    started = tmp_path / "started"
    finished = shell("echo $$ > $1; sleep 1000", str(started), cancelled=lambda: started.exists() and bool(started.read_text()))
    assert finished.ending == "cancelled"
    assert finished.describe() == "was cancelled"
    assert not is_alive(int(started.read_text()))


def test_an_exception_on_the_way_ends_the_group(tmp_path: Path) -> None:
    started = tmp_path / "started"

    def cancelled() -> bool:
        if started.exists() and started.read_text():
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        shell("sleep 1000 & echo $! > $1; wait", str(started), cancelled=cancelled)
    wait_until_gone(int(started.read_text()))


def test_only_the_last_output_is_kept() -> None:
    finished = shell("head -c 300000 /dev/zero | tr '\\0' x; echo; echo the end")
    assert len(finished.output) == processes.KEPT_OUTPUT_BYTES
    assert finished.output.endswith(b"x\nthe end\n")


def test_a_program_that_floods_its_output_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MAX_OUTPUT_BYTES", 1 << 20)
    finished = shell("exec yes")
    assert finished.ending == "output"
    assert finished.describe() == "wrote more than 1 MiB of output"


def test_the_last_lines_are_safe_for_a_terminal() -> None:
    finished = shell(r"printf 'first\n\nsecond \033[31m\007\n\303\244 \377\n\n'")
    assert finished.last_lines() == "first | second \\x1b[31m\\x07 | ä \\xff"
    assert finished.last_lines(1) == "ä \\xff"
    assert escape("a\r\n\t\u202eb") == "a\\r\\n\\t\\u202eb"


@pytest.mark.parametrize(("mode", "error"), [(0o644, PermissionError), (0o755, OSError)])
def test_a_program_that_cannot_be_started_is_an_os_error(tmp_path: Path, mode: int, error: type[OSError]) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x00 no program at all")
    program.chmod(mode)
    with pytest.raises(error):
        run([str(program)], environment=ENVIRONMENT, timeout_s=LONG_S)


def test_without_pidfd_everything_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(pid: int, flags: int = 0) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", unavailable)
    assert shell("exit 3").exit_code == 3
    assert shell("sleep 1000", timeout_s=0.2).ending == "deadline"


def test_a_lost_exit_status_does_not_pass_for_success() -> None:
    program = (
        "import signal, sys\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "from diskhaul.processes import run\n"
        "try:\n"
        "    run(['/bin/sh', '-c', 'exit 3'], environment={}, timeout_s=60)\n"
        "except ChildProcessError:\n"
        "    sys.exit(42)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, timeout=LONG_S).returncode == 42


def test_no_descriptor_is_left_open() -> None:
    shell("exit 0")
    before = os.listdir("/proc/self/fd")
    for script in ("exit 0", "exit 1", "kill -9 $$"):
        shell(script)
    shell("sleep 1000", timeout_s=0.1)
    with pytest.raises(OSError):  # noqa: PT011
        run(["/nonexistent"], environment={}, timeout_s=1)
    assert os.listdir("/proc/self/fd") == before


def test_programs_run_from_several_threads_at_once() -> None:
    results: dict[int, Finished] = {}

    def work(number: int) -> None:
        results[number] = shell(f"echo {number}; exit {number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG_S)
    assert {number: (result.exit_code, result.output) for number, result in results.items()} == {
        number: (number, f"{number}\n".encode()) for number in range(12)
    }
