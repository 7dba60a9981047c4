"""Codecs: what one chunk becomes, what other programs make of it, and what hostile stored bytes get."""

from __future__ import annotations

import gzip
import os
import random
import resource
import subprocess
import sys
import threading
import tracemalloc
import zlib
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from diskhaul.errors import RefusedError
from diskhaul.formats.adaptive_level import CEILING
from diskhaul.formats.chunk_table import ChunkTable, chunk_digest, stored_digest
from diskhaul.formats.codec import Codec, Compression, Decoder, codec_for, max_stored_length, parse_compress
from diskhaul.formats.corruption import CorruptError

CHUNK = 1 << 16
CODECS = ("none", "zstd", "gzip")
ENCODED = ("zstd", "gzip")

Requires = Callable[..., None]


def disk_bytes(size: int) -> bytes:
    """Text, noise and zeros in turn, the same on every run."""
    noise = random.Random(size)
    pieces = []
    while sum(map(len, pieces)) < size:
        pieces += [b"diskhaul " * 5000, noise.randbytes(50_000), bytes(100_000)]
    return b"".join(pieces)[:size]


def encode_disk(codec: Codec, disk: bytes, chunk: int = CHUNK) -> tuple[bytes, ChunkTable]:
    table = ChunkTable(len(disk), chunk, codec.encoded)
    encoder = codec.encoder()
    stored = []
    for index in range(table.count):
        data = memoryview(disk)[index * chunk : index * chunk + table.chunk_length(index)]
        frame = bytes(encoder.encode(data))
        if codec.encoded:
            table.set(index, chunk_digest(data), len(frame), stored_digest(frame))
        else:
            table.set(index, chunk_digest(data))
        stored.append(frame)
    stored += codec.trailer(table.stored_lengths(), table.chunk_lengths())
    return b"".join(stored), table


def decoded(decoder: Decoder, data: bytes | bytearray | memoryview, length: int) -> bytes:
    """What `decoder` makes of `data`, in the middle of a buffer: what lies around it stays as it was."""
    room = bytearray(b"\xa5" * (length + 200))
    try:
        decoder.decode_into(data, memoryview(room)[100 : 100 + length])
    finally:
        assert room[:100] + room[100 + length :] == b"\xa5" * 200, "written beyond the chunk"
    return bytes(room[100 : 100 + length])


