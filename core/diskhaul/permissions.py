"""Who else may write to a file that diskhaul trusts: configuration, hooks, plugins."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def tampering_problem(path: Path | str, *, sticky_directory_is_safe: bool = True) -> str | None:
    """Say in one line how any user of this machine could change what lies at `path`, or return None.

    Looked at are `path` itself, as it is after following links, and every directory above it: whoever may write to one of those
    without a sticky bit can put something else in its place. A missing `path` is judged by what exists above it.

    Args:
        path: a file or a directory.
        sticky_directory_is_safe: False also minds a sticky world-writable directory right above `path` (like ``/tmp``), where
            others cannot replace a file, but can put new ones beside it: matters for what Python imports.

    Raises:
        OSError: something on the way cannot be looked at.
    """
    real = os.path.realpath(path)
    place = real
    while True:
        try:
            mode = os.stat(place).st_mode
        except (FileNotFoundError, NotADirectoryError):  # the latter: a module inside a zip archive
            mode = 0
        sticky = bool(mode & stat.S_ISVTX) and stat.S_ISDIR(mode)
        near = place == real or place == os.path.dirname(real)
        if mode & stat.S_IWOTH and not (sticky and place != real and (sticky_directory_is_safe or not near)):
            what = "directory " if stat.S_ISDIR(mode) else ""
            return f"{what}{place} can be written by every user; run: chmod o-w {place}"
        parent = os.path.dirname(place)
        if parent == place:
            return None
        place = parent
