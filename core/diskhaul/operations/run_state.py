"""What a run has begun, what it is at, and what it leaves to be done by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..errors import DiskhaulError


@dataclass(slots=True, eq=False)
class UndoStep:
    """One thing that would have to be undone; `doing` is how messages call the undoing. Lower `order` comes first."""

    doing: str
    undo: Callable[[], object]
    order: int


@dataclass(slots=True)
class RunState:
    """Shared by the parts of one run.

    Attributes:
        part: what is being done, as a failure will be named; "" between parts.
        incomplete: what is left to be done by hand although the run succeeds, one line each.
    """

    part: str = ""
    incomplete: list[str] = field(default_factory=list)
    _steps: list[UndoStep] = field(default_factory=list)

    @contextmanager
    def part_named(self, name: str) -> Iterator[None]:
        """Name what is done inside; the name stays when it fails."""
        self.part = name
        yield
        self.part = ""

    def undo_later(self, doing: str, undo: Callable[[], object], *, order: int = 2) -> UndoStep:
        """Remember how to undo what is about to be begun; `done` forgets it."""
        step = UndoStep(doing, undo, order)
        self._steps.append(step)
        return step

    def done(self, step: UndoStep | None) -> None:
        """It needs no undoing any more. Saying so twice is fine."""
        if step in self._steps:
            self._steps.remove(step)

    def undo_all(self, failure: DiskhaulError) -> None:
        """Undo everything, by order and then the latest first; what fails is added to `failure`, and the rest still done."""
        steps, self._steps = self._steps, []
        for step in sorted(reversed(steps), key=lambda step: step.order):  # noqa: C414  # sorting keeps the reversed order
            try:
                step.undo()
            except BaseException as problem:
                failure.add(problem, step.doing)
