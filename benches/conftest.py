"""What the benchmarks work on: data of known kinds, clusters around it, and how results say what they were measured on."""

from __future__ import annotations

import os
import platform
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import diskhaul

from .comparison.machine import cpu_model

MIB = 1 << 20
KINDS = ("zeros", "random", "text", "mixed", "sparse", "last-byte-set")


def data_set(kind: str, size: int) -> bytes:
    """`size` bytes of a kind, the same each time: zeros, random, text, mixed (text, random, zeros), last-byte-set."""
    if kind == "zeros":
        return bytes(size)
    if kind == "last-byte-set":
        return bytes(size - 1) + b"\1"
    if kind == "random":
        return random.Random(size).randbytes(size)
    if kind == "text":
        words = [line.split(maxsplit=1)[0] for line in Path(__file__).read_text().splitlines() if line.strip()]
        chooser = random.Random(1)
        text = " ".join(chooser.choices(words, k=MIB // 4)).encode()
        return (text * (size // len(text) + 1))[:size]
    if kind == "mixed":
        quarter = size // 4
        return data_set("text", quarter) + data_set("random", quarter) + bytes(size - 2 * quarter)
    raise ValueError(kind)


def write_data_set(path: Path, kind: str, size: int) -> None:
    """A file of `size` bytes of a kind; also "sparse": a quarter of it data, in pieces of a MiB with holes between them.

    "last-byte-set" is a hole with one byte at the end of every 4 MiB: a zero scan has to read all of a chunk.
    """
    with open(path, "wb") as file:
        if kind == "sparse":
            piece = data_set("text", MIB // 2) + data_set("random", MIB // 2)
            for place in range(0, size, 4 * MIB):
                file.seek(place)
                file.write(piece)
            file.truncate(size)
        elif kind == "last-byte-set":
            for _ in range(size // (4 * MIB)):
                file.write(data_set(kind, 4 * MIB))
        else:
            file.write(data_set(kind, size))
        file.flush()
        os.fsync(file.fileno())


def make_cluster(directory: Path, *disks: diskhaul.Disk) -> diskhaul.Cluster:
    """A cluster in `directory` with one instance, "vm", that is off; its exports go to node "beta". Nothing is superseded."""
    for name in ("alpha", "beta"):
        (directory / name).mkdir(exist_ok=True)
    return diskhaul.Cluster(
        name="bench",
        state_dir=directory / "state",
        backends={"cleanup": "none"},
        nodes=[diskhaul.Node(name=name, export_dir=directory / name) for name in ("alpha", "beta")],
        instances=[diskhaul.Instance(name="vm", node="alpha", state="down", disks=disks)],
    )


def remove_exports(cluster: diskhaul.Cluster) -> None:
    """Remove what an earlier round has made, so that each has the same to do."""
    for node in cluster.nodes:
        assert node.export_dir is not None
        shutil.rmtree(node.export_dir)
        node.export_dir.mkdir()


@pytest.fixture
def measured(benchmark: BenchmarkFixture) -> Callable[..., Any]:
    """Run a function under the benchmark and record how many bytes it deals with, on what, with what settings.

    With `rounds` it runs that often, after one run that does not count, with `before` before each. Without, pytest-benchmark
    finds out how often it has to run.
    """

    def run(
        function: Callable[[], Any],
        *,
        size: int | None = None,
        rounds: int | None = None,
        before: Callable[[], object] | None = None,
        **settings: object,
    ) -> Any:
        benchmark.extra_info.update(
            machine=platform.machine(),
            cpu=cpu_model(),
            cpus=len(os.sched_getaffinity(0)),
            kernel=platform.release(),
            python=platform.python_version(),
            diskhaul=diskhaul.__version__,
            settings=settings,
        )
        if rounds is None:
            assert before is None
            result = benchmark(function)
        else:

            def prepare() -> None:  # pytest-benchmark takes what a set-up returns for arguments
                if before is not None:
                    before()

            pedantic: Callable[..., Any] = benchmark.pedantic
            result = pedantic(function, setup=prepare, rounds=rounds, warmup_rounds=1)
        if size is not None:
            benchmark.extra_info["bytes"] = size
            if benchmark.stats is not None:
                benchmark.extra_info["mib_per_s"] = round(size / MIB / benchmark.stats.stats.median)
        return result

    return run


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Make block devices of a size in bytes: ``loop_device(64 << 20)``; skips without root and losetup."""
    devices: list[str] = []

    def attach(size: int) -> Path:
        losetup = shutil.which("losetup", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if losetup is None or os.geteuid() != 0:
            pytest.skip("a loop device needs root and losetup")
        image = tmp_path / f"loop{len(devices)}.img"
        with open(image, "wb") as file:
            file.truncate(size)
        found = subprocess.run([losetup, "--find", "--show", str(image)], check=True, capture_output=True, text=True)
        devices.append(found.stdout.strip())
        return Path(devices[-1])

    yield attach
    for device in devices:
        subprocess.run(["losetup", "--detach", device], check=True)
