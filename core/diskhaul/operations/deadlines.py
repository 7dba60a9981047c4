"""Bounds how long a plugin may take for one call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from ..cancellation import CancellationToken
from ..errors import OperationFailedError

T = TypeVar("T")
CALL_LIMIT_S = 600.0
"""How long a plugin's call may take where no option says: removing an export or a snapshot, looking things up."""
_POLL_S = 0.1


class PluginHangsError(OperationFailedError):
    """A plugin's call did not return in time. It was left behind, and may still do what it was asked for."""


def within(seconds: float, what: str, function: Callable[[], T], *, token: CancellationToken | None = None) -> T:
    """Return what ``function()`` returns, or raise what it raises, within `seconds`.

    Python cannot end a thread, so a call that hangs is left behind on one of its own. With a `token`, so is one that is going on
    when that is cancelled; this is for calls that change nothing.

    Raises:
        PluginHangsError: it did not return; `what` says what it was to do.
        InterruptedRunError: `token` was cancelled meanwhile.
    """
    answer: list[T] = []
    failure: list[BaseException] = []
    done = threading.Event()

    def call() -> None:
        try:
            answer.append(function())
        except BaseException as error:  # handed to the caller, whatever it is
            failure.append(error)
        finally:
            done.set()

    try:
        threading.Thread(target=call, name=f"diskhaul-call-{what}", daemon=True).start()
    except RuntimeError:  # no more threads to be had: better without a bound than not at all, it may be a guest's start
        return function()
    if not (done.wait(seconds) if token is None else _wait(done, seconds, token)):
        raise PluginHangsError(f"{what} did not return within {seconds:g} s; it was left behind and may still do its work")
    if failure:
        raise failure[0]
    return answer[0]


def _wait(done: threading.Event, seconds: float, token: CancellationToken) -> bool:
    until = time.monotonic() + seconds
    while not done.wait(min(_POLL_S, max(until - time.monotonic(), 0.0))):
        token.raise_if_cancelled()
        if time.monotonic() >= until:
            return False
    return True
