"""The stores of the transfer ``object``, on a server."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.s3 import S3Server, node_options

from diskhaul.model import Node
from diskhaul.testing.conformance.transfers import TransferConformance
from diskhaul_plugins.transfers.object_store.transfer import ObjectTransfer


class TestObjectTransfer(TransferConformance):
    @pytest.fixture
    def transfer(self, make_transfer: Callable[..., ObjectTransfer]) -> ObjectTransfer:
        return make_transfer(part_mib=5)

    @pytest.fixture
    def node(self, server: S3Server, bucket: str) -> Node:
        return Node(name="alpha", options=node_options(server, bucket, prefix="backups/lab"))

    @pytest.fixture
    def other_node(self, server: S3Server, bucket: str) -> Node:
        return Node(name="beta", options=node_options(server, bucket, prefix="backups/other"))

    @pytest.fixture
    def same_node(self, server: S3Server, bucket: str) -> Node:
        options = node_options(server, bucket, prefix="/backups/lab/") | {"endpoint": f"HTTP://127.0.0.1:{server.port}/"}
        return Node(name="gamma", options=options)

    @pytest.fixture
    def missing_node(self, server: S3Server) -> Node:
        return Node(name="delta", options=node_options(server, "not-there"))
