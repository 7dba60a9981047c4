"""Sharing blocks between files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from diskhaul_native import NativeIOError

Opened = Callable[..., int]
MIB = 1 << 20


@pytest.mark.parametrize("kind", ["xfs", "btrfs"])
def test_a_clone_has_the_same_bytes_and_is_independent(
    native: ModuleType, loop_filesystem: Callable[..., Any], opened: Opened, kind: str
) -> None:
    path = loop_filesystem(kind).path
    data = os.urandom(4 * MIB)
    source, target = opened(path / "source"), opened(path / "target")
    os.pwrite(source, data, 0)
    native.clone(source, target)
    os.pwrite(source, b"changed", 0)
    assert (path / "target").read_bytes() == data

    part = opened(path / "part")
    os.pwrite(part, b"\xff" * 4 * MIB, 0)
    native.clone(source, part, source_offset=MIB, length=MIB, target_offset=2 * MIB)
    assert (path / "part").read_bytes() == b"\xff" * 2 * MIB + data[MIB : 2 * MIB] + b"\xff" * MIB

    with pytest.raises(NativeIOError) as caught:
        native.clone(source, part, source_offset=100, length=MIB, name="disk 0")
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, "disk 0")


def test_a_filesystem_without_reflinks_says_so(native: ModuleType, loop_filesystem: Callable[..., Any], opened: Opened) -> None:
    path = loop_filesystem("ext4", size_mib=16).path
    source = opened(path / "source")
    os.pwrite(source, b"x" * MIB, 0)
    with pytest.raises(NativeIOError, match="not supported") as caught:
        native.clone(source, opened(path / "target"))
    assert caught.value.errno == errno.EOPNOTSUPP


def test_files_of_different_filesystems_share_nothing(
    native: ModuleType, loop_filesystem: Callable[..., Any], tmp_path: Path, opened: Opened
) -> None:
    source = opened(tmp_path / "source")
    os.pwrite(source, b"x" * MIB, 0)
    with pytest.raises(NativeIOError) as caught:
        native.clone(source, opened(loop_filesystem("xfs").path / "target"))
    assert caught.value.errno == errno.EXDEV


def test_a_pipe_cannot_be_cloned_to(native: ModuleType, tmp_path: Path, opened: Opened) -> None:
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(NativeIOError):
            native.clone(opened(tmp_path / "source"), write_end)
    finally:
        os.close(read_end)
        os.close(write_end)
