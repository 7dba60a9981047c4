"""Engine ``local``."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from diskhaul.api import BackendContext, Engine
from diskhaul.errors import UnreachableNodeError
from diskhaul.model import Cluster, Node
from diskhaul.testing.conformance.engines import EngineConformance
from diskhaul_plugins.engines.local import LocalEngine


@pytest.fixture
def engine(tmp_path: Path) -> LocalEngine:
    return LocalEngine(BackendContext(cluster=Cluster(name="lab", state_dir=tmp_path)))


class TestLocalEngine(EngineConformance):
    @pytest.fixture
    def engine(self, tmp_path: Path) -> Engine:
        return LocalEngine(BackendContext(cluster=Cluster(name="lab", state_dir=tmp_path)))

    @pytest.fixture
    def node(self, tmp_path: Path) -> Node:
        return Node(name="alpha", export_dir=tmp_path)


def test_the_function_runs_in_the_calling_thread(engine: LocalEngine, tmp_path: Path) -> None:
    node = Node(name="alpha", export_dir=tmp_path)
    assert engine.run(node, threading.get_ident) == threading.get_ident()


@pytest.mark.parametrize(("kind", "said"), [("missing", "does not exist"), ("file", "is not a directory"), ("link", "is not a")])
def test_a_node_without_its_export_directory_is_unreachable_and_says_what_to_do(
    engine: LocalEngine, tmp_path: Path, kind: str, said: str
) -> None:
    path = tmp_path / "exports"
    if kind == "file":
        path.touch()
    elif kind == "link":
        path.symlink_to(tmp_path / "nowhere")
    called: list[int] = []
    with pytest.raises(UnreachableNodeError, match=said) as caught:
        engine.run(Node(name="beta", export_dir=path), called.append, 1)
    assert caught.value.node == "beta"
    assert "nodes.beta.export_dir" in str(caught.value)
    assert called == []


def test_a_function_does_not_run_on_an_offline_node(engine: LocalEngine, tmp_path: Path) -> None:
    called: list[int] = []
    with pytest.raises(UnreachableNodeError, match="marked offline"):
        engine.run(Node(name="beta", export_dir=tmp_path, offline=True), called.append, 1)
    assert called == []


def test_a_node_without_an_export_directory_answers(engine: LocalEngine) -> None:
    assert engine.run(Node(name="beta"), lambda: 7) == 7
