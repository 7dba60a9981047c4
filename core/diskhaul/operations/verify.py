"""Verifying exports: every byte is read back and compared with its digests."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..api import ExportReader, ExportStore, LockMode
from ..errors import DiskhaulError, LockTimeoutError, RefusedError, UnknownNameError, VerificationError
from ..feedback import Feedback
from ..formats.corruption import CorruptError
from ..formats.export_id import is_export_id
from ..formats.ganeti import CONFIG_NAME as GANETI_CONFIG
from ..formats.manifest import MANIFEST_NAME, Manifest, read_manifest
from ..options import DEFAULT_CHUNK_SIZE, PathOptions
from ..pipeline.meter import Meter
from ..pipeline.readback import ReadBackJob, StoredDisk, open_stored_disk
from ..pipeline.source import close_sources
from ..pipeline.workers import PipelineStalledError, as_diskhaul_error, run_jobs
from ..records import ExportRecord, Finding, VerifyResult
from .base import LockLevel, Operation, RunContext
from .catalog import ExportName, check_files, check_identity, check_other_file, on_node, open_record, parse_export_name
from .exports import CatalogOperation, damage, is_export_path, open_by_path, problem_of, read_record

STALL_TIMEOUT_S = 600.0


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
        if MANIFEST_NAME not in names and not is_export_id(os.path.basename(reader.location)):
            raise RefusedError(f"{path}: is no export: it has no {MANIFEST_NAME}")
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
        return [Finding(path=path, file=MANIFEST_NAME, problem=problem_of(error))], 0
    findings = list(_file_findings(reader, manifest))
    stored: list[StoredDisk] = []
    stalled: PipelineStalledError | None = None
    try:
        for disk_record in manifest.disks:
            try:
                stored.append(open_stored_disk(reader, disk_record, direct_io="auto"))
            except (CorruptError, DiskhaulError) as error:
                finding = damage(path, disk_record.file, error, disk=disk_record.index)
                # That a file was cut has been found among all files, without the disk.
                findings = [*(found for found in findings if found.problem != finding.problem), finding]
        jobs = [_check_job(disk, operation) for disk in stored]
        run_jobs(
            jobs,
            PathOptions(threads=threads),
            token=operation.token,
            stall_timeout_s=STALL_TIMEOUT_S,
            chunk_size=max((disk.record.chunk_size for disk in stored), default=DEFAULT_CHUNK_SIZE),
        )
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
        findings.append(Finding(path=reader.location, file="", problem=problem_of(error)))
    for name in manifest.other_files:
        try:
            check_other_file(reader, manifest, name)
        except (CorruptError, DiskhaulError, OSError) as error:
            findings.append(Finding(path=reader.location, file=name, problem=problem_of(error)))
    return findings
