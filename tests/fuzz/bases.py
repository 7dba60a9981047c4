"""The disks that are mutated: small ones, made by the programs that make the real ones, with files on them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from diskhaul_plugins.guest_disks.readers import FAMILIES, load_readers
from diskhaul_plugins.guest_disks.walk import Walk

from ..plugins.guest_disks.conftest import Lvm
from ..plugins.guest_disks.filesystem_kinds import Btrfs, Exfat, F2fs, Fat, Kind, Ntfs, OldXfs, Xfs
from .overlay import Overlay, Recorder
from .seals import (
    ExtMap,
    Place,
    Seal,
    btrfs_seals,
    exfat_seals,
    ext_map,
    f2fs_seals,
    fat_seals,
    gpt_seals,
    lvm_seals,
    xfs_seals,
)

MIB = 1 << 20
UUID = "5f0b4ba4-7a2c-4d33-9d6e-0a1b2c3d4e5f"
SEARCH_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
ENVIRONMENT = {
    **os.environ,
    "PATH": SEARCH_PATH,
    "LC_ALL": "C",
    "E2FSPROGS_FAKE_TIME": "1700000000",
    "SOURCE_DATE_EPOCH": "1700000000",
}


@dataclass(frozen=True)
class Recipe:
    """How a disk is made. `programs` are needed for it, and root where `root` is set."""

    make: Callable[[Path], None]
    programs: tuple[str, ...]
    root: bool = False
    seals: Callable[[Overlay, list[Place]], Iterator[Seal]] = lambda disk, places: iter(())

    def missing(self) -> str:
        """Why it cannot be made here; "" when it can."""
        absent = [program for program in self.programs if shutil.which(program, path=SEARCH_PATH) is None]
        if absent:
            return f"needs {', '.join(absent)}"
        return "needs root" if self.root and os.geteuid() != 0 else ""


@dataclass(frozen=True)
class Base:
    """A disk that was made.

    Attributes:
        places: what readers read of it, in their order; the map that they make of it comes from nothing else.
        seals: its checksums.
        ext: what is where, if it is an ext filesystem without anything around it.
    """

    name: str
    path: Path
    places: list[Place]
    seals: list[Seal]
    ext: ExtMap | None


def make_base(name: str, directory: Path) -> Base:
    """Make the disk `name`, unless `directory` has it, and look at it.

    Raises:
        AssertionError: a program that makes it failed, or nothing on it would be skipped: it is no good for this.
    """
    path = directory / f"{name}.img"
    recipe = RECIPES[name]
    if not path.exists():
        with TemporaryDirectory(dir=directory) as work:
            made = Path(work) / f"{name}.img"
            recipe.make(made)
            made.rename(path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        disk = Overlay(descriptor)
        recorder = Recorder(disk)
        walk = Walk(load_readers(FAMILIES).readers)
        walk.run(recorder)
        assert walk.free_ranges(), (name, walk.regions())
        places = [(offset, length) for offset, length in recorder.reads if length]
        ext = ext_map(disk) if name.startswith("ext") else None
        seals = list(ext.seals) if ext else list(recipe.seals(disk, places))
    finally:
        os.close(descriptor)
    return Base(name, path, places, seals, ext)


def run(*command: str | Path, text: str | None = None) -> str:
    """What a program prints that must succeed."""
    done = subprocess.run([str(word) for word in command], input=text, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, f"{command}: {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def _sized(image: Path, size: int) -> Path:
    with open(image, "wb") as file:
        file.truncate(size)
    return image


def _put(disk: Path, offset: int, content: Path) -> None:
    run("dd", f"if={content}", f"of={disk}", "bs=64K", f"seek={offset}", "oflag=seek_bytes", "conv=notrunc,sparse", "status=none")


@contextmanager
def _tree(work: Path, *, seed: int = 1, files: int = 24, largest: int = 60_000) -> Iterator[Path]:
    """A directory with files, always the same."""
    generator = random.Random(seed)
    top = work / f"tree{seed}"
    (top / "deep" / "er").mkdir(parents=True)
    for number in range(files):
        path = top / ("deep/er" if number % 3 == 0 else ".") / f"file{seed}-{number}"
        path.write_bytes(generator.randbytes(generator.randrange(largest)))
        os.utime(path, (1_700_000_000, 1_700_000_000))
    yield top
    shutil.rmtree(top)


# --- ext --------------------------------------------------------------------------------------------------------------


def _ext(options: str, *, size: int = 8 * MIB, dirty: bool = False) -> Recipe:
    def make(image: Path) -> None:
        _sized(image, size)
        with _tree(image.parent) as content:
            fixed = ("-U", UUID, "-E", f"hash_seed={UUID}")
            run("mkfs.ext4", "-q", "-F", *fixed, "-d", content, *options.split(), image)
        deleted = "\n".join(f"rm file1-{number}" for number in range(1, 24, 4) if number % 3)
        run("debugfs", "-w", "-f", "-", image, text=deleted + "\n")
        if dirty:
            _leave_in_journal(image)

    return Recipe(make, ("mkfs.ext4", "debugfs"))


def _leave_in_journal(image: Path) -> None:
    """Write files, but their metadata only into the journal, in several transactions: as after a power failure."""
    with open(image, "rb") as file:
        file.seek(1024 + 0x18)
        block_size = 1024 << int.from_bytes(file.read(4), "little")
    transactions: list[str] = []
    now = image.with_suffix(".now")
    shutil.copyfile(image, now)
    for step in range(4):
        before = now.read_bytes()
        with _tree(image.parent, seed=10 + step, files=5) as content:
            names = sorted(path for path in content.rglob("*") if path.is_file())
            run("debugfs", "-w", "-f", "-", now, text="".join(f"write {path} {path.name}\n" for path in names))
        after = now.read_bytes()
        changed = [
            at
            for at in range(0, len(after), block_size)
            if after[at : at + block_size] != before[at : at + block_size] and at // block_size != 1024 // block_size
        ]
        # What was free is written in place, as data of files is; what was in use is metadata.
        free = _free_blocks(image)
        with open(image, "r+b") as file:
            for at in changed:
                if at // block_size in free:
                    file.seek(at)
                    file.write(after[at : at + block_size])
        logged = [at for at in changed if at // block_size not in free]
        copies = image.with_suffix(f".{step}")
        copies.write_bytes(b"".join(after[at : at + block_size] for at in logged))
        transactions.append(f"jw -b {','.join(str(at // block_size) for at in logged)} {copies}")
    has_checksums = "metadata_csum" in run("dumpe2fs", "-h", image)
    commands = ["jo -c" if has_checksums else "jo", *transactions, "jc"]
    run("debugfs", "-w", "-f", "-", image, text="\n".join(commands) + "\n")


def _free_blocks(image: Path) -> set[int]:
    found: set[int] = set()
    for line in run("dumpe2fs", image).splitlines():
        if line.startswith("  Free blocks: "):
            for part in line.removeprefix("  Free blocks: ").split(", "):
                first, _, last = part.partition("-")
                if first:
                    found.update(range(int(first), int(last or first) + 1))
    return found


# --- others -----------------------------------------------------------------------------------------------------------


def _kind(kind: Kind, seals: Callable[[Overlay, list[Place]], Iterator[Seal]], *, largest: int = 60_000) -> Recipe:
    def make(image: Path) -> None:
        kind.make(image)
        with _tree(image.parent, largest=largest) as content:
            kind.add(image, content, "content")
        if not isinstance(kind, (Xfs, F2fs)):
            kind.remove(image, "content/deep")

    return Recipe(make, kind.programs, kind.root, seals)


def _swap(image: Path) -> None:
    run("mkswap", "-U", UUID, _sized(image, 2 * MIB))


def _gpt(image: Path) -> None:
    _sized(image, 26 * MIB)
    parts = ((2 * MIB, 12 * MIB, "ext4-4k"), (14 * MIB, 4 * MIB, "swap"), (18 * MIB, 4 * MIB, "fat12"))
    lines = "".join(f"start={at // 512}, size={size // 512}\n" for at, size, _ in parts)
    run("sfdisk", image, text=f"label: gpt\nlabel-id: {UUID}\n{lines}")
    _fill(image, parts)


def _mbr(image: Path) -> None:
    _sized(image, 32 * MIB)
    table = "label: dos\nstart=2048, size=16384, type=83\nstart=18432, size=45056, type=5\n"
    logical = "start=20480, size=8192, type=82\nstart=30720, size=8192, type=6\nstart=40960, size=16384, type=83\n"
    run("sfdisk", image, text=table + logical)
    parts = ((MIB, 8 * MIB, "ext2"), (10 * MIB, 4 * MIB, "swap"), (15 * MIB, 4 * MIB, "fat12"), (20 * MIB, 8 * MIB, "ext3"))
    _fill(image, parts)


def _fill(image: Path, parts: tuple[tuple[int, int, str], ...]) -> None:
    for number, (at, _, name) in enumerate(parts):
        inner = image.parent / f"{number}-{name}.img"
        RECIPES[name].make(inner)
        _put(image, at, inner)


@contextmanager
def _group(image: Path, parts: tuple[Place, ...]) -> Iterator[Lvm]:
    """LVM's group ``vg`` on these parts of a disk."""
    devices = [run("losetup", "-f", "--show", "-o", str(at), "--sizelimit", str(size), image).strip() for at, size in parts]
    try:
        tools = Lvm(image.parent, devices)
        tools("pvcreate", *devices)
        tools("vgcreate", "-s", "1m", "vg", *devices)
        yield tools
    finally:
        for device in devices:
            run("losetup", "-d", device)


