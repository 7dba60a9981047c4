"""What the other cluster answers during a move, held against what it was asked: only what is about that is believed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..records import ExportRecord
from ..remote.destination import read_destination
from ..remote.envelope import Document


def destination_problems(document: Document, *, cluster: str, node: str, instance: str) -> list[str]:
    """Why a destination is not the one that was asked for, one line each, however genuine it is.

    Args:
        node: as it was asked for; the full name that it was taken for is fine.

    Raises:
        RefusedError: it cannot be read.
    """
    found = read_destination(document)
    problems = []
    if found.cluster != cluster:
        problems.append(f"the command of cluster {cluster} was answered by cluster {found.cluster}: correct the configuration")
    if found.node != node and not found.node.startswith(f"{node}."):
        problems.append(f"cluster {cluster}: node {node} was asked for, and node {found.node} answered")
    if found.instance != instance:
        problems.append(f"cluster {cluster}: {instance} was to be received, and {found.instance} would be")
    return problems


def import_problem(answer: Mapping[str, Any], export: ExportRecord, sizes: Sequence[int], grow: Mapping[int, int]) -> str:
    """Why an answer does not say that every disk of `export` was written there; "" if it does.

    Args:
        sizes: of the exported disks, bytes.
        grow: larger sizes that were asked for, bytes by index.
    """
    if answer.get("instance") != export.instance or export.export_id not in str(answer.get("source")):
        return "its answer is about another export"
    if answer.get("dry_run") is not False:
        return "it does not say that anything was written"
    disks = answer.get("disks")
    if not isinstance(disks, list) or len(disks) != len(sizes):
        return f"it does not say that {len(sizes)} disk(s) were written"
    for index, (disk, exported) in enumerate(zip(disks, sizes, strict=True)):
        size = disk.get("size") if isinstance(disk, dict) and disk.get("index") == index and disk.get("error") == "" else None
        if not isinstance(size, int) or size < exported or size < grow.get(index, 0):
            return f"it does not say that disk {index} was written whole"
    return ""
