"""How an operation speaks: events one at a time, warnings, the time of stages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diskhaul.cancellation import CancellationToken
from diskhaul.events import DiskProgress, Event, StageFinished, StageStarted, Warned
from diskhaul.feedback import Feedback
from diskhaul.hookspecs import hookimpl
from diskhaul.host import PluginHost
from diskhaul.model import Cluster

END_S = 30.0


def feedback(tmp_path: Path, listener: Callable[[Event], object] | None, *plugins: object) -> Feedback:
    made: list[Feedback] = []
    cluster = Cluster(name="lab", state_dir=tmp_path / "state")
    host = PluginHost(cluster, plugins, on_warning=lambda message: made[0].warn(message))
    made.append(Feedback("run-1", host, listener))
    opened.append(made[0])
    return made[0]


opened: list[Feedback] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while opened:
        opened.pop().close()
    all_told()


def all_told() -> None:
    """Wait until the threads that tell events have ended, once they are to be closed."""
    for thread in threading.enumerate():
        if thread.name == "diskhaul-events":
            thread.join(END_S)
            assert not thread.is_alive()


def test_events_go_to_the_listener_and_to_the_hooks_with_the_runs_id(tmp_path: Path) -> None:
    class Plugin:
        def __init__(self) -> None:
            self.events: list[Event] = []

        @hookimpl
        def diskhaul_event(self, event: Event) -> None:
            self.events.append(event)

    heard: list[Event] = []
    plugin = Plugin()
    feedback(tmp_path, heard.append, plugin).emit(StageStarted(stage="send"))
    assert [event.run_id for event in heard] == ["run-1"]
    assert plugin.events == heard


def test_a_warning_is_kept_and_told(tmp_path: Path) -> None:
    heard: list[Event] = []
    spoken = feedback(tmp_path, heard.append)
    spoken.warn("look out")
    assert spoken.warnings == ["look out"]
    assert [event.message for event in heard if isinstance(event, Warned)] == ["look out"]
    feedback(tmp_path, None).warn("nobody listens")


def test_a_stage_is_announced_timed_and_ended_also_when_it_fails(tmp_path: Path) -> None:
    heard: list[Event] = []
    spoken = feedback(tmp_path, heard.append)
    with spoken.stage("send", "2 disks"):
        assert isinstance(heard[-1], StageStarted)
    with pytest.raises(ValueError, match="bad"), spoken.stage("send"):
        raise ValueError("bad")
    ended = [event for event in heard if isinstance(event, StageFinished)]
    assert [event.ok for event in ended] == [True, False]
    assert spoken.timings == {"send": pytest.approx(sum(event.seconds for event in ended))}


def test_a_listener_that_fails_is_told_no_more_and_the_work_goes_on(tmp_path: Path) -> None:
    heard: list[Event] = []

    def failing(event: Event) -> None:
        heard.append(event)
        raise RuntimeError("display broken")

    spoken = feedback(tmp_path, failing)
    with spoken.stage("send"):
        spoken.warn("still here")
    assert len(heard) == 1
    assert spoken.warnings[0] == "on_event raised RuntimeError: display broken; it is told no more"
    assert spoken.warnings[1:] == ["still here"]


def test_a_hook_that_fails_is_warned_of_once_and_does_not_fail_the_work(tmp_path: Path) -> None:
    class Broken:
        count = 0

        @hookimpl
        def diskhaul_event(self, event: Event) -> None:
            self.count += 1
            raise RuntimeError("hook broken")

    plugin = Broken()
    heard: list[Event] = []
    spoken = feedback(tmp_path, heard.append, plugin)
    for _ in range(5):
        spoken.emit(StageStarted(stage="send"))
    assert plugin.count >= 5, "it still gets later events"
    assert len(spoken.warnings) == 1
    assert "hook broken" in spoken.warnings[0]


def test_events_of_several_threads_come_one_at_a_time(tmp_path: Path) -> None:
    inside = threading.Lock()
    together: list[bool] = []

    def listener(event: Event) -> None:
        if not inside.acquire(blocking=False):
            together.append(True)
            return
        threading.Event().wait(0.0005)
        inside.release()

    spoken = feedback(tmp_path, listener)
    threads = [threading.Thread(target=lambda: [spoken.emit(StageStarted(stage="x")) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == []


def test_a_listener_may_speak_itself(tmp_path: Path) -> None:
    made: list[Feedback] = []
    heard: list[Event] = []

    def listener(event: Event) -> None:
        heard.append(event)
        if isinstance(event, StageStarted):
            made[0].warn("from the listener")

    made.append(feedback(tmp_path, listener))
    made[0].emit(StageStarted(stage="send"))
    assert [type(event) for event in heard] == [StageStarted, Warned]


# --- listeners that take their time -----------------------------------------------------------------------------------


class Gate:
    """A listener that waits at the first event of `stage` until it is opened."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self.opened, self.waiting = threading.Event(), threading.Event()
        self.heard: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.heard.append(event)
        if getattr(event, "stage", "") == self._stage:
            self.waiting.set()
            self.opened.wait(END_S)

    def told(self) -> list[str]:
        return [getattr(event, "stage", event.kind) for event in self.heard]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diskhaul.feedback.PATIENCE_S", 0.05)


