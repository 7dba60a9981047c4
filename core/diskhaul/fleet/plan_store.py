"""Plans of fleets: what was asked, and how far each instance is, so that a client that died can go on.

An SQLite database in the cluster's state directory, beside the journal. What an export does to guests and nodes is the journal's;
here is only which exports there are to be.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..database import make_database, transaction
from ..errors import OperationFailedError, RefusedError

if TYPE_CHECKING:
    import sqlite3

FILE_NAME = "fleet.sqlite"
SCHEMA_VERSION = 2
KEPT_PLANS = 20
"""So many plans that are at their end are kept, for looking at."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS plans (
    name TEXT PRIMARY KEY, begun REAL NOT NULL, ended REAL, request TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS members (
    plan TEXT NOT NULL REFERENCES plans(name) ON DELETE CASCADE,
    instance TEXT NOT NULL, source TEXT NOT NULL, state TEXT NOT NULL, target TEXT NOT NULL, attempts INTEGER NOT NULL,
    seconds REAL NOT NULL, export_id TEXT NOT NULL, exit_code INTEGER NOT NULL, error TEXT NOT NULL,
    remedy TEXT NOT NULL, size INTEGER NOT NULL, bytes_read INTEGER NOT NULL, stored_bytes INTEGER NOT NULL,
    incomplete TEXT NOT NULL,
    PRIMARY KEY (plan, instance)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS runs (
    plan TEXT NOT NULL REFERENCES plans(name) ON DELETE CASCADE, instance TEXT NOT NULL, run TEXT NOT NULL,
    PRIMARY KEY (plan, instance, run)
) WITHOUT ROWID;
"""

MemberState = Literal["pending", "running", "done", "failed", "lost"]
"""Nobody knows what became of the export of a lost one, whose node was lost, nor of a running one that a killed client left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMember:
    """How far one instance of a plan is; as in `diskhaul.FleetMember`."""

    instance: str
    source: str
    state: MemberState = "pending"
    target: str = ""
    attempts: int = 0
    seconds: float = 0.0
    export_id: str = ""
    exit_code: int = 0
    error: str = ""
    remedy: str = ""
    size: int = 0
    bytes_read: int = 0
    stored_bytes: int = 0
    incomplete: tuple[str, ...] = ()


_COLUMNS = [each.name for each in fields(PlannedMember)]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPlan:
    """A plan as a whole. `begun` and `ended` (None: it is not at its end) are seconds since the epoch."""

    name: str
    begun: float
    ended: float | None
    request: Mapping[str, Any]
    total: int
    done: int


class PlanStore:
    """The plans of one cluster. Every method is one durable transaction; safe to use from several threads and processes.

    Raises:
        RefusedError: it cannot be made, or is of a newer version.
        OperationFailedError: from the methods; it could not be read or written.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / FILE_NAME
        try:
            make_database(self._path)
            with self._connection() as connection:
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    connection.executescript(_SCHEMA)
                    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except (OSError, OperationFailedError) as error:
            raise RefusedError(f"state_dir {state_dir}: plans of fleets cannot be kept: {error}; check the directory") from error
        if version > SCHEMA_VERSION:
            raise RefusedError(f"{self._path} was written by a newer diskhaul (version {version}): use that one")
        if 0 < version < SCHEMA_VERSION:
            raise RefusedError(
                f"{self._path} was written by an older diskhaul (version {version}): "
                "end its plans with that one, then delete the file"
            )

    @staticmethod
    def is_in(state_dir: Path) -> bool:
        """Whether there is one; making a `PlanStore` makes one."""
        return os.path.lexists(state_dir / FILE_NAME)

    def _connection(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self._path)

    def begin(self, name: str, request: Mapping[str, Any], members: Iterable[PlannedMember]) -> None:
        """Put a plan in the place of what there was of that name, and forget the oldest ones that are at their end."""
        with self._connection() as connection:
            connection.execute("DELETE FROM plans WHERE name = ?", (name,))
            connection.execute(
                "DELETE FROM plans WHERE ended IS NOT NULL AND name NOT IN "
                "(SELECT name FROM plans WHERE ended IS NOT NULL ORDER BY ended DESC LIMIT ?)",
                (KEPT_PLANS,),
            )
            connection.execute("INSERT INTO plans VALUES (?, ?, NULL, ?)", (name, time.time(), _text(request)))
            _write(connection, name, members)

    def record(self, name: str, members: Sequence[PlannedMember]) -> None:
        """Say how far these members are now."""
        with self._connection() as connection:
            _write(connection, name, members)

    def begin_run(self, name: str, instance: str, run: str) -> None:
        """Say which run an export of this instance is."""
        with self._connection() as connection:
            connection.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?)", (name, instance, run))

    def runs(self, name: str, instance: str) -> list[str]:
        """Ids of all runs that have exported this instance for the plan, or have tried to."""
        with self._connection() as connection:
            rows = connection.execute("SELECT run FROM runs WHERE plan = ? AND instance = ?", (name, instance)).fetchall()
        return [run for (run,) in rows]

    def end(self, name: str, *, ended: bool = True) -> None:
        """The plan is at its end, or, with `ended` false, goes on after all."""
        with self._connection() as connection:
            connection.execute("UPDATE plans SET ended = ? WHERE name = ?", (time.time() if ended else None, name))

    def plans(self) -> list[StoredPlan]:
        """Every plan, newest first."""
        with self._connection() as connection:
            rows = connection.execute(
                "SELECT name, begun, ended, request, (SELECT COUNT(*) FROM members WHERE plan = name), "
                "(SELECT COUNT(*) FROM members WHERE plan = name AND state = 'done') FROM plans ORDER BY begun DESC"
            ).fetchall()
        return [
            StoredPlan(name=name, begun=begun, ended=ended, request=json.loads(request), total=total, done=done)
            for name, begun, ended, request, total, done in rows
        ]

    def members(self, name: str) -> list[PlannedMember]:
        """The members of a plan, by name."""
        with self._connection() as connection:
            rows = connection.execute(
                f"SELECT {', '.join(_COLUMNS)} FROM members WHERE plan = ? ORDER BY instance", (name,)
            ).fetchall()
        return [
            PlannedMember(**dict(zip(_COLUMNS[:-1], row[:-1], strict=True)), incomplete=tuple(json.loads(row[-1])))
            for row in rows
        ]


def same_request(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two requests, of which one has been in the store, ask for the same."""
    return _text(a) == _text(b)


def request_digest(request: Mapping[str, Any]) -> str:
    """32 hex digits that two requests have in common when they are the `same_request`."""
    return hashlib.sha256(_text(request).encode()).hexdigest()[:32]


def _write(connection: sqlite3.Connection, plan: str, members: Iterable[PlannedMember]) -> None:
    connection.executemany(
        f"INSERT OR REPLACE INTO members (plan, {', '.join(_COLUMNS)}) VALUES (?{', ?' * len(_COLUMNS)})",
        (
            (plan, *(getattr(member, column) for column in _COLUMNS[:-1]), json.dumps(list(member.incomplete)))
            for member in members
        ),
    )


def _text(data: Mapping[str, Any]) -> str:
    return json.dumps(data, sort_keys=True)
