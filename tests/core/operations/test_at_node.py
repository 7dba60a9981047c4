"""Each node that is another process recovers what is its own; what one of them meets leaves the others' results as they are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

import diskhaul
from diskhaul import this_node
from diskhaul.api import BackendContext, Engine
from diskhaul.errors import (
    DiskhaulError,
    InterruptedRunError,
    LockError,
    RefusedError,
    UnknownNameError,
    UnreachableNodeError,
)
from diskhaul.fleet.request import FleetLimits, FleetRequest
from diskhaul.journal import Journal
from diskhaul.operations.base import RunContext
from diskhaul.operations.fleet_export import FleetExportOperation, Library

if TYPE_CHECKING:
    from .conftest import SmallCluster

INSTANCE = "web1.example.com"
NODES = ("alpha", "beta", "gamma")
EXPORT_ID = "20261122T103308Z-1a2b3c4d"
T = TypeVar("T")


class Processes(Engine):
    """Nodes that go by the configuration `config` and take turns with this process; `trouble` is what happens on one instead."""

    distributed = True

    def __init__(self, config: Path) -> None:
        self.config = config
        self.trouble: dict[str, Callable[[], DiskhaulError]] = {}
        self.asked: list[str] = []
        self._turn = threading.Lock()

    @diskhaul.hookimpl
    def diskhaul_engines(self) -> Iterable[diskhaul.EngineSpec]:
        yield diskhaul.EngineSpec(name="processes", create=self._create)

    def _create(self, context: BackendContext) -> Engine:
        return self

    def here(self, node: diskhaul.Node, /) -> bool:
        return False

    def run(self, node: diskhaul.Node, function: Callable[..., T], /, *arguments: Any) -> T:
        with self._turn:
            self.asked.append(node.name)
            if node.name in self.trouble:
                raise self.trouble[node.name]()
            before = this_node.this_node()
            this_node._serving = this_node.ThisNode(name=node.name, config=self.config)
            try:
                return function(*arguments)
            finally:
                this_node._serving = before


def left(small: SmallCluster, kind: Any, data: dict[str, Any], *, instance: str = INSTANCE, operation: str = "export") -> None:
    """What a run that was killed would have left."""
    small.state_dir.mkdir(mode=0o700, exist_ok=True)
    Journal(small.state_dir).begin_with(f"run of {instance} {kind}", operation, instance, kind, data)


def left_stopped(small: SmallCluster, instance: str = INSTANCE) -> None:
    left(small, "guest", {"instance": instance, "timeout_s": 1.0, "since": time.time(), "stopped": True}, instance=instance)


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine(small: SmallCluster) -> Processes:
    """Nodes whose guest runs where a file says so: `small.path / "runs"`, which names the node that started it."""
    runs = small.path / "runs"
    nodes = "".join(f'[nodes.{name}]\nexport_dir = "{small.path / name}"\n' for name in NODES)
    config = small.path / "cluster.toml"
    config.write_text(
        f"""
[cluster]
name = "small"
master = "alpha"
state_dir = "{small.state_dir}"
[backends]
engine = "dask"
[backend_options.dask]
scheduler = "tcp://127.0.0.1:1"
allow_plaintext = true
shared_state_dir = true
{nodes}
[instances."{INSTANCE}"]
node = "alpha"
runtime = "command"
[instances."{INSTANCE}".runtime_options]
start = ["touch", "{runs}"]
stop = ["rm", "{runs}"]
status = ["test", "-e", "{runs}"]
[[instances."{INSTANCE}".disks]]
path = "{small.path}/disks/0.raw"
"""
    )
    return Processes(config)


def recover(small: SmallCluster, engine: Processes, instance: str | None = None, **more: Any) -> diskhaul.RecoverResult:
    config = small.cluster(backends={"engine": "processes"})
    return diskhaul.recover(instance, config=config, plugins=[*small.plugins, engine], lock_timeout_s=1.0, **more)


def away(name: str) -> Callable[[], DiskhaulError]:
    return lambda: UnreachableNodeError(name, f"node {name} does not answer")


@pytest.mark.parametrize(
    "error", [LockError("no quorum"), RefusedError("state_dir is not writable"), InterruptedRunError("the node is being stopped")]
)
def test_what_one_node_meets_is_told_beside_what_the_others_did(
    small: SmallCluster, engine: Processes, error: DiskhaulError
) -> None:
    left_stopped(small)
    engine.trouble |= {"beta": lambda: error, "gamma": away("gamma")}
    result = recover(small, engine)
    assert result.done == (f"{INSTANCE} runs again",)
    assert result.incomplete == (f"node beta: {error}", "node gamma: node gamma does not answer")
    assert (result.failed, result.unreachable, result.exit_code) == (("beta",), ("gamma",), 4)


def test_what_no_node_that_answers_knows_is_unknown(small: SmallCluster, engine: Processes) -> None:
    engine.trouble["gamma"] = away("gamma")
    with pytest.raises(UnknownNameError, match="web2"):
        recover(small, engine, "web2")


def test_what_one_node_knows_is_recovered_there_whoever_does_not_know_it(small: SmallCluster, engine: Processes) -> None:
    left_stopped(small)
    engine.trouble["beta"] = lambda: UnknownNameError("instance", "web1", "instance 'web1' is unknown")
    result = recover(small, engine, "web1")
    assert result == diskhaul.RecoverResult(done=(f"{INSTANCE} runs again",))


def test_a_recovery_that_is_cancelled_is_interrupted(small: SmallCluster, engine: Processes) -> None:
    token = diskhaul.CancellationToken()

    def interrupted() -> DiskhaulError:
        token.cancel("enough")
        return InterruptedRunError("interrupted: enough")

    engine.trouble["beta"] = interrupted
    with pytest.raises(InterruptedRunError, match="enough"):
        recover(small, engine, cancel=token)


# --- fleets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [RefusedError("state_dir is not writable"), LockError("no quorum"), away("alpha")()],
    ids=["refuses", "fails", "gone"],
)
def test_a_fleet_exports_nothing_again_before_the_node_of_its_instance_has_recovered(
    small: SmallCluster, engine: Processes, error: DiskhaulError
) -> None:
    attempts: list[str] = []

    def lost(instance: str, **options: Any) -> diskhaul.ExportResult:
        attempts.append(instance)
        raise UnreachableNodeError("alpha", "node alpha does not answer any more", in_doubt=True)

    engine.trouble["alpha"] = lambda: error
    context = RunContext(small.cluster(backends={"engine": "processes"}), plugins=[*small.plugins, engine])
    fleet = FleetExportOperation(
        context,
        Library(export=lost, recover=diskhaul.recover, list_exports=diskhaul.list_exports),
        request=FleetRequest(patterns=("web1",), to="beta"),
        limits=FleetLimits(retries=2, backoff_s=0.0),
        plan="nightly",
        resume=False,
        discard=False,
        dry_run=False,
        tell_one=context.feedback.emit,
    )
    (member,) = fleet.run().members
    assert (member.state, member.attempts, attempts) == ("failed", 3, [INSTANCE])
    assert "what became of an earlier attempt is not known" in member.error
    assert str(error) in member.error
