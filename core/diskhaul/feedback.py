"""How an operation speaks while it runs: events, warnings, and the time each stage takes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from .events import DiskProgress, Event, StageFinished, StageStarted, Warned
from .host import PluginHost

EventListener = Callable[[Event], object]

PATIENCE_S = 5.0
"""How long an operation waits for listeners: a terminal that nobody reads must not keep a guest down."""
_MOST_WAITING = 10_000  # events kept for listeners that are behind


class Feedback:
    """Hands events to the caller's `on_event` and to `diskhaul_event` hooks, one at a time and in order.

    Listeners are called on a thread of their own. The operation waits for them, so that what they see is what is going on;
    but when one takes longer than `PATIENCE_S`, it goes on, and progress is left out until they have caught up. A listener
    that raises is told no more.

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
        self._lock = threading.Lock()
        self._messenger: _Messenger | None = None

    def emit(self, event: Event) -> None:
        """Tell listeners. Called from any thread. An event that has no run yet becomes one of this run."""
        if self._listener is None and not self._host.observed:
            return
        with self._lock:
            if self._messenger is None:
                self._messenger = _Messenger(self._deliver)
            messenger = self._messenger
        messenger.send(event if event.run_id else replace(event, run_id=self.run_id))

    def _deliver(self, event: Event) -> None:
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

    def close(self) -> None:
        """Let listeners catch up, within their time, and end their thread. Events that come later start a new one."""
        with self._lock:
            messenger, self._messenger = self._messenger, None
        if messenger is not None:
            messenger.close()


class _Messenger:
    """Calls `deliver` for each event, in order, on its own thread; `send` waits for it, but not for long."""

    def __init__(self, deliver: EventListener) -> None:
        self._deliver = deliver
        self._waiting: deque[Event] = deque()
        self._sent = self._delivered = 0
        self._behind = self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="diskhaul-events", daemon=True)
        self._thread.start()

    def send(self, event: Event) -> None:
        with self._changed:
            if self._behind and (isinstance(event, DiskProgress) or len(self._waiting) >= _MOST_WAITING):
                return
            self._waiting.append(event)
            self._sent += 1
            self._changed.notify_all()
            # A listener that emits itself (a warning of its own) must not wait for itself.
            if threading.current_thread() is not self._thread:
                self._wait_for(self._sent)

    def _wait_for(self, number: int) -> None:
        until = time.monotonic() + PATIENCE_S
        while not self._behind and self._delivered < number:
            if not self._changed.wait(until - time.monotonic()) and time.monotonic() >= until:
                self._behind = True

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._behind = False
                    if self._closing:
                        return
                    self._changed.wait()
                event = self._waiting.popleft()
            self._deliver(event)
            with self._changed:
                self._delivered += 1
                self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(PATIENCE_S)
