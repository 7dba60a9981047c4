"""Imports past the page cache, and through it, that fail or are killed: the target is never taken for a whole disk.

Every test is run both ways. The disk is large enough for several direct writes by every thread.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

import diskhaul
from diskhaul.events import DiskProgress, Event, StageStarted
from diskhaul.testing import MemoryStorage, SparseMemoryDisk

from .conftest import INSTANCE, Lab, Unchanged

MIB = 1 << 20
CHUNK = MIB
SIZE = 24 * MIB + 3 * 512  # no multiple of a page
OLD = 0xA5
MARK = b"diskhaul: incomplete import"

MakeUnchanged = Callable[[Lab], Unchanged]
Mode = Literal["auto", "never"]

ways = pytest.mark.parametrize("direct_io", ["auto", "never"])
compressors = pytest.mark.parametrize("compress", ["zstd:1", "none"])


def content() -> bytes:
    """Noise with runs of zeros of many lengths in it, and chunks of zeros; data at both ends."""
    chance = random.Random(11)
    made = bytearray(chance.randbytes(SIZE))
    for _ in range(40):
        begin, length = chance.randrange(4096, SIZE - MIB), chance.choice([1, 512, 4096, 20_000, 300_000])
        made[begin : begin + length] = bytes(length)
    made[5 * MIB : 9 * MIB] = bytes(4 * MIB)
    made[SIZE - 5000 : SIZE - 600] = bytes(4400)
    return bytes(made)


CONTENT = content()


@pytest.fixture
def stopped(plain_lab: Lab) -> Lab:
    """A stopped instance with one disk that holds `CONTENT`."""
    plain_lab.add_guest(running=False)
    (path,) = plain_lab.contents
    path.write_bytes(CONTENT)
    plain_lab.contents[path] = CONTENT
    return plain_lab


def exported(lab: Lab, compress: str = "zstd:1") -> str:
    made = lab.export(compress=compress, chunk_size=CHUNK)
    assert made.export is not None
    return made.export.path


def restore(
    export: str, target: Path, on_event: Callable[[Event], object] | None = None, **options: Any
) -> diskhaul.ImportResult:
    return diskhaul.import_(export, disks={0: target}, options=diskhaul.ImportOptions(**options), on_event=on_event)


@pytest.fixture
def device(tmp_path: Path, loop_device: Callable[[Path], str]) -> Path:
    """A block device full of old bytes, a little larger than the disk."""
    image = tmp_path / "device.img"
    image.write_bytes(bytes([OLD]) * (SIZE + 5 * 512))
    return Path(loop_device(image))


def read_device(device: Path) -> bytes:
    with open(device, "rb") as opened:
        return opened.read()


# --- right ------------------------------------------------------------------------------------------------------------


@ways
@compressors
def test_a_file_is_the_disk_with_its_holes(stopped: Lab, tmp_path: Path, direct_io: Mode, compress: str) -> None:
    export = exported(stopped, compress)
    result = restore(export, tmp_path / "new.raw", direct_io=direct_io)
    assert (tmp_path / "new.raw").read_bytes() == CONTENT
    zero_pages = sum(not any(CONTENT[at : at + 4096]) for at in range(0, SIZE, 4096))
    assert (tmp_path / "new.raw").stat().st_blocks * 512 <= SIZE - zero_pages * 4096 + 64 * 1024
    assert result.disks[0].bytes_written == sum(
        len(CONTENT[at : at + 4096]) for at in range(0, SIZE, 4096) if any(CONTENT[at : at + 4096])
    )


@ways
@compressors
def test_a_device_whose_size_is_no_multiple_of_a_page_is_the_disk(
    stopped: Lab, device: Path, direct_io: Mode, compress: str
) -> None:
    export = exported(stopped, compress)
    restore(export, device, direct_io=direct_io, force=True)
    found = read_device(device)
    assert found[:SIZE] == CONTENT
    assert set(found[SIZE:]) == {OLD}, "what is behind the disk is not the disk's"


def test_a_disk_that_grows_is_zero_behind_its_old_end(stopped: Lab, device: Path, tmp_path: Path) -> None:
    export = exported(stopped)
    restore(export, device, force=True, grow=((0, SIZE + 5 * 512),))
    assert read_device(device) == CONTENT + bytes(5 * 512)
    restore(export, tmp_path / "new.raw", grow=((0, SIZE + MIB),))
    assert (tmp_path / "new.raw").read_bytes() == CONTENT + bytes(MIB)


def test_what_was_restored_does_not_fill_the_page_cache(stopped: Lab, tmp_path: Path) -> None:
    import diskhaul_native as native

    restore(exported(stopped), tmp_path / "new.raw", direct_io="auto")
    with open(tmp_path / "new.raw", "rb") as opened:
        if not native.direct_alignment(opened.fileno()):
            pytest.skip("the temporary directory's filesystem has no direct I/O")
        assert native.cached_bytes(opened.fileno(), 0, SIZE) <= 4096, "the unaligned end only"


@pytest.mark.parametrize(("threads", "read_ahead", "memory"), [(1, 0, 192 * MIB), (3, 5, 192 * MIB), (8, 16, 16 * MIB)])
def test_any_number_of_threads_gives_the_same_disk(
    stopped: Lab, tmp_path: Path, threads: int, read_ahead: int, memory: int
) -> None:
    restore(exported(stopped), tmp_path / "new.raw", threads=threads, read_ahead=read_ahead, memory=memory)
    assert (tmp_path / "new.raw").read_bytes() == CONTENT


# --- refused ----------------------------------------------------------------------------------------------------------


def test_direct_io_that_is_wanted_and_cannot_be_had_is_refused_beforehand(
    stopped: Lab, tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("mount", root=True)
    export = exported(stopped)
    mounted = tmp_path / "ramfs"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "none", str(mounted)], check=True)
    try:
        with pytest.raises(diskhaul.RefusedError, match=r"new\.raw: direct_io = always: .*; use direct_io = auto"):
            restore(export, mounted / "new.raw", direct_io="always")
        with pytest.raises(diskhaul.RefusedError, match=r"disk-0\.raw: direct_io = always"):
            diskhaul.import_(export, to_dir=mounted / "new", options=diskhaul.ImportOptions(direct_io="always"))
        assert os.listdir(mounted) == []
        restore(export, mounted / "new.raw")
        assert (mounted / "new.raw").read_bytes() == CONTENT
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_a_plugins_disk_without_a_descriptor_is_refused_where_it_has_to_be_direct(stopped: Lab) -> None:
    exported(stopped)
    storage = MemoryStorage({"root": SparseMemoryDisk(bytes([OLD]) * SIZE)})
    disk = diskhaul.Disk(storage="memory", options={"name": "root"})
    instance = diskhaul.Instance(name=INSTANCE, node="alpha", state="down", disks=[disk])
    cluster = stopped.cluster(instances=[instance])
    options = diskhaul.ImportOptions(direct_io="always", force=True)
    with pytest.raises(diskhaul.RefusedError, match=r"disk 0: direct_io = always: .* no file descriptor"):
        diskhaul.import_(INSTANCE, config=cluster, plugins=[storage], options=options)
    assert set(storage.disks["root"].content()) == {OLD}
    diskhaul.import_(INSTANCE, config=cluster, plugins=[storage], options=diskhaul.ImportOptions(force=True))
    assert storage.disks["root"].content() == CONTENT


# --- no room ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_ext4(loop_filesystem: Callable[..., Any]) -> Path:
    path: Path = loop_filesystem("ext4", size_mib=64).path
    return path


@pytest.fixture
def small_tmpfs(tmp_path: Path, requires: Callable[..., None]) -> Iterator[Path]:
    requires("mount", root=True)
    mounted = tmp_path / "tmpfs"
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(mounted)], check=True)
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


@ways
@pytest.mark.parametrize("filesystem", ["small_ext4", "small_tmpfs"])
def test_a_filesystem_that_fills_up_in_the_middle_leaves_nothing_under_the_final_name(
    stopped: Lab, unchanged: MakeUnchanged, request: pytest.FixtureRequest, direct_io: Mode, filesystem: str
) -> None:
    place: Path = request.getfixturevalue(filesystem)
    export = exported(stopped)
    check = unchanged(stopped)

    def fill(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "restore":
            free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
            with open(place / "filler", "wb") as file:
                os.posix_fallocate(file.fileno(), 0, free - SIZE // 2)

    with pytest.raises(diskhaul.OperationFailedError, match="No space left on device") as failed:
        restore(export, place / "new.raw", on_event=fill, direct_io=direct_io)
    assert failed.value.exit_code == 3
    assert failed.value.parts == ("disk import: disk(s) 0",)
    assert "new.raw.incomplete" in str(failed.value)
    assert "marked incomplete" in str(failed.value)
    assert set(os.listdir(place)) - {"lost+found"} == {"filler", "new.raw.incomplete"}
    check.check()
    (place / "filler").unlink()
    restore(export, place / "new.raw", direct_io=direct_io, force=True)
    assert (place / "new.raw").read_bytes() == CONTENT
    assert not (place / "new.raw.incomplete").exists()


# --- a medium that fails ----------------------------------------------------------------------------------------------


@ways
def test_a_medium_that_loses_writes_fails_the_import_however_late_that_is_told(
    stopped: Lab, unchanged: MakeUnchanged, tmp_path: Path, requires: Callable[..., None], direct_io: Mode
) -> None:
    """An ext4 whose blocks lie in a file on a tmpfs that is too small: what does not fit is an I/O error of the device, which
    direct writes are told at once, and cached ones by fsync."""
    requires("mount", "mkfs.ext4", root=True)
    export = exported(stopped)
    small, mounted = tmp_path / "small", tmp_path / "mounted"
    small.mkdir()
    mounted.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", str(small)], check=True)
    try:
        with open(small / "image", "wb") as image:
            image.truncate(256 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-E", "nodiscard", "-O", "^has_journal", str(small / "image")], check=True)
        subprocess.run(["mount", "-o", "loop", str(small / "image"), str(mounted)], check=True)
        try:
            check = unchanged(stopped)
            with pytest.raises(diskhaul.OperationFailedError, match=r"Input/output error|No space left|Read-only") as failed:
                restore(export, mounted / "new.raw", direct_io=direct_io)
            assert failed.value.exit_code == 3
            check.check()
            assert not (mounted / "new.raw").exists()
        finally:
            subprocess.run(["umount", str(mounted)], check=True)
    finally:
        subprocess.run(["umount", str(small)], check=True)


class Traced:
    """Imports in processes of their own, whose system calls on the target go wrong."""

    def __init__(self, lab: Lab, export: str) -> None:
        self.lab, self.export = lab, export
        lab.write_config()

    def __call__(self, target: Path, fault: str, direct_io: str, *more: str) -> subprocess.CompletedProcess[str]:
        beside = target if target.is_block_device() else target.with_name(f"{target.name}.incomplete")
        log = self.lab.path / "strace.log"
        arguments = ["import", self.export, "--disk", f"0={target}", "--direct-io", direct_io, *more]
        arguments += ["--threads", "1", "--read-ahead", "0"]  # faults are counted for each thread
        strace = ["strace", "-f", "-qq", "-o", str(log), "-P", str(beside), f"--trace={fault.split(':')[0]}"]
        command = self.lab.command(*arguments)
        finished = subprocess.run(
            [*strace, f"--inject={fault}", os.path.realpath(command[0]), *command[1:]],
            env=self.lab.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.lab.path,
        )
        assert "INJECTED" in log.read_text() or "SIGKILL" in log.read_text(), "no fault was injected"
        return finished


@pytest.fixture
def traced(stopped: Lab, requires: Callable[..., None]) -> Traced:
    requires("strace")
    return Traced(stopped, exported(stopped))


@ways
@pytest.mark.parametrize("call", [1, 9])
def test_a_write_that_fails_fails_the_import_and_names_the_place(
    traced: Traced, tmp_path: Path, direct_io: Mode, call: int
) -> None:
    old = tmp_path / "old.raw"
    old.write_bytes(b"the old disk")
    finished = traced(old, f"pwrite64:error=EIO:when={call}", direct_io, "--force")
    assert finished.returncode == 3
    assert "old.raw.incomplete: cannot write at offset" in finished.stderr
    assert "Input/output error" in finished.stderr
    assert "incomplete" in finished.stderr
    assert old.read_bytes() == b"the old disk"
    assert (tmp_path / "old.raw.incomplete").exists()


@ways
def test_a_flush_that_fails_fails_the_import_and_is_not_tried_again(traced: Traced, tmp_path: Path, direct_io: Mode) -> None:
    finished = traced(tmp_path / "new.raw", "fsync:error=EIO:when=1", direct_io)
    assert finished.returncode == 3
    assert "new.raw.incomplete: cannot flush: Input/output error" in finished.stderr
    assert not (tmp_path / "new.raw").exists()
    assert (traced.lab.path / "strace.log").read_text().count("fsync(") == 1


@pytest.mark.parametrize("call", [1, 9])
def test_a_filesystem_that_takes_direct_io_and_then_refuses_it_is_written_through_the_cache(
    traced: Traced, tmp_path: Path, call: int
) -> None:
    finished = traced(tmp_path / "new.raw", f"pwrite64:error=EINVAL:when={call}", "auto")
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "new.raw").read_bytes() == CONTENT


@ways
def test_a_device_that_fails_stays_marked_as_incomplete(traced: Traced, device: Path, direct_io: Mode) -> None:
    finished = traced(device, "pwrite64:error=EIO:when=9", direct_io, "--force")
    assert finished.returncode == 3
    assert f"{device}: cannot write at offset" in finished.stderr
    assert read_device(device).startswith(MARK)


@ways
def test_a_device_that_loses_writes_stays_marked_as_incomplete(
    stopped: Lab, small_tmpfs: Path, loop_device: Callable[[Path], str], direct_io: Mode
) -> None:
    """It has room for half of the disk: direct writes are told at once, cached ones by the flush."""
    export = exported(stopped)
    with open(small_tmpfs / "image", "wb") as image:
        image.truncate(SIZE)
    device = Path(loop_device(small_tmpfs / "image"))
    with open(small_tmpfs / "filler", "wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, 64 * MIB - SIZE // 2)
    with pytest.raises(diskhaul.OperationFailedError, match=r"Input/output error|No space left") as failed:
        restore(export, device, direct_io=direct_io, force=True)
    assert failed.value.exit_code == 3
    assert read_device(device).startswith(MARK)


# --- killed -----------------------------------------------------------------------------------------------------------


@ways
def test_an_import_that_is_killed_leaves_nothing_under_the_final_name(traced: Traced, tmp_path: Path, direct_io: Mode) -> None:
    finished = traced(tmp_path / "new.raw", "pwrite64:signal=SIGKILL:when=9", direct_io)
    assert finished.returncode == -signal.SIGKILL
    assert not (tmp_path / "new.raw").exists()
    assert (tmp_path / "new.raw.incomplete").exists()
    restore(traced.export, tmp_path / "new.raw", direct_io=direct_io, force=True)
    assert (tmp_path / "new.raw").read_bytes() == CONTENT


@ways
def test_a_device_whose_import_is_killed_is_marked_as_incomplete(traced: Traced, device: Path, direct_io: Mode) -> None:
    finished = traced(device, "pwrite64:signal=SIGKILL:when=9", direct_io, "--force")
    assert finished.returncode == -signal.SIGKILL
    assert read_device(device).startswith(MARK)
    restore(traced.export, device, direct_io=direct_io, force=True)
    assert read_device(device)[:SIZE] == CONTENT


@ways
def test_a_cancelled_import_to_a_device_leaves_it_marked(stopped: Lab, device: Path, direct_io: Mode) -> None:
    export = exported(stopped)
    token = diskhaul.CancellationToken()

    def cancel(event: Event) -> None:
        if isinstance(event, DiskProgress) and event.activity == "restore":
            token.cancel("enough")

    options = diskhaul.ImportOptions(direct_io=direct_io, force=True)
    with pytest.raises(diskhaul.InterruptedRunError, match="enough"):
        diskhaul.import_(export, disks={0: device}, options=options, on_event=cancel, cancel=token)
    assert read_device(device).startswith(MARK)


# --- memory -----------------------------------------------------------------------------------------------------------

PEAK = """
import sys
import diskhaul
options = diskhaul.ImportOptions(direct_io=sys.argv[3], threads=8, read_ahead=8)
diskhaul.import_(sys.argv[1], disks={0: sys.argv[2]}, options=options)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@ways
def test_the_memory_of_an_import_is_bounded(stopped: Lab, tmp_path: Path, direct_io: Mode) -> None:
    """With as many threads as the memory allows, each of which has a chunk of 4 MiB and its frame."""
    (disk,) = stopped.contents
    disk.write_bytes(random.Random(4).randbytes(160 * MIB))
    made = stopped.export(chunk_size=4 * MIB).export
    assert made is not None
    arguments = [sys.executable, "-c", PEAK, made.path, str(tmp_path / "new.raw"), direct_io]
    finished = subprocess.run(arguments, env=stopped.environment(), capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) < 256 << 10, "KiB"
    assert (tmp_path / "new.raw").read_bytes() == disk.read_bytes()
