"""Exporting an instance: the operation, its refusals, and its plan. The work itself is `export_run`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TypeVar, cast

from ..api import DiskRegion, ExportStore, LockMode, Runtime, Snapshots, Storage, ZeroFill
from ..errors import DiskhaulError, GuestError, InterruptedRunError, RefusedError, UnknownBackendError, UnreachableNodeError
from ..feedback import Feedback
from ..formats.codec import parse_compress
from ..formats.manifest import read_manifest
from ..model import Disk, Instance, Node
from ..names import expand_name, name_problem
from ..option_checks import compression_problems, option_problems
from ..options import ExportOptions
from ..pipeline.free_space import checked_free_extents
from ..pipeline.source import Source
from ..records import Downtime, ExportRecord, ExportResult, Plan, PlannedDisk
from .base import LockLevel, Operation, RunContext, Timeouts
from .catalog import Catalog, on_node, open_record
from .disk_use import GLANCE_S, disks_in_use
from .downtime import estimate_downtime
from .export_run import ExportRun
from .export_task import ExportTask
from .free_space import look_for_free_space
from .guest import guest_call, guest_runs
from .instance_env import instance_environment
from .moving import being_moved
from .planning import chunk_problems, estimate_disk, same_place_problems
from .plugin_answers import failure_lines, location_of, problems_from
from .recover import owes_start, recover_runs

T = TypeVar("T")


class ExportOperation(Operation[ExportResult]):
    """Exports one instance to one node.

    Raises (from `run`):
        RefusedError: every reason found, together; nothing was touched.
        LockTimeoutError: somebody else works on the instance.
        OperationFailedError: the guest's state and earlier exports are as before; `result` has the per-disk results.
        InterruptedRunError: cancelled; likewise as before.
    """

    name = "export"
    hooks_name = "instance-export"

    def __init__(self, context: RunContext, instance: str, node: str, options: ExportOptions) -> None:
        super().__init__(context)
        self.options = options
        self._asked_instance, self._asked_node = instance, node
        self.snapshot_backends: dict[int, tuple[str, Snapshots]] = {}
        self.snapshot_reasons: tuple[str, ...] = ()
        self.zero_fills: dict[int, tuple[str, ZeroFill]] = {}
        self.shared: frozenset[int] = frozenset()
        self.running = self.owed_start = False
        self._unreachable: UnreachableNodeError | None = None
        self.instance: Instance
        self.source: Node
        self.target: Node
        self.runtime: Runtime
        self.plan: Plan

    def describe(self) -> str:
        return f"export of {self.instance.name} to {self.target.name}"

    # --- before anything is touched ---------------------------------------------------------------------------------

    def check_arguments(self) -> None:
        """Reject what is wrong with the arguments; names that are unknown are told with it, and else by `expand_names`."""
        problems = self._argument_problems()
        if problems:
            unknown = (line for error in self._expanded()[1] for line in error.problems)
            raise RefusedError(dict.fromkeys([*problems, *unknown]))  # an illegal name is told once
        self.timeouts = Timeouts(lock_s=self.options.lock_timeout_s, hook_s=self.options.hook_timeout_s)
        self.dry_run = self.options.dry_run

    def _argument_problems(self) -> list[str]:
        problems = [problem for kind, name in self._asked().items() if (problem := name_problem(kind, name))]
        if not isinstance(self.options, ExportOptions):
            return [*problems, f"options must be an ExportOptions, not {type(self.options).__name__}"]
        return [*problems, *option_problems(self.options), *compression_problems(self.options, self.cluster)]

    def _asked(self) -> dict[str, str]:
        """The names that were given, by kind."""
        return {"instance": self._asked_instance, "node": self._asked_node}

    def _expanded(self) -> tuple[dict[str, str], list[RefusedError]]:
        """The full names of the instance and the node that were asked for, and why there are none."""
        problems: list[RefusedError] = []
        found: dict[str, str] = {}
        try:
            inventory = self.host.inventory()
            known = {"instance": tuple(inventory.instances()), "node": tuple(inventory.nodes())}
        except RefusedError as error:
            return found, [error]
        for kind, asked in self._asked().items():
            try:
                found[kind] = expand_name(kind, asked, known[kind])
            except RefusedError as error:
                problems.append(error)
        return found, problems

    def expand_names(self) -> None:
        found, problems = self._expanded()
        if len(problems) == 1:
            raise problems[0]
        if problems:
            raise RefusedError([line for problem in problems for line in problem.problems])
        inventory = self.host.inventory()
        instances, nodes = inventory.instances(), inventory.nodes()
        self.instance = instances[found["instance"]]
        self.target = self._target_node(found)
        if self.instance.node not in nodes:
            raise RefusedError(f"instance {self.instance.name}: its node {self.instance.node!r} is unknown")
        self.source = nodes[self.instance.node]

    def _target_node(self, found: Mapping[str, str]) -> Node:
        """The node that the export goes to; `found` has full names by kind."""
        return self.host.inventory().nodes()[found["node"]]

    def home(self) -> Node:
        return self.source

    def declare_locks(self, level: LockLevel) -> Mapping[str, LockMode]:
        if level is LockLevel.CLUSTER:
            return {self.cluster.name: LockMode.SHARED}
        if level is LockLevel.INSTANCE:
            return {self.instance.name: LockMode.EXCLUSIVE}
        if level is LockLevel.NODE:
            return dict.fromkeys((self.source.name, self.target.name), LockMode.SHARED)
        return {}

    def check_prerequisites(self) -> None:
        """Find every reason to refuse, and make the plan."""
        problems: list[str] = []
        sources: dict[int, Source] = {}
        try:
            problems += self._node_problems()
            guest_problems = self._guest_problems()
            problems += guest_problems
            self._open_disks(sources, problems)
            if not self.running and not guest_problems:
                problems += self._use_problems([disk for disk in self.instance.disks if disk.index in sources])
            free = self._target_problems(problems)
            problems += self._snapshot_problems()
            problems += self._zero_fill_problems()
            problems += chunk_problems([source.size for source in sources.values()], self.options.chunk_size)
            problems += same_place_problems(self.instance.disks, self.target.export_dir, self.target.name)
            problems += self._hook_script_problems()
            problems += self._layout_problems()
            problems += problems_from("clean-up", self._cleanup_problems)
            if problems:
                # Raised from what may pass where that is all there is, so that those who try again can tell.
                raise RefusedError(problems) from (self._unreachable if problems == [str(self._unreachable)] else None)
            self.shared = self._shared_disks(sources)
            self.plan = self._make_plan(sources, free)
        finally:
            for source in sources.values():
                source.close()
        estimate = sum(disk.stored_bytes for disk in self.plan.disks)
        if free is not None and estimate > free:
            problems.append(
                f"node {self.target.name} has {_mib(free)} free and the export needs about {_mib(estimate)}: "
                "make room, or choose another node or a stronger --compress"
            )
        problems += self.host.prerequisites(self.plan)
        if problems:
            raise RefusedError(problems)

    def _node_problems(self) -> list[str]:
        problems = []
        if self.source.offline:
            problems.append(f"node {self.source.name}, where {self.instance.name} lives, is marked offline")
        if self.target.offline:
            problems.append(f"node {self.target.name} is marked offline: choose another target")
        if self.target.drained:
            problems.append(f"node {self.target.name} is drained and takes no exports: choose another target")
        return problems

    def _guest_problems(self) -> list[str]:
        instance, options = self.instance, self.options
        try:
            self.runtime = self.host.runtime(instance.runtime)
            problems = problems_from(instance.name, lambda: self.runtime.check(instance))
            if problems:
                return problems
            if lines := being_moved(self.context, instance.name):
                return lines
            # A dead run may have left the guest stopped; it will be started again before anything else happens.
            runs = guest_runs(self.runtime, instance)
            self.owed_start = not runs and owes_start(self.context, instance.name)
            self.running = runs or self.owed_start
        except RefusedError as error:
            return list(error.problems)
        except DiskhaulError as error:
            return [str(error)]
        if options.remove_instance and self.running and not options.shutdown:
            return [f"{instance.name} is running: it cannot be removed with --no-shutdown; stop it or leave the option out"]
        return []

    def _open_disks(self, sources: dict[int, Source], problems: list[str]) -> None:
        """Open every disk for a look into `sources`, to be closed by the caller; add what is wrong to `problems`."""
        if not self.instance.disks:
            problems.append(f"{self.instance.name} has no disks: there is nothing to export")
        places: dict[str, str] = {}
        for disk in self.instance.disks:
            try:
                storage = self.host.storage(disk.storage)
                wrong = list(storage.check(disk))
                if not wrong:
                    sources[disk.index] = source = open_source(storage, disk)
                    wrong += size_problems(disk, source)
                    if self.options.direct_io == "always" and (problem := source.direct_io_problem()):
                        wrong.append(f"direct_io = always: {problem}; use direct_io = auto")
                place = location_of(storage, disk)
                if place and place in places:
                    wrong.append(f"{disk.label} is the same as {places[place]}")
                places[place] = disk.label
            except BaseException as error:  # a plugin may raise anything, SystemExit included
                wrong = failure_lines(disk.label, error)
            problems += [line if line.startswith(f"disk {disk.index}") else f"{disk.label}: {line}" for line in wrong]

    def _use_problems(self, disks: Sequence[Disk]) -> list[str]:
        """Who writes to `disks` of a guest that counts as off: it may be running after all."""
        name, runtime = self.instance.name, self.instance.runtime
        try:
            used = disks_in_use(self.host, disks, patience_s=GLANCE_S, limit_s=self.options.stall_timeout_s)
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            return failure_lines(name, error)
        goes_by = "say by 'runtime' what runs it" if runtime == "none" else f"correct what its runtime '{runtime}' goes by"
        return [f"{name} counts as off, but {line}: end that, or {goes_by}" for line in used]

    @property
    def target_instance(self) -> str:
        """What the instance is called where the export goes."""
        return self.instance.name

    def at_target(self, function: Callable[..., T], *arguments: object) -> T:
        """Return ``function(store, *arguments)`` with the store that the export goes to."""
        return on_node(self.host, self.target, function, *arguments)

    def _target_problems(self, problems: list[str]) -> int | None:
        """Add what is wrong with the target to `problems`; return its free space."""
        if self.target.offline:
            return None
        try:
            direct = self.options.direct_io == "always"
            found, free = self.at_target(_store_facts, self.target_instance, direct)
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            problems += failure_lines(f"node {self.target.name}", error)
            self._unreachable = error if isinstance(error, UnreachableNodeError) else None
            return None
        problems += found
        return free

    def _shared_disks(self, sources: Mapping[int, Source]) -> frozenset[int]:
        """Disks that need not be copied, since the export can share their blocks. What counts is found out when they are sent."""
        if parse_compress(self.options.compress).name != "none":
            return frozenset()
        descriptors = {index: found for index, source in sources.items() if (found := source.whole_file()) is not None}
        try:
            return frozenset(self.at_target(_shared_disks, self.instance.name, descriptors))
        except Exception:  # a store that cannot say so gets copies
            return frozenset()

    def _snapshot_problems(self) -> list[str]:
        """Choose a snapshot backend for every disk of a running guest; say why the export cannot go on without."""
        if not self.running or self.options.remove_instance:
            return self._unknown_snapshot_backends()
        reasons: list[str] = []
        for disk in self.instance.disks:
            try:
                choice = self.host.snapshots_for(disk)
            except RefusedError as error:
                return list(error.problems)
            if choice.backend is None:
                reasons.append(f"{disk.label}: {'; '.join(choice.reasons) or 'no snapshot backend is installed'}")
            else:
                self.snapshot_backends[disk.index] = (choice.name, choice.backend)
        self.snapshot_reasons = tuple(reasons)
        if not reasons or (self.options.shutdown and self.options.long_sleep):
            return []
        if not self.options.shutdown:
            return [f"live export needs a snapshot of every disk: {'; '.join(reasons)}"]
        reason = f"no snapshot is possible, so the guest would be down while its disks are sent: {'; '.join(reasons)}"
        return [f"{reason}; say --long-sleep if it may be"]

    def _unknown_snapshot_backends(self) -> list[str]:
        """Names that nobody provides: told also while none is needed, and not only on the day when the guest runs."""
        problems = []
        for disk in self.instance.disks:
            if disk.snapshot:
                try:
                    self.host.snapshots_for(disk)
                except UnknownBackendError as error:
                    problems += [f"{disk.label}: {problem}" for problem in error.problems]
                except RefusedError:  # it is there, and cannot be used: the export can do without
                    continue
        return problems

    def _zero_fill_problems(self) -> list[str]:
        """Choose a zero-fill backend for every disk that one can serve; a disk that none can is sent as it is."""
        options = self.options
        if not options.zero_free_space:
            return []
        problems: list[str] = []
        trimming = ""
        if not self.host.registered("zerofill"):
            return ["zero_free_space: no zero-fill backend is installed; leave it out, or install a plugin that has one"]
        for disk in self.instance.disks:
            try:
                choice = self.host.zerofill_for(disk, options.zero_fill)
            except RefusedError as error:
                return list(error.problems)
            if choice.backend is not None:
                self.zero_fills[disk.index] = (choice.name, choice.backend)
                if choice.backend.writes:
                    if self.running and not options.shutdown:
                        problems.append(f"{disk.label}: zero-fill {choice.name} writes to the disk, so it needs a shutdown")
                    problems += self._in_place_problems(disk)
                if choice.backend.trims:
                    trimming = choice.name
            elif options.zero_fill:
                problems.append(f"{disk.label}: zero-fill {options.zero_fill} cannot be used: {'; '.join(choice.reasons)}")
            else:
                self.feedback.warn(f"{disk.label}: nothing is skipped as free: {'; '.join(choice.reasons)}")
        return problems + (self._trim_problems(trimming) if trimming else [])

    def _trim_problems(self, name: str) -> list[str]:
        """Why the guest cannot be asked to give back its free space, as zero-fill `name` has it do."""
        runtime, instance = self.runtime, self.instance
        if not self.running:
            self.feedback.warn(f"{instance.name} does not run, so it cannot {name}: its disks are sent as they are")
            return []
        try:
            if guest_call("ask whether it can be trimmed", runtime, runtime.can_trim, instance):
                return []
        except GuestError as error:
            return [str(error)]
        return [
            f"zero-fill {name}: the runtime of {instance.name} cannot have it trim its filesystems; configure that, or use skip"
        ]

    def _in_place_problems(self, disk: Disk) -> list[str]:
        """Why the storage could not zero `disk` in place."""

        def ask() -> Iterable[object]:
            asked = getattr(self.host.storage(disk.storage), "check_in_place", None)
            if not callable(asked):  # the method is optional
                return [f"{disk.label}: its storage cannot zero disks in place"]
            return cast(Iterable[object], asked(disk))

        return problems_from(disk.label, ask)

    def _cleanup_problems(self) -> list[str]:
        """Nothing; raises when the clean-up backend is missing or cannot be made: not to be found out after the export."""
        self.host.cleanup()
        return []

    def _hook_script_problems(self) -> list[str]:
        if self.cluster.hook_dir is None:
            return []
        from ..hook_scripts import hook_problems

        return hook_problems(self.cluster.hook_dir, self.hooks_name)

    def _layout_problems(self) -> list[str]:
        """What Ganeti's description of an instance cannot hold."""
        if self.options.layout != "ganeti":
            return []
        from ..formats.ganeti import GanetiDump, render_config_ini

        dumps = [
            GanetiDump(file=disk.uuid or f"disk-{disk.index}", size_mib=0, ivname=f"disk/{disk.index}", name=disk.name)
            for disk in self.instance.disks
        ]
        try:
            render_config_ini(self.instance, dumps, timestamp=0, source=self.source.name)
        except RefusedError as error:
            return [f"layout ganeti: {problem}" for problem in error.problems]
        return []

    # --- the plan ---------------------------------------------------------------------------------------------------

    @property
    def uses_snapshots(self) -> bool:
        """True when the disks will be read from snapshots."""
        disks = self.instance.disks
        return self.running and not self.options.remove_instance and len(self.snapshot_backends) == len(disks)

    @property
    def leaves_digests(self) -> bool:
        """True when some disk will have no digests until the export is verified."""
        return bool(self.shared) and self.options.digest == "later"

    @property
    def downtime(self) -> Downtime:
        """For how long the guest will be down."""
        if not self.running or not self.options.shutdown:
            return "none"
        return "snapshot" if self.uses_snapshots else "transfer"

    def _make_plan(self, sources: Mapping[int, Source], free: int | None) -> Plan:
        compression = parse_compress(self.options.compress)
        disks = []
        unreadable: list[str] = []
        for disk in self.instance.disks:
            regions, basis = self._expected_free_space(disk, sources[disk.index])
            try:
                estimate = estimate_disk(sources[disk.index], compression, self.options.chunk_size)
            except BaseException as error:  # a plugin may raise anything, SystemExit included
                unreadable += failure_lines(disk.label, error)
                continue
            disks.append(
                PlannedDisk(
                    index=disk.index,
                    label=disk.label,
                    size=estimate.size,
                    data_bytes=estimate.data_bytes,
                    hole_bytes=estimate.hole_bytes,
                    stored_bytes=estimate.stored_bytes - (estimate.data_bytes if disk.index in self.shared else 0),
                    snapshot=self.snapshot_backends[disk.index][0] if self.uses_snapshots else "",
                    shared=disk.index in self.shared,
                    free_bytes=estimate.free_bytes,
                    free_basis=basis,
                    regions=regions,
                )
            )
        if unreadable:
            raise RefusedError(unreadable)
        listed = Catalog(self.host, self.host.inventory().nodes().values()).list(self.instance.name).exports
        seconds, basis = self._expected_downtime(listed, sum(disk.data_bytes for disk in disks))
        return Plan(
            operation=self.name,
            run_id=self.context.run_id,
            cluster=self.cluster.name,
            instance=self.instance,
            source=self.source,
            target=self.target,
            running=self.running,
            downtime=self.downtime,
            downtime_s=seconds,
            downtime_basis=basis,
            steps=tuple(self._steps()),
            disks=tuple(disks),
            free_bytes=free,
            supersedes=self._expected_cleanup(listed),
            options={field.name: getattr(self.options, field.name) for field in fields(self.options)},
        )

    def _expected_free_space(self, disk: Disk, source: Source) -> tuple[tuple[DiskRegion, ...], str]:
        """What would be left out of `disk` as free, were it sent as it is now; `source` is told. And what that is taken from."""
        name, backend = self.zero_fills.get(disk.index, ("", None))
        if backend is None or backend.writes:
            return (), ""
        if backend.trims:
            return (), f"{name}: known once the guest has given it back"
        limit_s, token = self.options.stall_timeout_s, self.context.token
        try:
            found = look_for_free_space(backend, disk, source.reader, limit_s=limit_s, token=token)
        except InterruptedRunError:
            raise
        except Exception as error:  # it is tried again, and told, when it counts
            return (), f"{name}: not known: {str(error) or type(error).__name__}"
        source.free = checked_free_extents(found.free, source.size)
        state = "an estimate, since the guest is running and writes to the disk" if self.running else "from the disk as it is now"
        return found.regions, f"{name}: {state}"

    def _steps(self) -> list[str]:
        name, options = self.instance.name, self.options
        backends = ", ".join(sorted({backend for backend, _ in self.snapshot_backends.values()}))
        steps = []
        if self.owed_start:
            steps.append(f"start {name}, which a run that is gone had stopped")
        trimming = sorted({fill for fill, backend in self.zero_fills.values() if backend.trims})
        if trimming and self.running:
            steps.append(f"have {name} give back what its filesystems do not use ({', '.join(trimming)})")
        if self.running and options.shutdown:
            steps.append(f"stop {name}")
        writing = sorted({fill for fill, backend in self.zero_fills.values() if backend.writes})
        if writing:
            steps.append(f"zero the free space of its disks ({', '.join(writing)})")
        skipping = sorted({fill for fill, backend in self.zero_fills.values() if not backend.writes and not backend.trims})
        if self.uses_snapshots:
            steps.append(f"snapshot its disks ({backends})")
            if options.shutdown:
                steps.append(f"start {name} again")
        copied = len(self.instance.disks) - len(self.shared)
        if self.shared:
            steps.append(
                f"share the blocks of {len(self.shared)} disk(s) with the export on {self.target.name}: nothing is copied"
            )
        if skipping:
            steps.append(f"find what is free on its disks, to leave it out ({', '.join(skipping)})")
        if copied:
            steps.append(f"send {copied} disk(s) to {self.target.name}, compress {options.compress}")
        if self.downtime == "transfer" and not options.remove_instance:
            steps.append(f"start {name} again")
        if self.shared and not self.leaves_digests:
            steps.append("read what is shared, and make its digests")
        if options.verify != "none" and copied:
            steps.append("read back what was stored" + (" and decode it" if options.verify == "full" else ""))
        steps.append("publish the export")
        if options.remove_instance:
            steps.append(f"remove {name}")
        return [*steps, *self._cleanup_steps()]

    def _cleanup_steps(self) -> list[str]:
        if self.leaves_digests:
            return ["keep earlier exports, since the new one has no digests until it is verified"]
        if self.options.verify == "none":
            return ["keep earlier exports, since the new one is not read back"]
        return [f"clean up superseded exports ({self.cluster.backends.get('cleanup', 'others')})"]

    def _expected_downtime(self, listed: Sequence[ExportRecord], to_read: int) -> tuple[float | None, str]:
        if self.downtime != "none" and self.options.remove_instance:
            return None, "for good: it is stopped, and removed once its export has been read back"
        nodes = self.host.inventory().nodes()
        return estimate_downtime(
            self.downtime, listed, to_read, lambda record: read_manifest(open_record(self.host, nodes[record.node], record))
        )

    def _expected_cleanup(self, listed: Sequence[ExportRecord]) -> tuple[ExportRecord, ...]:
        """What the clean-up policy would choose now, for the plan; the choice that counts is made after the export."""
        if self.options.verify == "none" or self.leaves_digests:
            return ()
        from .cleanup import choose_superseded
        from .new_export import imagined_record

        new = imagined_record(self.context.run_id, self.instance.name, self.target.name)
        try:
            return tuple(choose_superseded(self.host, new, listed))
        except BaseException:  # a policy that fails is reported when it counts; a plan can do without
            return ()

    # --- hook scripts -----------------------------------------------------------------------------------------------

    def build_hooks_env(self) -> dict[str, str]:
        options = self.options
        return {
            **self.host.hook_environment(self.plan),
            **instance_environment(
                self.instance, running=self._running_now(), sizes={disk.index: disk.size for disk in self.plan.disks}
            ),
            "EXPORT_MODE": "local",
            "EXPORT_NODE": self.target.name,
            "EXPORT_DO_SHUTDOWN": str(options.shutdown),
            "SHUTDOWN_TIMEOUT": f"{options.shutdown_timeout_s:g}",
            "REMOVE_INSTANCE": str(options.remove_instance),
        }

    def _running_now(self) -> bool:
        try:
            return bool(self.runtime.is_running(self.instance))
        except Exception:  # a removed instance has no state any more
            return False

    def build_hooks_nodes(self) -> list[str]:
        names = (self.cluster.master, self.source.name, self.target.name)
        return list(dict.fromkeys(name for name in names if name))

    # --- the work ---------------------------------------------------------------------------------------------------

    def dry_run_result(self) -> ExportResult:
        return ExportResult(
            run_id=self.context.run_id,
            instance=self.instance.name,
            node=self.target.name,
            plan=self.plan,
            warnings=tuple(self.feedback.warnings),
        )

    def _task(self) -> ExportTask:
        return ExportTask(
            operation=self,
            options=self.options,
            instance=self.instance,
            exported=self.instance,
            at_target=self.at_target,
            source=self.source,
            target=self.target,
            runtime=self.runtime,
            running=self.running,
            plan=self.plan,
            snapshot_backends=self.snapshot_backends,
            snapshot_reasons=self.snapshot_reasons,
            uses_snapshots=self.uses_snapshots,
            zero_fills=self.zero_fills,
        )

    def execute(self, feedback: Feedback) -> ExportResult:
        recover_runs(self, self.instance.name)
        journal, run_id = self.context.journal, self.context.run_id
        journal.begin(run_id, self.name, self.instance.name)
        begun = time.monotonic()
        try:
            return ExportRun(self._task()).run()
        finally:
            feedback.timings["total"] = time.monotonic() - begun
            try:
                journal.finish(run_id)
            except Exception as error:  # an empty run left in the journal is no reason to hide what became of the export
                feedback.warn(f"the journal still holds this run, with nothing to be done: {error}")