def trailer(codec: Codec, table: ChunkTable) -> bytes:
    return b"".join(codec.trailer(table.stored_lengths(), table.chunk_lengths()))


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("none", Compression("none", 0)),
        ("zstd", Compression("zstd", 1)),
        ("zstd:19", Compression("zstd", 19)),
        ("zstd:-5", Compression("zstd", -5)),
        ("zstd:-131072", Compression("zstd", -131072)),
        ("zstd:adaptive", Compression("zstd", 1, adaptive=True)),
        ("zstd:adaptive:4", Compression("zstd", 4, adaptive=True)),
        ("zstd:adaptive:-7", Compression("zstd", -7, adaptive=True)),
        ("gzip", Compression("gzip", 6)),
        ("gzip:9", Compression("gzip", 9)),
    ],
)
def test_a_compression_is_read_and_written_in_one_way(text: str, expected: Compression) -> None:
    assert parse_compress(text) == expected
    assert parse_compress(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "none:0", "zstd:23", "zstd:-131073", "zstd:", "zstd:1.5", "zstd:+1", "zstd:1:2", "zstd:nan", "zstd:1e99", " zstd"),
        *("zstd:adaptive:", "zstd:adaptive:10", "zstd:adaptive:-131073", "zstd:adaptive:1:2", "zstd:1:adaptive", "zstd:Adaptive"),
        *("gzip:adaptive", "gzip:adaptive:1", "none:adaptive", "adaptive", "zstdadaptive", ":adaptive"),
        *("gzip:0", "gzip:10", "gzip:-1", "lz4", "ZSTD", ":1", "zstd:1\n", "zstd:\u0661", "zstd:" + "9" * 5000),
    ],
)
def test_any_other_compression_is_refused_in_one_line_that_names_what_is_allowed(text: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_compress(text)
    (problem,) = caught.value.problems
    assert "none, zstd:LEVEL (-131072 to 22), zstd:adaptive:FLOOR (-131072 to 9) or gzip:LEVEL (1 to 9)" in problem
    assert "\n" not in problem
    assert len(problem) < 300


@pytest.mark.parametrize(
    ("name", "level"), [("lz4", 1), ("", None), ("zstd:3", None), ("zstd:adaptive", None), ("gzip", 0), ("zstd", 23)]
)
def test_an_unknown_codec_or_level_is_refused(name: str, level: int | None) -> None:
    with pytest.raises(RefusedError):
        codec_for(name, level)


def test_zstandard_is_loaded_only_by_encoders_and_decoders() -> None:
    script = (
        "import sys; from diskhaul.formats.codec import codec_for, parse_compress;"
        "parse_compress('zstd:3'); parse_compress('zstd:adaptive').codec(); codec_for('zstd');"
        "assert 'zstandard' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODECS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_chunk_comes_back(name: str, data: st.DataObject) -> None:
    level = data.draw(st.sampled_from({"none": [0], "zstd": [-50, -1, 1, 3, 12, 19], "gzip": [1, 6, 9]}[name]))
    piece = data.draw(st.binary(min_size=1, max_size=300))
    chunk = piece * data.draw(st.integers(1, 2000))
    codec = codec_for(name, level)
    stored = codec.encoder().encode(memoryview(chunk))
    assert len(stored) <= max_stored_length(len(chunk))
    assert decoded(codec.decoder(), stored, len(chunk)) == chunk


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize("length", [1, 255, 256, 257, 65535, 65536, 65791, 65792, 131073, (4 << 20) - 1, 4 << 20])
def test_noise_of_every_size_comes_back_and_stays_within_the_bound(name: str, length: int) -> None:
    codec = codec_for(name)
    chunk = random.Random(length).randbytes(length)
    stored = codec.encoder().encode(memoryview(chunk))
    assert len(stored) <= max_stored_length(length)
    assert decoded(codec.decoder(), stored, length) == chunk


@pytest.mark.parametrize("name", CODECS)
def test_encoding_is_repeatable_and_encoders_can_be_used_again(name: str) -> None:
    chunks = [disk_bytes(70_000), bytes(70_000), b"x"]
    encoder = codec_for(name).encoder()
    first = [bytes(encoder.encode(memoryview(chunk))) for chunk in chunks]
    assert first == [bytes(encoder.encode(memoryview(chunk))) for chunk in chunks]
    decoder = codec_for(name).decoder()
    assert [decoded(decoder, frame, len(chunk)) for frame, chunk in zip(first, chunks, strict=True)] == chunks


@pytest.mark.parametrize("level", [-3, 1, 2, 3])
def test_what_repeats_anywhere_in_a_chunk_is_stored_once(level: int) -> None:
    text = random.Random(1).randbytes(300_000).hex().encode()  # longer than the window of `zstd -1`
    encoder = codec_for("zstd", level).encoder()

    once, thrice = (len(encoder.encode(memoryview(text * count))) for count in (1, 3))

    assert thrice < 1.1 * once


def test_raw_chunks_are_not_copied() -> None:
    chunk = memoryview(bytearray(100))
    assert codec_for("none").encoder().encode(chunk) is chunk


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("length", [1, 4096, 4 << 20])
def test_a_zero_frame_is_what_encoding_zeros_gives(name: str, length: int) -> None:
    codec = codec_for(name, None if name == "none" else 3)
    frame = codec.zero_frame(length)
    assert frame == codec.encoder().encode(memoryview(bytes(length)))
    if codec.encoded:
        assert codec.zero_frame(length) is frame


@pytest.mark.parametrize("name", ENCODED)
def test_one_codec_serves_many_threads(name: str) -> None:
    codec = codec_for(name)
    wrong: list[int] = []

    def work(seed: int) -> None:
        encoder, decoder = codec.encoder(), codec.decoder()
        for round_ in range(5):
            chunk = random.Random(seed * 100 + round_).randbytes(1000) * 200
            if decoded(decoder, encoder.encode(memoryview(chunk)), len(chunk)) != chunk or not codec.zero_frame(1 + round_):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", ENCODED)
def test_decoding_takes_no_memory_for_another_copy_of_the_chunk(name: str) -> None:
    chunk = disk_bytes(8 << 20)
    codec = codec_for(name)
    stored = bytes(codec.encoder().encode(memoryview(chunk)))
    decoder, room = codec.decoder(), bytearray(len(chunk))
    tracemalloc.start()
    try:
        decoder.decode_into(stored, memoryview(room))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert room == chunk
    assert peak < 4 << 20


# --- the adaptive level -----------------------------------------------------------------------------------------------


def reach(codec: Codec, level: int) -> None:
    """Make the codec adapt until it encodes at `level`."""
    assert codec.adaptation is not None
    for _ in range(10_000):
        if codec.adaptation.level == level:
            return
        higher = codec.adaptation.level < level
        codec.adaptation.observe(0.0 if higher else 1.0, 1.0 if higher else 0.0)
    raise AssertionError(f"level {level} was never reached")


def frames_of(codec: Codec, chunk: bytes, levels: Sequence[int]) -> list[bytes]:
    encoder = codec.encoder()
    frames = []
    for level in levels:
        reach(codec, level)
        frames.append(bytes(encoder.encode(memoryview(chunk))))
    return frames


def test_only_an_adaptive_codec_wants_to_be_told_how_long_things_took() -> None:
    assert [parse_compress(text).codec().adaptation for text in ("none", "zstd:1", "gzip:1")] == [None] * 3
    adapting = parse_compress("zstd:adaptive:3").codec()
    assert adapting.adaptation is not None
    assert adapting.adaptation.level == 3
    assert parse_compress("zstd:adaptive:3").codec().adaptation is not adapting.adaptation


def test_an_adaptive_encoder_follows_the_level_up_and_down() -> None:
    chunk = Path(__file__).read_bytes() * 8
    levels = [1, 3, 8, 9, 8, 2, 1]
    frames = frames_of(parse_compress("zstd:adaptive").codec(), chunk, levels)
    assert frames == [bytes(codec_for("zstd", level).encoder().encode(memoryview(chunk))) for level in levels]
    assert len({*frames}) == 5


def test_an_adaptive_codec_has_one_zero_frame_whatever_its_level() -> None:
    codec = parse_compress("zstd:adaptive:2").codec()
    frame = codec.zero_frame(4 << 20)
    reach(codec, CEILING)
    assert codec.zero_frame(4 << 20) == frame
    assert codec_for("zstd", 2).zero_frame(4 << 20) == frame  # what is recorded is enough to know it


def test_a_stream_of_many_levels_is_read_like_any_other(tmp_path: Path, requires: Requires) -> None:
    codec = parse_compress("zstd:adaptive:-5").codec()
    chunk = Path(__file__).read_bytes()
    levels = [-5, -1, 1, 2, 5, 9, 3]
    frames = frames_of(codec, chunk, levels)
    table = ChunkTable(len(levels) * len(chunk), len(chunk), encoded=True)
    for index, frame in enumerate(frames):
        table.set(index, chunk_digest(chunk), len(frame), stored_digest(frame))
    stream = b"".join(frames) + trailer(codec, table)
    assert first_damage(codec_for("zstd"), stream, table) is None
    requires("zstd")
    path = tmp_path / "disk-0.raw.zst"
    path.write_bytes(stream)
    assert subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout == chunk * len(levels)


def test_encoders_of_four_threads_at_the_highest_level_stay_within_the_memory_of_a_run() -> None:
    """In a process of its own. All at once, each with a chunk of 4 MiB that fills its tables."""
    script = """
import random, threading
from diskhaul.formats.codec import parse_compress
codec = parse_compress("zstd:adaptive").codec()
chunks = [memoryview(random.Random(seed).randbytes(2 << 20).hex().encode()) for seed in range(4)]
encoders = [codec.encoder() for _ in chunks]
frames = [None] * 4
def work(index):
    frames[index] = encoders[index].encode(chunks[index])
def encode_all():
    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
encode_all()
for _ in range(1000): codec.adaptation.observe(0.0, 1.0)
encode_all()
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(codec.adaptation.level, peak)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)
    level, peak_kib = map(int, ended.stdout.split())
    assert level == CEILING
    assert peak_kib < 192 << 10


def test_encoders_that_take_turns_share_what_encoding_takes() -> None:
    """Twenty threads on twenty disks, of which one encodes at a time: level 19 takes 54 MiB."""
    script = """
from pathlib import Path
from diskhaul.formats.codec import codec_for
chunk = memoryview((Path(__import__("os").__file__).read_bytes() * 120)[: 4 << 20])
codec = codec_for("zstd", 19)
encoders = [codec.encoder() for _ in range(20)]
assert len({bytes(encoder.encode(chunk)) for encoder in encoders}) == 1
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)
    assert int(ended.stdout) < 160 << 10


# --- other programs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [-131072, -7, 1, 19])
@pytest.mark.parametrize("size", [0, 1, CHUNK, 10 * CHUNK + 4711])
def test_stock_zstd_restores_checks_and_lists_a_stream(tmp_path: Path, requires: Requires, level: int, size: int) -> None:
    requires("zstd")
    disk = disk_bytes(size)
    stream, table = encode_disk(codec_for("zstd", level), disk)
    path = tmp_path / "disk-0.raw.zst"
    path.write_bytes(stream)
    assert subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout == disk
    subprocess.run(["zstd", "-tq", path], check=True)
    listing = subprocess.run(["zstd", "-lv", path], check=True, capture_output=True, text=True).stdout
    if size:
        assert f"({size} B)" in listing
        assert "Check: XXH64" in listing
    if table.count > 1:
        assert f"# Zstandard Frames: {table.count}\n# Skippable Frames: 1\n" in listing


@pytest.mark.parametrize("level", [1, 6, 9])
@pytest.mark.parametrize("size", [0, 1, 10 * CHUNK + 4711])
def test_stock_gzip_restores_and_checks_a_stream(tmp_path: Path, requires: Requires, level: int, size: int) -> None:
    requires("gzip")
    disk = disk_bytes(size)
    codec = codec_for("gzip", level)
    stream, table = encode_disk(codec, disk)
    assert len(stream) == table.stored_offsets()[-1] + len(trailer(codec, table))
    path = tmp_path / "disk-0.raw.gz"
    path.write_bytes(stream)
    assert subprocess.run(["gzip", "-dc", path], check=True, capture_output=True).stdout == disk
    subprocess.run(["gzip", "-t", path], check=True)
    assert gzip.decompress(stream) == disk


def test_stock_zstd_passes_over_shared_zero_frames(tmp_path: Path, requires: Requires) -> None:
    requires("zstd")
    codec = codec_for("zstd")
    count, chunk = 64, 4 << 20
    frame = codec.zero_frame(chunk)
    path = tmp_path / "zeros.zst"
    seek_table = b"".join(codec.trailer(array("I", [len(frame)]) * count, array("I", [chunk]) * count))
    path.write_bytes(frame * count + seek_table)
    process = subprocess.Popen(["zstd", "-dc", path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    length = 0
    while piece := process.stdout.read(1 << 20):
        assert not piece.strip(b"\0")
        length += len(piece)
    process.stdout.close()
    assert process.wait() == 0
    assert length == count * chunk


# --- hostile frames ---------------------------------------------------------------------------------------------------


def zstd_frame(chunk: bytes, **how: object) -> bytes:
    arguments: dict[str, object] = {"level": 1, "write_checksum": True} | how
    return zstandard.ZstdCompressor(**arguments).compress(chunk)  # type: ignore[arg-type]


def huge_window(exponent: int = 21, mantissa: int = 0, length: int = CHUNK) -> bytes:
    """A frame that is right in every way but for a window of 2**(10 + exponent) bytes: one RLE block of zeros."""
    header = b"\x28\xb5\x2f\xfd" + bytes([0x80 | 0x04, exponent << 3 | mantissa]) + length.to_bytes(4, "little")
    block = (1 | 1 << 1 | length << 3).to_bytes(3, "little") + b"\0"
    xxh64 = zstd_frame(bytes(length))[-4:]
    return header + block + xxh64


CHUNK_BYTES = disk_bytes(CHUNK)
GOOD = zstd_frame(CHUNK_BYTES)
SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"


def last_block(frame: bytes) -> int:
    """Where the header of a frame's last block lies."""
    at = (5 if frame[4] & 0x20 else 6) + (1 if frame[4] & 0x20 else 0, 2, 4, 8)[frame[4] >> 6]
    while True:
        header = int.from_bytes(frame[at : at + 3], "little")
        if header & 1:
            return at
        at += 4 if header & 6 == 2 else 3 + (header >> 3)


def with_last_block(change: Callable[[int], int]) -> bytes:
    at = last_block(GOOD)
    return GOOD[:at] + change(int.from_bytes(GOOD[at : at + 3], "little")).to_bytes(3, "little") + GOOD[at + 3 :]


def with_descriptor(change: Callable[[int], int], frame: bytes = GOOD) -> bytes:
    return frame[:4] + bytes([change(frame[4])]) + frame[5:]


HOSTILE_ZSTD = {
    "empty": b"",
    "no magic": b"\0" * 40,
    "only magic": GOOD[:4],
    "cut in its header": GOOD[:7],
    "cut in the middle": GOOD[: len(GOOD) // 2],
    "cut before its checksum": GOOD[:-4],
    "cut by one byte": GOOD[:-1],
    "one byte more": GOOD + b"\0",
    "twice": GOOD * 2,
    "a skippable frame behind": GOOD + SKIPPABLE,
    "a skippable frame before": SKIPPABLE + GOOD,
    "only a skippable frame": SKIPPABLE,
    "an empty frame behind": GOOD + zstd_frame(b""),
    "two halves": zstd_frame(CHUNK_BYTES[: CHUNK // 2]) + zstd_frame(CHUNK_BYTES[CHUNK // 2 :]),
    "a byte too short": zstd_frame(CHUNK_BYTES[:-1]),
    "a byte too long": zstd_frame(CHUNK_BYTES + b"x"),
    "no content size": zstd_frame(CHUNK_BYTES, write_content_size=False),
    "no checksum": zstd_frame(CHUNK_BYTES, write_checksum=False),
    "the checksum flag taken away": with_descriptor(lambda descriptor: descriptor & ~0x04),
    "a reserved bit": with_descriptor(lambda descriptor: descriptor | 0x08),
    "the unused bit": with_descriptor(lambda descriptor: descriptor | 0x10),
    "a dictionary": with_descriptor(lambda descriptor: descriptor | 0x01),
    "a window of 2 GiB": huge_window(21),
    "a window of 3.75 TiB": huge_window(31, 7),
    "a window of 2 GiB, cut": huge_window(21)[:-4],
    "a window of 9 MiB": huge_window(13, 1),
    "256 MiB of zeros": zstd_frame(bytes(256 << 20)),
    "a block of the reserved type": with_last_block(lambda header: header | 6),
    "no last block": with_last_block(lambda header: header & ~1),
    "a block that ends too early": with_last_block(lambda header: header - 8),
    "a block that ends too late": with_last_block(lambda header: header + 8),
    "a block behind the last": GOOD[:-4] + b"\1\0\0" + GOOD[-4:],
    "a wrong checksum": GOOD[:-4] + bytes(4),
    "gzip": gzip.compress(CHUNK_BYTES),
    "zstd of before 1.0": b"\x27\xb5\x2f\xfd" + GOOD[4:],
    "without magic": GOOD[4:],
}


@pytest.mark.parametrize("what", HOSTILE_ZSTD)
def test_a_hostile_zstd_frame_is_refused_and_the_decoder_lives_on(what: str) -> None:
    decoder = codec_for("zstd").decoder()
    with pytest.raises(CorruptError) as caught:
        decoded(decoder, HOSTILE_ZSTD[what], CHUNK)
    assert "\n" not in caught.value.problem
    assert decoded(decoder, GOOD, CHUNK) == CHUNK_BYTES


def test_the_frame_with_the_large_window_is_fine_otherwise() -> None:
    """So that the refusals above are for the window."""
    assert decoded(codec_for("zstd").decoder(), huge_window(13, 0), CHUNK) == bytes(CHUNK)


def test_a_frame_that_lies_about_its_size_makes_no_more_than_was_asked_for() -> None:
    frame = zstd_frame(bytes(256 << 20))
    assert len(frame) < 12_000
    descriptor = frame[4]
    assert descriptor >> 6 == 2  # four bytes of content size
    at = 5 if descriptor & 0x20 else 6
    lying = bytearray(frame)
    lying[at : at + 4] = CHUNK.to_bytes(4, "little")
    if not descriptor & 0x20:
        lying[5] = 6 << 3  # and a window that is fine
    with pytest.raises(CorruptError, match="zstd frame"):
        decoded(codec_for("zstd").decoder(), lying, CHUNK)


GOOD_GZIP = bytes(codec_for("gzip").encoder().encode(memoryview(CHUNK_BYTES)))


def gzip_member(chunk: bytes) -> bytes:
    return zlib.compress(chunk, 6, 31)


HOSTILE_GZIP = {
    "empty": b"",
    "cut in its header": GOOD_GZIP[:9],
    "cut in the middle": GOOD_GZIP[: len(GOOD_GZIP) // 2],
    "cut before its trailer": GOOD_GZIP[:-8],
    "cut by one byte": GOOD_GZIP[:-1],
    "one byte more": GOOD_GZIP + b"\0",
    "much more": GOOD_GZIP + bytes(1 << 20),
    "twice": GOOD_GZIP * 2,
    "an empty member behind": GOOD_GZIP + gzip_member(b""),
    "two halves": gzip_member(CHUNK_BYTES[: CHUNK // 2]) + gzip_member(CHUNK_BYTES[CHUNK // 2 :]),
    "a byte too short": gzip_member(CHUNK_BYTES[:-1]),
    "a byte too long": gzip_member(CHUNK_BYTES + b"x"),
    "256 MiB of zeros": gzip_member(bytes(256 << 20)),
    "a name": gzip.compress(CHUNK_BYTES)[:3] + b"\x08" + GOOD_GZIP[4:10] + b"name\0" + GOOD_GZIP[10:],
    "a time": GOOD_GZIP[:4] + b"\1\0\0\0" + GOOD_GZIP[8:],
    "zlib": zlib.compress(CHUNK_BYTES),
    "a wrong checksum": GOOD_GZIP[:-8] + b"\0\0\0\0" + GOOD_GZIP[-4:],
    "a wrong size": GOOD_GZIP[:-4] + b"\0\0\0\0",
    "zstd": GOOD,
}


@pytest.mark.parametrize("what", HOSTILE_GZIP)
def test_a_hostile_gzip_member_is_refused_and_the_decoder_lives_on(what: str) -> None:
    decoder = codec_for("gzip").decoder()
    with pytest.raises(CorruptError) as caught:
        decoded(decoder, HOSTILE_GZIP[what], CHUNK)
    assert "\n" not in caught.value.problem
    assert decoded(decoder, GOOD_GZIP, CHUNK) == CHUNK_BYTES


def test_what_follows_a_gzip_member_is_found_also_behind_a_whole_read() -> None:
    """The decoder is fed 256 KiB at a time: here the member ends exactly there."""
    noise = random.Random(3).randbytes(256 << 10)
    length = next(n for n in range(len(noise), 0, -1) if len(zlib.compress(noise[:n], 0, 31)) == 256 << 10)
    member = zlib.compress(noise[:length], 0, 31)
    decoder = codec_for("gzip").decoder()
    assert decoded(decoder, member, length) == noise[:length]
    with pytest.raises(CorruptError, match="follows"):
        decoded(decoder, member + b"\0", length)


@pytest.mark.parametrize("stored", [b"", bytes(CHUNK - 1), bytes(CHUNK + 1)])
def test_raw_bytes_of_the_wrong_length_are_refused(stored: bytes) -> None:
    with pytest.raises(CorruptError):
        decoded(codec_for("none").decoder(), stored, CHUNK)


@pytest.mark.parametrize("name", CODECS)
def test_a_chunk_of_no_bytes_cannot_be_asked_for(name: str) -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        decoded(codec_for(name).decoder(), b"", 0)


def test_a_gzip_bomb_takes_no_more_memory_than_the_chunk() -> None:
    bomb = HOSTILE_GZIP["256 MiB of zeros"]
    decoder = codec_for("gzip").decoder()
    tracemalloc.start()
    try:
        with pytest.raises(CorruptError):
            decoded(decoder, bomb, CHUNK)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < CHUNK + (4 << 20)


@pytest.mark.parametrize("what", ["a window of 2 GiB", "a window of 2 GiB, cut", "a window of 3.75 TiB", "256 MiB of zeros"])
def test_a_hostile_frame_is_refused_where_memory_is_short(tmp_path: Path, what: str) -> None:
    """In a process of its own, whose address space has 64 MiB left."""
    path = tmp_path / "frame"
    path.write_bytes(HOSTILE_ZSTD[what])
    script = f"""
import resource, sys
from diskhaul.formats.codec import codec_for
from diskhaul.formats.corruption import CorruptError
decoder = codec_for("zstd").decoder()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
try:
    decoder.decode_into(open(sys.argv[1], "rb").read(), memoryview(bytearray({CHUNK})))
except CorruptError:
    sys.exit(7)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert resource.getpagesize()
    assert subprocess.run([sys.executable, "-c", script, path], env=environment, check=False).returncode == 7


@given(noise=st.binary(max_size=300), cut=st.integers(0, len(GOOD)))
@settings(max_examples=300, deadline=None)
@pytest.mark.parametrize("name", ENCODED)
def test_noise_behind_a_good_start_never_gives_anything_but_a_chunk_or_a_refusal(name: str, noise: bytes, cut: int) -> None:
    good = GOOD if name == "zstd" else GOOD_GZIP
    try:
        chunk = decoded(codec_for(name).decoder(), good[:cut] + noise, CHUNK)
    except CorruptError:
        return
    assert len(chunk) == CHUNK


# --- whole streams ----------------------------------------------------------------------------------------------------


def first_damage(codec: Codec, stream: bytes, table: ChunkTable) -> int | None:
    """Read a stream the way verify and import do; return the disk offset of the first damage, -1 for the file as a whole."""
    decoder = codec.decoder()
    offsets = table.stored_offsets()
    if len(stream) != offsets[-1] + len(trailer(codec, table)):
        return -1
    for index in range(table.count):
        frame = stream[offsets[index] : offsets[index + 1]]
        if codec.encoded and stored_digest(frame) != table.stored_digest(index):
            return table.chunk_offset(index)
        try:
            chunk = decoded(decoder, frame, table.chunk_length(index))
        except CorruptError:
            return table.chunk_offset(index)
        if chunk_digest(chunk) != table.digest(index):
            return table.chunk_offset(index)
    return None if stream[offsets[-1] :] == trailer(codec, table) else -1


@pytest.mark.parametrize("name", CODECS)
def test_every_flipped_byte_of_a_stream_is_found_at_its_disk_offset(name: str) -> None:
    codec = codec_for(name)
    disk = (b"some text, again and again. " * 200)[:5000]
    stream, table = encode_disk(codec, disk, chunk=2048)
    assert first_damage(codec, stream, table) is None
    offsets = table.stored_offsets()
    damaged = bytearray(stream)
    for at in range(len(stream)):
        damaged[at] ^= 1 << at % 8
        index = sum(at >= end for end in offsets[1:])
        assert first_damage(codec, bytes(damaged), table) == (index * 2048 if index < table.count else -1), at
        damaged[at] = stream[at]


@pytest.mark.parametrize("name", ENCODED)
def test_a_frame_alone_shows_almost_every_flip_even_without_its_stored_digest(name: str) -> None:
    """zstd's content checksum and gzip's CRC: nobody needs diskhaul to notice damage. (Bits that decoders ignore excepted.)"""
    codec = codec_for(name)
    chunk = b"some text, again and again. " * 50
    frame = bytearray(codec.encoder().encode(memoryview(chunk)))
    decoder = codec.decoder()
    for at in range(len(frame)):
        for bit in range(8):
            frame[at] ^= 1 << bit
            try:
                assert decoded(decoder, bytes(frame), len(chunk)) == chunk
            except CorruptError:
                pass
            frame[at] ^= 1 << bit


@pytest.mark.parametrize("name", CODECS)
def test_a_stream_that_was_cut_lengthened_or_rearranged_is_found(name: str) -> None:
    codec = codec_for(name)
    disk = random.Random(5).randbytes(4 * CHUNK)
    stream, table = encode_disk(codec, disk)
    offsets = table.stored_offsets()
    frames = [stream[offsets[index] : offsets[index + 1]] for index in range(table.count)]
    end = stream[offsets[-1] :]
    assert len(set(map(len, frames))) == 1  # so that only digests can tell
    assert first_damage(codec, b"".join([frames[0], frames[2], frames[1], frames[3], end]), table) == CHUNK
    assert first_damage(codec, b"".join([frames[0], frames[0], frames[2], frames[3], end]), table) == CHUNK
    assert first_damage(codec, b"".join([*frames, frames[3], end]), table) == -1
    assert first_damage(codec, b"".join([*frames[:3], end]), table) == -1
    assert first_damage(codec, b"".join(frames[:3]), table) == -1
    assert first_damage(codec, stream + b"\0", table) == -1
    assert first_damage(codec, stream[:-1], table) == -1
    assert first_damage(codec, stream + SKIPPABLE, table) == -1
    if codec.encoded:
        assert first_damage(codec, frames[0] + SKIPPABLE + b"".join(frames[1:]) + end, table) == -1


def test_stock_zstd_calls_a_stream_cut_at_a_frame_boundary_fine(tmp_path: Path, requires: Requires) -> None:
    """Why lengths are compared with the chunk table at all."""
    requires("zstd")
    codec = codec_for("zstd")
    stream, table = encode_disk(codec, disk_bytes(4 * CHUNK))
    cut = stream[: table.stored_offsets()[2]]
    path = tmp_path / "cut.zst"
    path.write_bytes(cut)
    subprocess.run(["zstd", "-tq", path], check=True)
    assert first_damage(codec, cut, table) == -1


@pytest.mark.parametrize("level", [1, 9, 19])
def test_an_encoder_takes_as_much_memory_as_it_says(level: int) -> None:
    """Measured in a process of its own, beside one that only compresses at the cheapest level."""
    program = (
        "import resource, sys\n"
        "from diskhaul.formats.codec import codec_for\n"
        "chunk = memoryview(b''.join(b'%d diskhaul ' % n for n in range(300000))[: 4 << 20])\n"
        "codec_for('zstd', int(sys.argv[1])).encoder().encode(chunk)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)\n"
    )

    def peak(at: int) -> int:
        return int(subprocess.run([sys.executable, "-c", program, str(at)], capture_output=True, check=True).stdout)

    codec, cheapest = codec_for("zstd", level), codec_for("zstd", -7)
    said = codec.encoder_memory(4 << 20) - cheapest.encoder_memory(4 << 20)
    assert peak(level) - peak(-7) <= said + (4 << 20)


def test_an_adaptive_encoder_says_what_its_highest_level_takes() -> None:
    adaptive = parse_compress("zstd:adaptive:1").codec()
    assert adaptive.encoder_memory(4 << 20) == codec_for("zstd", CEILING).encoder_memory(4 << 20)
