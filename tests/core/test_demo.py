"""The demo cluster: a real disk, a real guest process, a configuration that loads, and nothing left of a failed try."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diskhaul import demo
from diskhaul.config import load_cluster
from diskhaul.demo import PARTITION_OFFSET, DemoCluster, make_demo
from diskhaul.errors import RefusedError, StorageError
from diskhaul.host import PluginHost
from diskhaul.names import expand_name

SIZE_MIB = 64


def vm(directory: Path, verb: str) -> int:
    return subprocess.run([str(directory / "vm"), verb, "web1"], check=False, capture_output=True).returncode


@pytest.fixture
def make(tmp_path: Path, requires: Callable[..., None]) -> Iterator[Callable[..., DemoCluster]]:
    requires("mke2fs", "sfdisk", "debugfs")
    made: list[Path] = []

    def make(name: str = "demo", *, start: bool = False) -> DemoCluster:
        cluster = make_demo(tmp_path / name, SIZE_MIB, start=start)
        made.append(cluster.directory)
        return cluster

    yield make
    for directory in made:
        if (directory / "vm").exists():
            assert vm(directory, "stop") == 0


def test_the_configuration_loads_and_every_backend_it_names_works_here(make: Callable[..., DemoCluster]) -> None:
    cluster = load_cluster(make().config)
    assert [node.name for node in cluster.nodes] == ["alpha", "beta", "gamma"]
    web, db = cluster.instances
    assert expand_name("instance", "web1", [each.name for each in cluster.instances]) == web.name
    assert (web.state, db.state, len(db.disks)) == ("up", "down", 2)
    host = PluginHost(cluster)
    for instance in cluster.instances:
        assert list(host.runtime(instance.runtime).check(instance)) == []
        for disk in instance.disks:
            assert list(host.storage(disk.storage).check(disk)) == []


def test_the_disk_is_sparse_and_has_a_partition_with_a_sound_ext4(
    make: Callable[..., DemoCluster], requires: Callable[..., None]
) -> None:
    requires("e2fsck")
    disk = make().disk
    status = disk.stat()
    assert status.st_size == SIZE_MIB << 20
    assert 0 < status.st_blocks * 512 < status.st_size // 2
    table = subprocess.run(["sfdisk", "--dump", str(disk)], check=True, capture_output=True, text=True).stdout
    assert "label: gpt" in table
    assert f"start={PARTITION_OFFSET // 512:>12}" in table
    check = subprocess.run(["e2fsck", "-fn", f"{disk}?offset={PARTITION_OFFSET}"], check=False, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout


def test_the_filesystem_holds_files_and_free_blocks_that_are_not_zero(make: Callable[..., DemoCluster]) -> None:
    disk = make().disk
    place = f"{disk}?offset={PARTITION_OFFSET}"

    def ask(request: str) -> str:
        return subprocess.run(["debugfs", "-R", request, place], check=True, capture_output=True, text=True).stdout

    assert ask("cat /etc/hostname").strip() == "web1.example.com"
    assert "blob.bin" in ask("ls /var/lib/app")
    assert "deleted.bin" not in ask("ls /var/cache")
    sizes = dict(re.findall(r"(Block count|Block size|Free blocks):\s+(\d+)", ask("stats")))
    listed = ask(f"ffb {sizes['Free blocks']} 1").partition(":")[2]
    block_size = int(sizes["Block size"])
    with open(disk, "rb") as image:
        dirty = 0
        for block in map(int, listed.split()):
            image.seek(PARTITION_OFFSET + block * block_size)
            dirty += any(image.read(block_size))
    assert dirty * block_size >= (SIZE_MIB << 20) // 12  # all of the deleted file


def test_the_guest_is_a_process_that_holds_the_disk_and_leaves_it_alone(make: Callable[..., DemoCluster]) -> None:
    cluster = make(start=True)
    before = cluster.disk.read_bytes()
    assert cluster.guest_pid is not None
    held = {os.readlink(f"/proc/{cluster.guest_pid}/fd/{number}") for number in os.listdir(f"/proc/{cluster.guest_pid}/fd")}
    assert held == {"/dev/null", str(cluster.disk), str(cluster.directory / "run/web1.pid")}
    assert os.getsid(cluster.guest_pid) == cluster.guest_pid
    assert vm(cluster.directory, "start") == 0  # it runs already: nothing happens
    assert int((cluster.directory / "run/web1.pid").read_text()) == cluster.guest_pid
    assert vm(cluster.directory, "remove") == 1
    assert vm(cluster.directory, "stop") == 0
    assert vm(cluster.directory, "status") == 3
    assert cluster.disk.read_bytes() == before


def test_the_runtime_starts_stops_and_removes_the_guest(make: Callable[..., DemoCluster]) -> None:
    cluster = make()
    configured = load_cluster(cluster.config)
    web = configured.instances[0]
    runtime = PluginHost(configured).runtime(web.runtime)
    assert not runtime.is_running(web)
    runtime.start(web)
    assert runtime.is_running(web)
    runtime.stop(web, timeout_s=20)
    assert not runtime.is_running(web)
    runtime.remove(web)
    assert not cluster.disk.exists()
    assert vm(cluster.directory, "start") == 1
    assert vm(cluster.directory, "bounce") == 2


def test_the_text_says_what_to_try(make: Callable[..., DemoCluster]) -> None:
    cluster = make("with space")
    assert f"diskhaul --config '{cluster.config}' export web1 --node beta" in cluster.text
    assert cluster.text.count("diskhaul --config") == 3


@pytest.mark.parametrize(("kind", "long_sleep"), [("ext4", True), ("xfs", False)])
def test_without_reflinks_the_guest_is_told_to_sleep_long(
    loop_filesystem: Callable[..., object], requires: Callable[..., None], kind: str, long_sleep: bool
) -> None:
    requires("mke2fs", "mkfs.xfs")
    filesystem = loop_filesystem(kind, size_mib=400)
    cluster = make_demo(filesystem.path / "demo", SIZE_MIB, start=False)  # type: ignore[attr-defined]
    assert load_cluster(cluster.config).defaults.get("long_sleep", False) is long_sleep
    assert any("no reflinks" in note for note in cluster.notes) is long_sleep


def test_a_lax_umask_makes_nothing_that_diskhaul_would_refuse(make: Callable[..., DemoCluster]) -> None:
    before = os.umask(0)
    try:
        cluster = make()
    finally:
        os.umask(before)
    load_cluster(cluster.config)
    for path in [cluster.directory, *cluster.directory.rglob("*")]:
        assert not path.stat().st_mode & 0o002, path


def test_a_second_demo_in_the_same_place_is_refused_and_says_how_to_remove_the_first(make: Callable[..., DemoCluster]) -> None:
    cluster = make()
    with pytest.raises(RefusedError, match=r"is not empty; name another, or remove .*vm stop web1 && rm -r"):
        make_demo(cluster.directory, SIZE_MIB)
    assert cluster.disk.exists()


def test_a_place_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RefusedError, match="is not a directory"):
        make_demo(tmp_path / "file")
    with pytest.raises(RefusedError, match="cannot be made"):
        make_demo(tmp_path / "file" / "demo")
    with pytest.raises(RefusedError, match=r"is not empty; name another$"):
        make_demo(tmp_path)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(RefusedError, match=r"not be trusted.*chmod o-w"):
        make_demo(tmp_path / "open")
    assert (tmp_path / "file").read_text() == "mine"
    assert list((tmp_path / "open").iterdir()) == []


@pytest.mark.parametrize("size", [0, -1, 63, 1 << 21, 64.5, True, "64"])
def test_a_size_out_of_range_is_refused(tmp_path: Path, size: object) -> None:
    with pytest.raises(RefusedError, match="from 64 to"):
        make_demo(tmp_path / "demo", size)  # type: ignore[arg-type]
    assert not (tmp_path / "demo").exists()


def without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *missing: str) -> None:
    """Let programs be looked for in one directory only, which has the others."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in {"mke2fs", "sfdisk", "debugfs"} - set(missing):
        (programs / name).symlink_to(next(p for p in (Path(f"/usr/sbin/{name}"), Path(f"/sbin/{name}")) if p.exists()))
    monkeypatch.setattr(demo, "SEARCH_PATH", "")
    monkeypatch.setenv("PATH", str(programs))


