"""Verifying exports: every byte is read back and compared with its digests; where there are none yet, they are made."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..api import ExportReader, ExportStore, LockMode
from ..errors import (
    DiskhaulError,
    InterruptedRunError,
    LockTimeoutError,
    RefusedError,
    UnknownNameError,
    VerificationError,
)
from ..feedback import Feedback
from ..formats.corruption import CorruptError
from ..formats.export_id import is_export_id
from ..formats.ganeti import CONFIG_NAME as GANETI_CONFIG
from ..formats.manifest import MANIFEST_NAME, DiskRecord, Manifest, read_manifest
from ..options import DEFAULT_CHUNK_SIZE, PathOptions
from ..pipeline.digest import digest_job
from ..pipeline.meter import Meter
from ..pipeline.readback import ReadBackJob, open_stored_disk
from ..pipeline.send import SendJob
from ..pipeline.source import Source, close_sources
from ..pipeline.workers import PipelineStalledError, as_diskhaul_error, run_jobs
from ..records import ExportRecord, Finding, VerifyResult
from .base import LockLevel, Operation, RunContext
from .catalog import ExportName, check_files, check_identity, check_other_file, on_node, open_record, parse_export_name
from .exports import CatalogOperation, damage, is_export_path, open_by_path, problem_of, read_record
from .record_digests import open_without_digests, record_digests

STALL_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What reading one export found.

    Attributes:
        findings: what is wrong with it.
        bytes_checked: stored bytes that were read.
        manifest: what it is, or None where that cannot be read.
        made: jobs with the digests of disks that had none, by index.
    """

    findings: Sequence[Finding]
    bytes_checked: int = 0
    manifest: Manifest | None = None
    made: Mapping[int, SendJob] = field(default_factory=dict)


