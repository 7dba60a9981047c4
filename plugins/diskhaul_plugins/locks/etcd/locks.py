"""Locks ``etcd``: a queue of keys in etcd for each lock.

How it works
    Each request has a lease of its own and one key that is bound to it,
    ``/diskhaul/<cluster>/locks/<level>/<name>/<x or s>-<random>``, whose value is the line of who asks. Keys are ordered by
    their create revision. A request is granted as soon as no key with a smaller one, in a conflicting mode, is left: the queue is
    fair. The create revision is the fencing token: etcd raises it with every change and never gives one out twice.

    The lock is released by revoking its lease, which removes the key, also when the key is created only later by a request that
    was taken for lost.

Who holds what
    A thread renews each lease every third of it. A holder whose lease may have ended by its own clock (one that counts while the
    machine sleeps) has lost the lock for good, whatever etcd says; so has one that cannot ask etcd. `HeldLock.check` asks etcd in
    a transaction whether the very key, of that revision and lease, is there. A forked child holds nothing.

    etcd's own clock decides when a lease ends, and it starts later than ours, so that we give up first; a small part of the lease
    earlier still, for clocks that run at different speeds.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from diskhaul.api import BackendContext, HeldLock, LockMode, Locks
from diskhaul.errors import InterruptedRunError, LockError, LockLostError, LockTimeoutError
from diskhaul.names import escape

from .gateway import ClusterIdentity, Gateway, LeaseExistsError, LeaseGoneError, UnreachableError, decode, encode
from .options import EtcdOptions, read_options

_MODE = {LockMode.EXCLUSIVE: "x", LockMode.SHARED: "s"}
_FIRST_POLL_S, _LAST_POLL_S = 0.01, 0.3
_MAX_BUDGET_S = 10.0
_MARGIN = 0.95
"""The part of a lease that we rely on."""
_MAX_OWNER = 500


def _now() -> float:
    """Seconds on a clock that nobody sets, and that counts while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Queued:
    """A key in front of ours."""

    key: bytes
    line: str
    exclusive: bool