def test_without_mke2fs_it_is_refused_and_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requires: Callable[..., None]
) -> None:
    requires("sfdisk", "debugfs")
    without(monkeypatch, tmp_path, "mke2fs")
    with pytest.raises(RefusedError, match=r"mke2fs is not installed.*e2fsprogs"):
        make_demo(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_without_sfdisk_and_debugfs_it_does_without_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, requires: Callable[..., None]
) -> None:
    requires("mke2fs", "e2fsck")
    without(monkeypatch, tmp_path, "sfdisk", "debugfs")
    cluster = make_demo(tmp_path / "demo", SIZE_MIB, start=False)
    assert any("no partition table" in note for note in cluster.notes)
    assert any("no deleted file" in note for note in cluster.notes)
    check = subprocess.run(["/usr/sbin/e2fsck", "-fn", str(cluster.disk)], check=False, capture_output=True)
    assert check.returncode == 0


def test_what_cannot_be_finished_leaves_nothing(loop_filesystem: Callable[..., object], requires: Callable[..., None]) -> None:
    requires("mke2fs", "sfdisk")
    small = loop_filesystem("ext4", size_mib=16)
    with pytest.raises(StorageError, match="could not be made"):
        make_demo(small.path / "demo", SIZE_MIB)  # type: ignore[attr-defined]
    assert list((small.path / "demo").iterdir()) == []  # type: ignore[attr-defined]
