"""Writes and reads past the page cache that fail, or are refused: as clean as through the cache, and the guest runs.

Every test is run both ways. The chunks are large enough to be read directly, and the disk to fill several stages of writing.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

import diskhaul
from diskhaul.events import Event, StageStarted
from diskhaul.testing import MemoryDisk, MemoryStorage

from .conftest import INSTANCE, Lab, Unchanged

MIB = 1 << 20
CHUNK = MIB
DATA = 40 * MIB

MakeUnchanged = Callable[[Lab], Unchanged]
Mode = Literal["auto", "never"]

ways = pytest.mark.parametrize("direct_io", ["auto", "never"])
compressors = pytest.mark.parametrize("compress", ["zstd:1", "none"])


@pytest.fixture
def large(lab: Lab) -> Lab:
    """A running guest whose disk holds 40 MiB that do not compress."""
    guest = lab.add_guest(running=False)
    (path,) = lab.contents
    with open(path, "r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(random.Random(3).randbytes(DATA))
    lab.contents[path] = path.read_bytes()
    subprocess.run([str(guest.program), "start"], check=True)
    guest.wait_for_progress()
    lab.contents[path] = path.read_bytes()
    return lab


def export_dir_on(large: Lab, filesystem: Path) -> Path:
    directory = filesystem / "exports"
    directory.mkdir(mode=0o700)
    large.node_settings["beta"] = {"export_dir": directory}
    return directory


@ways
@compressors
def test_an_export_is_right_either_way(large: Lab, direct_io: Mode, compress: str) -> None:
    result = large.export(direct_io=direct_io, compress=compress, chunk_size=CHUNK)
    assert result.export is not None
    large.check_bytes(result.export)
    assert diskhaul.verify(INSTANCE, config=large.cluster()).findings == ()


@ways
@compressors
def test_a_target_that_fills_up_in_the_middle_fails_the_export_and_is_empty_again(
    large: Lab, unchanged: MakeUnchanged, loop_filesystem: Callable[..., Any], direct_io: Mode, compress: str
) -> None:
    exports = export_dir_on(large, loop_filesystem("ext4", size_mib=128).path)
    check = unchanged(large)

    def fill(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "send":
            free = os.statvfs(exports).f_bavail * os.statvfs(exports).f_frsize
            with open(exports / "filler", "wb") as file:
                os.posix_fallocate(file.fileno(), 0, free - DATA // 2)

    with pytest.raises(diskhaul.OperationFailedError, match="No space left on device") as failed:
        large.export(on_event=fill, direct_io=direct_io, compress=compress, chunk_size=CHUNK)

    assert failed.value.parts == ("disk export: disk(s) 0",)
    assert large.guests[INSTANCE].running
    (exports / "filler").unlink()
    check.check()
    assert large.export(direct_io=direct_io, compress=compress, chunk_size=CHUNK).exit_code == 0


@ways
@compressors
def test_a_medium_that_loses_writes_fails_the_export_however_late_that_is_told(
    large: Lab,
    unchanged: MakeUnchanged,
    tmp_path: Path,
    requires: Callable[..., None],
    direct_io: Mode,
    compress: str,
) -> None:
    """An ext4 whose blocks lie in a file on a tmpfs that is too small: what does not fit is an I/O error of the device, which
    direct writes are told at once, and cached ones by fsync."""
    requires("mount", "mkfs.ext4", root=True)
    small, mounted = tmp_path / "small", tmp_path / "mounted"
    small.mkdir()
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", str(small)], check=True)
    try:
        with open(small / "image", "wb") as image:
            image.truncate(256 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-E", "nodiscard", str(small / "image")], check=True)
        subprocess.run(["mount", "-o", "loop", str(small / "image"), str(mounted)], check=True)
        try:
            exports = export_dir_on(large, mounted)
            check = unchanged(large)
            with pytest.raises(diskhaul.OperationFailedError, match=r"Input/output error|Read-only file system") as failed:
                large.export(direct_io=direct_io, compress=compress, chunk_size=CHUNK)
            assert failed.value.parts[0].startswith(("disk export: disk(s) 0", "export finalization"))
            assert large.guests[INSTANCE].running
            assert diskhaul.list_exports(INSTANCE, config=large.cluster()).exports == ()
            check.check(but=("journal", "exports", "mounts"))  # the filesystem is broken: read-only, and not to be tidied
            assert [path for path in exports.glob("*/*") if not path.name.startswith(".")] == []
        finally:
            subprocess.run(["umount", str(mounted)], check=True)
    finally:
        subprocess.run(["umount", str(small)], check=True)


@ways
def test_a_disk_that_cannot_be_read_at_one_place_fails_the_export_with_the_place(
    large: Lab, unchanged: MakeUnchanged, requires: Callable[..., None], direct_io: Mode
) -> None:
    requires("strace")
    large.write_config()
    (path,) = large.contents
    guest = large.guests[INSTANCE]
    subprocess.run([str(guest.program), "stop"], check=True)  # so that the disk itself is read, by its name
    check = unchanged(large)
    drop = "import os,sys; f = os.open(sys.argv[1], os.O_RDONLY); os.fsync(f); os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)"
    subprocess.run([sys.executable, "-c", drop, str(path)], check=True)
    arguments = ["export", INSTANCE, "--node", "beta", "--direct-io", direct_io, "--chunk-size", "1M"]
    arguments += ["--threads", "1", "--read-ahead", "0"]  # faults are counted for each thread
    python = os.path.realpath(sys.executable)
    strace = ["strace", "-f", "-qq", "-o", str(large.path / "log"), "-P", str(path), "--trace=pread64"]
    finished = subprocess.run(
        [*strace, "--inject=pread64:error=EIO:when=25+", python, *large.command(*arguments)[1:]],
        env=large.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=large.path,
    )
    assert "INJECTED" in (large.path / "log").read_text()
    assert finished.returncode == 3
    assert "cannot read it at offset" in finished.stderr
    assert "Input/output error" in finished.stderr
    check.check()


def test_direct_io_that_is_wanted_and_cannot_be_had_is_refused_beforehand(
    large: Lab, unchanged: MakeUnchanged, tmp_path: Path
) -> None:
    storage = MemoryStorage({"root": MemoryDisk(MIB)})  # without a descriptor
    disk = diskhaul.Disk(storage="memory", options={"name": "root"})
    instance = diskhaul.Instance(name="mem1", node="alpha", disks=[disk])
    cluster = large.cluster(instances=[*large.instances.values(), instance])
    check = unchanged(large)
    with pytest.raises(diskhaul.RefusedError, match=r"disk 0.*direct_io = always: .* no file descriptor; use direct_io = auto"):
        large.export("mem1", config=cluster, plugins=[storage], direct_io="always")
    check.check()


@compressors
def test_a_restored_disk_is_the_same_however_it_was_read_and_written(large: Lab, compress: str, tmp_path: Path) -> None:
    result = large.export(compress=compress, chunk_size=CHUNK)
    assert result.export is not None
    restored: list[bytes] = []
    for mode in ("auto", "always", "never"):
        target = tmp_path / f"restored-{mode}"
        diskhaul.import_(result.export.path, to_dir=target, options=diskhaul.ImportOptions(direct_io=mode))
        restored.append((target / "disk-0.raw").read_bytes())
    assert restored[0] == restored[1] == restored[2]


def test_threads_that_memory_is_not_enough_for_are_told(large: Lab) -> None:
    result = large.export(compress="zstd:19", threads=3, memory=100 * MIB, chunk_size=4 * MIB)
    assert any("1 of 3 threads compress at a time" in warning and "100 MiB" in warning for warning in result.warnings)
