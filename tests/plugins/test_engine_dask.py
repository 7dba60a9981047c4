"""Engine ``dask``, with a real scheduler and real workers, each a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Collection, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import pytest
from distributed import Worker

import diskhaul
from diskhaul.api import BackendContext, Engine, Link
from diskhaul.cancellation import CancellationToken
from diskhaul.errors import InterruptedRunError, RefusedError, UnreachableNodeError
from diskhaul.model import Cluster, Node
from diskhaul.testing.conformance.engines import EngineConformance
from diskhaul_plugins.engines.dask import engine as dask_engine
from diskhaul_plugins.engines.dask import serving
from diskhaul_plugins.engines.dask.engine import DaskEngine
from diskhaul_plugins.engines.dask.forgetting import Forgetting
from diskhaul_plugins.engines.dask.tasks import topic_of

from ..processes import end

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the nodes cannot import tests
LONG_S = 60.0
PROGRAM = """
import signal, sys
sys.path[:0] = sys.argv[1].split(":")
from pathlib import Path
from diskhaul.api import BackendContext
from diskhaul.cancellation import CancellationToken
from diskhaul.model import Cluster, Node
from diskhaul.this_node import ThisNode, serve_as
from diskhaul_plugins.engines.dask import serving, settings
what, address, name, directory = sys.argv[2:]
if what == "scheduler" and name:
    from distributed import Scheduler
    identity = Scheduler.identity
    def of_all(self, n_workers=None):  # "old": Dask knew no number; but its client of today asks for 0 to connect
        if n_workers:
            raise TypeError("identity() got an unexpected keyword argument 'n_workers'")
        if name == "busy" and n_workers is None:
            raise TimeoutError("busy")
        return identity(self)
    Scheduler.identity = of_all
token = CancellationToken()
signal.signal(signal.SIGTERM, lambda *_: token.cancel("SIGTERM"))
options = {"scheduler": address, "allow_plaintext": True, "shared_state_dir": True, "slots": 2}
chosen = settings.settings_from(BackendContext(cluster=Cluster(name="lab", state_dir=Path(directory)), options=options))
tell = lambda line: print(line, flush=True)
if what == "scheduler":
    serving.serve_scheduler(chosen, token=token, tell=tell)
else:
    serve_as(ThisNode(name=name, config=Path(directory) / "cluster.toml"))
    serving.serve(chosen, Node(name=name, export_dir=Path(directory)), token=token, tell=tell)
"""


class Processes:
    """Scheduler and workers."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.address = f"tcp://127.0.0.1:{found.getsockname()[1]}"
        self.running: list[subprocess.Popen[str]] = []

    def start(self, what: str, name: str = "") -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, ":".join(filter(None, sys.path)), what, self.address, name, str(self.directory)],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "listening" in line or "at work" in line, line
        threading.Thread(target=process.stdout.read, daemon=True).start()
        return process

    def close(self) -> None:
        dask_engine.disconnect()
        for process in reversed(self.running):
            end(process, LONG_S)


def engine_for(processes: Processes, tmp_path: Path, **more: Any) -> DaskEngine:
    options = {"scheduler": processes.address, "allow_plaintext": True, "shared_state_dir": True, **more}
    return DaskEngine(BackendContext(cluster=Cluster(name="lab", state_dir=tmp_path), options=options))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """A scheduler, and the nodes alpha and beta."""
    processes = Processes(tmp_path_factory.mktemp("dask"))
    try:
        processes.start("scheduler")
        processes.start("worker", "alpha")
        processes.start("worker", "beta")
        yield processes
    finally:
        processes.close()


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(name="alpha", export_dir=tmp_path)


class TestDaskEngine(EngineConformance):
    @pytest.fixture
    def engine(self, cluster: Processes, tmp_path: Path) -> Engine:
        return engine_for(cluster, tmp_path)

    @pytest.fixture
    def node(self, tmp_path: Path) -> Node:
        return Node(name="alpha", export_dir=tmp_path)


@pytest.fixture
def engine(cluster: Processes, tmp_path: Path) -> DaskEngine:
    return engine_for(cluster, tmp_path)


