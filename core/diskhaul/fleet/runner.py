"""Runs the exports of a fleet: starts what the scheduler gives, keeps the plan up to date, and tries again what may pass.

One thread, the one that calls `FleetRunner.run`, schedules and writes the plan; exports run in a bounded pool of threads, and
their ends come back through a queue. So nothing here needs a lock.
"""

from __future__ import annotations

import heapq
import queue
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

from ..cancellation import CancellationToken
from ..errors import DiskhaulError, InterruptedRunError, OperationFailedError
from ..events import Event, MemberFinished, MemberStarted
from ..records import ExportResult
from .bandwidth import BandwidthShares
from .plan_store import PlannedMember
from .request import FleetLimits
from .retries import backoff_s, in_doubt, may_pass, remedy, unreachable_node
from .scheduler import Job, Scheduler, Start
from .targets import Targets

_POLL_S = 0.1  # how soon a cancellation is noticed


@dataclass(frozen=True, slots=True)
class ExportOrder:
    """One export that is to run now.

    Attributes:
        bwlimit: its share, bytes a second; 0 is no limit.
    """

    job: Job
    target: str
    bwlimit: int


class ExportOne(Protocol):
    """Runs one export, and returns or raises what `diskhaul.export` does. Called by several threads at once."""

    def __call__(self, order: ExportOrder, /) -> ExportResult: ...


@dataclass(frozen=True, slots=True)
class _End:
    """An export that has ended. `passing`: another attempt makes sense. `in_doubt`: what became of this one is not known."""

    start: Start
    member: PlannedMember
    passing: bool = False
    unreachable: str = ""
    in_doubt: bool = False


class FleetRunner:
    """Exports `members` within `limits`.

    Args:
        members: of the plan; those that are pending or running are exported, the latter after a recovery.
        export_one: runs one export.
        record: writes how far some members are to the plan, durably.
        tell: told of every start and end.
        ask_room: called often from `run`; may ask nodes for their free space and tell `targets`.
    """

    def __init__(
        self,
        members: Sequence[PlannedMember],
        *,
        scheduler: Scheduler,
        targets: Targets,
        limits: FleetLimits,
        export_one: ExportOne,
        record: Callable[[Sequence[PlannedMember]], object],
        tell: Callable[[Event], object],
        token: CancellationToken,
        ask_room: Callable[[], object] = lambda: None,
        chance: random.Random | None = None,
    ) -> None:
        self.members = {member.instance: member for member in members}
        self._scheduler = scheduler
        self._targets = targets
        self._limits = limits
        self._export_one = export_one
        self._record = record
        self._tell = tell
        self._token = token
        self._ask_room = ask_room
        self._chance = chance or random.Random()
        self._ended: queue.SimpleQueue[_End] = queue.SimpleQueue()
        self._later: list[tuple[float, int, Job]] = []  # what is tried again, by when
        self._running = 0
        jobs = [member for member in members if member.state in ("pending", "running")]
        sources = len({member.source for member in jobs})
        slots = min(limits.parallel, limits.per_source * sources, limits.per_target * len(targets.names), len(jobs))
        self._slots = max(slots, 1)
        self._shares = BandwidthShares(limits.bwlimit, self._slots)
        for member in jobs:
            recover = member.state == "running"
            scheduler.add(
                Job(member.instance, member.source, size=member.size or None, attempts=member.attempts, recover=recover)
            )
        self._first_attempt = {member.instance: member.attempts for member in jobs}

    def run(self) -> None:
        """Export until nothing is left, or until the token is cancelled and what was running has ended.

        Raises:
            OperationFailedError, LockLostError: the plan could not be written, or is another client's by now; what was running
                has been stopped.
        """
        with ThreadPoolExecutor(max_workers=self._slots, thread_name_prefix="diskhaul-fleet") as pool:
            try:
                while self._go_on(pool):
                    pass
            except BaseException:
                self._token.cancel("the fleet cannot go on")
                raise

    def _go_on(self, pool: ThreadPoolExecutor) -> bool:
        """Start what can start, then wait until something has ended or is due; return whether there is anything left to do."""
        starts = self._next_starts()
        if starts:
            self._record([self.members[start.job.instance] for start, _ in starts])
            for start, order in starts:
                self._running += 1
                self._tell(
                    MemberStarted(
                        instance=start.job.instance,
                        source=start.job.source,
                        target=start.target,
                        attempt=start.job.attempts,
                        size=start.job.size or 0,
                    )
                )
                pool.submit(self._work, start, order)
        if not self._running:
            if self._token.cancelled or not (self._later or self._scheduler.pending):
                return False
            if not self._later:
                raise RuntimeError(f"{self._scheduler.pending} exports wait, and nothing runs that they could wait for")
        self._take_in(self._wait_for_ends())
        return True

    def _next_starts(self) -> list[tuple[Start, ExportOrder]]:
        starts: list[tuple[Start, ExportOrder]] = []
        self._ask_room()
        while self._later and self._later[0][0] <= time.monotonic():
            self._scheduler.add(heapq.heappop(self._later)[-1])
        while not self._token.cancelled and (start := self._scheduler.next()) is not None:
            job = start.job
            job.attempts += 1
            before = self.members[job.instance]
            waiting = self._scheduler.pending + len(self._later)
            starts.append((start, ExportOrder(job, start.target, self._shares.take(job.instance, waiting=waiting))))
            self.members[job.instance] = replace(
                before,
                state="running",
                target=start.target,
                attempts=job.attempts,
                size=job.size or 0,
            )
        return starts

    def _work(self, start: Start, order: ExportOrder) -> None:
        """Run one export, on a thread of the pool."""
        begun = time.monotonic()
        member = self.members[start.job.instance]
        try:
            result = self._export_one(order)
            done = _done(member, result, time.monotonic() - begun)
            end = _End(start, done)
        except BaseException as error:  # a plugin may raise anything; the other exports go on
            failed = _failed(member, error, time.monotonic() - begun, cancelled=self._token.cancelled)
            end = _End(start, failed, may_pass(error), unreachable_node(error), in_doubt(error))
        self._ended.put(end)

    def _wait_for_ends(self) -> list[_End]:
        patience = _POLL_S
        if self._later:
            patience = min(patience, max(self._later[0][0] - time.monotonic(), 0.0))
        ends: list[_End] = []
        try:
            ends.append(self._ended.get(timeout=patience))
            while True:
                ends.append(self._ended.get_nowait())
        except queue.Empty:
            return ends

    def _take_in(self, ends: Sequence[_End]) -> None:
        told: list[MemberFinished] = []
        for end in ends:
            job, member = end.start.job, end.member
            self._running -= 1
            self._scheduler.ended(end.start, stored=member.stored_bytes)
            self._shares.give_back(job.instance)
            state, wait_s = str(member.state), 0.0
            # Whoever found out what had become of an earlier attempt has said so in the job.
            job.recover = member.state != "done" and (job.recover or end.in_doubt)
            if job.recover:
                member = replace(member, state="running" if member.state == "pending" else "lost")
            if end.unreachable in self._targets.names:
                self._targets.trouble(end.unreachable)
            tried = job.attempts - self._first_attempt[job.instance]
            if end.passing and tried <= self._limits.retries and not self._token.cancelled:
                state, wait_s = "retry", backoff_s(tried, self._limits.backoff_s, self._chance)
                member = replace(member, state="running" if job.recover else "pending")
                heapq.heappush(self._later, (time.monotonic() + wait_s, id(job), job))
            self.members[job.instance] = member
            told.append(_finished(member, job, state, wait_s))
        if ends:
            self._record([self.members[end.start.job.instance] for end in ends])
        for event in told:
            self._tell(event)


