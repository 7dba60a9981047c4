"""Disks as the journal keeps them.

Options of disks built in code may be anything; the journal keeps what JSON holds, and everything else as text. That is enough: a
snapshot is found again by its reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..model import Disk


def disk_note(disk: Disk) -> dict[str, Any]:
    return {
        "storage": disk.storage,
        "path": str(disk.path) if disk.path is not None else None,
        "size": disk.size,
        "snapshot": disk.snapshot,
        "name": disk.name,
        "uuid": disk.uuid,
        "options": dict(disk.options),
        "index": disk.index,
    }


def disk_from_note(note: Mapping[str, Any]) -> Disk:
    values = dict(note)
    if values["path"] is not None:
        values["path"] = Path(values["path"])
    return Disk(**values)
