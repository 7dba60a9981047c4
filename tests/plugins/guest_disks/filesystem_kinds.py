"""Filesystems as their own programs make, fill, count and check them."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from diskhaul_plugins.guest_disks.btrfs import read_btrfs
from diskhaul_plugins.guest_disks.exfat import read_exfat
from diskhaul_plugins.guest_disks.f2fs import read_f2fs
from diskhaul_plugins.guest_disks.fat import read_fat
from diskhaul_plugins.guest_disks.ntfs import read_ntfs
from diskhaul_plugins.guest_disks.reading import Reader, Reading
from diskhaul_plugins.guest_disks.volume import WholeDisk
from diskhaul_plugins.guest_disks.xfs import read_xfs

MIB = 1 << 20
Tree = dict[str, tuple[object, ...]]


def run(*argv: str | Path, text: str | None = None, env: dict[str, str] | None = None) -> str:
    """Run a program that must succeed; return its output."""
    environment = {**os.environ, "LC_ALL": "C", **(env or {})}
    finished = subprocess.run([str(a) for a in argv], input=text, capture_output=True, text=True, check=False, env=environment)
    assert finished.returncode == 0, f"{argv}: {finished.returncode}: {finished.stdout}{finished.stderr}"
    return finished.stdout + finished.stderr


def read(reader: Reader, image: Path) -> Reading:
    """What `reader` says of an image."""
    descriptor = os.open(image, os.O_RDONLY)
    try:
        return reader(WholeDisk(descriptor, image.stat().st_size))
    finally:
        os.close(descriptor)


def overwrite(image: Path, reading: Reading) -> None:
    """Fill what may be left out with bytes that look like nothing; skipping it can do no more harm than that.

    All of it in short ranges; of long ones the ends, and a block in every 64 KiB: gigabytes of garbage show nothing else.
    """
    garbage = os.urandom(MIB)
    with open(image, "r+b") as file:
        for offset, length in reading.runs:
            if length <= MIB:
                os.pwrite(file.fileno(), garbage[:length], offset)
                continue
            os.pwrite(file.fileno(), garbage[: MIB // 2], offset)
            for place in range(offset + MIB // 2, offset + length - MIB // 2, 64 << 10):
                os.pwrite(file.fileno(), garbage[:4096], place)
            os.pwrite(file.fileno(), garbage[: MIB // 2], offset + length - MIB // 2)


def tree_of(root: Path) -> Tree:
    """Everything below `root`: type and mode, owner, times, attributes, and content."""
    found: Tree = {}
    for directory, _, files in os.walk(root):
        for path in (Path(directory), *(Path(directory) / name for name in files)):
            status = path.lstat()
            attributes = tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in _attributes(path))
            content: object = ""
            if stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            name = str(path.relative_to(root))
            found[name] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, attributes, content)
    return found


def _attributes(path: Path) -> list[str]:
    try:
        return sorted(os.listxattr(path, follow_symlinks=False))
    except OSError:
        return []


@contextmanager
def attached(image: Path) -> Iterator[str]:
    """The image as a block device."""
    device = run("losetup", "-f", "--show", image).strip()
    try:
        yield device
    finally:
        run("losetup", "-d", device)


@dataclass(frozen=True)
class Kind:
    """A way to make a filesystem of `size` bytes with mkfs's `options`."""

    options: tuple[str, ...] = ()
    size: int = 64 * MIB

    type: ClassVar[str]
    programs: ClassVar[tuple[str, ...]]
    root: ClassVar[bool] = True
    reader: ClassVar[Reader]

    def make(self, image: Path) -> None:
        image.unlink(missing_ok=True)
        with open(image, "wb") as file:
            file.truncate(self.size)
        self.mkfs(image)

    def read(self, image: Path) -> Reading:
        return read(type(self).reader, image)

    # --- what each of them has its own way of ---

    def mkfs(self, image: Path) -> None:
        raise NotImplementedError

    def add(self, image: Path, source: Path, name: str) -> None:
        """Copy the directory `source` to `name` in the root directory."""
        with self.mounted(image) as root:
            run("cp", "-a", source, root / name)

    def remove(self, image: Path, *names: str) -> None:
        with self.mounted(image) as root:
            run("rm", "-r", *(root / name for name in names))

    def tree(self, image: Path) -> Tree:
        with self.mounted(image) as root:
            return tree_of(root)

    @contextmanager
    def mounted(self, image: Path) -> Iterator[Path]:
        raise NotImplementedError

    def check(self, image: Path) -> None:
        """Have the filesystem's own checker find nothing."""
        raise NotImplementedError

    def free(self, image: Path) -> int:
        """Bytes that the filesystem's own tool calls free."""
        raise NotImplementedError

    def kept(self, image: Path) -> int:
        """Bytes of them that are kept all the same, as documented."""
        return 0


