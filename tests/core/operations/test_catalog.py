"""Exports over nodes: one that hangs holds up nobody else, and only the node asked for is looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import diskhaul

if TYPE_CHECKING:
    from .conftest import SmallCluster

INSTANCE = "web1.example.com"
END_S = 30.0


class HangingNode:
    """A plugin: the transfer ``directory`` with one node that does not answer until `release`."""

    def __init__(self, node: str) -> None:
        self._node = node
        self.release = threading.Event()
        self.waited_for = False

    @diskhaul.hookimpl
    def diskhaul_transfers(self) -> Iterator[diskhaul.TransferSpec]:
        from diskhaul_plugins.transfers.directory import DirectoryTransfer

        hanging = self

        class Transfer(DirectoryTransfer):
            def store(self, node: diskhaul.Node, /) -> Any:
                if node.name == hanging._node:
                    hanging.waited_for = not hanging.release.wait(END_S) or hanging.waited_for
                return super().store(node)

        yield diskhaul.TransferSpec(name="hanging", create=Transfer)


@pytest.fixture
def hanging(calls_end: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[HangingNode]:
    """Node gamma hangs."""
    monkeypatch.setattr("diskhaul.operations.catalog.NODE_LIMIT_S", 0.2)
    made = HangingNode("gamma")
    yield made
    made.release.set()
    calls_end()
    assert not made.waited_for, "somebody had the patience to wait until it gave up"


def test_a_node_that_hangs_counts_as_unreachable_and_the_others_are_listed(small: SmallCluster, hanging: HangingNode) -> None:
    export = small.exported("beta")
    config = small.cluster(backends={"transfer": "hanging"})
    for instance in (None, INSTANCE, "web1"):
        found = diskhaul.list_exports(instance, config=config, plugins=[*small.plugins, hanging])
        assert [record.export_id for record in found.exports] == [export.export_id]
        assert found.exit_code == 4
        (line,) = found.unreachable
        assert "node gamma" in line
        assert "did not return within 0.2 s" in line


def test_a_node_that_hangs_does_not_keep_an_export_from_its_end(small: SmallCluster, hanging: HangingNode) -> None:
    earlier = small.exported("alpha")
    result = small.export("beta", config=small.cluster(backends={"transfer": "hanging"}), plugins=[hanging])
    assert result.exit_code == 4
    assert [record.export_id for record in result.removed] == [earlier.export_id]
    assert any("gamma" in line for line in result.incomplete)
    assert small.runtime.running == {INSTANCE}


def test_an_export_on_another_node_can_be_verified_and_restored(
    small: SmallCluster, hanging: HangingNode, tmp_path: Path
) -> None:
    export = small.exported("beta")
    config = small.cluster(backends={"transfer": "hanging"})
    plugins = [*small.plugins, hanging]
    assert diskhaul.verify(f"web1@{export.export_id}", config=config, plugins=plugins).checked == (export,)
    diskhaul.import_("web1", config=config, plugins=plugins, to_dir=tmp_path / "restored")
    assert (tmp_path / "restored" / "disk-0.raw").read_bytes() == (tmp_path / "disks" / "0.raw").read_bytes()


def test_an_import_with_a_node_looks_only_there(small: SmallCluster, tmp_path: Path) -> None:
    keeping = small.cluster(backends={"cleanup": "none"})
    older = small.exported("alpha", config=keeping)
    old_bytes = (tmp_path / "disks" / "0.raw").read_bytes()
    (tmp_path / "disks" / "0.raw").write_bytes(old_bytes[::-1])
    newer = small.exported("beta", config=keeping)

    def imported(name: str, **more: Any) -> diskhaul.ImportResult:
        return diskhaul.import_(name, config=keeping, plugins=small.plugins, **more)

    result = imported("web1", node="alpha", to_dir=tmp_path / "from-alpha")
    assert older.export_id in result.source
    assert (tmp_path / "from-alpha" / "disk-0.raw").read_bytes() == old_bytes
    with pytest.raises(diskhaul.UnknownNameError, match="does not exist"):
        imported(f"web1@{newer.export_id}", node="alpha", to_dir=tmp_path / "not-there")
    with pytest.raises(diskhaul.UnknownNameError, match="has no valid export"):
        imported("web1", node="gamma", to_dir=tmp_path / "not-there")
    assert not (tmp_path / "not-there").exists()
