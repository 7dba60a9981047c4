"""What plugins cost: building the host, asking many plugins, and a storage in Python beside one with a descriptor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import diskhaul
import diskhaul_native as native
from diskhaul import api
from diskhaul.events import Event

from .conftest import MIB, make_cluster, remove_exports, write_data_set

SIZE = 64 * MIB
MANY = 25


class Observer:
    """A plugin that implements every observing hook and does nothing."""

    def __init__(self) -> None:
        self.seen = 0

    @diskhaul.hookimpl
    def diskhaul_event(self, event: Event) -> None:
        self.seen += 1

    @diskhaul.hookimpl
    def diskhaul_prerequisites(self, plan: diskhaul.Plan) -> list[str]:
        return []

    @diskhaul.hookimpl
    def diskhaul_hook_environment(self, plan: diskhaul.Plan) -> dict[str, str]:
        return {}


class PythonDisk:
    """Reads through a method: what a storage has to have."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.fd).st_size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        native.read_into(self.fd, buffer, offset)

    def close(self) -> None:
        os.close(self.fd)


class DescriptorDisk(PythonDisk):
    """Gives its descriptor away: reading and finding holes happen in C."""

    def fileno(self) -> int:
        return self.fd


class Storage(api.Storage):
    def __init__(self, kind: type[PythonDisk]) -> None:
        self.kind = kind

    @diskhaul.hookimpl
    def diskhaul_storages(self) -> Iterator[diskhaul.StorageSpec]:
        yield diskhaul.StorageSpec(name="own", create=lambda context: self)

    def open(self, disk: diskhaul.Disk) -> PythonDisk:
        return self.kind(Path(disk.options["file"]))


@pytest.mark.parametrize("number", [0, MANY])
def test_building_a_host(measured: Callable[..., Any], number: int) -> None:
    plugins = [Observer() for _ in range(number)]
    assert measured(lambda: diskhaul.plugins_report(plugins=plugins), plugins=number)


@pytest.mark.parametrize("number", [0, MANY])
def test_a_plan_that_plugins_are_asked_about(measured: Callable[..., Any], tmp_path: Path, number: int) -> None:
    write_data_set(tmp_path / "disk.raw", "sparse", 4 * MIB)
    cluster = make_cluster(tmp_path, diskhaul.Disk(path=tmp_path / "disk.raw"))
    plugins = [Observer() for _ in range(number)]
    assert measured(lambda: diskhaul.plan("vm", node="beta", config=cluster, plugins=plugins), plugins=number)


@pytest.mark.parametrize("number", [0, MANY])
def test_an_export_that_plugins_observe(measured: Callable[..., Any], tmp_path: Path, number: int) -> None:
    write_data_set(tmp_path / "disk.raw", "sparse", SIZE)
    cluster = make_cluster(tmp_path, diskhaul.Disk(path=tmp_path / "disk.raw"))
    plugins = [Observer() for _ in range(number)]
    measured(
        lambda: diskhaul.export("vm", node="beta", config=cluster, plugins=plugins),
        size=SIZE,
        rounds=5,
        before=lambda: remove_exports(cluster),
        plugins=number,
    )
    assert all(plugin.seen for plugin in plugins)


@pytest.mark.parametrize("storage", ["file", "descriptor", "python"])
@pytest.mark.parametrize("chunk_size", [256 << 10, 4 * MIB])
def test_an_export_by_storage(measured: Callable[..., Any], tmp_path: Path, storage: str, chunk_size: int) -> None:
    path = tmp_path / "disk.raw"
    write_data_set(path, "mixed", SIZE)
    plugins: list[object] = []
    disk = diskhaul.Disk(path=path)
    if storage != "file":
        plugins.append(Storage(DescriptorDisk if storage == "descriptor" else PythonDisk))
        disk = diskhaul.Disk(storage="own", options={"file": str(path)})
    cluster = make_cluster(tmp_path, disk)
    options = diskhaul.ExportOptions(chunk_size=chunk_size)
    measured(
        lambda: diskhaul.export("vm", node="beta", config=cluster, options=options, plugins=plugins),
        size=SIZE,
        rounds=5,
        before=lambda: remove_exports(cluster),
        storage=storage,
        chunk_size=chunk_size,
    )
