"""The work of an export: stop, snapshot, start, send, read back, publish, remove, clean up.

The decision table (semantics.md, section 4), as far as it is left to do once the refusals are over:

    guest  asked              snapshots   what happens
    up     shutdown           work        stop, snapshot, start, send the snapshots
    up     shutdown           fail        with long sleep: send the disks, start; without: start, fail
    up     no shutdown        work        freeze where possible, snapshot, thaw, send the snapshots
    up     no shutdown        fail        fail
    up     shutdown, remove   not tried   stop, send the disks, publish, remove
    down   anything           not tried   activate the disks, send, deactivate them

Whatever fails before the export is published is undone, the guest first. After that nothing turns the export into a failed one.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from ..api import Buffer, DiskReader, ExportStore, ExportWriter, Extent
from ..errors import (
    DiskhaulError,
    GuestError,
    InterruptedRunError,
    InvalidHookResultError,
    OperationFailedError,
    SnapshotError,
)
from ..events import GuestChanged
from ..formats.chunk_table import effective_chunk_size
from ..formats.codec import Codec, codec_for, parse_compress
from ..formats.export_id import new_export_id
from ..formats.manifest import DiskRecord, Manifest, instance_record
from ..model import Disk
from ..options import MIB
from ..pipeline.free_space import checked_free_extents
from ..pipeline.meter import Meter
from ..pipeline.readback import ReadBackJob, StoredDisk, open_stored_disk
from ..pipeline.send import SendJob
from ..pipeline.source import Source, close_sources
from ..pipeline.workers import PipelineStalledError, as_diskhaul_error, run_jobs, thread_count
from ..records import Consistency, DiskResult, ExportRecord, ExportResult
from .catalog import on_node, read_valid_manifest, record_of
from .cleanup import clean_up
from .deadlines import within
from .guest import GuestKeeper, guest_call
from .snapshots import SnapshotSet

if TYPE_CHECKING:
    from .export import ExportOperation

T = TypeVar("T")
THAWING, STARTING = "thawing the guest", "starting the guest again"
_GUEST_FIRST = {THAWING: 0, STARTING: 1}
_PIECES_AHEAD = 2  # per thread: how far the threads may run ahead of what has been written in order


def imagined_record(run_id: str, instance: str, node: str) -> ExportRecord:
    """The record of an export that does not exist yet, for plans."""
    now = datetime.now(UTC)
    return ExportRecord(export_id=new_export_id(now, run_id), instance=instance, node=node, store="", path="", created=now)


class ExportRun:
    """One execution of an export. Use once."""

    def __init__(self, operation: ExportOperation, *, keeper: GuestKeeper, snapshots: SnapshotSet) -> None:
        self._operation = operation
        self._context, self._options, self._instance = operation.context, operation.options, operation.instance
        self._feedback, self._journal, self._token = operation.feedback, operation.context.journal, operation.token
        self._keeper, self._snapshots = keeper, snapshots
        self._created = datetime.now(UTC)
        self._export_id = new_export_id(self._created, self._context.run_id)
        self._compression = parse_compress(self._options.compress)
        self._codec: Codec = codec_for(self._compression.name, self._compression.level)
        self._consistency: Consistency = "stopped"
        self._from_snapshots = False
        self._undo: list[tuple[str, Callable[[], object]]] = []
        self._jobs: dict[int, SendJob] = {}
        self._results: dict[int, DiskResult] = {}
        self._incomplete: list[str] = []
        self._part = ""
        self._writer: ExportWriter | None = None
        self._partial_note = self._frozen_note = 0
        self._publishing = False

    def run(self) -> ExportResult:
        try:
            self._begin_export()
            self._prepare_disks()
            self._send()
            self._check_guest_stayed_down()
            if not self._options.remove_instance:
                self._bring_guest_back()
            self._give_back_disks()
            records = self._disk_records()
            self._read_back(records)
            export = self._publish(records)
        except BaseException as error:  # whatever it is: the guest comes first
            raise self._undone(error) from error
        return self._after_publishing(export)

    # --- the guest and the snapshots --------------------------------------------------------------------------------

    def _prepare_disks(self) -> None:
        """Bring the disks into the state they are sent from, by the decision table."""
        operation = self._operation
        if not operation.running:
            self._activate_disks()
            self._zero_in_place()
        elif not self._options.shutdown:
            self._live_snapshots()
        else:
            self._stop_guest()
            self._zero_in_place()
            if not self._options.remove_instance:
                self._stopped_snapshots()

    def _activate_disks(self) -> None:
        runtime, instance = self._operation.runtime, self._instance
        note = self._journal.note(self._context.run_id, "disks", {"instance": instance.name})
        with self._part_named("disk activation"):
            activated = guest_call("activate its disks", instance, runtime.activate_disks, instance)

        def deactivate() -> None:
            if activated:
                guest_call("deactivate its disks", instance, runtime.deactivate_disks, instance)
            self._journal.strike(note)

        self._undo.append(("deactivating the disks", deactivate))

    def _stop_guest(self) -> None:
        self._undo.append((STARTING, self._keeper.bring_back))
        with self._part_named("shutdown"), self._feedback.stage("stop", self._instance.name):
            self._keeper.stop(self._options.shutdown_timeout_s)
        self._token.raise_if_cancelled()

    def _stopped_snapshots(self) -> None:
        """Snapshot the stopped guest's disks and start it; without snapshots it stays down if that is allowed."""
        if self._operation.uses_snapshots:
            try:
                self._take_snapshots()
            except SnapshotError as error:
                if not self._options.long_sleep:
                    raise
                self._feedback.warn(f"{error}; the guest stays down while its disks are sent (long sleep)")
            else:
                self._bring_guest_back()
        else:
            self._feedback.warn(
                f"no snapshot is possible ({'; '.join(self._operation.snapshot_reasons)}); "
                "the guest stays down while its disks are sent (long sleep)"
            )

    def _live_snapshots(self) -> None:
        """Snapshot the running guest's disks, frozen where it can be."""
        runtime, instance = self._operation.runtime, self._instance
        self._consistency = "crash"
        frozen = guest_call("ask whether it can be frozen", instance, runtime.can_freeze, instance) and self._freeze()
        self._take_snapshots()
        if frozen:
            self._thaw()
            self._consistency = "filesystem"

    def _freeze(self) -> bool:
        """Freeze the guest; False, with a warning, when it would not freeze."""
        runtime, instance = self._operation.runtime, self._instance
        self._frozen_note = self._journal.note(self._context.run_id, "frozen", {"instance": instance.name})
        self._undo.append((THAWING, self._thaw))
        try:
            with self._feedback.stage("freeze", instance.name):
                guest_call("freeze it", instance, runtime.freeze, instance)
        except DiskhaulError as error:
            self._feedback.warn(f"{error}; the export will be crash-consistent")
            self._thaw()  # a freeze that failed may have frozen some filesystems
            return False
        self._feedback.emit(GuestChanged(instance=instance.name, change="frozen"))
        return True

    def _thaw(self) -> None:
        """Thaw the guest. Stays to be undone until it has worked, so that a failure is followed by another attempt."""
        runtime, instance = self._operation.runtime, self._instance
        guest_call("thaw it", instance, runtime.thaw, instance)
        self._journal.strike(self._frozen_note)
        self._undo = [step for step in self._undo if step[0] != THAWING]
        self._feedback.emit(GuestChanged(instance=instance.name, change="thawed"))

    def _take_snapshots(self) -> None:
        self._undo.append(("removing the snapshots", self._remove_snapshots))
        self._token.raise_if_cancelled()
        with self._part_named("snapshot"), self._feedback.stage("snapshot"):
            self._snapshots.create(self._instance.disks)
        self._from_snapshots = True

    def _remove_snapshots(self) -> None:
        failures = self._snapshots.remove_all()
        for failure in failures[1:]:
            failures[0].add(failure, "removing the snapshots")
        if failures:
            raise failures[0]

    def _bring_guest_back(self) -> None:
        if not self._keeper.owes_start:
            return
        with self._part_named("start"), self._feedback.stage("start", self._instance.name):
            self._keeper.bring_back()
        self._feedback.timings["shutdown"] = self._keeper.down_s

    def _check_guest_stayed_down(self) -> None:
        """Disks read without a snapshot are only whole if nobody started the guest meanwhile."""
        if not self._from_snapshots and self._keeper.is_running():
            self._part = "disk export"
            raise GuestError(f"{self._instance.name} was started by somebody else while its disks were read; export it again")

    def _give_back_disks(self) -> None:
        """Deactivate disks and remove snapshots that are still there; a failure is left to `recover`, and said."""
        remaining = [step for step in self._undo if step[0] in ("deactivating the disks", "removing the snapshots")]
        for step in remaining:
            self._undo.remove(step)
            try:
                step[1]()
            except DiskhaulError as error:
                self._incomplete.append(str(error))

    # --- the data ---------------------------------------------------------------------------------------------------

    def _begin_export(self) -> None:
        target = self._operation.target
        self._partial_note = self._journal.note(
            self._context.run_id,
            "partial",
            {"node": target.name, "instance": self._instance.name, "export_id": self._export_id},
        )
        self._undo.append(("removing the unfinished export", self._abort))
        with self._part_named("export finalization"):
            writer = self._bounded("begin", lambda: on_node(self._operation.host, target, _begin, *self._named))
            if not callable(getattr(writer, "abort", None)):
                raise InvalidHookResultError(f"node {target.name}: its store's begin gave {writer!r}, which is no export writer")
            self._writer = writer

    @property
    def _named(self) -> tuple[str, str]:
        return self._instance.name, self._export_id

    def _abort(self) -> None:
        if self._writer is not None:
            self._bounded("abort", self._writer.abort)
        else:  # `begin` failed half-way
            self._bounded("remove", lambda: on_node(self._operation.host, self._operation.target, _remove_partial, *self._named))
        if self._publishing:
            # It may be visible already, although publishing it failed in the end; what is reported as failed must not be listed.
            self._bounded("remove", lambda: on_node(self._operation.host, self._operation.target, _remove, *self._named))
        self._journal.strike(self._partial_note)

    def _bounded(self, what: str, call: Callable[[], T]) -> T:
        """A store's call, within the time in which a transfer has to move."""
        return within(self._options.stall_timeout_s, f"export store {what}", call)

    @property
    def _export_writer(self) -> ExportWriter:
        assert self._writer is not None, "the export has been begun"
        return self._writer

    def _send(self) -> None:
        threads = thread_count(self._options.threads)
        self._part = "disk export"
        sources: list[Source] = []
        stalled: PipelineStalledError | None = None
        try:
            with self._feedback.stage("send", f"{len(self._instance.disks)} disk(s) to {self._operation.target.name}"):
                jobs = [self._send_job(disk, sources, threads * _PIECES_AHEAD) for disk in self._instance.disks]
                self._jobs = dict(enumerate(jobs))
                run_jobs(
                    jobs,
                    threads=threads,
                    token=self._token,
                    stall_timeout_s=self._options.stall_timeout_s,
                    stop_together=self._keeper.owes_start,
                )
                self._note_results()
                self._raise_for_failed_disks()
                self._write_chunk_tables(jobs)
        except PipelineStalledError as error:
            stalled = error
            raise
        finally:
            self._note_results()
            close_sources(sources, stalled)
        self._part = ""

    def _send_job(self, disk: Disk, sources: list[Source], window: int) -> SendJob:
        source = self._open(disk)
        sources.append(source)
        source.free = self._free_extents(disk, source)
        planned = self._operation.plan.disks[disk.index].size
        if source.size != planned:
            raise OperationFailedError(f"{disk.label} had {planned} bytes, and has {source.size} now")

        def when_sent() -> None:
            if not self._from_snapshots:
                return
            if not self._snapshots.still_valid(disk):
                raise SnapshotError(f"{disk.label}: its snapshot became invalid while it was read")
            source.close()
            try:
                self._snapshots.remove(disk.index)
            except SnapshotError as error:
                self._incomplete.append(str(error))

        return SendJob(
            source,
            self._bounded("create", lambda: self._export_writer.create(self._file_name(disk))),
            chunk_size=effective_chunk_size(source.size, self._options.chunk_size),
            codec=self._codec,
            meter=Meter(disk.index, "send", source.size, self._feedback.emit),
            window=window,
            when_sent=when_sent,
        )

    def _free_extents(self, disk: Disk, source: Source) -> Sequence[Extent]:
        """What the chosen zero-fill backend says is free; nothing, with a warning, when it fails or talks nonsense."""
        chosen = self._operation.zero_fills.get(disk.index)
        if chosen is None or chosen[1].writes:
            return ()
        name, backend = chosen
        try:
            return checked_free_extents(backend.free_extents(disk, source.reader), source.size)
        except Exception as error:  # free space is a saving, never a reason to fail
            self._feedback.warn(f"{disk.label}: nothing is skipped as free: {name}: {error or type(error).__name__}")
            return ()

    def _zero_in_place(self) -> None:
        """Let zero-fill backends that write do so, while the guest is off; the limit grows with the disks."""
        writing = {index: chosen for index, chosen in self._operation.zero_fills.items() if chosen[1].writes}
        if not writing:
            return
        sizes_mib = sum(-(-disk.size // MIB) for disk in self._operation.plan.disks)
        deadline = time.monotonic() + self._operation.zeroing_limit_s(sizes_mib)
        with self._part_named("zeroing"), self._feedback.stage("zero", ", ".join(sorted({name for name, _ in writing.values()}))):
            for index, (name, backend) in writing.items():
                self._token.raise_if_cancelled()
                disk = self._instance.disks[index]
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise OperationFailedError(f"{disk.label}: no time left to zero its free space; raise the zeroing timeouts")
                try:
                    backend.zero(disk, deadline_s=left_s)
                except Exception as error:
                    raise OperationFailedError(f"{disk.label}: zeroing by {name} failed: {error}") from error

    def _open(self, disk: Disk) -> Source:
        try:
            reader: DiskReader = (
                self._snapshots.open(disk)
                if self._from_snapshots
                else within(self._options.stall_timeout_s, "open", lambda: self._operation.host.storage(disk.storage).open(disk))
            )
            return Source(reader, disk.label)
        except Exception as error:
            raise as_diskhaul_error(error, disk.label) from error

    def _file_name(self, disk: Disk) -> str:
        if self._options.layout == "ganeti":
            return disk.uuid or str(uuid.uuid5(uuid.UUID(self._context.run_id), str(disk.index)))
        return f"disk-{disk.index}{self._codec.suffix}"

    def _write_chunk_tables(self, jobs: list[SendJob]) -> None:
        for index, job in enumerate(jobs):
            self._bounded("write", partial(self._write_file, f"disk-{index}.chunks", tuple(job.table.parts())))

    def _write_file(self, name: str, parts: Sequence[Buffer]) -> None:
        file = self._export_writer.create(name)
        file.append(parts)
        file.finish()

    def _note_results(self) -> None:
        """Per-disk results as far as the jobs came."""
        for disk in self._instance.disks:
            job = self._jobs.get(disk.index)
            if job is None:
                self._results[disk.index] = DiskResult(index=disk.index, label=disk.label, error="not sent")
                continue
            error = "" if job.sent and job.error is None else str(job.error or "not sent: the export was stopped")
            self._results[disk.index] = DiskResult(
                index=disk.index,
                label=disk.label,
                size=job.table.disk_size,
                bytes_read=job.meter.read,
                bytes_skipped=job.meter.done - job.meter.read,
                bytes_written=job.stored_bytes if self._codec.encoded and job.stored_bytes else job.meter.written,
                data_bytes=job.data_bytes,
                zero_bytes=job.zero_bytes,
                free_bytes=job.free_bytes,
                root_digest=job.table.root_digest() if job.sent else "",
                seconds=job.seconds,
                error=error,
            )

    def _raise_for_failed_disks(self) -> None:
        failed = [index for index, job in self._jobs.items() if job.error is not None]
        if not failed:
            return
        self._part = f"disk export: disk(s) {', '.join(map(str, failed))}"
        first = self._jobs[failed[0]].error
        assert first is not None
        raise as_diskhaul_error(first, self._instance.disks[failed[0]].label) from first

    def _disk_records(self) -> tuple[DiskRecord, ...]:
        records = []
        for disk in self._instance.disks:
            job = self._jobs[disk.index]
            records.append(
                DiskRecord(
                    index=disk.index,
                    name=disk.name,
                    uuid=disk.uuid,
                    size=job.table.disk_size,
                    file=self._file_name(disk),
                    format=self._codec.suffix.removeprefix("."),
                    compress=str(self._compression),
                    stored_size=job.stored_bytes,
                    chunk_size=job.table.chunk_size,
                    chunk_count=job.table.count,
                    chunks_file=f"disk-{disk.index}.chunks",
                    root_digest=job.table.root_digest(),
                    stored_root=job.table.stored_root(),
                    data_bytes=job.data_bytes,
                    zero_bytes=job.zero_bytes,
                    free_bytes=job.free_bytes,
                    consistency=self._consistency,
                )
            )
        return tuple(records)

    def _read_back(self, records: tuple[DiskRecord, ...]) -> None:
        """Read what was stored, from the medium where that can be had, and compare it with what was sent."""
        if self._options.verify == "none":
            return
        self._part = "verification"
        with self._feedback.stage("verify", self._options.verify):
            reader = self._bounded("read", self._export_writer.reader)
            stored: list[StoredDisk] = []
            stalled: PipelineStalledError | None = None
            try:
                stored.extend(self._bounded("read", partial(open_stored_disk, reader, record)) for record in records)
                jobs = [
                    ReadBackJob(
                        disk,
                        writer=None,
                        decode=self._options.verify == "full",
                        stop_at_first=True,
                        meter=Meter(disk.record.index, "verify", disk.record.size, self._feedback.emit),
                    )
                    for disk in stored
                ]
                run_jobs(jobs, threads=self._options.threads, token=self._token, stall_timeout_s=self._options.stall_timeout_s)
            except PipelineStalledError as error:
                stalled = error
                raise
            finally:
                close_sources([disk.source for disk in stored], stalled)
            for index, job in enumerate(jobs):
                if job.error is not None:
                    self._part = f"verification: disk(s) {index}"
                    raise as_diskhaul_error(job.error, f"disk {index} as stored") from job.error
        self._part = ""

    def _publish(self, records: tuple[DiskRecord, ...]) -> ExportRecord:
        operation = self._operation
        self._token.raise_if_cancelled()
        self._part = "export finalization"
        with self._feedback.stage("publish"):
            others = self._write_ganeti_config(records) if self._options.layout == "ganeti" else {}
            left_out: list[str] = []
            manifest = Manifest(
                export_id=self._export_id,
                run_id=self._context.run_id,
                cluster=operation.cluster.name,
                created=self._created.isoformat(),
                instance=instance_record(self._instance, left_out),
                options={"compress": str(self._compression), "shutdown": self._options.shutdown, "verify": self._options.verify},
                consistency=self._consistency,
                layout=self._options.layout,
                disks=records,
                other_files=others,
                timings=dict(self._feedback.timings),
            )
            if left_out:
                self._feedback.warn(f"not recorded in the manifest, since JSON cannot hold it: {', '.join(left_out)}")
            operation.locks.check()  # somebody else may hold the instance by now: then this export must not appear
            content = manifest.to_bytes()
            self._publishing = True
            self._bounded("publish", lambda: self._export_writer.publish(content))
            node = operation.target
            record = self._bounded("read", lambda: on_node(operation.host, node, _published_record, node.name, *self._named))
        self._journal.strike(self._partial_note)
        self._undo = [step for step in self._undo if step[0] != "removing the unfinished export"]
        self._part = ""
        return record

    def _write_ganeti_config(self, records: tuple[DiskRecord, ...]) -> dict[str, str]:
        """Write Ganeti's description of the export; return its digest by name."""
        from blake3 import blake3

        from ..formats.ganeti import CONFIG_NAME, GanetiDump, render_config_ini, size_mib

        dumps = [
            GanetiDump(file=record.file, size_mib=size_mib(record.size), ivname=f"disk/{record.index}", name=record.name)
            for record in records
        ]
        source = self._operation.source.name
        config = render_config_ini(self._instance, dumps, timestamp=int(self._created.timestamp()), source=source)
        self._bounded("write", lambda: self._write_file(CONFIG_NAME, (config,)))
        return {CONFIG_NAME: blake3(config).hexdigest()}

    # --- afterwards -------------------------------------------------------------------------------------------------

    def _after_publishing(self, export: ExportRecord) -> ExportResult:
        """Remove the instance if asked, then clean up. What fails here is reported, and the export stands."""
        if self._options.remove_instance:
            self._remove_instance()
        removed, incomplete = clean_up(self._operation, export)
        self._incomplete += incomplete
        return self._result(export, removed)

    def _remove_instance(self) -> None:
        instance, runtime = self._instance, self._operation.runtime
        self._keeper.forgive()
        try:
            with self._feedback.stage("remove", instance.name):
                self._operation.locks.check()
                guest_call("remove it", instance, runtime.remove, instance)
            self._feedback.emit(GuestChanged(instance=instance.name, change="removed"))
        except DiskhaulError as error:
            if self._options.ignore_remove_failures:
                self._feedback.warn(f"the instance was not removed: {error}")
            else:
                self._incomplete.append(f"the instance was not removed: {error}")

    def _result(self, export: ExportRecord | None, removed: tuple[ExportRecord, ...] = ()) -> ExportResult:
        return ExportResult(
            run_id=self._context.run_id,
            instance=self._instance.name,
            node=self._operation.target.name,
            plan=self._operation.plan,
            export=export,
            consistency=self._consistency,
            disks=tuple(self._results[index] for index in sorted(self._results)),
            timings=dict(self._feedback.timings),
            removed=removed,
            incomplete=tuple(self._incomplete),
            warnings=tuple(self._feedback.warnings),
        )

    # --- failing ----------------------------------------------------------------------------------------------------

    def _undone(self, error: BaseException) -> DiskhaulError:
        """Undo everything that has been begun, the guest first; return the error to raise."""
        failure = self._failure(error)
        latest_first = list(reversed(self._undo))
        for doing, step in sorted(latest_first, key=lambda step: _GUEST_FIRST.get(step[0], 2)):
            try:
                step()
            except BaseException as problem:  # the other steps still have to be done
                failure.add(problem, doing)
        if isinstance(failure, OperationFailedError):
            failure.result = self._result(None)
        return failure

    def _failure(self, error: BaseException) -> DiskhaulError:
        if isinstance(error, InterruptedRunError):
            return error
        # Whatever it was, also a refusal or a lost lock: the work had begun, so it is a failure (exit code 3) by now.
        cause = as_diskhaul_error(error, self._instance.name)
        part = self._part or "export"
        failure = next((kind for kind in (GuestError, SnapshotError) if isinstance(cause, kind)), OperationFailedError)
        raised = failure(f"export of {self._instance.name} failed: {part}: {cause}", parts=(part,))
        raised.also += cause.also
        for note in getattr(cause, "__notes__", ()):
            raised.add_note(note)
        return raised

    def _part_named(self, part: str) -> _Part:
        return _Part(self, part)

    def set_part(self, part: str) -> None:
        """Say which part of the export is being done, for the message should it fail."""
        self._part = part


class _Part:
    """While entered, failures are named after this part; afterwards only if it was left by one."""

    def __init__(self, run: ExportRun, part: str) -> None:
        self._run, self._name = run, part

    def __enter__(self) -> None:
        self._run.set_part(self._name)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._run.set_part("")


def _begin(store: ExportStore, instance: str, export_id: str) -> ExportWriter:
    return store.begin(instance, export_id)


def _remove_partial(store: ExportStore, instance: str, export_id: str) -> None:
    store.remove_partial(instance, export_id)


def _remove(store: ExportStore, instance: str, export_id: str) -> None:
    store.remove(instance, export_id)


def _published_record(store: ExportStore, node: str, instance: str, export_id: str) -> ExportRecord:
    reader = store.open(instance, export_id)
    manifest: Manifest = read_valid_manifest(reader)
    return record_of(manifest, node=node, store=store.identity, path=reader.location)
