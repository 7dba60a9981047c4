"""Progress of a fleet on standard error: one live table of what runs on a terminal, a line per start and end elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from ..events import DiskProgress, Event, FleetStarted, MemberEvent, MemberFinished, MemberStarted, StageStarted, Warned
from .progress import Reporter, is_terminal
from .text import count, duration, escape, iec

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

_MOST_ROWS = 30  # of a live table: more do not fit on a screen


def fleet_reporter(*, quiet: bool, bars: bool, stream: TextIO | None = None) -> Reporter:
    """Return the reporter that fits, as `progress.reporter` does for a single operation."""
    stream = sys.stderr if stream is None else stream
    if quiet:
        return FleetWarnings(stream)
    return FleetTable(stream) if bars and is_terminal(stream) else FleetLines(stream)


@dataclass(slots=True)
class _Running:
    """An export that runs, as far as it has told. `disks` is what of each has been sent, of how much."""

    source: str
    target: str
    attempt: int
    began: float
    stage: str = ""
    sending_since: float | None = None
    disks: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def sent(self) -> tuple[int, int]:
        return sum(done for done, _ in self.disks.values()), sum(total for _, total in self.disks.values())


class FleetWarnings(Reporter):
    """Tells warnings, each with its instance."""

    def tell(self, event: Event) -> None:
        if isinstance(event, MemberEvent) and isinstance(event.event, Warned):
            self.line(f"{event.instance}: warning: {event.event.message}")
        else:
            super().tell(event)


class FleetLines(FleetWarnings):
    """Tells every start and end."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.total = self.done = self.failed = 0

    def tell(self, event: Event) -> None:
        match event:
            case FleetStarted(plan=plan, total=total, done=done):
                self.total, self.done = total, done
                earlier = f", {done} of them exported already" if done else ""
                self.line(f"plan {plan}: {count(total, 'instance')}{earlier}")
            case MemberStarted():
                again = f", attempt {event.attempt}" if event.attempt > 1 else ""
                self.line(f"{event.instance}: {event.source} -> {event.target}{again}")
            case MemberFinished():
                self.done += event.state == "done"
                self.failed += event.state == "failed"
                self.line(f"{event.instance}: {self._ending(event)}")
            case _:
                super().tell(event)

    def _ending(self, event: MemberFinished) -> str:
        if event.state == "done":
            return f"exported in {duration(event.seconds)} ({self.done} of {self.total})"
        if event.state == "retry":
            return f"failed, and is tried again in {duration(event.retry_in_s)}: {event.error}"
        return f"failed: {event.error}" if event.state == "failed" else "stopped; the plan has it still to do"


class FleetTable(FleetLines):
    """Shows what runs in a table with totals below, and lines above it only for what does not go well."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._lock = threading.Lock()  # rich draws on a thread of its own
        self._running: dict[str, _Running] = {}
        self._sent_before = 0
        self._began = clock()
        self._live: Live | None = None

    def tell(self, event: Event) -> None:
        with self._lock:
            self._note(event)
        if self._live is None and isinstance(event, MemberStarted):
            self._live = self._start()
        if isinstance(event, MemberStarted) or (isinstance(event, MemberFinished) and event.state == "done"):
            return
        super().tell(event)

    def _note(self, event: Event) -> None:
        if isinstance(event, MemberStarted):
            self._running[event.instance] = _Running(event.source, event.target, event.attempt, self._clock())
        elif isinstance(event, MemberFinished):
            ended = self._running.pop(event.instance, None)
            self.done += event.state == "done"  # the others are counted with their line
            self._sent_before += ended.sent[0] if ended is not None else 0
        elif isinstance(event, MemberEvent) and (running := self._running.get(event.instance)) is not None:
            inner = event.event
            if isinstance(inner, StageStarted):
                running.stage = inner.stage
            elif isinstance(inner, DiskProgress) and inner.activity == "send":
                running.sending_since = running.sending_since or self._clock()
                running.disks[inner.disk] = (inner.done, inner.total)

    def line(self, text: str) -> None:
        if self._live is None:
            super().line(text)
        else:
            self._live.console.print(f"diskhaul: {escape(text)}", markup=False, highlight=False, emoji=False, soft_wrap=True)

    def close(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            try:
                live.stop()
            except (OSError, ValueError):
                pass  # the terminal is gone

    def table(self) -> Group:
        """What runs now, and the totals."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for heading in ("instance", "from", "to", "stage"):
            table.add_column(heading, no_wrap=True)
        for heading in ("done", "rate", "left"):
            table.add_column(heading, justify="right", no_wrap=True)
        with self._lock:
            now = self._clock()
            sent = self._sent_before
            for number, (instance, running) in enumerate(self._running.items()):
                done, _ = running.sent
                sent += done
                if number < _MOST_ROWS:
                    cells = (instance, running.source, running.target, running.stage, *_pace(running, now))
                    table.add_row(*(Text(escape(cell)) for cell in cells))
            left = self.total - self.done - self.failed - len(self._running)
            seconds = max(now - self._began, 0.001)
            totals = f"{len(self._running)} running, {left} waiting, {self.done} done, {self.failed} failed of {self.total}"
        return Group(table, Text(f"{totals}; {iec(sent)} sent, {iec(sent / seconds)}/s"))

    def _start(self) -> Live:
        from rich.console import Console
        from rich.live import Live

        live = Live(
            get_renderable=self.table,
            console=Console(file=self._stream),
            redirect_stdout=False,
            redirect_stderr=False,
            refresh_per_second=4,
            transient=True,
        )
        live.start()
        return live


def _pace(running: _Running, now: float) -> tuple[str, str, str]:
    """Share, rate and time left of what is being sent."""
    done, total = running.sent
    if not total or running.sending_since is None:
        return "", "", ""
    seconds = now - running.sending_since
    rate = done / seconds if seconds > 0 else 0.0
    return f"{done * 100 // total}%", f"{iec(rate)}/s" if rate else "", duration((total - done) / rate) if rate else ""
