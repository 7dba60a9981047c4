"""A directory of our own below a target, for measurements; gone at the end, and what a killed run left goes too."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = ".diskhaul-scratch-"
_NAME = re.compile(rf"{re.escape(_PREFIX)}[0-9a-f]{{16}}\Z")


@contextmanager
def scratch_directory(target: Path) -> Iterator[Path]:
    """Make a directory below `target` that only this user can enter, and remove it with everything in it when the block ends.

    A lock on it ends with the process: directories that nobody holds any more are removed first.

    Raises:
        OSError: it cannot be made, or not be removed.
    """
    _sweep(target)
    path, descriptor = _made(target)
    try:
        yield path
    finally:
        try:
            shutil.rmtree(path)
        finally:
            os.close(descriptor)


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
