"""What every command goes through, shown with commands made for it, each in a process of its own with real descriptors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .conftest import ENVIRONMENT, take_signals_as_from_a_shell

PROGRAM = """
import os, subprocess, sys
import click
from diskhaul.cancellation import run_shielded
from diskhaul.cli import main as entry
from diskhaul.cli.invocation import Answer, Command, GuestOperation, Operation, common_options
from diskhaul.cli.main import _COMMANDS, cli
from diskhaul.errors import InterruptedRunError, OperationFailedError
from diskhaul.events import StageStarted, Warned

def command(name, cls):
    def add(function):
        made = click.command(name, cls=cls)(common_options(hidden=True)(click.pass_obj(function)))
        commands[name] = made
        return made
    return add

commands = {}
get_command = cli.get_command
cli.get_command = lambda ctx, name: commands.get(name) or get_command(ctx, name)

@command("chatty", Operation)
def chatty(invocation):
    print("printed by a plugin")
    subprocess.run(["echo", "printed by a child"], check=True)
    os.write(1, b"written by C\\n")
    invocation.on_event(Warned(message="told already"))
    notes = ["warning: told already", "told already", "note"]
    return Answer(document={"done": 1}, text=lambda: "the answer", notes=notes, chatter=True)

@command("fine", Command)
def fine(invocation):
    return Answer(document={}, text=lambda: "fine")

@command("four", Operation)
def four(invocation):
    return Answer(document={}, text=lambda: "x" * 100_000, exit_code=4)

@command("exits", Command)
def exits(invocation):
    sys.exit(0)

@command("breaks", Command)
def breaks(invocation):
    raise KeyError("\\x1b[2Jsurprise")

@command("opens", Operation)
def opens(invocation):
    with open(os.environ["OPENED"], "w") as file:
        print(file.fileno(), file=file)
        subprocess.run([sys.executable, "-c", "import os; [os.fstat(number) for number in range(3)]"], check=True)
    print("printed by a plugin")
    return Answer(document={}, text=lambda: "fine", notes=["a note"], exit_code=4)

@command("reads", Command)
def reads(invocation):
    print("reading", flush=True)
    os.read(0, 1)
    return Answer(document={}, text=lambda: "read")

@command("pipe", Command)
def pipe(invocation):
    raise BrokenPipeError(32, "the guest's pipe")

@command("fails", Command)
def fails(invocation):
    raise OperationFailedError("disk export failed\\n", parts=["disk export: disk(s) 0"])

def wait(invocation):
    invocation.on_event(StageStarted(stage="waiting"))
    # As the library does it: the work is on a thread of its own, and the main thread is free for signals. The test writes a
    # byte after each signal it has sent and seen answered.
    run_shielded(lambda: [os.read(0, 1) for _ in range(int(os.environ["INTERRUPTS"]))], invocation.cancel)
    if not invocation.cancel.cancelled:
        return Answer(document={}, text=lambda: "not cancelled")
    raise InterruptedRunError(f"interrupted: {invocation.cancel.reason}")

command("guest", GuestOperation)(wait)
command("wait", Operation)(wait)
entry()
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``diskhaul ARGUMENTS`` with the commands above."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, before: Callable[[], None] = take_signals_as_from_a_shell, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            env=ENVIRONMENT | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


Start = Callable[..., "subprocess.Popen[str]"]


def ended(process: subprocess.Popen[str], *, while_sending: signal.Signals | None = None) -> tuple[int, str, str]:
    """Wait for the end, sending one signal after the other meanwhile where one is given; return exit code and outputs."""
    with ThreadPoolExecutor(1) as reader:
        outputs = reader.submit(process.communicate, timeout=60)
        while while_sending is not None and not outputs.done():
            process.send_signal(while_sending)
    out, err = outputs.result()
    return process.returncode, out, err


@pytest.mark.parametrize("arguments", [("--json", "chatty"), ("chatty", "--json")])
def test_with_json_whatever_plugins_and_programs_print_goes_to_standard_error(start: Start, arguments: tuple[str, ...]) -> None:
    code, out, err = ended(start(*arguments))
    assert json.loads(out) == {"done": 1, "exit_code": 0}
    assert out.count("\n") == 1
    assert code == 0
    for text in ("printed by a plugin", "printed by a child", "written by C"):
        assert text in err


