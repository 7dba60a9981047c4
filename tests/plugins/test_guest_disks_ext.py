"""ext2, ext3 and ext4: what is called free is what dumpe2fs calls free, and nothing of a file is in it."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from diskhaul_plugins.guest_disks.ext import read_ext
from diskhaul_plugins.guest_disks.ext.libext2fs import load
from diskhaul_plugins.guest_disks.reading import NotThisError
from diskhaul_plugins.guest_disks.volume import Part

from ..ext_images import (
    MIB,
    PROGRAMS,
    assert_only_free_space_is_skipped,
    check,
    debugfs,
    make,
    mounted,
    opened,
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
@pytest.mark.parametrize("way", ["grown", "shrunk", *(["grown while mounted"] if may_resize_mounted() else [])])
def test_a_filesystem_that_changed_its_size(
    options: str, way: str, tmp_path: Path, content: Path, requires: Callable[..., None]
) -> None:
    requires("resize2fs", "mount", "findmnt", root=True)
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


# --- when bitmaps may be believed ---


@pytest.fixture
def sound(tmp_path: Path, content: Path) -> Path:
    """An ext4 as mke2fs makes it, in four groups, with some files."""
    image = tmp_path / "image"
    make(image, 30, "-b", "1024", "-d", content)
    return image


def assert_kept(image: Path, reason: str, state: str = "clean") -> None:
    """Nothing is skipped, and that is why."""
    reading = read(image)
    assert (reading.kept, reading.state) == (reason, state)
    assert (len(reading.runs), reading.runs.total) == (0, 0)


@pytest.mark.parametrize("size", [0, 1024, 2047, 2048, 100_000])
def test_what_is_no_ext_filesystem_is_left_to_others(size: int, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"\x53" * size)
    with pytest.raises(NotThisError):
        read(tmp_path / "image")


def test_it_is_found_in_a_part_of_a_disk(sound: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"before" * 10_000 + sound.read_bytes() + b"after")
    with opened(disk) as whole:
        reading = read_ext(Part(whole, 60_000, sound.stat().st_size))
    assert list(reading.runs) == reported(sound)[0]


def test_a_mounted_filesystem_without_a_journal_is_kept(tmp_path: Path, content: Path, requires: Callable[..., None]) -> None:
    requires("mount", root=True)
    image = tmp_path / "image"
    make(image, 30, "-t", "ext2", "-d", content)
    with mounted(image, tmp_path / "mnt") as at:
        run("sync", "-f", at)
        assert_kept(image, "it was not unmounted", "dirty")
    assert read(image).kept == ""


def test_a_frozen_filesystem_is_as_good_as_an_unmounted_one(sound: Path, tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("mount", "fsfreeze", root=True)
    with mounted(sound, tmp_path / "mnt") as at:
        shutil.copytree(at / "many", at / "again")
        run("fsfreeze", "-f", at)
        try:
            reading = read(sound)
            snapshot = shutil.copyfile(sound, tmp_path / "snapshot")
        finally:
            run("fsfreeze", "-u", at)
    assert (reading.kept, reading.state) == ("", "clean")
    assert list(reading.runs) == reported(snapshot)[0]
    assert_only_free_space_is_skipped(snapshot, tmp_path, reading)


def test_a_mounted_filesystem_whose_journal_is_empty_is_believed(sound: Path) -> None:
    before = read(sound)
    debugfs(sound, "feature needs_recovery")
    reading = read(sound)
    assert (reading.kept, reading.state) == ("", "clean")
    assert list(reading.runs) == list(before.runs)


def test_a_filesystem_that_noted_errors_is_kept(sound: Path) -> None:
    debugfs(sound, "set_super_value state 3")
    assert_kept(sound, "the filesystem has noted errors", "has errors")


def test_a_filesystem_that_was_never_unmounted_is_kept(sound: Path) -> None:
    debugfs(sound, "set_super_value state 0")
    assert_kept(sound, "it was not unmounted", "dirty")


@pytest.mark.parametrize(
    ("field", "features", "reason"),
    [
        (0x5C, 0x40, "unknown compatible features 0x40"),  # lazy_bg
        (0x5C, 0x8000, "unknown compatible features 0x8000"),
        (0x60, 0x1, "unknown incompatible features 0x1"),  # compression
        (0x60, 0x1000, "unknown incompatible features 0x1000"),  # dirdata
        (0x60, 0x80000000, "unknown incompatible features 0x80000000"),
        (0x64, 0x80, "unknown read-only compatible features 0x80"),  # has_snapshot
        (0x64, 0x4000, "unknown read-only compatible features 0x4000"),  # shared_blocks
        (0x64, 0x20000, "unknown read-only compatible features 0x20000"),
    ],
)
def test_a_filesystem_with_features_that_are_not_known_is_kept(field: int, features: int, reason: str, sound: Path) -> None:
    (before,) = superblock_values(sound, "I", field)
    change_superblock(sound, "I", field, before | features)
    assert_kept(sound, reason)


# --- what does not fit ---


def superblock_values(image: Path, kind: str, offset: int) -> tuple[int, ...]:
    with opened(image) as volume:
        return struct.unpack("<" + kind, volume.read(1024 + offset, struct.calcsize(kind)))


def change(image: Path, offset: int, data: bytes) -> None:
    with open(image, "r+b") as file:
        file.seek(offset)
        file.write(data)


def change_superblock(image: Path, kind: str, offset: int, value: int) -> None:
    """Change a field and the checksum: a guest can do that."""
    change(image, 1024 + offset, struct.pack("<" + kind, value))
    with opened(image) as volume:
        raw = volume.read(1024, 1020)
    change(image, 2044, struct.pack("<I", load().crc32c(0xFFFFFFFF, raw)))


@pytest.fixture(params=["checksums", "no checksums"])
def unchecked(request: pytest.FixtureRequest, tmp_path: Path, content: Path) -> Path:
    """The same without a journal, and in one of two cases without checksums."""
    image = tmp_path / "image"
    features = "^has_journal" if request.param == "checksums" else "^has_journal,^metadata_csum"
    make(image, 30, "-b", "1024", "-O", features, "-d", content)
    assert read(image).kept == ""
    return image


@pytest.mark.parametrize(
    ("kind", "offset", "value"),
    [
        ("I", 0x00, 0),  # inodes
        ("I", 0x00, 0xFFFFFFFF),
        ("I", 0x04, 0),  # blocks
        ("I", 0x04, 1),
        ("I", 0x04, 30719),
        ("I", 0x04, 30721),
        ("I", 0x04, 20000),
        ("I", 0x04, 0xFFFFFFFF),
        ("I", 0x150, 1),  # their upper half
        ("I", 0x150, 0xFFFFFFFF),
        ("I", 0x0C, 0),  # free blocks
        ("I", 0x0C, 30000),
        ("I", 0x0C, 0xFFFFFFFF),
        ("I", 0x158, 1),
        ("I", 0x14, 0),  # first block
        ("I", 0x14, 2),
        ("I", 0x14, 0xFFFFFFFF),
        ("I", 0x18, 2),  # block size
        ("I", 0x18, 7),
        ("I", 0x18, 32),
        ("I", 0x18, 0xFFFFFFFF),
        ("I", 0x20, 0),  # blocks in a group
        ("I", 0x20, 1),
        ("I", 0x20, 8),
        ("I", 0x20, 4096),
        ("I", 0x20, 8200),
        ("I", 0x20, 65536),
        ("I", 0x20, 0xFFFFFFFF),
        ("I", 0x28, 0),  # inodes in a group
        ("I", 0x28, 0xFFFFFFFF),
        ("I", 0x4C, 2),  # revision
        ("H", 0x58, 0),  # inode size
        ("H", 0x58, 100),
        ("H", 0x58, 2048),
        ("H", 0xCE, 60000),  # reserved for more descriptions
        ("H", 0xFE, 0),  # size of a description
        ("H", 0xFE, 32),
        ("H", 0xFE, 128),
        ("H", 0xFE, 0xFFFF),
        ("I", 0x64, 0x46B | 0x200),  # clusters
    ],
)
def test_a_superblock_that_does_not_fit_the_rest_means_that_nothing_is_skipped(
    unchecked: Path, kind: str, offset: int, value: int
) -> None:
    before = superblock_values(unchecked, kind, offset)
    assert before != (value,)
    change_superblock(unchecked, kind, offset, value)
    reading = read(unchecked)
    assert reading.kept
    assert reading.runs.total == 0


def test_a_wrong_checksum_of_the_superblock_is_noticed(sound: Path) -> None:
    change(sound, 1024 + 0x120, b"\x11")
    assert_kept(sound, "libext2fs: Superblock checksum does not match superblock")


def test_a_filesystem_that_is_cut_short_is_kept(sound: Path) -> None:
    with open(sound, "r+b") as file:
        file.truncate(30 * MIB - 1)
    assert_kept(sound, "it ends behind the volume's end")


GROUPS = range(4)
DESCRIPTIONS = 2048  # offset of the groups' descriptions in these images; each has 64 bytes


def described(image: Path, group: int) -> tuple[int, int, int, int]:
    """A group's block bitmap, inode bitmap, inode table and number of free blocks."""
    with opened(image) as volume:
        blocks, inodes, table, free = struct.unpack("<IIIH", volume.read(DESCRIPTIONS + 64 * group, 14))
    return blocks, inodes, table, free


