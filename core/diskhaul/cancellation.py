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

    Python delivers KeyboardInterrupt between any two bytecodes of the main thread, also in the middle of a clean-up. So the
    work runs on a thread of its own; the main thread only waits, turns interrupts into `token.cancel`, and raises
    KeyboardInterrupt once the work has ended. Called from another thread, `function` simply runs.

    While it waits, Ctrl-C has a handler that does not raise, unless the program has one of its own.
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

    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        token.cancel("Ctrl-C")

    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if default:
        signal.signal(signal.SIGINT, interrupt)
    try:
        threading.Thread(target=work, name="diskhaul-operation", daemon=True).start()
        while True:
            try:
                ended.get(timeout=_POLL_S)
                break
            except queue.Empty:
                continue
            except KeyboardInterrupt:  # from the program's own handler
                interrupt(signal.SIGINT, None)
    finally:
        if default:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupted:
        raise KeyboardInterrupt from (failures[0] if failures else None)
    if failures:
        raise failures[0]
    return answers.get_nowait()
