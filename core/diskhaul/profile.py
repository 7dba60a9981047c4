"""Profiles: TOML files with the settings that a tuning run found for a machine.

    [export]                   options of an export: how bytes are moved, the compression, the chunk size
    [backend_options.NAME]     options of backends that plugins had tuned
    [machine]                  what it was measured on
    [measurements]             what was measured; for people

Only the first two are used. They are checked as a configuration is, and like one a profile that every user may write to is
refused: a storage plugin may well be given a path or a command there.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from .errors import ConfigurationError, StorageError
from .names import printable, suggestion
from .option_checks import value_problem
from .options import PathOptions
from .permissions import tampering_problem
from .records import Profile
from .trusted_toml import read_trusted_toml

PATH_OPTION_NAMES: tuple[str, ...] = tuple(option.name for option in fields(PathOptions))
PROFILE_OPTION_NAMES: tuple[str, ...] = ("compress", "chunk_size", *PATH_OPTION_NAMES)
"""What ``[export]`` of a profile may set: nothing that decides what becomes of a guest or of other exports."""

_SECTIONS = ("export", "backend_options", "machine", "measurements")
_KINDS = {dict: "a table", list: "a list", bool: "true or false", int: "a number", float: "a number with a fraction", str: "text"}
_MODE = 0o644  # holds no secrets


def load_profile(path: Path | str) -> Profile:
    """Read the profile at `path`.

    Raises:
        ConfigurationError: the file cannot be read or trusted, or is not right; `problems` holds everything found, each with file
            and key.
    """
    given = os.fspath(path)
    if "\0" in given or not given:
        raise ConfigurationError("the profile's path is empty or holds a NUL character; give --profile FILE")
    file = Path(os.path.abspath(given))
    raw = read_trusted_toml(file, "profile", missing="give --profile FILE, or make one with: diskhaul tune")
    problems = [f"{given}: {problem}" for problem in _problems(raw)]
    if problems:
        raise ConfigurationError(problems)
    return Profile(
        export=raw.get("export", {}),
        backend_options=raw.get("backend_options", {}),
        machine=raw.get("machine", {}),
        measurements=raw.get("measurements", {}),
        source=file,
    )


def save_profile(profile: Profile, path: Path | str) -> None:
    """Write `profile` to `path`, whole or not at all; what was there is replaced.

    Raises:
        StorageError: it cannot be written.
    """
    import tomli_w

    file = Path(os.path.abspath(path))
    sections = {name: _plain(getattr(profile, name)) for name in _SECTIONS if getattr(profile, name)}
    text = "# Settings for one machine, written by 'diskhaul tune'. To use them: diskhaul export --profile FILE\n\n"
    text += tomli_w.dumps({"export": {}} | sections)
    try:
        write_whole(file, text.encode())
    except OSError as error:
        raise StorageError(f"{file}: cannot be written: {os.strerror(error.errno or 0)}", path=str(file)) from error


def write_whole(file: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all, whatever happens meanwhile; what was there is replaced.

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with open(descriptor, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fchmod(descriptor, _MODE)
            os.fsync(descriptor)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise


def profile_target_problem(path: Path | str) -> str | None:
    """Why a profile at `path` could not be written, or would not be read afterwards, in one line; None when all is well.

    A file that is there and is no profile is such a reason: it would be lost.
    """
    file = Path(os.path.abspath(path))
    if not file.parent.is_dir():
        return f"{file.parent} is not a directory; make it first"
    if not os.access(file.parent, os.W_OK):
        return f"{file.parent} cannot be written to by this user; choose another place"
    if os.path.lexists(file):
        try:
            load_profile(file)
        except ConfigurationError as error:
            return f"is there already, and is no profile that could be replaced: {error.problems[0]}"
    problem = tampering_problem(file)
    return f"would not be trusted afterwards: {problem}" if problem else None


def _problems(raw: Mapping[str, Any]) -> list[str]:
    problems = [
        f"{_key(name)}: is no section of a profile; {suggestion(name, _SECTIONS)}" for name in raw if name not in _SECTIONS
    ]
    for name in _SECTIONS:
        section = raw.get(name, {})
        if not isinstance(section, dict):
            problems.append(f"{name}: must be a table, not {_kind(section)}")
        elif name == "export":
            problems += _export_problems(section)
        elif name == "backend_options":
            problems += _backend_problems(section)
        elif name == "machine":
            problems += [
                f"machine.{_key(key)}: must be text or a number, not {_kind(value)}"
                for key, value in section.items()
                if not isinstance(value, str | int | float)
            ]
    return problems


def _export_problems(section: Mapping[str, Any]) -> list[str]:
    problems: list[str] = []
    for name, value in section.items():
        if name not in PROFILE_OPTION_NAMES:
            problems.append(f"export.{_key(name)}: is not an option of a profile; {suggestion(name, PROFILE_OPTION_NAMES)}")
        elif problem := value_problem(name, value):
            problems.append(f"export.{problem}")
    return problems


def _backend_problems(section: Mapping[str, Any]) -> list[str]:
    problems: list[str] = []
    for backend, options in section.items():
        where = f"backend_options.{_key(backend)}"
        if not isinstance(options, dict):
            problems.append(f"{where}: must be a table, not {_kind(options)}")
            continue
        problems += [
            f"{where}.{_key(key)}: must be text, a number, or true or false, not {_kind(value)}"
            for key, value in options.items()
            if not isinstance(value, str | int | float)
        ]
    return problems


def _key(name: str) -> str:
    return name if name.replace("-", "").replace("_", "").isalnum() and name.isascii() else printable(name)


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "a date or time")


def _plain(value: Any) -> Any:
    """`value` in the types that TOML knows: a mapping becomes a dict, a tuple a list."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
