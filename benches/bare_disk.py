#!/usr/bin/env python3
"""How long the disk alone takes for what an export reads, writes, and reads back at the same time.

    .venv/bin/python benches/bare_disk.py DISK RESULT --read 3150 --write 1100

Nothing is computed: three threads read DISK, one writes RESULT (random bytes, which is deleted afterwards) and one reads it back,
all of them past the page cache in pieces of 4 MiB. No program that does as much to the same device can be faster.
"""

from __future__ import annotations

import argparse
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

MIB = 1 << 20
PIECE = 4 * MIB
READERS = 3


class Work:
    """The threads of one measurement, and how far the written file has come."""

    def __init__(self, disk: int, result: int, read: int, write: int, *, back: bool) -> None:
        self._disk, self._result, self._write, self._back = disk, result, write, back
        self._offsets: Iterator[int] = iter(range(0, read, PIECE))
        self._written = 0
        self._changed = threading.Condition()
        self._lock = threading.Lock()

    def run(self) -> float:
        """Seconds until everything has been read, written and read back."""
        targets: list[Callable[[], None]] = [self._read_disk] * READERS
        targets += [self._write_result] if self._write else []
        targets += [self._read_back] if self._write and self._back else []
        threads = [threading.Thread(target=target) for target in targets]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        os.fsync(self._result)
        return time.perf_counter() - begun

    def _read_disk(self) -> None:
        buffer = mmap.mmap(-1, PIECE)
        while True:
            with self._lock:
                offset = next(self._offsets, None)
            if offset is None:
                return
            os.preadv(self._disk, [buffer], offset)

    def _write_result(self) -> None:
        buffer = mmap.mmap(-1, PIECE)
        buffer[:] = os.urandom(PIECE)
        for offset in range(0, self._write, PIECE):
            os.pwritev(self._result, [buffer], offset)
            with self._changed:
                self._written = offset + PIECE
                self._changed.notify()

    def _read_back(self) -> None:
        buffer = mmap.mmap(-1, PIECE)
        for offset in range(0, self._write, PIECE):
            with self._changed:
                while self._written < offset + PIECE:
                    self._changed.wait()
            os.preadv(self._result, [buffer], offset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("disk", type=Path, metavar="DISK", help="what is read; at least as large as --read")
    parser.add_argument("result", type=Path, metavar="RESULT", help="a file that is not there yet")
    parser.add_argument("--read", type=int, default=3150, metavar="MIB", help="read of DISK (3150)")
    parser.add_argument("--write", type=int, default=1100, metavar="MIB", help="written to RESULT, and read back (1100)")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    disk = os.open(given.disk, os.O_RDONLY | os.O_DIRECT)
    cases = {"read": (0, False), "read, write": (given.write, False), "read, write, read back": (given.write, True)}
    for number in range(given.rounds):
        for label, (write, back) in cases.items():
            result = os.open(given.result, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
            try:
                seconds = Work(disk, result, given.read * MIB, write * MIB, back=back).run()
            finally:
                os.close(result)
                given.result.unlink()
            moved = given.read + write * (1 + back)
            print(f"round {number}: {label:24} {seconds:6.2f} s  {moved / seconds:6.0f} MiB/s")
    os.close(disk)


if __name__ == "__main__":
    main()
