"""Imports: what comes back, where it may go, and what a failing one leaves."""

from __future__ import annotations

import configparser
import filecmp
import json
import os
import random
import shutil
import stat
import subprocess
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import diskhaul
from diskhaul.config import load_cluster
from diskhaul.demo import make_demo
from diskhaul.events import DiskProgress, StageStarted
from diskhaul.testing import Fault, FaultyDisk, MemoryDisk, MemoryStorage, SparseMemoryDisk

INSTANCE = "web1.example.com"
OTHER = "db1.example.com"
CHUNK = 64 << 10
MIB = 1 << 20
HEAD = 4096
OLD = 0xA5
"""What targets are full of."""

Requires = Callable[..., None]


def content_of(size: int = 2 * MIB + 3 * 512, seed: int = 0) -> bytes:
    """Data at the start, in the middle and at the end, zeros between."""
    chance = random.Random(seed)
    content = bytearray(size)
    for offset in (0, size // 2, size - 5000):
        content[offset : offset + 5000] = chance.randbytes(5000)
    return bytes(content)


class Place:
    """A cluster with one exported instance, in one directory.

    Attributes:
        contents: of the instance's disks.
        export: the newest export.
    """

    def __init__(self, path: Path, *, disks: int = 1, instance: str = INSTANCE) -> None:
        self.path = path
        self.contents = [content_of(seed=index) for index in range(disks)]
        self.disks = [path / f"{instance}-{index}.raw" for index in range(disks)]
        for disk, content in zip(self.disks, self.contents, strict=True):
            disk.write_bytes(content)
        for node in ("alpha", "beta"):
            (path / node).mkdir(mode=0o700)
        nodes = [diskhaul.Node(name=name, export_dir=path / name) for name in ("alpha", "beta")]
        self.instance = diskhaul.Instance(
            name=instance, node="alpha", state="down", disks=[diskhaul.Disk(path=disk) for disk in self.disks]
        )
        self.cluster = diskhaul.Cluster(name="lab", state_dir=path / "state", nodes=nodes, instances=[self.instance])
        self.export = self.make_export()

    def make_export(self, **options: Any) -> diskhaul.ExportRecord:
        result = diskhaul.export(
            self.instance.name, node="beta", config=self.cluster, options=diskhaul.ExportOptions(chunk_size=CHUNK, **options)
        )
        assert result.export is not None
        return result.export

    @property
    def export_path(self) -> Path:
        return Path(self.export.path)

    def import_(self, export: str | None = None, **more: Any) -> diskhaul.ImportResult:
        """`diskhaul.import_`; what are no arguments of it are options."""
        own = {
            key: more.pop(key)
            for key in ("config", "to_dir", "disks", "instance_name", "plugins", "on_event", "cancel")
            if key in more
        }
        return diskhaul.import_(export or self.export.path, options=diskhaul.ImportOptions(**more), **own)

    def refused(self, match: str, **more: Any) -> tuple[str, ...]:
        """The import is refused, with this among its reasons, and nothing whatever has changed."""
        before = snapshot(self.path)
        with pytest.raises(diskhaul.RefusedError, match=match) as caught:
            self.import_(**more)
        assert snapshot(self.path) == before
        return caught.value.problems

    def damage(self, chunk: int, disk: int = 0) -> None:
        """Flip a byte in a stored chunk, one of data."""
        from diskhaul.formats.chunk_table import ChunkTable

        size = len(self.contents[disk])
        data = (self.export_path / f"disk-{disk}.chunks").read_bytes()
        table = ChunkTable.from_bytes(data, disk_size=size, chunk_size=CHUNK, encoded=True)
        with open(self.export_path / f"disk-{disk}.raw.zst", "r+b") as file:
            file.seek(table.stored_offsets()[chunk] + 10)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))