def test_a_wrong_checksum_of_a_description_is_noticed(sound: Path) -> None:
    for group in GROUPS:
        copy = shutil.copyfile(sound, sound.with_suffix(".copy"))
        change(copy, DESCRIPTIONS + 64 * group + 16, b"\x99")
        assert_kept(copy, f"the checksum of group {group}'s description is wrong")


def test_a_flipped_bit_in_a_bitmap_is_noticed(sound: Path, tmp_path: Path) -> None:
    generator = random.Random(3)
    place = described(sound, 0)[0]
    for _ in range(20):
        copy = shutil.copyfile(sound, tmp_path / "copy")
        offset = place * 1024 + generator.randrange(1024)
        with opened(copy) as volume:
            (byte,) = volume.read(offset, 1)
        change(copy, offset, bytes([byte ^ 1 << generator.randrange(8)]))
        assert_kept(copy, "the checksum of group 0's bitmap is wrong")


@pytest.fixture
def bare(tmp_path: Path, content: Path) -> Path:
    """Without any checksums, so that only what contradicts itself can be noticed."""
    image = tmp_path / "image"
    make(image, 30, "-b", "1024", "-O", "^metadata_csum", "-d", content)
    assert read(image).kept == ""
    return image


def flip(image: Path, group: int, *bits: int) -> None:
    place = described(image, group)[0] * 1024
    for bit in bits:
        with opened(image) as volume:
            (byte,) = volume.read(place + bit // 8, 1)
        change(image, place + bit // 8, bytes([byte ^ 1 << bit % 8]))


@pytest.mark.parametrize("group", GROUPS)
def test_a_flipped_bit_without_checksums_is_noticed_by_the_groups_count(group: int, bare: Path, tmp_path: Path) -> None:
    for bit in (0, 5, 700, 4095, 6142):
        copy = shutil.copyfile(bare, tmp_path / "copy")
        flip(copy, group, bit)
        assert_kept(copy, f"group {group} has another number of free blocks than it says")


def test_metadata_that_is_called_free_is_noticed_where_the_counts_fit(bare: Path, tmp_path: Path) -> None:
    blocks, inodes, table, _ = described(bare, 0)
    free = reported(bare)[0][0][0] // 1024
    for block in (1, 2, 3, 200, blocks, inodes, table, table + 100):  # superblock, descriptions, reserved for more, tables
        copy = shutil.copyfile(bare, tmp_path / f"copy-{block}")
        flip(copy, 0, block - 1, free - 1)
        reading = read(copy)
        assert reading.kept.startswith("metadata is in blocks that are called free")
        assert reading.runs.total == 0


def test_a_copy_of_the_superblock_that_is_called_free_is_noticed(bare: Path) -> None:
    flip(bare, 1, 0, 8191)
    assert read(bare).kept == "metadata is in blocks that are called free (8193)"


def test_a_journal_that_is_called_free_is_noticed(bare: Path, tmp_path: Path) -> None:
    blocks = run("debugfs", "-R", "blocks <8>", bare).split()
    for block in (int(blocks[0]), int(blocks[len(blocks) // 2]), int(blocks[-1])):
        copy = shutil.copyfile(bare, tmp_path / f"copy-{block}")
        group, bit = divmod(block - 1, 8192)
        free = next(offset // 1024 for offset, _ in reported(bare)[0] if (offset // 1024 - 1) // 8192 == group)
        flip(copy, group, bit, (free - 1) % 8192)
        assert read(copy).kept.startswith("metadata is in blocks that are called free")


def test_free_blocks_behind_the_end_are_noticed(bare: Path) -> None:
    flip(bare, 3, 30720 - 1 - 3 * 8192)
    assert_kept(bare, "group 3 has free blocks behind its end")


@pytest.mark.parametrize("field", [0, 4, 8])
@pytest.mark.parametrize("block", [0, 30720, 0xFFFFFFFF])
def test_tables_that_are_nowhere_are_noticed(field: int, block: int, bare: Path) -> None:
    change(bare, DESCRIPTIONS + 64 * 2 + field, struct.pack("<I", block))
    assert read(bare).kept in (
        "the bitmap of group 2 is nowhere",
        "metadata is behind its end",
        "a table of group 2 is nowhere",
    )


def test_another_groups_bitmap_is_noticed(bare: Path) -> None:
    change(bare, DESCRIPTIONS + 64 * 2, struct.pack("<I", described(bare, 0)[0]))
    assert read(bare).kept == "group 2 has another number of free blocks than it says"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("-t ext2 -b 1024 -g 1024", "a table of group 2 lies outside of it"),
        (
            "-b 1024 -g 1024 -O ^metadata_csum,^uninit_bg,^64bit",
            "the tables of group 2 lie elsewhere by the copy of its description",
        ),
        (
            "-b 1024 -g 1024 -O ^metadata_csum,^uninit_bg,^64bit,^resize_inode,meta_bg",
            "the tables of group 2 lie elsewhere by the copy of its description",
        ),
    ],
    ids=("in its own group", "by the copy", "by a meta group's copy"),
)
def test_descriptions_in_each_others_place_are_noticed(options: str, why: str, tmp_path: Path) -> None:
    """e2fsck brings back a file in a group that has another's bitmap. All counts are right."""
    image = tmp_path / "image"
    make(image, 8, *options.split())
    with opened(image) as volume:
        second, fourth = (volume.read(DESCRIPTIONS + 32 * group, 32) for group in (2, 4))
    assert read(image).kept == ""
    change(image, DESCRIPTIONS + 32 * 2, fourth)
    change(image, DESCRIPTIONS + 32 * 4, second)
    assert_kept(image, why)


def test_a_count_that_is_wrong_is_noticed(bare: Path) -> None:
    change(bare, DESCRIPTIONS + 12, struct.pack("<H", described(bare, 0)[3] - 1))
    assert_kept(bare, "group 0 has another number of free blocks than it says")


def test_a_block_of_mount_protection_that_is_called_free_is_noticed(tmp_path: Path) -> None:
    image = tmp_path / "image"
    make(image, 30, "-b", "1024", "-O", "^metadata_csum,mmp")
    free = reported(image)[0][0][0] // 1024
    change_superblock(image, "Q", 0x168, free)
    assert read(image).kept == f"metadata is in blocks that are called free ({free})"


# --- the library, and limits ---

CHILD = """
import resource, sys
sys.path[:0] = {path!r}
from diskhaul_plugins.guest_disks.ext import libext2fs, prepare, read_ext
from diskhaul_plugins.guest_disks.ext.errors import KeptError
from diskhaul_plugins.guest_disks.volume import WholeDisk
{before}
file = open(sys.argv[1], "rb")
reading = read_ext(WholeDisk(file.fileno(), file.seek(0, 2)))
print(reading.runs.total, reading.state, reading.kept, sep="|")
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


def read_in_child(image: Path, before: str = "") -> tuple[str, int]:
    """What a process of its own reads, and how many KiB of memory it needed."""
    script = CHILD.format(path=[entry for entry in sys.path if entry], before=before)
    answer, memory = run(sys.executable, "-c", script, image).splitlines()
    return answer, int(memory)


def test_without_the_library_all_is_kept(sound: Path) -> None:
    answer, _ = read_in_child(sound, 'libext2fs.LIBRARIES = ("libext2fs.so.77", "libcom_err.so.2")')
    assert answer == "0|clean|libext2fs is not installed (Debian: libext2fs2, libext2fs2t64)"


def test_preparing_says_that_the_library_is_missing(sound: Path) -> None:
    before = (
        'libext2fs.LIBRARIES = ("libext2fs.so.2", "libcom_err.so.77")\n'
        "try: prepare()\nexcept KeptError as error: sys.exit(repr(error))"
    )
    script = CHILD.format(path=[entry for entry in sys.path if entry], before=before)
    child = subprocess.run([sys.executable, "-c", script, str(sound)], capture_output=True, text=True)
    assert "libext2fs is not installed" in child.stderr


def test_a_library_that_is_laid_out_in_another_way_is_not_used(sound: Path) -> None:
    before = 'libext2fs.DECLARATIONS = libext2fs.DECLARATIONS.replace("int fragsize;", "int fragsize; int more[2];")'
    answer, _ = read_in_child(sound, before)
    assert answer.startswith("0|clean|libext2fs ")
    assert answer.endswith("is laid out in an unexpected way")


@pytest.mark.parametrize("options", ["", "-b 1024 -O ^metadata_csum"])
def test_a_large_filesystem_takes_little_memory_and_time(options: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    make(image, 1 << 20 if not options else 1 << 18, *options.split(), "-E", "lazy_itable_init=1,lazy_journal_init=1", "-m", "0")
    answer, memory_kib = read_in_child(image, "resource.setrlimit(resource.RLIMIT_CPU, (10, 10))")
    assert answer == f"{reported(image)[1]}|clean|"
    assert memory_kib < 100 << 10


def test_too_little_memory_is_a_reason_to_keep_all(tmp_path: Path) -> None:
    image = tmp_path / "image"
    make(image, 1 << 20, "-E", "lazy_itable_init=1,lazy_journal_init=1")
    before = (
        "prepare()\nused = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 200_000, used + 200_000))"
    )
    answer, _ = read_in_child(image, before)
    total, state, kept = answer.split("|")
    assert (total, state) == ("0", "clean")
    assert kept in ("it takes too much memory to read", "libext2fs: Memory allocation failed")
