"""Whatever fails, wherever: the guest runs again, nothing is left behind, earlier exports stand, and the first error is told."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import diskhaul
from diskhaul.api import BackendContext
from diskhaul.events import DiskProgress, Event, StageFinished, StageStarted, Warned
from diskhaul.journal import Journal
from diskhaul.testing import Fault, FaultyDisk, MemoryDisk, MemoryStorage, ScriptedRuntime

if TYPE_CHECKING:
    from .conftest import Lab, Unchanged

INSTANCE = "web1.example.com"
MakeUnchanged = Callable[["Lab"], "Unchanged"]

LEADS_TO = {
    "storage.open": "disk",
    "snapshot.open": "snapshot_disk",
    "transfer.store": "store",
    "store.begin": "writer",
    "store.open": "export",
    "writer.create": "file",
    "writer.reader": "export",
    "export.open": "stored",
    "lock.acquire": "held",
}
"""Which calls give objects whose calls may be disturbed too."""


class _Disturbed:
    """An object whose method `Disturber.point` goes wrong; everything else is the real thing."""

    def __init__(self, disturber: Disturber, kind: str, inner: Any) -> None:
        self._disturber, self._kind, self._inner = disturber, kind, inner

    def __getattr__(self, name: str) -> Any:
        if name == "fileno":
            raise AttributeError(name)  # through a descriptor the bytes would pass us by
        if name == "longest_call_s" and self._disturber.how == "hangs":
            return lambda instance: 1.0
        value = getattr(self._inner, name)
        if not callable(value):
            return value
        point = f"{self._kind}.{name}"

        def call(*arguments: Any, **options: Any) -> Any:
            if self._disturber.applies(point):
                return self._disturber.behave()
            result = value(*arguments, **options)
            return _Disturbed(self._disturber, LEADS_TO[point], result) if point in LEADS_TO else result

        return call


class Disturber:
    """A plugin of real backends (named ``disturbed``), one call of which goes wrong.

    Args:
        point: the call, as ``writer.publish``.
        how: "raises", "exits", "wrong type" (returns a number, and does nothing) or "hangs" (until `release`, and does nothing).
        stage: goes wrong only once this stage has begun.
        times: how many calls go wrong.
    """

    def __init__(self, point: str, how: str, *, stage: str = "", times: int = 1_000_000) -> None:
        self.point, self.how, self._stage, self._times = point, how, stage, times
        self._active = not stage
        self._released = threading.Event()
        self.disturbed = 0
        self.calls: Counter[str] = Counter()
        self._lock = threading.Lock()

    def on_event(self, event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == self._stage:
            self._active = True

    def applies(self, point: str) -> bool:
        with self._lock:
            self.calls[point] += 1
            if not self._active or point != self.point or self.disturbed >= self._times:
                return False
            self.disturbed += 1
            return True

    def behave(self) -> Any:
        if self.how == "raises":
            raise ValueError(f"{self.point} is broken")
        if self.how == "exits":
            raise SystemExit(0)
        if self.how == "hangs":
            self._released.wait()
            raise OSError(errno.ETIMEDOUT, f"{self.point} came to an end, too late")
        return 5.5

    def release(self) -> None:
        self._released.set()

    def _disturbing(self, kind: str, backend: Callable[[BackendContext], Any]) -> Callable[[BackendContext], Any]:
        return lambda context: _Disturbed(self, kind, backend(context))

    @diskhaul.hookimpl
    def diskhaul_runtimes(self) -> Iterable[diskhaul.RuntimeSpec]:
        from diskhaul_plugins.runtimes.command import CommandRuntime

        yield diskhaul.RuntimeSpec(name="disturbed", create=self._disturbing("runtime", CommandRuntime))

    @diskhaul.hookimpl
    def diskhaul_storages(self) -> Iterable[diskhaul.StorageSpec]:
        from diskhaul_plugins.storages.file import FileStorage

        yield diskhaul.StorageSpec(name="disturbed", create=self._disturbing("storage", FileStorage))

    @diskhaul.hookimpl
    def diskhaul_snapshots(self) -> Iterable[diskhaul.SnapshotSpec]:
        from diskhaul_plugins.snapshots.reflink import ReflinkSnapshots

        yield diskhaul.SnapshotSpec(name="disturbed", create=self._disturbing("snapshot", ReflinkSnapshots))

    @diskhaul.hookimpl
    def diskhaul_transfers(self) -> Iterable[diskhaul.TransferSpec]:
        from diskhaul_plugins.transfers.directory import DirectoryTransfer

        yield diskhaul.TransferSpec(name="disturbed", create=self._disturbing("transfer", DirectoryTransfer))

    @diskhaul.hookimpl
    def diskhaul_locks(self) -> Iterable[diskhaul.LockSpec]:
        from diskhaul_plugins.locks.file import FileLocks

        yield diskhaul.LockSpec(name="disturbed", create=self._disturbing("lock", FileLocks))

    @diskhaul.hookimpl
    def diskhaul_cleanups(self) -> Iterable[diskhaul.CleanupSpec]:
        from diskhaul_plugins.cleanups.others import OthersCleanup

        yield diskhaul.CleanupSpec(name="disturbed", create=self._disturbing("cleanup", OthersCleanup))


BACKENDS = {"lock": "disturbed", "transfer": "disturbed", "cleanup": "disturbed"}


@pytest.fixture
def disturb() -> Iterator[Callable[..., Disturber]]:
    """Make `Disturber`s; what hangs in them is let go when the test ends."""
    made: list[Disturber] = []

    def make(*arguments: Any, **more: Any) -> Disturber:
        made.append(Disturber(*arguments, **more))
        return made[-1]

    yield make
    for disturber in made:
        disturber.release()


def instance_of(lab: Lab, *, storage: str = "file") -> None:
    """Let the lab's instance use the disturbed backends."""
    instance = lab.instances[INSTANCE]
    lab.instances[INSTANCE] = diskhaul.Instance(
        name=INSTANCE,
        node=instance.node,
        state=instance.state,
        runtime="disturbed",
        runtime_options=instance.runtime_options,
        disks=[diskhaul.Disk(path=disk.path, storage=storage, snapshot="disturbed") for disk in instance.disks],
    )


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guests are retried, and watched, for seconds; here nothing is won by waiting."""
    monkeypatch.setattr("diskhaul.operations.guest.RETRY_PAUSES_S", (0.001,) * 3)
    monkeypatch.setattr("diskhaul.operations.guest._SETTLE_S", 0.01)


class Failing:
    """Runs exports that are to fail, and checks everything that holds then."""

    def __init__(self, lab: Lab, unchanged: MakeUnchanged) -> None:
        self.lab = lab
        self.guest = lab.guests[INSTANCE]
        earlier = lab.export(node="gamma")
        assert earlier.export is not None
        self.earlier = earlier.export
        self.was_running = self.guest.running
        self.check = unchanged(lab)

    def fails(self, disturber: Disturber, **more: Any) -> diskhaul.OperationFailedError:
        config = self.lab.cluster(backends=BACKENDS)
        with pytest.raises(diskhaul.OperationFailedError) as failed:
            self.lab.export(config=config, plugins=[disturber], on_event=disturber.on_event, **more)
        assert failed.value.exit_code == 3
        assert failed.value.parts
        assert disturber.disturbed
        assert self.guest.running == self.was_running
        if disturber.how == "hangs":
            assert not self.leftovers()
            disturber.release()
            # What was left behind might still have done its work: that is noted, and looked after once more.
            self.check.check(but=("journal",))
            recovered = diskhaul.recover(config=config, plugins=[Disturber("nothing", "raises")])
            assert recovered.exit_code == 0
        self.check.check()
        assert self.lab.listed() == [("gamma", self.earlier.export_id)]
        return failed.value

    def leftovers(self) -> list[str]:
        """Snapshots and unfinished exports."""
        partials = [str(path) for path in self.lab.path.glob("*/*/.*.partial")]
        return partials + [str(path) for path in self.lab.disks.glob(".*.snap")]


EVERYTHING = ("raises", "exits", "wrong type")
SENDING = [
    ("runtime.stop", "", EVERYTHING, {}),
    ("runtime.is_running", "stop", ("raises", "exits", "wrong type"), {}),
    ("snapshot.plan", "snapshot", EVERYTHING, {}),
    ("snapshot.create", "snapshot", EVERYTHING, {}),
    ("snapshot.exists", "snapshot", ("raises", "exits"), {}),
    ("snapshot.open", "send", EVERYTHING, {}),
    ("snapshot_disk.read_into", "send", ("raises", "exits"), {}),
    ("snapshot_disk.extents", "send", EVERYTHING, {}),
    ("snapshot.create", "snapshot", EVERYTHING, {"shutdown": False}),
    ("snapshot.open", "send", EVERYTHING, {"shutdown": False}),
    ("storage.open", "send", EVERYTHING, {"remove_instance": True}),
    ("disk.read_into", "send", ("raises", "exits"), {"remove_instance": True}),
    ("store.begin", "", EVERYTHING, {}),
    ("writer.create", "", EVERYTHING, {}),
    ("file.append", "", EVERYTHING, {}),
    ("file.write", "", EVERYTHING, {"compress": "none"}),
    ("file.finish", "", EVERYTHING, {}),
    ("writer.reader", "", EVERYTHING, {}),
    ("export.open", "verify", EVERYTHING, {}),
    ("stored.read_into", "verify", EVERYTHING, {}),
    ("held.check", "publish", ("raises", "exits"), {}),
    ("writer.publish", "", EVERYTHING, {}),
    ("store.open", "publish", EVERYTHING, {}),
]


@pytest.mark.parametrize(
    ("point", "stage", "hows", "options"),
    SENDING,
    ids=[f"{point}{'-live' if o.get('shutdown') is False else ''}" for point, _, _, o in SENDING],
)
def test_a_stage_that_breaks_fails_the_export_and_undoes_it(
    lab: Lab,
    unchanged: MakeUnchanged,
    disturb: Callable[..., Disturber],
    point: str,
    stage: str,
    hows: tuple[str, ...],
    options: Mapping[str, Any],
) -> None:
    lab.add_guest(disks=2)
    failing = Failing(lab, unchanged)
    instance_of(lab, storage="disturbed" if point.startswith(("storage", "disk")) else "file")
    for how in hows:
        # The state is asked for to undo things too, so a runtime that never answers leaves nothing to check: once is enough.
        # Likewise a snapshot of which nobody says whether it is gone.
        times = 1 if point in ("runtime.is_running", "snapshot.exists") else 1_000_000
        error = failing.fails(disturb(point, how, stage=stage, times=times), **options)
        if how == "raises" and point not in ("snapshot_disk.extents",):
            assert f"{point} is broken" in str(error)


HANGING = [
    ("runtime.stop", "", {"shutdown_timeout_s": 0.0}),
    ("snapshot.create", "snapshot", {}),
    ("snapshot.open", "send", {}),
    ("snapshot_disk.read_into", "send", {}),
    ("snapshot_disk.extents", "send", {}),
    ("store.begin", "", {}),
    ("file.append", "", {}),
    ("file.finish", "", {}),
    ("stored.read_into", "verify", {}),
    ("writer.publish", "", {}),
]


@pytest.mark.parametrize(("point", "stage", "options"), HANGING, ids=[point for point, _, _ in HANGING])
def test_a_stage_that_hangs_fails_the_export_in_time_and_undoes_it(
    lab: Lab,
    unchanged: MakeUnchanged,
    disturb: Callable[..., Disturber],
    point: str,
    stage: str,
    options: Mapping[str, Any],
) -> None:
    lab.add_guest(disks=2)
    failing = Failing(lab, unchanged)
    instance_of(lab)

    error = failing.fails(disturb(point, "hangs", stage=stage), stall_timeout_s=1.0, **options)

    assert "did not return within" in str(error) or "nothing moved for" in str(error)


def test_a_stop_command_that_hangs_is_ended_and_the_guest_goes_on(
    lab: Lab, unchanged: MakeUnchanged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diskhaul_plugins.runtimes.command.STOP_GRACE_S", 0.5)
    guest = lab.add_guest()
    pid = guest.pid
    check = unchanged(lab)
    guest.disturb("stop", "hang")

    with pytest.raises(diskhaul.GuestError, match="did not end within"):
        lab.export(shutdown_timeout_s=0.0)

    assert (guest.running, guest.pid) == (True, pid)
    check.check(but=("journal",))  # the stop may still come, so it is noted that the guest has to run
    assert diskhaul.recover(config=lab.cluster()).exit_code == 0
    assert (guest.running, guest.pid) == (True, pid)
    check.check(but=("journal",))  # the guest may still be shutting down, so its note stays for `recover`
    assert diskhaul.recover(config=lab.cluster()).exit_code == 0
    check.check()


def test_a_runtime_that_says_it_stopped_the_guest_is_not_believed(lab: Lab, unchanged: MakeUnchanged) -> None:
    lab.add_guest(runtime="scripted", running=False)
    runtime = ScriptedRuntime(running=[INSTANCE], lie={"stop": {1}})
    check = unchanged(lab)

    with pytest.raises(diskhaul.GuestError, match="says that it stopped the guest, and it is still running"):
        lab.export(plugins=[runtime])

    assert runtime.running == {INSTANCE}
    assert runtime.count("start") == 0
    check.check()


def test_a_stop_that_fails_although_the_guest_is_down_is_undone(lab: Lab, unchanged: MakeUnchanged) -> None:
    lab.add_guest(runtime="scripted", running=False)
    runtime = ScriptedRuntime(running=[INSTANCE], fail_after={"stop": {1}})
    check = unchanged(lab)

    with pytest.raises(diskhaul.GuestError, match="scripted failure after stop"):
        lab.export(plugins=[runtime])

    assert runtime.running == {INSTANCE}
    check.check()


# --- starting again ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"fail": {"start": {1, 2}}}, {"lie": {"start": {1, 2}}}], ids=["fails", "lies"])
def test_a_start_that_does_not_work_at_once_is_retried(lab: Lab, unchanged: MakeUnchanged, how: dict[str, Any]) -> None:
    lab.add_guest(runtime="scripted", running=False)
    runtime = ScriptedRuntime(running=[INSTANCE], **how)
    check = unchanged(lab)

    result = lab.export(plugins=[runtime])

    assert result.exit_code == 0
    assert runtime.count("start") == 3
    assert runtime.running == {INSTANCE}
    check.check(but=("exports",))


def test_a_start_that_never_works_is_told_with_every_attempt_and_left_to_recover(lab: Lab, unchanged: MakeUnchanged) -> None:
    lab.add_guest(runtime="scripted", running=False)
    runtime = ScriptedRuntime(running=[INSTANCE], fail={"start": range(1, 5)})
    check = unchanged(lab)

    with pytest.raises(diskhaul.GuestError) as failed:
        lab.export(plugins=[runtime])

    assert "IS DOWN" in str(failed.value)
    assert "scripted failure of start number 1" in str(failed.value)
    assert "recover" in str(failed.value)
    assert runtime.count("start") == 4  # undoing does not try as often once more
    assert all(f"scripted failure of start number {number}" in "\n".join(failed.value.__notes__) for number in (2, 3, 4))
    check.check(but=("journal",))
    assert [note.kind for run in Journal(lab.state_dir).unfinished(INSTANCE) for note in run.notes] == ["guest"]

    recovered = diskhaul.recover(config=lab.cluster(), plugins=[runtime])

    assert recovered.exit_code == 0
    assert runtime.running == {INSTANCE}
    check.check()


def test_a_failing_start_does_not_hide_the_first_error(lab: Lab) -> None:
    lab.add_guest(runtime="scripted", running=False, disks=1)
    runtime = ScriptedRuntime(running=[INSTANCE], fail={"start": range(1, 100)})

    def shrink(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "send":
            os.truncate(lab.guests[INSTANCE].disk, 4096)

    with pytest.raises(diskhaul.OperationFailedError) as failed:
        lab.export(plugins=[runtime], on_event=shrink, remove_instance=True)

    assert failed.value.parts == ("disk export",) or failed.value.parts == ("disk export: disk(s) 0",)
    assert "disk 0" in str(failed.value)
    assert len(failed.value.also) == 1
    assert "IS DOWN" in str(failed.value.also[0])
    assert any("IS DOWN" in note for note in failed.value.__notes__)


# --- freezing ---------------------------------------------------------------------------------------------------------


def live(lab: Lab, runtime: ScriptedRuntime, **more: Any) -> diskhaul.ExportResult:
    return lab.export(plugins=[runtime], shutdown=False, **more)


def test_a_freeze_that_froze_half_is_thawed_and_the_export_goes_on(lab: Lab, unchanged: MakeUnchanged) -> None:
    lab.add_guest(runtime="scripted", running=False)
    runtime = ScriptedRuntime(running=[INSTANCE], can_freeze=True, fail_after={"freeze": {1}})
    check = unchanged(lab)

    result = live(lab, runtime)

    assert result.consistency == "crash"
    assert runtime.frozen == set()
    check.check(but=("exports",))


def test_a_thaw_that_fails_once_is_retried_and_the_guest_does_not_stay_frozen(lab: Lab, unchanged: MakeUnchanged) -> None:
    lab.add_guest(runtime="scripted", running=False)
    runtime = ScriptedRuntime(running=[INSTANCE], can_freeze=True, fail={"thaw": {1}})
    check = unchanged(lab)

    try:
        live(lab, runtime)
    except diskhaul.GuestError as error:
        assert "scripted failure of thaw number 1" in str(error)  # noqa: PT017  # either ending will do; frozen will not

    assert runtime.frozen == set()
    check.check(but=("exports",))


def test_a_snapshot_that_fails_while_the_guest_is_frozen_thaws_it(
    lab: Lab, unchanged: MakeUnchanged, disturb: Callable[..., Disturber]
) -> None:
    lab.add_guest(runtime="scripted", running=False)
    instance_of(lab)
    instance = lab.instances[INSTANCE]
    lab.instances[INSTANCE] = diskhaul.Instance(name=INSTANCE, node="alpha", runtime="scripted", disks=instance.disks)
    runtime = ScriptedRuntime(running=[INSTANCE], can_freeze=True)
    check = unchanged(lab)

    with pytest.raises(diskhaul.SnapshotError, match=r"snapshot\.create is broken"):
        lab.export(plugins=[runtime, disturb("snapshot.create", "raises")], shutdown=False)

    assert runtime.count("freeze") == runtime.count("thaw") == 1
    assert runtime.frozen == set()
    check.check()


def test_a_guest_that_cannot_be_thawed_is_left_to_recover(lab: Lab) -> None:
    lab.add_guest(runtime="scripted", running=False)
    runtime = ScriptedRuntime(running=[INSTANCE], can_freeze=True, fail={"thaw": range(1, 20)})

    with pytest.raises(diskhaul.GuestError, match="scripted failure of thaw number 1"):
        live(lab, runtime)

    assert runtime.frozen == {INSTANCE}
    working = ScriptedRuntime(running=[INSTANCE])
    working.frozen.add(INSTANCE)
    assert diskhaul.recover(config=lab.cluster(), plugins=[working]).exit_code == 0
    assert working.frozen == set()
    assert Journal(lab.state_dir).unfinished() == []


# --- snapshots --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", EVERYTHING)
def test_a_snapshot_that_cannot_be_removed_makes_the_result_incomplete_and_is_left_to_recover(
    lab: Lab, unchanged: MakeUnchanged, disturb: Callable[..., Disturber], how: str
) -> None:
    guest = lab.add_guest(disks=2)
    check = unchanged(lab)
    instance_of(lab)
    disturber = disturb("snapshot.remove", how, stage="send")

    result = lab.export(config=lab.cluster(), plugins=[disturber], on_event=disturber.on_event)

    assert result.exit_code == 4
    assert result.export is not None
    assert len([line for line in result.incomplete if "snapshot" in line]) >= 2
    assert guest.running
    lab.check_bytes(result.export)
    assert len(list(lab.disks.glob(".*.snap"))) == 2

    recovered = diskhaul.recover(config=lab.cluster(), plugins=[Disturber("none.none", "raises")])

    assert recovered.exit_code == 0
    assert len(recovered.done) == 2
    check.check(but=("exports",))


def test_only_snapshots_of_the_own_run_are_removed(lab: Lab, unchanged: MakeUnchanged) -> None:
    guest = lab.add_guest()
    foreign = guest.disk.with_name(f".{guest.disk.name}.diskhaul-11111111-2222-3333-4444-555555555555.snap")
    foreign.write_bytes(b"of somebody else")
    check = unchanged(lab)

    lab.export()
    diskhaul.recover(config=lab.cluster())

    assert foreign.read_bytes() == b"of somebody else"
    check.check(but=("exports",))


def test_a_snapshot_that_vanishes_while_it_is_read_fails_the_export(lab: Lab, unchanged: MakeUnchanged) -> None:
    guest = lab.add_guest()
    check = unchanged(lab)

    def remove_it(event: Event) -> None:
        if isinstance(event, DiskProgress) and event.activity == "send":
            for path in lab.disks.glob(".*.snap"):
                path.unlink()

    with pytest.raises(diskhaul.OperationFailedError, match="snapshot"):
        lab.export(on_event=remove_it)

    assert guest.running
    check.check()


# --- reading the disks ------------------------------------------------------------------------------------------------


def memory_lab(lab: Lab, *faults: Fault, size: int = 3 << 20) -> tuple[FaultyDisk, MemoryStorage]:
    """An instance that is off, with one sound disk in memory and a faulty one; the faulty one is disk 1."""
    content = os.urandom(size)
    faulty = FaultyDisk(MemoryDisk(content), *faults)
    storage = MemoryStorage({"sound": MemoryDisk(content), "faulty": faulty})
    lab.instances[INSTANCE] = diskhaul.Instance(
        name=INSTANCE,
        node="alpha",
        disks=[diskhaul.Disk(storage="memory", options={"name": name}) for name in ("sound", "faulty")],
    )
    return faulty, storage


# Where samples for the estimate are not taken; they come before anything is touched, and would be a refusal.
BETWEEN_SAMPLES = (3 << 20) - 4096


@pytest.mark.parametrize("kind", ["error", "short"])
def test_a_read_error_fails_the_export_with_disk_and_offset_and_is_never_written_as_zeros(
    lab: Lab, unchanged: MakeUnchanged, kind: Any
) -> None:
    faulty, storage = memory_lab(lab)
    check = unchanged(lab)

    def break_it(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "send":
            faulty._faults = (Fault(on="read", kind=kind, offset=(2 << 20) + 5),)

    with pytest.raises(diskhaul.OperationFailedError) as failed:
        lab.export(plugins=[storage], on_event=break_it)

    assert failed.value.parts == ("disk export: disk(s) 1",)
    assert "disk 1" in str(failed.value)
    assert f"offset {2 << 20}" in str(failed.value)
    result = failed.value.result
    assert isinstance(result, diskhaul.ExportResult)
    assert [disk.ok for disk in result.disks] == [True, False]
    assert lab.listed() == []
    check.check()


def test_a_disk_that_cannot_be_read_for_the_estimate_is_refused(lab: Lab, unchanged: MakeUnchanged) -> None:
    _, storage = memory_lab(lab, Fault(on="read"))
    check = unchanged(lab)

    with pytest.raises(diskhaul.RefusedError, match="disk 1: cannot read it at offset 0"):
        lab.export(plugins=[storage])

    check.check()


def test_a_disk_that_shrinks_while_it_is_read_fails_the_export(lab: Lab, unchanged: MakeUnchanged) -> None:
    faulty, storage = memory_lab(lab)
    check = unchanged(lab)

    def shrink(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "send":
            faulty.shrink((1 << 20) + 1)

    with pytest.raises(diskhaul.OperationFailedError, match="the disk ends at byte"):
        lab.export(plugins=[storage], on_event=shrink)

    assert lab.listed() == []
    check.check()


@pytest.mark.parametrize("compress", ["zstd:1", "none"])
def test_a_file_that_shrinks_while_it_is_read_fails_the_export(lab: Lab, unchanged: MakeUnchanged, compress: str) -> None:
    guest = lab.add_guest(running=False)
    check = unchanged(lab)

    def shrink(event: Event) -> None:
        if isinstance(event, DiskProgress) and event.activity == "send":
            os.truncate(guest.disk, 1 << 20)

    with pytest.raises(diskhaul.OperationFailedError, match="disk 0"):
        lab.export(on_event=shrink, compress=compress, threads=1, read_ahead=0)

    assert lab.listed() == []
    check.check()


def test_a_disk_that_was_swapped_for_a_larger_one_fails_the_export(lab: Lab) -> None:
    guest = lab.add_guest(running=False)

    def grow(event: Event) -> None:
        if isinstance(event, StageFinished) and event.stage == "prerequisites":
            os.truncate(guest.disk, 8 << 20)

    with pytest.raises(diskhaul.OperationFailedError, match="disk 0"):
        lab.export(on_event=grow)

    assert lab.listed() == []


def test_a_read_that_hangs_fails_the_export_after_the_stall_timeout(lab: Lab, unchanged: MakeUnchanged) -> None:
    faulty, storage = memory_lab(lab)
    check = unchanged(lab)

    def hang(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "send":
            faulty._faults = (Fault(on="read", kind="hang", offset=1 << 20),)

    try:
        with pytest.raises(diskhaul.OperationFailedError, match=r"nothing moved for 0\.5 s"):
            lab.export(plugins=[storage], on_event=hang, stall_timeout_s=0.5)
        assert faulty.hanging.is_set()
        assert lab.listed() == []
    finally:
        faulty.release()
    check.check(but=("journal",))
    assert diskhaul.recover(config=lab.cluster(), plugins=[storage]).exit_code == 0
    check.check()


def test_a_failing_close_of_a_disk_neither_hides_an_error_nor_leaks_the_other_disks(lab: Lab, unchanged: MakeUnchanged) -> None:
    _, storage = memory_lab(lab, Fault(on="close"))
    sound = storage.disks["sound"]
    storage.disks = {"sound": FaultyDisk(sound, Fault(on="close")), "faulty": storage.disks["faulty"]}
    check = unchanged(lab)

    def break_it(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "send":
            storage.disks["faulty"]._faults = (Fault(on="read"), Fault(on="close"))

    with pytest.raises(diskhaul.OperationFailedError, match="cannot read it") as failed:
        lab.export(plugins=[storage], on_event=break_it)

    assert failed.value.parts == ("disk export: disk(s) 1",)
    assert sound.closes == 0  # its close failed before it reached the disk
    check.check()


# --- writing the export -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", ["zstd:1", "none"])
def test_a_target_that_fills_up_fails_the_export_and_is_empty_again(
    lab: Lab, unchanged: MakeUnchanged, requires: Callable[..., None], compress: str
) -> None:
    requires("mount", root=True)
    guest = lab.add_guest()
    beta = lab.export_dir("beta")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(beta)], check=True)
    try:
        check = unchanged(lab)

        def fill(event: Event) -> None:
            if isinstance(event, StageStarted) and event.stage == "send":
                with open(beta / "filler", "wb") as file:
                    file.write(bytes(15 << 19))

        with pytest.raises(diskhaul.OperationFailedError, match="No space left on device") as failed:
            lab.export(on_event=fill, compress=compress)

        assert failed.value.parts == ("disk export: disk(s) 0",)
        assert guest.running
        (beta / "filler").unlink()
        check.check()
        assert lab.export().exit_code == 0
    finally:
        subprocess.run(["umount", str(beta)], check=True)


@pytest.mark.parametrize("compress", ["zstd:1", "none"])
def test_a_target_whose_filesystem_hangs_fails_the_export_and_is_cleaned_up_once_it_is_back(
    lab: Lab, unchanged: MakeUnchanged, loop_filesystem: Callable[..., Any], requires: Callable[..., None], compress: str
) -> None:
    requires("fsfreeze", root=True)
    guest = lab.add_guest()
    export_dir = loop_filesystem("ext4", size_mib=32).path / "exports"
    export_dir.mkdir(mode=0o700)
    lab.node_settings["beta"] = {"export_dir": export_dir}
    check = unchanged(lab)
    frozen: list[bool] = []

    def hang(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "send":
            subprocess.run(["fsfreeze", "--freeze", str(export_dir.parent)], check=True)
            frozen.append(True)

    try:
        with pytest.raises(diskhaul.OperationFailedError, match=r"did not return within|nothing moved for") as failed:
            lab.export(on_event=hang, compress=compress, stall_timeout_s=1.0)
        assert guest.running
        assert list(lab.disks.glob(".*.snap")) == []
    finally:
        if frozen:
            subprocess.run(["fsfreeze", "--unfreeze", str(export_dir.parent)], check=True)

    assert failed.value.also  # the unfinished export could not be removed at the time
    for thread in threading.enumerate():
        if thread.name.startswith("diskhaul-"):
            thread.join()  # the calls that were left behind come to an end now
    check.check(but=("journal",))
    assert diskhaul.recover(config=lab.cluster()).exit_code == 0
    check.check()
    assert list(export_dir.glob("*/.*")) == []
    assert lab.export(compress=compress).exit_code == 0


def test_a_target_without_inodes_fails_the_export(lab: Lab, unchanged: MakeUnchanged, requires: Callable[..., None]) -> None:
    requires("mount", root=True)
    guest = lab.add_guest()
    beta = lab.export_dir("beta")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=5,mode=700", "tmpfs", str(beta)], check=True)
    try:
        check = unchanged(lab)
        with pytest.raises(diskhaul.OperationFailedError, match="No space left on device"):
            lab.export()
        assert guest.running
        check.check()
    finally:
        subprocess.run(["umount", str(beta)], check=True)


def test_exports_can_only_be_read_by_their_owner_whatever_the_umask(lab: Lab) -> None:
    lab.add_guest()
    before = os.umask(0)
    try:
        result = lab.export()
    finally:
        os.umask(before)

    assert result.export is not None
    directory = Path(result.export.path)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert (stat.S_IMODE(directory.stat().st_mode), modes) == (0o700, {0o600})


# --- locks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["stop", "snapshot", "send", "verify"])
def test_an_export_whose_lock_was_taken_over_is_not_published(lab: Lab, unchanged: MakeUnchanged, stage: str) -> None:
    guest = lab.add_guest()
    check = unchanged(lab)

    def lose(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == stage:
            for record in (lab.state_dir / "locks").glob("instance*"):
                record.unlink()

    with pytest.raises(diskhaul.DiskhaulError, match="lost") as failed:
        lab.export(on_event=lose)

    assert failed.value.exit_code == 3
    assert guest.running
    assert lab.listed() == []
    check.check()


def test_a_lock_that_is_lost_after_publishing_stops_the_clean_up_and_not_the_export(lab: Lab) -> None:
    lab.add_guest()
    earlier = lab.export(node="gamma")
    assert earlier.export is not None

    def lose(event: Event) -> None:
        if isinstance(event, StageFinished) and event.stage == "publish":
            for record in (lab.state_dir / "locks").glob("instance*"):
                record.unlink()

    result = lab.export(on_event=lose)

    assert result.exit_code == 4
    assert result.export is not None
    assert lab.listed() == [("gamma", earlier.export.export_id), ("beta", result.export.export_id)]


# --- cleaning up ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "stage"),
    [("cleanup.superseded", "cleanup"), ("store.remove", "cleanup"), ("store.exports", "cleanup"), ("transfer.store", "cleanup")],
)
def test_a_clean_up_that_breaks_does_not_turn_the_export_into_a_failed_one(
    lab: Lab, unchanged: MakeUnchanged, disturb: Callable[..., Disturber], point: str, stage: str
) -> None:
    guest = lab.add_guest()
    check = unchanged(lab)
    instance_of(lab)
    for number, how in enumerate(EVERYTHING):
        disturber = disturb(point, how, stage=stage)
        result = lab.export(config=lab.cluster(backends=BACKENDS), plugins=[disturber], on_event=disturber.on_event)

        assert result.export is not None
        assert disturber.disturbed or number == 0
        assert guest.running
        check.check(but=("exports", "journal"))
        if number:
            assert result.exit_code == 4 or (point == "store.remove" and how == "wrong type")
            assert result.exit_code == 0 or any("clean-up" in line or "not removed" in line for line in result.incomplete)
        assert result.export.export_id in [export_id for _, export_id in lab.listed()]


def test_one_export_that_cannot_be_removed_does_not_keep_the_others(lab: Lab, disturb: Callable[..., Disturber]) -> None:
    lab.add_guest()
    cluster = lab.cluster(backends={"cleanup": "none"})
    earlier = [lab.export(node=node, config=cluster).export for node in ("beta", "gamma", "delta")]
    assert None not in earlier
    disturber = disturb("store.remove", "raises", times=1)

    result = lab.export(node="alpha", config=lab.cluster(backends={"transfer": "disturbed"}), plugins=[disturber])

    assert result.exit_code == 4
    assert len(result.removed) == 2
    assert len(result.incomplete) == 1
    assert "store.remove is broken" in result.incomplete[0]
    assert len(lab.listed()) == 2


# --- hook scripts -----------------------------------------------------------------------------------------------------


def hook_script(lab: Lab, phase: str, text: str) -> None:
    directory = lab.path / "hooks" / f"instance-export-{phase}.d"
    directory.mkdir(parents=True, mode=0o755)
    script = directory / "10-test"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    lab.settings["hook_dir"] = lab.path / "hooks"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("echo no; exit 7", "exit code 7"),
        ("kill -9 $$", "killed by SIGKILL"),
        ("exec sleep 1000", "did not end within"),
        ("cd /nonexistent 2>/dev/null; umask 000; (sleep 1000 &) ; exit 1", "exit code 1"),
    ],
    ids=["fails", "killed", "hangs", "forks away"],
)
def test_a_pre_hook_script_that_goes_wrong_fails_the_export_before_anything_is_touched(
    lab: Lab, unchanged: MakeUnchanged, text: str, expected: str
) -> None:
    guest = lab.add_guest()
    pid = guest.pid
    hook_script(lab, "pre", text)
    check = unchanged(lab)
    before = (os.getcwd(), os.umask(0o22))
    os.umask(before[1])

    with pytest.raises(diskhaul.HookScriptError, match=expected) as failed:
        lab.export(hook_timeout_s=0.5)

    assert failed.value.exit_code == 3
    assert "10-test on node alpha" in str(failed.value)
    assert (guest.running, guest.pid) == (True, pid)
    assert "stop" not in guest.calls()
    after = (os.getcwd(), os.umask(0o22))
    os.umask(after[1])
    assert after == before
    check.check()


def test_a_post_hook_script_that_goes_wrong_is_a_warning(lab: Lab, unchanged: MakeUnchanged) -> None:
    guest = lab.add_guest()
    hook_script(lab, "post", "exit 9")
    check = unchanged(lab)
    warnings: list[str] = []

    result = lab.export(on_event=lambda event: warnings.append(event.message) if isinstance(event, Warned) else None)

    assert result.exit_code == 0
    assert any("exit code 9" in warning for warning in warnings)
    assert guest.running
    check.check(but=("exports",))


# --- listeners --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("the display is broken"), SystemExit(0), KeyboardInterrupt()], ids=type)
@pytest.mark.parametrize("at", ["stop", "send", "start", "publish", "progress", "guest"])
def test_a_listener_that_raises_is_told_no_more_and_the_export_goes_on(
    lab: Lab, unchanged: MakeUnchanged, at: str, error: BaseException
) -> None:
    lab.add_guest(runtime="scripted", running=False)
    runtime = ScriptedRuntime(running=[INSTANCE])
    check = unchanged(lab)

    def listen(event: Event) -> None:
        if getattr(event, "stage", event.kind.removeprefix("disk-")) == at:
            raise error

    result = lab.export(plugins=[runtime], on_event=listen)

    assert result.exit_code == 0
    assert any("on_event raised" in warning for warning in result.warnings)
    assert runtime.running == {INSTANCE}
    check.check(but=("exports",))


# --- interruptions ----------------------------------------------------------------------------------------------------

STAGES = ["locks", "prerequisites", "stop", "snapshot", "start", "send", "verify", "publish", "cleanup"]


@pytest.mark.parametrize("when", [StageStarted, StageFinished], ids=["begins", "ends"])
@pytest.mark.parametrize("stage", STAGES)
def test_an_export_that_is_cancelled_at_any_stage_is_undone_or_done(
    lab: Lab, unchanged: MakeUnchanged, stage: str, when: type[Event]
) -> None:
    lab.add_guest(runtime="scripted", running=False)
    runtime = ScriptedRuntime(running=[INSTANCE])
    earlier = lab.export(node="gamma", plugins=[runtime])
    assert earlier.export is not None
    check = unchanged(lab)
    token = diskhaul.CancellationToken()

    def cancel(event: Event) -> None:
        if isinstance(event, when) and getattr(event, "stage", "") == stage:
            token.cancel("the operator changed their mind")

    try:
        result = lab.export(plugins=[runtime], on_event=cancel, cancel=token)
    except diskhaul.InterruptedRunError as error:
        assert error.exit_code == 130  # noqa: PT017  # which ending is right is what is tested here
        assert "the operator changed their mind" in str(error)  # noqa: PT017
        assert (stage, when) not in [("publish", StageFinished), ("cleanup", StageStarted), ("cleanup", StageFinished)]
        check.check()
        assert lab.listed() == [("gamma", earlier.export.export_id)]
    else:
        # Once published it stands; what is not cleaned up any more is told.
        assert stage in ("publish", "cleanup")
        assert result.export is not None
        assert ("beta", result.export.export_id) in lab.listed()
        if (stage, when) != ("cleanup", StageFinished):
            assert result.exit_code == 4
        check.check(but=("exports",))
    assert runtime.running == {INSTANCE}


def test_an_export_that_is_cancelled_while_it_sends_is_undone(lab: Lab, unchanged: MakeUnchanged) -> None:
    guest = lab.add_guest(disks=2)
    check = unchanged(lab)
    token = diskhaul.CancellationToken()

    def cancel(event: Event) -> None:
        if isinstance(event, DiskProgress):
            token.cancel()

    with pytest.raises(diskhaul.InterruptedRunError):
        lab.export(on_event=cancel, cancel=token, chunk_size=64 << 10)

    assert guest.running
    check.check()


SIGNALS = """
import os, signal, sys, time
from diskhaul.cli import main
from diskhaul.cli.invocation import Invocation

