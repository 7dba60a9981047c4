"""What the scheduling thread does with ends, failures, cancellation and a plan that cannot be written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from diskhaul import (
    CancellationToken,
    ExportResult,
    InterruptedRunError,
    LockTimeoutError,
    OperationFailedError,
    UnreachableNodeError,
)
from diskhaul.events import Event, MemberFinished
from diskhaul.fleet.plan_store import PlannedMember
from diskhaul.fleet.request import FleetLimits
from diskhaul.fleet.runner import ExportOrder, FleetRunner
from diskhaul.fleet.scheduler import Scheduler
from diskhaul.fleet.targets import Targets
from diskhaul.model import Instance
from diskhaul.records import Plan

DEADLINE_S = 30.0


def exported(order: ExportOrder) -> ExportResult:
    plan = Plan(
        operation="export",
        run_id="",
        cluster="lab",
        instance=Instance(name=order.job.instance, node="alpha"),
        source=None,
        target=None,
        running=False,
        downtime="none",
        steps=(),
    )
    return ExportResult(run_id="", instance=order.job.instance, node=order.target, plan=plan)


def runner(number: int, export_one: Callable[[ExportOrder], ExportResult], **more: Any) -> FleetRunner:
    limits = more.pop("limits", FleetLimits(backoff_s=0.0))
    targets = Targets(("beta",), limits.per_target, "fixed")
    fields: dict[str, Any] = {
        "targets": targets,
        "scheduler": Scheduler(order="name", per_source=limits.per_source, parallel=limits.parallel, targets=targets),
        "limits": limits,
        "export_one": export_one,
        "record": lambda members: None,
        "tell": lambda event: None,
        "token": CancellationToken(),
    }
    return FleetRunner([PlannedMember(instance=f"vm{index}", source="alpha") for index in range(number)], **(fields | more))


def test_a_start_is_in_the_plan_before_the_export_begins_and_its_end_before_it_is_told() -> None:
    written: dict[str, str] = {}
    seen: list[str] = []

    def record(members: Sequence[PlannedMember]) -> None:
        written.update({member.instance: member.state for member in members})

    def export_one(order: ExportOrder) -> ExportResult:
        seen.append(written[order.job.instance])
        return exported(order)

    def tell(event: Event) -> None:
        if isinstance(event, MemberFinished):
            assert written[event.instance] == "done"

    under_test = runner(20, export_one, record=record, tell=tell)
    under_test.run()
    assert seen == ["running"] * 20
    assert set(written.values()) == {"done"}


def test_what_may_pass_is_tried_as_often_as_was_allowed_and_what_succeeds_at_last_is_done() -> None:
    attempts: dict[str, int] = {}

    def export_one(order: ExportOrder) -> ExportResult:
        name = order.job.instance
        attempts[name] = attempts.get(name, 0) + 1
        if name == "vm0" or (name == "vm1" and attempts[name] < 3):
            raise LockTimeoutError(f"instance/{name}", "somebody", 0.0)
        if name == "vm2":
            raise SystemExit(0)  # a plugin's, which must not look like success
        return exported(order)

    told: list[tuple[str, str]] = []

    def tell(event: Event) -> None:
        if isinstance(event, MemberFinished):
            told.append((event.instance, event.state))

    under_test = runner(4, export_one, limits=FleetLimits(retries=2, backoff_s=0.0), tell=tell)
    under_test.run()
    assert attempts == {"vm0": 3, "vm1": 3, "vm2": 1, "vm3": 1}
    states = {name: (member.state, member.exit_code, member.attempts) for name, member in under_test.members.items()}
    assert states == {"vm0": ("failed", 5, 3), "vm1": ("done", 0, 3), "vm2": ("failed", 1, 1), "vm3": ("done", 0, 1)}
    assert [state for name, state in told if name == "vm0"] == ["retry", "retry", "failed"]


def test_others_run_while_one_waits_for_its_next_attempt() -> None:
    others = threading.Event()
    done: list[str] = []

    def export_one(order: ExportOrder) -> ExportResult:
        if order.job.instance == "vm0" and order.job.attempts == 1:
            raise OperationFailedError("the transfer failed")
        if order.job.instance == "vm0":
            assert others.wait(DEADLINE_S)
        done.append(order.job.instance)
        if len(done) == 10:
            others.set()
        return exported(order)

    under_test = runner(11, export_one, limits=FleetLimits(per_source=2, per_target=2, backoff_s=0.01))
    under_test.run()
    assert done[-1] == "vm0"
    assert {member.state for member in under_test.members.values()} == {"done"}


def test_a_cancelled_fleet_begins_nothing_more_and_what_was_running_stays_to_be_done() -> None:
    token = CancellationToken()
    begun: list[str] = []

    def export_one(order: ExportOrder) -> ExportResult:
        begun.append(order.job.instance)
        token.cancel("enough")
        token.raise_if_cancelled()
        raise AssertionError("was cancelled")

    under_test = runner(50, export_one, token=token, limits=FleetLimits(per_source=2, per_target=2))
    under_test.run()
    assert 1 <= len(begun) <= 2
    assert {(member.state, member.attempts) for member in under_test.members.values()} == {("pending", 0)}


def test_an_export_that_its_node_stopped_is_tried_again_and_a_failure_if_it_never_succeeds() -> None:
    def export_one(order: ExportOrder) -> ExportResult:
        if order.job.instance == "vm0" or order.job.attempts == 1:
            raise InterruptedRunError("interrupted: the node is being stopped")
        return exported(order)

    told: list[tuple[str, str, int]] = []

    def tell(event: Event) -> None:
        if isinstance(event, MemberFinished):
            told.append((event.instance, event.state, event.exit_code))

    under_test = runner(2, export_one, limits=FleetLimits(retries=1, backoff_s=0.0), tell=tell)
    under_test.run()
    states = {
        name: (member.state, member.attempts, member.exit_code, member.error) for name, member in under_test.members.items()
    }
    assert states == {"vm0": ("failed", 2, 3, "interrupted: the node is being stopped"), "vm1": ("done", 2, 0, "")}
    assert [each for each in told if each[0] == "vm0"] == [("vm0", "retry", 3), ("vm0", "failed", 3)]


def test_a_plan_that_cannot_be_written_stops_what_runs_and_is_a_failure() -> None:
    token = CancellationToken()
    writes = iter([None, OperationFailedError("disk full")])
    left = threading.Event()

    def record(members: Sequence[PlannedMember]) -> None:
        if (error := next(writes)) is not None:
            raise error

    def export_one(order: ExportOrder) -> ExportResult:
        if order.job.instance == "vm0":
            return exported(order)
        assert token.wait(DEADLINE_S), "was not stopped"
        left.set()
        token.raise_if_cancelled()
        raise AssertionError("was cancelled")

    with pytest.raises(OperationFailedError, match="disk full"):
        runner(2, export_one, record=record, token=token).run()
    assert left.is_set()


def test_an_attempt_whose_node_was_lost_is_asked_after_before_the_next_one_until_somebody_knows() -> None:
    recovering: list[bool] = []
    written: list[str] = []

    def record(members: Sequence[PlannedMember]) -> None:
        written.extend(member.state for member in members)

    def export_one(order: ExportOrder) -> ExportResult:
        recovering.append(order.job.recover)
        if len(recovering) == 1:
            raise UnreachableNodeError("alpha", "node alpha does not answer", in_doubt=True)
        if len(recovering) == 2:  # it cannot be asked yet
            raise LockTimeoutError("instance/vm0", "the first attempt", 0.0)
        order.job.recover = False
        if len(recovering) == 3:
            raise OperationFailedError("the transfer failed")
        return exported(order)

    under_test = runner(1, export_one, record=record, limits=FleetLimits(retries=3, backoff_s=0.0))
    under_test.run()
    assert recovering == [False, True, True, False]
    # What a client that is killed meanwhile would find: that it has to ask.
    assert written == ["running", "running", "running", "running", "running", "pending", "running", "done"]


def test_an_attempt_whose_node_stays_lost_is_asked_after_by_whoever_goes_on_with_the_plan() -> None:
    def export_one(order: ExportOrder) -> ExportResult:
        raise UnreachableNodeError("alpha", "node alpha does not answer", in_doubt=True)

    told: list[str] = []

    def tell(event: Event) -> None:
        if isinstance(event, MemberFinished):
            told.append(event.state)

    under_test = runner(1, export_one, tell=tell, limits=FleetLimits(retries=1, backoff_s=0.0))
    under_test.run()
    assert told == ["retry", "failed"]
    assert [(member.state, member.exit_code) for member in under_test.members.values()] == [("lost", 3)]


def test_limits_that_leave_something_waiting_for_nothing_would_be_told_and_not_waited_for() -> None:
    targets = Targets(("beta",), 0, "fixed")  # no limit that a request may have
    stuck = Scheduler(order="name", per_source=1, parallel=1, targets=targets)
    with pytest.raises(RuntimeError, match="1 exports wait"):
        runner(1, exported, targets=targets, scheduler=stuck).run()
