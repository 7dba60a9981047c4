"""Exporting a fleet: what is refused, what an earlier run of the plan has left, and the results. The work is `diskhaul.fleet`'s.

Each export is an ordinary one, with its own run, locks and journal: it is made by the function that the library gives, wherever
that runs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Protocol

from ..api import ExportStore, LockMode, Storage
from ..cancellation import CancellationToken
from ..errors import LockError, OperationFailedError, RefusedError, UnknownNameError, UnreachableNodeError
from ..events import Event, FleetStarted, MemberEvent
from ..feedback import EventListener, Feedback
from ..fleet.plan_store import MemberState, PlannedMember, PlanStore, StoredPlan, request_digest, same_request
from ..fleet.request import MOST_FREE, ROUND_ROBIN, FleetLimits, FleetRequest
from ..fleet.runner import ExportOrder, FleetRunner
from ..fleet.scheduler import Job, Scheduler, Start
from ..fleet.selection import select
from ..fleet.targets import TROUBLE_S, TargetChoice, Targets
from ..formats.export_id import run_of, short_run_id
from ..model import Cluster, Disk, Instance, Node
from ..names import expand_name, name_problem, printable
from ..option_checks import compression_problems, option_problems
from ..options import ExportOptions
from ..pipeline.source import Source
from ..records import ExportResult, FleetMember, FleetResult, ListResult, Plan, RecoverResult
from .base import LockLevel, Operation, RunContext, Timeouts
from .catalog import NODE_LIMIT_S, PARALLEL_NODES, on_node
from .deadlines import PluginHangsError, within

_ASK_ROOM_S = 30.0  # so often each node is asked for its free space
_BRIEF_LIMIT_S = 30.0  # how long a node may take to say how large a disk is, or how much room it has


class ExportFunction(Protocol):
    """`diskhaul.export`."""

    def __call__(
        self,
        instance: str,
        *,
        node: str,
        config: Cluster,
        options: ExportOptions,
        plugins: Sequence[object],
        on_event: EventListener,
        cancel: CancellationToken,
    ) -> ExportResult: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """The library's functions that a fleet is made of: `diskhaul.export`, `diskhaul.recover` and `diskhaul.list_exports`."""

    export: ExportFunction
    recover: Callable[..., RecoverResult]
    list_exports: Callable[..., ListResult]