class _Request(HeldLock):
    """Our own key and lease: a lock that is waited for or held. A thread renews the lease until `release`."""

    def __init__(self, name: str, options: EtcdOptions, identity: ClusterIdentity, budget_s: float) -> None:
        self.name = name
        self._options, self._identity, self._budget_s = options, identity, budget_s
        self._pid = os.getpid()
        self._lease = ""
        self._key = b""
        self._token = 0
        self._expiry = 0.0
        self._lost = ""
        self._released = threading.Event()
        self._state = threading.Lock()
        self._using = threading.Lock()
        self._gateway = Gateway(options, identity)
        self._thread: threading.Thread | None = None

    @property
    def token(self) -> int:
        return self._token

    # --- beginning ---

    def enter(self, prefix: bytes, mode: LockMode, owner: str, cancelled: Callable[[], bool]) -> None:
        """Get a lease, and create the key."""
        # We choose the number (63 bits), so that a grant whose answer is lost can be asked for again and revoked.
        self._lease = str(secrets.randbelow(2**63 - 1) + 1)
        begun = _now()
        granted_s = self._grant(cancelled)
        with self._state:
            self._expiry = begun + granted_s * _MARGIN
        self._thread = threading.Thread(target=self._renew, args=(granted_s / 3,), name=f"diskhaul lock {self.name}", daemon=True)
        self._thread.start()
        self._key = prefix + f"{_MODE[mode]}-{secrets.token_hex(16)}".encode()
        key = encode(self._key)
        body = {
            "compare": [{"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}],
            "success": [{"request_put": {"key": key, "value": encode(owner.encode()), "lease": self._lease}}],
            "failure": [{"request_range": {"key": key}}],
        }
        answer = self._gateway.call("kv/txn", body, self._budget_s, cancelled)
        if answer.get("succeeded"):
            self._token = int(answer["header"]["revision"])
        else:  # an attempt whose answer was lost had made it
            (found,) = answer["responses"][0]["response_range"]["kvs"]
            self._token = int(found["create_revision"])

    def _grant(self, cancelled: Callable[[], bool]) -> float:
        """Make the lease; return its seconds, which etcd may have raised."""
        try:
            body = {"TTL": str(self._options.lease_s), "ID": self._lease}
            answer = self._gateway.call("lease/grant", body, self._budget_s, cancelled)
        except LeaseExistsError:  # an attempt whose answer was lost had made it
            return float(self._options.lease_s)
        return float(answer["TTL"])

    # --- waiting ---

    def ahead(self, prefix: bytes, cancelled: Callable[[], bool]) -> list[_Queued] | None:
        """The keys in front of ours, oldest first; None when our own is gone."""
        body = {
            "key": encode(prefix),
            "range_end": encode(prefix[:-1] + bytes([prefix[-1] + 1])),
            "sort_target": "CREATE",
            "sort_order": "ASCEND",
            "max_create_revision": str(self._token),
        }
        found = self._gateway.call("kv/range", body, self._budget_s, cancelled).get("kvs", [])
        keys = [decode(entry["key"]) for entry in found]
        if self._key not in keys or not self._is_alive():
            return None
        return [
            _Queued(
                key=key,
                line=escape(decode(entry.get("value", "")).decode(errors="backslashreplace")),
                exclusive=key[len(prefix) :].startswith(b"x"),
            )
            for key, entry in zip(keys, found, strict=True)
            if key != self._key
        ]

    # --- holding ---

    def check(self) -> object:
        if os.getpid() != self._pid:
            raise LockLostError(f"lock {self.name}: held by process {self._pid}, not by its child {os.getpid()}")
        with self._using:
            if self._released.is_set():
                raise LockLostError(f"lock {self.name}: was released")
            if self._is_alive():
                self._ask()
            if not self._is_alive():
                raise LockLostError(f"lock {self.name}: lost: {self._lost}")
        return None

    def _ask(self) -> None:
        key = encode(self._key)
        # A transaction without a read in it would be answered by the member alone, quorum or not.
        read = [{"request_range": {"key": key, "keys_only": True}}]
        body = {
            "compare": [
                {"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": str(self._token)},
                {"key": key, "target": "LEASE", "result": "EQUAL", "lease": self._lease},
            ],
            "success": read,
            "failure": read,
        }
        with self._state:
            left_s = self._expiry - _now()
        try:
            answer = self._gateway.call("kv/txn", body, min(self._budget_s, left_s))
        except (UnreachableError, LeaseGoneError) as error:
            raise LockLostError(f"lock {self.name}: cannot be checked, so it counts as lost: {error}") from error
        if not answer.get("succeeded"):
            self._lose("its key is gone from etcd: the lease ended, or somebody removed it")

    def _is_alive(self) -> bool:
        """Whether the lease cannot have ended by our own clock. Once it may have, it is lost for good."""
        with self._state:
            if not self._lost and _now() >= self._expiry:
                self._lost = "it could not be renewed during its lease (the process was stopped, or etcd did not answer)"
            return not self._lost

    def _lose(self, reason: str) -> None:
        with self._state:
            self._lost = self._lost or reason

    def _renew(self, interval_s: float) -> None:
        gateway = Gateway(self._options, self._identity)
        try:
            wait_s = interval_s
            while not self._released.wait(wait_s) and self._is_alive():
                begun = _now()
                try:
                    answer = gateway.call("lease/keepalive", {"ID": self._lease}, interval_s, self._released.is_set)
                    left_s = float(answer.get("TTL", 0))
                except LeaseGoneError:
                    left_s = 0.0
                except (UnreachableError, InterruptedRunError):
                    wait_s = interval_s / 10  # the lease has not ended yet
                    continue
                if left_s <= 0:
                    self._lose("its lease has ended: it was not renewed in time")
                    return
                wait_s = interval_s
                if self._is_alive():  # the answer may have been read after a long stop
                    with self._state:
                        self._expiry = max(self._expiry, begun + left_s * _MARGIN)
        finally:
            gateway.close()

    # --- ending ---

    def release(self) -> object:
        """Revoke the lease, and with it the key. In a forked child, where the lock is not ours, nothing happens."""
        if os.getpid() != self._pid:
            return None
        with self._using:
            if self._released.is_set():
                return None
            self._released.set()
            try:
                if self._lease:
                    self._gateway.call("lease/revoke", {"ID": self._lease}, self._budget_s)
            except LeaseGoneError:
                pass  # it has ended by itself
            except UnreachableError as error:
                raise LockError(f"lock {self.name}: cannot be released: {error}") from error
            finally:
                self._gateway.close()
                if self._thread is not None:
                    self._thread.join(timeout=2 * self._budget_s)
        return None


class EtcdLocks(Locks):
    """Locks of one cluster in etcd. Thread-safe; any number of them may serve one cluster."""

    def __init__(self, context: BackendContext) -> None:
        self._options = read_options(context)
        self._prefix = f"/diskhaul/{quote(context.cluster.name, safe='', errors='backslashreplace')}/locks/"
        self._identity = ClusterIdentity()
        # For one request, over all endpoints: far shorter than the lease, and long enough for the election of a leader.
        self._budget_s = min(_MAX_BUDGET_S, self._options.lease_s / 3)

    def check(self) -> Iterable[str]:
        """Why etcd cannot be used: files, then each endpoint. A linearizable read has to succeed."""
        problems = self._options.file_problems()
        if problems:
            return problems
        gateway = Gateway(self._options, self._identity)
        try:
            gateway.call("kv/range", {"key": encode(self._prefix.encode()), "keys_only": True}, self._budget_s)
        except UnreachableError as error:
            return [f"etcd: {endpoint}: {reason}: {_remedy(reason)}" for endpoint, reason in error.reasons.items()]
        except LeaseGoneError as error:
            return [f"etcd: a member answers what was not asked: {error}"]
        finally:
            gateway.close()
        return []

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
        told: set[bytes] = set()
        line = f"{owner[:_MAX_OWNER]} (pid {os.getpid()} on {socket.gethostname()}, since {_timestamp()})"
        line = line.encode(errors="backslashreplace").decode()
        prefix = self._prefix_of(name)
        while True:
            request = _Request(name, self._options, self._identity, self._budget_s)
            try:
                request.enter(prefix, mode, line, cancelled)
                granted = self._wait(request, prefix, mode, started, deadline_s, on_wait, cancelled, told)
            except BaseException as error:
                self._withdraw(request, error)
                if isinstance(error, LeaseGoneError):
                    raise LockError(
                        f"lock {name}: its lease ended before it could be queued for; is the lease too short?"
                    ) from error
                if isinstance(error, UnreachableError):
                    raise LockError(f"lock {name}: {error}") from error
                raise
            if granted:
                return request
            self._withdraw(request, None)
            # We were stopped, or etcd was away, for longer than our lease: queue again, at the end.
            if time.monotonic() - started > deadline_s:
                raise LockTimeoutError(name, "nobody known: this process lost its place in the queue", time.monotonic() - started)

    @staticmethod
    def _withdraw(request: _Request, error: BaseException | None) -> None:
        try:
            request.release()
        except LockError as second:
            if error is not None:
                error.add_note(f"{second}; it expires by itself")

    def _prefix_of(self, name: str) -> bytes:
        level, slash, rest = name.partition("/")
        if not slash:
            level, rest = "=", name  # quote() leaves no "=" in its result
        return "".join(
            [self._prefix, *(f"{quote(part, safe='', errors='backslashreplace')}/" for part in (level, rest))]
        ).encode()

    def _wait(
        self,
        request: _Request,
        prefix: bytes,
        mode: LockMode,
        started: float,
        deadline_s: float,
        on_wait: Callable[[str], object],
        cancelled: Callable[[], bool],
        told: set[bytes],
    ) -> bool:
        """Wait until no key in front of ours conflicts; False when ours is gone, or may be."""
        poll_s, before = _FIRST_POLL_S, -1
        while True:
            ahead = request.ahead(prefix, cancelled)
            if ahead is None:
                return False
            if not any(entry.exclusive or mode is LockMode.EXCLUSIVE for entry in ahead):
                return True
            holders = _holding(ahead)
            for holder in holders:
                if holder.key not in told:
                    told.add(holder.key)
                    on_wait(holder.line)
            if cancelled():
                raise InterruptedRunError(f"cancelled while waiting for lock {request.name}")
            waited_s = time.monotonic() - started
            if waited_s >= deadline_s:
                raise LockTimeoutError(request.name, "; ".join(holder.line for holder in holders), waited_s)
            if len(ahead) != before:  # the queue moves: look closely again
                poll_s, before = _FIRST_POLL_S, len(ahead)
            time.sleep(min(poll_s, deadline_s - waited_s))
            poll_s = min(poll_s * 1.5, _LAST_POLL_S)


def _holding(ahead: list[_Queued]) -> list[_Queued]:
    """Those at the head of the queue that hold the lock: one exclusively, or all shared ones before the first exclusive one."""
    if ahead[0].exclusive:
        return ahead[:1]
    holders: list[_Queued] = []
    for entry in ahead:
        if entry.exclusive:
            break
        holders.append(entry)
    return holders


def _timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _remedy(reason: str) -> str:
    lower = reason.lower()
    if "certificate" in lower or "ssl" in lower:
        return "see ca, cert and key in [backend_options.etcd]"
    if "no leader" in lower or ("timed out" in lower and "etcdserver" in lower) or "read timed out" in lower:
        return "the etcd cluster has no quorum, or this member is cut off: see 'etcdctl endpoint status --cluster'"
    return "is etcd running there, and does no firewall stand between? See endpoints in [backend_options.etcd]"