def test_each_node_has_a_process_of_its_own(engine: DaskEngine, cluster: Processes, node: Node) -> None:
    processes = [engine.run(replace(node, name=name), os.getpid) for name in ("alpha", "beta", "alpha")]
    assert processes == [cluster.running[1].pid, cluster.running[2].pid, cluster.running[1].pid]


def counting(link: Link, number: int) -> str:
    for value in range(number):
        link.send(value)
    return "done"


def test_messages_come_in_order_and_before_the_answer(engine: DaskEngine, node: Node) -> None:
    heard: list[int] = []
    assert engine.run_linked(node, counting, 500, on_message=heard.append, token=CancellationToken()) == "done"
    assert heard == list(range(500))


def refusing(link: Link) -> None:
    raise diskhaul.AmbiguousNameError("instance", "web", ["web2.example.com", "web1.example.com"])


def test_an_error_arrives_whole(engine: DaskEngine, node: Node) -> None:
    with pytest.raises(diskhaul.AmbiguousNameError) as caught:
        engine.run_linked(node, refusing, on_message=print, token=CancellationToken())
    assert caught.value.candidates == ("web1.example.com", "web2.example.com")
    assert caught.value.problems == (str(caught.value),)


def waiting(link: Link) -> str:
    link.send("waiting")
    assert link.token.wait(LONG_S)
    return f"stopped: {link.token.reason}"


def test_cancelling_reaches_the_function_and_its_answer_comes_back(engine: DaskEngine, node: Node) -> None:
    token = CancellationToken()
    answer = engine.run_linked(node, waiting, on_message=lambda _: token.cancel("enough"), token=token)
    assert answer == "stopped: enough"


def noting(link: Link, path: Path) -> str:
    """As `waiting`, and notes that it was begun, and why it ended."""
    path.write_text("begun")
    link.send("begun")
    assert link.token.wait(LONG_S)
    path.write_text(f"ended: {link.token.reason}")
    return link.token.reason


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def running_again(way: dask_engine.Connection, node: Node) -> bool:
    """Whether Dask's own client has come back to a scheduler that has a worker of `node`."""
    try:
        return str(way.client.status) == "running" and way.serves(f"node-{node.name}")
    except OSError:
        return False


def on_scheduler(engine: DaskEngine, look: Callable[..., Any]) -> Any:
    """What ``look(dask_scheduler=...)`` says, called in the scheduler's process."""
    return dask_engine.connection(engine._settings).client.run_on_scheduler(look)


def known_tasks(dask_scheduler: Any) -> set[str]:
    return set(dask_scheduler.tasks)


class Calls:
    """Functions that run on a node at once, each asked for by a thread of its own.

    Attributes:
        answers: what came of each, by its number.
    """

    def __init__(self, engine: DaskEngine, node: Node) -> None:
        self._engine, self._node = engine, node
        self.tokens: list[CancellationToken] = []
        self.answers: dict[int, object] = {}
        self._threads: list[threading.Thread] = []

    def ask(self, function: Callable[..., Any], *arguments: Any, begun: bool = True, brief: bool = False) -> int:
        """Ask for one more, and return its number once it has begun, or else once the scheduler knows of it."""
        number, token, said = len(self.tokens), CancellationToken(), threading.Event()

        def call() -> None:
            try:
                self.answers[number] = self._engine.run_linked(
                    self._node, function, *arguments, on_message=lambda _: said.set(), token=token, brief=brief
                )
            except diskhaul.DiskhaulError as error:
                self.answers[number] = error

        before = on_scheduler(self._engine, known_tasks)
        self.tokens.append(token)
        self._threads.append(threading.Thread(target=call))
        self._threads[-1].start()
        if begun:
            assert said.wait(LONG_S)
        else:
            wait_until(lambda: bool(on_scheduler(self._engine, known_tasks) - before))  # those of earlier tests may go meanwhile
        return number

    def answer(self, number: int) -> object:
        self._threads[number].join(LONG_S)
        return self.answers[number]

    def end(self) -> None:
        for token in self.tokens:
            token.cancel("enough")
        for thread in self._threads:
            thread.join(LONG_S)


