"""What operations answer: records of exports, plans, results, findings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .api import DiskMap, FreeExtents
from .model import Instance, Node
from .options import Aim, Setting

if TYPE_CHECKING:
    from .api import DiskRegion

Downtime = Literal["none", "snapshot", "transfer"]
Consistency = Literal["stopped", "filesystem", "crash"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportRecord:
    """An export that lies somewhere.

    Attributes:
        export_id: UTC time and short run id; sorts by age.
        instance: full name.
        node: a node that reaches it.
        store: identity of the store it lies in.
        path: where it is, as that node sees it.
        created: UTC.
        layout: "diskhaul" or "ganeti".
        disk_bytes: sizes of its disks together.
        stored_bytes: what it takes up, as the manifest counts it; blocks shared with other files included.
        digests: every disk has digests. False after an export with ``digest = "later"``, until it has been verified.
        problem: why it is not valid, or "".
    """

    export_id: str
    instance: str
    node: str
    store: str
    path: str
    created: datetime
    layout: str = "diskhaul"
    compress: str = ""
    consistency: str = ""
    disk_count: int = 0
    disk_bytes: int = 0
    stored_bytes: int = 0
    digests: bool = True
    problem: str = ""

    @property
    def valid(self) -> bool:
        return not self.problem


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedDisk:
    """One disk of a plan. `data_bytes` is what it holds; `stored_bytes` what will be written, estimated from samples of it.

    `snapshot` is the backend that will be used, "" for none. `shared`: the export will share the disk's blocks, not copy them.

    Where free space is to be left out, `free_bytes` is how much that would be now (`regions` say where, and why not), and
    `data_bytes` is without it. It is an estimate: a running guest goes on writing while it is found out, and what counts is the
    state in which the disk is sent. `free_basis` says what it is taken from, or why it is not known.
    """

    index: int
    label: str
    size: int
    data_bytes: int
    hole_bytes: int
    stored_bytes: int
    snapshot: str = ""
    shared: bool = False
    free_bytes: int = 0
    free_basis: str = ""
    regions: tuple[DiskRegion, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an operation is about to do, for people, hook scripts and `diskhaul_prerequisites`.

    Attributes:
        operation: "export", "import", ...
        running: whether the guest runs now.
        downtime: "none", "snapshot" (until the snapshots exist) or "transfer" (until the disks are sent).
        downtime_s: an estimate of it in seconds, None where nothing tells, or where the guest is removed and stays down.
        downtime_basis: what the estimate is taken from, or what the downtime depends on; "" where there is none.
        steps: what will happen, in order, one line each.
    """

    operation: str
    run_id: str
    cluster: str
    instance: Instance
    source: Node | None
    target: Node | None
    running: bool
    downtime: Downtime
    steps: tuple[str, ...]
    downtime_s: float | None = None
    downtime_basis: str = ""
    disks: tuple[PlannedDisk, ...] = ()
    free_bytes: int | None = None
    supersedes: tuple[ExportRecord, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskResult:
    """What became of one disk. `error` is "" when it was sent (or restored) and checked.

    `bytes_shared` of an exported disk are its own blocks, shared with the export instead of copied. `root_digest` is "" where the
    digests are left to `verify`. `regions` is what the disk holds, and what of it is free, where that was looked for;
    `free_bytes` counts of that only what is allocated on the disk, and so was really left out.
    """

    index: int
    label: str
    size: int = 0
    bytes_read: int = 0
    bytes_skipped: int = 0
    bytes_written: int = 0
    bytes_shared: int = 0
    data_bytes: int = 0
    zero_bytes: int = 0
    free_bytes: int = 0
    root_digest: str = ""
    seconds: float = 0.0
    error: str = ""
    regions: tuple[DiskRegion, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What an export did.

    Attributes:
        export: the new export, or None after a dry run or a failure.
        timings: seconds by stage; "shutdown" is how long the guest was down.
        incomplete: what is left to do by hand (exit code 4): a clean-up or a removal that failed.
        instance_removed: the instance was removed, as `ExportOptions.remove_instance` asks.
        warnings: everything else worth saying.
    """

    run_id: str
    instance: str
    node: str
    plan: Plan
    export: ExportRecord | None = None
    consistency: Consistency = "stopped"
    disks: tuple[DiskResult, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    removed: tuple[ExportRecord, ...] = ()
    instance_removed: bool = False
    incomplete: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return 4 if self.incomplete else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareResult:
    """An instance that is ready to be exported to another cluster.

    Attributes:
        document: what to give to the other cluster's `receive`, as plain data; JSON can hold it.
        prepared: its id, which is also the key's name.
        key: where the private key lies on the instance's node.
        expires: UTC; after that neither counts.
    """

    run_id: str
    instance: str
    node: str
    document: Mapping[str, Any]
    prepared: str
    key: str
    expires: datetime
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiveResult:
    """An export that came from another cluster. `source_cluster` and `source_instance` say from where."""

    run_id: str
    instance: str
    node: str
    source_cluster: str
    source_instance: str
    export: ExportRecord
    timings: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveResult:
    """An instance that was moved to another cluster.

    Attributes:
        cluster, node, name: where it is now, and what it is called there.
        steps: what was, or would be, done, one line each.
        export: as it lies there; None after a dry run.
        started: it ran here before, and runs there now.
        removed: it was removed here.
        incomplete: what is left to be done by hand, one line each.
    """

    run_id: str
    instance: str
    cluster: str
    node: str
    name: str
    steps: tuple[str, ...] = ()
    export: ExportRecord | None = None
    started: bool = False
    removed: bool = False
    incomplete: tuple[str, ...] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def exit_code(self) -> int:
        return 4 if self.incomplete else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskIdentity:
    """What tells one disk from another.

    Attributes:
        location: its storage's, "" where it could not be read.
        size: bytes.
        digest: SHA-256 of its first MiB in hexadecimal; "" where that is all zeros, or could not be read.
    """

    index: int
    location: str = ""
    size: int = 0
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestResult:
    """A guest that was looked at, started or stopped: whether it runs now, and whether that was done here.

    `disks` are those of a guest that is down, where they were asked for. `ran`, of a stop on behalf of a move: it was
    started here for that, or may have been, so it was left as it is.
    """

    run_id: str
    cluster: str
    instance: str
    node: str
    running: bool
    changed: bool = False
    ran: bool = False
    disks: tuple[DiskIdentity, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportResult:
    """What an import did. `targets` is where each disk went, by index."""

    run_id: str
    instance: str
    source: str
    disks: tuple[DiskResult, ...] = ()
    targets: Mapping[int, str] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def exit_code(self) -> int:
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong with an export.

    Attributes:
        path: the export.
        file: the damaged file in it, "" for the export as a whole.
        disk: index, or None where it concerns no single disk.
        offset: byte offset in the *disk* of the damaged chunk, or None where no chunk is damaged.
        file_offset: byte offset in `file` of the first wrong byte, where it is known what should stand there (a seek table, the
            header of a chunk table); None elsewhere, also for a chunk: its digest tells that it is damaged, and not where in it.
    """

    path: str
    file: str
    problem: str
    disk: int | None = None
    offset: int | None = None
    file_offset: int | None = None

    def __str__(self) -> str:
        place = f"disk {self.disk}" if self.disk is not None else self.file or "export"
        if self.offset is not None:
            place += f" offset {self.offset}"
        if self.file_offset is not None:
            place += f", {self.file} offset {self.file_offset}"
        return f"{self.path}: {place}: {self.problem}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """What `verify` found: `findings` is empty when every byte of every export in `checked` is as it was written.

    Attributes:
        recorded: those of `checked` that had no digests: they were read, and their digests made and recorded.
        unreachable: nodes that did not answer, with the reason.
        skipped: exports that could not be verified, or whose digests could not be recorded, since somebody else holds them.
    """

    checked: tuple[ExportRecord, ...]
    findings: tuple[Finding, ...] = ()
    bytes_checked: int = 0
    recorded: tuple[ExportRecord, ...] = ()
    unreachable: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return 6 if self.findings else 4 if self.unreachable or self.skipped else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ListResult:
    """Exports over nodes. `unreachable` names the nodes that did not answer, with the reason."""

    exports: tuple[ExportRecord, ...]
    unreachable: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return 4 if self.unreachable else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalResult:
    """What `remove` or `prune` removed and kept."""

    removed: tuple[ExportRecord, ...] = ()
    kept: tuple[ExportRecord, ...] = ()
    incomplete: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def exit_code(self) -> int:
        return 4 if self.incomplete else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoverResult:
    """What `recover` undid or finished, one line each, and what it could not (`incomplete`).

    Attributes:
        busy: instances that a run is still working on, by name; each has a line in `incomplete`.
        unreachable: nodes that did not answer, or are offline and were not asked, by name; likewise.
        failed: nodes that could not recover, by name; likewise.
    """

    done: tuple[str, ...] = ()
    incomplete: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()
    unreachable: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return 4 if self.incomplete else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportDetails:
    """One export in full. `manifest` is its manifest as plain data, {} when it has no valid one."""

    record: ExportRecord
    manifest: Mapping[str, object]


# --- fleets -----------------------------------------------------------------------------------------------------------

WORST_FIRST = (1, 6, 3, 5, 2, 4, 0)
"""Exit codes of exports from the worst to the best: unexpected, damaged, failed, locked, refused, incomplete, done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetMember:
    """What became of one instance of a fleet.

    Attributes:
        source: the node its disks lie on.
        target: the node its export went to, or was to go to when it was tried last; "" where it was not tried.
        state: "done", "failed", or "pending": not begun, or interrupted, and to be begun by a later run of the plan.
        exit_code: that of its export; meaningless while it is pending.
        attempts: how often it was begun, in all runs of the plan.
        error: what went wrong the last time, or "".
        remedy: what to do about that, or "".
        size: bytes of its disks together, 0 where nobody measured them.
        seconds: how long the last attempt took.
        earlier: it was done, or had failed, before this run of the plan.
        incomplete: as in `ExportResult`.
    """

    instance: str
    source: str
    target: str = ""
    state: Literal["done", "failed", "pending"] = "pending"
    exit_code: int = 0
    attempts: int = 0
    export_id: str = ""
    error: str = ""
    remedy: str = ""
    size: int = 0
    bytes_read: int = 0
    stored_bytes: int = 0
    seconds: float = 0.0
    earlier: bool = False
    incomplete: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetResult:
    """What a fleet's exports came to. What failed is not raised.

    Attributes:
        plan: the name of the plan, for ``resume``; "" after a dry run.
        members: every instance of the plan, by name; after a dry run in the order in which they would begin.
        interrupted: it was cancelled: the plan is not at its end.
        seconds: how long this run of the plan took.
    """

    run_id: str
    plan: str
    members: tuple[FleetMember, ...]
    interrupted: bool = False
    dry_run: bool = False
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """130 when it was interrupted, else the worst of the instances (`WORST_FIRST`)."""
        if self.interrupted:
            return 130
        codes = {member.exit_code for member in self.members}
        unlisted = codes - set(WORST_FIRST)
        return max(unlisted) if unlisted else next((code for code in WORST_FIRST if code in codes), 0)


# --- tuning -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Settings for one machine, as ``diskhaul tune`` finds them and ``--profile`` uses them.

    Attributes:
        export: options of `diskhaul.ExportOptions` by name: those of `diskhaul.PathOptions`, `compress`, `chunk_size`.
        backend_options: options of backends that plugins had tuned, by backend.
        machine: what it was measured on.
        measurements: what was measured, and how much better than the defaults it was.
        source: the file it was read from, or None.
    """

    export: Mapping[str, Setting] = field(default_factory=dict)
    backend_options: Mapping[str, Mapping[str, Setting]] = field(default_factory=dict)
    machine: Mapping[str, Setting] = field(default_factory=dict)
    measurements: Mapping[str, object] = field(default_factory=dict)
    source: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneTrial:
    """One export of the sample with some settings.

    Attributes:
        number: from 1 on, in the order in which they were run.
        phase: "search", "confirm" (the best ones once more) or "compare" (the final rounds).
        settings: everything that was searched, by name; ``BACKEND.OPTION`` for options of plugins.
        seconds: from the first byte read to the published export, verification included.
        cpu_seconds: user and system time of the whole process meanwhile.
        stored_bytes: size of the files that were stored.
        problem: why it came to no end, or ""; the figures above mean nothing then.
    """

    number: int
    phase: Literal["search", "confirm", "compare"]
    settings: Mapping[str, Setting]
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    stored_bytes: int = 0
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneRound:
    """One round of the final comparison: the defaults and the settings found, one right after the other."""

    defaults: TuneTrial
    found: TuneTrial


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneResult:
    """What `tune` found.

    Attributes:
        method: how it was searched: "optuna" or "grid".
        searched: what was searched, with the values that were tried from, by name.
        fixed: what was not, with its value.
        defaults: the values of what was searched where nothing is tuned.
        found: the best ones found; those in `profile` only if they are `better`.
        better: the settings found beat the defaults in the final comparison by more than its noise.
        ratio: seconds (stored bytes, CPU seconds: what `aim` is about) of those found by those of the defaults, geometric mean
            of the rounds; None where there was no comparison.
        noise: by how much the ratio may be off by chance, as a share.
        verdict: the outcome in a sentence.
        sample_bytes: what each trial read, of `data_bytes` that the source holds.
        written_bytes: what all trials together wrote below the target, and removed again.
        profile_path, report_path, trials_path: the files that were written, "" for none.
    """

    run_id: str
    aim: Aim
    source: str
    target: str
    method: str
    searched: Mapping[str, tuple[Setting, ...]]
    fixed: Mapping[str, Setting]
    defaults: Mapping[str, Setting]
    found: Mapping[str, Setting]
    better: bool
    verdict: str
    profile: Profile
    ratio: float | None = None
    noise: float | None = None
    trials: tuple[TuneTrial, ...] = ()
    rounds: tuple[TuneRound, ...] = ()
    sample_bytes: int = 0
    data_bytes: int = 0
    written_bytes: int = 0
    seconds: float = 0.0
    time_limit_s: float = 0.0
    profile_path: str = ""
    report_path: str = ""
    trials_path: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One rate that `bench` measured.

    Attributes:
        name: "disk read", "zero scan avx2", "compress zstd:1", ...
        threads: how many did it at once.
        rate: bytes per second of all of them together, median of `rounds`; of compression, bytes that go in.
        ratio: of compression, bytes that come out by bytes that go in; else None.
        note: how it was measured, and what was cached, where that is worth saying.
    """

    name: str
    threads: int
    rate: float
    rounds: tuple[float, ...]
    ratio: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathLimit:
    """How fast an export would be if only this limited it.

    Attributes:
        name: "CPU", "source read", "target", ...
        rate: bytes of the disk's data per second.
        detail: how that comes about.
    """

    name: str
    rate: float
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """What `bench` measured, and what an export would run into.

    Attributes:
        limits: lowest first: the first one is the limit, the second one the next.
        predicted_rate: bytes of the disk's data per second, verification included; 0 where the disks were not measured.
        options: the options the limits are for.
        notes: what keeps the figures from being the whole truth.
    """

    run_id: str
    source: str
    target: str
    machine: Mapping[str, Setting]
    measurements: tuple[Measurement, ...]
    limits: tuple[PathLimit, ...]
    predicted_rate: float
    options: Mapping[str, Setting]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPicture:
    """A disk as a row of equal cells, and how many bytes of each cell are what.

    Attributes:
        cell_size: bytes of a cell; the last one may be shorter.
        used: bytes that hold data.
        kept: bytes that hold data of which it is not known whether they are free: of something unknown, or in doubt.
        free: bytes that are allocated, and free in the guest's eyes.
        hole: bytes that were never written.
    """

    cell_size: int
    used: tuple[int, ...] = ()
    kept: tuple[int, ...] = ()
    free: tuple[int, ...] = ()
    hole: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedDisk(DiskMap):
    """What a disk holds: a `diskhaul.api.DiskMap`, and what is allocated of it.

    Attributes:
        disk: what was looked at.
        backend: the zero-fill backend that read it.
        free: what may be left out, allocated or not.
        free_bytes: how much of that is allocated: so much less has to be read and stored.
        data_bytes: allocated and not free.
        hole_bytes: never written.
        picture: where all that is.
        in_use: who may have been writing to the disk meanwhile, one line each: then what was seen may be out of date.
        warnings: whatever is worth saying, `in_use` included.
        svg_path: the picture that was written, or "".
    """

    run_id: str
    disk: str
    backend: str
    free: FreeExtents = field(default_factory=FreeExtents)
    free_bytes: int = 0
    data_bytes: int = 0
    hole_bytes: int = 0
    picture: DiskPicture
    in_use: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    svg_path: str = ""
