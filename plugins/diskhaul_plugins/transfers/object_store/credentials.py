"""With whose keys requests are signed: from the environment, or from a file that nobody else can read."""

from __future__ import annotations

import configparser
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from diskhaul.errors import ConfigurationError
from diskhaul.names import printable
from diskhaul.permissions import stranger_problems

_LIMIT = 1 << 20  # bytes; such a file has a few lines
_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


@dataclass(frozen=True, slots=True)
class Credentials:
    """An access key. Only `source` is ever shown.

    Attributes:
        source: where it is from, for messages.
        token: of temporary keys, or None.
    """

    source: str
    key_id: str = field(repr=False)
    secret: str = field(repr=False)
    token: str | None = field(repr=False, default=None)


def read_credentials(file: Path | None, profile: str, environment: Mapping[str, str] = os.environ) -> Credentials:
    """The credentials in section `profile` of `file`, or without a file those of `environment`.

    Raises:
        ConfigurationError: there are none, or others can read or change the file.
    """
    if file is not None:
        return _from_file(file, profile)
    key_id, secret, token = (environment.get(name, "") for name in _VARIABLES)
    missing = [name for name, value in zip(_VARIABLES[:2], (key_id, secret), strict=True) if not value]
    if missing:
        raise ConfigurationError(
            f"no credentials for the object store: {' and '.join(missing)} not set in the environment; "
            "set them, or name backend_options.object.credentials_file"
        )
    return _checked(Credentials(f"{_VARIABLES[0]} and {_VARIABLES[1]} of the environment", key_id, secret, token or None))


def _from_file(file: Path, profile: str) -> Credentials:
    try:
        with open(os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as opened:
            found = os.fstat(opened.fileno())
            problems = [] if stat.S_ISREG(found.st_mode) else [f"{file} is not a file"]
            problems += stranger_problems(file, found)
            if found.st_mode & 0o077:
                problems.append(f"others can read {file}: chmod 600 it")
            if problems:
                raise ConfigurationError([f"backend_options.object.credentials_file: {problem}" for problem in problems])
            content = opened.read(_LIMIT)
    except OSError as error:
        raise ConfigurationError(f"backend_options.object.credentials_file: {file}: {error.strerror}") from error
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(content.decode("utf-8"))
    except (UnicodeDecodeError, configparser.Error):
        # Not raised from the cause, which quotes lines of the file.
        raise ConfigurationError(f"{file}: is not an AWS credentials file ([{profile}] and lines NAME = VALUE)") from None
    if not parser.has_section(profile):
        raise ConfigurationError(f"{file}: has no section [{printable(profile)}]: correct backend_options.object.profile")
    values = {name.lower(): parser.get(profile, name.lower(), fallback="") for name in _VARIABLES}
    missing = [name.lower() for name in _VARIABLES[:2] if not values[name.lower()]]
    if missing:
        raise ConfigurationError(f"{file}: [{printable(profile)}] has no {' and no '.join(missing)}")
    key_id, secret, token = (values[name.lower()] for name in _VARIABLES)
    return _checked(Credentials(f"[{profile}] of {file}", key_id, secret, token or None))


def _checked(credentials: Credentials) -> Credentials:
    """They become headers, so they are visible ASCII."""
    for text in (credentials.key_id, credentials.secret, credentials.token or "x"):
        if not text.isascii() or not text.isprintable() or " " in text:
            raise ConfigurationError(f"the credentials ({credentials.source}) hold characters that no key has")
    return credentials
