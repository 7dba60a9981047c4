"""Running ``diskhaul`` at another cluster, by the command that the configuration has for it.

What is asked goes as arguments that no shell would change (ssh gives them to one): names, numbers, and options. Answers come as
JSON on standard output. When the command is ended here, what it runs there may go on: ssh tells nobody. So nothing that is asked
for relies on that: whatever is under way there holds its instance's lock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..cancellation import CancellationToken
from ..errors import InterruptedRunError, OperationFailedError
from ..model import OtherCluster
from ..names import escape
from .envelope import Document
from .running_command import RunningCommand
from .signing import MAX_DOCUMENT, UnreadableDocumentError, parse, render

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
        command = self._started("--json", "--quiet", *arguments)
        try:
            if not command.wait(limit_s, token):
                command.end()
                if token is not None and token.cancelled:
                    raise InterruptedRunError(f"interrupted: {token.reason}")
                raise self._silent(command, limit_s)
        except BaseException:
            command.end()
            raise
        finally:
            command.close()
        out, code = bytes(command.out), command.code
        try:
            answer = parse(out)
        except UnreadableDocumentError:
            answer = {}
        error = answer.get("error")
        if isinstance(error, dict):
            raise self._failed(arguments, code, _texts(error.get("problems")) or _texts([error.get("message")]))
        if code != 0 or answer.get("exit_code") != 0 or isinstance(answer["exit_code"], bool):
            raise self._failed(arguments, code, _lines(command.err))
        return answer

    def receive(self, prepared: Document, *arguments: str, limit_s: float) -> OtherReception:
        """Start a reception there, and return once it has announced its destination.

        Raises:
            OtherSideError: it would not, or did not do so within `limit_s` seconds.
        """
        given = (render(prepared) + "\n").encode("ascii")
        reception = OtherReception(self, self._started("--quiet", "receive", "-", *arguments, given=given))
        try:
            reception.begin(limit_s)
        except BaseException:
            reception.stop()
            raise
        return reception

    def _started(self, *arguments: str, given: bytes = b"") -> RunningCommand:
        try:
            return RunningCommand([*self._command, *arguments], given)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise OtherSideError(
                f"cluster {self.name}: its command {escape(self._command[0])} cannot be run: {reason}", code=None, problems=()
            ) from error

    def _silent(self, command: RunningCommand, limit_s: float) -> OtherSideError:
        if command.too_much:
            return OtherSideError(f"cluster {self.name} answers more than {MAX_DOCUMENT} bytes", code=None, problems=())
        return OtherSideError(f"cluster {self.name} does not answer within {limit_s:g} s", code=None, problems=())

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

    def __init__(self, side: OtherSide, command: RunningCommand) -> None:
        self._side, self._command = side, command
        self.destination: dict[str, Any] = {}

    def begin(self, limit_s: float) -> None:
        """Wait for what it announces.

        Raises:
            OtherSideError: it failed, or announces nothing that can be read.
        """
        if not self._command.wait_for_line(limit_s):
            raise self._side._silent(self._command, limit_s)
        first, newline, _ = bytes(self._command.out).partition(b"\n")
        if not newline:
            self.stop()
            if self._command.too_much:
                raise self._side._silent(self._command, limit_s)
            raise self._failed()
        try:
            self.destination = parse(first)
        except UnreadableDocumentError as error:
            raise OtherSideError(f"cluster {self._side.name}: its destination {error}", code=None, problems=()) from error

    def finish(self, limit_s: float) -> None:
        """Wait until it has published what it received.

        Raises:
            OtherSideError: it failed, or does not end.
        """
        ended = self._command.wait(limit_s)
        self.stop()
        if not ended:
            raise OtherSideError(f"cluster {self._side.name}: its reception does not end", code=None, problems=())
        if self._command.code != 0:
            raise self._failed()

    def stop(self) -> None:
        """End it, if it has not ended."""
        self._command.end()
        self._command.close()

    def _failed(self) -> OtherSideError:
        return self._side._failed(("receive",), self._command.code, _lines(self._command.err))


def _texts(values: object) -> list[str]:
    return [escape(value[:_LONGEST_LINE]) for value in values if isinstance(value, str)] if isinstance(values, list) else []


def _lines(said: bytes | bytearray) -> list[str]:
    """What a command told people, without what it tells of itself."""
    lines = [line.strip() for line in said.decode("utf-8", "backslashreplace").splitlines() if line.strip()]
    return [escape(line.removeprefix("diskhaul: ")[:_LONGEST_LINE]) for line in lines[-20:]]
