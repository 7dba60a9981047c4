"""Which exports are kept: by count, day, ISO week, month and year, in UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from diskhaul.options import KeepPolicy
from diskhaul.records import ExportRecord
from diskhaul.retention import select_kept


def export(
    when: datetime | str, *, instance: str = "web1", node: str = "alpha", problem: str = "", suffix: str = ""
) -> ExportRecord:
    created = datetime.fromisoformat(when) if isinstance(when, str) else when
    name = created.isoformat() + suffix
    return ExportRecord(
        export_id=name, instance=instance, node=node, store=node, path=f"/{name}", created=created, problem=problem
    )


def kept(whens: list[str], **policy: int) -> list[str]:
    """The moments that are kept, newest first."""
    records = [export(when + "+00:00") for when in whens]
    chosen = select_kept(records, KeepPolicy(**policy))
    return [when for when in sorted(whens, reverse=True) if export(when + "+00:00").export_id in chosen]


def test_a_policy_that_keeps_nothing_keeps_nothing() -> None:
    assert kept(["2026-01-01T00:00", "2026-01-02T00:00"]) == []


def test_the_last_ones_are_the_newest_whatever_the_order() -> None:
    assert kept(["2026-01-02T00:00", "2026-01-03T00:00", "2026-01-01T00:00"], last=2) == ["2026-01-03T00:00", "2026-01-02T00:00"]


def test_of_each_day_the_newest_is_kept_and_days_without_exports_do_not_count() -> None:
    whens = ["2026-01-10T23:00", "2026-01-10T01:00", "2026-01-07T12:00", "2026-01-07T11:59", "2026-01-01T00:00"]
    assert kept(whens, daily=2) == ["2026-01-10T23:00", "2026-01-07T12:00"]


def test_weeks_are_iso_weeks_also_over_new_year() -> None:
    # 2026-12-28 to 2027-01-03 is week 53 of 2026.
    whens = ["2027-01-04T00:00", "2027-01-03T23:59", "2027-01-01T12:00", "2026-12-28T00:00", "2026-12-27T23:59"]
    assert kept(whens, weekly=3) == ["2027-01-04T00:00", "2027-01-03T23:59", "2026-12-27T23:59"]


def test_the_same_week_number_of_two_years_is_two_weeks() -> None:
    assert len(kept(["2026-02-10T00:00", "2025-02-10T00:00"], weekly=2)) == 2


def test_months_and_years_keep_their_newest() -> None:
    whens = ["2026-03-31T23:59", "2026-03-01T00:00", "2026-02-28T00:00", "2025-03-15T00:00", "2024-12-31T00:00"]
    assert kept(whens, monthly=3) == ["2026-03-31T23:59", "2026-02-28T00:00", "2025-03-15T00:00"]
    assert kept(whens, yearly=2) == ["2026-03-31T23:59", "2025-03-15T00:00"]


def test_rules_add_up_and_do_not_use_up_each_other() -> None:
    whens = ["2026-03-03T00:00", "2026-03-02T00:00", "2026-03-01T00:00", "2026-02-01T00:00", "2026-01-01T00:00"]
    assert kept(whens, last=1, daily=2, monthly=2) == ["2026-03-03T00:00", "2026-03-02T00:00", "2026-02-01T00:00"]


def test_days_are_those_of_utc_whatever_zone_a_moment_is_given_in() -> None:
    east = timezone(timedelta(hours=14))
    records = [
        export(datetime(2026, 1, 2, 23, 0, tzinfo=UTC)),
        export(datetime(2026, 1, 3, 13, 30, tzinfo=east)),  # 2026-01-02 23:30 UTC
        export(datetime(2026, 1, 2, 12, 0)),  # without a zone: UTC
    ]
    assert select_kept(records, KeepPolicy(daily=5)) == {records[1].export_id}


def test_exports_of_one_moment_are_ordered_by_id() -> None:
    records = [export("2026-01-01T00:00+00:00", suffix=suffix) for suffix in "bca"]
    assert select_kept(records, KeepPolicy(last=1)) == {records[1].export_id}
    assert select_kept(records, KeepPolicy(daily=3)) == {records[1].export_id}


def test_instances_do_not_compete() -> None:
    records = [export("2026-01-01T00:00+00:00", instance=name, suffix=name) for name in ("web1", "web2")]
    assert select_kept(records, KeepPolicy(last=1)) == {record.export_id for record in records}


def test_one_export_seen_through_two_nodes_counts_once() -> None:
    new = [export("2026-01-02T00:00+00:00", node=node) for node in ("alpha", "beta")]
    old = export("2026-01-01T00:00+00:00")
    assert select_kept([*new, old], KeepPolicy(last=2)) == {new[0].export_id, old.export_id}


def test_exports_that_are_not_valid_take_nobodys_place() -> None:
    broken, good = export("2026-01-02T00:00+00:00", problem="torn"), export("2026-01-01T00:00+00:00")
    assert select_kept([broken, good], KeepPolicy(last=1, yearly=1)) == {good.export_id}


moments = st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2030, 1, 1), timezones=st.just(UTC))
counts = st.integers(0, 6)


@given(st.lists(moments, max_size=60, unique=True), counts, counts, counts, counts, counts)
def test_no_rule_keeps_more_than_it_says_and_the_newest_is_always_among_them(
    whens: list[datetime], last: int, daily: int, weekly: int, monthly: int, yearly: int
) -> None:
    policy = KeepPolicy(last=last, daily=daily, weekly=weekly, monthly=monthly, yearly=yearly)
    chosen = select_kept([export(when) for when in whens], policy)
    assert len(chosen) <= last + daily + weekly + monthly + yearly
    assert len(chosen) >= min(len(whens), last)
    if whens and not policy.keeps_nothing:
        assert export(max(whens)).export_id in chosen
    for when in whens:
        smaller = select_kept([export(other) for other in whens if other != when], policy)
        if export(when).export_id not in chosen:
            assert smaller == chosen, "an export that is not kept influences nothing"