class VerifyOperation(CatalogOperation[VerifyResult]):
    """Reads exports back, every byte, and reports all that is wrong. An export being removed is left out.

    An export that has no digests yet is read too, and gets them. (Not one that is named by its path: nothing keeps others away
    from it.)
    """

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
        tally = _Tally()
        for record in records:
            self.token.raise_if_cancelled()
            name = f"{record.instance}@{record.export_id}"
            try:
                locked = self.read_lock(record)
            except LockTimeoutError as error:
                if self._one:
                    raise
                tally.skipped.append(f"{name} was not verified: {error}")
                continue
            with locked, feedback.stage("verify", name):
                if not self._is_there(record):
                    if self._one:
                        raise UnknownNameError("export", name, f"{name} was removed meanwhile")
                    feedback.warn(f"{name} was removed since it was listed")
                    continue
                verified = self._verify(record)
            tally.findings += verified.findings
            tally.bytes_checked += verified.bytes_checked
            if verified.made and not verified.findings:
                with feedback.stage("record", name):
                    record = self._recorded(record, verified, tally)
            tally.checked.append(record)
        return VerifyResult(
            checked=tuple(tally.checked),
            findings=tuple(tally.findings),
            bytes_checked=tally.bytes_checked,
            recorded=tuple(tally.recorded),
            unreachable=unreachable,
            skipped=tuple(tally.skipped),
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
        checked: tuple[ExportRecord, ...] = ()
        try:
            record, manifest = read_record(reader)
            checked = (record,)
        except VerificationError:
            pass  # it will be among the findings
        else:
            if not manifest.has_digests:
                raise RefusedError(
                    f"{path}: has no digests yet: 'diskhaul verify {record.instance}@{record.export_id}', with the configuration "
                    "of its cluster, makes them"
                )
        verified = verify_export(self, reader, None, self._threads)
        return VerifyResult(checked=checked, findings=tuple(verified.findings), bytes_checked=verified.bytes_checked)

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

    def _verify(self, record: ExportRecord) -> Verified:
        try:
            reader = open_record(self.host, self.node_of(record), record)
        except DiskhaulError as error:
            return Verified(findings=[Finding(path=record.path, file="", problem=str(error))])
        return verify_export(self, reader, record, self._threads)

    def _recorded(self, record: ExportRecord, verified: Verified, tally: _Tally) -> ExportRecord:
        """Record the digests that were made, or say in `tally` why that cannot be; return the export's record as it is then."""
        assert verified.manifest is not None
        self.token.raise_if_cancelled()
        try:
            record_digests(self, record, verified.manifest, verified.made)
        except CorruptError as error:
            tally.findings.append(Finding(path=record.path, file="", problem=error.problem))
            return record
        except InterruptedRunError:
            raise
        except (DiskhaulError, OSError) as error:
            tally.skipped.append(f"{record.instance}@{record.export_id}: its digests were made and not recorded: {error}")
            return record
        record = replace(record, digests=True)
        tally.recorded.append(record)
        return record


@dataclass(slots=True)
class _Tally:
    """What has been found so far, over all exports."""

    checked: list[ExportRecord] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    recorded: list[ExportRecord] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    bytes_checked: int = 0


def _export_ids(store: ExportStore, instance: str) -> Sequence[str]:
    return store.exports(instance)


def verify_export(operation: Operation[Any], reader: ExportReader, record: ExportRecord | None, threads: int) -> Verified:
    """Read one export back completely.

    Args:
        record: where the export was found, or None for one that was named by its path.
    """
    path = reader.location
    try:
        manifest = read_manifest(reader)
        if record is not None:
            check_identity(manifest, record)
    except (CorruptError, DiskhaulError) as error:
        return Verified(findings=[Finding(path=path, file=MANIFEST_NAME, problem=problem_of(error))])
    findings = list(_file_findings(reader, manifest))
    sources: list[Source] = []
    jobs: list[tuple[DiskRecord, ReadBackJob | SendJob]] = []
    stalled: PipelineStalledError | None = None
    try:
        for disk_record in manifest.disks:
            try:
                source, job = _open(reader, disk_record, operation)
            except (CorruptError, DiskhaulError) as error:
                finding = damage(path, disk_record.file, error, disk=disk_record.index)
                # That a file was cut has been found among all files, without the disk.
                findings = [*(found for found in findings if found.problem != finding.problem), finding]
            else:
                sources.append(source)
                jobs.append((disk_record, job))
        run_jobs(
            [job for _, job in jobs],
            PathOptions(threads=threads),
            token=operation.token,
            stall_timeout_s=STALL_TIMEOUT_S,
            chunk_size=max((disk_record.chunk_size for disk_record, _ in jobs), default=DEFAULT_CHUNK_SIZE),
        )
    except PipelineStalledError as error:
        stalled = error
        raise
    finally:
        close_sources(sources, stalled)
    for disk_record, job in jobs:
        findings += _job_findings(path, disk_record, job)
    return Verified(
        findings=findings,
        bytes_checked=sum(job.meter.read for _, job in jobs),
        manifest=manifest,
        made={disk_record.index: job for disk_record, job in jobs if isinstance(job, SendJob)},
    )


def _open(reader: ExportReader, record: DiskRecord, operation: Operation[Any]) -> tuple[Source, ReadBackJob | SendJob]:
    """Open a stored disk, and make the job that checks it, or, where it has no digests yet, makes them."""
    meter = Meter(record.index, "verify", record.size, operation.feedback.emit)
    if not record.has_digests:
        source = open_without_digests(reader, record)
        return source, digest_job(source, record.chunk_size, meter)
    stored = open_stored_disk(reader, record)
    return stored.source, ReadBackJob(stored, writer=None, decode=True, stop_at_first=False, meter=meter)


def _job_findings(path: str, record: DiskRecord, job: ReadBackJob | SendJob) -> list[Finding]:
    """What reading one disk found, in the order of the disk."""
    found = job.findings if isinstance(job, ReadBackJob) else []
    places = [(corrupt.offset, corrupt.problem) for corrupt in sorted(found, key=lambda corrupt: corrupt.offset or 0)]
    if job.error is not None:
        places.append((None, str(as_diskhaul_error(job.error, f"{path}/{record.file}"))))
    return [Finding(path=path, file=record.file, disk=record.index, problem=problem, offset=offset) for offset, problem in places]


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
