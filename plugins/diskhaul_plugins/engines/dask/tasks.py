"""What runs inside the Dask worker of a node: functions that were asked for, each with a link to the one who asked."""

from __future__ import annotations

import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from distributed import get_worker

from diskhaul.api import Link
from diskhaul.cancellation import CancellationToken
from diskhaul.errors import OperationFailedError

BEGUN = "begun"
"""The first message of every function."""
_MOST_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a function: `raised`, where that is not None, and else `returned`."""

    returned: Any = None
    raised: BaseException | None = None


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
        self._worker.log_event(self._topic, {"key": self._key, "message": pickle.dumps(message)})


class _Running:
    """The functions that run in this process, by key; and the keys that were cancelled before they came."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._links: dict[str, WorkerLink] = {}
        self._cancelled: OrderedDict[str, str] = OrderedDict()

    @contextmanager
    def entered(self, key: str, link: WorkerLink) -> Iterator[None]:
        with self._lock:
            self._links[key] = link
            if key in self._cancelled:
                link.token.cancel(self._cancelled.pop(key))
        try:
            yield
        finally:
            with self._lock:
                self._links.pop(key, None)
                self._lock.notify_all()

    def cancel(self, key: str, reason: str) -> None:
        with self._lock:
            if key in self._links:
                self._links[key].token.cancel(reason)
                return
            self._cancelled[key] = reason
            while len(self._cancelled) > _MOST_REMEMBERED:
                self._cancelled.popitem(last=False)

    def cancel_all(self, reason: str, *, wait_s: float) -> bool:
        """Cancel what runs, and wait for its end; whether it came."""
        with self._lock:
            for link in self._links.values():
                link.token.cancel(reason)
            return self._lock.wait_for(lambda: not self._links, wait_s)


RUNNING = _Running()


def perform(key: str, topic: str, payload: bytes) -> bytes:
    """Run a pickled ``(function, arguments)`` with a link before the arguments; return the pickled `Outcome`."""
    link = WorkerLink(key, topic)
    with RUNNING.entered(key, link):
        try:
            link.send(BEGUN)
            function, arguments = pickle.loads(payload)  # who may speak to this worker may run anything here
            outcome = Outcome(returned=function(link, *arguments))
        except BaseException as error:  # whatever it is: the one who asked is to know, and this worker lives on
            outcome = Outcome(raised=error)
    return _pickled(outcome)


def _pickled(outcome: Outcome) -> bytes:
    try:
        return pickle.dumps(outcome)
    except Exception as why:
        if outcome.raised is None:
            problem = OperationFailedError(f"the answer cannot be sent between nodes: {type(why).__name__}: {why}")
        else:
            problem = OperationFailedError(f"{type(outcome.raised).__name__}: {outcome.raised}")
        return pickle.dumps(Outcome(raised=problem))


def without_link(link: Link, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function that wants no link."""
    return function(*arguments)


def cancel(key: str, reason: str) -> None:
    """Cancel a function that runs here, or will."""
    RUNNING.cancel(key, reason)