@pytest.fixture
def calls(engine: DaskEngine, node: Node) -> Iterator[Calls]:
    made = Calls(engine, node)
    yield made
    made.end()


def test_what_waits_for_its_turn_can_be_taken_back_and_is_never_begun(calls: Calls, tmp_path: Path) -> None:
    for _ in range(2):
        calls.ask(waiting)  # both places of the node are taken
    third = calls.ask(noting, tmp_path / "third", begun=False)
    calls.tokens[third].cancel("never mind")
    error = calls.answer(third)
    assert isinstance(error, InterruptedRunError)
    assert str(error) == "interrupted before it was begun: never mind"
    calls.end()
    assert [calls.answer(number) for number in range(2)] == ["stopped: enough"] * 2
    assert calls.answer(calls.ask(counting, 1)) == "done"  # what was free for the third one has been free for another
    assert not (tmp_path / "third").exists()


def test_brief_functions_do_not_wait_for_operations_nor_for_those_that_wait(calls: Calls, engine: DaskEngine, node: Node) -> None:
    for _ in range(2):
        calls.ask(waiting)
    for _ in range(3):
        calls.ask(waiting, begun=False)
    assert engine.run(node, divmod, 7, 2) == (3, 1)


def test_cancelling_does_not_wait_for_brief_functions(calls: Calls, tmp_path: Path) -> None:
    operation = calls.ask(noting, tmp_path / "noted")
    for _ in range(serving.BRIEF_PLACES):
        calls.ask(waiting, brief=True)
    calls.ask(waiting, brief=True, begun=False)
    calls.tokens[operation].cancel("enough of it")
    assert calls.answer(operation) == "enough of it"
    assert len(calls.answers) == 1


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_what_is_raised_where_it_was_asked_for_stops_the_function_and_its_end_is_waited_for(
    engine: DaskEngine, node: Node, tmp_path: Path, kind: type[BaseException]
) -> None:
    def listen(message: object) -> None:
        raise kind("on the way")

    with pytest.raises(kind, match="on the way") as caught:
        engine.run_linked(node, noting, tmp_path / "noted", on_message=listen, token=CancellationToken())
    assert (tmp_path / "noted").read_text() == f"ended: {kind.__name__}: on the way, where it was asked for"
    assert caught.value.__notes__ == ["node alpha: told to stop; it returned str"]


ASKING = """
import sys
sys.path[:0] = sys.argv[1].split(":")
from pathlib import Path
from tests.plugins.test_engine_dask import *
directory = Path(sys.argv[3])
options = {"scheduler": sys.argv[2], "allow_plaintext": True, "shared_state_dir": True}
engine = DaskEngine(BackendContext(cluster=Cluster(name="lab", state_dir=directory), options=options))
tell = lambda message: print(message, flush=True)
alpha = Node(name="alpha", export_dir=directory)
engine.run_linked(alpha, noting, directory / "noted", on_message=tell, token=CancellationToken())
"""


def test_a_client_that_is_killed_stops_what_it_has_asked_for(cluster: Processes, tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", ASKING, ":".join([root, *filter(None, sys.path)]), cluster.address, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "begun\n"
        client.kill()
    wait_until(lambda: (tmp_path / "noted").read_text() == "ended: the client that asked for it is gone")


def deaf(link: Link, path: Path) -> None:
    link.send("begun")
    until = time.monotonic() + LONG_S
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.05)


def test_what_does_not_stop_is_not_waited_for_without_end(cluster: Processes, node: Node, tmp_path: Path) -> None:
    engine, token = engine_for(cluster, tmp_path, stop_timeout_s=1), CancellationToken()
    with pytest.raises(UnreachableNodeError, match="was told to stop 1 s ago, and goes on") as caught:
        engine.run_linked(node, deaf, tmp_path / "go", on_message=lambda _: token.cancel("enough"), token=token)
    assert caught.value.in_doubt
    (tmp_path / "go").touch()


