"""What dead runs have left on a node is recovered when it is served, and for as long as it takes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

import diskhaul
from diskhaul.api import BackendContext, Engine, LockMode
from diskhaul.errors import GuestError, OperationFailedError
from diskhaul.journal import Journal
from diskhaul.operations import serve
from diskhaul.operations.base import RunContext
from diskhaul.testing import ScriptedRuntime

if TYPE_CHECKING:
    from .conftest import SmallCluster

INSTANCE = "web1.example.com"
END_S = 30.0
T = TypeVar("T")


class Waiting(Engine):
    """An engine whose worker does nothing, until it is told to stop or `failure` is set; the plugin and its backend."""

    distributed = True
    failure: OperationFailedError | None = None

    @diskhaul.hookimpl
    def diskhaul_engines(self) -> Iterable[diskhaul.EngineSpec]:
        yield diskhaul.EngineSpec(name="waiting", create=self._create)

    def _create(self, context: BackendContext) -> Engine:
        return self

    def run(self, node: diskhaul.Node, function: Callable[..., T], /, *arguments: Any) -> T:
        return function(*arguments)

    def serve(self, node: diskhaul.Node, /, *, token: diskhaul.CancellationToken, tell: Callable[[str], object]) -> None:
        tell("at work")
        while not token.wait(0.01):
            if self.failure is not None:
                raise self.failure


@dataclass
class Serving:
    """`serve_node` on a thread of its own."""

    small: SmallCluster
    engine: Waiting = field(default_factory=Waiting)
    lines: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    token: diskhaul.CancellationToken = field(default_factory=diskhaul.CancellationToken)
    failures: list[BaseException] = field(default_factory=list)

    def start(self) -> None:
        cluster = self.small.cluster(backends={"engine": "waiting"})
        context = RunContext(cluster, plugins=[*self.small.plugins, self.engine], token=self.token)

        def work() -> None:
            try:
                serve.serve_node(context, "alpha", tell=self.lines.put)
            except BaseException as error:
                self.failures.append(error)

        self._thread = threading.Thread(target=work, name="serving", daemon=True)
        self._thread.start()

    def told(self, part: str) -> list[str]:
        """What is told up to the line that has `part` in it."""
        found = []
        while part not in (found or [""])[-1]:
            found.append(self.lines.get(timeout=END_S))
        return found

    def end(self) -> None:
        self.token.cancel("enough")
        self.ended()

    def ended(self) -> None:
        self._thread.join(END_S)
        assert not self._thread.is_alive()


@pytest.fixture
def serving(small: SmallCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    monkeypatch.setattr(serve, "_RECOVERY_LOCK_S", 0.05)
    monkeypatch.setattr(serve, "_RECOVERY_PAUSES_S", (0.01,))
    served = Serving(small)
    yield served
    served.end()


@contextmanager
def held(small: SmallCluster) -> Iterator[None]:
    """The instance's lock, as a dead run has it until its lease is over."""
    locks = RunContext(small.cluster()).host.locks()
    lock = locks.acquire(
        f"instance/{INSTANCE}", LockMode.EXCLUSIVE, owner="dead", deadline_s=END_S, on_wait=str, cancelled=lambda: False
    )
    try:
        yield
    finally:
        lock.release()


def left_stopped(small: SmallCluster, run_id: str = "run-1") -> None:
    small.state_dir.mkdir(mode=0o700, exist_ok=True)
    noted: dict[str, Any] = {"instance": INSTANCE, "timeout_s": 1.0, "since": time.time(), "stopped": True}
    Journal(small.state_dir).begin_with(run_id, "export", INSTANCE, "guest", noted)


def recovering() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "diskhaul-recovery"]


def test_a_guest_whose_dead_run_still_has_its_lock_is_started_once_that_is_free(small: SmallCluster, serving: Serving) -> None:
    small.runtime = ScriptedRuntime()
    left_stopped(small)
    with held(small):
        serving.start()
        told = serving.told("at work")
        assert [line for line in told if f"recovery: {INSTANCE}: still being worked on" in line] == told[:-1]
        assert small.runtime.running == set()
    assert serving.told("runs again")[-1] == f"recovery: {INSTANCE} runs again"
    serving.end()
    assert (small.runtime.running, small.unfinished(), recovering()) == ({INSTANCE}, 0, [])


def test_what_stays_to_be_done_is_told_once(small: SmallCluster, serving: Serving) -> None:
    class Refusing(ScriptedRuntime):
        def start(self, instance: diskhaul.Instance, /) -> None:
            super().start(instance)
            if self.count("start") <= 12:  # three recoveries of four attempts each
                self.running.discard(instance.name)
                raise GuestError("not yet")

    small.runtime = Refusing()
    left_stopped(small)
    serving.start()
    told = serving.told("runs again")
    assert len([line for line in told if "IS DOWN" in line]) == 1, told


def test_a_recovery_that_cannot_be_begun_is_repeated(
    small: SmallCluster, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.runtime = ScriptedRuntime()
    left_stopped(small)
    unfinished, asked = Journal.unfinished, []

    def failing(journal: Journal, instance: str | None = None) -> Any:
        asked.append(instance)
        if len(asked) == 1:
            raise OperationFailedError("the journal cannot be read")
        return unfinished(journal, instance)

    monkeypatch.setattr(Journal, "unfinished", failing)
    serving.start()
    assert "the journal cannot be read; it is tried again" in serving.told("recovery:")[-1]
    serving.told("runs again")


def test_what_began_later_is_not_waited_for(small: SmallCluster, serving: Serving) -> None:
    small.runtime = ScriptedRuntime()
    left_stopped(small)
    with held(small):
        serving.start()
        serving.told("at work")
        left_stopped(small, "run-2")
        Journal(small.state_dir).strike(1)
        Journal(small.state_dir).finish("run-1")
        for thread in recovering():
            thread.join(END_S)
        assert recovering() == []
    assert small.notes() == ["guest"]


def test_serving_that_fails_ends_the_recovery(small: SmallCluster, serving: Serving) -> None:
    left_stopped(small)
    with held(small):
        serving.start()
        serving.told("at work")
        assert len(recovering()) == 1
        serving.engine.failure = OperationFailedError("no more")
        serving.ended()
        assert serving.failures == [serving.engine.failure]
        assert recovering() == []


def test_serving_that_is_interrupted_does_not_wait_for_a_recovery_that_hangs(
    small: SmallCluster, serving: Serving, monkeypatch: pytest.MonkeyPatch, calls_end: Callable[[], None]
) -> None:
    monkeypatch.setattr(serve, "_RECOVERY_END_S", 0.05)
    begun, release = threading.Event(), threading.Event()

    class Hanging(ScriptedRuntime):
        def start(self, instance: diskhaul.Instance, /) -> None:
            begun.set()
            release.wait(END_S)
            super().start(instance)

    small.runtime = Hanging()
    left_stopped(small)
    with held(small):
        serving.start()
        serving.told("at work")
    assert begun.wait(END_S)
    serving.end()
    assert len(recovering()) == 1
    release.set()
    calls_end()
    assert small.runtime.running == {INSTANCE}
