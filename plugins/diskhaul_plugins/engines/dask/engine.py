"""The client's side of engine ``dask``: hands functions to the workers of nodes, and hears what comes of them.

A node is found by a resource that only its own workers have (``node-alpha``), never by a worker's name: that stands for an
address, which a worker that was started anew no longer has. Dask may run a function twice, when a worker that had been taken
for dead comes back; what runs twice is an operation, and those are kept apart by their locks and fencing tokens.
"""

from __future__ import annotations

import pickle
import queue
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import CancelledError
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from diskhaul.api import BackendContext, Engine
from diskhaul.cancellation import CancellationToken
from diskhaul.errors import DiskhaulError, InterruptedRunError, OperationFailedError, RefusedError, UnreachableNodeError
from diskhaul.model import Node
from diskhaul.this_node import this_node

from . import tasks
from .settings import DaskSettings, settings_from

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")
_POLL_S = 0.2
_LOOK_S = 2.0
_CLOSE_S = 10.0


class Place(Enum):
    """What a node has places for. Those of one kind never wait for another kind.

    A worker looks only at the first of those that wait, so the more urgent have to be before the others: `urgency`.
    """

    OPERATION = "", 0
    BRIEF = "-brief", 1
    CONTROL = "-control", 2
    """Stops the others: never waits for anything but its own kind, which takes no time."""

    def __init__(self, suffix: str, urgency: int) -> None:
        self.suffix, self.urgency = suffix, urgency

    def on(self, node: str) -> str:
        """What Dask calls such a place on `node`."""
        return f"node-{node}{self.suffix}"


class DaskEngine(Engine):
    """Options: `settings.DaskSettings`. Thread-safe; all engines of a process with the same options share one connection."""

    distributed = True

    def __init__(self, context: BackendContext) -> None:
        self._settings = settings_from(context)
        self.shared_state_dir = self._settings.shared_state_dir

    def here(self, node: Node, /) -> bool:
        here = this_node()
        return here is not None and here.name == node.name

    def run(self, node: Node, function: Callable[..., T], /, *arguments: Any) -> T:
        if self.here(node):
            return function(*arguments)
        answer: T = self.run_linked(
            node, tasks.without_link, function, *arguments, on_message=_ignore, token=CancellationToken(), brief=True
        )
        return answer

    def run_linked(
        self,
        node: Node,
        function: Callable[..., T],
        /,
        *arguments: Any,
        on_message: Callable[[Any], object],
        token: CancellationToken,
        brief: bool = False,
    ) -> T:
        token.raise_if_cancelled()
        if node.offline:
            raise UnreachableNodeError(node.name, f"node {node.name}: marked offline; remove 'offline' to use it again")
        if self.here(node):
            return super().run_linked(node, function, *arguments, on_message=on_message, token=token, brief=brief)
        try:
            import cloudpickle

            payload: bytes = cloudpickle.dumps((function, arguments))
        except Exception as error:
            raise RefusedError(f"node {node.name}: what it is to do cannot be sent there: {error}") from error
        call = _Call(connection(self._settings), self._settings, node, token, on_message)
        outcome = call.perform(payload, Place.BRIEF if brief else Place.OPERATION)
        if outcome.raised is not None:
            raise outcome.raised
        answer: T = outcome.returned
        return answer

    def serve(self, node: Node, /, *, token: CancellationToken, tell: Callable[[str], object]) -> None:
        from .serving import serve

        serve(self._settings, node, token=token, tell=tell)

    def coordinate(self, *, token: CancellationToken, tell: Callable[[str], object]) -> None:
        from .serving import serve_scheduler

        serve_scheduler(self._settings, token=token, tell=tell)


def _ignore(message: object) -> None:
    pass


# --- the connection ---------------------------------------------------------------------------------------------------