def test_what_waits_for_a_node_that_is_not_there_can_be_taken_back(cluster: Processes, tmp_path: Path) -> None:
    calls = Calls(engine_for(cluster, tmp_path, node_timeout_s=LONG_S), Node(name="gamma", export_dir=tmp_path))
    asked = calls.ask(waiting, begun=False)
    calls.tokens[asked].cancel("never mind")
    error = calls.answer(asked)
    assert isinstance(error, InterruptedRunError)
    assert str(error) == "interrupted before it was begun: never mind"


# --- classes that only one side knows ---------------------------------------------------------------------------------


def strange_module(name: str = "strange_module") -> Any:
    """A module that nobody else has, among those of this process."""

    def init(self: Exception, first: str, second: str) -> None:
        Exception.__init__(self, f"{first} and {second}")

    module: Any = types.ModuleType(name)
    module.Strange = type("Strange", (Exception,), {"__module__": name})
    module.StrangeRefusal = type("StrangeRefusal", (RefusedError,), {"__module__": name})
    module.Two = type("Two", (Exception,), {"__module__": name, "__init__": init})
    sys.modules[name] = module
    return module


def failing_strangely(link: Link, kind: str, *arguments: str) -> None:
    raise getattr(strange_module(), kind)(*arguments)


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (("Strange", "no such thing"), diskhaul.OperationFailedError, "node alpha: failed: Strange: no such thing (it cannot be"),
        (("StrangeRefusal", "not today"), RefusedError, "node alpha: failed: StrangeRefusal: not today (it cannot be read here"),
        (
            ("Two", "this", "that"),
            diskhaul.OperationFailedError,
            "node alpha: failed: Two: this and that (it cannot be read here",
        ),
    ],
)
def test_an_error_that_cannot_be_read_here_arrives_as_text(
    engine: DaskEngine, node: Node, arguments: tuple[str, ...], kind: type[Exception], said: str
) -> None:
    with pytest.raises(diskhaul.DiskhaulError) as caught:
        engine.run_linked(node, failing_strangely, *arguments, on_message=print, token=CancellationToken())
    assert type(caught.value) is kind
    assert str(caught.value).startswith(said)


def answering_strangely(link: Link) -> object:
    link.send(strange_module().Strange("unheard"))
    link.send("heard")
    return strange_module().Strange("returned")


def test_an_answer_that_cannot_be_read_here_is_an_error_and_such_a_message_is_left_out(engine: DaskEngine, node: Node) -> None:
    heard: list[object] = []
    with pytest.raises(diskhaul.OperationFailedError, match=r"node alpha: returned Strange \(it cannot be read here"):
        engine.run_linked(node, answering_strangely, on_message=heard.append, token=CancellationToken())
    assert heard == ["heard"]


def test_what_cannot_be_read_on_the_node_is_refused(engine: DaskEngine, node: Node) -> None:
    try:
        with pytest.raises(RefusedError, match=r"cannot be read on its node.*module_of_the_client"):
            engine.run(node, str, strange_module("module_of_the_client").Strange("sent"))
    finally:
        del sys.modules["module_of_the_client"]


def leaving(link: Link) -> None:
    sys.exit("away")


def test_a_function_that_ends_its_thread_fails_and_its_node_lives_on(engine: DaskEngine, cluster: Processes, node: Node) -> None:
    with pytest.raises(diskhaul.OperationFailedError, match="ended by SystemExit: away"):
        engine.run_linked(node, leaving, on_message=print, token=CancellationToken())
    assert engine.run(node, os.getpid) == cluster.running[1].pid


# --- what is left at the scheduler ------------------------------------------------------------------------------------


def real_clients(dask_scheduler: Any) -> int:
    return len(set(dask_scheduler.clients) - {"fire-and-forget"})


def table_sizes(dask_scheduler: Any) -> dict[str, int]:
    """How many entries each of the scheduler's tables has, those without a limit, and its topics and their events."""
    found = {}
    for name, table in {**vars(dask_scheduler), **dask_scheduler.extensions}.items():
        for inner, value in ({"": table} | (vars(table) if name in dask_scheduler.extensions else {})).items():
            if isinstance(value, Collection) and not isinstance(value, str) and getattr(value, "maxlen", None) is None:
                found[f"{name} {inner}"] = len(value)
    topics = dask_scheduler._broker._topics
    found["topics"] = len(topics)
    found["events of functions"] = sum(len(topic.events) for name, topic in topics.items() if name.startswith("diskhaul-"))
    return found


