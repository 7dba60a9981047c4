"""Locks ``file``: shared and exclusive locks as files in ``<state_dir>/locks``.

Why not filelock's ``SoftReadWriteLock``: it never looks whether a holder's process is alive, so a killed run would block the next
one for a whole lease, and it keeps a log of some 60 files for every name that was ever locked. This is the same idea (records
that are created and unlinked, a nonce that beats, staleness measured on the observer's own clock) with less on the disk.

How it works
    Each request is one record file, ``<escaped name>@<number>.<x or s>``, with who asks and what for. The number comes from a
    counter (the file ``counter``) that is raised, and the record created, under ``flock`` on the counter: whoever has a number
    has seen every record with a smaller one. A request is granted as soon as no record of that name with a smaller number, in
    a conflicting mode, is left. That makes the queue fair (a stream of shared locks cannot starve an exclusive one), and the
    number is the fencing token: it grows with every grant of a name and is never used twice.

    The record is removed when the lock is released; when nothing is held, only ``counter`` is in the directory, and it stays,
    since the tokens must go on growing.

Who is dead
    Where the waiting process can see the other (same boot, same pid namespace), it asks the kernel, by process id and start
    time: a process that is gone is dead at once; one that runs is alive, however slow its disk is. A record of an earlier boot
    on a local filesystem is dead at once.

    Everybody else has a lease (30 s; ``[backend_options.file] lease_s``): processes of other machines and containers, and
    processes that are stopped. A thread changes each record of ours every third of the lease; a record that has not changed
    for its lease, on the monotonic clock of the one who waits, is dead. Clocks are never compared. So a holder that is stopped
    for longer than its lease loses the lock to whoever waits for it, and `HeldLock.check` tells it; while nobody wants the
    lock it stays held. Whoever wants to wait for less than that lease waits on, until the holder has shown a sign of life or
    the lease is over: else a lock that is only asked for briefly would never leave a dead machine. A deadline of 0 stays one.

What holds where
    Threads of one process exclude each other like processes. A forked child holds nothing. Local filesystems: all of this.
    Network filesystems: the same as long as ``flock`` works between their clients (NFSv4, or NFSv3 with lockd; not with
    ``nolock`` or ``local_lock``) and creation is exclusive; a client that loses its ``flock`` in the microseconds between
    taking a number and creating its record is not protected. Where that is not good enough, use a lock service.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from diskhaul.api import BackendContext, Capability, HeldLock, LockMode, Locks
from diskhaul.errors import ConfigurationError, InterruptedRunError, LockError, LockLostError, LockTimeoutError
from diskhaul.mounts import mount_of
from diskhaul.names import escape
from diskhaul.permissions import stranger_problems
from diskhaul.processes import process_stat

DEFAULT_LEASE_S = 30.0
MIN_LEASE_S, MAX_LEASE_S = 0.2, 3600.0
COUNTER = "counter"
_COUNTER_FORMAT = "{:020d}\n"
_RECORD = re.compile(r"(?P<stem>[^@]+)@(?P<number>[0-9]{20})\.(?P<mode>[xs])\Z")
_MODE = {LockMode.EXCLUSIVE: "x", LockMode.SHARED: "s"}
_BEAT_BYTES = 33  # 32 hex digits and a newline in front of the record's JSON; rewritten in place
_MAX_RECORD_BYTES = 16 * 1024
_FIRST_POLL_S, _LAST_POLL_S = 0.001, 0.1
_CHECK_WAIT_S = 5.0
# Filesystems that only one kernel has mounted: a record of another boot in them is of a process that is gone.
_LOCAL_FILESYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "zfs", "f2fs", "bcachefs", "jfs", "overlay"})


def capability() -> Capability:
    if not _boot_id() or process_stat(os.getpid()) is None:
        return Capability(works=True, detail="no /proc: a killed run's locks last until their lease ends")
    return Capability(works=True)


# --- records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """What a record says. `beat` is its changing part; `identity` never changes and is no other record's."""

    beat: bytes
    identity: str
    owner: str
    host: str
    pid: int
    started: int
    boot: str
    namespace: str
    since: str
    lease_s: float

    @property
    def line(self) -> str:
        """Who it is, for those who wait."""
        return f"{escape(self.owner)} (pid {self.pid} on {escape(self.host)}, since {escape(self.since)})"


