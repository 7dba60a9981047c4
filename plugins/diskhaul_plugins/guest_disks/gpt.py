"""GUID partition tables (UEFI specification 2.10, section 5.3), believed only when both copies are whole and alike."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from .reading import NotThisError
from .tables import MAX_PARTITIONS, DamagedTableError, Partition, Table, with_overlaps_marked
from .volume import OutsideVolumeError, Volume

_SIGNATURE = b"EFI PART"
_HEADER = struct.Struct("<8s4sIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")
_REVISION = b"\x00\x00\x01\x00"
_SECTOR_SIZES = (512, 4096)
_MAX_ENTRIES_BYTES = 4 << 20
_PROTECTIVE = 0xEE
_MBR_ENTRIES, _MBR_SIGNATURE = 446, b"\x55\xaa"


@dataclass(frozen=True, slots=True)
class _Header:
    """One of the two, its checksum and that of its entries found right. Places are in sectors."""

    own: int
    other: int
    first_usable: int
    last_usable: int
    disk: bytes
    entries_at: int
    entry_size: int
    entries: bytes


def read_gpt(volume: Volume) -> Table:
    """Read the table of `volume`.

    Raises:
        NotThisError: there is none. A copy that is left of an older one, where an MBR has been written since, does not count.
        DamagedTableError: there is one that is not whole.
        OSError: it cannot be read.
    """
    mbr = _mbr_entries(volume)
    protected = any(entry[4] == _PROTECTIVE for entry in mbr)
    sizes = [size for size in _SECTOR_SIZES if _signature_at(volume, size)]
    if not sizes:
        if protected:
            raise DamagedTableError("the first GPT header is missing")
        raise NotThisError
    if not protected:
        raise DamagedTableError("a GPT header without a protective MBR")
    if len(sizes) > 1:
        raise DamagedTableError("GPT headers for two sector sizes")
    return _table(volume, sizes[0], mbr)


def _table(volume: Volume, sector: int, mbr: list[bytes]) -> Table:
    primary = _header(volume, sector, 1, "first")
    backup = _header(volume, sector, primary.other, "second")
    if backup.other != 1:
        raise DamagedTableError("the second GPT header names another first one")
    same = ("first_usable", "last_usable", "disk", "entry_size", "entries")
    if any(getattr(primary, name) != getattr(backup, name) for name in same):
        raise DamagedTableError("the two GPT headers differ")
    length = -(-len(primary.entries) // sector)
    taken = ((primary.own, 1), (primary.entries_at, length), (backup.own, 1), (backup.entries_at, length))
    if any(at <= primary.last_usable and at + count > primary.first_usable for at, count in taken):
        raise DamagedTableError("the GPT lies among its partitions")
    partitions = _partitions(primary, sector, volume.size)
    real = {(p.offset, p.size) for p in partitions}
    for entry in mbr:
        start, count = struct.unpack_from("<II", entry, 8)
        if entry[4] not in (0, _PROTECTIVE) and (start * sector, count * sector) not in real:
            raise DamagedTableError("the MBR beside the GPT has other partitions")
    return Table(type="gpt", sector_size=sector, partitions=partitions)


def _partitions(header: _Header, sector: int, size: int) -> tuple[Partition, ...]:
    partitions: list[Partition] = []
    for index in range(len(header.entries) // header.entry_size):
        kind, _, first, last, _, name = _ENTRY.unpack_from(header.entries, index * header.entry_size)
        if not any(kind):
            continue
        inside = header.first_usable <= first <= last <= header.last_usable
        if not inside or (last + 1) * sector > size:
            raise DamagedTableError(f"partition {index + 1} is not on the disk")
        partitions.append(
            Partition(
                number=index + 1,
                offset=first * sector,
                size=(last + 1 - first) * sector,
                kind=_guid(kind),
                name=name.decode("utf-16-le", "replace").partition("\0")[0],
            )
        )
        if len(partitions) > MAX_PARTITIONS:
            raise DamagedTableError(f"more than {MAX_PARTITIONS} partitions")
    return with_overlaps_marked(partitions)


def _header(volume: Volume, sector: int, at: int, which: str) -> _Header:
    try:
        block = volume.read(at * sector, sector)
    except OutsideVolumeError:
        raise DamagedTableError(f"the {which} GPT header is not on the disk") from None
    (
        signature,
        revision,
        length,
        checksum,
        reserved,
        own,
        other,
        first_usable,
        last_usable,
        disk,
        entries_at,
        entry_count,
        entry_size,
        entries_checksum,
    ) = _HEADER.unpack_from(block)
    if signature != _SIGNATURE or revision != _REVISION or not _HEADER.size <= length <= sector or reserved:
        raise DamagedTableError(f"the {which} GPT header is damaged")
    if zlib.crc32(block[:16] + bytes(4) + block[20:length]) != checksum:
        raise DamagedTableError(f"the {which} GPT header's checksum is wrong")
    if own != at:
        raise DamagedTableError(f"the {which} GPT header belongs elsewhere")
    if entry_size < _ENTRY.size or entry_size % 8 or not 0 < entry_count * entry_size <= _MAX_ENTRIES_BYTES:
        raise DamagedTableError(f"{entry_count} GPT entries of {entry_size} bytes")
    try:
        entries = volume.read(entries_at * sector, entry_count * entry_size)
    except OutsideVolumeError:
        raise DamagedTableError(f"the {which} GPT's entries are not on the disk") from None
    if zlib.crc32(entries) != entries_checksum:
        raise DamagedTableError(f"the checksum of the {which} GPT's entries is wrong")
    return _Header(own, other, first_usable, last_usable, disk, entries_at, entry_size, entries)


def _mbr_entries(volume: Volume) -> list[bytes]:
    if volume.size < 512:
        return []
    block = volume.read(0, 512)
    if block[510:] != _MBR_SIGNATURE:
        return []
    return [block[at : at + 16] for at in range(_MBR_ENTRIES, 510, 16)]


def _signature_at(volume: Volume, offset: int) -> bool:
    return volume.size >= 2 * offset and volume.read(offset, 8) == _SIGNATURE


def _guid(raw: bytes) -> str:
    first, second, third = struct.unpack_from("<IHH", raw)
    return f"{first:08x}-{second:04x}-{third:04x}-{raw[8:10].hex()}-{raw[10:].hex()}"
