"""Operations on exports that exist: list, show, verify, remove, prune."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from ..api import ExportReader, ExportStore, LockMode
from ..errors import (
    DiskhaulError,
    InterruptedRunError,
    LockTimeoutError,
    RefusedError,
    StorageError,
    UnknownNameError,
    VerificationError,
)
from ..feedback import Feedback
from ..formats.corruption import CorruptError
from ..formats.ganeti import CONFIG_NAME as GANETI_CONFIG
from ..formats.manifest import MANIFEST_NAME, Manifest, read_manifest
from ..model import Node
from ..names import expand_name
from ..options import KeepPolicy
from ..pipeline.meter import Meter
from ..pipeline.readback import ReadBackJob, StoredDisk, open_stored_disk
from ..pipeline.source import close_sources
from ..pipeline.workers import PipelineStalledError, as_diskhaul_error, run_jobs
from ..records import ExportDetails, ExportRecord, Finding, ListResult, RemovalResult, VerifyResult
from ..retention import select_kept
from .base import LockLevel, Operation, RunContext, Timeouts
from .catalog import (
    Catalog,
    ExportName,
    check_files,
    check_identity,
    check_other_file,
    on_node,
    open_record,
    parse_export_name,
    record_of,
)
from .cleanup import remove_export, remove_exports

R = TypeVar("R")
STALL_TIMEOUT_S = 600.0


class CatalogOperation(Operation[R]):
    """Base of those that look at exports over nodes: all nodes, or the one asked for."""

    def __init__(self, context: RunContext, node: str | None, lock_timeout_s: float = 60.0) -> None:
        super().__init__(context)
        self._asked_node = node
        self.timeouts = Timeouts(lock_s=lock_timeout_s)
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
    return "/" in text or (text != "" and Path(text).is_dir())  # Path("") is the current directory


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
        finding = Finding(path=reader.location, file=MANIFEST_NAME, problem=_problem(error))
        raise VerificationError(str(finding), findings=(finding,)) from error
    return record_of(manifest, node="", store="", path=reader.location), manifest


class VerifyOperation(CatalogOperation[VerifyResult]):
    """Reads exports back, every byte, and reports all that is wrong. An export being removed is left out."""

    name = "verify"

    def __init__(self, context: RunContext, export: str | None, node: str | None, threads: int) -> None:
        super().__init__(context, node)
        self._export = export
        self._threads = threads

    def declare_locks(self, level: LockLevel) -> Mapping[str, LockMode]:
        if self._by_path:
            return {}
        return {self.cluster.name: LockMode.SHARED} if level is LockLevel.CLUSTER else {}

    @property
    def _by_path(self) -> bool:
        return self._export is not None and is_export_path(self._export)

    def execute(self, feedback: Feedback) -> VerifyResult:
        if self._by_path:
            return self._verify_path(str(self._export))
        records, unreachable = self._wanted()
        findings: list[Finding] = []
        checked: list[ExportRecord] = []
        skipped: list[str] = []
        total = 0
        for record in records:
            self.token.raise_if_cancelled()
            name = f"{record.instance}@{record.export_id}"
            try:
                locked = self.read_lock(record)
            except LockTimeoutError as error:
                if self._one:
                    raise
                skipped.append(f"{name} was not verified: {error}")
                continue
            with locked, feedback.stage("verify", name):
                if not self._is_there(record):
                    if self._one:
                        raise UnknownNameError("export", name, f"{name} was removed meanwhile")
                    feedback.warn(f"{name} was removed since it was listed")
                    continue
                found, count = self._verify(record)
            checked.append(record)
            findings += found
            total += count
        return VerifyResult(
            checked=tuple(checked),
            findings=tuple(findings),
            bytes_checked=total,
            unreachable=unreachable,
            skipped=tuple(skipped),
        )

    @property
    def _one(self) -> bool:
        """True when a single export was asked for, by its id."""
        return self._export is not None and bool(parse_export_name(self._export).export_id)

    def _is_there(self, record: ExportRecord) -> bool:
        try:
            return record.export_id in on_node(self.host, self.node_of(record), _export_ids, record.instance)
        except DiskhaulError:
            return True  # `_verify` finds out what is wrong, and says it

    def _verify_path(self, path: str) -> VerifyResult:
        reader = open_by_path(self, path)
        names = reader.names()
        if MANIFEST_NAME not in names and GANETI_CONFIG in names:
            raise RefusedError(f"{path}: an export that Ganeti made holds no digests: there is nothing to verify it against")
        findings, count = verify_export(self, reader, None, self._threads)
        checked: tuple[ExportRecord, ...] = ()
        try:
            checked = (read_record(reader)[0],)
        except VerificationError:
            pass  # it is among the findings
        return VerifyResult(checked=checked, findings=tuple(findings), bytes_checked=count)

    def _wanted(self) -> tuple[Sequence[ExportRecord], tuple[str, ...]]:
        if self._export is None:
            listed = self.catalog.list()
            return listed.exports, listed.unreachable
        asked = parse_export_name(self._export)
        instance = self.full_instance(asked.instance)
        if asked.export_id:
            return [self.catalog.find(ExportName(instance, asked.export_id))], ()
        listed = self.catalog.list(instance)
        if not listed.exports:
            raise UnknownNameError("export", instance, f"{instance} has no export")
        return listed.exports, listed.unreachable

    def _verify(self, record: ExportRecord) -> tuple[list[Finding], int]:
        try:
            reader = open_record(self.host, self.node_of(record), record)
        except DiskhaulError as error:
            return [Finding(path=record.path, file="", problem=str(error))], 0
        return verify_export(self, reader, record, self._threads)


def _export_ids(store: ExportStore, instance: str) -> Sequence[str]:
    return store.exports(instance)


def verify_export(
    operation: Operation[Any], reader: ExportReader, record: ExportRecord | None, threads: int
) -> tuple[list[Finding], int]:
    """Read one export back completely; return what is wrong and how many stored bytes were read.

    Args:
        record: where the export was found, or None for one that was named by its path.
    """
    path = reader.location
    try:
        manifest = read_manifest(reader)
        if record is not None:
            check_identity(manifest, record)
    except (CorruptError, DiskhaulError) as error:
        return [Finding(path=path, file="manifest.json", problem=_problem(error))], 0
    findings = list(_file_findings(reader, manifest))
    stored: list[StoredDisk] = []
    stalled: PipelineStalledError | None = None
    try:
        for disk_record in manifest.disks:
            try:
                stored.append(open_stored_disk(reader, disk_record))
            except (CorruptError, DiskhaulError) as error:
                problem, offset = _problem(error), error.offset if isinstance(error, CorruptError) else None
                findings.append(Finding(path=path, file=disk_record.file, disk=disk_record.index, problem=problem, offset=offset))
        jobs = [_check_job(disk, operation) for disk in stored]
        run_jobs(jobs, threads=threads, token=operation.token, stall_timeout_s=STALL_TIMEOUT_S)
    except PipelineStalledError as error:
        stalled = error
        raise
    finally:
        close_sources([disk.source for disk in stored], stalled)
    for disk, job in zip(stored, jobs, strict=True):
        findings += _job_findings(path, disk, job)
    return findings, sum(job.meter.read for job in jobs)


def _check_job(disk: StoredDisk, operation: Operation[Any]) -> ReadBackJob:
    meter = Meter(disk.record.index, "verify", disk.record.size, operation.feedback.emit)
    return ReadBackJob(disk, writer=None, decode=True, stop_at_first=False, meter=meter)


def _job_findings(path: str, disk: StoredDisk, job: ReadBackJob) -> list[Finding]:
    """What reading one disk found, in the order of the disk."""
    places = [(corrupt.offset, corrupt.problem) for corrupt in sorted(job.findings, key=lambda corrupt: corrupt.offset or 0)]
    if job.error is not None:
        places.append((None, str(as_diskhaul_error(job.error, disk.source.label))))
    return [
        Finding(path=path, file=disk.record.file, disk=disk.record.index, problem=problem, offset=offset)
        for offset, problem in places
    ]


def _file_findings(reader: ExportReader, manifest: Manifest) -> Sequence[Finding]:
    """What is wrong with the export's set of files, and with those that belong to no disk."""
    findings = []
    try:
        check_files(reader, manifest)
    except (CorruptError, DiskhaulError) as error:
        findings.append(Finding(path=reader.location, file="", problem=_problem(error)))
    for name in manifest.other_files:
        try:
            check_other_file(reader, manifest, name)
        except (CorruptError, DiskhaulError, OSError) as error:
            findings.append(Finding(path=reader.location, file=name, problem=_problem(error)))
    return findings


def _problem(error: BaseException) -> str:
    return error.problem if isinstance(error, CorruptError) else str(error)


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
            problems = ["prune without any --keep-... would remove every export: say what to keep, for example --keep-last 3"]
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
