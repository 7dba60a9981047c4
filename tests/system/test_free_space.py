"""Exports leave out what is free on guests' disks, say so, and go on when nothing can be known."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

import diskhaul
from diskhaul.api import Snapshots
from diskhaul.cli.render import export_text, plan_text
from diskhaul.events import FreeSpaceFound
from diskhaul.formats.manifest import DISK_REGIONS, Manifest
from diskhaul.testing import ScriptedRuntime
from diskhaul_plugins.storages.raw import RawReader
from diskhaul_plugins.zerofills.skip import SkipZeroFill

MIB = 1 << 20
SWAP_AT, SWAP_SIZE = 8 * MIB, 16 * MIB
SIZE = 32 * MIB
FREE = (SWAP_AT + 4096, SWAP_SIZE - 4096)
OPTIONS = diskhaul.ExportOptions(zero_free_space=True)


@pytest.fixture
def cluster(tmp_path: Path, requires: Callable[..., None]) -> diskhaul.Cluster:
    """A guest that is off, with a disk full of bytes: a partition with something unknown, and one with swap space."""
    requires("sfdisk", "mkswap")
    for name in ("alpha", "beta"):
        (tmp_path / name).mkdir()
    disk, space = tmp_path / "disk.raw", tmp_path / "swap"
    disk.write_bytes(b"some other data " * (SIZE // 16))
    table = "label: gpt\nstart=2048, size=8192\nstart=16384, size=32768\n"
    subprocess.run(["sfdisk", "-q", "--wipe", "always", str(disk)], input=table, text=True, check=True)
    space.write_bytes(b"swapped out some" * (SWAP_SIZE // 16))
    subprocess.run(["mkswap", "-L", "\x1b[31mred", str(space)], check=True, capture_output=True)
    with open(disk, "r+b") as file, open(space, "rb") as content:
        file.seek(SWAP_AT)
        shutil.copyfileobj(content, file)
    return diskhaul.Cluster(
        name="lab",
        state_dir=tmp_path / "state",
        nodes=[diskhaul.Node(name=name, export_dir=tmp_path / name) for name in ("alpha", "beta")],
        instances=[diskhaul.Instance(name="vm", node="alpha", disks=[diskhaul.Disk(path=disk)])],
    )


def zeroed(content: bytes, ranges: Sequence[tuple[int, int]]) -> bytes:
    changed = bytearray(content)
    for offset, length in ranges:
        changed[offset : offset + length] = bytes(length)
    return bytes(changed)


@pytest.mark.parametrize("chunk_size", [64 << 10, 4 << 20])
def test_a_restored_disk_is_the_same_but_for_what_was_free_which_is_zero(
    cluster: diskhaul.Cluster, tmp_path: Path, chunk_size: int
) -> None:
    before = (tmp_path / "disk.raw").read_bytes()
    options = diskhaul.ExportOptions(zero_free_space=True, chunk_size=chunk_size, verify="full")
    result = diskhaul.export("vm", node="beta", config=cluster, options=options)
    assert result.warnings == ()
    (disk,) = result.disks
    assert disk.free_bytes == FREE[1]
    assert disk.bytes_read == SIZE - FREE[1]
    assert (tmp_path / "disk.raw").read_bytes() == before
    diskhaul.import_("vm", config=cluster, to_dir=tmp_path / "back")
    assert (tmp_path / "back/disk-0.raw").read_bytes() == zeroed(before, [FREE])


def test_what_was_found_is_told_everywhere(cluster: diskhaul.Cluster) -> None:
    told: list[Any] = []
    result = diskhaul.export("vm", node="beta", config=cluster, options=OPTIONS, on_event=told.append)
    regions = result.disks[0].regions
    assert [(r.place, r.type, r.skipped, r.kept) for r in regions] == [
        ("disk", "gpt", 0, ""),
        ("partition 1", "unknown", 0, "nothing that is known"),
        ("partition 2", "swap", FREE[1], ""),
    ]
    (event,) = [event for event in told if isinstance(event, FreeSpaceFound)]
    assert (event.disk, event.backend, event.skipped, event.regions) == (0, "skip", FREE[1], regions)
    assert result.plan.disks[0].regions == regions
    assert result.plan.disks[0].free_bytes == FREE[1]
    assert result.plan.disks[0].data_bytes == SIZE - FREE[1]
    assert result.plan.disks[0].free_basis == "skip: from the disk as it is now"
    assert "find what is free on its disks, to leave it out (skip)" in result.plan.steps
    assert result.export is not None
    manifest = Manifest.from_bytes((Path(result.export.path) / "manifest.json").read_bytes())
    assert manifest.disks[0].regions == regions
    assert DISK_REGIONS in manifest.required_features


def test_what_a_guest_calls_its_filesystems_cannot_act_on_a_terminal(cluster: diskhaul.Cluster) -> None:
    result = diskhaul.export("vm", node="beta", config=cluster, options=OPTIONS)
    assert result.disks[0].regions[2].label == "\x1b[31mred"
    for text in (export_text(result), plan_text(result.plan)):
        assert "\x1b" not in text
        assert "\\x1b[31mred" in text
        assert "nothing that is known" in text


def test_an_export_without_it_says_nothing_of_it(cluster: diskhaul.Cluster) -> None:
    result = diskhaul.export("vm", node="beta", config=cluster)
    assert result.disks[0].regions == result.plan.disks[0].regions == ()
    assert result.export is not None
    content = json.loads((Path(result.export.path) / "manifest.json").read_bytes())
    assert content["required_features"] == []
    assert "regions" not in content["disks"][0]


def test_a_plan_says_beforehand_what_would_be_saved(cluster: diskhaul.Cluster) -> None:
    plan = diskhaul.plan("vm", node="beta", config=cluster, options=OPTIONS)
    without = diskhaul.plan("vm", node="beta", config=cluster)
    assert plan.disks[0].free_bytes == FREE[1]
    assert plan.disks[0].data_bytes == without.disks[0].data_bytes - FREE[1]
    assert "16.0 MiB (skip: from the disk as it is now)" in plan_text(plan)
    assert "Free space:" not in plan_text(without)


class Misbehaves(SkipZeroFill):
    """Its process runs a reader that does `body`."""

    name: ClassVar[str] = "bad"
    families: ClassVar[Sequence[str]] = ("bad",)

    def __init__(self, body: str) -> None:
        self._timeout_s = 2.0
        self._body = body

    @property
    def program(self) -> str:  # type: ignore[override]
        return f"""
