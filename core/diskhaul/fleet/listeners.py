"""One listener for events that several operations tell at once."""

from __future__ import annotations

import threading

from ..events import Event
from ..feedback import EventListener


class OneAtATime:
    """Hands events to `listener`, one at a time, whatever threads they come from; once it raises, no more."""

    def __init__(self, listener: EventListener | None) -> None:
        self._listener = listener
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._lock:
            listener = self._listener
            if listener is None:
                return
            try:
                listener(event)
            except BaseException:
                self._listener = None
                raise