def test_what_functions_tell_leaves_nothing_at_the_scheduler(engine: DaskEngine, node: Node) -> None:
    def look() -> dict[str, int]:
        """With one client, one that has just come."""
        dask_engine.disconnect()
        wait_until(lambda: on_scheduler(engine, real_clients) == 1)
        engine.run(node, divmod, 7, 2)
        wait_until(lambda: not on_scheduler(engine, known_tasks))
        sizes: dict[str, int] = on_scheduler(engine, table_sizes)
        return sizes

    def work() -> None:
        for _ in range(4):
            for _ in range(20):
                assert engine.run_linked(node, counting, 30, on_message=print, token=CancellationToken()) == "done"
            dask_engine.disconnect()

    work()  # what is made once and kept is there after that
    before = look()
    work()

    def grown() -> dict[str, int]:
        return {name: size for name, size in look().items() if size > before.get(name, 0)}

    wait_until(lambda: not grown())  # a connection that was closed is in a table for a moment


@pytest.mark.parametrize("broker", [{}, {"_broker": object()}], ids=["no broker", "a broker without topics"])
def test_where_dask_has_no_table_of_topics_nothing_is_removed(broker: dict[str, object]) -> None:
    scheduler: Any = types.SimpleNamespace(clients={"here": None}, **broker)
    forgetting = Forgetting(scheduler)
    for client in ("here", "gone"):
        forgetting.log_event(topic_of(client), {"key": "key", "message": b"begun"})
        forgetting.log_event(client, {"action": "remove-client", "client": client})
        forgetting.remove_client(scheduler, client)
    forgetting.remove_worker(scheduler, "tcp://127.0.0.1:9")


def test_a_node_without_worker_is_unreachable(cluster: Processes, tmp_path: Path) -> None:
    engine = engine_for(cluster, tmp_path, node_timeout_s=1)
    with pytest.raises(UnreachableNodeError, match=r"node gamma does not answer: it has no worker .*diskhaul node serve"):
        engine.run(Node(name="gamma", export_dir=tmp_path), os.getpid)


def test_no_scheduler_is_said_so(tmp_path: Path) -> None:
    nowhere = Processes(tmp_path)
    engine = engine_for(nowhere, tmp_path, node_timeout_s=1)
    with pytest.raises(diskhaul.OperationFailedError, match=f"scheduler at {nowhere.address} cannot be reached.*node scheduler"):
        engine.run(Node(name="alpha", export_dir=tmp_path), os.getpid)


def test_what_cannot_be_sent_is_refused(engine: DaskEngine, node: Node) -> None:
    with pytest.raises(RefusedError, match="cannot be sent"):
        engine.run(node, divmod, threading.Lock(), 1)


# --- deaths -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Processes]:
    """A scheduler and node alpha, to be killed."""
    processes = Processes(tmp_path)
    try:
        processes.start("scheduler")
        processes.start("worker", "alpha")
        yield processes
    finally:
        processes.close()


@pytest.mark.parametrize("victim", [0, 1], ids=["scheduler", "worker"])
def test_a_process_that_is_killed_in_the_middle_is_told(own: Processes, tmp_path: Path, victim: int) -> None:
    engine = engine_for(own, tmp_path, node_timeout_s=2)
    with pytest.raises(UnreachableNodeError, match=r"node alpha does not answer.*is undone when it is started again"):
        engine.run_linked(
            Node(name="alpha", export_dir=tmp_path),
            waiting,
            on_message=lambda _: own.running[victim].kill(),
            token=CancellationToken(),
        )


