"""Guests for tests: a runtime whose behaviour is written down beforehand, and a guest that is a real process.

`ScriptedRuntime` is a plugin by itself (``plugins=[ScriptedRuntime(...)]``) and answers from memory. `ProcessGuest` makes a
program ``vm`` for the runtime ``command``: its guest holds a disk open and writes to it all the time, so that a disk that was
copied while the guest ran, or a guest that was not started again, shows.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..api import BackendContext, Runtime, RuntimeSpec
from ..errors import GuestError
from ..hookspecs import hookimpl
from ..model import Instance

BLOCK = 4096


class ScriptedRuntime(Runtime):
    """A runtime in memory that does, and fails, as told; also the plugin that announces it. Thread-safe.

    Calls are counted by their names, those of `Runtime`, over all instances: the first is number 1.

    Args:
        name: the backend's name, for an instance's ``runtime``.
        running: full names of the instances that run at first.
        fail: by call, the numbers that raise `GuestError` and change nothing; ``fail={"start": {1, 2}}`` lets the third work.
        fail_after: by call, the numbers that do what is asked and raise `GuestError` all the same.
        lie: by call, the numbers that return as if all were well and change nothing.
        can_freeze: what `can_freeze` says.
        can_trim: what `can_trim` says.
        on_trim: called by a `trim` that works, with the instance: what the guest's discards do to its disks.
        inactive: full names of stopped instances whose disks have to be activated.

    Attributes:
        calls: name of the call and of the instance, in order; `check`, `can_freeze` and `can_trim` are not recorded.
        running, frozen, active, removed: the full names of the instances in that state.
    """

    def __init__(
        self,
        name: str = "scripted",
        *,
        running: Collection[str] = (),
        fail: Mapping[str, Collection[int]] | None = None,
        fail_after: Mapping[str, Collection[int]] | None = None,
        lie: Mapping[str, Collection[int]] | None = None,
        can_freeze: bool = False,
        can_trim: bool = False,
        on_trim: Callable[[Instance], object] | None = None,
        inactive: Collection[str] = (),
    ) -> None:
        self.name = name
        self.calls: list[tuple[str, str]] = []
        self.running = set(running)
        self.frozen: set[str] = set()
        self.active: set[str] = set()
        self.removed: set[str] = set()
        self._freezes = can_freeze
        self._trims, self._on_trim = can_trim, on_trim
        self._inactive = set(inactive)
        self._fail, self._fail_after, self._lie = fail or {}, fail_after or {}, lie or {}
        self._lock = threading.Lock()

    @hookimpl
    def diskhaul_runtimes(self) -> Iterable[RuntimeSpec]:
        yield RuntimeSpec(name=self.name, summary="scripted, for tests", create=self._create)

    def _create(self, context: BackendContext) -> Runtime:
        return self

    def count(self, call: str) -> int:
        """How many times `call` was made."""
        with self._lock:
            return sum(name == call for name, _ in self.calls)

    @contextmanager
    def _called(self, call: str, instance: Instance) -> Iterator[bool]:
        """Record a call; gives whether to do it, and raises what was scripted."""
        with self._lock:
            self.calls.append((call, instance.name))
            number = sum(name == call for name, _ in self.calls)
            if number in self._fail.get(call, ()):
                raise GuestError(f"{instance.name}: scripted failure of {call} number {number}")
            yield number not in self._lie.get(call, ())
            if number in self._fail_after.get(call, ()):
                raise GuestError(f"{instance.name}: scripted failure after {call} number {number}")

    def is_running(self, instance: Instance, /) -> bool:
        with self._called("is_running", instance) as truthful:
            return (instance.name in self.running) == truthful

    def stop(self, instance: Instance, /, *, timeout_s: float) -> object:
        with self._called("stop", instance) as really:
            if really:
                self.running.discard(instance.name)
        return None

    def start(self, instance: Instance, /) -> object:
        with self._called("start", instance) as really:
            if really:
                self.running.add(instance.name)
        return None

    def remove(self, instance: Instance, /) -> object:
        with self._called("remove", instance) as really:
            if instance.name in self.running:
                raise GuestError(f"{instance.name}: is running")
            if really:
                self.removed.add(instance.name)
        return None

    def can_freeze(self, instance: Instance, /) -> bool:
        return self._freezes

    def freeze(self, instance: Instance, /) -> object:
        with self._called("freeze", instance) as really:
            if really:
                self.frozen.add(instance.name)
        return None

    def thaw(self, instance: Instance, /) -> object:
        with self._called("thaw", instance) as really:
            if really:
                self.frozen.discard(instance.name)
        return None

    def can_trim(self, instance: Instance, /) -> bool:
        return self._trims

    def trim(self, instance: Instance, /, *, timeout_s: float) -> object:
        with self._called("trim", instance) as really:
            if instance.name not in self.running:
                raise GuestError(f"{instance.name}: is not running")
            if really and self._on_trim is not None:
                self._on_trim(instance)
        return None

    def activate_disks(self, instance: Instance, /) -> bool:
        with self._called("activate_disks", instance) as really:
            changed = instance.name in self._inactive and instance.name not in self.active
            if changed and really:
                self.active.add(instance.name)
            return changed

    def deactivate_disks(self, instance: Instance, /) -> object:
        with self._called("deactivate_disks", instance) as really:
            if really:
                self.active.discard(instance.name)
        return None


# --- a guest that is a process ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestMarks:
    """What a `ProcessGuest` left on a disk (or on a copy of it).

    Attributes:
        first, last: its counter, which it writes to the first mark, and once that is durable to the last.
        running: it was running then: a clean stop writes False.
        boots: how often it had been started.
    """

    first: int
    last: int
    running: bool
    boots: int

    @property
    def consistent(self) -> bool:
        """They are of one moment: a copy that took its time has a last mark that is newer than its first."""
        return self.first - 1 <= self.last <= self.first if self.running else self.first == self.last


_MARK = struct.Struct("<8sQQ?7x")
_MAGIC = b"DHGUEST1"


def read_marks(disk: str | os.PathLike[str], first_offset: int, last_offset: int) -> GuestMarks:
    """Read what a guest left at its two offsets of `disk`.

    Raises:
        ValueError: there is no mark.
    """
    with open(disk, "rb") as file:
        marks = []
        for offset in (first_offset, last_offset):
            data = os.pread(file.fileno(), _MARK.size, offset)
            if len(data) < _MARK.size or data[:8] != _MAGIC:
                raise ValueError(f"{os.fspath(disk)}: no guest's mark at offset {offset}")
            marks.append(_MARK.unpack(data))
    (_, first, boots, running), (_, last, _, _) = marks
    return GuestMarks(first=first, last=last, running=running, boots=boots)


class ProcessGuest:
    """Makes a program ``vm`` in `directory` whose guest is a real, detached process that keeps writing to `disk`.

    The guest holds a lock on ``guest.lock`` as long as it lives, however it ends; ``vm`` goes by that, so process ids that were
    used again cannot confuse it. Each round it writes a counter to two blocks, `first_offset` and `last_offset`, durably and in
    that order; `marks` reads them. Call `close` in a ``finally``.

    Args:
        directory: exists; gets ``vm``, ``guest.lock``, ``guest.pid``, ``calls`` and the files of `disturb`.
        disk: existing file or device, opened by the guest when it starts.
        first_offset: block of 4096 bytes that the guest may overwrite.
        last_offset: another one; None for the last whole block of the disk.
        interval_s: pause between two rounds, seconds.
    """

    def __init__(
        self,
        directory: Path,
        disk: Path,
        *,
        first_offset: int = 0,
        last_offset: int | None = None,
        interval_s: float = 0.002,
    ) -> None:
        self.directory = directory
        self.disk = disk
        if last_offset is None:
            with open(disk, "rb") as file:
                last_offset = file.seek(0, os.SEEK_END) // BLOCK * BLOCK - BLOCK
        if min(first_offset, last_offset) < 0 or abs(first_offset - last_offset) < BLOCK:
            raise ValueError(f"the marks at {first_offset} and {last_offset} need a block of {BLOCK} bytes each")
        self.first_offset, self.last_offset = first_offset, last_offset
        self.program = directory / "vm"
        settings = {
            "DIRECTORY": str(directory.resolve()),
            "DISK": str(disk.resolve()),
            "OFFSETS": (first_offset, last_offset),
            "INTERVAL_S": interval_s,
        }
        # -I and -S: starts in a few milliseconds, and whatever the test did to its environment does not matter.
        lines = [f"#!{os.path.realpath(sys.executable)} -IS", *(f"{name} = {value!r}" for name, value in settings.items())]
        self.program.write_text("\n".join(lines) + "\n" + _VM_PROGRAM)
        self.program.chmod(0o755)

    @property
    def runtime_options(self) -> dict[str, Any]:
        """For an `Instance` with the runtime ``command``: start, stop, status and remove."""
        return {verb: [str(self.program), verb] for verb in ("start", "stop", "status", "remove")}

    def disturb(self, verb: str, kind: str, times: int = 1) -> None:
        """Make the next `times` calls of ``vm VERB`` go wrong.

        Args:
            kind: "fail": exit code 1 (for ``status`` 9), nothing done. "lie": exit code 0, nothing done. "hang": never
                returns, nothing done.
        """
        if kind not in ("fail", "lie", "hang"):
            raise ValueError(f"unknown kind {kind!r}")
        (self.directory / f"{kind}.{verb}").write_text(str(times))

    def calls(self) -> list[str]:
        """The verbs that ``vm`` was called with, oldest first."""
        try:
            return (self.directory / "calls").read_text().split()
        except FileNotFoundError:
            return []

    def marks(self, disk: str | os.PathLike[str] | None = None) -> GuestMarks:
        """What the guest left on its disk, or on a copy of it."""
        return read_marks(disk if disk is not None else self.disk, self.first_offset, self.last_offset)

    @property
    def running(self) -> bool:
        """Whether the guest's process lives, asked of the kernel, not of ``vm``."""
        with open(self.directory / "guest.lock", "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    @property
    def pid(self) -> int:
        """Process id of the guest that runs, or ran last."""
        return int((self.directory / "guest.pid").read_text())

    def wait_for_progress(self, rounds: int = 3, *, timeout_s: float = 30.0) -> None:
        """Return once the running guest has written `rounds` more rounds.

        Raises:
            TimeoutError: it does not.
        """
        deadline = time.monotonic() + timeout_s
        wanted = self.marks().last + rounds
        while self.marks().last < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the guest in {self.directory} does not write")
            time.sleep(0.001)

    def close(self) -> None:
        """Kill the guest; harmless when it does not run."""
        with open(self.directory / "guest.lock", "ab") as file:
            for _ in range(100):  # a start that is under way may bring up one more
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    pass
                try:
                    os.killpg(self.pid, signal.SIGKILL)  # it leads its own group
                except (FileNotFoundError, ValueError, ProcessLookupError):
                    pass
                time.sleep(0.01)
        raise TimeoutError(f"the guest in {self.directory} cannot be killed")


_VM_PROGRAM = r'''
import fcntl, os, signal, struct, sys, time

MARK = struct.Struct("<8sQQ?7x")
MAGIC = b"DHGUEST1"
os.chdir(DIRECTORY)
os.umask(0o077)


def locked(wait):
    """The lock that the guest holds while it lives, or None when it is taken."""
    lock = os.open("guest.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def disturbed(kind, verb):
    name = f"{kind}.{verb}"
    try:
        left = int(open(name).read())
    except FileNotFoundError:
        return False
    if left <= 1:
        os.unlink(name)
    else:
        open(name, "w").write(str(left - 1))
    return True


def guest(lock, ready):
    """Write rounds until SIGTERM, then mark the disk as stopped."""
    os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    null = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    disk = os.open(DISK, os.O_RDWR)
    old = os.pread(disk, MARK.size, OFFSETS[0])
    counter, boots = MARK.unpack(old)[1:3] if len(old) == MARK.size and old[:8] == MAGIC else (0, 0)
    boots += 1

    def write(running):
        for offset in OFFSETS:
            os.pwrite(disk, MARK.pack(MAGIC, counter, boots, running).ljust(4096, b"\xa5"), offset)
            os.fdatasync(disk)

    counter += 1
    write(True)
    with open("guest.pid.new", "w") as file:
        file.write(str(os.getpid()))
    os.rename("guest.pid.new", "guest.pid")
    os.write(ready, b"1")
    os.close(ready)
    while signal.sigtimedwait({signal.SIGTERM}, INTERVAL_S) is None:
        counter += 1
        write(True)
    counter += 1
    write(False)
    os._exit(0)


def start():
    lock = locked(wait=False)
    if lock is None:
        return 0
    if os.path.exists("guest.pid"):
        os.unlink("guest.pid")  # from here on it may be another process's
    reading, ready = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        try:
            guest(lock, ready)
        except BaseException as error:
            os.write(2, repr(error).encode() + b"\n")
        finally:
            os._exit(1)
    os.close(ready)
    if os.read(reading, 1) != b"1":
        print("the guest did not come up", file=sys.stderr)
        return 1
    return 0


def stop():
    lock = locked(wait=False)
    if lock is None:
        while not os.path.exists("guest.pid"):
            time.sleep(0.005)  # another start is under way
        os.kill(int(open("guest.pid").read()), signal.SIGTERM)
        locked(wait=True)
    return 0


def status():
    return 0 if locked(wait=False) is None else 3


def remove():
    if locked(wait=False) is None:
        print("the guest is running", file=sys.stderr)
        return 1
    os.unlink(DISK)
    return 0


verb = sys.argv[1] if len(sys.argv) == 2 else ""
verbs = {"start": start, "stop": stop, "status": status, "remove": remove}
if verb not in verbs:
    print(f"usage: {sys.argv[0]} start|stop|status|remove", file=sys.stderr)
    sys.exit(2)
calls = os.open("calls", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
os.write(calls, verb.encode() + b"\n")
if disturbed("fail", verb):
    print(f"told to fail: {verb}", file=sys.stderr)
    sys.exit(9 if verb == "status" else 1)
if disturbed("lie", verb):
    sys.exit(0)
while disturbed("hang", verb):
    while True:
        time.sleep(3600)
sys.exit(verbs[verb]())
'''