@contextmanager
def _mounted(image: Path, *mount: str) -> Iterator[Path]:
    point = image.with_suffix(".mnt")
    point.mkdir(exist_ok=True)
    with attached(image) as device:
        run(*mount, device, point)
        try:
            yield point
        finally:
            run("umount", point)
            point.rmdir()


class Xfs(Kind):
    type = "xfs"
    programs = ("mkfs.xfs", "xfs_db", "xfs_repair", "losetup", "mount")
    reader = staticmethod(read_xfs)

    def mkfs(self, image: Path) -> None:
        run("mkfs.xfs", "-q", *self.options, image)

    @contextmanager
    def mounted(self, image: Path) -> Iterator[Path]:
        with _mounted(image, "mount", "-t", "xfs", "-o", "nouuid") as point:
            yield point

    def check(self, image: Path) -> None:
        run("xfs_repair", "-n", "-f", image)

    def free(self, image: Path) -> int:
        (blocks,) = re.findall(r"total free blocks (\d+)", run("xfs_db", "-r", "-f", "-c", "freesp -s", image))
        return int(blocks) * self.read(image).block_size

    def kept(self, image: Path) -> int:
        """The reserve of each allocation group."""
        groups = int(self._field(image, "sb 0", "agcount"))
        return sum(int(self._field(image, f"agf {group}", "flcount")) for group in range(groups)) * self.read(image).block_size

    def _field(self, image: Path, where: str, name: str) -> str:
        return run("xfs_db", "-r", "-f", "-c", where, "-c", f"print {name}", image).split("=")[1].strip()


class OldXfs(Xfs):
    """Without checksums. Linux is about to forget how to mount it: mkfs itself puts files in, and xfs_repair looks for them."""

    def mkfs(self, image: Path) -> None:
        content = image.with_suffix(".content")
        lines = ["/dev/null", "0 0", "d--755 0 0"]
        for number in range(40):
            content.with_suffix(f".{number}").write_bytes(os.urandom(number * 20_000))
            lines.append(f"file{number} ---644 0 0 {content.with_suffix(f'.{number}')}")
        prototype = image.with_suffix(".proto")
        prototype.write_text("\n".join((*lines, "$", "")))
        run("mkfs.xfs", "-q", "-m", "crc=0", "-p", prototype, *self.options, image)

    def add(self, image: Path, source: Path, name: str) -> None:
        """Cannot be done any more."""

    def remove(self, image: Path, *names: str) -> None:
        """Cannot be done any more."""

    def tree(self, image: Path) -> Tree:
        return {}


class Btrfs(Kind):
    type = "btrfs"
    programs = ("mkfs.btrfs", "btrfs", "losetup", "mount")
    reader = staticmethod(read_btrfs)

    def mkfs(self, image: Path) -> None:
        run("mkfs.btrfs", "-q", *self.options, image)

    @contextmanager
    def mounted(self, image: Path) -> Iterator[Path]:
        with _mounted(image, "mount", "-t", "btrfs") as point:
            yield point

    def check(self, image: Path) -> None:
        run("btrfs", "check", "--check-data-csum", image)
        with self.mounted(image) as point:  # reads every copy of everything
            scrub = run("btrfs", "scrub", "start", "-B", "-r", point)
            assert "no errors found" in scrub, scrub

    def free(self, image: Path) -> int:
        """The device without all copies of what block groups have in use."""
        items = run("btrfs", "inspect-internal", "dump-tree", "-t", "extent", image)
        used = 0
        for amount, profile in re.findall(r"block group used (\d+) chunk_objectid \d+ flags (\S+)", items):
            used += int(amount) * (2 if "DUP" in profile else 1)
        return self.size - used

    def kept(self, image: Path) -> int:
        """The first MiB, and what surrounds the superblock's second copy."""
        return MIB + (64 << 10 if self.size > 64 * MIB else 0)


class Ntfs(Kind):
    type = "ntfs"
    programs = ("mkfs.ntfs", "ntfs-3g", "ntfsinfo", "ntfsfix", "ntfsresize", "ntfscp", "losetup")
    reader = staticmethod(read_ntfs)

    def mkfs(self, image: Path) -> None:
        run("mkfs.ntfs", "-q", "-F", "-f", *self.options, image)

    @contextmanager
    def mounted(self, image: Path) -> Iterator[Path]:
        with _mounted(image, "ntfs-3g", "-o", "streams_interface=none") as point:
            yield point

    def check(self, image: Path) -> None:
        run("ntfsfix", "-n", image)
        accounting = run("ntfsresize", "--info", "--force", image)  # compares the bitmap with every file's extents
        assert "Accounting clusters" in accounting or "Collecting resizing constraints" in accounting, accounting

    def free(self, image: Path) -> int:
        information = run("ntfsinfo", "-m", image)
        (clusters,) = re.findall(r"Free Clusters: (\d+)", information)
        (size,) = re.findall(r"Cluster Size: (\d+)", information)
        return int(clusters) * int(size)


