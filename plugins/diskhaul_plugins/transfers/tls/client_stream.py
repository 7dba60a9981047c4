"""A file on its way to a receiver: a window of frames, and threads that send them and resume where a connection breaks."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Mapping, Sequence

from diskhaul.api import Buffer, DigestedStoreFile, DigestingStoreFile
from diskhaul.errors import DiskhaulError, UnreachableNodeError

from .calls import Caller, Patience
from .client_reader import FileRanges
from .connection import BrokenConnectionError, BusyError, Connection, failure
from .settings import MIB
from .window import Window
from .wire import ACKNOWLEDGED_FIELDS, MAX_DATA, Kind, WireError, field, load

_PIECE = 1 << 20  # bytes in a frame: what the CPU's own caches hold while it is digested and encrypted
_BEING_WRITTEN = 32 << 20  # bytes before a file's end that the receiver's kernel may not have written by now
_SMALL = 64 << 10  # parts below this are put together, up to this


class TlsFile(DigestingStoreFile, DigestedStoreFile):
    """A file of an export that is being sent. Thread-safe as `diskhaul.api.DigestingStoreFile` says.

    Data are taken as soon as there is room in the window, and sent by threads of this object. What the receiver has written is
    digested there, over connections of their own.
    """

    def __init__(self, caller: Caller, credentials: Mapping[str, str], name: str, magic: bytes) -> None:
        self._name = name
        self._window = Window(name, magic, caller.dialler.settings.window_mib * MIB)
        self._sender = _Sender(caller, credentials, name, magic, self._window)
        self._digested_there = True  # until the receiver says that it cannot
        self._ranges = FileRanges(caller, dict(credentials) | {"name": name}, name, grows=True)
        self._end = 0  # of what was appended
        most = caller.dialler.settings.window_mib * MIB // 4
        self._piece, self._largest = min(_PIECE, most), min(MAX_DATA, most)

    @property
    def name(self) -> str:
        return self._name

    @property
    def durable(self) -> bool:
        """True once `finish` has succeeded."""
        return self._window.durable

    @property
    def resent(self) -> int:
        """Bytes that had to be sent again, because connections broke before they were acknowledged."""
        return self._window.resent

    @property
    def settled(self) -> int:
        return max(0, min(self._end, self._window.written) - _BEING_WRITTEN)

    def range_digest(self, offset: int, length: int, /) -> bytes | None:
        if not self._digested_there:
            return None
        try:
            digest = self._ranges.digest(offset, length)
        except UnreachableNodeError:
            return None  # whether the receiver can be reached is the streams' business
        self._digested_there = bool(digest)
        return digest or None

    def append(self, parts: Sequence[Buffer], /) -> None:
        together = bytearray()
        for part in parts:
            view = memoryview(part).cast("B")
            if len(view) < _SMALL:
                together += view
                if len(together) < _SMALL:
                    continue
                view = memoryview(b"")
            self._append(bytes(together))
            together = bytearray()
            for begin in range(0, len(view), self._piece):
                self._append(_kept(view[begin : begin + self._piece]))
        self._append(bytes(together))

    def append_digested(self, part: Buffer, digest: bytes, /) -> None:
        view = memoryview(part).cast("B")
        if len(view) <= self._largest:
            self._append(_kept(view), digest)
        else:
            self.append((view,))

    def _append(self, payload: Buffer, digest: bytes | None = None) -> None:
        if len(payload):
            self._window.put_data(self._end, payload, digest)
            self._end += len(payload)
        self._sender.start()

    def write(self, offset: int, buffer: Buffer, /) -> None:
        view = memoryview(buffer).cast("B")
        for begin in range(0, len(view), self._piece):
            self._window.put_data(offset + begin, _kept(view[begin : begin + self._piece]))
        self._sender.start()

    def set_size(self, size: int, /) -> None:
        self._window.put_size(size)
        self._sender.start()

    def finish(self) -> None:
        self._window.put_trailer()
        self._sender.start()
        try:
            self._window.wait_until_durable()
        except BaseException:
            self._window.close()  # also when it is the wait that was interrupted: the thread would go on trying
            raise
        finally:
            self._sender.stop()
            self._ranges.close()

    def close(self) -> None:
        self._window.close()
        self._ranges.close()
        self._sender.stop()


def _kept(view: memoryview) -> Buffer:
    """What stays as it is when the caller goes on: the view itself where nobody can change what it shows."""
    return view if isinstance(view.obj, bytes) else bytes(view)


class _Sender:
    """Sends what is in a window, in rounds: each begins by asking what the receiver has, and ends when a stream breaks."""

    def __init__(self, caller: Caller, credentials: Mapping[str, str], name: str, magic: bytes, window: Window) -> None:
        self._caller, self._window = caller, window
        self._asked = dict(credentials) | {"name": name}
        self._magic = magic
        self._thread: threading.Thread | None = None
        self._streams: set[Connection] = set()
        self._broken = False  # a stream of this round has: the others end as well
        self._lock = threading.Lock()

    def start(self) -> None:
        with self._lock:
            if self._thread is None and not self._window.over:
                self._thread = threading.Thread(target=self._run, daemon=True, name="diskhaul-tls-file")
                self._thread.start()

    def stop(self) -> None:
        """Return once no thread is left. The window is over."""
        self._cut()
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        patience = Patience(self._caller.dialler, self._window.pause)
        try:
            while not self._window.over:
                try:
                    self._round(patience)
                except BrokenConnectionError as error:
                    if self._window.idle:  # receivers end streams over which nothing comes: nothing is lost
                        self._window.wait_until_needed()
                        patience.progress()
                    elif not self._window.over:
                        patience.wait(error)
        except WireError as error:
            self._window.fail(self._caller.dialler.unreachable(error))
        except DiskhaulError as error:
            self._window.fail(error)
        except BaseException as error:
            self._window.fail(error)
            raise

    def _round(self, patience: Patience) -> None:
        count = self._caller.dialler.settings.streams
        answer = self._caller.ask("restart", self._asked | {"streams": count})
        tokens = field(answer, "tokens", list)
        if self._window.rewind(field(answer, "due", int), finished=field(answer, "finished", bool)):
            patience.progress()
        errors: list[BaseException] = []
        self._broken = False
        threads = [
            threading.Thread(target=self._guarded, args=(token, patience, errors), daemon=True, name="diskhaul-tls-stream")
            for token in tokens[1:count]
        ]
        for thread in threads:
            thread.start()
        self._guarded(tokens[0], patience, errors)
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def _guarded(self, token: str, patience: Patience, errors: list[BaseException]) -> None:
        taken = False
        try:
            connection, _ = self._caller.dialler.dial("stream", token=token, magic=self._magic.hex())
            taken = True
            self._stream(connection, patience)
        except BaseException as error:
            errors.append(error)
            if taken or not isinstance(error, BusyError):  # others go on without one for which the receiver has no room
                self._cut(broken=True)  # they would wait for what this one does not send

    def _cut(self, *, broken: bool = False) -> None:
        with self._lock:
            self._broken = self._broken or broken
            for connection in self._streams:
                connection.cut()

    def _stream(self, connection: Connection, patience: Patience) -> None:
        bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            with self._lock:
                if self._broken:
                    raise BrokenConnectionError("another stream of the file broke")
                self._streams.add(connection)
            _Stream(connection, bell, self._window, self._caller, patience).run()
        finally:
            with self._lock:
                self._streams.discard(connection)
            connection.close()
            self._window.forget_bell(bell)
            os.close(bell)


class _Stream:
    """One connection over which frames go and acknowledgements come. Used by one thread."""

    def __init__(self, connection: Connection, bell: int, window: Window, caller: Caller, patience: Patience) -> None:
        self._connection, self._bell, self._window, self._patience = connection, bell, window, patience
        self._dialler = caller.dialler
        self._awaited = 0  # frames of this stream that have not been acknowledged
        self._heard = time.monotonic()  # when an answer came, or the first of those frames was sent; what sending takes is added
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLIN)
        self._poll.register(bell, select.POLLIN)

    def run(self) -> None:
        while not self._window.over:
            while self._awaited and self._answer_is_there():
                self._take_answer()
            frame = self._window.take()
            if frame is None:
                self._wait()
                continue
            begun = time.monotonic()
            if not self._awaited:
                self._heard = begun
            self._awaited += 1
            try:
                self._connection.send_raw(*frame.parts)
            except BrokenConnectionError:
                self._hear_why()
                raise
            self._heard += time.monotonic() - begun  # while a frame is being taken, nobody can answer it

    def _answer_is_there(self) -> bool:
        return self._connection.pending() or any(descriptor != self._bell for descriptor, _ in self._poll.poll(0))

    def _wait(self) -> None:
        """Wait for an answer, or for something to send."""
        if not self._window.wait_for_bell(self._bell):
            return
        silence_s = self._heard + self._dialler.settings.silence_s - time.monotonic() if self._awaited else None
        ready = {descriptor for descriptor, _ in self._poll.poll(None if silence_s is None else max(0.0, silence_s) * 1000)}
        if self._bell in ready:
            os.eventfd_read(self._bell)
        if ready - {self._bell}:
            self._take_answer()
        elif not ready:
            raise BrokenConnectionError("the receiver has been silent for too long")

    def _take_answer(self) -> None:
        kind, length = self._connection.receive_head(Kind.ACKNOWLEDGED, Kind.DURABLE, Kind.WORKING, Kind.REFUSED)
        content = bytearray(length)
        self._connection.receive_into(memoryview(content))
        if kind is Kind.REFUSED:
            raise failure(self._dialler, load(content))
        if length != ACKNOWLEDGED_FIELDS.size and kind is not Kind.WORKING:
            raise WireError(f"an acknowledgement of {length} bytes")
        self._heard = time.monotonic()
        if kind is not Kind.WORKING:
            self._window.acknowledged(ACKNOWLEDGED_FIELDS.unpack(content)[0], kind)
            self._awaited -= 1
            self._patience.progress()

    def _hear_why(self) -> None:
        """What the receiver said before it closed, if it did."""
        self._connection.set_timeout(min(1.0, self._dialler.settings.silence_s))
        while True:
            self._take_answer()
