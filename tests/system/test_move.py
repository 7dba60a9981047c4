"""Moves to another cluster: the guest runs at one of the two, never at both, and here again whatever fails."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.network import Network
from tests.processes import wait_for

import diskhaul
from diskhaul.options import MIB
from diskhaul.testing import ProcessGuest
from diskhaul.testing.guest import BLOCK

from .conftest import INSTANCE, Lab
from .test_remote_export import Untouched
from .two_clusters import LIMIT_S, NEW_NAME, TwoClusters

# Runs diskhaul at west, unless a file says what is to happen in place of a command: "VERB" is the guest's. deaf: nothing is run;
# mute: its answer is lost; cut, lost: nearly the same, and then the ways in that file are taken; late: it is cut off here
# and goes on there once "go" exists; hold: it is on its way until then; before: these shell commands are run first; fake: this is
# answered; fail: it says at the end that it failed.
WRAPPER = """#!/bin/sh
case " $* " in
*" guest start "*) verb=start ;;
*" guest stop "*) verb=stop ;;
*" guest status "*) verb=status ;;
*" import "*) verb=import ;;
*" receive "*) verb=receive ;;
*) verb=other ;;
esac
echo $$ > {work}/pid.$verb
echo "$*" > {work}/asked.$verb
test -e {work}/before.$verb && . {work}/before.$verb
test -e {work}/fake.$verb && exec cat {work}/fake.$verb
test -e {work}/fail.$verb && {{ {command} "$@"; exit 7; }}
test -e {work}/deaf.$verb && exit 255
test -e {work}/mute.$verb && {{ {command} "$@" > {work}/muted 2>&1; exit 255; }}
then_take() {{ for way in $(cat "$1"); do touch {work}/$way; done; exit 255; }}
test -e {work}/cut.$verb && {{ {command} "$@" > {work}/muted 2>&1; then_take {work}/cut.$verb; }}
test -e {work}/lost.$verb && then_take {work}/lost.$verb
late() {{ until test -e {work}/go; do sleep 0.05; done; {command} "$@" > {work}/late 2>&1; echo $? > {work}/late.code; }}
test -e {work}/late.$verb && {{ late "$@" > /dev/null 2>&1 & exit 255; }}
test -e {work}/hold.$verb && {{ touch {work}/slowed; late "$@"; exit 255; }}
test -e {work}/slow.$verb && {{ touch {work}/slowed; exec sleep 1000; }}
exec {command} "$@"
"""


class Move:
    """East with a guest of two disks, west with the instance configured and nothing there yet."""

    def __init__(self, lab: Lab, clusters: TwoClusters) -> None:
        self.lab, self.clusters = lab, clusters
        self.here = lab.guests[INSTANCE]
        self.disks_here = [disk.path for disk in lab.instances[INSTANCE].disks if disk.path is not None]
        self.disks_there = [clusters.west_dir / f"disk-{index}.raw" for index in range(2)]
        directory = lab.path / "guest-west"
        directory.mkdir()
        self.there = ProcessGuest(
            directory, self.disks_there[0], first_offset=self.here.first_offset, last_offset=self.here.last_offset
        )
        lab.guests["west"] = self.there
        self.wrapper = lab.path / "run-west"
        command = " ".join(clusters.command("west"))
        self.wrapper.write_text(WRAPPER.format(work=lab.path, command=command))
        self.wrapper.chmod(0o755)
        clusters.east_document["clusters"] = {"west": {"command": [str(self.wrapper)]}}
        clusters.write("east.toml", clusters.east_document)
        self.configure_west()

    def configure_west(self, name: str = INSTANCE) -> None:
        self.clusters.west_document["instances"] = {
            name: {
                "node": "gamma",
                "runtime": "command",
                "runtime_options": self.there.runtime_options,
                "disks": [{"path": str(path)} for path in self.disks_there],
            }
        }
        self.clusters.write("west.toml", self.clusters.west_document)

    def run(self, *more: str, code: int = 0) -> str:
        return self.clusters.run("east", "move", "web1", "--to", "west", "--node", "gamma", *more, code=code)

    def start(self, *more: str) -> subprocess.Popen[str]:
        return self.clusters.start("east", "move", "web1", "--to", "west", "--node", "gamma", *more)

    def kill_there(self, verb: str) -> None:
        """Kill the command with `verb` that was run last there; its process is that of the wrapper."""
        os.kill(int((self.lab.path / f"pid.{verb}").read_text()), signal.SIGKILL)

    def tell(self, what: str, then: str = "") -> Path:
        """Have the way to west go wrong from now on, as the wrapper's file `what` says, and after that as those of `then` do."""
        file = self.lab.path / what
        file.write_text(then)
        return file

    def mend(self) -> None:
        """Have all be well again."""
        for file in self.lab.path.iterdir():
            if file.name.partition(".")[0] in ("deaf", "mute", "slow", "cut", "lost", "late", "hold", "before", "fake", "fail"):
                file.unlink()

    def let_go(self) -> str:
        """Have what was held, or late, go on at west; what it said there once it has ended. It has to be refused."""
        self.tell("go")
        code = self.lab.path / "late.code"
        wait_for(lambda: code.exists() and code.read_text().strip(), "the late command's end", LIMIT_S)
        assert code.read_text().strip() == "2"
        return (self.lab.path / "late").read_text()

    def check_data(self, *, boots: int) -> None:
        """West has every byte, and what the guest wrote last, once."""
        for number, (path, before) in enumerate(zip(self.disks_there, self.lab.contents.values(), strict=True)):
            found, expected = bytearray(path.read_bytes())[: len(before)], bytearray(before)
            if number == 0:
                for offset in (self.here.first_offset, self.here.last_offset):
                    found[offset : offset + BLOCK] = expected[offset : offset + BLOCK] = bytes(BLOCK)
            assert found == expected, f"disk {number} differs"
        assert self.there.marks().boots == boots

    def check_moved(self, *, boots: int = 2) -> None:
        assert self.there.running
        assert not self.here.running
        self.there.wait_for_progress()
        self.check_data(boots=boots)
        assert self.lab.state().journal == ()
        assert self.clusters.keys_in_east() == []

    def check_as_before(self, untouched: Untouched | None = None) -> None:
        """The guest runs here and not there; nothing of the move is left but disks there, perhaps."""
        assert self.here.running
        assert not self.there.running
        self.here.wait_for_progress()
        assert [path for path in self.disks_here if not path.exists()] == []
        assert self.clusters.received() == []
        assert self.clusters.left_in_west() == []
        assert self.lab.state().journal == ()
        assert self.clusters.keys_in_east() == []
        if untouched is not None:
            untouched.check()


