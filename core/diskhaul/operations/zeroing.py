"""Has a zero-fill backend zero a disk, so that nothing is written once the time is over, whatever the backend does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from ..api import DiskInPlace, Storage, ZeroFill
from ..cancellation import CancellationToken
from ..errors import InterruptedRunError, OperationFailedError
from ..model import Disk
from .deadlines import within

T = TypeVar("T")
NOTICE_S = 10.0
"""How much longer than its time a backend may take to notice that it is over."""


def zero_in_place(
    backend: ZeroFill, storage: Storage, disk: Disk, *, limit_s: float, stall_s: float, token: CancellationToken
) -> object:
    """Let `backend` zero the free space of `disk`; return what it returns. Nobody may be using the disk.

    Args:
        limit_s: how long it may take.
        stall_s: how long a single call to the storage may take.

    Raises:
        OperationFailedError: the time was over; or whatever backend and storage raise. Nothing writes to the disk any more then,
            except for a call to the storage that hangs.
        InterruptedRunError: the run was cancelled.
    """
    opened = within(stall_s, f"opening {disk.label}", lambda: storage.open_in_place(disk))
    guarded = GuardedDisk(opened, disk.label, time.monotonic() + limit_s, token)
    try:
        return within(
            limit_s + NOTICE_S,
            f"zeroing {disk.label}",
            lambda: backend.zero(disk, guarded, deadline_s=limit_s, cancelled=guarded.is_over),
        )
    finally:
        if guarded.end(stall_s):
            opened.close()


class GuardedDisk:
    """A disk that is zeroed until `end` is called, the time is over, or the run was cancelled; `DiskInPlace`.

    A backend whose call was left behind may go on: what it asks for then is refused. So its stale idea of what is free cannot
    hurt a guest that runs again. Thread-safe.
    """

    def __init__(self, disk: DiskInPlace, label: str, until: float, token: CancellationToken) -> None:
        self._disk, self._label, self._until, self._token = disk, label, until, token
        self._changed = threading.Condition()
        self._active = 0
        self._ended = False
        fileno = getattr(disk, "fileno", None)
        if callable(fileno):
            self.fileno: Callable[[], int] = fileno
        extents = getattr(disk, "extents", None)
        if callable(extents):
            self.extents = extents

    @property
    def size(self) -> int:
        return self._disk.size

    def read_into(self, offset: int, buffer: memoryview, /) -> object:
        return self._during(lambda: self._disk.read_into(offset, buffer))

    def zero(self, offset: int, length: int, /) -> object:
        return self._during(lambda: self._disk.zero(offset, length))

    def users(self) -> Iterable[str]:
        return self._during(lambda: list(self._disk.users()))

    def flush(self) -> object:
        return self._during(self._disk.flush)

    def close(self) -> None:
        """Nothing: whoever opened the disk closes it."""

    def is_over(self) -> bool:
        """Whether to stop."""
        return self._ended or self._token.cancelled or time.monotonic() >= self._until

    def end(self, patience_s: float) -> bool:
        """Refuse all calls from now on, and wait for those that are under way; False when one is still not done."""
        with self._changed:
            self._ended = True
            return self._changed.wait_for(lambda: self._active == 0, patience_s)

    def _during(self, call: Callable[[], T]) -> T:
        with self._changed:
            self._check()
            self._active += 1
        try:
            return call()
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify_all()

    def _check(self) -> None:
        if self._ended:
            raise OperationFailedError(f"{self._label}: is no longer being zeroed")
        if self._token.cancelled:
            raise InterruptedRunError(f"interrupted: {self._token.reason}")
        if time.monotonic() >= self._until:
            raise OperationFailedError(f"{self._label}: no time left to zero its free space; raise the zeroing timeouts")
