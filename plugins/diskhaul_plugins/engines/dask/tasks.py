"""What runs inside the Dask worker of a node: functions that were asked for, each with a link to the one who asked."""

from __future__ import annotations

import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from diskhaul.api import Link
from diskhaul.cancellation import CancellationToken
from diskhaul.errors import (
    ConfigurationError,
    DiskhaulError,
    InterruptedRunError,
    LockError,
    OperationFailedError,
    RefusedError,
    VerificationError,
)

try:
    from distributed import WorkerPlugin, get_worker
except ImportError as error:
    raise ConfigurationError("the engine dask needs distributed: pip install 'diskhaul[dask]'") from error

T = TypeVar("T")
BEGUN = b"begun"
"""The first message of every function; the others are pickled."""
_MOST_REMEMBERED = 1000
_LONGEST_TEXT = 20_000
_TOLD_APART = (RefusedError, LockError, VerificationError, InterruptedRunError, OperationFailedError)


def topic_of(client: str) -> str:
    """What Dask calls the events that are for that client of its scheduler."""
    return f"diskhaul-{client}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a function: `raised`, where that is not None, and else `returned`."""

    returned: Any = None
    raised: BaseException | None = None

    @property
    def said(self) -> str:
        """In a few words."""
        if self.raised is None:
            return f"returned {type(self.returned).__name__}"
        return f"failed: {type(self.raised).__name__}: {self.raised}"[:_LONGEST_TEXT]


@dataclass(frozen=True, slots=True)
class Answer:
    """A pickled outcome, and what is said instead of it where it cannot be read: it may be of a class that is only on the node.

    Attributes:
        kind: an error of diskhaul's own, and the nearest to what was raised.
    """

    pickled: bytes
    said: str
    kind: type[DiskhaulError]

    @classmethod
    def of(cls, outcome: Outcome) -> Answer:
        kind = next((kind for kind in _TOLD_APART if isinstance(outcome.raised, kind)), OperationFailedError)
        said = outcome.said
        try:
            return cls(pickle.dumps(outcome), said, kind)
        except Exception as why:
            if outcome.raised is None:
                said = f"the answer cannot be sent between nodes: {type(why).__name__}: {why}"
            return cls(pickle.dumps(Outcome(raised=kind(said))), said, kind)

    def outcome(self, node: str) -> Outcome:
        try:
            read: Outcome = pickle.loads(self.pickled)  # from a node of our own, over the CA's TLS
            return read
        except Exception as why:  # whatever a class that is read does
            hint = f"it cannot be read here, where something differs from there: {type(why).__name__}: {why}"
            return Outcome(raised=self.kind(f"node {node}: {self.said} ({hint})"))


class WorkerLink(Link):
    """Sends messages as Dask events of one topic; they arrive in order, and before the outcome."""

    def __init__(self, key: str, topic: str) -> None:
        self._token = CancellationToken()
        self._key, self._topic = key, topic
        self._worker = get_worker()

    @property
    def token(self) -> CancellationToken:
        return self._token

    def send(self, message: object, /) -> None:
        self._send(pickle.dumps(message))

    def tell_begun(self) -> None:
        self._send(BEGUN)

    def _send(self, message: bytes) -> None:
        self._worker.log_event(self._topic, {"key": self._key, "message": message})


class _Running:
    """The functions that run in this process, by key; the keys of those that ran, and of those cancelled before they came."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._links: dict[str, WorkerLink] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._cancelled: OrderedDict[str, str] = OrderedDict()
        self._refusing: str | None = None

    def admit(self) -> None:
        """Let functions begin, again where `cancel_all` had refused them."""
        with self._lock:
            self._refusing = None

    @contextmanager
    def entered(self, key: str, link: WorkerLink) -> Iterator[None]:
        """For as long as a function runs.

        Raises:
            InterruptedRunError: it was cancelled before it came, or nothing is begun any more.
        """
        with self._lock:
            if self._refusing is not None:
                raise InterruptedRunError(f"interrupted before it was begun: {self._refusing}")
            if key in self._cancelled:
                raise InterruptedRunError(f"interrupted before it was begun: {self._cancelled.pop(key)}")
            self._links[key] = link
            link.tell_begun()  # before anybody who cancels it is answered
        try:
            yield
        finally:
            with self._lock:
                self._links.pop(key, None)
                _remember(self._ended, key, None)
                self._lock.notify_all()

    def cancel(self, key: str, reason: str) -> bool:
        """Cancel a function; whether it was begun here. One that was not never will be."""
        with self._lock:
            if key in self._links:
                self._links[key].token.cancel(reason)
                return True
            if key in self._ended:
                return True
            _remember(self._cancelled, key, reason)
            return False

    def cancel_all(self, reason: str, *, wait_s: float) -> bool:
        """Cancel what runs, let nothing begin from now on, and wait for the end; whether it came."""
        with self._lock:
            self._refusing = reason
            for link in self._links.values():
                link.token.cancel(reason)
            return self._lock.wait_for(lambda: not self._links, wait_s)


def _remember(table: OrderedDict[str, T], key: str, value: T) -> None:
    table[key] = value
    while len(table) > _MOST_REMEMBERED:
        table.popitem(last=False)


RUNNING = _Running()


def perform(key: str, topic: str, payload: bytes) -> Answer:
    """Run a pickled ``(function, arguments)`` with a link before the arguments."""
    link = WorkerLink(key, topic)
    try:
        with RUNNING.entered(key, link):
            function, arguments = _read(payload)
            outcome = Outcome(returned=function(link, *arguments))
    except Exception as error:  # whatever it is: the one who asked is to know, and this worker lives on
        outcome = Outcome(raised=error)
    except BaseException as error:  # SystemExit and the like: not to end the one who asked
        outcome = Outcome(raised=OperationFailedError(f"ended by {type(error).__name__}: {error}"))
    return Answer.of(outcome)


def _read(payload: bytes) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    try:
        read: tuple[Callable[..., Any], tuple[Any, ...]] = pickle.loads(payload)  # who may speak to this worker may run anything
        return read
    except Exception as error:
        problem = f"what is to be done cannot be read on its node, where something is missing: {type(error).__name__}: {error}"
        raise RefusedError(problem) from error


def without_link(link: Link, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function that wants no link."""
    return function(*arguments)


def cancel(key: str, reason: str) -> bool:
    """Cancel a function; whether it was begun here. One that has yet to come will not be begun."""
    return RUNNING.cancel(key, reason)


class Unwanted(WorkerPlugin):
    """Cancels what nobody waits for any more: its client is gone, and so the scheduler has let go of the task."""

    def transition(self, key: Hashable, start: str, finish: str, **_: Any) -> None:
        if start in ("executing", "long-running") and finish == "released":
            RUNNING.cancel(str(key), "the client that asked for it is gone")
