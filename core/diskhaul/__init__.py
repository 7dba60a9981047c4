"""diskhaul exports virtual-machine instances: their disks, snapshotted, compressed, digested, published atomically, restored.

    import diskhaul

    result = diskhaul.export("web1", node="beta", config="cluster.toml")
    print(result.export.path, result.timings.get("shutdown", 0.0))

The functions are synchronous and may be called from several threads; `diskhaul.errors` draws the tree of what they raise. What
plugins are made of is in `diskhaul.api` and `diskhaul.hookspecs`; what plugin authors test with in `diskhaul.testing`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .api import (
        API_VERSION as API_VERSION,
    )
    from .api import (
        BackendContext as BackendContext,
    )
    from .api import (
        Capability as Capability,
    )
    from .api import (
        CleanupSpec as CleanupSpec,
    )
    from .api import (
        DiskReader as DiskReader,
    )
    from .api import (
        DiskWriter as DiskWriter,
    )
    from .api import (
        EngineSpec as EngineSpec,
    )
    from .api import (
        Extent as Extent,
    )
    from .api import (
        ExtentKind as ExtentKind,
    )
    from .api import (
        InventorySpec as InventorySpec,
    )
    from .api import (
        LockMode as LockMode,
    )
    from .api import (
        LockSpec as LockSpec,
    )
    from .api import (
        RuntimeSpec as RuntimeSpec,
    )
    from .api import (
        Snapshot as Snapshot,
    )
    from .api import (
        SnapshotSpec as SnapshotSpec,
    )
    from .api import (
        StorageSpec as StorageSpec,
    )
    from .api import (
        TransferSpec as TransferSpec,
    )
    from .api import (
        ZeroFillSpec as ZeroFillSpec,
    )
    from .cancellation import CancellationToken as CancellationToken
    from .config import load_cluster as load_cluster
    from .errors import (
        AmbiguousNameError as AmbiguousNameError,
    )
    from .errors import (
        ConfigurationError as ConfigurationError,
    )
    from .errors import (
        DiskhaulError as DiskhaulError,
    )
    from .errors import (
        GuestError as GuestError,
    )
    from .errors import (
        HookScriptError as HookScriptError,
    )
    from .errors import (
        IncompatiblePluginError as IncompatiblePluginError,
    )
    from .errors import (
        InterruptedRunError as InterruptedRunError,
    )
    from .errors import (
        InvalidHookResultError as InvalidHookResultError,
    )
    from .errors import (
        LockError as LockError,
    )
    from .errors import (
        LockLostError as LockLostError,
    )
    from .errors import (
        LockTimeoutError as LockTimeoutError,
    )
    from .errors import (
        OperationFailedError as OperationFailedError,
    )
    from .errors import (
        PluginClashError as PluginClashError,
    )
    from .errors import (
        PluginError as PluginError,
    )
    from .errors import (
        RefusedError as RefusedError,
    )
    from .errors import (
        SnapshotError as SnapshotError,
    )
    from .errors import (
        StorageError as StorageError,
    )
    from .errors import (
        UnknownBackendError as UnknownBackendError,
    )
    from .errors import (
        UnknownNameError as UnknownNameError,
    )
    from .errors import (
        UnreachableNodeError as UnreachableNodeError,
    )
    from .errors import (
        VerificationError as VerificationError,
    )
    from .hookspecs import hookimpl as hookimpl
    from .library import (
        export as export,
    )
    from .library import (
        import_ as import_,
    )
    from .library import (
        list_exports as list_exports,
    )
    from .library import (
        plan as plan,
    )
    from .library import (
        plugins_report as plugins_report,
    )
    from .library import (
        prune as prune,
    )
    from .library import (
        recover as recover,
    )
    from .library import (
        remove as remove,
    )
    from .library import (
        show as show,
    )
    from .library import (
        verify as verify,
    )
    from .model import Cluster as Cluster
    from .model import Disk as Disk
    from .model import Instance as Instance
    from .model import Nic as Nic
    from .model import Node as Node
    from .options import ExportOptions as ExportOptions
    from .options import ImportOptions as ImportOptions
    from .options import KeepPolicy as KeepPolicy
    from .records import (
        DiskResult as DiskResult,
    )
    from .records import (
        ExportDetails as ExportDetails,
    )
    from .records import (
        ExportRecord as ExportRecord,
    )
    from .records import (
        ExportResult as ExportResult,
    )
    from .records import (
        Finding as Finding,
    )
    from .records import (
        ImportResult as ImportResult,
    )
    from .records import (
        ListResult as ListResult,
    )
    from .records import (
        Plan as Plan,
    )
    from .records import (
        RecoverResult as RecoverResult,
    )
    from .records import (
        RemovalResult as RemovalResult,
    )
    from .records import (
        VerifyResult as VerifyResult,
    )

_HOMES = {
    "api": (
        "API_VERSION BackendContext Capability CleanupSpec DiskReader DiskWriter EngineSpec Extent ExtentKind InventorySpec "
        "LockMode LockSpec RuntimeSpec Snapshot SnapshotSpec StorageSpec TransferSpec ZeroFillSpec"
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
    "library": "export import_ list_exports plan plugins_report prune recover remove show verify",
    "model": "Cluster Disk Instance Nic Node",
    "options": "ExportOptions ImportOptions KeepPolicy",
    "records": (
        "DiskResult ExportDetails ExportRecord ExportResult Finding ImportResult ListResult Plan RecoverResult RemovalResult "
        "VerifyResult"
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