def test_without_json_a_warning_told_while_running_is_not_told_again(start: Start) -> None:
    code, out, err = ended(start("chatty"))
    assert out.endswith("the answer\n")
    assert err.splitlines() == [
        "diskhaul: warning: told already",
        "diskhaul: told already",  # as a note, not a warning
        "diskhaul: note",
    ]
    assert code == 0


def test_quiet_leaves_out_an_answer_that_only_says_all_is_well(start: Start) -> None:
    _, out, err = ended(start("--quiet", "chatty"))
    assert "the answer" not in out
    assert "diskhaul: warning: told already\n" in err


def test_a_plugin_that_ends_the_process_is_a_failure(start: Start) -> None:
    code, out, err = ended(start("exits"))
    assert code == 1
    assert "a plugin tried to end the process (exit 0)" in err
    assert out == ""


def test_a_surprise_is_one_line_with_a_way_to_the_traceback(start: Start) -> None:
    code, out, err = ended(start("breaks"))
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "diskhaul: run with DISKHAUL_DEBUG=1 for the traceback",
        r"diskhaul: unexpected error: KeyError: '\x1b[2Jsurprise'",
    ]
    code, _, err = ended(start("breaks", DISKHAUL_DEBUG="1"))
    assert code == 1
    assert "Traceback (most recent call last)" in err


def test_a_broken_pipe_inside_an_operation_is_no_quiet_end(start: Start) -> None:
    code, _, err = ended(start("pipe"))
    assert code == 1
    assert "the guest's pipe" in err


@pytest.mark.parametrize(("command", "code", "kind"), [("fails", 3, "OperationFailedError"), ("breaks", 1, "KeyError")])
def test_with_json_a_failure_is_one_document_and_standard_error_does_not_repeat_it(
    start: Start, command: str, code: int, kind: str
) -> None:
    ended_with, out, err = ended(start("--json", command))
    assert ended_with == code
    assert json.loads(out)["error"]["type"] == kind
    assert json.loads(out)["error"]["exit_code"] == code
    assert kind not in err


def test_a_reader_that_goes_away_is_no_error_and_the_exit_code_stays_true(start: Start) -> None:
    process = start("four")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 4
    process.stdout = None


def test_an_answer_that_cannot_be_written_is_an_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, "fine"], env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1, done.stderr
    assert "standard output: No space left on device" in done.stderr


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize("options", [(), ("--json",), ("--quiet",)])
def test_with_standard_descriptors_closed_the_exit_code_is_the_commands_own_and_no_file_takes_their_place(
    tmp_path: Path, closed: tuple[int, ...], options: tuple[str, ...]
) -> None:
    def without() -> None:
        for number in closed:
            os.close(number)

    opened, events = tmp_path / "opened", tmp_path / "events"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *options, "--events", str(events), "opens"],
        env=ENVIRONMENT | {"OPENED": str(opened)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        preexec_fn=without,
    )
    assert done.returncode == 4, done.stderr
    assert int(opened.read_text()) > 2, "and nothing but its number was written to it"
    assert all(json.loads(line) for line in events.read_text().splitlines()), "nothing else went there"
    if 1 in closed:
        assert done.stdout == ""
    elif "--json" in options:
        assert json.loads(done.stdout)["exit_code"] == 4
    else:
        assert done.stdout.endswith("fine\n"), "what can be told is told"
    if 2 in closed:
        assert done.stderr == ""
    elif "--json" not in options:
        assert done.stderr == "diskhaul: a note\n"


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("fine",), ("fails",), ("nonsense",)])
def test_whatever_there_is_to_say_the_exit_code_is_the_same_without_descriptors(start: Start, arguments: tuple[str, ...]) -> None:
    usual = ended(start(*arguments))[0]
    assert ended(start(*arguments, before=lambda: os.closerange(0, 3))) == (usual, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["guest", "wait"])
def test_signals_that_arrive_while_the_process_ends_change_nothing(start: Start, command: str, number: signal.Signals) -> None:
    process = start(command, INTERRUPTS="1")
    assert process.stdin is not None
    assert process.stderr is not None
    assert process.stderr.readline() == "diskhaul: waiting\n"
    process.send_signal(number)
    assert process.stderr.readline() == "\n"
    process.stdin.write("x")
    process.stdin.flush()
    code, out, err = ended(process, while_sending=number)
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    assert f"diskhaul: interrupted: {'Ctrl-C' if number == signal.SIGINT else number.name}\n" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_after_the_work_is_done_do_not_change_the_exit_code(start: Start, number: signal.Signals) -> None:
    process = start("four")
    assert process.stdout is not None
    assert process.stdout.read(1) == "x", "the answer is being printed"
    code, out, _ = ended(process, while_sending=number)
    assert (code, out.strip("x")) == (4, "\n")


