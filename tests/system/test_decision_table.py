"""Every row of the decision table of an export, with guests that are processes, and filesystems with and without snapshots.

guest  asked              snapshots   what happens
up     shutdown           work        stop, snapshot, start, send the snapshots
up     shutdown           fail        with long sleep: send the disks, start; without: start, fail
up     no shutdown        work        freeze where possible, snapshot, thaw, send the snapshots
up     no shutdown        fail        fail
up     shutdown, remove   not tried   stop, send the disks, publish, remove
down   anything           not tried   activate the disks, send, deactivate them
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import diskhaul
from diskhaul.api import BackendContext, DiskReader, Snapshots
from diskhaul.events import Event, GuestChanged, StageFinished, StageStarted

if TYPE_CHECKING:
    from .conftest import Lab, Unchanged

INSTANCE = "web1.example.com"
MakeUnchanged = Callable[["Lab"], "Unchanged"]


on_every_snapshotting_filesystem = pytest.mark.parametrize("lab", ["reflink", "btrfs"], indirect=True)


class FailingSnapshots(Snapshots):
    """A plugin whose snapshots look possible, and fail when they are made."""

    def __init__(self, *, from_disk: int = 0) -> None:
        self.from_disk = from_disk
        self.made: list[Path] = []

    @diskhaul.hookimpl
    def diskhaul_snapshots(self) -> Iterable[diskhaul.SnapshotSpec]:
        yield diskhaul.SnapshotSpec(name="failing", create=self._create)

    def _create(self, context: BackendContext) -> Snapshots:
        return self

    def refuses(self, disk: diskhaul.Disk, /) -> str | None:
        return None

    def plan(self, disk: diskhaul.Disk, run_id: str, /) -> diskhaul.Snapshot:
        return diskhaul.Snapshot(backend="failing", disk=disk, run_id=run_id, reference=f"{disk.path}.{run_id}")

    def create(self, snapshot: diskhaul.Snapshot, /) -> None:
        if snapshot.disk.index >= self.from_disk:
            raise OSError(28, "no room for a snapshot")
        path = Path(snapshot.reference)
        path.write_bytes(Path(str(snapshot.disk.path)).read_bytes())
        self.made.append(path)

    def open(self, snapshot: diskhaul.Snapshot, /) -> DiskReader:
        raise AssertionError("never opened: not all snapshots were made")

    def exists(self, snapshot: diskhaul.Snapshot, /) -> bool:
        return os.path.exists(snapshot.reference)

    def remove(self, snapshot: diskhaul.Snapshot, /) -> None:
        Path(snapshot.reference).unlink(missing_ok=True)


def changes(events: list[Event]) -> list[str]:
    """What became of the guest, in order, with the stages it went through."""
    told = []
    for event in events:
        if isinstance(event, GuestChanged):
            told.append(event.change)
        elif isinstance(event, StageStarted) and event.stage in ("send", "snapshot", "publish"):
            told.append(event.stage)
    return told


def manifest(result: diskhaul.ExportResult) -> dict[str, Any]:
    assert result.export is not None
    document: dict[str, Any] = json.loads((Path(result.export.path) / "manifest.json").read_text())
    return document


@on_every_snapshotting_filesystem
def test_a_running_guest_is_stopped_snapshotted_and_started_again_before_its_disks_are_sent(
    lab: Lab, unchanged: MakeUnchanged
) -> None:
    guest = lab.add_guest(disks=2)
    check = unchanged(lab)
    boots, pid = guest.marks().boots, guest.pid
    running_while_sent: list[bool] = []
    events: list[Event] = []

    def watch(event: Event) -> None:
        events.append(event)
        if isinstance(event, StageStarted) and event.stage == "send":
            guest.wait_for_progress()  # it overwrites its disk before the first byte of the snapshot is read
            running_while_sent.append(guest.running)

    result = lab.export(on_event=watch)

    assert changes(events) == ["stopped", "snapshot", "started", "send", "publish"]
    assert running_while_sent == [True]
    assert guest.running
    assert guest.pid != pid
    assert result.exit_code == 0
    assert result.consistency == manifest(result)["consistency"] == "stopped"
    assert result.plan.downtime == "snapshot"
    assert [disk.ok for disk in result.disks] == [True, True]
    assert result.timings["shutdown"] > 0
    assert result.export is not None
    marks = lab.check_bytes(result.export)
    assert marks.boots == boots  # the disk as it was while the guest was down
    assert guest.marks().boots == boots + 1
    check.check(but=("exports",))
    assert lab.listed() == [("beta", result.export.export_id)]


def test_without_snapshots_and_with_long_sleep_the_guest_stays_down_until_its_disks_are_sent(
    plain_lab: Lab, unchanged: MakeUnchanged
) -> None:
    guest = plain_lab.add_guest(disks=2)
    check = unchanged(plain_lab)
    events: list[Event] = []
    running_after_send: list[bool] = []

    def watch(event: Event) -> None:
        events.append(event)
        if isinstance(event, StageFinished) and event.stage == "send":
            running_after_send.append(guest.running)

    result = plain_lab.export(on_event=watch, long_sleep=True)

    assert changes(events) == ["stopped", "send", "started", "publish"]
    assert running_after_send == [False]
    assert guest.running
    assert result.plan.downtime == "transfer"
    assert any("long sleep" in warning for warning in result.warnings)
    assert result.export is not None
    assert result.consistency == "stopped"
    plain_lab.check_bytes(result.export)
    check.check(but=("exports",))


def test_a_snapshot_that_fails_when_it_is_made_falls_back_to_long_sleep(lab: Lab, unchanged: MakeUnchanged) -> None:
    guest = lab.add_guest(disks=2)
    plugin = FailingSnapshots(from_disk=1)
    check = unchanged(lab)
    events: list[Event] = []

    cluster = lab.cluster(backends={"snapshot": "failing"})
    result = lab.export(config=cluster, plugins=[plugin], on_event=events.append, long_sleep=True)

    assert changes(events) == ["stopped", "snapshot", "send", "started", "publish"]
    assert guest.running
    assert len(plugin.made) == 1  # all or nothing: the first was removed again, says the check below
    assert any("no room for a snapshot" in warning for warning in result.warnings)
    assert result.export is not None
    lab.check_bytes(result.export)
    check.check(but=("exports",))


def test_without_snapshots_and_without_long_sleep_nothing_is_touched(plain_lab: Lab, unchanged: MakeUnchanged) -> None:
    guest = plain_lab.add_guest()
    pid, stops = guest.pid, guest.calls().count("stop")
    check = unchanged(plain_lab)

    with pytest.raises(diskhaul.RefusedError) as refused:
        plain_lab.export()

    assert len(refused.value.problems) == 1
    assert "no snapshot is possible" in refused.value.problems[0]
    assert "--long-sleep" in refused.value.problems[0]
    assert str(guest.disk) in refused.value.problems[0]
    assert guest.pid == pid
    assert guest.running
    assert guest.calls().count("stop") == stops
    check.check()


def test_a_snapshot_that_fails_when_it_is_made_starts_the_guest_again_and_fails(lab: Lab, unchanged: MakeUnchanged) -> None:
    guest = lab.add_guest(disks=3)
    earlier = lab.export(node="gamma")
    plugin = FailingSnapshots(from_disk=2)
    check = unchanged(lab)
    boots = guest.marks().boots
    events: list[Event] = []

    with pytest.raises(diskhaul.SnapshotError) as failed:
        lab.export(config=lab.cluster(backends={"snapshot": "failing"}), plugins=[plugin], on_event=events.append)

    assert failed.value.exit_code == 3
    assert "no room for a snapshot" in str(failed.value)
    assert "disk 2" in str(failed.value)
    assert failed.value.parts == ("snapshot",)
    assert failed.value.also == []
    assert changes(events) == ["stopped", "snapshot", "started"]
    assert guest.running
    assert guest.marks().boots == boots + 1
    assert len(plugin.made) == 2
    check.check()
    assert earlier.export is not None
    assert lab.listed() == [("gamma", earlier.export.export_id)]


@on_every_snapshotting_filesystem
def test_a_live_export_sends_what_the_disk_held_when_the_snapshot_was_made(lab: Lab, unchanged: MakeUnchanged) -> None:
    guest = lab.add_guest()
    pid, before = guest.pid, guest.marks().last
    check = unchanged(lab)
    when_sending: list[int] = []
    events: list[Event] = []

    def watch(event: Event) -> None:
        events.append(event)
        if isinstance(event, StageStarted) and event.stage == "send":
            when_sending.append(guest.marks().last)
            guest.wait_for_progress(rounds=5)

    result = lab.export(on_event=watch, shutdown=False)

    assert changes(events) == ["snapshot", "send", "publish"]
    assert (guest.running, guest.pid) == (True, pid)  # never stopped
    assert result.consistency == manifest(result)["consistency"] == "crash"
    assert result.plan.downtime == "none"
    assert result.export is not None
    marks = lab.check_bytes(result.export, running=True)
    assert before <= marks.last <= when_sending[0]  # not what the guest wrote afterwards
    check.check(but=("exports",))


@on_every_snapshotting_filesystem
def test_a_guest_that_can_be_frozen_is_frozen_for_the_snapshot_and_thawed_before_its_disks_are_sent(
    lab: Lab, unchanged: MakeUnchanged
) -> None:
    notes = lab.path / "freezes"
    program = lab.path / "agent"
    program.write_text(f'#!/bin/sh\nls -A "{lab.disks}" | tr "\\n" " " >>"{notes}.seen"\necho "$1" >>"{notes}"\n')
    program.chmod(0o755)
    guest = lab.add_guest(
        runtime_options={"freeze": [str(program), "freeze"], "thaw": [str(program), "thaw"]},
    )
    pid = guest.pid
    check = unchanged(lab)
    events: list[Event] = []

    result = lab.export(on_event=events.append, shutdown=False)

    assert changes(events) == ["frozen", "snapshot", "thawed", "send", "publish"]
    assert notes.read_text().split() == ["freeze", "thaw"]
    seen = Path(f"{notes}.seen").read_text().split()
    assert [name != f"{INSTANCE}-0.raw" for name in seen] == [False, True, False]  # the snapshot, then the disk, when thawed
    assert result.consistency == manifest(result)["consistency"] == "filesystem"
    assert (guest.running, guest.pid) == (True, pid)
    assert result.export is not None
    lab.check_bytes(result.export, running=True)
    check.check(but=("exports",))


@on_every_snapshotting_filesystem
def test_a_guest_that_will_not_freeze_is_exported_crash_consistent_and_thawed(lab: Lab, unchanged: MakeUnchanged) -> None:
    notes = lab.path / "thaws"
    program = lab.path / "agent"
    program.write_text(f'#!/bin/sh\n[ "$1" = thaw ] && echo thaw >>"{notes}" && exit 0\necho busy; exit 1\n')
    program.chmod(0o755)
    guest = lab.add_guest(runtime_options={"freeze": [str(program), "freeze"], "thaw": [str(program), "thaw"]})
    check = unchanged(lab)

    result = lab.export(shutdown=False)

    assert result.consistency == "crash"
    assert any("busy" in warning and "crash-consistent" in warning for warning in result.warnings)
    assert notes.read_text().split() == ["thaw"]  # a freeze that failed may have frozen half
    assert guest.running
    assert result.export is not None
    lab.check_bytes(result.export, running=True)
    check.check(but=("exports",))


def test_a_live_export_without_snapshots_is_refused(plain_lab: Lab, unchanged: MakeUnchanged) -> None:
    guest = plain_lab.add_guest()
    pid = guest.pid
    check = unchanged(plain_lab)

    with pytest.raises(diskhaul.RefusedError, match="live export needs a snapshot of every disk"):
        plain_lab.export(shutdown=False)

    assert (guest.running, guest.pid) == (True, pid)
    check.check()


def test_a_live_export_whose_snapshot_fails_when_it_is_made_fails_and_never_stops_the_guest(
    lab: Lab, unchanged: MakeUnchanged
) -> None:
    guest = lab.add_guest(disks=2)
    pid = guest.pid
    check = unchanged(lab)

    with pytest.raises(diskhaul.SnapshotError, match="no room for a snapshot") as failed:
        lab.export(config=lab.cluster(backends={"snapshot": "failing"}), plugins=[FailingSnapshots(from_disk=1)], shutdown=False)

    assert failed.value.exit_code == 3
    assert (guest.running, guest.pid) == (True, pid)
    check.check()


def test_an_instance_to_be_removed_is_stopped_sent_and_removed_without_a_snapshot(lab: Lab, unchanged: MakeUnchanged) -> None:
    guest = lab.add_guest()
    check = unchanged(lab)
    events: list[Event] = []
    disk_at_publish: list[bool] = []

    def watch(event: Event) -> None:
        events.append(event)
        if isinstance(event, StageFinished) and event.stage == "publish":
            disk_at_publish.append(guest.disk.exists())

    result = lab.export(on_event=watch, remove_instance=True)

    assert changes(events) == ["stopped", "send", "publish", "removed"]
    assert disk_at_publish == [True]  # removed only once the export stood
    assert not guest.running
    assert not guest.disk.exists()
    assert guest.calls().count("start") == 1  # the one of the set-up
    assert result.exit_code == 0
    assert result.export is not None
    lab.check_bytes(result.export)
    check.check(but=("exports", "disk_files"))


def test_a_failing_removal_makes_the_result_incomplete_and_not_the_export_a_failed_one(
    lab: Lab, unchanged: MakeUnchanged
) -> None:
    guest = lab.add_guest()
    guest.disturb("remove", "fail")
    check = unchanged(lab)

    result = lab.export(remove_instance=True)

    assert result.exit_code == 4
    assert len(result.incomplete) == 1
    assert "the instance was not removed" in result.incomplete[0]
    assert "told to fail: remove" in result.incomplete[0]
    assert result.export is not None
    assert lab.listed() == [("beta", result.export.export_id)]
    lab.check_bytes(result.export)
    check.check(but=("exports",))


def test_a_failing_removal_can_be_ignored(lab: Lab) -> None:
    guest = lab.add_guest()
    guest.disturb("remove", "fail")

    result = lab.export(remove_instance=True, ignore_remove_failures=True)

    assert result.exit_code == 0
    assert any("told to fail: remove" in warning for warning in result.warnings)


def test_an_export_that_fails_before_the_removal_leaves_the_instance_running(lab: Lab, unchanged: MakeUnchanged) -> None:
    guest = lab.add_guest()
    check = unchanged(lab)

    def truncate(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "send":
            os.truncate(guest.disk, 1 << 20)

    with pytest.raises(diskhaul.OperationFailedError):
        lab.export(on_event=truncate, remove_instance=True)

    assert guest.running
    assert guest.disk.exists()
    assert "remove" not in guest.calls()
    check.check()


@pytest.mark.parametrize(
    "options", [{}, {"shutdown": False}, {"long_sleep": True}], ids=["shutdown", "no shutdown", "long sleep"]
)
def test_a_stopped_instance_is_sent_as_it_is_and_stays_stopped(
    plain_lab: Lab, unchanged: MakeUnchanged, options: dict[str, Any]
) -> None:
    guest = plain_lab.add_guest(running=False, disks=2, state="down")
    before = [path.read_bytes() for path in plain_lab.contents]
    check = unchanged(plain_lab)
    events: list[Event] = []

    result = plain_lab.export(on_event=events.append, **options)

    assert changes(events) == ["send", "publish"]
    assert not guest.running
    assert set(guest.calls()) == {"status"}
    assert result.consistency == "stopped"
    assert result.plan.downtime == "none"
    assert result.export is not None
    assert [path.read_bytes() for path in plain_lab.restored(result.export)] == before
    check.check(but=("exports",))


def test_a_stopped_instance_can_be_exported_and_removed_even_without_a_shutdown(plain_lab: Lab) -> None:
    guest = plain_lab.add_guest(running=False, state="down")

    result = plain_lab.export(shutdown=False, remove_instance=True)

    assert result.exit_code == 0
    assert not guest.disk.exists()
    assert guest.calls().count("start") == 0


@pytest.mark.parametrize("outcome", ["sent", "failed"])
def test_disks_of_a_stopped_instance_are_activated_and_deactivated_again(
    plain_lab: Lab, unchanged: MakeUnchanged, outcome: str
) -> None:
    program, notes = plain_lab.path / "activator", plain_lab.path / "active"
    program.write_text(f'#!/bin/sh\necho "$1" >>"{notes}"\n')
    program.chmod(0o755)
    guest = plain_lab.add_guest(
        running=False,
        runtime_options={"activate_disks": [str(program), "on"], "deactivate_disks": [str(program), "off"]},
    )
    check = unchanged(plain_lab)
    while_sent: list[str] = []

    def watch(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "send":
            while_sent.append(notes.read_text())
            if outcome == "failed":
                os.truncate(guest.disk, 4096)

    if outcome == "sent":
        plain_lab.export(on_event=watch)
    else:
        with pytest.raises(diskhaul.OperationFailedError):
            plain_lab.export(on_event=watch)

    assert while_sent == ["on\n"]
    assert notes.read_text().split() == ["on", "off"]
    assert not guest.running
    check.check(but=("exports",) if outcome == "sent" else ())


def test_disks_that_are_active_already_are_not_deactivated(plain_lab: Lab) -> None:
    from diskhaul.testing import ScriptedRuntime

    plain_lab.add_guest(running=False, runtime="scripted")
    runtime = ScriptedRuntime(inactive=())

    plain_lab.export(plugins=[runtime])

    assert runtime.count("activate_disks") == 1
    assert runtime.count("deactivate_disks") == 0


def test_a_stopped_guest_that_somebody_starts_while_its_disks_are_read_fails_the_export(
    plain_lab: Lab, unchanged: MakeUnchanged
) -> None:
    import subprocess

    guest = plain_lab.add_guest(running=False)
    check = unchanged(plain_lab)

    def start(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "send":
            subprocess.run([str(guest.program), "start"], check=True)

    with pytest.raises(diskhaul.GuestError, match="was started by somebody else while its disks were read"):
        plain_lab.export(on_event=start)

    assert guest.running  # it was not us who started it, so it is not ours to stop
    check.check()


def test_a_dry_run_says_what_would_be_done_and_touches_nothing(lab: Lab, unchanged: MakeUnchanged) -> None:
    guest = lab.add_guest()
    pid = guest.pid
    check = unchanged(lab)

    result = lab.export(dry_run=True)

    assert result.export is None
    assert result.plan.steps[:3] == (f"stop {INSTANCE}", "snapshot its disks (reflink)", f"start {INSTANCE} again")
    assert (guest.running, guest.pid) == (True, pid)
    assert "stop" not in guest.calls()
    check.check()


@pytest.mark.parametrize("compress", ["none", "zstd:1", "zstd:-20", "zstd:adaptive:1", "gzip:1"])
def test_a_stopped_guest_comes_back_with_every_compressor(lab: Lab, compress: str) -> None:
    lab.add_guest(disks=2)

    result = lab.export(compress=compress, verify="full")

    assert result.export is not None
    assert result.export.compress == compress
    lab.check_bytes(result.export)


@on_every_snapshotting_filesystem
def test_what_must_be_as_before_knows_mounts_and_subvolumes(
    lab: Lab, unchanged: MakeUnchanged, request: pytest.FixtureRequest
) -> None:
    """The check that the other tests rely on can fail."""
    check = unchanged(lab)
    check.check()
    mounted = lab.temporary / "mounted"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(mounted)], check=True)
    try:
        with pytest.raises(AssertionError, match="mounts are not as they were"):
            check.check(but=("temporary",))
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
    mounted.rmdir()
    check.check()
    if request.node.callspec.params["lab"] == "btrfs":
        subprocess.run(["btrfs", "-q", "subvolume", "snapshot", "-r", str(lab.disks), str(lab.disks / "left")], check=True)
        with pytest.raises(AssertionError, match="subvolumes are not as they were"):
            check.check(but=("disk_files",))
        subprocess.run(["btrfs", "-q", "subvolume", "delete", str(lab.disks / "left")], check=True)
        check.check()


# --- what a plan says of the downtime ---------------------------------------------------------------------------------


def planned(lab: Lab, *arguments: str) -> str:
    done = lab.cli("plan", "web1", "--node", "beta", *arguments)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.split()[:1] == ["downtime"]]
    return " ".join(line.split()[1:])


def test_a_plan_estimates_the_downtime_by_the_last_export_that_measured_it(lab: Lab) -> None:
    lab.add_guest()
    lab.write_config()
    assert planned(lab).startswith("until the snapshots exist; depends on how fast the guest stops and starts")
    assert planned(lab, "--no-shutdown") == "none: the guest keeps running"
    assert planned(lab, "--remove-instance") == "for good: it is stopped, and removed once its export has been read back"

    export = lab.export()

    assert export.export is not None
    plan = diskhaul.plan(INSTANCE, node="beta", config=lab.cluster())
    assert plan.downtime_s == pytest.approx(export.timings["shutdown"])
    assert plan.downtime_basis == f"as in the export of {export.export.export_id}"
    assert planned(lab).startswith("about ")


def test_a_plan_without_snapshots_estimates_the_downtime_by_what_would_be_read(plain_lab: Lab) -> None:
    lab = plain_lab
    lab.add_guest()
    lab.write_config()
    assert "depends on how fast its disks can be read" in planned(lab, "--long-sleep")

    export = lab.export(long_sleep=True)

    plan = diskhaul.plan(INSTANCE, node="beta", config=lab.cluster(), options=diskhaul.ExportOptions(long_sleep=True))
    assert export.export is not None
    assert plan.downtime_s is not None
    assert plan.downtime_s >= export.timings["send"] * 0.5
    assert "MiB/s of " + export.export.export_id in plan.downtime_basis
    assert "until the disks have been sent" in planned(lab, "--long-sleep")


def test_a_plan_says_that_a_guest_is_off(lab: Lab) -> None:
    lab.add_guest(running=False)
    lab.write_config()
    assert planned(lab) == "none: the guest is off"
