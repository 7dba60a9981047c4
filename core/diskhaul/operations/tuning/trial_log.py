"""What has been measured so far, kept in a file, so that an interrupted run can go on and nothing is measured in vain.

JSON lines: first what the run was about, then a line for each trial, written when it has ended. A last line that was cut short is
as if it had not been written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from ...errors import RefusedError, StorageError
from ...profile import write_whole
from ...records import TuneTrial

SUFFIX = ".trials"
_FORMAT = 1
_MAX_BYTES = 64 << 20


def log_path(profile: Path) -> Path:
    """Where the trials for a profile are kept: beside it."""
    return profile.with_name(profile.name + SUFFIX)


class TrialLog:
    """Trials in a file that is appended to. For one thread."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self._file = file

    @classmethod
    def begin(cls, path: Path, about: Mapping[str, Any]) -> TrialLog:
        """Begin a new file, in place of what was there.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            write_whole(path, _line({"format": _FORMAT, "about": about}))
            return cls(path, path.open("ab"))
        except OSError as error:
            raise _failure(path, error) from error

    @classmethod
    def resume(cls, path: Path) -> TrialLog:
        """Go on with a file that `read_log` has read; what stands behind its last whole line is taken away.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            whole = path.read_bytes().rpartition(b"\n")[0] + b"\n"
            os.truncate(path, len(whole))
            return cls(path, path.open("ab"))
        except OSError as error:
            raise _failure(path, error) from error

    def add(self, trial: TuneTrial) -> None:
        """Note a trial.

        Raises:
            StorageError: it cannot be written.
        """
        try:
            self._file.write(_line(asdict(trial)))
            self._file.flush()
        except OSError as error:
            raise _failure(self.path, error) from error

    def close(self) -> None:
        self._file.close()


def read_log(path: Path) -> tuple[dict[str, Any], list[TuneTrial]]:
    """What the run in the file was about, and its trials.

    Raises:
        RefusedError: there is no such file, or it is none of ours.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise RefusedError(f"resume: {path}: {os.strerror(error.errno or 0)}; there is nothing to resume") from error
    lines = content.split(b"\n")[:-1]  # behind the last line end is nothing, or what was cut short
    try:
        if len(content) > _MAX_BYTES:
            raise ValueError("it is too large")
        first = json.loads(lines[0])
        if first["format"] != _FORMAT:
            raise ValueError(f"it is of format {first['format']}")
        about = dict(first["about"])
        trials = [TuneTrial(**json.loads(line)) for line in lines[1:]]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise RefusedError(f"resume: {path} is no log of a tuning run ({error}); leave --resume out to begin anew") from error
    return about, trials


def _line(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode() + b"\n"


def _failure(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path}: cannot be written: {os.strerror(error.errno or 0)}", path=str(path))
