"""An instance as a piece of configuration, to be pasted into a cluster's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..model import Instance

_DISK_FIELDS = ("storage", "path", "size", "snapshot", "name", "uuid", "options")


def instance_toml(instance: Instance) -> str:
    """Return the ``[instances."NAME"]`` table of `instance`. What it does not know, and `Instance.private`, is left out."""
    import tomli_w  # not at the top: start-up time

    scalars = ("node", "state", "runtime", "os", "secondaries", "memory_mib", "vcpus", "tags", "runtime_options", "parameters")
    table: dict[str, Any] = _given({name: getattr(instance, name) for name in scalars})
    table["nics"] = [_given({f.name: getattr(nic, f.name) for f in fields(nic)}) for nic in instance.nics]
    table["disks"] = [_given({name: getattr(disk, name) for name in _DISK_FIELDS}) for disk in instance.disks]
    header = "# What the export says of the instance. Paste it into a cluster's configuration; 'node' must exist there.\n"
    return header + tomli_w.dumps({"instances": {instance.name: _given(table)}})


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Only what is set, in types that TOML has."""
    return {name: _plain(value) for name, value in values.items() if value not in (None, "", 0, (), [], {})}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value if item is not None]
    return value if isinstance(value, bool | int | float | str) else str(value)
