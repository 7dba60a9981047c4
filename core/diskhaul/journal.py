"""The journal: what unfinished runs have begun, so that it can be undone when they are gone.

An SQLite database in the cluster's state directory. Every change to the outside world that would have to be undone is noted
*before* it is made and struck off once it has been undone or has become final; a process that is killed leaves its notes
behind, and `diskhaul recover`, or the next operation on the same instance, acts on them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .database import make_database, transaction
from .errors import OperationFailedError, RefusedError

if TYPE_CHECKING:
    import sqlite3

NoteKind = Literal["guest", "frozen", "disks", "snapshot", "partial", "removing", "moving"]
"""What is noted: a guest to be running again, a guest to be thawed, disks to be deactivated, a snapshot, an unpublished
export, an export being removed, a guest that another cluster is told to start."""

_FILE_NAME = "journal.sqlite"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (run_id TEXT PRIMARY KEY, operation TEXT NOT NULL, instance TEXT NOT NULL, started REAL NOT NULL);
CREATE TABLE IF NOT EXISTS notes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id TEXT NOT NULL REFERENCES runs(run_id) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    data TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS revoked (move_id TEXT PRIMARY KEY, instance TEXT NOT NULL, since REAL NOT NULL);
CREATE TABLE IF NOT EXISTS begun (move_id TEXT PRIMARY KEY, instance TEXT NOT NULL, since REAL NOT NULL);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One thing a run has begun. `data` is what it takes to undo it."""

    note_id: int
    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedRun:
    """A run that has not ended, or whose process is gone. `started` is seconds since the epoch."""

    run_id: str
    operation: str
    instance: str
    started: float
    notes: tuple[Note, ...]


class Journal:
    """The journal of one cluster. Every method is one durable transaction; safe to use from several threads and processes.

    Raises:
        RefusedError: it cannot be made.
        OperationFailedError: from the methods; it could not be read or written, and nothing has changed.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / _FILE_NAME
        try:
            make_database(self._path)
            with self._connection() as connection:
                connection.executescript(_SCHEMA)
        except (OSError, OperationFailedError) as error:
            raise RefusedError(f"state_dir {state_dir}: the journal cannot be written: {error}; check the directory") from error

    @staticmethod
    def is_in(state_dir: Path) -> bool:
        """Whether there is a journal; making a `Journal` makes one."""
        return os.path.lexists(state_dir / _FILE_NAME)

    def _connection(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._path)

    def begin(self, run_id: str, operation: str, instance: str) -> None:
        """Open a run; its notes refer to it."""
        with self._connection() as connection:
            _insert_run(connection, run_id, operation, instance)

    def begin_with(self, run_id: str, operation: str, instance: str, kind: NoteKind, data: Mapping[str, Any]) -> int:
        """Open a run together with its first note, so that it is never seen without; return the note's id."""
        with self._connection() as connection:
            _insert_run(connection, run_id, operation, instance)
            return _insert_note(connection, run_id, kind, data)

    def note(self, run_id: str, kind: NoteKind, data: Mapping[str, Any]) -> int:
        """Note what is about to be done; return the note's id for `strike`.

        Raises:
            OperationFailedError: also when the run is not open any more.
        """
        with self._connection() as connection:
            if connection.execute("SELECT 1 FROM runs WHERE run_id = ?", (run_id,)).fetchone() is None:
                raise OperationFailedError("this run had lost its lock, and another one has recovered it: nothing more is begun")
            return _insert_note(connection, run_id, kind, data)

    def amend(self, note_id: int, data: Mapping[str, Any]) -> None:
        """Put `data` in the place of what a note says."""
        with self._connection() as connection:
            connection.execute("UPDATE notes SET data = ? WHERE id = ?", (_text(data), note_id))

    def has(self, note_id: int) -> bool:
        """Whether a note still stands: another run that took this one for dead may have dealt with it."""
        with self._connection() as connection:
            return connection.execute("SELECT 1 FROM notes WHERE id = ?", (note_id,)).fetchone() is not None

    def strike(self, note_id: int) -> None:
        """Strike a note off: undone, or final. Striking twice is fine."""
        with self._connection() as connection:
            connection.execute("DELETE FROM notes WHERE id = ?", (note_id,))

    def finish(self, run_id: str) -> None:
        """End a run that has no notes left; one that has stays for `recover`."""
        with self._connection() as connection:
            connection.execute(
                "DELETE FROM runs WHERE run_id = ?1 AND NOT EXISTS (SELECT 1 FROM notes WHERE run_id = ?1)", (run_id,)
            )

    def revoke(self, move_id: str, instance: str) -> None:
        """Have no start count any more that was asked for by the move `move_id`. For ever: nobody knows how late one may come."""
        with self._connection() as connection:
            connection.execute("INSERT OR IGNORE INTO revoked VALUES (?, ?, ?)", (move_id, instance, time.time()))

    def is_revoked(self, move_id: str) -> bool:
        with self._connection() as connection:
            return connection.execute("SELECT 1 FROM revoked WHERE move_id = ?", (move_id,)).fetchone() is not None

    def begin_start(self, move_id: str, instance: str) -> None:
        """Note that `instance` is about to be started on behalf of the move `move_id`; it stays noted once it has run."""
        with self._connection() as connection:
            connection.execute("INSERT OR IGNORE INTO begun VALUES (?, ?, ?)", (move_id, instance, time.time()))

    def forget_start(self, move_id: str) -> None:
        """The guest did not start."""
        with self._connection() as connection:
            connection.execute("DELETE FROM begun WHERE move_id = ?", (move_id,))

    def has_begun(self, move_id: str) -> bool:
        """Whether a guest was started on behalf of the move `move_id`, or may have been."""
        with self._connection() as connection:
            return connection.execute("SELECT 1 FROM begun WHERE move_id = ?", (move_id,)).fetchone() is not None

    def unfinished(self, instance: str | None = None) -> list[UnfinishedRun]:
        """Runs that have not ended, oldest first; those of `instance`, or all."""
        with self._connection() as connection:
            runs = connection.execute(
                "SELECT run_id, operation, instance, started FROM runs WHERE ?1 IS NULL OR instance = ?1 ORDER BY started",
                (instance,),
            ).fetchall()
            notes = connection.execute("SELECT id, run_id, kind, data FROM notes ORDER BY id").fetchall()
        return [
            UnfinishedRun(
                run_id=run_id,
                operation=operation,
                instance=of,
                started=started,
                notes=tuple(
                    Note(note_id=i, kind=kind, data=json.loads(data)) for i, owner, kind, data in notes if owner == run_id
                ),
            )
            for run_id, operation, of, started in runs
        ]


def _insert_run(connection: sqlite3.Connection, run_id: str, operation: str, instance: str) -> None:
    connection.execute("INSERT INTO runs VALUES (?, ?, ?, ?)", (run_id, operation, instance, time.time()))


def _insert_note(connection: sqlite3.Connection, run_id: str, kind: str, data: Mapping[str, Any]) -> int:
    insert = "INSERT INTO notes (run_id, kind, data) VALUES (?, ?, ?)"
    cursor = connection.execute(insert, (run_id, kind, _text(data)))
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def _text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, sort_keys=True, default=str, skipkeys=True)
