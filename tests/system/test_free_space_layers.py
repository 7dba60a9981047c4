"""Filesystems on bare disks, in partitions and in logical volumes come back the same but for free blocks, which are zero.

Which blocks are free is asked of dumpe2fs, and where they are on the disk is worked out from what sfdisk and LVM say.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import diskhaul

MIB = 1 << 20
SIZE = 160 * MIB
VOLUME = 64 * MIB
STRIPE = 64 << 10


def run(*argv: str | Path, text: str | None = None) -> str:
    finished = subprocess.run([str(a) for a in argv], input=text, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@dataclass
class Disk:
    """A disk, and where the pieces of the volume on it are: offset and length, in the volume's order."""

    path: Path
    pieces: list[tuple[int, int]] = field(default_factory=list)

    def put(self, volume: Path) -> None:
        with open(self.path, "r+b") as disk, open(volume, "rb") as content:
            for offset, length in self.pieces:
                disk.seek(offset)
                disk.write(content.read(length))

    def take(self, disk: Path, volume: Path) -> None:
        with open(disk, "rb") as source, open(volume, "wb") as content:
            for offset, length in self.pieces:
                source.seek(offset)
                content.write(source.read(length))

    def places(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Where a range of the volume is on the disk."""
        begin = 0
        for place, piece in self.pieces:
            first, last = max(offset, begin), min(offset + length, begin + piece)
            if first < last:
                yield place + first - begin, last - first
            begin += piece


def bare(disk: Disk, attach: Callable[..., list[str]]) -> None:
    disk.pieces = [(0, VOLUME)]
    os.truncate(disk.path, VOLUME)


def gpt(disk: Disk, attach: Callable[..., list[str]]) -> None:
    run("sfdisk", "-q", "--wipe", "always", disk.path, text="label: gpt\nstart=2048, size=20480\nstart=32768, size=131072\n")
    disk.pieces = [(_partition(disk.path, 1), VOLUME)]


def logical(disk: Disk, attach: Callable[..., list[str]]) -> None:
    table = "label: dos\nstart=2048, size=20480\nstart=30720, type=5\nstart=32768, size=131072\n"
    run("sfdisk", "-q", "--wipe", "always", disk.path, text=table)
    disk.pieces = [(_partition(disk.path, 2), VOLUME)]


def _partition(path: Path, index: int) -> int:
    return int(json.loads(run("sfdisk", "-J", path))["partitiontable"]["partitions"][index]["start"]) * 512


def _lvm(disk: Disk, attach: Callable[..., list[str]], *options: str) -> None:
    run("sfdisk", "-q", "--wipe", "always", disk.path, text="label: gpt\nstart=2048, size=145408\nstart=149504, size=145408\n")
    parts = [(_partition(disk.path, index), 145408 * 512) for index in (0, 1)]
    devices = attach(disk.path, parts)

    def lvm(command: str, *arguments: str) -> str:
        accepted = ", ".join(f'"a|^{device}$|"' for device in devices)
        config = (
            f'devices {{ filter = [ {accepted}, "r|.*|" ] use_devicesfile = 0 scan_lvs = 0 }} '
            f'global {{ locking_dir = "{disk.path.parent}/lock" }} backup {{ backup = 0 archive = 0 }} '
            "activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }"
        )
        return run(
            "env", f"LVM_SYSTEM_DIR={disk.path.parent}", "lvm", command, "--driverloaded", "n", "--config", config, *arguments
        )

    lvm("pvcreate", "-y", *devices)
    lvm("vgcreate", "vg", *devices)
    lvm("lvcreate", "-an", "-Zn", "-Wn", "-y", "-L", "8m", "-n", "before", "vg")
    lvm("lvcreate", "-an", "-Zn", "-Wn", "-y", "-L", f"{VOLUME >> 20}m" if options else "32m", "-n", "root", *options, "vg")
    if not options:
        lvm("lvextend", "-L", f"{VOLUME >> 20}m", "vg/root", devices[1])
    begins = [int(lvm("pvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "pe_start", device)) for device in devices]
    extent = int(lvm("vgs", "--noheadings", "--units", "b", "--nosuffix", "-o", "vg_extent_size", "vg"))
    for line in lvm("lvs", "--noheadings", "-o", "seg_pe_ranges", "vg/root").splitlines():
        columns = []
        for stripe in line.split():
            device, _, extents = stripe.partition(":")
            first, _, last = extents.partition("-")
            at = devices.index(device)
            columns.append((parts[at][0] + begins[at] + int(first) * extent, (int(last) + 1 - int(first)) * extent))
        if len(columns) == 1:
            disk.pieces += columns
        else:
            for row in range(columns[0][1] // STRIPE):
                disk.pieces += [(offset + row * STRIPE, STRIPE) for offset, _ in columns]


def lvm_segments(disk: Disk, attach: Callable[..., list[str]]) -> None:
    _lvm(disk, attach)
    assert len(disk.pieces) == 2


def lvm_striped(disk: Disk, attach: Callable[..., list[str]]) -> None:
    _lvm(disk, attach, "-i2", "-I", f"{STRIPE >> 10}k")


@pytest.fixture
def attach(requires: Callable[..., None]) -> Iterator[Callable[..., list[str]]]:
    """Loop devices on parts of an image."""
    devices: list[str] = []

    def on_parts(path: Path, parts: Sequence[tuple[int, int]]) -> list[str]:
        requires("lvm", "losetup", root=True)
        own = [run("losetup", "-f", "--show", "-o", str(at), "--sizelimit", str(size), path).strip() for at, size in parts]
        devices.extend(own)
        return own

    yield on_parts
    for device in devices:
        run("losetup", "-d", device)


def make_filesystem(path: Path, work: Path) -> None:
    """An ext4 filesystem with files, in a volume that held something else before."""
    path.write_bytes(random.Random(3).randbytes(VOLUME))
    tree = work / "tree"
    tree.mkdir()
    for number in range(60):
        (tree / f"file{number}").write_bytes(random.Random(number).randbytes(number * 7001))
    run("mkfs.ext4", "-q", "-F", "-E", "nodiscard", "-b", "1024", "-L", "root", "-d", tree, path)
    for number in range(0, 60, 3):
        run("debugfs", "-w", "-R", f"rm file{number}", path)
    run("e2fsck", "-fn", path)


def free_blocks(volume: Path) -> list[tuple[int, int]]:
    """Free ranges of a volume, in bytes, as dumpe2fs lists them."""
    found: list[tuple[int, int]] = []
    for line in run("dumpe2fs", volume).splitlines():
        name, _, listed = line.strip().partition(": ")
        if name == "Free blocks" and "-" in listed + "-" and line.startswith("  "):
            for piece in listed.split(", "):
                first, _, last = piece.partition("-")
                if first:
                    found.append((int(first) * 1024, (int(last or first) + 1 - int(first)) * 1024))
    return found


@pytest.mark.parametrize("layers", [bare, gpt, logical, lvm_segments, lvm_striped])
def test_free_blocks_come_back_as_zeros_and_everything_else_as_it_was(
    tmp_path: Path, layers: Callable[..., None], attach: Callable[..., list[str]], requires: Callable[..., None]
) -> None:
    requires("sfdisk", "mkfs.ext4", "debugfs", "dumpe2fs", "e2fsck")
    for name in ("alpha", "beta"):
        (tmp_path / name).mkdir()
    disk = Disk(tmp_path / "disk.raw")
    disk.path.write_bytes(random.Random(1).randbytes(MIB) * (SIZE // MIB))
    layers(disk, attach)
    volume = tmp_path / "volume"
    make_filesystem(volume, tmp_path)
    disk.put(volume)
    free = free_blocks(volume)
    places = [place for found in free for place in disk.places(*found)]
    wanted = bytearray(disk.path.read_bytes())
    for offset, length in places:
        wanted[offset : offset + length] = bytes(length)

    cluster = diskhaul.Cluster(
        name="lab",
        state_dir=tmp_path / "state",
        nodes=[diskhaul.Node(name=name, export_dir=tmp_path / name) for name in ("alpha", "beta")],
        instances=[diskhaul.Instance(name="vm", node="alpha", disks=[diskhaul.Disk(path=disk.path)])],
    )
    options = diskhaul.ExportOptions(zero_free_space=True, chunk_size=1 << 20)
    result = diskhaul.export("vm", node="beta", config=cluster, options=options)
    assert result.warnings == ()
    assert result.disks[0].free_bytes == sum(length for _, length in free) > VOLUME // 2
    (region,) = [region for region in result.disks[0].regions if region.type == "ext4"]
    assert (region.label, region.state, region.length, region.kept) == ("root", "clean", VOLUME, "")
    assert region.skipped == region.free == sum(length for _, length in free)

    diskhaul.import_("vm", config=cluster, to_dir=tmp_path / "back")
    restored = tmp_path / "back/disk-0.raw"
    assert restored.read_bytes() == wanted
    disk.take(restored, tmp_path / "restored")
    run("e2fsck", "-fn", tmp_path / "restored")
