"""Progress on standard error: bars on a terminal, plain lines elsewhere, warnings only when asked to be quiet.

A reporter is an ``on_event`` callback. It must never disturb the operation: once standard error cannot be written (the terminal
was closed, the disk is full), it falls silent.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from ..events import (
    DiskProgress,
    Event,
    ExportRemoved,
    FreeSpaceFound,
    GuestChanged,
    LockWaiting,
    StageFinished,
    StageStarted,
    TrialFinished,
    Warned,
)
from .text import duration, escape, iec

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 5.0
_ACTIVITIES = {"send": "sending", "verify": "verifying", "digest": "digesting", "restore": "restoring"}


def reporter(*, quiet: bool, bars: bool, stream: TextIO | None = None) -> Reporter:
    """Return the reporter that fits: `quiet` tells warnings only, `bars` asks for progress bars where there is a terminal."""
    stream = sys.stderr if stream is None else stream
    if quiet:
        return Reporter(stream)
    if not bars:
        return StageReporter(stream)
    return BarReporter(stream) if is_terminal(stream) else LineReporter(stream)


def is_terminal(stream: TextIO) -> bool:
    """Whether what is written to `stream` can be overwritten."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


class Reporter:
    """Tells warnings, and is the base of those that tell more.

    Attributes:
        warned: the warnings told, so that the final result need not repeat them.
    """

    def __init__(self, stream: TextIO) -> None:
        self.warned: set[str] = set()
        self._stream = stream
        self._broken = False

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        if self._broken:
            return
        try:
            self.tell(event)
        except (OSError, ValueError):  # ValueError: the stream was closed
            self._broken = True

    def tell(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Warned):
            self.warned.add(event.message)
            self.line(f"warning: {event.message}")

    def line(self, text: str) -> None:
        """Show one line; `text` is escaped."""
        print(f"diskhaul: {escape(text)}", file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""


class StageReporter(Reporter):
    """Tells stages, waits and changes of the guest, one line each."""

    def tell(self, event: Event) -> None:
        match event:
            case StageStarted(stage="locks" | "prerequisites"):
                pass  # over in a moment; a wait for a lock is told by itself, and so is a failure
            case StageStarted(stage=stage, detail=detail):
                self.line(f"{stage}: {detail}" if detail else stage)
            case StageFinished(stage="locks" | "prerequisites"):
                pass  # what was found is told as the answer
            case StageFinished(stage=stage, ok=False, seconds=seconds):
                self.line(f"{stage}: failed after {duration(seconds)}")
            case LockWaiting(lock=lock, holder=holder):
                self.line(f"waiting for lock {lock}, held by {holder}")
            case FreeSpaceFound(disk=disk, backend=backend, skipped=skipped):
                self.line(f"disk {disk}: {iec(skipped)} are free, and left out ({backend})")
            case GuestChanged(instance=instance, change=change):
                self.line(f"{instance}: {change}")
            case ExportRemoved(node=node, instance=instance, export_id=export_id, reason=reason):
                self.line(f"removed {instance}@{export_id} on {node}: {reason}")
            case TrialFinished():
                self.line(_trial(event))
            case _:
                super().tell(event)


def _trial(event: TrialFinished) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in event.settings.items())
    if event.problem:
        return f"trial {event.number}: {event.problem} ({settings})"
    figures = f"{iec(event.rate)}/s, {event.cpu_seconds:.2f} s of CPU, {iec(event.stored_bytes)} stored"
    return f"trial {event.number}: {figures}{', the best so far' if event.best else ''} ({settings})"


@dataclass(slots=True)
class _Pace:
    """When a disk's work began, and when it was last told of."""

    began: float
    began_at: int
    told: float


class LineReporter(StageReporter):
    """Tells stages, and at most every few seconds how far each disk is."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._paces: dict[tuple[str, int], _Pace] = {}

    def tell(self, event: Event) -> None:
        if not isinstance(event, DiskProgress):
            super().tell(event)
            return
        now = self._clock()
        pace = self._paces.setdefault((event.activity, event.disk), _Pace(began=now, began_at=event.done, told=now))
        what = f"{_ACTIVITIES.get(event.activity, event.activity)} disk {event.disk}"
        if event.finished:
            del self._paces[event.activity, event.disk]
            self.line(f"{what}: all of {iec(event.total)} (read {iec(event.read)}, wrote {iec(event.written)})")
        elif now - pace.told >= SECONDS_BETWEEN_LINES:
            pace.told = now
            rate = (event.done - pace.began_at) / (now - pace.began)
            left = f", about {duration((event.total - event.done) / rate)} left" if rate > 0 else ""
            share = f"{event.done * 100 // event.total}% of {iec(event.total)}" if event.total else "empty"
            self.line(f"{what}: {share}, {iec(rate)}/s{left}")


class BarReporter(StageReporter):
    """Shows a bar per disk with rate and time left, and lines above the bars for everything else."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._bars: Progress | None = None
        self._tasks: dict[tuple[str, int], TaskID] = {}
        self._finished: set[TaskID] = set()

    def tell(self, event: Event) -> None:
        if not isinstance(event, DiskProgress):
            super().tell(event)
            return
        bars = self._bars = self._bars or self._start()
        key = (event.activity, event.disk)
        task = self._tasks.get(key)
        if task in self._finished:  # the same disk number of the next export
            bars.remove_task(task)
            task = None
        if task is None:
            label = f"{_ACTIVITIES.get(event.activity, event.activity)} disk {event.disk}"
            task = self._tasks[key] = bars.add_task(escape(label), total=event.total or 1)
        if event.finished:
            self._finished.add(task)
        # A disk of 0 bytes has no progress to show: its bar would pulse for ever.
        bars.update(task, completed=event.done if event.total else 1)

    def line(self, text: str) -> None:
        if self._bars is None:
            super().line(text)
        else:
            self._bars.console.print(f"diskhaul: {escape(text)}", markup=False, highlight=False, emoji=False, soft_wrap=True)

    def close(self) -> None:
        if self._bars is not None:
            try:
                self._bars.stop()
            except (OSError, ValueError):
                pass  # the terminal is gone

    def _start(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
        from rich.text import Text

        class Rate(ProgressColumn):
            """Bytes a second in IEC units; rich's own column counts in thousands."""

            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                return Text("" if speed is None else f"{iec(speed)}/s")

        bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            DownloadColumn(binary_units=True),
            Rate(),
            TimeRemainingColumn(),
            console=Console(file=self._stream),
            # Standard output is the result's alone, and what others print to standard error is left as it is.
            redirect_stdout=False,
            redirect_stderr=False,
            refresh_per_second=5,
        )
        bars.start()
        return bars
