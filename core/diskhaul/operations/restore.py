"""Importing an export: its disks are restored, every chunk checked on the way."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from ..api import ExportReader, LockMode
from ..errors import DiskhaulError, GuestError, OperationFailedError, RefusedError, StorageError, VerificationError
from ..feedback import Feedback
from ..formats.corruption import CorruptError
from ..formats.ganeti import CONFIG_NAME, GanetiDump, is_ours, parse_config_ini, size_mib
from ..formats.manifest import MANIFEST_NAME, DiskRecord, Manifest, instance_from_record, read_manifest
from ..model import Disk, Instance, Node
from ..names import name_problem
from ..option_checks import import_option_problems
from ..options import DEFAULT_CHUNK_SIZE, DirectIO, ImportOptions
from ..pipeline.meter import Meter
from ..pipeline.raw_restore import RawRestoreJob
from ..pipeline.readback import ReadBackJob, open_stored_disk
from ..pipeline.source import Source
from ..pipeline.workers import DiskJob, PipelineStalledError, as_diskhaul_error, run_jobs
from ..records import DiskResult, ExportRecord, ImportResult
from .base import LockLevel, RunContext, Timeouts
from .catalog import (
    ExportName,
    check_files,
    check_identity,
    check_other_file,
    open_record,
    parse_export_name,
    read_small_file,
)
from .exports import CatalogOperation, damage, is_export_path, open_by_path
from .guest import guest_runs
from .import_targets import ImportTarget, OpenTarget
from .moving import being_moved
from .plugin_answers import failure_lines, location_of
from .record_digests import open_without_digests
from .recover import owes_start

_INCOMPLETE = "what was written is marked incomplete"


class StoredSource(Protocol):
    """A disk of an export, ready to be restored."""

    size: int
    data_bytes: int
    chunk_size: int

    def direct_io_problem(self) -> str | None: ...

    def job(self, target: OpenTarget, meter: Meter) -> DiskJob: ...

    def close(self) -> None: ...


class _Checked:
    """A disk with digests: every chunk is checked before it is written."""

    def __init__(self, reader: ExportReader, record: DiskRecord, direct_io: DirectIO) -> None:
        self._stored = open_stored_disk(reader, record, direct_io=direct_io)
        self.size = self._stored.record.size
        self.data_bytes = self._stored.record.data_bytes
        self.chunk_size = self._stored.record.chunk_size

    def direct_io_problem(self) -> str | None:
        return self._stored.source.direct_io_problem()

    def job(self, target: OpenTarget, meter: Meter) -> DiskJob:
        return ReadBackJob(self._stored, writer=target.writer, decode=True, stop_at_first=True, meter=meter)

    def close(self) -> None:
        self._stored.source.close()


class _Unchecked:
    """A raw disk without digests: there is nothing to check it against."""

    def __init__(self, source: Source, data_bytes: int) -> None:
        self._source = source
        self.size = source.size
        self.data_bytes = data_bytes
        self.chunk_size = DEFAULT_CHUNK_SIZE

    def direct_io_problem(self) -> str | None:
        return self._source.direct_io_problem()

    def job(self, target: OpenTarget, meter: Meter) -> DiskJob:
        return RawRestoreJob(self._source, target.writer, meter)

    def close(self) -> None:
        self._source.close()


def _open_ganeti_dump(reader: ExportReader, dump: GanetiDump, direct_io: DirectIO) -> _Unchecked:
    source = Source(reader.open(dump.file), f"{reader.location}/{dump.file}", direct_io=direct_io)
    if size_mib(source.size) < dump.size_mib:  # it may be larger: volumes are made of whole extents
        source.close()
        raise CorruptError(f"{dump.file} was cut: it has {source.size} bytes, the disk {dump.size_mib} MiB")
    return _Unchecked(source, source.size)


def _open_disk(reader: ExportReader, record: DiskRecord, direct_io: DirectIO) -> StoredSource:
    if record.has_digests:
        return _Checked(reader, record, direct_io)
    return _Unchecked(open_without_digests(reader, record, direct_io=direct_io), record.data_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportWhere:
    """Where an import goes: a directory, given disks by index, or (neither) the instance's configured disks."""

    node: str | None = None
    to_dir: Path | None = None
    disks: Mapping[int, Path] | None = None
    instance_name: str | None = None


