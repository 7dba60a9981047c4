"""Calls of a client: one request and its answer over a connection of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TypeVar

from diskhaul.api import Buffer

from .connection import BrokenConnectionError, BusyError, Connection, Dialler, failure
from .wire import Kind, WireError, dump, field, load

T = TypeVar("T")
Asked = Mapping[str, object]
NOTHING: Asked = MappingProxyType({})
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


def _nothing() -> None:
    pass


class Patience:
    """Tries again for a while what failed because a connection broke.

    Args:
        pause: waits for so many seconds, or less when there is no use in waiting.
        retry_s: for how long; None is as configured.
    """

    def __init__(self, dialler: Dialler, pause: Callable[[float], object] = time.sleep, *, retry_s: float | None = None) -> None:
        self._dialler, self._pause = dialler, pause
        self._retry_s = dialler.settings.retry_s if retry_s is None else retry_s
        self._deadline: float | None = None
        self._next_s = _FIRST_PAUSE_S

    def progress(self) -> None:
        """Something went well: the time begins anew with the next failure."""
        self._deadline, self._next_s = None, _FIRST_PAUSE_S

    def wait(self, error: BrokenConnectionError) -> None:
        """Wait until the next try.

        Raises:
            UnreachableNodeError: there is no time left.
        """
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._retry_s
        if now >= self._deadline:
            raise self._dialler.unreachable(error) from error
        self._pause(min(self._next_s, max(0.0, self._deadline - now)))
        self._next_s = min(self._next_s * 2, _LONGEST_PAUSE_S)


class Caller:
    """Calls one receiver. Thread-safe; keeps nothing open."""

    def __init__(self, dialler: Dialler) -> None:
        self.dialler = dialler

    def call(self, name: str, asked: Asked = NOTHING, body: Buffer | None = None) -> Mapping[str, Any]:
        """Ask once, or while the receiver is busy.

        Raises:
            UnreachableNodeError: nobody answers, or not the right one; or the receiver stays busy.
            StorageError: the receiver could not do it, or would not.
        """
        patience = Patience(self.dialler)
        with self._plainly():
            while True:
                try:
                    return self.ask(name, asked, body)
                except BusyError as error:
                    patience.wait(error)

    def call_until_answered(
        self, name: str, asked: Asked = NOTHING, body: Buffer | None = None, *, check: Callable[[], object] = _nothing
    ) -> Mapping[str, Any]:
        """Ask again while the connection breaks: for calls that may come twice. What `check` raises before a try ends that."""
        patience = Patience(self.dialler)
        while True:
            check()
            try:
                return self.ask(name, asked, body)
            except BrokenConnectionError as error:
                patience.wait(error)
            except WireError as error:
                raise self.dialler.unreachable(error) from error

    def field(self, answer: Mapping[str, Any], name: str, kind: type[T]) -> T:
        """A field of an answer."""
        with self._plainly():
            value: T = field(answer, name, kind)
            return value

    def texts(self, answer: Mapping[str, Any], name: str) -> list[str]:
        """A list of texts in an answer."""
        values = self.field(answer, name, list)
        if not all(isinstance(value, str) for value in values):
            raise self.dialler.unreachable(f"the field {name} is of the wrong kind")
        return values

    def ask(self, name: str, asked: Asked, body: Buffer | None = None) -> Mapping[str, Any]:
        """Ask once, for callers that try again themselves.

        Raises:
            BrokenConnectionError: the connection broke; the call may have been heard.
            WireError: what came is no answer.
        """
        connection, _ = self.dialler.dial("calls")
        try:
            document = dict(asked) | {"call": name}
            if body is not None:
                connection.send(Kind.CALL, dump(document | {"body": len(body)}))
                connection.send(Kind.BODY, body)
            else:
                connection.send_document(Kind.CALL, document)
            return answered(connection, self.dialler)
        finally:
            connection.close()

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        try:
            yield
        except (BrokenConnectionError, WireError) as error:
            raise self.dialler.unreachable(error) from error


def answered(connection: Connection, dialler: Dialler) -> Mapping[str, Any]:
    """The answer to a call.

    Raises:
        StorageError: it is a refusal.
    """
    kind, content = connection.receive(Kind.RESULT, Kind.WORKING, Kind.REFUSED)
    while kind is Kind.WORKING:
        kind, content = connection.receive(Kind.RESULT, Kind.WORKING, Kind.REFUSED)
    answer = load(content)
    if kind is Kind.REFUSED or not field(answer, "ok", bool):
        raise failure(dialler, answer)
    return answer
