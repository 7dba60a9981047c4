"""What every engine has to do. Subclass `EngineConformance` in a test module and override `engine` and `node`."""

from __future__ import annotations

import operator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from ...api import Engine
from ...errors import UnreachableNodeError
from ...host import with_defaults
from ...model import Node


class EngineConformance:
    """Override both fixtures; `node` answers."""

    @pytest.fixture
    def engine(self) -> Engine:
        raise NotImplementedError("override the fixture 'engine'")

    @pytest.fixture
    def backend(self, engine: Engine) -> Engine:
        """The engine as operations see it: with its Protocol's defaults for what it leaves out."""
        return with_defaults("engine", engine)

    @pytest.fixture
    def node(self) -> Node:
        raise NotImplementedError("override the fixture 'node'")

    def test_a_function_gets_its_arguments_and_its_result_comes_back(self, backend: Engine, node: Node) -> None:
        assert backend.run(node, divmod, 17, 5) == (3, 2)

    def test_a_function_without_arguments_runs(self, backend: Engine, node: Node) -> None:
        assert backend.run(node, dict) == {}

    def test_what_a_function_raises_comes_through(self, backend: Engine, node: Node) -> None:
        with pytest.raises(ZeroDivisionError):
            backend.run(node, operator.floordiv, 1, 0)

    def test_an_offline_node_is_unreachable_and_named(self, backend: Engine, node: Node) -> None:
        with pytest.raises(UnreachableNodeError, match=node.name) as caught:
            backend.run(replace(node, offline=True), dict)
        assert caught.value.node == node.name

    def test_functions_run_from_several_threads_at_once(self, backend: Engine, node: Node) -> None:
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda number: backend.run(node, operator.mul, number, number), range(50)))
        assert results == [number * number for number in range(50)]
