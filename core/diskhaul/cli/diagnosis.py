"""What ``diskhaul doctor`` finds out. Looks, and changes nothing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..api import Capability, Transfer
from ..config import find_configuration, load_cluster
from ..errors import ConfigurationError, DiskhaulError, PluginError, RefusedError
from ..host import PluginHost, RegisteredBackend
from ..model import Cluster, Disk, Instance, Node
from ..names import escape, suggestion
from ..operations.plugin_answers import problems_from
from ..operations.recover import unfinished_lines

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_PROGRAMS = {
    "zstd": "restores exports without diskhaul",
    "btrfs": "snapshot backend btrfs",
    "e2fsck": "checking restored ext filesystems",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A backend and whether it works here."""

    stage: str
    name: str
    plugin: str
    origin: str
    works: bool
    detail: str
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """An optional program; `path` is "" where it is not installed."""

    name: str
    path: str
    purpose: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What was found.

    Attributes:
        machine, configuration: facts by name, as text.
        problems: what is in the way, one line each; empty when all is well.
    """

    machine: Mapping[str, str]
    programs: tuple[Program, ...]
    backends: tuple[Backend, ...]
    configuration: Mapping[str, str]
    problems: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """As a JSON document."""
        return asdict(self)


def backends(registered: Iterable[RegisteredBackend]) -> tuple[Backend, ...]:
    """Ask each backend whether it works here."""
    return tuple(_asked(backend, backend.capability()) for backend in registered)


def _asked(registered: RegisteredBackend, capability: Capability) -> Backend:
    return Backend(
        stage=registered.stage,
        name=registered.name,
        plugin=registered.plugin,
        origin=registered.origin,
        works=capability.works,
        detail=capability.detail,
        summary=registered.spec.summary,
    )


def examine(config: Path | None) -> Diagnosis:
    """Look at this machine and at the configuration (`config`, or where it usually is)."""
    problems: list[str] = []
    machine = _machine(problems)
    cluster, configuration = _configuration(config, problems)
    try:
        host: PluginHost | None = PluginHost(cluster)
    except PluginError as error:
        problems += error.problems
        host = None
    found = backends(host.registered()) if host is not None else ()
    problems += host.blocked_in_vain if host is not None else ()
    if cluster is not None and host is not None:
        problems += _cluster_problems(cluster, host, found)
    path = os.environ.get("PATH", os.defpath) + ":" + _SBIN
    programs = tuple(
        Program(name=name, path=shutil.which(name, path=path) or "", purpose=purpose) for name, purpose in _PROGRAMS.items()
    )
    return Diagnosis(
        machine=machine, programs=programs, backends=found, configuration=configuration, problems=tuple(dict.fromkeys(problems))
    )


def _machine(problems: list[str]) -> dict[str, str]:
    facts = {
        "kernel": f"{platform.system()} {platform.release()} ({platform.machine()})",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cpus": str(len(os.sched_getaffinity(0))),
        "user": "root" if os.geteuid() == 0 else f"uid {os.geteuid()}",
    }
    try:
        import diskhaul_native

        facts["native core"] = f"kernels {', '.join(diskhaul_native.KERNELS)}"
    except Exception as error:  # whatever keeps it from loading is what has to be told
        facts["native core"] = "does not load"
        problems.append(f"native core: {error}; install diskhaul again, with a C compiler at hand")
    for module in ("zstandard", "blake3", "pydantic", "pluggy"):
        try:
            facts[module] = str(getattr(__import__(module), "__version__", "installed"))
        except Exception as error:
            facts[module] = "does not load"
            problems.append(f"{module}: {error}; install diskhaul again")
    return facts


def _configuration(config: Path | None, problems: list[str]) -> tuple[Cluster | None, dict[str, str]]:
    try:
        path = find_configuration(config)
    except ConfigurationError:
        return None, {"file": "none (give --config FILE, or make one to try with: diskhaul demo DIR)"}
    try:
        cluster = load_cluster(path)
    except ConfigurationError as error:
        problems += error.problems
        return None, {"file": f"{path} cannot be used"}
    return cluster, {
        "file": str(path),
        "cluster": cluster.name,
        "state": str(cluster.state_dir),
        "hooks": str(cluster.hook_dir or "none"),
        "nodes": str(len(cluster.nodes)),
        "instances": str(len(cluster.instances)),
    }


def _cluster_problems(cluster: Cluster, host: PluginHost, found: Iterable[Backend]) -> Iterator[str]:
    by_name = {(backend.stage, backend.name): backend for backend in found}
    for stage, name, user in sorted(set(_used(cluster))):
        backend = by_name.get((stage, name))
        if backend is None:
            hint = suggestion(name, [other for of, other in by_name if of == stage])
            yield f"{user}: there is no {stage} backend {name!r}; {hint}"
        elif not backend.works:
            yield f"{user}: {stage} backend {name} does not work here: {backend.detail}"
    try:
        # Operations make the state directory when they need it, so that there is none yet is no problem.
        if cluster.state_dir.exists():
            yield from host.locks().check()
            yield from unfinished_lines(cluster)
        host.cleanup()
        transfer = host.transfer()
        for node in cluster.nodes:
            if not node.offline:
                yield from _node_problems(node, transfer, cluster)
    except RefusedError as error:
        yield from error.problems
    for instance in cluster.instances:
        yield from _instance_problems(instance, host)
    yield from _other_cluster_problems(cluster)


def _other_cluster_problems(cluster: Cluster) -> Iterator[str]:
    """What exports to other clusters would be refused for, where the configuration has something for them. Runs no command."""
    from ..remote.secret import read_secret

    if cluster.cluster_domain_secret is not None or cluster.clusters:
        try:
            read_secret(cluster)
        except RefusedError as error:
            yield from error.problems
    for other in cluster.clusters:
        if shutil.which(other.command[0]) is None:
            yield f"clusters.{other.name}.command: {escape(other.command[0])} is not there, or cannot be run"


def _node_problems(node: Node, transfer: Transfer, cluster: Cluster) -> Iterator[str]:
    """What an export to `node`, or a listing of those on it, would fail at."""
    try:
        store = transfer.store(node)
        found = [line for each in cluster.instances for line in store.check(each.name, for_writing=not node.drained)]
    except (DiskhaulError, OSError) as error:
        found = [str(error)]
    for line in dict.fromkeys(found):
        yield line if node.name in line else f"node {node.name}: {line}"


def _instance_problems(instance: Instance, host: PluginHost) -> Iterator[str]:
    """What an export of `instance` would be refused for, as far as its runtime and its disks know."""
    if not instance.disks:
        yield f"instance {instance.name}: has no disks, so it cannot be exported; configure them, or take it out"
    try:
        yield from problems_from(f"instance {instance.name}", lambda: host.runtime(instance.runtime).check(instance))
        for disk in instance.disks:
            storage = host.storage(disk.storage)
            for problem in problems_from(disk.label, partial(storage.check, disk)):
                yield f"instance {instance.name}: {problem}"
            if disk.snapshot:
                yield from _snapshot_problems(instance, disk, host)
    except PluginError:
        return  # a backend that is not there has been told


def _snapshot_problems(instance: Instance, disk: Disk, host: PluginHost) -> Iterator[str]:
    choice = host.snapshots_for(disk)
    if choice.backend is None:
        reasons = "; ".join(reason.removeprefix(f"{disk.snapshot}: ") for reason in choice.reasons)
        yield f"instance {instance.name}: {disk.label}: snapshot {disk.snapshot} cannot be made: {reasons}"


def _used(cluster: Cluster) -> Iterator[tuple[str, str, str]]:
    """Which backends the configuration names: stage, name, who names it."""
    for stage, name in cluster.backends.items():
        yield stage, name, f"backends.{stage}"
    for instance in cluster.instances:
        yield "runtime", instance.runtime, f"instance {instance.name}"
        for disk in instance.disks:
            yield "storage", disk.storage, f"instance {instance.name} disk {disk.index}"
            if disk.snapshot:
                yield "snapshot", disk.snapshot, f"instance {instance.name} disk {disk.index}"
