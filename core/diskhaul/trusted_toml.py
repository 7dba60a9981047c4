"""TOML files that decide what is run: regular, not too large, and nothing that every user could change."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

from .errors import ConfigurationError
from .permissions import tampering_problem

MAX_FILE_BYTES = 16 << 20


def read_trusted_toml(file: Path, kind: str, *, missing: str, inside: str = "") -> dict[str, Any]:
    """Return what the file holds.

    Args:
        kind: what messages call it: "configuration", "profile".
        missing: what to do when there is no such file.
        inside: name of the file that a directory given by mistake may hold.

    Raises:
        ConfigurationError: it cannot be read or trusted, or is no TOML; the message begins with the file.
    """
    return _parse(file, _read(file, kind, missing, inside))


def _read(file: Path, kind: str, missing: str, inside: str) -> bytes:
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its other end.
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise ConfigurationError(f"{file}: there is no such file; {missing}") from None
    except OSError as error:
        reason = "is not readable for this user" if error.errno == errno.EACCES else os.strerror(error.errno or 0)
        raise ConfigurationError(f"{file}: cannot be opened: {reason}") from error
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise ConfigurationError(f"{file}: is a directory; give {f'the file in it: {file / inside}' if inside else 'a file'}")
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"{file}: is not a regular file; give one")
        problem = tampering_problem(file)
        if problem:
            raise ConfigurationError(f"{file}: is not trusted: {problem}")
        with open(descriptor, "rb", closefd=False) as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{file}: cannot be read: {os.strerror(error.errno or 0)}") from error
    finally:
        os.close(descriptor)
    if len(content) > MAX_FILE_BYTES:
        raise ConfigurationError(f"{file}: is larger than {MAX_FILE_BYTES >> 20} MiB; that is no {kind}")
    return content


def _parse(file: Path, content: bytes) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(content.decode("utf-8-sig"))  # some editors put a byte order mark in front
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{file}: line {line} is not UTF-8; save the file as UTF-8") from error
    except RecursionError:
        raise ConfigurationError(f"{file}: is nested too deeply") from None
    except ValueError as error:  # also what int() raises for a number of thousands of digits
        raise ConfigurationError(f"{file}: is not valid TOML: {error}; correct that place") from error
