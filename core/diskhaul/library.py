"""The functions of the library, one per operation. The command line calls the same ones (``doctor`` and ``demo`` have none).

What all of them raise besides what each says: `ConfigurationError` for a configuration, and `PluginError` for a plugin, that
cannot be used. Both are refusals (`RefusedError`): nothing was touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .api import FreeExtents
from .cancellation import CancellationToken
from .errors import RefusedError
from .feedback import EventListener
from .host import PluginHost, RegisteredBackend
from .model import Cluster, Disk, Nic
from .names import printable
from .operations.base import RunContext
from .operations.tuning.request import DEFAULT_SAMPLE, DEFAULT_TIME_S, DEFAULT_WRITE_LIMIT, SearchMethod, TuneRequest
from .option_defaults import export_options, move_options
from .options import Aim, ExportOptions, ImportOptions, KeepPolicy, Setting
from .records import (
    BenchResult,
    ExportDetails,
    ExportResult,
    FleetResult,
    GuestResult,
    ImportResult,
    InspectedDisk,
    ListResult,
    MoveResult,
    Plan,
    PrepareResult,
    ReceiveResult,
    RecoverResult,
    RemovalResult,
    TuneResult,
    VerifyResult,
)

if TYPE_CHECKING:
    from .operations.fleet_export import FleetExportOperation

Config = Cluster | Path | str
DEFAULT_BENCH_TIME_S = 20.0
DEFAULT_RECEIVE_TIMEOUT_S = 3600.0


def export(
    instance: str,
    *,
    node: str | None = None,
    remote: Mapping[str, Any] | Path | str | None = None,
    config: Config,
    options: ExportOptions | None = None,
    plugins: Sequence[object] = (),
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
) -> ExportResult:
    """Export `instance` to `node`, or to another cluster.

    Args:
        instance, node: full names, or short ones that fit one full name.
        remote: in place of `node`, the destination at another cluster that `receive` announced there: the document, or its file.
        config: a cluster, or the TOML file that describes it.
        options: None takes the cluster's ``[defaults]``.
        plugins: used besides the built-in and installed ones.
        on_event: called with each `diskhaul.events.Event`, one at a time, on a thread of its own; told no more once it raises,
            and not told of progress while it is more than 5 seconds behind. `diskhaul.events` says more.
        cancel: stops the export cleanly when it is cancelled from another thread.

    Raises:
        RefusedError: nothing was touched; `problems` lists every reason.
        LockTimeoutError: somebody else works on the instance.
        OperationFailedError: failed; the guest is as before, earlier exports are intact, nothing new is listed.
        InterruptedRunError: cancelled; likewise.
        KeyboardInterrupt: Ctrl-C in the main thread, raised once the run has ended: everything is as before, unless the export
            had been published by then; that one stands (`list_exports` tells).
    """
    from .operations.at_node import run_where_it_belongs
    from .operations.export import ExportOperation
    from .operations.remote_export import RemoteExportOperation

    cluster = _cluster(config)
    context = RunContext(cluster, plugins=plugins, on_event=on_event, token=cancel)
    if node is not None and remote is not None:
        raise RefusedError("node: give either a node or a destination at another cluster (remote)")
    if remote is None:
        return run_where_it_belongs(ExportOperation, context, instance, node, options or export_options(cluster))
    destination = _document(remote, "the destination")
    return run_where_it_belongs(RemoteExportOperation, context, instance, destination, options or export_options(cluster))


def prepare(
    instance: str,
    *,
    config: Config,
    plugins: Sequence[object] = (),
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
) -> PrepareResult:
    """Prepare `instance` to be exported to another cluster: make a key and a certificate that are good for 24 hours.

    The private key stays on the instance's node. The guest is not touched.

    Args:
        instance, config, plugins, on_event, cancel: as in `export`. The cluster needs a cluster-domain secret.

    Returns:
        The document to give to `receive` at the other cluster, signed with that secret.

    Raises:
        RefusedError: nothing was made; `problems` lists every reason.
        LockTimeoutError: somebody else works on the instance.
        StorageError: the key cannot be written.
    """
    from .operations.at_node import run_where_it_belongs
    from .operations.prepare import PrepareOperation

    context = RunContext(_cluster(config), plugins=plugins, on_event=on_event, token=cancel)
    return run_where_it_belongs(PrepareOperation, context, instance)


def receive(
    prepared: Mapping[str, Any] | Path | str,
    *,
    node: str,
    config: Config,
    announce: Callable[[Mapping[str, Any]], object],
    instance_name: str | None = None,
    timeout_s: float = DEFAULT_RECEIVE_TIMEOUT_S,
    for_import: ImportOptions | None = None,
    plugins: Sequence[object] = (),
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
) -> ReceiveResult:
    """Take one export from another cluster into the export directory of `node`, which is this machine.

    Args:
        prepared: what `prepare` gave at the other cluster: the document, or its file. Each is good once.
        announce: called with the destination, which `export` at the other cluster needs as `remote`, once it can be reached.
        instance_name: what the instance is called here; by default as it was.
        timeout_s: how long nothing may come, seconds; the destination expires as long after it was made, if no export has begun.
        for_import: refuse, too, what an import with these options into the configured disks of the instance is refused for.
        config, plugins, on_event, cancel: as in `export`.

    Raises:
        RefusedError: nothing was touched; `problems` lists every reason.
        LockTimeoutError: somebody else works on the instance.
        OperationFailedError: nothing came, or the source gave up; nothing is listed.
        InterruptedRunError: cancelled; likewise.
    """
    from .operations.receive import ReceiveOperation

    context = RunContext(_cluster(config), plugins=plugins, on_event=on_event, token=cancel)
    document = _document(prepared, "the prepared export")
    return ReceiveOperation(
        context,
        document,
        node,
        instance_name=instance_name,
        timeout_s=timeout_s,
        announce=announce,
        import_options=for_import,
    ).run()


def fleet_export(
    patterns: Sequence[str] = (),
    *,
    config: Config,
    to: str | None = None,
    tags: Sequence[str] = (),
    all_instances: bool = False,
    nodes: Sequence[str] = (),
    per_source: int = 2,
    per_target: int = 2,
    parallel: int = 8,
    bwlimit: int = 0,
    order: Literal["largest", "smallest", "name"] = "largest",
    retries: int = 2,
    backoff_s: float = 30.0,
    plan: str | None = None,
    resume: bool = False,
    discard: bool = False,
    dry_run: bool = False,
    options: ExportOptions | None = None,
    plugins: Sequence[object] = (),
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
) -> FleetResult:
    """Export many instances, each as `export` does, within limits, by a plan that survives this process (``docs/fleet.md``).

    Args:
        patterns: names, or globs that full names or their first labels fit.
        to: a node; "round-robin", each of `nodes` in turn; or "most-free", the one with the most room.
        tags: only instances that have one of them.
        all_instances: in place of patterns and tags, every instance.
        nodes: what targets are chosen from; empty is every node that takes exports.
        per_source, per_target: exports that may run at a time of the instances of one node, and to one node.
        parallel: exports that may run at a time, together.
        bwlimit: bytes a second that all of them together may read; 0 is no limit. Each gets its share when it begins.
        order: what comes first.
        retries: further attempts at an export that failed in a way that may pass.
        backoff_s: seconds before the first of them, doubled each time, up to half of it taken off at random.
        plan: the plan's name; None makes one up, or, with `resume`, means the only unfinished one.
        resume: go on with the plan: only limits, retries and `plan` may be given besides. What had failed is tried again.
        discard: give up an unfinished plan of this name, or with the same arguments, and begin anew.
        dry_run: say which instance would go where, and in which order; `ExportOptions.dry_run` means the same.
        options: of every export; their own `bwlimit` is that of each.
        plugins, on_event, cancel: as in `export`. What an export tells comes as `diskhaul.events.MemberEvent`.

    Returns:
        What became of every instance. Exports that failed, and a cancelled fleet, are not raised: `FleetResult.exit_code` tells.

    Raises:
        RefusedError: nothing was touched; `problems` lists every reason. A plan that is unfinished is one.
        LockTimeoutError: another process works on the plan.
        InterruptedRunError: cancelled before the first export could begin.
        OperationFailedError, LockLostError: the plan could not be written, or its lock was lost; exports that ran have been
            stopped cleanly.
    """
    return fleet_operation(
        patterns,
        cluster=_cluster(config),
        to=to,
        tags=tags,
        all_instances=all_instances,
        nodes=nodes,
        per_source=per_source,
        per_target=per_target,
        parallel=parallel,
        bwlimit=bwlimit,
        order=order,
        retries=retries,
        backoff_s=backoff_s,
        plan=plan,
        resume=resume,
        discard=discard,
        dry_run=dry_run,
        options=options,
        plugins=plugins,
        on_event=on_event,
        cancel=cancel,
    ).run()


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

    Args:
        instance, node, config, options, plugins, on_event, cancel: as in `export`.

    Raises:
        RefusedError: the export would be refused; `problems` lists every reason.
    """
    from .operations.at_node import run_where_it_belongs
    from .operations.plan import PlanOperation

    cluster = _cluster(config)
    context = RunContext(cluster, plugins=plugins, on_event=on_event, token=cancel)
    return run_where_it_belongs(PlanOperation, context, instance, node, options or export_options(cluster))


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
        node: look for the export on this node only.
        to_dir: a directory that is made, or empty: disks become ``disk-N.raw`` there, beside an ``instance.toml``.
        disks: a file or device for each disk by index. With neither, the configured disks of the instance are written.
        instance_name: the instance to be; by default the exported one.

    Raises:
        RefusedError: nothing was written.
        UnknownNameError: there is no such export, instance or node.
        LockTimeoutError: somebody else works on the instance or the export.
        VerificationError: the export is damaged; `findings` say where. What had been written is marked incomplete.
        OperationFailedError, InterruptedRunError: likewise marked incomplete.
    """
    from .operations.at_node import run_where_it_belongs
    from .operations.restore import ImportOperation, ImportWhere

    cluster = _cluster(config) if config is not None else _no_cluster()
    context = RunContext(cluster, plugins=plugins, on_event=on_event, token=cancel)
    where = ImportWhere(node=node, to_dir=Path(to_dir) if to_dir is not None else None, disks=disks, instance_name=instance_name)
    has_cluster = config is not None
    return run_where_it_belongs(ImportOperation, context, export, where, options or ImportOptions(), has_cluster=has_cluster)


def move(
    instance: str,
    *,
    to: str,
    node: str,
    config: Config,
    instance_name: str | None = None,
    nics: Sequence[Nic] | None = None,
    grow: Mapping[int, int] | None = None,
    force: bool = False,
    keep_source_instance: bool = False,
    options: ExportOptions | None = None,
    plugins: Sequence[object] = (),
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
) -> MoveResult:
    """Move `instance` to another cluster: export it there, import it there, start it there if it ran, and remove it here.

    The guest is stopped once, and runs again at one of the two clusters, never at both. The instance has to be configured there,
    under its name or `instance_name`, with the disks that are written.

    Args:
        to: one of the ``[clusters]`` of the configuration.
        node: the node of that cluster that takes the export.
        instance_name: what the instance is called there; by default as here.
        nics: network interfaces that the export records in place of the instance's own.
        grow: new disk sizes in bytes by disk index; a disk may grow, never shrink.
        force: overwrite disks that exist there.
        keep_source_instance: leave the instance here, stopped, in place of removing it.
        options: of the export; None takes the cluster's ``[defaults]``, but for what a move decides itself. With
            `ExportOptions.dry_run` nothing is done but said; what is said of removing the instance counts for nothing here.
        config, plugins, on_event, cancel: as in `export`. Plugins are not known at the other cluster.

    Raises:
        RefusedError: nothing was touched; `problems` lists every reason.
        LockTimeoutError: somebody else works on the instance.
        OperationFailedError: one side failed; the guest is as before, unless the error says IS DOWN.
        InterruptedRunError: cancelled; likewise as before.
    """
    from .fleet.listeners import OneAtATime
    from .operations.at_node import run_where_it_belongs
    from .operations.move import MoveOperation, MoveRequest

    cluster = _cluster(config)
    listener = OneAtATime(on_event) if on_event is not None else None
    context = RunContext(cluster, plugins=plugins, on_event=listener, token=cancel)
    request = MoveRequest(
        cluster=to,
        node=node,
        name=instance_name,
        nics=tuple(nics) if nics is not None else None,
        grow=tuple((grow or {}).items()),
        force=force,
        keep=keep_source_instance,
    )
    return run_where_it_belongs(MoveOperation, context, instance, request, options or move_options(cluster))


def guest(
    action: Literal["status", "start", "stop"],
    instance: str,
    *,
    config: Config,
    shutdown_timeout_s: float = 120.0,
    lock_timeout_s: float = 60.0,
    move: str | None = None,
    disks: bool = False,
    plugins: Sequence[object] = (),
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
) -> GuestResult:
    """Ask whether the guest of `instance` runs, start it, or stop it, through its runtime; what is so already is left alone.

    Args:
        action: "start" is tried several times; "stop" only says that it has when the guest is down.
        instance, config, plugins, on_event, cancel: as in `export`.
        shutdown_timeout_s: how long a clean shutdown may take, seconds.
        lock_timeout_s: how long to wait for somebody who works on the instance, seconds.
        disks: with "status": say of a guest that is down where each of its disks is, and what it begins with.
        move: the `run_id` of another cluster's move on whose behalf this is asked: a "stop" with it has every "start" with it
            refused from then on, also one that is on its way already; a guest that was started with it is left as it is (`ran`).

    Raises:
        RefusedError: nothing was touched.
        UnknownNameError: there is no such instance.
        LockTimeoutError: somebody else works on the instance.
        GuestError: its state cannot be found out, or it cannot be started or stopped.
    """
    from .operations.at_node import run_where_it_belongs
    from .operations.guest_state import GuestOperation

    context = RunContext(_cluster(config), plugins=plugins, on_event=on_event, token=cancel)
    return run_where_it_belongs(
        GuestOperation,
        context,
        action,
        instance,
        shutdown_timeout_s=shutdown_timeout_s,
        lock_timeout_s=lock_timeout_s,
        move=move,
        disks=disks,
    )


def list_exports(
    instance: str | None = None, *, config: Config, node: str | None = None, plugins: Sequence[object] = ()
) -> ListResult:
    """List exports of `instance` (or all) on `node` (or all nodes), damaged ones with what is wrong with them.

    Manifests and file sizes are checked, contents are not: that is what `verify` is for. Takes no locks: what is listed may be
    gone a moment later.

    Args:
        node: ask this node only.

    Returns:
        The exports, and the nodes that did not answer; an unreachable node is not raised.

    Raises:
        UnknownNameError: there is no such instance (neither configured nor with exports) or node.
        AmbiguousNameError: a short name fits several.
    """
    from .operations.exports import ListOperation

    return ListOperation(RunContext(_cluster(config), plugins=plugins), instance, node).run()


def show(export: str, *, config: Config | None = None, node: str | None = None, plugins: Sequence[object] = ()) -> ExportDetails:
    """Say everything about one export.

    Args:
        export: ``INSTANCE`` (its newest valid export), ``INSTANCE@ID``, or an export's directory (which needs no `config`).
        node: look on this node only.

    Raises:
        UnknownNameError: there is none.
        RefusedError: the directory is not there.
        VerificationError: the directory's manifest is damaged. (Where the export was found by name, the record's `problem`
            says so, and `manifest` is empty.)
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
        node: look on this node only.
        threads: worker threads; 0 is one more than CPUs, at most 8.
        on_event, cancel: as in `export`.

    Returns:
        What was checked and everything found wrong; damage is not raised, nor is an export that somebody else holds
        (`skipped`) or a node that does not answer (`unreachable`), unless that one export was asked for.

    Raises:
        UnknownNameError: there is no such export, instance or node.
        LockTimeoutError: the one export that was asked for is being removed, or written to.
        OperationFailedError: nothing moved for 10 minutes.
        InterruptedRunError: cancelled.
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
    """Remove ``INSTANCE@ID``, or with `all_exports` every export of ``INSTANCE``. The instance need not exist any more.

    Args:
        node: remove from this node only.
        dry_run: say what would be removed, and remove nothing.
        on_event, cancel: as in `export`.

    Returns:
        What was removed; what could not be, one line each, is in `incomplete`, and is not raised while others were removed.

    Raises:
        RefusedError: `export` names none, or several without `all_exports`; nothing was removed.
        UnknownNameError: there is no such export, instance or node.
        LockError: the locks cannot be had.
        OperationFailedError: the one export could not be removed.
        InterruptedRunError: cancelled; what had been removed is gone.
    """
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
    """Remove the valid exports of `instance` (or of every instance) that `policy` does not keep.

    Exports that are not valid are neither counted nor removed.

    Args:
        policy: what to keep, of each instance by itself; it has to keep something.
        node: prune this node only; exports on others are not counted.
        dry_run: say what would be removed and kept, and remove nothing.
        on_event, cancel: as in `export`.

    Returns:
        What was removed and kept. What could not be removed and nodes that did not answer are in `incomplete`, not raised.

    Raises:
        RefusedError: `policy` keeps nothing.
        UnknownNameError: there is no such instance or node.
        LockError: the locks cannot be had.
    """
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
    """Undo what runs left that were killed: start their guests, remove their snapshots and unpublished exports.

    Runs that are alive are left alone. It can be repeated, and cancelled, at will.

    Args:
        instance: only what runs of this instance left; None for all.
        lock_timeout_s: how long to wait for each instance that somebody works on, seconds.
        on_event, cancel: as in `export`.

    Returns:
        What was undone or finished, and in `incomplete` what could not be; that is not raised.

    Raises:
        UnknownNameError: `instance` is neither configured nor has anything to recover.
        LockError: the lock service does not work. What a node that is another process meets is in `incomplete`.
        InterruptedRunError: cancelled; the rest is still noted, for the next time.
    """
    from .operations.at_node import recover_everywhere

    context = RunContext(_cluster(config), plugins=plugins, on_event=on_event, token=cancel)
    return recover_everywhere(context, instance, lock_timeout_s)


