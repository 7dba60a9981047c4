"""ext2, ext3 and ext4: what is called free is what dumpe2fs calls free, and nothing of a file is in it."""

from __future__ import annotations

import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from ..ext_images import (
    MIB,
    PROGRAMS,
    assert_only_free_space_is_skipped,
    check,
    debugfs,
    make,
    mounted,
    read,
    reported,
    run,
)


@pytest.fixture(autouse=True)
def _programs(requires: Callable[..., None]) -> None:
    requires(*PROGRAMS)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that a filesystem begins with: small and large ones, holes, links, many in one directory."""
    root = tmp_path_factory.mktemp("content")
    generator = random.Random(4)
    for directory in ("deep/er/still", "many", "empty"):
        (root / directory).mkdir(parents=True)
    for number in range(300):
        (root / "many" / f"{number:03}-{'x' * (number % 90)}").write_bytes(
            generator.randbytes(generator.choice((0, 7, 900, 5000)))
        )
    (root / "deep/er/still/large").write_bytes(generator.randbytes(3 * MIB + 17))
    with open(root / "holes", "wb") as file:
        for offset in (0, 100_000, 900_000, 5_000_000):
            file.seek(offset)
            file.write(generator.randbytes(9_000))
    (root / "short-link").symlink_to("deep/er")
    (root / "long-link").symlink_to("/" + "y" * 200)
    os.link(root / "holes", root / "hard-link")
    return root


class Kind(NamedTuple):
    """How a filesystem is made."""

    type: str
    options: str
    size_mib: int = 48


KINDS = {
    "ext4": Kind("ext4", ""),
    "ext4 in blocks of 1 KiB": Kind("ext4", "-b 1024"),
    "ext4 in blocks of 2 KiB": Kind("ext4", "-b 2048"),
    "ext4 in blocks of 4 KiB": Kind("ext4", "-b 4096"),
    "ext4 in blocks of 8 KiB": Kind("ext4", "-b 8192"),
    "ext4 in blocks of 64 KiB": Kind("ext4", "-b 65536", 160),
    "ext4 without 64-bit numbers": Kind("ext4", "-O ^64bit"),
    "ext4 without checksums": Kind("ext4", "-O ^metadata_csum,^uninit_bg"),
    "ext4 with checksums of groups only": Kind("ext4", "-O ^metadata_csum,uninit_bg -b 1024"),
    "ext4 without flexible groups": Kind("ext4", "-O ^flex_bg -b 1024"),
    "ext4 with a single flexible group": Kind("ext4", "-G 64 -b 1024"),
    "ext4 with packed metadata": Kind("ext4", "-E packed_meta_blocks=1 -b 1024"),
    "ext4 with meta groups": Kind("ext4", "-O meta_bg,^resize_inode -b 1024", 160),
    "ext4 with meta groups and no sparse copies": Kind("ext4", "-O meta_bg,^resize_inode,^sparse_super -b 1024", 160),
    "ext4 without a reserve for growth": Kind("ext4", "-O ^resize_inode"),
    "ext4 with a copy in every group": Kind("ext4", "-O ^sparse_super,^resize_inode -b 1024"),
    "ext4 with two copies": Kind("ext4", "-O sparse_super2 -b 1024"),
    "ext4 with one copy": Kind("ext4", "-O sparse_super2 -E num_backup_sb=1 -b 1024"),
    "ext4 in clusters of 16 KiB": Kind("ext4", "-O bigalloc -C 16384"),
    "ext4 in clusters of 64 KiB": Kind("ext4", "-O bigalloc -C 65536 -b 4096", 96),
    "ext4 in clusters of 8 KiB, blocks of 1 KiB": Kind("ext4", "-O bigalloc -b 1024 -C 8192"),
    "ext4 in small groups": Kind("ext4", "-b 1024 -g 1024 -O ^resize_inode"),
    "ext4 with tables that are not written yet": Kind("ext4", "-E lazy_itable_init=1,lazy_journal_init=1", 300),
    "ext4 with inodes of 128 bytes": Kind("ext4", "-I 128"),
    "ext4 with quota": Kind("ext4", "-O quota,project -E quotatype=usrquota:grpquota:prjquota"),
    "ext4 with multiple mount protection": Kind("ext4", "-O mmp"),
    "ext4 with case folding": Kind("ext4", "-O casefold"),
    "ext4 with encryption and verity": Kind("ext4", "-O encrypt,verity,stable_inodes"),
    "ext4 with small files in inodes": Kind("ext4", "-O inline_data -I 512"),
    "ext4 with large directories and attributes": Kind("ext4", "-O large_dir,ea_inode"),
    "ext4 with a seed for checksums": Kind("ext4", "-O metadata_csum_seed"),
    "ext4 with a file of orphans": Kind("ext4", "-O orphan_file"),
    "ext4 with fast commits": Kind("ext4", "-O fast_commit"),
    "ext4 without a journal": Kind("ext4", "-O ^has_journal"),
    "ext4 with a journal of blocks, not extents": Kind("ext4", "-O ^extent,^64bit -J size=8"),
    "ext4 of no whole number of groups": Kind("ext4", "-b 1024", 43),
    "ext4 with a bad disk": Kind("ext4", "-b 1024 -l BAD"),
    "ext3": Kind("ext3", "-t ext3"),
    "ext3 in blocks of 4 KiB": Kind("ext3", "-t ext3 -b 4096"),
    "ext2": Kind("ext2", "-t ext2"),
    "ext2 of the first revision": Kind("ext2", "-t ext2 -r 0 -O none"),
}


def make_kind(image: Path, kind: Kind, work: Path, *more: str | Path) -> None:
    bad = work / "bad"
    bad.write_text("".join(f"{block}\n" for block in (9000, 9001, 20000, 39999)))
    words = [str(bad) if word == "BAD" else word for word in kind.options.split()]
    make(image, kind.size_mib, "-L", "its label", *words, *more)


def can_mount(image: Path, at: Path) -> bool:
    """Root can, where the kernel has what the filesystem needs."""
    try:
        with mounted(image, at):
            return True
    except AssertionError:
        return False


def age_unmounted(image: Path) -> None:
    """Delete every second file of a directory, and the large file."""
    names = [line.split()[-1] for line in debugfs(image, "ls -l many").splitlines() if line.endswith("x")]
    assert names
    debugfs(image, *(f"rm many/{name}" for name in names[::2]), "rm deep/er/still/large")
    for _ in range(2):  # what debugfs does not keep count of: quotas, and then what repairing them freed
        run("e2fsck", "-fy", image, codes=(0, 1))


def age(image: Path, at: Path) -> None:
    """Use a mounted filesystem for a while: files grow in turns, every second one is deleted, and so is a tree."""
    generator = random.Random(7)
    with mounted(image, at):
        (at / "aged").mkdir()
        for turn in range(3):
            for number in range(100):
                with open(at / "aged" / str(number), "ab") as file:
                    file.write(generator.randbytes(700 + 2000 * turn))
                    file.flush()
                    os.fsync(file.fileno())
        for number in range(0, 100, 2):
            (at / "aged" / str(number)).unlink()
        shutil.copytree(at / "many", at / "gone")
        os.sync()
        shutil.rmtree(at / "gone")
        with open(at / "deep/er/still/large", "r+b") as file:
            file.truncate(MIB)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_free_is_what_dumpe2fs_says_and_holds_nothing_of_a_file(name: str, tmp_path: Path, content: Path) -> None:
    kind, image = KINDS[name], tmp_path / "image"
    make_kind(image, kind, tmp_path, "-d", content)
    if can_mount(image, tmp_path / "mnt"):
        age(image, tmp_path / "mnt")
    else:
        age_unmounted(image)
    check(image)
    ranges, free = reported(image)
    reading = read(image)
    assert (reading.kept, reading.state, reading.type, reading.label) == ("", "clean", kind.type, "its label")
    assert list(reading.runs) == ranges
    assert reading.runs.total == free == reading.free
    assert_only_free_space_is_skipped(image, tmp_path, reading)


def may_resize_mounted() -> bool:
    """Has this process CAP_SYS_RESOURCE (24)? Containers often lack it."""
    (effective,) = re.findall(r"^CapEff:\s+(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(int(effective, 16) >> 24 & 1)


def assert_read_as_reported(image: Path, work: Path) -> None:
    check(image)
    ranges, free = reported(image)
    reading = read(image)
    assert (reading.kept, reading.state) == ("", "clean")
    assert list(reading.runs) == ranges
    assert reading.runs.total == free == reading.free
    assert_only_free_space_is_skipped(image, work, reading)


@pytest.mark.parametrize("options", ["-b 1024", "-b 4096", "-b 1024 -O bigalloc -C 16384"])
def test_a_filesystem_without_any_space_left(options: str, tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("mount", root=True)
    image = tmp_path / "image"
    make(image, 32, *options.split(), "-m", "0")
    with mounted(image, tmp_path / "mnt") as at:
        with open(at / "large", "wb", buffering=0) as large:
            try:
                while True:
                    large.write(b"full" * 4096)
            except OSError:
                pass
        try:
            for number in range(10_000):
                (at / str(number)).write_bytes(b"x" * 1024)
        except OSError:
            pass
    assert read(image).runs.total < MIB  # what the kernel reserves for itself
    assert_read_as_reported(image, tmp_path)


@pytest.mark.parametrize(
    "options", ["-b 1024", "-b 1024 -O ^resize_inode", "-b 1024 -O meta_bg,^resize_inode", "-b 4096 -O ^flex_bg", ""]
)
@pytest.mark.parametrize("way", ["grown", "grown while mounted", "shrunk"])
def test_a_filesystem_that_changed_its_size(
    options: str, way: str, tmp_path: Path, content: Path, requires: Callable[..., None]
) -> None:
    requires("resize2fs", "mount", "findmnt", root=True)
    if way == "grown while mounted" and not may_resize_mounted():
        pytest.skip("needs the capability CAP_SYS_RESOURCE")
    image = tmp_path / "image"
    make(image, 40, *options.split(), "-d", content)
    if way == "shrunk":
        run("e2fsck", "-fp", image)
        run("resize2fs", image, "21M")
    else:
        with open(image, "r+b") as file:
            file.truncate(400 * MIB)
        if way == "grown":
            run("e2fsck", "-fp", image)
            run("resize2fs", image, "397M")
        else:
            with mounted(image, tmp_path / "mnt") as at:
                device = run("findmnt", "-n", "-o", "SOURCE", at).strip()
                run("resize2fs", device, "397M")
                shutil.copytree(at / "many", at / "again")
    assert_read_as_reported(image, tmp_path)


def test_a_filesystem_with_its_journal_on_another_disk(
    tmp_path: Path, content: Path, loop_device: Callable[[Path], str], requires: Callable[..., None]
) -> None:
    requires("mount", root=True)
    journal, image = tmp_path / "journal", tmp_path / "image"
    make(journal, 8, "-b", "4096", "-O", "journal_dev")
    device = loop_device(journal)
    make(image, 40, "-b", "4096", "-J", f"device={device}", "-d", content)
    assert_read_as_reported(image, tmp_path)
    assert read(journal).kept == "the journal of another filesystem"
    debugfs(image, "feature needs_recovery")
    reading = read(image)
    assert (reading.kept, reading.state, reading.runs.total) == ("its journal is on another disk", "dirty", 0)
