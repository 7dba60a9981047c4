"""Engine ``dask``, with a real scheduler and real workers, each a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import diskhaul
from diskhaul.api import BackendContext, Engine, Link
from diskhaul.cancellation import CancellationToken
from diskhaul.errors import InterruptedRunError, RefusedError, UnreachableNodeError
from diskhaul.model import Cluster, Node
from diskhaul.testing.conformance.engines import EngineConformance
from diskhaul_plugins.engines.dask import engine as dask_engine
from diskhaul_plugins.engines.dask.engine import DaskEngine

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


def test_what_waits_for_its_turn_can_be_taken_back_and_brief_functions_need_not_wait(engine: DaskEngine, node: Node) -> None:
    tokens = [CancellationToken() for _ in range(3)]
    begun = threading.Barrier(3)
    answers: list[object] = [None] * 3

    def ask(index: int) -> None:
        try:
            answers[index] = engine.run_linked(node, waiting, on_message=lambda _: begun.wait(LONG_S), token=tokens[index])
        except InterruptedRunError as error:
            answers[index] = error

    holders = [threading.Thread(target=ask, args=(index,)) for index in range(2)]
    for thread in holders:
        thread.start()
    begun.wait(LONG_S)  # both places of the node are taken
    third = threading.Thread(target=ask, args=(2,))
    third.start()
    assert engine.run(node, divmod, 7, 2) == (3, 1)
    tokens[2].cancel("never mind")
    third.join(LONG_S)
    assert isinstance(answers[2], InterruptedRunError)
    for token in tokens[:2]:
        token.cancel("enough")
    for thread in holders:
        thread.join(LONG_S)
    assert answers[:2] == ["stopped: enough"] * 2


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
        ({"sched": "x"}, "backend_options.dask.sched: unknown; there are scheduler"),
        ({"scheduler": "tls://alpha:8786"}, "backends.lock: lock files keep apart the processes of one machine only"),
    ],
)
def test_options_that_cannot_be_used_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RefusedError) as caught:
        DaskEngine(BackendContext(cluster=Cluster(name="lab", state_dir=tmp_path), options=options))
    assert any(said in problem for problem in caught.value.problems), caught.value.problems


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).touch(0o644)
    options = {"scheduler": "tls://alpha:8786", **{name: str(tmp_path / name) for name in ("ca", "cert", "key")}}
    with pytest.raises(RefusedError, match=r"key: .*others can read it .*; run: chmod 600"):
        DaskEngine(BackendContext(cluster=Cluster(name="lab", state_dir=tmp_path), options=options))
