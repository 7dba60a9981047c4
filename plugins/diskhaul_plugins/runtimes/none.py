"""Runtime ``none``: disks that no guest uses. Nothing ever runs, so there is nothing to stop, start or remove."""

from __future__ import annotations

from collections.abc import Iterable

from diskhaul.api import BackendContext, Capability, Runtime
from diskhaul.errors import GuestError
from diskhaul.model import Instance


def capability() -> Capability:
    return Capability(works=True)


class NoRuntime(Runtime):
    """Says "not running" of every instance and refuses to change that."""

    def __init__(self, context: BackendContext) -> None:
        pass

    def is_running(self, instance: Instance, /) -> bool:
        return False

    def stop(self, instance: Instance, /, *, timeout_s: float) -> object:
        raise GuestError(f"{instance.name}: cannot be stopped, its runtime is 'none'")

    def start(self, instance: Instance, /) -> object:
        raise GuestError(f"{instance.name}: cannot be started, its runtime is 'none'")

    def remove(self, instance: Instance, /) -> object:
        raise GuestError(f"{instance.name}: cannot be removed, its runtime is 'none'")

    def check(self, instance: Instance, /) -> Iterable[str]:
        if instance.runtime_options:
            names = ", ".join(sorted(map(str, instance.runtime_options)))
            return (f"instances.{instance.name}.runtime_options: runtime 'none' has no options, but there is {names}",)
        return ()
