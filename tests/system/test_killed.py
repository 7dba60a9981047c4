"""Exports whose process is killed at any moment: what they leave is never taken for an export, and is recovered.

Moments are counted in calls (of Python functions and of C functions, so in between system calls as well), not in seconds. The
seed is printed; ``DISKHAUL_STRESS_SEED`` repeats it, ``DISKHAUL_STRESS_ROUNDS`` asks for more moments.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import diskhaul
from diskhaul.journal import Journal

if TYPE_CHECKING:
    from .conftest import Lab, Unchanged

INSTANCE = "web1.example.com"
ROUNDS = int(os.environ.get("DISKHAUL_STRESS_ROUNDS", "15"))
SEED = int(os.environ.get("DISKHAUL_STRESS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
MakeUnchanged = Callable[["Lab"], "Unchanged"]

CHILD = """
import os, signal, sys, threading
import diskhaul
from diskhaul.events import StageFinished

# Loaded beforehand, so that what is counted is the export, not the loading of modules.
import diskhaul.operations.export, diskhaul.operations.cleanup, diskhaul_plugins.builtin, sqlite3, zstandard, blake3

config, moment, stage, when = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
calls = 0

def count(frame, event, argument):
    global calls
    if event in ("call", "c_call"):
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)

def on_event(event):
    if getattr(event, "stage", "") == stage and event.kind == "stage-" + when:
        os.kill(os.getpid(), signal.SIGKILL)

cluster = diskhaul.load_cluster(config)
if moment >= 0:
    threading.setprofile(count)  # the threads that do the work
