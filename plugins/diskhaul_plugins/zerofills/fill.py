"""Zero-fill ``fill``: the free space of a stopped instance's disk is made zero in place.

Free space is found as ``skip`` finds it, but only in filesystems that are clean as they stand on the disk: where a journal would
have to be replayed first, what is on the disk may be behind. What is zeroed is gone from the disk for good, and so are the blocks
that held it, where the disk's storage can give them back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

from diskhaul.api import Capability, DiskInPlace, DiskMap, Extent, ExtentKind
from diskhaul.errors import InterruptedRunError, OperationFailedError, StorageError
from diskhaul.model import Disk

from ..guest_disks.inspection import inspect_disk
from .skip import SkipZeroFill
from .skip import capability as skip_capability

_SLICE = 64 << 20
"""Bytes that are zeroed in one call at most: how finely it can be stopped. Taking blocks away takes milliseconds, writing zeros
to a slow disk about a second."""
_LOOK_AROUND_S = 1.0
"""How often it is looked whether somebody uses the disk by now."""
_GLANCE_S, _PAUSE_S = 1.0, 0.05
"""How long a use that may be over in a moment is waited for, and how often: programs that probe devices look into anything."""


def capability() -> Capability:
    """Works everywhere; which filesystems are understood depends on what is installed."""
    return skip_capability()


class FillZeroFill(SkipZeroFill):
    """Zeroes what ``skip`` would leave out. Stateless and thread-safe. Option ``timeout_s`` as that of ``skip``."""

    name: ClassVar[str] = "fill"
    program: ClassVar[str] = "from diskhaul_plugins.guest_disks.child import start; start(only_clean=True)"
    writes = True

    def zero(self, disk: Disk, target: DiskInPlace, /, *, deadline_s: float, cancelled: Callable[[], bool]) -> DiskMap:
        """Zero the free space; return what the disk held.

        Killed at any moment, it has changed nothing but free bytes, each of which is zero or as it was.

        Raises:
            StorageError: somebody uses the disk; or it cannot be read or written.
            GuestDiskReaderError: it cannot be found out what is free.
            OperationFailedError: the time is over.
            InterruptedRunError: the run was cancelled.
        """
        until = time.monotonic() + deadline_s
        _check_unused(disk, target)
        found = inspect_disk(target, self.families, deadline_s=min(self._timeout_s, deadline_s), program=self.program)
        # What was read is only worth something if nobody has written since.
        _check_unused(disk, target)
        looked_at = time.monotonic()
        for offset, length in _slices(_allocated(found, target)):
            if cancelled():
                raise InterruptedRunError(f"{disk.label}: zeroing was stopped")
            if time.monotonic() >= until:
                raise OperationFailedError(f"{disk.label}: no time left to zero its free space; raise the zeroing timeouts")
            if time.monotonic() - looked_at >= _LOOK_AROUND_S:
                _check_unused(disk, target)
                looked_at = time.monotonic()
            target.zero(offset, length)
        target.flush()
        return found


def _check_unused(disk: Disk, target: DiskInPlace) -> None:
    until = time.monotonic() + _GLANCE_S
    while users := list(target.users()):
        if time.monotonic() >= until:
            raise StorageError(f"{disk.label}: {', '.join(users)}: it is not zeroed", path=disk.label)
        time.sleep(_PAUSE_S)


def _allocated(found: DiskMap, target: DiskInPlace) -> Iterator[tuple[int, int]]:
    """Of each free extent the part from its first allocated byte to its last one: offset and length, ascending.

    Holes in between are not left out: one call that goes over them is quicker than several that do not.
    """
    extents = getattr(target, "extents", None)
    mapped: Iterable[Extent] = extents() if callable(extents) else [Extent(0, target.size, ExtentKind.DATA)]
    allocated = (extent for extent in mapped if extent.kind is not ExtentKind.HOLE)
    data = next(allocated, None)
    for free in found.free:
        begin = end = -1
        while data is not None and data.offset < free.end:
            if data.end > free.offset:
                begin = max(data.offset, free.offset) if begin < 0 else begin
                end = min(data.end, free.end)
                if data.end > free.end:
                    break  # it goes on behind this free extent
            data = next(allocated, None)
        if begin >= 0:
            yield begin, end - begin


def _slices(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for offset, length in ranges:
        for begin in range(offset, offset + length, _SLICE):
            yield begin, min(_SLICE, offset + length - begin)
