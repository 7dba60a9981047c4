"""Looks at disks before anything is touched: sizes, what is in them, how well it compresses, whether there is room."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..api import Extent, ExtentKind
from ..errors import RefusedError
from ..formats.chunk_table import MAX_EXPORT_CHUNKS, chunk_count, effective_chunk_size
from ..formats.codec import Compression, codec_for
from ..model import Disk
from ..mounts import mount_of
from ..pipeline.source import Source

SAMPLES = 16
SAMPLE_BYTES = 512 * 1024  # zstandard treats inputs up to 256 KiB differently from the chunks that are sent
_SHORT = 64 * 1024  # shorter pieces of free space are in the samples
_MARGIN = 1.1  # samples are not the disk
_TABLE_BYTES = 60  # a chunk's entries in the chunk table and the seek table


@dataclass(frozen=True, slots=True)
class DiskEstimate:
    """What reading a disk would mean, in bytes. `stored_bytes` comes from samples."""

    size: int
    data_bytes: int
    hole_bytes: int
    free_bytes: int
    stored_bytes: int


def estimate_disk(source: Source, compression: Compression, chunk_size: int) -> DiskEstimate:
    """Add up the extents, what is known to be free as such (`Source.free`), and compress some samples of the data.

    Raises:
        StorageError: the disk cannot be read.
    """
    total = source.totals()
    data, free = total[ExtentKind.DATA], total[ExtentKind.FREE]
    chunk_size = effective_chunk_size(source.size, chunk_size)
    stored = -(-source.size // chunk_size) * _TABLE_BYTES
    if compression.name == "none":
        stored += data
    else:
        stored += int(data * min(1.0, _sampled_ratio(source, data, compression) * _MARGIN))
        if empty := (source.size - data) // chunk_size:
            # Next to nothing with zstd; gzip takes a thousandth, which is much for a large disk with little in it.
            stored += empty * len(codec_for(compression.name, compression.level).zero_frame(chunk_size))
    return DiskEstimate(source.size, data, source.size - data - free, free, stored)


def _sampled_ratio(source: Source, data: int, compression: Compression) -> float:
    encoder = codec_for(compression.name, compression.level).encoder()
    buffer = bytearray(SAMPLE_BYTES)
    sampled = encoded = 0
    for offset, length in _sample_places(source.extents(least=_SHORT), data):
        view = memoryview(buffer)[:length]
        source.fill(offset, view)
        sampled += length
        encoded += len(encoder.encode(view))
    return encoded / sampled if sampled else 1.0


def _sample_places(extents: Iterator[Extent], data: int) -> Iterator[tuple[int, int]]:
    """Places spread evenly over the data, in one pass over the extents."""
    step = max(data // SAMPLES, SAMPLE_BYTES)
    wanted = 0  # how much data lies before the next sample
    passed = 0
    for extent in extents:
        if extent.kind is not ExtentKind.DATA:
            continue
        while wanted < passed + extent.length:
            offset = extent.offset + wanted - passed
            yield offset, min(SAMPLE_BYTES, extent.end - offset)
            wanted += step
        passed += extent.length


def chunk_problems(sizes: Iterable[int], chunk_size: int) -> list[str]:
    """Why disks of `sizes` cannot be one export."""
    try:
        chunks = sum(chunk_count(size, effective_chunk_size(size, chunk_size)) for size in sizes)
    except RefusedError as error:
        return list(error.problems)
    if chunks <= MAX_EXPORT_CHUNKS:
        return []
    return [
        f"chunk_size {chunk_size}: the disks have {chunks} chunks, and an export {MAX_EXPORT_CHUNKS} at most: choose a larger one"
    ]


def same_place_problems(disks: Sequence[Disk], export_dir: Path | None, target: str) -> list[str]:
    """Reasons why exporting `disks` to `export_dir`, if there is one, would write into what is being read."""
    problems: list[str] = []
    if export_dir is None:
        return problems
    holders = _devices_under(export_dir)
    directory = os.path.realpath(export_dir)
    for disk in disks:
        if disk.path is None:
            continue
        path = os.path.realpath(disk.path)
        try:
            found = os.stat(path)
        except OSError:
            continue  # its storage says what is wrong with it
        inside = f"{disk.label} would be exported into itself: node {target}'s export directory {export_dir} lies on it"
        if path == directory or (stat.S_ISBLK(found.st_mode) and _number(found) in holders):
            problems.append(f"{inside}; choose another node")
        elif path in holders:
            problems.append(f"{inside} (loop device); choose another node")
        elif stat.S_ISREG(found.st_mode) and os.path.commonpath([path, directory]) == directory:
            problems.append(
                f"{disk.label} lies inside node {target}'s export directory {export_dir}; choose another node or move the disk"
            )
    return problems


def lies_on(directory: Path, disk: Path) -> bool:
    """Whether the filesystem of `directory` lies on the disk, or in the image of one, so that writing there writes to it."""
    holders = _devices_under(directory)
    path = os.path.realpath(disk)
    try:
        found = os.stat(path)
    except OSError:
        return False
    return path in holders or (stat.S_ISBLK(found.st_mode) and _number(found) in holders)


def _devices_under(directory: Path) -> set[str]:
    """What a directory's filesystem lies on: device numbers ("8:1"), the disks they are parts of, backing files of loops."""
    found: set[str] = set()
    try:
        device = os.stat(directory).st_dev
    except OSError:
        return found
    queue = [f"{os.major(device)}:{os.minor(device)}", *_btrfs_device(directory)]
    while queue:
        number = queue.pop()
        if number in found:
            continue
        found.add(number)
        entry = Path("/sys/dev/block") / number
        try:
            sysfs = entry.resolve(strict=True)
        except OSError:
            continue  # not a block device: a network or memory filesystem
        backing = sysfs / "loop" / "backing_file"
        if (sysfs / "partition").exists():
            queue.append((sysfs.parent / "dev").read_text().strip())
            backing = sysfs.parent / "loop" / "backing_file"
        if backing.exists():
            file = os.path.realpath(os.fsdecode(backing.read_bytes().removesuffix(b"\n")))
            found.add(file)
            queue.append(_device_of(file))
        queue += [(slave / "dev").read_text().strip() for slave in (sysfs / "slaves").glob("*") if (slave / "dev").exists()]
    return found


def _btrfs_device(directory: Path) -> list[str]:
    """The device of the btrfs that `directory` lies on: its files have numbers that are no device's. Else nothing."""
    mount = mount_of(directory)
    if mount is None or mount.kind != "btrfs":
        return []
    try:
        return [_number(os.stat(mount.source))]
    except OSError:
        return []


def _number(status: os.stat_result) -> str:
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _device_of(path: str) -> str:
    try:
        device = os.stat(path).st_dev
    except OSError:
        return ""
    return f"{os.major(device)}:{os.minor(device)}"
