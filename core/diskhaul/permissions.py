"""Who else may write to a file that diskhaul trusts: configuration, hooks, plugins."""

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
