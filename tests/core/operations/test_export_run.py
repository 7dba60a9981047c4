"""What an export does about calls that end too late, locks that are lost, and a journal that cannot be written."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

import diskhaul
from diskhaul.api import ExportStore, LockMode
from diskhaul.events import DiskProgress, Event, GuestChanged, StageFinished, StageStarted, Warned
from diskhaul.journal import Journal
from diskhaul.operations.base import LockLevel, LockSet, RunContext
from diskhaul.testing import ScriptedRuntime

if TYPE_CHECKING:
    from .conftest import CopySnapshots, SmallCluster

INSTANCE = "web1.example.com"
END_S = 30.0


class Gate:
    """Calls wait here until `open`; `waited` says that one came."""

    def __init__(self) -> None:
        self._open, self.waited = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.waited.set()
        self._open.wait(END_S)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.open()


class Impatient(ScriptedRuntime):
    """Its calls soon count as hanging."""

    def longest_call_s(self, instance: diskhaul.Instance, /) -> float:
        return 0.1


def take_over(small: SmallCluster) -> LockSet:
    """What happens to a run that was stopped for longer than its lease: another one takes its locks, and recovers."""
    for record in (small.state_dir / "locks").glob("*@*"):
        record.unlink()
    context = RunContext(small.cluster(), plugins=small.plugins)
    locks = LockSet(context, "somebody else")
    locks.acquire(LockLevel.INSTANCE, {INSTANCE: LockMode.EXCLUSIVE}, 10.0)
    for run in context.journal.unfinished(INSTANCE):
        for note in run.notes:
            context.journal.strike(note.note_id)
    return locks


def at(stage: str, action: Callable[[], object], kind: type[Event] = StageStarted) -> Callable[[Event], None]:
    def listen(event: Event) -> None:
        if isinstance(event, kind) and getattr(event, "stage", "") == stage:
            action()

    return listen


# --- calls that were left behind --------------------------------------------------------------------------------------


def test_a_snapshot_that_appears_after_its_call_was_left_behind_is_removed_by_recover(
    small: SmallCluster, copy_snapshots: type[CopySnapshots], gate: Gate, calls_end: Callable[[], None]
) -> None:
    small.snapshots = copy_snapshots(lambda call: gate.wait() if call == "create" else None)
    with pytest.raises(diskhaul.SnapshotError, match="did not return within") as failed:
        small.export(stall_timeout_s=0.1)
    assert any("'diskhaul recover' tries again" in note for note in failed.value.__notes__)
    assert small.runtime.running == {INSTANCE}
    assert small.notes() == ["snapshot"]
    assert small.leftovers() == []
    gate.open()
    calls_end()
    assert len(small.leftovers()) == 1, "it has been made after all"
    assert small.recover().exit_code == 0
    assert (small.leftovers(), small.unfinished(), small.listed()) == ([], 0, [])


def test_a_publish_that_ends_after_its_export_was_given_up_leaves_nothing_listed(
    small: SmallCluster, gate: Gate, calls_end: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diskhaul_plugins.transfers.directory import DirectoryWriter

    write = DirectoryWriter._write_manifest

    def late(writer: DirectoryWriter, manifest: bytes) -> None:
        gate.wait()
        write(writer, manifest)

    monkeypatch.setattr(DirectoryWriter, "_write_manifest", late)
    with pytest.raises(diskhaul.OperationFailedError, match="publish did not return within") as failed:
        small.export(stall_timeout_s=0.3)
    assert "'diskhaul recover'" in "\n".join(failed.value.__notes__)
    assert small.runtime.running == {INSTANCE}
    assert small.notes() == ["partial"]
    gate.open()
    calls_end()
    assert (small.listed(), small.leftovers()) == ([], [])
    assert small.recover().exit_code == 0
    assert (small.listed(), small.unfinished()) == ([], 0)


class LateStore:
    """A plugin's transfer whose writer cannot take an abort into account while it publishes: it waits at the gate, then does."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.ended = threading.Event()

    @diskhaul.hookimpl
    def diskhaul_transfers(self) -> Iterator[diskhaul.TransferSpec]:
        from diskhaul_plugins.transfers.directory import DirectoryTransfer

        late = self

        class Writer:
            def __init__(self, inner: Any) -> None:
                self._inner = inner

            def __getattr__(self, name: str) -> Any:
                return getattr(self._inner, name)

            def publish(self, manifest: bytes, /) -> None:
                late._gate.wait()
                self._inner.publish(manifest)
                late.ended.set()

            def abort(self) -> None:
                if not late._gate.waited.is_set():
                    self._inner.abort()

        class Store:
            def __init__(self, inner: ExportStore) -> None:
                self._inner = inner

            def __getattr__(self, name: str) -> Any:
                return getattr(self._inner, name)

            def begin(self, instance: str, export_id: str, /) -> Writer:
                return Writer(self._inner.begin(instance, export_id))

        class Transfer(DirectoryTransfer):
            def store(self, node: diskhaul.Node, /) -> Any:
                return Store(super().store(node))

        yield diskhaul.TransferSpec(name="late", create=Transfer)


