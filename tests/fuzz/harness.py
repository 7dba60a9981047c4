"""Runs mutated disks through the code of the process that reads guests' disks, under its own limits.

A worker is forked once everything is loaded, enters the sandbox as that process does, and takes one disk after the other.
The parent sees it hang or die; what a disk does is tried again alone before it is called a failure.
"""

from __future__ import annotations

import os
import random
import resource
import select
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diskhaul.testing.disks import MemoryDisk
from diskhaul_plugins.guest_disks import sandbox, wire
from diskhaul_plugins.guest_disks.child import ENCODINGS
from diskhaul_plugins.guest_disks.inspection import GuestDiskReaderError, inspect_disk
from diskhaul_plugins.guest_disks.readers import FAMILIES, load_readers
from diskhaul_plugins.guest_disks.walk import Walk
from diskhaul_plugins.storages.raw import RawReader

from .bases import Base
from .mutations import mutate
from .overlay import Overlay

CASE_CPU_S = 10
"""CPU time that one of these small disks may take; nearly all take some milliseconds."""
BATCH = 200
"""Disks of a worker."""


@dataclass
class Outcome:
    """What came of some cases: how often what (that nothing was skipped, say), and which failed, why."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)


def mutated(base: Base, seed: int, descriptor: int) -> Overlay:
    """The disk of a case."""
    disk = Overlay(descriptor)
    mutate(base, disk, random.Random(f"{base.name}:{seed}"))
    return disk


def look_through(disk: Overlay) -> str:
    """What the child does with a disk, and the parent with its answer: "skips" or "keeps", or what went wrong.

    Raises:
        Exception: what no reader's caller has caught; the child would fail.
    """
    walk = Walk(load_readers(FAMILIES).readers)
    walk.run(disk)
    answer = wire.encode(walk.regions(), walk.free_ranges())
    found = wire.decode(answer, disk.size)
    for region in found.regions:
        if "cannot be understood" in region.kept:
            return f"keeps ({region.type}: {region.kept[:60]})"
    return "skips" if found.free.total else "keeps"


Look = Callable[[Overlay], str]


def run_batch(base: Base, seeds: Sequence[int], look: Look = look_through, cpu_s: float = CASE_CPU_S) -> Outcome:
    """Run cases in a worker. A case that fails ends it; it is run again alone, and the rest in another worker."""
    outcome = Outcome()
    left = list(seeds)
    while left:
        done, failure = _in_worker(base, left, look, cpu_s)
        outcome.counts.update(done)
        if not failure:
            break
        bad = left[len(done)]
        if len(left) > 1 or done:
            _, failure = _in_worker(base, [bad], look, cpu_s)
        if failure:
            outcome.failures[f"{base.name}:{bad}"] = failure
        outcome.counts["failed" if failure else "failed only after others"] += 1
        left = left[len(done) + 1 :]
    return outcome


def _in_worker(base: Base, seeds: Sequence[int], look: Look, cpu_s: float) -> tuple[list[str], str]:
    """What came of the cases up to the first that failed, and why that one did; "" when none did."""
    load_readers(FAMILIES)
    "".join(b"".decode(encoding) for encoding in ENCODINGS)
    end, begin = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        os.close(end)
        _work(base, seeds, begin, look)
    os.close(begin)
    try:
        return _listen(process, end, cpu_s)
    finally:
        os.close(end)
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            pass
        try:
            os.waitpid(process, 0)
        except ChildProcessError:
            pass


def _work(base: Base, seeds: Sequence[int], channel: int, look: Look) -> None:
    """The worker. Does not return."""
    try:
        descriptor = os.open(base.path, os.O_RDONLY)
        sandbox.enter(programs=False)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for seed in seeds:
            try:
                came = look(mutated(base, seed, descriptor))
            except Exception:
                os.write(channel, f"!{traceback.format_exc()}".encode("utf-8", "replace")[:4000])
                os._exit(0)
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > sandbox.MEMORY_BYTES >> 10:
                came = "!more memory than it may have"
            os.write(channel, came.encode("utf-8", "replace").replace(b"\n", b" ") + b"\n")
            if came.startswith("!"):
                break
    finally:
        os._exit(0)


def _listen(process: int, channel: int, cpu_s: float) -> tuple[list[str], str]:
    said = b""
    began = _cpu_s(process)
    while True:
        ready, _, _ = select.select([channel], [], [], 1)
        if ready:
            part = os.read(channel, 1 << 16)
            if not part:
                break
            said += part
            began = _cpu_s(process)
        elif _cpu_s(process) - began > cpu_s:
            return said.decode().splitlines(), "hangs"
    _, status = os.waitpid(process, 0)
    done, bang, failure = said.decode("utf-8", "replace").partition("!")
    lines = done.splitlines()
    if os.WIFSIGNALED(status):
        return lines, f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return lines, failure.strip() if bang else ""


def _cpu_s(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def inspect(base: Base, seed: int) -> Outcome:
    """A case through `inspect_disk`: by a descriptor for even seeds, else asked for piece by piece."""
    name = f"{base.name}:{seed}"
    descriptor = os.open(base.path, os.O_RDONLY)
    memory = os.memfd_create("disk")
    try:
        disk = mutated(base, seed, descriptor)
        disk.copy_to(memory)
        if seed % 2 == 0:
            reader = RawReader(os.dup(memory), disk.size, name)
            try:
                found = inspect_disk(reader, FAMILIES)
            finally:
                reader.close()
        else:
            asked = MemoryDisk(disk.size)
            for at, length in _extents(memory, disk.size):
                asked.write(at, os.pread(memory, length, at))
            found = inspect_disk(asked, FAMILIES)
    except GuestDiskReaderError as error:
        return Outcome(Counter({"failed": 1}), {name: f"inspect_disk: {error}"})
    finally:
        os.close(descriptor)
        os.close(memory)
    return Outcome(Counter({"inspect_disk skips" if found.free.total else "inspect_disk keeps": 1}))


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    at = 0
    while at < size:
        try:
            at = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:
            return
        end = min(os.lseek(descriptor, at, os.SEEK_HOLE), size, at + (1 << 20))
        yield at, end - at
        at = end
