"""Where snapshots lie that are entries of a directory: checked names, whether one is there, and taking one away.

A reference comes out of the journal of an earlier run, so it is checked before each use: only what carries the name that the
backend gives, and the run it is of, is ever touched.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from diskhaul.api import Snapshot
from diskhaul.errors import SnapshotError
from diskhaul.formats.export_id import is_run_id
from diskhaul.model import Disk


def check_run_id(disk: Disk, run_id: str) -> None:
    """Raises `SnapshotError` unless `run_id` is one: it becomes a part of a name."""
    if not is_run_id(run_id):
        raise SnapshotError(f"{disk.label}: {run_id!r} is not a run id")


def split_reference(snapshot: Snapshot, backend: str, is_name: Callable[[str], bool]) -> tuple[str, str]:
    """Directory and name of a snapshot.

    Args:
        is_name: whether a name is one that `backend` gives to snapshots of this run; only asked about real run ids.

    Raises:
        SnapshotError: the reference is not one of this backend and this run.
    """
    directory, name = os.path.split(snapshot.reference)
    if not (is_run_id(snapshot.run_id) and os.path.isabs(directory) and "\0" not in snapshot.reference and is_name(name)):
        raise SnapshotError(f"{snapshot.reference!r} is not a {backend} snapshot of run {snapshot.run_id}: not touched")
    return directory, name


def open_directory(path: str) -> int:
    """Open the directory that holds, or will hold, a snapshot. Raises `OSError`."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def entry_exists(reference: str) -> bool:
    """Whether there is anything of this name, a link that leads nowhere included.

    Raises:
        SnapshotError: there is no telling.
    """
    try:
        os.lstat(reference)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise SnapshotError(f"{reference}: {os.strerror(error.errno or 0)}") from error
    return True


def remove_entry(
    directory: str, name: str, remove: Callable[[int, str], object], reason: Callable[[OSError], str] | None = None
) -> None:
    """Take a snapshot away; nothing there, nothing done.

    Args:
        remove: does it, given a descriptor of the directory and the name; refuses with `SnapshotError` what is no snapshot.
        reason: says in words what an error means.

    Raises:
        SnapshotError: it is still there, or there is no telling.
    """
    try:
        descriptor = open_directory(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SnapshotError(f"{directory}: {os.strerror(error.errno or 0)}") from error
    try:
        remove(descriptor, name)
    except FileNotFoundError:
        return
    except OSError as error:
        what = reason(error) if reason is not None else os.strerror(error.errno or 0)
        raise SnapshotError(f"{os.path.join(directory, name)}: cannot be removed: {what}") from error
    finally:
        os.close(descriptor)
