"""Makes a disk as guests have them: GPT, one ext4 partition, filled from /usr, then some of it deleted again.

Deleted files matter: their blocks are still full of old data, which every program has to read and store. What was never written
is a hole of the image. Which files are taken and which are deleted depends on their names and sizes only, so a machine makes the
same disk again.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import ComparisonError
from .running import SEARCH_PATH

MIB = 1 << 20
GIB = 1 << 30
FILL_SHARE = 0.75  # of the filesystem's blocks
DELETED_SHARE = 0.175  # of the bytes in files
LARGEST_FILE_SHARE = 1 / 32  # of the disk; larger files are left out, one of them would be too much of the disk
MAX_PASSES = 8  # how often the same files are copied where the source directory is small
RECIPE = 1  # grows when the same arguments make another disk: kept disks are then made again
PROGRAMS = {"sfdisk": "fdisk", "mkfs.ext4": "e2fsprogs", "losetup": "mount", "mount": "mount", "umount": "mount"}
PARTITION = MIB  # where the one partition begins; as much is left after it, for the second copy of the table
_UUID = "6f0d4d1e-5d0a-4c57-9a3e-3b6c0de15c11"

Announce = Callable[[str], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFacts:
    """What a made disk holds. Sizes are bytes; `data` is what the image's extents with data amount to.

    `files` and `deleted` are numbers of files, `deleted_bytes` their sizes; `source` is the directory they are from.
    """

    size: int
    data: int
    files: int
    deleted: int
    deleted_bytes: int
    source: str
    recipe: int = RECIPE


def made_disk(path: Path) -> DiskFacts | None:
    """The facts of a disk that was completed earlier, None when there is none (or an older recipe made it)."""
    try:
        facts = DiskFacts(**json.loads(_stamp(path).read_text()))
        present = path.stat().st_size == facts.size
    except (OSError, ValueError, TypeError):
        return None
    return facts if present and facts.recipe == RECIPE else None


def make_disk(path: Path, size: int, *, source: Path, announce: Announce) -> DiskFacts:
    """Make a disk image of `size` bytes at `path`, from files of the directory `source`.

    Its stamp (beside it, ``.json``) is written last: without one the disk counts as not made. Needs root for a loop device and
    a mount, both of which are gone in the end. What an interrupted call left is removed first.

    Raises:
        ComparisonError: not root, a program is missing, no room, or a step failed.
    """
    _check_possible(path, size)
    image, mount_point = path.with_name(f"{path.name}.partial"), path.with_name(f"{path.name}.mnt")
    _clear_leftovers(path, image, mount_point)
    with ExitStack() as undo:
        undo.callback(_clear_leftovers, path, image, mount_point)
        with open(image, "xb") as file:
            file.truncate(size)
        table = f"label: gpt\nstart={PARTITION // 512}, size={(size - 2 * PARTITION) // 512}, type=linux, name=root\n"
        _run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(image), given=table)
        place = ("--offset", str(PARTITION), "--sizelimit", str(size - 2 * PARTITION))
        device = _run("losetup", "--find", "--show", *place, str(image)).strip()
        options = f"lazy_itable_init=0,lazy_journal_init=0,nodiscard,hash_seed={_UUID}"
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-L", "root", "-U", _UUID, "-E", options, device)
        mount_point.mkdir()
        _run("mount", "-t", "ext4", "-o", "noatime,nodiscard", device, str(mount_point))
        announce(f"filling it from {source}")
        copied = _fill(mount_point, source, size)
        os.sync()  # or deleted files would never reach the disk
        announce(f"copied {len(copied)} files, deleting some of them")
        deleted = _delete_some(copied)
        os.sync()
        _run("umount", str(mount_point))
        _run("losetup", "--detach", device)
        with open(image, "rb") as file:
            os.fsync(file.fileno())
        facts = DiskFacts(
            size=size,
            data=data_bytes(image),
            files=len(copied),
            deleted=len(deleted),
            deleted_bytes=sum(length for _, length in deleted),
            source=str(source),
        )
        os.replace(image, path)
        _write_stamp(path, facts)
    return facts


def _stamp(path: Path) -> Path:
    return path.with_suffix(".json")


def _write_stamp(path: Path, facts: DiskFacts) -> None:
    unfinished = path.with_suffix(".json.partial")
    unfinished.write_text(json.dumps(asdict(facts), indent=1) + "\n")
    os.replace(unfinished, _stamp(path))


def _check_possible(path: Path, size: int) -> None:
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program, path=SEARCH_PATH) is None})
    if missing:
        raise ComparisonError(f"making a disk needs programs of these packages: {', '.join(missing)}")
    if os.geteuid() != 0:
        raise ComparisonError("making a disk needs root (a loop device, a mount); or name an image of your own with --disk")
    check_room(path.parent, int(size * FILL_SHARE * 1.1), "the disk")


def check_room(directory: Path, needed: int, purpose: str) -> None:
    """Raise ComparisonError unless `needed` bytes are free where `directory` is."""
    found = os.statvfs(directory)
    free = found.f_bavail * found.f_frsize
    if free < needed:
        raise ComparisonError(
            f"no room for {purpose} in {directory}: {needed / GIB:.1f} GiB needed, {free / GIB:.1f} GiB free; "
            "choose another --work or a smaller --size"
        )


def _clear_leftovers(path: Path, image: Path, mount_point: Path) -> None:
    if os.path.ismount(mount_point):
        _run("umount", str(mount_point))
    if mount_point.exists():
        mount_point.rmdir()
    if image.exists():
        for line in _run("losetup", "--associated", str(image)).splitlines():
            _run("losetup", "--detach", line.partition(":")[0])
        image.unlink()
    if made_disk(path) is None:
        path.unlink(missing_ok=True)
        _stamp(path).unlink(missing_ok=True)


def _run(*argv: str, given: str | None = None) -> str:
    environment = {**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C"}
    finished = subprocess.run(argv, input=given, capture_output=True, text=True, check=False, env=environment)
    if finished.returncode:
        words = finished.stderr.strip().splitlines() or [f"status {finished.returncode}"]
        raise ComparisonError(f"{argv[0]}: {words[-1]}")
    return finished.stdout


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Entry:
    """A directory, symbolic link or regular file below the source; `chance` in [0, 1) follows from its name."""

    name: str  # relative to the source
    mode: int
    length: int

    @property
    def chance(self) -> float:
        return zlib.crc32(os.fsencode(self.name)) / (1 << 32)


def _entries(top: Path) -> Iterator[_Entry]:
    """What is below `top` on the same filesystem, in the order of names; directories before what is in them."""
    device = top.stat().st_dev
    waiting = [""]
    while waiting:
        directory = waiting.pop()
        try:
            found = sorted(os.scandir(top / directory), key=lambda entry: entry.name)
        except OSError:  # gone, or not for us
            continue
        below = []
        for entry in found:
            status = entry.stat(follow_symlinks=False)
            name = os.path.join(directory, entry.name)
            if status.st_dev != device:
                continue
            if stat.S_ISDIR(status.st_mode):
                below.append(name)
            if stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode) or stat.S_ISREG(status.st_mode):
                yield _Entry(name, status.st_mode, status.st_size)
        waiting += reversed(below)


def _fill(root: Path, source: Path, size: int) -> list[tuple[Path, int]]:
    """Copy entries of `source` until the filesystem at `root` is full to FILL_SHARE; the regular files with their lengths."""
    entries = [entry for entry in _entries(source) if not stat.S_ISREG(entry.mode) or entry.length < size * LARGEST_FILE_SHARE]
    there = sum(entry.length for entry in entries if stat.S_ISREG(entry.mode))
    # As many as are needed, evenly from the whole tree: a disk of only /usr/bin and half of /usr/lib would be unusual. Files take
    # more room than their lengths, so this is enough.
    share = size * FILL_SHARE / max(1, there)
    copied: list[tuple[Path, int]] = []
    for number in range(1, MAX_PASSES + 1):
        target = root / (source.name if number == 1 else f"{source.name}-{number}")
        target.mkdir()
        for entry in entries:
            if not stat.S_ISDIR(entry.mode) and entry.chance >= share:
                continue
            if _copy(source / entry.name, target / entry.name, entry) and stat.S_ISREG(entry.mode):
                copied.append((target / entry.name, entry.length))
                if len(copied) % 64 == 0 and _used_share(root) >= FILL_SHARE:
                    return copied
    raise ComparisonError(f"{source} holds too little ({there / GIB:.1f} GiB) to fill the disk; choose a smaller --size")


def _copy(source: Path, target: Path, entry: _Entry) -> bool:
    """Copy one entry; False when it cannot be read."""
    try:
        if stat.S_ISDIR(entry.mode):
            target.mkdir()
        elif stat.S_ISLNK(entry.mode):
            target.symlink_to(os.readlink(source))
        else:
            shutil.copyfile(source, target)
            os.chmod(target, entry.mode & 0o755)  # nothing there is to be run with another user's rights
    except (FileNotFoundError, PermissionError):
        return False
    return True


def _used_share(root: Path) -> float:
    found = os.statvfs(root)
    return 1 - found.f_bfree / found.f_blocks


def _delete_some(copied: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
    """Delete files, picked from everywhere, until DELETED_SHARE of the bytes is gone; those that were deleted."""
    limit = DELETED_SHARE * sum(length for _, length in copied)
    deleted: list[tuple[Path, int]] = []
    gone = 0
    for path, length in sorted(copied, key=lambda file: (zlib.crc32(os.fsencode(file[0].name)), file[0])):
        if gone >= limit:
            break
        path.unlink()
        deleted.append((path, length))
        gone += length
    return deleted


# --- images -----------------------------------------------------------------------------------------------------------


def data_ranges(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of what is data in [start, end) of a file, ascending; holes are left out."""
    position = start
    while position < end:
        try:
            begin = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:  # ENXIO: no data from here on
            return
        if begin >= end:
            return
        position = min(end, os.lseek(fd, begin, os.SEEK_HOLE))
        yield begin, position - begin


