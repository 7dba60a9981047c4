"""Zero-fill ``skip`` and its relatives: free space is found by reading the guest's partition tables and filesystems.

Nothing is written. ``skip`` asks every reader there is, ``ext`` and ``swap`` those of that name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from diskhaul.api import BackendContext, Capability, DiskMap, DiskReader, Extent, ZeroFill
from diskhaul.errors import RefusedError
from diskhaul.model import Disk

from ..guest_disks.inspection import DEADLINE_S, PROGRAM, inspect_disk
from ..guest_disks.readers import FAMILIES


def capability() -> Capability:
    """Works everywhere; which filesystems are understood depends on what is installed."""
    return Capability(works=True, detail=f"reads {', '.join(FAMILIES)}")


class SkipZeroFill(ZeroFill):
    """Reads the disk in a process without privileges. Stateless and thread-safe.

    Option ``timeout_s``: seconds that reading a disk's metadata may take.
    """

    name: ClassVar[str] = "skip"
    families: ClassVar[Sequence[str]] = FAMILIES
    """The readers that it asks (`diskhaul_plugins.guest_disks.readers`)."""

    program: ClassVar[str] = PROGRAM
    writes = False

    def __init__(self, context: BackendContext) -> None:
        options = dict(context.options)
        self._timeout_s = _seconds(self.name, options.pop("timeout_s", DEADLINE_S))
        if options:
            raise RefusedError([f"backend_options.{self.name}: unknown option {key!r}" for key in options])

    def refuses(self, disk: Disk, /) -> str | None:
        return None

    def free_extents(self, disk: Disk, reader: DiskReader, /) -> Iterable[Extent]:
        return self.inspect(disk, reader).free

    def inspect(self, disk: Disk, reader: DiskReader, /) -> DiskMap:
        return inspect_disk(reader, self.families, deadline_s=self._timeout_s, program=self.program)


class ExtZeroFill(SkipZeroFill):
    """Only ext2, ext3 and ext4."""

    name = "ext"
    families = ("ext",)


class SwapZeroFill(SkipZeroFill):
    """Only swap space."""

    name = "swap"
    families = ("swap",)


def _seconds(backend: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 24 * 3600:
        raise RefusedError(f"backend_options.{backend}.timeout_s must be seconds, more than 0 and at most a day, not {value!r}")
    return float(value)
