"""Disks as guests make them, built by the programs that guests use."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from diskhaul.api import DiskRegion
from diskhaul_plugins.guest_disks.reading import Reader
from diskhaul_plugins.guest_disks.swap import read_swap
from diskhaul_plugins.guest_disks.volume import WholeDisk
from diskhaul_plugins.guest_disks.walk import Walk

KIB, MIB = 1 << 10, 1 << 20


def run(*argv: str | Path, text: str | None = None) -> str:
    """Run a program that must succeed; return its output."""
    finished = subprocess.run([str(a) for a in argv], input=text, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def programs(*names: str) -> None:
    """Skip when a program is missing, as the fixture `requires` does, where that cannot be used: in what several tests share."""
    missing = [name for name in names if shutil.which(name) is None]
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            f"needs {', '.join(missing)}: install it, or run 'make test' as root"
        )


def image(path: Path, size: int) -> Path:
    """An image without content."""
    with open(path, "wb") as file:
        file.truncate(size)
    return path


def swap_space(path: Path, size: int, *options: str) -> Path:
    """An image with swap space, made by mkswap."""
    image(path, size)
    run("mkswap", *options, path)
    return path


def put(disk: Path, offset: int, content: bytes | Path) -> None:
    """Write into an image, what is zero too."""
    with open(disk, "r+b") as file:
        file.seek(offset)
        file.write(content if isinstance(content, bytes) else content.read_bytes())


def flip(disk: Path, offset: int) -> None:
    """Change one byte."""
    with open(disk, "r+b") as file:
        file.seek(offset)
        was = file.read(1)
        file.seek(offset)
        file.write(bytes([was[0] ^ 0x40]))


@dataclass(frozen=True)
class Found:
    """What a walk found."""

    regions: tuple[DiskRegion, ...]
    free: list[tuple[int, int]]

    def at(self, place: str) -> DiskRegion:
        (found,) = [region for region in self.regions if region.place == place]
        return found

    @property
    def kept(self) -> dict[str, str]:
        return {region.place: region.kept for region in self.regions if region.kept}

    @property
    def types(self) -> list[tuple[str, str]]:
        return [(region.place, region.type) for region in self.regions]


def walk(disk: Path, readers: Sequence[Reader] = (read_swap,)) -> Found:
    """Look through an image, in this process."""
    descriptor = os.open(disk, os.O_RDONLY)
    try:
        through = Walk(readers)
        through.run(WholeDisk(descriptor, os.fstat(descriptor).st_size))
        numbers = iter(through.free_ranges())
        return Found(through.regions(), list(zip(numbers, numbers, strict=True)))
    finally:
        os.close(descriptor)


class Lvm:
    """LVM2's own tools on loop devices, without device-mapper: they write metadata, and activate nothing."""

    def __init__(self, work: Path, devices: Sequence[str]) -> None:
        self.devices = list(devices)
        self._work = work
        accepted = ", ".join(f'"a|^{device}$|"' for device in devices)
        self._config = (
            f'devices {{ filter = [ {accepted}, "r|.*|" ] use_devicesfile = 0 scan_lvs = 0 }} '
            f'global {{ locking_dir = "{work}/lock" }} backup {{ backup = 0 archive = 0 }} '
            "activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }"
        )

    def __call__(self, command: str, *arguments: str) -> str:
        environment = {**os.environ, "LVM_SYSTEM_DIR": str(self._work), "LVM_SUPPRESS_FD_WARNINGS": "1", "LC_ALL": "C"}
        finished = subprocess.run(
            ["lvm", command, "--driverloaded", "n", "--config", self._config, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    def volume(self, size: str, name: str, *options: str) -> None:
        """Make a logical volume of group ``vg``."""
        self("lvcreate", "-an", "-Zn", "-Wn", "-y", "-L", size, "-n", name, *options, "vg")

    def segments(self, name: str) -> list[list[tuple[int, int, int]]]:
        """A volume's segments: device (its index), and first and last physical extent of each of their stripes."""
        found: list[list[tuple[int, int, int]]] = []
        for line in self("lvs", "--noheadings", "-o", "seg_pe_ranges", f"vg/{name}").splitlines():
            stripes = []
            for stripe in line.split():
                device, _, extents = stripe.partition(":")
                first, _, last = extents.partition("-")
                stripes.append((self.devices.index(device), int(first), int(last)))
            found.append(stripes)
        return found

    def geometry(self, device: str) -> tuple[int, int]:
        """Where a physical volume's first extent begins, and the extents' size, in bytes."""
        output = self("pvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "pe_start,vg_extent_size", device)
        begin, size = output.split()
        return int(begin), int(size)


@pytest.fixture
def lvm(tmp_path: Path, requires: Callable[..., None]) -> Iterator[Callable[..., Lvm]]:
    """``lvm(disk, (offset, size), ...)``: LVM's tools on those parts of an image; devices are detached when the test ends."""
    requires("lvm", "losetup", root=True)
    devices: list[str] = []

    def attach(disk: Path, *parts: tuple[int, int]) -> Lvm:
        own = [
            run("losetup", "-f", "--show", "-o", str(offset), "--sizelimit", str(size), disk).strip() for offset, size in parts
        ]
        devices.extend(own)
        work = tmp_path / "lvm"
        work.mkdir(exist_ok=True)
        return Lvm(work, own)

    yield attach
    for device in devices:
        run("losetup", "-d", device)
