"""The arguments of the command: what they mean, and what they may be."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .contestants import GROUPS, Place, contestants
from .disk import GIB, MIB
from .page_cache import State
from .running import SEARCH_PATH

MIN_SIZE = 4 * GIB
MIN_TRIAL_SIZE = 64 * MIB
_UNITS = {"": 1, "K": 1 << 10, "M": MIB, "G": GIB, "T": 1 << 40}

DESCRIPTION = """\
Runs diskhaul and the programs that people use for the same work, in turn, on the same disk, and says how long each took.

It makes a disk as guests have them (GPT, ext4 filled from /usr, some of it
deleted again), once, and keeps it in the working directory. Every round runs
every program once (A B C A B C ...), so that a machine which gets slower does so
for all. Before each run the earlier output is removed, everything is written
back, and the source is read into the page cache (hot) or dropped from it (cold).
Each program's first result is compared with the disk; a wrong one is an error,
not a row.

diskhaul's rows contain all that an export does: digests, fsync, publishing, and
reading back what was stored. Other programs do less: --durable shows them with
an fsync of their result (sync FILE) as well, in tables of their own.
"""

EPILOG = """\
groups and names (for --group and --only):
{names}

examples:
  benches/compare.py --work /var/tmp/cmp                          everything: about an hour on two cores
  benches/compare.py --work /var/tmp/cmp --group compressed --cache hot --durable
  benches/compare.py --work /var/tmp/cmp --only diskhaul,zstd-1 --rounds 9
  benches/compare.py --work /var/tmp/cmp --only diskhaul,diskhaul-ahead --variant 'ahead=--read-ahead 6'
  benches/compare.py --from results.json --readme

how things are measured:
  wall time   from the start of a program, or of both sides of a pipeline, to the
              end of the last process
  CPU time    user and system time of all its processes, as the kernel accounts it
  peak MiB    largest resident memory (GNU time): the processes of a pipeline are
              added up, a program's own children count with the largest one; the
              page cache does not count
  x as fast   the reference's wall time divided by the program's own, round by
              round; the median of these

exit status:
  0 done; 1 a program failed, or its result was wrong; 2 it could not begin;
  130 interrupted (what was measured is shown)
