"""A file of another node's export that is read, or digested there, through that node's receiver."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from diskhaul.api import DigestingReader
from diskhaul.errors import StorageError

from .calls import Caller, Patience
from .connection import BrokenConnectionError, Connection, Dialler, failure
from .wire import DIGEST_LENGTH, MAX_DATA, READ_FIELDS, Kind, WireError, field, load

T = TypeVar("T")
_LINES = 2  # connections for one file: the receiver reads for one while it answers, or is being asked, on the other


class TlsFileReader(DigestingReader):
    """A file that is read through the receiver. Thread-safe."""

    def __init__(self, caller: Caller, asked: Mapping[str, str], place: str) -> None:
        self._place, self._ranges = place, FileRanges(caller, asked, place)
        self._size = self._ranges.size()

    @property
    def size(self) -> int:
        return self._size

    def read_into(self, offset: int, buffer: memoryview, /) -> None:
        view = memoryview(buffer).cast("B")
        self._check(offset, len(view))
        self._ranges.read(offset, view)

    def range_digest(self, offset: int, length: int, /) -> bytes:
        self._check(offset, length)
        return self._ranges.digest(offset, length)

    def _check(self, offset: int, length: int) -> None:
        if offset + length > self.size:
            raise StorageError(f"{self._place}: ends at {self.size}", path=self._place, offset=offset)

    def close(self) -> None:
        self._ranges.close()


class FileRanges:
    """Asks the receiver for ranges of one file; over another connection when one breaks. Thread-safe.

    Nothing is connected to before something is asked.

    Args:
        asked: which file, as the receiver is asked for it.
        place: what messages call it.
        grows: it is still being sent: its size may change, and nothing is tried again, since nothing depends on it.
    """

    def __init__(self, caller: Caller, asked: Mapping[str, str], place: str, *, grows: bool = False) -> None:
        self._dialler, self._place, self._grows = caller.dialler, place, grows
        self._asked: Mapping[str, object] = {**asked, "grows": grows}
        self._seen: tuple[int, str] | None = None
        self._idle: list[_Line] = []
        self._busy: set[_Line] = set()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(_LINES)

    def size(self) -> int:
        """Of the file, when it was first asked for; raises as `read`."""
        with self._line() as line:
            return line.seen()[0]

    def read(self, offset: int, view: memoryview) -> None:
        """Fill `view`.

        Raises:
            StorageError: the receiver refuses, or this has been closed.
            UnreachableNodeError: it does not answer for `retry_s`, or not as it may.
        """
        with self._line() as line:
            for begin in range(0, len(view), MAX_DATA):
                line.ask(Kind.READ, offset + begin, Kind.BYTES, view[begin : begin + MAX_DATA])

    def digest(self, offset: int, length: int) -> bytes:
        """BLAKE3 (32 bytes) of a range; b"" of a file that grows where the receiver cannot read its medium. Raises as `read`."""
        digest = bytearray(DIGEST_LENGTH)
        with self._line() as line:
            count = line.ask(Kind.DIGEST, offset, Kind.DIGESTED, memoryview(digest), length)
        return bytes(digest[:count])

    def close(self) -> None:
        """End it; whoever waits for an answer is told so."""
        self._closed.set()
        with self._lock:
            idle, self._idle = self._idle, []
            for line in self._busy:
                line.cut()
        for line in idle:
            line.close()

    @contextmanager
    def _line(self) -> Iterator[_Line]:
        """A connection for one thread."""
        with self._turns:
            with self._lock:
                self._check_open()
                line = self._idle.pop() if self._idle else self._made_line()
                self._busy.add(line)
            try:
                yield line
                self._seen = self._seen or line.seen()
            finally:
                with self._lock:
                    self._busy.discard(line)
                    closed = self._closed.is_set()
                    if not closed:
                        self._idle.append(line)
                if closed:
                    line.close()

    def _made_line(self) -> _Line:
        return _Line(self._dialler, self._asked, self._place, seen=self._seen, grows=self._grows, pause=self._pause)

    def _pause(self, seconds: float) -> None:
        self._closed.wait(seconds)
        self._check_open()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise StorageError(f"{self._place}: is closed", path=self._place)


class _Line:
    """One connection to one file. One thread at a time; `cut` by any.

    Args:
        seen: size and identity that the file must have; None takes those it has.
        grows: it may have another size.
        pause: waits for so many seconds; raises when all has been closed.
    """

    def __init__(
        self,
        dialler: Dialler,
        asked: Mapping[str, object],
        place: str,
        *,
        seen: tuple[int, str] | None = None,
        grows: bool,
        pause: Callable[[float], object],
    ) -> None:
        self._dialler, self._asked, self._place, self._seen = dialler, asked, place, seen
        self._grows, self._pause = grows, pause
        self._connection: Connection | None = None

    def seen(self) -> tuple[int, str]:
        """Size and identity of the file."""
        self._patiently(self._connected)
        assert self._seen is not None
        return self._seen

    def ask(self, what: Kind, offset: int, expected: Kind, answer: memoryview, length: int | None = None) -> int:
        """Ask `what` of a range, as long as the answer unless `length` says otherwise; fill `answer` with what comes.

        Returns how many bytes that were: all, or none of a file that grows.
        """
        fields = READ_FIELDS.pack(offset, len(answer) if length is None else length)
        return self._patiently(partial(self._ask, what, fields, expected, answer))

    def _ask(self, what: Kind, fields: bytes, expected: Kind, answer: memoryview) -> int:
        connection = self._connected()
        connection.send(what, fields)
        kind = Kind.WORKING
        while kind is Kind.WORKING:
            kind, count = connection.receive_head(expected, Kind.REFUSED, Kind.WORKING)
        if kind is Kind.REFUSED:
            content = bytearray(count)
            connection.receive_into(memoryview(content))
            raise failure(self._dialler, load(content))
        if count != len(answer) and (count or not self._grows):
            raise WireError(f"{count} bytes came instead of {len(answer)}")
        connection.receive_into(answer[:count])
        return count

    def _patiently(self, attempt: Callable[[], T]) -> T:
        patience = Patience(self._dialler, self._pause, retry_s=0 if self._grows else None)
        while True:
            try:
                return attempt()
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
            self._pause(0)  # it may have been too new to be cut
            seen = field(answer, "size", int), field(answer, "file", str)
            self._seen = self._seen or seen
            if seen[1:] != self._seen[1:] or (seen != self._seen and not self._grows):
                raise StorageError(f"{self._place}: was replaced while it was read", path=self._place)
        return self._connection

    def cut(self) -> None:
        connection = self._connection
        if connection is not None:
            connection.cut()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
