"""Clean-up ``keep``."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from diskhaul.api import BackendContext, Cleanup
from diskhaul.errors import ConfigurationError
from diskhaul.model import Cluster
from diskhaul.testing.conformance.cleanups import CleanupConformance, record
from diskhaul_plugins.cleanups.keep import KeepCleanup

DAY = timedelta(days=1)


def make(**options: Any) -> KeepCleanup:
    return KeepCleanup(BackendContext(cluster=Cluster(name="lab", state_dir=Path("/nonexistent")), options=options))


class TestKeepCleanup(CleanupConformance):
    @pytest.fixture
    def cleanup(self) -> Cleanup:
        return make(last=2, daily=3, monthly=2)


def test_the_new_export_counts_as_one_of_those_kept() -> None:
    existing = [record(days * DAY) for days in (1, 2, 3)]
    assert list(make(last=2).superseded(record(), existing)) == existing[1:]


def test_the_new_export_is_kept_even_when_the_clock_was_set_back() -> None:
    existing = [record(-days * DAY) for days in (1, 2, 3)]
    chosen = list(make(last=1).superseded(record(), existing))
    assert chosen == existing[:2]


def test_exports_on_all_nodes_are_one_series() -> None:
    existing = [record(1 * DAY, node="beta"), record(2 * DAY, node="gamma"), record(3 * DAY, node="alpha")]
    assert list(make(daily=3).superseded(record(node="alpha"), existing)) == existing[2:]


def test_an_export_seen_through_two_nodes_is_kept_or_chosen_as_one() -> None:
    existing = [record(days * DAY, node=node, store="nfs") for days in (1, 2) for node in ("beta", "gamma")]
    chosen = list(make(last=2).superseded(record(node="alpha", store="nfs"), existing))
    assert chosen == existing[2:]


def test_an_export_that_is_not_valid_takes_nobodys_place_and_is_not_chosen() -> None:
    broken, good = record(DAY, problem="torn"), record(2 * DAY)
    assert list(make(last=2).superseded(record(), [broken, good])) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "keeps nothing"),
        ({"last": 0, "daily": 0}, "keeps nothing"),
        ({"hourly": 3}, r"backend_options\.keep\.hourly: unknown; there is last, daily"),
        ({"last": -1}, r"backend_options\.keep\.last: -1 is not"),
        ({"daily": "7"}, r"backend_options\.keep\.daily: '7' is not"),
        ({"weekly": 1.0}, "weekly: 1.0 is not"),
        ({"yearly": True}, "yearly: True is not"),
    ],
)
def test_a_policy_that_makes_no_sense_is_a_configuration_error(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        make(**options)


def test_all_problems_of_a_policy_are_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        make(hourly=1, last=-1, daily="x")
    assert len(caught.value.problems) == 3
