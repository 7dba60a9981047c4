"""Storage ``block``: block devices, here loop devices."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from diskhaul.api import BackendContext
from diskhaul.errors import StorageError
from diskhaul.model import Cluster, Disk
from diskhaul.testing.conformance.storages import StorageConformance, pattern, read
from diskhaul_plugins.storages.block import BlockStorage
from diskhaul_plugins.storages.file import FileStorage

MIB = 1 << 20
Attach = Callable[[Path], str]


def context(tmp_path: Path) -> BackendContext:
    return BackendContext(cluster=Cluster(name="lab", state_dir=tmp_path / "state"))


@pytest.fixture
def storage(tmp_path: Path) -> BlockStorage:
    return BlockStorage(context(tmp_path))


def device_of(tmp_path: Path, loop_device: Attach, content: bytes) -> Disk:
    path = tmp_path / f"image-{len(os.listdir(tmp_path))}"
    path.write_bytes(content)
    return Disk(storage="block", path=Path(loop_device(path)))


class TestBlockStorage(StorageConformance):
    test_a_new_disk_is_made = None  # devices are made by others

    @pytest.fixture
    def storage(self, tmp_path: Path) -> BlockStorage:
        return BlockStorage(context(tmp_path))

    @pytest.fixture
    def make_disk(self, tmp_path: Path, loop_device: Attach) -> Callable[[bytes], Disk]:
        return lambda content: device_of(tmp_path, loop_device, content)

    @pytest.fixture
    def missing_disk(self, tmp_path: Path) -> Disk:
        return Disk(storage="block", path=tmp_path / "missing")


@pytest.mark.parametrize("kind", ["file", "directory", "character device", "no path"])
def test_what_is_no_block_device_is_refused(storage: BlockStorage, tmp_path: Path, kind: str) -> None:
    path: Path | None = tmp_path / "odd"
    if kind == "file":
        (tmp_path / "odd").write_bytes(bytes(4096))
    elif kind == "directory":
        (tmp_path / "odd").mkdir()
    else:
        path = Path("/dev/null") if kind == "character device" else None
    disk = Disk(storage="block", path=path)
    assert len(list(storage.check(disk))) == 1
    with pytest.raises(StorageError):
        storage.open(disk)
    with pytest.raises(StorageError):
        storage.create(disk, 4096, overwrite=True)


def test_a_link_to_a_device_is_followed_and_is_the_same_place(storage: BlockStorage, tmp_path: Path, loop_device: Attach) -> None:
    disk = device_of(tmp_path, loop_device, pattern(MIB))
    assert disk.path is not None
    link = Disk(storage="block", path=tmp_path / "by-id")
    (tmp_path / "by-id").symlink_to(disk.path)
    reader = storage.open(link)
    assert read(reader, 4096, 4096) == pattern(MIB)[4096:8192]
    reader.close()
    assert storage.location(link) == storage.location(disk)


def test_a_loop_device_is_where_its_file_is(storage: BlockStorage, tmp_path: Path, loop_device: Attach) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(pattern(MIB))
    device = Disk(storage="block", path=Path(loop_device(image)))
    assert storage.location(device) == FileStorage(context(tmp_path)).location(Disk(path=image))


def test_a_device_without_a_medium_has_a_number_for_a_place_and_is_a_problem(
    storage: BlockStorage, tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("losetup", root=True)
    number = 1000 + os.getpid() % 100_000  # nobody takes a loop device so high up
    control = os.open("/dev/loop-control", os.O_RDWR)
    try:
        fcntl.ioctl(control, 0x4C80, number)  # LOOP_CTL_ADD
        try:
            node = tmp_path / "node"
            os.mknod(node, 0o60600, os.makedev(7, number))
            disk = Disk(storage="block", path=node)
            assert storage.location(disk) == f"block:7:{number}"
            assert len(list(storage.check(disk))) == 1
            with pytest.raises(StorageError, match="no medium"):
                storage.open(disk)
            with pytest.raises(StorageError):
                storage.create(disk, 512, overwrite=True)
        finally:
            fcntl.ioctl(control, 0x4C81, number)  # LOOP_CTL_REMOVE
    finally:
        os.close(control)


def test_a_smaller_device_is_refused_and_left_alone(storage: BlockStorage, tmp_path: Path, loop_device: Attach) -> None:
    disk = device_of(tmp_path, loop_device, pattern(MIB))
    with pytest.raises(StorageError, match=str(MIB)):
        storage.create(disk, MIB + 512, overwrite=True)
    assert disk.path is not None
    assert disk.path.read_bytes() == pattern(MIB)


def test_behind_the_disk_a_larger_device_stays_as_it_is(storage: BlockStorage, tmp_path: Path, loop_device: Attach) -> None:
    disk = device_of(tmp_path, loop_device, pattern(MIB))
    writer = storage.create(disk, MIB // 2, overwrite=True)
    assert writer.size == MIB // 2
    assert not writer.reads_zero
    writer.zero(0, MIB // 2)
    writer.write(4096, memoryview(b"x" * 4096))
    with pytest.raises(StorageError):
        writer.zero(MIB // 2, 512)
    writer.flush()
    writer.close()
    assert disk.path is not None
    assert disk.path.read_bytes() == bytes(4096) + b"x" * 4096 + bytes(MIB // 2 - 8192) + pattern(MIB)[MIB // 2 :]


def test_a_read_only_device_can_be_read_but_not_written(storage: BlockStorage, tmp_path: Path, loop_device: Attach) -> None:
    disk = device_of(tmp_path, loop_device, pattern(MIB))
    subprocess.run(["blockdev", "--setro", str(disk.path)], check=True)
    try:
        assert list(storage.check(disk)) == []
        with pytest.raises(StorageError, match="read-only"):
            storage.create(disk, MIB, overwrite=True)
    finally:
        subprocess.run(["blockdev", "--setrw", str(disk.path)], check=True)  # it would outlive what is attached


@pytest.mark.parametrize("kind", ["ext4", "btrfs"])
def test_a_mounted_device_can_be_read_but_not_written(
    storage: BlockStorage, tmp_path: Path, loop_device: Attach, requires: Callable[..., None], kind: str
) -> None:
    requires(f"mkfs.{kind}", root=True)
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(120 * MIB)
    subprocess.run([f"mkfs.{kind}", "-q", str(image)], check=True)
    device = loop_device(image)
    disk = Disk(storage="block", path=Path(device))
    mounted = tmp_path / "mounted here"
    mounted.mkdir()
    subprocess.run(["mount", device, str(mounted)], check=True)
    try:
        assert list(storage.check(disk)) == []
        with pytest.raises(StorageError, match=f"is mounted on {mounted}"):
            storage.create(disk, MIB, overwrite=True)
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
    storage.create(disk, MIB, overwrite=True).close()


def test_a_disk_with_a_mounted_partition_is_not_written(
    storage: BlockStorage, tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("addpart", "mkfs.ext4", "losetup", root=True)
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(64 * MIB)
    device = subprocess.run(
        ["losetup", "-P", "-f", "--show", str(image)], check=True, capture_output=True, text=True
    ).stdout.strip()
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    try:
        # Told to the kernel, not written to the disk: not every kernel reads partition tables.
        subprocess.run(["addpart", device, "1", "2048", str(40 * MIB // 512)], check=True)
        partition = partition_node(device, tmp_path)
        subprocess.run(["mkfs.ext4", "-q", str(partition)], check=True)
        subprocess.run(["mount", str(partition), str(mounted)], check=True)
        try:
            with pytest.raises(StorageError, match=f"is mounted on {mounted}"):
                storage.create(Disk(storage="block", path=Path(device)), 64 * MIB, overwrite=True)
        finally:
            subprocess.run(["umount", str(mounted)], check=True)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def partition_node(device: str, tmp_path: Path) -> Path:
    """The first partition's node, made by hand: nothing may be running here that makes them."""
    name = Path(device).name
    major, minor = Path(f"/sys/block/{name}/{name}p1/dev").read_text().strip().split(":")
    node = tmp_path / "partition"
    os.mknod(node, 0o60600, os.makedev(int(major), int(minor)))
    return node


