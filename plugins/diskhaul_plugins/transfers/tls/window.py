"""What of a file is under way: frames that are kept until the receiver has acknowledged them, within bounds."""

from __future__ import annotations

import os
import threading
from collections import deque

from diskhaul.api import Buffer
from diskhaul.errors import StorageError

from .wire import FileFrame, Kind, data_frame, first_chain, next_chain, size_frame, trailer_frame

_MOST_FRAMES = 2048  # of a window: their acknowledgements have to fit into a socket's buffer while nobody reads them


class Window:
    """Frames of one file, from being put in to being acknowledged. Thread-safe.

    Attributes:
        resent: bytes of data that had to be sent again so far.
        written: bytes of data that the receiver has acknowledged as written.
        durable: the receiver has acknowledged the trailer, after its fsync.
        closed: nobody waits for it any more.
        failure: why it will never be durable, or None.
    """

    def __init__(self, name: str, magic: bytes, limit: int) -> None:
        self.resent = self.written = 0
        self.durable = self.closed = False
        self.failure: BaseException | None = None
        self._name, self._limit = name, limit
        self._chain, self._length, self._count = first_chain(magic), 0, 0
        self._frames: deque[FileFrame] = deque()
        self._bytes = 0
        self._next = 0  # number of the frame that is sent next
        self._sent = 0  # up to which number frames have ever been sent
        self._ended = False
        self._bells: set[int] = set()  # eventfds of streams that wait for something to send
        self._changed = threading.Condition()

    # --- the file's side --------------------------------------------------------------------------------------------

    def put_data(self, offset: int, payload: Buffer, digest: bytes | None = None) -> None:
        """Put in data, with their BLAKE3 where that is known; waits for room.

        Raises:
            StorageError: it has failed, or ended.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.failure is not None or self.closed or self._has_room(len(payload)))
            self._check()
            # Digested while the others wait: the numbers have to go up as the offsets do.
            self._put(data_frame(self._count, offset, payload, digest))

    def put_size(self, size: int) -> None:
        with self._changed:
            self._check()
            self._put(size_frame(self._count, size))

    def put_trailer(self) -> None:
        with self._changed:
            self._check()
            self._put(trailer_frame(self._count, self._length, self._chain))
            self._ended = True

    def wait_until_durable(self) -> None:
        """Return once the receiver has said so.

        Raises:
            StorageError: it has failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.durable or self.closed or self.failure is not None)
            if not self.durable:
                self._raise()

    def close(self) -> None:
        """Give up what is not durable."""
        with self._changed:
            self.closed = True
            self._frames.clear()
            self._notify()

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self.failure = self.failure or error
            self._frames.clear()
            self._notify()

    def _check(self) -> None:
        if self._ended or self.closed or self.failure is not None:
            self._raise()

    def _raise(self) -> None:
        if self.failure is not None:
            raise StorageError(f"{self._name}: {self.failure}", path=self._name) from self.failure
        raise StorageError(f"{self._name}: is closed", path=self._name)

    def _has_room(self, length: int) -> bool:
        return not self._frames or (self._bytes + length <= self._limit and len(self._frames) < _MOST_FRAMES)

    def _put(self, frame: FileFrame) -> None:
        self._chain = next_chain(self._chain, frame.kind, frame.fields, len(frame.payload))
        self._length += len(frame.payload)
        self._bytes += len(frame.payload)
        self._count += 1
        self._frames.append(frame)
        self._notify()

    # --- the streams' side ------------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.durable or self.closed or self.failure is not None

    def rewind(self, due: int, *, finished: bool) -> int:
        """Begin a new round: the receiver has written what is below `due`. Returns how many frames that are news of.

        Raises:
            StorageError: it has less than it acknowledged, or more than was sent.
        """
        with self._changed:
            first = self._count - len(self._frames)
            if not first <= due <= self._count or (finished and due != self._count):
                raise StorageError(
                    f"{self._name}: the receiver has {due} frames of it, and {first} had been acknowledged of {self._count}",
                    path=self._name,
                )
            news = self._drop_below(due)
            self._next = due
            self.durable = self.durable or (finished and self._ended)
            self.resent += sum(len(frame.payload) for frame in self._frames if frame.number < self._sent)
            self._notify()
            return news

    def take(self) -> FileFrame | None:
        """The next frame to send; None when there is none now."""
        with self._changed:
            first = self._count - len(self._frames)
            if self.closed or self.failure is not None or not first <= self._next < self._count:
                return None
            frame = self._frames[self._next - first]
            self._next += 1
            self._sent = max(self._sent, self._next)
            return frame

    def acknowledged(self, due: int, kind: Kind) -> None:
        """The receiver says that it has written all below `due`; or, `Kind.DURABLE`, that all is durable.

        Raises:
            StorageError: it says so of what has not been sent.
        """
        with self._changed:
            if due > self._sent or (kind is Kind.DURABLE and (due != self._count or not self._ended)):
                raise StorageError(f"{self._name}: the receiver acknowledges what it was not sent", path=self._name)
            self._drop_below(due)
            self.durable = self.durable or kind is Kind.DURABLE
            self._notify()

    def wait_for_bell(self, bell: int) -> bool:
        """Have the eventfd `bell` rung when there is something to send, or all is over; False where that is so already."""
        with self._changed:
            if self.over or self._next < self._count:
                return False
            self._bells.add(bell)
            return True

    @property
    def idle(self) -> bool:
        """Whether all that was put in has been acknowledged, and there will be more."""
        with self._changed:
            return not self.over and not self._frames

    def wait_until_needed(self) -> None:
        """Return once there is something to send, or all is over."""
        with self._changed:
            self._changed.wait_for(lambda: self.over or self._frames)

    def forget_bell(self, bell: int) -> None:
        with self._changed:
            self._bells.discard(bell)

    def pause(self, seconds: float) -> None:
        """Wait, but not beyond the end."""
        with self._changed:
            self._changed.wait_for(lambda: self.over, seconds)

    def _drop_below(self, due: int) -> int:
        dropped = 0
        while self._frames and self._frames[0].number < due:
            frame = self._frames.popleft()
            self._bytes -= len(frame.payload)
            self.written += len(frame.payload)
            dropped += 1
        return dropped

    def _notify(self) -> None:
        self._changed.notify_all()
        self._ring()

    def _ring(self) -> None:
        for bell in self._bells:
            os.eventfd_write(bell, 1)
        self._bells.clear()
