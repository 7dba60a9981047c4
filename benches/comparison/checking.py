"""Whether a result holds the bytes of the disk it was made from; with code and programs that diskhaul does not use for it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .contestants import Contestant, Place, only_export
from .disk import data_ranges
from .errors import ContestantError

_PIECE = 4 << 20


def check(contestant: Contestant, place: Place) -> None:
    """Raise ContestantError when what the contestant has made does not hold its originals."""
    result = contestant.result
    try:
        match contestant.kind:
            case "raw":
                compare_raw(contestant.originals[0], result)
            case "zstd":
                _compare_zstd(contestant.originals[0], result)
            case "qcow2":
                _run("qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", str(contestant.originals[0]), str(result))
            case "export":
                export = only_export(result)
                for number, original in enumerate(contestant.originals):
                    raw, packed = export / f"disk-{number}.raw", export / f"disk-{number}.raw.zst"
                    if raw.exists():
                        compare_raw(original, raw)
                    else:
                        _compare_zstd(original, packed)
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


def _compare_zstd(original: Path, packed: Path) -> None:
    """Compare what stock zstd makes of a file with a disk."""
    with (
        subprocess.Popen(("zstd", "-q", "-dc", str(packed)), stdout=subprocess.PIPE) as process,
        open(original, "rb") as disk,
    ):
        assert process.stdout is not None
        position = 0
        while True:
            here, there = disk.read(_PIECE), process.stdout.read(_PIECE)
            if here != there:
                process.kill()
                raise ContestantError(f"{packed} differs from {original} {_where(position, here, there)}")
            if not here:
                break
            position += len(here)
    if process.returncode:
        raise ContestantError(f"zstd -d fails on {packed}")


def _where(position: int, here: bytes, there: bytes) -> str:
    pairs = zip(here, there, strict=False)
    first = next((number for number, (one, other) in enumerate(pairs) if one != other), min(len(here), len(there)))
    return f"at offset {position + first}"


def _run(*argv: str) -> None:
    finished = subprocess.run(argv, capture_output=True, text=True, check=False)
    if finished.returncode:
        words = (finished.stderr or finished.stdout).strip().splitlines() or [f"status {finished.returncode}"]
        raise ContestantError(f"{argv[0]}: {words[-1]}")
