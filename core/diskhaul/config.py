"""Clusters from TOML files: found, judged whether they can be trusted, read, checked as a whole.

Every problem of a file is reported at once, each as ``FILE: key.path: what is wrong; what to do``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from .errors import ConfigurationError
from .model import Cluster, Disk, Instance, Nic, Node, OtherCluster
from .names import name_problem, printable, suggestion
from .options import COMPRESSORS, ExportOptions
from .permissions import tampering_problem
from .trusted_toml import read_trusted_toml

if TYPE_CHECKING:
    from .config_schema import DiskSection, Document, InstanceSection, Location

CONFIG_VARIABLE = "DISKHAUL_CONFIG"
LOCAL_FILE = Path("cluster.toml")
SYSTEM_FILE = Path("/etc/diskhaul/cluster.toml")


def find_configuration(explicit: Path | str | None = None) -> Path:
    """Return the configuration file to use: `explicit`, or ``$DISKHAUL_CONFIG``, or ./cluster.toml, or the system's.

    The first two are not looked at here: if they are wrong, `load_cluster` says so.

    Raises:
        ConfigurationError: there is none; says where it was looked for.
    """
    if explicit is not None:
        return Path(explicit)
    configured = os.environ.get(CONFIG_VARIABLE)
    if configured:
        return Path(configured)
    for path in (LOCAL_FILE, SYSTEM_FILE):
        if os.path.lexists(path):
            return path
    raise ConfigurationError(
        f"no configuration: looked for --config, the variable {CONFIG_VARIABLE}, {LOCAL_FILE.absolute()} and {SYSTEM_FILE}; "
        "give --config FILE, or make a cluster to try with: diskhaul demo DIR"
    )


def load_cluster(path: Path | str) -> Cluster:
    """Read a cluster from the TOML file at `path`.

    Relative paths in it are taken from the directory of `path` (as given, links not followed). Nothing is created.

    Raises:
        ConfigurationError: the file cannot be read or trusted, or is not right; `problems` holds everything found.
    """
    given = os.fspath(path)
    if "\0" in given or not given:
        raise ConfigurationError("the configuration's path is empty or holds a NUL character; give --config FILE")
    file = Path(os.path.abspath(given))
    raw = read_trusted_toml(
        file, "configuration", missing="give --config FILE, or make one with: diskhaul demo DIR", inside="cluster.toml"
    )

    from .config_schema import check_shape

    document, problems = check_shape(raw)
    problems += _name_problems(raw)
    problems += _default_problems(raw)
    problems += _keep_problems(raw)
    problems += _reference_problems(raw)
    problems += _free_form_problems(raw)
    problems += _path_problems(raw, file.parent)
    if problems or document is None:
        raise ConfigurationError(f"{given}: {problem}" for problem in problems)
    return _cluster(document, file)


# --- what pydantic does not see ---------------------------------------------------------------------------------------
# All of this works on the raw document, whatever its shape, so that a slip in one place does not hide those in others.


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _tables(raw: Mapping[str, Any], section: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, content in _table(raw.get(section)).items():
        yield name, _table(content)


def _disks(raw: Mapping[str, Any]) -> Iterator[tuple[Location, Mapping[str, Any]]]:
    for name, instance in _tables(raw, "instances"):
        for index, disk in enumerate(_list(instance.get("disks"))):
            yield ("instances", name, "disks", index), _table(disk)


def _at(*location: str | int) -> str:
    from .config_schema import key_path

    return key_path(location)


def _name_problems(raw: Mapping[str, Any]) -> list[str]:
    problems: list[str] = []
    cluster_name = _table(raw.get("cluster")).get("name")
    if isinstance(cluster_name, str) and cluster_name.strip() and (problem := name_problem("cluster", cluster_name)):
        problems.append(f"{_at('cluster', 'name')}: {problem}")
    for section, kind in (("nodes", "node"), ("instances", "instance"), ("clusters", "cluster")):
        for name, _content in _tables(raw, section):
            if problem := name_problem(kind, name):
                problems.append(f"{_at(section, name)}: {problem}")
    return problems


def _keep_problems(raw: Mapping[str, Any]) -> list[str]:
    """What is wrong with the policy of the clean-up ``keep``, where that is used."""
    from .retention import keep_option_problems

    if _table(raw.get("backends")).get("cleanup") != "keep":
        return []
    options = _table(raw.get("backend_options")).get("keep", {})
    return keep_option_problems(options) if isinstance(options, dict) else []  # that it is no table has been told


def _default_problems(raw: Mapping[str, Any]) -> list[str]:
    from dataclasses import fields

    from .option_checks import default_problems

    known = [option.name for option in fields(ExportOptions)]
    defaults = _table(raw.get("defaults"))
    problems = [
        f"{_at('defaults', name)}: is not an export option; {suggestion(name, known)}" for name in defaults if name not in known
    ]
    problems += [
        f"defaults.{problem}" for problem in default_problems({name: value for name, value in defaults.items() if name in known})
    ]

    allowed = _table(raw.get("cluster")).get("compression", list(COMPRESSORS))
    texts = [compressor for compressor in _list(allowed) if isinstance(compressor, str)]
    for index, compressor in enumerate(texts):
        where = _at("cluster", "compression", index)
        if compressor.strip() and compressor not in COMPRESSORS:
            problems.append(f"{where}: {printable(compressor)} is unknown; {suggestion(compressor, COMPRESSORS)}")
        elif compressor in texts[:index]:
            problems.append(f"{where}: {printable(compressor)} stands twice; take one out")
    if isinstance(allowed, list) and not allowed:
        problems.append(f"{_at('cluster', 'compression')}: allows nothing; name at least one of {', '.join(COMPRESSORS)}")
    wanted = _table(raw.get("defaults")).get("compress")
    if isinstance(wanted, str) and texts and (method := wanted.partition(":")[0]) in COMPRESSORS and method not in texts:
        problems.append(f"defaults.compress: {method} is not among cluster.compression ({', '.join(texts)}); allow it there")
    return problems


def _reference_problems(raw: Mapping[str, Any]) -> list[str]:
    """Nodes that are named and do not exist. Another inventory may know nodes that the file does not, so this is for ``toml``."""
    if _table(raw.get("backends")).get("inventory", "toml") != "toml":
        return []
    nodes = list(_table(raw.get("nodes")))
    problems: list[str] = []

    def check(name: object, *where: str | int) -> None:
        if isinstance(name, str) and name.strip() and name not in nodes:
            hint = suggestion(name, nodes, none="no node is configured")
            problems.append(f"{_at(*where)}: there is no node {printable(name)}; {hint}")

    if "nodes" not in raw or raw["nodes"] == {}:
        problems.append("nodes: no node is configured; add a section [nodes.NAME] with export_dir")
    check(_table(raw.get("cluster")).get("master"), "cluster", "master")
    for name, instance in _tables(raw, "instances"):
        check(instance.get("node"), "instances", name, "node")
        secondaries = _list(instance.get("secondaries"))
        for index, secondary in enumerate(secondaries):
            where = ("instances", name, "secondaries", index)
            check(secondary, *where)
            if secondary == instance.get("node"):
                problems.append(f"{_at(*where)}: {printable(str(secondary))} is the primary node already; take it out")
            elif secondary in secondaries[:index]:
                problems.append(f"{_at(*where)}: {printable(str(secondary))} stands twice; take one out")
    return problems


def _free_form_problems(raw: Mapping[str, Any]) -> list[str]:
    from .config_schema import value_problems

    problems = value_problems(_table(raw.get("backend_options")), ("backend_options",))
    for name, node in _tables(raw, "nodes"):
        problems += value_problems(_table(node.get("options")), ("nodes", name, "options"))
    for name, instance in _tables(raw, "instances"):
        for key in ("runtime_options", "private", "parameters"):
            problems += value_problems(_table(instance.get(key)), ("instances", name, key))
    for where, disk in _disks(raw):
        problems += value_problems(_table(disk.get("options")), (*where, "options"))
    return problems


def _usable(path: object) -> TypeGuard[str]:
    """False for what the shape check has complained about already."""
    return isinstance(path, str) and bool(path.strip()) and "\0" not in path and not path.startswith("~")


_IN_DIRECTORIES = ("directory", "tls")
"""Transfers whose exports lie in nodes' export directories."""