def test_an_export_that_appears_after_it_was_given_up_is_removed_by_recover(
    small: SmallCluster, gate: Gate, calls_end: Callable[[], None]
) -> None:
    store = LateStore(gate)
    with pytest.raises(diskhaul.OperationFailedError, match="publish did not return within"):
        small.export(stall_timeout_s=0.3, config=small.cluster(backends={"transfer": "late"}), plugins=[store])
    assert small.listed() == []
    gate.open()
    assert store.ended.wait(END_S)
    calls_end()
    assert len(small.listed()) == 1, "it has been published after all, though it was reported as failed"
    assert small.recover().exit_code == 0
    assert (small.listed(), small.leftovers(), small.unfinished()) == ([], [], 0)


def test_a_freeze_that_ends_too_late_is_told_and_undone_by_recover(
    small: SmallCluster, gate: Gate, calls_end: Callable[[], None]
) -> None:
    class LateFreeze(Impatient):
        def freeze(self, instance: diskhaul.Instance, /) -> object:
            gate.wait()
            return super().freeze(instance)

    small.runtime = LateFreeze(running={INSTANCE}, can_freeze=True)
    result = small.export(shutdown=False)
    assert (result.exit_code, result.consistency) == (4, "crash")
    assert any("'diskhaul recover' thaws the guest once more" in line for line in result.incomplete)
    gate.open()
    calls_end()
    assert small.runtime.frozen == {INSTANCE}
    assert small.recover().exit_code == 0
    assert (small.runtime.frozen, small.unfinished()) == (set(), 0)


@pytest.mark.parametrize("shutdown", [True, False])
def test_a_guest_is_thawed_or_started_before_what_there_is_of_a_failed_snapshot_is_removed(
    small: SmallCluster, copy_snapshots: type[CopySnapshots], shutdown: bool
) -> None:
    order: list[str] = []

    class Told(ScriptedRuntime):
        def thaw(self, instance: diskhaul.Instance, /) -> object:
            order.append("guest")
            return super().thaw(instance)

        def start(self, instance: diskhaul.Instance, /) -> object:
            order.append("guest")
            return super().start(instance)

    def snapshot(call: str) -> None:
        if call == "create":
            raise diskhaul.SnapshotError("no room")
        if call == "remove":
            order.append("remove")

    small.runtime, small.snapshots = Told(running={INSTANCE}, can_freeze=True), copy_snapshots(snapshot)
    with pytest.raises(diskhaul.SnapshotError, match="no room"):
        small.export(shutdown=shutdown)
    assert order == ["guest", "remove"]
    assert (small.runtime.running, small.runtime.frozen, small.unfinished()) == ({INSTANCE}, set(), 0)


def test_disks_are_deactivated_after_an_activation_that_failed_in_the_middle(small: SmallCluster) -> None:
    small.runtime = ScriptedRuntime(inactive={INSTANCE}, fail_after={"activate_disks": {1}})
    with pytest.raises(diskhaul.GuestError, match="scripted failure after activate_disks"):
        small.export()
    assert (small.runtime.active, small.unfinished()) == (set(), 0)


def test_disks_whose_activation_ends_too_late_are_deactivated_by_recover(
    small: SmallCluster, gate: Gate, calls_end: Callable[[], None]
) -> None:
    class LateActivation(Impatient):
        def activate_disks(self, instance: diskhaul.Instance, /) -> bool:
            gate.wait()
            return super().activate_disks(instance)

    small.runtime = LateActivation(inactive={INSTANCE})
    with pytest.raises(diskhaul.GuestError, match="activate_disks did not return"):
        small.export()
    gate.open()
    calls_end()
    assert small.runtime.active == {INSTANCE}
    assert small.recover().exit_code == 0
    assert (small.runtime.active, small.unfinished()) == (set(), 0)


