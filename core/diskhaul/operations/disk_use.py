"""Looks whether anything writes to disks that should be at rest. What a guest's runtime says does not count here."""

from __future__ import annotations

import time
from collections.abc import Iterable

from ..errors import DiskhaulError, StorageError
from ..host import PluginHost
from ..model import Disk
from .deadlines import within

RELEASE_S = 5.0
"""How long a guest that has stopped may take to close its disks: some stop commands return while its process still ends."""
GLANCE_S = 1.0
"""How long a use that may be over in a moment is waited for: programs that probe devices, a process that is ending."""
_PAUSE_S = 0.05


def disks_in_use(host: PluginHost, disks: Iterable[Disk], *, patience_s: float, limit_s: float) -> list[str]:
    """Say of each disk that is still being used after `patience_s` seconds who may be writing to it, one line each.

    Args:
        limit_s: how long one storage may take to answer.

    Raises:
        StorageError, PluginHangsError: a storage cannot find it out.
    """
    disks = tuple(disks)
    until = time.monotonic() + patience_s
    while lines := [line for disk in disks for line in _users(host, disk, limit_s)]:
        if time.monotonic() >= until:
            break
        time.sleep(_PAUSE_S)
    return lines


def _users(host: PluginHost, disk: Disk, limit_s: float) -> list[str]:
    asked = getattr(host.storage(disk.storage), "in_use", None)
    if not callable(asked):  # the method is optional
        return []
    try:
        answers = within(limit_s, f"finding out who uses {disk.label}", lambda: list(asked(disk)))
    except DiskhaulError:
        raise
    except BaseException as error:  # a plugin may raise anything, SystemExit included
        why = getattr(error, "strerror", None) or error or type(error).__name__
        raise StorageError(f"{disk.label}: cannot find out who uses it: {why}", path=disk.label) from error
    return [f"{disk.label} {answer}" for answer in answers]
