"""Mutated ext filesystems after e2fsck: with something else in what would be skipped, the same files come out.

Only that is changed by which the filesystem tells what is free where: superblock, descriptions of groups, bitmaps, journal. Not
changed is what its own kernel would lose data by, since then the filesystem itself calls a block of a file free: a bit of a
bitmap that is cleared, with all checksums and counts made to fit; which blocks a transaction has.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from diskhaul_plugins.guest_disks.readers import load_readers
from diskhaul_plugins.guest_disks.walk import Walk

from ..ext_images import GARBAGE, ZEROS, files, filled
from .bases import ENVIRONMENT, RECIPES, Base
from .harness import Outcome
from .mutations import change_field, overwrite, swap
from .overlay import Overlay
from .seals import Place, Seal, repair

KINDS = tuple(name for name in RECIPES if name.startswith("ext") and name != "ext4-mmp")
"""With multiple mount protection e2fsck waits, to see whether somebody else is at it."""
MOST_CHANGES = 3
E2FSCK_S = 60


def mutate(base: Base, disk: Overlay, chosen: random.Random) -> None:
    """Change what says what is free; in most cases make checksums right again."""
    found = base.ext
    assert found is not None
    has_checksums = any(seal.name == "bitmap" for seal in found.seals)
    journal = [found.journal[:1]] * bool(found.journal)  # the journal's superblock
    if any(seal.name == "journal" for seal in found.seals):
        journal.append(found.journal[:64])
    kinds: list[Sequence[Place]] = [[found.superblock], [found.superblock], found.descriptors, found.bitmaps, *journal * 2]
    sealed: Sequence[Seal] = [seal for seal in found.seals if seal.name != "tags"]
    for _ in range(chosen.randrange(1, MOST_CHANGES + 1)):
        places = chosen.choice(kinds)
        place = chosen.choice(places)
        if places is found.descriptors and chosen.randrange(3) == 0:
            swap(disk, chosen, place, places)
        elif places is not found.bitmaps:
            change_field(disk, chosen, place, places)
        elif has_checksums and chosen.randrange(2):
            chosen.choice((change_field, overwrite))(disk, chosen, place, places)
            sealed = [seal for seal in sealed if seal.name not in ("bitmap", "count")]
        else:
            at = place[0] + chosen.randrange(place[1])
            disk.write(at, bytes([disk.read(at, 1)[0] | chosen.choice((1, 0x80, 0xFF, 1 << chosen.randrange(8)))]))
    if chosen.randrange(8):
        repair(disk, sealed)


def skipped(disk: Overlay) -> list[Place]:
    """What would be skipped of a disk."""
    walk = Walk(load_readers(["ext"]).readers)
    walk.run(disk)
    numbers = iter(walk.free_ranges())
    return list(zip(numbers, numbers, strict=True))


def compare(base: Base, seed: int, work: Path, find: Callable[[Overlay], list[Place]] = skipped) -> Outcome:
    """A case: with what `find` finds as it is, and with garbage (even seeds) or zeros in it, e2fsck makes the same of it."""
    descriptor = os.open(base.path, os.O_RDONLY)
    try:
        disk = Overlay(descriptor)
        mutate(base, disk, random.Random(f"repaired {base.name}:{seed}"))
        ranges = find(disk)
        if not ranges:
            return Outcome(Counter({"keeps": 1}))
        whole, without = work / f"{base.name}-{seed}.whole", work / f"{base.name}-{seed}.skipped"
        target = os.open(whole, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            disk.copy_to(target)
        finally:
            os.close(target)
    finally:
        os.close(descriptor)
    try:
        filled(whole, without, ranges, GARBAGE if seed % 2 == 0 else ZEROS)
        code, expected = _repaired(whole, work)
        if (code, expected) == _repaired(without, work):
            return Outcome(Counter({"beyond repair" if code >= 4 else "repaired" if code else "sound": 1}))
        return Outcome(Counter({"failed": 1}), {f"repaired/{base.name}:{seed}": "e2fsck makes something else of it"})
    finally:
        whole.unlink(missing_ok=True)
        without.unlink(missing_ok=True)


def _repaired(image: Path, work: Path) -> tuple[int, dict[str, tuple[object, ...]]]:
    """How e2fsck ends, and the files that are there then."""
    try:
        done = subprocess.run(["e2fsck", "-fy", str(image)], capture_output=True, env=ENVIRONMENT, timeout=E2FSCK_S)
    except subprocess.TimeoutExpired:
        return 256, {}
    return done.returncode, files(image, work) if done.returncode < 8 else {}
