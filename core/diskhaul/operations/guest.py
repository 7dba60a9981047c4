"""Keeps the promise that a guest that was running is running again, whatever fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from ..api import Runtime
from ..errors import DiskhaulError, GuestError
from ..events import GuestChanged
from ..feedback import Feedback
from ..journal import Journal
from ..model import Instance
from .deadlines import PluginHangsError, within

T = TypeVar("T")
START_ATTEMPTS = 3
_RETRY_PAUSE_S = 1.0


CALL_LIMIT_S = 300.0
"""How long a runtime may take for one call; a stop gets the time for a clean shutdown besides."""


def guest_call(
    what: str,
    instance: Instance,
    function: Callable[..., T],
    *arguments: object,
    limit_s: float | None = None,
    **options: object,
) -> T:
    """Call a runtime's method; whatever it raises, and that it hangs, comes out as `GuestError` naming the instance."""
    try:
        limit_s = CALL_LIMIT_S if limit_s is None else limit_s
        return within(limit_s, getattr(function, "__qualname__", what), lambda: function(*arguments, **options))
    except PluginHangsError as error:
        raise GuestError(f"{instance.name}: cannot {what}: {error}") from error
    except DiskhaulError:
        raise
    except BaseException as error:  # a plugin may raise anything, SystemExit included
        raise GuestError(f"{instance.name}: cannot {what}: {type(error).__name__}: {error}") from error


class GuestKeeper:
    """Stops a guest and brings it back.

    Each claim of the runtime is checked by asking for the state again. What will have to be undone is noted in the journal
    before it is done.

    Attributes:
        down_s: seconds from the stop to the end of the successful start, once both have happened.
    """

    def __init__(self, runtime: Runtime, instance: Instance, journal: Journal, run_id: str, feedback: Feedback) -> None:
        self._runtime, self._instance = runtime, instance
        self._journal, self._run_id, self._feedback = journal, run_id, feedback
        self._note: int | None = None
        self._stopped_at = 0.0
        self.down_s = 0.0

    @property
    def owes_start(self) -> bool:
        """True when the guest was running before and has not been started again."""
        return self._note is not None

    def is_running(self) -> bool:
        answer = guest_call("find out its state", self._instance, self._runtime.is_running, self._instance)
        if not isinstance(answer, bool):
            raise GuestError(f"{self._instance.name}: its runtime gave the state {answer!r} instead of True or False")
        return answer

    def stop(self, timeout_s: float) -> None:
        """Stop the running guest.

        Raises:
            GuestError: it does not stop, or only says so. `bring_back` is owed in any case.
        """
        self._note = self._journal.note(self._run_id, "guest", {"instance": self._instance.name})
        self._stopped_at = time.monotonic()
        guest_call(
            "stop it", self._instance, self._runtime.stop, self._instance, limit_s=CALL_LIMIT_S + timeout_s, timeout_s=timeout_s
        )
        if self.is_running():
            raise GuestError(f"{self._instance.name}: its runtime says that it stopped the guest, and it is still running")
        self._feedback.emit(GuestChanged(instance=self._instance.name, change="stopped"))

    def bring_back(self) -> None:
        """Start the guest again if that is owed; tried several times.

        Raises:
            GuestError: the first attempt's error, with the others as notes.
        """
        note = self._note
        if note is None:
            return
        first: DiskhaulError | None = None
        for attempt in range(START_ATTEMPTS):
            if attempt:
                time.sleep(_RETRY_PAUSE_S * attempt)
            try:
                # Asked first: a stop that failed may have left it running, and a second start is an error for many runtimes.
                if not self.is_running():
                    guest_call("start it", self._instance, self._runtime.start, self._instance)
                    if not self.is_running():
                        raise GuestError(
                            f"{self._instance.name}: its runtime says that it started the guest, and it is not running"
                        )
                    self._feedback.emit(GuestChanged(instance=self._instance.name, change="started"))
                self.down_s = time.monotonic() - self._stopped_at
                self._journal.strike(note)
                self._note = None
                return
            except DiskhaulError as error:
                if first is None:
                    first = error
                else:
                    first.add(error, f"starting {self._instance.name} again (attempt {attempt + 1})")
        assert first is not None
        raise GuestError(
            f"{self._instance.name} IS DOWN: it could not be started again after {START_ATTEMPTS} attempts: {first}; "
            "start it by hand, or run 'diskhaul recover'"
        ) from first

    def forgive(self) -> None:
        """The guest is not to be started again: its removal was asked, and its export has been published."""
        if self._note is not None:
            self._journal.strike(self._note)
            self._note = None