def test_a_second_ctrl_c_does_not_disturb_the_end_of_a_command_that_has_nothing_to_undo(start: Start) -> None:
    process = start("reads")
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    assert ended(process, while_sending=signal.SIGINT) == (130, "", "diskhaul: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("command", "first", "again"),
    [
        ("guest", "stopping cleanly: what was running will be running", "already stopping; the guest is being restored"),
        ("wait", "stopping cleanly", "already stopping; what was begun is being undone"),
    ],
)
def test_each_signal_stops_cleanly_and_further_ones_change_nothing(
    start: Start, command: str, number: signal.Signals, first: str, again: str
) -> None:
    process = start(command, INTERRUPTS="3")
    assert process.stdin is not None
    assert process.stderr is not None
    assert process.stderr.readline() == "diskhaul: waiting\n"
    for expected in (first, again, ""):
        process.send_signal(number)
        if expected:
            assert process.stderr.readline() == "\n"
            assert process.stderr.readline() == f"diskhaul: {expected}\n"
        assert process.poll() is None
        process.stdin.write("x")
        process.stdin.flush()
    code, out, err = ended(process)
    assert code == 130
    assert out == ""
    assert err == f"diskhaul: interrupted: {'Ctrl-C' if number == signal.SIGINT else number.name}\n"


def test_a_signal_that_was_ignored_stays_ignored(start: Start) -> None:
    def nohup() -> None:
        take_signals_as_from_a_shell()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start("guest", before=nohup, INTERRUPTS="1")
    assert process.stderr is not None
    assert process.stdin is not None
    process.stderr.readline()
    process.send_signal(signal.SIGHUP)
    process.stdin.write("x")
    assert ended(process) == (0, "not cancelled\n", "")


def test_with_json_an_interrupted_run_is_a_document_too(start: Start) -> None:
    process = start("--json", "guest", INTERRUPTS="1")
    assert process.stderr is not None
    assert process.stdin is not None
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.stderr.readline()
    process.stderr.readline()
    process.stdin.write("x")
    code, out, _ = ended(process)
    assert code == 130
    assert json.loads(out)["error"]["type"] == "InterruptedRunError"


def test_a_closed_standard_error_does_not_keep_a_run_from_stopping(start: Start) -> None:
    process = start("guest", INTERRUPTS="1")
    assert process.stderr is not None
    assert process.stdin is not None
    process.stderr.readline()
    process.stderr.close()
    process.stderr = None
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.stdin.write("x")
    process.stdin.close()
    process.stdin = None
    assert process.wait(timeout=60) == 130


def test_events_are_logged_while_the_command_runs(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "events"
    process = start("guest", "--events", str(path), INTERRUPTS="1")
    assert process.stderr is not None
    process.stderr.readline()
    assert json.loads(path.read_text())["stage"] == "waiting"
    assert process.communicate("x", timeout=60)[0] == "not cancelled\n"


def test_events_that_cannot_be_written_are_refused_before_anything_runs(start: Start, tmp_path: Path) -> None:
    code, out, err = ended(start("--events", str(tmp_path / "no" / "events"), "chatty"))
    assert code == 2
    assert out == ""
    assert err == f"diskhaul: --events {tmp_path}/no/events: No such file or directory\n"


def test_events_and_the_document_cannot_share_standard_output(tmp_path: Path) -> None:
    both = tmp_path / "both"
    with open(both, "w") as out:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, "--json", "--events", str(both), "chatty"],
            env=ENVIRONMENT,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 2
    assert "choose another --events FILE" in json.loads(both.read_text())["error"]["message"]
    assert "printed" not in done.stderr


def test_the_terminal_is_put_back_and_the_bars_are_drawn_on_a_real_terminal(tmp_path: Path) -> None:
    controller, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "chatty"],
        env=ENVIRONMENT | {"TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=terminal,
    )
    os.close(terminal)
    out, _ = process.communicate(timeout=60)
    shown = os.read(controller, 1 << 16)
    os.close(controller)
    assert process.returncode == 0
    assert out.endswith(b"the answer\n")
    assert b"warning: told already" in shown