@pytest.fixture
def move(lab: Lab, requires: Callable[..., None]) -> Iterator[Move]:
    requires("ip", root=True)
    lab.add_guest(disks=2)
    with ExitStack() as stack:
        network = stack.enter_context(Network(["east", "west"]))
        yield Move(lab, TwoClusters(lab, network, stack))


# --- whole ones -------------------------------------------------------------------------------------------------------


def test_an_instance_is_moved_and_runs_there_and_is_gone_here(move: Move) -> None:
    said = move.run()
    assert "Moved web1.example.com to cluster west, where it runs as web1.example.com; it was removed here." in said
    move.check_moved()
    assert not move.disks_here[0].exists()
    assert [call for call in move.here.calls() if call not in ("status",)] == ["start", "stop", "remove"]
    assert [call for call in move.there.calls() if call not in ("status",)] == ["start"]
    assert len(move.clusters.received()) == 1


def test_the_other_side_waits_while_the_guest_is_stopped_and_its_free_space_is_zeroed(move: Move) -> None:
    move.run("--shutdown-timeout", "700", "--zero-free-space", "--compress", "zstd:1")
    words = (move.lab.path / "asked.receive").read_text().split()
    assert 600 + 700 + 300 < int(words[words.index("--timeout") + 1]) < 1700
    move.check_moved()


def test_an_instance_that_is_down_is_moved_and_stays_down(move: Move) -> None:
    subprocess.run([str(move.here.program), "stop"], check=True)
    assert "where it is down, as it was here" in move.run()
    assert not move.there.running
    assert not move.disks_here[0].exists()
    move.check_data(boots=1)
    assert move.lab.state().journal == ()


