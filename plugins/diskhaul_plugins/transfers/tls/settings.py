"""Options of the transfer ``tls``: ``[backend_options.tls]``, and ``[nodes.NAME.options]``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from diskhaul.api import BackendContext
from diskhaul.errors import ConfigurationError
from diskhaul.model import Node
from diskhaul.names import name_problem, printable

from ..option_reading import checked_options, number_problem

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Options, checked. Every time is in seconds.

    Attributes:
        certificates: directory with ``ca.crt`` and this node's ``NAME.pem``.
        this: which node this machine is; "" for the only one whose ``NAME.pem`` lies in `certificates`.
        window_mib: data of one file that may be under way: kept by the sender until it is acknowledged.
        streams: connections over which one file is sent.
        connect_timeout_s: for connecting, the handshake, and being let in.
        silence_s: how long a peer may answer nothing while an answer is due; then the connection counts as broken.
        retry_s: how long a broken connection is tried to be made again, without progress, before the file has failed.
        handshake_timeout_s: receiver: from being connected to being let in.
        idle_timeout_s: receiver: how long an authenticated peer may send nothing.
        max_connections: receiver: authenticated connections at a time.
        max_per_peer: receiver: of one node.
        max_pending: receiver: connections that are not authenticated yet; the oldest makes room for a new one.
        max_sessions: receiver: exports being received at a time.
        session_timeout_s: receiver: how long nobody may ask for an export that is being received; then its sender counts as dead.
        direct_io: receiver: "auto" writes compressed disks past the page cache where their files take that, "never" does not.
    """

    certificates: Path = Path("certs")
    this: str = ""
    window_mib: int = 32
    streams: int = 1
    connect_timeout_s: float = 10.0
    silence_s: float = 30.0
    retry_s: float = 120.0
    handshake_timeout_s: float = 10.0
    idle_timeout_s: float = 300.0
    max_connections: int = 128
    max_per_peer: int = 64
    max_pending: int = 128
    max_sessions: int = 256
    session_timeout_s: float = 86400.0
    direct_io: Literal["auto", "never"] = "auto"


_LIMITS: Mapping[str, tuple[float, float]] = {
    "window_mib": (1, 4096),
    "streams": (1, 16),
    "connect_timeout_s": (0.01, 3600),
    "silence_s": (0.01, 3600),
    "retry_s": (0, 86400),
    "handshake_timeout_s": (0.01, 3600),
    "idle_timeout_s": (0.01, 86400),
    "max_connections": (1, 10000),
    "max_per_peer": (1, 10000),
    "max_pending": (1, 10000),
    "max_sessions": (1, 100000),
    "session_timeout_s": (0.01, 31536000),
}


def read_settings(context: BackendContext) -> Settings:
    """The options of a transfer.

    Raises:
        ConfigurationError: some of them cannot be used; all are named.
    """
    given = checked_options(context, "tls", Settings, _problem)
    directory = context.directory or Path()
    return Settings(**given | {"certificates": directory / Path(given.get("certificates", "certs"))})


def _problem(key: str, value: object) -> str | None:
    if key == "direct_io":
        return None if value in ("auto", "never") else 'must be "auto" or "never"'
    if key not in _LIMITS:
        if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
            return "must be text"
        return name_problem("node", str(value)) if key == "this" else None
    return number_problem(key, value, _LIMITS)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a receiver is. `host` is a name or a number; "" listens on every interface."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address_of(node: Node, *, listening: bool = False) -> Address | None:
    """Where `node`'s receiver is reached, or with `listening` where it listens; None where that is not configured.

    Raises:
        ConfigurationError: it is not HOST:PORT.
    """
    key = "listen" if listening and "listen" in node.options else "address"
    return _address(node, key, lowest=0 if listening else 1, everywhere=key != "address")


def remote_addresses_of(node: Node) -> tuple[Address, Address]:
    """Where `node` listens for exports from other clusters, and where they reach it; port 0 is any that is free.

    Raises:
        ConfigurationError: that is not configured, or not HOST:PORT.
    """
    reached = _address(node, "remote_address", lowest=0, everywhere=False)
    if reached is None:
        usual = address_of(node)
        if usual is None:
            raise ConfigurationError(
                f'nodes.{node.name}.options.remote_address: is missing: "HOST:PORT" where other clusters reach the node; '
                "port 0 is any that is free"
            )
        reached = Address(usual.host, 0)
    listening = _address(node, "remote_listen", lowest=0, everywhere=True)
    return listening or reached, reached


def _address(node: Node, key: str, *, lowest: int, everywhere: bool) -> Address | None:
    """The option `key` of a node; with `everywhere` it may be without a host."""
    text = node.options.get(key)
    if text is None:
        return None
    where = f"nodes.{node.name}.options.{key}"
    if not isinstance(text, str):
        raise ConfigurationError(f'{where}: must be text like "beta.example.com:7420"')
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    number = int(port) if colon and port.isascii() and port.isdigit() and len(port) < 6 else -1
    if not lowest <= number <= 65535 or (not host and not everywhere):
        raise ConfigurationError(f'{where}: {printable(text)} is not HOST:PORT, like "beta.example.com:7420"')
    return Address(host, number)
