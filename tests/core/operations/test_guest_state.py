"""`diskhaul.guest`: a guest is looked at, started and stopped, and what is so already is left alone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import diskhaul
from diskhaul.testing.guest import ScriptedRuntime


def cluster(work: Path) -> diskhaul.Cluster:
    return diskhaul.Cluster(
        name="lab",
        state_dir=work / "state",
        nodes=[diskhaul.Node(name="alpha", export_dir=work)],
        instances=[diskhaul.Instance(name="web1.example.com", node="alpha", runtime="scripted")],
    )


def test_a_guest_is_started_and_stopped_once(tmp_path: Path) -> None:
    runtime, config = ScriptedRuntime(), cluster(tmp_path)
    changes = []
    for action in ("status", "start", "start", "status", "stop", "stop", "status"):
        result = diskhaul.guest(action, "web1", config=config, plugins=[runtime])
        changes.append((result.running, result.changed))
    assert changes == [
        *((False, False), (True, True), (True, False), (True, False)),
        *((False, True), (False, False), (False, False)),
    ]
    assert (runtime.count("start"), runtime.count("stop")) == (1, 1)


def test_a_stop_that_only_says_so_is_a_failure(tmp_path: Path) -> None:
    runtime = ScriptedRuntime(running=["web1.example.com"], lie={"stop": {1}})
    with pytest.raises(diskhaul.GuestError, match="and it is still running"):
        diskhaul.guest("stop", "web1", config=cluster(tmp_path), plugins=[runtime])


def test_a_start_is_tried_again(tmp_path: Path) -> None:
    runtime = ScriptedRuntime(fail={"start": {1}})
    assert diskhaul.guest("start", "web1", config=cluster(tmp_path), plugins=[runtime]).changed
    assert runtime.count("start") == 2


def test_what_cannot_be_is_refused_together(tmp_path: Path) -> None:
    with pytest.raises(diskhaul.RefusedError) as refused:
        diskhaul.guest("kick", "../x", config=cluster(tmp_path), shutdown_timeout_s=-1)  # type: ignore[arg-type]
    assert len(refused.value.problems) == 3
    with pytest.raises(diskhaul.UnknownNameError):
        diskhaul.guest("status", "db1", config=cluster(tmp_path))


def test_a_start_for_a_move_is_refused_after_a_stop_for_it_and_others_are_not(tmp_path: Path) -> None:
    runtime, config = ScriptedRuntime(), cluster(tmp_path)
    first, second = "5f0c2e5e-8a51-4c43-9d2b-0d6d5a0a6f01", "5f0c2e5e-8a51-4c43-9d2b-0d6d5a0a6f02"
    assert diskhaul.guest("start", "web1", config=config, plugins=[runtime]).running
    stopped = diskhaul.guest("stop", "web1", config=config, plugins=[runtime], move=first)
    assert (stopped.running, stopped.changed, stopped.ran) == (False, True, False)
    assert not diskhaul.guest("stop", "web1", config=config, plugins=[runtime], move=first).changed
    with pytest.raises(diskhaul.RefusedError, match="was rolled back: it is not started for that"):
        diskhaul.guest("start", "web1", config=config, plugins=[runtime], move=first)
    assert runtime.running == set()
    assert diskhaul.guest("start", "web1", config=config, plugins=[runtime], move=second).changed
    assert diskhaul.guest("stop", "web1", config=config, plugins=[runtime]).changed
    assert diskhaul.guest("start", "web1", config=config, plugins=[runtime]).changed


def test_a_guest_that_was_started_for_a_move_is_not_stopped_for_it_and_that_it_ran_is_not_forgotten(tmp_path: Path) -> None:
    """What it has written since is nowhere else."""
    runtime, config = ScriptedRuntime(), cluster(tmp_path)
    run = "5f0c2e5e-8a51-4c43-9d2b-0d6d5a0a6f01"
    diskhaul.guest("start", "web1", config=config, plugins=[runtime], move=run)
    stopped = diskhaul.guest("stop", "web1", config=config, plugins=[runtime], move=run)
    assert (stopped.running, stopped.changed, stopped.ran) == (True, False, True)
    diskhaul.guest("stop", "web1", config=config, plugins=[runtime])
    stopped = diskhaul.guest("stop", "web1", config=config, plugins=[runtime], move=run)
    assert (stopped.running, stopped.changed, stopped.ran) == (False, False, True)


@pytest.mark.parametrize(("known", "ran"), [(True, False), (False, True)])
def test_a_start_for_a_move_that_failed_is_forgotten_only_once_the_guest_is_known_to_be_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool, ran: bool
) -> None:
    monkeypatch.setattr("diskhaul.operations.guest.RETRY_PAUSES_S", ())
    runtime, config = ScriptedRuntime(fail={"start": {1}} if known else {"start": {1}, "is_running": {3}}), cluster(tmp_path)
    run = "5f0c2e5e-8a51-4c43-9d2b-0d6d5a0a6f01"
    with pytest.raises(diskhaul.GuestError):
        diskhaul.guest("start", "web1", config=config, plugins=[runtime], move=run)
    assert diskhaul.guest("stop", "web1", config=config, plugins=[runtime], move=run).ran == ran


def test_a_start_for_a_move_that_hangs_may_still_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hangs(ScriptedRuntime):
        def longest_call_s(self, instance: diskhaul.Instance, /) -> float:
            return 0.2

        def start(self, instance: diskhaul.Instance, /) -> object:
            started.wait(30.0)
            return super().start(instance)

    monkeypatch.setattr("diskhaul.operations.guest.RETRY_PAUSES_S", (0.0,))
    started = threading.Event()
    runtime, config = Hangs(), cluster(tmp_path)
    run = "5f0c2e5e-8a51-4c43-9d2b-0d6d5a0a6f01"
    with pytest.raises(diskhaul.GuestError, match="IS DOWN"):
        diskhaul.guest("start", "web1", config=config, plugins=[runtime], move=run)
    stopped = diskhaul.guest("stop", "web1", config=config, plugins=[runtime], move=run)
    started.set()
    assert (stopped.running, stopped.ran) == (False, True)


def test_a_stop_for_a_move_that_fails_has_revoked_it_all_the_same(tmp_path: Path) -> None:
    runtime, config = ScriptedRuntime(running=["web1.example.com"], lie={"stop": {1}}), cluster(tmp_path)
    run = "5f0c2e5e-8a51-4c43-9d2b-0d6d5a0a6f01"
    with pytest.raises(diskhaul.GuestError):
        diskhaul.guest("stop", "web1", config=config, plugins=[runtime], move=run)
    with pytest.raises(diskhaul.RefusedError, match="was rolled back"):
        diskhaul.guest("start", "web1", config=config, plugins=[runtime], move=run)


def test_a_move_has_the_id_of_a_run_and_is_not_asked_about(tmp_path: Path) -> None:
    with pytest.raises(diskhaul.RefusedError, match="is not the id of a run"):
        diskhaul.guest("stop", "web1", config=cluster(tmp_path), move="x")
    with pytest.raises(diskhaul.RefusedError, match="only for start and stop"):
        diskhaul.guest("status", "web1", config=cluster(tmp_path), move="5f0c2e5e-8a51-4c43-9d2b-0d6d5a0a6f01")