def test_a_moved_instance_can_be_kept_and_gets_another_name_larger_disks_and_other_interfaces(move: Move) -> None:
    move.configure_west(NEW_NAME)
    move.clusters.east_document["defaults"] |= {"shutdown": False, "compress": "none", "digest": "later"}
    move.clusters.write("east.toml", move.clusters.east_document)
    options = (
        "--instance-name",
        NEW_NAME,
        "--grow",
        "1=8MiB",
        "--nic",
        "mac=aa:00:00:00:00:09,link=br7",
        "--keep-source-instance",
    )
    said = move.run(*options)
    assert f"where it runs as {NEW_NAME}; it was left here, stopped." in said
    move.check_moved()
    assert [path.exists() for path in move.disks_here] == [True, True]
    assert "remove" not in move.here.calls()
    assert move.disks_there[1].stat().st_size == 8 * MIB
    (record,) = move.clusters.received(NEW_NAME)
    nics = diskhaul.show(record.path).manifest["instance"]["nics"]
    assert [(nic["mac"], nic["link"]) for nic in nics] == [("aa:00:00:00:00:09", "br7")]


def test_a_dry_run_says_what_would_be_done_and_does_nothing(move: Move) -> None:
    untouched = Untouched(move.clusters)
    said = move.run("--dry-run")
    assert "6. start web1.example.com there" in said
    assert "7. remove web1.example.com here" in said
    move.check_as_before(untouched)


def test_what_the_library_answers_says_where_it_is(move: Move) -> None:
    events: list[Any] = []
    result = diskhaul.move("web1", to="west", node="gamma", config=move.clusters.east_config, on_event=events.append)
    assert (result.cluster, result.node, result.name) == ("west", "gamma", INSTANCE)
    assert (result.started, result.removed, result.incomplete, result.exit_code) == (True, True, (), 0)
    assert [event.operation for event in events if event.kind == "operation-finished"] == ["move"]
    assert any(event.kind == "disk-progress" for event in events)


# --- refused ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_moved_is_refused_before_anything_is_touched(move: Move) -> None:
    untouched = Untouched(move.clusters)
    assert "cluster north is not configured" in move.clusters.run(
        "east", "move", "web1", "--to", "north", "--node", "gamma", code=2
    )
    move.clusters.east_document["clusters"]["east"] = {"command": ["/bin/false"]}
    move.clusters.write("east.toml", move.clusters.east_document)
    assert "cluster east is this one" in move.clusters.run("east", "move", "web1", "--to", "east", "--node", "gamma", code=2)
    assert "grow: web1.example.com has no disk 7" in move.run("--grow", "7=1GiB", code=2)
    assert "instance 'db9' is unknown" in move.run("--instance-name", "db9", code=2)
    assert "node 'delta' is unknown" in move.clusters.run("east", "move", "web1", "--to", "west", "--node", "delta", code=2)
    secret = move.clusters.west_secret.read_bytes()
    move.clusters.west_secret.write_bytes(b"x" * 64)
    assert "the clusters' secrets differ" in move.run(code=2)
    move.clusters.west_secret.write_bytes(secret)
    move.tell("deaf.status")
    assert "cluster west: guest status: ended with exit code 255" in move.run(code=2)
    move.mend()
    move.tell("deaf.receive")
    assert "cluster west: receive: ended with exit code 255" in move.run(code=2)
    move.mend()
    move.clusters.west_document["cluster"]["name"] = "north"
    move.clusters.write("west.toml", move.clusters.west_document)
    assert "cluster west: guest status web1.example.com: who answered calls itself cluster 'north'" in move.run(code=2)
    move.clusters.west_document["cluster"]["name"] = "west"
    move.clusters.write("west.toml", move.clusters.west_document)
    move.wrapper.chmod(0o644)
    assert "run-west cannot be run: Permission denied" in move.run(code=2)
    move.check_as_before(untouched)


def test_an_instance_that_runs_there_already_is_refused(move: Move) -> None:
    for path in move.disks_there:
        path.write_bytes(bytes(4 * MIB))
    subprocess.run([str(move.there.program), "start"], check=True)
    assert "web1.example.com runs at cluster west already" in move.run(code=2)
    assert move.here.running


# --- one side fails ---------------------------------------------------------------------------------------------------


def test_disks_that_exist_there_are_refused_before_anything_is_touched_unless_they_may_be_overwritten(move: Move) -> None:
    untouched = Untouched(move.clusters)
    move.disks_there[1].write_bytes(b"somebody's")
    assert "disk-1.raw: exists already" in move.run(code=2)
    move.check_as_before(untouched)
    assert move.disks_there[1].read_bytes() == b"somebody's"
    move.run("--force")
    move.check_moved()


def test_an_import_that_fails_there_fails_the_move(move: Move) -> None:
    move.tell("deaf.import")
    assert "hand-over: cluster west: import" in move.run(code=3)
    move.check_as_before()


