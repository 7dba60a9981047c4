"""What the processor and the memory can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import diskhaul_native as native

from ...cancellation import CancellationToken
from ...formats.chunk_table import chunk_digest
from ...formats.codec import codec_for, parse_compress
from .rates import Work, together

_MEMORY_BYTES = 256 << 20  # more than the caches of most processors hold
_PIECE = 4 << 20


def processor_works(
    chunks: Sequence[memoryview], compressions: Sequence[str], threads: int, token: CancellationToken
) -> list[Work]:
    """Memory, zero scan with every kernel there is, digest, and every compression; by one thread and by `threads`.

    Args:
        chunks: what is digested and compressed.
    """
    memory = native.aligned_buffer(_MEMORY_BYTES)
    memory[:] = bytes(_MEMORY_BYTES)  # written once: untouched pages would all be one page of zeros
    counts = (1, threads) if threads > 1 else (1,)
    works: list[Work] = []

    def add(name: str, step: Callable[[int], int], count: int, note: str = "", ratio: float | None = None) -> None:
        works.append(Work(name=name, threads=count, run=together(step, count, token), ratio=ratio, note=note))

    for count in counts:
        add("memory read", _over(memory, native.sum_words), count, f"a sum over {_MEMORY_BYTES >> 20} MiB")
    for kernel in native.KERNELS:

        def scan(piece: memoryview, kernel: str = kernel) -> object:
            return native.is_zero(piece, kernel=kernel)

        for count in counts:
            add(f"zero scan {kernel}", _over(memory, scan), count, f"over {_MEMORY_BYTES >> 20} MiB of zeros")
    for count in counts:
        add("digest", _each(chunks, chunk_digest), count, "BLAKE3")
    for compression in compressions:
        if compression == "none":
            continue  # takes no time, and stores what it is given
        ratio = stored_ratio(chunks, compression)
        for count in counts:
            add(f"compress {compression}", _compressing(chunks, compression, count), count, ratio=ratio)
    return works


def best_kernel() -> str:
    """The kernel that exports use."""
    return native.KERNELS[-1]


def stored_ratio(chunks: Sequence[memoryview], compression: str) -> float:
    """How many bytes `compression` stores for one, as far as a few chunks tell."""
    encode = _encoder(compression)
    some = chunks[:: max(1, len(chunks) // 8)]
    return sum(memoryview(encode(chunk)).nbytes for chunk in some) / max(1, sum(len(chunk) for chunk in some))


def _over(memory: memoryview, function: Callable[[memoryview], object]) -> Callable[[int], int]:
    """A step that applies `function` to the next piece of `memory`; threads keep away from each other's pieces."""
    pieces = [memory[start : start + _PIECE] for start in range(0, len(memory), _PIECE)]
    places: dict[int, int] = {}

    def step(number: int) -> int:
        place = places[number] = (places.get(number, number * len(pieces) // 7) + 1) % len(pieces)
        function(pieces[place])
        return _PIECE

    return step


def _each(chunks: Sequence[memoryview], function: Callable[[memoryview], object]) -> Callable[[int], int]:
    places: dict[int, int] = {}

    def step(number: int) -> int:
        place = places[number] = (places.get(number, number) + 1) % len(chunks)
        function(chunks[place])
        return len(chunks[place])

    return step


def _compressing(chunks: Sequence[memoryview], compression: str, threads: int) -> Callable[[int], int]:
    encoders = [_encoder(compression) for _ in range(threads)]
    places = list(range(threads))

    def step(number: int) -> int:
        places[number] = (places[number] + 1) % len(chunks)
        chunk = chunks[places[number]]
        encoders[number](chunk)
        return len(chunk)

    return step


def _encoder(compression: str) -> Callable[[memoryview], bytes | bytearray | memoryview]:
    parsed = parse_compress(compression)
    return codec_for(parsed.name, parsed.level).encoder().encode