_LVM_PARTS = ((MIB, 18 * MIB), (20 * MIB, 16 * MIB))


def _lvm(image: Path) -> None:
    """A group on two partitions: swap space that is striped over both, and a linear volume with a filesystem."""
    _sized(image, 40 * MIB)
    lines = "".join(f"start={at // 512}, size={size // 512}\n" for at, size in _LVM_PARTS)
    run("sfdisk", image, text=f"label: gpt\nlabel-id: {UUID}\n{lines}")
    with _group(image, _LVM_PARTS) as tools:
        tools.volume("2m", "swap", "-i", "2", "-I", "64k")
        tools.volume("12m", "root")
        begin, extent = tools.geometry(tools.devices[0])
        first_of = {name: tools.segments(name)[0][0] for name in ("swap", "root")}
    for name, recipe in (("swap", "swap"), ("root", "ext4-4k")):
        device, first, _ = first_of[name]
        inner = image.parent / f"{name}.img"
        RECIPES[recipe].make(inner)
        at = _LVM_PARTS[device][0] + begin + first * extent
        if name == "swap":  # all that is not zero lies in the first stripe
            run("dd", f"if={inner}", f"of={image}", "bs=4K", "count=1", f"seek={at}", "oflag=seek_bytes", "conv=notrunc")
        else:
            _put(image, at, inner)