def test_a_disk_that_both_clusters_reach_is_not_overwritten(move: Move) -> None:
    move.disks_there[1] = move.disks_here[1]
    move.configure_west()
    before = move.disks_here[1].read_bytes()
    said = move.run("--force", code=3)
    assert "a disk there has the place, the size and the beginning of disk 1 here, and would be overwritten" in said
    assert "diskhaul: import:" not in said
    assert move.disks_here[1].read_bytes() == before
    move.check_as_before()


def test_an_import_that_is_not_said_to_be_one_fails_the_move(move: Move) -> None:
    move.tell("fake.import", '{"exit_code": 0}')
    assert "its answer is about another export" in move.run(code=3)
    move.check_as_before()


def test_a_reception_that_fails_after_publishing_leaves_nothing_there(move: Move) -> None:
    move.tell("fail.receive")
    assert "hand-over: cluster west: receive" in move.run(code=3)
    move.check_as_before()


def test_a_guest_that_somebody_starts_here_meanwhile_is_not_started_there(move: Move) -> None:
    move.tell("before.import", f"{move.here.program} start")
    assert "was started by somebody else while its disks were read" in move.run(code=3)
    assert "start" not in move.there.calls()
    move.check_as_before()


@pytest.mark.parametrize("keep", [False, True])
def test_a_guest_that_runs_at_both_by_another_hand_is_told_and_not_removed(move: Move, keep: bool) -> None:
    move.tell("before.start", f"{move.here.program} start")
    said = move.run(*(["--keep-source-instance"] if keep else []), code=4)
    assert "it was not removed here." in said
    assert ("RUNS HERE AS WELL" if keep else "the instance was not removed: web1.example.com was started by") in said
    assert "AND RUNS HERE AS WELL: stop one of them" in move.clusters.run("east", "recover", "web1", code=4)
    subprocess.run([str(move.here.program), "stop"], check=True)
    assert ("was kept as asked" if keep else "and was removed here") in move.clusters.run("east", "recover", "web1")
    assert move.disks_here[0].exists() == keep
    move.check_moved()


def break_journal(move: Move, at: str) -> str:
    """Shell commands that have every change of a note fail from now on."""
    file = move.lab.path / "break.py"
    journal = move.lab.state_dir / "journal.sqlite"
    broken = [
        f"CREATE TRIGGER no_{verb} BEFORE {verb} ON notes BEGIN SELECT RAISE(ABORT, 'told to fail'); END" for verb in at.split()
    ]
    file.write_text(
        f"import sqlite3\nwith sqlite3.connect({str(journal)!r}) as db:\n  for each in {broken!r}: db.execute(each)\n"
    )
    return f"{sys.executable} {file}"


def mend_journal(move: Move, at: str) -> None:
    with contextlib.closing(sqlite3.connect(move.lab.state_dir / "journal.sqlite")) as db, db:
        for verb in at.split():
            db.execute(f"DROP TRIGGER no_{verb}")


@pytest.mark.parametrize("broken", ["UPDATE", "DELETE", "UPDATE DELETE"])
def test_a_journal_that_fails_once_the_guest_runs_there_leaves_something_to_be_done(move: Move, broken: str) -> None:
    move.tell("before.start", break_journal(move, broken))
    said = move.run(code=4)
    assert "where it runs as web1.example.com; it was not removed here." in said
    assert "told to fail" in said
    assert move.there.running
    assert not move.here.running
    mend_journal(move, broken)
    assert "and was removed here" in move.clusters.run("east", "recover", "web1")
    move.check_moved()
    assert not move.disks_here[0].exists()


def test_a_journal_that_fails_does_not_hide_that_the_guest_is_down(move: Move) -> None:
    move.tell("before.start", break_journal(move, "DELETE"))
    move.tell("lost.start", "deaf.status")
    assert "web1.example.com IS DOWN here" in move.run(code=3)
    assert not move.here.running
    mend_journal(move, "DELETE")
    move.mend()
    assert "was rolled back" in move.clusters.run("east", "recover", "web1")
    assert move.here.running
    assert not move.there.running
    assert move.lab.state().journal == ()


