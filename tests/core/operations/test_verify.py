"""What verify says of exports that somebody else holds, or has removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import diskhaul
from diskhaul.api import LockMode
from diskhaul.events import Event, StageStarted, Warned
from diskhaul.operations.base import LockLevel, LockSet, RunContext, Timeouts
from diskhaul.operations.verify import VerifyOperation

if TYPE_CHECKING:
    from .conftest import SmallCluster

INSTANCE = "web1.example.com"


def two_exports(small: SmallCluster) -> tuple[diskhaul.ExportRecord, diskhaul.ExportRecord]:
    keeping = small.cluster(backends={"cleanup": "none"})
    return small.exported("alpha", config=keeping), small.exported("beta", config=keeping)


def verified_while_held(small: SmallCluster, name: str | None, held: diskhaul.ExportRecord) -> diskhaul.VerifyResult:
    """Verify while somebody is removing `held`."""
    locks = LockSet(RunContext(small.cluster(), plugins=small.plugins), "somebody who removes")
    with locks.acquire(LockLevel.EXPORT, {held.export_id: LockMode.EXCLUSIVE}, 10.0):
        operation = VerifyOperation(RunContext(small.cluster(), plugins=small.plugins), name, None, 2)
        operation.timeouts = Timeouts(lock_s=0.1)
        return operation.run()


@pytest.mark.parametrize("name", [None, "web1"])
def test_an_export_that_is_held_is_skipped_and_told(small: SmallCluster, name: str | None) -> None:
    first, second = two_exports(small)
    result = verified_while_held(small, name, first)
    assert (result.exit_code, result.checked, result.findings) == (4, (second,), ())
    (line,) = result.skipped
    assert line.startswith(f"{INSTANCE}@{first.export_id} was not verified: lock export/{first.export_id}")


def test_an_export_that_was_asked_for_and_is_held_is_an_error(small: SmallCluster) -> None:
    first, _ = two_exports(small)
    with pytest.raises(diskhaul.LockTimeoutError) as caught:
        verified_while_held(small, f"web1@{first.export_id}", first)
    assert caught.value.exit_code == 5


def test_an_export_that_was_removed_since_it_was_listed_is_no_damage(small: SmallCluster) -> None:
    first, second = two_exports(small)
    warned: list[str] = []

    def remove_second(event: Event) -> None:
        if isinstance(event, Warned):
            warned.append(event.message)
        if isinstance(event, StageStarted) and event.stage == "verify" and first.export_id in event.detail:
            diskhaul.remove(f"web1@{second.export_id}", config=small.cluster(), plugins=small.plugins)

    result = diskhaul.verify(config=small.cluster(), plugins=small.plugins, on_event=remove_second)
    assert (result.exit_code, result.checked, result.findings, result.skipped) == (0, (first,), (), ())
    assert warned == [f"{INSTANCE}@{second.export_id} was removed since it was listed"]


def test_an_export_that_was_asked_for_and_is_gone_is_unknown(small: SmallCluster) -> None:
    first, _ = two_exports(small)

    def remove(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "verify":
            (small.path / "alpha" / INSTANCE / first.export_id).rename(small.path / "elsewhere")

    with pytest.raises(diskhaul.UnknownNameError, match="was removed meanwhile"):
        diskhaul.verify(f"web1@{first.export_id}", config=small.cluster(), plugins=small.plugins, on_event=remove)
