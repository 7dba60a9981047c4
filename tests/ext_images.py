"""Images of ext filesystems for tests: made, looked at and checked by e2fsprogs' own programs."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from diskhaul_plugins.guest_disks.ext import read_ext
from diskhaul_plugins.guest_disks.ext.journal import Journal, Replayed, read_journal, replay
from diskhaul_plugins.guest_disks.ext.libext2fs import load, open_filesystem
from diskhaul_plugins.guest_disks.ext.superblock import read_superblock
from diskhaul_plugins.guest_disks.reading import Reading
from diskhaul_plugins.guest_disks.volume import WholeDisk

MIB = 1 << 20
PROGRAMS = ("mkfs.ext4", "debugfs", "dumpe2fs", "e2fsck")
GARBAGE, ZEROS = b"\xa5", b"\0"


def run(*command: str | Path, codes: tuple[int, ...] = (0,), stdin: str | None = None) -> str:
    """What a program prints; one of `codes` is expected of it."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, errors="replace", input=stdin)
    assert done.returncode in codes, f"{command}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def make(image: Path, size_mib: int, *options: str | Path) -> None:
    """A new ext4 in a sparse file; options are mke2fs's."""
    image.unlink(missing_ok=True)
    with open(image, "wb") as file:
        file.truncate(size_mib * MIB)
    run("mkfs.ext4", "-q", "-F", *options, image)


def debugfs(image: Path, *commands: str) -> str:
    """What debugfs prints for commands that may write."""
    return run("debugfs", "-w", "-f", "-", image, stdin="\n".join(commands) + "\n")


@contextmanager
def mounted(image: Path, at: Path, options: str = "loop") -> Iterator[Path]:
    """The filesystem, mounted for as long as this lasts."""
    at.mkdir(exist_ok=True)
    run("mount", "-o", options, image, at)
    try:
        yield at
    finally:
        run("umount", at)


@contextmanager
def opened(image: Path) -> Iterator[WholeDisk]:
    """The image as a volume."""
    descriptor = os.open(image, os.O_RDONLY)
    try:
        yield WholeDisk(descriptor, os.lseek(descriptor, 0, os.SEEK_END))
    finally:
        os.close(descriptor)


def read(image: Path) -> Reading:
    """What the reader says."""
    with opened(image) as volume:
        return read_ext(volume)


def foreseen(volume: WholeDisk) -> tuple[Journal, dict[int, int]]:
    """The filesystem's journal, and what replaying it would change."""
    with open_filesystem(volume, read_superblock(volume)) as filesystem:
        journal = read_journal(filesystem, load())
    return journal, replay(journal, volume, load())


def assert_replay_is_foreseen(image: Path, work: Path) -> dict[int, int]:
    """e2fsprogs' replay (the kernel's, ported) makes of the disk what was foreseen, block by block. Returns what was foreseen."""
    after = filled(image, work / f"{image.name}.replayed", (), ZEROS)
    # e2fsck would deal with orphaned inodes as well. Before the replay a bitmap need not fit its checksum (-n).
    run("debugfs", "-w", "-n", "-R", "journal_run", after)
    with opened(image) as before, opened(after) as volume:
        journal, changed = foreseen(before)
        size = journal.block_size
        view = Replayed(before, size, changed)
        own = {
            journal.file.on_disk(0),
            1024 // size,
        }  # the superblocks of the journal and the filesystem: it is noted what was done
        different = [
            block
            for block in range(before.size // size)
            if volume.read(block * size, size) != view.read(block * size, size) and block not in own
        ]
    after.unlink()
    assert different == [], (different[:20], sorted(changed)[:400])
    return changed


def reported(image: Path, *, is_sound: bool = True) -> tuple[list[tuple[int, int]], int]:
    """What dumpe2fs calls free: ranges in bytes, and bytes by the superblock's own count.

    A filesystem that is not `is_sound` may have bitmaps that do not fit their checksums, as long as its journal is not replayed.
    """
    text = run("dumpe2fs", image, codes=(0,) if is_sound else tuple(range(256)))  # the error's number
    header, _, groups = text.partition("\n\n")
    (block_size,) = re.findall(r"^Block size: +(\d+)$", header, re.MULTILINE)
    cluster_size = int(next(iter(re.findall(r"^Cluster size: +(\d+)$", header, re.MULTILINE)), block_size))
    (count,) = re.findall(r"^Free blocks: +(\d+)$", header, re.MULTILINE)
    ranges: list[tuple[int, int]] = []
    for line in re.findall(r"^ +Free blocks: (.*)$", groups, re.MULTILINE):
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", line):
            # The last number, too, is that of a cluster's first block.
            offset, end = int(first) * int(block_size), int(last or first) * int(block_size) + cluster_size
            if ranges and sum(ranges[-1]) == offset:
                ranges[-1] = (ranges[-1][0], end - ranges[-1][0])
            else:
                ranges.append((offset, end - offset))
    return ranges, int(count) * int(block_size)


def filled(image: Path, target: Path, runs: Iterable[tuple[int, int]], byte: bytes) -> Path:
    """A copy in which every byte of these ranges is `byte`."""
    run("cp", "--reflink=auto", image, target)
    with open(target, "r+b") as file:
        for offset, length in runs:
            for part in range(0, length, MIB):
                file.seek(offset + part)
                file.write(byte * min(MIB, length - part))
    return target


def check(image: Path) -> None:
    """The filesystem's checker finds nothing to repair."""
    run("e2fsck", "-fn", image)


def tree(directory: Path) -> dict[str, tuple[object, ...]]:
    """Every file below the directory with type, mode, owner, size, time, and the digest of its content."""
    found: dict[str, tuple[object, ...]] = {}
    for path, directories, files in os.walk(directory):
        for name in (*directories, *files):
            entry = Path(path, name)
            status = entry.lstat()
            content: object = os.readlink(entry) if stat.S_ISLNK(status.st_mode) else None
            if stat.S_ISREG(status.st_mode):
                with open(entry, "rb") as file:
                    content = hashlib.file_digest(file, "blake2b").hexdigest()
            times = int(status.st_mtime) if stat.S_ISREG(status.st_mode) else None  # debugfs sets no others
            found[str(entry.relative_to(directory))] = (status.st_mode, status.st_uid, status.st_gid, times, content)
    return found


def files(image: Path, work: Path) -> dict[str, tuple[object, ...]]:
    """Every file of a filesystem, read by debugfs, as `tree` returns it."""
    target = work / f"{image.name}.files"
    target.mkdir()
    try:
        run("debugfs", "-R", f"rdump / {target}", image)
        return tree(target)
    finally:
        shutil.rmtree(target)


def assert_only_free_space_is_skipped(image: Path, work: Path, reading: Reading) -> None:
    """With garbage, and with zeros, in what was called free the checker finds nothing and every file is the same."""
    before = files(image, work)
    for name, byte in (("garbage", GARBAGE), ("zeros", ZEROS)):
        copy = filled(image, work / f"{image.name}.{name}", reading.runs, byte)
        check(copy)
        assert files(copy, work) == before
        copy.unlink()
