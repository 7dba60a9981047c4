"""A directory of our own below a target, for measurements; gone at the end, and what a killed run left goes too."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StorageError
from ..model import Disk
from .planning import lies_on

_PREFIX = ".diskhaul-scratch-"
_NAME = re.compile(rf"{re.escape(_PREFIX)}[0-9a-f]{{16}}\Z")


def target_problems(target: Path, disks: Iterable[Disk]) -> list[str]:
    """Why no scratch directory can be made below `target`, or must not be since it lies on one of `disks`; one line each."""
    if not target.is_dir():
        return [f"target: {target} is not a directory; make it first"]
    if not os.access(target, os.W_OK | os.X_OK):
        return [f"target: {target} cannot be written to by this user"]
    mode = target.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        return [f"target: {target} can be written by every user, who could change what is measured; run: chmod o-w {target}"]
    return [
        f"target: {target} lies on {disk.label}, which must not be written to: choose another directory"
        for disk in disks
        if disk.path is not None and lies_on(target, disk.path)
    ]


def free_bytes(target: Path) -> int:
    """Room below `target` for this user."""
    status = os.statvfs(target)
    return status.f_bavail * status.f_frsize


@contextmanager
def scratch_directory(target: Path) -> Iterator[Path]:
    """Make a directory below `target` that only this user can enter, and remove it with everything in it when the block ends.

    A lock on it ends with the process: directories that nobody holds any more are removed first.

    Raises:
        StorageError: it cannot be made, or not be removed (which is noted with what the block raises, if it does).
    """
    try:
        _sweep(target)
        path, descriptor = _made(target)
    except OSError as error:
        raise StorageError(f"target: {target}: no directory can be made: {error.strerror}", path=str(target)) from error
    try:
        try:
            yield path
        except BaseException as error:
            if failure := _removal_failure(path):
                error.add_note(str(failure))
            raise
        if failure := _removal_failure(path):
            raise failure
    finally:
        os.close(descriptor)


def _removal_failure(path: Path) -> StorageError | None:
    """Remove a scratch directory; return what went wrong."""
    try:
        shutil.rmtree(path)
    except OSError as error:
        return StorageError(f"{path} could not be removed, do so by hand: {error.strerror or error}", path=str(path))
    return None


def empty(directory: Path) -> None:
    """Remove everything in `directory`, and wait until the filesystem has done so: it must not go on during the next trial."""
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _made(target: Path) -> tuple[Path, int]:
    """A new directory, and the descriptor that holds its lock."""
    while True:
        path = target / f"{_PREFIX}{secrets.token_hex(8)}"
        path.mkdir(mode=0o700)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # somebody swept it away before it was locked
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:  # 0: swept away just before
            return path, descriptor
        os.close(descriptor)


def _sweep(target: Path) -> None:
    """Remove scratch directories of this user whose process is gone."""
    for entry in os.scandir(target):
        if not _NAME.match(entry.name) or not entry.is_dir(follow_symlinks=False):
            continue
        try:
            descriptor = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # gone, or not ours to enter
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_uid == os.geteuid():
                shutil.rmtree(entry.path)
        except OSError:
            continue  # somebody is at work in it
        finally:
            os.close(descriptor)
