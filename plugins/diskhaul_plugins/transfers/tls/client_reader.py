"""A file of another node's export that is read, or digested there, through that node's receiver."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from diskhaul.api import DigestingReader
from diskhaul.errors import StorageError

from .calls import Caller, Patience
from .connection import BrokenConnectionError, Connection, Dialler, failure
from .wire import DIGEST_LENGTH, MAX_DATA, READ_FIELDS, Kind, WireError, field, load

_LINES = 2  # connections for one file: the receiver reads for one while it answers, or is being asked, on the other


class TlsFileReader(DigestingReader):
    """A file that is read through the receiver; over another connection when one breaks. Thread-safe."""

    def __init__(self, caller: Caller, asked: Mapping[str, str], place: str) -> None:
        self._dialler, self._asked, self._place = caller.dialler, dict(asked), place
        first = _Line(self._dialler, self._asked, place)
        self._seen = first.seen()
        self._idle = [first]
        self._closed = False
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(_LINES)

    @property
    def size(self) -> int:
        return self._seen[0]

    def read_into(self, offset: int, buffer: memoryview, /) -> None:
        view = memoryview(buffer).cast("B")
        with self._line(offset, len(view)) as line:
            for begin in range(0, len(view), MAX_DATA):
                line.ask(Kind.READ, offset + begin, Kind.BYTES, view[begin : begin + MAX_DATA])

    def range_digest(self, offset: int, length: int, /) -> bytes:
        digest = bytearray(DIGEST_LENGTH)
        with self._line(offset, length) as line:
            line.ask(Kind.DIGEST, offset, Kind.DIGESTED, memoryview(digest), length)
        return bytes(digest)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for line in idle:
            line.close()

    @contextmanager
    def _line(self, offset: int, length: int) -> Iterator[_Line]:
        """A connection for one thread. That of a thread that is reading when the file is closed is closed after that."""
        if offset + length > self.size:
            raise StorageError(f"{self._place}: ends at {self.size}", path=self._place, offset=offset)
        with self._turns:
            with self._lock:
                if self._closed:
                    raise StorageError(f"{self._place}: is closed", path=self._place)
                line = self._idle.pop() if self._idle else _Line(self._dialler, self._asked, self._place, self._seen)
            try:
                yield line
            finally:
                with self._lock:
                    if not self._closed:
                        self._idle.append(line)
                if self._closed:
                    line.close()


class _Line:
    """One connection to one file. One thread at a time.

    Args:
        seen: size and identity that the file must have; None takes those it has.
    """

    def __init__(self, dialler: Dialler, asked: Mapping[str, str], place: str, seen: tuple[int, str] | None = None) -> None:
        self._dialler, self._asked, self._place, self._seen = dialler, asked, place, seen
        self._connection: Connection | None = None

    def seen(self) -> tuple[int, str]:
        """Size and identity of the file."""
        self._patiently(self._connected)
        assert self._seen is not None
        return self._seen

    def ask(self, what: Kind, offset: int, expected: Kind, answer: memoryview, length: int | None = None) -> None:
        """Ask `what` of a range, as long as the answer unless `length` says otherwise; fill `answer` with what comes.

        Raises:
            StorageError: the receiver refuses.
            UnreachableNodeError: it does not answer for `retry_s`, or not as it may.
        """
        self._patiently(
            partial(self._ask, what, READ_FIELDS.pack(offset, len(answer) if length is None else length), expected, answer)
        )

    def _ask(self, what: Kind, fields: bytes, expected: Kind, answer: memoryview) -> None:
        connection = self._connected()
        connection.send(what, fields)
        kind = Kind.WORKING
        while kind is Kind.WORKING:
            kind, count = connection.receive_head(expected, Kind.REFUSED, Kind.WORKING)
        if kind is Kind.REFUSED:
            content = bytearray(count)
            connection.receive_into(memoryview(content))
            raise failure(self._dialler, load(content))
        if count != len(answer):
            raise WireError(f"{count} bytes came instead of {len(answer)}")
        connection.receive_into(answer)

    def _patiently(self, attempt: Callable[[], object]) -> None:
        patience = Patience(self._dialler)
        while True:
            try:
                attempt()
                return
            except BrokenConnectionError as error:
                self.close()
                patience.wait(error)
            except WireError as error:
                self.close()
                raise self._dialler.unreachable(error) from error
            except BaseException:
                self.close()
                raise

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection, answer = self._dialler.dial("read", **self._asked)
            seen = field(answer, "size", int), field(answer, "file", str)
            self._seen = self._seen or seen
            if seen != self._seen:
                raise StorageError(f"{self._place}: was replaced while it was read", path=self._place)
        return self._connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