def _path_problems(raw: Mapping[str, Any], base: Path) -> list[str]:
    problems: list[str] = []
    cluster = _table(raw.get("cluster"))
    own: dict[str, str] = {}  # directories that belong to diskhaul, by what the file calls them

    state = cluster.get("state_dir", "state")
    if _usable(state):
        directory = base / state
        own["cluster.state_dir"] = os.path.realpath(directory)
        problems += [f"cluster.state_dir: {problem}" for problem in _state_dir_problems(directory)]
    hooks = cluster.get("hook_dir")
    if _usable(hooks):
        directory = base / hooks
        own["cluster.hook_dir"] = os.path.realpath(directory)
        if not directory.is_dir():
            problems.append(f"cluster.hook_dir: {directory} is not a directory; make it, or leave the key out")
        elif problem := tampering_problem(directory):
            problems.append(f"cluster.hook_dir: is not trusted: {problem}")

    stores: dict[str, str] = {}
    needed = _table(raw.get("backends")).get("transfer", "directory") in _IN_DIRECTORIES
    for name, node in _tables(raw, "nodes"):
        export_dir = node.get("export_dir")
        if export_dir is None and needed:
            problems.append(f'{_at("nodes", name, "export_dir")}: is missing; add export_dir = "exports"')
        if not _usable(export_dir):
            continue
        where, real = _at("nodes", name, "export_dir"), os.path.realpath(base / export_dir)
        stores[where] = real
        if real == "/":
            problems.append(f"{where}: is the root directory; give exports a directory of their own")
        for other, directory_of in own.items():
            if _within(real, directory_of) or _within(directory_of, real):
                problems.append(f"{where}: {real} overlaps {other}; give exports a directory of their own")

    owners: dict[str, str] = {}
    for location, disk in _disks(raw):
        path = disk.get("path")
        if not _usable(path):
            continue
        where, real = _at(*location, "path"), os.path.realpath(base / path)
        if real in owners:
            problems.append(f"{where}: {base / path} is also {owners[real]}; each disk needs its own")
        owners.setdefault(real, where)
        for store, directory_of in stores.items():
            if _within(real, directory_of):
                problems.append(f"{where}: {base / path} lies inside {store}; keep disks outside export directories")
    for location, disk in _disks(raw):
        if disk.get("storage", "file") in ("file", "block") and "path" not in disk:
            problems.append(f'{_at(*location, "path")}: is missing; add path = "..."')
    return problems


