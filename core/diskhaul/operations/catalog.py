"""Which exports lie where: over nodes, read from their manifests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TypeVar

from ..api import ExportReader, ExportStore, Transfer
from ..errors import DiskhaulError, RefusedError, UnknownNameError, UnreachableNodeError
from ..formats.chunk_table import ChunkTable
from ..formats.corruption import CorruptError
from ..formats.export_id import created_at, is_export_id
from ..formats.manifest import MANIFEST_NAME, Manifest, being_written, chunks_name, read_manifest
from ..host import PluginHost
from ..model import Node
from ..names import check_text, expand_name, name_problem
from ..records import ExportRecord, ListResult
from .deadlines import within

T = TypeVar("T")
PARALLEL_NODES = 16
"""How many nodes are asked something at once."""
NODE_LIMIT_S = 120.0
"""How long a node may take to list its exports before it counts as unreachable."""


@dataclass(frozen=True, slots=True)
class ExportName:
    """``INSTANCE[@ID]`` as a user writes it. `export_id` is "" for "the newest valid one"."""

    instance: str
    export_id: str = ""


def parse_export_name(text: str) -> ExportName:
    """Split ``INSTANCE[@ID]``.

    Raises:
        RefusedError: either part is not a legal name.
    """
    check_text("export", text)
    instance, at, export_id = text.partition("@")
    problem = name_problem("instance", instance)
    if problem:
        raise RefusedError(problem)
    if at and not is_export_id(export_id):
        raise RefusedError(f"export id {export_id!a} is not one: ids look like 20261122T103308Z-1a2b3c4d (see 'diskhaul list')")
    return ExportName(instance, export_id)


def on_node(host: PluginHost, node: Node, function: Callable[..., T], *arguments: object) -> T:
    """Run ``function(store, *arguments)`` on `node`, where ``store`` is its export store.

    Where nodes are other processes, it is the transfer that reaches the store, from here.

    Raises:
        UnreachableNodeError: the node is offline, does not answer, or its export directory is not there.
    """
    if node.offline:
        raise UnreachableNodeError(node.name, f"node {node.name} is marked offline in the configuration")
    if host.engine().distributed:
        return _with_store(host.transfer(), node, function, *arguments)
    answer: T = host.engine().run(node, _with_store, host.transfer(), node, function, *arguments)
    return answer


def _with_store(transfer: Transfer, node: Node, function: Callable[..., T], *arguments: object) -> T:
    return function(transfer.store(node), *arguments)


class Catalog:
    """The exports of several nodes."""

    def __init__(self, host: PluginHost, nodes: Iterable[Node]) -> None:
        self._host = host
        self._nodes = list(nodes)

    def list(self, instance: str | None = None) -> ListResult:
        """All exports of `instance`, or of every instance; invalid ones too, with their problem. Oldest first.

        An export that several nodes reach (they mount the same directory) is listed once.
        """
        found: dict[tuple[str, str, str], ExportRecord] = {}
        unreachable: list[str] = []
        for node, answer in self._ask_all(lambda node: partial(_store_records, node=node.name, instance=instance)):
            try:
                records, trouble = answer.result()
                for record in records:
                    found.setdefault((record.store, record.instance, record.export_id), record)
                if trouble:
                    unreachable.append(f"node {node.name}: {trouble}")
            except BaseException as error:  # a plugin's store may raise anything; the other nodes still count
                text = str(error)
                unreachable.append(text if node.name in text else f"node {node.name}: {text}")
        # By time first: ids of the same second are in no order.
        ordered = sorted(found.values(), key=lambda record: (record.instance, record.created, record.export_id, record.node))
        return ListResult(exports=tuple(ordered), unreachable=tuple(unreachable))

    def _ask_all(self, question: Callable[[Node], Callable[[ExportStore], T]]) -> Iterator[tuple[Node, Future[T]]]:
        """Ask the store of each node, several at once, each within the time that a node may take.

        One that hangs must not hold up what concerns others.
        """

        def ask(node: Node) -> T:
            what = f"node {node.name}: listing its exports"
            return within(NODE_LIMIT_S, what, lambda: on_node(self._host, node, question(node)))

        with ThreadPoolExecutor(max_workers=min(PARALLEL_NODES, max(1, len(self._nodes)))) as pool:
            yield from [(node, pool.submit(ask, node)) for node in self._nodes]

    def instances(self) -> set[str]:
        """Full names of instances that have a directory on some node that answers."""
        names: set[str] = set()
        for _, answer in self._ask_all(lambda node: _store_instances):
            try:
                names.update(answer.result())
            except BaseException:  # `list` names the nodes that do not answer
                continue
        return names

    def expand_instance(self, name: str, known: Iterable[str]) -> str:
        """Full name of an instance that is configured (`known`) or has exports."""
        return expand_name("instance", name, {*known, *self.instances()})

    def find(self, name: ExportName) -> ExportRecord:
        """The export `name`, or the newest valid one of the instance (whose name must be full).

        Raises:
            UnknownNameError: there is none.
        """
        listed = self.list(name.instance)
        hint = f" ({'; '.join(listed.unreachable)})" if listed.unreachable else ""
        if name.export_id:
            for record in listed.exports:
                if record.export_id == name.export_id:
                    return record
            ids = ", ".join(record.export_id for record in listed.exports[-3:]) or "no export"
            message = f"export {name.export_id!r} of {name.instance} does not exist; there is {ids}{hint}"
            raise UnknownNameError("export", f"{name.instance}@{name.export_id}", message)
        valid = [record for record in listed.exports if record.valid]
        if not valid:
            broken = ""
            if listed.exports:
                newest = listed.exports[-1]
                broken = f"; {len(listed.exports)} not valid, the newest {newest.export_id} on {newest.node}: {newest.problem}"
            raise UnknownNameError("export", name.instance, f"{name.instance} has no valid export{broken}{hint}")
        return valid[-1]


def _store_instances(store: ExportStore) -> Sequence[str]:
    return store.instances()


def _store_records(store: ExportStore, *, node: str, instance: str | None) -> tuple[list[ExportRecord], str]:
    """The exports on a node, and what is wrong with the store as a whole.

    Without an identity nobody knows which store it is, and so whether two nodes reach the same export: its exports are
    listed, and none of them counts as valid.
    """
    try:
        identity, trouble = store.identity, ""
    except (DiskhaulError, OSError) as error:
        identity, trouble = "", str(error)
    instances = [instance] if instance is not None else list(store.instances())
    records = [_record(store, identity, node, name, export_id) for name in instances for export_id in store.exports(name)]
    return [replace(record, problem=trouble) for record in records] if trouble else records, trouble


def _record(store: ExportStore, identity: str, node: str, instance: str, export_id: str) -> ExportRecord:
    blank = ExportRecord(
        export_id=export_id, instance=instance, node=node, store=identity, path="", created=created_at(export_id)
    )
    try:
        reader = store.open(instance, export_id)
        blank = replace(blank, path=reader.location)
        manifest = read_valid_manifest(reader)
        check_identity(manifest, blank)
    except CorruptError as corrupt:
        return replace(blank, problem=corrupt.problem)
    except (DiskhaulError, OSError) as error:
        return replace(blank, problem=str(error))
    return record_of(manifest, node=node, store=identity, path=reader.location)


def record_of(manifest: Manifest, *, node: str, store: str, path: str) -> ExportRecord:
    """The record of a valid export."""
    return ExportRecord(
        export_id=manifest.export_id,
        instance=manifest.instance["name"],
        node=node,
        store=store,
        path=path,
        created=datetime.fromisoformat(manifest.created),
        layout=manifest.layout,
        compress=str(manifest.options.get("compress", "")),
        consistency=manifest.consistency,
        disk_count=len(manifest.disks),
        disk_bytes=sum(disk.size for disk in manifest.disks),
        stored_bytes=sum(disk.stored_size if disk.stored_root else disk.data_bytes for disk in manifest.disks),
        digests=manifest.has_digests,
    )


def read_valid_manifest(reader: ExportReader) -> Manifest:
    """Read an export's manifest and check that exactly its files are there, in their sizes. Disks' contents are `verify`'s.

    Raises:
        CorruptError: this is not a valid export.
        StorageError: it cannot be read.
    """
    manifest = read_manifest(reader)
    check_files(reader, manifest)
    for name in manifest.other_files:
        check_other_file(reader, manifest, name)
    return manifest


def check_identity(manifest: Manifest, record: ExportRecord) -> None:
    """Raise `CorruptError` unless the manifest is that of the export which was found as `record`."""
    if (manifest.export_id, manifest.instance["name"]) != (record.export_id, record.instance):
        raise CorruptError(f"its manifest is that of {manifest.instance['name']}@{manifest.export_id}")


def check_files(reader: ExportReader, manifest: Manifest) -> None:
    """Raise `CorruptError` unless the export holds exactly what its manifest lists, each file in its size.

    Where digests have yet to be recorded, what an interrupted recording left does not count: the next one replaces it.
    """
    sizes = {disk.file: disk.stored_size for disk in manifest.disks}
    sizes |= {
        disk.chunks_file: ChunkTable.stored_size(disk.chunk_count, encoded=disk.stored_root != "")
        for disk in manifest.disks
        if disk.has_digests
    }
    expected = {MANIFEST_NAME, *manifest.other_files, *sizes}
    unrecorded = {chunks_name(disk.index) for disk in manifest.disks if not disk.has_digests}
    ignored = {*unrecorded, *(being_written(name) for name in (MANIFEST_NAME, *unrecorded) if unrecorded)}
    present = set(reader.names())
    if missing := sorted(expected - present):
        raise CorruptError(f"{', '.join(missing)} missing")
    if extra := sorted(present - expected - ignored):
        raise CorruptError(f"{', '.join(ascii(name) for name in extra[:5])} does not belong to it")
    for name, size in sizes.items():
        file = reader.open(name)
        try:
            if file.size != size:
                raise CorruptError(f"{name} has {file.size} bytes instead of {size}", file=name)
        finally:
            file.close()


def check_other_file(reader: ExportReader, manifest: Manifest, name: str) -> None:
    """Raise `CorruptError` unless the file `name`, which belongs to no disk, is the one that was written."""
    from blake3 import blake3  # not at the top: start-up time

    if blake3(read_small_file(reader, name)).hexdigest() != manifest.other_files[name]:
        raise CorruptError(f"{name} is not what was written (digest mismatch)")


MAX_SMALL_FILE = 1 << 20


def read_small_file(reader: ExportReader, name: str) -> bytes:
    """Read a whole file of an export that cannot be large.

    Raises:
        CorruptError: it is large.
        StorageError: it cannot be read.
    """
    file = reader.open(name)
    try:
        if file.size > MAX_SMALL_FILE:
            raise CorruptError(f"{name} has {file.size} bytes, far too many for what it is")
        data = bytearray(file.size)
        file.read_into(0, memoryview(data))
        return bytes(data)
    finally:
        file.close()


def open_record(host: PluginHost, node: Node, record: ExportRecord) -> ExportReader:
    """Open an export that was listed."""
    return on_node(host, node, _open, record.instance, record.export_id)


def _open(store: ExportStore, instance: str, export_id: str) -> ExportReader:
    return store.open(instance, export_id)
