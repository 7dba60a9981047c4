"""The table of mounts, whatever mount points are called, and the mount that a path lies on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from diskhaul import mounts as module
from diskhaul.mounts import mount_of, mounts

Mounter = Callable[..., None]

NAMES = [
    b"plain",
    b"two words",
    b"tab\tnewline\nbackslash\\040hash#",
    "Gäste-Größe".encode(),
    b"undecodable \xff\xfe",
    b"carriage\rreturn\x0bform\x0cfeed \xe2\x80\xa8 line",
    b" - ",
]


@pytest.fixture
def mount(requires: Callable[..., None]) -> Iterator[Mounter]:
    """Mount a filesystem in memory, and undo it after the test."""
    requires("mount", "umount", root=True)
    with ExitStack() as undo:

        def mounted(point: Path, source: str = "scratch", kind: str = "tmpfs") -> None:
            subprocess.run(["mount", "-t", kind, source, str(point)], check=True)
            undo.callback(subprocess.run, ["umount", str(point)], check=True)

        yield mounted


def table(monkeypatch: pytest.MonkeyPatch, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    monkeypatch.setattr(module, "_TABLE", str(path))


@pytest.mark.parametrize("name", NAMES)
def test_a_mount_point_is_found_by_its_own_name(tmp_path: Path, mount: Mounter, name: bytes) -> None:
    point = tmp_path / os.fsdecode(name)
    point.mkdir()
    mount(point, source="a source\twith blanks")
    (point / "below").mkdir()
    for path in (point, point / "below"):
        found = mount_of(path)
        assert found is not None
        assert (found.point, found.kind, found.source) == (str(point), "tmpfs", "a source\twith blanks")
    assert [each.kind for each in mounts() if each.point == str(point)] == ["tmpfs"]


def test_of_mounts_on_one_directory_the_last_counts(tmp_path: Path, mount: Mounter) -> None:
    mount(tmp_path, source="first")
    mount(tmp_path, source="second")
    found = mount_of(tmp_path)
    assert found is not None
    assert found.source == "second"


def test_a_mount_that_another_one_hides_holds_nothing(tmp_path: Path, mount: Mounter) -> None:
    inner = tmp_path / "outer/inner"
    inner.mkdir(parents=True)
    mount(inner, source="hidden")
    mount(inner.parent, source="over it", kind="ramfs")
    inner.mkdir()
    try:
        found = mount_of(inner)
        assert found is not None
        assert (found.source, found.kind) == ("over it", "ramfs")
    finally:
        inner.rmdir()


def test_a_directory_whose_name_only_begins_like_a_mount_point_lies_elsewhere(tmp_path: Path, mount: Mounter) -> None:
    (tmp_path / "point").mkdir()
    (tmp_path / "point-2").mkdir()
    mount(tmp_path / "point", source="not this one")
    found, around = mount_of(tmp_path / "point-2"), mount_of(tmp_path)
    assert found == around
    assert found is not None
    assert found.source != "not this one"


def test_a_link_is_followed(tmp_path: Path, mount: Mounter) -> None:
    (tmp_path / "point").mkdir()
    (tmp_path / "link").symlink_to("point")
    mount(tmp_path / "point", source="behind the link")
    found = mount_of(tmp_path / "link")
    assert found is not None
    assert found.source == "behind the link"


def test_what_is_not_there_lies_nowhere(tmp_path: Path) -> None:
    assert mount_of(tmp_path / "missing") is None
    assert mount_of("a\0b") is None


def test_looking_leaves_nothing_open(tmp_path: Path) -> None:
    mount_of(tmp_path)
    before = os.listdir("/proc/self/fd")
    mount_of(tmp_path)
    mount_of(tmp_path / "missing")
    assert os.listdir("/proc/self/fd") == before


def test_the_device_of_a_mount_is_the_number_of_its_filesystem(tmp_path: Path) -> None:
    found = mount_of("/proc/self/maps")
    assert found is not None
    assert (found.point, found.kind) == ("/proc", "proc")
    device = os.stat("/proc").st_dev
    assert found.device == f"{os.major(device)}:{os.minor(device)}"


def test_without_a_table_there_are_no_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TABLE", str(tmp_path / "missing"))
    assert list(mounts()) == []
    assert mount_of(tmp_path) is None


def test_lines_are_read_as_the_kernel_writes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        rb"36 35 98:0 /root /mnt\040a rw,noatime master:1 propagate_from:2 - ext4 /dev/sd\134x rw",
        rb"37 36 0:52 / /mnt/\303\244 rw - nfs4 server:/\011 rw",
        "38 36 0:53 / /mnt/ä rw - tmpfs  rw".encode(),  # no source at all
        b"39 36 0:54 / /mnt/\xff\\777 rw - fuse.x x rw",  # more than a byte: not an escape
        b"a line of some other kernel",
    ]
    table(monkeypatch, tmp_path / "table", b"\n".join(lines) + b"\n")
    found = list(mounts())
    assert [(each.number, each.device) for each in found] == [(36, "98:0"), (37, "0:52"), (38, "0:53"), (39, "0:54")]
    assert [os.fsencode(each.point) for each in found] == [
        b"/mnt a",
        "/mnt/ä".encode(),
        "/mnt/ä".encode(),
        b"/mnt/\xff\\777",
    ]
    assert [(each.kind, each.source) for each in found] == [
        ("ext4", "/dev/sd\\x"),
        ("nfs4", "server:/\t"),
        ("tmpfs", ""),
        ("fuse.x", "x"),
    ]
