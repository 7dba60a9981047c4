"""One server for all tests, and a bucket of its own for each."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.s3 import ADMIN, S3Server, node_options

from diskhaul.api import BackendContext
from diskhaul.model import Cluster, Node
from diskhaul_plugins.transfers.object_store.transfer import ObjectTransfer


@pytest.fixture(scope="session")
def server() -> Iterator[S3Server]:
    work = Path(tempfile.mkdtemp(prefix="diskhaul-s3-"))
    try:
        running = S3Server(work / "server")
        try:
            yield running
        finally:
            running.close()
    finally:
        shutil.rmtree(work)


@pytest.fixture
def bucket(server: S3Server) -> str:
    name = f"exports-{uuid.uuid4().hex[:12]}"
    server.make_bucket(name)
    return name


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ADMIN[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ADMIN[1])
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)


@pytest.fixture
def make_transfer(tmp_path: Path) -> Callable[..., ObjectTransfer]:
    """Make a transfer with options."""

    def make(**options: Any) -> ObjectTransfer:
        cluster = Cluster(name="lab", state_dir=tmp_path / "state")
        return ObjectTransfer(BackendContext(cluster=cluster, options={"allow_http": True, "retry_s": 20} | options))

    return make


@pytest.fixture
def transfer(make_transfer: Callable[..., ObjectTransfer]) -> ObjectTransfer:
    return make_transfer(part_mib=5)


@pytest.fixture
def node(server: S3Server, bucket: str) -> Node:
    return Node(name="alpha", options=node_options(server, bucket, prefix="backups/lab"))
