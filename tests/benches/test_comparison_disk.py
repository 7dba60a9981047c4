"""The disk that everybody works on: real, repeatable, complete or not there; and the check that compares results with it."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from benches.comparison.checking import compare_raw
from benches.comparison.disk import DiskFacts, cut, data_bytes, made_disk, make_disk, scatter
from benches.comparison.errors import ComparisonError, ContestantError

SIZE = 64 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with something of everything, about 30 MiB."""
    chance = random.Random(1)
    top = tmp_path / "tree"
    for number in range(60):
        directory = top / f"package-{number}/lib"
        directory.mkdir(parents=True)
        for file in range(10):
            (directory / f"file-{file}").write_bytes(chance.randbytes(chance.randrange(100_000)))
    (top / "link").symlink_to("package-0")
    return top


def made(path: Path, source: Path, size: int = SIZE) -> DiskFacts:
    path.parent.mkdir(exist_ok=True)
    return make_disk(path, size, source=source, announce=lambda line: None)


def files_of(disk: Path) -> set[str]:
    """Names of the files on the disk's filesystem, as debugfs lists them."""
    listed = subprocess.run(
        ["debugfs", "-R", "rdump / .", f"{disk}?offset=1048576"], cwd=disk.parent, capture_output=True, text=True, check=True
    )
    assert listed.returncode == 0
    return {str(path.relative_to(disk.parent)) for path in disk.parent.rglob("file-*")}


def test_a_disk_has_a_partition_table_and_a_sound_filesystem_with_deleted_files(
    tmp_path: Path, source: Path, requires: Callable[..., None]
) -> None:
    requires("sfdisk", "mkfs.ext4", "losetup", "e2fsck", "debugfs", root=True)
    disk = tmp_path / "work/disk.raw"
    facts = made(disk, source)
    table = json.loads(subprocess.run(["sfdisk", "--json", disk], capture_output=True, check=True).stdout)["partitiontable"]
    assert table["label"] == "gpt"
    (partition,) = table["partitions"]
    assert partition["start"] == 2048
    assert (partition["start"] + partition["size"]) * 512 == SIZE - (1 << 20)
    subprocess.run(["e2fsck", "-fn", f"{disk}?offset=1048576"], check=True, capture_output=True)
    assert facts.size == SIZE
    # What has been read of an allocated but never written range counts as data from then on.
    assert facts.data == pytest.approx(data_bytes(disk), abs=1 << 20)
    assert 0.5 < facts.data / SIZE < 0.95
    assert disk.stat().st_blocks * 512 < SIZE
    assert len(files_of(disk)) == facts.files - facts.deleted
    assert facts.deleted > 0
    assert os.listdir(tmp_path / "work").count("disk.raw.mnt") == 0
    assert str(disk) not in subprocess.run(["losetup", "--list"], capture_output=True, text=True, check=True).stdout


def test_the_same_files_are_taken_and_deleted_each_time(tmp_path: Path, source: Path, requires: Callable[..., None]) -> None:
    requires("sfdisk", "mkfs.ext4", "losetup", "debugfs", root=True)
    first, second = tmp_path / "first/disk.raw", tmp_path / "second/disk.raw"
    one, other = made(first, source), made(second, source)
    assert (one.files, one.deleted, one.deleted_bytes) == (other.files, other.deleted, other.deleted_bytes)
    assert files_of(first) == files_of(second)


def test_between_15_and_20_percent_of_the_bytes_are_deleted(tmp_path: Path, source: Path, requires: Callable[..., None]) -> None:
    requires("sfdisk", "mkfs.ext4", "losetup", "debugfs", root=True)
    disk = tmp_path / "work/disk.raw"
    facts = made(disk, source)
    left = sum(path.stat().st_size for name in files_of(disk) for path in [disk.parent / name])
    assert 0.15 < facts.deleted_bytes / (left + facts.deleted_bytes) < 0.20


def test_a_disk_that_is_complete_is_recognised_and_any_other_is_not(
    tmp_path: Path, source: Path, requires: Callable[..., None]
) -> None:
    requires("sfdisk", "mkfs.ext4", "losetup", root=True)
    disk = tmp_path / "work/disk.raw"
    assert made_disk(disk) is None
    assert made_disk_is(disk, made(disk, source))
    os.truncate(disk, SIZE - 4096)
    assert made_disk(disk) is None
    disk.with_suffix(".json").unlink()
    assert made_disk(disk) is None
    assert made_disk_is(disk, made(disk, source))  # over the half one


