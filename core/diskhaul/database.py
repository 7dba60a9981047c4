"""SQLite databases in a cluster's state directory: readable by nobody else, each change durable before it counts.

Used by the journal and by the plans of fleets.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import OperationFailedError

if TYPE_CHECKING:
    import sqlite3

_LOCKED_S = 30.0  # how long another process may hold the database


def make_database(path: Path) -> None:
    """Create an empty database, readable by nobody else, where there is none.

    It must never be opened and closed outside SQLite: closing any descriptor of a file drops all locks that the process,
    other threads included, holds on it (POSIX). So it is made without being opened.

    Raises:
        OSError: it cannot be made, or something else lies there.
    """
    path.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        os.mknod(path, stat.S_IFREG | 0o600)
    except FileExistsError:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise OSError(f"{path} is not a regular file") from None


@contextmanager
def transaction(path: Path) -> Iterator[sqlite3.Connection]:
    """One durable transaction, over a connection of its own: connections must not cross threads or forks, and calls are few.

    Raises:
        OperationFailedError: it could not be read or written; nothing has changed.
        sqlite3.IntegrityError, sqlite3.ProgrammingError: the caller's own mistake.
    """
    import sqlite3  # not at the top: start-up time

    try:
        with closing(sqlite3.connect(path, timeout=_LOCKED_S)) as connection:
            connection.execute("PRAGMA synchronous = EXTRA")  # the directory too, so that what was committed survives a power cut
            connection.execute("PRAGMA foreign_keys = ON")
            with connection:
                yield connection
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        raise
    except sqlite3.Error as error:
        raise OperationFailedError(f"{path}: could not be read or written: {error}") from error
