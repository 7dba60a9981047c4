"""Mutated disks, guided by coverage: what reaches new code of the readers is kept, and changed further (Atheris, with libFuzzer).

python -m tests.fuzz.guided [-max_total_time=600]       arguments are libFuzzer's; without any it goes on until it is stopped
python -m tests.fuzz.guided build/fuzz/crash-...        what failed, again

Where `mutations` asks for a random number, it gets the next bytes of libFuzzer's input. Disks, inputs that are worth it, and what
failed are kept in build/fuzz.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["diskhaul_plugins.guest_disks"]):
    from diskhaul_plugins.guest_disks import sandbox
    from diskhaul_plugins.guest_disks.readers import FAMILIES, load_readers

    from .bases import RECIPES, SEARCH_PATH, make_base
    from .harness import CASE_CPU_S, look_through
    from .mutations import mutate
    from .overlay import Overlay

    load_readers(FAMILIES)

WORK = Path("build/fuzz")


class Input(random.Random):
    """Chooses by the bytes of `content`, and by zeros after those."""

    def __init__(self, content: bytes) -> None:
        super().__init__(0)
        self._content, self._at = content, 0

    def getrandbits(self, k: int, /) -> int:
        size = -(-k // 8)
        part = self._content[self._at : self._at + size].ljust(size, b"\0")
        self._at += size
        return int.from_bytes(part, "big") >> 8 * size - k

    def random(self) -> float:
        return self.getrandbits(53) / (1 << 53)


def main() -> None:
    os.environ["PATH"] = SEARCH_PATH  # mkfs lives in sbin
    inputs = WORK / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    bases = [make_base(name, WORK) for name, recipe in RECIPES.items() if not recipe.missing()]
    descriptors = [os.open(base.path, os.O_RDONLY) for base in bases]

    def run_one(content: bytes) -> None:
        chosen = Input(content)
        number = chosen.randrange(len(bases))
        disk = Overlay(descriptors[number])
        mutate(bases[number], disk, chosen)
        look_through(disk)

    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    limits = [
        f"-timeout={CASE_CPU_S}",
        f"-rss_limit_mb={(resident + 2 * sandbox.MEMORY_BYTES) >> 20}",
        "-max_len=256",
        "-len_control=10",
    ]
    arguments = sys.argv[1:]
    again = any(not argument.startswith("-") for argument in arguments)
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={WORK}/", *arguments, *([] if again else [str(inputs)])], run_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
