"""A command whose output is read while it runs: what is kept of it is bounded, and nobody waits for it longer than he says.

What it leaves behind may hold its output for long after its end, as a shared connection of ssh does: its end is what counts, and
what was still under way is waited for only briefly.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Sequence

from ..cancellation import CancellationToken
from .signing import MAX_DOCUMENT

MAX_SAID = 64 << 10
"""Bytes of standard error that are kept: the last ones."""
_POLL_S = 0.05
_GRACE_S = 10.0
_REST_S = 2.0  # for what a command that has ended had still written
_PIECE = 64 << 10


class RunningCommand:
    """One command, in a process group of its own: Ctrl-C at a terminal is for us to pass on. `close` it in the end.

    Attributes:
        out: what it wrote to standard output, bytes, at most `MAX_DOCUMENT`.
        err: the last that it wrote to standard error.
        too_much: it wrote more to standard output.

    Raises:
        OSError, ValueError: it cannot be run.
    """

    def __init__(self, command: Sequence[str], given: bytes) -> None:
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE if given else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._given = memoryview(given)
        self.out, self.err = bytearray(), bytearray()
        self.too_much = False
        self._line, self._ended, self._closing = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, name="diskhaul-other-side", daemon=True)
        self._thread.start()

    @property
    def code(self) -> int | None:
        """Its exit code, once it has been closed; negative for a signal, None where it would not end."""
        return self._process.returncode

    def wait_for_line(self, limit_s: float) -> bool:
        """Wait until it has written a line to standard output, or has ended; False if neither is so within `limit_s` seconds."""
        return self._line.wait(limit_s)

    def wait(self, limit_s: float, token: CancellationToken | None = None) -> bool:
        """Wait until it has ended; False if it has not within `limit_s` seconds, wrote too much, or `token` is cancelled."""
        until = time.monotonic() + limit_s
        while not self._ended.wait(_POLL_S):
            if self.too_much or time.monotonic() > until or (token is not None and token.cancelled):
                return False
        return not self.too_much

    def end(self) -> None:
        """End it, and what it started in its group also when it has ended itself by now."""
        if self._process.returncode is not None:
            return
        # It is not waited for before: until then nobody else can have its number.
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except (ProcessLookupError, PermissionError):
                break
            until = time.monotonic() + _GRACE_S
            while not self._has_exited() and time.monotonic() < until:
                time.sleep(_POLL_S / 10)

    def close(self) -> None:
        """Stop reading. A command that still runs is left alone: `end` it first."""
        self._closing.set()
        self._thread.join()  # it never blocks
        if self._has_exited():
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None and not stream.closed:
                _close(stream.fileno(), stream)

    # --- on a thread of its own ---------------------------------------------------------------------------------------

    def _has_exited(self) -> bool:
        if self._process.returncode is not None:
            return True
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # somebody in this process waits for every child
            return True

    def _serve(self) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                self._register(selector)
                rest: float | None = None
                while not self._closing.is_set():
                    if rest is None and self._has_exited():
                        rest = time.monotonic() + _REST_S
                    if rest is not None and (time.monotonic() > rest or not self._is_read(selector)):
                        return
                    self._move_on(selector)
        finally:
            self._ended.set()
            self._line.set()

    def _register(self, selector: selectors.BaseSelector) -> None:
        process = self._process
        for stream, event in (
            (process.stdin, selectors.EVENT_WRITE),
            (process.stdout, selectors.EVENT_READ),
            (process.stderr, selectors.EVENT_READ),
        ):
            if stream is not None:
                os.set_blocking(stream.fileno(), False)
                selector.register(stream.fileno(), event, stream)

    def _is_read(self, selector: selectors.BaseSelector) -> bool:
        return any(key.events == selectors.EVENT_READ for key in selector.get_map().values())

    def _move_on(self, selector: selectors.BaseSelector) -> None:
        if not selector.get_map():
            time.sleep(_POLL_S)
            return
        for key, _ in selector.select(_POLL_S):
            try:
                over = self._write(key.fd) if key.events == selectors.EVENT_WRITE else self._read(key.fd)
            except BlockingIOError:
                continue
            except OSError:
                over = True  # it has ended; what it said tells why
            if over:
                selector.unregister(key.fd)
                _close(key.fd, key.data)

    def _write(self, descriptor: int) -> bool:
        written = os.write(descriptor, self._given[:_PIECE])
        self._given = self._given[written:]
        return not self._given

    def _read(self, descriptor: int) -> bool:
        data = os.read(descriptor, _PIECE)
        assert self._process.stderr is not None
        if not self._process.stderr.closed and descriptor == self._process.stderr.fileno():
            self.err += data
            del self.err[:-MAX_SAID]
            return not data
        room = MAX_DOCUMENT - len(self.out)
        self.too_much = self.too_much or len(data) > room
        self.out += data[:room]
        if b"\n" in data:
            self._line.set()
        return not data


def _close(descriptor: int, stream: object) -> None:
    close = getattr(stream, "close", None)
    try:
        if callable(close):
            close()
    except OSError:
        pass  # nobody reads what was still to be written
