"""What every clean-up has to do. Subclass `CleanupConformance` in a test module and override `cleanup`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ...api import Cleanup
from ...host import with_defaults
from ...records import ExportRecord

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


def record(
    age: timedelta = timedelta(0),
    *,
    run: str = "00000000",
    node: str = "alpha",
    store: str | None = None,
    instance: str = "web1.example.com",
    problem: str = "",
) -> ExportRecord:
    """An export as old as `age`, in the store of `node` unless `store` is given."""
    created = NOW - age
    export_id = f"{created:%Y%m%dT%H%M%SZ}-{run}"
    return ExportRecord(
        export_id=export_id,
        instance=instance,
        node=node,
        store=store if store is not None else f"store of {node}",
        path=f"/srv/{node}/{instance}/{export_id}",
        created=created,
        problem=problem,
    )


class CleanupConformance:
    """Override `cleanup` with a fixture that gives the backend."""

    @pytest.fixture
    def cleanup(self) -> Cleanup:
        raise NotImplementedError("override the fixture 'cleanup'")

    @pytest.fixture
    def backend(self, cleanup: Cleanup) -> Cleanup:
        """The cleanup as operations see it: with its Protocol's defaults for what it leaves out."""
        return with_defaults("cleanup", cleanup)

    @pytest.fixture
    def existing(self) -> list[ExportRecord]:
        """Exports of the instance over three nodes and two years, none younger than the new one."""
        return [
            record(timedelta(days=days), run=f"{days:08x}", node=node)
            for node, step in (("alpha", 1), ("beta", 30), ("gamma", 100))
            for days in range(step, 730, step)
        ]

    def test_without_other_exports_nothing_is_superseded(self, backend: Cleanup) -> None:
        assert list(backend.superseded(record(), [])) == []

    def test_only_existing_exports_are_chosen_and_each_once(self, backend: Cleanup, existing: list[ExportRecord]) -> None:
        chosen = list(backend.superseded(record(), list(existing)))
        assert all(choice in existing for choice in chosen)
        assert len({id(choice) for choice in chosen}) == len(chosen)

    def test_the_new_export_is_never_chosen(self, backend: Cleanup, existing: list[ExportRecord]) -> None:
        new = record()
        assert new not in list(backend.superseded(new, [*existing, new]))

    def test_the_new_export_seen_through_another_node_is_never_chosen(
        self, backend: Cleanup, existing: list[ExportRecord]
    ) -> None:
        new = record(node="alpha", store="shared")
        alias = record(node="beta", store="shared")
        assert alias not in list(backend.superseded(new, [*existing, alias]))

    def test_exports_of_other_instances_are_never_chosen(self, backend: Cleanup) -> None:
        strangers = [record(timedelta(days=days), instance="web10.example.com") for days in range(1, 800)]
        assert list(backend.superseded(record(), strangers)) == []

    def test_the_order_of_the_existing_exports_does_not_matter(self, backend: Cleanup, existing: list[ExportRecord]) -> None:
        forwards = {choice.path for choice in backend.superseded(record(), existing)}
        backwards = {choice.path for choice in backend.superseded(record(), existing[::-1])}
        assert forwards == backwards
