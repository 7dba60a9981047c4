"""The source's short-lived keys, and at the destination which prepared exports have been taken: both in the state directory.

    <state_dir>/remote/keys/<id>/source.pem     the source's key and certificate: 0600 in a directory of its own, 0700
    <state_dir>/remote/keys/<id>/expires        when it ends
    <state_dir>/remote/taken/<id>               a prepared export that was received here, or is being; holds when it expires

A key is good for one export: it is taken out of the directory when the export begins.
"""

from __future__ import annotations

import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

from ..certificates import key_problem, write_durably
from ..errors import RefusedError, StorageError
from .envelope import LIFE

_ID = re.compile(r"[0-9a-f]{32}\Z|\.[0-9a-f]{32}\.[0-9]+\Z")  # the second: being taken, or taken by a process that died then
_KEY, _EXPIRES = "source.pem", "expires"


class RemoteKeys:
    """The source's keys. Safe to use from several processes."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "remote" / "keys"

    def keep(self, id_: str, pem: bytes, expires: datetime) -> Path:
        """Keep the key of a prepared export; return where.

        Raises:
            StorageError: it cannot be written.
        """
        place = self._directory / id_
        try:
            _make_private(self._directory)
            place.mkdir(mode=0o700)
        except OSError as error:
            raise StorageError(f"{place}: cannot be made: {error.strerror}", path=str(place)) from error
        write_durably(place / _EXPIRES, expires.isoformat().encode("ascii"), 0o600)
        write_durably(place / _KEY, pem, 0o600)
        return place / _KEY

    def problem(self, id_: str) -> str | None:
        """Why the key of a prepared export cannot be used, in one line."""
        place = self._directory / id_ / _KEY
        try:
            return key_problem(place)
        except FileNotFoundError:
            return "the source's key is not there (any more): it has been used, has expired, or is another node's; prepare anew"
        except OSError as error:
            return f"{place}: {error.strerror}"

    def take(self, id_: str) -> bytes:
        """The key and the certificate of a prepared export, for whoever is first; nobody else gets them after that.

        Raises:
            RefusedError: they are not there any more.
        """
        place = self._directory / id_
        taken = self._directory / f".{id_}.{os.getpid()}"
        try:
            os.rename(place, taken)
            try:
                return (taken / _KEY).read_bytes()
            finally:
                shutil.rmtree(taken)
        except OSError as error:
            raise RefusedError(self.problem(id_) or f"{place}: {error.strerror}") from error

    def peek(self, id_: str) -> bytes:
        """The key and the certificate, which stay.

        Raises:
            RefusedError: they cannot be used.
        """
        if problem := self.problem(id_):
            raise RefusedError(problem)
        return (self._directory / id_ / _KEY).read_bytes()

    def drop(self, id_: str) -> None:
        shutil.rmtree(self._directory / id_, ignore_errors=True)

    def sweep(self, now: datetime) -> None:
        """Drop keys that have expired."""
        for place in _entries(self._directory):
            if _has_expired(place / _EXPIRES, now):
                shutil.rmtree(place, ignore_errors=True)


class TakenExports:
    """Which prepared exports have been received here, or are being. Safe to use from several processes."""

    def __init__(self, state_dir: Path) -> None:
        self._directory = state_dir / "remote" / "taken"

    def has(self, id_: str) -> bool:
        return os.path.lexists(self._directory / id_)

    def take(self, id_: str, expires: datetime) -> None:
        """Mark a prepared export as taken, for good.

        Raises:
            RefusedError: it has been taken already.
            StorageError: it cannot be written.
        """
        place = self._directory / id_
        try:
            _make_private(self._directory)
            descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with os.fdopen(descriptor, "w", encoding="ascii") as file:
                    file.write(expires.isoformat())
                    file.flush()
                    os.fsync(file.fileno())
            except BaseException:
                place.unlink(missing_ok=True)  # nobody has received anything
                raise
        except FileExistsError:
            raise RefusedError(TAKEN) from None
        except OSError as error:
            raise StorageError(f"{place}: cannot be written: {error.strerror}", path=str(place)) from error

    def sweep(self, now: datetime) -> None:
        """Forget what has expired, and so is refused without being remembered."""
        for place in _entries(self._directory):
            if _has_expired(place, now):
                place.unlink(missing_ok=True)


TAKEN = "the prepared export has been received already, or is being: each is good once; prepare it anew"


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def _entries(directory: Path) -> list[Path]:
    try:
        return [place for place in directory.iterdir() if _ID.match(place.name)]
    except FileNotFoundError:
        return []


def _has_expired(place: Path, now: datetime) -> bool:
    """What a process was killed in the middle of writing counts for as long as it might."""
    try:
        return datetime.fromisoformat(place.read_text("ascii")) <= now
    except (OSError, ValueError, TypeError):
        pass
    try:
        written = place.stat() if place.exists() else place.parent.stat()
    except OSError:
        return False
    return datetime.fromtimestamp(written.st_mtime, UTC) + LIFE <= now
