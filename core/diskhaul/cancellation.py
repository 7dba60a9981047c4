"""Stopping an operation from outside, cleanly."""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from .errors import InterruptedRunError

T = TypeVar("T")
_POLL_S = 0.5
_WAIT_POLL_S = 0.05


class CancellationToken:
    """Asks an operation to stop. Safe to use from any thread and from signal handlers; cancelling twice changes nothing.

    The operation notices at its next chunk or wait, undoes what it began, and raises `InterruptedRunError`.

    Attributes:
        cancelled: whether `cancel` was called.
        reason: why, in the words of the first call.
    """

    def __init__(self) -> None:
        # Plain attributes, no threading.Event: a signal handler may come in the middle of another one that is in `cancel`,
        # and a lock cannot be taken twice. Those who wait poll.
        self.cancelled = False
        self.reason = ""

    def cancel(self, reason: str = "cancelled") -> None:
        self.reason = self.reason or reason
        self.cancelled = True

    def wait(self, seconds: float) -> bool:
        """Wait until cancelled, at most `seconds`; return whether it was."""
        until = time.monotonic() + seconds
        while not self.cancelled and time.monotonic() < until:
            time.sleep(min(_WAIT_POLL_S, max(0.0, until - time.monotonic())))
        return self.cancelled

    def raise_if_cancelled(self) -> None:
        if self.cancelled:
            raise InterruptedRunError(f"interrupted: {self.reason}")


def run_shielded(function: Callable[[], T], token: CancellationToken) -> T:
    """Run `function` so that Ctrl-C can cancel it but never tear it.

    Python runs signal handlers between any two bytecodes of the main thread, and what they raise comes out there, also in the
    middle of a clean-up. So the work runs on a thread of its own; the main thread only waits. While it does, an exception that
    the program's handler of a stopping signal raises (KeyboardInterrupt, if it has no other) becomes ``token.cancel``, and is
    raised once the work has ended. Called from another thread, `function` simply runs.
    """
    if threading.current_thread() is not threading.main_thread():
        return function()
    # A SimpleQueue, since waiting for it is one C call that an exception cannot leave half done. Thread.join is not: when a
    # KeyboardInterrupt comes out of it, Python 3.11 and 3.12 take the thread for dead.
    answers: queue.SimpleQueue[T] = queue.SimpleQueue()
    failures: list[BaseException] = []
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(function())
        except BaseException as error:  # handed to the caller below, whatever it is
            failures.append(error)
        finally:
            ended.put(None)

    shield = _Shield(token)
    with shield:
        threading.Thread(target=work, name="diskhaul-operation", daemon=True).start()
        while True:
            try:
                ended.get(timeout=_POLL_S)
                break
            except queue.Empty:
                continue
            except BaseException as error:  # from the program's handler of some other signal
                shield.keep(error)
    if shield.raised:
        raise shield.raised[0] from (failures[0] if failures else None)
    if failures:
        raise failures[0]
    return answers.get_nowait()


class _Shield:
    """Catches what handlers of stopping signals raise while the block runs. For the main thread.

    Attributes:
        raised: what they raised, oldest first.
    """

    def __init__(self, token: CancellationToken) -> None:
        self.raised: list[BaseException] = []
        self._token = token
        self._before: dict[int, Callable[[int, FrameType | None], object]] = {}
        self._up = False

    def __enter__(self) -> None:
        self._up = True
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(number)
            if callable(handler):
                self._before[number] = handler
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # While it is up this never raises, so a second signal, in the middle of the first one's handler, cannot tear either.
        try:
            self._before[number](number, frame)
        except BaseException as error:
            if not self._up:
                raise
            self.keep(error)

    def keep(self, error: BaseException) -> None:
        self.raised.append(error)
        self._token.cancel("Ctrl-C" if isinstance(error, KeyboardInterrupt) else type(error).__name__)

    def __exit__(self, *_: object) -> None:
        self._up = False  # first: from here on an exception may end this at any point, and handlers be left as they are
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._handle:  # else the program has chosen another one meanwhile
                signal.signal(number, handler)
