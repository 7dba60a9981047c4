#!/usr/bin/env python3
"""How much of an export's CPU time is Python's, and where the rest goes; see --help, and docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # `benches` is a package of the repository, not an installed one

from benches.comparison import page_cache
from benches.comparison.arguments import parse_size
from benches.comparison.disk import GIB, made_disk, make_disk
from benches.comparison.errors import ComparisonError, ContestantError
from benches.comparison.preparation import own_directory
from benches.comparison.running import SEARCH_PATH

DESCRIPTION = """\
Runs an export under a profiler and says which part of its CPU time is spent in
the Python interpreter, and which in zstd, BLAKE3, the C core and the kernel.

With perf (package linux-perf): samples of the CPU clock, of all threads,
attributed by the library that they hit; within the libraries of zstandard and
blake3 by symbol, as what only passes arguments on is Python's. What cannot be
attributed (libc, mostly copying on somebody's behalf) is shown, and "at most"
counts all of it to Python. A second profile, of the same command with --dry-run,
tells what starting and planning takes: the share without it is that of the
transfer, as for a disk of any size.

Without perf: py-spy. It sees no kernel, and cannot tell a system call from
waiting; so shares are of the samples in user space that are not in libc, and
Python's comes out too large rather than too small. The export is slower under it.
"""

PERF_HZ = 997  # not in step with anything that happens a round number of times per second
PY_SPY_HZ = 20  # each sample stops the process for a while
_PATH = f"{Path(sys.executable).parent}:{SEARCH_PATH}"
CATEGORIES = ("Python", "zstd", "BLAKE3", "C core", "kernel", "libc", "other")

_ZSTD = re.compile(r"_?(ZSTD|HUF|FSE|HIST|XXH|BIT|MEM|POOL|ERR|COVER|ZDICT)|\[unknown\]|0x[0-9a-f]+$")
_BINDING = re.compile(r"pyo3|^_?Py|PyInit")
_FRAME = re.compile(r"(?P<symbol>.*) \((?P<place>[^()]*)\)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Samples by category, and Python's by symbol."""

    categories: Counter[str]
    python: Counter[str]

    @property
    def total(self) -> int:
        return sum(self.categories.values())

    def without(self, other: Profile) -> Profile:
        """What is left when another profile, taken at the same rate, is subtracted."""
        return Profile(categories=self.categories - other.categories, python=self.python - other.python)

    def share(self, category: str) -> float:
        return self.categories[category] / self.total if self.total else 0.0

    @property
    def at_most(self) -> float:
        """Python's share if everything that cannot be attributed were Python's."""
        return self.share("Python") + self.share("libc") + self.share("other")

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return {"samples": dict(self.categories), "python_at_most": self.at_most, "python": dict(self.python.most_common())}


def category(symbol: str, library: str) -> str:
    """Whose a sample is, by its symbol and the file that it lies in: a library, or for py-spy a source file."""
    name = library.rsplit("/", 1)[-1]
    if name.startswith("[") and not name.startswith("[vdso"):
        return "kernel"
    if "zstandard" in library or name.startswith(("backend_c", "libzstd", "zstd.c", "xxhash")):
        return "zstd" if _ZSTD.match(symbol) or name.startswith(("libzstd", "zstd.c", "xxhash")) else "Python"
    if "blake3" in name:
        return "Python" if _BINDING.search(symbol) else "BLAKE3"
    if name.startswith(("_core.", "dh_")) or "/csrc/" in library:
        return "C core"
    if name.startswith(("libc.", "libc-", "libpthread", "libm.", "ld-linux", "[vdso")):
        return "libc"
    if name.startswith(("python", "libpython", "<")) or ".py" in name or ".cpython-" in name or ".abi3." in name:
        return "Python"
    return "other"


def profile_of(samples: Iterable[tuple[str, str, int]]) -> Profile:
    """Add up samples: symbol, library, number."""
    categories: Counter[str] = Counter()
    python: Counter[str] = Counter()
    for symbol, library, number in samples:
        found = category(symbol, library)
        categories[found] += number
        if found == "Python":
            python[symbol] += number
    return Profile(categories=categories, python=python)


def perf_samples(script: str) -> Iterator[tuple[str, str, int]]:
    """Samples of ``perf script -F ip,sym,dso``: a line each, with address, symbol and library."""
    for line in filter(None, map(str.strip, script.splitlines())):
        match = _FRAME.match(line.partition(" ")[2])
        yield (match["symbol"], match["place"], 1) if match else ("", line, 1)


def py_spy_samples(raw: str) -> Iterator[tuple[str, str, int]]:
    """Samples of py-spy's raw format: frames with semicolons between them, the innermost last, and a number. Without libc's."""
    for line in raw.splitlines():
        stack, _, number = line.rpartition(" ")
        match = _FRAME.match(stack.rpartition(";")[2])
        if match and number.isdecimal():
            library = re.sub(r":\d+$", "", match["place"])
            if category(match["symbol"], library) != "libc":
                yield match["symbol"], library, int(number)


def _run(argv: Sequence[str]) -> str:
    environment = {**os.environ, "PATH": _PATH}
    finished = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    if finished.returncode:
        words = (finished.stderr or finished.stdout).strip().splitlines() or [f"status {finished.returncode}"]
        raise ComparisonError(f"{shlex.join(argv[:3])} ...: {words[-1]}")
    return finished.stdout


def with_perf(command: Sequence[str], scratch: Path) -> Profile:
    data = str(scratch / "perf.data")
    _run(["perf", "record", "-q", "-e", "cpu-clock", "-F", str(PERF_HZ), "-o", data, "--", *command])
    return profile_of(perf_samples(_run(["perf", "script", "-i", data, "-F", "ip,sym,dso"])))


def with_py_spy(command: Sequence[str], scratch: Path) -> Profile:
    raw = scratch / "py-spy.txt"
    options = ["--native", "--rate", str(PY_SPY_HZ), "--format", "raw", "--output", str(raw)]
    _run(["py-spy", "record", *options, "--", *command])
    return profile_of(py_spy_samples(raw.read_text()))


def _tool(asked: str) -> str:
    for tool in (asked,) if asked != "auto" else ("perf", "py-spy"):
        if shutil.which(tool, path=_PATH):
            return tool
    raise ComparisonError(f"{'neither perf nor py-spy' if asked == 'auto' else asked + ' is not'} installed")


def table(whole: Profile, transfer: Profile) -> str:
    """Shares of the whole run and of what is left without start-up, and Python's most frequent symbols."""
    lines = [f"{'':<22}{'whole run':>12}{'without start-up':>20}"]
    lines += [f"{name:<22}{whole.share(name):>11.1%}{transfer.share(name):>19.1%}" for name in CATEGORIES]
    lines.append(f"{'Python, at most':<22}{whole.at_most:>11.1%}{transfer.at_most:>19.1%}")
    lines.append(f"{'samples':<22}{whole.total:>11}{transfer.total:>19}")
    top = ", ".join(f"{symbol} {number / whole.total:.1%}" for symbol, number in transfer.python.most_common(8))
    return "\n".join([*lines, f"most of Python's, without start-up: {top or 'nothing'}"])


def measure(arguments: argparse.Namespace) -> int:
    """Profile the export and its dry run, and print what came out."""
    tool = _tool(arguments.tool)
    profiler = with_perf if tool == "perf" else with_py_spy
    own_directory(arguments.work)
    disk = arguments.disk or arguments.work / "disk.raw"
    if arguments.disk is None and made_disk(disk) is None:
        print(f"making a disk in {arguments.work}", file=sys.stderr)
        make_disk(disk, arguments.size, source=Path("/usr"), announce=lambda line: print(line, file=sys.stderr))
    with tempfile.TemporaryDirectory(dir=arguments.work, prefix="share-") as made:
        scratch = Path(made)
        (scratch / "exports").mkdir()
        (scratch / "cluster.toml").write_text(
            '[cluster]\nname = "share"\nstate_dir = "state"\n[nodes.here]\nexport_dir = "exports"\n'
            f'[instances.vm]\nnode = "here"\nstate = "down"\ndisks = [{{ path = {json.dumps(str(disk.absolute()))} }}]\n'
        )
        command = [sys.executable, "-m", "diskhaul", "--config", str(scratch / "cluster.toml"), "--quiet", "export", "vm"]
        command += ["--node", "here", "--compress", arguments.compress, *shlex.split(arguments.options)]
        page_cache.prepare([disk], arguments.cache)
        whole = profiler(command, scratch)
        start_up = profiler([*command, "--dry-run"], scratch)
    transfer = whole.without(start_up)
    print(f"{shlex.join(command[1:])}")
    print(f"disk of {disk.stat().st_size / GIB:.1f} GiB, {arguments.cache} cache; measured with {_how(tool)}")
    print(table(whole, transfer))
    if arguments.json:
        document = {
            "tool": _how(tool),
            "command": command,
            "whole": whole.plain(),
            "start_up": start_up.plain(),
            "transfer": transfer.plain(),
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _how(tool: str) -> str:
    if tool == "perf":
        return f"perf record -e cpu-clock -F {PERF_HZ}: samples of CPU time, of all threads"
    return f"py-spy record --native --rate {PY_SPY_HZ}: samples in user space, without libc; the kernel is not seen"


def main(given: Sequence[str] | None = None) -> int:
    """Run the command; 2 when it cannot."""
    parser = argparse.ArgumentParser(
        prog="python_share.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--work",
        metavar="DIR",
        type=Path,
        required=True,
        help="as of compare.py: its disk is used, or made; needs room for an export",
    )
    parser.add_argument("--disk", metavar="FILE", type=Path, help="export this raw image instead")
    parser.add_argument("--size", metavar="SIZE", type=parse_size, default=5 * GIB, help="size of a disk that is made (5G)")
    parser.add_argument("--compress", metavar="C", default="zstd:1", help="as of diskhaul export (zstd:1)")
    parser.add_argument("--options", metavar="WORDS", default="", help="further options of diskhaul export, in one word")
    parser.add_argument("--cache", choices=("hot", "cold"), default="hot", help="where the disk is at the start (hot)")
    parser.add_argument("--tool", choices=("auto", "perf", "py-spy"), default="auto", help="the profiler (perf where installed)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers of samples")
    try:
        return measure(parser.parse_args(given))
    except (ComparisonError, ContestantError) as error:
        print(f"python_share.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