def data_bytes(path: Path) -> int:
    """How many bytes of a file are data."""
    with open(path, "rb") as file:
        return sum(length for _, length in data_ranges(file.fileno(), 0, os.fstat(file.fileno()).st_size))


def cut(source: Path, target: Path, start: int, length: int) -> None:
    """Make `target` hold [start, start + length) of `source`, holes kept."""
    with open(source, "rb") as reader, open(target, "xb") as writer:
        writer.truncate(length)
        for offset, piece in data_ranges(reader.fileno(), start, start + length):
            _copy_bytes(reader.fileno(), offset, writer.fileno(), offset - start, piece)
        os.fsync(writer.fileno())


def scatter(source: Path, target: Path, size: int, data: int, pieces: int) -> None:
    """Make `target`, a sparse file of `size` bytes, with the first `data` bytes of the source's data in `pieces` places.

    The places lie evenly over the file. With ``size == data`` they lie side by side, and the file has no holes.
    """
    piece, step = data // pieces, size // pieces
    done = 0
    with open(source, "rb") as reader, open(target, "xb") as writer:
        writer.truncate(size)
        for offset, length in data_ranges(reader.fileno(), 0, os.fstat(reader.fileno()).st_size):
            end = offset + length
            while offset < end and done < data:
                number, within = divmod(done, piece)
                part = min(end - offset, piece - within)
                _copy_bytes(reader.fileno(), offset, writer.fileno(), number * step + within, part)
                offset += part
                done += part
        os.fsync(writer.fileno())
    if done < data:
        raise ComparisonError(f"{source} holds less than {data / GIB:.1f} GiB of data")


def _copy_bytes(source: int, offset: int, target: int, target_offset: int, length: int) -> None:
    buffer = memoryview(bytearray(4 * MIB))
    while length:
        got = os.preadv(source, [buffer[: min(length, len(buffer))]], offset)
        if got == 0:
            raise ComparisonError("a disk image got shorter while it was read")
        done = 0
        while done < got:
            done += os.pwrite(target, buffer[done:got], target_offset + done)
        offset, target_offset, length = offset + got, target_offset + got, length - got
