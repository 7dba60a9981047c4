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
from typing import TYPE_CHECKING, Any, TypeVar

from diskhaul.api import BackendContext, Engine
from diskhaul.cancellation import CancellationToken
from diskhaul.errors import InterruptedRunError, OperationFailedError, RefusedError, UnreachableNodeError
from diskhaul.model import Node
from diskhaul.this_node import this_node

from . import tasks
from .settings import DaskSettings, settings_from

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")
_POLL_S = 0.2
_LOOK_S = 2.0
_BRIEF = "-brief"


def resource(node: str, *, brief: bool = False) -> str:
    """What Dask calls a place on `node`: one of those for operations, or one of the others."""
    return f"node-{node}{_BRIEF if brief else ''}"


class DaskEngine(Engine):
    """Options: `settings.DaskSettings`. Thread-safe; all engines of a process with the same options share one connection."""

    distributed = True

    def __init__(self, context: BackendContext) -> None:
        self._settings = settings_from(context)

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
        outcome = call.perform(payload, brief=brief)
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
        self.topic = f"diskhaul-{uuid.uuid4().hex}"
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
        self.client.subscribe_topic(self.topic, self._sort)

    @property
    def alive(self) -> bool:
        return str(self.client.status) == "running"

    def _sort(self, event: tuple[float, dict[str, Any]]) -> None:
        _, content = event
        with self._lock:
            inbox = self._inboxes.get(content["key"])
        if inbox is not None:
            inbox.put(pickle.loads(content["message"]))  # from a node of our own, over the CA's TLS

    def open(self, key: str) -> queue.SimpleQueue[Any]:
        with self._lock:
            inbox = self._inboxes[key] = queue.SimpleQueue()
        return inbox

    def shut(self, key: str) -> None:
        with self._lock:
            del self._inboxes[key]

    def serves(self, place: str) -> bool:
        """Whether some worker has the resource `place`."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        return any(place in worker.get("resources", {}) for worker in workers.values())


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
            _connections.popitem()[1].client.close()


# --- one call ---------------------------------------------------------------------------------------------------------


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
        self._begun = self._told_to_stop = False
        self._last_seen = self._looked = time.monotonic()

    def perform(self, payload: bytes, *, brief: bool) -> tasks.Outcome:
        place = resource(self._node.name, brief=brief)
        inbox = self._way.open(self._key)
        try:
            future = self._way.client.submit(
                tasks.perform,
                self._key,
                self._way.topic,
                payload,
                key=self._key,
                pure=False,
                retries=0,
                resources={place: 1},
            )
            try:
                answer = self._answer(future, inbox, place)
            finally:
                future.release()
            self._listen(inbox)
        finally:
            self._way.shut(self._key)
        outcome: tasks.Outcome = pickle.loads(answer)  # from a node of our own, over the CA's TLS
        return outcome

    def _answer(self, future: Future[bytes], inbox: queue.SimpleQueue[Any], place: str) -> bytes:
        while True:
            self._listen(inbox)
            try:
                answer: bytes = future.result(timeout=_POLL_S)
                return answer
            except TimeoutError:
                pass
            except CancelledError as error:
                raise self._gone(f"the Dask scheduler at {self._settings.scheduler} was lost") from error
            except Exception as error:  # KilledWorker, a broken connection: what the function raised is in the answer
                raise self._gone(f"its worker is gone ({_said(error)})") from error
            if self._token.cancelled and not self._told_to_stop:
                self._stop(future)
            self._look(future, place)

    def _listen(self, inbox: queue.SimpleQueue[Any]) -> None:
        while not inbox.empty():
            message = inbox.get()
            if message == tasks.BEGUN:
                self._begun = True
            else:
                self._on_message(message)

    def _stop(self, future: Future[bytes]) -> None:
        """Have the function cancelled; one that waits for its turn is taken back."""
        self._told_to_stop = True
        place = resource(self._node.name, brief=True)
        told = self._way.client.submit(
            tasks.cancel, self._key, self._token.reason, key=f"{self._key}-cancel", pure=False, resources={place: 1}
        )
        from distributed import fire_and_forget

        fire_and_forget(told)
        if not self._begun:
            future.cancel()
            raise InterruptedRunError(f"interrupted: {self._token.reason}")

    def _look(self, future: Future[bytes], place: str) -> None:
        """Now and then look whether the node is there; give up once it was not for too long."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        try:
            if self._way.serves(place):
                self._last_seen = time.monotonic()
        except Exception:  # the scheduler does not answer: so does the node not
            pass
        if time.monotonic() - self._last_seen > self._settings.node_timeout_s:
            future.cancel()
            raise self._gone(f"it has no worker at the scheduler {self._settings.scheduler}; start it: diskhaul node serve")

    def _gone(self, why: str) -> UnreachableNodeError:
        text = f"node {self._node.name} does not answer: {why}"
        if self._begun:
            text += "; what it was doing ends, or is undone when it is started again"
        return UnreachableNodeError(self._node.name, text, in_doubt=True)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
