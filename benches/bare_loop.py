"""What an export cannot do without, and nothing else: the least time in which Python threads could export a disk here.

    benches/bare_loop.py DISK OUTPUT            for example .../disk.raw .../bare.out

Threads read the chunks of a disk that hold data, digest them with BLAKE3 and compress them with zstd, digest the result, write it
past the page cache, read that back, and digest it again. There is no order, no error handling, no fsync, no export. One step is
added after the other, in turn, for several rounds; what each adds is what it costs on this machine. How far diskhaul is from the
last line is its overhead; how far the last line is from another program is all that could be won.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import zstandard
from blake3 import blake3

import diskhaul_native as native

CHUNK = 4 << 20
STEPS = (
    "read, digest, compress",
    "content checksum",
    "digest of the result",
    "write past the page cache",
    "read back and digest",
)


def data_chunks(descriptor: int, size: int) -> Iterator[int]:
    """Offsets of the chunks of a file that are not holes."""
    offset = 0
    while offset < size:
        try:
            begin = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        yield from range(max(offset, begin // CHUNK * CHUNK), end, CHUNK)
        offset = -(-end // CHUNK) * CHUNK


class Output:
    """Gathers what threads bring, and writes whole stages of it."""

    def __init__(self, path: Path) -> None:
        self._direct = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_DIRECT, 0o600)
        self._stage, self._filled, self._offset = native.aligned_buffer(CHUNK), 0, 0
        self._lock = threading.Lock()

    def put(self, frame: bytes) -> list[int]:
        """Add `frame`; offsets of the stages that were written with it."""
        written = []
        with self._lock:
            view = memoryview(frame)
            while view:
                part = view[: CHUNK - self._filled]
                self._stage[self._filled : self._filled + len(part)] = part
                self._filled += len(part)
                view = view[len(part) :]
                if self._filled == CHUNK:
                    native.write_from(self._direct, self._stage, self._offset, name="output")
                    written.append(self._offset)
                    self._offset, self._filled = self._offset + CHUNK, 0
        return written

    def read_back(self, offset: int, buffer: memoryview) -> memoryview:
        """The stage at `offset`, from the medium; the rest of the last stage is never written."""
        return buffer[: os.preadv(self._direct, [buffer], offset)]

    def close(self) -> None:
        os.close(self._direct)


def run(disk: Path, output: Path, steps: int, threads: int, level: int) -> tuple[float, float]:
    """Wall and CPU seconds of one run with the first `steps` of `STEPS`."""
    descriptor = os.open(disk, os.O_RDONLY)
    chunks, taking, target = data_chunks(descriptor, os.fstat(descriptor).st_size), threading.Lock(), Output(output)

    def work() -> None:
        compress = zstandard.ZstdCompressor(level=level, write_checksum=steps > 1).compress
        buffer = native.aligned_buffer(CHUNK)
        while True:
            with taking:
                offset = next(chunks, None)
            if offset is None:
                return
            chunk = buffer[: os.preadv(descriptor, [buffer], offset)]
            blake3(chunk).digest()
            frame = compress(chunk)
            if steps > 2:
                blake3(frame).digest()
            for written in target.put(frame) if steps > 3 else ():
                if steps > 4:
                    blake3(target.read_back(written, buffer)).digest()

    begun, used = time.perf_counter(), time.process_time()
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - begun, time.process_time() - used
    target.close()
    os.close(descriptor)
    output.unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("disk", type=Path, help="raw image; it is only read, and best is in the page cache already")
    parser.add_argument("output", type=Path, help="a file to write, which is removed again")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)) + 1, help="(%(default)s)")
    parser.add_argument("--level", type=int, default=1, help="of zstd (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    arguments = parser.parse_args()
    if arguments.output.exists():
        parser.error(f"{arguments.output} exists: name a file that does not")
    found: list[list[tuple[float, float]]] = [[] for _ in STEPS]
    for _ in range(arguments.rounds):
        for number, results in enumerate(found):
            results.append(run(arguments.disk, arguments.output, number + 1, arguments.threads, arguments.level))
    print(f"{'medians of ' + str(arguments.rounds) + ' rounds':32}   wall s    CPU s")
    for number, (step, results) in enumerate(zip(STEPS, found, strict=True)):
        wall, cpu = (statistics.median(values) for values in zip(*results, strict=True))
        print(f"{'+ ' * (number > 0) + step:32} {wall:8.2f} {cpu:8.2f}")


if __name__ == "__main__":
    main()
