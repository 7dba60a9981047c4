"""Programs that use the library, or its command line, and are interrupted, killed or not listened to: the guest runs again.

Moments are counted in calls, not in seconds, and chosen at random; the seed is printed. ``DISKHAUL_STRESS_SEED`` repeats it,
``DISKHAUL_STRESS_ROUNDS`` asks for more.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import diskhaul
from diskhaul.journal import Journal

if TYPE_CHECKING:
    from .conftest import Lab, Unchanged

INSTANCE = "web1.example.com"
ROUNDS = max(1, int(os.environ.get("DISKHAUL_STRESS_ROUNDS", "15")) // 3)
SEED = int(os.environ.get("DISKHAUL_STRESS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
END_S = 60.0
MakeUnchanged = Callable[["Lab"], "Unchanged"]

# --- Ctrl-C in a program that uses the library ------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys, threading
import diskhaul, diskhaul.operations.guest
import diskhaul.operations.export, diskhaul.operations.cleanup, diskhaul_plugins.builtin, sqlite3, zstandard, blake3

config, moments, handler, in_main = sys.argv[1], set(map(int, sys.argv[2].split(","))), sys.argv[3], sys.argv[4] == "main"
number = signal.SIGTERM if handler == "exit" else signal.SIGINT
calls = 0

def count(frame, event, argument):
    global calls
    if event in ("call", "c_call"):
        calls += 1
        if calls in moments:
            os.kill(os.getpid(), number)

def raising(number, frame):
    raise KeyboardInterrupt("the program's own")

def leaving(number, frame):
    sys.exit(77)

if handler == "raises":
    signal.signal(signal.SIGINT, raising)
elif handler == "exit":
    signal.signal(signal.SIGTERM, leaving)
diskhaul.operations.guest._SETTLE_S = 0.01
options = diskhaul.ExportOptions(chunk_size=256 << 10, threads=1, read_ahead=0, shutdown_timeout_s=5.0)
cluster = diskhaul.load_cluster(config)
try:
    if not in_main:
        threading.setprofile(count)  # the threads that do the work
    diskhaul.export("web1", node="beta", config=cluster, options=options)
except KeyboardInterrupt:
    threading.setprofile(None)
    sys.exit(77)
finally:
    threading.setprofile(None)
print(calls)
"""


class Interrupting:
    """Runs `PROGRAM` and checks what holds when it has ended."""

    def __init__(self, lab: Lab, unchanged: MakeUnchanged) -> None:
        self.lab, self.guest = lab, lab.guests[INSTANCE]
        self.config = lab.write_config()
        self.check = unchanged(lab)

    def run(self, moments: list[int], handler: str) -> int:
        """Return the number of calls of a run that nothing interrupted, or 0."""
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(self.config), ",".join(map(str, moments)), handler, "worker"],
            env=self.lab.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            preexec_fn=_take_signals,
        )
        assert done.returncode in (0, 77), done.stderr
        assert self.guest.running
        published = self.lab.listed()
        self.check.check(but=("exports",))
        for _, export_id in published:
            diskhaul.remove(f"{INSTANCE}@{export_id}", config=self.lab.cluster())
        self.check.check()
        assert done.returncode == 77 or published
        return int(done.stdout) if done.returncode == 0 else 0


def _take_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("handler", ["default", "raises", "exit"])
def test_a_program_that_is_interrupted_at_any_moment_leaves_the_guest_running(
    lab: Lab, unchanged: MakeUnchanged, handler: str
) -> None:
    lab.add_guest()
    interrupting = Interrupting(lab, unchanged)
    total = interrupting.run([0], handler)
    assert total > 1000
    print(f"DISKHAUL_STRESS_SEED={SEED}")
    generator = random.Random(f"{SEED} {handler}")
    for _ in range(ROUNDS):
        first = generator.randrange(1, total)
        # The second comes at once, or in the middle of the undoing that the first has led to.
        interrupting.run([first, first + generator.choice([1, 50, 500, 3000])], handler)


STAGED = """
import os, signal, sys, threading
import diskhaul
from diskhaul.events import StageStarted

main = threading.main_thread().ident

def wait_until_the_main_thread_waits():
    while sys._current_frames()[main].f_code.co_name != "run_shielded":
        threading.Event().wait(0.001)

def on_event(event):
    if isinstance(event, StageStarted) and event.stage == sys.argv[2]:
        for _ in range(int(sys.argv[3])):
            wait_until_the_main_thread_waits()
            os.kill(os.getpid(), signal.SIGINT)
        while not token.cancelled:
            threading.Event().wait(0.001)

def own(number, frame):
    raise KeyboardInterrupt

if sys.argv[4] == "raises":
    signal.signal(signal.SIGINT, own)
token = diskhaul.CancellationToken()
try:
    diskhaul.export("web1", node="beta", config=sys.argv[1], on_event=on_event, cancel=token)
except KeyboardInterrupt:
    sys.exit(77)
"""


