"""An export's disks: brought into the state they are sent from, opened, and given back.

The decision table (docs/semantics.md, Execution), as far as it is left to do once the refusals are over:

    guest  asked              snapshots   what happens
    up     shutdown           work        stop, snapshot, start, send the snapshots
    up     shutdown           fail        with long sleep: send the disks, start; without: start, fail
    up     no shutdown        work        freeze where possible, snapshot, thaw, send the snapshots
    up     no shutdown        fail        fail
    up     shutdown, remove   not tried   stop, send the disks, publish, remove
    down   anything           not tried   activate the disks, send, deactivate them
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ..api import DiskMap, DiskReader, DiskRegion, FreeExtents
from ..errors import DiskhaulError, GuestError, InterruptedRunError, OperationFailedError, SnapshotError
from ..events import FreeSpaceFound
from ..model import Disk
from ..pipeline.free_space import checked_free_extents
from ..pipeline.source import Source
from ..pipeline.workers import as_diskhaul_error
from ..records import Consistency
from .deadlines import within
from .disk_use import GLANCE_S, RELEASE_S
from .export_task import ExportTask, zeroing_limit_s
from .free_space import look_for_free_space
from .guest import GuestHangsError, GuestKeeper, guest_call
from .guest_removal import check_at_rest, remove_guest
from .run_state import RunState, UndoStep
from .snapshots import SnapshotSet
from .zeroing import zero_in_place

_THAW_FIRST, _THEN_START = 0, 1  # the guest has been waiting
_AT_LAST = 9  # what others have to be asked for


class ExportDisks:
    """The disks of one run. Use once: `prepare`, `open` and `sent` for each, `guest_may_run`, `give_back`.

    Attributes:
        consistency: what was guaranteed when the disks, or their snapshots, were as they are sent.
        regions: what was found on each disk that has been opened, by its index, where free space was looked for.
    """

    def __init__(self, task: ExportTask, state: RunState) -> None:
        context = task.operation.context
        self._task, self._state = task, state
        self._options, self._instance = task.options, task.instance
        self._feedback, self._journal, self._token = context.feedback, context.journal, context.token
        self._run_id = context.run_id
        self._keeper = GuestKeeper(task.runtime, task.instance, context.journal, context.run_id, context.feedback)
        self._snapshots = SnapshotSet(
            task.snapshot_backends,
            context.run_id,
            context.journal,
            context.feedback,
            limit_s=task.options.stall_timeout_s,
        )
        self._from_snapshots = False
        self._starting: UndoStep | None = None
        self._giving_back: list[UndoStep] = []
        self.consistency: Consistency = "stopped"
        self.regions: dict[int, tuple[DiskRegion, ...]] = {}

    @property
    def guest_waits(self) -> bool:
        """True while a guest that was running is kept down: then every second counts."""
        return self._keeper.owes_start

    # --- before -----------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Bring the disks into the state they are sent from, by the decision table.

        Raises:
            GuestError, SnapshotError, OperationFailedError: what was begun stands in the run's state, to be undone.
        """
        if not self._task.running:
            self._activate()
            with self._state.part_named("disk activation"):
                self._check_at_rest("counts as off", GLANCE_S)
            self._zero_in_place()
            return
        self._trim()
        if not self._options.shutdown:
            self._live_snapshots()
        else:
            self._stop_guest()
            self._zero_in_place()
            if not self._options.remove_instance:
                self._stopped_snapshots()

    def _activate(self) -> None:
        runtime, instance = self._task.runtime, self._instance
        note = self._journal.note(self._run_id, "disks", {"instance": instance.name})
        hangs = False

        def deactivate() -> None:
            if self._journal.has(note):  # else this run had lost its lock, and another one may be reading them
                guest_call("deactivate its disks", runtime, runtime.deactivate_disks, instance)
                if not hangs:
                    self._journal.strike(note)

        step = self._state.undo_later("deactivating the disks", deactivate)  # one that fails may have activated some of them
        try:
            with self._state.part_named("disk activation"):
                activated = guest_call("activate its disks", runtime, runtime.activate_disks, instance)
        except GuestHangsError as error:
            hangs = True
            self._state.incomplete.append(f"{error}; 'diskhaul recover' deactivates its disks once more")
            raise
        if activated:
            self._giving_back.append(step)
        else:
            self._state.done(step)
            self._journal.strike(note)

    def _trim(self) -> None:
        """Have the running guest give back its free space where that was chosen. It only saves room: a failure is a warning."""
        names = {name for name, backend in self._task.zero_fills.values() if backend.trims}
        if not names:
            return
        limit_s = self._zeroing_limit_s()
        runtime, instance = self._task.runtime, self._instance
        with self._feedback.stage("trim", instance.name):
            try:
                guest_call("trim it", runtime, runtime.trim, instance, more_s=limit_s, token=self._token, timeout_s=limit_s)
            except InterruptedRunError:
                raise
            except DiskhaulError as error:
                self._feedback.warn(f"{error}; what the guest does not use is sent with the rest")

    def _zeroing_limit_s(self) -> float:
        return zeroing_limit_s(self._options, (disk.size for disk in self._task.plan.disks))

    def _stop_guest(self) -> None:
        self._starting = self._state.undo_later("starting the guest again", self._keeper.bring_back, order=_THEN_START)
        with self._state.part_named("shutdown"), self._feedback.stage("stop", self._instance.name):
            self._keeper.stop(self._options.shutdown_timeout_s)
            self._check_at_rest("is said to have stopped", RELEASE_S)
        self._token.raise_if_cancelled()

    def _check_at_rest(self, claim: str, patience_s: float) -> None:
        """Look whether anything writes to the disks of a guest that does not run, as its runtime claims.

        Raises:
            GuestError: something does.
        """
        host, limit_s = self._task.operation.host, self._options.stall_timeout_s
        check_at_rest(host, self._instance, claim, patience_s=patience_s, limit_s=limit_s)

    def _stopped_snapshots(self) -> None:
        """Snapshot the stopped guest's disks and start it; without snapshots it stays down if that is allowed."""
        stays_down = "the guest stays down while its disks are sent (long sleep)"
        if not self._task.uses_snapshots:
            self._feedback.warn(f"no snapshot is possible ({'; '.join(self._task.snapshot_reasons)}); {stays_down}")
            return
        try:
            self._take_snapshots()
        except SnapshotError as error:
            if not self._options.long_sleep:
                raise
            self._state.part = ""
            for failure in self._snapshots.remove_all():  # they are tried again at the end
                self._feedback.warn(str(failure))
            self._feedback.warn(f"{error}; {stays_down}")
        else:
            self.guest_may_run()

    def _live_snapshots(self) -> None:
        """Snapshot the running guest's disks, frozen where it can be."""
        self.consistency = "crash"
        frozen = self._keeper.can_freeze() and self._freeze()
        if not frozen and len(self._instance.disks) > 1:
            self._feedback.warn(
                "the guest is not frozen, and its disks are snapshotted one after the other: each is crash-consistent by itself"
            )
        self._take_snapshots()
        if frozen:
            with self._state.part_named("thaw"):
                self._keeper.thaw()
            self.consistency = "filesystem"

    def _freeze(self) -> bool:
        """Freeze the guest; False, with a warning, when it would not freeze."""
        self._state.undo_later("thawing the guest", self._keeper.thaw, order=_THAW_FIRST)
        try:
            with self._feedback.stage("freeze", self._instance.name):
                self._keeper.freeze()
        except DiskhaulError as error:
            self._feedback.warn(f"{error}; the export will be crash-consistent")
            left_behind = isinstance(error, GuestHangsError)
            self._keeper.thaw(freeze_may_follow=left_behind)  # a freeze that failed may have frozen some filesystems
            if left_behind:
                self._state.incomplete.append(f"{error}; 'diskhaul recover' thaws the guest once more")
            return False
        return True

    def _take_snapshots(self) -> None:
        self._giving_back.append(self._state.undo_later("removing the snapshots", self._remove_snapshots))
        self._token.raise_if_cancelled()
        with self._state.part_named("snapshot"), self._feedback.stage("snapshot"):
            self._snapshots.create(self._instance.disks)
        self._from_snapshots = True

    def _remove_snapshots(self) -> None:
        failures = self._snapshots.remove_all()
        for failure in failures[1:]:
            failures[0].add(failure, "removing the snapshots")
        if failures:
            raise failures[0]

    def _zero_in_place(self) -> None:
        """Let zero-fill backends that write do so, while the guest is off; the limit grows with the disks."""
        writing = {index: chosen for index, chosen in self._task.zero_fills.items() if chosen[1].writes}
        if not writing:
            return
        until = time.monotonic() + self._zeroing_limit_s()
        names = ", ".join(sorted({name for name, _ in writing.values()}))
        with self._state.part_named("zeroing"), self._feedback.stage("zero", names):
            for index, (name, backend) in writing.items():
                self._token.raise_if_cancelled()
                disk, left_s = self._instance.disks[index], until - time.monotonic()
                if left_s <= 0:
                    raise OperationFailedError(f"{disk.label}: no time left to zero its free space; raise the zeroing timeouts")
                storage = self._task.operation.host.storage(disk.storage)
                stall_s = self._options.stall_timeout_s
                try:
                    done = zero_in_place(backend, storage, disk, limit_s=left_s, stall_s=stall_s, token=self._token)
                except InterruptedRunError:
                    raise
                except Exception as error:
                    raise OperationFailedError(f"{disk.label}: zeroing by {name} failed: {error}") from error
                self._tell_what_was_kept(disk, name, done)

    def _tell_what_was_kept(self, disk: Disk, name: str, done: object) -> None:
        """Warn of filesystems that were left as they are, so that nobody wonders about the export's size."""
        if isinstance(done, DiskMap):
            for region in done.regions:
                if region.kept and region.state:
                    self._feedback.warn(f"{disk.label}, {region.place}: {region.type} is not zeroed by {name}: {region.kept}")

    # --- meanwhile --------------------------------------------------------------------------------------------------

    def open(self, disk: Disk) -> Source:
        """Open what is to be sent of `disk`: its snapshot, or the disk itself, with its free space where that is known.

        Raises:
            StorageError, SnapshotError: it cannot be opened.
            OperationFailedError: it is no longer as large as it was.
        """
        try:
            source = Source(self._open(disk), disk.label, direct_io=self._options.direct_io)
        except Exception as error:
            raise as_diskhaul_error(error, disk.label) from error
        planned = self._task.plan.disks[disk.index].size
        if source.size != planned:
            source.close()
            raise OperationFailedError(f"{disk.label} had {planned} bytes, and has {source.size} now")
        source.free = self._free_extents(disk, source)
        return source

    def _open(self, disk: Disk) -> DiskReader:
        if self._from_snapshots:
            return self._snapshots.open(disk)
        storage = self._task.operation.host.storage(disk.storage)
        return within(self._options.stall_timeout_s, f"opening {disk.label}", lambda: storage.open(disk))

    def _free_extents(self, disk: Disk, source: Source) -> FreeExtents:
        """What the chosen zero-fill backend says is free; nothing, with a warning, when it fails or talks nonsense.

        What it reads is what is sent: a snapshot, or the disk of a guest that is off. The disk of a running guest changes under
        the reader, and would not be believed.
        """
        chosen = self._task.zero_fills.get(disk.index)
        if chosen is None or chosen[1].writes:
            return FreeExtents()
        name, backend = chosen
        limit_s = self._options.stall_timeout_s
        try:
            found = look_for_free_space(backend, disk, source.reader, limit_s=limit_s, token=self._token)
        except InterruptedRunError:
            raise
        except Exception as error:  # free space is a saving, never a reason to fail
            self._feedback.warn(f"{disk.label}: nothing is skipped as free: {name}: {str(error) or type(error).__name__}")
            return FreeExtents()
        free = checked_free_extents(found.free, source.size)
        self.regions[disk.index] = found.regions
        self._feedback.emit(FreeSpaceFound(disk=disk.index, backend=name, skipped=free.total, regions=found.regions))
        return free

    def sent(self, disk: Disk, source: Source) -> None:
        """All of `disk` has been read: its snapshot is no longer needed. Called from any thread.

        Raises:
            SnapshotError: the snapshot turned invalid, so what was read of it cannot be believed.
        """
        if not self._from_snapshots:
            return
        if not self._snapshots.still_valid(disk):
            raise SnapshotError(f"{disk.label}: its snapshot became invalid while it was read")
        source.close()
        try:
            self._snapshots.remove(disk.index)
        except SnapshotError as error:
            self._state.incomplete.append(str(error))

    # --- afterwards -------------------------------------------------------------------------------------------------

    def check_untouched(self) -> None:
        """Disks read without a snapshot are only whole if nobody started the guest meanwhile.

        Raises:
            GuestError: somebody did, or writes to its disks.
        """
        if self._from_snapshots:
            return
        if self._keeper.is_running():
            raise GuestError(f"{self._instance.name} was started by somebody else while its disks were read; export it again")
        self._check_at_rest("was off while its disks were read", GLANCE_S)

    def guest_may_run(self) -> None:
        """Start a guest that was stopped for the export, unless it is to be removed.

        Raises:
            GuestError: it cannot be started.
        """
        if not self._keeper.owes_start or self._options.remove_instance:
            return
        self._state.done(self._starting)  # tried as often as it makes sense right here
        with self._state.part_named("start"), self._feedback.stage("start", self._instance.name):
            self._keeper.bring_back()
        self._feedback.timings["shutdown"] = self._keeper.down_s

    def give_back(self) -> None:
        """Deactivate disks and remove snapshots that are still there; a failure is left to `recover`, and said."""
        for step in self._giving_back:
            self._state.done(step)
            try:
                step.undo()
            except DiskhaulError as error:
                self._state.incomplete.append(str(error))

    def leave_down(self) -> None:
        """From here on nobody starts the guest again: neither this run, nor whoever finds what it left. Raises nothing."""
        self._state.done(self._starting)
        try:
            self._keeper.forgive()
        except Exception as error:
            self._state.incomplete.append(f"{self._instance.name} is still noted to be started here, and must not be: {error}")

    def undo_at_last(self, doing: str, undo: Callable[[], object]) -> UndoStep:
        """Remember what is to be undone when the run fails, after the guest and everything else here; `undone` forgets it."""
        return self._state.undo_later(doing, undo, order=_AT_LAST)

    def undone(self, step: UndoStep) -> None:
        """It needs no undoing any more."""
        self._state.done(step)

    def tell_if_running(self) -> None:
        """Say among what is incomplete that somebody started the guest, which was to stay down here. Raises nothing."""
        try:
            if self._keeper.is_running():
                self._state.incomplete.append(
                    f"{self._instance.name} RUNS HERE AS WELL, started by somebody else: stop one of them"
                )
        except DiskhaulError as error:
            self._state.incomplete.append(str(error))

    def remove_instance(self) -> None:
        """Remove the instance, whose export has been published. From here on nobody starts the guest again.

        Raises:
            GuestError: it runs again, its disks are being written to, or it cannot be removed.
            LockLostError: it is no longer ours to remove.
        """
        remove_guest(
            self._task.operation.host,
            self._task.operation.locks,
            self._task.runtime,
            self._instance,
            limit_s=self._options.stall_timeout_s,
            looked=self._keeper.forgive,
            begin=self._task.before_removal,
        )
