"""Recording the digests of an export that was published without them.

The chunk tables are written durably, and then the manifest is replaced by one rename: whenever that is interrupted, the export is
what it was, or has its digests. Nothing has to be undone, so nothing is noted in the journal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..api import Buffer, ExportReader, ExportStore, LockMode
from ..errors import OperationFailedError
from ..formats.corruption import CorruptError
from ..formats.manifest import DIGESTS_LATER, DiskRecord, Manifest, chunks_name, read_manifest
from ..options import DirectIO
from ..pipeline.send import SendJob
from ..pipeline.source import Source
from ..records import ExportRecord
from .base import LockLevel, Operation
from .catalog import check_identity, on_node, open_record
from .deadlines import CALL_LIMIT_S, within

RECORD_LOCK_S = 600.0
"""How long to wait for those who read the export meanwhile: all of it has been read for the digests, which should not be lost."""


def open_without_digests(export: ExportReader, record: DiskRecord, *, direct_io: DirectIO = "auto") -> Source:
    """Open a stored raw disk that has no digests yet.

    Raises:
        CorruptError: it is not as large as the manifest says.
        StorageError: it cannot be opened.
    """
    source = Source(export.open(record.file), f"{export.location}/{record.file}", direct_io=direct_io)
    if source.size != record.size:
        source.close()
        raise CorruptError(f"{record.file} has {source.size} bytes for a disk of {record.size}")
    return source


def with_digests(manifest: Manifest, made: Mapping[int, SendJob]) -> Manifest:
    """`manifest` with the digests of every disk that `made` has by its index; nothing may be missing afterwards."""
    return replace(
        manifest,
        required_features=tuple(feature for feature in manifest.required_features if feature != DIGESTS_LATER),
        disks=tuple(_with_digests(disk, made[disk.index]) if disk.index in made else disk for disk in manifest.disks),
    )


def _with_digests(disk: DiskRecord, job: SendJob) -> DiskRecord:
    return replace(
        disk,
        chunks_file=chunks_name(disk.index),
        root_digest=job.table.root_digest(),
        data_bytes=job.data_bytes,
        zero_bytes=job.zero_bytes,
        free_bytes=job.free_bytes,
    )


def record_digests(operation: Operation[Any], record: ExportRecord, manifest: Manifest, made: Mapping[int, SendJob]) -> None:
    """Add the digests that were `made` while the export had `manifest`, under its exclusive lock.

    Somebody else may have been quicker: then their digests must be the same.

    Raises:
        LockTimeoutError: somebody reads it, or removes it.
        LockLostError: this run may no longer change it.
        CorruptError: the digests that others recorded are different: what was read is not what they read.
        OperationFailedError: it is another export by now, or its store did not answer in time.
        StorageError, UnreachableNodeError: it is gone, or cannot be written; it is as it was, or has its digests.
    """
    new = with_digests(manifest, made)
    tables: dict[str, Sequence[Buffer]] = {chunks_name(index): tuple(job.table.parts()) for index, job in made.items()}
    node = operation.host.inventory().nodes()[record.node]
    with operation.locks.acquire(LockLevel.EXPORT, {record.export_id: LockMode.EXCLUSIVE}, RECORD_LOCK_S):
        now = read_manifest(open_record(operation.host, node, record))
        check_identity(now, record)
        if now.has_digests:
            _compare(now, new)
            return
        if now != manifest:
            raise OperationFailedError("its manifest was changed while it was read")
        operation.locks.check()
        amend = partial(on_node, operation.host, node, _amend, record.instance, record.export_id, tables, new.to_bytes())
        within(CALL_LIMIT_S, f"node {node.name}: recording digests", amend)


def _compare(recorded: Manifest, made: Manifest) -> None:
    for theirs, ours in zip(recorded.disks, made.disks, strict=True):
        if (theirs.chunk_size, theirs.root_digest) != (ours.chunk_size, ours.root_digest):
            raise CorruptError(f"disk {ours.index} was read with other digests than those that were recorded meanwhile")


def _amend(store: ExportStore, instance: str, export_id: str, tables: Mapping[str, Sequence[Buffer]], manifest: bytes) -> None:
    store.amend(instance, export_id, tables, manifest)
