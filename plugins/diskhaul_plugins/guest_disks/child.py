"""The process in which a guest's disk is read, a fresh interpreter with the arguments SIZE SECONDS DISK FAMILY...

DISK is the number of a descriptor: of the disk itself ("disk:3"), or of a socket over which it is asked for ("asked:3"). The
answer goes to standard output, a failure's last line to standard error.
"""

from __future__ import annotations

import codecs
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import sandbox, wire
from .readers import load_readers
from .volume import Volume, WholeDisk
from .walk import Walk

ENCODINGS = ("ascii", "latin-1", "utf-8", "utf-16-le", "utf-16-be")
"""Those that readers use for labels and names."""


def main(arguments: Sequence[str], *, only_clean: bool = False) -> int:
    size, seconds, disk, *families = arguments
    signal.alarm(max(int(seconds), 1))  # ends this process, should nobody else
    loaded = load_readers(families)
    volume = _volume(disk, int(size))
    for encoding in ENCODINGS:
        codecs.lookup(encoding)  # loads a module, which is no longer possible inside
    sandbox.enter(programs=loaded.programs)
    walk = Walk(loaded.readers, loaded.missing, only_clean=only_clean)
    walk.run(volume)
    answer = memoryview(wire.encode(walk.regions(), walk.free_ranges()))
    while answer:
        answer = answer[os.write(1, answer) :]
    return 0


def _volume(disk: str, size: int) -> Volume:
    kind, _, number = disk.partition(":")
    if kind == "disk":
        # What is wanted lies scattered: no reading ahead. The descriptor is this process's own.
        os.posix_fadvise(int(number), 0, 0, os.POSIX_FADV_RANDOM)
        return WholeDisk(int(number), size)
    return wire.AskedDisk(socket.socket(fileno=int(number)), size)


def start(*, only_clean: bool = False) -> NoReturn:
    """Run as a program does. `only_clean`: what is not in the state "clean" is kept, as if nothing of it were free."""
    try:
        code = main(sys.argv[1:], only_clean=only_clean)
    except Exception as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        code = 1
    sys.stderr.flush()
    os._exit(code)  # libraries may not be able to clean up any more
