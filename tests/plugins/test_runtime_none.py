"""Runtime ``none``, and the scripted one of the test kit."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskhaul.api import BackendContext, Runtime
from diskhaul.errors import GuestError
from diskhaul.model import Cluster, Instance
from diskhaul.testing.conformance.runtimes import RuntimeConformance
from diskhaul.testing.guest import ScriptedRuntime
from diskhaul_plugins.runtimes.none import NoRuntime

CONTEXT = BackendContext(cluster=Cluster(name="lab", state_dir=Path("/nonexistent")))
INSTANCE = Instance(name="web1.example.com", node="alpha")


def test_without_a_runtime_nothing_runs_and_nothing_can_be_changed() -> None:
    runtime = NoRuntime(CONTEXT)
    assert runtime.is_running(INSTANCE) is False
    assert list(runtime.check(INSTANCE)) == []
    assert runtime.can_freeze(INSTANCE) is False
    assert runtime.activate_disks(INSTANCE) is False
    with pytest.raises(GuestError, match="'none'"):
        runtime.start(INSTANCE)
    with pytest.raises(GuestError, match="'none'"):
        runtime.stop(INSTANCE, timeout_s=1)
    with pytest.raises(GuestError, match="'none'"):
        runtime.remove(INSTANCE)
    with pytest.raises(GuestError):
        runtime.freeze(INSTANCE)


def test_options_for_no_runtime_are_a_problem() -> None:
    instance = Instance(name="web1.example.com", node="alpha", runtime_options={"start": ["x"]})
    (problem,) = NoRuntime(CONTEXT).check(instance)
    assert "runtime 'none' has no options, but there is start" in problem


class TestScriptedRuntime(RuntimeConformance):
    @pytest.fixture
    def runtime(self) -> Runtime:
        return ScriptedRuntime(can_freeze=True, inactive={INSTANCE.name})

    @pytest.fixture
    def instance(self) -> Instance:
        return INSTANCE


def test_the_scripted_runtime_fails_and_lies_when_told_to_and_writes_down_every_call() -> None:
    runtime = ScriptedRuntime(running={INSTANCE.name}, fail={"stop": {1}}, lie={"stop": {2}}, fail_after={"start": {1}})
    with pytest.raises(GuestError, match="scripted failure of stop number 1"):
        runtime.stop(INSTANCE, timeout_s=1)
    runtime.stop(INSTANCE, timeout_s=1)
    assert runtime.is_running(INSTANCE) is True
    runtime.stop(INSTANCE, timeout_s=1)
    assert runtime.is_running(INSTANCE) is False
    with pytest.raises(GuestError, match="scripted failure after start number 1"):
        runtime.start(INSTANCE)
    assert runtime.running == {INSTANCE.name}
    assert [call for call, _ in runtime.calls] == ["stop", "stop", "is_running", "stop", "is_running", "start"]
    assert runtime.count("stop") == 3


def test_the_scripted_runtime_announces_itself_as_a_plugin() -> None:
    runtime = ScriptedRuntime("mine")
    (spec,) = runtime.diskhaul_runtimes()
    assert spec.name == "mine"
    assert spec.create(CONTEXT) is runtime
