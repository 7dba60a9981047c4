"""Snapshots ``reflink`` on XFS and btrfs, and their refusal on ext4."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from diskhaul.api import BackendContext
from diskhaul.errors import SnapshotError
from diskhaul.model import Cluster, Disk
from diskhaul.testing.conformance.snapshots import SnapshotConformance
from diskhaul.testing.conformance.storages import pattern, read
from diskhaul_plugins.snapshots.reflink import ReflinkSnapshots

KIB, MIB = 1 << 10, 1 << 20
RUN = "0b9dd1c4-6f1c-4b7e-9a53-2f3f1f1f5a11"
Filesystems = Callable[..., Any]


def reflink(tmp_path: Path) -> ReflinkSnapshots:
    return ReflinkSnapshots(BackendContext(cluster=Cluster(name="lab", state_dir=tmp_path / "state")))


@pytest.fixture
def snapshots(tmp_path: Path) -> ReflinkSnapshots:
    return reflink(tmp_path)


def image(directory: Path, content: bytes, name: str = "disk.raw") -> Disk:
    path = directory / name
    path.write_bytes(content)
    return Disk(path=path)


class TestReflinkOnXfs(SnapshotConformance):
    @pytest.fixture
    def snapshots(self, tmp_path: Path) -> ReflinkSnapshots:
        return reflink(tmp_path)

    @pytest.fixture
    def disk(self, loop_filesystem: Filesystems) -> Disk:
        return image(loop_filesystem("xfs").path, bytes(self.size))


class TestReflinkOnBtrfs(SnapshotConformance):
    @pytest.fixture
    def snapshots(self, tmp_path: Path) -> ReflinkSnapshots:
        return reflink(tmp_path)

    @pytest.fixture
    def disk(self, loop_filesystem: Filesystems) -> Disk:
        return image(loop_filesystem("btrfs").path, bytes(self.size))


def test_on_ext4_the_reason_names_the_filesystem_and_what_to_do(
    snapshots: ReflinkSnapshots, loop_filesystem: Filesystems
) -> None:
    ext4 = loop_filesystem("ext4", size_mib=16).path
    disk = image(ext4, pattern(MIB))
    reason = snapshots.refuses(disk)
    assert reason is not None
    assert "ext4 has no reflinks" in reason
    assert "XFS" in reason
    snapshot = snapshots.plan(disk, RUN)
    with pytest.raises(SnapshotError, match="ext4 has no reflinks"):
        snapshots.create(snapshot)
    assert sorted(os.listdir(ext4)) == ["disk.raw", "lost+found"]


def test_an_xfs_without_reflinks_is_refused(snapshots: ReflinkSnapshots, loop_filesystem: Filesystems) -> None:
    old = loop_filesystem("xfs", mkfs_options=("-m", "reflink=0")).path
    reason = snapshots.refuses(image(old, pattern(MIB)))
    assert reason is not None
    assert "xfs has no reflinks" in reason


def test_a_disk_that_is_not_there_is_refused(snapshots: ReflinkSnapshots, tmp_path: Path) -> None:
    assert "No such file" in (snapshots.refuses(Disk(path=tmp_path / "missing")) or "")
    assert "not a regular file" in (snapshots.refuses(Disk(path=tmp_path)) or "")
    assert "storage 'file'" in (snapshots.refuses(Disk(storage="block", path=Path("/dev/loop0"))) or "")


@pytest.mark.parametrize("size", [0, 1, 511, 4095, 4097, 100_001])
def test_a_disk_of_any_size_is_kept_whole(snapshots: ReflinkSnapshots, loop_filesystem: Filesystems, size: int) -> None:
    disk = image(loop_filesystem("xfs").path, pattern(size))
    assert snapshots.refuses(disk) is None
    snapshot = snapshots.plan(disk, RUN)
    snapshots.create(snapshot)
    reader = snapshots.open(snapshot)
    assert (reader.size, read(reader, 0, size)) == (size, pattern(size))
    reader.close()


def test_a_snapshot_is_private_and_shares_the_holes_and_the_blocks(
    snapshots: ReflinkSnapshots, loop_filesystem: Filesystems
) -> None:
    xfs = loop_filesystem("xfs")
    disk = image(xfs.path, pattern(16 * MIB))
    os.chmod(xfs.path / "disk.raw", 0o666)
    os.truncate(xfs.path / "disk.raw", 1 << 40)
    os.sync()
    free = os.statvfs(xfs.path).f_bfree
    snapshot = snapshots.plan(disk, RUN)
    old = os.umask(0)
    try:
        snapshots.create(snapshot)
    finally:
        os.umask(old)
    status = os.stat(snapshot.reference)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == 1 << 40
    volume = os.statvfs(xfs.path)
    assert (free - volume.f_bfree) * volume.f_bsize < 2 * MIB
    reader = snapshots.open(snapshot)
    assert sum(extent.length for extent in reader.extents() if extent.kind.value == "data") < 20 * MIB
    reader.close()


def test_a_disk_behind_a_link_is_snapshotted_where_it_lies(
    snapshots: ReflinkSnapshots, loop_filesystem: Filesystems, tmp_path: Path
) -> None:
    xfs = loop_filesystem("xfs").path
    image(xfs, pattern(MIB))
    link = tmp_path / "link.raw"
    link.symlink_to(xfs / "disk.raw")
    disk = Disk(path=link)
    assert snapshots.refuses(disk) is None
    snapshot = snapshots.plan(disk, RUN)
    assert os.path.dirname(snapshot.reference) == str(xfs)
    snapshots.create(snapshot)
    assert snapshots.exists(snapshot)


def test_long_names_are_cut_and_stay_different(snapshots: ReflinkSnapshots, loop_filesystem: Filesystems) -> None:
    xfs = loop_filesystem("xfs").path
    one, other = (image(xfs, pattern(4096, seed), "\N{SNOWMAN}" * 80 + str(seed)) for seed in (1, 2))
    planned = [snapshots.plan(disk, RUN) for disk in (one, other)]
    assert planned[0].reference != planned[1].reference
    for snapshot in planned:
        snapshots.create(snapshot)
        assert RUN in snapshot.reference
        snapshots.remove(snapshot)
    assert len(os.listdir(xfs)) == 2


def test_files_without_copy_on_write_can_be_snapshotted(
    snapshots: ReflinkSnapshots, loop_filesystem: Filesystems, requires: Callable[..., None]
) -> None:
    requires("chattr", root=True)
    btrfs = loop_filesystem("btrfs").path
    (btrfs / "nocow.raw").touch()
    subprocess.run(["chattr", "+C", str(btrfs / "nocow.raw")], check=True)
    disk = image(btrfs, pattern(MIB), "nocow.raw")
    assert snapshots.refuses(disk) is None
    snapshot = snapshots.plan(disk, RUN)
    snapshots.create(snapshot)
    with open(btrfs / "nocow.raw", "r+b") as file:
        file.write(bytes(MIB))
    reader = snapshots.open(snapshot)
    assert read(reader, 0, MIB) == pattern(MIB)
    reader.close()


def test_something_else_of_that_name_is_neither_overwritten_nor_removed_nor_read(
    snapshots: ReflinkSnapshots, loop_filesystem: Filesystems
) -> None:
    xfs = loop_filesystem("xfs").path
    disk = image(xfs, pattern(4096))
    (xfs / "victim").write_bytes(b"victim")
    for plant in (lambda path: os.symlink(xfs / "victim", path), os.mkfifo, os.mkdir):
        snapshot = snapshots.plan(disk, str(uuid4()))
        plant(snapshot.reference)
        with pytest.raises(SnapshotError):
            snapshots.create(snapshot)
        with pytest.raises(SnapshotError):
            snapshots.open(snapshot)
        with pytest.raises(SnapshotError):
            snapshots.remove(snapshot)
        assert os.path.lexists(snapshot.reference)
    assert (xfs / "victim").read_bytes() == b"victim"


@pytest.mark.parametrize("name", ["disk.raw", f"disk.diskhaul-{RUN}.snap", f".disk.raw.diskhaul-{RUN}", "..", ""])
def test_a_plan_that_names_another_file_is_not_obeyed(snapshots: ReflinkSnapshots, tmp_path: Path, name: str) -> None:
    disk = image(tmp_path, b"precious")
    forged = replace(snapshots.plan(disk, RUN), reference=os.path.join(tmp_path, name))
    if name and name != "..":
        (tmp_path / name).write_bytes(b"precious")
    for use in (snapshots.remove, snapshots.create, snapshots.open):
        with pytest.raises(SnapshotError, match="not touched"):
            use(forged)
    assert (tmp_path / "disk.raw").read_bytes() == b"precious"


@pytest.mark.parametrize("run_id", ["", "..", "a/b/c/d/e", "x" * 100, "run id with spaces", "run-12345678", RUN.upper()])
def test_a_run_id_that_is_none_is_refused(snapshots: ReflinkSnapshots, tmp_path: Path, run_id: str) -> None:
    with pytest.raises(SnapshotError, match="run id"):
        snapshots.plan(image(tmp_path, b""), run_id)


def test_a_read_only_filesystem_takes_no_snapshot(snapshots: ReflinkSnapshots, loop_filesystem: Filesystems) -> None:
    xfs = loop_filesystem("xfs").path
    disk = image(xfs, pattern(MIB))
    snapshot = snapshots.plan(disk, RUN)
    subprocess.run(["mount", "-o", "remount,ro", str(xfs)], check=True)
    try:
        with pytest.raises(SnapshotError, match="Read-only"):
            snapshots.create(snapshot)
        assert not snapshots.exists(snapshot)
        assert "Read-only" in (snapshots.refuses(disk) or "")
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(xfs)], check=True)
    assert os.listdir(xfs) == ["disk.raw"]


def test_a_clone_that_fails_half_way_leaves_nothing(
    loop_filesystem: Filesystems, tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("strace", root=True)
    xfs = loop_filesystem("xfs").path
    image(xfs, pattern(MIB))
    for fault in ("fsync:error=EIO", "ioctl:error=ENOSPC:when=3+"):
        trace = ["-e", f"trace={fault.split(':')[0]}", "-e", f"inject={fault}"]
        done = run_traced(xfs / "disk.raw", ["strace", "-f", "-o", str(tmp_path / "trace"), *trace])
        assert "SnapshotError" in done.stdout, (fault, done.stdout, done.stderr)
        assert os.listdir(xfs) == ["disk.raw"], fault


def run_traced(path: Path, prefix: list[str]) -> subprocess.CompletedProcess[str]:
    """Create a snapshot of `path` in a process of its own and print what came of it."""
    script = f"""
import os, sys
from pathlib import Path
from diskhaul.model import Disk
from diskhaul_plugins.snapshots.reflink import ReflinkSnapshots
snapshots = ReflinkSnapshots(None)
try:
    snapshots.create(snapshots.plan(Disk(path=Path({str(path)!r})), {RUN!r}))
    print("created")
except Exception as error:
    print(type(error).__name__, error)
"""
    command = [*prefix, os.path.realpath(sys.executable), "-c", script]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
