"""Who may be writing to a disk right now: processes that have it open for writing, read-write mounts, swap, and what lies on it.

Followed are partitions, loop devices, and what device-mapper and md made of a device, so that a disk that a process writes to
through one of them is found; one that nobody uses is no writer. Who only reads is none either, nor is this process itself.
Everything here only looks, and takes some hundredths of a second: it goes through every process's open files.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from diskhaul.mounts import Mount, mounts

from .usage import block_number, first_line, lease, listed, loop_backing, loops, partitions, swaps

_NAMED = 3  # processes that are named; more are counted


@dataclass(frozen=True, slots=True)
class _OpenFile:
    """A file or device that a process has open for writing."""

    process: int
    status: os.stat_result


def device_writers(device: int) -> Iterator[str]:
    """Say who may be writing to the block device with the number `device` (``st_rdev``), one phrase each."""
    backing = loop_backing(device)
    files: list[os.stat_result] = []
    if backing is not None:
        try:
            files.append(os.stat(backing[0]))
        except OSError:
            pass  # deleted, or in another mount namespace
    yield from _writers(_built_on({device: ""}), files)


def file_writers(path: str) -> Iterator[str]:
    """Say who may be writing to the regular file at `path`, one phrase each.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        unwritten = lease(descriptor, path, fcntl.F_RDLCK)
    finally:
        os.close(descriptor)
    if unwritten:
        return  # the kernel knows best
    attached = _loops_on(status)
    found = list(_writers(_built_on(attached), [status]))
    yield from found
    if not found and unwritten is False and not attached and not _is_ours(status):
        yield "is open for writing by something that /proc does not show"


def _writers(devices: dict[int, str], files: Iterable[os.stat_result]) -> Iterator[str]:
    """Who writes to one of `devices` (number, and how it is related to the disk) or to one of `files`."""
    files = list(files)
    numbers = {f"{os.major(number)}:{os.minor(number)}": number for number in devices}
    seen = set()
    for mount in _mounts_everywhere():
        # A btrfs mount has an anonymous number: its source tells.
        number = numbers.get(mount.device) or (block_number(mount.source) if mount.source.startswith("/dev/") else 0)
        if mount.writable and number in devices and (phrase := f"is mounted read-write on {mount.point}") not in seen:
            seen.add(phrase)
            yield phrase + devices[number]
    for name, number in swaps():
        if number in devices or any(_is_same(name, status) for status in files):
            yield f"is swap space ({name})" + devices.get(number, "")
    by_relation: dict[str, set[int]] = {}
    for file in _written_files({status.st_ino for status in files}):
        if stat.S_ISBLK(file.status.st_mode):
            relation = devices.get(file.status.st_rdev)
        else:
            relation = "" if any(os.path.samestat(file.status, status) for status in files) else None
        if relation is not None and file.process != os.getpid():
            by_relation.setdefault(relation, set()).add(file.process)
    for relation, processes in sorted(by_relation.items()):
        yield f"is open for writing in {_named(sorted(processes))}" + relation


def _built_on(devices: dict[int, str]) -> dict[int, str]:
    """`devices` and everything that writes through to them: partitions, loop devices, device-mapper, md; each with a phrase."""
    found = dict(devices)
    waiting = list(devices)
    attached = [(block_number(f"/dev/{name}"), block_number(backing)) for name, backing in loops()]
    while waiting:
        number = waiting.pop()
        holders = listed(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/holders")
        above = [*partitions(number), *(_number_of(f"/sys/class/block/{holder}") for holder in holders)]
        above += [loop for loop, backing in attached if backing == number]
        for upper in above:
            base = f"/sys/dev/block/{os.major(upper)}:{os.minor(upper)}"
            if upper and upper not in found and first_line(f"{base}/ro") != "1":
                found[upper] = f" (through {_name_of(base)})"
                waiting.append(upper)
    return found


def _loops_on(status: os.stat_result) -> dict[int, str]:
    """Writable loop devices whose backing file is the one with this `status`."""
    return {
        block_number(f"/dev/{name}"): f" (through /dev/{name})"
        for name, backing in loops()
        if first_line(f"/sys/block/{name}/ro") != "1" and _is_same(backing, status)
    }


def _is_same(path: str, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), status)
    except (OSError, ValueError):
        return False


def _number_of(base: str) -> int:
    major, _, minor = first_line(f"{base}/dev").partition(":")
    return os.makedev(int(major), int(minor)) if major.isdigit() and minor.isdigit() else 0


def _name_of(base: str) -> str:
    mapped = first_line(f"{base}/dm/name")
    return f"/dev/mapper/{mapped}" if mapped else "/dev/" + os.path.basename(os.path.realpath(base)).replace("!", "/")


# --- processes --------------------------------------------------------------------------------------------------------


def _processes() -> list[int]:
    return [int(name) for name in listed("/proc") if name.isdecimal()]


def _named(processes: list[int]) -> str:
    shown = [f"process {number} ({first_line(f'/proc/{number}/comm') or '?'})" for number in processes[:_NAMED]]
    more = len(processes) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _mounts_everywhere() -> Iterator[Mount]:
    """The mounts of this process and those of other mount namespaces: containers, services with a view of their own."""
    yield from mounts()
    seen = {_namespace("self")}
    for process in _processes():
        namespace = _namespace(str(process))
        if namespace and namespace not in seen:
            seen.add(namespace)
            yield from mounts(process)


def _namespace(process: str) -> str:
    try:
        return os.readlink(f"/proc/{process}/ns/mnt")
    except OSError:
        return ""


def _is_ours(status: os.stat_result) -> bool:
    """True when this process has the file open for writing."""
    files = _files_of(os.getpid(), {status.st_ino})
    return any(os.path.samestat(file.status, status) for file in files)


def _written_files(inodes: set[int]) -> Iterator[_OpenFile]:
    for process in _processes():
        yield from _files_of(process, inodes)


def _files_of(process: int, inodes: set[int]) -> Iterator[_OpenFile]:
    """What a process has open for writing, as far as it may matter: block devices, and files whose inode is in `inodes`.

    Others are not asked for their status: a file on a server that does not answer would never give it.
    """
    base = f"/proc/{process}"
    for descriptor in listed(f"{base}/fd"):
        try:
            target = os.readlink(f"{base}/fd/{descriptor}")
            if not target.startswith("/") or target.startswith(("/proc/", "/dev/pts/", "/dev/null")):
                continue  # a socket, a pipe, ...
            flags, inode = _flags_and_inode(f"{base}/fdinfo/{descriptor}")
            if flags & os.O_ACCMODE == os.O_RDONLY or flags & os.O_PATH:
                continue
            if "/dev/" not in target and inode not in (None, *inodes):
                continue
            yield _OpenFile(process, os.stat(f"{base}/fd/{descriptor}"))
        except (OSError, ValueError):
            continue  # closed meanwhile, or not ours to see


def _flags_and_inode(path: str) -> tuple[int, int | None]:
    """How a descriptor was opened, and the inode's number; None from kernels before 5.14."""
    with open(path, encoding="ascii", errors="replace") as file:
        fields = dict(line.split(":", 1) for line in file if ":" in line)
    inode = fields.get("ino")
    return int(fields["flags"], 8), int(inode) if inode is not None else None
