"""How an operation speaks: events one at a time, warnings, the time of stages."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from diskhaul.events import Event, StageFinished, StageStarted, Warned
from diskhaul.feedback import Feedback
from diskhaul.hookspecs import hookimpl
from diskhaul.host import PluginHost
from diskhaul.model import Cluster


def feedback(tmp_path: Path, listener: Callable[[Event], object] | None, *plugins: object) -> Feedback:
    made: list[Feedback] = []
    cluster = Cluster(name="lab", state_dir=tmp_path / "state")
    host = PluginHost(cluster, plugins, on_warning=lambda message: made[0].warn(message))
    made.append(Feedback("run-1", host, listener))
    return made[0]


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
