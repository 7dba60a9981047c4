"""diskhaul exports virtual-machine instances: their disks, snapshotted, compressed, digested, published atomically, restored.

    import diskhaul

    result = diskhaul.export("web1", node="beta", config="cluster.toml")
    print(result.export.path, result.timings.get("shutdown", 0.0))

The functions are synchronous and may be called from several threads; `diskhaul.errors` draws the tree of what they raise.

What one calls, makes, gets back or catches is here. What a plugin subclasses or names in its signatures (the protocols of
backends, disks and stores) is in `diskhaul.api`, what it is told in `diskhaul.events`, the hooks are in `diskhaul.hookspecs`,
and what its author tests it with is in `diskhaul.testing`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

# ruff: noqa: I001  # isort would give each of these names a statement of its own

if TYPE_CHECKING:
    # Each name twice: that is how a type checker is told that it may be imported from here. A test compares with _HOMES.
    from .api import (
        API_VERSION as API_VERSION,
        BackendContext as BackendContext,
        Capability as Capability,
        CleanupSpec as CleanupSpec,
        DiskMap as DiskMap,
        DiskRegion as DiskRegion,
        EngineSpec as EngineSpec,
        Extent as Extent,
        ExtentKind as ExtentKind,
        FreeExtents as FreeExtents,
        InventorySpec as InventorySpec,
        LockMode as LockMode,
        LockSpec as LockSpec,
        RemoteParty as RemoteParty,
        RemoteTerms as RemoteTerms,
        RuntimeSpec as RuntimeSpec,
        Snapshot as Snapshot,
        SnapshotSpec as SnapshotSpec,
        StorageSpec as StorageSpec,
        TransferSpec as TransferSpec,
        Tunable as Tunable,
        ZeroFillSpec as ZeroFillSpec,
    )
    from .cancellation import CancellationToken as CancellationToken
    from .config import load_cluster as load_cluster
    from .errors import (
        AmbiguousNameError as AmbiguousNameError,
        ConfigurationError as ConfigurationError,
        DiskhaulError as DiskhaulError,
        GuestError as GuestError,
        HookScriptError as HookScriptError,
        IncompatiblePluginError as IncompatiblePluginError,
        InterruptedRunError as InterruptedRunError,
        InvalidHookResultError as InvalidHookResultError,
        LockError as LockError,
        LockLostError as LockLostError,
        LockTimeoutError as LockTimeoutError,
        OperationFailedError as OperationFailedError,
        PluginClashError as PluginClashError,
        PluginError as PluginError,
        RefusedError as RefusedError,
        SnapshotError as SnapshotError,
        StorageError as StorageError,
        UnknownBackendError as UnknownBackendError,
        UnknownNameError as UnknownNameError,
        UnreachableNodeError as UnreachableNodeError,
        VerificationError as VerificationError,
    )
    from .hookspecs import hookimpl as hookimpl
    from .host import RegisteredBackend as RegisteredBackend
    from .library import (
        bench as bench,
        export as export,
        fleet_export as fleet_export,
        free_extents as free_extents,
        guest as guest,
        import_ as import_,
        inspect as inspect,
        list_exports as list_exports,
        move as move,
        plan as plan,
        plugins_report as plugins_report,
        prepare as prepare,
        prune as prune,
        receive as receive,
        recover as recover,
        remove as remove,
        show as show,
        tune as tune,
        verify as verify,
    )
    from .model import (
        Cluster as Cluster,
        Disk as Disk,
        Instance as Instance,
        Nic as Nic,
        Node as Node,
        OtherCluster as OtherCluster,
    )
    from .option_defaults import (
        export_options as export_options,
        import_options as import_options,
        with_profile as with_profile,
    )
    from .options import (
        ExportOptions as ExportOptions,
        ImportOptions as ImportOptions,
        KeepPolicy as KeepPolicy,
        PathOptions as PathOptions,
    )
    from .profile import load_profile as load_profile, save_profile as save_profile
    from .records import (
        BenchResult as BenchResult,
        DiskIdentity as DiskIdentity,
        DiskPicture as DiskPicture,
        DiskResult as DiskResult,
        ExportDetails as ExportDetails,
        ExportRecord as ExportRecord,
        ExportResult as ExportResult,
        Finding as Finding,
        FleetMember as FleetMember,
        FleetResult as FleetResult,
        GuestResult as GuestResult,
        ImportResult as ImportResult,
        InspectedDisk as InspectedDisk,
        ListResult as ListResult,
        Measurement as Measurement,
        MoveResult as MoveResult,
        PathLimit as PathLimit,
        Plan as Plan,
        PlannedDisk as PlannedDisk,
        PrepareResult as PrepareResult,
        Profile as Profile,
        ReceiveResult as ReceiveResult,
        RecoverResult as RecoverResult,
        RemovalResult as RemovalResult,
        TuneResult as TuneResult,
        TuneRound as TuneRound,
        TuneTrial as TuneTrial,
        VerifyResult as VerifyResult,
    )

_HOMES = {
    "api": (
        "API_VERSION BackendContext Capability CleanupSpec DiskMap DiskRegion EngineSpec Extent ExtentKind FreeExtents "
        "InventorySpec LockMode LockSpec RemoteParty RemoteTerms RuntimeSpec Snapshot SnapshotSpec StorageSpec TransferSpec "
        "Tunable ZeroFillSpec"
    ),
    "cancellation": "CancellationToken",
    "config": "load_cluster",
    "errors": (
        "AmbiguousNameError ConfigurationError DiskhaulError GuestError HookScriptError IncompatiblePluginError "
        "InterruptedRunError InvalidHookResultError LockError LockLostError LockTimeoutError OperationFailedError "
        "PluginClashError PluginError RefusedError SnapshotError StorageError UnknownBackendError UnknownNameError "
        "UnreachableNodeError VerificationError"
    ),
    "hookspecs": "hookimpl",
    "host": "RegisteredBackend",
    "library": (
        "bench export fleet_export free_extents guest import_ inspect list_exports move plan plugins_report prepare prune "
        "receive recover remove show tune verify"
    ),
    "model": "Cluster Disk Instance Nic Node OtherCluster",
    "option_defaults": "export_options import_options with_profile",
    "options": "ExportOptions ImportOptions KeepPolicy PathOptions",
    "profile": "load_profile save_profile",
    "records": (
        "BenchResult DiskIdentity DiskPicture DiskResult ExportDetails ExportRecord ExportResult Finding FleetMember FleetResult "
        "GuestResult ImportResult InspectedDisk ListResult Measurement MoveResult PathLimit Plan PlannedDisk PrepareResult "
        "Profile ReceiveResult RecoverResult RemovalResult TuneResult TuneRound TuneTrial VerifyResult"
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted((*_HOME_OF, "__version__"))


def __getattr__(name: str) -> Any:
    # Names are looked up when first used: a script that only asks for the version should not pay for a plugin host.
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f".{_HOME_OF[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
