"""Transfer ``tls``: the conformance suite over loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

from diskhaul.model import Node
from diskhaul.testing.conformance import transfers
from diskhaul.testing.conformance.transfers import TransferConformance
from diskhaul_plugins.transfers.tls.transfer import TlsTransfer

from .conftest import Lab


class TestTlsTransfer(TransferConformance):
    """Node alpha at the stores of beta and gamma."""

    @pytest.fixture
    def transfer(self, lab: Lab) -> TlsTransfer:
        return lab.transfer("alpha")

    @pytest.fixture
    def node(self, lab: Lab) -> Node:
        lab.serve("beta")
        return lab.node("beta")

    @pytest.fixture
    def other_node(self, lab: Lab) -> Node:
        lab.serve("gamma")
        return lab.node("gamma")

    @pytest.fixture
    def missing_node(self, lab: Lab) -> Node:
        lab.serve("gamma")
        (lab.work / "gamma").rmdir()
        return lab.node("gamma")

    @pytest.fixture(autouse=True)
    def _count_once_the_receivers_rest(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        """The receivers' descriptors are in this process, too, and closed a moment after the sender's."""
        count = transfers.descriptors
        monkeypatch.setattr(transfers, "descriptors", lambda: (lab.wait_for_rest(), count())[1])


class TestSeveralStreams(TestTlsTransfer):
    @pytest.fixture
    def transfer(self, lab: Lab) -> TlsTransfer:
        return lab.transfer("alpha", streams=3)


class TestTheNodesOwnStore(TransferConformance):
    """Node alpha at its own store, which needs no receiver."""

    @pytest.fixture
    def transfer(self, lab: Lab) -> TlsTransfer:
        return lab.transfer("alpha")

    @pytest.fixture
    def node(self, lab: Lab) -> Node:
        return lab.node("alpha")

    @pytest.fixture
    def other_node(self, lab: Lab) -> Node:
        lab.serve("beta")
        return lab.node("beta")

    @pytest.fixture
    def missing_node(self, lab: Lab, tmp_path: Path) -> Node:
        return Node(name="alpha", export_dir=tmp_path / "not mounted")
