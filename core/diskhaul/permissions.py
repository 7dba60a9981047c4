"""Who else may write to what diskhaul trusts: configuration, hooks, plugins, programs, locks."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def tampering_problem(path: Path | str, *, sticky_directory_is_safe: bool = True) -> str | None:
    """Say in one line how any user of this machine could change what lies at `path`, or return None.

    Looked at are `path` itself, as it is after following links, and the directory that holds it: whoever may write to that one
    without a sticky bit can put something else in its place. What does not exist is judged by the directory alone.

    Args:
        path: a file or a directory.
        sticky_directory_is_safe: False also minds a sticky world-writable directory around `path` (like ``/tmp``), where
            others cannot replace a file, but can put new ones beside it: matters for what Python imports.

    Raises:
        OSError: something on the way cannot be looked at.
    """
    real = os.path.realpath(path)
    directory = os.path.dirname(real)
    for place in (real, directory):
        try:
            mode = os.stat(place).st_mode
        except (FileNotFoundError, NotADirectoryError):  # the latter: a module inside a zip archive
            continue
        sticky = place == directory and bool(mode & stat.S_ISVTX) and sticky_directory_is_safe
        if mode & stat.S_IWOTH and not sticky:
            what = "directory " if stat.S_ISDIR(mode) else ""
            return f"{what}{place} can be written by every user; run: chmod o-w {place}"
    return None


def stranger_problems(path: Path | str, found: os.stat_result, *, group_may_write: bool = False) -> list[str]:
    """Say, one line each, who besides root and us may change what lies at `path`: another owner, its group, every user.

    Stricter than `tampering_problem`, for what others must not even add to: the sticky bit does not help, and what is around
    `path` is not looked at.

    Args:
        path: for the sentences; nothing is looked up.
        found: what lies there, as the caller has found it.
        group_may_write: whether a group is trusted with it. With an access control list, the group's bits are the most that
            anybody on the list may do.
    """
    problems = []
    if found.st_uid not in (0, os.geteuid()):
        problems.append(f"{path} belongs to uid {found.st_uid}; run: chown root {path}")
    minded = stat.S_IWOTH if group_may_write else stat.S_IWGRP | stat.S_IWOTH
    if found.st_mode & minded:
        whom, bits = ("every user", "o") if found.st_mode & stat.S_IWOTH else ("its group", "g")
        if found.st_mode & minded == stat.S_IWGRP | stat.S_IWOTH:
            bits = "go"
        problems.append(f"{path} can be written by {whom}; run: chmod {bits}-w {path}")
    return problems
