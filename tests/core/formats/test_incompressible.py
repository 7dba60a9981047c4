"""Chunks that would not shrink are found by a sample, stored instead of compressed, and come back like any other."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable

import pytest

from diskhaul.formats.codec import codec_for, max_stored_length
from diskhaul.formats.incompressible import PIECE, SMALLEST, Sampler, sample_offsets

MIB = 1 << 20
NOISE = random.Random(3).randbytes(4 * MIB)
TEXT = (b"All work and no play makes Jack a dull boy.\n" * 100_000)[: 4 * MIB]

Requires = Callable[..., None]


def test_noise_is_found_incompressible() -> None:
    assert Sampler().finds_incompressible(memoryview(NOISE))


@pytest.mark.parametrize("period_kib", [16, 64, 66, 128, 256])
def test_noise_and_text_that_take_regular_turns_are_compressed(period_kib: int) -> None:
    chunk, period = bytearray(NOISE), period_kib << 10
    for at in range(0, len(chunk) - period, period):
        chunk[at + period // 2 : at + period] = TEXT[: period // 2]
    assert not Sampler().finds_incompressible(memoryview(chunk))


def test_pieces_lie_in_the_chunk_and_do_not_overlap() -> None:
    for length in (SMALLEST, SMALLEST + 4097, 4 * MIB, 64 * MIB):
        offsets = sample_offsets(length)
        ends = [offset + PIECE for offset in offsets]
        assert all(end <= begin for end, begin in zip([0, *ends], [*offsets, length], strict=True))


@pytest.mark.parametrize("fill", [TEXT, bytes(4 * MIB)])
def test_what_compresses_is_not_taken_for_noise(fill: bytes) -> None:
    assert not Sampler().finds_incompressible(memoryview(fill))


def test_short_chunks_are_not_sampled() -> None:
    assert not Sampler().finds_incompressible(memoryview(NOISE[: SMALLEST - 1]))
    assert Sampler().finds_incompressible(memoryview(NOISE[:SMALLEST]))


@pytest.mark.parametrize("codec_name", ["zstd:1", "zstd:19", "gzip:1", "gzip:9"])
def test_a_stored_chunk_comes_back_and_is_as_large_as_its_frame_says(codec_name: str) -> None:
    name, level = codec_name.split(":")
    codec = codec_for(name, int(level))
    stored = codec.encoder().encode(memoryview(NOISE))
    assert len(NOISE) < len(stored) <= max_stored_length(len(NOISE))
    back = bytearray(len(NOISE))
    codec.decoder().decode_into(stored, memoryview(back))
    assert back == NOISE


@pytest.mark.parametrize("name", ["zstd", "gzip"])
def test_a_sample_that_deceives_costs_room_and_nothing_else(name: str) -> None:
    """Noise just where the sample looks, text everywhere else."""
    chunk = bytearray(TEXT)
    for at in sample_offsets(len(chunk)):
        chunk[at : at + PIECE] = NOISE[at : at + PIECE]
    assert Sampler().finds_incompressible(memoryview(chunk))
    codec = codec_for(name)
    stored = codec.encoder().encode(memoryview(chunk))
    assert len(stored) <= max_stored_length(len(chunk))
    back = bytearray(len(chunk))
    codec.decoder().decode_into(stored, memoryview(back))
    assert back == chunk


def test_noise_does_not_take_the_time_of_a_high_level() -> None:
    """What is stored for it at the highest level is what the fastest level makes of it, byte for byte."""
    assert bytes(codec_for("zstd", 22).encoder().encode(memoryview(NOISE))) == bytes(
        codec_for("zstd", -131072).encoder().encode(memoryview(NOISE))
    )


def test_stock_zstd_reads_stored_and_compressed_frames_in_one_file(requires: Requires) -> None:
    requires("zstd")
    encoder = codec_for("zstd", 1).encoder()
    stream = b"".join(bytes(encoder.encode(memoryview(chunk))) for chunk in (TEXT, NOISE, TEXT, NOISE))
    assert (
        subprocess.run(["zstd", "-d", "-c"], input=stream, capture_output=True, check=True).stdout == TEXT + NOISE + TEXT + NOISE
    )
