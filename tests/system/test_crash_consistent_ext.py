"""Snapshots of a mounted ext filesystem under load, as a power failure would leave it: nothing that is needed is skipped.

The filesystem is in a file on XFS behind a loop device; a snapshot is a clone of that file. XFS locks a file against all
writes while it clones it (and writes its cached pages before), so a clone is the file at one moment: each write that the
guest's kernel was told is done is in it, each that was not may be. That is all a journal relies on.

DISKHAUL_CRASH_IMAGES=3000 looks at so many images, with other seeds.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

import diskhaul_native as native
from diskhaul_plugins.guest_disks.reading import Reading

from ..ext_images import (
    GARBAGE,
    MIB,
    PROGRAMS,
    assert_replay_is_foreseen,
    check,
    filled,
    make,
    mounted,
    read,
    reported,
    run,
    tree,
)

BATCH = 40
SIZE_MIB = 16


class Load(NamedTuple):
    """How the filesystem is made and mounted, and whether e2fsck can be trusted with what is left."""

    make: str
    mount: str = "data=ordered"
    by_kernel_only: bool = False


LOADS = {
    "ordered": Load("-b 1024 -J size=1 -g 2048 -O ^resize_inode"),
    "data in the journal": Load("-b 1024 -J size=1 -g 2048 -O ^resize_inode", "data=journal"),
    "blocks of 4 KiB": Load("-b 4096 -J size=4", "data=ordered"),
    "no checksums": Load("-b 1024 -J size=1 -g 2048 -O ^metadata_csum,^uninit_bg,^resize_inode,^64bit"),
    "ext3": Load("-t ext3 -b 1024 -J size=1 -g 2048 -O ^resize_inode", "data=journal"),
    # e2fsck 1.47 truncates an orphan to a part of a cluster in a way that it complains about itself.
    "clusters": Load("-b 1024 -C 4096 -J size=1 -O bigalloc,^resize_inode", by_kernel_only=True),
}
ROUNDS = range(max(1, int(os.environ.get("DISKHAUL_CRASH_IMAGES", "0")) // (BATCH * len(LOADS))))
SEED = random.SystemRandom().randrange(1 << 30) if len(ROUNDS) > 1 else 1


@dataclass
class Snapshot:
    """A clone of the disk, and what has to be on it."""

    image: Path
    durable: dict[str, str]


class Guest:
    """The writer, and what it said so far."""

    def __init__(self, directory: Path, seed: int) -> None:
        script = Path(__file__).with_name("ext_writer.py")
        self._process = subprocess.Popen([sys.executable, str(script), str(directory), str(seed)], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._stdout = self._process.stdout
        self._output = self._stdout.fileno()
        self._rest = b""
        self.durable: dict[str, str] = {}

    def listen(self, lines: int) -> None:
        """Wait until it has said so many lines more; 0: only take what it has said already."""
        os.set_blocking(self._output, lines > 0)
        heard = 0
        while heard < lines or lines == 0:
            try:
                said = os.read(self._output, 1 << 20)
            except BlockingIOError:
                return
            assert said, "the writer ended"
            *complete, self._rest = (self._rest + said).split(b"\n")
            for line in complete:
                sign, path, *digest = line.decode().split()
                if sign == "+":
                    (self.durable[path],) = digest
                else:
                    self.durable.pop(path, None)
            heard += len(complete)

    def end(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._stdout.close()


def take_snapshot(guest: Guest, disk: Path, target: Path) -> Snapshot:
    """Clone the disk. What was durable before and did not change until after is what has to be there."""
    before = dict(guest.durable)
    with open(disk, "rb") as source, open(target, "xb") as clone:
        native.clone(source.fileno(), clone.fileno())
    guest.listen(0)
    return Snapshot(target, {path: digest for path, digest in before.items() if guest.durable.get(path) == digest})


def after_the_crash(image: Path, at: Path, *, by_kernel: bool) -> dict[str, tuple[object, ...]]:
    """Every file, once the journal has been replayed by the kernel or by e2fsck; neither leaves anything to repair."""
    if by_kernel:
        with mounted(image, at):
            found = tree(at)
        check(image)
        return found
    run("e2fsck", "-fp", image, codes=(0, 1))
    check(image)
    with mounted(image, at, "loop,ro"):
        return tree(at)


def is_lost_with_stale_bitmaps(snapshot: Snapshot, at: Path, expected: dict[str, tuple[object, ...]]) -> bool:
    """Is something lost when what the bitmaps on the disk call free is left out, without a look at the journal?"""
    ranges, _ = reported(snapshot.image, is_sound=False)
    copy = filled(snapshot.image, snapshot.image.with_suffix(".stale"), ranges, GARBAGE)
    try:
        return after_the_crash(copy, at, by_kernel=False) != expected
    except AssertionError:
        return True
    finally:
        copy.unlink()


def assert_nothing_is_lost(snapshot: Snapshot, reading: Reading, at: Path, *, by_kernel: bool) -> dict[str, tuple[object, ...]]:
    """With garbage in what is skipped the filesystem comes back as it does without, whole, and with all that was durable."""
    image = snapshot.image
    skipped = filled(image, image.with_suffix(".skipped"), reading.runs, GARBAGE)
    whole = filled(image, image.with_suffix(".whole"), (), GARBAGE)
    expected = after_the_crash(whole, at, by_kernel=by_kernel)
    assert {path: expected[path][-1] for path in snapshot.durable} == snapshot.durable
    assert after_the_crash(skipped, at, by_kernel=by_kernel) == expected
    skipped.unlink()
    whole.unlink()
    return expected


@pytest.fixture
def reflinks(tmp_path: Path, requires: Callable[..., None]) -> Iterator[Path]:
    """An XFS in memory: every fsync of the guest would wait for this machine's disk otherwise.

    Unmounted lazily: the kernel gives a loop device back some time after its last use, and whoever looks at all of them
    (losetup, mount) uses it.
    """
    requires(*PROGRAMS, "mkfs.xfs", "mount", root=True)
    memory, path = tmp_path / "memory", tmp_path / "reflinks"
    memory.mkdir()
    path.mkdir()
    with ExitStack() as cleanups:
        run("mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", memory)
        cleanups.callback(run, "umount", "--lazy", memory)
        with open(memory / "xfs", "wb") as file:
            file.truncate(2048 * MIB)
        run("mkfs.xfs", "-q", "-m", "reflink=1", memory / "xfs")
        run("mount", "-o", "loop", memory / "xfs", path)
        cleanups.callback(run, "umount", "--lazy", path)
        yield path


@pytest.fixture
def snapshots(reflinks: Path, tmp_path: Path) -> Callable[[Load, int], list[Snapshot]]:
    """A batch of snapshots of a filesystem under load."""

    def take(load: Load, seed: int) -> list[Snapshot]:
        generator = random.Random(seed)
        disk = reflinks / "disk"
        make(disk, SIZE_MIB, *load.make.split())
        with mounted(disk, tmp_path / "guest", f"loop,{load.mount}"):
            guest = Guest(tmp_path / "guest", seed)
            try:
                taken = []
                for number in range(BATCH):
                    guest.listen(generator.randrange(1, 60))
                    taken.append(take_snapshot(guest, disk, reflinks / f"{number}.img"))
                return taken
            finally:
                guest.end()

    return take


@pytest.mark.parametrize("round_number", ROUNDS)
@pytest.mark.parametrize("name", LOADS)
def test_whatever_a_snapshot_under_load_needs_is_not_skipped(
    name: str, round_number: int, snapshots: Callable[[Load, int], list[Snapshot]], tmp_path: Path
) -> None:
    at = tmp_path / "restored"
    replayed = changed = lost = 0
    for number, snapshot in enumerate(snapshots(LOADS[name], SEED + round_number)):
        reading = read(snapshot.image)
        assert reading.kept == ""
        assert reading.runs.total == reading.free
        assert_replay_is_foreseen(snapshot.image, tmp_path)
        expected = assert_nothing_is_lost(snapshot, reading, at, by_kernel=LOADS[name].by_kernel_only or number % 2 == 0)
        replayed += reading.state == "journal replayed"
        if reported(snapshot.image, is_sound=False)[0] != list(reading.runs):
            changed += 1
            if changed <= 5:
                lost += is_lost_with_stale_bitmaps(snapshot, at, expected)
        snapshot.image.unlink()
    # Were there none of these, the test could not fail.
    assert replayed > BATCH / 2
    assert changed > BATCH / 2
    assert lost > 0
