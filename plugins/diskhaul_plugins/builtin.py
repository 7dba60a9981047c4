"""The plugin that announces every built-in backend.

Specs are cheap: the module of a backend is imported when the backend is created, or when its capability is asked for, so that
starting diskhaul costs nothing for the backends that a run does not use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from diskhaul.api import (
    API_VERSION,
    BackendContext,
    Capability,
    CleanupSpec,
    EngineSpec,
    InventorySpec,
    LockSpec,
    RuntimeSpec,
    SnapshotSpec,
    StorageSpec,
    TransferSpec,
    ZeroFillSpec,
)
from diskhaul.hookspecs import hookimpl

diskhaul_api = API_VERSION
"""The plugin API these backends are written for: always the one they are shipped with."""


def _create(module: str, name: str) -> Callable[[BackendContext], Any]:
    """Return what makes the backend class `name` of `module` (relative to this package), importing it only then."""

    def create(context: BackendContext) -> Any:
        return getattr(import_module(f"{__package__}.{module}"), name)(context)

    return create


def _capability(module: str) -> Callable[[], Capability]:
    """Return what asks `module` whether its backend works here, importing it only then."""

    def capability() -> Capability:
        answer: Capability = import_module(f"{__package__}.{module}").capability()
        return answer

    return capability


@hookimpl
def diskhaul_inventories() -> Iterator[InventorySpec]:
    yield InventorySpec(
        name="toml",
        summary="nodes and instances of the configuration itself",
        create=_create("inventories.toml", "TomlInventory"),
        capability=_capability("inventories.toml"),
    )


@hookimpl
def diskhaul_runtimes() -> Iterator[RuntimeSpec]:
    yield RuntimeSpec(
        name="none",
        summary="disks without a guest: never running",
        create=_create("runtimes.none", "NoRuntime"),
        capability=_capability("runtimes.none"),
    )
    yield RuntimeSpec(
        name="command",
        summary="your own programs to start, stop and ask a guest",
        create=_create("runtimes.command", "CommandRuntime"),
        capability=_capability("runtimes.command"),
    )


@hookimpl
def diskhaul_storages() -> Iterator[StorageSpec]:
    yield StorageSpec(
        name="file",
        summary="raw image files",
        create=_create("storages.file", "FileStorage"),
        capability=_capability("storages.file"),
    )
    yield StorageSpec(
        name="block",
        summary="block devices",
        create=_create("storages.block", "BlockStorage"),
        capability=_capability("storages.block"),
    )


@hookimpl
def diskhaul_locks() -> Iterator[LockSpec]:
    yield LockSpec(
        name="file",
        summary="lock files in the state directory",
        create=_create("locks.file", "FileLocks"),
        capability=_capability("locks.file"),
    )
    yield LockSpec(
        name="etcd",
        summary="an etcd cluster, for machines that share no directory",
        create=_create("locks.etcd.locks", "EtcdLocks"),
        capability=_capability("locks.etcd"),
    )


@hookimpl
def diskhaul_snapshots() -> Iterator[SnapshotSpec]:
    yield SnapshotSpec(
        name="reflink",
        summary="clones of image files that share blocks (XFS, btrfs)",
        create=_create("snapshots.reflink", "ReflinkSnapshots"),
        capability=_capability("snapshots.reflink"),
    )
    yield SnapshotSpec(
        name="btrfs",
        summary="read-only snapshots of btrfs subvolumes",
        create=_create("snapshots.btrfs", "BtrfsSnapshots"),
        capability=_capability("snapshots.btrfs"),
    )


@hookimpl
def diskhaul_zerofills() -> Iterator[ZeroFillSpec]:
    yield ZeroFillSpec(
        name="skip",
        summary="reads every filesystem it understands; writes nothing",
        create=_create("zerofills.skip", "SkipZeroFill"),
        capability=_capability("zerofills.skip"),
    )
    yield ZeroFillSpec(
        name="ext",
        summary="reads ext2, ext3 and ext4 only",
        create=_create("zerofills.skip", "ExtZeroFill"),
        capability=_capability("zerofills.skip"),
    )
    yield ZeroFillSpec(
        name="swap",
        summary="reads swap space only",
        create=_create("zerofills.skip", "SwapZeroFill"),
        capability=_capability("zerofills.skip"),
    )
    yield ZeroFillSpec(
        name="partclone",
        summary="leaves out what partclone, too, calls free",
        create=_create("zerofills.partclone", "PartcloneZeroFill"),
        capability=_capability("zerofills.partclone"),
    )
    yield ZeroFillSpec(
        name="fill",
        summary="zeroes the free space of a stopped instance's disks in place",
        create=_create("zerofills.fill", "FillZeroFill"),
        capability=_capability("zerofills.fill"),
    )
    yield ZeroFillSpec(
        name="trim",
        summary="has the running guest give back what it does not use",
        create=_create("zerofills.trim", "TrimZeroFill"),
        capability=_capability("zerofills.trim"),
    )


@hookimpl
def diskhaul_transfers() -> Iterator[TransferSpec]:
    yield TransferSpec(
        name="directory",
        summary="export directories that this machine reaches by path",
        create=_create("transfers.directory", "DirectoryTransfer"),
        capability=_capability("transfers.directory"),
    )
    yield TransferSpec(
        name="tls",
        summary="other nodes' receivers over mutual TLS 1.3",
        create=_create("transfers.tls.transfer", "TlsTransfer"),
        capability=_capability("transfers.tls.transfer"),
    )
    yield TransferSpec(
        name="object",
        summary="buckets of S3-compatible object stores",
        create=_create("transfers.object_store.transfer", "ObjectTransfer"),
        capability=_capability("transfers.object_store"),
    )


@hookimpl
def diskhaul_cleanups() -> Iterator[CleanupSpec]:
    yield CleanupSpec(
        name="others",
        summary="the new export replaces every earlier one",
        create=_create("cleanups.others", "OthersCleanup"),
        capability=_capability("cleanups.others"),
    )
    yield CleanupSpec(
        name="keep",
        summary="keeps the last, daily, weekly, monthly and yearly exports",
        create=_create("cleanups.keep", "KeepCleanup"),
        capability=_capability("cleanups.keep"),
    )
    yield CleanupSpec(
        name="none",
        summary="removes nothing",
        create=_create("cleanups.none", "NoCleanup"),
        capability=_capability("cleanups.none"),
    )


@hookimpl
def diskhaul_engines() -> Iterator[EngineSpec]:
    yield EngineSpec(
        name="local",
        summary="all nodes are directories on this machine",
        create=_create("engines.local", "LocalEngine"),
        capability=_capability("engines.local"),
    )
    yield EngineSpec(
        name="dask",
        summary="every node is a Dask worker; operations run where the instance lives",
        create=_create("engines.dask.engine", "DaskEngine"),
        capability=_capability("engines.dask"),
    )
