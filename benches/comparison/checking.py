"""Whether a result holds the bytes of the disk it was made from; with code and programs that diskhaul does not use for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from .contestants import Contestant, Place, only_export
from .disk import PARTITION, data_ranges
from .errors import ContestantError

_PIECE = 4 << 20
_BLOCK = 1024  # the smallest block of ext4


def check(contestant: Contestant, place: Place) -> None:
    """Raise ContestantError when what the contestant has made does not hold its originals."""
    result = contestant.result
    try:
        match contestant.kind:
            case "raw":
                compare_raw(contestant.originals[0], result)
            case "zstd":
                compare_zstd(contestant.originals[0], result)
            case "qcow2":
                _run("qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", str(contestant.originals[0]), str(result))
            case "export":
                export = only_export(result)
                for number, original in enumerate(contestant.originals):
                    raw, packed = export / f"disk-{number}.raw", export / f"disk-{number}.raw.zst"
                    if raw.exists():
                        compare_raw(original, raw)
                    else:
                        compare_zstd(original, packed)
            case "skipping":
                free = free_ranges(contestant.originals[0], PARTITION)
                compare_zstd(contestant.originals[0], only_export(result) / "disk-0.raw.zst", free)
            case "restored":  # stock zstd would take minutes for a tebibyte of zeros
                directory = place.out / "check"
                _run(place.diskhaul, "--quiet", "import", str(only_export(result)), "--to-dir", str(directory))
                for number, original in enumerate(contestant.originals):
                    compare_raw(original, directory / f"disk-{number}.raw")
    except OSError as error:
        raise ContestantError(f"its result cannot be checked: {error}") from error


def compare_raw(original: Path, copy: Path) -> None:
    """Compare two disks byte by byte; where both have holes, nothing is read. ContestantError names the first difference."""
    with open(original, "rb") as one, open(copy, "rb") as other:
        size, other_size = os.fstat(one.fileno()).st_size, os.fstat(other.fileno()).st_size
        if size != other_size:
            raise ContestantError(f"{copy} has {other_size} bytes, {original} has {size}")
        ranges = [*data_ranges(one.fileno(), 0, size), *data_ranges(other.fileno(), 0, size)]
        done = 0
        for offset, length in sorted(ranges):
            position, end = max(done, offset), offset + length
            while position < end:
                wanted = min(_PIECE, end - position)
                here, there = os.pread(one.fileno(), wanted, position), os.pread(other.fileno(), wanted, position)
                if here != there:
                    raise ContestantError(f"{copy} differs from {original} {_where(position, here, there)}")
                position += len(here)
            done = max(done, end)


def free_ranges(disk: Path, offset: int) -> list[tuple[int, int]]:
    """What dumpe2fs calls free in the ext4 filesystem at `offset` of a disk: begin and end on the disk in bytes, ascending."""
    shown = _run("dumpe2fs", f"{disk}?offset={offset}")
    match = re.search(r"^Block size: +([0-9]+)$", shown, re.MULTILINE)
    if match is None:
        raise ContestantError(f"dumpe2fs says no block size for {disk}")
    block, found = int(match[1]), []
    for line in re.findall(r"^  Free blocks: ([0-9, -]+)$", shown, re.MULTILINE):
        for part in line.split(","):
            first, _, last = part.strip().partition("-")
            found.append((offset + int(first) * block, offset + (int(last or first) + 1) * block))
    return sorted(found)


def compare_zstd(original: Path, packed: Path, free: Sequence[tuple[int, int]] = ()) -> None:
    """Compare what stock zstd makes of a file with a disk, of which what is `free` may be zeros instead."""
    with (
        subprocess.Popen(("zstd", "-q", "-dc", str(packed)), stdout=subprocess.PIPE) as process,
        open(original, "rb") as disk,
    ):
        assert process.stdout is not None
        position = 0
        while True:
            here, there = disk.read(_PIECE), process.stdout.read(_PIECE)
            if here != there and not _differs_in_free(position, here, there, free):
                process.kill()
                raise ContestantError(f"{packed} differs from {original} {_where(position, here, there)}")
            if not here:
                break
            position += len(here)
    if process.returncode:
        raise ContestantError(f"zstd -d fails on {packed}")


def _differs_in_free(position: int, here: bytes, there: bytes, free: Sequence[tuple[int, int]]) -> bool:
    """Whether the pieces of two disks are alike, but for blocks that are free and zeros in the second."""
    if len(here) != len(there):
        return False
    for at in range(0, len(here), _BLOCK):
        one, other = here[at : at + _BLOCK], there[at : at + _BLOCK]
        if one != other:
            index = bisect_right(free, (position + at, sys.maxsize)) - 1
            if any(other) or index < 0 or position + at + len(other) > free[index][1]:
                return False
    return True


def _where(position: int, here: bytes, there: bytes) -> str:
    pairs = zip(here, there, strict=False)
    first = next((number for number, (one, other) in enumerate(pairs) if one != other), min(len(here), len(there)))
    return f"at offset {position + first}"


def _run(*argv: str) -> str:
    finished = subprocess.run(argv, capture_output=True, text=True, check=False)
    if finished.returncode:
        words = (finished.stderr or finished.stdout).strip().splitlines() or [f"status {finished.returncode}"]
        raise ContestantError(f"{argv[0]}: {words[-1]}")
    return finished.stdout
