"""Ctrl-C, SIGTERM and SIGHUP stop an operation cleanly, and only that way, until the process is gone.

Three phases: at first Ctrl-C raises `KeyboardInterrupt`, once (`interrupt_once`); while an operation runs, all three cancel it
(`stopping_cleanly`); from the end of the operation, or of the command, they are ignored (`ignore_from_now_on`), because Python
puts the default actions back while it shuts down, and a signal would then end the process with another exit code than its own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..cancellation import CancellationToken

STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def interrupt_once() -> None:
    """Let the first Ctrl-C raise `KeyboardInterrupt`, as Python does by itself, and further signals not disturb the end."""
    if _may_handle_signals() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    ignore_from_now_on()
    raise KeyboardInterrupt


def ignore_from_now_on() -> None:
    """Ignore stopping signals for the rest of the process's life: its exit code is known. Outside the main thread nothing."""
    if not _may_handle_signals():
        return
    _say_nothing_of_late_signals()
    for number in STOPPING_SIGNALS:
        while signal.getsignal(number) not in (signal.SIG_IGN, None):
            try:
                signal.signal(number, signal.SIG_IGN)
            except KeyboardInterrupt:
                pass  # a Ctrl-C that came just before; what it would interrupt is over


def _say_nothing_of_late_signals() -> None:
    """Python complains, now or at any later moment, of a signal that came while SIG_IGN was put in its handler's place."""
    report = sys.unraisablehook
    if getattr(report, "__name__", "") == "but_for_late_signals":
        return

    def but_for_late_signals(broken: sys.UnraisableHookArgs) -> None:
        if "due to race condition" not in str(broken.exc_value):
            report(broken)

    sys.unraisablehook = but_for_late_signals


def _may_handle_signals() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def stopping_cleanly(token: CancellationToken, *, guest: bool) -> Iterator[None]:
    """While the block runs, turn stopping signals into ``token.cancel()``, never into an exception; afterwards ignore them.

    The first says that the run is being stopped, the second that it already is; further ones are ignored. There is no harder
    way, because that would leave a guest down. `guest` says that a guest is concerned. A signal that was ignored before
    (``nohup``, a shell's background job) stays ignored. Outside the main thread, where Python allows no handlers, this does
    nothing.
    """
    if not _may_handle_signals():
        yield
        return
    first = "stopping cleanly: what was running will be running" if guest else "stopping cleanly"
    again = "already stopping; the guest is being restored" if guest else "already stopping; what was begun is being undone"
    told: list[str] = []

    def stop(number: int, frame: FrameType | None) -> None:
        # Handlers interrupt each other: a flood of signals would nest them until the stack is full. So once all has been said
        # they end at once, and soon are called no more.
        if len(told) == 2:
            return
        text = again if told else first
        told.append(text)
        if text == again:
            ignore_from_now_on()
        token.cancel("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)
        try:
            # Not through sys.stderr: the signal may have come in the middle of a write to it, which cannot be entered twice.
            os.write(2, f"\ndiskhaul: {text}\n".encode())
        except OSError:
            pass  # the terminal may be what went away; stopping matters, saying so does not

    for number in STOPPING_SIGNALS:
        if signal.getsignal(number) not in (signal.SIG_IGN, None):
            signal.signal(number, stop)
    try:
        yield
    finally:
        ignore_from_now_on()
