"""The functions of the library, one per operation. The command line calls the same ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .cancellation import CancellationToken
from .errors import RefusedError
from .feedback import EventListener
from .host import STAGES, PluginHost, Registered
from .model import Cluster
from .operations.base import RunContext
from .option_defaults import export_options
from .options import ExportOptions, ImportOptions, KeepPolicy
from .records import (
    ExportDetails,
    ExportResult,
    ImportResult,
    ListResult,
    Plan,
    RecoverResult,
    RemovalResult,
    VerifyResult,
)

Config = Cluster | Path | str


def export(
    instance: str,
    *,
    node: str,
    config: Config,
    options: ExportOptions | None = None,
    plugins: Sequence[object] = (),
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
) -> ExportResult:
    """Export `instance` to `node`.

    Args:
        instance, node: full names, or short ones that fit one full name.
        config: a cluster, or the TOML file that describes it.
        options: None takes the cluster's ``[defaults]``.
        plugins: used besides the built-in and installed ones.
        on_event: called with each `diskhaul.events.Event`, one at a time, from the operation's threads.
        cancel: stops the export cleanly when it is cancelled from another thread.

    Raises:
        RefusedError: nothing was touched; `problems` lists every reason.
        LockTimeoutError: somebody else works on the instance.
        OperationFailedError: failed; the guest is as before, earlier exports are intact, nothing new is listed.
        InterruptedRunError: cancelled; likewise.
        KeyboardInterrupt: Ctrl-C in the main thread, raised once the run has ended: everything is as before, unless the export
            had been published by then; that one stands (`list_exports` tells).
    """
    from .operations.export import ExportOperation

    cluster = _cluster(config)
    context = RunContext(cluster, plugins=plugins, on_event=on_event, token=cancel)
    return ExportOperation(context, instance, node, options or export_options(cluster)).run()


def plan(
    instance: str,
    *,
    node: str,
    config: Config,
    options: ExportOptions | None = None,
    plugins: Sequence[object] = (),
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
) -> Plan:
    """Say what `export` would do: steps, sizes, downtime, what it would supersede. Takes no locks and runs no hook scripts.

    Raises:
        RefusedError: the export would be refused; `problems` lists every reason.
    """
    from .operations.plan import PlanOperation

    cluster = _cluster(config)
    context = RunContext(cluster, plugins=plugins, on_event=on_event, token=cancel)
    return PlanOperation(context, instance, node, options or export_options(cluster)).run()


def import_(
    export: str,
    *,
    config: Config | None = None,
    node: str | None = None,
    to_dir: Path | str | None = None,
    disks: Mapping[int, Path] | None = None,
    instance_name: str | None = None,
    options: ImportOptions | None = None,
    plugins: Sequence[object] = (),
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
) -> ImportResult:
    """Restore the disks of an export.

    Args:
        export: ``INSTANCE`` (its newest valid export), ``INSTANCE@ID``, or an export's directory (which needs no `config`).
        to_dir: a directory that is made, or empty: disks become ``disk-N.raw`` there, beside an ``instance.toml``.
        disks: a file or device for each disk by index. With neither, the configured disks of the instance are written.
        instance_name: the instance to be; by default the exported one.

    Raises:
        RefusedError: nothing was written.
        VerificationError: the export is damaged; `findings` say where. What had been written is marked incomplete.
        OperationFailedError, InterruptedRunError: likewise marked incomplete.
    """
    from .operations.restore import ImportOperation, ImportWhere

    cluster = _cluster(config) if config is not None else _no_cluster()
    context = RunContext(cluster, plugins=plugins, on_event=on_event, token=cancel)
    where = ImportWhere(node=node, to_dir=Path(to_dir) if to_dir is not None else None, disks=disks, instance_name=instance_name)
    return ImportOperation(context, export, where, options or ImportOptions(), has_cluster=config is not None).run()


def list_exports(
    instance: str | None = None, *, config: Config, node: str | None = None, plugins: Sequence[object] = ()
) -> ListResult:
    """List exports of `instance` (or all) on `node` (or all nodes), damaged ones with what is wrong with them.

    Manifests and file sizes are checked, contents are not: that is what `verify` is for.
    """
    from .operations.exports import ListOperation

    return ListOperation(RunContext(_cluster(config), plugins=plugins), instance, node).run()


def show(export: str, *, config: Config | None = None, node: str | None = None, plugins: Sequence[object] = ()) -> ExportDetails:
    """Say everything about one export: ``INSTANCE``, ``INSTANCE@ID`` or a directory.

    Raises:
        UnknownNameError: there is none.
        VerificationError: its manifest is damaged.
    """
    from .operations.exports import ShowOperation

    return ShowOperation(_context_for(export, config, plugins), export, node).run()


def verify(
    export: str | None = None,
    *,
    config: Config | None = None,
    node: str | None = None,
    threads: int = 0,
    plugins: Sequence[object] = (),
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
) -> VerifyResult:
    """Read exports back, every byte, and compare them with their digests.

    Args:
        export: ``INSTANCE`` (all its exports), ``INSTANCE@ID``, a directory (which needs no `config`), or None for all.

    Returns:
        What was checked and everything found wrong; damage is not raised.
    """
    from .operations.verify import VerifyOperation

    context = _context_for(export, config, plugins, on_event, cancel)
    return VerifyOperation(context, export, node, threads).run()


def remove(
    export: str,
    *,
    config: Config,
    node: str | None = None,
    all_exports: bool = False,
    dry_run: bool = False,
    plugins: Sequence[object] = (),
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
) -> RemovalResult:
    """Remove ``INSTANCE@ID``, or with `all_exports` every export of ``INSTANCE``. The instance need not exist any more."""
    from .operations.exports import RemoveOperation

    context = RunContext(_cluster(config), plugins=plugins, on_event=on_event, token=cancel)
    return RemoveOperation(context, export, node, all_exports=all_exports, dry_run=dry_run).run()


def prune(
    instance: str | None = None,
    *,
    config: Config,
    policy: KeepPolicy,
    node: str | None = None,
    dry_run: bool = False,
    plugins: Sequence[object] = (),
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
) -> RemovalResult:
    """Remove the valid exports of `instance` (or of every instance) that `policy` does not keep."""
    from .operations.exports import PruneOperation

    context = RunContext(_cluster(config), plugins=plugins, on_event=on_event, token=cancel)
    return PruneOperation(context, instance, node, policy=policy, dry_run=dry_run).run()


def recover(
    instance: str | None = None,
    *,
    config: Config,
    lock_timeout_s: float = 60.0,
    plugins: Sequence[object] = (),
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
) -> RecoverResult:
    """Undo what runs left that were killed: start their guests, remove their snapshots and unpublished exports."""
    from .operations.recover import RecoverOperation

    context = RunContext(_cluster(config), plugins=plugins, on_event=on_event, token=cancel)
    return RecoverOperation(context, instance, lock_timeout_s).run()


def plugins_report(config: Config | None = None, *, plugins: Sequence[object] = ()) -> tuple[Registered, ...]:
    """List every backend there is, stage by stage, in the order in which they are asked."""
    host = PluginHost(_cluster(config) if config is not None else None, plugins)
    return tuple(registered for stage in STAGES for registered in host.registered(stage))


def _cluster(config: Config) -> Cluster:
    if isinstance(config, Cluster):
        return config
    from .config import load_cluster

    return load_cluster(config)


def _no_cluster() -> Cluster:
    """Stands in where an export is reached by its path alone: no nodes, no locks, no journal."""
    return Cluster(name="none", state_dir=Path("/nonexistent"), backends={"inventory": "toml"})


def _context_for(
    export: str | None,
    config: Config | None,
    plugins: Sequence[object],
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
) -> RunContext:
    """A context with a cluster; without one only for an export that is named by its path."""
    from .operations.exports import is_export_path

    if config is None and (export is None or not is_export_path(export)):
        raise RefusedError(f"{export or 'all exports'}: to find exports by name, give a configuration; or give a directory")
    cluster = _cluster(config) if config is not None else _no_cluster()
    return RunContext(cluster, plugins=plugins, on_event=on_event, token=cancel)


__all__ = [
    "export",
    "import_",
    "list_exports",
    "plan",
    "plugins_report",
    "prune",
    "recover",
    "remove",
    "show",
    "verify",
]
