"""How a chunk becomes stored bytes and comes back: raw, one zstd frame, or one gzip member per chunk.

Because every chunk stands alone, chunks are compressed by many threads and read back in any order; because frames (members)
one after another are one valid stream, ``zstd -d`` and ``gzip -d`` give back the raw disk.

A `Codec` may be shared by threads. Encoders and decoders are made one per thread; the heavy work releases the GIL.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from ..api import Buffer
from ..errors import RefusedError
from ..names import printable
from ..options import COMPRESSORS
from .adaptive_level import CEILING, AdaptiveLevel
from .corruption import CorruptError
from .incompressible import Sampler
from .seekable import seek_table_bytes

DEFAULT_LEVELS = {"none": 0, "zstd": 1, "gzip": 6}
ALLOWED = f"none, zstd:LEVEL (-131072 to 22), zstd:adaptive:FLOOR (-131072 to {CEILING}) or gzip:LEVEL (1 to 9)"

_LEVELS = {"none": range(1), "zstd": range(-131072, 23), "gzip": range(1, 10)}
_FLOORS = range(-131072, CEILING + 1)
_COMPRESS = re.compile(rf"({'|'.join(COMPRESSORS)})(:adaptive)?(?::(-?[0-9]{{1,6}}))?")
_ZERO_FRAMES_KEPT = 16  # chunk sizes, and each disk's shorter last chunk, at once; a frame of zeros is a few hundred bytes


@dataclass(frozen=True, slots=True)
class Compression:
    """A compressor and its level, as in ``--compress zstd:1``.

    Attributes:
        name: "none", "zstd" or "gzip".
        level: 0 for "none"; the lowest one where `adaptive`.
        adaptive: the level follows the slower of disk, CPU and target (zstd only).
    """

    name: str
    level: int = 0
    adaptive: bool = False

    def __str__(self) -> str:
        if self.name == "none":
            return self.name
        return f"{self.name}:adaptive:{self.level}" if self.adaptive else f"{self.name}:{self.level}"

    def codec(self) -> Codec:
        """A codec that encodes like this. What is read back needs no more than `codec_for`."""
        return ZstdCodec(self.level, AdaptiveLevel(self.level)) if self.adaptive else codec_for(self.name, self.level)


def parse_compress(text: str) -> Compression:
    """Read ``none``, ``zstd``, ``zstd:LEVEL``, ``zstd:adaptive``, ``zstd:adaptive:FLOOR``, ``gzip`` or ``gzip:LEVEL``.

    Without a level (or floor) zstd means 1 and gzip 6.

    Raises:
        RefusedError: it is anything else.
    """
    match = _COMPRESS.fullmatch(text)
    if match is not None:
        name, adaptive, given = match[1], match[2] is not None, match[3]
        level = int(given) if given is not None else DEFAULT_LEVELS[name]
        if adaptive and name == "zstd" and level in _FLOORS:
            return Compression(name, level, adaptive=True)
        if not adaptive and level in _LEVELS[name] and not (name == "none" and given is not None):
            return Compression(name, level)
    raise RefusedError(f"compression {printable(text[:60])} is not known: use {ALLOWED}")


class Encoder(Protocol):
    """Encodes chunks; belongs to one thread."""

    def encode(self, chunk: memoryview, /) -> Buffer:
        """Return what is stored for `chunk` (not empty). For raw storage that is `chunk` itself, not a copy."""
        ...


class Decoder(Protocol):
    """Decodes chunks; belongs to one thread."""

    def decode_into(self, data: Buffer, chunk: memoryview, /) -> None:
        """Fill `chunk` (at least one byte, writable) with what is stored as `data`.

        Whatever `data` holds, nothing is written beyond `chunk`, and no more memory is taken than some 10 MiB.

        Raises:
            CorruptError: `data` is not exactly one frame of as many bytes; what `chunk` holds then is unspecified.
        """
        ...


class Codec(Protocol):
    """One way to store chunks.

    Attributes:
        name: "none", "zstd" or "gzip".
        suffix: of data files, ".raw", ".raw.zst" or ".raw.gz".
        encoded: False when stored bytes are the disk's own, so that the file can be sparse and is read in place.
        adaptation: to be told what each encoded chunk took, where the encoders' level follows that; else None.
    """

    @property
    def name(self) -> str: ...

    @property
    def suffix(self) -> str: ...

    @property
    def encoded(self) -> bool: ...

    @property
    def adaptation(self) -> AdaptiveLevel | None: ...

    def encoder(self) -> Encoder: ...

    def encoder_memory(self, length: int, /) -> int:
        """Bytes that an encoder touches while it encodes chunks of `length` bytes, without the chunk and what comes out."""
        ...

    def decoder(self) -> Decoder: ...

    def zero_frame(self, length: int, /) -> bytes:
        """What is stored for `length` zero bytes; made once and then shared."""
        ...

    def trailer(self, stored_lengths: Sequence[int], chunk_lengths: Sequence[int], /) -> Iterable[bytes]:
        """What follows the last frame, in pieces. Quickest with ``array('I')``."""
        ...


def codec_for(name: str, level: int | None = None) -> Codec:
    """Return the codec `name`, which encodes at `level` (None: the default one; decoding needs none).

    Raises:
        RefusedError: there is no such codec, or no such level.
    """
    compression = parse_compress(name if level is None or name == "none" else f"{name}:{level}")
    if compression.name != name:  # "zstd:3" is a compression, not the name of a codec
        raise RefusedError(f"codec {printable(name[:60])} is not known: use none, zstd or gzip")
    if name == "zstd":
        return ZstdCodec(compression.level)
    if name == "gzip":
        return GzipCodec(compression.level)
    return RawCodec()


def max_stored_length(length: int) -> int:
    """The most bytes that any codec here makes of `length` bytes.

    Both formats store what does not compress in blocks: zstd adds 3 bytes per 128 KiB block (ZSTD_compressBound: n + n/256),
    zlib 5 bytes per 16 KiB block, besides headers and checksums of less than 64 bytes.
    """
    return length + length // 128 + 1024


# --- raw --------------------------------------------------------------------------------------------------------------


class RawCodec:
    """Stores chunks as they are."""

    name = "none"
    suffix = ".raw"
    encoded = False
    adaptation = None

    def encoder(self) -> Encoder:
        return _RawEncoder()

    def encoder_memory(self, length: int, /) -> int:
        return 0

    def decoder(self) -> Decoder:
        return _RawDecoder()

    def zero_frame(self, length: int, /) -> bytes:
        return bytes(length)

    def trailer(self, stored_lengths: Sequence[int], chunk_lengths: Sequence[int], /) -> Iterable[bytes]:
        return ()


class _RawEncoder:
    __slots__ = ()

    def encode(self, chunk: memoryview, /) -> Buffer:
        return chunk


class _RawDecoder:
    __slots__ = ()

    def decode_into(self, data: Buffer, chunk: memoryview, /) -> None:
        length = _length_of(chunk)
        stored = memoryview(data).cast("B")
        if len(stored) != length:
            raise CorruptError(f"{len(stored)} bytes are stored, not {length}")
        chunk[:] = stored


# --- zstd -------------------------------------------------------------------------------------------------------------


class ZstdCodec:
    """One zstd frame (RFC 8878) per chunk, with content size and content checksum; a seek table at the end."""

    name = "zstd"
    suffix = ".raw.zst"
    encoded = True

    def __init__(self, level: int, adaptation: AdaptiveLevel | None = None) -> None:
        self.level = level
        self.adaptation = adaptation
        self.compressors, self.storing = _ZstdCompressors(), _ZstdCompressors()

    def encoder(self) -> Encoder:
        return _ZstdEncoder(self)

    def encoder_memory(self, length: int, /) -> int:
        level = self.level if self.adaptation is None else max(self.level, CEILING)
        return int(_zstd_parameters(level, length).estimated_compression_context_size())

    def decoder(self) -> Decoder:
        return _ZstdDecoder()

    def zero_frame(self, length: int, /) -> bytes:
        return _zstd_zero_frame(self.level, length)

    def trailer(self, stored_lengths: Sequence[int], chunk_lengths: Sequence[int], /) -> Iterable[bytes]:
        return seek_table_bytes(stored_lengths, chunk_lengths)


_ZSTD_STORE = -131072  # the fastest level there is: incompressible blocks are copied into the frame, with next to no search


class _ZstdEncoder:
    """Chunks that would not shrink are stored, in a frame like all others."""

    __slots__ = ("_codec", "_sampler")

    def __init__(self, codec: ZstdCodec) -> None:
        self._codec, self._sampler = codec, Sampler()

    def encode(self, chunk: memoryview, /) -> Buffer:
        codec = self._codec
        if self._sampler.finds_incompressible(chunk):
            return codec.storing.compress(chunk, _ZSTD_STORE)
        return codec.compressors.compress(chunk, codec.adaptation.level if codec.adaptation is not None else codec.level)


class _ZstdCompressors:
    """Compressors, each lent to a thread for one chunk.

    So there are as many as threads that encode at once, however many threads and disks take turns at it: with chunks of 4 MiB
    one takes 1.3 MiB for level 1, 15 MiB for level 9 and 54 MiB for level 19.
    """

    __slots__ = ("_idle",)

    def __init__(self) -> None:
        self._idle: list[tuple[tuple[int, int], Callable[[memoryview], bytes]]] = []

    def compress(self, chunk: memoryview, level: int) -> bytes:
        """Return `chunk` as one frame."""
        wanted = level, chunk.nbytes
        try:
            made_for, compress = self._idle.pop()  # the one that was used last: its tables may still be in the CPU's caches
        except IndexError:
            made_for, compress = wanted, _zstd_compress(*wanted)
        if made_for != wanted:
            del compress  # before there is another one
            compress = _zstd_compress(*wanted)
        frame = compress(chunk)
        self._idle.append((wanted, compress))
        return frame


_ZSTD_WINDOW_LOG = 23
"""At most: 8 MiB, what RFC 8878, 3.1.1.1.2, asks of every decoder."""


def _zstd_parameters(level: int, length: int) -> Any:
    """The parameters of `level` for `length` bytes, but that matches may lie as far apart as the chunk is long.

    A decoder has all of a chunk in memory anyway. Level 1 has a window of 512 KiB; without that limit chunks of 4 MiB took 0.98
    of the time and 0.991 to 0.995 of the room, and the other levels up to 5 no more of either but for noise.
    """
    from zstandard import ZstdCompressionParameters  # here, so that listing codecs does not load it

    window_log: int = ZstdCompressionParameters.from_level(level, source_size=length).window_log
    if level != _ZSTD_STORE:
        window_log = max(window_log, min((length - 1).bit_length(), _ZSTD_WINDOW_LOG))
    return ZstdCompressionParameters.from_level(
        level, source_size=length, window_log=window_log, write_checksum=True, write_content_size=True, write_dict_id=False
    )


def _zstd_compress(level: int, length: int) -> Callable[[memoryview], bytes]:
    """What makes one frame of `length` bytes: it reads them in place and writes into what is returned.

    The streaming interfaces of zstandard copy both, for a tenth more time.
    """
    import zstandard

    return zstandard.ZstdCompressor(compression_params=_zstd_parameters(level, length)).compress


class _ZstdDecoder:
    """Decodes straight into the chunk: where the whole frame is there and the output has room for all that it declares, libzstd
    makes the output in one pass and in place, with the content checksum compared, and keeps no window of its own."""

    __slots__ = ("_error", "_reader")

    def __init__(self) -> None:
        import zstandard

        self._error = zstandard.ZstdError
        self._reader = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader  # `_check_zstd_header` bounds it

    def decode_into(self, data: Buffer, chunk: memoryview, /) -> None:
        length = _length_of(chunk)
        frame = memoryview(data).cast("B")
        _check_zstd_frame(frame, length)
        try:
            count = self._reader(frame, closefd=False).readinto(chunk)
        except self._error as error:
            raise CorruptError(f"zstd frame: {error}") from error
        if count != length:
            raise CorruptError(f"zstd frame holds {count} bytes, not {length}")


_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_CONTENT_SIZE_LENGTHS = (0, 2, 4, 8)
_ZSTD_BLOCK_HEADER = struct.Struct("<I")  # three bytes of it; a checksum follows the last block, so there is always a fourth
_ZSTD_BLOCK_TYPE, _ZSTD_RLE, _ZSTD_RESERVED = 0b110, 0b010, 0b110
_ZSTD_CHECKSUM_LENGTH = 4
_ZSTD_WINDOW_EVERYONE_HAS = 1 << _ZSTD_WINDOW_LOG  # a frame's own size is fine too


def _check_zstd_frame(frame: memoryview, length: int) -> None:
    """Refuse what is not exactly one frame of `length` bytes.

    Block by block as in RFC 8878, section 3.1.1.2: a decoder stops after the first of several frames without a word. Some 10
    us for a chunk of 4 MiB.
    """
    at = _check_zstd_header(frame, length)
    end = len(frame) - _ZSTD_CHECKSUM_LENGTH
    header = 0
    while not header & 1:  # the last block says so
        if at + 3 > end:
            raise CorruptError("zstd frame is cut short")
        (header,) = _ZSTD_BLOCK_HEADER.unpack_from(frame, at)
        kind = header & _ZSTD_BLOCK_TYPE
        if kind == _ZSTD_RESERVED:
            raise CorruptError("zstd frame has a block of a reserved type")
        at += 3 + (1 if kind == _ZSTD_RLE else (header & 0xFFFFFF) >> 3)
    if at != end:
        raise CorruptError("zstd frame is cut short" if at > end else "something follows the zstd frame")


def _check_zstd_header(frame: memoryview, length: int) -> int:
    """Refuse a frame that would make the decoder take memory, or that our encoder cannot have written; return where the header
    ends.

    Field by field as in RFC 8878, section 3.1.1.1. The decoder checks most of it again, but only after it has allocated.
    """
    if len(frame) < 6:
        raise CorruptError("zstd frame is cut short")
    if frame[:4] != _ZSTD_MAGIC:
        skippable = bytes(frame[1:4]) == b"\x2a\x4d\x18" and frame[0] >> 4 == 5
        raise CorruptError("a skippable frame stands where data belongs" if skippable else "not a zstd frame")
    descriptor = frame[4]
    size_flag = descriptor >> 6
    single_segment = bool(descriptor & 0x20)
    if descriptor & 0x18:
        raise CorruptError("zstd frame header has reserved bits set")
    if not descriptor & 0x04:
        raise CorruptError("zstd frame has no content checksum")
    if descriptor & 0x03:
        raise CorruptError("zstd frame wants a dictionary")
    size_length = 1 if single_segment and size_flag == 0 else _ZSTD_CONTENT_SIZE_LENGTHS[size_flag]
    if size_length == 0:
        raise CorruptError("zstd frame does not say its size")
    at = 5 if single_segment else 6
    if len(frame) < at + size_length:
        raise CorruptError("zstd frame is cut short")
    content_size = int.from_bytes(frame[at : at + size_length], "little") + (256 if size_length == 2 else 0)
    if content_size != length:
        raise CorruptError(f"zstd frame declares {content_size} bytes, not {length}")
    if not single_segment:
        window = (8 + (frame[5] & 7)) << (7 + (frame[5] >> 3))  # 2**(10+exponent), plus mantissa eighths of it
        if window > max(length, _ZSTD_WINDOW_EVERYONE_HAS):
            raise CorruptError(f"zstd frame wants a window of {window} bytes")
    return at + size_length


@lru_cache(maxsize=_ZERO_FRAMES_KEPT)
def _zstd_zero_frame(level: int, length: int) -> bytes:
    return _zstd_compress(level, length)(memoryview(bytes(length)))


# --- gzip -------------------------------------------------------------------------------------------------------------

_GZIP_WINDOW_BITS = 31  # 15, the largest window, and 16 for a gzip instead of a zlib wrapper
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00"  # magic, deflate, no flags (so no names or comments), no time
_GZIP_EMPTY = zlib.compress(b"", 1, _GZIP_WINDOW_BITS)
_GZIP_INPUT = 256 << 10
_GZIP_OUTPUT = 1 << 20


class GzipCodec:
    """One gzip member (RFC 1952) per chunk, without name and time, so that equal chunks give equal bytes."""

    name = "gzip"
    suffix = ".raw.gz"
    encoded = True
    adaptation = None

    def __init__(self, level: int) -> None:
        self.level = level

    def encoder(self) -> Encoder:
        return _GzipEncoder(self.level)

    def encoder_memory(self, length: int, /) -> int:
        return _GZIP_MEMORY

    def decoder(self) -> Decoder:
        return _GzipDecoder()

    def zero_frame(self, length: int, /) -> bytes:
        return _gzip_zero_frame(self.level, length)

    def trailer(self, stored_lengths: Sequence[int], chunk_lengths: Sequence[int], /) -> Iterable[bytes]:
        """One empty member for a disk without chunks (an empty file is no gzip file), else nothing."""
        return () if len(stored_lengths) else (_GZIP_EMPTY,)


_GZIP_STORE = 0
_GZIP_MEMORY = 268 << 10  # zconf.h: (1 << (windowBits + 2)) + (1 << (memLevel + 9)) and some kilobytes


class _GzipEncoder:
    """Chunks that would not shrink are stored, in a member like all others."""

    __slots__ = ("_level", "_sampler")

    def __init__(self, level: int) -> None:
        self._level, self._sampler = level, Sampler()

    def encode(self, chunk: memoryview, /) -> Buffer:
        level = _GZIP_STORE if self._sampler.finds_incompressible(chunk) else self._level
        return zlib.compress(chunk, level, _GZIP_WINDOW_BITS)


class _GzipDecoder:
    __slots__ = ()

    def decode_into(self, data: Buffer, chunk: memoryview, /) -> None:
        length = _length_of(chunk)
        stored = memoryview(data).cast("B")
        if stored[: len(_GZIP_HEADER)] != _GZIP_HEADER:
            raise CorruptError("not a plain gzip member")
        filled = at = 0
        inflate = zlib.decompressobj(_GZIP_WINDOW_BITS)
        try:
            # zlib would gather the output in pieces and join them, which takes twice the memory: piece by piece into place.
            while not inflate.eof and at < len(stored):
                piece: Any = stored[at : at + _GZIP_INPUT]
                at += len(piece)
                while len(piece) and not inflate.eof:
                    # One byte of room more than is wanted: a member that is too long shows, and one that is not can end.
                    output = inflate.decompress(piece, min(_GZIP_OUTPUT, length - filled + 1))
                    if filled + len(output) > length:
                        raise CorruptError(f"gzip member holds more than {length} bytes")
                    chunk[filled : filled + len(output)] = output
                    filled += len(output)
                    piece = inflate.unconsumed_tail
        except zlib.error as error:
            raise CorruptError(f"gzip member: {error}") from error
        if not inflate.eof:
            raise CorruptError("gzip member is cut short")
        if filled != length:
            raise CorruptError(f"gzip member holds {filled} bytes, not {length}")
        if inflate.unused_data or at < len(stored):
            raise CorruptError("something follows the gzip member")


@lru_cache(maxsize=_ZERO_FRAMES_KEPT)
def _gzip_zero_frame(level: int, length: int) -> bytes:
    return zlib.compress(bytes(length), level, _GZIP_WINDOW_BITS)


def _length_of(chunk: memoryview) -> int:
    if not chunk.nbytes:
        raise ValueError("a chunk has at least one byte")
    return chunk.nbytes
