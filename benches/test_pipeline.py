"""How fast a disk goes through the whole path of an export, by data, compressor, verification, chunk size and threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diskhaul
import diskhaul_native as native
from diskhaul.options import DirectIO, VerifyMode

from .conftest import KINDS, MIB, make_cluster, remove_exports, write_data_set

SIZE = 64 * MIB


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def cluster(tmp_path: Path, kind: str) -> diskhaul.Cluster:
    write_data_set(tmp_path / "disk.raw", kind, SIZE)
    return make_cluster(tmp_path, diskhaul.Disk(path=tmp_path / "disk.raw"))


@pytest.mark.parametrize("compress", ["none", "zstd:1", "zstd:3", "zstd:-5", "gzip:1"])
def test_export(measured: Callable[..., Any], cluster: diskhaul.Cluster, kind: str, compress: str) -> None:
    options = diskhaul.ExportOptions(compress=compress)
    result = measured(
        lambda: diskhaul.export("vm", node="beta", config=cluster, options=options),
        size=SIZE,
        rounds=5,
        before=lambda: remove_exports(cluster),
        kind=kind,
        compress=compress,
    )
    assert result.disks[0].size == SIZE


@pytest.mark.parametrize("verify", ["none", "stored", "full"])
def test_export_by_verification(measured: Callable[..., Any], tmp_path: Path, verify: VerifyMode) -> None:
    write_data_set(tmp_path / "disk.raw", "mixed", SIZE)
    cluster = make_cluster(tmp_path, diskhaul.Disk(path=tmp_path / "disk.raw"))
    options = diskhaul.ExportOptions(verify=verify)
    measured(
        lambda: diskhaul.export("vm", node="beta", config=cluster, options=options),
        size=SIZE,
        rounds=5,
        before=lambda: remove_exports(cluster),
        verify=verify,
    )


@pytest.mark.parametrize("chunk_size", [256 << 10, MIB, 4 * MIB, 16 * MIB])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_export_by_chunk_size_and_threads(measured: Callable[..., Any], tmp_path: Path, chunk_size: int, threads: int) -> None:
    write_data_set(tmp_path / "disk.raw", "mixed", SIZE)
    cluster = make_cluster(tmp_path, diskhaul.Disk(path=tmp_path / "disk.raw"))
    options = diskhaul.ExportOptions(chunk_size=chunk_size, threads=threads)
    measured(
        lambda: diskhaul.export("vm", node="beta", config=cluster, options=options),
        size=SIZE,
        rounds=5,
        before=lambda: remove_exports(cluster),
        chunk_size=chunk_size,
        threads=threads,
    )


@pytest.mark.parametrize("direct_io", ["auto", "always", "never"])
@pytest.mark.parametrize("read_ahead", [0, 2, 4])
def test_export_of_a_cold_disk_by_direct_io_and_read_ahead(
    measured: Callable[..., Any], tmp_path: Path, direct_io: DirectIO, read_ahead: int
) -> None:
    write_data_set(tmp_path / "disk.raw", "mixed", SIZE)
    cluster = make_cluster(tmp_path, diskhaul.Disk(path=tmp_path / "disk.raw"))
    options = diskhaul.ExportOptions(compress="none", direct_io=direct_io, read_ahead=read_ahead)

    def before() -> None:
        remove_exports(cluster)
        with open(tmp_path / "disk.raw", "rb") as disk:
            native.drop_cache(disk.fileno(), 0, SIZE)

    def export() -> diskhaul.ExportResult:
        try:
            return diskhaul.export("vm", node="beta", config=cluster, options=options)
        except diskhaul.RefusedError as error:
            pytest.skip(f"no direct I/O here: {error}")

    measured(export, size=SIZE, rounds=5, before=before, direct_io=direct_io, read_ahead=read_ahead)
