"""Telling whether a disk at another cluster is one that lies here: storage that both reach may give it to both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..host import PluginHost
from ..model import Disk, Instance
from ..options import MIB
from ..pipeline.source import Source
from ..records import DiskIdentity
from .deadlines import within


def disk_identities(host: PluginHost, instance: Instance, *, limit_s: float) -> tuple[DiskIdentity, ...]:
    """What tells the disks of a guest that is down from others. One that cannot be read, or is not there yet, has no digest.

    Args:
        limit_s: how long each may take to answer, seconds.
    """
    return tuple(_identity(host, disk, limit_s) for disk in instance.disks)


def _identity(host: PluginHost, disk: Disk, limit_s: float) -> DiskIdentity:
    def look() -> DiskIdentity:
        storage = host.storage(disk.storage)
        source = Source(storage.open(disk), disk.label)
        try:
            first = bytearray(min(MIB, source.size))
            source.fill(0, memoryview(first))
            digest = hashlib.sha256(first).hexdigest() if any(first) else ""
            return DiskIdentity(index=disk.index, location=str(storage.location(disk)), size=source.size, digest=digest)
        finally:
            source.close()

    try:
        return within(limit_s, f"looking at {disk.label}", look)
    except Exception:  # a plugin may raise anything; what is not known is not compared
        return DiskIdentity(index=disk.index)


def same_disks(here: Sequence[DiskIdentity], there: object) -> list[str]:
    """Which disks of another cluster, as its answer describes them, may be disks that lie here: one line each.

    Content alone does not tell: a copy that an earlier move left there begins as the disk does that it was made of.
    """
    known = {(disk.location, disk.size, disk.digest): disk for disk in here if disk.digest}
    found: list[str] = []
    for disk in there if isinstance(there, list) else ():
        fields: Mapping[str, Any] = disk if isinstance(disk, dict) else {}
        location, size, digest = fields.get("location"), fields.get("size"), fields.get("digest")
        if isinstance(location, str) and isinstance(size, int) and isinstance(digest, str):
            own = known.get((location, size, digest))
            if own is not None:
                found.append(f"a disk there has the place, the size and the beginning of disk {own.index} here")
    return found
