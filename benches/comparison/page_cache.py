"""What of a file is in the page cache, and how to have all of it there, or nothing."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Literal

from .disk import data_ranges
from .errors import ContestantError

State = Literal["hot", "cold"]
_WINDOW = 1 << 30  # bytes that are looked at in one go


def prepare(paths: list[Path], state: State) -> None:
    """Write everything back, and have the files' data in the page cache ("hot") or not ("cold").

    Holes are read into the cache as well where the file is not larger than the memory: programs that read holes find them there,
    and those that skip them do not care.

    Raises:
        ContestantError: pages stay in the cache (tmpfs keeps its files there), or do not (too little memory).
    """
    os.sync()
    for path in paths:
        if state == "cold":
            _drop(path)
            if resident_share(path) > 0.01:
                raise ContestantError(f"{path} stays in the page cache, so nothing can be measured cold; is it on tmpfs?")
        else:
            _read(path)
            if resident_share(path) < 0.99:
                raise ContestantError(f"{path} does not stay in the page cache: too little memory for hot runs")


def resident_share(path: Path) -> float:
    """Which share of the pages with data of a file is in the page cache, from 0 to 1; 1 for a file without data."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    found = total = 0
    with open(path, "rb") as file:
        for offset, length in data_ranges(file.fileno(), 0, os.fstat(file.fileno()).st_size):
            end = offset + length
            start = offset // mmap.PAGESIZE * mmap.PAGESIZE
            while start < end:
                length = min(_WINDOW, end - start)
                pages = -(-length // mmap.PAGESIZE)
                vector = (ctypes.c_ubyte * pages)()
                # ACCESS_COPY: ctypes takes the address of writable buffers only. Nothing is written.
                with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start) as window:
                    view = ctypes.c_char.from_buffer(window)
                    try:
                        if libc.mincore(ctypes.addressof(view), length, vector) != 0:
                            raise OSError(ctypes.get_errno(), "mincore", str(path))
                    finally:
                        del view  # or the mapping could not be closed
                found += sum(value & 1 for value in bytes(vector))
                total += pages
                start += length
    return found / total if total else 1.0


def _drop(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())  # dirty pages are not dropped
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read(path: Path) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    buffer = memoryview(bytearray(4 << 20))
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for offset, length in [(0, size)] if size <= memory else data_ranges(file.fileno(), 0, size):
            file.seek(offset)
            while length > 0:
                got = file.readinto(buffer[: min(length, len(buffer))])
                if not got:
                    break
                length -= got
