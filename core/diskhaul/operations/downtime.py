"""For how long a guest would be down, as far as its last export tells. Everything here is an estimate, and says of what."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..formats.manifest import Manifest
from ..options import MIB
from ..records import Downtime, ExportRecord


def estimate_downtime(
    downtime: Downtime, exports: Iterable[ExportRecord], to_read: int, read: Callable[[ExportRecord], Manifest]
) -> tuple[float | None, str]:
    """Seconds of downtime, and what they are taken from; None, and what they depend on, where no export tells.

    Args:
        exports: those of the instance, oldest first.
        to_read: bytes that would be read from its disks.
        read: reads an export's manifest.
    """
    if downtime == "none":
        return None, ""
    wanted = _of_snapshots if downtime == "snapshot" else _of_transfer
    for record in reversed([record for record in exports if record.valid]):
        try:
            found = wanted(read(record), to_read)
        except Exception:  # a plan can do without, and whoever relies on the export will be told
            continue
        if found is not None:
            return found[0], f"{found[1]} of {record.export_id}"
    if downtime == "snapshot":
        return None, "depends on how fast the guest stops and starts; no export of it has measured that yet"
    return None, "depends on how fast its disks can be read and stored; no export of it has measured that yet"


def _of_snapshots(manifest: Manifest, to_read: int) -> tuple[float, str] | None:
    timings = manifest.timings
    # Without snapshots the guest was down while its disks were sent, which is no measure for this.
    return (timings["shutdown"], "as in the export") if "shutdown" in timings and "snapshot" in timings else None


def _of_transfer(manifest: Manifest, to_read: int) -> tuple[float, str] | None:
    timings, data = manifest.timings, sum(disk.data_bytes for disk in manifest.disks)
    sending_s = timings.get("send", 0.0)
    if data < MIB or sending_s <= 0:
        return None
    seconds = to_read * sending_s / data + timings.get("stop", 0.0) + timings.get("start", 0.0)
    return seconds, f"{to_read / MIB:,.0f} MiB at the {data / MIB / sending_s:,.0f} MiB/s"
