"""Options of the transfer ``object``: ``[backend_options.object]``, and ``[nodes.NAME.options]``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from diskhaul.api import BackendContext
from diskhaul.errors import ConfigurationError
from diskhaul.model import Node
from diskhaul.names import printable

from ..option_reading import checked_options, number_problem

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Options, checked. Every time is in seconds.

    Attributes:
        credentials_file: an AWS credentials file (INI) that only its owner may read; None for the environment's variables.
        profile: which section of it.
        ca_file: PEM certificates that are trusted beside the system's; None for those alone.
        allow_http: whether an endpoint may be ``http://``: then everybody on the way can read exports.
        part_mib: size of the first parts of an upload; files of a few TiB get larger ones towards their end.
        streams: parts of one file that are sent at a time.
        memory_mib: parts of one file that are kept until the store has them; two are at least, however large.
        connect_timeout_s: for connecting.
        silence_s: how long a server may answer nothing; then the connection counts as broken.
        retry_s: how long a request that failed is made again before it has failed for good.
    """

    credentials_file: Path | None = None
    profile: str = "default"
    ca_file: Path | None = None
    allow_http: bool = False
    part_mib: int = 8
    streams: int = 4
    memory_mib: int = 256
    connect_timeout_s: float = 10.0
    silence_s: float = 60.0
    retry_s: float = 120.0


_LIMITS: Mapping[str, tuple[float, float]] = {
    "part_mib": (5, 5120),
    "streams": (1, 64),
    "memory_mib": (10, 1 << 20),
    "connect_timeout_s": (0.01, 3600),
    "silence_s": (0.01, 3600),
    "retry_s": (0, 86400),
}
_FILES = ("credentials_file", "ca_file")


def read_settings(context: BackendContext) -> Settings:
    """The options of a transfer. Nothing is opened.

    Raises:
        ConfigurationError: some of them cannot be used; all are named.
    """
    given = checked_options(context, "object", Settings, _problem)
    directory = context.directory or Path()
    return Settings(**given | {key: directory / Path(given[key]) for key in _FILES if key in given})


def _problem(key: str, value: object) -> str | None:
    if key == "allow_http":
        return None if isinstance(value, bool) else "must be true or false"
    if key not in _LIMITS:
        return None if _is_text(value) else "must be text"
    return number_problem(key, value, _LIMITS)


def _is_text(value: object) -> bool:
    return isinstance(value, str | Path) and bool(str(value)) and "\0" not in str(value)


# --- where a node's exports lie -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a node's exports lie: a bucket of an endpoint, and what their keys begin with.

    Attributes:
        url: what a key is added to, after a slash: with the bucket in the host's name, or in the path.
        endpoint: scheme, host and port, in lower case and without a default port.
        prefix: without slashes around it; may be empty.
    """

    node: str
    url: str
    endpoint: str
    bucket: str
    prefix: str
    region: str
    virtual: bool

    @property
    def identity(self) -> str:
        """The same for all nodes whose options name the same bucket and prefix."""
        return f"object:{self.endpoint}/{self.bucket}/{self.prefix}"

    def key(self, *names: str) -> str:
        return "/".join((*((self.prefix,) if self.prefix else ()), *names))

    def location(self, *names: str) -> str:
        """How messages and records name what lies there."""
        return f"s3://{self.bucket}/{self.key(*names)}"


_KEYS = ("bucket", "endpoint", "prefix", "region", "addressing")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}\Z")
_PREFIX = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*\Z")
_REGION = re.compile(r"[a-z0-9-]{1,64}\Z")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def place_of(node: Node, settings: Settings) -> Place:
    """Where the exports of `node` lie, by its options.

    Raises:
        ConfigurationError: they do not say so, or not rightly; all that is wrong is named.
    """
    where = f"nodes.{node.name}.options"
    problems = []
    given: dict[str, str] = {}
    for key in _KEYS:
        value = node.options.get(key)
        if value is None:
            continue
        if isinstance(value, str):
            given[key] = value
        else:
            problems.append(f"{where}.{key}: must be text")
    bucket, prefix = given.get("bucket", ""), given.get("prefix", "").strip("/")
    region = given.get("region", "us-east-1")
    addressing = given.get("addressing", "path")
    if "bucket" not in node.options:
        problems.append(f'{where}.bucket: is missing: the bucket in which exports to {node.name} lie, such as "exports"')
    elif "bucket" in given and not _BUCKET.match(bucket):
        problems.append(f"{where}.bucket: {printable(bucket)} cannot be the name of a bucket")
    if prefix and not _PREFIX.match(prefix):
        problems.append(f"{where}.prefix: {printable(prefix)} is not like \"backups/lab\" (letters, digits, '.', '_', '-')")
    if not _REGION.match(region):
        problems.append(f'{where}.region: {printable(region)} is not like "eu-central-1"')
    if addressing not in ("path", "virtual"):
        problems.append(f'{where}.addressing: must be "path" or "virtual"')
    endpoint = given.get("endpoint", f"https://s3.{region}.amazonaws.com")
    parsed = _endpoint(endpoint)
    if parsed is None:
        shown = "what stands there" if "@" in endpoint else printable(endpoint)  # a password may stand before an @
        problems.append(f'{where}.endpoint: {shown} is not like "https://s3.example.com" or "https://10.0.0.1:8333"')
    elif parsed.startswith("http://") and not settings.allow_http:
        problems.append(
            f"{where}.endpoint: {parsed} is not encrypted: use https, or set backend_options.object.allow_http = true"
        )
    if problems or parsed is None:
        raise ConfigurationError(problems)
    scheme, _, host = parsed.partition("://")
    url = f"{scheme}://{bucket}.{host}" if addressing == "virtual" else f"{parsed}/{bucket}"
    virtual = addressing == "virtual"
    return Place(node=node.name, url=url, endpoint=parsed, bucket=bucket, prefix=prefix, region=region, virtual=virtual)


def _endpoint(text: str) -> str | None:
    """An endpoint as it is compared: lower case, without a port that goes without saying; None when it is none."""
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError:
        return None
    more = parts.path.strip("/") or parts.query or parts.fragment or parts.username or parts.password
    if parts.scheme not in _DEFAULT_PORTS or not host or more or not text.isascii() or not text.isprintable() or " " in text:
        return None
    host = f"[{host}]" if ":" in host else host.lower()
    return f"{parts.scheme}://{host}" + (f":{port}" if port and port != _DEFAULT_PORTS[parts.scheme] else "")
