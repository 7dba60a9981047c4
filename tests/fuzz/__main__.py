"""Mutated disks, through the readers of guests' disks.

python -m tests.fuzz --cases 20000              so many, of all kinds of disks; what fails is named, and the exit code 1
python -m tests.fuzz --compare --cases 500      so many ext filesystems, repaired with and without what would be skipped
python -m tests.fuzz --replay ext4:123          one of them again; repaired/ext4:123 one of the latter
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from .bases import RECIPES, SEARCH_PATH, make_base
from .harness import BATCH, Outcome, inspect, look_through, mutated, run_batch
from .repaired import KINDS, compare


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=300, help="how many")
    parser.add_argument("--compare", action="store_true", help="what e2fsck makes of them")
    parser.add_argument("--seed", type=int, default=0, help="of the first one of each kind")
    parser.add_argument("--bases", nargs="+", choices=RECIPES, help="kinds of disks")
    parser.add_argument("--inspect-every", type=int, default=100, help="one in so many goes through inspect_disk as well")
    parser.add_argument("--work", type=Path, help="directory in which the disks are made, and kept for the next time")
    parser.add_argument("--replay", help="a case, as it was named")
    arguments = parser.parse_args()
    os.environ["PATH"] = SEARCH_PATH  # mkfs lives in sbin
    memory = Path("/dev/shm")  # e2fsck waits for the disk at each of its steps
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as temporary:
        work: Path = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        return replay(arguments.replay, work) if arguments.replay else run(arguments, work)


def run(arguments: argparse.Namespace, work: Path) -> int:
    wanted = arguments.bases or list(KINDS if arguments.compare else RECIPES)
    names = [name for name in wanted if not RECIPES[name].missing()]
    for name in wanted:
        if name not in names:
            print(f"{name} is left out: {RECIPES[name].missing()}")
    each = -(-arguments.cases // max(len(names), 1))
    total = Outcome()
    for name in names:
        base = make_base(name, work)
        counts: Counter[str] = Counter()
        for first in range(arguments.seed, arguments.seed + each, BATCH):
            seeds = range(first, min(first + BATCH, arguments.seed + each))
            if arguments.compare:
                outcomes = [compare(base, seed, work) for seed in seeds]
            else:
                outcomes = [run_batch(base, seeds)]
                outcomes += [inspect(base, seed) for seed in seeds if seed % arguments.inspect_every == 0]
            for outcome in outcomes:
                counts.update(outcome.counts)
                total.failures.update(outcome.failures)
                for case, why in outcome.failures.items():
                    print(f"FAILED {case}: {why}\nreplay: {Path(sys.executable)} -m tests.fuzz --replay {case}", flush=True)
        total.counts.update(counts)
        print(f"{name}: {', '.join(f'{what} {count}' for what, count in counts.most_common())}", flush=True)
    print(f"{each * len(names)} disks, {len(total.failures)} failed")
    return 1 if total.failures or not names else 0


def replay(case: str, work: Path) -> int:
    name, _, seed = case.removeprefix("repaired/").partition(":")
    base = make_base(name, work)
    if case.startswith("repaired/"):
        print(compare(base, int(seed), work))
        return 0
    descriptor = os.open(base.path, os.O_RDONLY)
    print("inspect_disk:", inspect(base, int(seed)))
    print("in a worker:", run_batch(base, [int(seed)]))
    print("in this process:", look_through(mutated(base, int(seed), descriptor)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