class Exfat(Kind):
    type = "exfat"
    programs = ("mkfs.exfat", "fsck.exfat", "dump.exfat", "mount.exfat-fuse", "losetup")
    reader = staticmethod(read_exfat)

    def mkfs(self, image: Path) -> None:
        run("mkfs.exfat", *self.options, image)

    @contextmanager
    def mounted(self, image: Path) -> Iterator[Path]:
        with _mounted(image, "mount.exfat-fuse") as point:
            yield point

    def add(self, image: Path, source: Path, name: str) -> None:
        with self.mounted(image) as root:
            run("cp", "-rL", source, root / name)

    def check(self, image: Path) -> None:
        run("fsck.exfat", "-n", image)

    def free(self, image: Path) -> int:
        statistics = run("dump.exfat", image)
        (clusters,) = re.findall(r"Free Clusters:\s+(\d+)", statistics)
        (size,) = re.findall(r"Cluster size:\s+(\d+)", statistics)
        return int(clusters) * int(size)


class Fat(Kind):
    type = "fat"
    programs = ("mkfs.fat", "fsck.fat", "mcopy", "mdeltree")
    root = False
    reader = staticmethod(read_fat)
    _CAREFREE: ClassVar = {"MTOOLS_SKIP_CHECK": "1"}

    def mkfs(self, image: Path) -> None:
        run("mkfs.fat", *self.options, image)

    def add(self, image: Path, source: Path, name: str) -> None:
        run("mcopy", "-i", image, "-s", "-m", source, f"::{name}", env=self._CAREFREE)

    def remove(self, image: Path, *names: str) -> None:
        run("mdeltree", "-i", image, *(f"::{name}" for name in names), env=self._CAREFREE)

    def tree(self, image: Path) -> Tree:
        target = image.with_suffix(".out")
        target.mkdir()
        try:
            run("mcopy", "-i", image, "-s", "-m", "-n", "::", target, env=self._CAREFREE)
            return {name: found[3:] for name, found in tree_of(target).items() if name != "."}
        finally:
            run("rm", "-r", target)

    def check(self, image: Path) -> None:
        run("fsck.fat", "-n", image)

    def free(self, image: Path) -> int:
        ((used, clusters),) = re.findall(r"files, (\d+)/(\d+) clusters", run("fsck.fat", "-n", "-v", image))
        return (int(clusters) - int(used)) * self.read(image).block_size


class F2fs(Kind):
    """Linux can write it, this machine's kernel perhaps not: sload.f2fs fills it, dump.f2fs gives files back."""

    type = "f2fs"
    programs = ("mkfs.f2fs", "fsck.f2fs", "sload.f2fs", "dump.f2fs")
    root = False
    reader = staticmethod(read_f2fs)

    def mkfs(self, image: Path) -> None:
        run("mkfs.f2fs", "-q", *self.options, image)

    def add(self, image: Path, source: Path, name: str) -> None:
        """It puts the content of a directory into the root directory."""
        with TemporaryDirectory(dir=image.parent) as parent:
            run("cp", "-rL", source, Path(parent) / name)
            run("sload.f2fs", "-f", parent, image)

    def remove(self, image: Path, *names: str) -> None:
        """There is no program that removes files from an image."""

    def tree(self, image: Path) -> Tree:
        target = image.with_suffix(".out")
        target.mkdir()
        try:
            for inode in range(4, 64):
                subprocess.run(
                    ["dump.f2fs", "-i", hex(inode), str(image)], cwd=target, input=b"y\n" * 4, capture_output=True, check=False
                )
            return {name: found[5:] for name, found in tree_of(target).items()}
        finally:
            run("rm", "-r", target)

    def check(self, image: Path) -> None:
        report = run("fsck.f2fs", "--dry-run", image)
        assert "[Fail]" not in report, report

    def free(self, image: Path) -> int:
        """Blocks of the main area that no segment counts as valid."""
        work = image.with_suffix(".sit")
        work.mkdir()
        try:
            subprocess.run(["dump.f2fs", "-d", "1", "-s", "0~-1", str(image)], cwd=work, check=True, capture_output=True)
            counts = re.findall(r"segno:\s+\d+\s+vblocks:\s*(\d+)", (work / "dump_sit").read_text())
        finally:
            run("rm", "-r", work)
        return (len(counts) * 512 - sum(map(int, counts))) * 4096
