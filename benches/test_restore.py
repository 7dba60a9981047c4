"""How fast exports are read back: verify, and import to a new directory, by data and compressor."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diskhaul

from .conftest import KINDS, MIB, make_cluster, write_data_set

SIZE = 64 * MIB


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(params=["none", "zstd:1", "gzip:1"])
def compress(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def cluster(tmp_path: Path, kind: str, compress: str) -> diskhaul.Cluster:
    """With one export of the disk."""
    write_data_set(tmp_path / "disk.raw", kind, SIZE)
    made = make_cluster(tmp_path, diskhaul.Disk(path=tmp_path / "disk.raw"))
    diskhaul.export("vm", node="beta", config=made, options=diskhaul.ExportOptions(compress=compress))
    return made


def test_verify(measured: Callable[..., Any], cluster: diskhaul.Cluster, kind: str, compress: str) -> None:
    result = measured(lambda: diskhaul.verify("vm", config=cluster), size=SIZE, rounds=5, kind=kind, compress=compress)
    assert result.findings == ()


def test_import(measured: Callable[..., Any], cluster: diskhaul.Cluster, kind: str, compress: str, tmp_path: Path) -> None:
    target = tmp_path / "back"
    result = measured(
        lambda: diskhaul.import_("vm", config=cluster, to_dir=target),
        size=SIZE,
        rounds=5,
        before=lambda: shutil.rmtree(target, ignore_errors=True),
        kind=kind,
        compress=compress,
    )
    assert result.disks[0].size == SIZE
