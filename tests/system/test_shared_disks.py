"""Raw exports on the disk's own filesystem: nothing is copied, and they are as good as any, at once or after a verify."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import diskhaul
import diskhaul_native as native
from diskhaul.api import LockMode
from diskhaul.errors import OperationFailedError, RefusedError
from diskhaul.events import DiskProgress, Event, StageFinished, StageStarted
from diskhaul.formats.manifest import DIGESTS_LATER, Manifest
from diskhaul.operations.base import LockLevel, LockSet, RunContext

from .test_killed import Killing

if TYPE_CHECKING:
    from .conftest import Lab, Unchanged

INSTANCE = "web1.example.com"
MIB = 1 << 20
CHUNK = 256 << 10
SIZE = 24 * MIB + 5 * 512
Filesystems = Callable[..., Any]
OLD_FEATURES: frozenset[str] = frozenset()


@dataclass
class Shared:
    """A cluster whose node ``alpha`` has its exports on the disks' filesystem, and ``beta`` elsewhere."""

    path: Path
    elsewhere: Path
    disks: list[Path] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        for directory in (self.path / "exports", self.elsewhere / "exports"):
            directory.mkdir(mode=0o700)

    def add_disk(self, size: int = SIZE) -> Path:
        path = self.path / f"disk{len(self.disks)}.raw"
        generator = random.Random(len(self.disks))
        with open(path, "wb") as file:
            file.write(generator.randbytes(size // 2))
            file.seek(size - size // 8)
            file.write(generator.randbytes(size // 16))
            file.seek(size - size % 4096)
            file.write(generator.randbytes(size % 4096))  # in the last block, which is not full
            file.truncate(size)
        self.disks.append(path)
        self.contents.append(path.read_bytes())
        return path

    def cluster(self, **changes: Any) -> diskhaul.Cluster:
        fields: dict[str, Any] = {
            "name": "lab",
            "state_dir": self.elsewhere / "state",
            "nodes": [
                diskhaul.Node(name="alpha", export_dir=self.path / "exports"),
                diskhaul.Node(name="beta", export_dir=self.elsewhere / "exports"),
            ],
            "instances": [
                diskhaul.Instance(
                    name=INSTANCE,
                    node="alpha",
                    state="down",
                    disks=[
                        diskhaul.Disk(path=path, size=len(content))
                        for path, content in zip(self.disks, self.contents, strict=True)
                    ],
                )
            ],
        }
        return diskhaul.Cluster(**(fields | changes))

    def export(self, node: str = "alpha", **more: Any) -> diskhaul.ExportResult:
        own = {key: more.pop(key) for key in ("plugins", "on_event", "config") if key in more}
        options = diskhaul.ExportOptions(**({"compress": "none", "chunk_size": CHUNK} | more))
        return diskhaul.export(INSTANCE, node=node, options=options, **({"config": self.cluster()} | own))

    def exported(self, node: str = "alpha", **more: Any) -> diskhaul.ExportRecord:
        result = self.export(node, **more)
        assert result.exit_code == 0, result.incomplete
        assert result.export is not None
        return result.export

    def verify(self, name: str | None = INSTANCE, **more: Any) -> diskhaul.VerifyResult:
        return diskhaul.verify(name, config=self.cluster(), **more)

    def listed(self) -> list[diskhaul.ExportRecord]:
        return list(diskhaul.list_exports(INSTANCE, config=self.cluster()).exports)

    def restored(self, record: diskhaul.ExportRecord, name: str = "restored") -> list[bytes]:
        target = self.elsewhere / name
        result = diskhaul.import_(record.path, to_dir=target)
        assert bool(result.warnings) != record.digests
        contents = [(target / f"disk-{index}.raw").read_bytes() for index in range(record.disk_count)]
        shutil.rmtree(target)
        return contents

    def used_bytes(self) -> int:
        subprocess.run(["sync", "-f", str(self.path)], check=True)
        status = os.statvfs(self.path)
        return (status.f_blocks - status.f_bfree) * status.f_frsize


@pytest.fixture(params=["xfs", "btrfs"])
def shared(request: pytest.FixtureRequest, loop_filesystem: Filesystems, tmp_path: Path) -> Shared:
    return Shared(loop_filesystem(request.param).path, tmp_path)


@pytest.fixture
def on_xfs(loop_filesystem: Filesystems, tmp_path: Path) -> Shared:
    """The same, where the filesystem makes no difference."""
    return Shared(loop_filesystem("xfs").path, tmp_path)


def manifest_of(record: diskhaul.ExportRecord) -> Manifest:
    return Manifest.from_bytes(Path(record.path, "manifest.json").read_bytes())


def same_blocks(first: Path, second: Path) -> bool:
    """Whether both files are held by the same blocks, to the last byte."""
    with open(first, "rb") as ours, open(second, "rb") as theirs:
        size = os.fstat(ours.fileno()).st_size
        return native.shared_blocks(ours.fileno(), theirs.fileno(), size).end == size


def names(record: diskhaul.ExportRecord) -> list[str]:
    return sorted(os.listdir(record.path))


# --- digests now --------------------------------------------------------------------------------------------------------


def test_an_export_shares_the_disks_blocks_is_read_once_and_is_what_a_copy_would_be(shared: Shared) -> None:
    for size in (SIZE, MIB, 0):
        shared.add_disk(size)
    read: dict[str, int] = {}

    def note(event: Event) -> None:
        if isinstance(event, DiskProgress) and event.finished:
            read[event.activity] = read.get(event.activity, 0) + event.read

    before = shared.used_bytes()
    result = shared.export(on_event=note)
    assert shared.used_bytes() - before < 2 * MIB
    assert (result.exit_code, result.warnings) == (0, ())
    data = sum(disk.data_bytes for disk in result.disks)
    assert read == {"send": 0, "digest": data, "verify": 0}
    assert [(disk.bytes_written, disk.bytes_shared) for disk in result.disks] == [(0, disk.data_bytes) for disk in result.disks]
    assert sum(disk.bytes_read for disk in result.disks) == data
    record = result.export
    assert record is not None
    assert record.digests
    assert all(same_blocks(path, Path(record.path, f"disk-{index}.raw")) for index, path in enumerate(shared.disks))
    assert (shared.verify().findings, shared.verify().recorded) == ((), ())

    copied = shared.export("beta")
    assert copied.removed == (record,)  # for what supersedes it was read back, too
    assert [disk.root_digest for disk in copied.disks] == [disk.root_digest for disk in result.disks]
    assert [disk.bytes_shared for disk in copied.disks] == [0, 0, 0]


def test_what_is_written_to_the_disk_afterwards_is_not_in_the_export(shared: Shared) -> None:
    path = shared.add_disk()
    record = shared.exported()
    with open(path, "r+b") as disk:
        disk.write(b"changed" * 100_000)
        os.fsync(disk.fileno())
    assert shared.restored(record) == shared.contents
    assert shared.verify().findings == ()
    path.unlink()
    assert shared.restored(record) == shared.contents


def test_a_new_export_supersedes_the_earlier_ones_as_ever(shared: Shared) -> None:
    shared.add_disk()
    first = shared.exported()
    second = shared.export()
    assert second.removed == (first,)
    assert shared.listed() == [second.export]


def test_a_byte_that_changes_in_the_export_is_found(shared: Shared) -> None:
    shared.add_disk()
    record = shared.exported()
    with open(Path(record.path, "disk-0.raw"), "r+b") as file:
        file.seek(5 * CHUNK + 17)
        byte = file.read(1)[0]
        file.seek(5 * CHUNK + 17)
        file.write(bytes([byte ^ 1]))
    (finding,) = shared.verify().findings
    assert (finding.disk, finding.offset) == (0, 5 * CHUNK)
    with pytest.raises(diskhaul.VerificationError, match="digest mismatch"):
        shared.restored(record)


def test_ganeti_s_layout_is_what_it_is_as_a_copy(shared: Shared) -> None:
    shared.add_disk()
    keeping = shared.cluster(backends={"cleanup": "none"})
    first = shared.exported(layout="ganeti", config=keeping)
    second = shared.exported("beta", layout="ganeti", config=keeping)
    (dump,) = (disk.file for disk in manifest_of(first).disks)
    assert names(first) == sorted([dump, "config.ini", "disk-0.chunks", "manifest.json"])
    assert len(names(second)) == 4
    assert Path(first.path, dump).read_bytes() == shared.contents[0]
    assert manifest_of(first).disks[0].root_digest == manifest_of(second).disks[0].root_digest
    assert shared.verify().findings == ()


@pytest.mark.parametrize("digest", ["now", "later"])
def test_a_disk_on_another_filesystem_is_copied_beside_those_that_are_not(shared: Shared, digest: str) -> None:
    shared.add_disk()
    other = shared.elsewhere / "other.raw"
    other.write_bytes(os.urandom(3 * MIB))
    shared.disks.append(other)
    shared.contents.append(other.read_bytes())
    result = shared.export(digest=digest)
    assert result.export is not None
    assert [disk.shared for disk in result.plan.disks] == [True, False]
    assert [(disk.bytes_written > 0, disk.bytes_shared > 0) for disk in result.disks] == [(False, True), (True, False)]
    assert [bool(disk.root_digest) for disk in result.disks] == [digest == "now", True]
    assert any("disk 1" in warning and "digests are made now" in warning for warning in result.warnings) == (digest == "later")
    assert names(result.export) == sorted(
        ["disk-0.raw", "disk-1.raw", "disk-1.chunks", "manifest.json", *(["disk-0.chunks"] if digest == "now" else [])]
    )
    assert shared.restored(result.export) == shared.contents
    verified = shared.verify()
    assert (verified.findings, len(verified.recorded)) == ((), 1 if digest == "later" else 0)
    assert shared.verify().recorded == ()
    assert shared.restored(shared.listed()[0]) == shared.contents


def test_a_compressed_export_is_none_of_this(on_xfs: Shared) -> None:
    on_xfs.add_disk()
    result = on_xfs.export(compress="zstd:1")
    assert result.disks[0].bytes_shared == 0
    assert not result.plan.disks[0].shared
    assert any("send 1 disk(s) to alpha" in step for step in result.plan.steps)


@pytest.mark.parametrize("digest", ["now", "later"])
def test_a_compressed_file_is_shared_and_read_since_nobody_can_tell_its_blocks(
    loop_filesystem: Filesystems, tmp_path: Path, requires: Callable[..., None], digest: str
) -> None:
    requires("btrfs")
    shared = Shared(loop_filesystem("btrfs").path, tmp_path)
    subprocess.run(["btrfs", "property", "set", str(shared.path), "compression", "zstd"], check=True)
    path = shared.path / "disk0.raw"
    path.write_bytes(b"text that compresses; " * 500_000)
    shared.disks, shared.contents = [path], [path.read_bytes()]
    before = shared.used_bytes()
    result = shared.export(digest=digest)
    assert shared.used_bytes() - before < 2 * MIB
    assert result.export is not None
    assert result.export.digests
    assert (result.disks[0].bytes_read, result.disks[0].bytes_written) == (len(shared.contents[0]), 0)
    assert [("does not tell which blocks" in warning) for warning in result.warnings] == ([True] if digest == "later" else [])
    assert shared.restored(result.export) == shared.contents
    assert shared.verify().findings == ()


def test_an_xfs_without_reflinks_gets_a_copy(loop_filesystem: Filesystems, tmp_path: Path) -> None:
    shared = Shared(loop_filesystem("xfs", mkfs_options=("-m", "reflink=0")).path, tmp_path)
    shared.add_disk()
    result = shared.export(digest="later")
    assert result.export is not None
    assert result.export.digests
    assert not result.plan.disks[0].shared
    assert result.disks[0].bytes_shared == 0
    assert shared.restored(result.export) == shared.contents


def test_disks_of_other_subvolumes_are_shared(
    loop_filesystem: Filesystems, tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("btrfs")
    btrfs = loop_filesystem("btrfs").path
    for name in ("disks", "store"):
        subprocess.run(["btrfs", "subvolume", "create", str(btrfs / name)], check=True, capture_output=True)
    shared = Shared(btrfs / "store", tmp_path)
    shared.path = btrfs / "disks"
    shared.add_disk()
    shared.path = btrfs / "store"
    result = shared.export()
    assert result.disks[0].bytes_shared > 0
    assert result.export is not None
    assert shared.restored(result.export) == shared.contents


# --- running guests -----------------------------------------------------------------------------------------------------


@pytest.fixture
def guest_lab(lab: Lab) -> Iterator[Lab]:
    """A lab whose node beta has its exports on the disks' filesystem."""
    exports = lab.disks.with_name(f"{lab.disks.name}-exports")
    exports.mkdir(mode=0o700)
    lab.node_settings["beta"] = {"export_dir": str(exports)}
    yield lab
    shutil.rmtree(exports)


@pytest.mark.parametrize("shutdown", [True, False])
@pytest.mark.parametrize("digest", ["now", "later"])
def test_a_running_guest_s_snapshots_are_shared_and_gone_before_anything_is_read(
    guest_lab: Lab, shutdown: bool, digest: str
) -> None:
    guest = guest_lab.add_guest(disks=2)
    snapshots: dict[str, int] = {}

    def look(event: Event) -> None:
        if isinstance(event, StageFinished | StageStarted):
            snapshots[f"{event.stage} {event.kind}"] = len(list(guest_lab.disks.glob(".*.snap")))

    result = guest_lab.export(compress="none", shutdown=shutdown, digest=digest, on_event=look)
    assert snapshots["snapshot stage-finished"] == 2
    assert snapshots["send stage-finished"] == 0
    assert guest.running
    assert result.export is not None
    assert all(disk.bytes_shared and not disk.bytes_written for disk in result.disks)
    guest_lab.check_bytes(result.export, running=not shutdown)
    assert diskhaul.verify(INSTANCE, config=guest_lab.cluster()).findings == ()


def test_a_guest_that_has_no_snapshots_is_up_again_before_its_disks_are_read(guest_lab: Lab) -> None:
    guest = guest_lab.add_guest()
    config = guest_lab.cluster(instances=[_without_snapshots(guest_lab.instances[INSTANCE])])
    order: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, StageStarted):
            order.append(event.stage)

    result = guest_lab.export(compress="none", long_sleep=True, config=config, on_event=note, plugins=[NoSnapshots()])
    assert result.export is not None
    assert result.plan.downtime == "transfer"
    assert order.index("send") < order.index("start") < order.index("digest")
    assert guest.running
    guest_lab.check_bytes(result.export)


def _without_snapshots(instance: diskhaul.Instance) -> diskhaul.Instance:
    return replace(instance, disks=[replace(disk, snapshot="none-at-all") for disk in instance.disks])


class NoSnapshots:
    """A snapshot backend that has none."""

    @diskhaul.hookimpl
    def diskhaul_snapshots(self) -> Iterator[diskhaul.SnapshotSpec]:
        yield diskhaul.SnapshotSpec(name="none-at-all", create=lambda context: self)

    def refuses(self, disk: diskhaul.Disk, /) -> str:
        return "none here"

    def _never(self, *_: Any) -> Any:
        raise AssertionError("it has refused")

    plan = create = open = exists = remove = _never


@pytest.mark.parametrize(("stage", "when"), [("send", "finished"), ("digest", "started"), ("publish", "started")])
def test_an_export_that_is_killed_is_recovered(
    guest_lab: Lab, unchanged: Callable[[Lab], Unchanged], stage: str, when: str
) -> None:
    guest_lab.add_guest(disks=2)
    killing = Killing(guest_lab, unchanged)
    assert killing.export(stage=stage, when=when, options="dict(compress='none')") is None
    assert list(guest_lab.disks.glob(".*.snap")) == []  # what is shared needs no snapshot any more
    exports = Path(guest_lab.node_settings["beta"]["export_dir"])
    assert len(list(exports.glob("*/.*.partial"))) == 1
    killing.check_listed()
    killing.recover()
    assert list(exports.glob("*/.*.partial")) == []
    result = guest_lab.export(compress="none")
    assert result.export is not None
    guest_lab.check_bytes(result.export)


# --- digests later ------------------------------------------------------------------------------------------------------


def test_nothing_is_read_and_the_export_says_that_it_has_no_digests(shared: Shared) -> None:
    shared.add_disk()
    shared.add_disk(MIB)
    earlier = shared.exported()
    activities: list[tuple[str, int]] = []

    def note(event: Event) -> None:
        if isinstance(event, DiskProgress) and event.finished:
            activities.append((event.activity, event.read))

    result = shared.export(digest="later", on_event=note)
    record = result.export
    assert record is not None
    assert activities == [("send", 0), ("send", 0)]
    assert (record.digests, record.valid) == (False, True)
    assert [disk.root_digest for disk in result.disks] == ["", ""]
    assert (result.removed, result.exit_code) == ((), 0)
    assert [warning for warning in result.warnings if "no digests yet" in warning]
    assert shared.listed() == [earlier, record]
    manifest = manifest_of(record)
    assert manifest.required_features == (DIGESTS_LATER,)
    assert [(disk.root_digest, disk.chunks_file, disk.stored_root) for disk in manifest.disks] == [("", "", "")] * 2
    assert [disk.data_bytes + disk.zero_bytes for disk in manifest.disks] == [SIZE, MIB]
    assert names(record) == ["disk-0.raw", "disk-1.raw", "manifest.json"]
    assert all(same_blocks(path, Path(record.path, f"disk-{index}.raw")) for index, path in enumerate(shared.disks))
    assert [Path(record.path, f"disk-{index}.raw").read_bytes() for index in range(2)] == shared.contents


def test_a_version_that_does_not_know_the_feature_refuses_the_export(on_xfs: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    on_xfs.add_disk()
    record = on_xfs.exported(digest="later")
    monkeypatch.setattr("diskhaul.formats.manifest.KNOWN_FEATURES", OLD_FEATURES)
    (listed,) = on_xfs.listed()
    assert "requires 'digests-later', which this one does not know" in listed.problem
    with pytest.raises(diskhaul.VerificationError, match="requires 'digests-later'"):
        diskhaul.import_(record.path, to_dir=on_xfs.elsewhere / "restored")
    (finding,) = on_xfs.verify().findings
    assert "requires 'digests-later'" in finding.problem


def test_the_plan_says_what_will_happen(on_xfs: Shared) -> None:
    on_xfs.add_disk()
    earlier = on_xfs.exported()

    def plan(node: str = "alpha", **options: Any) -> diskhaul.Plan:
        return diskhaul.plan(
            INSTANCE, node=node, config=on_xfs.cluster(), options=diskhaul.ExportOptions(compress="none", **options)
        )

    assert plan(digest="later").supersedes == ()
    assert "keep earlier exports, since the new one has no digests until it is verified" in plan(digest="later").steps
    assert plan().supersedes == plan("beta", digest="later").supersedes == (earlier,)
    assert [step for step in plan().steps if "share the blocks of 1 disk(s)" in step]
    assert "read what is shared, and make its digests" in plan().steps
    assert "read what is shared, and make its digests" not in plan(digest="later").steps
    assert plan().disks[0].stored_bytes < CHUNK < plan("beta").disks[0].stored_bytes


def test_a_disk_that_would_not_fit_a_second_time_is_exported_where_it_is_shared(
    loop_filesystem: Filesystems, tmp_path: Path
) -> None:
    shared = Shared(loop_filesystem("xfs", size_mib=400).path, tmp_path)
    shared.add_disk(400 * MIB)
    assert shutil.disk_usage(shared.path).free < 200 * MIB
    record = shared.exported()
    assert shared.verify().findings == ()
    assert record.disk_bytes == 400 * MIB


def test_verify_makes_the_digests_records_them_and_compares_from_then_on(shared: Shared) -> None:
    shared.add_disk()
    shared.add_disk(MIB)
    expected = [disk.root_digest for disk in shared.export("beta").disks]
    record = shared.exported(digest="later")
    before = manifest_of(record)

    first = shared.verify(f"web1@{record.export_id}")

    assert (first.exit_code, first.findings, first.skipped) == (0, (), ())
    assert [(found.export_id, found.digests) for found in first.recorded] == [(record.export_id, True)]
    assert first.checked == first.recorded
    assert first.bytes_checked > 0
    manifest = manifest_of(record)
    assert manifest.required_features == ()
    assert [disk.root_digest for disk in manifest.disks] == expected
    assert names(record) == ["disk-0.chunks", "disk-0.raw", "disk-1.chunks", "disk-1.raw", "manifest.json"]
    assert (manifest.export_id, manifest.created, manifest.instance) == (before.export_id, before.created, before.instance)
    again = shared.verify(f"web1@{record.export_id}")
    assert (again.exit_code, again.findings, again.recorded) == (0, (), ())
    assert shared.restored(next(found for found in shared.listed() if found.export_id == record.export_id)) == shared.contents

    with open(Path(record.path, "disk-1.raw"), "r+b") as file:
        file.seek(CHUNK + 1)
        file.write(b"!")
    damaged = shared.verify(f"web1@{record.export_id}")
    assert [(finding.disk, finding.offset) for finding in damaged.findings] == [(1, CHUNK)]
    assert damaged.exit_code == 6


def test_an_export_without_digests_is_imported_with_a_warning(shared: Shared) -> None:
    shared.add_disk()
    shared.add_disk(MIB)
    record = shared.exported(digest="later")
    shared.disks[0].unlink()
    target = shared.elsewhere / "by-name"
    result = diskhaul.import_("web1", config=shared.cluster(), to_dir=target)
    assert result.exit_code == 0
    assert [warning for warning in result.warnings if "disk(s) 0, 1" in warning and "could not be checked" in warning]
    assert [(target / f"disk-{index}.raw").read_bytes() for index in range(2)] == shared.contents
    assert shared.restored(record) == shared.contents


def test_a_stored_disk_of_another_size_is_damage_without_digests_too(on_xfs: Shared) -> None:
    on_xfs.add_disk()
    record = on_xfs.exported(digest="later")
    os.truncate(Path(record.path, "disk-0.raw"), SIZE - 1)
    assert "bytes" in on_xfs.listed()[0].problem
    assert on_xfs.verify().exit_code == 6
    with pytest.raises(diskhaul.VerificationError):
        diskhaul.import_(record.path, to_dir=on_xfs.elsewhere / "restored")
    assert manifest_of(record).required_features == (DIGESTS_LATER,)


def test_by_its_path_it_cannot_be_verified_since_nobody_is_kept_away(on_xfs: Shared) -> None:
    on_xfs.add_disk()
    record = on_xfs.exported(digest="later")
    with pytest.raises(RefusedError, match=f"diskhaul verify {INSTANCE}@{record.export_id}"):
        diskhaul.verify(record.path)
    assert manifest_of(record).required_features == (DIGESTS_LATER,)
    on_xfs.verify()
    assert diskhaul.verify(record.path).findings == ()


def test_what_was_damaged_before_it_had_digests_is_not_recorded(on_xfs: Shared) -> None:
    """One disk of two has digests, and is damaged: the other one's are not recorded beside it."""
    on_xfs.add_disk()
    other = on_xfs.elsewhere / "other.raw"
    other.write_bytes(os.urandom(MIB))
    on_xfs.disks.append(other)
    on_xfs.contents.append(other.read_bytes())
    record = on_xfs.exported(digest="later")
    with open(Path(record.path, "disk-1.raw"), "r+b") as file:
        file.write(b"damage")
    result = on_xfs.verify()
    assert [finding.disk for finding in result.findings] == [1]
    assert result.recorded == ()
    assert names(record) == ["disk-0.raw", "disk-1.chunks", "disk-1.raw", "manifest.json"]


def test_an_export_that_somebody_reads_is_recorded_later(on_xfs: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    on_xfs.add_disk()
    record = on_xfs.exported(digest="later")
    monkeypatch.setattr("diskhaul.operations.record_digests.RECORD_LOCK_S", 0.1)
    locks = LockSet(RunContext(on_xfs.cluster()), "somebody who reads")
    with locks.acquire(LockLevel.EXPORT, {record.export_id: LockMode.SHARED}, 10.0):
        result = on_xfs.verify()
    assert (result.exit_code, result.findings, result.recorded) == (4, (), ())
    (line,) = result.skipped
    assert "its digests were made and not recorded: lock export/" in line
    assert "somebody who reads" in line
    assert names(record) == ["disk-0.raw", "manifest.json"]
    assert len(on_xfs.verify().recorded) == 1


def test_an_export_that_is_removed_before_its_digests_are_recorded_is_gone(on_xfs: Shared) -> None:
    on_xfs.add_disk()
    record = on_xfs.exported(digest="later")

    def remove(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "record":
            diskhaul.remove(f"web1@{record.export_id}", config=on_xfs.cluster())

    result = on_xfs.verify(on_event=remove)
    assert result.exit_code == 4
    assert "does not exist" in result.skipped[0]
    assert on_xfs.listed() == []
    assert list((on_xfs.path / "exports").glob("*/*")) == []


def test_two_that_verify_at_the_same_time_agree(on_xfs: Shared) -> None:
    on_xfs.add_disk()
    record = on_xfs.exported(digest="later")
    inner: list[diskhaul.VerifyResult] = []

    def verify_too(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "record" and not inner:
            inner.append(on_xfs.verify())

    outer = on_xfs.verify(on_event=verify_too)
    assert [result.exit_code for result in (outer, *inner)] == [0, 0]
    assert [len(result.recorded) for result in (outer, *inner)] == [1, 1]
    assert on_xfs.verify().findings == ()
    assert names(record) == ["disk-0.chunks", "disk-0.raw", "manifest.json"]


def test_digests_that_others_recorded_meanwhile_and_that_are_different_are_damage(on_xfs: Shared) -> None:
    on_xfs.add_disk()
    record = on_xfs.exported(digest="later")
    inner: list[diskhaul.VerifyResult] = []

    def change_and_verify(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "record" and not inner:
            with open(Path(record.path, "disk-0.raw"), "r+b") as file:
                file.write(b"changed")
            inner.append(on_xfs.verify())

    outer = on_xfs.verify(on_event=change_and_verify)
    assert inner[0].recorded
    assert (outer.exit_code, outer.recorded) == (6, ())
    assert "other digests than those that were recorded meanwhile" in outer.findings[0].problem


def test_a_store_that_cannot_be_written_keeps_its_export_as_it_is(on_xfs: Shared) -> None:
    on_xfs.add_disk()
    record = on_xfs.exported(digest="later")
    subprocess.run(["mount", "-o", "remount,ro", str(on_xfs.path)], check=True)
    try:
        result = on_xfs.verify()
        assert (result.exit_code, result.findings) == (4, ())
        assert "Read-only file system" in result.skipped[0]
        assert on_xfs.listed() == [record]
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(on_xfs.path)], check=True)
    assert len(on_xfs.verify().recorded) == 1


def test_an_unreadable_place_is_a_finding_and_nothing_is_recorded(on_xfs: Shared, requires: Callable[..., None]) -> None:
    requires("strace")
    on_xfs.add_disk()
    record = on_xfs.exported(digest="later")
    stored = Path(record.path, "disk-0.raw")
    program = (
        "import sys, diskhaul\n"
        "from pathlib import Path\n"
        "nodes = [diskhaul.Node(name='alpha', export_dir=Path(sys.argv[1]))]\n"
        "config = diskhaul.Cluster(name='lab', state_dir=Path(sys.argv[2]), nodes=nodes)\n"
        f"result = diskhaul.verify({INSTANCE!r}, config=config)\n"
        "print(result.exit_code, result.recorded, *result.findings)\n"
    )
    command = [
        "strace",
        "-f",
        "-qq",
        "-o",
        os.devnull,
        "-P",
        str(stored),
        "-e",
        "trace=pread64",
        "-e",
        "inject=pread64:error=EIO:when=2+",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    argv = [os.path.realpath(sys.executable), "-c", program, str(on_xfs.path / "exports"), str(on_xfs.elsewhere / "state")]
    done = subprocess.run([*command, *argv], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("6 ()"), done.stderr
    assert os.strerror(errno.EIO) in done.stdout
    assert "disk-0.raw: cannot read it at offset" in done.stdout
    assert names(record) == ["disk-0.raw", "manifest.json"]


KILLED = """
import os, signal, sys, threading
from pathlib import Path
import diskhaul, diskhaul.operations.verify, diskhaul_plugins.builtin, zstandard, blake3
from diskhaul.events import StageStarted

exports, state, moment = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
calls, counting = 0, False

def count(frame, event, argument):
    global calls
    if counting and event in ("call", "c_call"):
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)

def on_event(event):
    global counting
    if isinstance(event, StageStarted) and event.stage == "record":
        counting = True

config = diskhaul.Cluster(name="lab", state_dir=state, nodes=[diskhaul.Node(name="alpha", export_dir=exports)])
sys.setprofile(count)
threading.setprofile(count)
result = diskhaul.verify("web1.example.com", config=config, on_event=on_event)
counting = False
print(calls)
"""


def test_a_verify_that_is_killed_while_it_records_leaves_the_old_or_the_new_state(on_xfs: Shared) -> None:
    seed = int(os.environ.get("DISKHAUL_STRESS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
    print(f"DISKHAUL_STRESS_SEED={seed}")
    generator = random.Random(seed)
    on_xfs.add_disk(2 * MIB)
    on_xfs.add_disk(MIB)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}

    def verify_in_a_process(moment: int) -> int | None:
        argv = [sys.executable, "-c", KILLED, on_xfs.path / "exports", on_xfs.elsewhere / "state", moment]
        done = subprocess.run([str(word) for word in argv], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return int(done.stdout) if done.returncode == 0 else None

    record = on_xfs.exported(digest="later", verify="none")
    total = verify_in_a_process(0)
    assert total is not None
    assert total > 100
    killed = 0
    for _ in range(int(os.environ.get("DISKHAUL_STRESS_ROUNDS", "15"))):
        record = on_xfs.exported(digest="later", verify="none")
        moment = generator.randrange(1, total)
        killed += verify_in_a_process(moment) is None
        listed = {found.export_id: found for found in on_xfs.listed()}
        assert {found.problem for found in listed.values()} == {""}, moment
        assert on_xfs.restored(listed[record.export_id]) == on_xfs.contents
        if not listed[record.export_id].digests:
            assert [found.export_id for found in on_xfs.verify().recorded] == [record.export_id]
        assert names(record) == ["disk-0.chunks", "disk-0.raw", "disk-1.chunks", "disk-1.raw", "manifest.json"]
        verified = on_xfs.verify(f"web1@{record.export_id}")
        assert (verified.exit_code, verified.recorded) == (0, ())
    assert killed > 5


# --- failures -----------------------------------------------------------------------------------------------------------


def test_a_disk_that_is_written_to_while_it_is_shared_fails_the_export_and_leaves_nothing(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shared.add_disk()
    earlier = shared.exported()
    clone = native.clone

    def write_after(source: int, target: int, **more: Any) -> None:
        clone(source, target, **more)
        if not more.get("length"):
            with open(path, "r+b") as disk:
                disk.seek(MIB)
                disk.write(b"still running, it seems")

    monkeypatch.setattr(native, "clone", write_after)
    with pytest.raises(OperationFailedError, match="it was written to meanwhile") as caught:
        shared.export(digest="later")
    assert caught.value.exit_code == 3
    assert shared.listed() == [earlier]
    assert len(list((shared.path / "exports" / INSTANCE).iterdir())) == 1


def test_no_room_for_a_copy_that_was_not_planned_is_told_before_the_filesystem_is_full(
    loop_filesystem: Filesystems, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Shared(loop_filesystem("xfs", size_mib=400).path, tmp_path)
    shared.add_disk(400 * MIB)
    clone = native.clone

    def refuse(source: int, target: int, **more: Any) -> None:
        if not more.get("length"):
            raise native.NativeIOError(errno.EINVAL, "not this one")
        clone(source, target, **more)

    monkeypatch.setattr(native, "clone", refuse)
    before = shared.used_bytes()
    with pytest.raises(OperationFailedError, match="no room for a copy"):
        shared.export()
    assert shared.used_bytes() - before < 2 * MIB


def test_metadata_that_does_not_fit_fails_the_export_cleanly(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.add_disk()
    earlier = shared.exported()
    clone = native.clone

    def no_room(source: int, target: int, **more: Any) -> None:
        if not more.get("length"):
            raise native.NativeIOError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        clone(source, target, **more)

    monkeypatch.setattr(native, "clone", no_room)
    with pytest.raises(OperationFailedError, match="No space left on device"):
        shared.export()
    assert shared.listed() == [earlier]


@pytest.mark.parametrize("stage", ["send", "digest"])
def test_an_export_that_is_cancelled_leaves_nothing(on_xfs: Shared, stage: str) -> None:
    on_xfs.add_disk()
    token = diskhaul.CancellationToken()

    def cancel(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == stage:
            token.cancel()

    options = diskhaul.ExportOptions(compress="none", chunk_size=CHUNK)
    with pytest.raises(diskhaul.InterruptedRunError):
        diskhaul.export(INSTANCE, node="alpha", config=on_xfs.cluster(), options=options, on_event=cancel, cancel=token)
    assert list((on_xfs.path / "exports").glob("*/*")) == []


# --- options and the command line ---------------------------------------------------------------------------------------


def test_the_command_line_says_what_has_no_digests_yet(guest_lab: Lab) -> None:
    guest_lab.add_guest(running=False, state="down")
    guest_lab.write_config()
    exported = guest_lab.cli("export", "web1", "--node", "beta", "--compress", "none", "--digest", "later")
    assert exported.returncode == 0, exported.stderr
    assert "digests      not yet: diskhaul verify web1.example.com@" in exported.stdout
    assert "not copied" in exported.stdout
    assert "no digests yet" in exported.stderr
    assert "valid; digests: not yet" in guest_lab.cli("list").stdout
    assert "not yet: diskhaul verify" in guest_lab.cli("show", "web1").stdout
    (listed,) = json.loads(guest_lab.cli("--json", "list").stdout)["exports"]
    assert (listed["digests"], listed["problem"]) == (False, "")
    imported = guest_lab.cli("import", "web1", "--to-dir", guest_lab.path / "restored")
    assert imported.returncode == 0, imported.stderr
    assert "the export has no digests yet: their bytes could not be checked" in imported.stderr
    verified = guest_lab.cli("verify", "web1")
    assert verified.returncode == 0, verified.stderr
    assert "Recorded the digests of web1.example.com@" in verified.stdout
    assert "digests" not in guest_lab.cli("list").stdout
    again = guest_lab.cli("--json", "verify", "web1")
    assert json.loads(again.stdout)["recorded"] == []


def test_digests_later_are_for_raw_exports_of_instances_that_stay(on_xfs: Shared) -> None:
    on_xfs.add_disk()
    with pytest.raises(RefusedError) as caught:
        on_xfs.export(compress="zstd:1", digest="later", remove_instance=True)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["digest", "remove_instance"]
