"""What the process that reads a guest's disk and the one that asked for it say to each other.

The reader's only answer: a magic number, the length of a JSON header, the number of free ranges, the header, and the ranges as
pairs of little-endian 64-bit numbers (offset, length). Nothing of it is believed before it was checked.

A disk without a descriptor is read over a socket: the reader asks for offset and length, and gets a status byte and, if that is
0, so many bytes.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from typing import Any

from diskhaul.api import DiskMap, DiskRegion, FreeExtents

from .volume import OutsideVolumeError
from .walk import MAX_RANGES, MAX_REGIONS

HEAD = struct.Struct("<8sIQ")
MAGIC = b"dh-map\x00\x01"
MAX_HEADER = 4 << 20
MAX_ANSWER = HEAD.size + MAX_HEADER + 16 * MAX_RANGES

REQUEST = struct.Struct("<QI")
MAX_REQUEST = 1 << 20
"""Bytes that are asked for at once."""
GRANTED, REFUSED = b"\0", b"\1"

_MAX_TEXT = 1000
_TEXTS = ("place", "type", "label", "state", "kept")
_FIELDS = tuple(field.name for field in fields(DiskRegion))


class NonsenseError(ValueError):
    """What was answered is no answer. The text says what is wrong with it."""


def encode(regions: Iterable[DiskRegion], ranges: array[int]) -> bytes:
    """The answer: regions, and free ranges (offset, length, offset, ...)."""
    header = json.dumps([asdict(region) for region in regions]).encode("ascii")
    if sys.byteorder == "big":
        ranges = ranges[:]
        ranges.byteswap()
    return HEAD.pack(MAGIC, len(header), len(ranges) // 2) + header + ranges.tobytes()


def decode(answer: bytes | bytearray, size: int) -> DiskMap:
    """The map of a disk of `size` bytes.

    Raises:
        NonsenseError: some of it is not what `encode` makes, or says something impossible.
    """
    if len(answer) < HEAD.size:
        raise NonsenseError(f"it ends after {len(answer)} bytes")
    magic, header_length, count = HEAD.unpack_from(answer)
    if magic != MAGIC or header_length > MAX_HEADER or count > MAX_RANGES:
        raise NonsenseError("it does not begin as it should")
    if len(answer) != HEAD.size + header_length + 16 * count:
        raise NonsenseError(f"it has {len(answer)} bytes, and announces {HEAD.size + header_length + 16 * count}")
    view = memoryview(answer)
    regions = tuple(_region(record, size) for record in _records(bytes(view[HEAD.size : HEAD.size + header_length])))
    free = _ranges(view[HEAD.size + header_length :], size)
    skipped = sum(region.skipped for region in regions)
    if skipped != free.total:
        raise NonsenseError(f"{skipped} free bytes in its regions, and {free.total} in its ranges")
    return DiskMap(size=size, regions=regions, free=free)


def _records(text: bytes) -> list[Any]:
    try:
        records = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NonsenseError(f"its header is no JSON: {error}") from error
    if not isinstance(records, list) or len(records) > MAX_REGIONS + 1:
        raise NonsenseError("its header is no list of regions")
    return records


def _region(record: object, size: int) -> DiskRegion:
    if not isinstance(record, dict) or set(record) != set(_FIELDS):
        raise NonsenseError("a region has other fields")
    for name, value in record.items():
        if name in _TEXTS:
            if not isinstance(value, str) or len(value) > _MAX_TEXT or any("\ud800" <= letter <= "\udfff" for letter in value):
                raise NonsenseError(f"a region's {name} is no text")
        elif not (name == "free" and value is None) and (type(value) is not int or not 0 <= value < 1 << 63):
            raise NonsenseError(f"a region's {name} is no size")
    region = DiskRegion(**record)
    if region.offset + min(region.length, 1) > size or region.length > size or region.skipped > region.length:
        raise NonsenseError("a region is not on the disk")
    if region.kept and region.skipped:
        raise NonsenseError("a region is kept, and skipped")
    return region


def _ranges(content: memoryview, size: int) -> FreeExtents:
    numbers = array("Q")
    numbers.frombytes(content)
    if sys.byteorder == "big":
        numbers.byteswap()
    pairs = iter(numbers)
    try:
        free = FreeExtents(zip(pairs, pairs, strict=True))
    except (ValueError, OverflowError) as error:
        raise NonsenseError(f"its free ranges: {error}") from error
    if free.end > size:
        raise NonsenseError(f"free bytes up to {free.end}")
    return free


class AskedDisk:
    """A `Volume`: the disk behind a socket, on whose other end somebody answers requests."""

    def __init__(self, channel: socket.socket, size: int) -> None:
        self._channel = channel
        self.size = size

    def read(self, offset: int, length: int, /) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutsideVolumeError(f"{length} bytes at {offset} are not on a volume of {self.size} bytes")
        parts: list[bytes] = []
        while length:
            count = min(length, MAX_REQUEST)
            self._channel.sendall(REQUEST.pack(offset, count))
            if self._receive(1) != GRANTED:
                raise OSError(f"{count} bytes at {offset} cannot be read")
            parts.append(self._receive(count))
            offset += count
            length -= count
        return b"".join(parts)

    def on_disk(self, offset: int, length: int, /) -> Iterator[tuple[int, int]]:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise OutsideVolumeError(f"{length} bytes at {offset} are not on a volume of {self.size} bytes")
        return iter(((offset, length),) if length else ())

    def _receive(self, count: int) -> bytes:
        content = bytearray()
        while len(content) < count:
            part = self._channel.recv(count - len(content))
            if not part:
                raise OSError("nobody answers any more")
            content += part
        return bytes(content)
