"""The hooks: what a plugin can provide, and what it can watch.

Provider hooks return an iterable of specs (a generator is fine) and are called once per operation. Plugins are called in the
order built-in, entry points, ``plugins=[...]`` of the call (``hookimpl(tryfirst=True)`` before, ``trylast`` after all others);
backends are tried in the order in which they were given. Observing hooks return what their docstring says; what they raise
becomes a warning in `diskhaul_event`, and a refusal in the two others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pluggy

from .api import (
    CleanupSpec,
    EngineSpec,
    InventorySpec,
    LockSpec,
    RuntimeSpec,
    SnapshotSpec,
    StorageSpec,
    TransferSpec,
    Tunable,
    ZeroFillSpec,
)

if TYPE_CHECKING:
    from .events import Event
    from .records import Plan

PROJECT = "diskhaul"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# --- providers: who can do it? ----------------------------------------------------------------------------------------


@hookspec
def diskhaul_inventories() -> Iterable[InventorySpec]:  # type: ignore[empty-body]  # a specification has no body
    """Which nodes and instances are there? Chosen by ``[backends] inventory``."""


@hookspec
def diskhaul_runtimes() -> Iterable[RuntimeSpec]:  # type: ignore[empty-body]
    """What runs guests: state, stop, start, freeze. Chosen by an instance's ``runtime``."""


@hookspec
def diskhaul_storages() -> Iterable[StorageSpec]:  # type: ignore[empty-body]
    """How are a disk's bytes reached? Chosen by a disk's ``storage``."""


@hookspec
def diskhaul_locks() -> Iterable[LockSpec]:  # type: ignore[empty-body]
    """Who may work on what, now? Chosen by ``[backends] lock``."""


@hookspec
def diskhaul_snapshots() -> Iterable[SnapshotSpec]:  # type: ignore[empty-body]
    """Who can freeze a disk in time? Chosen by a disk's ``snapshot``, or ``[backends] snapshot``, or the first that does not
    refuse the disk."""


@hookspec
def diskhaul_zerofills() -> Iterable[ZeroFillSpec]:  # type: ignore[empty-body]
    """Which bytes of a disk are free? Chosen by ``--zero-fill``, or ``[backends] zerofill``, or the first that does not refuse
    the disk."""


@hookspec
def diskhaul_transfers() -> Iterable[TransferSpec]:  # type: ignore[empty-body]
    """How does an export reach its node? Chosen by ``[backends] transfer``."""


@hookspec
def diskhaul_cleanups() -> Iterable[CleanupSpec]:  # type: ignore[empty-body]
    """Which exports does a new one supersede? Chosen by ``[backends] cleanup``."""


@hookspec
def diskhaul_engines() -> Iterable[EngineSpec]:  # type: ignore[empty-body]
    """Where do a node's functions run? Chosen by ``[backends] engine``."""


@hookspec
def diskhaul_tunables() -> Iterable[Tunable]:  # type: ignore[empty-body]
    """Which options of backends are worth searching? Asked by ``diskhaul tune`` alone; what it finds stands in the profile."""


# --- observers: what is going on? -------------------------------------------------------------------------------------


@hookspec
def diskhaul_event(event: Event) -> None:
    """Something happened: progress, a stage, a warning.

    Called often, one event at a time, on the thread ``diskhaul-events``: be quick. An operation waits 5 seconds for its
    listeners and then goes on without them; until they have caught up they miss progress. What the hook raises becomes one
    warning; later events still come.
    """


@hookspec
def diskhaul_prerequisites(plan: Plan) -> Iterable[str] | None:
    """More reasons to refuse, one line each; None or nothing when all is well. What it raises is such a reason.

    Called for exports, with the locks held, and for plans, without locks.
    """


@hookspec
def diskhaul_hook_environment(plan: Plan) -> Mapping[str, str] | None:
    """More variables for hook scripts, without the ``DISKHAUL_`` prefix; None or nothing for none.

    Names are capital letters, digits and ``_``. What it raises, a name or value that no environment can hold, and a variable
    that another plugin has set already refuse the export.
    """
