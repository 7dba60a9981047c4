"""A second opinion from partclone (its "domain" map, in ddrescue's format), which is only ever run as a program.

It is not believed on its own. Version 0.3.23 reads the tables of FAT12 as if their entries had 16 bits, calls the second copy of
what btrfs keeps twice free, and the data of its files without checksums as well, and miscounts blocks on XFS beyond 2^32 of them.
So what is left out is what both call free: it, and the reader of the filesystem here.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache

from diskhaul.processes import SEARCH_PATH

from .btrfs import prepare as prepare_btrfs
from .btrfs import read_btrfs
from .exfat import read_exfat
from .f2fs import read_f2fs
from .fat import read_fat
from .ntfs import read_ntfs
from .reading import FreeRuns, NotThisError, Reader, Reading
from .served import ProgramFailedError, ServedVolumes
from .volume import Volume
from .xfs import read_xfs

_READERS: tuple[Reader, ...] = (read_xfs, read_btrfs, read_f2fs, read_ntfs, read_exfat, read_fat)
_PROGRAMS = {
    "xfs": "partclone.xfs",
    "btrfs": "partclone.btrfs",
    "f2fs": "partclone.f2fs",
    "ntfs": "partclone.ntfs",
    "exfat": "partclone.exfat",
    "fat16": "partclone.fat",
    "fat32": "partclone.fat",
}
"""By type; FAT12 is left out for the reason above."""

_DEADLINE_S = 60.0
_LINE = re.compile(rb"0x([0-9A-F]{1,16})  0x([0-9A-F]{1,16})  ([+?])")
_HEAD = (b"# Domain logfile created by ", b"# Source: ", b"# Offset: 0x00000000", b"# current_pos  current_status")


class NonsenseError(ValueError):
    """A map that is none."""


def prepare() -> None:
    """Find the programs, and make the place where they will see volumes.

    Raises:
        FileNotFoundError: none of them is installed.
        OSError: there is no such place to be had.
    """
    if not _programs():
        raise FileNotFoundError("partclone is not installed")
    _served()
    prepare_btrfs()


@cache
def _programs() -> Mapping[str, str]:
    """Where the program for each type is."""
    found = {kind: shutil.which(name, path=SEARCH_PATH) for kind, name in _PROGRAMS.items()}
    return {kind: path for kind, path in found.items() if path is not None}


@cache
def _served() -> ServedVolumes:
    return ServedVolumes()


def read_partclone(volume: Volume) -> Reading:
    """What both partclone and the reader of the filesystem call free.

    Raises:
        NotThisError: it is none of the filesystems that partclone is asked about.
        OSError: it cannot be read.
    """
    reading = _own_reading(volume)
    if reading.kept:
        return reading
    program = _programs().get(reading.type)
    if program is None:
        return replace(reading, runs=FreeRuns(), kept=f"there is no partclone for {reading.type}")
    # Only the map is wanted: no log, no check for mounts (it is a file), no progress.
    argv = [
        program,
        "--domain",
        "--quiet",
        "--force",
        "--logfile",
        "/dev/null",
        "--source",
        "@VOLUME@",
        "--overwrite",
        "@OUTPUT@",
    ]
    try:
        said = _served().run(argv, volume, deadline_s=_DEADLINE_S)
        theirs = list(free_of_map(said, reading.size))
    except (ProgramFailedError, NonsenseError) as error:
        return replace(reading, runs=FreeRuns(), kept=f"partclone does not tell: {error}")
    return replace(reading, runs=common(reading.runs, theirs))


def _own_reading(volume: Volume) -> Reading:
    for reader in _READERS:
        try:
            return reader(volume)
        except NotThisError:
            continue
    raise NotThisError


def free_of_map(said: bytes, size: int) -> Iterator[tuple[int, int]]:
    """The free ranges of a domain map: ascending offset and length, in bytes.

    Args:
        size: what it may cover at the most.

    Raises:
        NonsenseError: it is not one map, whole, from 0 on without gaps.
    """
    lines = said.split(b"\n")
    if len(lines) < 8 or lines.pop() != b"" or not all(line.startswith(begin) for line, begin in zip(lines, _HEAD, strict=False)):
        raise NonsenseError("no map")
    total = re.fullmatch(rb"0x([0-9A-F]{1,16})     \?", lines[4])
    if total is None or lines[5] != b"#      pos        size  status":
        raise NonsenseError("no map")
    position, last = 0, b""
    for line in lines[6:]:
        found = _LINE.fullmatch(line)
        if found is None:
            raise NonsenseError(f"a line that is none: {line[:60]!r}")
        begin, length, status = int(found[1], 16), int(found[2], 16), found[3]
        if begin != position or length == 0 or status == last:
            raise NonsenseError(f"a range at {begin} after {position}")
        position, last = begin + length, status
        if position > size:
            raise NonsenseError(f"a range up to {position} on {size} bytes")
        if status == b"?":
            yield begin, length
    if position != int(total[1], 16):
        raise NonsenseError(f"a map of {int(total[1], 16)} bytes that ends at {position}")


def common(ours: Iterable[tuple[int, int]], theirs: Iterable[tuple[int, int]]) -> FreeRuns:
    """What is in both; each ascends without overlap."""
    runs = FreeRuns()
    others = iter(theirs)
    other = next(others, None)
    for offset, length in ours:
        end = offset + length
        while other is not None and sum(other) <= offset:
            other = next(others, None)
        while other is not None and other[0] < end:
            begin, stop = max(offset, other[0]), min(end, sum(other))
            runs.add(begin, stop - begin)
            if sum(other) > end:
                break
            other = next(others, None)
    return runs
