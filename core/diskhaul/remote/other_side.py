"""Running ``diskhaul`` at another cluster, by the command that the configuration has for it.

What is asked goes as arguments that no shell would change (ssh gives them to one): names, numbers, and options. Answers come as
JSON on standard output. When the command is ended here, what it runs there may go on: ssh tells nobody. So nothing that is asked
for relies on that: whatever is under way there holds its instance's lock.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..cancellation import CancellationToken
from ..errors import InterruptedRunError, OperationFailedError
from ..model import OtherCluster
from ..names import escape
from .envelope import Document
from .signing import UnreadableDocumentError, parse, render

_POLL_S = 0.1
_GRACE_S = 10.0
_REST_S = 2.0  # for what a command that has ended had still written
_LONGEST_LINE = 2000


class OtherSideError(OperationFailedError):
    """A command at another cluster failed, or could not be run.

    Attributes:
        code: its exit code, or None where it has none.
        problems: what it said, one line each.
    """

    def __init__(self, message: str, *, code: int | None, problems: Sequence[str]) -> None:
        super().__init__(message)
        self.code = code
        self.problems = tuple(problems)


class OtherSide:
    """Another cluster. Thread-safe; keeps nothing open."""

    def __init__(self, other: OtherCluster) -> None:
        self.name = other.name
        self._command = tuple(other.command)

    def ask(self, *arguments: str, limit_s: float, token: CancellationToken | None = None) -> Mapping[str, Any]:
        """Run a command there and return what it answers.

        Args:
            limit_s: after which it has failed, seconds.
            token: gives up waiting when it is cancelled.

        Raises:
            OtherSideError: it failed, or did not answer.
            InterruptedRunError: cancelled.
        """
        process = self._started("--json", "--quiet", *arguments, stdin=subprocess.DEVNULL)
        out, err = self._ended(process, limit_s, token)
        code = process.returncode
        try:
            answer = parse(out)
        except UnreadableDocumentError:
            answer = {}
        error = answer.get("error")
        if isinstance(error, dict):
            raise self._failed(arguments, code, _texts(error.get("problems")) or _texts([error.get("message")]))
        if code != 0 or answer.get("exit_code") != 0 or isinstance(answer["exit_code"], bool):
            raise self._failed(arguments, code, _lines(err))
        return answer

    def receive(self, prepared: Document, *arguments: str, limit_s: float) -> OtherReception:
        """Start a reception there, and return once it has announced its destination.

        Raises:
            OtherSideError: it would not, or did not do so within `limit_s` seconds.
        """
        process = self._started("--quiet", "receive", "-", *arguments, stdin=subprocess.PIPE)
        reception = OtherReception(self, process)
        try:
            reception.begin((render(prepared) + "\n").encode("ascii"), limit_s)
        except BaseException:
            reception.stop()
            raise
        return reception

    def _started(self, *arguments: str, stdin: int) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [*self._command, *arguments],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C at a terminal is for us to pass on
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise OtherSideError(
                f"cluster {self.name}: its command {escape(self._command[0])} cannot be run: {reason}", code=None, problems=()
            ) from error

    def _ended(self, process: subprocess.Popen[bytes], limit_s: float, token: CancellationToken | None) -> tuple[bytes, bytes]:
        until = time.monotonic() + limit_s
        left_open: float | None = None
        try:
            while True:
                try:
                    return process.communicate(timeout=_POLL_S)
                except subprocess.TimeoutExpired as waiting:
                    if process.poll() is not None:
                        # Something that it left behind, as a shared connection of ssh, may hold its output for long.
                        left_open = left_open or time.monotonic() + _REST_S
                        if time.monotonic() > left_open:
                            _close(process)
                            return waiting.output or b"", waiting.stderr or b""
                        continue
                    if token is not None and token.cancelled:
                        raise InterruptedRunError(f"interrupted: {token.reason}") from None
                    if time.monotonic() > until:
                        raise OtherSideError(
                            f"cluster {self.name} does not answer within {limit_s:g} s", code=None, problems=()
                        ) from None
        except BaseException:
            _end(process)
            _close(process)
            raise

    def no_answer(self, asked: str, why: str) -> OtherSideError:
        """What to raise where something came that is no answer to what was `asked`."""
        return OtherSideError(f"cluster {self.name}: {asked}: {why}", code=None, problems=(why,))

    def _failed(self, arguments: Sequence[str], code: int | None, problems: Sequence[str]) -> OtherSideError:
        words = [word for word in arguments if not word.startswith("-")][:2]
        said = f"{'; '.join(problems)} (exit code {code})" if problems else f"ended with exit code {code}"
        return OtherSideError(f"cluster {self.name}: {' '.join(words)}: {said}", code=code, problems=problems)


class OtherReception:
    """A ``diskhaul receive`` at another cluster that waits.

    Attributes:
        destination: what it announced.
    """

    def __init__(self, side: OtherSide, process: subprocess.Popen[bytes]) -> None:
        self._side, self._process = side, process
        self._said: list[bytes] = []
        self._first: list[bytes] = []
        self._announced = threading.Event()
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read_out, self._read_err)]
        self.destination: dict[str, Any] = {}
        for reader in self._readers:
            reader.start()

    def begin(self, prepared: bytes, limit_s: float) -> None:
        assert self._process.stdin is not None
        try:
            with self._process.stdin as stdin:
                stdin.write(prepared)
        except OSError:
            pass  # it has ended; what it said tells why
        if not self._announced.wait(limit_s):
            raise OtherSideError(f"cluster {self._side.name} does not answer within {limit_s:g} s", code=None, problems=())
        if not self._first:
            self._process.wait(_GRACE_S)
            raise self._failed()
        try:
            self.destination = parse(self._first[0])
        except UnreadableDocumentError as error:
            raise OtherSideError(f"cluster {self._side.name}: its destination {error}", code=None, problems=()) from error

    def finish(self, limit_s: float) -> None:
        """Wait until it has published what it received.

        Raises:
            OtherSideError: it failed, or does not end.
        """
        try:
            code = self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.stop()
            raise OtherSideError(f"cluster {self._side.name}: its reception does not end", code=None, problems=()) from None
        if code != 0:
            raise self._failed()
        self._close()

    def stop(self) -> None:
        """End it, if it has not ended."""
        _end(self._process)
        self._close()

    def _failed(self) -> OtherSideError:
        self._close()
        return self._side._failed(("receive",), self._process.returncode, _lines(b"".join(self._said)))

    def _close(self) -> None:
        for reader in self._readers:
            reader.join(_REST_S)
        if not any(reader.is_alive() for reader in self._readers):  # else it ends with whatever holds the output
            _close(self._process)

    def _read_out(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not self._first:
                self._first.append(line)
                self._announced.set()
        self._announced.set()

    def _read_err(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said.append(line)
            del self._said[:-100]


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            break
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            continue
    if process.stdin is not None and not process.stdin.closed:
        try:
            process.stdin.close()
        except OSError:
            pass  # nobody reads what was still to be written


def _texts(values: object) -> list[str]:
    return [escape(value[:_LONGEST_LINE]) for value in values if isinstance(value, str)] if isinstance(values, list) else []


def _lines(said: bytes) -> list[str]:
    """What a command told people, without what it tells of itself."""
    lines = [line.strip() for line in said.decode("utf-8", "backslashreplace").splitlines() if line.strip()]
    return [escape(line.removeprefix("diskhaul: ")[:_LONGEST_LINE]) for line in lines[-20:]]
