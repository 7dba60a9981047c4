"""Changes to metadata, chosen by a generator of random numbers: one seed is always the same change of the same disk."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Sequence

from .bases import Base
from .overlay import Overlay
from .seals import Place, repair

MOST_CHANGES = 5


def mutate(base: Base, disk: Overlay, chosen: random.Random) -> None:
    """Change `disk`, which is `base`, where readers look; in most cases make checksums right again; cut or extend it in some."""
    for _ in range(chosen.randrange(1, MOST_CHANGES + 1)):
        _change(disk, chosen, base.places)
    match chosen.randrange(8):
        case 1:
            pass
        case 2:
            repair(disk, [seal for seal in base.seals if chosen.randrange(4)])
        case 3:
            repair(disk, [seal for seal in base.seals if seal.name != "count"])
        case _:
            repair(disk, base.seals)
    if chosen.randrange(12) == 0:
        disk.size = chosen.choice(
            (disk.size // 2, disk.size - 512, disk.size - 1, disk.size * 2, chosen.randrange(disk.size), chosen.randrange(4096))
        )


def _change(disk: Overlay, chosen: random.Random, places: Sequence[Place]) -> None:
    chosen.choice(_CHANGES)(disk, chosen, chosen.choice(places), places)


def _somewhere(disk: Overlay, chosen: random.Random, place: Place, width: int) -> int:
    """An aligned offset in a place; mostly where something stands, as a block of metadata is zero for the most part."""
    offset, length = place
    if chosen.randrange(4):
        content = disk.read(offset, min(length, 1 << 16))
        start = chosen.randrange(len(content))
        found = _SOMETHING.search(content, start) or _SOMETHING.search(content)
        at = found.start() if found else start
    else:
        at = chosen.randrange(length)
    return offset + min(at - at % width, max(length - width, 0))


_SOMETHING = re.compile(rb"[^\0\xff]")
_NUMBER = re.compile(rb"[0-9]+")


def _flip(disk: Overlay, chosen: random.Random, place: Place, places: Sequence[Place]) -> None:
    at = _somewhere(disk, chosen, place, 1)
    disk.write(at, bytes([disk.read(at, 1)[0] ^ 1 << chosen.randrange(8)]))


def _set_number(disk: Overlay, chosen: random.Random, place: Place, places: Sequence[Place]) -> None:
    width, form = chosen.choice(((1, "B"), (2, "H"), (4, "I"), (4, "I"), (8, "Q")))
    order = chosen.choice("<>")
    at = _somewhere(disk, chosen, place, width)
    if at + width > disk.size:
        return
    (was,) = struct.unpack(order + form, disk.read(at, width))
    top = 1 << 8 * width
    number = chosen.choice(
        (
            0,
            1,
            top - 1,
            top >> 1,
            (top >> 1) - 1,
            was + 1,
            was - 1,
            was * 2,
            was // 2,
            was ^ top >> 1,
            1 << chosen.randrange(8 * width),
            chosen.randrange(256),
            chosen.randrange(top),
            disk.size >> chosen.choice((0, 9, 10, 12)),
        )
    )
    disk.write(at, struct.pack(order + form, number % top))


def change_field(disk: Overlay, chosen: random.Random, place: Place, places: Sequence[Place]) -> None:
    """A bit, or a number."""
    chosen.choice((_flip, _set_number, _set_number))(disk, chosen, place, places)


def overwrite(disk: Overlay, chosen: random.Random, place: Place, places: Sequence[Place]) -> None:
    """Some bytes, by anything, zeros or ones."""
    at = _somewhere(disk, chosen, place, 4)
    length = min(chosen.choice((4, 16, 64, 512, 1024)), place[0] + place[1] - at)
    if length > 0:
        kind = chosen.randrange(3)
        disk.write(at, chosen.randbytes(length) if kind == 0 else bytes([0 if kind == 1 else 0xFF]) * length)


def _copy(disk: Overlay, chosen: random.Random, place: Place, places: Sequence[Place]) -> None:
    """A place gets what another one has, or a part of itself."""
    other = chosen.choice([place, *chosen.choices(places, k=3)])
    length = min(place[1], other[1], chosen.choice((8, 32, 64, 1 << 16)))
    source, target = (end[0] + chosen.randrange(end[1] - length + 1) // 4 * 4 for end in (other, place))
    disk.write(target, disk.read(source, length))


def swap(disk: Overlay, chosen: random.Random, place: Place, places: Sequence[Place]) -> None:
    """Two places get each other's content."""
    other = chosen.choice(places)
    length = min(place[1], other[1], 1 << 16)
    first, second = disk.read(place[0], length), disk.read(other[0], length)
    disk.write(place[0], second)
    disk.write(other[0], first)


def _change_text(disk: Overlay, chosen: random.Random, place: Place, places: Sequence[Place]) -> None:
    """In a text a number, of the same length, or a character."""
    offset, length = place
    content = disk.read(offset, min(length, 1 << 14))
    numbers = list(_NUMBER.finditer(content))
    if sum(32 <= byte < 127 for byte in content) * 2 < len(content) or not numbers:
        _flip(disk, chosen, place, places)
        return
    found = chosen.choice(numbers)
    size = found.end() - found.start()
    if chosen.randrange(3):
        digits = chosen.choice((b"0", b"9", b"-9", b"1", b"%d" % chosen.randrange(10**size)))
        disk.write(offset + found.start(), digits[:size].rjust(size, b"0"))
    else:
        disk.write(offset + chosen.randrange(len(content)), bytes([chosen.choice(b'{}[]=#"\\\n,x0 ')]))


_CHANGES: tuple[Callable[[Overlay, random.Random, Place, Sequence[Place]], None], ...] = (
    _flip,
    _set_number,
    _set_number,
    _set_number,
    overwrite,
    _copy,
    swap,
    _change_text,
)
