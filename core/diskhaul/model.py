"""What diskhaul works on: clusters, nodes, instances, disks.

Plain frozen dataclasses, built in code or by `diskhaul.config` from TOML. They hold what is configured; what is true right
now (is the guest running? how large is the disk?) is asked of the backends. Sizes are bytes unless the name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from .errors import ConfigurationError
from .names import check_name
from .options import COMPRESSORS

AdminState = Literal["up", "down"]
Options = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One disk of an instance.

    Attributes:
        storage: name of the storage backend that opens it.
        path: file or device, for storages that have one (absolute once in a cluster).
        size: configured size in bytes; None means "whatever the storage says". A disk whose real size differs is refused.
        snapshot: name of the snapshot backend to use, or None to ask them in order.
        name: the user's name for it, or "".
        uuid: its identity in the cluster, or "".
        options: whatever else its storage wants to know.
        index: position in its instance, set by `Instance`.
    """

    storage: str = "file"
    path: Path | None = None
    size: int | None = None
    snapshot: str | None = None
    name: str = ""
    uuid: str = ""
    options: Options = field(default_factory=dict)
    index: int = 0

    @property
    def label(self) -> str:
        """How messages call it: ``disk 0 (/srv/web1.raw)``."""
        return f"disk {self.index} ({self.path})" if self.path is not None else f"disk {self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """One network interface, kept in manifests so that an instance can be made again."""

    mac: str = ""
    ip: str = ""
    network: str = ""
    name: str = ""
    mode: str = ""
    link: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A guest: its disks, where it lives, and how to reach the thing that runs it.

    Attributes:
        node: its primary node.
        state: what it *should* be; the runtime says what it is.
        runtime: name of the runtime backend.
        runtime_options: for the runtime; recorded in manifests.
        private: for the runtime; never written anywhere (passwords belong here).
        parameters: anything else worth recreating (hypervisor settings, backend settings), recorded in manifests.
    """

    name: str
    node: str
    state: AdminState = "up"
    runtime: str = "none"
    os: str = ""
    disks: Sequence[Disk] = ()
    nics: Sequence[Nic] = ()
    secondaries: Sequence[str] = ()
    memory_mib: int = 0
    vcpus: int = 0
    tags: Sequence[str] = ()
    runtime_options: Options = field(default_factory=dict)
    private: Options = field(default_factory=dict, repr=False)
    parameters: Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name("instance", self.name)
        numbered = tuple(replace(disk, index=index) for index, disk in enumerate(self.disks))
        object.__setattr__(self, "disks", numbered)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine, and where exports to it lie.

    Attributes:
        export_dir: the directory in which exports to this node lie, as that node sees it; None where the transfer needs none.
        offline: it does not answer and is not asked.
        drained: it takes no new exports.
    """

    name: str
    export_dir: Path | None = None
    offline: bool = False
    drained: bool = False
    options: Options = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name("node", self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherCluster:
    """A cluster that instances are moved to.

    Attributes:
        name: what that cluster calls itself.
        command: runs ``diskhaul`` there, on the node that takes the instances; arguments follow, standard input and output are
            its own. ``["ssh", "root@west", "diskhaul"]``
    """

    name: str
    command: Sequence[str]

    def __post_init__(self) -> None:
        check_name("cluster", self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Nodes and instances under one configuration.

    Attributes:
        master: the node on which hook scripts always run, or "" for none.
        state_dir: journal and locks live here.
        hook_dir: holds ``instance-export-pre.d`` and the like; None runs no hook scripts.
        compression: the compressors an export may use ("none", "zstd", "gzip").
        defaults: export options used where a call gives none (the names of `diskhaul.ExportOptions`).
        backends: stage ("lock", "cleanup", "transfer", "engine", "inventory", "snapshot", "zerofill") to backend name.
        backend_options: options by backend name, given to that backend when it is made.
        cluster_domain_secret: file with what it shares with other clusters, for exports to them; None where it has none.
        clusters: others that instances are moved to.
        source: the file it was read from, or None.
    """

    name: str
    state_dir: Path
    master: str = ""
    hook_dir: Path | None = None
    compression: Sequence[str] = COMPRESSORS
    defaults: Options = field(default_factory=dict)
    backends: Mapping[str, str] = field(default_factory=dict)
    backend_options: Mapping[str, Options] = field(default_factory=dict)
    nodes: Sequence[Node] = ()
    instances: Sequence[Instance] = ()
    cluster_domain_secret: Path | None = None
    clusters: Sequence[OtherCluster] = ()
    source: Path | None = None

    def __post_init__(self) -> None:
        check_name("cluster", self.name)
        problems = [f"nodes: {name!r} stands twice" for name in _twice(node.name for node in self.nodes)]
        problems += [f"instances: {name!r} stands twice" for name in _twice(i.name for i in self.instances)]
        problems += [f"clusters: {name!r} stands twice" for name in _twice(other.name for other in self.clusters)]
        if problems:
            raise ConfigurationError(problems)


def _twice(names: Any) -> list[str]:
    seen: set[str] = set()
    double: list[str] = []
    for name in names:
        if name in seen and name not in double:
            double.append(name)
        seen.add(name)
    return double
