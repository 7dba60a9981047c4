"""Snapshots ``btrfs``: read-only snapshots of the subvolume that holds the disk."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from diskhaul.api import BackendContext, Snapshot
from diskhaul.errors import SnapshotError
from diskhaul.model import Cluster, Disk, Instance
from diskhaul.testing.conformance.snapshots import SnapshotConformance
from diskhaul.testing.conformance.storages import pattern, read
from diskhaul_plugins.snapshots.btrfs import BtrfsSnapshots

MIB = 1 << 20
RUN = "0b9dd1c4-6f1c-4b7e-9a53-2f3f1f1f5a11"
Filesystems = Callable[..., Any]


def backend(tmp_path: Path) -> BtrfsSnapshots:
    return BtrfsSnapshots(BackendContext(cluster=Cluster(name="lab", state_dir=tmp_path / "state")))


@pytest.fixture
def snapshots(tmp_path: Path) -> BtrfsSnapshots:
    return backend(tmp_path)


@pytest.fixture
def btrfs(loop_filesystem: Filesystems, requires: Callable[..., None]) -> Path:
    requires("btrfs", "chattr", root=True)
    path: Path = loop_filesystem("btrfs").path
    return path


def image(directory: Path, content: bytes, name: str = "disk.raw") -> Disk:
    path = directory / name
    path.write_bytes(content)
    return Disk(path=path)


def subvolume(path: Path) -> Path:
    subprocess.run(["btrfs", "-q", "subvolume", "create", str(path)], check=True)
    return path


def content(snapshots: BtrfsSnapshots, snapshot: Snapshot) -> bytes:
    reader = snapshots.open(snapshot)
    try:
        return read(reader, 0, reader.size)
    finally:
        reader.close()


class TestBtrfsSnapshots(SnapshotConformance):
    @pytest.fixture
    def snapshots(self, tmp_path: Path) -> BtrfsSnapshots:
        return backend(tmp_path)

    @pytest.fixture
    def disk(self, btrfs: Path) -> Disk:
        return image(btrfs, bytes(self.size))

    @pytest.fixture
    def unsupported_disk(self, tmp_path: Path) -> Disk:
        return image(tmp_path, b"on another filesystem")


class TestBtrfsSnapshotsOfFilesWithoutCopyOnWrite(SnapshotConformance):
    @pytest.fixture
    def snapshots(self, tmp_path: Path) -> BtrfsSnapshots:
        return backend(tmp_path)

    @pytest.fixture
    def disk(self, btrfs: Path) -> Disk:
        (btrfs / "disk.raw").touch()
        subprocess.run(["chattr", "+C", str(btrfs / "disk.raw")], check=True)
        return image(btrfs, bytes(self.size))


def test_the_snapshot_lies_at_the_top_of_the_subvolume_that_holds_the_disk(snapshots: BtrfsSnapshots, btrfs: Path) -> None:
    inner = subvolume(subvolume(btrfs / "outer") / "inner")
    (inner / "a" / "b").mkdir(parents=True)
    disk = image(inner / "a" / "b", pattern(MIB))
    (inner / "a" / "b" / "b").mkdir()
    image(inner / "a" / "b" / "b", b"another one")
    snapshot = snapshots.plan(disk, RUN)
    assert snapshot.reference == str(inner / f".diskhaul-{RUN}-disk0")
    snapshots.create(snapshot)
    assert content(snapshots, snapshot) == pattern(MIB)
    assert sorted(os.listdir(btrfs / "outer")) == ["inner"]
    snapshots.remove(snapshot)
    assert os.listdir(inner) == ["a"]


def test_the_disks_of_an_instance_have_a_snapshot_each(snapshots: BtrfsSnapshots, btrfs: Path) -> None:
    disks = [image(btrfs, pattern(8192, seed), f"disk-{seed}.raw") for seed in range(3)]
    instance = Instance(name="web1", node="alpha", disks=disks)
    planned = [snapshots.plan(disk, RUN) for disk in instance.disks]
    for snapshot in planned:
        snapshots.create(snapshot)
    assert [content(snapshots, snapshot) for snapshot in planned] == [pattern(8192, seed) for seed in range(3)]
    for snapshot in planned:
        snapshots.remove(snapshot)
    assert sorted(os.listdir(btrfs)) == ["disk-0.raw", "disk-1.raw", "disk-2.raw"]


def test_the_snapshot_is_read_only_and_private_of_the_name(snapshots: BtrfsSnapshots, btrfs: Path) -> None:
    snapshot = snapshots.plan(image(btrfs, pattern(8192)), RUN)
    snapshots.create(snapshot)
    shown = subprocess.run(["btrfs", "property", "get", snapshot.reference, "ro"], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "ro=true"
    with pytest.raises(OSError, match="Read-only"):
        os.open(os.path.join(snapshot.reference, "disk.raw"), os.O_RDWR)
    snapshots.remove(snapshot)


def test_a_snapshot_that_became_writable_is_not_read_but_removed(snapshots: BtrfsSnapshots, btrfs: Path) -> None:
    snapshot = snapshots.plan(image(btrfs, pattern(8192)), RUN)
    snapshots.create(snapshot)
    subprocess.run(["btrfs", "property", "set", "-f", snapshot.reference, "ro", "false"], check=True)
    with pytest.raises(SnapshotError, match="can be written"):
        snapshots.open(snapshot)
    snapshots.remove(snapshot)
    assert os.listdir(btrfs) == ["disk.raw"]


def test_a_snapshot_without_the_disk_is_an_error(snapshots: BtrfsSnapshots, btrfs: Path) -> None:
    disk = image(btrfs, pattern(8192))
    snapshot = snapshots.plan(disk, RUN)
    snapshots.create(snapshot)
    other = image(btrfs, b"later", "later.raw")
    with pytest.raises(SnapshotError, match=r"later\.raw"):
        snapshots.open(replace(snapshot, disk=other))
    snapshots.remove(snapshot)


def test_a_disk_that_vanished_is_not_snapshotted_and_nothing_is_left(snapshots: BtrfsSnapshots, btrfs: Path) -> None:
    disk = image(btrfs, pattern(8192))
    snapshot = snapshots.plan(disk, RUN)
    (btrfs / "disk.raw").unlink()
    with pytest.raises(SnapshotError, match="lacks"):
        snapshots.create(snapshot)
    (btrfs / "disk.raw").mkdir()
    with pytest.raises(SnapshotError, match="regular"):
        snapshots.create(snapshot)
    assert os.listdir(btrfs) == ["disk.raw"]
    assert snapshots.refuses(disk)


def test_a_link_inside_the_snapshot_is_not_followed(snapshots: BtrfsSnapshots, btrfs: Path) -> None:
    (btrfs / "dir").mkdir()
    disk = image(btrfs / "dir", pattern(8192))
    snapshot = snapshots.plan(disk, RUN)
    (btrfs / "dir").rename(btrfs / "real")
    (btrfs / "dir").symlink_to("/etc")
    snapshots.create(replace(snapshot, disk=Disk(path=btrfs / "real" / "disk.raw")))
    (btrfs / "dir").unlink()
    (btrfs / "real").rename(btrfs / "dir")
    with pytest.raises(SnapshotError):
        snapshots.open(snapshot)  # in the snapshot "dir" is the link
    snapshots.remove(snapshot)


def test_something_else_of_that_name_is_not_touched(snapshots: BtrfsSnapshots, btrfs: Path) -> None:
    disk = image(btrfs, pattern(8192))
    victim = subvolume(btrfs / "victim")
    (victim / "file").write_bytes(b"precious")
    for plant in (
        lambda path: os.symlink(victim, path),
        lambda path: Path(path).write_bytes(b"a file"),
        lambda path: Path(path).mkdir(),
    ):
        snapshot = snapshots.plan(disk, str(uuid4()))
        plant(snapshot.reference)
        for use in (snapshots.create, snapshots.open, snapshots.remove):
            with pytest.raises(SnapshotError):
                use(snapshot)
        assert os.path.lexists(snapshot.reference)
        assert os.listdir(snapshot.reference) == ["file"] if os.path.islink(snapshot.reference) else True
    assert (victim / "file").read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["victim", f".diskhaul-{RUN}", f".diskhaul-{RUN}-disk0x", f".diskhaul-{RUN}-disk0/..", ""])
def test_a_plan_that_names_another_subvolume_is_not_obeyed(snapshots: BtrfsSnapshots, btrfs: Path, name: str) -> None:
    disk = image(btrfs, pattern(8192))
    (subvolume(btrfs / "victim") / "file").write_bytes(b"precious")
    forged = replace(snapshots.plan(disk, RUN), reference=os.path.join(btrfs, name))
    for use in (snapshots.remove, snapshots.create, snapshots.open):
        with pytest.raises(SnapshotError, match="not touched"):
            use(forged)
    assert (btrfs / "victim" / "file").read_bytes() == b"precious"


@pytest.mark.parametrize("run_id", ["", "..", "run-12345678", RUN.upper()])
def test_what_is_no_run_id_becomes_part_of_no_name(snapshots: BtrfsSnapshots, btrfs: Path, run_id: str) -> None:
    disk = image(btrfs, pattern(8192))
    with pytest.raises(SnapshotError, match="is not a run id"):
        snapshots.plan(disk, run_id)
    forged = replace(snapshots.plan(disk, RUN), run_id=run_id, reference=str(btrfs / f".diskhaul-{run_id}-disk0"))
    with pytest.raises(SnapshotError, match="not touched"):
        snapshots.exists(forged)


def test_a_directory_of_another_filesystem_is_refused(
    snapshots: BtrfsSnapshots, tmp_path: Path, loop_filesystem: Filesystems
) -> None:
    assert "btrfs" in (snapshots.refuses(image(tmp_path, b"")) or "")
    assert "storage 'file'" in (snapshots.refuses(Disk(storage="block", path=Path("/dev/loop0"))) or "")
    assert snapshots.refuses(Disk(path=tmp_path / "missing"))
    xfs = loop_filesystem("xfs").path
    assert "btrfs" in (snapshots.refuses(image(xfs, b"")) or "")


def test_a_bind_mount_that_hides_the_top_of_the_subvolume_is_refused(
    snapshots: BtrfsSnapshots, btrfs: Path, tmp_path: Path
) -> None:
    (btrfs / "dir").mkdir()
    image(btrfs / "dir", pattern(8192))
    bound = tmp_path / "bound"
    bound.mkdir()
    subprocess.run(["mount", "--bind", str(btrfs / "dir"), str(bound)], check=True)
    try:
        assert "no btrfs subvolume" in (snapshots.refuses(Disk(path=bound / "disk.raw")) or "")
    finally:
        subprocess.run(["umount", str(bound)], check=True)


def test_a_disk_below_a_bind_mount_inside_the_subvolume_is_not_taken_for_the_file_that_it_hides(
    snapshots: BtrfsSnapshots, btrfs: Path
) -> None:
    for name in ("real", "images"):
        (btrfs / name).mkdir()
    image(btrfs / "real", pattern(8192))
    hidden = image(btrfs / "images", bytes(8192))
    planned = snapshots.plan(hidden, RUN)
    subprocess.run(["mount", "--bind", str(btrfs / "real"), str(btrfs / "images")], check=True)
    try:
        assert "something is mounted between it and the top" in (snapshots.refuses(hidden) or "")
        with pytest.raises(SnapshotError, match="is another file: is something mounted over it"):
            snapshots.create(planned)
    finally:
        subprocess.run(["umount", str(btrfs / "images")], check=True)
    assert sorted(os.listdir(btrfs)) == ["images", "real"]


def test_a_read_only_filesystem_takes_no_snapshot(snapshots: BtrfsSnapshots, btrfs: Path) -> None:
    snapshot = snapshots.plan(image(btrfs, pattern(8192)), RUN)
    subprocess.run(["mount", "-o", "remount,ro", str(btrfs)], check=True)
    try:
        with pytest.raises(SnapshotError, match="read-only"):
            snapshots.create(snapshot)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(btrfs)], check=True)
    assert os.listdir(btrfs) == ["disk.raw"]


def test_what_was_written_to_a_mapping_is_in_the_snapshot(snapshots: BtrfsSnapshots, btrfs: Path) -> None:
    import mmap

    disk = image(btrfs, bytes(MIB))
    with open(btrfs / "disk.raw", "r+b") as file, mmap.mmap(file.fileno(), MIB) as mapping:
        mapping[5000:5005] = b"dirty"
        snapshot = snapshots.plan(disk, RUN)
        snapshots.create(snapshot)
        mapping[5000:5005] = b"later"
    assert content(snapshots, snapshot)[5000:5005] == b"dirty"
    snapshots.remove(snapshot)
