"""Disks of an export that are not copied: their blocks are shared, and their digests made from what is stored, now or later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ..api import ExportReader, ExportStore, StoreFile
from ..errors import OperationFailedError
from ..model import Disk
from ..options import MIB
from ..pipeline.digest import digest_job
from ..pipeline.meter import Meter
from ..pipeline.send import SendJob
from ..pipeline.sharing import Shared, Sharing, open_shared, share_blocks
from ..pipeline.source import Source, close_sources
from ..pipeline.workers import PipelineStalledError, as_diskhaul_error, run_jobs
from .deadlines import within
from .export_task import ExportTask
from .run_state import RunState


def share_disk(task: ExportTask, disk: Disk, source: Source, file: StoreFile) -> Sharing:
    """Share the disk's blocks with its file, if that can be.

    Raises:
        OperationFailedError: it cannot, although the plan counted on it, and there is no room for a copy.
        StorageError: as `share_blocks`.
    """
    sharing = share_blocks(source, file)
    planned = task.plan.disks[disk.index]
    if sharing.shared is Shared.NO and planned.shared:
        target, limit_s = task.target, task.options.stall_timeout_s
        free = within(limit_s, "export store ask for room", lambda: task.at_target(_free_bytes))
        if free is not None and free < planned.data_bytes:
            raise OperationFailedError(
                f"{disk.label}: {sharing.reason}; and node {target.name} has no room for a copy: {free // MIB:,} MiB are free, "
                f"and the disk holds {planned.data_bytes // MIB:,} MiB"
            )
    return sharing


def make_digests(
    task: ExportTask,
    state: RunState,
    stored: Sequence[tuple[Disk, str, SendJob]],
    reader: Callable[[], ExportReader],
) -> dict[int, SendJob]:
    """Read, from the medium, what the unpublished export shares with the disks; return jobs that have the digests, by disk.

    With ``digest = "later"`` nothing is read, and nothing returned. What was copied has its digests already.

    Args:
        stored: each disk, its file, and the job that sent it.
        reader: opens the export.

    Raises:
        DiskhaulError: of the first disk that failed.
    """
    options, feedback = task.options, task.operation.feedback
    later = options.digest == "later"
    shared = [entry for entry in stored if entry[2].sharing.shared is Shared.PROVEN]
    if later:
        for disk, _, job in stored:
            if job.sharing.shared is not Shared.PROVEN:
                feedback.warn(f"{disk.label}: its digests are made now: {job.sharing.reason}")
    if not shared:
        return {}
    sources: list[Source] = []
    stalled: PipelineStalledError | None = None
    state.part = "digests"
    try:
        export = reader()
        for _, file, job in shared:
            opened = partial(open_shared, export, file, job.sharing, direct_io=options.direct_io)
            sources.append(within(options.stall_timeout_s, "export store read", opened))
        made = {} if later else _read(task, state, [disk for disk, _, _ in shared], sources, [job for _, _, job in shared])
    except PipelineStalledError as error:
        stalled = error
        raise
    finally:
        close_sources(sources, stalled)
    state.part = ""
    return made


def _read(
    task: ExportTask, state: RunState, disks: Sequence[Disk], sources: Sequence[Source], sent: Sequence[SendJob]
) -> dict[int, SendJob]:
    options, feedback = task.options, task.operation.feedback
    chunk_sizes = [job.table.chunk_size for job in sent]
    jobs = {
        disk.index: digest_job(source, chunk_size, Meter(disk.index, "digest", source.size, feedback.emit))
        for disk, source, chunk_size in zip(disks, sources, chunk_sizes, strict=True)
    }
    with feedback.stage("digest", f"{len(jobs)} disk(s) that share their blocks with the export"):
        run_jobs(
            list(jobs.values()),
            options,
            token=task.operation.token,
            stall_timeout_s=options.stall_timeout_s,
            chunk_size=max(chunk_sizes),
        )
    for index, job in jobs.items():
        if job.error is not None:
            state.part = f"digests: disk(s) {index}"
            raise as_diskhaul_error(job.error, f"disk {index} as stored") from job.error
    return jobs


def _free_bytes(store: ExportStore) -> int | None:
    return store.free_bytes()
