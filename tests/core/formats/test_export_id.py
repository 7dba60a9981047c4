"""Export ids."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diskhaul.formats import export_id as ids

RUN = "1a2b3c4d-5e6f-4a0b-8c1d-2e3f4a5b6c7d"


def test_an_export_id_is_utc_time_and_the_start_of_the_run_id() -> None:
    now = datetime(2026, 11, 22, 12, 33, 8, 999999, tzinfo=timezone(timedelta(hours=2)))
    export_id = ids.new_export_id(now, RUN)
    assert export_id == "20261122T103308Z-1a2b3c4d"
    assert ids.created_at(export_id) == datetime(2026, 11, 22, 10, 33, 8, tzinfo=UTC)
    assert ids.short_run_id(RUN) == ids.run_of(export_id) == "1a2b3c4d"


@given(st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1), timezones=st.timezones()), st.uuids())
def test_any_clock_gives_a_valid_id_whose_directories_parse_back(now: datetime, run: uuid.UUID) -> None:
    export_id = ids.new_export_id(now, str(run))
    assert ids.is_export_id(export_id)
    assert ids.created_at(export_id) == now.astimezone(UTC).replace(microsecond=0)
    assert ids.parse_partial(ids.partial_name(export_id)) == export_id
    assert ids.parse_removing(ids.removing_name(export_id)) == export_id
    assert ids.parse_partial(ids.removing_name(export_id)) is None
    assert ids.parse_removing(ids.partial_name(export_id)) is None


@given(st.lists(st.datetimes(min_value=datetime(2, 1, 1), timezones=st.just(UTC)), min_size=2, max_size=5))
def test_sorting_ids_sorts_by_age(times: list[datetime]) -> None:
    exports = [ids.new_export_id(time, RUN) for time in times]
    assert [ids.created_at(export_id) for export_id in sorted(exports)] == sorted(time.replace(microsecond=0) for time in times)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "20261122T103308Z",
        "20261122T103308Z-1a2b3c4",
        "20261122T103308Z-1a2b3c4de",
        "20261122T103308Z-1A2B3C4D",
        "20261122T103308Z-1a2b3c4d\n",
        " 20261122T103308Z-1a2b3c4d",
        "20260231T103308Z-1a2b3c4d",
        "20261122T243308Z-1a2b3c4d",
        "20261122T103360Z-1a2b3c4d",
        "00001122T103308Z-1a2b3c4d",
        "\u0662\u0660261122T103308Z-1a2b3c4d",
        "../20261122T103308Z-1a2b3c4d",
        ".20261122T103308Z-1a2b3c4d.partial",
    ],
)
def test_anything_else_is_no_export_id(text: str) -> None:
    assert not ids.is_export_id(text)
    assert ids.parse_partial(f".{text}.partial") is None
    assert ids.parse_removing(f".{text}.removing") is None
    with pytest.raises(ValueError, match="not an export id"):
        ids.created_at(text)


@pytest.mark.parametrize("name", ["", ".partial", "20261122T103308Z-1a2b3c4d.partial", ".20261122T103308Z-1a2b3c4d", "..partial"])
def test_a_name_that_is_not_exactly_ours_is_no_partial_export(name: str) -> None:
    assert ids.parse_partial(name) is None


@pytest.mark.parametrize("run_id", ["", "1a2b3c4d", RUN.upper(), RUN + "0", "../" + RUN, RUN + "\n"])
def test_a_run_id_that_is_no_uuid_is_an_error(run_id: str) -> None:
    assert not ids.is_run_id(run_id)
    with pytest.raises(ValueError, match="not a run id"):
        ids.new_export_id(datetime.now(UTC), run_id)


def test_a_time_without_a_zone_is_an_error() -> None:
    with pytest.raises(ValueError, match="time zone"):
        ids.new_export_id(datetime(2026, 1, 1), RUN)