class Connection:
    """One connection to the scheduler, and the messages that come over it, sorted by the function they are from."""

    def __init__(self, settings: DaskSettings) -> None:
        import dask
        from distributed import Client

        self._lock = threading.Lock()
        self._inboxes: dict[str, queue.SimpleQueue[Any]] = {}
        self._scheduler, self._limit_s = settings.scheduler, settings.node_timeout_s
        timeout = f"{settings.node_timeout_s}s"
        try:
            with dask.config.set({"distributed.comm.timeouts.connect": timeout}):
                self.client: Client = Client(
                    settings.scheduler, security=settings.security(), timeout=timeout, set_as_default=False, name="diskhaul"
                )
        except Exception as error:
            raise OperationFailedError(
                f"the Dask scheduler at {settings.scheduler} cannot be reached: {_said(error)}; "
                "is 'diskhaul node scheduler' running there?"
            ) from error
        self._comm = self.client.scheduler_comm
        self.topic = tasks.topic_of(self.client.id)
        self.client.subscribe_topic(self.topic, self._sort)

    @property
    def alive(self) -> bool:
        """Whether it has been one and the same since it was made.

        Dask's client connects again by itself, but has lost its functions then, and hears no messages any more.
        """
        return str(self.client.status) == "running" and self.client.scheduler_comm is self._comm

    def _sort(self, event: tuple[float, dict[str, Any]]) -> None:
        _, content = event
        with self._lock:
            inbox = self._inboxes.get(content["key"])
        if inbox is not None:
            inbox.put(content["message"])

    def open(self, key: str) -> queue.SimpleQueue[Any]:
        with self._lock:
            inbox = self._inboxes[key] = queue.SimpleQueue()
        return inbox

    def shut(self, key: str) -> None:
        with self._lock:
            del self._inboxes[key]

    def submit(self, place: str, urgency: int, key: str, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have ``function(*arguments)`` run at `place`, once.

        Raises:
            OperationFailedError: the connection was closed; nothing was sent.
        """
        try:
            return self.client.submit(
                function, *arguments, key=key, pure=False, retries=0, priority=urgency, resources={place: 1}
            )
        except Exception as error:
            if self.alive:
                raise
            raise OperationFailedError(
                f"the connection to the Dask scheduler at {self._scheduler} was closed; try again"
            ) from error

    def serves(self, place: str) -> bool:
        """Whether some worker has the resource `place`.

        Raises:
            OSError: the scheduler does not say so, or not in time.
        """
        known = self._ask("identity")  # without a number: of all workers, in every version of Dask
        return any(place in worker.get("resources", {}) for worker in known["workers"].values())

    def states_of(self, key: str) -> list[str]:
        """The states that a function has had at the scheduler, from the first on; none where it does not remember the first.

        One that was never in state ``processing`` was never given to a worker.

        Raises:
            OSError: the scheduler does not say so, or not in time.
        """
        story = [(entry[1], entry[2]) for entry in self._ask("get_story", keys_or_stimuli=[key]) if entry[0] == key]
        if not story or story[0][0] != "released":
            return []
        return [finish for _, finish in story]

    def _ask(self, what: str, **arguments: Any) -> Any:
        try:
            return self.client.sync(getattr(self.client.scheduler, what), callback_timeout=self._limit_s, **arguments)
        except Exception as error:
            if self.alive or isinstance(error, OSError):
                raise
            raise OSError(f"the connection to the Dask scheduler at {self._scheduler} was closed") from error


_connections: dict[DaskSettings, Connection] = {}
_connecting = threading.Lock()


def connection(settings: DaskSettings) -> Connection:
    """The process's connection to that scheduler, made anew where it was lost.

    Raises:
        OperationFailedError: the scheduler cannot be reached.
    """
    with _connecting:
        found = _connections.get(settings)
        if found is None or not found.alive:
            if found is not None:
                found.client.close(timeout=1)
            found = _connections[settings] = Connection(settings)
        return found


def disconnect() -> None:
    """Close all connections of this process."""
    with _connecting:
        while _connections:
            _connections.popitem()[1].client.close(timeout=_CLOSE_S)


# --- one call ---------------------------------------------------------------------------------------------------------


class _OverError(Exception):
    """Nothing more will be heard of the function; `error` says what is known."""

    def __init__(self, error: DiskhaulError) -> None:
        self.error = error


class _Item(Enum):
    """What is in an inbox besides messages."""

    ANSWERED = "the function has ended, or was lost"
    STOPPED = "its node knows that it is to stop"


class _Call:
    """One function on its way to a node and back."""

    def __init__(
        self,
        way: Connection,
        settings: DaskSettings,
        node: Node,
        token: CancellationToken,
        on_message: Callable[[Any], object],
    ) -> None:
        self._way, self._settings, self._node = way, settings, node
        self._token, self._on_message = token, on_message
        self._key = f"diskhaul-{node.name}-{uuid.uuid4().hex}"
        self._begun = False
        self._reason: str | None = None
        self._stopping: Future[bool] | None = None
        self._stopped_at = 0.0
        self._last_seen = self._looked = time.monotonic()

    def perform(self, payload: bytes, place: Place) -> tasks.Outcome:
        inbox = self._inbox = self._way.open(self._key)
        try:
            self._future = self._way.submit(
                place.on(self._node.name), place.urgency, self._key, tasks.perform, self._key, self._way.topic, payload
            )
            try:
                self._future.add_done_callback(lambda _: inbox.put(_Item.ANSWERED))
                return self._outcome()
            finally:
                self._future.release()
                if self._stopping is not None:
                    self._stopping.release()
        finally:
            self._way.shut(self._key)

    def _outcome(self) -> tasks.Outcome:
        """What came of the function.

        What is raised here meanwhile (by who listens, or by Ctrl-C) stops it, and is raised once it has ended; a second time, at
        once.
        """
        failure: BaseException | None = None
        while True:
            try:
                outcome = self._step()
                if outcome is None:
                    continue
                if failure is None:
                    return outcome
                failure.add_note(f"node {self._node.name}: told to stop; it {outcome.said}")
            except _OverError as over:
                if failure is None:
                    raise over.error from over.__cause__
                failure.add_note(str(over.error))
            except BaseException as error:
                if failure is None:
                    failure = error
                    self._on_message = _ignore
                    if self._reason is None:
                        self._reason = f"{_said(error)}, where it was asked for"
                    continue  # the next step stops it
                failure.add_note(f"node {self._node.name}: told to stop; nobody waited for the end of what it does")
            raise failure

    def _step(self) -> tasks.Outcome | None:
        """Take what has come, or wait a little for it."""
        if self._reason is None and self._token.cancelled:
            self._reason = self._token.reason
        if self._reason is not None and self._stopping is None:
            self._stop(self._reason)
        try:
            item = self._inbox.get(timeout=_POLL_S)
        except queue.Empty:
            item = None
        if item is _Item.ANSWERED:
            return self._answer()
        if item is _Item.STOPPED:
            self._told_to_stop()
        if isinstance(item, bytes):
            self._last_seen = time.monotonic()
            self._hear(item)
        self._look()
        return None

    def _hear(self, message: bytes) -> None:
        if message == tasks.BEGUN:
            self._begun = True
            return
        try:
            read = pickle.loads(message)  # from a node of our own, over the CA's TLS
        except Exception:  # an event of a plugin that is not here: nobody here could show it
            return
        self._on_message(read)

    def _answer(self) -> tasks.Outcome:
        try:
            answer: tasks.Answer = self._future.result(timeout=self._settings.node_timeout_s)
        except CancelledError as error:
            raise self._lost() from error
        except Exception as error:  # KilledWorker, a broken connection: what the function raised is in the answer
            if self._future.status == "finished":
                text = f"node {self._node.name}: what it did has ended, but how cannot be told: its answer was not to be had"
                raise _OverError(UnreachableNodeError(self._node.name, f"{text} ({_said(error)})", in_doubt=True)) from error
            raise _OverError(self._gone(f"its worker is gone ({_said(error)})")) from error
        return answer.outcome(self._node.name)

    def _stop(self, reason: str) -> None:
        """Have the function cancelled. One that has not begun never will."""
        inbox = self._inbox
        self._stopped_at, self._looked = time.monotonic(), -_LOOK_S
        try:
            self._stopping = self._way.submit(
                Place.CONTROL.on(self._node.name), Place.CONTROL.urgency, f"{self._key}-cancel", tasks.cancel, self._key, reason
            )
        except OperationFailedError as error:
            raise self._lost() from error

        def told(stopping: Future[bool]) -> None:
            if stopping.status == "finished":
                inbox.put(_Item.STOPPED)

        self._stopping.add_done_callback(told)

    def _told_to_stop(self) -> None:
        """Hear from the node whether it had begun the function."""
        assert self._stopping is not None
        try:
            begun = self._stopping.result(timeout=self._settings.node_timeout_s)
        except (Exception, CancelledError):  # lost on the way: it counts as one that has not been told
            return
        if begun:
            self._begun = True
        elif begun is False and not self._future.done():  # of one that is done the answer is on its way
            raise self._not_begun()

    def _look(self) -> None:
        """Now and then look whether the node is there; give up once it was not, or did not end what it does, for too long."""
        if time.monotonic() - self._looked < _LOOK_S:
            return
        if not self._way.alive:
            self._take_back()
            raise self._lost()
        try:
            if self._way.serves(Place.CONTROL.on(self._node.name)):
                self._last_seen = time.monotonic()
            elif self._stopping is not None and not self._begun:
                self._stop_waiting()
        except (OSError, ValueError):  # ValueError: Tornado's, when a connection goes while TLS is made of it
            pass  # the scheduler does not answer: so does the node not
        now = self._looked = time.monotonic()
        if now - self._last_seen > self._settings.node_timeout_s:
            self._take_back()
            raise _OverError(
                self._gone(f"it has no worker at the scheduler {self._settings.scheduler}; start it: diskhaul node serve")
            )
        if self._stopping is not None and now - self._stopped_at > self._settings.stop_timeout_s:
            raise _OverError(self._gone(f"what it does was told to stop {self._settings.stop_timeout_s:g} s ago, and goes on"))

    def _stop_waiting(self) -> None:
        """Take back what waits for a worker, where the scheduler remembers that it never gave it to one."""
        states = self._way.states_of(self._key)
        if not states or "processing" in states:
            return
        self._take_back()
        until = time.monotonic() + self._settings.node_timeout_s
        while states[-1:] != ["forgotten"] and time.monotonic() < until:  # a worker may come before that
            time.sleep(_POLL_S)
            states = self._way.states_of(self._key)
        if states[-1:] == ["forgotten"] and "processing" not in states:
            raise self._not_begun()
        raise _OverError(self._gone("what it was to do was taken back, but may have been begun just then"))

    def _take_back(self) -> None:
        try:
            self._future.cancel()
        except Exception:  # the connection is closed: then the scheduler takes it back by itself
            pass

    def _not_begun(self) -> _OverError:
        self._take_back()
        return _OverError(InterruptedRunError(f"interrupted before it was begun: {self._reason}"))

    def _lost(self) -> _OverError:
        return _OverError(self._gone(f"the Dask scheduler at {self._settings.scheduler} was lost"))

    def _gone(self, why: str) -> UnreachableNodeError:
        text = f"node {self._node.name} does not answer: {why}"
        if self._begun:
            text += "; what it was doing ends, or is undone when it is started again"
        return UnreachableNodeError(self._node.name, text, in_doubt=True)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
