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

SKIPPABLE_MAGIC = 0x184D2A5E
SEEKABLE_MAGIC = 0x8F92EAB1
MAX_FRAMES = 0x8000000

_HEADER = struct.Struct("<II")
_FOOTER = struct.Struct("<IBI")
_ENTRY_LENGTH = 8
_PIECE_FRAMES = 1 << 16  # 512 KiB a piece

assert array("I").itemsize == 4  # true wherever CPython runs on Linux; the tables below are u32


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
    yield _HEADER.pack(SKIPPABLE_MAGIC, count * _ENTRY_LENGTH + _FOOTER.size)
    for first in range(0, count, _PIECE_FRAMES):
        stored = _u32(stored_lengths[first : first + _PIECE_FRAMES])
        piece = array("I", bytes(len(stored) * _ENTRY_LENGTH))
        piece[0::2] = stored
        piece[1::2] = _u32(chunk_lengths[first : first + _PIECE_FRAMES])
        yield _little_endian(piece).tobytes()
    yield _FOOTER.pack(count, 0, SEEKABLE_MAGIC)


def _u32(lengths: Sequence[int]) -> array[int]:
    return lengths if isinstance(lengths, array) and lengths.typecode == "I" else array("I", lengths)


def _little_endian(values: array[int]) -> array[int]:
    if sys.byteorder == "big":  # pragma: no cover
        values.byteswap()
    return values
