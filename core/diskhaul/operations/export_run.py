"""The work of an export, in order: prepare the disks, send them, read back, publish, remove, clean up.

Whatever fails before the export is published is undone, the guest first. After that nothing turns the export into a failed one.
"""

from __future__ import annotations

from ..errors import DiskhaulError, GuestError, InterruptedRunError, OperationFailedError, SnapshotError
from ..events import GuestChanged
from ..pipeline.workers import PipelineStalledError, as_diskhaul_error
from ..records import ExportRecord, ExportResult
from .cleanup import clean_up
from .export_disks import ExportDisks
from .export_task import ExportTask
from .new_export import NewExport
from .run_state import RunState

_NOT_REMOVED = "the instance was not removed"


class ExportRun:
    """One execution of an export. Use once."""

    def __init__(self, task: ExportTask) -> None:
        self._task = task
        self._context = task.operation.context
        self._feedback = self._context.feedback
        self._state = RunState()
        self._disks = ExportDisks(task, self._state)
        self._export = NewExport(task, self._state)
        self._removed = False

    def run(self) -> ExportResult:
        try:
            self._export.begin()
            self._disks.prepare()
            self._export.send(self._disks)
            self._disks.guest_may_run()
            self._disks.give_back()
            self._export.make_digests()
            self._export.write_chunk_tables()
            records = self._export.records(self._disks)
            self._export.read_back(records)
            published = self._export.publish(records, self._disks)
            if self._task.hand_over is not None:
                with self._state.part_named("hand-over"):
                    self._task.hand_over(published, self._disks)
        except BaseException as error:  # whatever it is: the guest comes first
            failure = self._failure(error)
            self._state.undo_all(failure)
            if isinstance(failure, OperationFailedError):
                failure.result = self._result(None)
            if failure is error:
                raise
            raise failure from error
        return self._after_publishing(published)

    def _failure(self, error: BaseException) -> DiskhaulError:
        """What to raise for `error`: it names the part that failed."""
        if isinstance(error, InterruptedRunError):
            return error
        if isinstance(error, PipelineStalledError) and self._context.token.cancelled:
            return InterruptedRunError(
                f"interrupted: {self._context.token.reason}; a read or write that hangs was left behind: {error}"
            )
        # Whatever it was, also a refusal or a lost lock: the work had begun, so it is a failure (exit code 3) by now.
        instance = self._task.instance.name
        cause = as_diskhaul_error(error, instance)
        part = self._state.part or "export"
        kind = next((kind for kind in (GuestError, SnapshotError) if isinstance(cause, kind)), OperationFailedError)
        failure = kind(f"export of {instance} failed: {part}: {cause}", parts=(part,))
        failure.also += cause.also
        for note in getattr(cause, "__notes__", ()):
            failure.add_note(note)
        return failure

    def _after_publishing(self, export: ExportRecord) -> ExportResult:
        """Remove the instance if asked, then clean up. What fails here is reported, and the export stands."""
        removed: tuple[ExportRecord, ...] = ()
        try:
            if self._task.options.remove_instance:
                self._remove_instance()
            read_back = self._task.options.verify != "none"
            if not self._task.remote:  # what another cluster keeps is its own affair
                removed, incomplete = clean_up(self._task.operation, export, read_back=read_back)
                self._state.incomplete += incomplete
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            self._state.incomplete.append(f"after the export was published: {type(error).__name__}: {error}")
        return self._result(export, removed)

    def _remove_instance(self) -> None:
        instance = self._task.instance.name
        try:
            if self._task.keep_instance:
                self._disks.leave_down()
                self._disks.tell_if_running()
                return
            with self._feedback.stage("remove", instance):
                self._disks.remove_instance()
            self._removed = True
            self._feedback.emit(GuestChanged(instance=instance, change="removed"))
        except DiskhaulError as error:
            if self._task.options.ignore_remove_failures:
                self._feedback.warn(f"{_NOT_REMOVED}: {error}")
            else:
                self._state.incomplete.append(f"{_NOT_REMOVED}: {error}")

    def _result(self, export: ExportRecord | None, removed: tuple[ExportRecord, ...] = ()) -> ExportResult:
        task = self._task
        return ExportResult(
            run_id=self._context.run_id,
            instance=task.instance.name,
            node=task.target.name,
            plan=task.plan,
            export=export,
            consistency=self._disks.consistency,
            disks=self._export.results,
            timings=dict(self._feedback.timings),
            removed=removed,
            instance_removed=self._removed,
            incomplete=tuple(self._state.incomplete),
            warnings=tuple(self._feedback.warnings),
        )
