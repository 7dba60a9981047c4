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
from diskhaul.operations.recover import RecoverOperation
from diskhaul.testing import ScriptedRuntime

if TYPE_CHECKING:
    from .conftest import SmallCluster

INSTANCE = "web1.example.com"
NODES = ("alpha", "beta", "gamma")
EXPORT_ID = "20261122T103308Z-1a2b3c4d"
T = TypeVar("T")


class Processes(Engine):
    """Nodes that go by the configuration `config` and take turns with this process; `trouble` is what happens on one instead."""

    distributed = True

    def __init__(self, config: Path, *, shared: bool = True) -> None:
        self.config, self.shared_state_dir = config, shared
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


# --- what a node recovers ---------------------------------------------------------------------------------------------


@pytest.fixture
def recover_on(small: SmallCluster, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RecoverOperation]:
    small.runtime = ScriptedRuntime()

    def operation(node: str, *, shared: bool = True, engine: str = "processes", **changes: Any) -> RecoverOperation:
        config = small.path / "cluster.toml"
        monkeypatch.setattr(this_node, "_serving", this_node.ThisNode(name=node, config=config))
        backends = {"engine": engine}
        context = RunContext(
            small.cluster(backends=backends, **changes), plugins=[*small.plugins, Processes(config, shared=shared)]
        )
        return RecoverOperation(context, None, 1.0)

    return operation


def test_a_node_leaves_the_guests_of_others_to_them(small: SmallCluster, recover_on: Callable[..., RecoverOperation]) -> None:
    left_stopped(small)
    beta = recover_on("beta")
    assert beta.run() == diskhaul.RecoverResult()
    assert beta.elsewhere == {INSTANCE: "alpha"}
    assert (small.runtime.calls, small.notes()) == ([], ["guest"])
    assert recover_on("alpha").run().done == (f"{INSTANCE} runs again",)
    assert (small.runtime.running, small.unfinished()) == ({INSTANCE}, 0)


def test_removals_are_finished_by_any_node_and_nothing_else_is_touched(
    small: SmallCluster, recover_on: Callable[..., RecoverOperation]
) -> None:
    left_stopped(small)
    left(small, "removing", {"node": "beta", "instance": INSTANCE, "export_id": EXPORT_ID}, operation="removal")
    assert len(recover_on("gamma").run().done) == 1
    assert (small.runtime.running, small.notes()) == (set(), ["guest"])


def test_what_was_being_received_belongs_to_the_node_that_received_it(
    small: SmallCluster, recover_on: Callable[..., RecoverOperation]
) -> None:
    noted = {"node": "beta", "instance": INSTANCE, "export_id": EXPORT_ID, "receiving": "x"}
    left(small, "partial", noted, operation="receive")
    assert recover_on("gamma").run().done == ()
    assert len(recover_on("beta").run().done) == 1
    assert small.unfinished() == 0


@pytest.mark.parametrize(
    ("master", "recovering"), [("beta", ["beta"]), ("", ["alpha"]), ("omega", ["alpha"])], ids=["master", "no-master", "unknown"]
)
def test_what_is_no_longer_configured_is_the_masters_or_anybodys(
    small: SmallCluster, recover_on: Callable[..., RecoverOperation], master: str, recovering: list[str]
) -> None:
    left_stopped(small, "gone.example.com")
    found = [node for node in NODES if recover_on(node, master=master).run().done]
    assert found == recovering
    assert small.unfinished() == 0


def test_a_node_with_a_journal_of_its_own_recovers_what_is_no_longer_configured(
    small: SmallCluster, recover_on: Callable[..., RecoverOperation]
) -> None:
    left_stopped(small, "gone.example.com")
    assert len(recover_on("gamma", shared=False).run().done) == 1


def test_a_node_with_a_journal_of_its_own_tells_what_now_lives_elsewhere(
    small: SmallCluster, recover_on: Callable[..., RecoverOperation]
) -> None:
    left_stopped(small)
    beta = recover_on("beta", shared=False)
    result = beta.run()
    assert "it lives on node alpha" in result.incomplete[0]
    assert (result.exit_code, beta.elsewhere, small.runtime.running) == (4, {}, set())


def test_where_nodes_are_no_processes_all_is_recovered(small: SmallCluster, recover_on: Callable[..., RecoverOperation]) -> None:
    left_stopped(small)
    assert recover_on("beta", engine="local").run().done == (f"{INSTANCE} runs again",)


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
    changes = {"nodes": more.pop("nodes")} if "nodes" in more else {}
    config = small.cluster(backends={"engine": "processes"}, **changes)
    return diskhaul.recover(instance, config=config, plugins=[*small.plugins, engine], lock_timeout_s=1.0, **more)


def away(name: str) -> Callable[[], DiskhaulError]:
    return lambda: UnreachableNodeError(name, f"node {name} does not answer")


@pytest.mark.parametrize("asked", [None, "web1"])
def test_a_guest_whose_node_is_gone_is_told_and_started_once_it_is_back(
    small: SmallCluster, engine: Processes, asked: str | None
) -> None:
    left_stopped(small)
    engine.trouble["alpha"] = away("alpha")
    gone = recover(small, engine, asked)
    assert gone == diskhaul.RecoverResult(incomplete=("node alpha: node alpha does not answer",), unreachable=("alpha",))
    assert sorted(engine.asked) == list(NODES)
    assert not (small.path / "runs").exists()
    engine.trouble.clear()
    back = recover(small, engine, asked)
    assert (back.exit_code, back.done) == (0, (f"{INSTANCE} runs again",))
    assert (small.path / "runs").exists()


@pytest.mark.parametrize("asked", [None, "web1"])
def test_a_guest_whose_node_is_offline_is_told(small: SmallCluster, engine: Processes, asked: str | None) -> None:
    nodes = [diskhaul.Node(name=name, export_dir=small.path / name, offline=name == "alpha") for name in NODES]
    assert recover(small, engine, asked, nodes=nodes) == diskhaul.RecoverResult()
    left_stopped(small)
    result = recover(small, engine, asked, nodes=nodes)
    assert (result.exit_code, result.unreachable, result.done) == (4, ("alpha",), ())
    assert INSTANCE in result.incomplete[0]
    assert not (small.path / "runs").exists()


def test_an_instance_whose_node_alone_has_its_journal_is_not_known_to_be_well_while_that_is_offline(
    small: SmallCluster, engine: Processes
) -> None:
    engine.shared_state_dir = False
    nodes = [diskhaul.Node(name=name, export_dir=small.path / name, offline=name == "alpha") for name in NODES]
    assert recover(small, engine, "web1", nodes=nodes).unreachable == ("alpha",)
    assert recover(small, engine, nodes=nodes) == diskhaul.RecoverResult()


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
