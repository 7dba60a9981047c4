"""How fast a run may move bytes (``bwlimit``)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Throttle:
    """Spaces out bytes so that no more than `bytes_per_s` pass on average, without saving up for bursts. Thread-safe.

    Args:
        bytes_per_s: the limit, above 0.
        clock: seconds that only grow.
    """

    def __init__(self, bytes_per_s: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._bytes_per_s = bytes_per_s
        self._clock = clock
        self._free_at = clock()  # when all that was let through before has passed
        self._lock = threading.Lock()

    def delay_s(self, length: int) -> float:
        """Book `length` bytes; return for how many seconds the caller has to wait before it moves them."""
        with self._lock:
            now = self._clock()
            begin = max(self._free_at, now)
            self._free_at = begin + length / self._bytes_per_s
            return begin - now