class ImportOperation(CatalogOperation[ImportResult]):
    """Restores one export.

    Raises (from `run`):
        RefusedError: every reason found; nothing was written.
        VerificationError: the export is damaged; what had been written is marked incomplete.
        OperationFailedError, InterruptedRunError: likewise marked incomplete.
    """

    name = "import"

    def __init__(
        self, context: RunContext, export: str, where: ImportWhere, options: ImportOptions, *, has_cluster: bool
    ) -> None:
        super().__init__(context, where.node)
        self.options, self.where = options, where
        self.timeouts = Timeouts(lock_s=options.lock_timeout_s)
        self.dry_run = options.dry_run
        self._export, self._has_cluster = export, has_cluster
        self._record: ExportRecord | None = None
        self._configured: Instance | None = None
        self._reader: ExportReader
        self._exported: Instance
        self._manifest: Manifest
        self._dumps: tuple[GanetiDump, ...] = ()
        self._export_id = ""
        self._targets: list[ImportTarget] = []

    def describe(self) -> str:
        return f"import of {self._label()}"

    def _label(self) -> str:
        return f"{self._exported.name}@{self._export_id}" if self._export_id else self._reader.location

    @property
    def _to_dir(self) -> Path | None:
        return Path(os.path.abspath(self.where.to_dir)) if self.where.to_dir is not None else None

    @property
    def _by_path(self) -> bool:
        return is_export_path(self._export)

    # --- before anything is written ---------------------------------------------------------------------------------

    def check_arguments(self) -> None:
        problems = import_option_problems(self.options)
        where = self.where
        if where.to_dir is not None and where.disks:
            problems.append("give --to-dir or --disk, not both")
        if where.instance_name is not None and (problem := name_problem("instance", where.instance_name)):
            problems.append(problem)
        if where.disks is not None and any(index < 0 for index in where.disks):
            problems.append("--disk: disk indexes begin with 0")
        if not self._has_cluster:
            if not self._by_path:
                problems.append(f"{self._export}: to find an export by name, give --config; or give its directory")
            if where.to_dir is None and not where.disks:
                problems.append("without a configuration, say where the disks go: --to-dir or --disk")
        if not self._by_path:
            try:
                parse_export_name(self._export)
            except RefusedError as error:
                problems += error.problems
        if problems:
            raise RefusedError(problems)

    def expand_names(self) -> None:
        super().expand_names()
        inventory = self.host.inventory()
        if self._by_path:
            self._reader = open_by_path(self, self._export)
        else:
            asked = parse_export_name(self._export)
            self._record = self.catalog.find(ExportName(self.full_instance(asked.instance), asked.export_id))
            self._reader = open_record(self.host, self.node_of(self._record), self._record)
        self._read_description()
        name = self.where.instance_name or self._exported.name
        if self.where.to_dir is None and not self.where.disks:
            instances = inventory.instances()
            if name not in instances:
                raise RefusedError(f"instance {name} is not configured: say where its disks go, with --to-dir or --disk")
            self._configured = instances[name]
        self._instance_name = name

    def home(self) -> Node | None:
        """The configured disks of an instance are on its node; a directory, or paths that were given, are here."""
        return None if self._configured is None else self.host.inventory().nodes().get(self._configured.node)

    def _read_description(self) -> None:
        """Find out which instance the export is of; raises `VerificationError` when it is not a valid export."""
        try:
            names = self._reader.names()
            if MANIFEST_NAME not in names and CONFIG_NAME in names:
                self._read_ganeti_config(read_small_file(self._reader, CONFIG_NAME))
                return
            manifest = self._manifest = read_manifest(self._reader)
            if self._record is not None:
                check_identity(manifest, self._record)
            self._exported = instance_from_record(manifest.instance)
            self._export_id = manifest.export_id
        except (CorruptError, DiskhaulError) as error:
            raise self._damaged(error, MANIFEST_NAME) from error

    def _read_ganeti_config(self, data: bytes) -> None:
        if is_ours(data):  # without its manifest nothing could be checked, and nobody made it so on purpose
            raise CorruptError(f"{MANIFEST_NAME} is missing: this is a diskhaul export in Ganeti's layout, and not whole")
        config = parse_config_ini(data)
        if config.compression != "none":
            raise CorruptError(f"{CONFIG_NAME}: its dumps are compressed ({config.compression}): only plain ones can be read")
        self._exported = config.instance
        self._dumps = config.dumps

    def declare_locks(self, level: LockLevel) -> Mapping[str, LockMode]:
        if not self._has_cluster:
            return {}
        if level is LockLevel.CLUSTER:
            return {self.cluster.name: LockMode.SHARED}
        if level is LockLevel.INSTANCE and self._configured is not None:
            return {self._configured.name: LockMode.EXCLUSIVE}
        if level is LockLevel.NODE and self._record is not None:
            return {self._record.node: LockMode.SHARED}
        if level is LockLevel.EXPORT and self._export_id:
            return {self._export_id: LockMode.SHARED}
        return {}

    def check_prerequisites(self) -> None:
        with ExitStack() as stack:
            sources = self._open_sources(stack)
            problems: list[str] = []
            self._targets = self._choose_targets(sources, problems)
            for target in self._targets:
                problems += target.problems(
                    force=self.options.force, new_directory=self._to_dir, direct_io=self.options.direct_io
                )
            if self.options.direct_io == "always":
                problems += [
                    f"{self._label()}: direct_io = always: {problem}; use direct_io = auto"
                    for problem in dict.fromkeys(source.direct_io_problem() for source in sources)
                    if problem
                ]
            problems += self._safety_problems()
            problems += self._room_problems(sources)
        if problems:
            raise RefusedError(problems)

    def _open_sources(self, stack: ExitStack) -> list[StoredSource]:
        """Open every disk of the export, checking sizes, chunk tables and trailers."""
        sources: list[StoredSource] = []
        file = ""
        disk: int | None = None
        try:
            if not self._export_id:
                for index, dump in enumerate(self._dumps):
                    disk, file = index, dump.file
                    sources.append(_open_ganeti_dump(self._reader, dump, self.options.direct_io))
            else:
                manifest = self._manifest
                check_files(self._reader, manifest)
                for name in manifest.other_files:
                    file = name
                    check_other_file(self._reader, manifest, name)
                for record in manifest.disks:
                    disk, file = record.index, record.file
                    sources.append(_open_disk(self._reader, record, self.options.direct_io))
        except (CorruptError, DiskhaulError) as error:
            for source in sources:
                source.close()
            raise self._damaged(error, file, disk=disk) from error
        for source in sources:
            stack.callback(source.close)
        return sources

    def _damaged(self, error: BaseException, file: str, disk: int | None = None) -> VerificationError:
        finding = damage(self._reader.location, file, error, disk=disk)
        return VerificationError(f"cannot import: {finding}", findings=(finding,))

    def _choose_targets(self, sources: list[StoredSource], problems: list[str]) -> list[ImportTarget]:
        """Decide where each disk goes and how large it will be."""
        disks = self._target_disks(len(sources), problems)
        grow = dict(self.options.grow)
        problems += [f"--grow {index}: the export has no disk {index}" for index in grow if index >= len(sources)]
        targets = []
        for disk, source in zip(disks, sources, strict=False):
            size = grow.get(disk.index, disk.size if disk.size is not None else source.size)
            if size < source.size:
                problems.append(
                    f"{disk.label}: {size} bytes are less than the exported {source.size}: a disk may grow, never shrink"
                )
                continue
            try:
                targets.append(ImportTarget(disk=disk, size=size, storage=self.host.storage(disk.storage)))
            except RefusedError as error:
                problems += error.problems
        return targets

    def _target_disks(self, count: int, problems: list[str]) -> list[Disk]:
        where = self.where
        if (directory := self._to_dir) is not None:
            problems += _directory_problems(directory, force=self.options.force)
            return [Disk(path=directory / f"disk-{index}.raw", index=index) for index in range(count)]
        if where.disks:
            wrong = sorted(set(where.disks) ^ set(range(count)))
            if wrong:
                problems.append(
                    f"the export has {count} disk(s), so give --disk for 0 to {count - 1} (wrong or missing: {wrong})"
                )
                return []
            return [_disk_at(index, Path(os.path.abspath(path))) for index, path in sorted(where.disks.items())]
        assert self._configured is not None
        if len(self._configured.disks) != count:
            problems.append(
                f"{self._configured.name} is configured with {len(self._configured.disks)} disk(s), the export has {count}"
            )
            return []
        return list(self._configured.disks)

    def _safety_problems(self) -> list[str]:
        """Reasons why writing there would destroy something: a running guest, another instance's disk, the export itself."""
        problems = []
        if self._configured is not None:
            try:
                runtime = self.host.runtime(self._configured.runtime)
                name = self._configured.name
                if guest_runs(runtime, self._configured):
                    problems.append(f"{name} is running: stop it before its disks are overwritten")
                elif self._has_cluster and (lines := being_moved(self.context, name)):
                    problems += lines
                elif self._has_cluster and owes_start(self.context, name):
                    problems.append(f"{name} was stopped by a run that did not start it again: 'diskhaul recover {name}' first")
            except DiskhaulError as error:
                problems.append(str(error))
        own = self._configured.name if self._configured is not None else ""
        owners = {
            place: f"{instance.name} {disk.label}"
            for instance in self.host.inventory().instances().values()
            for disk in instance.disks
            if instance.name != own
            for place in self._others_places(disk)
        }
        export = os.path.realpath(self._reader.location)
        nodes = self.host.inventory().nodes().values()
        stores = {os.path.realpath(node.export_dir): node.name for node in nodes if node.export_dir is not None}
        seen: set[str] = set()
        for target in self._targets:
            try:
                places = self._places(target.disk)
            except BaseException as error:  # a plugin may raise anything, SystemExit included
                problems += failure_lines(target.place, error)
                continue
            if owner := next((owners[place] for place in sorted(places) if place in owners), None):
                problems.append(f"{target.place} belongs to {owner}: choose another path")
            files = [place for place in places if place.startswith("/")]
            if any(os.path.commonpath((place, export)) == export for place in files):
                problems.append(f"{target.place} lies in the export itself: choose another path")
            elif inside := next(
                (name for store, name in stores.items() for p in files if os.path.commonpath((p, store)) == store), ""
            ):
                problems.append(f"{target.place} lies in the export directory of node {inside}: choose another path")
            if not places.isdisjoint(seen):
                problems.append(f"{target.place} is given for two disks")
            seen |= places
        return problems

    def _places(self, disk: Disk) -> set[str]:
        """Where a disk's bytes are, by its path and by what its storage says (the file behind a loop device)."""
        place = location_of(self.host.storage(disk.storage), disk)
        return {place, os.path.realpath(disk.path) if disk.path is not None else ""} - {""}

    def _others_places(self, disk: Disk) -> set[str]:
        """The same of another instance's disk, whose storage may be missing here."""
        try:
            return self._places(disk)
        except BaseException:  # as above
            return {os.path.realpath(disk.path)} if disk.path is not None else set()

    def _room_problems(self, sources: list[StoredSource]) -> list[str]:
        """Whether the filesystems of new image files have room for the data."""
        needed: dict[int, tuple[Path, int]] = {}
        for target, source in zip(self._targets, sources, strict=False):
            if not target.is_file:
                continue
            assert target.disk.path is not None
            directory = next(parent for parent in target.disk.path.parents if parent.exists())
            device = os.stat(directory).st_dev
            needed[device] = (directory, needed.get(device, (directory, 0))[1] + source.data_bytes)
        problems = []
        for directory, size in needed.values():
            volume = os.statvfs(directory)
            free = volume.f_bavail * volume.f_frsize
            if volume.f_blocks and size > free:  # without blocks it does not tell
                problems.append(f"{directory} has {free >> 20:,} MiB free and the disks need {size >> 20:,} MiB: make room")
        return problems

    # --- the work ---------------------------------------------------------------------------------------------------

    def dry_run_result(self) -> ImportResult:
        planned = tuple(DiskResult(index=target.disk.index, label=target.place, size=target.size) for target in self._targets)
        return self._result(planned, dry_run=True)

    def execute(self, feedback: Feedback) -> ImportResult:
        if self._to_dir is not None:
            try:
                self._to_dir.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise StorageError(f"{self._to_dir}: cannot be made: {error.strerror}", path=str(self._to_dir)) from error
        with ExitStack() as stack:
            sources = self._open_sources(stack)
            results = self._restore(sources, stack, feedback)
        if self._to_dir is not None:
            self._describe_instance(self._to_dir)
        return self._result(results, dry_run=False)

    def _restore(self, sources: list[StoredSource], stack: ExitStack, feedback: Feedback) -> tuple[DiskResult, ...]:
        opened: list[OpenTarget] = []
        meters = [
            Meter(target.disk.index, "restore", source.size, feedback.emit)
            for target, source in zip(self._targets, sources, strict=True)
        ]
        try:
            with feedback.stage("restore", self._label()):
                for target in self._targets:
                    # One by one: what was opened before one that fails has to be closed.
                    opened.append(  # noqa: PERF401
                        target.open(force=self.options.force, label=self._label(), direct_io=self.options.direct_io)
                    )
                self._write(sources, opened, meters)
        except PipelineStalledError as error:
            stack.pop_all()
            for index, (source, open_target) in enumerate(zip(sources, opened, strict=True)):
                # At once, or when the thread that hangs in them lets go: their descriptors must not be given to other files.
                error.when_free(index, partial(_close_both, source, open_target))
            error.add_note(_INCOMPLETE)
            raise
        except BaseException as error:  # a plugin's storage may raise anything
            failure = self._closed(opened, error)
            if failure is error:
                raise
            raise failure from error
        return tuple(
            DiskResult(
                index=target.disk.index,
                label=target.place,
                size=target.size,
                bytes_read=meter.read,
                bytes_written=meter.written,
                bytes_skipped=meter.done - meter.written,
            )
            for target, meter in zip(self._targets, meters, strict=True)
        )

    def _write(self, sources: list[StoredSource], opened: list[OpenTarget], meters: list[Meter]) -> None:
        for open_target in opened:
            open_target.begin()
        jobs = [source.job(target, meter) for source, target, meter in zip(sources, opened, meters, strict=True)]
        run_jobs(
            jobs,
            self.options,
            token=self.token,
            stall_timeout_s=self.options.stall_timeout_s,
            chunk_size=max((source.chunk_size for source in sources), default=DEFAULT_CHUNK_SIZE),
            stop_together=True,
        )
        self._raise_for_failed(jobs)
        for target, source, open_target in zip(self._targets, sources, opened, strict=True):
            if target.size > source.size and not open_target.writer.reads_zero:
                open_target.writer.zero(source.size, target.size - source.size)
                open_target.writer.flush()
        self._check_undisturbed()
        for open_target in opened:
            open_target.prepare()
        completed: list[str] = []
        for target, open_target in zip(self._targets, opened, strict=True):
            try:
                open_target.complete()
            except BaseException as error:
                if completed:
                    error.add_note(f"{', '.join(completed)}: whole already, and new: what is there does not go with the others")
                raise
            completed.append(target.place)

    def _check_undisturbed(self) -> None:
        """What was written is to count from now on: nobody may have begun to use what it replaces.

        Raises:
            LockLostError: the instance may be somebody else's by now.
            GuestError: it runs.
        """
        self.locks.check()
        if self._configured is not None and guest_runs(self.host.runtime(self._configured.runtime), self._configured):
            raise GuestError(f"{self._configured.name} was started by somebody else while its disks were restored")

    def _closed(self, opened: list[OpenTarget], error: BaseException) -> DiskhaulError:
        """Close what is left incomplete; return the error to raise."""
        if isinstance(error, DiskhaulError):
            failure = error
        else:
            failure = OperationFailedError(f"import of {self._label()} failed: {error or type(error).__name__}")
        if opened:
            failure.add_note(_INCOMPLETE)
        for open_target in opened:
            try:
                open_target.close()
            except Exception as problem:  # the others still have to be closed
                failure.add(problem, "closing an incomplete disk")
        return failure

    def _raise_for_failed(self, jobs: list[DiskJob]) -> None:
        for target, job in zip(self._targets, jobs, strict=True):
            error = job.error
            if isinstance(error, CorruptError):
                raise self._damaged(error, "", disk=target.disk.index) from error
            if error is not None:
                index = target.disk.index
                cause = as_diskhaul_error(error, f"disk {index}")
                raise OperationFailedError(
                    f"import of {self._label()} failed: disk {index}: {cause}; {_INCOMPLETE}",
                    parts=(f"disk import: disk(s) {index}",),
                ) from error

    def _describe_instance(self, directory: Path) -> None:
        """Leave a description of the instance beside its disks, ready for a configuration."""
        from .instance_toml import instance_toml

        disks = tuple(
            replace(exported, storage="file", path=target.disk.path, size=None, options={})
            for exported, target in zip(self._exported.disks, self._targets, strict=True)
        )
        text = instance_toml(replace(self._exported, name=self._instance_name, disks=disks))
        path = directory / "instance.toml"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:  # the disks are whole, and what it says is in the export
            self.feedback.warn(f"{path}: cannot be written: {error.strerror}")

    def _result(self, disks: tuple[DiskResult, ...], *, dry_run: bool) -> ImportResult:
        warnings = list(self.feedback.warnings)
        if not self._export_id:
            warnings.append("Ganeti's own export has no digests: its bytes could not be checked")
        elif unchecked := [str(disk.index) for disk in self._manifest.disks if not disk.has_digests]:
            warnings.append(f"disk(s) {', '.join(unchecked)}: the export has no digests yet: their bytes could not be checked")
        return ImportResult(
            run_id=self.context.run_id,
            instance=self._instance_name,
            source=self._reader.location,
            disks=disks,
            targets={target.disk.index: target.place for target in self._targets},
            timings=dict(self.feedback.timings),
            warnings=tuple(warnings),
            dry_run=dry_run,
        )


def _close_both(source: StoredSource, target: OpenTarget) -> None:
    """Close what an abandoned restore was reading and writing; there is nobody left to tell of a failure."""
    for close in (source.close, target.close):
        try:
            close()
        except Exception:  # the other one still has to be closed
            pass


def _disk_at(index: int, path: Path) -> Disk:
    try:
        block = stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        block = False
    return Disk(storage="block" if block else "file", path=path, index=index)


def _directory_problems(directory: Path, *, force: bool) -> list[str]:
    try:
        entries = os.listdir(directory)
    except FileNotFoundError:
        if not directory.parent.is_dir():
            return [f"{directory.parent} does not exist: create it first"]
        writable = os.access(directory.parent, os.W_OK | os.X_OK)
        return [] if writable else [f"{directory.parent} cannot be written: {directory.name} cannot be made in it"]
    except OSError as error:
        return [f"{directory}: {error.strerror}: give a directory"]
    if entries and not force:
        return [f"{directory} is not empty: choose another directory, or overwrite with --force"]
    return []
