"""The options of engine ``dask``, checked: where the scheduler is, and with which certificates it is spoken to."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diskhaul.api import BackendContext
from diskhaul.certificates import key_problem
from diskhaul.errors import RefusedError

if TYPE_CHECKING:
    from distributed.security import Security

DEFAULT_NODE_TIMEOUT_S = 20.0
DEFAULT_STOP_TIMEOUT_S = 300.0
DEFAULT_SLOTS = 4
_ADDRESS = re.compile(r"(tls|tcp)://[^\s/:]+:\d{1,5}\Z|(tls|tcp)://\[[0-9A-Fa-f:.]+\]:\d{1,5}\Z")
_KNOWN = ("scheduler", "ca", "cert", "key", "allow_plaintext", "node_timeout_s", "stop_timeout_s", "slots", "shared_state_dir")


@dataclass(frozen=True, slots=True, kw_only=True)
class DaskSettings:
    """``[backend_options.dask]``.

    Attributes:
        scheduler: ``tls://HOST:PORT``.
        ca, cert, key: PEM files; None only where plaintext is allowed.
        node_timeout_s: how long a node may be silent, and then missing, before it counts as unreachable, seconds.
        stop_timeout_s: how long what runs on a node may go on after it was told to stop, until nobody waits for it, seconds.
        slots: how many operations a node runs at once.
        shared_state_dir: all nodes mount the same ``state_dir``.
    """

    scheduler: str
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    node_timeout_s: float = DEFAULT_NODE_TIMEOUT_S
    stop_timeout_s: float = DEFAULT_STOP_TIMEOUT_S
    slots: int = DEFAULT_SLOTS
    shared_state_dir: bool = False

    @property
    def encrypted(self) -> bool:
        return self.scheduler.startswith("tls://")

    def security(self) -> Security | None:
        """What Dask needs to speak TLS 1.3 with both sides authenticated, or None for plaintext."""
        if not self.encrypted:
            return None
        from distributed.security import Security

        pair: dict[str, str] = {}
        for role in ("client", "worker", "scheduler"):
            pair |= {f"tls_{role}_cert": str(self.cert), f"tls_{role}_key": str(self.key)}
        return Security(tls_ca_file=str(self.ca), tls_min_version=0x0304, require_encryption=True, **pair)


def settings_from(context: BackendContext) -> DaskSettings:
    """The checked options.

    Raises:
        RefusedError: every problem with them, one line each.
    """
    options = dict(context.options)
    problems = [f"backend_options.dask.{key}: unknown; there are {', '.join(_KNOWN)}" for key in options if key not in _KNOWN]
    scheduler = options.get("scheduler")
    encrypted = not (isinstance(scheduler, str) and scheduler.startswith("tcp://"))
    if not isinstance(scheduler, str) or not _ADDRESS.match(scheduler):
        problems.append(f"backend_options.dask.scheduler: {scheduler!r} is no address; it is tls://HOST:PORT")
    elif not encrypted and options.get("allow_plaintext") is not True:
        problems.append(
            f"backend_options.dask.scheduler: {scheduler} is not encrypted, so that whoever reaches it rules all nodes: "
            "use tls:// with ca, cert and key, or say allow_plaintext = true for a network that is nobody else's"
        )
    files = _files(context, options, problems, wanted=encrypted)
    timeouts = {"node_timeout_s": DEFAULT_NODE_TIMEOUT_S, "stop_timeout_s": DEFAULT_STOP_TIMEOUT_S}
    for name in timeouts:
        value = options.get(name, timeouts[name])
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= 86400:
            problems.append(f"backend_options.dask.{name}: {value!r} is not a number of seconds from 1 to 86400")
        else:
            timeouts[name] = float(value)
    slots = options.get("slots", DEFAULT_SLOTS)
    if isinstance(slots, bool) or not isinstance(slots, int) or not 1 <= slots <= 1000:
        problems.append(f"backend_options.dask.slots: {slots!r} is not a number from 1 to 1000")
    shared = options.get("shared_state_dir", False)
    if not isinstance(shared, bool):
        problems.append(f"backend_options.dask.shared_state_dir: {shared!r} is neither true nor false")
    elif context.cluster.backends.get("lock", "file") == "file" and not shared:
        problems.append(
            "backends.lock: lock files keep apart the processes of one machine only: with engine dask use the lock service etcd, "
            "or say backend_options.dask.shared_state_dir = true where all nodes mount the same state_dir"
        )
    if problems:
        raise RefusedError(problems)
    assert isinstance(scheduler, str)
    node_timeout_s, stop_timeout_s = timeouts.values()
    return DaskSettings(
        scheduler=scheduler,
        node_timeout_s=node_timeout_s,
        stop_timeout_s=stop_timeout_s,
        slots=slots,
        shared_state_dir=shared,
        **files,
    )


def _files(context: BackendContext, options: Mapping[str, Any], problems: list[str], *, wanted: bool) -> dict[str, Path]:
    """The PEM files; relative paths are taken from the configuration's directory."""
    found: dict[str, Path] = {}
    for name in ("ca", "cert", "key") if wanted else ():
        value = options.get(name)
        if not isinstance(value, str) or not value:
            problems.append(f"backend_options.dask.{name}: missing: a PEM file ('diskhaul certs' makes them)")
            continue
        path = (context.directory or Path()) / value
        if not os.access(path, os.R_OK):
            problems.append(f"backend_options.dask.{name}: {path} cannot be read")
        elif name == "key" and (problem := key_problem(path)):
            problems.append(f"backend_options.dask.key: {problem}")
        found[name] = path
    return found
