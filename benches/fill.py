#!/usr/bin/env python3
"""How fast free space is zeroed in place, beside zerofree on the same image; see --help, and docs/benchmarks.md."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # `benches` is a package of the repository, not an installed one

import diskhaul
import diskhaul_native as native
from benches.comparison import page_cache
from benches.comparison.arguments import parse_size
from benches.comparison.disk import GIB, MIB, check_room, made_disk, make_disk
from benches.comparison.errors import ComparisonError, ContestantError
from benches.comparison.preparation import own_directory
from benches.comparison.running import SEARCH_PATH
from diskhaul.api import BackendContext

DESCRIPTION = """\
Zeroes the free space of an ext4 filesystem in an image file, in turns with zerofill
backend "fill" and with zerofree, each time on a fresh copy of the same image, as
guests have them: filled from /usr, then some of it deleted again.

What is measured is a whole process, up to its fsync: of fill also Python's start, and
finding out what is free in another process. The image of a guest that has just been
stopped is "cold": hypervisors keep it out of the page cache. Pairs follow each other
closely, in random order, so what else the machine does hits both. The two
results are compared byte by byte, but for the superblock, where zerofree notes when
it has written.
"""

PAIRS = 5
_PARTITION = MIB  # where make_disk has its partition begin, and what it leaves behind it
_SUPERBLOCK_END = 2048  # zerofree notes in the superblock when it has written
_ZEROFREE, _FILL = "zerofree", "fill"


def main(given: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(given)
    if arguments.only_fill is not None:
        _fill(arguments.only_fill)
        return 0
    try:
        own_directory(arguments.work)
        if shutil.which(_ZEROFREE, path=SEARCH_PATH) is None:
            raise ComparisonError("zerofree is not installed: install the package zerofree")
        image = _image(arguments.work, arguments.size)
        pairs = [_pair(image, arguments.work, arguments.state) for _ in range(arguments.pairs)]
    except (ComparisonError, ContestantError) as error:
        print(f"fill: {error}", file=sys.stderr)
        return 1
    _report(pairs)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fill.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("bench-work"), help="directory for images, kept [default: bench-work]")
    parser.add_argument("--size", type=parse_size, default=5 * GIB, help="of the disk, as in 4G [default: 5G]")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"how often each of them runs [default: {PAIRS}]")
    parser.add_argument("--state", choices=("hot", "cold"), default="cold", help="image in the page cache or not [default: cold]")
    parser.add_argument("--only-fill", type=Path, metavar="IMAGE", help=argparse.SUPPRESS)
    return parser


def _fill(image: Path) -> None:
    """What a measured process does."""
    from diskhaul_plugins.storages.file import FileStorage
    from diskhaul_plugins.zerofills.fill import FillZeroFill

    context = BackendContext(cluster=diskhaul.Cluster(name="bench", state_dir=image.parent))
    disk = diskhaul.Disk(path=image)
    target = FileStorage(context).open_in_place(disk)
    found = FillZeroFill(context).zero(disk, target, deadline_s=3600.0, cancelled=lambda: False)
    target.close()
    if not len(found.free):
        raise SystemExit(f"nothing was free: {[region.kept for region in found.regions]}")


def _image(work: Path, size: int) -> Path:
    """A bare ext4 filesystem, as zerofree needs it: the partition of the disk that the other comparisons use."""
    image, disk = work / "fill-ext4.raw", work / "disk.raw"
    facts = made_disk(disk)
    if facts is None or facts.size != size:
        print("making a disk", file=sys.stderr)
        make_disk(disk, size, source=Path("/usr"), announce=lambda text: print(text, file=sys.stderr))
    length = size - 2 * _PARTITION
    if not image.exists() or image.stat().st_size != length or image.stat().st_mtime < disk.stat().st_mtime:
        check_room(work, size, "the filesystem")
        with open(disk, "rb") as source, open(image, "wb") as target:
            target.truncate(length)
            native.copy_range(source.fileno(), target.fileno(), _PARTITION, length, target_offset=0)
    return image


def _pair(image: Path, work: Path, state: page_cache.State) -> dict[str, float]:
    """One run of each, seconds; their results are the same."""
    names = [_ZEROFREE, _FILL]
    random.shuffle(names)
    taken: dict[str, float] = {}
    results = {name: work / f"fill-{name}.raw" for name in names}
    try:
        for name in names:
            check_room(work, image.stat().st_size, "a copy of it")
            with open(image, "rb") as source, open(results[name], "wb") as target:
                target.truncate(image.stat().st_size)
                native.copy_range(source.fileno(), target.fileno(), 0, image.stat().st_size)
            page_cache.prepare([results[name]], state)
            taken[name] = _run(name, results[name])
        compared = ["cmp", "--silent", f"--ignore-initial={_SUPERBLOCK_END}", *map(str, results.values())]
        if subprocess.run(compared, check=False).returncode:
            raise ContestantError("the two results differ")
    finally:
        for path in results.values():
            path.unlink(missing_ok=True)
    return taken


def _run(name: str, image: Path) -> float:
    command = [_ZEROFREE, str(image)] if name == _ZEROFREE else [sys.executable, __file__, "--only-fill", str(image)]
    started = time.perf_counter()
    finished = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "PATH": SEARCH_PATH})
    seconds = time.perf_counter() - started
    if finished.returncode:
        raise ContestantError(f"{name}: {finished.stderr.strip() or finished.returncode}")
    return seconds


def _report(pairs: list[dict[str, float]]) -> None:
    for name in pairs[0]:
        values = [pair[name] for pair in pairs]
        print(f"{name:20} {statistics.median(values):8.3f} s   ({min(values):.3f} to {max(values):.3f})")
    ratios = [pair[_ZEROFREE] / pair[_FILL] for pair in pairs]
    spread = f"median of {len(ratios)} pairs, {min(ratios):.2f} to {max(ratios):.2f}"
    print(f"fill is {statistics.median(ratios):.2f} times as fast as zerofree ({spread})")


if __name__ == "__main__":
    sys.exit(main())
