"""Earlier exports go only when the new one is there, whole, and nobody is reading them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import diskhaul
from diskhaul.api import LockMode
from diskhaul.events import Event, StageStarted
from diskhaul.operations.base import LockLevel, LockSet, RunContext

if TYPE_CHECKING:
    from .conftest import SmallCluster

INSTANCE = "web1.example.com"


def when_cleaning(action: Callable[[], object]) -> Callable[[Event], None]:
    """A listener that acts between the publishing of an export and the clean-up."""

    def listen(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "cleanup":
            action()

    return listen


def test_what_the_new_export_supersedes_is_removed(small: SmallCluster) -> None:
    small.exported("alpha")
    second = small.exported("gamma", config=small.cluster(backends={"cleanup": "none"}))
    assert len(small.listed()) == 2
    new = small.export("beta")
    assert new.export is not None
    assert (new.exit_code, len(new.removed)) == (0, 2)
    assert second in new.removed
    assert small.listed() == [("beta", new.export.export_id)]
    assert small.unfinished() == 0


def test_nothing_is_removed_when_somebody_has_removed_the_new_export(small: SmallCluster) -> None:
    earlier = small.exported("alpha")

    def remove() -> None:
        (new,) = (export_id for node, export_id in small.listed() if node == "beta")
        diskhaul.remove(f"{INSTANCE}@{new}", config=small.cluster(), plugins=small.plugins)

    result = small.export("beta", on_event=when_cleaning(remove))
    assert (result.exit_code, result.removed) == (4, ())
    assert any("nothing was removed, since the new export" in line for line in result.incomplete)
    assert small.listed() == [("alpha", earlier.export_id)]


def test_nothing_is_removed_when_the_target_directory_is_gone(small: SmallCluster, tmp_path: Path) -> None:
    earlier = small.exported("alpha")
    result = small.export("beta", on_event=when_cleaning(lambda: (tmp_path / "beta").rename(tmp_path / "unmounted")))
    assert (result.exit_code, result.removed) == (4, ())
    assert any("nothing was removed" in line for line in result.incomplete)
    (tmp_path / "unmounted").rename(tmp_path / "beta")
    assert result.export is not None
    assert small.listed() == [("alpha", earlier.export_id), ("beta", result.export.export_id)]


@pytest.mark.parametrize("damage", ["manifest", "disk", "replaced"])
def test_nothing_is_removed_when_the_new_export_is_not_valid_any_more(small: SmallCluster, tmp_path: Path, damage: str) -> None:
    earlier = small.exported("alpha")

    def spoil() -> None:
        (new,) = (tmp_path / "beta" / INSTANCE).iterdir()
        if damage == "manifest":
            (new / "manifest.json").write_text("{}")
        elif damage == "disk":
            next(new.glob("disk-0.raw*")).unlink()
        else:
            shutil.rmtree(new)
            new.mkdir()

    result = small.export("beta", on_event=when_cleaning(spoil))
    assert (result.exit_code, result.removed) == (4, ())
    found = diskhaul.list_exports(config=small.cluster(), plugins=small.plugins).exports
    assert [record.export_id for record in found if record.valid] == [earlier.export_id]


def test_what_somebody_reads_is_kept_and_told_and_the_others_go(small: SmallCluster) -> None:
    keeping = small.cluster(backends={"cleanup": "none"})
    read, other = small.exported("alpha", config=keeping), small.exported("gamma", config=keeping)
    locks = LockSet(RunContext(small.cluster(), plugins=small.plugins), "somebody who verifies")
    with locks.acquire(LockLevel.EXPORT, {read.export_id: LockMode.SHARED}, 10.0):
        result = small.export("beta", lock_timeout_s=0.2)
    assert result.exit_code == 4
    assert [record.export_id for record in result.removed] == [other.export_id]
    assert any(read.export_id in line and "was not removed" in line for line in result.incomplete)
    assert small.unfinished() == 0


def test_while_earlier_exports_go_nobody_may_remove_the_new_one(small: SmallCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    from diskhaul_plugins.transfers.directory import DirectoryStore

    small.exported("alpha")
    remove = DirectoryStore.remove
    tried: list[diskhaul.LockTimeoutError] = []

    def tried_meanwhile(store: DirectoryStore, instance: str, export_id: str, /) -> None:
        (new,) = (export_id for node, export_id in small.listed() if node == "beta")
        locks = LockSet(RunContext(small.cluster(), plugins=small.plugins), "somebody who removes")
        with pytest.raises(diskhaul.LockTimeoutError) as caught:
            locks.acquire(LockLevel.EXPORT, {new: LockMode.EXCLUSIVE}, 0.0)
        tried.append(caught.value)
        remove(store, instance, export_id)

    monkeypatch.setattr(DirectoryStore, "remove", tried_meanwhile)
    result = small.export("beta")
    assert (result.exit_code, len(result.removed), len(tried)) == (0, 1, 1)


def test_without_a_read_back_nothing_is_removed(small: SmallCluster) -> None:
    small.exported("alpha")
    result = small.export("beta", verify="none")
    assert (result.exit_code, result.removed) == (0, ())
    assert any("earlier exports are kept" in line for line in result.warnings)
    assert len(small.listed()) == 2
