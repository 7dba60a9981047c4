"""MBR partition tables with logical partitions, as every PC system since MS-DOS 3.3 reads them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .reading import NotThisError
from .signatures import claims
from .tables import DamagedTableError, Partition, Table, with_overlaps_marked
from .volume import OutsideVolumeError, Volume

_BOOT_SIGNATURE = b"\x55\xaa"
_ENTRIES_AT, _ENTRY = 446, struct.Struct("<B3sB3sII")
_EXTENDED = (0x05, 0x0F, 0x85)
_SECTOR_SIZES = (512, 4096)
_MAX_LOGICAL = 128
_FIRST_LOGICAL = 5


@dataclass(frozen=True, slots=True)
class _Entry:
    """One of a table's four; start and count are sectors."""

    number: int
    kind: int
    start: int
    count: int


def read_mbr(volume: Volume) -> Table:
    """Read the table of `volume`.

    It does not say in which sectors it counts. They are taken to have 512 bytes, unless its partitions begin with something known
    only where they are counted in sectors of 4096 bytes.

    Raises:
        NotThisError: there is none, or it is empty.
        DamagedTableError: it does not fit the volume, or runs in circles.
        OSError: it cannot be read.
    """
    tables: list[Table] = []
    problem: DamagedTableError | None = None
    for sector in _SECTOR_SIZES:
        try:
            tables.append(_table(volume, sector))
        except DamagedTableError as error:
            problem = problem or error
    if not tables:
        assert problem is not None  # else it has returned, or has raised that there is none
        raise problem
    if len(tables) == 1:
        return tables[0]
    at_home = [any(claims_of(volume, partition) for partition in table.partitions) for table in tables]
    if all(at_home):
        raise DamagedTableError("its partitions hold something for two sector sizes")
    return tables[1] if at_home[1] else tables[0]


def claims_of(volume: Volume, partition: Partition) -> tuple[str, ...]:
    """What a partition claims to hold."""
    from .volume import Part

    return claims(Part(volume, partition.offset, partition.size))


def _table(volume: Volume, sector: int) -> Table:
    entries = [entry for entry in _entries(volume, 0) or () if entry.kind and entry.count]
    if not entries:
        raise NotThisError
    found: list[Partition] = [Partition(number=0, offset=0, size=sector, kind="")]  # the table itself
    logical: list[Partition] = []
    for entry in entries:
        found.append(_partition(volume, sector, entry.number, entry.kind, entry.start, entry.count))
        if entry.kind in _EXTENDED:
            for kind, start, count, table_at in _logical(volume, sector, entry):
                number = _FIRST_LOGICAL + sum(p.number > 0 for p in logical)
                if kind:
                    logical.append(_partition(volume, sector, number, kind, start, count))
                logical.append(Partition(number=-1 - len(logical), offset=table_at * sector, size=sector, kind=""))
    primary = with_overlaps_marked(found)
    parts = (*primary, *with_overlaps_marked(logical))
    extended = {entry.number for entry in entries if entry.kind in _EXTENDED}
    if any(p.problem for p in primary if p.number in extended):
        raise DamagedTableError("its extended partition overlaps another one")
    return Table(type="mbr", sector_size=sector, partitions=tuple(p for p in parts if p.number > 0 and p.number not in extended))


def _partition(volume: Volume, sector: int, number: int, kind: int, start: int, count: int) -> Partition:
    if (start + count) * sector > volume.size:
        raise DamagedTableError(f"partition {number} is not on the disk")
    return Partition(number=number, offset=start * sector, size=count * sector, kind=f"{kind:02x}")


def _logical(volume: Volume, sector: int, extended: _Entry) -> Iterator[tuple[int, int, int, int]]:
    """Kind (0: none), start and count of each logical partition, and where the table stands that names it."""
    end = extended.start + extended.count
    seen: set[int] = set()
    at = extended.start
    while True:
        if at in seen or len(seen) >= _MAX_LOGICAL:
            raise DamagedTableError("its logical partitions have no end")
        if not extended.start <= at < end:
            raise DamagedTableError("a logical partition's table is not in the extended partition")
        seen.add(at)
        entries = _entries(volume, at * sector)
        if entries is None:
            raise DamagedTableError("a logical partition's table is damaged")
        own, link, *others = entries
        if any(entry.kind and entry.count for entry in others) or (own.kind in _EXTENDED and own.count):
            raise DamagedTableError("a logical partition's table has more than it should")
        holds_one = bool(own.kind and own.count)
        if holds_one and at + own.start + own.count > end:
            raise DamagedTableError("a logical partition is not in the extended one")
        yield (own.kind if holds_one else 0), at + own.start, own.count, at
        if not link.kind or not link.count:
            return
        if link.kind not in _EXTENDED:
            raise DamagedTableError("a logical partition's table has more than it should")
        at = extended.start + link.start


def _entries(volume: Volume, offset: int) -> list[_Entry] | None:
    """The four entries of the table at `offset`, or None where none stands."""
    try:
        block = volume.read(offset, 512)
    except OutsideVolumeError:
        return None
    if block[510:] != _BOOT_SIGNATURE:
        return None
    entries: list[_Entry] = []
    for number in range(1, 5):
        boot, _, kind, _, start, count = _ENTRY.unpack_from(block, _ENTRIES_AT + (number - 1) * _ENTRY.size)
        if boot not in (0, 0x80):
            return None  # code stands there
        entries.append(_Entry(number, kind, start, count))
    return entries