def test_disks_there_that_are_too_few_or_too_small_are_refused_before_anything_is_touched(move: Move) -> None:
    untouched = Untouched(move.clusters)
    (instance,) = move.clusters.west_document["instances"].values()
    first, second = instance["disks"]
    for disks, problem in (
        ([first], "is configured with 1 disk(s), and 2 are to come"),
        ([first, second | {"size": 4096}], "4096 bytes are less than the"),
        ([first, second | {"path": str(move.clusters.west_dir / "none" / "disk.raw")}], "its directory does not exist"),
    ):
        instance["disks"] = disks
        move.clusters.write("west.toml", move.clusters.west_document)
        assert problem in move.run(code=2)
    move.check_as_before(untouched)


def test_a_guest_that_does_not_start_there_runs_here_again(move: Move) -> None:
    move.there.disturb("start", "fail", times=4)
    said = move.run(code=3)
    assert "cluster west: guest start" in said
    move.check_as_before()
    assert move.there.marks().boots == 1  # what came with the export


def test_a_start_there_whose_answer_is_lost_is_one(move: Move) -> None:
    """What the guest has written there since must not be lost."""
    move.tell("mute.start")
    said = move.run()
    assert "web1.example.com runs at cluster west, although its start was answered with: cluster west: guest start" in said
    assert "stop" not in move.there.calls()
    move.check_moved()
    assert not move.disks_here[0].exists()


def test_a_start_that_comes_late_is_refused_once_the_guest_was_started_here(move: Move) -> None:
    move.tell("late.start")
    assert "cluster west: guest start" in move.run(code=3)
    move.check_as_before()
    move.mend()
    assert "was rolled back: it is not started for that" in move.let_go()
    move.check_as_before()
    move.run("--force")  # which has an id of its own
    move.check_moved(boots=3)


def test_a_start_that_is_under_way_when_the_move_is_killed_is_refused_after_recover(move: Move) -> None:
    move.tell("hold.start")
    process = move.start()
    wait_for((move.lab.path / "slowed").exists, "the start there", LIMIT_S, while_runs=process)
    process.kill()
    process.communicate(timeout=LIMIT_S)
    move.mend()
    said = move.clusters.run("east", "recover")
    assert "web1.example.com runs again: its move to cluster west was rolled back" in said
    assert "was rolled back: it is not started for that" in move.let_go()
    assert move.here.running
    assert not move.there.running
    assert move.lab.state().journal == ()


@pytest.mark.parametrize("killed", [False, True])
def test_a_guest_that_ran_there_and_is_down_again_is_not_started_here_whatever_was_known_of_its_start(
    move: Move, killed: bool
) -> None:
    """What it has written there since would be forgotten."""
    move.tell("cut.start", "slow.status" if killed else "deaf.status")
    if killed:
        process = move.start()
        wait_for((move.lab.path / "slowed").exists, "the status there", LIMIT_S, while_runs=process)
        process.kill()
        process.communicate(timeout=LIMIT_S)
        move.kill_there("status")
    else:
        assert "IS DOWN here" in move.run(code=3)
    move.mend()
    move.clusters.run("west", "guest", "stop", "web1")
    said = move.clusters.run("east", "recover", "web1", code=4)
    assert "it was started there, or may have been, and does not run there now: see what became of it there" in said
    assert not move.here.running
    assert not move.there.running
    assert all(path.exists() for path in move.disks_here)
    move.clusters.run("west", "guest", "start", "web1")
    assert "and was removed here" in move.clusters.run("east", "recover", "web1")
    assert move.there.running
    assert move.lab.state().journal == ()


def test_a_reception_that_ends_in_the_middle_fails_the_move(move: Move) -> None:
    process = move.start("--bwlimit", "512K", "--compress", "none", "--chunk-size", "64K")
    wait_for(lambda: any(move.clusters.west_exports.glob("*/.*/disk-0.raw")), "a disk's file", LIMIT_S, while_runs=process)
    move.kill_there("receive")
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 3, out + err
    move.clusters.run("west", "recover")
    move.check_as_before()


def test_a_network_that_breaks_fails_the_move(move: Move) -> None:
    process = move.start("--bwlimit", "512K", "--compress", "none", "--chunk-size", "64K")
    wait_for(lambda: any(move.clusters.west_exports.glob("*/.*/disk-0.raw")), "a disk's file", LIMIT_S, while_runs=process)
    move.clusters.network.disconnect("west")
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 3, out + err
    move.check_as_before()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_move_that_is_interrupted_leaves_everything_as_before(move: Move, number: int) -> None:
    process = move.start("--bwlimit", "512K", "--compress", "none", "--chunk-size", "64K")
    wait_for(lambda: any(move.clusters.west_exports.glob("*/.*/disk-0.raw")), "a disk's file", LIMIT_S, while_runs=process)
    process.send_signal(number)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, out + err
    move.check_as_before()