def bench(
    *,
    source: Disk | Path | str | None = None,
    target: Path | str | None = None,
    config: Config | None = None,
    options: ExportOptions | None = None,
    compressions: Sequence[str] | None = None,
    time_limit_s: float = DEFAULT_BENCH_TIME_S,
    plugins: Sequence[object] = (),
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
) -> BenchResult:
    """Measure what this machine can do, and say which of it an export would run into.

    Every rate is the median of three rounds. The source is only read; below the target there is a file of at most 256 MiB, which
    is gone at the end, however it ends.

    Args:
        source: a disk image, a block device, or any disk that a storage opens; None measures no reading.
        target: a directory where exports would lie; None measures no writing.
        config: whose ``[backend_options]`` are used, and ``[defaults]`` where `options` is None. None for neither.
        options: of the export that is predicted.
        compressions: what is measured besides that of `options` ("zstd:3", "zstd:-5..9"); None is a list from fast to small.
        time_limit_s: about how long it takes, seconds; each rate is measured once whatever that takes.

    Raises:
        RefusedError: nothing was touched; `problems` lists every reason.
        StorageError: the source cannot be read, or the target not be written.
        InterruptedRunError: cancelled; nothing is left.
    """
    from .operations.bench import DEFAULT_COMPRESSIONS, BenchOperation, BenchRequest

    cluster = _cluster(config) if config is not None else _no_cluster()
    request = BenchRequest(
        source=_disk(source),
        target=Path(target) if target is not None else None,
        options=options or export_options(cluster),
        compressions=tuple(compressions) if compressions is not None else DEFAULT_COMPRESSIONS,
        time_limit_s=time_limit_s,
    )
    return BenchOperation(RunContext(cluster, plugins=plugins, on_event=on_event, token=cancel), request).run()


