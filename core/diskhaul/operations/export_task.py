"""What an export is to do, once nothing speaks against it: found by `export`, done by `export_run` and its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..api import Runtime, Snapshots, ZeroFill
from ..model import Instance, Node
from ..options import MIB, ExportOptions
from ..records import ExportRecord, Plan
from .base import Operation

if TYPE_CHECKING:
    from .export_disks import ExportDisks

ZEROING_FIXED_S = 300.0
ZEROING_PER_MIB_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportTask:
    """One export that is about to be executed.

    Attributes:
        operation: whose context, locks and feedback are used.
        instance: as it is here.
        exported: as the export describes it: the same, unless it goes to another cluster.
        at_target: calls a function with the store that the export goes to, and further arguments.
        remote: the cluster that it goes to, or "" for this one.
        hand_over: called with the export once it is published, while the guest's start is still owed: what has to be done
            before the instance may be removed. When it raises, the export has failed.
        before_removal: called when nothing speaks against the instance's removal any more, right before it.
        keep_instance: the instance is left stopped in place of being removed.
        running: the guest runs now, or is owed a start by a run that is gone.
        snapshot_backends: name and backend by disk, as far as there is one.
        snapshot_reasons: why the other disks have none.
        uses_snapshots: the disks will be read from snapshots.
        zero_fills: name and backend by disk, for disks whose free space is to be left out or zeroed.
    """

    operation: Operation[Any]
    options: ExportOptions
    instance: Instance
    exported: Instance
    source: Node
    target: Node
    runtime: Runtime
    running: bool
    plan: Plan
    snapshot_backends: Mapping[int, tuple[str, Snapshots]]
    snapshot_reasons: tuple[str, ...]
    uses_snapshots: bool
    zero_fills: Mapping[int, tuple[str, ZeroFill]]
    at_target: Callable[..., Any]
    remote: str = ""
    hand_over: Callable[[ExportRecord, ExportDisks], object] | None = None
    before_removal: Callable[[], object] = lambda: None
    keep_instance: bool = False


def zeroing_limit_s(options: ExportOptions, sizes: Iterable[int]) -> float:
    """How long zeroing may take: a fixed time and one that grows with the `sizes` of all disks in bytes (Ganeti's rule)."""
    fixed, per_mib = options.zeroing_timeout_fixed_s, options.zeroing_timeout_per_mib_s
    mib = sum(-(-size // MIB) for size in sizes)
    return (ZEROING_FIXED_S if fixed is None else fixed) + (ZEROING_PER_MIB_S if per_mib is None else per_mib) * mib
