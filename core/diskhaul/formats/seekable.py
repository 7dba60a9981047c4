"""The seek table of the zstd seekable format, version 0.1.0 (facebook/zstd, contrib/seekable_format).

A skippable frame at the end of the stream: stock ``zstd -d`` passes over it, and seeking readers find every frame with it.

    u32 0x184D2A5E, u32 size of what follows,
    per frame: u32 stored size, u32 decoded size,
    u32 number of frames, u8 descriptor (0: no checksums), u32 0x8F92EAB1            all little-endian

Each of our frames carries its own content checksum, so the table has none.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..api import Buffer
from .corruption import CorruptError

SKIPPABLE_MAGIC = 0x184D2A5E
SEEKABLE_MAGIC = 0x8F92EAB1
MAX_FRAMES = 0x8000000
FOOTER_LENGTH = 9

_HEADER = struct.Struct("<II")
_FOOTER = struct.Struct("<IBI")
_ENTRY_LENGTH = 8
_PIECE_FRAMES = 1 << 16  # 512 KiB a piece

assert array("I").itemsize == 4  # true wherever CPython runs on Linux; the tables below are u32


@dataclass(frozen=True, slots=True, kw_only=True)
class SeekTable:
    """Stored and decoded length of every frame, in order (arrays of u32)."""

    stored_lengths: array[int]
    chunk_lengths: array[int]


def seek_table_length(count: int) -> int:
    """Bytes that the seek table of `count` frames takes."""
    return _HEADER.size + count * _ENTRY_LENGTH + FOOTER_LENGTH


def seek_table_bytes(stored_lengths: Sequence[int], chunk_lengths: Sequence[int]) -> Iterator[bytes]:
    """Yield the seek table in pieces of at most 512 KiB. Quickest with ``array('I')``, which is not copied as a whole.

    Raises:
        ValueError: the two differ in number, or there are more frames than the format can hold.
        OverflowError: a length does not fit 32 bits.
    """
    count = len(stored_lengths)
    if count != len(chunk_lengths):
        raise ValueError(f"{count} stored lengths, but {len(chunk_lengths)} chunk lengths")
    if count > MAX_FRAMES:
        raise ValueError(f"{count} frames: a seek table holds {MAX_FRAMES} at most")
    yield _HEADER.pack(SKIPPABLE_MAGIC, count * _ENTRY_LENGTH + FOOTER_LENGTH)
    for first in range(0, count, _PIECE_FRAMES):
        stored = _u32(stored_lengths[first : first + _PIECE_FRAMES])
        piece = array("I", bytes(len(stored) * _ENTRY_LENGTH))
        piece[0::2] = stored
        piece[1::2] = _u32(chunk_lengths[first : first + _PIECE_FRAMES])
        yield _little_endian(piece).tobytes()
    yield _FOOTER.pack(count, 0, SEEKABLE_MAGIC)


def announced_length(tail: Buffer, file_size: int) -> int:
    """Say how long the seek table at the end of a file is, from its last bytes (at least `FOOTER_LENGTH` of them).

    Raises:
        CorruptError: there is none, or it cannot fit into `file_size` bytes.
    """
    end = memoryview(tail).cast("B")
    if len(end) < FOOTER_LENGTH or file_size < seek_table_length(0):
        raise CorruptError("the stream is too short for a seek table")
    count, descriptor, magic = _FOOTER.unpack(end[-FOOTER_LENGTH:])
    if magic != SEEKABLE_MAGIC:
        raise CorruptError("the stream does not end with a seek table: it was cut, or something was added")
    if descriptor != 0:
        raise CorruptError(f"the seek table's descriptor is {descriptor:#04x}, not 0")
    if count > MAX_FRAMES:
        raise CorruptError(f"the seek table claims {count} frames, more than the format allows")
    length = seek_table_length(count)
    if length > file_size:
        raise CorruptError(f"the seek table claims {count} frames, more than fit into {file_size} bytes")
    return length


def read_seek_table(tail: Buffer, file_size: int) -> SeekTable:
    """Read the seek table of a stream of `file_size` bytes that ends with `tail`.

    `tail` must hold the whole table (`announced_length` says how much that is); what stands before the table in it is ignored.
    Needs memory for one more copy of the table and no more, whatever the table claims.

    Raises:
        CorruptError: missing, cut, or not describing exactly the bytes before it.
    """
    length = announced_length(tail, file_size)
    end = memoryview(tail).cast("B")
    if length > len(end):
        raise CorruptError(f"the seek table is {length} bytes long, but only {len(end)} are there")
    table = end[len(end) - length :]
    magic, frame_length = _HEADER.unpack(table[: _HEADER.size])
    if magic != SKIPPABLE_MAGIC or frame_length != length - _HEADER.size:
        raise CorruptError("the seek table does not begin where its end says")
    entries = array("I")
    entries.frombytes(table[_HEADER.size : length - FOOTER_LENGTH])
    entries = _little_endian(entries)
    stored, decoded = entries[0::2], entries[1::2]
    if sum(stored) != file_size - length:
        raise CorruptError(f"the seek table accounts for {sum(stored)} bytes of frames, but there are {file_size - length}")
    if stored and (min(stored) == 0 or min(decoded) == 0):
        raise CorruptError("the seek table has an empty frame")
    return SeekTable(stored_lengths=stored, chunk_lengths=decoded)


def _u32(lengths: Sequence[int]) -> array[int]:
    return lengths if isinstance(lengths, array) and lengths.typecode == "I" else array("I", lengths)


def _little_endian(values: array[int]) -> array[int]:
    if sys.byteorder == "big":  # pragma: no cover
        values.byteswap()
    return values
