"""Asks zero-fill backends what disks hold, and which of it may be left out."""

from __future__ import annotations

from ..api import DiskMap, DiskReader, ZeroFill
from ..cancellation import CancellationToken
from ..model import Disk
from ..pipeline.free_space import checked_disk_map
from .deadlines import within


def look_for_free_space(
    backend: ZeroFill, disk: Disk, reader: DiskReader, *, limit_s: float, token: CancellationToken | None = None
) -> DiskMap:
    """The map of the disk behind `reader`, checked.

    Raises:
        InterruptedRunError: `token` was cancelled; the backend's call is left behind.
        Exception: whatever the backend raises; it took longer than `limit_s`; its answer is nonsense. Free space is a saving:
            each is a reason to leave nothing out, and none to fail.
    """
    size = reader.size
    return within(
        limit_s,
        f"finding free space on {disk.label}",
        lambda: checked_disk_map(backend.inspect(disk, reader), size),
        token=token,
    )
