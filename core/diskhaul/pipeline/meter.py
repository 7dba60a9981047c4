"""Counts a disk's bytes and tells about them, but not too often."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..events import DiskProgress

_INTERVAL_S = 0.1


class Meter:
    """Adds up what the threads have done for one disk; `emit` gets a `DiskProgress` at most ten times a second."""

    def __init__(self, disk: int, activity: str, total: int, emit: Callable[[DiskProgress], object]) -> None:
        self.done = self.read = self.written = 0
        self.begun = time.monotonic()
        self._disk, self._activity, self._total, self._emit = disk, activity, total, emit
        self._lock = threading.Lock()
        self._told = 0.0
        self._silent = False

    def add(self, *, done: int = 0, read: int = 0, written: int = 0) -> None:
        now = time.monotonic()
        with self._lock:
            self.done += done
            self.read += read
            self.written += written
            if now - self._told < _INTERVAL_S:
                return
            self._told = now
        self._tell(finished=False)

    def finish(self) -> float:
        """Tell the final figures; return the seconds since the meter was made."""
        self._tell(finished=True)
        return time.monotonic() - self.begun

    def silence(self) -> None:
        """Tell nothing any more: the disk has failed, and threads that were left behind may still come by."""
        self._silent = True

    def _tell(self, *, finished: bool) -> None:
        if self._silent:
            return
        self._emit(
            DiskProgress(
                disk=self._disk,
                activity=self._activity,
                total=self._total,
                done=self.done,
                read=self.read,
                written=self.written,
                finished=finished,
            )
        )
