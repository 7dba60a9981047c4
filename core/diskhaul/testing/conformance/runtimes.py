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
from ...host import with_defaults
from ...model import Instance

SHUTDOWN_TIMEOUT_S = 60.0


class RuntimeConformance:
    """Override both fixtures; the guest is stopped when a test begins, and may be left running at its end."""

    @pytest.fixture
    def runtime(self) -> Runtime:
        raise NotImplementedError("override the fixture 'runtime'")

    @pytest.fixture
    def backend(self, runtime: Runtime) -> Runtime:
        """The runtime as operations see it: with its Protocol's defaults for what it leaves out."""
        return with_defaults("runtime", runtime)

    @pytest.fixture
    def instance(self) -> Instance:
        raise NotImplementedError("override the fixture 'instance'")

    def test_a_usable_configuration_has_no_problems(self, backend: Runtime, instance: Instance) -> None:
        assert list(backend.check(instance)) == []

    def test_checking_a_configuration_changes_nothing(self, backend: Runtime, instance: Instance) -> None:
        backend.start(instance)
        list(backend.check(instance))
        assert backend.is_running(instance) is True
        backend.stop(instance, timeout_s=SHUTDOWN_TIMEOUT_S)
        list(backend.check(instance))
        assert backend.is_running(instance) is False

    def test_a_started_guest_runs_when_start_returns(self, backend: Runtime, instance: Instance) -> None:
        assert backend.is_running(instance) is False
        backend.start(instance)
        assert backend.is_running(instance) is True

    def test_a_stopped_guest_is_down_when_stop_returns(self, backend: Runtime, instance: Instance) -> None:
        backend.start(instance)
        backend.stop(instance, timeout_s=SHUTDOWN_TIMEOUT_S)
        assert backend.is_running(instance) is False

    def test_a_guest_can_be_stopped_and_started_again(self, backend: Runtime, instance: Instance) -> None:
        for _ in range(3):
            backend.start(instance)
            assert backend.is_running(instance) is True
            backend.stop(instance, timeout_s=SHUTDOWN_TIMEOUT_S)
            assert backend.is_running(instance) is False

    def test_thawing_a_guest_that_is_not_frozen_is_harmless(self, backend: Runtime, instance: Instance) -> None:
        backend.start(instance)
        backend.thaw(instance)
        assert backend.is_running(instance) is True

    def test_a_guest_that_can_be_frozen_runs_on_after_the_thaw(self, backend: Runtime, instance: Instance) -> None:
        backend.start(instance)
        if backend.can_freeze(instance):
            backend.freeze(instance)
            assert backend.is_running(instance) is True
            backend.thaw(instance)
        assert backend.is_running(instance) is True

    def test_a_guest_that_can_be_trimmed_runs_on_afterwards(self, backend: Runtime, instance: Instance) -> None:
        backend.start(instance)
        if backend.can_trim(instance):
            backend.trim(instance, timeout_s=SHUTDOWN_TIMEOUT_S)
        assert backend.is_running(instance) is True

    def test_disks_of_a_stopped_instance_are_activated_and_deactivated(self, backend: Runtime, instance: Instance) -> None:
        changed = backend.activate_disks(instance)
        assert changed in (True, False)
        if changed:
            backend.deactivate_disks(instance)
        assert backend.is_running(instance) is False