def tune(
    *,
    target: Path | str,
    source: Disk | Path | str | None = None,
    instance: str | None = None,
    config: Config | None = None,
    aim: Aim = "fastest",
    within_s: float | None = None,
    within_ratio: float | None = None,
    time_limit_s: float = DEFAULT_TIME_S,
    fixed: Mapping[str, Setting] | None = None,
    compress_range: Sequence[str] = (),
    sample_bytes: int = DEFAULT_SAMPLE,
    write_limit: int = DEFAULT_WRITE_LIMIT,
    search: SearchMethod = "auto",
    seed: int = 0,
    out: Path | str | None = None,
    report: Path | str | None = None,
    resume: bool = False,
    plugins: Sequence[object] = (),
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
) -> TuneResult:
    """Search the settings with which a source is exported to a target best, on real exports of a sample of it.

    The source is only read. Below the target there is a directory with one export at a time, which is gone at the end, however
    it ends. The settings found are compared with the defaults once more before they come into the profile.

    Args:
        target: a directory where exports would lie.
        source: a disk image, a block device, or any disk that a storage opens.
        instance: in place of `source`, an instance of `config`: all its disks.
        config: needed for `instance`; its ``[defaults]`` are what is compared with, its ``[backend_options]`` are used.
        aim: "fastest", "smallest" (within a time) or "least-cpu".
        within_s: for "smallest", how long an export of the whole source may take, seconds.
        within_ratio: likewise, how many times as long as with the defaults; 2 where neither is given.
        time_limit_s: after which all of it has ended, seconds.
        fixed: options (of `ExportOptions`, those a profile can hold) that are given, and not searched.
        compress_range: compressions to search ("zstd:3", "zstd:-5..9"); without them the compression is kept, unless `aim` is
            "smallest".
        sample_bytes: the most that one trial reads.
        write_limit: the most that all trials together write, bytes.
        search: "optuna", "grid", or "auto": optuna where it is installed.
        seed: of what is drawn at random.
        out: the profile to write; beside it, with ``.trials`` behind its name, a log of what was measured.
        report: an HTML page to write.
        resume: go on with the trials of an earlier, interrupted run with the same arguments.

    Raises:
        RefusedError: nothing was touched; `problems` lists every reason.
        UnknownNameError: there is no such instance.
        OperationFailedError: the defaults do not work, or `time_limit_s` is too short for them.
        InterruptedRunError: cancelled; what was measured is kept for `resume` where `out` was given.
    """
    from .operations.tune import TuneOperation

    if instance is not None and config is None:
        raise RefusedError(f"{instance}: to tune for an instance, give a configuration; or give a disk")
    request = TuneRequest(
        target=Path(target),
        source=_disk(source),
        instance=instance,
        aim=aim,
        within_s=within_s,
        within_ratio=within_ratio,
        time_limit_s=time_limit_s,
        fixed=dict(fixed or {}),
        compressions=tuple(compress_range),
        sample_bytes=sample_bytes,
        write_limit=write_limit,
        search=search,
        seed=seed,
        out=Path(out) if out is not None else None,
        report=Path(report) if report is not None else None,
        resume=resume,
    )
    cluster = _cluster(config) if config is not None else _no_cluster()
    return TuneOperation(RunContext(cluster, plugins=plugins, on_event=on_event, token=cancel), request).run()


