"""Runtime ``command``, with a guest that is a real process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diskhaul.api import BackendContext, Runtime
from diskhaul.errors import GuestError
from diskhaul.model import Cluster, Instance
from diskhaul.processes import process_stat
from diskhaul.testing.conformance.runtimes import RuntimeConformance
from diskhaul.testing.guest import ProcessGuest
from diskhaul_plugins.runtimes import command
from diskhaul_plugins.runtimes.command import CommandRuntime

LONG_S = 60.0


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[ProcessGuest]:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    guest = ProcessGuest(tmp_path, disk)
    yield guest
    guest.close()


@pytest.fixture
def runtime(tmp_path: Path) -> CommandRuntime:
    return make(tmp_path)


@pytest.fixture
def instance(guest: ProcessGuest) -> Instance:
    return Instance(name="web1.example.com", node="alpha", runtime="command", runtime_options=guest.runtime_options)


def make(directory: Path | None) -> CommandRuntime:
    source = directory / "cluster.toml" if directory is not None else None
    return CommandRuntime(BackendContext(cluster=Cluster(name="lab", state_dir=Path("/nonexistent"), source=source)))


def with_options(instance: Instance, **options: Any) -> Instance:
    """`instance` with other options; None takes one away."""
    merged = {**instance.runtime_options, **options}
    return replace(instance, runtime_options={key: value for key, value in merged.items() if value is not None})


def script(directory: Path, name: str, text: str) -> str:
    """Make a shell script and say how it is called from the configuration."""
    path = directory / name
    path.write_text("#!/bin/sh\n" + text + "\n")
    path.chmod(0o755)
    return f"./{name}"


class TestCommandRuntime(RuntimeConformance):
    @pytest.fixture
    def runtime(self, tmp_path: Path) -> Runtime:
        return make(tmp_path)

    @pytest.fixture
    def instance(self, guest: ProcessGuest) -> Instance:
        return Instance(name="web1.example.com", node="alpha", runtime="command", runtime_options=guest.runtime_options)


class TestCommandRuntimeThatFreezes(TestCommandRuntime):
    @pytest.fixture
    def instance(self, guest: ProcessGuest, tmp_path: Path) -> Instance:
        script(tmp_path, "freeze", 'test "$1" = on && ! test -e frozen && touch frozen || { test "$1" = off && rm -f frozen; }')
        options = guest.runtime_options | {
            "trim": [script(tmp_path, "trim", "test $DISKHAUL_TRIM_TIMEOUT -gt 0 && ./vm status")],
            "freeze": ["./freeze", "on"],
            "thaw": ["./freeze", "off"],
            "activate_disks": [script(tmp_path, "activate", "touch active")],
            "deactivate_disks": [script(tmp_path, "deactivate", "rm active")],
        }
        return Instance(name="web1.example.com", node="alpha", runtime="command", runtime_options=options)


# --- the guest really runs, and really stops --------------------------------------------------------------------------


def test_a_started_guest_outlives_its_start_command_and_keeps_writing(
    runtime: CommandRuntime, instance: Instance, guest: ProcessGuest
) -> None:
    runtime.start(instance)
    guest.wait_for_progress()
    stat = process_stat(guest.pid)
    assert stat is not None
    assert int(stat[3]) == guest.pid, "a session of its own"
    assert guest.running


def test_a_stopped_guest_has_ended_and_left_its_disk_clean(
    runtime: CommandRuntime, instance: Instance, guest: ProcessGuest
) -> None:
    runtime.start(instance)
    guest.wait_for_progress()
    runtime.stop(instance, timeout_s=LONG_S)
    assert not guest.running
    assert process_stat(guest.pid) is None or process_stat(guest.pid)[0] == "Z"  # type: ignore[index]
    marks = guest.marks()
    assert not marks.running
    assert marks.consistent


def test_a_guest_started_in_the_background_of_its_command_is_not_ended_with_it(
    tmp_path: Path, runtime: CommandRuntime, instance: Instance
) -> None:
    start = script(tmp_path, "start", "sleep 1000 & echo $! > pid")
    instance = with_options(instance, start=[start], status=[script(tmp_path, "status", "kill -0 $(cat pid)")])
    runtime.start(instance)
    pid = int((tmp_path / "pid").read_text())
    os.kill(pid, 9)  # fails when it is gone already


def test_a_start_that_is_only_claimed_is_an_error(runtime: CommandRuntime, instance: Instance, guest: ProcessGuest) -> None:
    guest.disturb("start", "lie")
    with pytest.raises(GuestError, match="command 'start' succeeded, but the guest does not run"):
        runtime.start(with_options(instance, timeout_s=0.5))


def test_a_stop_that_is_only_claimed_is_an_error(
    runtime: CommandRuntime, instance: Instance, guest: ProcessGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "STOP_GRACE_S", 0.2)
    runtime.start(instance)
    guest.disturb("stop", "lie")
    with pytest.raises(GuestError, match="command 'stop' succeeded, but the guest still runs"):
        runtime.stop(instance, timeout_s=0.3)
    assert guest.running


def test_a_stop_that_goes_on_after_its_command_is_waited_for(
    tmp_path: Path, runtime: CommandRuntime, instance: Instance, guest: ProcessGuest
) -> None:
    later = script(tmp_path, "later", "(sleep 0.3; exec ./vm stop) </dev/null >/dev/null 2>&1 &")
    runtime.start(instance)
    runtime.stop(with_options(instance, stop=[later]), timeout_s=LONG_S)
    assert not guest.running


def test_a_failing_command_is_an_error_with_its_last_output(
    runtime: CommandRuntime, instance: Instance, guest: ProcessGuest
) -> None:
    guest.disturb("start", "fail")
    with pytest.raises(GuestError, match=r"web1\.example\.com: command 'start' failed: exit code 1: told to fail: start"):
        runtime.start(instance)
    runtime.start(instance)
    guest.disturb("stop", "fail")
    with pytest.raises(GuestError, match="command 'stop' failed: exit code 1: told to fail: stop"):
        runtime.stop(instance, timeout_s=LONG_S)
    assert runtime.is_running(instance) is True


def test_a_hanging_stop_is_ended_at_the_shutdown_timeout_and_the_guest_still_runs(
    runtime: CommandRuntime, instance: Instance, guest: ProcessGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "STOP_GRACE_S", 0.2)
    runtime.start(instance)
    guest.disturb("stop", "hang")
    with pytest.raises(GuestError, match="command 'stop' failed: did not end within 0"):
        runtime.stop(instance, timeout_s=0.3)
    assert guest.running


def test_a_hanging_command_is_ended_at_its_timeout(runtime: CommandRuntime, instance: Instance, guest: ProcessGuest) -> None:
    for verb, call in (("start", runtime.start), ("status", runtime.is_running), ("remove", runtime.remove)):
        guest.disturb(verb, "hang")
        with pytest.raises(GuestError, match=f"command '{verb}' failed: did not end within 0"):
            call(with_options(instance, timeout_s=0.3))


def test_stop_is_told_the_shutdown_timeout(tmp_path: Path, runtime: CommandRuntime, instance: Instance) -> None:
    stop = script(tmp_path, "stop", 'echo "$DISKHAUL_SHUTDOWN_TIMEOUT $DISKHAUL_INSTANCE" > told')
    runtime.stop(with_options(instance, stop=[stop]), timeout_s=90.0)
    assert (tmp_path / "told").read_text() == "90 web1.example.com\n"


@pytest.mark.parametrize(("code", "running"), [(0, True), (1, False), (3, False)])
def test_the_exit_code_of_status_says_whether_the_guest_runs(
    tmp_path: Path, runtime: CommandRuntime, instance: Instance, code: int, running: bool
) -> None:
    status = [script(tmp_path, "status", f"exit {code}")]
    assert runtime.is_running(with_options(instance, status=status)) is running


@pytest.mark.parametrize(
    ("off", "code", "running"), [([3], 0, True), ([3], 3, False), ([2, 7], 7, False), ((3,), 1, None), ([2], 3, None)]
)
def test_a_configuration_can_say_which_exit_codes_of_status_mean_off(
    tmp_path: Path, runtime: CommandRuntime, instance: Instance, off: Sequence[int], code: int, running: bool | None
) -> None:
    asked = with_options(instance, status=[script(tmp_path, "status", f"exit {code}")], status_off=off)
    assert problems(runtime, asked, {}) == []
    if running is None:
        with pytest.raises(GuestError, match="unknown whether the guest runs"):
            runtime.is_running(asked)
    else:
        assert runtime.is_running(asked) is running


@pytest.mark.parametrize("ending", ["exit 2", "exit 4", "exit 127", "kill -9 $$"])
def test_any_other_status_is_unknown_which_is_not_no(
    tmp_path: Path, runtime: CommandRuntime, instance: Instance, ending: str
) -> None:
    status = [script(tmp_path, "status", "echo cannot tell; " + ending)]
    with pytest.raises(GuestError, match="unknown whether the guest runs"):
        runtime.is_running(with_options(instance, status=status))


def test_a_status_that_is_unknown_for_a_moment_does_not_fail_a_start(
    runtime: CommandRuntime, instance: Instance, guest: ProcessGuest
) -> None:
    guest.disturb("status", "fail", times=2)
    runtime.start(instance)
    assert guest.running


def test_output_with_terminal_escapes_is_escaped_in_errors(tmp_path: Path, runtime: CommandRuntime, instance: Instance) -> None:
    start = [script(tmp_path, "start", r"printf '\033[2Jgone\n'; exit 1")]
    with pytest.raises(GuestError) as caught:
        runtime.start(with_options(instance, start=start))
    assert "\\x1b[2Jgone" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_remove_removes_a_stopped_instance_and_not_a_running_one(
    runtime: CommandRuntime, instance: Instance, guest: ProcessGuest
) -> None:
    runtime.start(instance)
    with pytest.raises(GuestError, match="the guest is running"):
        runtime.remove(instance)
    assert guest.disk.exists()
    runtime.stop(instance, timeout_s=LONG_S)
    runtime.remove(instance)
    assert not guest.disk.exists()


def test_without_a_command_for_it_removal_and_freezing_are_errors(runtime: CommandRuntime, instance: Instance) -> None:
    bare = with_options(instance, remove=None)
    with pytest.raises(GuestError, match="no 'remove' command"):
        runtime.remove(bare)
    assert runtime.can_freeze(bare) is False
    with pytest.raises(GuestError, match="no 'freeze' and 'thaw' commands"):
        runtime.freeze(bare)
    runtime.thaw(bare)
    assert runtime.activate_disks(bare) is False
    runtime.deactivate_disks(bare)


def test_freezing_and_activating_run_their_commands(tmp_path: Path, runtime: CommandRuntime, instance: Instance) -> None:
    verbs = ("freeze", "thaw", "activate_disks", "deactivate_disks")
    program = script(tmp_path, "note", 'echo "$1" >> noted')
    instance = with_options(instance, **{verb: [program, verb] for verb in verbs})
    assert list(runtime.check(instance)) == []
    assert runtime.can_freeze(instance)
    runtime.freeze(instance)
    runtime.thaw(instance)
    assert runtime.activate_disks(instance) is True
    runtime.deactivate_disks(instance)
    assert (tmp_path / "noted").read_text().split() == list(verbs)


def test_trimming_runs_its_command_and_tells_it_how_long_it_may_take(
    tmp_path: Path, runtime: CommandRuntime, instance: Instance
) -> None:
    assert runtime.can_trim(instance) is False
    with pytest.raises(GuestError, match="no 'trim' command"):
        runtime.trim(instance, timeout_s=LONG_S)
    trimmed = with_options(instance, trim=[script(tmp_path, "trim", "echo $DISKHAUL_TRIM_TIMEOUT $DISKHAUL_INSTANCE > trimmed")])
    assert list(runtime.check(trimmed)) == []
    assert runtime.can_trim(trimmed) is True
    runtime.trim(trimmed, timeout_s=77.0)
    assert (tmp_path / "trimmed").read_text() == "77 web1.example.com\n"
    failing = with_options(instance, trim=[script(tmp_path, "trim", "echo no agent >&2; exit 1")])
    with pytest.raises(GuestError, match="command 'trim' failed: exit code 1: no agent"):
        runtime.trim(failing, timeout_s=LONG_S)


# --- how commands are run ---------------------------------------------------------------------------------------------


def test_commands_run_in_the_directory_of_the_configuration(tmp_path: Path, runtime: CommandRuntime, instance: Instance) -> None:
    runtime.remove(with_options(instance, remove=[script(tmp_path, "where", "pwd > where.txt")]))
    assert (tmp_path / "where.txt").read_text().strip() == str(tmp_path.resolve())


def test_a_configuration_named_by_a_relative_path_works_from_another_directory(
    tmp_path: Path, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cluster = Cluster(name="lab", state_dir=Path("/nonexistent"), source=Path("cluster.toml"))
    runtime = CommandRuntime(BackendContext(cluster=cluster))
    monkeypatch.chdir("/")
    instance = with_options(instance, status=["./vm", "status"])
    assert list(runtime.check(instance)) == []
    assert runtime.is_running(instance) is False


def test_arguments_are_not_seen_by_a_shell(tmp_path: Path, runtime: CommandRuntime, instance: Instance) -> None:
    words = ["$(touch hacked)", "; touch hacked", "a b", ""]
    show = script(tmp_path, "show", "printf '%s\\n' \"$@\" > shown")
    runtime.remove(with_options(instance, remove=[show, *words]))
    assert (tmp_path / "shown").read_text().split("\n")[:-1] == words
    assert not (tmp_path / "hacked").exists()


def test_the_environment_is_clean_but_for_what_is_configured(
    tmp_path: Path, runtime: CommandRuntime, instance: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLERS_SECRET", "x")
    monkeypatch.setenv("LANG", "C.UTF-8")
    show = script(tmp_path, "show", "env > shown")
    runtime.remove(with_options(instance, remove=[show], environment={"LIBVIRT_DEFAULT_URI": "qemu:///system"}))
    shown = dict(line.split("=", 1) for line in (tmp_path / "shown").read_text().splitlines())
    assert "CALLERS_SECRET" not in shown
    assert shown["LANG"] == "C.UTF-8"
    assert shown["DISKHAUL_INSTANCE"] == "web1.example.com"
    assert shown["LIBVIRT_DEFAULT_URI"] == "qemu:///system"
    assert "/usr/sbin" in shown["PATH"].split(":")


def test_a_program_that_vanished_is_a_guest_error(tmp_path: Path, runtime: CommandRuntime, instance: Instance) -> None:
    with pytest.raises(GuestError, match="cannot be run: No such file"):
        runtime.start(with_options(instance, start=["./gone"]))
    with pytest.raises(GuestError, match="is not in PATH"):
        runtime.start(with_options(instance, start=["no-such-program-anywhere"]))


# --- prerequisites ----------------------------------------------------------------------------------------------------


def problems(runtime: CommandRuntime, instance: Instance, options: Mapping[str, Any]) -> list[str]:
    return [*runtime.check(with_options(instance, **options))]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stopp": ["x"]}, "runtime_options.stopp: unknown; there is start, stop, status"),
        ({"start": None}, "runtime_options.start: missing"),
        ({"status": "vm status"}, "runtime_options.status: 'vm status' is not a list of strings"),
        ({"stop": []}, "runtime_options.stop: [] is not a list of strings"),
        ({"stop": ["./vm", 1]}, "is not a list of strings"),
        ({"stop": [""]}, "the program is empty"),
        ({"stop": ["./vm", "a\0b"]}, "holds a NUL"),
        ({"stop": ["./missing"]}, "No such file"),
        ({"stop": ["no-such-program-anywhere"]}, "is not in PATH"),
        ({"stop": ["/etc"]}, "is not an executable file"),
        ({"stop": ["/etc/passwd"]}, "is not an executable file"),
        ({"freeze": ["true"]}, "runtime_options.thaw: missing, but there is 'freeze'"),
        ({"deactivate_disks": ["true"]}, "runtime_options.activate_disks: missing, but there is 'deactivate_disks'"),
        ({"timeout_s": "60"}, "timeout_s: '60' is not seconds above 0"),
        ({"timeout_s": 0}, "timeout_s: 0 is not"),
        ({"timeout_s": -1}, "timeout_s: -1 is not"),
        ({"timeout_s": float("nan")}, "timeout_s: nan is not"),
        ({"timeout_s": 1e99}, "timeout_s: 1e+99 is not"),
        ({"timeout_s": True}, "timeout_s: True is not"),
        ({"status_off": 3}, "status_off: 3 is not a list of exit codes"),
        ({"status_off": []}, "status_off: [] is not a list of exit codes"),
        ({"status_off": [0]}, "status_off: [0] is not a list of exit codes"),
        ({"status_off": [True]}, "status_off: [True] is not a list of exit codes"),
        ({"status_off": [256, 3]}, "status_off: [256, 3] is not a list of exit codes"),
        ({"environment": ["A=1"]}, "environment: ['A=1'] is not a table of strings"),
        ({"environment": {"A": 1}}, "environment.A: 1 is not a string"),
        ({"environment": {"A=B": "1"}}, "'A=B' is not a variable"),
    ],
)
def test_a_configuration_that_cannot_work_is_one_clear_problem(
    runtime: CommandRuntime, instance: Instance, options: dict[str, Any], said: str
) -> None:
    found = problems(runtime, instance, options)
    assert len(found) == 1
    assert said in found[0]
    assert found[0].startswith("instances.web1.example.com.runtime_options.")


def test_all_problems_are_told_at_once(runtime: CommandRuntime, instance: Instance) -> None:
    found = problems(runtime, instance, {"start": None, "stop": "x", "status": ["./missing"], "timeout_s": -1, "more": 1})
    assert len(found) == 5


def test_a_program_or_directory_that_everybody_may_write_is_a_problem(
    tmp_path: Path, runtime: CommandRuntime, instance: Instance
) -> None:
    place = tmp_path / "open"
    place.mkdir()
    script(place, "program", "exit 0")
    remove = {"remove": ["open/program"]}
    assert problems(runtime, instance, remove) == []
    (place / "program").chmod(0o777)
    (found,) = problems(runtime, instance, remove)
    assert f"remove: program 'open/program' is not safe: {place / 'program'} can be written by every user" in found
    (place / "program").chmod(0o755)
    place.chmod(0o777)
    (found,) = problems(runtime, instance, remove)
    assert f"is not safe: directory {place} can be written by every user; run: chmod o-w {place}" in found
    place.chmod(0o1777)
    assert problems(runtime, instance, remove) == [], "the sticky bit keeps others from replacing it"


def test_a_relative_program_of_a_cluster_built_in_code_is_a_problem(instance: Instance) -> None:
    runtime = make(None)
    (found,) = problems(runtime, instance, {"status": ["./vm", "status"]})
    assert "give an absolute path" in found
    with pytest.raises(GuestError, match="give an absolute path"):
        runtime.is_running(with_options(instance, status=["./vm", "status"]))


def test_checking_runs_nothing(runtime: CommandRuntime, instance: Instance, guest: ProcessGuest) -> None:
    assert list(runtime.check(instance)) == []
    assert guest.calls() == []


def test_the_guest_of_the_test_kit_shows_a_copy_that_was_not_of_one_moment(
    runtime: CommandRuntime, instance: Instance, guest: ProcessGuest, tmp_path: Path
) -> None:
    runtime.start(instance)
    guest.wait_for_progress()
    with open(guest.disk, "rb") as disk, open(tmp_path / "copy", "wb") as copy:
        copy.write(disk.read(1 << 19))
        guest.wait_for_progress()
        copy.write(os.pread(disk.fileno(), 1 << 19, 1 << 19))
    assert not guest.marks(tmp_path / "copy").consistent
    deadline = time.monotonic() + LONG_S
    while not (marks := guest.marks()).consistent:  # two reads can straddle a write of the live disk
        assert time.monotonic() < deadline
    assert marks.running
