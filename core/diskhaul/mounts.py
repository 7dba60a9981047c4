"""The mounts that this process sees, and which of them a path lies on. Everything here only looks; thread-safe.

Names of files are bytes: they are taken as bytes out of ``/proc``, and become text the way Python makes text of every file's
name (`os.fsdecode`), so that what comes from here equals, and opens, the path that somebody else has of the same place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TABLE = "/proc/self/mountinfo"
_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of ``/proc/self/mountinfo``, see proc(5).

    Attributes:
        number: the kernel's own number of the mount; no two that exist at the same time share one.
        device: ``major:minor`` of the filesystem; an anonymous number on btrfs, network and memory filesystems.
        point: the directory it is mounted on.
        kind: the filesystem's type, ``ext4`` for example.
        source: what is mounted: a device, a server's directory, or whatever the filesystem puts there.
        writable: the filesystem as a whole is mounted read-write, even where this mount of it is not.
    """

    number: int
    device: str
    point: str
    kind: str
    source: str
    writable: bool


def mounts(of_process: int | None = None) -> Iterator[Mount]:
    """The mounts that this process sees, or another one, in the order they were made in; none where ``/proc`` does not tell."""
    try:
        table = Path(_TABLE if of_process is None else f"/proc/{of_process}/mountinfo").read_bytes()
    except OSError:
        return
    for line in table.split(b"\n"):  # not splitlines(), nor split() below: a name may hold other white space as it is
        # NUMBER PARENT DEVICE ROOT POINT OPTIONS [FIELD...] - KIND SOURCE OPTIONS
        left, _, right = line.partition(b" - ")
        place, described = left.split(b" "), right.split(b" ")
        if len(place) >= 5 and len(described) >= 2 and place[0].isdigit():
            yield Mount(
                number=int(place[0]),
                device=unescaped(place[2]),
                point=unescaped(place[4]),
                kind=unescaped(described[0]),
                source=unescaped(described[1]),
                writable=b"rw" in described[-1].split(b","),
            )


def mount_of(path: str | os.PathLike[str]) -> Mount | None:
    """The mount that `path`, after following links, lies on; None when there is no such path or no telling.

    The kernel is asked for the mount's number rather than the table for the longest fitting directory: a mount point may be
    hidden by a later mount on a directory above it, and then looks as if it held the path.
    """
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    finally:
        os.close(descriptor)
    numbers = [line.removeprefix("mnt_id:").strip() for line in lines if line.startswith("mnt_id:")]
    return next((mount for mount in mounts() if [str(mount.number)] == numbers), None)


def unescaped(field: bytes) -> str:
    r"""A field of a table in ``/proc``, where spaces and the like stand as a backslash and three octal digits."""
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))
