"""A guest that was running is running again, and thawed, whatever its runtime does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diskhaul.errors import GuestError, OperationFailedError, StorageError
from diskhaul.feedback import Feedback
from diskhaul.host import PluginHost
from diskhaul.journal import Journal
from diskhaul.model import Cluster, Instance
from diskhaul.operations.guest import GuestHangsError, GuestKeeper, guest_runs
from diskhaul.testing import ScriptedRuntime

INSTANCE = "web1.example.com"
LONG_S = 30.0


class Desk:
    """A keeper with what it needs, all of it real but the guest."""

    def __init__(self, path: Path, runtime: Any) -> None:
        self.journal = Journal(path / "state")
        self.journal.begin("run-1", "export", INSTANCE)
        self.feedback = Feedback("run-1", PluginHost(Cluster(name="lab", state_dir=path / "state")), None)
        self.instance = Instance(name=INSTANCE, node="alpha", runtime="scripted", disks=[])
        self.keeper = GuestKeeper(runtime, self.instance, self.journal, "run-1", self.feedback)

    def notes(self) -> list[tuple[str, bool]]:
        """Kind of each note, and whether it says that the guest was seen to be stopped."""
        return [(note.kind, bool(note.data.get("stopped"))) for run in self.journal.unfinished() for note in run.notes]


@pytest.fixture
def desk(tmp_path: Path) -> Callable[[Any], Desk]:
    return lambda runtime: Desk(tmp_path, runtime)


class SlowShutdown(ScriptedRuntime):
    """Its stop fails after `stop_s`; the guest goes down all the same, when it has been asked for `after` more times."""

    def __init__(self, *, after: int, stop_s: float = 0.0) -> None:
        super().__init__(running={INSTANCE})
        self._after, self._stop_s = after, stop_s
        self._left = -1

    def stop(self, instance: Instance, /, *, timeout_s: float) -> object:
        self._left = self._after
        threading.Event().wait(self._stop_s)
        raise GuestError(f"{instance.name}: did not shut down within {timeout_s:g} s")

    def is_running(self, instance: Instance, /) -> bool:
        if self._left == 0:
            self.running.discard(instance.name)
        self._left -= 1
        return super().is_running(instance)


class Hanging(ScriptedRuntime):
    """One call of it hangs until `release`, then does its work."""

    def __init__(self, call: str, *, longest_s: float = 0.05, **more: Any) -> None:
        super().__init__(running={INSTANCE}, **more)
        self._hangs, self._longest_s = call, longest_s
        self.release, self.ended = threading.Event(), threading.Event()

    def longest_call_s(self, instance: Instance, /) -> float:
        return self._longest_s

    def _wait(self, call: str) -> None:
        if call == self._hangs and not self.release.is_set():
            self.release.wait(LONG_S)

    def stop(self, instance: Instance, /, *, timeout_s: float) -> object:
        self._wait("stop")
        super().stop(instance, timeout_s=timeout_s)
        self.ended.set()
        return None

    def start(self, instance: Instance, /) -> object:
        self._wait("start")
        return super().start(instance)

    def freeze(self, instance: Instance, /) -> object:
        self._wait("freeze")
        super().freeze(instance)
        self.ended.set()
        return None


@pytest.fixture
def hanging() -> Iterator[Callable[..., Hanging]]:
    made: list[Hanging] = []

    def make(*arguments: Any, **more: Any) -> Hanging:
        made.append(Hanging(*arguments, **more))
        return made[-1]

    yield make
    for runtime in made:
        runtime.release.set()


# --- down and up ------------------------------------------------------------------------------------------------------


def test_a_guest_is_stopped_and_started_and_owes_nothing(desk: Callable[[Any], Desk]) -> None:
    runtime = ScriptedRuntime(running={INSTANCE})
    d = desk(runtime)
    d.keeper.stop(LONG_S)
    assert d.keeper.owes_start
    assert d.notes() == [("guest", True)]
    d.keeper.bring_back()
    d.keeper.bring_back()
    assert not d.keeper.owes_start
    assert (runtime.running, runtime.count("start"), d.notes()) == ({INSTANCE}, 1, [])
    assert d.keeper.down_s > 0


def test_what_is_owed_is_noted_before_the_stop(desk: Callable[[Any], Desk]) -> None:
    seen: list[list[tuple[str, bool]]] = []

    class Looking(ScriptedRuntime):
        def stop(self, instance: Instance, /, *, timeout_s: float) -> object:
            seen.append(d.notes())
            return super().stop(instance, timeout_s=timeout_s)

    d = desk(Looking(running={INSTANCE}))
    before = time.time()
    d.keeper.stop(7.0)
    assert seen == [[("guest", False)]]
    (run,) = d.journal.unfinished()
    assert run.notes[0].data["timeout_s"] == 7.0
    assert before <= run.notes[0].data["since"] <= time.time()


def test_a_guest_that_goes_down_after_its_stop_had_failed_is_started_again(
    desk: Callable[[Any], Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diskhaul.operations.guest._SETTLE_S", 0.5)
    runtime = SlowShutdown(after=5)
    d = desk(runtime)
    with pytest.raises(GuestError, match="did not shut down"):
        d.keeper.stop(LONG_S)
    d.keeper.bring_back()
    assert (runtime.running, runtime.count("start"), d.notes()) == ({INSTANCE}, 1, [])


def test_a_guest_is_watched_for_as_long_as_its_stop_took(desk: Callable[[Any], Desk], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diskhaul.operations.guest._SETTLE_S", 0.0)
    runtime = SlowShutdown(after=5, stop_s=0.4)
    d = desk(runtime)
    with pytest.raises(GuestError, match="did not shut down"):
        d.keeper.stop(LONG_S)
    d.keeper.bring_back()
    assert (runtime.running, runtime.count("start")) == ({INSTANCE}, 1)


def test_after_a_shutdown_that_ran_out_of_time_the_note_stays_and_recover_is_named(desk: Callable[[Any], Desk]) -> None:
    d = desk(SlowShutdown(after=1_000_000))
    with pytest.raises(GuestError, match="did not shut down"):
        d.keeper.stop(0.0)
    d.keeper.bring_back()
    assert not d.keeper.owes_start
    assert d.notes() == [("guest", False)]
    assert any("may still come: if it goes down, 'diskhaul recover' starts it" in line for line in d.feedback.warnings)


def test_a_stop_that_hangs_is_left_behind_and_its_note_stays(
    desk: Callable[[Any], Desk], hanging: Callable[..., Hanging]
) -> None:
    runtime = hanging("stop")
    d = desk(runtime)
    with pytest.raises(GuestHangsError, match=r"cannot stop it: .* did not return"):
        d.keeper.stop(0.0)
    d.keeper.bring_back()
    assert runtime.running == {INSTANCE}
    assert d.notes() == [("guest", False)]
    assert any("recover" in line for line in d.feedback.warnings)
    runtime.release.set()
    assert runtime.ended.wait(LONG_S)
    assert runtime.running == set(), "the call left behind does its work, and the note is what is left to tell"


def test_the_shutdown_timeout_comes_on_top_of_the_longest_call(
    desk: Callable[[Any], Desk], hanging: Callable[..., Hanging]
) -> None:
    runtime = hanging("stop", longest_s=0.01)
    d = desk(runtime)
    threading.Timer(0.2, runtime.release.set).start()
    d.keeper.stop(LONG_S)
    assert runtime.running == set()


def test_the_runtime_says_how_long_a_start_may_take(desk: Callable[[Any], Desk], hanging: Callable[..., Hanging]) -> None:
    runtime = hanging("start", longest_s=0.05)
    d = desk(runtime)
    d.keeper.stop(LONG_S)
    with pytest.raises(GuestError, match=r"IS DOWN: it was tried 4 times to start it: .* did not return within 0\.05 s"):
        d.keeper.bring_back()
    assert d.keeper.owes_start
    assert d.notes() == [("guest", True)]
    runtime.release.set()
    d.keeper.bring_back()
    assert (runtime.running, d.notes()) == ({INSTANCE}, [])


def test_a_runtime_that_cannot_say_how_long_it_takes_still_gets_its_guest_back(desk: Callable[[Any], Desk]) -> None:
    class Mute(ScriptedRuntime):
        def longest_call_s(self, instance: Instance, /) -> float:
            raise TypeError("no idea")

    runtime = Mute(running={INSTANCE})
    d = desk(runtime)
    d.keeper.stop(LONG_S)
    d.keeper.bring_back()
    assert runtime.running == {INSTANCE}


def test_a_guest_whose_state_is_unknown_is_started_all_the_same(desk: Callable[[Any], Desk]) -> None:
    runtime = ScriptedRuntime(running={INSTANCE}, fail={"is_running": {2}})
    d = desk(runtime)
    d.keeper.stop(LONG_S)
    d.keeper.bring_back()
    assert (runtime.running, runtime.count("start"), d.notes()) == ({INSTANCE}, 1, [])
    assert any("it is started all the same" in line for line in d.feedback.warnings)


def test_a_guest_whose_state_stays_unknown_is_started_and_told_as_down(desk: Callable[[Any], Desk]) -> None:
    runtime = ScriptedRuntime(running={INSTANCE}, fail={"is_running": range(1, 100)})
    d = desk(runtime)
    with pytest.raises(GuestError, match="scripted failure of is_running"):
        d.keeper.stop(LONG_S)
    with pytest.raises(GuestError, match="IS DOWN"):
        d.keeper.bring_back()
    assert runtime.running == {INSTANCE}
    assert d.notes() == [("guest", False)]


def test_a_state_that_is_neither_true_nor_false_is_an_error(desk: Callable[[Any], Desk]) -> None:
    class Odd(ScriptedRuntime):
        def is_running(self, instance: Instance, /) -> bool:
            return "off"  # type: ignore[return-value]  # what a careless plugin does: a text is true

    with pytest.raises(GuestError, match="gave the state 'off' instead of True or False"):
        guest_runs(Odd(), desk(Odd()).instance)


def test_a_run_that_lost_its_lock_leaves_the_guest_to_the_one_that_took_over(desk: Callable[[Any], Desk]) -> None:
    runtime = ScriptedRuntime(running={INSTANCE})
    d = desk(runtime)
    d.keeper.stop(LONG_S)
    # The other run recovers first, and then stops the guest for itself.
    (run,) = d.journal.unfinished()
    d.journal.strike(run.notes[0].note_id)
    d.journal.begin("run-2", "export", INSTANCE)
    d.journal.note("run-2", "guest", {"instance": INSTANCE})
    d.keeper.bring_back()
    assert runtime.count("start") == 0
    assert not d.keeper.owes_start
    assert d.notes() == [("guest", False)], "the other's note"
    assert any("another run has taken over" in line for line in d.feedback.warnings)


def test_a_journal_that_cannot_be_read_is_no_reason_to_leave_the_guest_down(desk: Callable[[Any], Desk], tmp_path: Path) -> None:
    runtime = ScriptedRuntime(running={INSTANCE}, can_freeze=True)
    d = desk(runtime)
    d.keeper.freeze()
    d.keeper.stop(LONG_S)
    (tmp_path / "state" / "journal.sqlite").write_bytes(b"no database any more " * 1000)
    with pytest.raises(OperationFailedError, match="could not be read or written"):
        d.keeper.thaw()
    with pytest.raises(OperationFailedError, match="could not be read or written"):
        d.keeper.bring_back()
    assert runtime.frozen == set()
    assert runtime.running == {INSTANCE}


# --- frozen and thawed ------------------------------------------------------------------------------------------------


def test_a_thaw_is_retried(desk: Callable[[Any], Desk]) -> None:
    runtime = ScriptedRuntime(running={INSTANCE}, can_freeze=True, fail={"thaw": {1, 2, 3}})
    d = desk(runtime)
    d.keeper.freeze()
    d.keeper.thaw()
    assert (runtime.frozen, runtime.count("thaw"), d.notes()) == (set(), 4, [])
    d.keeper.thaw()
    assert runtime.count("thaw") == 4


def test_a_guest_that_cannot_be_thawed_stays_noted_and_every_attempt_is_told(desk: Callable[[Any], Desk]) -> None:
    runtime = ScriptedRuntime(running={INSTANCE}, can_freeze=True, fail={"thaw": range(1, 100)})
    d = desk(runtime)
    d.keeper.freeze()
    with pytest.raises(GuestError, match=r"MAY BE FROZEN: .* by hand, or run 'diskhaul recover'") as caught:
        d.keeper.thaw()
    assert isinstance(caught.value.__cause__, GuestError)
    assert len(caught.value.also) == 3
    assert d.notes() == [("frozen", False)]


def test_after_a_freeze_that_hangs_the_note_stays(desk: Callable[[Any], Desk], hanging: Callable[..., Hanging]) -> None:
    runtime = hanging("freeze", can_freeze=True)
    d = desk(runtime)
    with pytest.raises(GuestHangsError, match="cannot freeze it"):
        d.keeper.freeze()
    d.keeper.thaw(freeze_may_follow=True)
    assert d.notes() == [("frozen", False)]
    runtime.release.set()
    assert runtime.ended.wait(LONG_S)
    assert runtime.frozen == {INSTANCE}, "and so the note was needed"


def test_a_run_that_lost_its_lock_does_not_thaw_what_another_one_froze(desk: Callable[[Any], Desk]) -> None:
    runtime = ScriptedRuntime(running={INSTANCE}, can_freeze=True)
    d = desk(runtime)
    d.keeper.freeze()
    (run,) = d.journal.unfinished()
    d.journal.strike(run.notes[0].note_id)
    d.keeper.thaw()
    assert runtime.count("thaw") == 0


def test_a_guest_whose_state_cannot_be_found_out_is_started_whatever_kind_of_error_says_so(desk: Callable[[Any], Desk]) -> None:
    class Unsure(ScriptedRuntime):
        def is_running(self, instance: Instance, /) -> bool:
            if not self.running:
                raise StorageError("the pool does not answer")
            return super().is_running(instance)

        def longest_call_s(self, instance: Instance, /) -> float:
            raise SystemExit("cannot say")

    runtime = Unsure()
    desk(runtime).keeper.keep_running(0.0)
    assert (runtime.running, runtime.count("start")) == ({INSTANCE}, 1)