@pytest.mark.parametrize("victim", [0, 1], ids=["scheduler", "worker"])
def test_a_process_that_is_frozen_in_the_middle_is_given_up(own: Processes, tmp_path: Path, victim: int) -> None:
    engine = engine_for(own, tmp_path, node_timeout_s=2)
    with pytest.raises(UnreachableNodeError, match="node alpha does not answer") as caught:
        engine.run_linked(
            Node(name="alpha", export_dir=tmp_path),
            deaf,
            tmp_path / "go",
            on_message=lambda _: own.running[victim].send_signal(signal.SIGSTOP),
            token=CancellationToken(),
        )
    assert caught.value.in_doubt
    (tmp_path / "go").touch()
    own.running[victim].send_signal(signal.SIGCONT)
    dask_engine.disconnect()
    assert engine_for(own, tmp_path, node_timeout_s=LONG_S).run(Node(name="alpha", export_dir=tmp_path), divmod, 7, 2) == (3, 1)


def test_a_node_that_is_stopped_cancels_what_it_does(own: Processes, tmp_path: Path) -> None:
    engine = engine_for(own, tmp_path)
    answer = engine.run_linked(
        Node(name="alpha", export_dir=tmp_path),
        waiting,
        on_message=lambda _: own.running[1].terminate(),
        token=CancellationToken(),
    )
    assert answer == "stopped: the node is being stopped"


def test_a_node_comes_back_to_a_scheduler_that_was_started_anew(own: Processes, tmp_path: Path) -> None:
    own.running[0].kill()
    own.running[0].wait()
    own.start("scheduler")
    engine = engine_for(own, tmp_path, node_timeout_s=LONG_S)
    assert engine.run(Node(name="alpha", export_dir=tmp_path), os.getpid) == own.running[1].pid


def test_a_client_whose_scheduler_was_started_anew_hears_what_its_functions_tell(own: Processes, tmp_path: Path) -> None:
    engine, node = engine_for(own, tmp_path, node_timeout_s=LONG_S), Node(name="alpha", export_dir=tmp_path)
    assert engine.run(node, divmod, 7, 2) == (3, 1)
    way = dask_engine.connection(engine._settings)
    own.running[0].kill()
    own.running[0].wait()
    own.start("scheduler")
    wait_until(lambda: running_again(way, node))
    token = CancellationToken()
    answer = engine.run_linked(node, waiting, on_message=lambda _: token.cancel("enough"), token=token)
    assert answer == "stopped: enough"


def test_what_is_asked_for_while_the_connection_is_lost_is_in_doubt(own: Processes, tmp_path: Path) -> None:
    engine, node = engine_for(own, tmp_path, node_timeout_s=LONG_S), Node(name="alpha", export_dir=tmp_path)
    way = dask_engine.connection(engine._settings)
    own.running[0].kill()
    own.running[0].wait()
    wait_until(lambda: not way.alive)
    call = dask_engine._Call(way, engine._settings, node, CancellationToken(), print)
    with pytest.raises(UnreachableNodeError, match="was lost") as caught:
        call.perform(cloudpickle.dumps((waiting, ())), dask_engine.Place.OPERATION)
    assert caught.value.in_doubt


@pytest.mark.parametrize("raises", [True, False])
def test_a_connection_that_is_closed_before_the_function_is_stopped_replaces_no_error(
    engine: DaskEngine, node: Node, tmp_path: Path, raises: bool
) -> None:
    token = CancellationToken()

    def listen(message: object) -> None:
        dask_engine.disconnect()
        if raises:
            raise ValueError("on the way")
        token.cancel("enough")

    kind = ValueError if raises else UnreachableNodeError
    with pytest.raises(kind) as caught:
        engine.run_linked(node, noting, tmp_path / "noted", on_message=listen, token=token)
    if isinstance(caught.value, UnreachableNodeError):
        assert caught.value.in_doubt
    assert "was lost" in "".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    wait_until(lambda: (tmp_path / "noted").read_text() == "ended: the client that asked for it is gone")


def test_what_is_asked_for_over_a_closed_connection_was_not_begun(engine: DaskEngine, node: Node) -> None:
    way = dask_engine.connection(engine._settings)
    dask_engine.disconnect()
    call = dask_engine._Call(way, engine._settings, node, CancellationToken(), print)
    with pytest.raises(diskhaul.OperationFailedError, match=r"connection to the Dask scheduler at .* was closed"):
        call.perform(cloudpickle.dumps((waiting, ())), dask_engine.Place.OPERATION)


