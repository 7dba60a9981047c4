"""What stands in ``[backend_options.etcd]``, checked."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from diskhaul.api import BackendContext
from diskhaul.errors import ConfigurationError

DEFAULT_LEASE_S = 30
MIN_LEASE_S, MAX_LEASE_S = 2, 3600
_TABLE = "backend_options.etcd"
_FILES = ("ca", "cert", "key")
_KEYS = ("endpoints", "lease_s", *_FILES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where one member of the etcd cluster answers clients."""

    protocol: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol}://{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdOptions:
    """The options.

    Attributes:
        endpoints: asked in this order, beginning with the one that answered last.
        lease_s: whole seconds, as etcd has it.
        ca: file of the certificates that sign the members'; None for those of the system.
        cert: file of our own certificate, and `key` that of its key.
    """

    endpoints: tuple[Endpoint, ...]
    lease_s: int
    ca: Path | None
    cert: Path | None
    key: Path | None

    def file_problems(self) -> list[str]:
        """What is wrong with the files, one line each."""
        problems = []
        for name in _FILES:
            path: Path | None = getattr(self, name)
            if path is None:
                continue
            try:
                found = os.stat(path)
            except OSError as error:
                problems.append(f"{_TABLE}.{name}: {path}: {error.strerror}")
                continue
            if not stat.S_ISREG(found.st_mode):
                problems.append(f"{_TABLE}.{name}: {path} is not a file")
            elif not os.access(path, os.R_OK):
                problems.append(f"{_TABLE}.{name}: {path} cannot be read")
            elif name == "key" and found.st_mode & 0o077:
                problems.append(f"{_TABLE}.key: others can read {path}: chmod 600 it")
        return problems


def read_options(context: BackendContext) -> EtcdOptions:
    """The options of `context`. Nothing is opened.

    Raises:
        ConfigurationError: all that is wrong with them.
    """
    options = context.options
    problems = [f"{_TABLE}.{key}: unknown; there are {', '.join(_KEYS)}" for key in options if key not in _KEYS]
    endpoints, wrong = _endpoints(options.get("endpoints"))
    problems += wrong
    lease_s = options.get("lease_s", DEFAULT_LEASE_S)
    if isinstance(lease_s, bool) or not isinstance(lease_s, int) or not MIN_LEASE_S <= lease_s <= MAX_LEASE_S:
        problems.append(f"{_TABLE}.lease_s: {lease_s!r} is not a whole number of seconds from {MIN_LEASE_S} to {MAX_LEASE_S}")
        lease_s = DEFAULT_LEASE_S
    paths: dict[str, Path | None] = {}
    for name in _FILES:
        value = options.get(name)
        paths[name] = None
        if value is None:
            continue
        if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
            problems.append(f"{_TABLE}.{name}: {value!r} is not the path of a file")
        else:
            paths[name] = (context.directory or Path()) / value
    if (options.get("cert") is None) != (options.get("key") is None):
        problems.append(f"{_TABLE}: cert and key go together")
    if any(options.get(name) is not None for name in _FILES):
        problems += [f"{_TABLE}.endpoints: {each}: ca, cert and key need https" for each in endpoints if each.protocol == "http"]
    if problems:
        raise ConfigurationError(problems)
    return EtcdOptions(endpoints=endpoints, lease_s=lease_s, ca=paths["ca"], cert=paths["cert"], key=paths["key"])


def _endpoints(value: Any) -> tuple[tuple[Endpoint, ...], list[str]]:
    key = f"{_TABLE}.endpoints"
    if isinstance(value, str) or not isinstance(value, Iterable):
        return (), [f'{key}: needed: a list of addresses, such as ["http://10.0.0.1:2379"]']
    endpoints, problems = [], []
    for entry in value:
        endpoint = _endpoint(entry) if isinstance(entry, str) else None
        if endpoint is None:
            problems.append(f"{key}: {entry!r} is not like http://HOST:PORT or https://HOST:PORT")
        elif endpoint in endpoints:
            problems.append(f"{key}: {entry!r} is there twice")
        else:
            endpoints.append(endpoint)
    if not endpoints and not problems:
        problems.append(f"{key}: there is none")
    return tuple(endpoints), problems


def _endpoint(text: str) -> Endpoint | None:
    try:
        parts: SplitResult = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError:
        return None
    more = parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password
    if parts.scheme not in ("http", "https") or not host or not port or more or not text.isprintable() or " " in text:
        return None
    return Endpoint(protocol=parts.scheme, host=host, port=port)