def snapshot(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a directory but the state's (locks come and go): mode and content."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if directory / "state" in (path, *path.parents):
            continue
        status = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(status.st_mode) and status.st_size < 100 * MIB else b""
        found[str(path)] = status.st_mode, content
    return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def device(tmp_path: Path, loop_device: Callable[[Path], str]) -> Callable[..., Path]:
    """A block device full of old bytes: ``device(size)``."""

    def make(size: int) -> Path:
        image = (
            tmp_path.parent / f"{tmp_path.name}-device-{size}-{len(list(tmp_path.parent.glob(f'{tmp_path.name}-device-*')))}.img"
        )
        image.write_bytes(bytes([OLD]) * size)
        return Path(loop_device(image))

    return make


def read_device(path: Path, size: int = -1) -> bytes:
    with open(path, "rb") as file:
        return file.read(size)


# --- a real disk ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_disk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Configuration, disk and export of a GPT disk with an ext4 in it."""
    from diskhaul.demo import PARTITION_OFFSET

    assert PARTITION_OFFSET == MIB
    if not all(shutil.which(program) for program in ("mke2fs", "sfdisk", "e2fsck", "debugfs", "zstd")):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("needs e2fsprogs, fdisk and zstd")
    demo = make_demo(tmp_path_factory.mktemp("real") / "demo", 96, start=False)
    result = diskhaul.export("web1", node="beta", config=demo.config)
    assert result.export is not None
    return demo.config, demo.disk, Path(result.export.path)


def check_filesystem(disk: Path) -> None:
    checked = subprocess.run(["e2fsck", "-fn", f"{disk}?offset={MIB}"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("compress", ["zstd:1", "zstd:-7", "zstd:adaptive:1", "none", "gzip:1"])
def test_a_real_disk_comes_back_with_its_holes_and_a_clean_filesystem(
    real_disk: tuple[Path, Path, Path], tmp_path: Path, compress: str
) -> None:
    config, disk, path = real_disk
    check_filesystem(disk)
    if compress != "zstd:1":
        options = diskhaul.ExportOptions(compress=compress, long_sleep=True)
        cluster = replace(load_cluster(config), backends={"cleanup": "none"})
        made = diskhaul.export("web1", node="gamma", config=cluster, options=options).export
        assert made is not None
        path = Path(made.path)
    result = diskhaul.import_(str(path), to_dir=tmp_path / "restored")
    restored = tmp_path / "restored" / "disk-0.raw"
    assert filecmp.cmp(restored, disk, shallow=False)
    check_filesystem(restored)
    table = [subprocess.run(["sfdisk", "-d", str(each)], check=True, capture_output=True).stdout for each in (disk, restored)]
    assert table[0].replace(bytes(disk), b"") == table[1].replace(bytes(restored), b"")
    assert restored.stat().st_blocks <= disk.stat().st_blocks, "holes are holes again"
    assert restored.stat().st_blocks * 512 < restored.stat().st_size * 3 // 4
    assert stat.S_IMODE(restored.stat().st_mode) == 0o600
    assert stat.S_IMODE(restored.parent.stat().st_mode) == 0o700
    assert result.disks[0].size == disk.stat().st_size
    assert result.targets == {0: str(restored)}


@pytest.mark.parametrize("compress", ["zstd:1", "zstd:-7", "zstd:adaptive:1", "gzip:1"])
def test_the_stock_programs_restore_it_too(real_disk: tuple[Path, Path, Path], compress: str) -> None:
    config, disk, path = real_disk
    if compress != "zstd:1":
        options = diskhaul.ExportOptions(compress=compress, long_sleep=True)
        cluster = replace(load_cluster(config), backends={"cleanup": "none"})
        made = diskhaul.export("web1", node="gamma", config=cluster, options=options).export
        assert made is not None
        path = Path(made.path)
    program, suffix = ("gzip", "gz") if compress.startswith("gzip") else ("zstd", "zst")
    command = f"{program} -dc {path}/disk-0.raw.{suffix} | cmp - {disk}"
    ended = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


# --- which export -----------------------------------------------------------------------------------------------------


def test_an_export_is_named_by_directory_instance_or_id(place: Place, tmp_path: Path) -> None:
    policy = {"cleanup": "none"}
    place.cluster = replace(place.cluster, backends=policy)
    first = place.export
    content = content_of(seed=7)
    place.disks[0].write_bytes(content)
    second = place.make_export()
    named = {
        "by directory": (first.path, {}),
        "by id": (f"{INSTANCE}@{first.export_id}", {"config": place.cluster}),
        "newest": (INSTANCE, {"config": place.cluster}),
        "short": ("web1", {"config": place.cluster}),
    }
    for number, (what, (name, more)) in enumerate(named.items()):
        result = place.import_(name, to_dir=tmp_path / f"to-{number}", **more)
        newest = what in ("newest", "short")
        assert result.source == (second if newest else first).path, what
        assert (tmp_path / f"to-{number}" / "disk-0.raw").read_bytes() == (content if newest else place.contents[0])
        assert result.instance == INSTANCE


def test_names_that_fit_nothing_are_refused(place: Place, tmp_path: Path) -> None:
    target = tmp_path / "to"
    for name, match in [
        ("nobody", "nobody"),
        (f"{INSTANCE}@20200101T000000Z-00000000", "does not exist"),
        (f"{INSTANCE}@../../nonexistent", "does not exist"),
        (f"{INSTANCE}@yesterday", "is not one"),
        ("../x@y", "x"),
        ("", "empty"),
    ]:
        with pytest.raises(diskhaul.RefusedError, match=match):
            diskhaul.import_(name, to_dir=target, config=place.cluster)
    with pytest.raises(diskhaul.RefusedError, match="give --config"):
        diskhaul.import_(INSTANCE, to_dir=target)
    with pytest.raises(diskhaul.RefusedError, match="say where the disks go"):
        diskhaul.import_(place.export.path)
    with pytest.raises(diskhaul.RefusedError, match="nonexistent"):
        diskhaul.import_(str(tmp_path / "nonexistent"), to_dir=target)
    assert not target.exists()


# --- new files --------------------------------------------------------------------------------------------------------


def test_a_new_directory_gets_disks_and_a_description_that_is_a_configuration(tmp_path: Path) -> None:
    place = Place(tmp_path, disks=2)
    instance = replace(
        place.instance,
        os='debian "12"',
        nics=[diskhaul.Nic(mac="aa:00:00:00:00:01", ip="192.0.2.1", mode="bridged", link="br0")],
        memory_mib=512,
        vcpus=2,
        tags=["production", "web"],
        secondaries=["beta"],
        runtime="command",
        runtime_options={"start": ["true"], "stop": ["true"], "status": ["false"]},
        private={"password": "secret"},
        parameters={"hypervisor": "kvm", "deep": {"list": [1, 2.5, "x"], "on": False, "none": None}},
    )
    place.cluster = replace(place.cluster, instances=[instance])
    place.export = place.make_export()
    place.import_(to_dir=tmp_path / "to", instance_name="web9.example.com")
    assert sorted(os.listdir(tmp_path / "to")) == ["disk-0.raw", "disk-1.raw", "instance.toml"]
    text = (tmp_path / "to" / "instance.toml").read_text()
    assert "secret" not in text
    config = tmp_path / "pasted.toml"
    nodes = "".join(f'[nodes.{name}]\nexport_dir = "{name}"\n' for name in ("alpha", "beta"))
    config.write_text(f'[cluster]\nname = "lab"\nstate_dir = "state"\n{nodes}{text}')
    config.chmod(0o600)
    assert "web9.example.com" in tomllib.loads(text)["instances"]
    (loaded,) = load_cluster(config).instances
    assert [disk.path for disk in loaded.disks] == [tmp_path / "to" / f"disk-{index}.raw" for index in range(2)]
    same = ("node", "state", "runtime", "os", "memory_mib", "vcpus")
    assert [getattr(loaded, name) for name in same] == [getattr(instance, name) for name in same]
    assert list(loaded.tags) == ["production", "web"]
    assert list(loaded.nics) == list(instance.nics)
    assert list(loaded.secondaries) == ["beta"]
    assert loaded.runtime_options == instance.runtime_options
    assert loaded.parameters == {"hypervisor": "kvm", "deep": {"list": [1, 2.5, "x"], "on": False}}


def test_a_directory_that_is_in_use_or_cannot_be_made_is_refused(place: Place, tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "letter.txt").write_text("mine")
    place.refused("is not empty", to_dir=used)
    place.refused("does not exist: create it first", to_dir=tmp_path / "a" / "b")
    place.refused("give a directory", to_dir=place.disks[0])
    place.refused("not both", to_dir=tmp_path / "new", disks={0: tmp_path / "x"})
    place.refused("lies in the export itself", to_dir=place.export_path, force=True)
    place.refused("lies in the export itself", to_dir=place.export_path / "new")
    place.import_(to_dir=used, force=True)
    assert (used / "letter.txt").read_text() == "mine"
    assert (used / "disk-0.raw").read_bytes() == place.contents[0]


def test_an_existing_file_is_replaced_with_force_and_keeps_its_mode(place: Place, tmp_path: Path) -> None:
    target = tmp_path / "old.raw"
    target.write_bytes(bytes([OLD]) * (5 * MIB))
    target.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(target, 12, 34)
    place.refused("exists already", disks={0: target})
    place.import_(disks={0: target}, force=True)
    assert target.read_bytes() == place.contents[0]
    status = target.stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert (status.st_uid, status.st_gid) == ((12, 34) if os.geteuid() == 0 else (os.getuid(), os.getgid()))
    assert status.st_blocks * 512 < MIB
    assert not target.with_name("old.raw.incomplete").exists()


def test_disks_have_to_be_named_one_by_one(tmp_path: Path) -> None:
    place = Place(tmp_path, disks=2)
    a, b = tmp_path / "a.raw", tmp_path / "b.raw"
    for disks in ({0: a}, {1: a}, {0: a, 2: b}, {0: a, 1: b, 2: tmp_path / "c"}):
        place.refused("has 2 disk", disks=disks)
    place.refused("begin with 0", disks={-1: a, 0: b})
    place.refused("given for two disks", disks={0: a, 1: a})
    place.refused("its directory does not exist", disks={0: a, 1: tmp_path / "no" / "b.raw"})
    place.import_(disks={0: a, 1: b})
    assert [a.read_bytes(), b.read_bytes()] == place.contents


@pytest.mark.parametrize("force", [False, True])
def test_links_are_never_followed_to_a_target(place: Place, tmp_path: Path, force: bool) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / "link.raw").symlink_to(precious)
    (tmp_path / "dangling.raw").symlink_to(tmp_path / "new")
    (tmp_path / "disk.raw.incomplete").symlink_to(precious)
    for name in ("link.raw", "dangling.raw", "disk.raw"):
        place.refused("not a regular file|exists already", disks={0: tmp_path / name}, force=force)
    os.link(precious, tmp_path / "second-name")
    place.refused("hard links|exists already", disks={0: tmp_path / "second-name"}, force=force)
    for make in (os.mkfifo, os.mkdir):
        make(tmp_path / make.__name__)
        place.refused("not a regular file|exists already", disks={0: tmp_path / make.__name__}, force=force)
    assert precious.read_bytes() == b"precious"


def test_a_link_put_there_during_the_import_is_not_followed(place: Place, tmp_path: Path) -> None:
    precious, target = tmp_path / "precious", tmp_path / "disk.raw"
    precious.write_bytes(b"precious")

    def swap(event: object) -> None:
        if isinstance(event, DiskProgress) and event.finished and not target.is_symlink():
            target.symlink_to(precious)

    with pytest.raises(diskhaul.StorageError, match=r"disk.raw: appeared while it was restored"):
        place.import_(disks={0: target}, on_event=swap)
    assert precious.read_bytes() == b"precious"
    assert target.is_symlink()


def test_a_file_that_somebody_uses_is_refused(place: Place, tmp_path: Path, requires: Requires) -> None:
    requires("losetup", root=True)
    target = tmp_path / "used.raw"
    target.write_bytes(bytes(MIB))
    with open(target, "r+b"):
        place.refused("open in another process", disks={0: target}, force=True)
    loop = subprocess.run(["losetup", "-f", "--show", str(target)], check=True, capture_output=True, text=True).stdout.strip()
    try:
        place.refused(f"attached to {loop}", disks={0: target}, force=True)
    finally:
        subprocess.run(["losetup", "-d", loop], check=True)


def test_the_disks_must_fit_on_the_filesystem(place: Place, tmp_path: Path, tmpfs: Callable[[int], Path]) -> None:
    small = tmpfs(12 << 10)
    place.refused("MiB free and the disks need .* make room", to_dir=small / "to")


def test_a_disk_may_grow_and_never_shrink(place: Place, tmp_path: Path, device: Callable[..., Path]) -> None:
    size = len(place.contents[0])
    place.refused("may grow, never shrink", to_dir=tmp_path / "to", grow=((0, size - 512),))
    place.refused("has no disk 1", to_dir=tmp_path / "to", grow=((1, size),))
    result = place.import_(to_dir=tmp_path / "to", grow=((0, 2 * size),))
    assert (tmp_path / "to" / "disk-0.raw").read_bytes() == place.contents[0] + bytes(size)
    assert result.disks[0].size == 2 * size
    old = device(2 * size)
    place.import_(disks={0: old}, grow=((0, 2 * size),), force=True)
    assert read_device(old) == place.contents[0] + bytes(size), "what was added reads as zeros, whatever was there"


def test_a_dry_run_writes_nothing(place: Place, tmp_path: Path, device: Callable[..., Path]) -> None:
    old = device(3 * MIB)
    before = snapshot(tmp_path)
    for where in ({"to_dir": tmp_path / "to"}, {"disks": {0: tmp_path / "new.raw"}}, {"disks": {0: old}, "force": True}):
        result = place.import_(dry_run=True, **where)  # type: ignore[arg-type]
        assert result.dry_run
        assert [(disk.size, disk.bytes_written) for disk in result.disks] == [(len(place.contents[0]), 0)]
        assert len(result.targets) == 1
    assert snapshot(tmp_path) == before
    assert set(read_device(old)) == {OLD}


# --- devices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [0, 4 * MIB])
def test_a_device_full_of_old_bytes_gets_the_disk_with_zeros_for_holes(
    place: Place, device: Callable[..., Path], more: int
) -> None:
    size = len(place.contents[0])
    old = device(size + more)
    place.refused("overwrite it with --force", disks={0: old})
    place.import_(disks={0: old}, force=True)
    assert read_device(old, size) == place.contents[0]
    assert set(read_device(old)[size:]) <= {OLD}, "what lies behind the disk is not its business"


def test_a_device_that_is_too_small_mounted_in_use_or_read_only_is_refused(
    place: Place, tmp_path: Path, device: Callable[..., Path], requires: Requires
) -> None:
    requires("mkfs.ext4", "mount", "blockdev", root=True)
    small = device(MIB)
    place.refused("has 1048576 bytes, the disk needs", disks={0: small}, force=True)
    assert set(read_device(small)) == {OLD}

    mounted, point = device(8 * MIB), tmp_path.parent / f"{tmp_path.name}-mnt"
    subprocess.run(["mkfs.ext4", "-q", str(mounted)], check=True)
    point.mkdir()
    subprocess.run(["mount", str(mounted), str(point)], check=True)
    try:
        place.refused(f"is mounted on {point}", disks={0: mounted}, force=True)
    finally:
        subprocess.run(["umount", str(point)], check=True)
    held = device(3 * MIB)
    descriptor = os.open(held, os.O_RDWR | os.O_EXCL)
    try:
        place.refused("is in use", disks={0: held}, force=True)
    finally:
        os.close(descriptor)
    subprocess.run(["blockdev", "--setro", str(held)], check=True)
    try:
        place.refused("is read-only", disks={0: held}, force=True)
    finally:
        subprocess.run(["blockdev", "--setrw", str(held)], check=True)
    assert set(read_device(held)) == {OLD}


def test_of_two_targets_neither_is_touched_when_one_is_refused(tmp_path: Path, device: Callable[..., Path]) -> None:
    place = Place(tmp_path, disks=2)
    good, small = device(3 * MIB), device(MIB)
    place.refused("the disk needs", disks={0: good, 1: small}, force=True)
    assert set(read_device(good)) == {OLD}


def test_a_failed_import_onto_a_device_leaves_its_head_marked(place: Place, device: Callable[..., Path]) -> None:
    size = len(place.contents[0])
    old = device(size)
    place.damage(size // 2 // CHUNK)
    with pytest.raises(diskhaul.VerificationError) as caught:
        place.import_(disks={0: old}, force=True)
    assert caught.value.findings[0].offset == size // 2 // CHUNK * CHUNK
    assert "marked incomplete" in str(caught.value.__notes__)
    head = read_device(old, HEAD)
    assert head.startswith(b"diskhaul: incomplete import of web1.example.com@")
    assert head.rstrip(b"\0").endswith(b"\n")
    assert read_device(old)[HEAD : HEAD + 900] != place.contents[0][:900]
    # The next attempt, with the export whole again, makes it good.
    place.damage(size // 2 // CHUNK)
    place.import_(disks={0: old}, force=True)
    assert read_device(old) == place.contents[0]


# --- failing ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tmpfs(tmp_path: Path, requires: Requires) -> Iterator[Callable[[int], Path]]:
    """A small filesystem in memory: ``tmpfs(bytes)``."""
    requires("mount", root=True)
    made: list[Path] = []

    def make(size: int) -> Path:
        point = tmp_path.parent / f"{tmp_path.name}-tmpfs"
        point.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(point)], check=True)
        made.append(point)
        return point

    yield make
    for point in made:
        subprocess.run(["umount", str(point)], check=True)


def only_incomplete(directory: Path) -> bool:
    return all(name.endswith(".incomplete") for name in os.listdir(directory))


def test_damage_in_the_middle_leaves_nothing_under_the_final_name(place: Place, tmp_path: Path) -> None:
    place.damage(len(place.contents[0]) // 2 // CHUNK)
    with pytest.raises(diskhaul.VerificationError, match="disk 0 offset"):
        place.import_(to_dir=tmp_path / "to")
    assert only_incomplete(tmp_path / "to")
    old = tmp_path / "old.raw"
    old.write_bytes(b"the old disk")
    with pytest.raises(diskhaul.VerificationError):
        place.import_(disks={0: old}, force=True)
    assert old.read_bytes() == b"the old disk"


def test_one_failing_disk_fails_them_all(tmp_path: Path) -> None:
    place = Place(tmp_path, disks=3)
    place.damage(0, disk=1)
    with pytest.raises(diskhaul.VerificationError, match="disk 1 offset 0"):
        place.import_(to_dir=tmp_path / "to")
    assert only_incomplete(tmp_path / "to")


def test_a_full_filesystem_fails_and_leaves_nothing_under_the_final_name(place: Place, tmpfs: Callable[[int], Path]) -> None:
    small = tmpfs(512 << 10)

    def fill(event: object) -> None:
        if isinstance(event, StageStarted) and event.stage == "restore":
            with open(small / "filler", "wb") as filler:
                try:
                    while True:
                        filler.write(b"x" * 4096)
                        filler.flush()
                except OSError:
                    filler.raw.close()

    with pytest.raises(diskhaul.OperationFailedError, match="No space left on device") as caught:
        place.import_(disks={0: small / "disk.raw"}, on_event=fill)
    assert caught.value.exit_code == 3
    assert set(os.listdir(small)) <= {"filler", "disk.raw.incomplete"}


def test_a_cancelled_import_leaves_nothing_under_the_final_name(place: Place, tmp_path: Path) -> None:
    token = diskhaul.CancellationToken()
    old = tmp_path / "old.raw"
    old.write_bytes(b"the old disk")

    def cancel(event: object) -> None:
        if isinstance(event, DiskProgress) and event.activity == "restore":
            token.cancel("enough")

    with pytest.raises(diskhaul.InterruptedRunError, match="enough") as caught:
        place.import_(disks={0: old}, force=True, on_event=cancel, cancel=token)
    assert caught.value.exit_code == 130
    assert "marked incomplete" in str(caught.value.__notes__)
    assert old.read_bytes() == b"the old disk"
    place.refused("old.raw.incomplete: exists already", disks={0: tmp_path / "old.raw"})
    place.import_(disks={0: old}, force=True)
    assert old.read_bytes() == place.contents[0]
    assert not (tmp_path / "old.raw.incomplete").exists()


def test_a_target_that_hangs_ends_the_import_and_is_closed_when_it_lets_go(place: Place) -> None:
    faulty = FaultyDisk(MemoryDisk(len(place.contents[0]), fill=OLD), Fault(on="write", kind="hang", nth=2))
    storage = MemoryStorage({"root": faulty})
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(diskhaul.OperationFailedError, match=r"nothing moved for 0\.5 s") as caught:
        place.import_(
            INSTANCE, config=memory_cluster(place, {INSTANCE: "root"}), plugins=[storage], force=True, stall_timeout_s=0.5
        )
    assert caught.value.exit_code == 3
    assert faulty.hanging.is_set()
    inner: MemoryDisk = faulty._disk
    assert inner.closes == 0, "nobody closes a disk under a thread that is in it"
    assert inner.content().startswith(b"diskhaul: incomplete import")
    faulty.release()
    for thread in threading.enumerate():
        if thread.name.startswith("diskhaul-chunk"):
            thread.join(30)
    assert inner.closes == 1
    assert set(os.listdir("/proc/self/fd")) == before
    assert inner.content().startswith(b"diskhaul: incomplete import"), "also when the thread goes on at last"


def test_what_a_failed_import_left_is_not_overwritten_without_force(place: Place, tmp_path: Path) -> None:
    left = tmp_path / "disk.raw.incomplete"
    left.write_bytes(b"left")
    place.refused("disk.raw.incomplete: exists already", disks={0: tmp_path / "disk.raw"})
    assert left.read_bytes() == b"left"


# --- the configured disks ---------------------------------------------------------------------------------------------


def with_command(place: Place, *, running: bool) -> None:
    """Make the instance one of the command runtime, running or not."""
    status = "/bin/true" if running else "/bin/false"
    options = {"start": ["/bin/true"], "stop": ["/bin/true"], "status": [status]}
    place.instance = replace(place.instance, runtime="command", runtime_options=options)
    place.cluster = replace(place.cluster, instances=[place.instance])


def test_the_disks_of_a_running_guest_are_never_overwritten(place: Place) -> None:
    with_command(place, running=True)
    place.refused("is running: stop it", export=INSTANCE, config=place.cluster, force=True)


def test_the_disks_of_a_guest_whose_state_is_unknown_are_never_overwritten(place: Place) -> None:
    with_command(place, running=False)
    broken = dict(place.instance.runtime_options) | {"status": ["/nonexistent/status"]}
    cluster = replace(place.cluster, instances=[replace(place.instance, runtime_options=broken)])
    place.refused("nonexistent", export=INSTANCE, config=cluster, force=True)


def test_a_stopped_instance_gets_its_own_disks_back(place: Place) -> None:
    with_command(place, running=False)
    place.disks[0].write_bytes(b"ruined")
    place.refused("exists already", export=INSTANCE, config=place.cluster)
    result = place.import_(INSTANCE, config=place.cluster, force=True)
    assert place.disks[0].read_bytes() == place.contents[0]
    assert result.targets == {0: str(place.disks[0])}
    assert not (place.path / "instance.toml").exists()


def at_the_end(action: Callable[[], object]) -> Callable[[object], None]:
    """Do something once the last byte of the first disk has been written."""
    todo = [action]

    def listen(event: object) -> None:
        if isinstance(event, DiskProgress) and event.finished and todo:
            todo.pop()()

    return listen


def test_the_disks_of_a_guest_that_is_started_meanwhile_are_not_replaced(place: Place, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    status = tmp_path / "status"
    status.write_text(f"#!/bin/sh\ntest -e {runs}\n")
    status.chmod(0o755)
    with_command(place, running=False)
    options = dict(place.instance.runtime_options) | {"status": [str(status)]}
    cluster = replace(place.cluster, instances=[replace(place.instance, runtime_options=options)])
    place.disks[0].write_bytes(b"precious")
    with pytest.raises(diskhaul.GuestError, match="was started by somebody else while its disks were restored"):
        place.import_(INSTANCE, config=cluster, force=True, on_event=at_the_end(runs.touch))
    assert place.disks[0].read_bytes() == b"precious"


def test_a_file_that_somebody_begins_to_use_meanwhile_is_not_replaced(place: Place, tmp_path: Path, requires: Requires) -> None:
    requires("losetup", root=True)
    target = tmp_path / "disk.raw"
    target.write_bytes(bytes(1 << 20))
    devices: list[str] = []

    def use() -> None:
        found = subprocess.run(["losetup", "--find", "--show", str(target)], check=True, capture_output=True, text=True)
        devices.append(found.stdout.strip())

    try:
        with pytest.raises(diskhaul.StorageError, match="loop"):
            place.import_(disks={0: target}, force=True, on_event=at_the_end(use))
        assert target.read_bytes() == bytes(1 << 20)
    finally:
        for device in devices:
            subprocess.run(["losetup", "--detach", device], check=True)


def test_an_import_that_lost_its_lock_replaces_nothing(place: Place) -> None:
    with_command(place, running=False)
    place.disks[0].write_bytes(b"precious")

    def lose() -> None:
        for record in (place.path / "state" / "locks").glob("*@*"):
            record.unlink()

    with pytest.raises(diskhaul.LockError, match="lost"):
        place.import_(INSTANCE, config=place.cluster, force=True, on_event=at_the_end(lose))
    assert place.disks[0].read_bytes() == b"precious"


def test_disks_that_were_replaced_before_one_that_could_not_be_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path, disks=2)
    rename = os.rename

    def fail_the_second(old: Path, new: Path) -> None:
        if Path(new).name == "second.raw":
            raise OSError(5, "Input/output error")
        rename(old, new)

    monkeypatch.setattr(os, "rename", fail_the_second)
    with pytest.raises(diskhaul.StorageError, match="cannot get its name") as failed:
        place.import_(disks={0: tmp_path / "first.raw", 1: tmp_path / "second.raw"})
    assert any("first.raw: whole already, and new" in note for note in failed.value.__notes__)
    assert not (tmp_path / "second.raw").exists()


def test_the_number_of_configured_disks_has_to_fit(place: Place) -> None:
    more = replace(place.instance, disks=[*place.instance.disks, diskhaul.Disk(path=place.path / "second.raw")])
    cluster = replace(place.cluster, instances=[more])
    place.refused("configured with 2 disk.*the export has 1", export=INSTANCE, config=cluster, force=True)
    smaller = replace(place.instance, disks=[replace(place.instance.disks[0], size=MIB)])
    cluster = replace(place.cluster, instances=[smaller])
    place.refused("may grow, never shrink", export=INSTANCE, config=cluster, force=True)
    place.refused("is not configured", export=INSTANCE, config=place.cluster, instance_name="web9", force=True)


def test_a_disk_of_another_instance_is_refused_by_whatever_name(
    place: Place, tmp_path: Path, loop_device: Callable[[Path], str]
) -> None:
    theirs = tmp_path / "theirs.raw"
    theirs.write_bytes(bytes([OLD]) * (3 * MIB))
    other = diskhaul.Instance(name=OTHER, node="alpha", state="down", disks=[diskhaul.Disk(path=theirs)])
    cluster = replace(place.cluster, instances=[place.instance, other])
    (tmp_path / "linked").symlink_to(tmp_path)
    loop = Path(loop_device(theirs))
    for name in (theirs, tmp_path / "linked" / "theirs.raw", loop):
        problems = place.refused(f"belongs to {OTHER} disk 0", disks={0: name}, config=cluster, force=True)
        assert any(OTHER in problem for problem in problems)
    place.refused(f"belongs to {INSTANCE} disk 0", disks={0: place.disks[0]}, config=cluster, force=True)
    assert set(theirs.read_bytes()) == {OLD}


def memory_cluster(place: Place, names: Mapping[str, str]) -> diskhaul.Cluster:
    """Instances whose only disk lies in a plugin's storage: name of the instance, name of the disk."""
    instances = [
        diskhaul.Instance(name=name, node="alpha", state="down", disks=[diskhaul.Disk(storage="memory", options={"name": disk})])
        for name, disk in names.items()
    ]
    return replace(place.cluster, instances=instances)


def test_a_plugins_storage_gets_the_disk_and_keeps_the_mark_of_a_failed_one(place: Place) -> None:
    size = len(place.contents[0])
    storage = MemoryStorage()
    cluster = memory_cluster(place, {INSTANCE: "root"})
    place.import_(INSTANCE, config=cluster, plugins=[storage])
    assert storage.disks["root"].content() == place.contents[0]

    storage.disks["root"] = SparseMemoryDisk(bytes([OLD]) * size)
    place.damage(size // 2 // CHUNK)
    with pytest.raises(diskhaul.VerificationError):
        place.import_(INSTANCE, config=cluster, plugins=[storage], force=True)
    assert storage.disks["root"].content().startswith(b"diskhaul: incomplete import")
    place.damage(size // 2 // CHUNK)
    place.import_(INSTANCE, config=cluster, plugins=[storage], force=True)
    assert storage.disks["root"].content() == place.contents[0]


def test_a_plugins_disk_that_belongs_to_two_instances_is_refused(place: Place) -> None:
    storage = MemoryStorage({"root": SparseMemoryDisk(bytes([OLD]) * len(place.contents[0]))})
    cluster = memory_cluster(place, {INSTANCE: "root", OTHER: "root"})
    place.refused(f"belongs to {OTHER}", export=INSTANCE, config=cluster, plugins=[storage], force=True)
    assert set(storage.disks["root"].content()) == {OLD}


# --- Ganeti -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (None, "gives the location None instead of text"),
        (SystemExit("no"), "SystemExit: no"),
        (OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_a_target_whose_storage_cannot_say_where_it_is_is_refused(place: Place, answer: Any, expected: str) -> None:
    class Lost(MemoryStorage):
        def location(self, disk: diskhaul.Disk, /) -> str:
            if isinstance(answer, BaseException):
                raise answer
            return answer  # type: ignore[no-any-return]  # a plugin's nonsense

    storage = Lost({"root": SparseMemoryDisk(bytes([OLD]) * len(place.contents[0]))})
    cluster = memory_cluster(place, {INSTANCE: "root"})
    place.refused(expected, export=INSTANCE, config=cluster, plugins=[storage], force=True)
    assert set(storage.disks["root"].content()) == {OLD}


def test_an_export_in_ganetis_layout_is_what_ganeti_reads(tmp_path: Path) -> None:
    place = Place(tmp_path, disks=2)
    place.instance = replace(
        place.instance,
        memory_mib=1024,
        vcpus=2,
        os="debootstrap+default",
        tags=["a", "b"],
        nics=[diskhaul.Nic(mac="aa:00:00:00:00:01")],
    )
    place.cluster = replace(place.cluster, instances=[place.instance])
    place.export = place.make_export(compress="none", layout="ganeti")
    config = configparser.ConfigParser()  # as Ganeti's objects.SerializableConfigParser is one
    assert config.read(place.export_path / "config.ini")
    assert config.get("export", "version") == "0"
    assert config.get("export", "source") == "alpha"
    assert config.get("export", "os") == "debootstrap+default"
    assert config.get("instance", "name") == INSTANCE
    assert config.getint("instance", "maxmem") == 1024
    assert config.get("instance", "tags") == "a b"
    assert config.get("instance", "nic0_mac") == "aa:00:00:00:00:01"
    assert config.getint("instance", "disk_count") == 2
    assert config.items("os_private") == []
    for index, content in enumerate(place.contents):
        dump = place.export_path / config.get("instance", f"disk{index}_dump")
        assert dump.read_bytes() == content
        assert config.getint("instance", f"disk{index}_size") == 3
    assert diskhaul.verify(place.export.path).findings == ()
    result = place.import_(to_dir=tmp_path / "to")
    assert [(tmp_path / "to" / f"disk-{index}.raw").read_bytes() for index in range(2)] == place.contents
    assert result.warnings == ()


GANETI_CONFIG = """[export]
version = 0
timestamp = 1700000000
source = node1.example.com
os = debootstrap+default
compression = {compression}

[instance]
name = web1.example.com
maxmem = 512
minmem = 512
memory = 512
vcpus = 1
disk_template = plain
hypervisor = xen-pvm
nic0_mac = aa:00:00:fa:3a:3f
nic0_ip = None
nic0_mode = bridged
nic0_link = xen-br0
nic_count = 1
disk0_ivname = disk/0
disk0_dump = 5d6c2c70-5d29-4aa0-a4c3-1e4b3a0f1c11.disk0
disk0_size = {size}
disk0_name = None
disk_count = 1
tags = one two

[hypervisor]
kernel_path = /boot/vmlinuz

[backend]
auto_balance = True

[os]
"""


def ganeti_export(directory: Path, content: bytes, *, size: int, compression: str = "none") -> Path:
    directory.mkdir()
    (directory / "config.ini").write_text(GANETI_CONFIG.format(size=size, compression=compression))
    (directory / "5d6c2c70-5d29-4aa0-a4c3-1e4b3a0f1c11.disk0").write_bytes(content)
    return directory


def test_ganetis_own_export_is_imported_with_a_warning(tmp_path: Path) -> None:
    content = content_of(6 * MIB)
    source = ganeti_export(tmp_path / "theirs", content, size=6)
    result = diskhaul.import_(str(source), to_dir=tmp_path / "to")
    assert (tmp_path / "to" / "disk-0.raw").read_bytes() == content
    assert any("no digests" in warning for warning in result.warnings)
    described = tomllib.loads((tmp_path / "to" / "instance.toml").read_text())["instances"][INSTANCE]
    assert described["memory_mib"] == 512
    assert described["tags"] == ["one", "two"]
    assert described["nics"] == [{"mac": "aa:00:00:fa:3a:3f", "mode": "bridged", "link": "xen-br0"}]
    with pytest.raises(diskhaul.RefusedError, match="nothing to verify it against"):
        diskhaul.verify(str(source))


def test_ganetis_dump_may_be_larger_than_said_and_never_smaller(tmp_path: Path) -> None:
    """Volumes are made of whole extents; one that is smaller was cut."""
    content = content_of(6 * MIB)
    diskhaul.import_(str(ganeti_export(tmp_path / "larger", content, size=5)), to_dir=tmp_path / "to")
    assert (tmp_path / "to" / "disk-0.raw").read_bytes() == content
    with pytest.raises(diskhaul.VerificationError, match="was cut") as caught:
        diskhaul.import_(str(ganeti_export(tmp_path / "cut", content, size=7)), to_dir=tmp_path / "no")
    assert caught.value.findings[0].disk == 0
    with pytest.raises(diskhaul.VerificationError, match="compressed"):
        diskhaul.import_(str(ganeti_export(tmp_path / "gz", content, size=6, compression="gzip")), to_dir=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_our_export_in_ganetis_layout_without_its_manifest_is_not_taken_for_ganetis(place: Place, tmp_path: Path) -> None:
    place.export = place.make_export(compress="none", layout="ganeti")
    (place.export_path / "manifest.json").unlink()
    with pytest.raises(diskhaul.VerificationError, match=r"manifest\.json is missing"):
        place.import_(to_dir=tmp_path / "to")
    assert not (tmp_path / "to").exists()


def test_results_can_be_told_as_json(place: Place, tmp_path: Path) -> None:
    events: list[str] = []
    place.import_(to_dir=tmp_path / "to", on_event=lambda event: events.append(json.dumps(event.as_dict())))
    kinds = [json.loads(event)["event"] for event in events]
    assert "disk-progress" in kinds
    last = [json.loads(event) for event in events if json.loads(event).get("finished")]
    assert [(event["activity"], event["done"]) for event in last] == [("restore", len(place.contents[0]))]