def inspect(
    disk: Disk | Path | str | None = None,
    *,
    instance: str | None = None,
    config: Config | None = None,
    zero_fill: str | None = None,
    svg: Path | str | None = None,
    plugins: Sequence[object] = (),
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
) -> InspectedDisk:
    """Say what a disk holds: partitions, volumes and filesystems, what is free in them, and what of it exports may leave out.

    The disk is only read, and no locks are taken. Guests' data is read by a process without privileges, and believed only where
    all of it fits together (``docs/free-space.md``). Of a disk that is written to meanwhile the answer may be out of date, and
    `InspectedDisk.in_use` says so: it is then good for looking at, not for leaving anything out.

    Args:
        disk: a disk image, a block device, or any disk that a storage opens.
        instance: in place of `disk`, ``NAME`` or ``NAME:INDEX`` of an instance of `config`; the index is needed where there are
            several disks.
        config: needed for `instance`; its ``[backend_options]`` are used.
        zero_fill: the zero-fill backend that reads it; None is the configured one, or the first that does not refuse the disk.
        svg: a file for a picture of the disk. A picture that is there is replaced; anything else is not.
        plugins, on_event, cancel: as in `export`.

    Raises:
        RefusedError: the disk cannot be opened, or is empty; `zero_fill` cannot be used; `svg` cannot be written there.
        UnknownNameError: there is no such instance.
        OperationFailedError: the disk could not be read through, so nothing is known of it; or `svg` could not be written.
        InterruptedRunError: cancelled.
    """
    from .operations.inspection import InspectOperation, InspectRequest

    if (disk is None) == (instance is None):
        raise RefusedError("disk: give either a disk or an instance")
    if instance is not None and config is None:
        raise RefusedError(f"{instance}: to inspect a disk of an instance, give a configuration; or give a disk")
    request = InspectRequest(disk=_disk(disk), instance=instance, zero_fill=zero_fill, svg=Path(svg) if svg is not None else None)
    cluster = _cluster(config) if config is not None else _no_cluster()
    return InspectOperation(RunContext(cluster, plugins=plugins, on_event=on_event, token=cancel), request).run()