def test_a_stop_that_ends_too_late_is_undone_by_the_next_export(
    small: SmallCluster, gate: Gate, calls_end: Callable[[], None]
) -> None:
    class LateStop(Impatient):
        def stop(self, instance: diskhaul.Instance, /, *, timeout_s: float) -> object:
            gate.wait()
            return super().stop(instance, timeout_s=timeout_s)

    small.runtime = LateStop(running={INSTANCE})
    heard: list[str] = []
    with pytest.raises(diskhaul.GuestError, match="cannot stop it"):
        small.export(shutdown_timeout_s=0.0, on_event=lambda e: heard.append(e.message) if isinstance(e, Warned) else None)
    assert any("if it goes down, 'diskhaul recover' starts it" in message for message in heard)
    assert small.notes() == ["guest"]
    gate.open()
    calls_end()
    assert small.runtime.running == set()
    result = small.export()
    assert (result.exit_code, result.plan.running) == (0, True)
    assert (small.runtime.running, small.unfinished()) == ({INSTANCE}, 0)


def test_a_cancelled_export_whose_thread_hangs_is_an_interrupted_one(
    small: SmallCluster, gate: Gate, calls_end: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diskhaul_plugins.transfers.directory import DirectoryFile

    def hang(file: DirectoryFile, parts: object, /) -> None:
        gate.wait()
        raise OSError(5, "too late")

    monkeypatch.setattr(DirectoryFile, "append", hang)
    monkeypatch.setattr("diskhaul.pipeline.workers.CANCEL_GRACE_S", 0.2)
    token = diskhaul.CancellationToken()

    def cancel() -> None:
        if gate.waited.wait(END_S):
            token.cancel("the operator")

    threading.Thread(target=cancel).start()
    with pytest.raises(diskhaul.InterruptedRunError, match=r"interrupted: the operator; .* hangs .* nothing moved for") as raised:
        small.export(cancel=token)
    assert raised.value.exit_code == 130
    assert small.runtime.running == {INSTANCE}
    gate.open()
    calls_end()
    assert (small.listed(), small.leftovers()) == ([], [])


# --- locks that are lost ----------------------------------------------------------------------------------------------


def test_a_run_that_lost_its_lock_does_not_start_the_others_guest(small: SmallCluster) -> None:
    others: list[LockSet] = []

    def lose(event: Event) -> None:
        if isinstance(event, GuestChanged) and event.change == "stopped":
            others.append(take_over(small))

    with pytest.raises(diskhaul.DiskhaulError, match="lost"):
        small.export(on_event=lose)
    assert small.runtime.count("start") == 0
    assert small.listed() == []
    others[0].check()
    others[0].release()


def test_a_run_that_lost_its_lock_does_not_deactivate_the_others_disks(small: SmallCluster) -> None:
    small.runtime = ScriptedRuntime(inactive={INSTANCE})
    others: list[LockSet] = []
    with pytest.raises(diskhaul.DiskhaulError, match="lost"):
        small.export(on_event=at("send", lambda: others.append(take_over(small))))
    assert small.runtime.active == {INSTANCE}
    others[0].release()


# --- a journal that cannot be written ---------------------------------------------------------------------------------


def full(*_: object) -> None:
    raise sqlite3.OperationalError("database or disk is full")


def test_a_journal_that_cannot_be_finished_does_not_hide_what_failed(
    small: SmallCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.runtime = ScriptedRuntime(running={INSTANCE}, fail={"start": range(1, 100)})
    monkeypatch.setattr(Journal, "finish", full)
    with pytest.raises(diskhaul.GuestError, match=r"IS DOWN: .* scripted failure of start number 1"):
        small.export()


def test_a_journal_that_cannot_be_finished_does_not_fail_the_export(small: SmallCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Journal, "finish", full)
    result = small.export()
    assert result.export is not None
    assert small.listed() == [("beta", result.export.export_id)]


def test_an_export_that_was_published_stands_when_the_journal_cannot_say_so(
    small: SmallCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        # The last note to be struck, within the stage: everything else has been given back by then.
        result = small.export(on_event=at("publish", lambda: broken.setattr(Journal, "strike", full)))
    assert result.exit_code == 4
    assert any("disk is full" in line and "recover" in line for line in result.incomplete)
    assert result.export is not None
    assert small.notes() == ["partial"]
    assert "was kept" in small.recover().done[0]
    assert small.listed() == [("beta", result.export.export_id)]


# --- the instance is to be removed ------------------------------------------------------------------------------------


def test_a_guest_that_somebody_started_during_the_read_back_is_not_removed(small: SmallCluster) -> None:
    class Careless(ScriptedRuntime):
        """Removes what runs."""

        def remove(self, instance: diskhaul.Instance, /) -> object:
            self.removed.add(instance.name)
            return None

    small.runtime = Careless(running={INSTANCE})
    result = small.export(remove_instance=True, on_event=at("verify", lambda: small.runtime.running.add(INSTANCE)))
    assert (result.exit_code, small.runtime.removed) == (4, set())
    assert any("was started by somebody else" in line for line in result.incomplete)
    assert result.export is not None
    assert (small.listed(), small.unfinished()) == ([("beta", result.export.export_id)], 0)


def test_an_instance_is_not_removed_once_the_lock_is_lost(small: SmallCluster) -> None:
    others: list[LockSet] = []
    lose = at("publish", lambda: others.append(take_over(small)), StageFinished)
    result = small.export(remove_instance=True, on_event=lose)
    assert (result.exit_code, small.runtime.removed, small.runtime.count("remove")) == (4, set(), 0)
    assert any("the instance was not removed" in line for line in result.incomplete)
    others[0].release()


def test_a_plugin_that_ends_the_process_after_publishing_does_not_take_the_export_with_it(small: SmallCluster) -> None:
    class Leaving:
        @property
        def removes_exports(self) -> bool:
            raise SystemExit(0)

        @diskhaul.hookimpl
        def diskhaul_cleanups(self) -> Iterator[diskhaul.CleanupSpec]:
            yield diskhaul.CleanupSpec(name="leaving", create=lambda context: self)

        def superseded(self, new: object, existing: object, /) -> object:
            return ()

    result = small.export(config=small.cluster(backends={"cleanup": "leaving"}), plugins=[Leaving()])
    assert result.exit_code == 4
    assert len(small.listed()) == 1


# --- what is warned of ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("disks", "freezes", "warned"), [(2, False, True), (2, True, False), (1, False, False)])
def test_disks_that_are_snapshotted_one_after_the_other_while_the_guest_runs_are_warned_of(
    small: SmallCluster, disks: int, freezes: bool, warned: bool
) -> None:
    small.disk_count = disks
    small.runtime = ScriptedRuntime(running={INSTANCE}, can_freeze=freezes)
    result = small.export(shutdown=False)
    assert result.exit_code == 0
    assert any("one after the other: each is crash-consistent by itself" in line for line in result.warnings) == warned
    assert result.consistency == ("filesystem" if freezes else "crash")


# --- listeners --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["stopped", "started"])
def test_a_listener_that_blocks_for_ever_does_not_keep_the_guest_down(
    small: SmallCluster, gate: Gate, calls_end: Callable[[], None], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr("diskhaul.feedback.PATIENCE_S", 0.1)
    heard: list[Event] = []

    def block(event: Event) -> None:
        heard.append(event)
        if isinstance(event, GuestChanged) and event.change == change:
            gate.wait()

    result = small.export(on_event=block)
    assert result.exit_code == 0
    assert small.runtime.running == {INSTANCE}
    assert (small.unfinished(), len(small.listed())) == (0, 1)
    behind = len(heard)
    gate.open()
    calls_end()
    assert [event for event in heard[behind:] if isinstance(event, DiskProgress)] == [], "progress is left out meanwhile"
    stages = [event.stage for event in heard if isinstance(event, StageFinished)]
    assert stages[-3:] == ["verify", "publish", "cleanup"], "everything else comes, in order"


def test_a_listener_may_run_an_operation_of_its_own(small: SmallCluster) -> None:
    seen: list[int] = []
    small.exported(on_event=at("publish", lambda: seen.append(len(small.listed())), StageFinished))
    assert seen == [1]
