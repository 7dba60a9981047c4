"""What a run left that is gone is finished or undone, once, and nothing else is touched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import diskhaul
from diskhaul.events import Event, ExportRemoved, StageStarted
from diskhaul.journal import Journal
from diskhaul.testing import ScriptedRuntime

if TYPE_CHECKING:
    from .conftest import SmallCluster

INSTANCE = "web1.example.com"
UNPUBLISHED = "20261122T103308Z-1a2b3c4d"
END_S = 30.0


def left(small: SmallCluster, kind: Any, data: dict[str, Any], *, run_id: str = "run-1", operation: str = "export") -> None:
    """What a run that was killed would have left."""
    small.state_dir.mkdir(mode=0o700, exist_ok=True)
    Journal(small.state_dir).begin_with(run_id, operation, INSTANCE, kind, data)


class GoesDownLater(ScriptedRuntime):
    """A guest whose shutdown is under way: it is down once it has been asked for `after` times."""

    def __init__(self, after: int) -> None:
        super().__init__(running={INSTANCE})
        self._left = after

    def is_running(self, instance: diskhaul.Instance, /) -> bool:
        self._left -= 1
        if self._left == 0:
            self.running.discard(instance.name)
        return super().is_running(instance)


# --- guests -----------------------------------------------------------------------------------------------------------


def test_a_guest_whose_stop_was_never_confirmed_is_watched_and_started(small: SmallCluster) -> None:
    small.runtime = GoesDownLater(after=5)
    left(small, "guest", {"instance": INSTANCE, "timeout_s": 0.5, "since": time.time()})
    result = small.recover()
    assert (result.exit_code, result.done) == (0, (f"{INSTANCE} runs again",))
    assert (small.runtime.running, small.runtime.count("start"), small.unfinished()) == ({INSTANCE}, 1, 0)


def test_a_guest_that_never_went_down_is_not_said_to_run_again(small: SmallCluster) -> None:
    small.runtime = ScriptedRuntime(running={INSTANCE})
    left(small, "guest", {"instance": INSTANCE, "timeout_s": 0.5, "since": time.time(), "stopped": True})
    told: list[Any] = []
    result = diskhaul.recover(config=small.cluster(), plugins=small.plugins, on_event=told.append)
    assert result.done == (f"{INSTANCE} was running and had not gone down",)
    assert small.runtime.count("start") == 0
    warnings = [event.message for event in told if isinstance(event, diskhaul.events.Warned)]
    assert warnings == [f"left by an earlier run: {result.done[0]}"]


@pytest.mark.parametrize("hours", [-5, 5], ids=["long-ago", "clock-set-back"])
def test_a_guest_is_watched_for_no_longer_than_its_shutdown_may_take(
    small: SmallCluster, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    watched: list[float] = []
    monkeypatch.setattr("diskhaul.operations.guest.GuestKeeper._watch", lambda self, seconds: watched.append(seconds))
    left(small, "guest", {"instance": INSTANCE, "timeout_s": 60.0, "since": time.time() + hours * 3600})
    assert small.recover().exit_code == 0
    assert watched == [1.0 if hours < 0 else 70.0]


def test_a_guest_that_was_seen_stopped_is_started_and_not_watched(small: SmallCluster) -> None:
    small.runtime = ScriptedRuntime()
    left(small, "guest", {"instance": INSTANCE, "timeout_s": 3600.0, "since": time.time(), "stopped": True})
    assert small.recover().exit_code == 0
    assert small.runtime.running == {INSTANCE}


def test_a_guest_that_does_not_start_stays_noted_and_the_rest_is_done(small: SmallCluster) -> None:
    small.runtime = ScriptedRuntime(fail={"start": range(1, 5)})
    left(small, "guest", {"instance": INSTANCE, "timeout_s": 60.0, "since": time.time(), "stopped": True})
    left(small, "partial", {"node": "beta", "instance": INSTANCE, "export_id": UNPUBLISHED}, run_id="run-2")
    first = small.recover()
    assert first.exit_code == 4
    assert "IS DOWN" in first.incomplete[0]
    assert small.notes() == ["guest"]
    second = small.recover()
    assert (second.exit_code, small.notes(), small.runtime.running) == (0, [], {INSTANCE})


def test_a_thaw_is_retried(small: SmallCluster) -> None:
    small.runtime = ScriptedRuntime(running={INSTANCE}, can_freeze=True, fail={"thaw": {1, 2}})
    small.runtime.frozen.add(INSTANCE)
    left(small, "frozen", {"instance": INSTANCE})
    assert small.recover().done == (f"{INSTANCE} was thawed",)
    assert (small.runtime.frozen, small.notes()) == (set(), [])


def test_a_call_that_hangs_while_recovering_ends_after_the_runtimes_own_time(
    small: SmallCluster, calls_end: Callable[[], None]
) -> None:
    release = threading.Event()

    class Hanging(ScriptedRuntime):
        def longest_call_s(self, instance: diskhaul.Instance, /) -> float:
            return 0.05

        def deactivate_disks(self, instance: diskhaul.Instance, /) -> object:
            return release.wait(END_S)

    small.runtime = Hanging()
    left(small, "disks", {"instance": INSTANCE})
    result = small.recover()
    release.set()
    calls_end()
    assert "did not return within 0.05 s" in result.incomplete[0]
    assert small.notes() == ["disks"]


def test_what_another_run_has_settled_meanwhile_is_left_alone(small: SmallCluster) -> None:
    """As when this process was stopped for longer than its lease, with the notes read already."""
    small.runtime = ScriptedRuntime()
    left(small, "disks", {"instance": INSTANCE})
    left(small, "guest", {"instance": INSTANCE, "timeout_s": 1.0, "since": 0.0, "stopped": True}, run_id="run-2")

    class Settles(ScriptedRuntime):
        def deactivate_disks(self, instance: diskhaul.Instance, /) -> object:
            journal = Journal(small.state_dir)
            for run in journal.unfinished(INSTANCE):
                for note in run.notes:
                    journal.strike(note.note_id)
            return super().deactivate_disks(instance)

    small.runtime = Settles()
    assert small.recover().exit_code == 0
    assert (small.runtime.running, small.runtime.count("start"), small.unfinished()) == (set(), 0, 0)


def test_a_recovery_that_lost_its_lock_goes_on_with_nothing(small: SmallCluster) -> None:
    class Loses(ScriptedRuntime):
        def deactivate_disks(self, instance: diskhaul.Instance, /) -> object:
            for record in (small.state_dir / "locks").glob("*@*"):
                record.unlink()
            return super().deactivate_disks(instance)

    small.runtime = Loses()
    left(small, "disks", {"instance": INSTANCE})
    left(small, "guest", {"instance": INSTANCE, "timeout_s": 1.0, "since": 0.0, "stopped": True}, run_id="run-2")
    with pytest.raises(diskhaul.LockError, match="lost"):
        small.recover()
    assert (small.runtime.running, small.notes()) == (set(), ["guest"])


@pytest.mark.parametrize("action", ["start", "stop"])
def test_a_guest_that_was_started_or_stopped_by_hand_is_owed_no_start(small: SmallCluster, action: Any) -> None:
    small.runtime = ScriptedRuntime()
    left(small, "guest", {"instance": INSTANCE, "timeout_s": 60.0, "since": time.time(), "stopped": True})
    diskhaul.guest(action, INSTANCE, config=small.cluster(), plugins=small.plugins)
    assert small.unfinished() == 0
    small.runtime.running.clear()
    assert small.recover().exit_code == 0
    assert small.runtime.running == set()


def test_a_guest_whose_stop_may_still_come_is_owed_a_start_after_one_by_hand(small: SmallCluster) -> None:
    left(small, "guest", {"instance": INSTANCE, "timeout_s": 60.0, "since": time.time()})
    diskhaul.guest("start", INSTANCE, config=small.cluster(), plugins=small.plugins)
    assert small.notes() == ["guest"]


def test_a_guest_that_another_cluster_was_told_to_start_stays_noted_whatever_is_done_by_hand(small: SmallCluster) -> None:
    small.runtime = ScriptedRuntime()
    left(small, "moving", {})
    Journal(small.state_dir).note("run-1", "guest", {"instance": INSTANCE, "timeout_s": 1.0, "since": 0.0, "stopped": True})
    diskhaul.guest("stop", INSTANCE, config=small.cluster(), plugins=small.plugins)
    assert small.notes() == ["moving", "guest"]


# --- disks ------------------------------------------------------------------------------------------------------------


def test_the_disks_of_a_running_guest_stay_active(small: SmallCluster) -> None:
    small.runtime.active.add(INSTANCE)
    left(small, "disks", {"instance": INSTANCE})
    assert small.recover().done == (f"{INSTANCE} is running; its disks stay active",)
    assert small.runtime.active == {INSTANCE}


@pytest.mark.parametrize("active_before", [False, True])
def test_only_disks_that_the_run_activated_would_be_deactivated_by_recover(small: SmallCluster, active_before: bool) -> None:
    small.runtime = ScriptedRuntime(inactive={INSTANCE})
    if active_before:
        small.runtime.active.add(INSTANCE)
    noted: list[bool] = []

    def look(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "send":
            noted.append("disks" in small.notes())

    small.exported(on_event=look)
    assert noted == [not active_before]
    assert small.runtime.active == ({INSTANCE} if active_before else set())


# --- exports ----------------------------------------------------------------------------------------------------------


def test_an_export_that_had_been_published_is_kept_and_that_is_said(small: SmallCluster) -> None:
    export = small.exported()
    left(small, "partial", {"node": "beta", "instance": INSTANCE, "export_id": export.export_id})
    (done,) = small.recover().done
    assert "had been published; it is whole, and was kept" in done
    assert small.listed() == [("beta", export.export_id)]


def test_an_export_that_was_given_up_is_removed_also_when_it_appeared_later(small: SmallCluster) -> None:
    export = small.exported()
    left(small, "partial", {"node": "beta", "instance": INSTANCE, "export_id": export.export_id, "given_up": True})
    (done,) = small.recover().done
    assert "was removed" in done
    assert small.listed() == []


def test_a_removal_that_had_not_begun_is_not_made(small: SmallCluster) -> None:
    export = small.exported()
    noted = {"node": "beta", "instance": INSTANCE, "export_id": export.export_id}
    left(small, "removing", noted, operation="removal")
    events: list[Event] = []
    (done,) = small.recover(on_event=events.append).done
    assert "had not begun; it was kept" in done
    assert not [event for event in events if isinstance(event, ExportRemoved)]
    assert small.listed() == [("beta", export.export_id)]
    assert small.unfinished() == 0


def test_a_removal_that_is_going_on_is_not_taken_for_a_dead_one(small: SmallCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    from diskhaul_plugins.transfers.directory import DirectoryStore

    export = small.exported()
    remove = DirectoryStore.remove
    meanwhile: list[diskhaul.RecoverResult] = []

    def recovered_meanwhile(store: DirectoryStore, instance: str, export_id: str, /) -> None:
        assert small.notes() == ["removing"]
        meanwhile.append(small.recover())
        assert small.notes() == ["removing"]
        remove(store, instance, export_id)

    monkeypatch.setattr(DirectoryStore, "remove", recovered_meanwhile)
    diskhaul.remove(f"{INSTANCE}@{export.export_id}", config=small.cluster(), plugins=small.plugins)
    ((line,),) = (result.incomplete for result in meanwhile)
    assert "a removal is still going on" in line
    assert meanwhile[0].exit_code == 4
    assert (small.listed(), small.unfinished()) == ([], 0)


def test_a_node_that_is_gone_is_told_and_the_other_notes_are_acted_on(small: SmallCluster) -> None:
    small.runtime = ScriptedRuntime()
    left(small, "partial", {"node": "omega", "instance": INSTANCE, "export_id": UNPUBLISHED})
    left(small, "guest", {"instance": INSTANCE, "timeout_s": 1.0, "since": 0.0, "stopped": True}, run_id="run-2")
    result = small.recover()
    assert (result.exit_code, result.done) == (4, (f"{INSTANCE} runs again",))
    assert "node omega is no longer configured" in result.incomplete[0]


# --- again ------------------------------------------------------------------------------------------------------------


def test_recovering_again_changes_nothing(small: SmallCluster) -> None:
    small.runtime = ScriptedRuntime()
    left(small, "guest", {"instance": INSTANCE, "timeout_s": 1.0, "since": time.time(), "stopped": True})
    left(small, "partial", {"node": "beta", "instance": INSTANCE, "export_id": UNPUBLISHED}, run_id="run-2")
    assert len(small.recover().done) == 2
    calls = list(small.runtime.calls)
    again = small.recover()
    assert (again.exit_code, again.done, again.incomplete) == (0, (), ())
    assert small.runtime.calls == calls


def test_a_plan_makes_no_journal_and_no_state_directory(small: SmallCluster) -> None:
    small.runtime = ScriptedRuntime()
    plan = diskhaul.plan(INSTANCE, node="beta", config=small.cluster(), plugins=small.plugins)
    assert not plan.running
    assert not small.state_dir.exists()
    left(small, "guest", {"instance": INSTANCE, "timeout_s": 1.0, "since": time.time(), "stopped": True})
    again = diskhaul.plan(INSTANCE, node="beta", config=small.cluster(), plugins=small.plugins)
    assert again.running, "a guest that a dead run left down counts as running"
