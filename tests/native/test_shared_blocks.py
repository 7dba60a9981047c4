"""Finding out whether two files are held by the same blocks."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import diskhaul_native
from diskhaul_native import NativeIOError, SharedBlocks, reference

Opened = Callable[..., int]
Filesystems = Callable[..., Any]
KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture(params=["xfs", "btrfs"])
def sharing(request: pytest.FixtureRequest, loop_filesystem: Filesystems) -> Path:
    """A filesystem with reflinks."""
    path: Path = loop_filesystem(request.param).path
    return path


def refusal(native: ModuleType, *arguments: int) -> tuple[int | None, int | None]:
    """The errno and the offset with which it does not say."""
    with pytest.raises(NativeIOError, match="comparing blocks") as caught:
        native.shared_blocks(*arguments, name="disk 0")
    assert caught.value.filename == "disk 0"
    return caught.value.errno, caught.value.offset


def test_a_clone_is_the_same_blocks_until_either_is_written(native: ModuleType, sharing: Path, opened: Opened) -> None:
    source, target = opened(sharing / "source"), opened(sharing / "target")
    os.pwrite(source, os.urandom(MIB), 0)
    os.pwrite(source, os.urandom(MIB), 4 * MIB)
    os.ftruncate(source, 1 << 40)
    native.clone(source, target)
    assert native.shared_blocks(source, target, 1 << 40) == SharedBlocks(1 << 40, 2 * MIB)
    assert native.shared_blocks(source, target, 512 * KIB) == SharedBlocks(512 * KIB, 512 * KIB)
    assert native.shared_blocks(source, target, 0) == SharedBlocks(0, 0)

    os.pwrite(source, b"x", 4 * MIB + 100 * KIB + 7)  # the same file, seen through its cache
    assert native.shared_blocks(source, target, 1 << 40) == SharedBlocks(4 * MIB + 100 * KIB, MIB + 100 * KIB)
    os.pwrite(target, b"x", 0)
    assert native.shared_blocks(target, source, 1 << 40) == SharedBlocks(0, 0)


def test_data_that_only_one_side_has_is_a_difference(native: ModuleType, sharing: Path, opened: Opened) -> None:
    source, target = opened(sharing / "source"), opened(sharing / "target")
    os.pwrite(source, os.urandom(64 * KIB), 0)
    os.ftruncate(source, 2 * MIB)
    native.clone(source, target)
    os.pwrite(target, b"x", MIB)
    assert native.shared_blocks(source, target, 2 * MIB) == SharedBlocks(MIB, 64 * KIB)
    assert native.shared_blocks(target, source, 2 * MIB) == SharedBlocks(MIB, 64 * KIB)


def test_the_same_bytes_in_other_blocks_are_a_difference(native: ModuleType, sharing: Path, opened: Opened) -> None:
    source, target = opened(sharing / "source"), opened(sharing / "target")
    for descriptor in (source, target):
        os.pwrite(descriptor, b"d" * MIB, 0)
    assert native.shared_blocks(source, target, MIB) == SharedBlocks(0, 0)


def test_space_that_was_reserved_and_never_written_is_a_hole(native: ModuleType, sharing: Path, opened: Opened) -> None:
    source, target = opened(sharing / "source"), opened(sharing / "target")
    os.posix_fallocate(source, 0, 4 * MIB)
    os.pwrite(source, b"d" * 64 * KIB, MIB)
    native.clone(source, target)
    assert native.shared_blocks(source, target, 4 * MIB) == SharedBlocks(4 * MIB, 64 * KIB)
    os.ftruncate(target, 0)
    os.ftruncate(target, 4 * MIB)
    native.clone(source, target, source_offset=MIB, length=64 * KIB, target_offset=MIB)
    assert native.shared_blocks(source, target, 4 * MIB) == SharedBlocks(4 * MIB, 64 * KIB)


@pytest.mark.parametrize("size", [1, 4095, 4097, MIB - 1, MIB + 1])
def test_files_may_end_anywhere(native: ModuleType, loop_filesystem: Filesystems, opened: Opened, size: int) -> None:
    path = loop_filesystem("xfs").path
    source, target = opened(path / "source"), opened(path / "target")
    os.pwrite(source, os.urandom(size), 0)
    native.clone(source, target)
    assert native.shared_blocks(source, target, size) == SharedBlocks(size, size)
    assert refusal(native, source, target, size + 1) == (errno.ENODATA, size)


def test_both_implementations_find_the_same_in_files_of_many_extents(sharing: Path, opened: Opened) -> None:
    generator = random.Random(7)
    source, target = opened(sharing / "source"), opened(sharing / "target")
    size = 16 * MIB
    os.ftruncate(source, size)
    for block in generator.sample(range(size // 4096), 1500):  # far more than are fetched at once
        os.pwrite(source, generator.randbytes(4096), block * 4096)
    os.fsync(source)
    diskhaul_native.clone(source, target)
    assert diskhaul_native.shared_blocks(source, target, size) == SharedBlocks(size, 1500 * 4096)
    blocks = sorted(generator.sample(range(size // 4096), 40), reverse=True)
    for block in blocks:
        os.pwrite(generator.choice((source, target)), generator.randbytes(100), block * 4096 + 50)
        found = diskhaul_native.shared_blocks(source, target, size)
        assert found.end == block * 4096
        assert found == reference.shared_blocks(source, target, size)


def test_parts_that_were_put_together_from_several_files_are_compared_one_by_one(
    native: ModuleType, sharing: Path, opened: Opened
) -> None:
    first, second, target = (opened(sharing / name) for name in ("first", "second", "target"))
    for descriptor in (first, second):
        os.pwrite(descriptor, os.urandom(2 * MIB), 0)
    native.clone(first, target)
    native.clone(second, target, source_offset=MIB, length=512 * KIB, target_offset=MIB)
    assert native.shared_blocks(first, target, 2 * MIB) == SharedBlocks(MIB, MIB)
    native.clone(first, target, source_offset=MIB, length=512 * KIB, target_offset=MIB)
    assert native.shared_blocks(first, target, 2 * MIB) == SharedBlocks(2 * MIB, 2 * MIB)


def test_compressed_extents_do_not_say_where_their_bytes_are(
    native: ModuleType, loop_filesystem: Filesystems, opened: Opened, requires: Callable[..., None]
) -> None:
    requires("btrfs")
    path = loop_filesystem("btrfs").path
    source, target = opened(path / "source"), opened(path / "target")
    subprocess.run(["btrfs", "property", "set", str(path / "source"), "compression", "zstd"], check=True)
    os.pwrite(source, b"text that compresses " * 50_000, 0)
    os.ftruncate(source, 2 * MIB)
    os.fsync(source)
    native.clone(source, target)
    assert refusal(native, source, target, 2 * MIB) == (errno.EOPNOTSUPP, 0)


def test_bytes_that_lie_in_the_metadata_do_not_say_where(
    native: ModuleType, loop_filesystem: Filesystems, opened: Opened
) -> None:
    path = loop_filesystem("btrfs").path
    source, target = opened(path / "source"), opened(path / "target")
    os.pwrite(source, os.urandom(700), 0)
    os.fsync(source)
    native.clone(source, target)
    assert refusal(native, source, target, 700) == (errno.EOPNOTSUPP, 0)


def test_subvolumes_of_one_btrfs_are_one_filesystem(
    native: ModuleType, loop_filesystem: Filesystems, opened: Opened, requires: Callable[..., None]
) -> None:
    requires("btrfs")
    path = loop_filesystem("btrfs").path
    for name in ("one", "two"):
        subprocess.run(["btrfs", "subvolume", "create", str(path / name)], check=True, capture_output=True)
    source, target = opened(path / "one/source"), opened(path / "two/target")
    assert os.fstat(source).st_dev != os.fstat(target).st_dev
    os.pwrite(source, os.urandom(MIB), 0)
    native.clone(source, target)
    assert native.shared_blocks(source, target, MIB) == SharedBlocks(MIB, MIB)


@pytest.mark.parametrize("kinds", [("xfs", "xfs"), ("btrfs", "btrfs"), ("xfs", "btrfs")])
def test_files_of_two_filesystems_share_nothing(
    native: ModuleType, loop_filesystem: Filesystems, opened: Opened, kinds: tuple[str, str]
) -> None:
    source, target = (opened(loop_filesystem(kind).path / "file") for kind in kinds)
    for descriptor in (source, target):
        os.pwrite(descriptor, b"d" * MIB, 0)
    assert refusal(native, source, target, MIB) == (errno.EXDEV, 0)


def test_other_filesystems_and_other_kinds_of_files_do_not_say(
    native: ModuleType, loop_filesystem: Filesystems, loop_device: Callable[[Path], str], opened: Opened, tmp_path: Path
) -> None:
    path = loop_filesystem("ext4", size_mib=16).path
    source = opened(path / "file")
    os.pwrite(source, b"d" * MIB, 0)
    assert refusal(native, source, source, MIB) == (errno.EOPNOTSUPP, 0)
    (tmp_path / "image").write_bytes(bytes(MIB))
    device = opened(loop_device(tmp_path / "image"))
    assert refusal(native, device, device, MIB) == (errno.EOPNOTSUPP, 0)
    with pytest.raises(ValueError, match="not a range"):
        native.shared_blocks(source, source, -1)


def test_a_map_that_cannot_be_read_is_an_error(loop_filesystem: Filesystems, injected: Callable[..., Any]) -> None:
    path = loop_filesystem("xfs").path / "file"
    path.write_bytes(b"d" * MIB)
    expression = "diskhaul_native.shared_blocks(fd, fd, 65536)"
    failed = injected(path, expression, "ioctl:error=EIO:when=3")  # the first two ask for the files' flags
    assert (failed.errno, failed.offset) == (errno.EIO, 0)
    again = injected(path, expression, "ioctl:error=EINTR:when=3")
    assert again.result == [65536, 65536]
