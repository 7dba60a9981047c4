"""Zero-fill backends are asked, believed where they make sense, and never make an export fail by not knowing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

import diskhaul
from diskhaul.api import DiskInPlace, DiskReader, Extent, ExtentKind, ZeroFill

MIB = 1 << 20


class KnowsTheMiddle(ZeroFill):
    """Says that the second MiB is free; `writes` zeroes it in place."""

    def __init__(self, *, writes: bool = False, extents: Iterable[Extent] = (Extent(MIB, MIB, ExtentKind.FREE),)) -> None:
        self.writes = writes
        self.extents = tuple(extents)
        self.deadlines: list[float] = []

    @diskhaul.hookimpl
    def diskhaul_zerofills(self) -> Iterator[diskhaul.ZeroFillSpec]:
        yield diskhaul.ZeroFillSpec(name="middle", create=lambda context: self)

    def refuses(self, disk: diskhaul.Disk) -> str | None:
        return "does not know it" if disk.name == "unknown" else None

    def free_extents(self, disk: diskhaul.Disk, reader: DiskReader) -> Iterable[Extent]:
        assert reader.size == 4 * MIB
        return self.extents

    def zero(self, disk: diskhaul.Disk, target: DiskInPlace, *, deadline_s: float, cancelled: Callable[[], bool]) -> None:
        self.deadlines.append(deadline_s)
        assert not cancelled()
        target.zero(MIB, MIB)
        target.flush()


@pytest.fixture
def cluster(tmp_path: Path) -> diskhaul.Cluster:
    for name in ("alpha", "beta"):
        (tmp_path / name).mkdir()
    (tmp_path / "disk.raw").write_bytes(os.urandom(4 * MIB))
    return diskhaul.Cluster(
        name="lab",
        state_dir=tmp_path / "state",
        nodes=[diskhaul.Node(name=name, export_dir=tmp_path / name) for name in ("alpha", "beta")],
        instances=[diskhaul.Instance(name="vm", node="alpha", disks=[diskhaul.Disk(path=tmp_path / "disk.raw")])],
    )


def _restored(cluster: diskhaul.Cluster, directory: Path) -> bytes:
    diskhaul.import_("vm", config=cluster, to_dir=directory)
    return (directory / "disk-0.raw").read_bytes()


def test_free_space_is_left_out_on_the_way_and_the_disk_is_not_written(cluster: diskhaul.Cluster, tmp_path: Path) -> None:
    before = (tmp_path / "disk.raw").read_bytes()
    options = diskhaul.ExportOptions(zero_free_space=True, zero_fill="middle", chunk_size=256 * 1024)
    result = diskhaul.export("vm", node="beta", config=cluster, options=options, plugins=[KnowsTheMiddle()])
    disk = result.disks[0]
    assert (disk.data_bytes, disk.zero_bytes, disk.free_bytes, disk.bytes_read) == (3 * MIB, 0, MIB, 3 * MIB)
    assert (tmp_path / "disk.raw").read_bytes() == before
    assert _restored(cluster, tmp_path / "back") == before[:MIB] + bytes(MIB) + before[2 * MIB :]


def test_free_space_inside_a_chunk_is_left_out_too(cluster: diskhaul.Cluster, tmp_path: Path) -> None:
    before = (tmp_path / "disk.raw").read_bytes()
    odd = Extent(MIB + 512, 1024, ExtentKind.FREE)
    result = diskhaul.export(
        "vm",
        node="beta",
        config=cluster,
        options=diskhaul.ExportOptions(zero_free_space=True, zero_fill="middle"),
        plugins=[KnowsTheMiddle(extents=[odd])],
    )
    assert (result.disks[0].free_bytes, result.disks[0].data_bytes) == (1024, 4 * MIB - 1024)
    assert _restored(cluster, tmp_path / "back") == before[: odd.offset] + bytes(1024) + before[odd.end :]


def test_nonsense_from_a_backend_means_that_nothing_is_skipped(cluster: diskhaul.Cluster, tmp_path: Path) -> None:
    before = (tmp_path / "disk.raw").read_bytes()
    result = diskhaul.export(
        "vm",
        node="beta",
        config=cluster,
        options=diskhaul.ExportOptions(zero_free_space=True, zero_fill="middle"),
        plugins=[KnowsTheMiddle(extents=[Extent(3 * MIB, 2 * MIB, ExtentKind.FREE)])],
    )
    assert result.disks[0].free_bytes == 0
    assert any("nothing is skipped as free: middle" in warning for warning in result.warnings)
    assert _restored(cluster, tmp_path / "back") == before


def test_a_backend_that_writes_zeroes_the_stopped_disk_within_the_limit(cluster: diskhaul.Cluster, tmp_path: Path) -> None:
    backend = KnowsTheMiddle(writes=True)
    options = diskhaul.ExportOptions(
        zero_free_space=True, zero_fill="middle", zeroing_timeout_fixed_s=10.0, zeroing_timeout_per_mib_s=5.0
    )
    diskhaul.export("vm", node="beta", config=cluster, options=options, plugins=[backend])
    assert len(backend.deadlines) == 1
    assert 0 < backend.deadlines[0] <= 10 + 5 * 4
    assert (tmp_path / "disk.raw").read_bytes()[MIB : 2 * MIB] == bytes(MIB)


def test_asking_for_it_without_a_backend_is_refused(cluster: diskhaul.Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    built_in = [found.name for found in diskhaul.plugins_report() if found.stage == "zerofill"]
    monkeypatch.setenv("DISKHAUL_DISABLE_PLUGINS", ",".join(f"zerofill:{name}" for name in built_in))
    with pytest.raises(diskhaul.RefusedError, match="no zero-fill backend is installed"):
        diskhaul.export("vm", node="beta", config=cluster, options=diskhaul.ExportOptions(zero_free_space=True))


def test_a_named_backend_that_nobody_provides_is_refused_with_the_one_that_was_meant(cluster: diskhaul.Cluster) -> None:
    options = diskhaul.ExportOptions(zero_free_space=True, zero_fill="midle")
    with pytest.raises(diskhaul.RefusedError, match=r"'midle' is unknown; did you mean middle\?"):
        diskhaul.export("vm", node="beta", config=cluster, options=options, plugins=[KnowsTheMiddle()])