@pytest.mark.parametrize(
    ("stage", "handler", "published"), [("stop", "default", False), ("snapshot", "raises", False), ("cleanup", "raises", True)]
)
def test_two_interrupts_while_the_main_thread_waits_are_raised_once_the_run_has_ended(
    lab: Lab, unchanged: MakeUnchanged, stage: str, handler: str, published: bool
) -> None:
    guest = lab.add_guest()
    config = lab.write_config()
    check = unchanged(lab)
    done = subprocess.run(
        [sys.executable, "-c", STAGED, str(config), stage, "2", handler],
        env=lab.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=_take_signals,
    )
    assert done.returncode == 77, done.stderr
    assert guest.running
    check.check(but=("exports",) if published else ())
    assert len(lab.listed()) == published, "an export that had been published stands"


# --- killed in the middle of a stop -----------------------------------------------------------------------------------


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + END_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_guest_that_goes_down_after_its_export_was_killed_in_the_middle_of_the_stop_is_started_by_recover(
    lab: Lab, unchanged: MakeUnchanged
) -> None:
    """The shutdown takes its time: when `recover` looks first, the guest is still running."""
    guest = lab.add_guest()
    gate = lab.path / "gate"
    os.mkfifo(gate)
    slow = guest.directory / "slow-stop"
    slow.write_text(f"#!/bin/sh\nread line <{gate}\nexec {guest.program} stop\n")
    slow.chmod(0o755)
    instance = lab.instances[INSTANCE]
    options: dict[str, Any] = dict(instance.runtime_options) | {"stop": ["setsid", str(slow)]}
    lab.instances[INSTANCE] = diskhaul.Instance(
        name=INSTANCE, node="alpha", state="up", runtime="command", runtime_options=options, disks=instance.disks
    )
    config = lab.write_config()
    check = unchanged(lab)
    export = subprocess.Popen(
        lab.command("export", "web1", "--node", "beta", "--shutdown-timeout", "6", config=config),
        env=lab.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=lab.path,
    )
    with open(gate, "w") as opened:  # waits until the stop reads
        export.send_signal(signal.SIGKILL)
        export.wait(END_S)
        (run,) = Journal(lab.state_dir).unfinished(INSTANCE)
        assert [note.data.get("stopped") for note in run.notes if note.kind == "guest"] == [None]
        asked = guest.calls().count("status")
        recovered: list[diskhaul.RecoverResult] = []
        thread = threading.Thread(target=lambda: recovered.append(diskhaul.recover(config=lab.cluster())))
        thread.start()
        until(lambda: guest.calls().count("status") > asked + 1)
        assert guest.running
        opened.write("go on\n")
    thread.join(END_S)
    assert [result.exit_code for result in recovered] == [0]
    assert guest.running
    calls = guest.calls()
    assert "start" in calls[calls.index("stop") :]
    check.check()


# --- a terminal that nobody reads -------------------------------------------------------------------------------------


IMPATIENT = "import diskhaul.feedback; diskhaul.feedback.PATIENCE_S = 0.5; from diskhaul.cli import main; main()"


def full_pipe(room: int) -> tuple[int, int]:
    """A pipe into which only `room` more bytes go."""
    reading, writing = os.pipe()
    size = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writing, b"x" * (size - room))
    return reading, writing


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_command_whose_standard_error_nobody_reads_still_brings_the_guest_back(
    lab: Lab, unchanged: MakeUnchanged, interrupted: bool
) -> None:
    guest = lab.add_guest()
    config = lab.write_config()
    check = unchanged(lab)
    reading, writing = full_pipe(room=120)
    try:
        export = subprocess.Popen(
            [sys.executable, "-c", IMPATIENT, "--config", str(config), "export", "web1", "--node", "beta"],
            env=lab.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=writing,
            cwd=lab.path,
            preexec_fn=_take_signals,
        )
        os.close(writing)
        if interrupted:
            until(lambda: "stop" in guest.calls())
            export.send_signal(signal.SIGTERM)
        # Nobody reads yet, and the work ends all the same: its locks are the last that it gives back.
        until(lambda: "stop" in guest.calls())
        until(lambda: guest.running and not any((lab.state_dir / "locks").glob("*@*")))
        with open(reading, "rb", closefd=False) as pipe:
            text = pipe.read().decode()
        code = export.wait(END_S)
    finally:
        os.close(reading)
    if interrupted:
        assert code in (0, 4, 130), text
    else:
        assert code == 0, text
    assert guest.running
    check.check(but=("exports",))
    assert lab.listed() or code == 130
