"""To which node the next export goes: a fixed one, each in turn, or the one with the most free space.

Nodes that can take one more export are kept in a heap, so a choice costs O(log nodes), whatever the number of instances. What the
heap holds of a node that has changed meanwhile is passed over when it comes up (`version` tells).
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

TROUBLE_S = 60.0
"""For so long a node that did not answer is left alone where there are others."""
TargetChoice = Literal["fixed", "round-robin", "most-free"]


@dataclass(slots=True, eq=False)
class _Target:
    """A node, what goes to it now, and what is known of its room.

    Attributes:
        turn: when it was last chosen; the lowest is next in turn.
        free: bytes, as the node last said; None while it has not said.
        reserved: bytes that the running exports may come to take.
        spent: bytes that exports took which have ended since `free` was asked for.
    """

    name: str
    turn: int
    running: int = 0
    version: int = 0
    free: int | None = None
    reserved: int = 0
    spent: int = 0

    @property
    def room(self) -> float:
        """What is left for one more export; below everything where nothing is known, so that others come first."""
        return -math.inf if self.free is None else self.free - self.reserved - self.spent


class Targets:
    """Nodes that exports go to. Not thread-safe: one thread schedules.

    Args:
        names: the nodes, at least one; they take turns in this order.
        limit: exports that may go to one node at a time, at least one.
        choice: "fixed" has one node in `names`.
        clock: seconds that only grow.
    """

    def __init__(
        self, names: Sequence[str], limit: int, choice: TargetChoice, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._troubled: dict[str, float] = {}  # nodes that did not answer, and until when they are left alone
        self._limit = limit
        self._choice = choice
        self._targets = {name: _Target(name, turn) for turn, name in enumerate(names)}
        self._turns = len(self._targets)
        self._open: list[tuple[float, int, int, _Target]] = []
        for target in self._targets.values():
            self._list(target)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._targets)

    @property
    def wants_sizes(self) -> bool:
        """Whether `take` goes by what exports will take up."""
        return self._choice == "most-free"

    def take(self, source: str, size: int) -> str | None:
        """Choose the node of the next export, and count it there; None when no node can take it now.

        Args:
            source: the node that the disks lie on: it is chosen only where it is the only one there is.
            size: bytes that the export may come to take.
        """
        self._forget_old_trouble()
        chosen: _Target | None = None
        aside: list[_Target] = []
        while self._open:
            *_, version, target = heapq.heappop(self._open)
            if version != target.version:
                continue
            if target.name != source and target.name not in self._troubled:
                chosen = target
                break
            aside.append(target)
        if chosen is None and self._only_troubled_besides(source):
            chosen = next((target for target in aside if target.name != source or len(self._targets) == 1), None)
        for target in aside:
            self._list(target)
        if chosen is None:
            return None
        chosen.running += 1
        chosen.reserved += size
        chosen.turn = self._turns
        self._turns += 1
        self._list(chosen)
        return chosen.name

    def give_back(self, name: str, size: int, *, stored: int = 0) -> None:
        """An export has ended that `take` had counted with `size`; it takes up `stored` bytes."""
        target = self._targets[name]
        target.running -= 1
        target.reserved -= size
        target.spent += stored
        self._list(target)

    def trouble(self, name: str) -> None:
        """Node `name` did not answer: for `TROUBLE_S` it is chosen only where every other one is in trouble as well."""
        self._troubled[name] = self._clock() + TROUBLE_S

    def _forget_old_trouble(self) -> None:
        now = self._clock()
        for name in [name for name, until in self._troubled.items() if until <= now]:
            del self._troubled[name]

    def _only_troubled_besides(self, source: str) -> bool:
        sound = len(self._targets) - len(self._troubled)
        return sound == (source in self._targets and source not in self._troubled)

    def spent(self, name: str) -> int:
        """What to give `tell_free` with the answer to a question that is asked now."""
        return self._targets[name].spent

    def tell_free(self, name: str, free: int | None, *, asked_at: int) -> None:
        """Node `name` said that it has `free` bytes (None: it could not say) when `spent` was `asked_at`."""
        target = self._targets[name]
        target.free = free
        target.spent -= asked_at
        self._list(target)

    def _list(self, target: _Target) -> None:
        """Put what holds now of a node into the heap, in the place of what is there."""
        target.version += 1
        if target.running < self._limit:
            first = -target.room if self.wants_sizes else 0.0
            heapq.heappush(self._open, (first, target.turn, target.version, target))
