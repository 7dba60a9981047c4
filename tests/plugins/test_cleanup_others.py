"""Clean-up ``others``, and ``none``."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from diskhaul.api import BackendContext, Cleanup
from diskhaul.model import Cluster
from diskhaul.testing.conformance.cleanups import CleanupConformance, record
from diskhaul_plugins.cleanups.none import NoCleanup
from diskhaul_plugins.cleanups.others import OthersCleanup

CONTEXT = BackendContext(cluster=Cluster(name="lab", state_dir=Path("/nonexistent")))
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class TestOthersCleanup(CleanupConformance):
    @pytest.fixture
    def cleanup(self) -> Cleanup:
        return OthersCleanup(CONTEXT)


class TestNoCleanup(CleanupConformance):
    @pytest.fixture
    def cleanup(self) -> Cleanup:
        return NoCleanup(CONTEXT)


def test_none_supersedes_nothing() -> None:
    assert list(NoCleanup(CONTEXT).superseded(record(), [record(DAY), record(DAY, node="beta")])) == []


def test_every_earlier_export_on_every_node_is_superseded() -> None:
    existing = [record(DAY, run="1", node=node) for node in ("alpha", "beta", "delta")] + [record(2 * DAY, node="gamma")]
    assert list(OthersCleanup(CONTEXT).superseded(record(node="gamma"), existing)) == existing


def test_an_export_of_the_same_second_is_superseded_too() -> None:
    earlier = record(run="ffffffff")
    assert list(OthersCleanup(CONTEXT).superseded(record(run="00000001"), [earlier])) == [earlier]


def test_of_two_nodes_that_mount_one_store_neither_loses_the_new_export() -> None:
    new = record(node="alpha", store="nfs")
    through_beta = record(node="beta", store="nfs")
    earlier_through_beta = record(DAY, node="beta", store="nfs")
    assert list(OthersCleanup(CONTEXT).superseded(new, [through_beta, earlier_through_beta])) == [earlier_through_beta]


def test_the_new_export_is_known_by_its_id_when_a_store_is_not_recognised() -> None:
    assert list(OthersCleanup(CONTEXT).superseded(record(), [record(node="beta", store="another identity")])) == []


def test_a_younger_export_beside_the_new_one_is_left_for_a_person_to_judge() -> None:
    beside, elsewhere = record(-HOUR, node="alpha"), record(-HOUR, node="beta")
    assert list(OthersCleanup(CONTEXT).superseded(record(node="alpha"), [beside, elsewhere])) == [elsewhere]
