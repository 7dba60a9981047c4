"""Moving an instance to another cluster: prepared, received, exported, imported and started there, removed here.

The guest is stopped once, and runs again at one of the two clusters: at the other one when everything went well, and else here.
It is removed here last of all. Until the other cluster is told to start it, whatever fails brings it back here, also through
`recover`. From then on nobody starts it here unless the other cluster has said that it is down there (`moving`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from ..api import STOP_GRACE_S
from ..errors import DiskhaulError, GuestError, InterruptedRunError, OperationFailedError, RefusedError
from ..events import Event, OperationFinished
from ..feedback import Feedback
from ..model import Instance, Nic, Node
from ..names import name_problem
from ..option_checks import compression_problems, option_problems
from ..options import MAX_TIMEOUT_S, ExportOptions
from ..records import ExportRecord, ExportResult, MoveResult, PrepareResult
from ..remote.envelope import Document
from ..remote.keys import RemoteKeys
from ..remote.other_side import OtherReception, OtherSide, OtherSideError
from ..remote.secret import read_secret
from .base import Operation, RunContext
from .disk_identity import disk_identities, same_disks
from .export_disks import ExportDisks
from .export_task import ExportTask, zeroing_limit_s
from .guest import guest_runs
from .move_answers import destination_problems, import_problem
from .moving import ANSWER_S, MovingNote, being_moved, other_side, runs_there, settle
from .plugin_answers import problems_from
from .prepare import PrepareOperation
from .remote_export import RemoteExportOperation

_ASKED_S = 120.0  # for what is only looked up there
_LONGEST_S = 24 * 3600.0  # for an import there, which minds by itself that something moves


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveRequest:
    """Where an instance goes.

    Attributes:
        cluster: one of the configured other clusters.
        node: the node there that takes the export.
        name: what it is called there; None for the name that it has.
        nics: recorded in place of its own; None for its own.
        grow: new disk sizes in bytes by disk index.
        force: overwrite disks that exist there.
        keep: leave the instance here, stopped, in place of removing it.
    """

    cluster: str
    node: str
    name: str | None = None
    nics: tuple[Nic, ...] | None = None
    grow: tuple[tuple[int, int], ...] = ()
    force: bool = False
    keep: bool = False

    @property
    def import_arguments(self) -> tuple[str, ...]:
        """For the import there, as its command line has them."""
        grow = [text for index, size in self.grow for text in ("--grow", f"{index}={size}")]
        return (*grow, *(["--force"] if self.force else []))


class MoveOperation(Operation[MoveResult]):
    """Moves one instance.

    Raises (from `run`):
        RefusedError: every reason found; nothing was touched.
        OperationFailedError: one of the two sides failed; the guest is as before here, unless the error says IS DOWN.
        InterruptedRunError: cancelled; likewise as before.
    """

    name = "move"

    def __init__(self, context: RunContext, instance: str, request: MoveRequest, options: ExportOptions) -> None:
        super().__init__(context)
        self._asked, self.request = instance, request
        self._options = replace(options, remove_instance=True, ignore_remove_failures=False, dry_run=False)
        self.dry_run = options.dry_run
        self._running = False
        self.instance: Instance
        self.source: Node
        self.side: OtherSide

    @property
    def there(self) -> str:
        """What the instance is called at the other cluster."""
        return self.request.name or self.instance.name

    # --- before anything is touched ---------------------------------------------------------------------------------

    def check_arguments(self) -> None:
        asked = {"instance": self._asked, "cluster": self.request.cluster, "node": self.request.node}
        problems = [problem for kind, name in asked.items() if (problem := name_problem(kind, name))]
        if self.request.name is not None and (problem := name_problem("instance", self.request.name)):
            problems.append(problem)
        problems += [*option_problems(self._options), *compression_problems(self._options, self.cluster)]
        if self.request.cluster == self.cluster.name:
            problems.append(f"cluster {self.cluster.name} is this one: an instance is moved to another cluster")
        if not self._options.shutdown:
            problems.append("shutdown = false: a guest that is moved is stopped: what it wrote meanwhile would be lost")
        if not problems:
            try:
                self.side = other_side(self.cluster, self.request.cluster)
            except RefusedError as error:
                problems += error.problems
        if problems:
            raise RefusedError(problems)

    def expand_names(self) -> None:
        self.instance, self.source = self.instance_and_node(self._asked)

    def home(self) -> Node:
        return self.source

    def describe(self) -> str:
        return f"move of {self.instance.name} to cluster {self.request.cluster}"

    def check_prerequisites(self) -> None:
        """Look at both sides without a lock; what counts is looked at again, under the locks, by each step."""
        problems = problems_from(self.instance.name, self._problems_here)
        try:
            if runs_there(self.side, self.there):
                problems.append(f"{self.there} runs at cluster {self.side.name} already")
        except OtherSideError as error:
            problems.append(str(error))
        if problems:
            raise RefusedError(problems)

    def _problems_here(self) -> list[str]:
        problems: list[str] = []
        try:
            read_secret(self.cluster)
        except RefusedError as error:
            problems += error.problems
        indexes = {disk.index for disk in self.instance.disks}
        problems += [f"grow: {self.instance.name} has no disk {index}" for index, _ in self.request.grow if index not in indexes]
        runtime = self.host.runtime(self.instance.runtime)
        problems += problems_from(self.instance.name, lambda: runtime.check(self.instance))
        if not problems:
            problems += being_moved(self.context, self.instance.name)
            self._running = guest_runs(runtime, self.instance)
        return problems

    # --- the work ---------------------------------------------------------------------------------------------------

    def dry_run_result(self) -> MoveResult:
        return self._result(None)

    def execute(self, feedback: Feedback) -> MoveResult:
        begun = time.monotonic()
        prepared = PrepareOperation(self._nested(), self.instance.name).run()
        try:
            result = self._send(prepared, feedback)
        finally:
            self._ended("the key of the export", lambda: RemoteKeys(self.cluster.state_dir).drop(prepared.prepared))
        return replace(result, timings={**result.timings, "total": time.monotonic() - begun})

    def _ended(self, what: str, end: Callable[[], object]) -> None:
        """Have `end` put away what is of no use any more: a failure does not change what became of the move."""
        try:
            end()
        except Exception as error:
            self.feedback.warn(f"{what} could not be put away: {error}")

    def _send(self, prepared: PrepareResult, feedback: Feedback) -> MoveResult:
        named = () if self.request.name is None else ("--instance-name", self.request.name)
        wanted = ("--for-import", *self.request.import_arguments)
        limit = f"{self._longest_silence_s(prepared):.0f}"
        try:
            with feedback.stage("receive", f"{self.there} at cluster {self.side.name}"):
                reception = self.side.receive(
                    prepared.document, "--node", self.request.node, *named, *wanted, "--timeout", limit, limit_s=_ASKED_S
                )
        except OtherSideError as error:  # nothing has been touched, on either side
            told = error.problems if error.code == 2 else ()
            raise RefusedError([f"cluster {self.side.name}: {problem}" for problem in told] or [str(error)]) from error
        try:
            asked = {"cluster": self.side.name, "node": self.request.node, "instance": self.there}
            if problems := destination_problems(reception.destination, **asked):
                raise RefusedError(problems)
            export = _MovingExport(self._nested(), self, reception, self._options)
            result = export.run()
            self._running = export.running  # as it was found under the lock
        finally:
            self._ended("the reception", reception.stop)
        return self._result(result)

    def _longest_silence_s(self, prepared: PrepareResult) -> float:
        """For how long nothing may come there: the guest is stopped, and its free space zeroed, before."""
        options = self._options
        longest = options.stall_timeout_s + options.shutdown_timeout_s + STOP_GRACE_S
        if options.zero_free_space:
            longest += zeroing_limit_s(options, (disk["size"] for disk in prepared.document["signed"]["disks"]))
        return min(longest, MAX_TIMEOUT_S)

    def _nested(self) -> RunContext:
        """A run of its own, whose events go to who listens to this one."""
        return RunContext(self.cluster, plugins=self.context.plugins, on_event=self._pass_on, token=self.token)

    def _pass_on(self, event: Event) -> None:
        if self.context.on_event is not None and not isinstance(event, OperationFinished):
            self.context.on_event(event)

    def _result(self, exported: ExportResult | None) -> MoveResult:
        request = self.request
        steps = [
            f"prepare {self.instance.name}",
            f"have {self.there} received on node {request.node} of cluster {self.side.name}",
            *([f"stop {self.instance.name}"] if self._running else []),
            "export it there, and read back what was stored",
            "import it there",
            *([f"start {self.there} there"] if self._running else []),
            f"keep {self.instance.name} here, stopped" if request.keep else f"remove {self.instance.name} here",
        ]
        return MoveResult(
            run_id=self.context.run_id,
            instance=self.instance.name,
            cluster=self.side.name,
            node=request.node,
            name=self.there,
            steps=tuple(steps),
            export=exported.export if exported is not None else None,
            started=exported is not None and self._running,
            removed=exported is not None and exported.instance_removed,
            incomplete=exported.incomplete if exported is not None else (),
            timings=dict(exported.timings if exported is not None else {}),
            warnings=(*self.feedback.warnings, *(exported.warnings if exported is not None else ())),
            dry_run=exported is None,
        )


class _MovingExport(RemoteExportOperation):
    """The export of a move: what is exported is imported and started there before the instance is removed here."""

    def __init__(self, context: RunContext, move: MoveOperation, reception: OtherReception, options: ExportOptions) -> None:
        destination: Document = reception.destination
        super().__init__(context, move.instance.name, destination, options)
        self._move, self._reception, self._side = move, reception, move.side
        self._moving: tuple[int, MovingNote] | None = None

    def describe(self) -> str:
        return self._move.describe()

    def _task(self) -> ExportTask:
        task = super()._task()
        request = self._move.request
        described = task.exported if request.nics is None else replace(task.exported, nics=request.nics)
        return replace(
            task,
            exported=described,
            hand_over=self._hand_over,
            before_removal=self._note_removal,
            keep_instance=request.keep,
        )

    def execute(self, feedback: Feedback) -> ExportResult:
        result = super().execute(feedback)
        if result.instance_removed or (self._move.request.keep and not result.incomplete):
            try:
                self._strike_note()
            except Exception as error:
                line = f"the journal still holds the move: {error}; 'diskhaul recover {self.instance.name}' settles it"
                return replace(result, incomplete=(*result.incomplete, line))
        return result

    def _strike_note(self) -> None:
        assert self._moving is not None, "it has been handed over"
        journal = self.context.journal
        own = (run for run in journal.unfinished(self.instance.name) if run.run_id == self.context.run_id)
        if any(note.kind == "guest" for run in own for note in run.notes):
            raise OperationFailedError(f"{self.instance.name} is still noted to be started here")
        journal.strike(self._moving[0])
        journal.finish(self.context.run_id)

    def _say_farewell(self) -> None:
        """It has been said in the middle: the import there needs the instance's lock."""

    # --- between publishing and removing ----------------------------------------------------------------------------

    def _hand_over(self, export: ExportRecord, disks: ExportDisks) -> None:
        assert self._store is not None, "it was exported there"
        named = f"{export.instance}@{export.export_id}"
        taking_back = disks.undo_at_last(f"removing {named} at cluster {self._side.name}", partial(self._take_back, named))
        try:
            self._store.farewell()
            self._reception.finish(ANSWER_S)
            if self._move.request.force:
                self._check_not_shared()
            self._import(export, named)
            self.locks.check()
            disks.check_untouched()
            request = self._move.request
            note = MovingNote(
                instance=self.instance.name,
                cluster=self._side.name,
                name=self.target_instance,
                keep=request.keep,
                ran=self.running,
            )
            self._moving = self.context.journal.note(self.context.run_id, "moving", note.data()), note
            if self.running:
                self._start(disks)
        except _InDoubtError:
            disks.undone(taking_back)
            raise
        except BaseException as error:
            if isinstance(error, DiskhaulError) and not isinstance(error, InterruptedRunError):
                error.add_note(
                    f"disks of {export.instance} at cluster {self._side.name} may have been written: --force overwrites them"
                )
            raise
        disks.undone(taking_back)

    def _check_not_shared(self) -> None:
        """What is overwritten there must not be what lies here: storage that both clusters reach. The guest is down at both.

        Raises:
            OperationFailedError: it may be.
        """
        asked = ("guest", "status", self.target_instance, "--disks")
        there = self._side.ask(*asked, limit_s=ANSWER_S, token=self.token)
        if there.get("instance") != self.target_instance or there.get("running") is not False:
            raise self._side.no_answer(" ".join(asked), f"it does not say that {self.target_instance} is down")
        here = disk_identities(self.host, self.instance, limit_s=self.options.stall_timeout_s)
        if same := same_disks(here, there.get("disks")):
            raise OperationFailedError(
                f"{'; '.join(same)}, and would be overwritten: if it is the same disk, nothing is to be moved; if it is a copy, "
                f"as of an earlier move, remove it at cluster {self._side.name} first"
            )

    def _import(self, export: ExportRecord, named: str) -> None:
        request = self._move.request
        with self.feedback.stage("import", f"{named} at cluster {self._side.name}"):
            answer = self._side.ask(
                "import", named, "--node", request.node, *request.import_arguments, limit_s=_LONGEST_S, token=self.token
            )
            sizes = [disk.size for disk in self.plan.disks]
            if problem := import_problem(answer, export, sizes, dict(request.grow)):
                raise self._side.no_answer(f"import {named}", problem)
        self.token.raise_if_cancelled()

    def _start(self, disks: ExportDisks) -> None:
        """Have the guest started there; from here on its start here depends on what is heard from there.

        Once it is known to run there nothing raises: what cannot be noted then is left to be done.
        """
        assert self._moving is not None, "it has been noted"
        noted, note = self._moving
        name, run_id = note.name, self.context.run_id
        try:
            with self.feedback.stage("start", f"{name} at cluster {self._side.name}"):
                if not runs_there(self._side, name, "start", run_id):
                    raise self._side.no_answer(f"guest start {name}", "it does not say that it runs there")
        except BaseException as error:
            try:
                runs = settle(self._side, name, run_id)
            except BaseException as doubt:
                disks.leave_down()
                failure = _InDoubtError(
                    f"{self.instance.name} IS DOWN here, since it is not known whether {name} runs at cluster "
                    f"{self._side.name}: {doubt}; 'diskhaul recover {self.instance.name}' asks there again"
                )
                failure.add(error, f"starting {name} there")
                raise failure from error
            if not runs:
                self._move._ended("the note of the move", lambda: self.context.journal.strike(noted))
                raise
            self.feedback.warn(f"{name} runs at cluster {self._side.name}, although its start was answered with: {error}")
        disks.leave_down()
        self._moving = noted, replace(note, started=True)
        try:
            self.context.journal.amend(noted, self._moving[1].data())
        except Exception as error:  # it is amended once more before anything is removed
            self.feedback.warn(f"the journal cannot be written: {error}")

    def _note_removal(self) -> None:
        """Note that the removal here begins: it is right to finish it from then on."""
        assert self._moving is not None, "it has been handed over"
        noted, note = self._moving
        self._moving = noted, replace(note, removing=True)
        self.context.journal.amend(noted, self._moving[1].data())

    def _take_back(self, named: str) -> None:
        """Remove there what is of no use any more: the guest goes on here."""
        self._side.ask("remove", named, "--node", self._move.request.node, limit_s=_ASKED_S)


class _InDoubtError(GuestError):
    """Nobody knows where the guest runs."""