def test_an_operation_waits_for_its_listeners(tmp_path: Path) -> None:
    gate = Gate("send")
    spoken = feedback(tmp_path, gate)
    emitted = threading.Event()

    def emit() -> None:
        spoken.emit(StageStarted(stage="send"))
        emitted.set()

    thread = threading.Thread(target=emit)
    thread.start()
    assert gate.waiting.wait(END_S)
    assert not emitted.wait(0.05), "what a listener sees is what is going on"
    gate.opened.set()
    thread.join(END_S)
    assert emitted.is_set()


@pytest.mark.usefixtures("impatient")
def test_a_listener_that_blocks_is_waited_for_once_and_hears_the_rest_in_order_without_progress(tmp_path: Path) -> None:
    gate = Gate("stop")
    spoken = feedback(tmp_path, gate)
    spoken.emit(StageStarted(stage="stop"))
    for number in range(1000):
        spoken.emit(StageStarted(stage=f"stage {number}"))
        spoken.emit(DiskProgress(disk=0, activity="send", done=number, total=1000, read=0, written=0))
    assert gate.told() == ["stop"]
    gate.opened.set()
    spoken.close()
    all_told()
    assert gate.told() == ["stop", *(f"stage {number}" for number in range(1000))]


@pytest.mark.usefixtures("impatient")
def test_a_listener_that_has_caught_up_is_told_progress_again(tmp_path: Path) -> None:
    gate = Gate("stop")
    spoken = feedback(tmp_path, gate)
    spoken.emit(StageStarted(stage="stop"))
    progress = DiskProgress(disk=0, activity="send", done=1, total=2, read=0, written=0)
    spoken.emit(progress)
    gate.opened.set()
    pause = threading.Event()
    for _ in range(3000):
        spoken.emit(progress)
        if "disk-progress" in gate.told():
            return
        pause.wait(0.01)
    raise AssertionError("it is still left out")


@pytest.mark.usefixtures("impatient")
def test_what_waits_for_a_listener_that_never_comes_back_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diskhaul.feedback._MOST_WAITING", 10)
    gate = Gate("stop")
    spoken = feedback(tmp_path, gate)
    spoken.emit(StageStarted(stage="stop"))
    for number in range(100):
        spoken.emit(StageStarted(stage=f"stage {number}"))
    gate.opened.set()
    spoken.close()
    all_told()
    assert gate.told() == ["stop", *(f"stage {number}" for number in range(10))]


@pytest.mark.usefixtures("impatient")
def test_closing_does_not_wait_for_ever_either(tmp_path: Path) -> None:
    gate = Gate("stop")
    spoken = feedback(tmp_path, gate)
    spoken.emit(StageStarted(stage="stop"))
    spoken.close()
    spoken.close()
    gate.opened.set()


def test_closing_ends_the_thread_and_what_is_said_later_is_still_heard(tmp_path: Path) -> None:
    heard: list[Event] = []
    spoken = feedback(tmp_path, heard.append)
    spoken.warn("first")
    spoken.close()
    assert [thread.name for thread in threading.enumerate() if thread.name == "diskhaul-events"] == []
    spoken.warn("second")
    spoken.close()
    assert [event.message for event in heard if isinstance(event, Warned)] == ["first", "second"]


def test_a_listener_may_cancel(tmp_path: Path) -> None:
    token = CancellationToken()
    spoken = feedback(tmp_path, lambda event: token.cancel("enough"))
    spoken.emit(StageStarted(stage="send"))
    assert token.cancelled, "by the time the stage goes on"