def free_extents(
    disk: Disk | Path | str,
    *,
    config: Config | None = None,
    zero_fill: str | None = None,
    plugins: Sequence[object] = (),
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
) -> FreeExtents:
    """Find the byte ranges of a disk that its guest's filesystems call free, where that can be believed.

    `inspect` says why the rest is kept, and whether the disk was being written to, in which case this is out of date.

    Args:
        disk, config, zero_fill, plugins, on_event, cancel: as in `inspect`.

    Returns:
        Extents of kind FREE, ascending, without overlap, of allocated and never written space alike; a sequence.

    Raises:
        RefusedError, OperationFailedError, InterruptedRunError: as `inspect`.
    """
    return inspect(disk, config=config, zero_fill=zero_fill, plugins=plugins, on_event=on_event, cancel=cancel).free


def plugins_report(config: Config | None = None, *, plugins: Sequence[object] = ()) -> tuple[RegisteredBackend, ...]:
    """List every backend there is, stage by stage, in the order in which they are asked. Makes none of them.

    Args:
        config: needed by nothing yet; a configuration that cannot be used is refused.
        plugins: listed besides the built-in and installed ones.

    Raises:
        PluginError: a plugin that cannot be loaded or trusted, or two that provide backends of one name.
    """
    return PluginHost(_cluster(config) if config is not None else None, plugins).registered()


