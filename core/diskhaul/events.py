"""What an operation tells while it runs.

Each event is a small frozen dataclass; `as_dict` gives the JSON line that ``--events`` writes.

`on_event` and the `diskhaul_event` hooks are called on one thread of the operation's own, ``diskhaul-events``, one event at a
time and in order; each event is given to `on_event` first. The operation waits for them, but for no more than 5 seconds at an
event: from then on until they have caught up, it goes on without them, and they miss progress (`DiskProgress`). An `on_event`
that raises is told no more, with a warning. A hook that raises is warned of once, and still called.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from .options import Setting

if TYPE_CHECKING:
    from .api import DiskRegion


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events.

    Attributes:
        run_id: the operation it belongs to.
        time: seconds since the epoch.
    """

    kind: ClassVar[str] = "event"
    run_id: str = ""
    time: float = field(default_factory=time.time)

    def as_dict(self) -> dict[str, Any]:
        return {"event": self.kind} | {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStarted(Event):
    """A stage begins: "locks", "prerequisites", "pre hooks", "stop", "snapshot", "start", "send", "digest", "verify", ..."""

    kind: ClassVar[str] = "stage-started"
    stage: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFinished(Event):
    """A stage is over; `ok` is False when it failed, `seconds` how long it took."""

    kind: ClassVar[str] = "stage-finished"
    stage: str
    ok: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskProgress(Event):
    """How far one disk is, in bytes of the disk; at most some ten a second per disk, and one at its end.

    Attributes:
        disk: index.
        activity: "send", "digest", "verify" or "restore".
        total: size of the disk.
        done: bytes dealt with, zeros and holes included.
        read: bytes read from the disk (or from the store).
        written: bytes written to the store (or to the disk).
    """

    kind: ClassVar[str] = "disk-progress"
    disk: int
    activity: str
    total: int
    done: int
    read: int
    written: int
    finished: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeSpaceFound(Event):
    """What a disk holds, and what of it is left out as free; before the disk is sent.

    Attributes:
        disk: index.
        backend: the zero-fill backend that was asked.
        skipped: bytes that are left out, together.
        regions: what is where, and what of it is skipped, or why nothing is. Texts of the guest's own are in it.
    """

    kind: ClassVar[str] = "free-space"
    disk: int
    backend: str
    skipped: int
    regions: tuple[DiskRegion, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LockWaiting(Event):
    """A lock is held by somebody else; `holder` says by whom and what for."""

    kind: ClassVar[str] = "lock-waiting"
    lock: str
    holder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestChanged(Event):
    """A guest was "stopped", "started", "frozen", "thawed" or "removed"."""

    kind: ClassVar[str] = "guest"
    instance: str
    change: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRemoved(Event):
    """An export was removed: superseded, pruned, asked for, or what a dead run had left."""

    kind: ClassVar[str] = "export-removed"
    node: str
    instance: str
    export_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFinished(Event):
    """A tuning run has exported its sample once more.

    Attributes:
        number, phase, settings, seconds, cpu_seconds, stored_bytes, problem: as in `diskhaul.TuneTrial`.
        rate: bytes of the sample per second, 0 where the trial came to no end.
        best: nothing was better so far.
    """

    kind: ClassVar[str] = "trial"
    number: int
    phase: str
    settings: Mapping[str, Setting]
    seconds: float
    cpu_seconds: float
    stored_bytes: int
    rate: float
    best: bool
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStarted(Event):
    """A fleet begins, or goes on: `total` instances, of which `done` were exported by earlier runs of the plan."""

    kind: ClassVar[str] = "fleet-started"
    plan: str
    total: int
    done: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberStarted(Event):
    """An export of a fleet begins; `size` is that of its disks in bytes, 0 where it was not needed."""

    kind: ClassVar[str] = "member-started"
    instance: str
    source: str
    target: str
    attempt: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberFinished(Event):
    """An attempt at an export of a fleet is over.

    Attributes:
        state: "done", "failed", "retry" (it begins again after `retry_in_s` seconds) or "pending" (the fleet was stopped).
        exit_code, error: as in `OperationFinished`.
    """

    kind: ClassVar[str] = "member-finished"
    instance: str
    source: str
    target: str
    attempt: int
    state: str
    exit_code: int
    seconds: float
    error: str = ""
    export_id: str = ""
    retry_in_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberEvent(Event):
    """What one export of a fleet tells; as a JSON line it is `event` with `instance`, `source` and `target` added."""

    kind: ClassVar[str] = "member"
    instance: str
    source: str
    target: str
    event: Event

    def as_dict(self) -> dict[str, Any]:
        return self.event.as_dict() | {"instance": self.instance, "source": self.source, "target": self.target}


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned(Event):
    """Something is not as it should be, and the operation goes on."""

    kind: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationFinished(Event):
    """The operation is over; the last event of every run. (A configuration that cannot be used is no operation.)

    Attributes:
        operation: "export", "import", "verify", ...
        outcome: "ok"; "refused", nothing was touched; "failed"; or "interrupted".
        exit_code: as of the command line; 4 when the outcome is "ok" and something is incomplete.
        error: what went wrong, as the error says it; "" when nothing was raised.
        export_id: that of the export that was published (also when a later step failed), or "".
    """

    kind: ClassVar[str] = "operation-finished"
    operation: str
    outcome: str
    exit_code: int
    error: str = ""
    export_id: str = ""
