"""How an operation speaks while it runs: events, warnings, and the time each stage takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from .events import Event, StageFinished, StageStarted, Warned
from .host import PluginHost

EventListener = Callable[[Event], object]


class Feedback:
    """Hands events to the caller's `on_event` and to `diskhaul_event` hooks, one at a time.

    A listener that raises is told no more; the operation goes on.

    Attributes:
        warnings: every warning so far.
        timings: seconds by stage.
    """

    def __init__(self, run_id: str, host: PluginHost, on_event: EventListener | None) -> None:
        self.run_id = run_id
        self.warnings: list[str] = []
        self.timings: dict[str, float] = {}
        self._host = host
        self._listener = on_event
        self._lock = threading.RLock()

    def emit(self, event: Event) -> None:
        event = replace(event, run_id=self.run_id)
        with self._lock:
            if self._listener is not None:
                try:
                    self._listener(event)
                except BaseException as error:  # the caller's display must not fail the caller's export
                    self._listener = None
                    self.warn(f"on_event raised {type(error).__name__}: {error}; it is told no more")
            self._host.emit(event)

    def warn(self, message: str) -> None:
        with self._lock:
            self.warnings.append(message)
        self.emit(Warned(message=message))

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[None]:
        """Announce a stage, and time it (times of a stage entered twice add up)."""
        self.emit(StageStarted(stage=name, detail=detail))
        begun = time.monotonic()
        ok = False
        try:
            yield
            ok = True
        finally:
            seconds = time.monotonic() - begun
            with self._lock:
                self.timings[name] = self.timings.get(name, 0.0) + seconds
            self.emit(StageFinished(stage=name, ok=ok, seconds=seconds))
