"""What scheduling costs per export, by the number of instances; and how near a fleet comes to what its limits allow."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import diskhaul
from diskhaul.api import BackendContext, RuntimeSpec
from diskhaul.fleet.plan_store import PlannedMember, PlanStore
from diskhaul.fleet.scheduler import Job, Scheduler, Start
from diskhaul.fleet.targets import Targets

NUMBERS = (1_000, 10_000, 100_000)
NODES = tuple(f"node{number}" for number in range(16))
HOLD_S = 0.5
"""How long each export of the throughput benchmark takes at least: much longer than what it needs of this machine."""


def timed(benchmark: BenchmarkFixture, function: Callable[[], object], *, rounds: int, number: int) -> None:
    """Measure `function`, which deals with `number` exports."""
    pedantic: Callable[..., Any] = benchmark.pedantic
    pedantic(function, rounds=rounds, warmup_rounds=rounds > 1)
    if benchmark.stats is not None:
        benchmark.extra_info["us_per_export"] = benchmark.stats.stats.median / number * 1e6


def cluster_of(work: Path, number: int) -> diskhaul.Cluster:
    return diskhaul.Cluster(
        name="lab",
        state_dir=work / "state",
        nodes=[diskhaul.Node(name=name, export_dir=work / name) for name in NODES],
        instances=[
            diskhaul.Instance(name=f"vm{index}", node=NODES[index % 16], disks=[diskhaul.Disk(size=index % 997, path=work / "x")])
            for index in range(number)
        ],
    )


@pytest.mark.parametrize("choice", ["round-robin", "most-free"])
@pytest.mark.parametrize("number", NUMBERS)
def test_scheduler(benchmark: BenchmarkFixture, number: int, choice: Any) -> None:
    """Every instance is queued, started and ended, within limits; `us_per_export` is what to compare."""

    def schedule() -> None:
        scheduler = Scheduler(order="largest", per_source=2, parallel=24, targets=Targets(NODES, 2, choice))
        for index in range(number):
            scheduler.add(Job(f"vm{index}", NODES[index % 16], size=index % 997))
        running: list[Start] = []
        while scheduler.pending or running:
            while (start := scheduler.next()) is not None:
                running.append(start)
            scheduler.ended(running.pop(0), stored=1)

    timed(benchmark, schedule, rounds=3, number=number)


@pytest.mark.parametrize("number", NUMBERS)
def test_dry_run(benchmark: BenchmarkFixture, tmp_path: Path, number: int) -> None:
    """``fleet export --all --dry-run`` as a library call: selection and results included."""
    cluster = cluster_of(tmp_path, number)

    def dry_run() -> None:
        result = diskhaul.fleet_export(all_instances=True, to="round-robin", config=cluster, dry_run=True)
        assert len(result.members) == number

    timed(benchmark, dry_run, rounds=3, number=number)


@pytest.mark.parametrize("number", NUMBERS)
def test_plan_record(benchmark: BenchmarkFixture, tmp_path: Path, number: int) -> None:
    """Noting a start and an end in the plan, durably: two transactions, whatever the size of the plan."""
    store = PlanStore(tmp_path)
    members = [PlannedMember(instance=f"vm{index}", source="node0") for index in range(number)]
    store.begin("plan", {}, members)

    def record() -> None:
        for index in range(0, number, number // 100):
            store.record("plan", [replace(members[index], state="running", attempts=1)])
            store.record("plan", [replace(members[index], state="done", attempts=1, export_id="x" * 25)])

    timed(benchmark, record, rounds=3, number=100)


class Holding:
    """The runtime of every guest; each export holds its place for `HOLD_S`, as if its disks took that long."""

    @diskhaul.hookimpl
    def diskhaul_runtimes(self) -> list[RuntimeSpec]:
        return [
            RuntimeSpec(
                name="holding",
                create=self._create,  # type: ignore[arg-type]  # the host adds what is left out
                capability=lambda: diskhaul.Capability(works=True),
            )
        ]

    def _create(self, context: BackendContext) -> Holding:
        return self

    def activate_disks(self, instance: diskhaul.Instance) -> bool:
        time.sleep(HOLD_S)
        return False

    def is_running(self, instance: diskhaul.Instance) -> bool:
        return False

    def stop(self, instance: diskhaul.Instance, *, timeout_s: float) -> None:
        raise AssertionError("nothing runs")

    def start(self, instance: diskhaul.Instance) -> None:
        raise AssertionError("nothing ran")


def test_throughput(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    """200 real exports on 4 nodes; `share_of_allowed` is how much of what 4 at a time could do was reached."""
    nodes, number, parallel = NODES[:4], 200, 4
    for name in nodes:
        (tmp_path / name).mkdir()
    instances = []
    for index in range(number):
        disk = tmp_path / f"vm{index}.raw"
        disk.write_bytes(index.to_bytes(4, "big") * 5000)
        instances.append(
            diskhaul.Instance(
                name=f"vm{index}", node=nodes[index % 4], state="down", runtime="holding", disks=[diskhaul.Disk(path=disk)]
            )
        )
    cluster = diskhaul.Cluster(
        name="lab",
        state_dir=tmp_path / "state",
        nodes=[diskhaul.Node(name=name, export_dir=tmp_path / name) for name in nodes],
        instances=instances,
    )
    options = diskhaul.ExportOptions(chunk_size=64 << 10, threads=1, memory=16 << 20)
    alone_s = []
    for index in range(1, 6):
        begun = time.monotonic()
        diskhaul.export(f"vm{index}", node=nodes[(index + 1) % 4], config=cluster, options=options, plugins=[Holding()])
        alone_s.append(time.monotonic() - begun)

    def fleet() -> None:
        result = diskhaul.fleet_export(
            all_instances=True,
            to="round-robin",
            parallel=parallel,
            per_source=2,
            per_target=2,
            config=cluster,
            options=options,
            plugins=[Holding()],
        )
        assert result.exit_code == 0

    timed(benchmark, fleet, rounds=1, number=number)
    allowed_s = sorted(alone_s)[2] * number / parallel
    benchmark.extra_info["allowed_s"] = allowed_s
    if benchmark.stats is not None:
        benchmark.extra_info["share_of_allowed"] = allowed_s / benchmark.stats.stats.median
