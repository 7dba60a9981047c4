"""The snapshots of one run: all or nothing, gone on every path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from ..api import DiskReader, Snapshot, Snapshots
from ..errors import DiskhaulError, SnapshotError
from ..feedback import Feedback
from ..journal import Journal
from ..model import Disk
from .deadlines import PluginHangsError, within
from .disk_notes import disk_note

T = TypeVar("T")


class SnapshotSet:
    """Creates, opens and removes the snapshots of an instance's disks, `limit_s` seconds at most for each call.

    Each is noted in the journal before it is created, and struck off once it is gone.
    """

    def __init__(
        self, backends: Mapping[int, tuple[str, Snapshots]], run_id: str, journal: Journal, feedback: Feedback, *, limit_s: float
    ) -> None:
        self._backends = backends
        self._run_id, self._journal, self._feedback = run_id, journal, feedback
        self._limit_s = limit_s
        self._made: dict[int, tuple[Snapshot, int]] = {}
        self._may_follow: set[int] = set()  # a call to create it hangs: it may appear when nobody looks any more

    def create(self, disks: Sequence[Disk]) -> None:
        """Snapshot all `disks`.

        Raises:
            SnapshotError: one could not be made. What there is of it, and of others, is left to `remove_all`: first comes the
                guest, which may be waiting.
        """
        for disk in disks:
            name, backend = self._backends[disk.index]
            try:
                snapshot = self._bounded("plan", partial(backend.plan, disk, self._run_id))
                if not isinstance(snapshot, Snapshot) or self._run_id not in snapshot.reference:
                    raise SnapshotError(f"snapshot backend {name} plans {snapshot!r}: its reference must carry the run id")
                note = self._journal.note(self._run_id, "snapshot", snapshot_note(snapshot))
                self._made[disk.index] = (snapshot, note)
                self._bounded("create", partial(backend.create, snapshot))
                if not self._bounded("exists", partial(backend.exists, snapshot)):
                    raise SnapshotError(f"snapshot backend {name} says that it made {snapshot.reference}, and there is none")
            except BaseException as error:  # a plugin may raise anything
                if isinstance(error, PluginHangsError):
                    self._may_follow.add(disk.index)
                raise SnapshotError(f"{disk.label}: no snapshot by {name}: {error or type(error).__name__}") from error

    def open(self, disk: Disk) -> DiskReader:
        """Open the snapshot of `disk` for reading.

        Raises:
            SnapshotError: it is gone or invalid.
        """
        name, backend = self._backends[disk.index]
        snapshot, _ = self._made[disk.index]
        try:
            return self._bounded("open", lambda: backend.open(snapshot))
        except DiskhaulError:
            raise
        except Exception as error:
            raise SnapshotError(f"{disk.label}: its snapshot by {name} cannot be opened: {error}") from error

    def still_valid(self, disk: Disk) -> bool:
        """Ask the backend whether the snapshot of `disk` is still there; one that turned invalid must not be exported."""
        _, backend = self._backends[disk.index]
        return self._bounded("exists", partial(backend.exists, self._made[disk.index][0]))

    def remove(self, index: int) -> None:
        """Remove one snapshot; removing it twice is fine.

        Raises:
            SnapshotError: it is still there; its note stays in the journal for `diskhaul recover`.
        """
        if index not in self._made:
            return
        snapshot, note = self._made[index]
        name, backend = self._backends[index]
        try:
            self._bounded("remove", lambda: backend.remove(snapshot))
            if self._bounded("exists", partial(backend.exists, snapshot)):
                raise SnapshotError("it is still there")
            if index in self._may_follow:
                raise SnapshotError("the call to make it was left behind, and may still make it")
            self._journal.strike(note)
        except BaseException as error:
            raise SnapshotError(
                f"{snapshot.disk.label}: its snapshot {snapshot.reference} could not be removed by {name}: {error}; "
                "'diskhaul recover' tries again"
            ) from error
        del self._made[index]

    def remove_all(self) -> list[SnapshotError]:
        """Remove what is left of all snapshots; return what could not be."""
        failures: list[SnapshotError] = []
        for index in list(self._made):
            try:
                self.remove(index)
            except SnapshotError as error:
                failures.append(error)
        return failures

    def _bounded(self, what: str, call: Callable[[], T]) -> T:
        return within(self._limit_s, f"snapshot {what}", call)


def snapshot_note(snapshot: Snapshot) -> dict[str, Any]:
    """What the journal keeps of a snapshot."""
    return {"backend": snapshot.backend, "reference": snapshot.reference, "disk": disk_note(snapshot.disk)}
