"""A cluster of three directories whose guest is in memory: what is tested here is the order of things, not the system."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import diskhaul
from diskhaul.api import BackendContext, DiskReader, Snapshots
from diskhaul.journal import Journal
from diskhaul.testing import ScriptedRuntime

INSTANCE = "web1.example.com"
NODES = ("alpha", "beta", "gamma")
END_S = 30.0


class CopySnapshots(Snapshots):
    """Snapshots that are copies beside the disk: the plugin and its backend. `disturb` is called with the name of each call."""

    def __init__(self, disturb: Callable[[str], object] = lambda call: None) -> None:
        self._disturb = disturb

    @diskhaul.hookimpl
    def diskhaul_snapshots(self) -> Iterable[diskhaul.SnapshotSpec]:
        yield diskhaul.SnapshotSpec(name="copy", create=self._create)

    def _create(self, context: BackendContext) -> Snapshots:
        return self

    def refuses(self, disk: diskhaul.Disk, /) -> str | None:
        return None

    def plan(self, disk: diskhaul.Disk, run_id: str, /) -> diskhaul.Snapshot:
        self._disturb("plan")
        return diskhaul.Snapshot(backend="copy", disk=disk, run_id=run_id, reference=f"{disk.path}.{run_id}.snap")

    def create(self, snapshot: diskhaul.Snapshot, /) -> None:
        self._disturb("create")
        shutil.copy(str(snapshot.disk.path), snapshot.reference)

    def open(self, snapshot: diskhaul.Snapshot, /) -> DiskReader:
        from diskhaul_plugins.storages.raw import RawReader

        descriptor = os.open(snapshot.reference, os.O_RDONLY)
        return RawReader(descriptor, os.fstat(descriptor).st_size, snapshot.reference)

    def exists(self, snapshot: diskhaul.Snapshot, /) -> bool:
        return Path(snapshot.reference).exists()

    def remove(self, snapshot: diskhaul.Snapshot, /) -> None:
        self._disturb("remove")
        Path(snapshot.reference).unlink(missing_ok=True)


@dataclass
class SmallCluster:
    """A cluster with one instance. Replace `runtime` and `snapshots` before the first operation."""

    path: Path
    runtime: ScriptedRuntime = field(default_factory=lambda: ScriptedRuntime(running={INSTANCE}))
    snapshots: CopySnapshots = field(default_factory=CopySnapshots)
    disk_count: int = 1
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def state_dir(self) -> Path:
        return self.path / "state"

    @property
    def plugins(self) -> list[object]:
        return [self.runtime, self.snapshots]

    def instance(self) -> diskhaul.Instance:
        disks = []
        for index in range(self.disk_count):
            path = self.path / "disks" / f"{index}.raw"
            if not path.exists():
                path.write_bytes(random.Random(index).randbytes(700_000))
            disks.append(diskhaul.Disk(path=path, snapshot="copy"))
        return diskhaul.Instance(name=INSTANCE, node="alpha", runtime="scripted", disks=disks)

    def cluster(self, **changes: Any) -> diskhaul.Cluster:
        fields: dict[str, Any] = {
            "name": "small",
            "master": "alpha",
            "state_dir": self.state_dir,
            "nodes": [diskhaul.Node(name=name, export_dir=self.path / name) for name in NODES],
            "instances": [self.instance()],
        }
        return diskhaul.Cluster(**(fields | self.settings | changes))

    def export(self, node: str = "beta", **more: Any) -> diskhaul.ExportResult:
        own = {key: more.pop(key) for key in ("on_event", "cancel", "config", "plugins") if key in more}
        options = diskhaul.ExportOptions(**({"chunk_size": 64 << 10, "threads": 2, "lock_timeout_s": 30.0} | more))
        config = own.pop("config", None) or self.cluster()
        plugins = [*self.plugins, *own.pop("plugins", ())]
        return diskhaul.export(INSTANCE, node=node, config=config, options=options, plugins=plugins, **own)

    def exported(self, node: str = "beta", **more: Any) -> diskhaul.ExportRecord:
        """An export that has to succeed."""
        result = self.export(node, **more)
        assert result.exit_code == 0, result.incomplete
        assert result.export is not None
        return result.export

    def recover(self, **more: Any) -> diskhaul.RecoverResult:
        return diskhaul.recover(config=self.cluster(), plugins=self.plugins, **more)

    def listed(self) -> list[tuple[str, str]]:
        """Node and id of every export; one that is not valid fails the test."""
        found = diskhaul.list_exports(config=self.cluster(), plugins=self.plugins).exports
        assert [record.problem for record in found if record.problem] == []
        return [(record.node, record.export_id) for record in found]

    def notes(self) -> list[str]:
        """What unfinished runs have noted."""
        return [note.kind for run in Journal(self.state_dir).unfinished() for note in run.notes]

    def unfinished(self) -> int:
        return len(Journal(self.state_dir).unfinished())

    def leftovers(self) -> list[str]:
        """Snapshots, unfinished exports, and those being removed."""
        paths = [*self.path.glob("disks/*.snap"), *self.path.glob("*/*/.*.partial"), *self.path.glob("*/*/.*.removing")]
        return sorted(str(path) for path in paths)


def calls_left_behind_end() -> None:
    """Wait until calls to plugins that were left behind have ended."""
    for thread in threading.enumerate():
        if thread.name.startswith("diskhaul"):
            thread.join(END_S)
            assert not thread.is_alive(), thread.name


@pytest.fixture
def calls_end() -> Callable[[], None]:
    return calls_left_behind_end


@pytest.fixture
def small(tmp_path: Path) -> SmallCluster:
    for name in (*NODES, "disks"):
        (tmp_path / name).mkdir(mode=0o700)
    return SmallCluster(tmp_path)


@pytest.fixture
def copy_snapshots() -> type[CopySnapshots]:
    return CopySnapshots


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guests are retried, and watched, for seconds; here nothing is won by waiting."""
    monkeypatch.setattr("diskhaul.operations.guest.RETRY_PAUSES_S", (0.001,) * 3)
    monkeypatch.setattr("diskhaul.operations.guest._SETTLE_S", 0.01)
    monkeypatch.setattr("diskhaul.operations.guest._WATCH_PAUSE_S", 0.001)