def test_what_is_not_running_there_any_more_is_not_removed_here(move: Move) -> None:
    """A move that was started there and could not be finished: what lies here may be the last copy."""
    move.here.disturb("remove", "fail")
    assert "the instance was not removed" in move.run(code=4)
    move.clusters.run("west", "guest", "stop", "web1")
    said = move.clusters.run("east", "recover", "web1", code=4)
    assert "was started at cluster west as web1.example.com, and does not run there now; what is here is kept" in said
    move.tell("deaf.status")
    assert "cluster west: guest status" in move.clusters.run("east", "recover", "web1", code=4)
    move.mend()
    assert move.here.calls().count("remove") == 1
    assert "may run there" in move.clusters.run("east", "guest", "start", "web1", code=2)
    move.clusters.run("west", "guest", "start", "web1")
    assert "and was removed here" in move.clusters.run("east", "recover", "web1")
    assert move.lab.state().journal == ()


def test_a_removal_that_went_half_way_is_told_once(move: Move) -> None:
    move.here.disturb("remove", "fail")
    move.run(code=4)
    move.disks_here[0].unlink()
    move.here.disturb("status", "fail", times=9)
    said = move.clusters.run("east", "recover", "web1")
    assert "its removal here had begun; what is left is to be removed by hand" in said
    assert move.lab.state().journal == ()


def test_the_removal_of_an_instance_that_was_down_is_finished_by_recover(move: Move) -> None:
    subprocess.run([str(move.here.program), "stop"], check=True)
    move.here.disturb("remove", "fail")
    assert "the instance was not removed" in move.run(code=4)
    move.tell("deaf.status")
    assert "cluster west: guest status" in move.clusters.run("east", "recover", "web1", code=4)
    assert move.disks_here[0].exists()
    move.mend()
    said = move.clusters.run("east", "recover", "web1")
    assert "web1.example.com is at cluster west as web1.example.com, and was removed here" in said
    assert not move.disks_here[0].exists()
    assert not move.there.running
    assert move.lab.state().journal == ()


def test_recover_removes_nothing_that_is_being_written_to(move: Move) -> None:
    move.here.disturb("remove", "fail")
    move.run(code=4)
    with move.disks_here[0].open("r+b"):
        assert "it may be running still" in move.clusters.run("east", "recover", "web1", code=4)
    assert move.disks_here[0].exists()
    assert "and was removed here" in move.clusters.run("east", "recover", "web1")


# --- in doubt, and killed ---------------------------------------------------------------------------------------------


def test_nobody_starts_a_guest_here_that_may_run_there(move: Move) -> None:
    """West started it, could not say so, and cannot be asked: it is down here until west answers."""
    move.tell("cut.start", "deaf.status deaf.stop")
    said = move.run(code=3)
    assert "web1.example.com IS DOWN here, since it is not known whether web1.example.com runs at cluster west" in said
    assert not move.here.running
    assert move.there.running
    refused = move.clusters.run("east", "export", "web1", "--node", "beta", code=2)
    assert "was being moved to cluster west by a run that is gone, and may run there" in refused
    assert "may run there" in move.clusters.run("east", "guest", "start", "web1", code=2)
    assert "may run there" in move.run(code=2)
    assert "cluster west: guest status" in move.clusters.run("east", "recover", "web1", code=4)
    assert not move.here.running
    move.mend()
    assert "runs at cluster west as web1.example.com, and was removed here" in move.clusters.run("east", "recover", "web1")
    move.check_moved()
    assert not move.disks_here[0].exists()


def test_a_guest_that_was_not_started_there_after_all_is_started_here_by_recover(move: Move) -> None:
    move.tell("lost.start", "deaf.status")
    assert "IS DOWN here" in move.run(code=3)
    assert not move.here.running
    assert "cluster west: guest status" in move.clusters.run("east", "recover", "web1", code=4)
    move.mend()
    move.tell("deaf.stop")
    assert "cluster west: guest stop" in move.clusters.run("east", "recover", "web1", code=4)
    assert not move.here.running
    move.mend()
    said = move.clusters.run("east", "recover", "web1")
    assert "web1.example.com runs again: its move to cluster west was rolled back" in said
    assert move.here.running
    assert not move.there.running
    assert move.lab.state().journal == ()