def _disk_seals(disk: Overlay, places: list[Place]) -> Iterator[Seal]:
    yield from gpt_seals(disk, 512)


def _lvm_disk_seals(disk: Overlay, places: list[Place]) -> Iterator[Seal]:
    for at, _ in _LVM_PARTS:
        yield from lvm_seals(disk, at)
    yield from gpt_seals(disk, 512)


def _none(disk: Overlay, places: list[Place]) -> Iterator[Seal]:
    return iter(())


RECIPES: dict[str, Recipe] = {
    "ext2": _ext("-t ext2 -b 1024 -g 2048 -N 256"),
    "ext2-old": _ext("-t ext2 -b 1024 -g 2048 -N 256 -r 0 -O none"),
    "ext3": _ext("-t ext3 -b 1024 -g 2048 -N 256 -J size=1"),
    "ext4": _ext("-b 1024 -g 1024 -N 256 -J size=1"),
    "ext4-4k": _ext("-b 4096 -N 256 -J size=4", size=12 * MIB),
    "ext4-32bit": _ext("-b 1024 -g 2048 -N 256 -J size=1 -O ^64bit,^flex_bg"),
    "ext4-uninit": _ext("-b 1024 -g 1024 -N 256 -J size=1 -O ^metadata_csum,uninit_bg"),
    "ext4-meta-bg": _ext("-b 1024 -g 512 -N 256 -J size=1 -O meta_bg,^resize_inode"),
    "ext4-bigalloc": _ext("-b 1024 -C 4096 -N 256 -J size=1 -O bigalloc,^resize_inode"),
    "ext4-sparse2": _ext("-b 1024 -g 1024 -N 256 -J size=1 -O sparse_super2,^resize_inode"),
    "ext4-extras": _ext("-b 1024 -g 1024 -N 256 -J size=1 -I 256 -O quota,project,inline_data,metadata_csum_seed,ea_inode"),
    "ext4-mmp": _ext("-b 1024 -g 1024 -N 256 -J size=1 -O mmp"),
    "ext4-dirty": _ext("-b 1024 -g 2048 -N 512 -J size=1", dirty=True),
    "ext4-dirty-4k": _ext("-b 4096 -N 512 -J size=4", size=12 * MIB, dirty=True),
    "ext3-dirty": _ext("-t ext3 -b 1024 -g 2048 -N 512 -J size=1", dirty=True),
    "swap": Recipe(_swap, ("mkswap",)),
    "gpt": Recipe(_gpt, ("sfdisk", "mkfs.ext4", "debugfs", "mkswap", *Fat.programs), seals=_disk_seals),
    "mbr": Recipe(_mbr, ("sfdisk", "mkfs.ext4", "debugfs", "mkswap", *Fat.programs)),
    "lvm": Recipe(_lvm, ("sfdisk", "lvm", "losetup", "mkfs.ext4", "debugfs", "mkswap"), True, _lvm_disk_seals),
    "xfs": _kind(Xfs(("-m", f"uuid={UUID}"), 300 * MIB), xfs_seals),
    "xfs-old": _kind(OldXfs((), 300 * MIB), xfs_seals),
    "btrfs": _kind(Btrfs(("-U", UUID), 128 * MIB), btrfs_seals),
    "btrfs-mixed": _kind(Btrfs(("-U", UUID, "-M"), 24 * MIB), btrfs_seals),
    "fat12": _kind(Fat(("-F", "12", "-i", "12345678"), 4 * MIB), lambda disk, places: fat_seals(disk)),
    "fat16": _kind(Fat(("-F", "16", "-i", "12345678"), 16 * MIB), lambda disk, places: fat_seals(disk)),
    "fat32": _kind(Fat(("-F", "32", "-s", "1", "-i", "12345678"), 40 * MIB), lambda disk, places: fat_seals(disk)),
    "exfat": _kind(Exfat((), 16 * MIB), lambda disk, places: exfat_seals(disk)),
    "ntfs": _kind(Ntfs((), 16 * MIB), _none),
    "f2fs": _kind(F2fs((), 64 * MIB), f2fs_seals),
}
