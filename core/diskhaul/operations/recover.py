"""Finishing or rolling back what a run left that was killed: its guest, its snapshots, its unpublished export."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from ..api import STOP_GRACE_S, ExportStore, LockMode, Snapshot
from ..errors import LockTimeoutError, OperationFailedError, RefusedError
from ..events import ExportRemoved
from ..feedback import Feedback
from ..journal import Journal, Note, UnfinishedRun
from ..model import Cluster, Instance
from ..names import expand_name, name_problem
from ..records import RecoverResult
from ..this_node import this_node
from .base import LockLevel, Operation, RunContext, Timeouts
from .catalog import on_node
from .cleanup import REMOVAL
from .deadlines import CALL_LIMIT_S, within
from .disk_notes import disk_from_note
from .guest import GuestKeeper, guest_call, guest_runs
from .moving import recover_move

T = TypeVar("T")
_ORDER = {"moving": -1, "frozen": 0, "guest": 1, "disks": 2, "snapshot": 3, "partial": 4, "removing": 5}
"""Guests first: they have been down, or frozen, since the run died."""

_REMOVAL_LOCK_S = 1.0  # not 0: holders of another machine count as dead only for those who wait


def owes_start(context: RunContext, instance: str) -> bool:
    """True when a run that is gone stopped the guest of `instance` and did not start it again. Needs the instance's lock.

    Makes no journal where there is none: plans ask as well.
    """
    if not Journal.is_in(context.cluster.state_dir):
        return False
    return any(note.kind == "guest" for run in context.journal.unfinished(instance) for note in run.notes)


def settle_start(context: RunContext, instance: str, *, started: bool) -> None:
    """Strike off what says that the guest of `instance` is owed a start: somebody has seen to it. Needs its exclusive lock.

    Those of guests that another cluster was told to start stay; where it was `started`, so do those whose stop may still come.
    """
    for run in context.journal.unfinished(instance):
        if any(note.kind == "moving" for note in run.notes):
            continue
        seen_to = [note for note in run.notes if note.kind == "guest" and (note.data.get("stopped") or not started)]
        for note in seen_to:
            context.journal.strike(note.note_id)
        if seen_to:
            context.journal.finish(run.run_id)


def unfinished_lines(cluster: Cluster) -> list[str]:
    """One line for each run in the journal that has not ended: it is at work, or was killed. Changes nothing."""
    if not Journal.is_in(cluster.state_dir):
        return []
    return [
        f"{run.operation} of {run.instance}, begun {datetime.fromtimestamp(run.started, UTC):%Y-%m-%d %H:%M:%S}Z, has not ended: "
        f"unless it is still at work, 'diskhaul recover {run.instance}' undoes what it left"
        for run in Journal(cluster.state_dir).unfinished()
        if run.notes
    ]


def recover_runs(
    operation: Operation[Any], instance: str, *, wanted: Callable[[UnfinishedRun], bool] = lambda run: True
) -> tuple[list[str], list[str]]:
    """Undo what dead runs on `instance` left, those that are `wanted`; return what was done and what could not be, one line each.

    The caller holds the instance's exclusive lock, so whoever made the notes is dead or has lost its own.
    """
    context = operation.context
    done: list[str] = []
    incomplete: list[str] = []
    for run in filter(wanted, context.journal.unfinished(instance)):
        if run.operation == REMOVAL:
            _recover_removal(operation, run, done, incomplete)
        else:
            _recover_run(operation, run, done, incomplete)
    for line in done:
        context.feedback.warn(f"left by an earlier run: {line}")
    for line in incomplete:
        context.feedback.warn(f"left by an earlier run, and still to be done: {line}")
    return done, incomplete


def _recover_removal(operation: Operation[Any], run: UnfinishedRun, done: list[str], incomplete: list[str]) -> None:
    """Finish a removal, unless somebody is at it: removals hold the export's lock, not the instance's."""
    exports = {note.data["export_id"]: LockMode.EXCLUSIVE for note in run.notes}
    try:
        with operation.locks.acquire(LockLevel.EXPORT, exports, _REMOVAL_LOCK_S):
            for current in operation.context.journal.unfinished(run.instance):
                if current.run_id == run.run_id:
                    _recover_run(operation, current, done, incomplete)
    except LockTimeoutError as error:
        incomplete.append(f"{run.instance}: a removal is still going on: {error}")


def _recover_run(operation: Operation[Any], run: UnfinishedRun, done: list[str], incomplete: list[str]) -> None:
    context = operation.context
    moving = any(note.kind == "moving" for note in run.notes)
    for note in sorted(run.notes, key=lambda note: (_ORDER.get(note.kind, 9), note.note_id)):
        if moving and note.kind == "guest":
            # The other note says who runs the guest, and nobody starts it before that is known; then this one is settled too.
            if not any(each.kind == "moving" for each in _notes(context, run)):
                context.journal.strike(note.note_id)
            continue
        operation.locks.check()  # else another run may have settled it, and be at work by now
        if not context.journal.has(note.note_id):
            continue
        try:
            if note.kind == "moving":
                done.append(recover_move(context, operation.locks, run, note))
            else:
                done.append(_UNDO[note.kind](context, run, note.data))
            context.journal.strike(note.note_id)
        except BaseException as error:  # whatever one note meets, a plugin's SystemExit included, the others are still to be done
            incomplete.append(f"{run.instance}: {note.kind} of run {run.run_id[:8]}: {error}")
    context.journal.finish(run.run_id)


def _notes(context: RunContext, run: UnfinishedRun) -> tuple[Note, ...]:
    """What the journal still says of a run."""
    return next((each.notes for each in context.journal.unfinished(run.instance) if each.run_id == run.run_id), ())


def _start_guest(context: RunContext, run: UnfinishedRun, data: Mapping[str, Any]) -> str:
    """Start the guest; one whose stop was never confirmed is watched for as long as it may still be shutting down."""
    instance = context.host.inventory().instances().get(data["instance"])
    if instance is None:
        return f"{data['instance']} is no longer configured, and was not started"
    watch_s = 0.0
    if not data.get("stopped"):
        timeout_s = float(data["timeout_s"])
        limit_s = timeout_s + STOP_GRACE_S
        # The clock may have been set since; neither way is the guest watched for longer than a shutdown may take.
        watch_s = min(max(data["since"] + limit_s - time.time(), 1.0), limit_s)
    keeper = _keeper(context, run, instance)
    keeper.keep_running(watch_s)
    return f"{instance.name} runs again" if keeper.started else f"{instance.name} was running and had not gone down"


def _keeper(context: RunContext, run: UnfinishedRun, instance: Instance) -> GuestKeeper:
    return GuestKeeper(context.host.runtime(instance.runtime), instance, context.journal, run.run_id, context.feedback)


def _thaw_guest(context: RunContext, run: UnfinishedRun, data: Mapping[str, Any]) -> str:
    instance = context.host.inventory().instances().get(data["instance"])
    if instance is None:
        return f"{data['instance']} is no longer configured, and was not thawed"
    _keeper(context, run, instance).thaw_anyway()
    return f"{instance.name} was thawed"


def _deactivate_disks(context: RunContext, run: UnfinishedRun, data: Mapping[str, Any]) -> str:
    instance = context.host.inventory().instances().get(data["instance"])
    if instance is None:
        return f"{data['instance']} is no longer configured; its disks were not deactivated"
    runtime = context.host.runtime(instance.runtime)
    if guest_runs(runtime, instance):
        return f"{instance.name} is running; its disks stay active"
    guest_call("deactivate its disks", runtime, runtime.deactivate_disks, instance)
    return f"the disks of {instance.name} were deactivated"


def _remove_snapshot(context: RunContext, run: UnfinishedRun, data: Mapping[str, Any]) -> str:
    snapshot = Snapshot(
        backend=data["backend"], disk=disk_from_note(data["disk"]), run_id=run.run_id, reference=data["reference"]
    )
    backend = context.host.snapshots(snapshot.backend)
    within(CALL_LIMIT_S, "removing a snapshot", lambda: backend.remove(snapshot))
    if within(CALL_LIMIT_S, "looking for a snapshot", lambda: backend.exists(snapshot)):
        raise OperationFailedError(f"snapshot {snapshot.reference} is still there")
    return f"snapshot {snapshot.reference} was removed"


def _remove_partial(context: RunContext, run: UnfinishedRun, data: Mapping[str, Any]) -> str:
    instance, export_id = data["instance"], data["export_id"]
    if "cluster" in data:
        # Nobody else can reach it: the key has ended with the run, and the receiver removes what does not go on.
        return f"the unfinished export {instance}@{export_id} is left to its receiver at cluster {data['cluster']}"
    if "receiving" in data:
        shutil.rmtree(context.cluster.state_dir / "remote" / "receiving" / data["receiving"], ignore_errors=True)
    if data.get("given_up"):
        # Publishing it was reported as failed. A call that was left behind may have published it all the same.
        _on_named_node(context, data["node"], _drop_all, instance, export_id)
    elif _on_named_node(context, data["node"], _drop_partial, instance, export_id):
        # Publishing is the last step, after everything has been read back; the run only had no time to say so.
        return f"{instance}@{export_id} on {data['node']} had been published; it is whole, and was kept"
    return f"the unfinished export {instance}@{export_id} on {data['node']} was removed"


def _finish_removal(context: RunContext, run: UnfinishedRun, data: Mapping[str, Any]) -> str:
    instance, export_id = data["instance"], data["export_id"]
    if _on_named_node(context, data["node"], _drop_partial, instance, export_id):
        return f"the removal of {instance}@{export_id} on {data['node']} had not begun; it was kept"
    context.feedback.emit(
        ExportRemoved(node=data["node"], instance=instance, export_id=export_id, reason="its removal had been interrupted")
    )
    return f"the removal of {instance}@{export_id} on {data['node']} was finished"


def _on_named_node(context: RunContext, name: str, function: Callable[..., T], instance: str, export_id: str) -> T:
    node = context.host.inventory().nodes().get(name)
    if node is None:
        raise OperationFailedError(f"node {name} is no longer configured: remove {instance}@{export_id} there by hand")
    return within(CALL_LIMIT_S, f"node {name}", lambda: on_node(context.host, node, function, instance, export_id))


def _drop_partial(store: ExportStore, instance: str, export_id: str) -> bool:
    """Remove what is invisible of an export; return whether there is a visible one, which stays."""
    store.remove_partial(instance, export_id)
    return export_id in store.exports(instance)


def _drop_all(store: ExportStore, instance: str, export_id: str) -> None:
    """Remove an export, visible or not."""
    store.remove_partial(instance, export_id)
    store.remove(instance, export_id)


_UNDO: Mapping[str, Callable[[RunContext, UnfinishedRun, Mapping[str, Any]], str]] = {
    "frozen": _thaw_guest,
    "guest": _start_guest,
    "disks": _deactivate_disks,
    "snapshot": _remove_snapshot,
    "partial": _remove_partial,
    "removing": _finish_removal,
}


class RecoverOperation(Operation[RecoverResult]):
    """Recovers one instance, or all that have unfinished runs. Can be repeated, and interrupted, at will.

    A node of an engine whose nodes are other processes recovers what is its own, also where all nodes see one journal: guests are
    started, and snapshots removed, where they were.

    Args:
        runs: only instances that one of these has left something of; None for any.

    Attributes:
        elsewhere: once it was executed: instances of which the journal that all nodes see tells, and the nodes that recover them.
    """

    name = "recover"

    def __init__(
        self, context: RunContext, instance: str | None, lock_timeout_s: float, *, runs: Collection[str] | None = None
    ) -> None:
        super().__init__(context)
        self._asked = instance
        self._runs = runs
        self.elsewhere: dict[str, str] = {}
        self.timeouts = Timeouts(lock_s=lock_timeout_s)
        self._instance: str | None = None

    def check_arguments(self) -> None:
        if self._asked is not None and (problem := name_problem("instance", self._asked)):
            raise RefusedError(problem)

    def expand_names(self) -> None:
        if self._asked is None:
            return
        known = {*self.host.inventory().instances(), *(run.instance for run in self.context.journal.unfinished())}
        self._instance = expand_name("instance", self._asked, known)

    def declare_locks(self, level: LockLevel) -> Mapping[str, LockMode]:
        return {self.cluster.name: LockMode.SHARED} if level is LockLevel.CLUSTER else {}

    def execute(self, feedback: Feedback) -> RecoverResult:
        done: list[str] = []
        incomplete: list[str] = []
        busy: list[str] = []
        is_ours = self._is_ours()
        wanted: set[str] = set()
        for run in self.context.journal.unfinished(self._instance):
            if self._runs is not None and run.run_id not in self._runs:
                continue
            if is_ours(run):
                wanted.add(run.instance)
            elif run.notes:
                self.elsewhere[run.instance] = self._home_of(run)
        if not self.host.engine().shared_state_dir:
            # Nobody else sees this journal: the instance was given to another node since.
            for instance, home in sorted(self.elsewhere.items()):
                incomplete.append(
                    f"{instance}: a run left something of it here, but it lives on node {home}, and nothing was touched: "
                    "look after it by hand, or let it live here until it is recovered"
                )
            self.elsewhere = {}
        for instance in sorted(wanted):
            self.token.raise_if_cancelled()
            try:
                locked = self.locks.acquire(LockLevel.INSTANCE, {instance: LockMode.EXCLUSIVE}, self.timeouts.lock_s)
            except LockTimeoutError as error:
                incomplete.append(f"{instance}: still being worked on: {error}")
                busy.append(instance)
                continue
            with locked:
                instance_done, instance_incomplete = recover_runs(self, instance, wanted=is_ours)
            done += instance_done
            incomplete += instance_incomplete
        return RecoverResult(done=tuple(done), incomplete=tuple(incomplete), busy=tuple(busy))

    def _is_ours(self) -> Callable[[UnfinishedRun], bool]:
        """Whether this process is to recover a run; all are those of a process that is no node."""
        here = this_node()
        if here is None or not self.host.engine().distributed:
            return lambda run: True
        return lambda run: self._home_of(run) in ("", here.name)

    def _home_of(self, run: UnfinishedRun) -> str:
        """The node that recovers `run`, or "" where it may be any that sees the journal."""
        inventory = self.host.inventory()
        nodes, instances = inventory.nodes(), inventory.instances()
        if run.operation == REMOVAL:
            return ""
        for note in run.notes:
            if "receiving" in note.data and note.data["node"] in nodes:
                return str(note.data["node"])
        if run.instance in instances:
            return instances[run.instance].node
        master = nodes.get(self.cluster.master)
        if master is None or master.offline or not self.host.engine().shared_state_dir:
            return ""
        return master.name

    def dry_run_result(self) -> RecoverResult:
        return RecoverResult()
