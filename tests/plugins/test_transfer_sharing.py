"""Exports that share the blocks of a disk, and published ones that are added to."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import diskhaul_native as native
from diskhaul.api import BackendContext
from diskhaul.errors import StorageError
from diskhaul.formats.export_id import partial_name
from diskhaul.model import Cluster, Node
from diskhaul.testing.conformance.storages import pattern
from diskhaul.testing.conformance.transfers import INSTANCE, MANIFEST, NEW, OLD, TransferConformance, content, make
from diskhaul_plugins.transfers.directory import DirectoryFile, DirectoryStore, DirectoryTransfer

KIB, MIB = 1 << 10, 1 << 20
Filesystems = Callable[..., Any]
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_NOCOW_FL = 0x80086601, 0x40086602, 0x00800000


def directory_transfer(tmp_path: Path) -> DirectoryTransfer:
    return DirectoryTransfer(BackendContext(cluster=Cluster(name="lab", state_dir=tmp_path / "state")))


class OnSharingFilesystem(TransferConformance):
    kind = ""

    @pytest.fixture
    def filesystem(self, loop_filesystem: Filesystems) -> Path:
        path: Path = loop_filesystem(self.kind).path
        for name in ("exports", "other"):
            (path / name).mkdir(mode=0o755)
        return path

    @pytest.fixture
    def transfer(self, tmp_path: Path) -> DirectoryTransfer:
        return directory_transfer(tmp_path)

    @pytest.fixture
    def node(self, filesystem: Path) -> Node:
        return Node(name="alpha", export_dir=filesystem / "exports")

    @pytest.fixture
    def other_node(self, filesystem: Path) -> Node:
        return Node(name="beta", export_dir=filesystem / "other")

    @pytest.fixture
    def missing_node(self, filesystem: Path) -> Node:
        return Node(name="delta", export_dir=filesystem / "nowhere")

    @pytest.fixture
    def sharable(self, filesystem: Path) -> Path:
        return filesystem / "disk.raw"


class TestDirectoryTransferOnXfs(OnSharingFilesystem):
    kind = "xfs"


class TestDirectoryTransferOnBtrfs(OnSharingFilesystem):
    kind = "btrfs"


class Lab:
    """A store, and a disk beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "exports").mkdir(mode=0o700)
        self.store = DirectoryStore(str(path / "exports"))
        self.disk = path / "disk"

    def make_disk(self, size: int = 3 * MIB) -> bytes:
        self.disk.write_bytes(pattern(size))
        return pattern(size)

    def new_file(self) -> DirectoryFile:
        self.writer = self.store.begin(INSTANCE, NEW)
        return self.writer.create("disk-0.raw")

    @property
    def stored(self) -> Path:
        return self.path / "exports" / INSTANCE / partial_name(NEW) / "disk-0.raw"


@pytest.fixture(params=["xfs", "btrfs"])
def lab(request: pytest.FixtureRequest, loop_filesystem: Filesystems) -> Lab:
    return Lab(loop_filesystem(request.param).path)


@pytest.fixture
def opened() -> Iterator[Callable[[Path], int]]:
    descriptors: list[int] = []

    def open_it(path: Path) -> int:
        descriptors.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        return descriptors[-1]

    yield open_it
    for descriptor in descriptors:
        os.close(descriptor)


Opened = Callable[[Path], int]


def used_bytes(path: Path) -> int:
    subprocess.run(["sync", "-f", str(path)], check=True)
    status = os.statvfs(path)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


@pytest.mark.parametrize("direct", ["never", "auto"])
def test_a_file_becomes_the_disk_and_takes_no_room(lab: Lab, opened: Opened, direct: Any) -> None:
    whole = lab.make_disk(64 * MIB)
    before = used_bytes(lab.path)
    file = lab.new_file()
    file.use_direct_io(direct)
    file.set_size(64 * MIB)
    assert file.clone_from(opened(lab.disk), 64 * MIB)
    file.finish()
    assert used_bytes(lab.path) - before < MIB
    with open(lab.disk, "r+b") as disk:
        disk.write(b"changed afterwards")
    assert lab.stored.read_bytes() == whole
    assert stat.S_IMODE(lab.stored.stat().st_mode) == 0o600
    lab.writer.publish(MANIFEST)


def check_copied(lab: Lab, descriptor: int, size: int) -> None:
    """It says that it cannot be, has changed nothing, and can be written as ever."""
    file = lab.new_file()
    file.set_size(size)
    assert not file.clone_from(descriptor, size)
    assert lab.stored.read_bytes() == bytes(size)
    assert file.write(0, b"d" * 8192) == 8192
    file.set_size(size)
    file.finish()
    assert lab.stored.read_bytes() == b"d" * 8192 + bytes(size - 8192)
    lab.writer.abort()


