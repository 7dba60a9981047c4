"""Operations on exports that exist: list, show, remove, prune. Verifying is `verify`, importing `restore`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from ..api import ExportReader, LockMode
from ..errors import (
    DiskhaulError,
    InterruptedRunError,
    RefusedError,
    StorageError,
    VerificationError,
)
from ..feedback import Feedback
from ..formats.corruption import CorruptError
from ..formats.manifest import MANIFEST_NAME, Manifest, read_manifest
from ..model import Node
from ..names import expand_name
from ..options import KeepPolicy
from ..records import ExportDetails, ExportRecord, Finding, ListResult, RemovalResult
from ..retention import select_kept
from .base import LockLevel, Operation, RunContext, Timeouts
from .catalog import (
    Catalog,
    ExportName,
    open_record,
    parse_export_name,
    record_of,
)
from .cleanup import remove_export, remove_exports

R = TypeVar("R")
LOCK_TIMEOUT_S = 60.0
"""How long to wait for somebody who reads, or removes, an export."""


class CatalogOperation(Operation[R]):
    """Base of those that look at exports over nodes: all nodes, or the one asked for."""

    def __init__(self, context: RunContext, node: str | None) -> None:
        super().__init__(context)
        self._asked_node = node
        self.timeouts = Timeouts(lock_s=LOCK_TIMEOUT_S)
        self.catalog: Catalog

    def expand_names(self) -> None:
        nodes = self.host.inventory().nodes()
        chosen: list[Node] = list(nodes.values())
        if self._asked_node is not None:
            chosen = [nodes[expand_name("node", self._asked_node, nodes)]]
        self.catalog = Catalog(self.host, chosen)

    def full_instance(self, name: str) -> str:
        """A configured instance, or one that only has exports left."""
        return self.catalog.expand_instance(name, self.host.inventory().instances())

    def node_of(self, record: ExportRecord) -> Node:
        return self.host.inventory().nodes()[record.node]

    def read_lock(self, record: ExportRecord) -> ExitStack:
        """Hold `record` for reading: nobody removes it meanwhile."""
        return self.locks.acquire(LockLevel.EXPORT, {record.export_id: LockMode.SHARED}, self.timeouts.lock_s)


class ListOperation(CatalogOperation[ListResult]):
    """Lists exports. Takes no locks: what is listed may be gone a moment later."""

    name = "list"

    def __init__(self, context: RunContext, instance: str | None, node: str | None) -> None:
        super().__init__(context, node)
        self._instance = instance

    def execute(self, feedback: Feedback) -> ListResult:
        return self.catalog.list(self.full_instance(self._instance) if self._instance is not None else None)


class ShowOperation(CatalogOperation[ExportDetails]):
    """Finds one export, by ``INSTANCE[@ID]`` or by its directory, and reads its manifest."""

    name = "show"

    def __init__(self, context: RunContext, export: str, node: str | None) -> None:
        super().__init__(context, node)
        self._export = export

    def execute(self, feedback: Feedback) -> ExportDetails:
        if is_export_path(self._export):
            reader = open_by_path(self, self._export)
            record, manifest = read_record(reader)
            return ExportDetails(record=record, manifest=json.loads(manifest.to_bytes()))
        asked = parse_export_name(self._export)
        record = self.catalog.find(ExportName(self.full_instance(asked.instance), asked.export_id))
        if not record.valid:
            return ExportDetails(record=record, manifest={})
        manifest = read_manifest(open_record(self.host, self.node_of(record), record))
        return ExportDetails(record=record, manifest=json.loads(manifest.to_bytes()))


def is_export_path(text: str) -> bool:
    """True when a user means an export's directory, not its name."""
    return isinstance(text, str) and ("/" in text or (text != "" and Path(text).is_dir()))  # Path("") is the current directory


def open_by_path(operation: Operation[Any], path: str) -> ExportReader:
    """Open an export by its directory.

    Raises:
        RefusedError: it is not there, or is no directory.
    """
    try:
        return operation.host.transfer().open_path(os.path.abspath(path))
    except (StorageError, OSError) as error:
        raise RefusedError(str(error)) from error


def read_record(reader: ExportReader) -> tuple[ExportRecord, Manifest]:
    """Record and manifest of an export that was opened by its path.

    Raises:
        VerificationError: it has no valid manifest.
    """
    try:
        manifest = read_manifest(reader)
    except (CorruptError, DiskhaulError) as error:
        finding = Finding(path=reader.location, file=MANIFEST_NAME, problem=problem_of(error))
        raise VerificationError(str(finding), findings=(finding,)) from error
    return record_of(manifest, node="", store="", path=reader.location), manifest


def problem_of(error: BaseException) -> str:
    """What is wrong with an export, as `error` tells it."""
    return error.problem if isinstance(error, CorruptError) else str(error)