"""


_FROM = "measure nothing: show the results in a JSON file, or in several that belong together (once for each)"


def parse_size(given: str) -> int:
    """Bytes of "5G", "512M"; the units are 1024 times each other."""
    match = re.fullmatch(r"(\d+)([KMGT]?)(?:i?B)?", given.strip(), re.IGNORECASE)
    if not match:
        raise argparse.ArgumentTypeError(f"not a size such as 5G: {given!r}")
    return int(match[1]) * _UNITS[match[2].upper()]


def _variant(given: str) -> tuple[str, list[str]]:
    name, equals, options = given.partition("=")
    if not equals or not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name) or not options.strip():
        raise argparse.ArgumentTypeError(f"not NAME=OPTIONS with a name of a-z, 0-9, '.' and '-': {given!r}")
    return name, shlex.split(options)


def _names(given: str) -> list[str]:
    return [name for name in given.split(",") if name]


def _rounds(given: str) -> int:
    if not given.isdecimal() or not 1 <= int(given) <= 1000:
        raise argparse.ArgumentTypeError(f"not a number of rounds from 1 to 1000: {given!r}")
    return int(given)


def _seconds(given: str) -> float:
    if not given.isdecimal() or int(given) < 1:
        raise argparse.ArgumentTypeError(f"not a number of seconds: {given!r}")
    return float(given)


def parser() -> argparse.ArgumentParser:
    """The command's arguments, with their help."""
    place = Place(work=Path("WORK"), disk=Path("DISK"), diskhaul="diskhaul")
    names = "\n".join(f"  {group:<13} {' '.join(one.name for one in contestants(group, place, {}))}" for group in GROUPS)
    made = argparse.ArgumentParser(
        prog="compare.py",
        description=DESCRIPTION,
        epilog=EPILOG.format(names=names),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = made.add_argument_group("what is compared")
    what.add_argument("--group", action="append", metavar="G", type=_names, help=f"only these groups: {', '.join(GROUPS)}")
    what.add_argument("--only", metavar="NAME,...", type=_names, help="only these programs; GROUP/NAME for one group's")
    what.add_argument("--rounds", metavar="N", type=_rounds, default=5, help="how often each program runs (5)")
    what.add_argument("--cache", choices=("hot", "cold", "both"), default="both", help="where the source is at the start (both)")
    what.add_argument("--durable", action="store_true", help="also time an fsync of the others' results, in further tables")
    what.add_argument(
        "--variant",
        action="append",
        metavar="NAME=OPTIONS",
        type=_variant,
        default=[],
        help="one more row for diskhaul, with these options of export (in the group restore: of import)",
    )
    where = made.add_argument_group("where, and on which disk")
    where.add_argument("--work", metavar="DIR", type=Path, help="working directory: the disk, inputs and results lie there")
    where.add_argument("--size", metavar="SIZE", type=parse_size, default=5 * GIB, help="size of the disk, at least 4G (5G)")
    where.add_argument("--source", metavar="DIR", type=Path, default=Path("/usr"), help="where the disk's files are from (/usr)")
    where.add_argument("--disk", metavar="FILE", type=Path, help="use this raw image instead of making one; it is only read")
    where.add_argument("--trial", action="store_true", help="allow any size, from 64M; says in the results that they are a trial")
    where.add_argument("--diskhaul", metavar="FILE", help="the diskhaul to run (the one beside this Python)")
    where.add_argument("--limit", metavar="S", type=_seconds, default=3600, help="limit for one run, seconds (3600)")
    out = made.add_argument_group("what comes out")
    out.add_argument("--json", metavar="FILE", type=Path, help="write everything that was measured, with machine and commands")
    out.add_argument("--png", metavar="FILE", type=Path, help="draw a chart (needs matplotlib)")
    out.add_argument("--readme", action="store_true", help="print the tables as Markdown")
    out.add_argument("--from", dest="earlier", metavar="FILE", type=Path, action="append", help=_FROM)
    out.add_argument("--commands", action="store_true", help="only print the commands of everybody who would take part")
    out.add_argument("--prepare", action="store_true", help="only make the disk and what the programs need")
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What was asked for, checked. `work` is None only when there are `earlier` results."""

    groups: tuple[str, ...]
    only: tuple[str, ...]
    rounds: int
    caches: tuple[State, ...]
    durable: bool
    variants: Mapping[str, Sequence[str]]
    work: Path | None
    size: int
    source: Path
    disk: Path | None
    trial: bool
    diskhaul: str
    limit_s: float
    json: Path | None
    png: Path | None
    readme: bool
    earlier: tuple[Path, ...]
    commands: bool
    prepare: bool


def parse(given: Sequence[str]) -> Arguments:
    """Read and check the arguments; what is wrong ends the program with one line and status 2."""
    made = parser()
    found = made.parse_args(given)
    if found.work is None and not found.earlier:
        made.error("--work DIR is needed: where may the disk and the results lie?")
    groups = [name for names in found.group or [list(GROUPS)] for name in names]
    for name in groups:
        if name not in GROUPS:
            made.error(f"there is no group {name!r}: {', '.join(GROUPS)}")
    least = MIN_TRIAL_SIZE if found.trial else MIN_SIZE
    if found.size < least and found.disk is None:
        hint = "" if found.trial else "; --trial allows less"
        made.error(f"--size: a disk of less than {least // MIB} MiB says too little{hint}")
    if found.size % (4 * MIB):
        made.error("--size: not a multiple of 4 MiB")
    variants = dict(found.variant)
    if len(variants) < len(found.variant):
        made.error("--variant: the same name twice")
    diskhaul = found.diskhaul or shutil.which("diskhaul", path=f"{Path(sys.executable).parent}:{SEARCH_PATH}")
    if not diskhaul:
        made.error("no diskhaul beside this Python: run 'make', or name one with --diskhaul")
    return Arguments(
        groups=tuple(group for group in GROUPS if group in groups),
        only=tuple(found.only or ()),
        rounds=found.rounds,
        caches=("cold", "hot") if found.cache == "both" else (found.cache,),
        durable=found.durable,
        variants=variants,
        work=found.work and found.work.absolute(),
        size=found.size,
        source=found.source,
        disk=found.disk and found.disk.absolute(),
        trial=found.trial,
        diskhaul=diskhaul,
        limit_s=found.limit,
        json=found.json,
        png=found.png,
        readme=found.readme,
        earlier=tuple(found.earlier or ()),
        commands=found.commands,
        prepare=found.prepare,
    )
