"""Results of the library as text for people. Everything shown is escaped (see `text`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..api import DiskRegion
from ..records import (
    DiskResult,
    ExportRecord,
    ExportResult,
    ImportResult,
    ListResult,
    Plan,
    RecoverResult,
    RemovalResult,
    VerifyResult,
)
from .text import count, duration, escape, facts, iec, ratio, table, utc

_CONSISTENCY = {
    "stopped": "stopped (the guest was off)",
    "filesystem": "filesystem (the guest's filesystems were frozen)",
    "crash": "crash (as after a power cut)",
}
_DOWNTIME = {
    "snapshot": "until the snapshots exist",
    "transfer": "until the disks have been sent",
}

_MOST_REGIONS = 40  # lines of a table


def notes(*, warnings: Iterable[str] = (), incomplete: Iterable[str] = ()) -> tuple[str, ...]:
    """Return what standard error gets besides the result."""
    return (*(f"warning: {text}" for text in warnings), *(f"incomplete: {text}" for text in incomplete))


def export_text(result: ExportResult) -> str:
    """Say where the export is, what was read, skipped and written, and how long the guest was down."""
    if result.export is None:
        return f"{plan_text(result.plan)}\n\nDry run: nothing was changed."
    read = sum(disk.bytes_read for disk in result.disks)
    shared = sum(disk.bytes_shared for disk in result.disks)
    seconds = result.timings.get("send", 0.0) + result.timings.get("digest", 0.0)
    written = sum(disk.bytes_written for disk in result.disks)
    size = sum(disk.size for disk in result.disks)
    rows: list[tuple[str, object]] = [
        ("export", result.export.path),
        ("id", f"{result.export.instance}@{result.export.export_id}"),
        ("read", _speed(f"{iec(read)} of {iec(size)}", read, seconds)),
        ("skipped", _skipped(result.disks)),
        *([("shared", f"{iec(shared)} with the disks: not copied")] if shared else []),
        ("written", _with_ratio(size, written)),
        *_digest_rows(result.export),
        ("consistency", _CONSISTENCY.get(result.consistency, result.consistency)),
        ("guest down", duration(result.timings["shutdown"]) if "shutdown" in result.timings else "not at all"),
        *(("removed", f"{_place(record)} (superseded)") for record in result.removed),
    ]
    parts = [f"Exported {escape(result.instance)} to {escape(result.node)}.", facts(rows)]
    if len(result.disks) > 1:
        parts.append(_indented(_sent_disks(result.disks)))
    parts += _free_space([(disk.index, disk.regions) for disk in result.disks])
    return "\n".join(parts)


def import_text(result: ImportResult) -> str:
    """Say where each disk is."""
    disks = {disk.index: disk for disk in result.disks}
    rows = [
        (
            index,
            iec(disks[index].size) if index in disks else "",
            iec(disks[index].bytes_written) if index in disks else "",
            target,
        )
        for index, target in sorted(result.targets.items())
    ]
    if result.dry_run:
        head, tail = f"Would import {escape(result.instance)} from {escape(result.source)}:", "\n\nDry run: nothing was changed."
    else:
        head, tail = f"Imported {escape(result.instance)} from {escape(result.source)}.", ""
    return head + "\n" + _indented(table(("disk", "size", "written", "target"), rows, right=("disk", "size", "written"))) + tail


def plan_text(plan: Plan) -> str:
    """Say what would happen, for how long the guest would be down, and how much would be read and written."""
    target = f" to {escape(plan.target.name)}" if plan.target is not None else ""
    unread = plan.options.get("digest") == "later"
    data = sum(disk.data_bytes for disk in plan.disks if not (disk.shared and unread))
    shared = sum(disk.data_bytes for disk in plan.disks if disk.shared)
    stored = sum(disk.stored_bytes for disk in plan.disks)
    size = sum(disk.size for disk in plan.disks)
    rows: list[tuple[str, object]] = [
        ("guest", "running" if plan.running else "not running"),
        ("downtime", _downtime(plan)),
        ("to read", f"{iec(data)} of {iec(size)}" if plan.disks else ""),
        *((f"free, disk {disk.index}", f"{iec(disk.free_bytes)} ({disk.free_basis})") for disk in plan.disks if disk.free_basis),
        *([("to share", f"{iec(shared)}, which need not be copied")] if shared else []),
        ("to write", f"about {_with_ratio(size, stored)}" if plan.disks else ""),
        ("room", iec(plan.free_bytes) if plan.free_bytes is not None else "unknown"),
        *(("supersedes", _place(record)) for record in plan.supersedes),
    ]
    parts = [f"Plan: {escape(plan.operation)} {escape(plan.instance.name)}{target}", facts(rows)]
    if plan.disks:
        disks = [
            (
                disk.index,
                iec(disk.size),
                iec(disk.data_bytes),
                iec(disk.hole_bytes),
                iec(disk.stored_bytes),
                disk.snapshot or "none",
                disk.label,
            )
            for disk in plan.disks
        ]
        headings = ("disk", "size", "data", "holes", "stored", "snapshot", "what")
        parts.append(_indented(table(headings, disks, right=("disk", "size", "data", "holes", "stored"))))
    parts += _free_space([(disk.index, disk.regions) for disk in plan.disks])
    parts.append("Steps:")
    parts += [f"  {number}. {escape(step)}" for number, step in enumerate(plan.steps, 1)]
    return "\n".join(parts)


def _downtime(plan: Plan) -> str:
    if plan.downtime == "none":
        return "none: the guest keeps running" if plan.running else "none: the guest is off"
    if plan.options.get("remove_instance"):
        return plan.downtime_basis
    until = _DOWNTIME[plan.downtime]
    if plan.downtime_s is None:
        return f"{until}; {plan.downtime_basis}" if plan.downtime_basis else until
    return f"about {duration(plan.downtime_s)}, {until} ({plan.downtime_basis})"


def list_text(result: ListResult) -> str:
    """Return a table of exports."""
    if not result.exports:
        return "No exports on the nodes that answered." if result.unreachable else "No exports."
    rows = [
        (
            record.instance,
            record.export_id,
            record.node,
            utc(record.created),
            "/".join(filter(None, (record.layout, record.compress))),
            record.consistency,
            record.disk_count,
            iec(record.disk_bytes),
            iec(record.stored_bytes),
            record.problem or ("valid" if record.digests else "valid; digests: not yet"),
        )
        for record in result.exports
    ]
    headings = ("instance", "id", "node", "created", "layout", "consistency", "disks", "size", "stored", "state")
    return table(headings, rows, right=("disks", "size", "stored"))


def details_text(record: ExportRecord, manifest: Mapping[str, Any]) -> str:
    """Return one export: its record, its disks, and the rest of its manifest."""
    rows: list[tuple[str, object]] = [
        ("instance", record.instance),
        ("id", record.export_id),
        ("node", record.node),
        ("path", record.path),
        ("created", utc(record.created)),
        ("layout", record.layout),
        ("compress", record.compress),
        ("consistency", record.consistency),
        ("disks", f"{record.disk_count}, {iec(record.disk_bytes)}"),
        ("stored", _with_ratio(record.disk_bytes, record.stored_bytes)),
        ("state", record.problem or "valid"),
        *_digest_rows(record),
    ]
    parts = [f"{escape(record.instance)}@{escape(record.export_id)}", facts(rows)]
    if manifest:
        parts += ["Manifest:", facts(_flattened("", manifest))]
    return "\n".join(parts)


def verify_text(result: VerifyResult) -> str:
    """Say what was checked, and each finding on a line of its own."""
    parts = [escape(finding, longest=4096) for finding in result.findings]
    damaged = {finding.path for finding in result.findings}
    verdict = f"{count(len(damaged), 'export')} damaged" if damaged else "no damage found"
    if not result.checked and not damaged:
        verdict = "nothing to check"
    parts += [f"Recorded the digests of {_place(record)}; there had been none to compare with." for record in result.recorded]
    parts.append(f"Checked {count(len(result.checked), 'export')}, {iec(result.bytes_checked)}: {verdict}.")
    return "\n".join(parts)


def removal_text(result: RemovalResult) -> str:
    """Say what was removed and what was kept."""
    would = "Would remove" if result.dry_run else "Removed"
    parts = [f"{would} {_place(record)}" for record in result.removed]
    parts += [f"{'Would keep' if result.dry_run else 'Kept'} {_place(record)}" for record in result.kept]
    if not result.removed:
        parts.append("Nothing to remove.")
    if result.dry_run:
        parts.append("Dry run: nothing was changed.")
    return "\n".join(parts)


def recover_text(result: RecoverResult) -> str:
    """Say what was undone or finished."""
    return "\n".join(escape(line) for line in result.done) or "Nothing to recover."


def _digest_rows(record: ExportRecord) -> list[tuple[str, object]]:
    return [] if record.digests else [("digests", f"not yet: diskhaul verify {record.instance}@{record.export_id}")]


def _place(record: ExportRecord) -> str:
    return escape(f"{record.instance}@{record.export_id} on {record.node}")


def _indented(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())


def _speed(text: str, size: int, seconds: float) -> str:
    return f"{text} in {duration(seconds)} ({iec(size / seconds)}/s)" if size and seconds > 0 else text


def _with_ratio(whole: int, part: int) -> str:
    times = ratio(whole, part)
    return f"{iec(part)} ({times})" if times else iec(part)


def _skipped(disks: Sequence[DiskResult]) -> str:
    skipped = sum(disk.bytes_skipped for disk in disks)
    free = sum(disk.free_bytes for disk in disks)
    zero = sum(disk.zero_bytes for disk in disks)
    parts = [f"{iec(zero)} of zeros" if zero else "", f"{iec(free)} of free space" if free else ""]
    found = " and ".join(filter(None, parts))
    if not found:
        return f"{iec(skipped)} not read"
    if skipped > zero + free:  # blocks that are shared need not be read
        return f"{iec(skipped)} not read; {found} not stored"
    return f"{found}; {iec(skipped)} of it without being read" if skipped else found


def _sent_disks(disks: Sequence[DiskResult]) -> str:
    rows = [
        (
            disk.index,
            iec(disk.size),
            iec(disk.bytes_read),
            iec(disk.bytes_skipped),
            iec(disk.bytes_written),
            duration(disk.seconds),
            disk.error or disk.label,
        )
        for disk in disks
    ]
    return table(
        ("disk", "size", "read", "skipped", "written", "time", "what"),
        rows,
        right=("disk", "size", "read", "skipped", "written", "time"),
    )


def _free_space(disks: Iterable[tuple[int, Sequence[DiskRegion]]]) -> list[str]:
    """What was found where, and what of it is left out, or why it is kept. Tables that were understood go without saying."""
    found = [
        (index, region)
        for index, regions in disks
        for region in regions
        if region.kept or region.skipped or region.free is not None
    ]
    if not found:
        return []
    rows = [
        (
            index,
            region.place,
            region.type,
            region.label,
            iec(region.length),
            "" if region.free is None else iec(region.free),
            iec(region.skipped),
            region.kept or region.state,
        )
        for index, region in found[:_MOST_REGIONS]
    ]
    headings = ("disk", "where", "what", "label", "size", "free", "left out", "state, or why it is kept")
    parts = ["Free space:", _indented(table(headings, rows, right=("disk", "size", "free", "left out")))]
    if len(found) > _MOST_REGIONS:
        parts.append(f"  and {len(found) - _MOST_REGIONS} more (--json has all)")
    return parts


def _flattened(prefix: str, value: Any) -> Iterable[tuple[str, object]]:
    """Yield ``("instance.disks[0].size", 42)`` for everything in a manifest."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flattened(f"{prefix}.{escape(key)}" if prefix else escape(key), item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _flattened(f"{prefix}[{index}]", item)
    elif isinstance(value, bool):
        yield prefix, str(value).lower()
    elif value is not None and value != "":
        yield prefix, value