def fleet_operation(
    patterns: Sequence[str] = (),
    *,
    cluster: Cluster,
    to: str | None = None,
    tags: Sequence[str] = (),
    all_instances: bool = False,
    nodes: Sequence[str] = (),
    order: Literal["largest", "smallest", "name"] = "largest",
    plan: str | None = None,
    resume: bool = False,
    discard: bool = False,
    dry_run: bool = False,
    options: ExportOptions | None = None,
    plugins: Sequence[object] = (),
    on_event: EventListener | None = None,
    cancel: CancellationToken | None = None,
    **limits: Any,
) -> FleetExportOperation:
    """The operation that `fleet_export` runs, for the command line, which asks it for more problems of a command with some."""
    from .fleet.listeners import OneAtATime
    from .fleet.request import FleetLimits, FleetRequest
    from .operations.fleet_export import FleetExportOperation
    from .operations.fleet_export import Library as Functions

    if options is not None and not isinstance(options, ExportOptions):
        raise RefusedError(f"options must be an ExportOptions, not {type(options).__name__}")
    asked = patterns or tags or all_instances or to is not None or nodes or options is not None or order != "largest"
    chosen = options or export_options(cluster)
    request = FleetRequest(
        patterns=tuple(patterns),
        tags=tuple(tags),
        everything=all_instances,
        to=to or "",
        nodes=tuple(nodes),
        order=order,
        options={each.name: getattr(chosen, each.name) for each in fields(chosen) if each.name != "dry_run"},
    )
    listener = OneAtATime(on_event)
    return FleetExportOperation(
        RunContext(cluster, plugins=plugins, on_event=listener if on_event is not None else None, token=cancel),
        Functions(export=export, recover=recover, list_exports=list_exports),
        request=request if asked or not resume else None,
        limits=FleetLimits(**limits),
        plan=plan or "",
        resume=resume,
        discard=discard,
        dry_run=dry_run or chosen.dry_run,
        tell_one=listener,
    )


