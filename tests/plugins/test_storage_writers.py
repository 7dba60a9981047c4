"""Who may be writing to a disk: found through loop devices, partitions, mounts, swap and other processes, and nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from diskhaul.api import BackendContext
from diskhaul.model import Cluster, Disk
from diskhaul_plugins.storages.block import BlockStorage
from diskhaul_plugins.storages.file import FileStorage

MIB = 1 << 20
Attach = Callable[[Path], str]
Requires = Callable[..., None]
_HOLDER = "import os, sys; os.open(sys.argv[1], getattr(os, sys.argv[2])); print(flush=True); sys.stdin.read()"


@pytest.fixture
def held() -> Iterator[Callable[..., int]]:
    """Processes that have something open: ``pid = held(path, "O_RDWR")``; ended with the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def hold(path: str | Path, mode: str, *prefix: str) -> int:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-IS", "-c", _HOLDER, str(path), mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        return process.pid

    yield hold
    for process in processes:
        process.communicate()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a device: ``point = mounted(device, "ro")``; unmounted when the test ends."""
    with ExitStack() as undo:

        def mount(device: str, options: str = "rw") -> Path:
            point = tmp_path / f"mounted-{len(os.listdir(tmp_path))}"
            point.mkdir()
            subprocess.run(["mount", "-o", options, device, str(point)], check=True)
            undo.callback(subprocess.run, ["umount", "-q", str(point)])
            return point

        yield mount


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    with open(path, "wb") as file:
        file.truncate(16 * MIB)
    return path


def users(tmp_path: Path, path: str | Path) -> list[str]:
    """What the storage that fits `path` says of it."""
    context = BackendContext(cluster=Cluster(name="lab", state_dir=tmp_path / "state"))
    path = Path(path)
    if path.is_block_device():
        return list(BlockStorage(context).in_use(Disk(storage="block", path=path)))
    return list(FileStorage(context).in_use(Disk(path=path)))


def formatted(image: Path, requires: Requires) -> Path:
    requires("mkfs.ext4", "mount", root=True)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    return image


@pytest.mark.parametrize("mode", ["O_RDWR", "O_WRONLY"])
def test_a_process_that_can_write_to_a_file_is_named(tmp_path: Path, image: Path, held: Callable[..., int], mode: str) -> None:
    pid = held(image, mode)

    (phrase,) = users(tmp_path, image)

    assert phrase.startswith(f"is open for writing in process {pid} (")


@pytest.mark.parametrize("mode", ["O_RDONLY", "O_PATH"])
def test_who_reads_a_file_or_only_knows_it_is_no_writer(tmp_path: Path, image: Path, held: Callable[..., int], mode: str) -> None:
    held(image, mode)

    assert users(tmp_path, image) == []


def test_several_processes_are_counted(tmp_path: Path, image: Path, held: Callable[..., int]) -> None:
    pids = sorted(held(image, "O_RDWR") for _ in range(5))

    (phrase,) = users(tmp_path, image)

    assert phrase.count("process ") + phrase.count("process,") == 1 + 2
    assert str(pids[0]) in phrase
    assert phrase.endswith("and 2 more")


def test_this_process_is_no_writer(tmp_path: Path, image: Path, loop_device: Attach) -> None:
    with open(image, "r+b"):
        assert users(tmp_path, image) == []
    device = loop_device(image)
    with open(device, "r+b"):
        assert users(tmp_path, device) == []
        assert users(tmp_path, image) == []


def test_a_process_that_closed_the_file_and_still_has_it_mapped_is_found(tmp_path: Path, image: Path) -> None:
    program = (
        "import mmap, sys\nwith open(sys.argv[1], 'r+b') as file:\n    memory = mmap.mmap(file.fileno(), 4096)\n"
        "print(flush=True)\nsys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-IS", "-c", program, str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(users(tmp_path, image)) == 1
    finally:
        process.communicate()
    assert users(tmp_path, image) == []


def test_a_loop_device_that_nobody_uses_is_no_writer(tmp_path: Path, image: Path, loop_device: Attach) -> None:
    device = loop_device(image)

    assert users(tmp_path, image) == []
    assert users(tmp_path, device) == []


def test_a_process_that_writes_through_a_loop_device_writes_to_its_file(
    tmp_path: Path, image: Path, loop_device: Attach, held: Callable[..., int]
) -> None:
    device = loop_device(image)
    pid = held(device, "O_RDWR")

    (of_the_device,), (of_the_file,) = users(tmp_path, device), users(tmp_path, image)

    assert of_the_device.startswith(f"is open for writing in process {pid} (")
    assert of_the_file.startswith(f"is open for writing in process {pid} (")
    assert of_the_file.endswith(f"(through {device})")


def test_a_process_that_writes_to_the_file_behind_a_loop_device_writes_to_the_device(
    tmp_path: Path, image: Path, loop_device: Attach, held: Callable[..., int]
) -> None:
    device = loop_device(image)
    pid = held(image, "O_RDWR")

    (phrase,) = users(tmp_path, device)

    assert phrase.startswith(f"is open for writing in process {pid} (")


def test_a_device_node_in_another_place_is_the_same_device(
    tmp_path: Path, image: Path, loop_device: Attach, held: Callable[..., int]
) -> None:
    device = loop_device(image)
    jail = tmp_path / "jail" / "dev"
    jail.mkdir(parents=True)
    os.mknod(jail / "vda", 0o600 | 0o060000, os.stat(device).st_rdev)
    pid = held(jail / "vda", "O_RDWR")

    (phrase,) = users(tmp_path, device)

    assert f"process {pid} " in phrase


def test_a_device_that_is_only_read_has_no_writer(
    tmp_path: Path, image: Path, loop_device: Attach, held: Callable[..., int], requires: Requires
) -> None:
    device = loop_device(image)
    held(device, "O_RDONLY")

    assert users(tmp_path, device) == []


def test_a_loop_device_on_a_loop_device_is_followed(
    tmp_path: Path, image: Path, loop_device: Attach, held: Callable[..., int]
) -> None:
    lower = loop_device(image)
    upper = loop_device(Path(lower))
    assert users(tmp_path, image) == []

    pid = held(upper, "O_RDWR")

    for path in (image, lower):
        (phrase,) = users(tmp_path, path)
        assert f"process {pid} " in phrase
        assert phrase.endswith(f"(through {upper})")


def test_a_read_write_mount_is_a_writer_and_a_read_only_one_is_not(
    tmp_path: Path, image: Path, loop_device: Attach, mounted: Callable[..., Path], requires: Requires
) -> None:
    device = loop_device(formatted(image, requires))
    point = mounted(device, "ro")
    assert users(tmp_path, device) == []
    assert users(tmp_path, image) == []

    subprocess.run(["mount", "-o", "remount,rw", str(point)], check=True)

    assert users(tmp_path, device) == [f"is mounted read-write on {point}"]
    assert users(tmp_path, image) == [f"is mounted read-write on {point} (through {device})"]


def test_a_read_only_mount_of_a_filesystem_that_is_written_to_elsewhere_does_not_hide_it(
    tmp_path: Path, image: Path, loop_device: Attach, mounted: Callable[..., Path], requires: Requires
) -> None:
    device = loop_device(formatted(image, requires))
    point = mounted(device)

    subprocess.run(["mount", "-o", "remount,bind,ro", str(point)], check=True)

    assert users(tmp_path, device) == [f"is mounted read-write on {point}"]


def test_a_mount_in_another_mount_namespace_is_found(
    tmp_path: Path, image: Path, loop_device: Attach, requires: Requires
) -> None:
    requires("unshare", root=True)
    device = loop_device(formatted(image, requires))
    point = tmp_path / "elsewhere"
    point.mkdir()
    script = f"mount --make-rprivate / && mount {device} {point} && echo && cat"
    process = subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        assert str(point) not in Path("/proc/self/mountinfo").read_text()
        assert users(tmp_path, device) == [f"is mounted read-write on {point}"]
    finally:
        process.communicate()


def test_a_mounted_partition_is_part_of_its_disk(
    tmp_path: Path, image: Path, mounted: Callable[..., Path], requires: Requires
) -> None:
    requires("addpart", "losetup", "mkfs.ext4", "mount", root=True)
    attach = ["losetup", "-f", "--show", "-P", str(image)]
    device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    name = Path(device).name
    try:
        # Told to the kernel, and its node made by hand: nothing may be running here that does it.
        subprocess.run(["addpart", device, "1", "2048", str(8 * MIB // 512)], check=True)
        major, minor = Path(f"/sys/block/{name}/{name}p1/dev").read_text().strip().split(":")
        os.mknod(tmp_path / "partition", 0o60600, os.makedev(int(major), int(minor)))
        subprocess.run(["mkfs.ext4", "-q", str(tmp_path / "partition")], check=True)
        point = mounted(str(tmp_path / "partition"))
        try:
            for path in (device, image):
                assert users(tmp_path, path) == [f"is mounted read-write on {point} (through {device}p1)"]
            subprocess.run(["mount", "-o", "remount,ro", str(point)], check=True)
            assert users(tmp_path, device) == []
        finally:
            subprocess.run(["umount", str(point)], check=True)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.mark.parametrize("kind", ["file", "device"])
def test_swap_space_is_written_to(tmp_path: Path, loop_device: Attach, requires: Requires, kind: str) -> None:
    requires("mkswap", "swapon", root=True)
    path = tmp_path / "swap"
    path.write_bytes(bytes(4 * MIB))
    path.chmod(0o600)
    disk = str(path) if kind == "file" else loop_device(path)
    subprocess.run(["mkswap", disk], check=True, capture_output=True)
    if subprocess.run(["swapon", disk], capture_output=True).returncode != 0:
        pytest.skip("this machine has no swap on such a place")
    try:
        assert users(tmp_path, disk) == [f"is swap space ({disk})"]
    finally:
        subprocess.run(["swapoff", disk], check=True)


def test_a_disk_that_is_not_there_has_no_answer(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        users(tmp_path, tmp_path / "missing")
