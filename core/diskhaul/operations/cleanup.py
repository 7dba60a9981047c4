"""Removing the exports that a new one supersedes: chosen by the clean-up backend, removed here, one by one.

By export id and store, never by name alone; only after the new export has been read back; each under its own exclusive lock,
so that nobody is verifying or importing it; and only while the run still holds its own locks.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from ..api import ExportStore, LockMode
from ..errors import DiskhaulError, InvalidHookResultError
from ..events import ExportRemoved
from ..host import PluginHost
from ..records import ExportRecord
from .base import LockLevel, Operation
from .catalog import Catalog, on_node
from .deadlines import CALL_LIMIT_S, within

REMOVAL = "removal"
"""What the journal calls the removal of one export."""
CLEANUP_LOCK_S = 60.0
"""How long a clean-up waits for somebody who reads an export: it is short work, and can be done by the next export."""


def clean_up(operation: Operation[Any], new: ExportRecord, *, read_back: bool) -> tuple[tuple[ExportRecord, ...], list[str]]:
    """Remove what `new` supersedes; return what was removed, and what is left to be done, one line each.

    Nothing is removed unless the new export has digests, was read back, and is still there.
    """
    if not new.digests:
        operation.feedback.warn("earlier exports are kept, since the new one has no digests yet (digest = later): verify it")
        return (), []
    if not read_back:
        operation.feedback.warn("earlier exports are kept, since the new one was not read back (verify = none)")
        return (), []
    if not getattr(operation.host.cleanup(), "removes_exports", True):
        return (), []
    with operation.feedback.stage("cleanup"):
        wait_s = min(CLEANUP_LOCK_S, operation.timeouts.lock_s)
        try:
            held = operation.locks.acquire(LockLevel.EXPORT, {new.export_id: LockMode.SHARED}, wait_s)
        except DiskhaulError as error:
            return (), [f"clean-up: nothing was removed: {error}"]
        with held:  # while earlier exports go, nobody may take the new one away
            return _clean_up(operation, new)


def _clean_up(operation: Operation[Any], new: ExportRecord) -> tuple[tuple[ExportRecord, ...], list[str]]:
    nodes = operation.host.inventory().nodes().values()
    listed = Catalog(operation.host, nodes).list(new.instance)
    incomplete = [f"clean-up: {reason}" for reason in listed.unreachable]
    if not any(record.valid and (record.store, record.export_id) == (new.store, new.export_id) for record in listed.exports):
        return (), [*incomplete, f"clean-up: nothing was removed, since the new export {new.export_id} is not there any more"]
    try:
        chosen = choose_superseded(operation.host, new, listed.exports)
    except BaseException as error:  # a plugin may raise anything, and the export stands
        return (), [*incomplete, f"clean-up: nothing was removed: {error or type(error).__name__}"]
    removed, failed = remove_exports(operation, chosen, reason=f"superseded by {new.export_id}")
    return tuple(removed), incomplete + failed


def choose_superseded(host: PluginHost, new: ExportRecord, listed: Iterable[ExportRecord]) -> list[ExportRecord]:
    """Ask the clean-up backend; what it may choose from is every other valid export of the instance.

    Raises:
        InvalidHookResultError: it chose something else, the new export for example.
    """
    existing = [
        record for record in listed if record.valid and record.instance == new.instance and record.export_id != new.export_id
    ]
    chosen = list(host.cleanup().superseded(new, tuple(existing)))
    for record in chosen:
        if record not in existing:
            raise InvalidHookResultError(f"the clean-up backend chose {record!r}, which was not among those it may choose from")
    return chosen


def remove_exports(
    operation: Operation[Any], records: Sequence[ExportRecord], *, reason: str
) -> tuple[list[ExportRecord], list[str]]:
    """Remove `records`; return those removed, and one line for each that could not be."""
    removed: list[ExportRecord] = []
    failed: list[str] = []
    for record in records:
        name = f"{record.instance}@{record.export_id} on {record.node}"
        if operation.token.cancelled:
            failed.append(f"{name} was not removed: interrupted")
            continue
        try:
            remove_export(operation, record, reason=reason)
            removed.append(record)
        except DiskhaulError as error:
            failed.append(f"{name} was not removed: {error}")
        except BaseException as error:  # a plugin may raise anything; the other removals still happen
            failed.append(f"{name} was not removed: {type(error).__name__}: {error}")
    return removed, failed


def remove_export(operation: Operation[Any], record: ExportRecord, *, reason: str) -> None:
    """Remove one export under its exclusive lock; noted in the journal, so that a killed removal is finished later.

    Raises:
        LockTimeoutError: somebody is reading it.
        LockLostError: this run may no longer remove anything.
        StorageError, UnreachableNodeError: it is still there, at least in part.
    """
    wait_s = min(CLEANUP_LOCK_S, operation.timeouts.lock_s)
    context = operation.context
    node = operation.host.inventory().nodes()[record.node]
    with operation.locks.acquire(LockLevel.EXPORT, {record.export_id: LockMode.EXCLUSIVE}, wait_s):
        operation.locks.check()
        # A run of its own: it is guarded by the export's lock, and not by the instance's, which a removal need not hold.
        removal = str(uuid.uuid4())
        begun = {"node": record.node, "instance": record.instance, "export_id": record.export_id}
        note = context.journal.begin_with(removal, REMOVAL, record.instance, "removing", begun)
        remove = partial(on_node, operation.host, node, _remove, record.instance, record.export_id)
        within(CALL_LIMIT_S, f"node {node.name}: removing an export", remove)
        context.journal.strike(note)
        context.journal.finish(removal)
    operation.feedback.emit(ExportRemoved(node=record.node, instance=record.instance, export_id=record.export_id, reason=reason))


def _remove(store: ExportStore, instance: str, export_id: str) -> None:
    store.remove(instance, export_id)