@pytest.mark.parametrize(("kind", "options"), [("ext4", ()), ("xfs", ("-m", "reflink=0"))])
def test_without_reflinks_it_has_to_be_copied(
    loop_filesystem: Filesystems, opened: Opened, kind: str, options: tuple[str, ...]
) -> None:
    lab = Lab(loop_filesystem(kind, mkfs_options=options).path)
    lab.make_disk(64 * KIB)
    descriptor = opened(lab.disk)
    assert not lab.store.shares_blocks(INSTANCE, descriptor)
    check_copied(lab, descriptor, 64 * KIB)


def test_of_a_disk_on_another_filesystem_it_has_to_be_copied(lab: Lab, loop_filesystem: Filesystems, opened: Opened) -> None:
    elsewhere = loop_filesystem("xfs").path / "disk"
    elsewhere.write_bytes(pattern(64 * KIB))
    descriptor = opened(elsewhere)
    assert not lab.store.shares_blocks(INSTANCE, descriptor)
    check_copied(lab, descriptor, 64 * KIB)


def test_what_is_no_regular_file_or_of_another_size_is_not_shared(
    lab: Lab, opened: Opened, loop_device: Callable[[Path], str]
) -> None:
    lab.make_disk(64 * KIB)
    device = opened(Path(loop_device(lab.disk)))
    assert not lab.store.shares_blocks(INSTANCE, device)
    check_copied(lab, device, 64 * KIB)
    check_copied(lab, opened(lab.disk), 32 * KIB)