# The guest shuts down at once; and a recovery watches it for as long as its shutdown may take.
options = diskhaul.ExportOptions(chunk_size=256 << 10, threads=1, read_ahead=0, shutdown_timeout_s=1.0, **eval(sys.argv[5]))
diskhaul.export("web1", node="beta", config=cluster, options=options, on_event=on_event)
print(calls)
"""


class Killing:
    """Runs exports that are killed, and looks at what is left."""

    def __init__(self, lab: Lab, unchanged: MakeUnchanged) -> None:
        self.lab = lab
        self.guest = lab.guests[INSTANCE]
        self.config = lab.write_config()
        earlier = lab.export(node="gamma")
        assert earlier.export is not None
        self.earlier = earlier.export
        self.check = unchanged(lab)

    def export(self, *, moment: int = -1, stage: str = "", when: str = "", options: str = "{}") -> int | None:
        """Export in a process of its own; return the number of calls it made, or None when it was killed."""
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(self.config), str(moment), stage, when, options],
            env=self.lab.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode == -signal.SIGKILL:
            return None
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    def check_listed(self) -> None:
        """What is listed is whole; unless a new export is, the earlier one still is."""
        listed = diskhaul.list_exports(INSTANCE, config=self.lab.cluster())
        assert listed.exit_code == 0
        assert [record.problem for record in listed.exports] == [""] * len(listed.exports)
        assert listed.exports
        assert any(record.node == "beta" for record in listed.exports) or self.earlier.export_id in {
            record.export_id for record in listed.exports
        }
        verified = diskhaul.verify(INSTANCE, config=self.lab.cluster())
        assert verified.findings == ()
        assert len(verified.checked) == len(listed.exports)

    def check_recovered(self) -> None:
        """The guest runs, and nothing but exports is left of the dead run."""
        assert self.guest.running
        assert Journal(self.lab.state_dir).unfinished() == []
        self.check.check(but=("exports", "temporary"))  # nobody can take a killed process's temporary files away
        left = [path for path in self.lab.path.glob("*/*/.*") if path.name.endswith((".partial", ".removing"))]
        assert left == []

    def recover(self) -> None:
        recovered = diskhaul.recover(config=self.lab.cluster())
        assert recovered.exit_code == 0, recovered.incomplete
        self.check_recovered()
        self.check_listed()
        again = diskhaul.recover(config=self.lab.cluster())
        assert (again.done, again.incomplete) == ((), ())
        self.check_recovered()

    def export_next(self) -> None:
        """The next export cleans up by itself, and is as good as any."""
        result = self.lab.export()
        assert result.exit_code == 0, result.incomplete
        assert result.export is not None
        self.check_recovered()
        assert self.lab.listed() == [("beta", result.export.export_id)]
        self.lab.check_bytes(result.export)


@pytest.mark.timeout(0)
def test_an_export_that_is_killed_at_any_moment_is_recovered(lab: Lab, unchanged: MakeUnchanged) -> None:
    print(f"DISKHAUL_STRESS_SEED={SEED}")
    generator = random.Random(SEED)
    lab.add_guest(disks=2)
    killing = Killing(lab, unchanged)
    total = killing.export(moment=0)
    assert total is not None
    kills = 0
    for number in range(ROUNDS):
        moment = generator.randrange(1, total)
        print(f"round {number}: killed at call {moment} of about {total}")
        kills += killing.export(moment=moment) is None
        killing.check_listed()
        if generator.random() < 0.5:
            killing.recover()
        else:
            killing.export_next()
    assert kills > ROUNDS // 2  # else calls are not what is counted, and nothing was tested


MOMENTS = [
    ("stop", "finished"),
    ("snapshot", "finished"),
    ("start", "finished"),
    ("send", "finished"),
    ("publish", "started"),
    ("publish", "finished"),
    ("cleanup", "started"),
]


@pytest.mark.parametrize(("stage", "when"), MOMENTS, ids=[f"{stage} {when}" for stage, when in MOMENTS])
def test_an_export_that_is_killed_between_two_stages_is_recovered_and_the_next_one_succeeds(
    lab: Lab, unchanged: MakeUnchanged, stage: str, when: str
) -> None:
    lab.add_guest(disks=2)
    killing = Killing(lab, unchanged)

    assert killing.export(stage=stage, when=when) is None

    stopped = (stage, when) in [("stop", "finished"), ("snapshot", "finished")]
    assert killing.guest.running != stopped  # so that what comes next has something to do
    snapshots = list(lab.disks.glob(".*.snap"))
    assert len(snapshots) == (2 if stage in ("snapshot", "start") else 0)
    partials = list(lab.path.glob("*/*/.*.partial"))
    assert len(partials) == (0 if (stage, when) in [("publish", "finished"), ("cleanup", "started")] else 1)
    killing.check_listed()
    killing.recover()
    killing.export_next()


def test_the_next_export_starts_the_guest_that_a_killed_one_left_down(lab: Lab, unchanged: MakeUnchanged) -> None:
    lab.add_guest()
    killing = Killing(lab, unchanged)
    assert killing.export(stage="snapshot", when="finished") is None
    assert not killing.guest.running

    killing.export_next()


def test_the_command_line_recovers_and_says_what_it_did(lab: Lab, unchanged: MakeUnchanged) -> None:
    lab.add_guest()
    killing = Killing(lab, unchanged)
    assert killing.export(stage="snapshot", when="finished") is None

    done = lab.cli("recover")

    assert done.returncode == 0, done.stderr
    assert f"{INSTANCE} runs again" in done.stdout + done.stderr
    killing.check_recovered()
    assert lab.cli("recover").returncode == 0


def test_a_guest_that_was_down_stays_down_after_a_kill(lab: Lab, unchanged: MakeUnchanged) -> None:
    guest = lab.add_guest(running=False, state="down")
    config = lab.write_config()
    check = unchanged(lab)
    command = [sys.executable, "-c", CHILD, str(config), "-1", "send", "finished", "{}"]
    done = subprocess.run(command, env=lab.environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL

    assert diskhaul.recover(config=lab.cluster()).exit_code == 0

    assert not guest.running
    assert "start" not in guest.calls()
    check.check()


def test_an_instance_whose_removal_was_killed_before_its_export_stood_runs_again(lab: Lab, unchanged: MakeUnchanged) -> None:
    lab.add_guest()
    killing = Killing(lab, unchanged)
    assert killing.export(stage="send", when="finished", options="dict(remove_instance=True)") is None
    assert not killing.guest.running

    killing.recover()

    assert killing.guest.disk.exists()


def test_a_frozen_guest_of_a_killed_export_is_thawed(lab: Lab, unchanged: MakeUnchanged) -> None:
    frozen = lab.path / "frozen"
    program = lab.path / "agent"
    program.write_text(f'#!/bin/sh\n[ "$1" = freeze ] && touch "{frozen}" || rm -f "{frozen}"\n')
    program.chmod(0o755)
    lab.add_guest(runtime_options={"freeze": [str(program), "freeze"], "thaw": [str(program), "thaw"]})
    killing = Killing(lab, unchanged)
    assert killing.export(stage="snapshot", when="finished", options="dict(shutdown=False)") is None
    assert frozen.exists()

    killing.recover()

    assert not frozen.exists()


def test_a_recovery_that_is_killed_itself_can_be_repeated(lab: Lab, unchanged: MakeUnchanged) -> None:
    lab.add_guest(disks=2)
    killing = Killing(lab, unchanged)
    assert killing.export(stage="snapshot", when="finished") is None
    recovery = (
        "import os, signal, sys, diskhaul\n"
        "def on_event(event):\n"
        "    if event.kind == 'guest': os.kill(os.getpid(), signal.SIGKILL)\n"
        "diskhaul.recover(config=sys.argv[1], on_event=on_event)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", recovery, str(killing.config)], env=lab.environment(), capture_output=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL

    killing.recover()


def test_what_a_live_run_has_begun_is_left_alone_by_recover(lab: Lab) -> None:
    from diskhaul.events import Event, StageStarted

    guest = lab.add_guest()
    seen: list[tuple[int, str, int]] = []

    def recover_meanwhile(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "send":
            recovered = diskhaul.recover(config=lab.cluster(), lock_timeout_s=0.1)
            seen.append((recovered.exit_code, "".join(recovered.incomplete), len(list(lab.disks.glob(".*.snap")))))

    result = lab.export(on_event=recover_meanwhile)

    assert [(code, snapshots) for code, _, snapshots in seen] == [(4, 1)]
    assert "still being worked on" in seen[0][1]
    assert guest.running
    assert result.export is not None
    lab.check_bytes(result.export)


def test_the_temporary_files_of_a_killed_run_are_unlinked_ones(lab: Lab, unchanged: MakeUnchanged) -> None:
    lab.add_guest()
    killing = Killing(lab, unchanged)
    assert killing.export(stage="snapshot", when="started") is None

    assert list(Path(lab.temporary).rglob("*")) == []