stage, count, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
inner = Invocation.on_event

def on_event(self, event):
    inner(self, event)
    if getattr(event, "stage", "") == stage and event.kind == "stage-started":
        for _ in range(count):
            os.kill(os.getpid(), number)
        while not self.cancel.cancelled:
            time.sleep(0.001)

Invocation.on_event = on_event
sys.argv = ["diskhaul", *sys.argv[4:]]
main()
"""


@pytest.mark.parametrize(
    ("stage", "count", "number"),
    [
        ("stop", 1, signal.SIGINT),
        ("snapshot", 2, signal.SIGINT),
        ("send", 1, signal.SIGINT),
        ("send", 2, signal.SIGINT),
        ("verify", 1, signal.SIGTERM),
        ("snapshot", 1, signal.SIGHUP),
    ],
    ids=str,
)
def test_signals_stop_the_command_line_cleanly_however_often_they_come(
    lab: Lab, unchanged: MakeUnchanged, stage: str, count: int, number: int
) -> None:
    guest = lab.add_guest()
    earlier = lab.export(node="gamma")
    assert earlier.export is not None
    config = lab.write_config()
    check = unchanged(lab)

    done = subprocess.run(
        [
            *(sys.executable, "-c", SIGNALS, stage, str(count), str(int(number))),
            *("--config", str(config), "export", "web1", "--node", "beta"),
        ],
        env=lab.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=_take_signals,
    )

    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert "stopping cleanly" in done.stderr
    assert guest.running
    check.check()
    assert lab.listed() == [("gamma", earlier.export.export_id)]


def _take_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


LIBRARY_INTERRUPT = """
import os, signal, sys, time
import diskhaul
from diskhaul.events import StageStarted

def on_event(event):
    if isinstance(event, StageStarted) and event.stage == "send":
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        while not token.cancelled:
            time.sleep(0.001)

token = diskhaul.CancellationToken()
try:
    diskhaul.export("web1", node="beta", config=sys.argv[1], on_event=on_event, cancel=token)
except KeyboardInterrupt:
    sys.exit(77)
"""


def test_ctrl_c_in_a_program_that_uses_the_library_is_raised_once_everything_is_as_before(
    lab: Lab, unchanged: MakeUnchanged
) -> None:
    guest = lab.add_guest()
    config = lab.write_config()
    check = unchanged(lab)

    done = subprocess.run(
        [sys.executable, "-c", LIBRARY_INTERRUPT, str(config)],
        env=lab.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=_take_signals,
    )

    assert done.returncode == 77, done.stderr
    assert guest.running
    check.check()
    assert lab.listed() == []