def test_a_device_that_another_program_holds_is_not_written(storage: BlockStorage, tmp_path: Path, loop_device: Attach) -> None:
    disk = device_of(tmp_path, loop_device, pattern(MIB))
    holder = os.open(str(disk.path), os.O_RDWR | os.O_EXCL)
    try:
        with pytest.raises(StorageError, match="in use"):
            storage.create(disk, MIB, overwrite=True)
    finally:
        os.close(holder)
    writer = storage.create(disk, MIB, overwrite=True)
    with pytest.raises(StorageError, match="in use"):
        storage.create(disk, MIB, overwrite=True)
    writer.close()


def test_a_device_that_a_program_writes_to_without_asking_for_it_alone_is_not_written(
    storage: BlockStorage, tmp_path: Path, loop_device: Attach
) -> None:
    """As QEMU does with the disks of its guests."""
    disk = device_of(tmp_path, loop_device, pattern(MIB))
    program = "import sys; file = open(sys.argv[1], 'r+b'); print(); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(disk.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as guest:
        assert guest.stdout is not None
        guest.stdout.readline()
        with pytest.raises(StorageError, match=f"is open for writing in .*{guest.pid}.*: end that first"):
            storage.create(disk, MIB, overwrite=True)
        assert guest.stdin is not None
        guest.stdin.close()
    storage.create(disk, MIB, overwrite=True).close()


def test_a_device_that_backs_a_loop_device_is_not_written(storage: BlockStorage, tmp_path: Path, loop_device: Attach) -> None:
    disk = device_of(tmp_path, loop_device, pattern(MIB))
    assert disk.path is not None
    above = loop_device(disk.path)
    with pytest.raises(StorageError, match=f"backs {above}"):
        storage.create(disk, MIB, overwrite=True)


def test_swap_space_is_not_written(
    storage: BlockStorage, tmp_path: Path, loop_device: Attach, requires: Callable[..., None]
) -> None:
    requires("mkswap", "swapon", root=True)
    disk = device_of(tmp_path, loop_device, bytes(2 * MIB))
    subprocess.run(["mkswap", str(disk.path)], check=True, capture_output=True)
    if subprocess.run(["swapon", str(disk.path)], check=False, capture_output=True).returncode:
        pytest.skip("this kernel takes no swap")
    try:
        with pytest.raises(StorageError, match="swap"):
            storage.create(disk, MIB, overwrite=True)
    finally:
        subprocess.run(["swapoff", str(disk.path)], check=True)
