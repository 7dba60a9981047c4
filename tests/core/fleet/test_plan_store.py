"""Plans survive, whole, and say of which version they are."""

from __future__ import annotations

import sqlite3
import stat
from pathlib import Path

import pytest

from diskhaul import OperationFailedError, RefusedError
from diskhaul.fleet.plan_store import FILE_NAME, KEPT_PLANS, SCHEMA_VERSION, PlannedMember, PlanStore
from diskhaul.fleet.request import FleetRequest

MEMBERS = [PlannedMember(instance=name, source="alpha") for name in ("db1", "web1")]
REQUEST = FleetRequest(patterns=("web*",), to="beta", options={"compress": "zstd:1"})


def test_what_is_written_is_read_again_by_another_process(tmp_path: Path) -> None:
    PlanStore(tmp_path).begin("nightly", REQUEST.as_data(), MEMBERS)
    done = PlannedMember(
        instance="web1", source="alpha", state="done", target="beta", attempts=2, export_id="x", incomplete=("a", "b")
    )
    PlanStore(tmp_path).record("nightly", [done])
    again = PlanStore(tmp_path)
    assert again.members("nightly") == [MEMBERS[0], done]
    (plan,) = again.plans()
    assert (plan.name, plan.total, plan.done, plan.ended) == ("nightly", 2, 1, None)
    assert FleetRequest.from_data(plan.request) == REQUEST
    again.end("nightly")
    assert again.plans()[0].ended is not None


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    PlanStore(tmp_path)
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_one_that_a_newer_version_wrote_is_left_alone(tmp_path: Path) -> None:
    PlanStore(tmp_path)
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(RefusedError, match="newer diskhaul"):
        PlanStore(tmp_path)


def test_one_that_an_older_version_wrote_is_left_alone(tmp_path: Path) -> None:
    PlanStore(tmp_path)
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("PRAGMA user_version = 1")
    with pytest.raises(RefusedError, match=r"older diskhaul \(version 1\): end its plans with that one"):
        PlanStore(tmp_path)


def test_runs_are_those_of_an_instance_in_a_plan_and_go_with_it(tmp_path: Path) -> None:
    store = PlanStore(tmp_path)
    for plan in ("nightly", "weekly"):
        store.begin(plan, {}, MEMBERS)
    for plan, instance, run in (
        ("nightly", "web1", "a"),
        ("nightly", "web1", "b"),
        ("nightly", "web1", "a"),
        ("nightly", "db1", "c"),
        ("weekly", "web1", "d"),
    ):
        store.begin_run(plan, instance, run)
    store.record("nightly", [PlannedMember(instance="web1", source="alpha", state="running")])
    assert PlanStore(tmp_path).runs("nightly", "web1") == ["a", "b"]
    store.begin("nightly", {}, MEMBERS)
    assert store.runs("nightly", "web1") == store.runs("nightly", "db1") == []
    assert store.runs("weekly", "web1") == ["d"]


def test_what_is_no_database_is_refused_and_a_plan_that_is_damaged_later_is_a_failure(tmp_path: Path) -> None:
    store = PlanStore(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 1000)
    with pytest.raises(OperationFailedError, match="could not be read or written"):
        store.plans()
    with pytest.raises(RefusedError, match="plans of fleets cannot be kept"):
        PlanStore(tmp_path)


def test_old_plans_that_are_at_their_end_go_and_unfinished_ones_stay(tmp_path: Path) -> None:
    store = PlanStore(tmp_path)
    store.begin("unfinished", {}, MEMBERS)
    for number in range(KEPT_PLANS + 5):
        store.begin(f"plan{number}", {}, MEMBERS)
        store.end(f"plan{number}")
    store.begin("last", {}, [])
    names = [plan.name for plan in store.plans()]
    assert len(names) == KEPT_PLANS + 2
    assert {"unfinished", "last", f"plan{KEPT_PLANS + 4}"} <= set(names)
    assert store.members("plan0") == []
