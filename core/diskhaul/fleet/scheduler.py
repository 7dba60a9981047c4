"""Which export is next. An export costs O(log instances + log nodes), whatever waits.

There is a queue per source node, in the order that was asked for, and a heap of those queues that may start one more, ordered
by their first. So nothing that has to wait is looked at again and again: a queue whose node is saturated is out of the heap until
one of its exports ends, and where no target is open, no more than two queues are looked at.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from .targets import Targets

Order = Literal["largest", "smallest", "name"]
LOOK_AHEAD = 64
"""Of the instances of one node whose size nobody has configured, so many are measured ahead, to find the next among."""


@dataclass(slots=True, eq=False)
class Job:
    """An instance that is to be exported.

    Attributes:
        size: bytes of its disks together, or None while it is not known.
        attempts: how often it was begun.
        recover: nobody knows what became of an earlier attempt: its client was killed, or its node was lost.
        measured: it waits among those that were measured ahead.
    """

    instance: str
    source: str
    size: int | None = None
    attempts: int = 0
    recover: bool = False
    measured: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """A job that is to run now. `size` is what was reserved for it on the target."""

    job: Job
    target: str
    size: int


@dataclass(slots=True, eq=False)
class _Source:
    """The queue of one node: what is in order, and what has to be measured before it is."""

    name: str
    heap: list[tuple[Any, str, Job]] = field(default_factory=list)
    unmeasured: deque[Job] = field(default_factory=deque)
    ahead: int = 0
    running: int = 0
    version: int = 0


class Scheduler:
    """Jobs, and the limits within which they start. Not thread-safe: one thread schedules.

    Args:
        order: "largest" and "smallest" go by the size of the disks, "name" by the name.
        per_source, parallel: how many may run of one node's instances, and together; at least 1.
        measure: the size of an instance, bytes, where none is known; asked once for each, when it is needed.
    """

    def __init__(
        self, *, order: Order, per_source: int, parallel: int, targets: Targets, measure: Callable[[str], int] = lambda name: 0
    ) -> None:
        self._order = order
        self._per_source = per_source
        self._parallel = parallel
        self._targets = targets
        self._measure = measure
        self._sources: dict[str, _Source] = {}
        self._ready: list[tuple[Any, str, int, _Source]] = []
        self.pending = 0
        self.running = 0

    def add(self, job: Job) -> None:
        """Let `job` wait for its turn."""
        source = self._sources.setdefault(job.source, _Source(job.source))
        self.pending += 1
        if job.size is None and self._order != "name":
            source.unmeasured.append(job)
        else:
            self._enqueue(source, job)
        changed = source.heap[0][-1] is job if job.size is not None or self._order == "name" else source.ahead < LOOK_AHEAD
        if changed and source.running < self._per_source:
            self._list(source)

    def next(self) -> Start | None:
        """Return what is to start now, and count it as running; None when the limits leave nothing."""
        if self.running >= self._parallel:
            return None
        waiting: list[_Source] = []
        start: Start | None = None
        while self._ready and start is None:
            *_, version, source = heapq.heappop(self._ready)
            if version != source.version:
                continue
            start = self._start(source)
            if start is None:
                waiting.append(source)
                if len(waiting) > 1:  # one may be the only open target itself; two find none
                    break
        for source in waiting:
            self._list(source)
        return start

    def ended(self, start: Start, *, stored: int = 0) -> None:
        """What `next` gave has ended; its export takes up `stored` bytes."""
        source = self._sources[start.job.source]
        self._targets.give_back(start.target, start.size, stored=stored)
        source.running -= 1
        self.running -= 1
        self._list(source)

    def _start(self, source: _Source) -> Start | None:
        job = source.heap[0][-1]
        if job.size is None and self._targets.wants_sizes:
            job.size = self._measure(job.instance)
        size = job.size or 0
        target = self._targets.take(source.name, size)
        if target is None:
            return None
        heapq.heappop(source.heap)
        if job.measured:
            source.ahead -= 1
            job.measured = False  # it may come back
        source.running += 1
        self.running += 1
        self.pending -= 1
        if source.running < self._per_source:
            self._list(source)
        return Start(job, target, size)

    def _enqueue(self, source: _Source, job: Job) -> None:
        size = job.size or 0
        key: Any = job.instance if self._order == "name" else -size if self._order == "largest" else size
        heapq.heappush(source.heap, (key, job.instance, job))

    def _list(self, source: _Source) -> None:
        """Put a queue that may start one more into the heap, in the place of what is there of it."""
        while source.unmeasured and source.ahead < LOOK_AHEAD:
            job = source.unmeasured.popleft()
            job.size = self._measure(job.instance)
            job.measured = True
            source.ahead += 1
            self._enqueue(source, job)
        source.version += 1
        if source.heap:
            heapq.heappush(self._ready, (source.heap[0][0], source.name, source.version, source))
