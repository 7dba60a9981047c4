"""Appends to a file, in order, what several threads finish out of order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from ..api import Buffer, DigestedStoreFile, StoreFile


def _nobody_asked(number: int, offset: int, length: int) -> None:
    """Called for each piece that has been appended."""


class OrderedAppender:
    """Numbered pieces go in from any thread; they reach the file by number.

    Whoever brings the piece that is due writes it and all that wait behind it; nobody else waits for the file. A thread that
    runs more than `window` pieces ahead waits, which bounds the memory held here.

    Args:
        when_appended: called with a piece's number, its offset in the file and its length, in order, one at a time.
    """

    def __init__(self, file: StoreFile, window: int, when_appended: Callable[[int, int, int], object] = _nobody_asked) -> None:
        self.written = 0
        self._file = file
        self._digested = file if isinstance(file, DigestedStoreFile) else None
        self._when_appended = when_appended
        self._window = window
        self._due = 0
        self._waiting: dict[int, tuple[Sequence[Buffer], bytes | None]] = {}
        self._writing = False
        self._failed = False
        self._changed = threading.Condition()

    def put(self, number: int, parts: Sequence[Buffer], digest: bytes | None = None) -> None:
        """Hand over piece `number`. After a failure (here or by `fail`) pieces are dropped.

        `digest` is the BLAKE3 (32 bytes) of a piece of one part, where it is known.

        Raises:
            OSError: or whatever the file's `append` raises.
        """
        with self._changed:
            while number - self._due >= self._window and not self._failed:
                self._changed.wait()
            if self._failed:
                return
            self._waiting[number] = parts, digest
            if self._writing:
                return
            self._writing = True
        try:
            while (due := self._take()) is not None:
                parts, digest = due
                length = sum(len(part) for part in parts)
                if digest is not None and self._digested is not None:
                    self._digested.append_digested(parts[0], digest)
                else:
                    self._file.append(parts)
                self._when_appended(self._due, self.written, length)
                with self._changed:
                    self.written += length
                    self._due += 1
                    self._changed.notify_all()
        except BaseException:
            self.fail()
            raise

    def _take(self) -> tuple[Sequence[Buffer], bytes | None] | None:
        """The piece that is due; None, and no longer writing, when it is not there."""
        with self._changed:
            due = None if self._failed else self._waiting.pop(self._due, None)
            if due is None:
                self._writing = False
            return due

    def fail(self) -> None:
        """Let go everybody who waits; nothing more will be written."""
        with self._changed:
            self._failed = True
            self._waiting.clear()
            self._changed.notify_all()
