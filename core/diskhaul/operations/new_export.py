"""The export that a run makes: begun, filled, read back, published, or aborted."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

from ..api import (
    Buffer,
    DirectStoreFile,
    DiskRegion,
    ExportReader,
    ExportStore,
    ExportWriter,
    RetryingExportWriter,
    StoreFile,
)
from ..errors import InvalidHookResultError
from ..formats.chunk_table import effective_chunk_size
from ..formats.codec import parse_compress
from ..formats.export_id import new_export_id
from ..formats.manifest import DIGESTS_LATER, DISK_REGIONS, DiskRecord, Manifest, chunks_name, instance_record, most_regions
from ..model import Disk
from ..pipeline.meter import Meter
from ..pipeline.readback import ReadBackJob, StoredDisk, open_stored_disk
from ..pipeline.send import SendJob
from ..pipeline.sharing import Shared
from ..pipeline.source import Source, close_sources
from ..pipeline.workers import (
    CHUNKS_PER_WORKER,
    PipelineStalledError,
    as_diskhaul_error,
    computing_count,
    run_jobs,
    thread_count,
    worker_count,
)
from ..records import DiskResult, ExportRecord
from .catalog import read_valid_manifest, record_of
from .deadlines import PluginHangsError, within
from .export_disks import ExportDisks
from .export_task import ExportTask
from .run_state import RunState, UndoStep
from .shared_disks import make_digests, share_disk

T = TypeVar("T")
_PIECES_AHEAD = 2  # per thread: how far the threads may run ahead of what has been written in order


class NewExport:
    """One export on its way into its store. Use once.

    In this order: `begin`, `send`, `make_digests`, `write_chunk_tables`, `read_back`, `publish`.
    """

    def __init__(self, task: ExportTask, state: RunState) -> None:
        context = task.operation.context
        self._task, self._state, self._host = task, state, context.host
        self._options, self._instance, self._target = task.options, task.instance, task.target
        self._feedback, self._journal, self._token = context.feedback, context.journal, context.token
        self._run_id = context.run_id
        self._created = datetime.now(UTC)
        self._named = (task.exported.name, new_export_id(self._created, self._run_id))
        self._compression = parse_compress(task.options.compress)
        self._codec = self._compression.codec()
        self._jobs: list[SendJob] = []
        self._regions: dict[int, tuple[DiskRegion, ...]] = {}  # by disk: what was found on it
        self._made: dict[int, SendJob] = {}  # by disk: jobs that read what had been stored without being read
        self._begun: ExportWriter | None = None
        self._note = 0
        self._aborting: UndoStep | None = None
        self._publishing = self._call_left_behind = False

    @property
    def _writer(self) -> ExportWriter:
        assert self._begun is not None, "the export has been begun"
        return self._begun

    def _bounded(self, what: str, call: Callable[[], T]) -> T:
        """A store's call, within the time in which a transfer has to move."""
        return within(self._options.stall_timeout_s, f"export store {what}", call)

    def _bounded_for_good(self, what: str, call: Callable[[], T]) -> T:
        """`_bounded`, for calls that may leave something behind when they end after all."""
        try:
            return self._bounded(what, call)
        except PluginHangsError as error:
            self._call_left_behind = True
            error.add_note("'diskhaul recover' looks again for what it may leave behind")
            raise

    # --- begin and abort --------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Make the unpublished export."""
        self._note = self._journal.note(self._run_id, "partial", self._noted())
        self._aborting = self._state.undo_later("removing the unfinished export", self._abort)
        with self._state.part_named("export finalization"):
            writer = self._bounded_for_good("begin", lambda: self._task.at_target(_begin, *self._named))
            if not callable(getattr(writer, "abort", None)):
                raise InvalidHookResultError(
                    f"node {self._target.name}: its store's begin gave {writer!r}, which is no export writer"
                )
            self._begun = writer

    def _noted(self, *, given_up: bool = False) -> dict[str, object]:
        instance, export_id = self._named
        noted: dict[str, object] = {
            "node": self._target.name,
            "instance": instance,
            "export_id": export_id,
            "given_up": given_up,
        }
        return noted | {"cluster": self._task.remote} if self._task.remote else noted

    def _abort(self) -> None:
        try:
            self._take_away()
        finally:
            if self._task.remote:  # what is left there is its receiver's, which gives up: nobody else could reach it
                self._journal.strike(self._note)

    def _take_away(self) -> None:
        # Once it was to be published it may be visible already, or become so when a call that was left behind ends, although
        # publishing it failed; what is reported as failed must not be listed.
        try:
            if self._publishing:
                self._journal.amend(self._note, self._noted(given_up=True))
        finally:
            try:
                self._abandon()
            finally:
                if self._publishing:
                    self._bounded("remove", lambda: self._task.at_target(_remove, *self._named))
        if not self._call_left_behind:  # a call that hung may still make something: `recover` looks again
            self._journal.strike(self._note)

    def _abandon(self) -> None:
        if self._begun is not None:
            self._bounded_for_good("abort", self._begun.abort)
        else:  # `begin` failed half-way
            self._bounded("remove", lambda: self._task.at_target(_remove_partial, *self._named))

    # --- the data ---------------------------------------------------------------------------------------------------

    def send(self, disks: ExportDisks) -> None:
        """Send all disks, in parallel: copied, or where that can be, with their blocks shared.

        Raises:
            DiskhaulError: of the first disk that failed; the state's part names all of them.
        """
        encoder_memory = self._codec.encoder_memory(self._chunk_size)
        workers = worker_count(self._options, self._chunk_size, encoder_memory)
        self._say_what_memory_forbids(encoder_memory)
        sources: list[Source] = []
        stalled: PipelineStalledError | None = None
        self._state.part = "disk export"
        try:
            with self._feedback.stage("send", f"{len(self._instance.disks)} disk(s) to {self._target.name}"):
                for disk in self._instance.disks:
                    sources.append(disks.open(disk))
                    self._regions[disk.index] = disks.regions.get(disk.index, ())
                    self._jobs.append(self._send_job(disk, sources[-1], disks, workers * _PIECES_AHEAD))
                run_jobs(
                    self._jobs,
                    self._options,
                    token=self._token,
                    stall_timeout_s=self._options.stall_timeout_s,
                    chunk_size=self._chunk_size,
                    encoder_memory=encoder_memory,
                    stop_together=disks.guest_waits,
                )
                self._raise_for_failed_disks()
                disks.check_untouched()
        except PipelineStalledError as error:
            stalled = error
            raise
        finally:
            close_sources(sources, stalled)
        self._state.part = ""

    def _say_what_memory_forbids(self, encoder_memory: int) -> None:
        wanted, possible = thread_count(self._options.threads), computing_count(self._options, self._chunk_size, encoder_memory)
        if possible < wanted:
            needed = wanted * (CHUNKS_PER_WORKER * self._chunk_size + encoder_memory)
            self._feedback.warn(
                f"{possible} of {wanted} threads compress at a time, as far as memory = {self._options.memory >> 20} MiB goes; "
                f"all of them take {-(-needed >> 20)} MiB"
            )

    @property
    def _chunk_size(self) -> int:
        """Of the largest disk's chunks, which are the largest."""
        largest = max((disk.size for disk in self._task.plan.disks), default=0)
        return effective_chunk_size(largest, self._options.chunk_size)

    def _send_job(self, disk: Disk, source: Source, disks: ExportDisks, window: int) -> SendJob:
        return SendJob(
            source,
            self._bounded("create", lambda: self._create(self._file_name(disk), source.size)),
            chunk_size=effective_chunk_size(source.size, self._options.chunk_size),
            codec=self._codec,
            meter=Meter(disk.index, "send", source.size, self._feedback.emit),
            window=window,
            when_sent=lambda: disks.sent(disk, source),
            check_early=self._options.verify == "stored" and not disks.guest_waits,
            share=None if self._codec.encoded else partial(share_disk, self._task, disk),
        )

    def _create(self, name: str, disk_size: int) -> StoreFile:
        file = self._writer.create(name)
        if isinstance(file, DirectStoreFile):
            file.use_direct_io(self._options.direct_io)
        if not self._codec.encoded:
            file.set_size(disk_size)  # first, so that chunks that end in zeros can be read back whole
        return file

    def _file_name(self, disk: Disk) -> str:
        if self._options.layout == "ganeti":
            return disk.uuid or str(uuid.uuid5(uuid.UUID(self._run_id), str(disk.index)))
        return f"disk-{disk.index}{self._codec.suffix}"

    def _raise_for_failed_disks(self) -> None:
        failed = [(disk, job.error) for disk, job in zip(self._instance.disks, self._jobs, strict=True) if job.error is not None]
        if failed:
            self._state.part = f"disk export: disk(s) {', '.join(str(disk.index) for disk, _ in failed)}"
            disk, error = failed[0]
            raise as_diskhaul_error(error, disk.label) from error

    @property
    def results(self) -> tuple[DiskResult, ...]:
        """What became of each disk so far, also after a failure."""
        return tuple(self._result(disk) for disk in self._instance.disks)

    def _result(self, disk: Disk) -> DiskResult:
        """What became of one disk, as far as its job came."""
        if disk.index >= len(self._jobs):
            return DiskResult(index=disk.index, label=disk.label, error="not sent")
        job, made, digested = self._jobs[disk.index], self._made.get(disk.index), self._digested(disk.index)
        counted, read = made or job, job.meter.read + (made.meter.read if made is not None else 0)
        return DiskResult(
            index=disk.index,
            label=disk.label,
            size=job.table.disk_size,
            bytes_read=read,
            bytes_skipped=job.meter.done - read,
            bytes_written=job.stored_bytes if self._codec.encoded and job.stored_bytes else job.meter.written,
            bytes_shared=0 if job.sharing.shared is Shared.NO else counted.data_bytes,
            data_bytes=counted.data_bytes,
            zero_bytes=counted.zero_bytes,
            free_bytes=counted.free_bytes,
            root_digest=digested.table.root_digest() if digested is not None else "",
            seconds=job.seconds + (made.seconds if made is not None else 0.0),
            error="" if job.sent and job.error is None else str(job.error or "not sent: the export was stopped"),
            regions=self._regions.get(disk.index, ()),
        )

    def _digested(self, index: int) -> SendJob | None:
        """The job that has the digests of a disk; None when nobody has read it."""
        job = self._jobs[index]
        if job.sharing.shared is Shared.PROVEN:
            return self._made.get(index)
        return job if job.sent else None

    def make_digests(self) -> None:
        """Make the digests of disks that share their blocks with the export, or leave that to `verify`, as was asked."""
        stored = [(disk, self._file_name(disk), job) for disk, job in zip(self._instance.disks, self._jobs, strict=True)]
        self._made = make_digests(self._task, self._state, stored, lambda: self._bounded("read", self._writer.reader))

    def write_chunk_tables(self) -> None:
        """Write the digests that have been made."""
        with self._state.part_named("export finalization"):
            for index in range(len(self._jobs)):
                if (job := self._digested(index)) is not None:
                    self._bounded("write", partial(self._write_file, chunks_name(index), tuple(job.table.parts())))

    def _write_file(self, name: str, parts: Sequence[Buffer]) -> None:
        file = self._writer.create(name)
        file.append(parts)
        file.finish()

    def records(self, disks: ExportDisks) -> tuple[DiskRecord, ...]:
        """The manifest's records of all disks, which have been sent."""
        return tuple(self._record(disk, disks) for disk in self._instance.disks)

    def _record(self, disk: Disk, disks: ExportDisks) -> DiskRecord:
        sent, digested = self._jobs[disk.index], self._digested(disk.index)
        job = digested or sent
        return DiskRecord(
            index=disk.index,
            name=disk.name,
            uuid=disk.uuid,
            size=job.table.disk_size,
            file=self._file_name(disk),
            format=self._codec.suffix.removeprefix("."),
            compress=str(self._compression),
            stored_size=sent.stored_bytes,
            chunk_size=job.table.chunk_size,
            chunk_count=job.table.count,
            chunks_file=chunks_name(disk.index) if digested is not None else "",
            root_digest=job.table.root_digest() if digested is not None else "",
            stored_root=job.table.stored_root() if digested is not None else "",
            data_bytes=job.data_bytes,
            zero_bytes=job.zero_bytes,
            free_bytes=job.free_bytes,
            consistency=disks.consistency,
            regions=self._regions.get(disk.index, ())[: most_regions(len(self._instance.disks))],
        )

    # --- read back and publish --------------------------------------------------------------------------------------

    def read_back(self, records: Sequence[DiskRecord]) -> None:
        """Read what was stored, from the medium where that can be had, and compare it with what was sent.

        What was read from there for its digests is not read again, and what has none not at all.
        """
        digested = [record for record in records if record.has_digests]
        if self._options.verify == "none" or not digested:
            return
        stored: list[StoredDisk] = []
        stalled: PipelineStalledError | None = None
        self._state.part = "verification"
        try:
            with self._feedback.stage("verify", self._options.verify):
                reader = self._bounded("read", self._writer.reader)
                stored.extend(self._bounded("read", partial(self._open_stored, reader, record)) for record in digested)
                jobs = [self._check_job(disk) for disk in stored]
                run_jobs(
                    jobs,
                    self._options,
                    token=self._token,
                    stall_timeout_s=self._options.stall_timeout_s,
                    chunk_size=self._chunk_size,
                )
        except PipelineStalledError as error:
            stalled = error
            raise
        finally:
            close_sources([disk.source for disk in stored], stalled)
        for record, job in zip(digested, jobs, strict=True):
            if job.error is not None:
                self._state.part = f"verification: disk(s) {record.index}"
                raise as_diskhaul_error(job.error, f"disk {record.index} as stored") from job.error
        self._state.part = ""

    def _open_stored(self, reader: ExportReader, record: DiskRecord) -> StoredDisk:
        return open_stored_disk(reader, record, direct_io=self._options.direct_io)

    def _check_job(self, disk: StoredDisk) -> ReadBackJob:
        index = disk.record.index
        meter = Meter(index, "verify", disk.record.size, self._feedback.emit)
        return ReadBackJob(
            disk,
            writer=None,
            decode=self._options.verify == "full",
            stop_at_first=True,
            meter=meter,
            checked=self._jobs[index].checked if index not in self._made else b"\1" * disk.table.count,
        )

    def publish(self, records: tuple[DiskRecord, ...], disks: ExportDisks) -> ExportRecord:
        """Make the export visible, and look at it.

        Raises:
            LockLostError: somebody else may hold the instance by now; nothing has appeared.
            StorageError: it could not be published.
        """
        with self._state.part_named("export finalization"), self._feedback.stage("publish"):
            others = self._write_ganeti_config(records) if self._options.layout == "ganeti" else {}
            content = self._manifest(records, disks, others).to_bytes()
            self._token.raise_if_cancelled()
            self._task.operation.locks.check()
            self._publishing = True
            self._bounded_for_good("publish", lambda: self._make_visible(content))
            record: ExportRecord = self._bounded(
                "read", lambda: self._task.at_target(_published_record, self._target.name, *self._named)
            )
        self._state.done(self._aborting)
        try:
            self._journal.strike(self._note)
        except Exception as error:  # it stands, whatever the journal says
            self._state.incomplete.append(f"the journal still calls the new export unfinished: {error}; 'diskhaul recover'")
        return record

    def _make_visible(self, manifest: bytes) -> None:
        if isinstance(self._writer, RetryingExportWriter):
            self._writer.publish_while(manifest, self._task.operation.locks.checker())
        else:
            self._writer.publish(manifest)

    def _manifest(self, records: tuple[DiskRecord, ...], disks: ExportDisks, others: dict[str, str]) -> Manifest:
        left_out: list[str] = []
        manifest = Manifest(
            export_id=self._named[1],
            run_id=self._run_id,
            cluster=self._task.operation.cluster.name,
            created=self._created.isoformat(),
            instance=instance_record(self._task.exported, left_out),
            options={"compress": str(self._compression), "shutdown": self._options.shutdown, "verify": self._options.verify},
            consistency=disks.consistency,
            layout=self._options.layout,
            required_features=tuple(_features(records)),
            disks=records,
            other_files=others,
            timings=dict(self._feedback.timings),
        )
        if left_out:
            self._feedback.warn(f"not recorded in the manifest, since JSON cannot hold it: {', '.join(left_out)}")
        return manifest

    def _write_ganeti_config(self, records: Sequence[DiskRecord]) -> dict[str, str]:
        """Write Ganeti's description of the export; return its digest by name."""
        from blake3 import blake3

        from ..formats.ganeti import CONFIG_NAME, GanetiDump, render_config_ini, size_mib

        dumps = [
            GanetiDump(file=record.file, size_mib=size_mib(record.size), ivname=f"disk/{record.index}", name=record.name)
            for record in records
        ]
        source = self._task.source.name
        config = render_config_ini(self._instance, dumps, timestamp=int(self._created.timestamp()), source=source)
        self._bounded("write", lambda: self._write_file(CONFIG_NAME, (config,)))
        return {CONFIG_NAME: blake3(config).hexdigest()}


def imagined_record(run_id: str, instance: str, node: str) -> ExportRecord:
    """The record of an export that does not exist yet, for plans."""
    now = datetime.now(UTC)
    return ExportRecord(export_id=new_export_id(now, run_id), instance=instance, node=node, store="", path="", created=now)


def _features(records: Sequence[DiskRecord]) -> Iterator[str]:
    """What a reader of the manifest has to know."""
    if not all(record.has_digests for record in records):
        yield DIGESTS_LATER
    if any(record.regions for record in records):
        yield DISK_REGIONS


def _begin(store: ExportStore, instance: str, export_id: str) -> ExportWriter:
    return store.begin(instance, export_id)


def _remove_partial(store: ExportStore, instance: str, export_id: str) -> None:
    store.remove_partial(instance, export_id)


def _remove(store: ExportStore, instance: str, export_id: str) -> None:
    store.remove(instance, export_id)


def _published_record(store: ExportStore, node: str, instance: str, export_id: str) -> ExportRecord:
    reader = store.open(instance, export_id)
    return record_of(read_valid_manifest(reader), node=node, store=store.identity, path=reader.location)