@pytest.mark.parametrize("verb", ["status", "receive", "import", "start"])
def test_a_move_that_is_killed_is_rolled_back_by_recover_while_it_does_not_run_there(move: Move, verb: str) -> None:
    way = move.tell(f"slow.{verb}")
    process = move.start()
    wait_for((move.lab.path / "slowed").exists, f"the {verb} there", LIMIT_S, while_runs=process)
    process.kill()
    process.communicate(timeout=LIMIT_S)
    way.unlink()
    move.kill_there(verb)
    assert move.here.running == (verb in ("status", "receive"))
    move.clusters.run("east", "recover")
    assert move.here.running
    assert not move.there.running
    assert move.lab.state().journal == ()


def test_a_move_that_is_killed_while_it_sends_is_rolled_back_on_both_sides(move: Move) -> None:
    process = move.start("--bwlimit", "512K", "--compress", "none", "--chunk-size", "64K")
    wait_for(lambda: any(move.clusters.west_exports.glob("*/.*/disk-0.raw")), "a disk's file", LIMIT_S, while_runs=process)
    process.kill()
    process.communicate(timeout=LIMIT_S)
    move.kill_there("receive")
    move.clusters.run("east", "recover")
    move.clusters.run("west", "recover")
    move.check_as_before()


def test_a_move_that_is_killed_once_the_guest_runs_there_is_finished_by_recover(move: Move) -> None:
    move.tell("cut.start", "slow.status")
    process = move.start()
    wait_for((move.lab.path / "slowed").exists, "the status there", LIMIT_S, while_runs=process)
    process.kill()
    process.communicate(timeout=LIMIT_S)
    move.mend()
    move.kill_there("status")
    assert move.there.running
    said = move.clusters.run("east", "recover")
    assert "runs at cluster west as web1.example.com, and was removed here" in said
    move.check_moved()


@pytest.mark.parametrize("stage", ["stop", "send", "verify", "publish", "import", "start", "remove"])
@pytest.mark.parametrize("moment", ["stage-started", "stage-finished"])
def test_a_move_that_is_killed_at_any_stage_leaves_the_guest_at_one_of_the_two(move: Move, stage: str, moment: str) -> None:
    """What it had asked for there goes on, as it does when a network breaks."""
    events = move.lab.path / "events"
    process = move.start("--events", str(events), "--shutdown-timeout", "5")  # a stop that was not confirmed is watched so long

    def reached() -> bool:
        text = events.read_text() if events.exists() else ""
        lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        return any(line["event"] == moment and line["stage"] == stage for line in lines if "stage" in line)

    wait_for(lambda: process.poll() is not None or reached(), f"{stage} {moment}", LIMIT_S)
    process.kill()
    process.communicate(timeout=LIMIT_S)
    with contextlib.suppress(ProcessLookupError):
        move.kill_there("receive")
    move.clusters.run("east", "recover")
    move.clusters.run("west", "recover")
    assert [move.here.running, move.there.running].count(True) == 1
    assert move.lab.state().journal == ()
    if move.there.running:
        move.there.wait_for_progress()
        move.check_data(boots=2)
        assert not move.disks_here[0].exists()
    else:
        move.here.wait_for_progress()
        boots = move.here.marks().boots
        move.run("--force")
        move.check_moved(boots=boots + 1)


def test_an_instance_that_cannot_be_removed_here_is_told_and_recover_tries_again(move: Move) -> None:
    move.here.disturb("remove", "fail")
    move.clusters.east_document["defaults"] |= {"ignore_remove_failures": True}
    move.clusters.write("east.toml", move.clusters.east_document)
    said = move.run(code=4)
    assert "the instance was not removed" in said
    assert move.there.running
    assert not move.here.running
    assert "and was removed here" in move.clusters.run("east", "recover", "web1")
    assert not move.disks_here[0].exists()
    move.check_moved()


def test_json_says_what_became_of_it(move: Move) -> None:
    done = subprocess.run(
        move.clusters.command("east", "--json", "move", "web1", "--to", "west", "--node", "gamma"),
        env=move.lab.environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    document = json.loads(done.stdout)
    assert (document["exit_code"], document["started"], document["removed"]) == (0, True, True)
    assert document["export"]["instance"] == INSTANCE