class FleetExportOperation(Operation[FleetResult]):
    """Exports the instances of a request, or goes on with a plan.

    Args:
        request: None with `resume`: the plan's own.
        plan: its name; "" makes one up, or, with `resume`, means the only one that is not at its end.
        discard: a plan of this name, or of the same request, that is not at its end is given up.
        tell_one: called by several threads at once, with what each export tells.
    """

    name = "fleet export"

    def __init__(
        self,
        context: RunContext,
        library: Library,
        *,
        request: FleetRequest | None,
        limits: FleetLimits,
        plan: str,
        resume: bool,
        discard: bool,
        dry_run: bool,
        tell_one: Callable[[Event], object],
    ) -> None:
        super().__init__(context)
        self._library = library
        self._asked = request
        self._limits = limits
        self._plan = plan
        self._resume, self._discard, self._asked_dry_run = resume, discard, dry_run
        self._tell_one = tell_one
        self._warned: list[str] = []
        self._troubled: dict[str, float] = {}  # nodes that did not say how large a disk is, and until when they are not asked
        self._request: FleetRequest
        self._options: ExportOptions
        self._instances: Mapping[str, Instance]
        self._nodes: Mapping[str, Node]
        self._members: list[PlannedMember] = []
        self._targets: Targets

    def describe(self) -> str:
        return f"fleet export {self._plan}"

    # --- before anything is touched ---------------------------------------------------------------------------------

    def check_arguments(self) -> None:
        """Find everything that is wrong with what was asked, together; choose the instances and the nodes."""
        problems = self._limits.problems()
        if self._plan and (problem := name_problem("plan", self._plan)):
            problems.append(problem)
        if self._resume and (self._asked is not None or self._discard or self._asked_dry_run):
            problems.append("resume: goes on with what was asked before; leave out everything but plan and limits")
        if problems and self._resume:
            raise RefusedError(problems)
        self._request = self._stored_request() if self._resume else self._asked or FleetRequest()
        problems += self._request.problems()
        problems += self._option_problems()
        inventory = self.host.inventory()
        self._instances, self._nodes = inventory.instances(), inventory.nodes()
        names, wrong = (
            ([], [])
            if self._resume
            else select(
                self._instances,
                patterns=self._request.patterns,
                tags=self._request.tags,
                everything=self._request.everything,
            )
        )
        problems += wrong
        choice, targets, wrong = self._eligible()
        problems += wrong
        if not problems:
            problems += self._plan_problems()
        if problems:
            raise RefusedError(dict.fromkeys(problems))
        self._targets = Targets(targets, self._limits.per_target, choice)
        self._members = [PlannedMember(instance=name, source=self._instances[name].node) for name in names]
        self._plan = self._plan or f"fleet-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{self.context.run_id[:8]}"
        self.timeouts = Timeouts(lock_s=1.0)  # another client that works on the plan does so for hours
        self.dry_run = self._asked_dry_run

    def _option_problems(self) -> list[str]:
        known = {each.name for each in fields(ExportOptions)}
        try:
            self._options = ExportOptions(**{name: value for name, value in self._request.options.items() if name in known})
        except TypeError as error:  # an option of a plan of another version
            return [f"options: {error}"]
        return [*option_problems(self._options), *compression_problems(self._options, self.cluster)]

    def _eligible(self) -> tuple[TargetChoice, list[str], list[str]]:
        """How targets are chosen, among which nodes, and what is wrong with that."""
        request, nodes = self._request, self._nodes
        problems: list[str] = []
        named: list[str] = []
        for asked in request.nodes or ((request.to,) if request.to not in ("", ROUND_ROBIN, MOST_FREE) else ()):
            try:
                named.append(expand_name("node", asked, nodes))
            except RefusedError as error:
                problems += error.problems
        for name in dict.fromkeys(named):
            if nodes[name].offline:
                problems.append(f"node {name} is marked offline: choose another target")
            elif nodes[name].drained:
                problems.append(f"node {name} is drained and takes no exports: choose another target")
        if request.to not in (ROUND_ROBIN, MOST_FREE):
            return "fixed", named, problems
        eligible = list(dict.fromkeys(named)) or [node.name for node in nodes.values() if not node.offline and not node.drained]
        if not eligible and not problems:
            problems.append(f"to: {request.to} has no node to choose from: all are offline or drained")
        return ("round-robin" if request.to == ROUND_ROBIN else "most-free"), eligible, problems

    # --- plans ------------------------------------------------------------------------------------------------------

    @cached_property
    def _store(self) -> PlanStore:
        return PlanStore(self.cluster.state_dir)

    def _stored_plans(self) -> list[StoredPlan]:
        """All plans; a store is not made for looking."""
        return self._store.plans() if PlanStore.is_in(self.cluster.state_dir) else []

    def _stored_request(self) -> FleetRequest:
        plans = self._stored_plans()
        if self._plan:
            found = [plan for plan in plans if plan.name == self._plan]
        else:
            found = [plan for plan in plans if plan.ended is None]
        if len(found) > 1:
            raise RefusedError(f"plan: several are unfinished, say which: {', '.join(plan.name for plan in found)}")
        if not found:
            known = ", ".join(plan.name for plan in plans if plan.ended is None) or "there is none"
            raise RefusedError(f"plan {self._plan}: there is no such plan; unfinished: {known}" if self._plan else
                               "resume: no plan is unfinished")  # fmt: skip
        self._plan = found[0].name
        return FleetRequest.from_data(found[0].request)

    def _plan_problems(self) -> list[str]:
        """Unfinished plans that would be begun again, or thrown away; or what is wrong with the one to go on with."""
        asked = self._request.as_data()
        if self._resume:
            same = any(plan.name == self._plan and same_request(plan.request, asked) for plan in self._stored_plans())
            return [] if same else [f"plan {self._plan} was thrown away meanwhile by another client: look at what it does"]
        if self._discard:
            return []
        return [
            f"plan {plan.name} is unfinished ({plan.done} of {plan.total} exported): "
            "go on with it (resume = true), or give it up (discard = true)"
            for plan in self._stored_plans()
            if plan.ended is None and (plan.name == self._plan or same_request(plan.request, asked))
        ]

    def declare_locks(self, level: LockLevel) -> Mapping[str, LockMode]:
        """The plan, and what was asked for, whatever its plan is called. Exports take their own locks, never these."""
        if level is not LockLevel.FLEET or self.dry_run:
            return {}
        request = f"request-{request_digest(self._request.as_data())}"
        return {self._plan: LockMode.EXCLUSIVE, request: LockMode.EXCLUSIVE}

    def check_prerequisites(self) -> None:
        """Look again at the plans, and read how far this one is, now that nobody else works on it or on the same request."""
        if not self.dry_run and (problems := self._plan_problems()):
            raise RefusedError(problems)
        if self._resume:
            self._members = self._store.members(self._plan)

    # --- the work ---------------------------------------------------------------------------------------------------

    def execute(self, feedback: Feedback) -> FleetResult:
        begun = time.monotonic()
        if self._resume:
            self._store.end(self._plan, ended=False)
            self._members = self._checked_members()
        else:
            self._give_up_others()
            self._store.begin(self._plan, self._request.as_data(), self._members)
        earlier = {member.instance for member in self._members if member.state == "done"}
        feedback.emit(FleetStarted(plan=self._plan, total=len(self._members), done=len(earlier)))
        with _RoomAsker(self, self._targets) as asker:
            runner = FleetRunner(
                self._members,
                scheduler=self._scheduler(),
                targets=self._targets,
                limits=self._limits,
                export_one=self._export_one,
                record=self._record,
                tell=feedback.emit,
                token=self.token,
                ask_room=asker.ask if self._targets.wants_sizes else lambda: None,
            )
            runner.run()
        members = tuple(_result(member, earlier) for member in runner.members.values())
        interrupted = any(member.state in ("pending", "running") for member in members)
        if not interrupted:
            self.locks.check()
            self._store.end(self._plan)
        return FleetResult(
            run_id=self.context.run_id,
            plan=self._plan,
            members=members,
            interrupted=interrupted,
            seconds=time.monotonic() - begun,
            warnings=tuple(feedback.warnings),
        )

    def dry_run_result(self) -> FleetResult:
        """Who would go where, in which order, if every export took the same time."""
        scheduler = self._scheduler()
        with _RoomAsker(self, self._targets) as asker:
            if self._targets.wants_sizes:
                asker.ask()
            for member in self._members:
                scheduler.add(Job(member.instance, member.source))
            members: list[FleetMember] = []
            running: list[Start] = []
            while scheduler.pending:
                self.token.raise_if_cancelled()
                while (start := scheduler.next()) is not None:
                    running.append(start)
                    job = start.job
                    members.append(FleetMember(instance=job.instance, source=job.source, target=start.target, size=job.size or 0))
                for start in running:
                    scheduler.ended(start, stored=start.size)
                running.clear()
        return FleetResult(
            run_id=self.context.run_id,
            plan="",
            members=tuple(members),
            dry_run=True,
            warnings=tuple(self.feedback.warnings),
        )

    def _scheduler(self) -> Scheduler:
        return Scheduler(
            order=self._request.order,
            per_source=self._limits.per_source,
            parallel=self._limits.parallel,
            targets=self._targets,
            measure=self._measure,
        )

    def _give_up_others(self) -> None:
        """With `discard`: the plans of the same request are at their end. Nobody works on them: their request is locked."""
        asked = self._request.as_data()
        for plan in self._stored_plans():
            if plan.ended is None and same_request(plan.request, asked):
                self._store.end(plan.name)

    def _checked_members(self) -> list[PlannedMember]:
        """The members of a plan that goes on: what is done stays done while its export is there, what failed is tried again."""
        missing = self._missing_exports([member for member in self._members if member.state == "done"])
        checked = []
        for member in self._members:
            if member.instance in missing:
                self.feedback.warn(f"{member.instance}@{member.export_id} on {member.target} is gone: it is exported again")
            if member.state in ("failed", "lost") or member.instance in missing:
                state: MemberState = "running" if member.state == "lost" else "pending"
                member = replace(member, state=state, export_id="", exit_code=0, incomplete=())
            checked.append(member)
        changed = [after for before, after in zip(self._members, checked, strict=True) if before is not after]
        if changed:
            self._record(changed)
        return checked

    def _missing_exports(self, done: Iterable[PlannedMember]) -> set[str]:
        """Instances whose export is no longer where it went; each node is asked once.

        Raises:
            InterruptedRunError: cancelled.
        """
        by_node: dict[str, list[tuple[str, str]]] = {}
        for member in done:
            by_node.setdefault(member.target, []).append((member.instance, member.export_id))
        missing: set[str] = set()
        for name, exports in by_node.items():
            try:
                if name not in self._nodes:
                    raise RefusedError(f"node {name} is no longer configured")
                missing |= within(
                    NODE_LIMIT_S,
                    f"node {name}",
                    partial(on_node, self.host, self._nodes[name], _not_there, exports),
                    token=self.token,
                )
            except BaseException as error:  # a plugin may raise anything
                self.token.raise_if_cancelled()
                self.feedback.warn(f"whether {len(exports)} exports are still on {name} could not be found out: {error}")
        return missing

    def _record(self, members: Sequence[PlannedMember]) -> None:
        """Write how far `members` are, while the plan is still ours: whoever took it over has written since.

        Raises:
            LockLostError: another client may be at work on the plan.
            OperationFailedError: it could not be written.
        """
        self.locks.check()
        self._store.record(self._plan, members)

    # --- one export -------------------------------------------------------------------------------------------------

    def _export_one(self, order: ExportOrder) -> ExportResult:
        """Run an export, on a thread of the fleet's pool; first find out what became of an earlier attempt, if nobody knows."""
        job = order.job
        cluster = self._cluster_for(job.instance)
        if job.recover:
            self._recover(job, cluster)
            published = self._published(order, cluster)
            job.recover = False
            if published is not None:
                return published
        limits = [limit for limit in (order.bwlimit, self._options.bwlimit) if limit]
        return self._library.export(
            job.instance,
            node=order.target,
            config=cluster,
            options=replace(self._options, bwlimit=min(limits, default=0)),
            plugins=self.context.plugins,
            on_event=_MemberListener(order, self._tell_one, partial(self._store.begin_run, self._plan, job.instance)),
            cancel=self.token,
        )

    def _recover(self, job: Job, cluster: Cluster) -> None:
        """Undo what the export of a killed client, or of a lost node, has left, and start its guest.

        Raises:
            LockError: it is still going on.
            UnreachableNodeError: its node does not answer.
            OperationFailedError: its node cannot recover.
        """
        try:
            recovered = self._library.recover(
                job.instance,
                config=cluster,
                lock_timeout_s=self._options.lock_timeout_s,
                plugins=self.context.plugins,
                cancel=self.token,
            )
        except UnknownNameError:
            return  # no longer configured, and nothing left of it
        for line in recovered.done:
            self.feedback.warn(f"left by an earlier attempt: {line}")
        if recovered.busy:
            raise LockError(f"{job.instance}: an earlier attempt is still going on: {'; '.join(recovered.incomplete)}")
        if job.source in recovered.unreachable:
            text = f"what became of an earlier attempt is not known: {'; '.join(recovered.incomplete)}"
            raise UnreachableNodeError(job.source, text, in_doubt=True)
        if job.source in recovered.failed:
            raise OperationFailedError(f"what became of an earlier attempt is not known: {'; '.join(recovered.incomplete)}")
        for line in recovered.incomplete:
            self.feedback.warn(f"left by an earlier attempt, and still to be done: {line}")

    def _published(self, order: ExportOrder, cluster: Cluster) -> ExportResult | None:
        """The export that a killed client had published, and had no time to note, as a result; or None."""
        name, source = order.job.instance, order.job.source
        listed = self._library.list_exports(config=cluster, instance=name, plugins=self.context.plugins)
        runs = {short_run_id(run) for run in self._store.runs(self._plan, name)}
        found = [each for each in listed.exports if each.valid and run_of(each.export_id) in runs]
        if not found:
            return None
        export = found[-1]
        known = Plan(
            operation="export",
            run_id=self.context.run_id,
            cluster=cluster.name,
            instance=self._instances.get(name) or Instance(name=name, node=source),
            source=self._nodes.get(source),
            target=self._nodes.get(export.node),
            running=False,
            downtime="none",
            steps=(),
        )
        doubt = f"whether {name} was removed after its export is not known: look, and remove it by hand"
        return ExportResult(
            run_id=self.context.run_id,
            instance=name,
            node=export.node,
            plan=known,
            export=export,
            incomplete=(doubt,) if self._options.remove_instance else (),
        )

    def _cluster_for(self, instance: str) -> Cluster:
        """The cluster with this instance alone, where the configuration lists them: the others must not make it cost more."""
        known = self._instances.get(instance)
        if known is None or self.cluster.backends.get("inventory", "toml") != "toml":
            return self.cluster
        return replace(self.cluster, instances=(known,))

    def _measure(self, name: str) -> int:
        """Bytes of the disks of an instance: as configured, or else as its storages say; 0 where they do not.

        A node that does not answer is left alone for a while.
        """
        instance = self._instances.get(name)
        if instance is None:
            return 0
        sizes = [disk.size for disk in instance.disks]
        if None not in sizes:
            return sum(size for size in sizes if size is not None)
        if self._troubled.get(instance.node, 0.0) > time.monotonic():
            return 0
        try:
            node = self._nodes[instance.node]
            disks = [(self.host.storage(disk.storage), disk) for disk in instance.disks]
            return within(
                _BRIEF_LIMIT_S,
                f"measuring {name}",
                lambda: self.host.engine().run(node, _sizes, disks),
                token=self.token,
            )
        except (UnreachableNodeError, PluginHangsError):  # everything waits for this: once is enough
            self._troubled[instance.node] = time.monotonic() + TROUBLE_S
            return 0
        except BaseException:  # its export will say what is wrong with it; the order can do without its size
            return 0

    def room_on(self, name: str) -> int | None:
        """Free bytes on a node, or None where it does not say."""
        node = self._nodes[name]
        try:
            return within(_BRIEF_LIMIT_S, f"node {name}", lambda: on_node(self.host, node, _free_bytes))
        except BaseException as error:  # a plugin may raise anything; the node comes last then
            self._warn_once(f"node {name} does not say how much room it has: {printable(str(error))}")
            return None

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.append(text)
            self.feedback.warn(text)