def _state_dir_problems(directory: Path) -> list[str]:
    """The directory itself is made when it is needed; the one above it has to be there."""
    if os.path.lexists(directory):
        if not directory.is_dir():
            return [f"{directory} is not a directory; name another or take it away"]
    elif not directory.parent.is_dir():
        return [f"{directory.parent} does not exist; make it first"]
    try:
        problem = tampering_problem(directory)
    except OSError as error:
        return [f"{directory} cannot be looked at: {os.strerror(error.errno or 0)}"]
    return [f"is not trusted: {problem}"] if problem else []


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


# --- the model --------------------------------------------------------------------------------------------------------


def _cluster(document: Document, file: Path) -> Cluster:
    base = file.parent
    cluster = document.cluster
    return Cluster(
        name=cluster.name,
        master=cluster.master,
        state_dir=base / cluster.state_dir,
        hook_dir=base / cluster.hook_dir if cluster.hook_dir is not None else None,
        compression=tuple(cluster.compression),
        defaults=document.defaults,
        backends=document.backends.model_dump(exclude_none=True),
        backend_options=document.backend_options,
        nodes=tuple(
            Node(
                name=name,
                export_dir=base / node.export_dir if node.export_dir is not None else None,
                offline=node.offline,
                drained=node.drained,
                options=node.options,
            )
            for name, node in document.nodes.items()
        ),
        instances=tuple(_instance(name, instance, base) for name, instance in document.instances.items()),
        clusters=tuple(OtherCluster(name=name, command=tuple(other.command)) for name, other in document.clusters.items()),
        cluster_domain_secret=base / cluster.cluster_domain_secret if cluster.cluster_domain_secret is not None else None,
        source=file,
    )


def _instance(name: str, section: InstanceSection, base: Path) -> Instance:
    return Instance(
        name=name,
        node=section.node,
        state=section.state,
        runtime=section.runtime,
        os=section.os,
        disks=tuple(_disk(disk, base) for disk in section.disks),
        nics=tuple(Nic(**nic.model_dump()) for nic in section.nics),
        secondaries=tuple(section.secondaries),
        memory_mib=section.memory_mib,
        vcpus=section.vcpus,
        tags=tuple(section.tags),
        runtime_options=section.runtime_options,
        private=section.private,
        parameters=section.parameters,
    )


def _disk(section: DiskSection, base: Path) -> Disk:
    return Disk(
        storage=section.storage,
        path=base / section.path if section.path is not None else None,
        size=section.size,
        snapshot=section.snapshot,
        name=section.name,
        uuid=section.uuid,
        options=section.options,
    )
