"""What every runtime has to do. Subclass `RuntimeConformance` in a test module::

class TestMyRuntime(RuntimeConformance):
    @pytest.fixture
    def runtime(self): return MyRuntime(...)

    @pytest.fixture
    def instance(self): return Instance(name="guest1", node="alpha", runtime="mine")
"""

from __future__ import annotations

import pytest

from ...api import Runtime
from ...model import Instance

SHUTDOWN_TIMEOUT_S = 60.0


class RuntimeConformance:
    """Override both fixtures; the guest is stopped when a test begins, and may be left running at its end."""

    @pytest.fixture
    def runtime(self) -> Runtime:
        raise NotImplementedError("override the fixture 'runtime'")

    @pytest.fixture
    def instance(self) -> Instance:
        raise NotImplementedError("override the fixture 'instance'")

    def test_a_usable_configuration_has_no_problems(self, runtime: Runtime, instance: Instance) -> None:
        assert list(runtime.check(instance)) == []

    def test_checking_a_configuration_changes_nothing(self, runtime: Runtime, instance: Instance) -> None:
        runtime.start(instance)
        list(runtime.check(instance))
        assert runtime.is_running(instance) is True
        runtime.stop(instance, timeout_s=SHUTDOWN_TIMEOUT_S)
        list(runtime.check(instance))
        assert runtime.is_running(instance) is False

    def test_a_started_guest_runs_when_start_returns(self, runtime: Runtime, instance: Instance) -> None:
        assert runtime.is_running(instance) is False
        runtime.start(instance)
        assert runtime.is_running(instance) is True

    def test_a_stopped_guest_is_down_when_stop_returns(self, runtime: Runtime, instance: Instance) -> None:
        runtime.start(instance)
        runtime.stop(instance, timeout_s=SHUTDOWN_TIMEOUT_S)
        assert runtime.is_running(instance) is False

    def test_a_guest_can_be_stopped_and_started_again(self, runtime: Runtime, instance: Instance) -> None:
        for _ in range(3):
            runtime.start(instance)
            assert runtime.is_running(instance) is True
            runtime.stop(instance, timeout_s=SHUTDOWN_TIMEOUT_S)
            assert runtime.is_running(instance) is False

    def test_thawing_a_guest_that_is_not_frozen_is_harmless(self, runtime: Runtime, instance: Instance) -> None:
        runtime.start(instance)
        runtime.thaw(instance)
        assert runtime.is_running(instance) is True

    def test_a_guest_that_can_be_frozen_runs_on_after_the_thaw(self, runtime: Runtime, instance: Instance) -> None:
        runtime.start(instance)
        if runtime.can_freeze(instance):
            runtime.freeze(instance)
            assert runtime.is_running(instance) is True
            runtime.thaw(instance)
        assert runtime.is_running(instance) is True

    def test_disks_of_a_stopped_instance_are_activated_and_deactivated(self, runtime: Runtime, instance: Instance) -> None:
        changed = runtime.activate_disks(instance)
        assert changed in (True, False)
        if changed:
            runtime.deactivate_disks(instance)
        assert runtime.is_running(instance) is False