def made_disk_is(disk: Path, facts: DiskFacts) -> bool:
    return made_disk(disk) == facts


def test_a_source_that_holds_too_little_is_refused_and_nothing_is_left(tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("sfdisk", "mkfs.ext4", "losetup", root=True)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/only").write_bytes(b"x" * 1000)
    disk = tmp_path / "work/disk.raw"
    with pytest.raises(ComparisonError, match="holds too little"):
        made(disk, tmp_path / "tree")
    assert os.listdir(tmp_path / "work") == []


def test_no_room_is_told_before_anything_is_made(tmp_path: Path, source: Path, requires: Callable[..., None]) -> None:
    requires("sfdisk", "mkfs.ext4", "losetup", root=True)
    with pytest.raises(ComparisonError, match=r"no room for the disk in .*; choose another --work or a smaller --size"):
        made(tmp_path / "work/disk.raw", source, size=1 << 50)
    assert os.listdir(tmp_path / "work") == []


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """64 MiB with data in four places."""
    path = tmp_path / "sparse.raw"
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for place in range(4):
            file.seek(place * (SIZE // 4) + (1 << 20))
            file.write(os.urandom(2 << 20))
    return path


def test_halves_of_a_disk_hold_what_it_holds_and_its_holes(tmp_path: Path, sparse: Path) -> None:
    cut(sparse, tmp_path / "first", 0, SIZE // 2)
    cut(sparse, tmp_path / "second", SIZE // 2, SIZE // 2)
    assert (tmp_path / "first").read_bytes() + (tmp_path / "second").read_bytes() == sparse.read_bytes()
    assert data_bytes(tmp_path / "first") + data_bytes(tmp_path / "second") == data_bytes(sparse)


def test_scattered_data_is_the_same_in_a_dense_and_in_a_sparse_disk(tmp_path: Path, sparse: Path) -> None:
    data = 4 << 20
    scatter(sparse, tmp_path / "dense", data, data, 16)
    scatter(sparse, tmp_path / "thin", 1 << 40, data, 16)
    assert (tmp_path / "dense").stat().st_size == data_bytes(tmp_path / "dense") == data
    assert (tmp_path / "thin").stat().st_size == 1 << 40
    assert data_bytes(tmp_path / "thin") == data
    with open(tmp_path / "thin", "rb") as thin:
        pieces = [os.pread(thin.fileno(), data // 16, number * (1 << 36)) for number in range(16)]
    assert b"".join(pieces) == (tmp_path / "dense").read_bytes()
    with pytest.raises(ComparisonError, match="holds less than"):
        scatter(sparse, tmp_path / "more", SIZE, SIZE, 16)


def test_a_copy_with_other_holes_is_the_same_disk(tmp_path: Path, sparse: Path) -> None:
    (tmp_path / "full").write_bytes(sparse.read_bytes())
    compare_raw(sparse, tmp_path / "full")
    compare_raw(tmp_path / "full", sparse)


@pytest.mark.parametrize("offset", [0, (1 << 20) + 5, SIZE // 2, SIZE - 1])
def test_one_wrong_bit_is_found_in_data_and_in_holes(tmp_path: Path, sparse: Path, offset: int) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "--sparse=always", sparse, copy], check=True)
    compare_raw(sparse, copy)
    with open(copy, "r+b") as file:
        value = os.pread(file.fileno(), 1, offset)[0]
        os.pwrite(file.fileno(), bytes([value ^ 1]), offset)
    for one, other in ((sparse, copy), (copy, sparse)):
        with pytest.raises(ContestantError, match=f"differs from .* at offset {offset}$"):
            compare_raw(one, other)


def test_a_copy_of_another_size_is_found(tmp_path: Path, sparse: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "--sparse=always", sparse, copy], check=True)
    os.truncate(copy, SIZE - 1)
    with pytest.raises(ContestantError, match=f"has {SIZE - 1} bytes, .* has {SIZE}"):
        compare_raw(sparse, copy)
