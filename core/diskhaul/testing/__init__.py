"""What tests of diskhaul and of its plugins use.

- Disks that are not there: `MemoryDisk`, `SparseMemoryDisk`, and `MemoryStorage`, the storage plugin that serves them.
- Disks that tell or fail: `RecordingDisk`, `FaultyDisk` with its `Fault`.
- Guests: `ScriptedRuntime`, `ProcessGuest`.
- A conformance suite for every kind of backend, in `diskhaul.testing.conformance` (needs pytest): subclass it, say how to
  make the backend, and pytest runs it.

Nothing here is imported by diskhaul itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .disks import Call, Fault, FaultyDisk, MemoryDisk, MemoryStorage, RecordingDisk, SparseMemoryDisk
    from .guest import ProcessGuest, ScriptedRuntime

_HOMES = {
    "Call": "disks",
    "Fault": "disks",
    "FaultyDisk": "disks",
    "MemoryDisk": "disks",
    "MemoryStorage": "disks",
    "ProcessGuest": "guest",
    "RecordingDisk": "disks",
    "ScriptedRuntime": "guest",
    "SparseMemoryDisk": "disks",
}

__all__ = [
    "Call",
    "Fault",
    "FaultyDisk",
    "MemoryDisk",
    "MemoryStorage",
    "ProcessGuest",
    "RecordingDisk",
    "ScriptedRuntime",
    "SparseMemoryDisk",
]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)
