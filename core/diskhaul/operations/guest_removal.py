"""Removing an instance, once more looked at: nobody runs it, nothing writes to its disks, and it is still ours to remove."""

from __future__ import annotations

from collections.abc import Callable

from ..api import Runtime
from ..errors import GuestError
from ..host import PluginHost
from ..model import Instance
from .base import LockSet
from .disk_use import GLANCE_S, disks_in_use
from .guest import guest_call, guest_runs


def check_at_rest(host: PluginHost, instance: Instance, claim: str, *, patience_s: float, limit_s: float) -> None:
    """Look whether anything writes to the disks of a guest that does not run, as its runtime claims.

    Args:
        claim: what is said of it, for messages.
        patience_s: how long a use may last that is about to end, seconds.
        limit_s: how long one storage may take to answer, seconds.

    Raises:
        GuestError: something does.
        StorageError: that cannot be found out.
    """
    used = disks_in_use(host, instance.disks, patience_s=patience_s, limit_s=limit_s)
    if used:
        raise GuestError(f"{instance.name} {claim}, but {'; '.join(used)}: it may be running still")


def remove_guest(
    host: PluginHost,
    locks: LockSet,
    runtime: Runtime,
    instance: Instance,
    *,
    limit_s: float,
    looked: Callable[[], object] = lambda: None,
    begin: Callable[[], object] = lambda: None,
) -> None:
    """Remove an instance through its runtime.

    Args:
        limit_s: how long one storage may take to answer, seconds.
        looked: called once it is known whether the guest runs.
        begin: called when nothing speaks against the removal any more, right before it.

    Raises:
        GuestError: it runs, its disks are being written to, or it cannot be removed.
        LockLostError: it is no longer ours to remove.
    """
    locks.check()
    running = guest_runs(runtime, instance)
    looked()
    if running:
        raise GuestError(f"{instance.name} was started by somebody else; what it wrote since is not in the export")
    check_at_rest(host, instance, "is off", patience_s=GLANCE_S, limit_s=limit_s)
    begin()
    guest_call("remove it", runtime, runtime.remove, instance)