def _done(member: PlannedMember, result: ExportResult, seconds: float) -> PlannedMember:
    return replace(
        member,
        state="done",
        seconds=seconds,
        export_id=result.export.export_id if result.export is not None else "",
        target=result.node,
        exit_code=result.exit_code,
        error="",
        remedy="",
        size=sum(disk.size for disk in result.disks) or member.size,
        bytes_read=sum(disk.bytes_read for disk in result.disks),
        stored_bytes=result.export.stored_bytes if result.export is not None else 0,
        incomplete=result.incomplete,
    )


def _failed(member: PlannedMember, error: BaseException, seconds: float, *, cancelled: bool) -> PlannedMember:
    interrupted = isinstance(error, InterruptedRunError)
    if cancelled and (interrupted or isinstance(error, KeyboardInterrupt)):
        return replace(member, state="pending", seconds=seconds, attempts=member.attempts - 1, error="", remedy="")
    own = isinstance(error, DiskhaulError)
    text = "; ".join([str(error), *getattr(error, "__notes__", ())]) if own else f"{type(error).__name__}: {error}"
    exit_code = error.exit_code if isinstance(error, DiskhaulError) else 1
    return replace(
        member,
        state="failed",
        seconds=seconds,
        # The fleet was not interrupted: somebody stopped the export, or its node.
        exit_code=OperationFailedError.exit_code if interrupted else exit_code,
        error="; ".join(text.split("\n")),
        remedy=remedy(error, member.instance),
    )


def _finished(member: PlannedMember, job: Job, state: str, wait_s: float) -> MemberFinished:
    return MemberFinished(
        instance=member.instance,
        source=member.source,
        target=member.target,
        attempt=job.attempts,
        state=state,
        exit_code=member.exit_code if state != "pending" else InterruptedRunError.exit_code,
        seconds=member.seconds,
        error=member.error,
        export_id=member.export_id if state == "done" else "",
        retry_in_s=wait_s,
    )