def open_source(storage: Storage, disk: Disk) -> Source:
    """Open `disk` for reading; raises `StorageError`, or what the storage raises."""
    return Source(storage.open(disk), disk.label)


def size_problems(disk: Disk, source: Source) -> list[str]:
    if disk.size is None and source.size == 0:
        remedy = "put the right image there, or the right path into the configuration, or configure the disk's size"
        return [f"{disk.label} is empty (0 bytes): there is nothing to export; {remedy}"]
    if disk.size is not None and disk.size != source.size:
        return [f"{disk.label} has {source.size} bytes, and {disk.size} are configured; correct the one that is wrong"]
    return []


def _store_facts(store: ExportStore, instance: str, direct: bool) -> tuple[list[str], int | None]:
    problems = list(store.check(instance, for_writing=True))
    if direct and not problems and (problem := _direct_io_problem(store)):
        problems.append(f"direct_io = always: {problem}; use direct_io = auto")
    return problems, store.free_bytes()


def _shared_disks(store: ExportStore, instance: str, descriptors: Mapping[int, int]) -> frozenset[int]:
    asked = getattr(store, "shares_blocks", None)
    return frozenset(index for index, descriptor in descriptors.items() if callable(asked) and asked(instance, descriptor))


def _direct_io_problem(store: ExportStore) -> str | None:
    asked = getattr(store, "direct_io_problem", None)
    return asked() if callable(asked) else "the node's store knows no direct I/O"


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
