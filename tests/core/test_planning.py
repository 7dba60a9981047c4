"""Estimates before an export, and exports into what is being read."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diskhaul.api import Extent, ExtentKind
from diskhaul.errors import StorageError
from diskhaul.formats.codec import codec_for, parse_compress
from diskhaul.model import Disk
from diskhaul.operations.planning import SAMPLE_BYTES, SAMPLES, chunk_problems, estimate_disk, same_place_problems
from diskhaul.pipeline.source import Source
from diskhaul.testing import Fault, FaultyDisk, MemoryDisk, RecordingDisk, SparseMemoryDisk

MIB = 1 << 20
CHUNK = 4 * MIB


def estimate(disk: Any, compress: str = "zstd:1", chunk_size: int = CHUNK) -> Any:
    return estimate_disk(Source(disk, "disk 0"), parse_compress(compress), chunk_size)


def sparse(size: int, *pieces: tuple[int, bytes]) -> SparseMemoryDisk:
    disk = SparseMemoryDisk(size)
    for offset, content in pieces:
        disk.write(offset, content)
    return disk


@pytest.mark.parametrize("compress", ["none", "zstd:1", "gzip:6"])
def test_a_disk_of_no_bytes_needs_nothing(compress: str) -> None:
    found = estimate(MemoryDisk(0), compress)
    assert (found.size, found.data_bytes, found.hole_bytes, found.stored_bytes) == (0, 0, 0, 0)


def test_data_and_holes_add_up_and_free_space_is_no_data() -> None:
    class Mapped(MemoryDisk):
        def extents(self) -> list[Extent]:
            return [
                Extent(0, MIB, ExtentKind.DATA),
                Extent(MIB, 2 * MIB, ExtentKind.FREE),
                Extent(3 * MIB, MIB, ExtentKind.HOLE),
            ]

    found = estimate(Mapped(5 * MIB))
    assert (found.size, found.data_bytes, found.hole_bytes, found.free_bytes) == (5 * MIB, 2 * MIB, MIB, 2 * MIB)


def test_more_chunks_than_an_export_may_have_are_refused_before_it() -> None:
    large = [(64 << 10) << 21] * 9
    assert chunk_problems(large[:8], 64 << 10) == []
    (problem,) = chunk_problems(large, 64 << 10)
    assert problem == "chunk_size 65536: the disks have 18874368 chunks, and an export 16777216 at most: choose a larger one"
    assert chunk_problems(large, 128 << 10) == []
    assert "too large" in chunk_problems([1 << 62], 64 << 10)[0]


@pytest.mark.parametrize("compress", ["zstd:1", "gzip:6"])
def test_the_estimate_follows_how_well_the_data_compresses(compress: str) -> None:
    noise = random.Random(0).randbytes(8 * MIB)
    text = b"the quick brown fox " * (8 * MIB // 20)
    assert 8 * MIB <= estimate(MemoryDisk(noise), compress).stored_bytes <= 8 * MIB + 1000
    assert estimate(MemoryDisk(text), compress).stored_bytes < MIB // 4
    assert 4 * MIB < estimate(MemoryDisk(noise[: 4 * MIB] + text[: 4 * MIB]), compress).stored_bytes < 5.5 * MIB
    assert estimate(MemoryDisk(text), "none").stored_bytes >= len(text)


def test_an_adaptive_level_is_estimated_at_its_floor() -> None:
    text = Path(__file__).read_bytes() * 400
    for floor in (-20, 1, 9):
        assert estimate(MemoryDisk(text), f"zstd:adaptive:{floor}") == estimate(MemoryDisk(text), f"zstd:{floor}")


@pytest.mark.parametrize("compress", ["none", "zstd:1", "gzip:1"])
def test_what_empty_chunks_take_is_counted(compress: str) -> None:
    """With gzip that is gigabytes for a large disk with nothing in it."""
    size = 1 << 40
    chunks = size // CHUNK
    compression = parse_compress(compress)
    frame = len(codec_for(compression.name, compression.level).zero_frame(CHUNK)) if compress != "none" else 0
    stored = estimate(sparse(size), compress).stored_bytes
    assert chunks * (frame + 32) <= stored <= chunks * (frame + 200)


def test_few_bytes_are_read_and_all_over_the_data() -> None:
    chance = random.Random(1)
    disk = sparse(1 << 30, (0, chance.randbytes(16 * MIB)), (512 * MIB, chance.randbytes(16 * MIB)))
    recorded = RecordingDisk(disk)
    estimate(recorded)
    reads = recorded.of("read_into")
    assert 0 < sum(call.length or 0 for call in reads) <= (SAMPLES + 2) * SAMPLE_BYTES
    assert sum((call.offset or 0) < 16 * MIB for call in reads) >= SAMPLES // 4
    assert sum((call.offset or 0) >= 512 * MIB for call in reads) >= SAMPLES // 4


def test_many_small_extents_are_sampled_like_few_large_ones() -> None:
    pieces = [(index * 256 * 1024, b"x" * 65536) for index in range(400)]
    recorded = RecordingDisk(sparse(400 * 256 * 1024, *pieces))
    found = estimate(recorded)
    assert found.data_bytes == 400 * 65536
    assert 0 < len(recorded.of("read_into")) <= 2 * SAMPLES + 8


def test_a_disk_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(StorageError, match="disk 0: cannot read it"):
        estimate(FaultyDisk(MemoryDisk(b"x" * MIB), Fault(on="read")))


# --- exporting into what is read --------------------------------------------------------------------------------------


def problems(path: Path | str | None, export_dir: Path) -> list[str]:
    return same_place_problems([Disk(path=Path(path) if path is not None else None)], export_dir, "beta")


def test_a_disk_elsewhere_is_fine(tmp_path: Path) -> None:
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports-disk.raw").write_bytes(b"")
    assert problems(tmp_path / "exports-disk.raw", tmp_path / "exports") == []
    assert problems(tmp_path / "missing.raw", tmp_path / "exports") == []
    assert problems(None, tmp_path / "exports") == []
    assert problems(tmp_path / "exports-disk.raw", tmp_path / "no-directory") == []


def test_a_disk_in_the_export_directory_is_refused_also_through_a_link(tmp_path: Path) -> None:
    exports = tmp_path / "exports"
    (exports / "deep").mkdir(parents=True)
    (exports / "deep" / "disk.raw").write_bytes(b"")
    (tmp_path / "link.raw").symlink_to(exports / "deep" / "disk.raw")
    (tmp_path / "link").symlink_to(exports)
    for disk, directory in [
        (exports / "deep" / "disk.raw", exports),
        (tmp_path / "link.raw", exports),
        (exports / "deep" / "disk.raw", tmp_path / "link"),
    ]:
        (problem,) = problems(disk, directory)
        assert "lies inside node beta's export directory" in problem


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_an_export_directory_that_lies_on_the_disk_is_refused(
    loop_filesystem: Callable[..., Any], requires: Callable[..., None], kind: str
) -> None:
    requires("losetup", root=True)
    filesystem = loop_filesystem(kind)
    exports = filesystem.path / "exports"
    exports.mkdir()
    found = subprocess.run(["losetup", "-j", str(filesystem.image)], check=True, capture_output=True, text=True).stdout
    device = found.partition(":")[0]
    for disk in (device, filesystem.image):  # the device, and the file behind it
        (problem,) = problems(disk, exports)
        assert "would be exported into itself" in problem
    if kind == "btrfs":
        requires("btrfs")
        subprocess.run(["btrfs", "-q", "subvolume", "create", str(filesystem.path / "volume")], check=True)
        assert len(problems(device, filesystem.path / "volume")) == 1


def test_the_file_behind_a_mount_is_recognised_whatever_it_is_called(tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("mkfs.ext4", "mount", "umount", root=True)
    image = tmp_path / os.fsdecode(b"a disk \xff ")
    point = tmp_path / os.fsdecode("Größe \t".encode() + b"\xfe")
    point.mkdir()
    with open(image, "xb") as file:
        file.truncate(8 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=True)
    try:
        (point / "exports").mkdir()
        (problem,) = problems(image, point / "exports")
        assert "would be exported into itself" in problem
        assert problems(tmp_path / "another.raw", point / "exports") == []
    finally:
        subprocess.run(["umount", str(point)], check=True)