def tell_and_end(link: Link) -> str:
    link.send("ending")
    return "done"


def task_states(dask_scheduler: Any) -> set[str]:
    return {task.state for task in dask_scheduler.tasks.values()}


def test_a_function_that_has_ended_but_whose_answer_is_not_to_be_had_is_told_so(own: Processes, tmp_path: Path) -> None:
    engine = engine_for(own, tmp_path, node_timeout_s=2)

    def listen(message: object) -> None:
        wait_until(lambda: on_scheduler(engine, task_states) == {"memory"})
        own.running[1].send_signal(signal.SIGSTOP)

    try:
        with pytest.raises(UnreachableNodeError, match="node alpha: what it did has ended, but how cannot be told") as caught:
            engine.run_linked(Node(name="alpha", export_dir=tmp_path), tell_and_end, on_message=listen, token=CancellationToken())
        assert caught.value.in_doubt
    finally:
        own.running[1].send_signal(signal.SIGCONT)


# --- begun or not -----------------------------------------------------------------------------------------------------


def test_what_runs_but_was_not_heard_of_is_not_told_as_never_begun(engine: DaskEngine, node: Node, tmp_path: Path) -> None:
    way, token, answers = dask_engine.connection(engine._settings), CancellationToken(), list[str]()
    way.client.unsubscribe_topic(way.topic)

    def ask() -> None:
        answers.append(engine.run_linked(node, noting, tmp_path / "noted", on_message=print, token=token))

    try:
        asking = threading.Thread(target=ask)
        asking.start()
        wait_until((tmp_path / "noted").exists)
        token.cancel("enough")
        asking.join(LONG_S)
        assert answers == ["enough"]
    finally:
        dask_engine.disconnect()


def held(link: Link, path: Path) -> str:
    """As `deaf`, and answers once it was let go."""
    deaf(link, path)
    return f"let go, and told to stop: {link.token.cancelled}"


def test_what_waits_at_a_node_that_is_being_stopped_is_never_begun(own: Processes, tmp_path: Path) -> None:
    calls = Calls(engine_for(own, tmp_path), Node(name="alpha", export_dir=tmp_path))
    try:
        first, second = calls.ask(held, tmp_path / "go"), calls.ask(waiting)
        third = calls.ask(noting, tmp_path / "third", begun=False)
        own.running[1].terminate()
        assert calls.answer(second) == "stopped: the node is being stopped"
        assert str(calls.answer(third)) == "interrupted before it was begun: the node is being stopped"
        assert not (tmp_path / "third").exists()
        (tmp_path / "go").touch()
        assert calls.answer(first) == "let go, and told to stop: True"
    finally:
        (tmp_path / "go").touch()
        calls.end()


def begin_and_end(link: Link, key: str) -> list[bool]:
    """What cancelling says on a node of functions that run there, that have run, and that never came."""
    from diskhaul_plugins.engines.dask import tasks

    running, ended = tasks._Running(), []
    assert isinstance(link, tasks.WorkerLink)
    with running.entered(key, link):
        ended.append(running.cancel(key, "enough"))
    return [*ended, running.cancel(key, "enough"), running.cancel(f"not-{key}", "enough")]


def test_a_node_tells_what_it_had_begun_from_what_never_came(engine: DaskEngine, node: Node) -> None:
    answer = engine.run_linked(node, begin_and_end, "some key", on_message=print, token=CancellationToken())
    assert answer == [True, True, False]


# --- whether a node is there ------------------------------------------------------------------------------------------