class _MemberListener:
    """Passes on what an export of the fleet tells, and first says which run that is: this process's, or one at a node."""

    def __init__(self, order: ExportOrder, tell: Callable[[Event], object], begin_run: Callable[[str], object]) -> None:
        self._order, self._tell, self._begin_run = order, tell, begin_run
        self._known: set[str] = set()

    def __call__(self, event: Event) -> None:
        if event.run_id not in self._known:
            self._known.add(event.run_id)
            self._begin_run(event.run_id)
        job = self._order.job
        self._tell(
            MemberEvent(run_id=event.run_id, instance=job.instance, source=job.source, target=self._order.target, event=event)
        )


class _RoomAsker:
    """Asks nodes for their free space once in a while, without holding up what goes on. For the scheduling thread."""

    def __init__(self, operation: FleetExportOperation, targets: Targets) -> None:
        self._operation = operation
        self._targets = targets
        self._asked_at: float | None = None
        self._answers: dict[str, tuple[int, Future[int | None]]] = {}
        self._pool = ThreadPoolExecutor(max_workers=min(PARALLEL_NODES, len(targets.names)), thread_name_prefix="diskhaul-room")

    def __enter__(self) -> _RoomAsker:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def ask(self) -> None:
        """Take in what nodes have answered, and ask them again when it is time; the first time, wait for the answers."""
        first = self._asked_at is None
        now = time.monotonic()
        if not self._answers and (self._asked_at is None or now - self._asked_at >= _ASK_ROOM_S):
            self._asked_at = now
            self._answers = {
                name: (self._targets.spent(name), self._pool.submit(self._operation.room_on, name))
                for name in self._targets.names
            }
        for name, (asked_at, answer) in list(self._answers.items()):
            if first or answer.done():
                self._targets.tell_free(name, answer.result(), asked_at=asked_at)
                del self._answers[name]


def _result(member: PlannedMember, earlier: set[str]) -> FleetMember:
    return FleetMember(
        instance=member.instance,
        source=member.source,
        target=member.target,
        state="done" if member.state == "done" else "failed" if member.state in ("failed", "lost") else "pending",
        exit_code=0 if member.state in ("pending", "running") else member.exit_code,
        attempts=member.attempts,
        export_id=member.export_id,
        error=member.error,
        remedy=member.remedy,
        size=member.size,
        bytes_read=member.bytes_read,
        stored_bytes=member.stored_bytes,
        seconds=member.seconds,
        earlier=member.instance in earlier,
        incomplete=member.incomplete,
    )


def _not_there(store: ExportStore, exports: Sequence[tuple[str, str]]) -> set[str]:
    return {instance for instance, export_id in exports if export_id not in store.exports(instance)}


def _free_bytes(store: ExportStore) -> int | None:
    return store.free_bytes()


def _sizes(disks: Sequence[tuple[Storage, Disk]]) -> int:
    total = 0
    for storage, disk in disks:
        if disk.size is not None:
            total += disk.size
            continue
        source = Source(storage.open(disk), disk.label)
        total += source.size
        source.close()
    return total
