"""``--events FILE``: what happens, as JSON lines, while it happens."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

from ..errors import RefusedError
from ..events import Event
from .json_output import dumps
from .text import escape


class EventLog:
    """Appends each event to a file as one JSON line. Callable, so that it can be an ``on_event``.

    The file is made with mode 0600. Lines are written whole and at once, without a buffer. A log that cannot be written any
    more never disturbs the operation: the rest is counted in `lost`, and `problem` says why.

    Raises:
        RefusedError: the file cannot be opened for appending.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        self.problem = ""
        self._dead = False
        self._torn = b""  # the rest of a line that a full pipe took only the start of
        try:
            # Without O_NONBLOCK a named pipe that nobody reads would hold up the run for ever, here and at each line.
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
        except OSError as error:
            reason = "nobody reads this pipe: start its reader first" if error.errno == errno.ENXIO else error.strerror
            raise RefusedError(f"--events {escape(path)}: {reason}") from error

    def __call__(self, event: Event) -> None:
        self.write(event.as_dict())

    def write(self, record: dict[str, Any]) -> None:
        """Append one record."""
        if self._dead:
            self.lost += 1
            return
        line = dumps(record).encode("ascii") + b"\n"
        unwritten = self._torn + line
        try:
            while unwritten:
                unwritten = unwritten[os.write(self._fd, unwritten) :]
            self._torn = b""
        except OSError as error:
            self.problem = error.strerror or str(error)
            self._dead = not isinstance(error, BlockingIOError)
            if len(unwritten) < len(line):
                self._torn = unwritten  # goes before the next line, so that every line stays whole
            else:
                self._torn = unwritten[: -len(line)]
                self.lost += 1

    def is_same_file_as(self, descriptor: int) -> bool:
        """True when the open `descriptor` writes to the same file or pipe (not: the same device, such as a terminal)."""
        ours, other = os.fstat(self._fd), os.fstat(descriptor)
        return not stat.S_ISCHR(ours.st_mode) and os.path.samestat(ours, other)

    def close(self) -> None:
        os.close(self._fd)
