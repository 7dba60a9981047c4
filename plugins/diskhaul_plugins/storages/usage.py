"""Who uses a block device or a file right now: mounts, swap, loop devices, device-mapper, other processes.

Everything here only looks. The kernel's own answer (an exclusive open of a device, a write lease on a file) comes on top
of it where a disk is about to be overwritten; the sentences from here say *who* it is.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

from diskhaul.mounts import mount_of, mounts, unescaped


def device_users(device: int) -> Iterator[str]:
    """Say who uses the block device with the number `device` (``st_rdev``), or one of its partitions, one phrase each."""
    family = {device, *partitions(device)}
    numbers = {f"{os.major(number)}:{os.minor(number)}" for number in family}
    for mount in mounts():
        # A btrfs mount has an anonymous number: its source tells.
        if mount.device in numbers or (mount.source.startswith("/dev/") and block_number(mount.source) in family):
            yield f"is mounted on {mount.point}"
    for name, number in swaps():
        if number in family:
            yield f"is swap space ({name})"
    for number in sorted(family):
        for holder in listed(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/holders"):
            yield f"is part of {holder}"
    for loop, backing in loops():
        if block_number(backing) in family:
            yield f"backs /dev/{loop}"


def file_users(descriptor: int) -> Iterator[str]:
    """Say who uses the regular file behind `descriptor`, one phrase each."""
    status = os.fstat(descriptor)
    for loop, backing in loops():
        try:
            if os.path.samestat(os.stat(backing), status):
                yield f"is attached to /dev/{loop}"
        except OSError:
            continue  # deleted, or in another mount namespace
    for name, _ in swaps():
        try:
            if os.path.samestat(os.stat(name), status):
                yield "is a swap file"
        except OSError:
            continue


def open_elsewhere(descriptor: int, path: str) -> bool:
    """True when another open file description can write to the file behind `descriptor`.

    The kernel grants a write lease only while there is no other (fcntl(2), F_SETLEASE); it is given back at once.
    False where the filesystem has no leases, or where they mean something else (network filesystems).
    """
    return lease(descriptor, path, fcntl.F_WRLCK) is False


def lease(descriptor: int, path: str, kind: int) -> bool | None:
    """Whether the kernel grants a lease on the file behind `descriptor`, which is given back at once. None: no telling.

    Args:
        kind: F_WRLCK is granted while nobody else has the file open, F_RDLCK while nobody can write to it (`descriptor` must be
            read-only then).
    """
    mount = mount_of(path)
    if mount is None or mount.kind.startswith(("nfs", "cifs", "smb", "fuse")):
        return None  # leases mean something else there
    try:
        # Who opens the file at just this moment breaks the lease: its signal must be one that is ignored, which SIGIO is not.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, kind)
    except OSError as error:
        return False if error.errno == errno.EAGAIN else None
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def loop_backing(device: int) -> tuple[str, int] | None:
    """The file behind a loop device and the offset at which it begins there, or None when `device` is not an attached loop."""
    base = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/loop"
    backing = first_line(f"{base}/backing_file")
    if not backing:
        return None
    try:
        return backing, int(first_line(f"{base}/offset") or "0")
    except ValueError:
        return None


def partitions(device: int) -> Iterator[int]:
    """The numbers of the partitions of a block device."""
    base = f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"
    for name in listed(base):
        if os.path.exists(f"{base}/{name}/partition"):
            major, _, minor = first_line(f"{base}/{name}/dev").partition(":")
            if major.isdigit() and minor.isdigit():
                yield os.makedev(int(major), int(minor))


def swaps() -> Iterator[tuple[str, int]]:
    """Swap files and devices by name, with the device number (0 for a file)."""
    try:
        lines = Path("/proc/swaps").read_bytes().split(b"\n")[1:]
    except OSError:
        return
    for line in lines:
        if line:
            name = unescaped(line.split(b" ")[0])
            yield name, block_number(name)


def loops() -> Iterator[tuple[str, str]]:
    """The attached loop devices by name, with the file or device behind each."""
    for name in listed("/sys/block"):
        if name.startswith("loop"):
            backing = first_line(f"/sys/block/{name}/loop/backing_file")
            if backing:
                yield name, backing


def block_number(path: str) -> int:
    """The number of the block device at `path`, 0 when there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0
    return status.st_rdev if stat.S_ISBLK(status.st_mode) else 0


def listed(directory: str) -> list[str]:
    """The names in `directory`, sorted; none where it cannot be read."""
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def first_line(path: str) -> str:
    """The first line of a file of the kernel's; "" where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.readline().rstrip("\n")
    except OSError:
        return ""