def damage(path: str, file: str, error: BaseException, *, disk: int | None) -> Finding:
    """What `error`, met while `file` of the export at `path` was read, says is wrong, and where."""
    if not isinstance(error, CorruptError):  # the offset of a StorageError is one of what could not be read, not of damage
        return Finding(path=path, file=file, disk=disk, problem=str(error))
    return Finding(
        path=path,
        file=error.file or file,
        disk=disk,
        problem=error.problem,
        offset=error.offset,
        file_offset=error.file_offset,
    )


class RemoveOperation(CatalogOperation[RemovalResult]):
    """Removes one export, or all of an instance. Needs no instance lock: the instance may be long gone."""

    name = "remove"

    def __init__(self, context: RunContext, export: str, node: str | None, *, all_exports: bool, dry_run: bool) -> None:
        super().__init__(context, node)
        self._export, self._all, self.dry_run = export, all_exports, dry_run
        self._chosen: list[ExportRecord] = []
        self._unreachable: tuple[str, ...] = ()

    def check_arguments(self) -> None:
        asked = parse_export_name(self._export)
        if self._all and asked.export_id:
            raise RefusedError(f"{self._export}: name one export, or the instance with --all, not both")
        if not self._all and not asked.export_id:
            raise RefusedError(
                f"{self._export}: say which export ({self._export}@ID, see 'diskhaul list'), or --all for every one"
            )

    def declare_locks(self, level: LockLevel) -> Mapping[str, LockMode]:
        return {self.cluster.name: LockMode.SHARED} if level is LockLevel.CLUSTER else {}

    def check_prerequisites(self) -> None:
        asked = parse_export_name(self._export)
        instance = self.full_instance(asked.instance)
        if asked.export_id:
            self._chosen = [self.catalog.find(ExportName(instance, asked.export_id))]
            return
        listed = self.catalog.list(instance)
        self._chosen, self._unreachable = list(listed.exports), listed.unreachable

    def execute(self, feedback: Feedback) -> RemovalResult:
        if len(self._chosen) == 1 and not self._all:
            remove_export(self, self._chosen[0], reason="asked for")  # its own error says what failed
            return RemovalResult(removed=tuple(self._chosen))
        removed, failed = remove_exports(self, self._chosen, reason="asked for")
        self.token.raise_if_cancelled()
        return RemovalResult(removed=tuple(removed), incomplete=(*self._unreachable, *failed))

    def dry_run_result(self) -> RemovalResult:
        return RemovalResult(removed=tuple(self._chosen), incomplete=self._unreachable, dry_run=True)


class PruneOperation(CatalogOperation[RemovalResult]):
    """Removes what a `KeepPolicy` does not keep. Exports that are not valid are neither counted nor removed."""

    name = "prune"

    def __init__(self, context: RunContext, instance: str | None, node: str | None, *, policy: KeepPolicy, dry_run: bool) -> None:
        super().__init__(context, node)
        self._asked, self._policy, self.dry_run = instance, policy, dry_run
        self._kept: list[ExportRecord] = []
        self._chosen: list[ExportRecord] = []
        self._unreachable: tuple[str, ...] = ()

    def check_arguments(self) -> None:
        problems = [
            f"--keep-{name} must be 0 or more, not {count}"
            for name in ("last", "daily", "weekly", "monthly", "yearly")
            if (count := getattr(self._policy, name)) < 0
        ]
        if not problems and self._policy.keeps_nothing:
            problems = ["this keeps nothing, and would remove every export: say what to keep, for example --keep-last 3"]
        if problems:
            raise RefusedError(problems)

    def declare_locks(self, level: LockLevel) -> Mapping[str, LockMode]:
        return {self.cluster.name: LockMode.SHARED} if level is LockLevel.CLUSTER else {}

    def check_prerequisites(self) -> None:
        listed = self.catalog.list(self.full_instance(self._asked) if self._asked is not None else None)
        self._unreachable = listed.unreachable
        keep = select_kept(listed.exports, self._policy)
        valid = [record for record in listed.exports if record.valid]
        self._kept = [record for record in listed.exports if not record.valid or record.export_id in keep]
        self._chosen = [record for record in valid if record.export_id not in keep]

    def execute(self, feedback: Feedback) -> RemovalResult:
        removed, failed = remove_exports(self, self._chosen, reason="pruned")
        if self.token.cancelled:
            raise InterruptedRunError(f"interrupted: {len(removed)} of {len(self._chosen)} exports had been removed")
        return RemovalResult(removed=tuple(removed), kept=tuple(self._kept), incomplete=(*self._unreachable, *failed))

    def dry_run_result(self) -> RemovalResult:
        return RemovalResult(removed=tuple(self._chosen), kept=tuple(self._kept), incomplete=self._unreachable, dry_run=True)