def _cluster(config: Config) -> Cluster:
    if isinstance(config, Cluster):
        return config
    from .config import load_cluster

    return load_cluster(config)


def _document(document: Mapping[str, Any] | Path | str, what: str) -> Mapping[str, Any]:
    """A document of a remote export that was given itself, or as its file; not looked at closely."""
    if isinstance(document, Mapping):
        return document
    from .remote.envelope import read_document
    from .remote.signing import MAX_DOCUMENT

    try:
        with open(document, "rb") as file:
            data = file.read(MAX_DOCUMENT + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RefusedError(f"{printable(str(document))}: cannot be read: {reason}") from error
    return read_document(data, what)


def _disk(source: Disk | Path | str | None) -> Disk | None:
    """A disk for what was given as one: a path is an image file or, where it is one, a block device."""
    if source is None or isinstance(source, Disk):
        return source
    path = Path(source).absolute()
    return Disk(storage="block" if path.is_block_device() else "file", path=path)


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
    "bench",
    "export",
    "fleet_export",
    "free_extents",
    "guest",
    "import_",
    "inspect",
    "list_exports",
    "move",
    "plan",
    "plugins_report",
    "prepare",
    "prune",
    "receive",
    "recover",
    "remove",
    "show",
    "tune",
    "verify",
]