def test_a_disk_that_grows_while_it_is_shared_is_an_error(lab: Lab, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.make_disk(64 * KIB)
    clone = native.clone

    def grow_first(*arguments: Any, **more: Any) -> None:
        os.truncate(lab.disk, 128 * KIB)
        clone(*arguments, **more)

    monkeypatch.setattr(native, "clone", grow_first)
    file = lab.new_file()
    with pytest.raises(StorageError, match="cannot share the blocks of the disk"):
        file.clone_from(opened(lab.disk), 64 * KIB)
    with pytest.raises(StorageError, match="an earlier write failed"):
        file.finish()
    lab.writer.abort()


def test_the_trial_leaves_nothing(lab: Lab, opened: Opened) -> None:
    lab.make_disk(64 * KIB)
    before = sorted(str(path) for path in lab.path.rglob("*"))
    descriptors = os.listdir("/proc/self/fd")
    descriptor = opened(lab.disk)
    assert lab.store.shares_blocks(INSTANCE, descriptor)
    assert sorted(str(path) for path in lab.path.rglob("*")) == before
    assert len(os.listdir("/proc/self/fd")) == len(descriptors) + 1


def flags(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        answer = bytearray(8)
        fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, answer)
        return int(struct.unpack_from("i", answer)[0])
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("nocow", ["disk", "exports"])
def test_on_btrfs_files_with_and_without_checksums_are_shared(
    loop_filesystem: Filesystems, opened: Opened, requires: Callable[..., None], nocow: str
) -> None:
    requires("chattr")
    lab = Lab(loop_filesystem("btrfs").path)
    lab.disk.touch()
    subprocess.run(["chattr", "+C", str(lab.path / nocow)], check=True)
    whole = lab.make_disk()
    assert bool(flags(lab.disk) & FS_NOCOW_FL) == (nocow == "disk")
    descriptor = opened(lab.disk)
    assert lab.store.shares_blocks(INSTANCE, descriptor)
    file = lab.new_file()
    file.set_size(len(whole))
    assert file.clone_from(descriptor, len(whole))
    assert native.shared_blocks(descriptor, file.fileno(), len(whole)).end == len(whole)
    file.finish()
    assert lab.stored.read_bytes() == whole
    with open(lab.disk, "r+b") as disk:
        disk.write(b"changed in place")
        os.fsync(disk.fileno())
    assert lab.stored.read_bytes() == whole
    lab.writer.abort()


def test_a_copy_keeps_the_checksums_that_a_clone_could_not_have(
    loop_filesystem: Filesystems, opened: Opened, requires: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    requires("chattr")
    lab = Lab(loop_filesystem("btrfs").path)
    lab.disk.touch()
    subprocess.run(["chattr", "+C", str(lab.disk)], check=True)
    lab.make_disk(64 * KIB)

    def refused(*_: Any, **__: Any) -> None:
        raise native.NativeIOError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(native, "clone", refused)
    file = lab.new_file()
    assert not file.clone_from(opened(lab.disk), 64 * KIB)
    assert not flags(lab.stored) & FS_NOCOW_FL
    lab.writer.abort()


def test_a_disk_of_another_subvolume_is_shared(
    loop_filesystem: Filesystems, opened: Opened, requires: Callable[..., None]
) -> None:
    requires("btrfs")
    path = loop_filesystem("btrfs").path
    for name in ("disks", "store"):
        subprocess.run(["btrfs", "subvolume", "create", str(path / name)], check=True, capture_output=True)
    lab = Lab(path / "store")
    lab.disk = path / "disks" / "disk"
    whole = lab.make_disk()
    file = lab.new_file()
    assert file.clone_from(opened(lab.disk), len(whole))
    file.finish()
    assert lab.stored.read_bytes() == whole
    lab.writer.abort()


def test_no_room_for_what_the_filesystem_has_to_remember_is_an_error_and_an_abort_leaves_nothing(
    loop_filesystem: Filesystems, opened: Opened, requires: Callable[..., None]
) -> None:
    requires("strace")
    lab = Lab(loop_filesystem("xfs").path)
    lab.make_disk()
    code = (
        "import os, sys\n"
        "from diskhaul.errors import StorageError\n"
        "from diskhaul_plugins.transfers.directory import DirectoryStore\n"
        f"writer = DirectoryStore(sys.argv[1]).begin({INSTANCE!r}, {NEW!r})\n"
        "file = writer.create('disk-0.raw')\n"
        "disk = os.open(sys.argv[2], os.O_RDONLY)\n"
        "try:\n"
        "    file.clone_from(disk, os.fstat(disk).st_size)\n"
        "except StorageError as error:\n"
        "    print(error)\n"
        "writer.abort()\n"
    )
    traced = [
        "strace",
        "-f",
        "-qq",
        "-o",
        os.devnull,
        "-P",
        str(lab.stored),
        "-e",
        "trace=ioctl",
        "-e",
        "inject=ioctl:error=ENOSPC:when=2",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    child = subprocess.run(
        [*traced, os.path.realpath(sys.executable), "-c", code, str(lab.path / "exports"), str(lab.disk)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert child.returncode == 0, child.stderr
    assert "cannot share the blocks of the disk" in child.stdout
    assert "No space left on device" in child.stdout
    assert not list((lab.path / "exports").glob("*/*"))


# --- adding to a published export ---------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    (tmp_path / "exports").mkdir(mode=0o700)
    return DirectoryStore(str(tmp_path / "exports"))


def place(store: DirectoryStore, export_id: str = NEW) -> Path:
    return Path(store._path, INSTANCE, export_id)


def test_what_is_added_is_private_and_nothing_else_is_left(store: DirectoryStore) -> None:
    make(store, NEW, {"disk-0.raw": b"bytes"})
    old = os.umask(0)
    try:
        store.amend(INSTANCE, NEW, {"disk-0.chunks": [b"dig", memoryview(b"ests")]}, b"new")
    finally:
        os.umask(old)
    assert sorted(os.listdir(place(store))) == ["disk-0.chunks", "disk-0.raw", "manifest.json"]
    assert {stat.S_IMODE((place(store) / name).stat().st_mode) for name in os.listdir(place(store))} == {0o600}


def test_leftovers_are_replaced_and_links_are_not_followed(store: DirectoryStore, tmp_path: Path) -> None:
    make(store, NEW, {"disk-0.raw": b"bytes"})
    (tmp_path / "victim").write_bytes(b"mine")
    (place(store) / ".disk-0.chunks.tmp").write_bytes(b"half")
    (place(store) / "disk-0.chunks").symlink_to(tmp_path / "victim")
    (place(store) / ".manifest.json.tmp").symlink_to(tmp_path / "victim")
    store.amend(INSTANCE, NEW, {"disk-0.chunks": [b"digests"]}, b"new")
    assert (tmp_path / "victim").read_bytes() == b"mine"
    assert sorted(os.listdir(place(store))) == ["disk-0.chunks", "disk-0.raw", "manifest.json"]
    assert content(store.open(INSTANCE, NEW), "disk-0.chunks") == b"digests"


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "manifest.json", ".manifest.json.tmp", "a\0b"])
def test_a_name_that_leads_elsewhere_or_is_the_manifest_s_is_refused(store: DirectoryStore, name: str) -> None:
    make(store, NEW)
    with pytest.raises(StorageError, match="cannot be the name"):
        store.amend(INSTANCE, NEW, {name: [b"x"]}, b"new")
    assert content(store.open(INSTANCE, NEW), "manifest.json") == MANIFEST


def test_a_directory_without_a_manifest_is_not_added_to(store: DirectoryStore) -> None:
    make(store, NEW)
    (place(store) / "manifest.json").unlink()
    with pytest.raises(StorageError, match=r"has no manifest\.json"):
        store.amend(INSTANCE, NEW, {"disk-0.chunks": [b"x"]}, b"new")
    assert os.listdir(place(store)) == ["disk-0.raw"]
    store.remove(INSTANCE, NEW)
    with pytest.raises(StorageError, match="does not exist"):
        store.amend(INSTANCE, NEW, {}, b"new")


def test_no_room_leaves_the_export_as_it_was(tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("mount", root=True)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=True)
    try:
        store = DirectoryStore(str(small))
        make(store, NEW)
        with pytest.raises(StorageError, match="No space left on device"):
            store.amend(INSTANCE, NEW, {"disk-0.chunks": [bytes(100 * KIB)], "disk-1.chunks": [b"d" * MIB]}, b"new")
        assert sorted(os.listdir(place(store))) == ["disk-0.raw", "manifest.json"]
        assert content(store.open(INSTANCE, NEW), "manifest.json") == MANIFEST
        store.amend(INSTANCE, NEW, {"disk-0.chunks": [b"d"]}, b"new")
        assert content(store.open(INSTANCE, NEW), "manifest.json") == b"new"
    finally:
        subprocess.run(["umount", str(small)], check=True)


AMEND = f"""
import os, signal, sys
from diskhaul_plugins.transfers.directory import DirectoryStore

store, moment, calls = DirectoryStore(sys.argv[1]), int(sys.argv[2]), 0

def count(frame, event, argument):
    global calls
    if event in ("call", "c_call"):
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)

def amend():
    tables = {{"disk-0.chunks": [b"first table"], "disk-1.chunks": [b"second table"]}}
    store.amend({INSTANCE!r}, {NEW!r}, tables, b"new manifest")

if moment < 0:
    amend()
    sys.exit()
for moment in range(1, 10_000):  # each in a process of its own, which has everything loaded
    child = os.fork()
    if not child:
        sys.setprofile(count)
        amend()
        sys.setprofile(None)
        os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    place = os.path.join(sys.argv[1], {INSTANCE!r}, {NEW!r})
    found = {{name: open(os.path.join(place, name), "rb").read() for name in os.listdir(place)}}
    print(moment, killed, sorted(found), found["manifest.json"], found.get("disk-0.chunks"), found.get("disk-1.chunks"), sep="|")
    if not killed:
        break
    for name in found:
        if name.endswith(".chunks") and moment % 2:  # every other time on top of what was left
            os.unlink(os.path.join(place, name))
    with open(os.path.join(place, "manifest.json"), "wb") as file:
        file.write(b"old manifest")
"""


def run_amend(store: DirectoryStore, moment: int, *before: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [*before, os.path.realpath(sys.executable), "-c", AMEND, store._path, str(moment)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_whenever_it_is_killed_the_export_has_the_one_manifest_or_the_other_with_all_its_files(store: DirectoryStore) -> None:
    make(store, NEW)
    (place(store) / "manifest.json").write_bytes(b"old manifest")
    rounds = run_amend(store, 0).splitlines()
    assert len(rounds) > 100
    manifests = []
    for line in rounds:
        _, killed, names, manifest, first, second = line.split("|")
        manifests.append(manifest)
        assert manifest in ("b'old manifest'", "b'new manifest'")
        assert first in ("None", "b'first table'")
        assert second in ("None", "b'second table'")
        allowed = {"disk-0.raw", "disk-0.chunks", "disk-1.chunks", "manifest.json"}
        if manifest == "b'new manifest'":
            assert (first, second) == ("b'first table'", "b'second table'")
        else:
            allowed |= {".disk-0.chunks.tmp", ".disk-1.chunks.tmp", ".manifest.json.tmp"}
        assert set(re.findall(r"'([^']+)'", names)) <= allowed
    assert set(manifests) == {"b'old manifest'", "b'new manifest'"}
    assert killed == "False"


def test_everything_is_durable_before_a_manifest_speaks_of_it(store: DirectoryStore, requires: Callable[..., None]) -> None:
    requires("strace")
    make(store, NEW)
    make(store, OLD)
    log = Path(store._path, "strace.log")
    run_amend(store, -1, "strace", "-f", "-qq", "-y", "-o", str(log), "-e", "trace=fsync,rename,renameat,renameat2")
    steps = []
    for line in log.read_text().splitlines():
        if "fsync(" in line:
            steps.append("fsync " + os.path.basename(line.partition("<")[2].partition(">")[0]))
        elif names := re.findall(r'"([^"]+)"', line):
            steps.append(f"rename {names[-1]}")
    assert steps == [
        "fsync .disk-0.chunks.tmp",
        "fsync .disk-1.chunks.tmp",
        "fsync .manifest.json.tmp",
        "rename disk-0.chunks",
        "rename disk-1.chunks",
        f"fsync {NEW}",
        "rename manifest.json",
        f"fsync {NEW}",
    ]
