"""Checksums of metadata, made right again after a change: what is behind them is reached only then.

A seal knows where it lies from the disk as it was made, so a change may also make it seal the wrong thing.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import diskhaul_native as native
from diskhaul_plugins.guest_disks.ext.journal import NONE, JournalFile, find_journal
from diskhaul_plugins.guest_disks.ext.libext2fs import load, open_filesystem
from diskhaul_plugins.guest_disks.ext.superblock import BITS64, CSUM_SEED, METADATA_CSUM, Superblock, read_superblock

from .overlay import Overlay

Place = tuple[int, int]
"""Offset and length in bytes."""


@dataclass(frozen=True)
class Seal:
    """What `fix` makes right when something between `offset` and the end of `length` bytes was changed.

    `name` tells seals that may be left broken from others.
    """

    name: str
    offset: int
    length: int
    fix: Callable[[Overlay], None]


def repair(disk: Overlay, seals: Iterable[Seal]) -> None:
    """Make right what was changed. The order of the seals is from the inside out: each may break those after it."""
    for seal in seals:
        if disk.touches(seal.offset, seal.length):
            seal.fix(disk)


def _put(disk: Overlay, offset: int, form: str, number: int) -> None:
    disk.write(offset, struct.pack(form, number))


def _without(content: bytes, at: int, length: int) -> bytes:
    return content[:at] + bytes(length) + content[at + length :]


# --- ext --------------------------------------------------------------------------------------------------------------


def _crc16(crc: int, content: bytes) -> int:
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc


@dataclass(frozen=True)
class ExtMap:
    """Where the metadata of an ext filesystem lies on its disk."""

    superblock: Place
    descriptors: tuple[Place, ...]
    bitmaps: tuple[Place, ...]
    journal: tuple[Place, ...]
    seals: tuple[Seal, ...]


def ext_map(disk: Overlay) -> ExtMap:
    """The metadata of the filesystem on `disk`, which is sound and not in a partition."""
    s = read_superblock(disk)
    with open_filesystem(disk, s) as filesystem:
        bitmaps = [filesystem.block_bitmap(group) * s.block_size for group in range(s.groups)]
        file = find_journal(filesystem) if s.has_journal else JournalFile()
        at = [
            int(filesystem._c.ext2fs_descriptor_block_loc2(filesystem._handle, s.first_data_block, index)) * s.block_size
            for index in range(s.descriptor_blocks)
        ]
    per_block = s.block_size // s.descriptor_size
    descriptors = [at[group // per_block] + group % per_block * s.descriptor_size for group in range(s.groups)]
    journal = [file.on_disk(index) * s.block_size for index in range(file.blocks)]
    return ExtMap(
        superblock=(1024, 1024),
        descriptors=tuple((offset, s.descriptor_size) for offset in descriptors),
        bitmaps=tuple((offset, s.clusters_per_group // 8) for offset in bitmaps),
        journal=tuple((offset, s.block_size) for offset in journal),
        seals=tuple(_ext_seals(disk, s, bitmaps, descriptors, journal)),
    )


def _ext_seals(disk: Overlay, s: Superblock, bitmaps: list[int], descriptors: list[int], journal: list[int]) -> Iterator[Seal]:
    crc32c = load().crc32c
    uuid = s.uuid
    seed = struct.unpack_from("<I", s.raw, 0x270)[0] if s.incompat & CSUM_SEED else crc32c(NONE, uuid)
    size = s.clusters_per_group // 8

    def count(group: int, disk: Overlay) -> None:
        bits = int.from_bytes(disk.read(bitmaps[group], size), "little")
        clusters = -(-s.group_blocks(group) // s.cluster_blocks)
        free = clusters - (bits & (1 << clusters) - 1).bit_count()
        _put(disk, descriptors[group] + 0xC, "<H", free & 0xFFFF)
        if s.incompat & BITS64:
            _put(disk, descriptors[group] + 0x2C, "<H", free >> 16)

    def bitmap(group: int, disk: Overlay) -> None:
        checksum = crc32c(seed, disk.read(bitmaps[group], size))
        _put(disk, descriptors[group] + 0x18, "<H", checksum & 0xFFFF)
        if s.incompat & BITS64:
            _put(disk, descriptors[group] + 0x38, "<H", checksum >> 16)

    def descriptor(group: int, disk: Overlay) -> None:
        raw = disk.read(descriptors[group], s.descriptor_size)
        number = struct.pack("<I", group)
        if s.ro_compat & METADATA_CSUM:
            checksum = crc32c(seed, number + _without(raw, 0x1E, 2)) & 0xFFFF
        else:
            checksum = _crc16(0xFFFF, uuid + number + raw[:0x1E] + raw[0x20:])
        _put(disk, descriptors[group] + 0x1E, "<H", checksum)

    def total(disk: Overlay) -> None:
        free = 0
        for at in descriptors:
            raw = disk.read(at, s.descriptor_size)
            free += struct.unpack_from("<H", raw, 0xC)[0]
            free += struct.unpack_from("<H", raw, 0x2C)[0] << 16 if s.incompat & BITS64 else 0
        free *= s.cluster_blocks
        _put(disk, 1024 + 0xC, "<I", free & 0xFFFFFFFF)
        if s.incompat & BITS64:
            _put(disk, 1024 + 0x158, "<I", free >> 32 & 0xFFFFFFFF)

    for group in range(s.groups):
        yield Seal("count", bitmaps[group], size, partial(count, group))
        if s.ro_compat & METADATA_CSUM:
            yield Seal("bitmap", bitmaps[group], size, partial(bitmap, group))
    for group in range(s.groups):
        if s.has_group_checksums:
            yield Seal("descriptor", descriptors[group], s.descriptor_size, partial(descriptor, group))
    for at in descriptors:
        yield Seal("count", at, s.descriptor_size, total)
    if s.ro_compat & METADATA_CSUM:
        yield Seal("superblock", 1024, 1024, lambda disk: _put(disk, 2044, "<I", crc32c(NONE, disk.read(1024, 1020))))
    yield from _journal_seals(disk, s.block_size, journal)


def _journal_seals(disk: Overlay, size: int, journal: list[int]) -> Iterator[Seal]:
    if not journal or not struct.unpack_from(">I", disk.read(journal[0], size), 40)[0] & 0x18:
        return
    crc32c = load().crc32c
    seed = crc32c(NONE, disk.read(journal[0] + 48, 16))

    def block(at: int, disk: Overlay) -> None:
        raw = disk.read(at, size)
        magic, kind = struct.unpack_from(">II", raw)
        place = {1: size - 4, 5: size - 4, 2: 16}.get(kind)
        if magic == 0xC03B3998 and place is not None:
            _put(disk, at + place, ">I", crc32c(seed, _without(raw, place, 4)))

    def superblock(disk: Overlay) -> None:
        _put(disk, journal[0] + 0xFC, ">I", crc32c(NONE, _without(disk.read(journal[0], 1024), 0xFC, 4)))

    for at in journal[1:]:
        kind = struct.unpack_from(">II", disk.read(at, size))
        if kind[0] == 0xC03B3998:
            yield Seal("commit" if kind[1] == 2 else "tags", at, size, partial(block, at))
    yield Seal("journal", journal[0], 1024, superblock)


# --- partition tables and volumes -------------------------------------------------------------------------------------


def gpt_seals(disk: Overlay, sector: int) -> Iterator[Seal]:
    """Those of both headers and their entries."""
    for header in (sector, disk.size - sector):
        (entries,) = struct.unpack_from("<Q", disk.read(header, 92), 72)
        count, size = struct.unpack_from("<II", disk.read(header, 92), 80)

        def seal_entries(at: int, entries: int, length: int, disk: Overlay) -> None:
            _put(disk, at + 88, "<I", zlib.crc32(disk.read(entries, length)))

        def seal_header(at: int, disk: Overlay) -> None:
            (length,) = struct.unpack_from("<I", disk.read(at, 92), 12)
            raw = disk.read(at, min(max(length, 92), sector))
            _put(disk, at + 16, "<I", zlib.crc32(_without(raw, 16, 4)))

        yield Seal("gpt", entries * sector, count * size, partial(seal_entries, header, entries * sector, count * size))
        yield Seal("gpt", header, sector, partial(seal_header, header))


def _lvm_crc(content: bytes) -> int:
    return zlib.crc32(content, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def lvm_seals(disk: Overlay, begin: int) -> Iterator[Seal]:
    """Those of the label and the metadata at the beginning of the physical volume at `begin`."""
    area = begin + 4096
    at, length = struct.unpack_from("<QQ", disk.read(area, 512), 40)

    def text(disk: Overlay) -> None:
        _put(disk, area + 56, "<I", _lvm_crc(disk.read(area + at, length)))

    def header(disk: Overlay) -> None:
        _put(disk, area, "<I", _lvm_crc(disk.read(area + 4, 508)))

    def label(disk: Overlay) -> None:
        _put(disk, begin + 528, "<I", _lvm_crc(disk.read(begin + 532, 492)))

    yield Seal("lvm", area + at, length, text)
    yield Seal("lvm", area, 512, header)
    yield Seal("lvm", begin + 512, 512, label)


# --- filesystems whose blocks carry their own checksum ----------------------------------------------------------------


def _crc32c_at(at: int, offset: int, length: int, disk: Overlay) -> None:
    _put(disk, offset + at, "<I", native.crc32c(_without(disk.read(offset, length), at, 4)))


def xfs_seals(disk: Overlay, places: Iterable[Place]) -> Iterator[Seal]:
    """Those of what was read: headers, and blocks of trees. A record of the log without a checksum is believed."""
    for offset, length in places:
        mark = disk.read(offset, min(length, 4))
        at = {b"XFSB": 224, b"XAGF": 216, b"AB3B": 52}.get(mark)
        if at is not None and length > at + 4:
            yield Seal("xfs", offset, length, partial(_crc32c_at, at, offset, length))
        elif mark == b"\xfe\xed\xba\xbe" and length > 36:
            yield Seal("xfs", offset, length, lambda disk, offset=offset: _put(disk, offset + 32, "<I", 0))  # type: ignore[misc]


def btrfs_seals(disk: Overlay, places: Iterable[Place]) -> Iterator[Seal]:
    """Those of what was read, where it has one that is CRC-32C."""

    def fix(offset: int, length: int, disk: Overlay) -> None:
        _put(disk, offset, "<I", native.crc32c(disk.read(offset + 32, length - 32)))

    for offset, length in places:
        if length >= 4096 and disk.read(offset, 4) == struct.pack("<I", native.crc32c(disk.read(offset + 32, length - 32))):
            yield Seal("btrfs", offset, length, partial(fix, offset, length))


def f2fs_seals(disk: Overlay, places: Iterable[Place]) -> Iterator[Seal]:
    """Those of checkpoints."""

    def fix(offset: int, disk: Overlay) -> None:
        (at,) = struct.unpack_from("<I", disk.read(offset, 4096), 164)
        if at <= 4092:
            _put(disk, offset + at, "<I", zlib.crc32(disk.read(offset, at), 0xF2F52010 ^ 0xFFFFFFFF) ^ 0xFFFFFFFF)

    for offset, length in places:
        if length == 4096 and struct.unpack_from("<I", disk.read(offset, 4096), 164)[0] == 4092:
            yield Seal("f2fs", offset, length, partial(fix, offset))


def exfat_seals(disk: Overlay) -> Iterator[Seal]:
    """That of the boot sectors."""

    def fix(disk: Overlay) -> None:
        checksum = 0
        for at, byte in enumerate(disk.read(0, 11 * 512)):
            if at not in (106, 107, 112):
                checksum = ((checksum << 31 | checksum >> 1) + byte) & 0xFFFFFFFF
        disk.write(11 * 512, struct.pack("<I", checksum) * 128)

    yield Seal("exfat", 0, 11 * 512, fix)


def fat_seals(disk: Overlay) -> Iterator[Seal]:
    """The second copy of the table."""
    raw = disk.read(0, 512)
    sector, reserved = struct.unpack_from("<H", raw, 11)[0], struct.unpack_from("<H", raw, 14)[0]
    length = (struct.unpack_from("<H", raw, 22)[0] or struct.unpack_from("<I", raw, 36)[0]) * sector
    first = reserved * sector
    yield Seal("fat", first, length, lambda disk: disk.write(first + length, disk.read(first, length)))