def _encode(identity: str, owner: str, lease_s: float) -> bytes:
    fields = {
        "identity": identity,
        "owner": owner[:500],
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _start_time(os.getpid()),
        "boot": _boot_id(),
        "namespace": _pid_namespace(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "lease_s": lease_s,
    }
    return _new_beat() + json.dumps(fields, ensure_ascii=True).encode() + b"\n"


def _new_beat() -> bytes:
    return secrets.token_hex(16).encode() + b"\n"


def _decode(data: bytes) -> _Record | None:
    """The record in `data`, or None when it is not (or not yet) one."""
    try:
        fields: Any = json.loads(data[_BEAT_BYTES:])
        lease_s = float(fields.pop("lease_s"))
        if not math.isfinite(lease_s):
            return None
        return _Record(
            beat=data[:_BEAT_BYTES],
            lease_s=min(max(lease_s, MIN_LEASE_S), MAX_LEASE_S),
            pid=int(fields.pop("pid")),
            started=int(fields.pop("started")),
            **{name: str(value) for name, value in fields.items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _read(path: Path) -> bytes | None:
    """The bytes of a record file, or None when there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return os.read(descriptor, _MAX_RECORD_BYTES)
    finally:
        os.close(descriptor)


def _unlink(path: Path) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _stem(name: str) -> str:
    """File name for a lock name: the same for no two names, and short enough for any filesystem."""
    quoted = quote(name, safe="", errors="backslashreplace")
    if len(quoted) > 180:
        # quote() leaves no "=" in its result, so a shortened name is never another name's quoted one.
        return f"{quoted[:120]}={hashlib.sha256(name.encode('utf-8', 'backslashreplace')).hexdigest()[:40]}"
    return quoted


# --- who is alive -----------------------------------------------------------------------------------------------------


class _Condition(Enum):
    """What the kernel says about a record's process."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"
    """Elsewhere, or stopped: its lease decides."""


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _start_time(pid: int) -> int:
    """Start time of a process in clock ticks since boot; 0 when it does not run (any more)."""
    fields = process_stat(pid)
    return 0 if fields is None or fields[0] in ("Z", "X") else int(fields[19])


# --- a request --------------------------------------------------------------------------------------------------------


class _Request(HeldLock):
    """Our own record: a lock that is waited for or held. Its beat is changed by a thread of its own until `release`."""

    def __init__(self, name: str, path: Path, number: int, identity: str, lease_s: float) -> None:
        self.name = name
        self.path = path
        self._number = number
        self._identity = identity
        self._pid = os.getpid()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(lease_s / 3,), name=f"diskhaul lock {name}", daemon=True)
        self._thread.start()

    @property
    def token(self) -> int:
        return self._number

    def exists(self) -> bool:
        """Whether the record is still there and ours."""
        data = _read(self.path)
        record = _decode(data) if data is not None else None
        return record is not None and record.identity == self._identity

    def check(self) -> object:
        if os.getpid() != self._pid:
            raise LockLostError(f"lock {self.name}: held by process {self._pid}, not by its child {os.getpid()}")
        if self._released.is_set():
            raise LockLostError(f"lock {self.name}: was released")
        try:
            held = self.exists()
        except OSError as error:
            raise LockLostError(f"lock {self.name}: cannot be checked: {self.path}: {error.strerror}") from error
        if not held:
            raise LockLostError(
                f"lock {self.name}: lost: it did not show a sign of life for its lease, and another run took it over"
            )
        return None

    def release(self) -> object:
        """Remove the record. In a forked child, where the lock is not ours, nothing happens."""
        if os.getpid() != self._pid or self._released.is_set():
            return None
        self._released.set()
        # No number is used twice, so this path is ours or nobody's, also when the lock was lost long ago.
        try:
            _unlink(self.path)
        except OSError as error:
            raise LockError(f"lock {self.name}: cannot be released: {self.path}: {error.strerror}") from error
        finally:
            self._thread.join(timeout=5.0)
        return None

    def _beat(self, interval_s: float) -> None:
        while not self._released.wait(interval_s):
            try:
                # Without O_CREAT, and opened each time: a record that was taken away never comes back.
                descriptor = os.open(self.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                return
            except OSError:  # a network filesystem may come back before the lease ends
                continue
            try:
                os.pwrite(descriptor, _new_beat(), 0)
            except OSError:
                pass
            finally:
                try:
                    os.close(descriptor)
                except OSError:
                    pass


# --- the lock service -------------------------------------------------------------------------------------------------


class FileLocks(Locks):
    """Locks of one cluster in its state directory. Thread-safe; any number of them may serve one directory."""

    def __init__(self, context: BackendContext) -> None:
        self._state_dir = Path(context.cluster.state_dir)
        self._directory = self._state_dir / "locks"
        unknown = [key for key in context.options if key != "lease_s"]
        problems = [f"backend_options.file.{key}: unknown; there is lease_s" for key in unknown]
        lease_s = context.options.get("lease_s", DEFAULT_LEASE_S)
        if isinstance(lease_s, bool) or not isinstance(lease_s, int | float) or not MIN_LEASE_S <= lease_s <= MAX_LEASE_S:
            problems.append(
                f"backend_options.file.lease_s: {lease_s!r} is not a number of seconds from {MIN_LEASE_S} to {MAX_LEASE_S:.0f}"
            )
        if problems:
            raise ConfigurationError(problems)
        self._lease_s = float(lease_s)

    def check(self) -> Iterable[str]:
        """What is wrong with the state directory, one line each; creates nothing."""
        if not self._state_dir.is_dir():
            state = "is not a directory" if os.path.lexists(self._state_dir) else "does not exist"
            return [f"cluster.state_dir: {self._state_dir} {state}: create it, or correct the configuration"]
        problems = _directory_problems("cluster.state_dir", self._state_dir)
        if os.path.lexists(self._directory):
            problems += _directory_problems("locks", self._directory)
            counter = self._directory / COUNTER
            if not problems and os.path.lexists(counter):
                try:
                    with _locked(counter, os.O_RDWR, time.monotonic() + _CHECK_WAIT_S, lambda: False) as descriptor:
                        _counted(descriptor, counter)
                except _BusyError:
                    pass  # it works for somebody; `acquire` says so at its deadline
                except OSError as error:
                    problems.append(f"locks: {counter}: {error.strerror}")
                except LockError as error:
                    problems.append(str(error))
        return problems

    def acquire(
        self,
        name: str,
        mode: LockMode,
        /,
        *,
        owner: str,
        deadline_s: float,
        on_wait: Callable[[str], object],
        cancelled: Callable[[], bool],
    ) -> HeldLock:
        started = time.monotonic()
        deadline = started + deadline_s
        watch = _Watch(self._directory)
        told: set[str] = set()
        while True:
            try:
                request = self._request(name, mode, owner, deadline, cancelled)
                try:
                    ahead = self._ahead(request, watch)
                    granted = self._wait(request, mode, ahead, watch, started, deadline, on_wait, cancelled, told)
                except BaseException as error:
                    try:
                        request.release()
                    except LockError as second:
                        error.add_note(str(second))
                    raise
            except OSError as error:
                raise LockError(f"lock {name}: {error.filename or self._directory}: {error.strerror}") from error
            if granted:
                return request
            # We were stopped for so long that somebody took us for dead: queue again.
            request.release()

    def _request(self, name: str, mode: LockMode, owner: str, deadline: float, cancelled: Callable[[], bool]) -> _Request:
        """Take a number and create our record with it."""
        try:
            os.mkdir(self._directory, 0o700)
        except FileExistsError:
            pass
        if not stat.S_ISDIR(os.lstat(self._directory).st_mode):
            raise LockError(f"locks: {self._directory} is not a directory")
        counter = self._directory / COUNTER
        identity = secrets.token_hex(16)
        try:
            with _locked(counter, os.O_RDWR | os.O_CREAT, deadline, cancelled) as descriptor:
                number = _counted(descriptor, counter) + 1
                os.pwrite(descriptor, _COUNTER_FORMAT.format(number).encode(), 0)
                os.fdatasync(descriptor)  # a token must not be given out again after a crash of the machine
                path = self._directory / f"{_stem(name)}@{number:020d}.{_MODE[mode]}"
                try:
                    _write_new(path, _encode(identity, owner, self._lease_s))
                    return _Request(name, path, number, identity, self._lease_s)
                except BaseException:
                    # Our process lives, so nobody else would ever take the record away.
                    _unlink(path)
                    raise
        except _BusyError as error:
            raise LockTimeoutError(name, "a process that is changing the queue and may be stopped", error.waited_s) from error

    def _ahead(self, request: _Request, watch: _Watch) -> list[_Ahead]:
        """The records of the same name in front of ours, oldest first. Removes records of dead processes on the way."""
        stem = _stem(request.name)
        ahead = []
        for entry in os.listdir(self._directory):
            match = _RECORD.match(entry)
            if match is None or int(match["number"]) >= request.token:
                continue
            if match["stem"] == stem:
                ahead.append(_Ahead(number=int(match["number"]), path=self._directory / entry, exclusive=match["mode"] == "x"))
            else:
                # Names that nobody asks for again (an export's) would otherwise keep the record of a killed run forever.
                watch.look(self._directory / entry, waiting=False)
        return sorted(ahead, key=lambda record: record.number)

    def _wait(
        self,
        request: _Request,
        mode: LockMode,
        ahead: list[_Ahead],
        watch: _Watch,
        started: float,
        deadline: float,
        on_wait: Callable[[str], object],
        cancelled: Callable[[], bool],
        told: set[str],
    ) -> bool:
        """Wait until nothing in `ahead` conflicts; False when our own record was taken away meanwhile."""
        poll_s, before = _FIRST_POLL_S, len(ahead)
        while True:
            ahead = [record for record in ahead if watch.look(record.path, waiting=True) is not None]
            # Ours is looked at after the others: had it been taken away before, those behind us might already hold the lock.
            if not request.exists():
                return False
            blocking = [record for record in ahead if record.exclusive or mode is LockMode.EXCLUSIVE]
            if not blocking:
                return True
            holders = _holding(ahead, watch)
            for identity, line in holders.items():
                if identity not in told:
                    told.add(identity)
                    on_wait(line)
            if cancelled():
                raise InterruptedRunError(f"cancelled while waiting for lock {request.name}")
            left = deadline - time.monotonic()
            # Their lease alone could tell, and it is longer than this wait: each soon beats, or is soon dead.
            in_doubt = deadline > started and all(watch.silent(record.path) for record in blocking)
            if left <= 0 and not in_doubt:
                raise LockTimeoutError(request.name, "; ".join(holders.values()), time.monotonic() - started)
            if len(ahead) < before:  # the queue moves: look closely again
                poll_s, before = _FIRST_POLL_S, len(ahead)
            time.sleep(min(poll_s, left) if left > 0 else poll_s)
            poll_s = min(poll_s * 1.5, _LAST_POLL_S, self._lease_s / 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ahead:
    """A record in front of ours."""

    number: int
    path: Path
    exclusive: bool


def _holding(ahead: list[_Ahead], watch: _Watch) -> dict[str, str]:
    """Identity and line of each record in `ahead` (oldest first) that holds the lock, rather than waits for it."""
    holders: dict[str, str] = {}
    for index, record in enumerate(ahead):
        if index and (record.exclusive or ahead[0].exclusive):
            break
        data = watch.last(record.path)
        known = _decode(data) if data is not None else None
        holders[known.identity if known else record.path.name] = known.line if known else "a process that left no name"
    return holders


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A record as it was when it was last looked at, and since when: `looked` is on our own clock.

    `first` is what it held when the kernel was first found to say nothing about its owner; None while it says that it lives.
    """

    data: bytes
    first: bytes | None
    unchanged_s: float
    looked: float


class _Watch:
    """Looks at the records of others, removes those of the dead, and remembers for how long each has not changed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._seen: dict[Path, _Seen] = {}
        self._local: bool | None = None

    def last(self, path: Path) -> bytes | None:
        """What the record held when it was last looked at."""
        seen = self._seen.get(path)
        return seen.data if seen else None

    def silent(self, path: Path) -> bool:
        """Whether only the lease of the record can tell if its owner lives: it has given no sign of it while it was watched."""
        seen = self._seen.get(path)
        return seen is not None and seen.data == seen.first

    def look(self, path: Path, *, waiting: bool) -> bytes | None:
        """Return the record's bytes, or None when it is gone, or was its dead owner's and has been removed.

        `waiting` counts the time it has not changed; otherwise only those that are certainly dead are removed.
        """
        data = _read(path)
        if data is None:
            self._seen.pop(path, None)
            return None
        record = _decode(data)
        if record is None:
            dead = self._was_never_written(path)
        else:
            condition = self._condition(record)
            dead = condition is _Condition.DEAD
            if waiting and not dead:
                if condition is _Condition.ALIVE:
                    self._seen[path] = _Seen(data=data, first=None, unchanged_s=0.0, looked=time.monotonic())
                else:
                    dead = self._unchanged_s(path, data) > record.lease_s
        if dead:
            # The path holds a number, so it cannot have become another, living, request's meanwhile.
            _unlink(path)
            self._seen.pop(path, None)
            return None
        return data

    def _unchanged_s(self, path: Path, data: bytes) -> float:
        now = time.monotonic()
        unchanged = 0.0
        seen = self._seen.get(path)
        if seen is not None and seen.data == data:
            # Time during which we ourselves were stopped (or the whole machine was) proves nothing about the other.
            unchanged = seen.unchanged_s + min(now - seen.looked, 2 * _LAST_POLL_S)
        first = data if seen is None or seen.first is None else seen.first
        self._seen[path] = _Seen(data=data, first=first, unchanged_s=unchanged, looked=now)
        return unchanged

    def _condition(self, record: _Record) -> _Condition:
        if not record.boot or not _boot_id():
            return _Condition.UNKNOWN
        if record.boot != _boot_id():
            if self._local is None:
                mount = mount_of(self._directory)
                self._local = mount is not None and mount.kind in _LOCAL_FILESYSTEMS
            return _Condition.DEAD if self._local else _Condition.UNKNOWN
        if not record.namespace or record.namespace != _pid_namespace() or not record.started:
            return _Condition.UNKNOWN
        if _start_time(record.pid) != record.started:
            return _Condition.DEAD
        fields = process_stat(record.pid)
        return _Condition.UNKNOWN if fields is None or fields[0] in ("T", "t") else _Condition.ALIVE

    def _was_never_written(self, path: Path) -> bool:
        """Whether a record without content is of a process that died while creating it."""
        try:
            with _locked(self._directory / COUNTER, os.O_RDWR, time.monotonic(), lambda: False):
                data = _read(path)  # nobody is creating a record now
        except (_BusyError, OSError):
            return False
        return data is not None and _decode(data) is None


# --- files ------------------------------------------------------------------------------------------------------------


class _BusyError(Exception):
    """The counter was locked by another process for the whole time."""

    def __init__(self, waited_s: float) -> None:
        super().__init__(f"locked for {waited_s:.1f} s")
        self.waited_s = waited_s


@contextmanager
def _locked(path: Path, flags: int, deadline: float, cancelled: Callable[[], bool]) -> Iterator[int]:
    """Open `path` and hold ``flock`` on it. Each call has an open file of its own, so threads exclude each other as well.

    Raises:
        _BusyError: another process had it until the deadline; it is tried at least once.
    """
    started = time.monotonic()
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        wait_s = 0.0005
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if cancelled():
                    raise InterruptedRunError("cancelled while waiting for a lock") from None
                if time.monotonic() >= deadline:
                    raise _BusyError(time.monotonic() - started) from None
                time.sleep(wait_s)
                wait_s = min(wait_s * 2, 0.02)
        try:
            yield descriptor
        finally:
            # Not left to close(): a child that was forked meanwhile has the open file too, and would keep it locked.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _counted(descriptor: int, path: Path) -> int:
    """The number in the counter; a new one is empty."""
    data = os.pread(descriptor, 64, 0)
    if not data:
        return 0
    if not re.fullmatch(rb"[0-9]{20}\n", data):
        raise LockError(f"locks: {path} is damaged; remove it once no diskhaul uses this cluster")
    return int(data)


def _write_new(path: Path, data: bytes) -> None:
    """Create a record; closing it is what shows it to other clients of a network filesystem."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        written = os.write(descriptor, data)
    finally:
        os.close(descriptor)
    if written != len(data):
        raise LockError(f"locks: {path} could not be written as a whole; is the filesystem full?")


def _directory_problems(key: str, path: Path) -> list[str]:
    found = os.lstat(path) if key == "locks" else os.stat(path)
    if not stat.S_ISDIR(found.st_mode):
        return [f"{key}: {path} is not a directory"]
    # Whoever may write here can take our locks away. Administrators that work on one cluster may do so as a group.
    problems = [f"{key}: {problem}" for problem in stranger_problems(path, found, group_may_write=True)]
    if not os.access(path, os.W_OK | os.X_OK) or os.statvfs(path).f_flag & os.ST_RDONLY:
        problems.append(f"{key}: {path} cannot be written")
    return problems