import sys, types, os, ctypes, threading
from diskhaul_plugins.guest_disks import readers
from diskhaul_plugins.guest_disks.child import start
lock = threading.Lock()
lock.acquire()
def read(volume):
    {self._body}
sys.modules["bad"] = types.ModuleType("bad")
sys.modules["bad"].read = read
readers.READERS = (readers.ReaderEntry("bad", "bad", "read"),)
start()
"""

    @diskhaul.hookimpl
    def diskhaul_zerofills(self) -> Iterator[diskhaul.ZeroFillSpec]:
        yield diskhaul.ZeroFillSpec(name="bad", create=lambda context: self)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param("ctypes.string_at(8)", "killed by SIGSEGV", id="crash"),
        pytest.param("lock.acquire()", "took too long", id="hang"),
        pytest.param("os.write(1, b'\\0' * 5000); os._exit(0)", "answered nonsense", id="nonsense"),
        pytest.param("\n    while True: os.write(1, b'x' * 65536)", "says too much", id="flood"),
    ],
)
def test_a_reader_that_misbehaves_means_a_warning_and_that_nothing_is_left_out(
    cluster: diskhaul.Cluster, tmp_path: Path, body: str, why: str
) -> None:
    before = (tmp_path / "disk.raw").read_bytes()
    options = diskhaul.ExportOptions(zero_free_space=True, zero_fill="bad")
    result = diskhaul.export("vm", node="beta", config=cluster, options=options, plugins=[Misbehaves(body)])
    (warning,) = result.warnings
    assert "nothing is skipped as free: bad: " in warning
    assert why in warning
    assert why in result.plan.disks[0].free_basis
    assert (result.disks[0].free_bytes, result.disks[0].regions) == (0, ())
    diskhaul.import_("vm", config=cluster, to_dir=tmp_path / "back")
    assert (tmp_path / "back/disk-0.raw").read_bytes() == before


def test_a_reader_that_wants_too_much_memory_keeps_what_it_was_to_read(cluster: diskhaul.Cluster) -> None:
    options = diskhaul.ExportOptions(zero_free_space=True, zero_fill="bad")
    result = diskhaul.export("vm", node="beta", config=cluster, options=options, plugins=[Misbehaves("bytearray(1 << 31)")])
    assert result.warnings == ()
    assert {region.kept for region in result.disks[0].regions[1:]} == {"cannot be understood: MemoryError"}


def test_a_damaged_table_means_that_nothing_is_left_out_and_the_export_says_why(
    cluster: diskhaul.Cluster, tmp_path: Path
) -> None:
    with open(tmp_path / "disk.raw", "r+b") as file:
        file.seek(600)
        file.write(b"\xff")
    before = (tmp_path / "disk.raw").read_bytes()
    result = diskhaul.export("vm", node="beta", config=cluster, options=OPTIONS)
    (region,) = result.disks[0].regions
    assert (region.type, region.kept) == ("partition table", "the first GPT header's checksum is wrong")
    diskhaul.import_("vm", config=cluster, to_dir=tmp_path / "back")
    assert (tmp_path / "back/disk-0.raw").read_bytes() == before


def test_cancelling_while_free_space_is_looked_for_ends_the_export(cluster: diskhaul.Cluster, tmp_path: Path) -> None:
    token = diskhaul.CancellationToken()

    class Cancels(Misbehaves):
        def inspect(self, disk: Any, reader: Any, /) -> Any:
            token.cancel("enough")
            return super().inspect(disk, reader)

    options = diskhaul.ExportOptions(zero_free_space=True, zero_fill="bad")
    with pytest.raises(diskhaul.InterruptedRunError, match="enough"):
        diskhaul.export("vm", node="beta", config=cluster, options=options, plugins=[Cancels("lock.acquire()")], cancel=token)
    assert list((tmp_path / "beta").rglob("manifest.json")) == []


class Copies(Snapshots):
    """Snapshots that are copies. As soon as one is there, the guest goes on and writes other things to its disk."""

    def __init__(self, meanwhile: Callable[[Path], None]) -> None:
        self._meanwhile = meanwhile

    @diskhaul.hookimpl
    def diskhaul_snapshots(self) -> Iterator[diskhaul.SnapshotSpec]:
        yield diskhaul.SnapshotSpec(name="copies", create=lambda context: self)

    def refuses(self, disk: diskhaul.Disk, /) -> str | None:
        return None

    def plan(self, disk: diskhaul.Disk, run_id: str, /) -> diskhaul.Snapshot:
        return diskhaul.Snapshot(backend="copies", disk=disk, run_id=run_id, reference=f"{disk.path}.{run_id}")

    def create(self, snapshot: diskhaul.Snapshot, /) -> None:
        assert snapshot.disk.path is not None
        shutil.copyfile(snapshot.disk.path, snapshot.reference)
        self._meanwhile(snapshot.disk.path)

    def open(self, snapshot: diskhaul.Snapshot, /) -> RawReader:
        path = Path(snapshot.reference)
        return RawReader(os.open(path, os.O_RDONLY), path.stat().st_size, str(path))

    def exists(self, snapshot: diskhaul.Snapshot, /) -> bool:
        return Path(snapshot.reference).exists()

    def remove(self, snapshot: diskhaul.Snapshot, /) -> None:
        Path(snapshot.reference).unlink(missing_ok=True)


@pytest.mark.parametrize("shutdown", [False, True])
def test_what_is_free_is_found_in_what_is_sent_and_not_on_the_disk_of_a_guest_that_runs(
    cluster: diskhaul.Cluster, tmp_path: Path, shutdown: bool
) -> None:
    before = (tmp_path / "disk.raw").read_bytes()

    def writes(path: Path) -> None:
        """The guest gives up its swap space, and makes a larger one over everything behind its first partition."""
        space = tmp_path / "larger"
        with open(space, "wb") as file:
            file.truncate(SIZE - SWAP_AT - MIB)
        subprocess.run(["mkswap", str(space)], check=True, capture_output=True)
        with open(path, "r+b") as disk, open(space, "rb") as content:
            disk.seek(SWAP_AT)
            shutil.copyfileobj(content, disk)
        subprocess.run(["sfdisk", "-q", "-N2", str(path)], input="16384, 47104\n", text=True, check=True)

    guest = ScriptedRuntime(running=["vm"])
    (instance,) = cluster.instances
    running = replace(cluster, instances=[replace(instance, runtime="scripted", state="up")])
    options = diskhaul.ExportOptions(zero_free_space=True, shutdown=shutdown)
    result = diskhaul.export("vm", node="beta", config=running, options=options, plugins=[guest, Copies(writes)])
    assert result.consistency == ("stopped" if shutdown else "crash")
    assert (tmp_path / "disk.raw").read_bytes() != before
    assert result.disks[0].free_bytes == FREE[1]
    assert result.plan.disks[0].free_basis == "skip: an estimate, since the guest is running and writes to the disk"
    diskhaul.import_("vm", config=cluster, to_dir=tmp_path / "back")
    assert (tmp_path / "back/disk-0.raw").read_bytes() == zeroed(before, [FREE])
