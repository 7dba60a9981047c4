"""Everything that stands on a volume is seen, as libblkid sees it, and two things are one too many."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from diskhaul_plugins.guest_disks.signatures import claims
from diskhaul_plugins.guest_disks.volume import WholeDisk

from .conftest import MIB, image, put, run, swap_space, walk

SIZE = 64 * MIB


def seen(path: Path) -> tuple[str, ...]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return claims(WholeDisk(descriptor, path.stat().st_size))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("command", "size_mib", "wanted"),
    [
        (["mkfs.ext2", "-q", "-F"], 16, "ext"),
        (["mkfs.ext4", "-q", "-F", "-b", "4096"], 16, "ext"),
        (["mkfs.xfs", "-q", "-f"], 320, "xfs"),
        (["mkfs.btrfs", "-q", "-f"], 128, "btrfs"),
        (["mkfs.fat", "-F", "12"], 4, "fat"),
        (["mkfs.fat", "-F", "16"], 32, "fat"),
        (["mkfs.fat", "-F", "32"], 64, "fat"),
        (["mkfs.exfat"], 16, "exfat"),
        (["mkfs.ntfs", "-q", "-F"], 16, "ntfs"),
        (["mkfs.f2fs", "-q", "-f"], 64, "f2fs"),
        (["mkswap"], 16, "swap"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else str(value),
)
def test_what_makers_of_filesystems_leave_is_seen_once(
    tmp_path: Path, command: list[str], size_mib: int, wanted: str, requires: Callable[..., None]
) -> None:
    requires(command[0])
    made = image(tmp_path / "volume", size_mib * MIB)
    run(*command, made)
    assert seen(made) == (wanted,)


def _luks2_backup(path: Path) -> None:
    put(path, 0x4000, b"SKUL\xba\xbe")


def _bsd(path: Path) -> None:
    put(path, 512, struct.pack("<I", 0x82564557))


_AT_OFFSET = {
    "luks": (0, b"LUKS\xba\xbe\x00\x01"),
    "bitlocker": (3, b"-FVE-FS-"),
    "lvm": (512, b"LABELONE"),
    "bcache": (4096 + 24, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")),
    "dm-integrity": (0, b"integrt\0"),
    "refs": (3, b"ReFS\0\0\0\0"),
    "apfs": (32, b"NXSB"),
    "raid member": (4096, struct.pack("<I", 0xA92B4EFC)),
    "vdo": (0, b"dmvdo001"),
    "hfs+": (1024, b"H+\x00\x04"),
    "squashfs": (0, b"hsqs"),
    "ceph bluestore": (0, b"bluestore block device\n"),
    "windows dynamic disk": (3072, b"PRIVHEAD"),
    "geom": (SIZE - 512, b"GEOM::ELI\0"),
    "zfs": (256 * 1024 + 128 * 1024 + 5 * 1024, struct.pack("<Q", 0x00BAB10C)),
}


@pytest.mark.parametrize("kind", _AT_OFFSET)
def test_what_no_reader_reads_is_named_and_kept(tmp_path: Path, kind: str) -> None:
    made = image(tmp_path / "volume", SIZE)
    put(made, *_AT_OFFSET[kind])
    assert seen(made) == (kind,)
    found = walk(made)
    assert found.free == []
    assert found.at("disk").kept


@pytest.mark.parametrize(
    ("back", "content"),
    [
        pytest.param(64 << 10, struct.pack("<I", 0xA92B4EFC), id="0.90"),
        pytest.param(8 << 10, struct.pack("<I", 0xA92B4EFC), id="1.0"),
        pytest.param(1024, b"Intel Raid ISM Cfg Sig. 1.3.00", id="Intel"),
        pytest.param(512, b"\xde\x11\xde\x11", id="DDF"),
        pytest.param(512, b"GEOM::ELI", id="encrypted by FreeBSD"),
        pytest.param(4096, b"GEOM::MIRROR", id="mirrored by FreeBSD, sectors of 4096 bytes"),
        pytest.param(256 << 10, b"", id="zfs label at the end"),
    ],
)
def test_a_member_of_a_raid_is_kept_though_its_beginning_looks_like_a_whole(
    tmp_path: Path, back: int, content: bytes, requires: Callable[..., None]
) -> None:
    requires("mkswap")
    made = swap_space(tmp_path / "volume", SIZE)
    assert walk(made).free
    if content:
        put(made, SIZE - back, content)
    else:
        put(made, SIZE - back + 128 * 1024, struct.pack("<Q", 0x00BAB10C))
    found = walk(made)
    assert found.free == []
    assert found.at("disk").kept.startswith("claims to be several things: ")


@pytest.mark.parametrize("remains", [_luks2_backup, _bsd])
def test_remains_of_something_else_mean_that_all_is_kept(
    tmp_path: Path, remains: Callable[[Path], None], requires: Callable[..., None]
) -> None:
    requires("mkswap")
    made = swap_space(tmp_path / "volume", SIZE)
    remains(made)
    found = walk(made)
    assert (found.free, found.at("disk").type) == ([], "unknown")


def test_remains_of_a_filesystem_below_a_table_mean_that_all_is_kept(tmp_path: Path, requires: Callable[..., None]) -> None:
    """Which of the two is in use nobody can tell: mkfs on the whole disk leaves a table, fdisk leaves a superblock."""
    requires("sfdisk", "mkfs.ext4", "mkswap")
    made = image(tmp_path / "disk", SIZE)
    run("mkfs.ext4", "-q", "-F", made)
    run("sfdisk", "-q", "--wipe", "never", made, text="label: dos\nstart=2048, size=32768, type=82\n")
    put(made, MIB, swap_space(tmp_path / "swap", 16 * MIB))
    found = walk(made)
    assert found.free == []
    assert found.at("disk").kept == "claims to be several things: ext, mbr"


def test_libblkid_sees_nothing_that_is_not_seen_here(tmp_path: Path, requires: Callable[..., None]) -> None:
    """On volumes with all kinds of remains: what blkid names, or calls ambivalent, is not called nothing here."""
    requires("blkid")
    unseen = []
    for kind, (offset, content) in _AT_OFFSET.items():
        made = image(tmp_path / kind.replace(" ", "-"), SIZE)
        put(made, offset, content)
        probed = subprocess.run(["blkid", "-p", made], capture_output=True, text=True, check=False)
        if probed.stdout and not seen(made):
            unseen.append((kind, probed.stdout))
    assert unseen == []


@pytest.mark.parametrize("size", [0, 1, 511, 4096, 65536, 131072])
def test_small_volumes_are_no_trouble(tmp_path: Path, size: int) -> None:
    made = tmp_path / "volume"
    made.write_bytes(b"\xff" * size)
    assert seen(made) == ()
    assert walk(made).free == []
