"""Requests to an etcd cluster through the JSON gateway of whichever member answers.

etcd3gw's client speaks to one member. Here are several, one after the other, within one budget of time. Every request that is
made here may be sent twice: reads, a key that is created once, a lease's renewal and its end.

Only linearizable reads are made: a member that has no quorum, or is cut off from the others, cannot answer them from what it
remembers. Formats: etcd's ``rpc.proto`` (API v3), https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/.
"""

from __future__ import annotations

import re
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

from diskhaul.errors import ConfigurationError, InterruptedRunError, LockError
from diskhaul.names import escape

try:
    import requests
    from etcd3gw.client import Etcd3Client
    from etcd3gw.exceptions import Etcd3Exception
except ImportError as error:
    raise ConfigurationError("the lock etcd needs etcd3gw: pip install 'diskhaul[etcd]'") from error

from .options import EtcdOptions

API_PATH = "/v3/"  # since etcd 3.4
_MAX_ATTEMPT_S, _MIN_ATTEMPT_S = 3.0, 0.2
_PAUSE_S = 0.05
_LEASE_IS_GONE, _LEASE_EXISTS = "requested lease not found", "lease already exists"  # etcd's words


class UnreachableError(LockError):
    """No endpoint answered.

    Attributes:
        reasons: what was wrong with each, by endpoint.
    """

    def __init__(self, reasons: dict[str, str], waited_s: float) -> None:
        told = "; ".join(f"{endpoint}: {reason}" for endpoint, reason in reasons.items())
        super().__init__(f"etcd: no endpoint answered within {waited_s:.1f} s: {told}")
        self.reasons = reasons


class LeaseGoneError(Exception):
    """etcd does not know the lease (any more)."""


class LeaseExistsError(Exception):
    """There is a lease of that number already."""


class ClusterIdentity:
    """Which etcd cluster is spoken to: the first that answers. Endpoints of another one would hand out the same lock again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known = ""

    def differs(self, identity: str) -> bool:
        with self._lock:
            self._known = self._known or identity
            return identity != self._known


class Gateway:
    """Connections to all endpoints. For one thread at a time; `close` it."""

    def __init__(self, options: EtcdOptions, identity: ClusterIdentity) -> None:
        self._identity = identity
        self._sessions: list[requests.Session] = []
        self._clients: list[tuple[str, Etcd3Client]] = []
        for endpoint in options.endpoints:
            session = requests.Session()
            session.trust_env = False  # no proxy, and no password out of ~/.netrc
            if options.ca is not None:
                session.verify = str(options.ca)
            if options.cert is not None and options.key is not None:
                session.cert = (str(options.cert), str(options.key))
            client = Etcd3Client(endpoint.host, endpoint.port, endpoint.protocol, api_path=API_PATH, session=session)
            self._sessions.append(session)
            self._clients.append((str(endpoint), client))

    def close(self) -> None:
        for session in self._sessions:
            session.close()

    def call(
        self, path: str, body: dict[str, Any], budget_s: float, cancelled: Callable[[], bool] = lambda: False
    ) -> dict[str, Any]:
        """Send one request, to one endpoint after the other until one answers, at most for about `budget_s` seconds.

        Raises:
            UnreachableError: none did.
            LeaseGoneError, LeaseExistsError: the answer is that there is no such lease, or that there is.
            InterruptedRunError: `cancelled`, which is asked between attempts, said so.
        """
        started = time.monotonic()
        reasons: dict[str, str] = {}
        # Every endpoint can hang once, and there is still time for a second round.
        attempt_s = min(_MAX_ATTEMPT_S, max(_MIN_ATTEMPT_S, budget_s / (len(self._clients) + 1)))
        failures = 0
        while True:
            left = budget_s - (time.monotonic() - started)
            if left <= 0 and failures:
                raise UnreachableError(reasons, time.monotonic() - started)
            endpoint, client = self._clients[0]
            client.timeout = max(0.01, min(attempt_s, left))
            try:
                return self._answer(client, path, body)
            except (Etcd3Exception, requests.RequestException, OSError, ValueError, TypeError) as error:
                reason = _reason(error)
                if _LEASE_IS_GONE in reason:
                    raise LeaseGoneError(reason) from error
                if _LEASE_EXISTS in reason:
                    raise LeaseExistsError(reason) from error
                reasons[endpoint] = reason
            failures += 1
            self._clients.append(self._clients.pop(0))
            if cancelled():
                raise InterruptedRunError("cancelled while waiting for a lock")
            if failures % len(self._clients) == 0:
                time.sleep(_PAUSE_S)

    def _answer(self, client: Etcd3Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = client.post(client.get_url(path), json=body, allow_redirects=False)
        if isinstance(answer, dict) and isinstance(answer.get("result"), dict):
            answer = answer["result"]  # a stream's answers come wrapped
        if not isinstance(answer, dict) or not isinstance(answer.get("header"), dict):
            raise ValueError(  # noqa: TRY004  # like JSON that is none
                f"this is no answer of etcd: {str(answer)[:200]}"
            )
        if self._identity.differs(str(answer["header"].get("cluster_id"))):
            raise ValueError("belongs to another etcd cluster than the other endpoints; correct backend_options.etcd.endpoints")
        return answer


def encode(data: bytes) -> str:
    return b64encode(data).decode()


def decode(text: str) -> bytes:
    return b64decode(text)


def _reason(error: Exception) -> str:
    """What went wrong, in few words. Those of requests repeat the address, and wrap the system's own error several times."""
    text = getattr(error, "detail_text", None) or str(error) or type(error).__name__
    system = re.search(r"\[Errno -?\d+\] ([^\"')]+)", text)
    if system is not None:
        text = system[1]
    text = re.sub(r"HTTPS?ConnectionPool\([^)]*\): |\(read timeout=[^)]*\)", "", text)
    return escape(" ".join(text.split()))[:300]
