"""How fast a disk goes through the whole path and back: export, verify and import of one disk, by data and compressor."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diskhaul

from .conftest import MIB, data_set

SIZE = 128 * MIB


@pytest.fixture(params=["zeros", "random", "text", "mixed"])
def cluster(tmp_path: Path, request: pytest.FixtureRequest) -> diskhaul.Cluster:
    (tmp_path / "alpha").mkdir()
    (tmp_path / "beta").mkdir()
    (tmp_path / "disk.raw").write_bytes(data_set(request.param, SIZE))
    return diskhaul.Cluster(
        name="bench",
        state_dir=tmp_path / "state",
        backends={"cleanup": "others"},
        nodes=[diskhaul.Node(name=name, export_dir=tmp_path / name) for name in ("alpha", "beta")],
        instances=[diskhaul.Instance(name="vm", node="alpha", disks=[diskhaul.Disk(path=tmp_path / "disk.raw")])],
    )


@pytest.mark.parametrize("compress", ["none", "zstd:1", "zstd:3"])
def test_export(measured: Callable[..., Any], cluster: diskhaul.Cluster, compress: str) -> None:
    options = diskhaul.ExportOptions(compress=compress)
    result = measured(lambda: diskhaul.export("vm", node="beta", config=cluster, options=options), size=SIZE, compress=compress)
    assert result.export is not None


@pytest.mark.parametrize("compress", ["none", "zstd:1"])
def test_verify(measured: Callable[..., Any], cluster: diskhaul.Cluster, compress: str) -> None:
    diskhaul.export("vm", node="beta", config=cluster, options=diskhaul.ExportOptions(compress=compress))
    result = measured(lambda: diskhaul.verify("vm", config=cluster), size=SIZE, compress=compress)
    assert result.findings == ()


@pytest.mark.parametrize("compress", ["none", "zstd:1"])
def test_import(measured: Callable[..., Any], cluster: diskhaul.Cluster, compress: str, tmp_path: Path) -> None:
    diskhaul.export("vm", node="beta", config=cluster, options=diskhaul.ExportOptions(compress=compress))
    numbers = itertools.count()

    def restore() -> diskhaul.ImportResult:
        directory = tmp_path / f"back{next(numbers)}"
        try:
            return diskhaul.import_("vm", config=cluster, to_dir=directory)
        finally:
            shutil.rmtree(directory)

    assert measured(restore, size=SIZE, compress=compress).disks[0].size == SIZE
