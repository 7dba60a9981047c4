"""Stopping an operation from outside, cleanly."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from .errors import InterruptedRunError

T = TypeVar("T")


class CancellationToken:
    """Asks an operation to stop. Safe to use from any thread and from signal handlers; cancelling twice changes nothing.

    The operation notices at its next chunk or wait, undoes what it began, and raises `InterruptedRunError`.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._cancelling = False
        self.reason = ""

    def cancel(self, reason: str = "cancelled") -> None:
        # A signal handler may come in the middle of another one that is in here, and the event's lock cannot be taken twice.
        if self._cancelling:
            return
        self._cancelling = True
        self.reason = self.reason or reason
        self._event.set()

    @property
    def cancelled(self) -> bool:
        return self._event.is_set()

    def raise_if_cancelled(self) -> None:
        if self._event.is_set():
            raise InterruptedRunError(f"interrupted: {self.reason}")

    def wait(self, seconds: float) -> bool:
        """Wait until cancelled, at most `seconds`; return whether it was."""
        return self._event.wait(seconds)


def run_shielded(function: Callable[[], T], token: CancellationToken) -> T:
    """Run `function` so that Ctrl-C can cancel it but never tear it.

    Python delivers KeyboardInterrupt between any two bytecodes of the main thread, also in the middle of a clean-up. So the
    work runs on a thread of its own; the main thread only waits, turns interrupts into `token.cancel`, and raises
    KeyboardInterrupt once the work has ended. Called from another thread, `function` simply runs.

    While it waits, Ctrl-C has a handler that does not raise (unless the program has one of its own): a second
    KeyboardInterrupt would otherwise come while the first is dealt with, and leave this function with the work half done.
    """
    if threading.current_thread() is not threading.main_thread():
        return function()
    outcome: list[T] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(function())
        except BaseException as error:  # handed to the caller below, whatever it is
            failure.append(error)

    thread = threading.Thread(target=work, name="diskhaul-operation", daemon=True)
    interrupted = False
    started = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        token.cancel("Ctrl-C")

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        while True:
            try:
                if not started:
                    started = True
                    thread.start()
                # A bare join() cannot be interrupted by a signal on all platforms; a short one in a loop can.
                thread.join(0.5)
                if not thread.is_alive():
                    break
            except KeyboardInterrupt:  # from the program's own handler
                interrupted = True
                token.cancel("Ctrl-C")
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupted:
        raise KeyboardInterrupt from (failure[0] if failure else None)
    if failure:
        raise failure[0]
    return outcome[0]
