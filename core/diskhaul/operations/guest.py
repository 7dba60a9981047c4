"""Keeps the promise that a guest that was running is running again, and thawed, whatever fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from ..api import Runtime
from ..cancellation import CancellationToken
from ..errors import DiskhaulError, GuestError
from ..events import GuestChanged
from ..feedback import Feedback
from ..journal import Journal
from ..model import Instance
from .deadlines import PluginHangsError, within

T = TypeVar("T")
RETRY_PAUSES_S = (1.0, 4.0, 10.0)
"""Before each further attempt to start or thaw a guest: long enough together for a management daemon that restarts."""
_SETTLE_S = 1.0  # how long a guest is watched at least whose stop failed
_WATCH_PAUSE_S = 0.2


class GuestHangsError(GuestError):
    """A call to the runtime did not return. It was left behind, and may still do its work."""


def guest_call(
    what: str,
    runtime: Runtime,
    method: Callable[..., T],
    instance: Instance,
    *,
    more_s: float = 0.0,
    token: CancellationToken | None = None,
    **options: object,
) -> T:
    """Call a runtime's `method`; what it raises, but a `DiskhaulError`, and that it hangs, is a `GuestError` of the instance.

    Args:
        what: what it is to do, for messages.
        more_s: how much longer than the runtime's other calls this one may take, seconds.
        token: leaves the call behind when it is cancelled, and raises `InterruptedRunError`: for calls that nothing has to undo.
    """
    limit_s = _longest_call_s(runtime, instance) + more_s
    try:
        return within(limit_s, getattr(method, "__qualname__", what), lambda: method(instance, **options), token=token)
    except PluginHangsError as error:
        raise GuestHangsError(f"{instance.name}: cannot {what}: {error}") from error
    except DiskhaulError:
        raise
    except BaseException as error:  # a plugin may raise anything, SystemExit included
        raise GuestError(f"{instance.name}: cannot {what}: {type(error).__name__}: {error}") from error


def _longest_call_s(runtime: Runtime, instance: Instance) -> float:
    try:
        return float(runtime.longest_call_s(instance))
    except BaseException:  # a plugin that cannot say how long it takes is no reason to leave a guest down
        return Runtime.longest_call_s(runtime, instance)


def guest_runs(runtime: Runtime, instance: Instance) -> bool:
    """Ask whether the guest is running.

    Raises:
        GuestError: it cannot be found out.
    """
    answer = guest_call("find out its state", runtime, runtime.is_running, instance)
    if not isinstance(answer, bool):
        raise GuestError(f"{instance.name}: its runtime gave the state {answer!r} instead of True or False")
    return answer


class GuestKeeper:
    """Stops a guest and brings it back; freezes and thaws it.

    Each claim of the runtime is checked by asking for the state again. What will have to be undone is noted in the journal
    before it is done.

    Attributes:
        down_s: seconds from the stop to the end of the successful start, once both have happened.
        started: whether the guest was down and has been started here.
    """

    def __init__(self, runtime: Runtime, instance: Instance, journal: Journal, run_id: str, feedback: Feedback) -> None:
        self._runtime, self._instance = runtime, instance
        self._journal, self._run_id, self._feedback = journal, run_id, feedback
        self._note: int | None = None
        self._frozen: int | None = None
        self._stopped_at = 0.0
        self._unconfirmed_s: float | None = None
        self._stop_may_follow = False
        self.down_s = 0.0
        self.started = False

    @property
    def owes_start(self) -> bool:
        """True when the guest was running before and has not been started again."""
        return self._note is not None

    def is_running(self) -> bool:
        return guest_runs(self._runtime, self._instance)

    # --- down and up ------------------------------------------------------------------------------------------------

    def stop(self, timeout_s: float) -> None:
        """Stop the running guest.

        Raises:
            GuestError: it does not stop, or only says so. `bring_back` is owed in any case.
        """
        noted = {"instance": self._instance.name, "timeout_s": timeout_s, "since": time.time()}
        self._note = self._journal.note(self._run_id, "guest", noted)
        self._stopped_at = time.monotonic()
        try:
            self._call("stop it", self._runtime.stop, more_s=timeout_s, timeout_s=timeout_s)
            if self.is_running():
                raise GuestError(f"{self._instance.name}: its runtime says that it stopped the guest, and it is still running")
        except BaseException as error:
            # It may be shutting down all the same, and be gone when nobody looks any more.
            self._unconfirmed_s = time.monotonic() - self._stopped_at
            self._stop_may_follow = isinstance(error, GuestHangsError) or self._unconfirmed_s >= timeout_s
            raise
        self._journal.amend(self._note, {**noted, "stopped": True})
        self._feedback.emit(GuestChanged(instance=self._instance.name, change="stopped"))

    def bring_back(self) -> None:
        """See to it that the guest runs again, if that is owed: tried several times, and watched after a stop that failed.

        Raises:
            GuestError: the first attempt's error, with the others as notes.
        """
        note = self._note
        if note is None:
            return
        if not self._is_ours(note):
            self._note = None
            return
        self._retried("start it", self._start)
        watch_s = 0.0 if self._unconfirmed_s is None else max(_SETTLE_S, self._unconfirmed_s)
        self._watch(watch_s)
        self.down_s = time.monotonic() - self._stopped_at
        if self._stop_may_follow:
            self._feedback.warn(
                f"{self._instance.name} runs, but its stop was never confirmed and may still come: "
                "if it goes down, 'diskhaul recover' starts it"
            )
        else:
            self._journal.strike(note)
        self._note = None

    def _is_ours(self, note: int) -> bool:
        """False, with a warning, when this run had lost its lock, and another one has dealt with the guest meanwhile."""
        try:
            ours = self._journal.has(note)
        except Exception as error:  # a journal that cannot be read is no reason to leave a guest down, or frozen
            self._feedback.warn(f"the journal cannot be read: {error}; {self._instance.name} is seen to all the same")
            return True
        if not ours:
            self._feedback.warn(f"{self._instance.name}: another run has taken over, and sees to the guest")
        return ours

    def keep_running(self, watch_s: float) -> None:
        """Start the guest if it is down, and watch it for `watch_s` seconds; for runs that are gone.

        Raises:
            GuestError: as `bring_back`.
        """
        self._retried("start it", self._start)
        self._watch(watch_s)

    def _watch(self, seconds: float) -> None:
        """Start the guest again should it go down within `seconds`, as one does whose shutdown took longer than its timeout."""
        if seconds <= 0:
            return
        until = time.monotonic() + seconds
        with self._feedback.stage("watch", f"{self._instance.name} for {seconds:.0f} s, since its stop may still come"):
            while time.monotonic() < until:
                time.sleep(min(_WATCH_PAUSE_S, max(0.0, until - time.monotonic())))
                self._retried("start it", self._start)

    def _start(self) -> None:
        """Start the guest unless it runs."""
        try:
            # Asked first: a stop that failed may have left it running, and a second start is an error for many runtimes.
            if self.is_running():
                return
        except DiskhaulError as error:
            # Better an error about a second start than a guest that is down because nobody could say so.
            self._feedback.warn(f"{error}; it is started all the same")
        self._call("start it", self._runtime.start)
        if not self.is_running():
            raise GuestError(f"{self._instance.name}: its runtime says that it started the guest, and it is not running")
        self.started = True
        self._feedback.emit(GuestChanged(instance=self._instance.name, change="started"))

    def forgive(self) -> None:
        """The guest is not to be started again: its removal was asked, and its export has been published."""
        if self._note is not None:
            self._journal.strike(self._note)
            self._note = None

    # --- frozen and thawed ------------------------------------------------------------------------------------------

    def can_freeze(self) -> bool:
        return bool(self._call("ask whether it can be frozen", self._runtime.can_freeze))

    def freeze(self) -> None:
        """Freeze the guest's filesystems. `thaw` is owed in any case.

        Raises:
            GuestError: not, or not all of them.
        """
        self._frozen = self._journal.note(self._run_id, "frozen", {"instance": self._instance.name})
        self._call("freeze it", self._runtime.freeze)
        self._feedback.emit(GuestChanged(instance=self._instance.name, change="frozen"))

    def thaw(self, *, freeze_may_follow: bool = False) -> None:
        """Thaw the guest if that is owed; tried several times.

        Args:
            freeze_may_follow: a call to freeze it was left behind: the note stays, so that `diskhaul recover` thaws it again.

        Raises:
            GuestError: the first attempt's error, with the others as notes.
        """
        note = self._frozen
        if note is None:
            return
        if not self._is_ours(note):
            self._frozen = None  # another run may have frozen it anew, and be at its snapshots
            return
        self.thaw_anyway()
        if not freeze_may_follow:
            self._journal.strike(note)
        self._frozen = None
        self._feedback.emit(GuestChanged(instance=self._instance.name, change="thawed"))

    def thaw_anyway(self) -> None:
        """Thaw the guest, whoever may have frozen it; for runs that are gone.

        Raises:
            GuestError: as `thaw`.
        """
        self._retried("thaw it", lambda: self._call("thaw it", self._runtime.thaw))

    # --- calls ------------------------------------------------------------------------------------------------------

    def _call(self, what: str, method: Callable[..., T], *, more_s: float = 0.0, **options: object) -> T:
        return guest_call(what, self._runtime, method, self._instance, more_s=more_s, token=None, **options)

    def _retried(self, what: str, attempt: Callable[[], object]) -> None:
        """Call `attempt` until it works, with pauses; raise its first error, with the others as notes, when it never does."""
        failures: list[DiskhaulError] = []
        for pause_s in (0.0, *RETRY_PAUSES_S):
            time.sleep(pause_s)
            try:
                attempt()
                return
            except DiskhaulError as error:
                failures.append(error)
        state = "IS DOWN" if what == "start it" else "MAY BE FROZEN"
        # One that was left behind may still do its work.
        kind = GuestHangsError if any(isinstance(each, GuestHangsError) for each in failures) else GuestError
        failure = kind(
            f"{self._instance.name} {state}: it was tried {len(failures)} times to {what}: {failures[0]}; "
            "do it by hand, or run 'diskhaul recover'"
        )
        for again in failures[1:]:
            failure.add(again, f"trying again to {what}")
        raise failure from failures[0]
