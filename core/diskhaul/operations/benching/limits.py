"""What an export would run into: how fast it would be if only one thing limited it, for each thing.

An export reads, scans, digests and compresses each chunk, digests and writes what comes out, and reads that back and digests it
once more, all at the same time. So each of CPU, source and target has its own time per byte of the disk, and the longest counts;
source and target on one device share its time.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...options import ExportOptions
from ...records import Measurement, PathLimit

Rates = Mapping[tuple[str, int], Measurement]


def path_limits(
    measured: Rates, options: ExportOptions, *, threads: int, readers: int, kernel: str, one_device: bool
) -> tuple[PathLimit, ...]:
    """The limits of an export with `options`, lowest first.

    Args:
        measured: by name and number of threads.
        threads: that compute.
        readers: that read.
        kernel: of the zero scan.
        one_device: source and target lie on the same one.
    """
    compression = f"compress {options.compress}"
    compressor = measured.get((compression, threads))  # there is none for raw exports
    ratio = compressor.ratio if compressor is not None and compressor.ratio is not None else 1.0
    check = options.verify != "none"
    limits = [_cpu(measured, options, compression, ratio, threads, kernel)]

    reading = _per_byte(measured, "source read", readers)
    writing = _per_byte(measured, "target write", 1)
    back = _per_byte(measured, "target read", 1) if check else 0.0
    target = ratio * (writing + back) if writing is not None and back is not None else None
    stored = f"{ratio:.2f} bytes written{' and read back' if check else ''} for each byte of the disk"
    if one_device and reading is not None and target is not None:
        limits.append(
            PathLimit(name="disk", rate=1 / (reading + target), detail=f"source and target are on one: read, and {stored}")
        )
    else:
        if reading is not None:
            limits.append(PathLimit(name="source read", rate=1 / reading, detail=f"{readers} at once"))
        if target:
            limits.append(PathLimit(name="target", rate=1 / target, detail=stored))
    if options.bwlimit:
        rate = options.bwlimit / (1 + (ratio if check else 0.0))
        limits.append(PathLimit(name="bwlimit", rate=rate, detail="as asked for; reading back counts, too"))
    return tuple(sorted(limits, key=lambda limit: limit.rate))


def _cpu(measured: Rates, options: ExportOptions, compression: str, ratio: float, threads: int, kernel: str) -> PathLimit:
    digest = 1 / measured["digest", threads].rate
    raw = options.compress == "none"
    checks = 1 if options.verify != "none" else 0
    parts = {
        "zero scan": 1 / measured[f"zero scan {kernel}", threads].rate,
        # Of the chunk; of the frame that is stored (a raw chunk is stored as it is); and of what is read back.
        "digest": digest * (1 + ratio * ((0 if raw else 1) + checks)),
    }
    if not raw:
        parts["compression"] = 1 / measured[compression, threads].rate
    if options.direct_io == "never" and ("source read cached", threads) in measured:
        parts["copying from the cache"] = 1 / measured["source read cached", threads].rate
    total = sum(parts.values())
    first = max(parts, key=lambda name: parts[name])
    shares = ", ".join(f"{name} {100 * part / total:.0f} %" for name, part in sorted(parts.items(), key=lambda item: -item[1]))
    name = f"CPU, mostly {first}" + (f" {options.compress}" if first == "compression" else "")
    return PathLimit(name=name, rate=1 / total, detail=f"{threads} threads; {shares}")


def _per_byte(measured: Rates, name: str, threads: int) -> float | None:
    found = measured.get((name, threads)) or measured.get((name, 1))
    return 1 / found.rate if found is not None and found.rate else None
