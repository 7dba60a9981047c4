"""Zero-fill ``trim``: the running guest itself gives back what its filesystems do not use, before it is stopped or snapshotted.

It needs no knowledge of what is on the disks, so it serves every filesystem that the guest can trim, encrypted ones included.
The discards have to reach the disk's storage (``discard=unmap`` of QEMU's disks, say): then there are holes where the free space
was, and holes are left out of every export.
"""

from __future__ import annotations

from collections.abc import Iterable

from diskhaul.api import BackendContext, Capability, DiskReader, Extent, ZeroFill
from diskhaul.errors import RefusedError
from diskhaul.model import Disk


def capability() -> Capability:
    """It is the runtime of an instance that can do it or not."""
    return Capability(works=True, detail="where the instance's runtime can have the guest trim")


class TrimZeroFill(ZeroFill):
    """Knows of no free extent: what was trimmed is a hole. Stateless."""

    writes = False
    trims = True

    def __init__(self, context: BackendContext) -> None:
        if context.options:
            raise RefusedError([f"backend_options.trim: unknown option {key!r}" for key in context.options])

    def refuses(self, disk: Disk, /) -> str | None:
        return None

    def free_extents(self, disk: Disk, reader: DiskReader, /) -> Iterable[Extent]:
        return ()
