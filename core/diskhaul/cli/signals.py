"""Ctrl-C, SIGTERM and SIGHUP stop an operation cleanly, and only that way."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..cancellation import CancellationToken

STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stopping_cleanly(token: CancellationToken, *, guest: bool) -> Iterator[None]:
    """While the block runs, turn stopping signals into ``token.cancel()``; never into an exception.

    The first says that the run is being stopped, each further one that it already is: there is no harder way, because that
    would leave a guest down. `guest` says that a guest is concerned. A signal that was ignored before (``nohup``, a
    shell's background job) stays ignored. Outside the main thread, where Python allows no handlers, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first = "stopping cleanly: what was running will be running" if guest else "stopping cleanly"
    again = "already stopping; the guest is being restored" if guest else "already stopping; what was begun is being undone"

    def stop(number: int, frame: FrameType | None) -> None:
        text = again if token.cancelled else first
        token.cancel("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)
        try:
            # Not through sys.stderr: the signal may have come in the middle of a write to it, which cannot be entered twice.
            os.write(2, f"\ndiskhaul: {text}\n".encode())
        except OSError:
            pass  # the terminal may be what went away; stopping matters, saying so does not

    before = {number: signal.getsignal(number) for number in STOPPING_SIGNALS}
    ours = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    try:
        for number in ours:
            signal.signal(number, stop)
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
