"""What a volume claims to hold, by the marks that formats leave at fixed places.

It is there to name what no reader reads, and to see where a volume makes two claims: what remains of an earlier filesystem
must not be taken for the one in use. Places and values are those of the formats' own definitions, as libblkid collects them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .swap import HIBERNATION, PAGE_SIZES, SIGNATURES
from .volume import Volume


@dataclass(frozen=True, slots=True)
class _Mark:
    """`content` at `offset` from the beginning; a negative one counts from the end, rounded down to `unit` there."""

    type: str
    offset: int
    content: bytes
    unit: int = 1


HIBERNATED_SWAP = "swap with a hibernated system"
_K = 1024
_MARKS = (
    # encryption, and layers below filesystems
    _Mark("luks", 0, b"LUKS\xba\xbe"),
    *(
        _Mark("luks", at, b"SKUL\xba\xbe")
        for at in (0x4000, 0x8000, 0x10000, 0x20000, 0x40000, 0x80000, 0x100000, 0x200000, 0x400000)
    ),
    _Mark("bitlocker", 3, b"-FVE-FS-"),
    *(_Mark("lvm", sector * 512, b"LABELONE") for sector in range(4)),
    _Mark("lvm1", 0, b"HM\x01\x00"),
    _Mark("lvm1", 0, b"HM\x02\x00"),
    _Mark("lvm snapshot", 0, b"SnAp"),
    _Mark("bcache", 4 * _K + 24, bytes.fromhex("c68573f64e1a45ca8265f57f48ba6d81")),
    _Mark("bcachefs", 4 * _K + 24, bytes.fromhex("c68573f666ce90a9d96a60cf803df7ef")),
    _Mark("dm-integrity", 0, b"integrt\0"),
    _Mark("dm-verity", 0, b"verity\0\0"),
    _Mark("dm-cache or thin pool metadata", 32, (27022010).to_bytes(8, "little")),
    _Mark("vdo", 0, b"dmvdo001"),
    _Mark("ceph bluestore", 0, b"bluestore block device"),
    # FreeBSD's layers (encryption, mirrors, stripes, ...) have their name in the last sector
    _Mark("geom", -512, b"GEOM::", 512),
    _Mark("geom", -4 * _K, b"GEOM::", 4 * _K),
    # the private header of a Windows dynamic disk with an MBR, in its seventh sector
    _Mark("windows dynamic disk", 6 * 512, b"PRIVHEAD"),
    _Mark("stratis", 512 + 4, b"!Stra0tis\x86\xff\x02^\x41rh"),
    _Mark("stratis", 9 * 512 + 4, b"!Stra0tis\x86\xff\x02^\x41rh"),
    _Mark("ubi", 0, b"UBI#"),
    _Mark("raid member", 0, b"\xfc\x4e\x2b\xa9"),
    _Mark("raid member", 4 * _K, b"\xfc\x4e\x2b\xa9"),
    _Mark("raid member", -8 * _K, b"\xfc\x4e\x2b\xa9", 4 * _K),
    _Mark("raid member", -64 * _K, b"\xfc\x4e\x2b\xa9", 64 * _K),
    _Mark("raid member", -64 * _K, b"\xa9\x2b\x4e\xfc", 64 * _K),
    _Mark("raid member", -1024, b"Intel Raid ISM Cfg Sig. "),
    _Mark("raid member", -512, b"\xde\x11\xde\x11"),
    _Mark("raid member", -512, b"\x11\xde\x11\xde"),
    _Mark("raid member", -512, b"$XIDE$"),
    _Mark("raid member", -512, b"Highpoint"),
    _Mark("drbd", -4 * _K + 60, b"\x83\x74\x02\x6b", 4 * _K),
    _Mark("drbd", -4 * _K + 60, b"\x83\x74\x02\x67", 4 * _K),
    _Mark("vmfs", 1 << 20, b"\x0d\xd0\x01\xc0"),
    _Mark("vmfs", 2 << 20, b"\x5e\xf1\xab\x2f"),
    # filesystems
    _Mark("ext", _K + 56, b"\x53\xef"),
    _Mark("xfs", 0, b"XFSB"),
    _Mark("xfs log", 0, b"\xfe\xed\xba\xbe"),
    _Mark("btrfs", 64 * _K + 64, b"_BHRfS_M"),
    _Mark("f2fs", _K, b"\x10\x20\xf5\xf2"),
    _Mark("ntfs", 3, b"NTFS    "),
    _Mark("refs", 3, b"ReFS\0\0\0\0"),
    _Mark("exfat", 3, b"EXFAT   "),
    _Mark("fat", 54, b"FAT12   "),
    _Mark("fat", 54, b"FAT16   "),
    _Mark("fat", 54, b"FAT     "),
    _Mark("fat", 82, b"FAT32   "),
    _Mark("apfs", 32, b"NXSB"),
    _Mark("hfs+", _K, b"H+\x00\x04"),
    _Mark("hfs+", _K, b"HX\x00\x05"),
    _Mark("hfs", _K, b"BD"),
    _Mark("jfs", 32 * _K, b"JFS1"),
    _Mark("reiserfs", 64 * _K + 52, b"ReIsEr"),
    _Mark("reiserfs", 8 * _K + 52, b"ReIsEr"),
    _Mark("reiser4", 64 * _K, b"ReIsEr4"),
    _Mark("nilfs2", _K + 6, b"\x34\x34"),
    _Mark("ocfs2", 2 * _K, b"OCFSV2"),
    _Mark("ocfs2", 4 * _K, b"OCFSV2"),
    _Mark("gfs2", 64 * _K, b"\x01\x16\x19\x70"),
    _Mark("squashfs", 0, b"hsqs"),
    _Mark("erofs", _K, b"\xe2\xe1\xf5\xe0"),
    _Mark("cramfs", 0, b"\x45\x3d\xcd\x28"),
    _Mark("romfs", 0, b"-rom1fs-"),
    _Mark("iso9660", 32 * _K + 1, b"CD001"),
    _Mark("udf", 32 * _K + 1, b"BEA01"),
    _Mark("vxfs", _K, b"\xf5\xfc\x01\xa5"),
    _Mark("vxfs", 8 * _K, b"\xa5\x01\xfc\xf5"),
    _Mark("zonefs", 0, b"SFOZ"),
    *(
        _Mark("ufs", at + 1372, magic)
        for at in (0, 8 * _K, 64 * _K, 256 * _K)
        for magic in (b"\x54\x19\x01\x00", b"\x00\x01\x19\x54", b"\x19\x01\x54\x19", b"\x19\x54\x01\x19")
    ),
    _Mark("bsd disklabel", 512, b"\x57\x45\x56\x82"),
    _Mark("bsd disklabel", 0, b"\x57\x45\x56\x82"),
    _Mark("oracle asm", 32, b"ORCLDISK"),
    # swap
    *(_Mark("swap", size - 10, content) for size in PAGE_SIZES for content in SIGNATURES),
    *(_Mark(HIBERNATED_SWAP, size - 10, content) for size in PAGE_SIZES for content in HIBERNATION),
)

_ZFS_LABEL = 256 * _K
_ZFS_UBERBLOCKS = 128 * _K
_ZFS_MAGICS = ((0x00BAB10C).to_bytes(8, "little"), (0x00BAB10C).to_bytes(8, "big"))


def claims(volume: Volume) -> tuple[str, ...]:
    """What `volume` claims to be: the types of all marks on it, each once. Two or more mean that none is to be believed.

    Raises:
        OSError: it cannot be read.
    """
    found = dict.fromkeys(mark.type for mark in _MARKS if _is_at(volume, mark))
    if _has_zfs_label(volume):
        found["zfs"] = None
    return tuple(found)


def _is_at(volume: Volume, mark: _Mark) -> bool:
    offset = mark.offset
    if offset < 0:
        offset += volume.size - volume.size % mark.unit
    if offset < 0 or offset + len(mark.content) > volume.size:
        return False
    return volume.read(offset, len(mark.content)) == mark.content


def _has_zfs_label(volume: Volume) -> bool:
    return any(magic in _ZFS_MAGICS for magic in _zfs_uberblocks(volume))


def _zfs_uberblocks(volume: Volume) -> Iterator[bytes]:
    """Where the uberblocks of the four labels begin: two labels at the front, two at the end."""
    end = volume.size - volume.size % _ZFS_LABEL
    for label in (0, _ZFS_LABEL, end - 2 * _ZFS_LABEL, end - _ZFS_LABEL):
        if label < 0 or label + _ZFS_LABEL > volume.size:
            continue
        block = volume.read(label + _ZFS_UBERBLOCKS, _ZFS_LABEL - _ZFS_UBERBLOCKS)
        yield from (block[at : at + 8] for at in range(0, len(block), _K))