def test_a_scheduler_that_cannot_be_told_how_many_workers_to_name_names_all(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    try:
        processes.start("scheduler", "old")
        way = dask_engine.connection(engine_for(processes, tmp_path)._settings)
        assert not way.serves("node-alpha")
        processes.start("worker", "alpha")
        assert way.serves("node-alpha")
    finally:
        processes.close()


def test_a_node_is_found_among_many(cluster: Processes, engine: DaskEngine) -> None:
    way = dask_engine.connection(engine._settings)

    async def look() -> list[bool]:
        async with AsyncExitStack() as workers:
            names = [f"many-{number}" for number in range(12)]
            for name in names:
                plain = {"extensions": {}, "dashboard": False, "dashboard_address": "127.0.0.1:0"}
                await workers.enter_async_context(Worker(cluster.address, nthreads=1, resources={name: 1}, **plain))
            return [await asyncio.to_thread(way.serves, name) for name in names]

    with dask.config.set(serving.CONFIGURATION):
        assert all(asyncio.run(look()))


def ticking(link: Link, number: int) -> str:
    for _ in range(number):
        link.send("tick")
        time.sleep(0.1)
    return "done"


def test_a_node_that_is_heard_of_is_there_whatever_the_scheduler_says(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    try:
        processes.start("scheduler", "busy")
        processes.start("worker", "alpha")
        engine = engine_for(processes, tmp_path, node_timeout_s=1)
        alpha = Node(name="alpha", export_dir=tmp_path)
        assert engine.run_linked(alpha, ticking, 50, on_message=print, token=CancellationToken()) == "done"
    finally:
        processes.close()


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "scheduler: None is no address"),
        ({"scheduler": "alpha:8786"}, "is no address; it is tls://HOST:PORT"),
        ({"scheduler": "tcp://alpha:8786"}, "rules all nodes: use tls://"),
        ({"scheduler": "tls://alpha:8786"}, "backend_options.dask.ca: missing"),
        ({"scheduler": "tls://alpha:8786", "ca": "gone.pem"}, "gone.pem cannot be read"),
        ({"slots": 0}, "slots: 0 is not a number from 1"),
        ({"slots": True}, "slots: True is not a number"),
        ({"node_timeout_s": float("nan")}, "node_timeout_s: nan is not a number of seconds"),
        ({"shared_state_dir": "yes"}, "shared_state_dir: 'yes' is neither true nor false"),
        ({"sched": "x"}, "backend_options.dask.sched: unknown; there are scheduler"),
        ({"scheduler": "tls://alpha:8786"}, "backends.lock: lock files keep apart the processes of one machine only"),
    ],
)
def test_options_that_cannot_be_used_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RefusedError) as caught:
        DaskEngine(BackendContext(cluster=Cluster(name="lab", state_dir=tmp_path), options=options))
    assert any(said in problem for problem in caught.value.problems), caught.value.problems


@pytest.mark.parametrize("more", [{}, {"shared_state_dir": False}, {"shared_state_dir": True}])
def test_the_engine_says_whether_its_nodes_share_a_state_directory(tmp_path: Path, more: dict[str, Any]) -> None:
    cluster = Cluster(name="lab", state_dir=tmp_path, backends={"lock": "etcd"})
    options = {"scheduler": "tcp://alpha:8786", "allow_plaintext": True} | more
    engine = DaskEngine(BackendContext(cluster=cluster, options=options))
    assert engine.shared_state_dir is more.get("shared_state_dir", False)


def test_without_distributed_it_is_said_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['distributed'] = None\n"
        "import diskhaul\n"
        "options = {'dask': {'scheduler': 'tcp://127.0.0.1:9', 'allow_plaintext': True, 'shared_state_dir': True}}\n"
        "nodes = [diskhaul.Node(name='alpha', export_dir=sys.argv[1])]\n"
        "backends = {'engine': 'dask'}\n"
        "cluster = diskhaul.Cluster("
        "name='lab', state_dir=sys.argv[1], backends=backends, backend_options=options, nodes=nodes)\n"
        "try: print(diskhaul.list_exports(config=cluster).unreachable)\n"
        "except diskhaul.DiskhaulError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "state")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "the engine dask needs distributed: pip install 'diskhaul[dask]'" in said


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).touch(0o644)
    options = {"scheduler": "tls://alpha:8786", **{name: str(tmp_path / name) for name in ("ca", "cert", "key")}}
    with pytest.raises(RefusedError, match=r"key: .*others can read it .*; run: chmod 600"):
        DaskEngine(BackendContext(cluster=Cluster(name="lab", state_dir=tmp_path), options=options))
