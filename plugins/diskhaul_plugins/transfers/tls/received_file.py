"""A file that is being received: frames in their order, from one stream or several."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

from blake3 import blake3

from diskhaul.api import Buffer
from diskhaul.errors import DiskhaulError, StorageError
from diskhaul.options import DirectIO

from ..directory import DirectoryFile
from .connection import BrokenConnectionError, Connection
from .progress import Progress
from .wire import ACKNOWLEDGED_FIELDS, DATA_FIELDS, SIZE_FIELDS, TRAILER_FIELDS, Kind, WireError, first_chain, next_chain


class ReceivedFile:
    """One file of an export on its way in. Thread-safe.

    Each time a sender begins anew, a new *round* begins: frames of streams of earlier rounds are no longer taken.

    Args:
        magic: the file's own value, which streams have to know.
        keep: writes down how far it has come.
        progress: how far an earlier receiver had come; its `tail` is not in `file`.
        direct_io: for what is appended; see `DirectoryFile.use_direct_io`.

    Raises:
        StorageError: `file` cannot be written.
    """

    def __init__(
        self,
        file: DirectoryFile,
        magic: bytes,
        keep: Callable[[Progress], object],
        progress: Progress | None = None,
        *,
        direct_io: DirectIO = "never",
    ) -> None:
        self.magic = magic
        self._file, self._keep = file, keep
        self._direct_io: DirectIO | None = direct_io
        self._progress = progress or Progress(0, 0, 0, raw=False, finished=False, chain=first_chain(magic))
        if self._progress.tail:
            self._append(self._progress.tail)
        self._round = 0
        self._streams: list[Connection] = []
        self._failure: DiskhaulError | OSError | None = None
        self._changed = threading.Condition(threading.RLock())

    @property
    def name(self) -> str:
        return self._file.name

    @property
    def progress(self) -> Progress:
        return self._progress

    @property
    def streams(self) -> int:
        """How many streams there are now."""
        return len(self._streams)

    def begin_round(self) -> tuple[int, Progress]:
        """End the streams there are; return the new round's number, and what has been written when it begins.

        Raises:
            StorageError: a write has failed.
        """
        with self._changed:
            self._check_sound()
            self.stop()
            return self._round, self._progress

    def join(self, stream: Connection, round_: int) -> None:
        """Take `stream` into a round.

        Raises:
            StorageError: that round is over.
        """
        with self._changed:
            if round_ != self._round:
                raise StorageError(f"{self.name}: this stream has been replaced by another", path=self.name)
            self._streams.append(stream)

    def leave(self, stream: Connection) -> None:
        with self._changed:
            self._streams.remove(stream)
            self._changed.notify_all()

    def take(self, round_: int, kind: Kind, content: memoryview, *, timeout_s: float) -> bytes:
        """Write one frame once all before it have been; return the fields of its acknowledgement.

        Raises:
            WireError: the frame is not what it says, or cannot come here.
            BrokenConnectionError: another round has begun, or the frames before it do not come.
            StorageError: it cannot be written, now or since an earlier one.
        """
        length = {Kind.DATA: DATA_FIELDS, Kind.SIZE: SIZE_FIELDS, Kind.TRAILER: TRAILER_FIELDS}[kind].size
        if len(content) < length:
            raise WireError(f"{self.name}: {len(content)} bytes are no frame of the kind {kind.name}")
        fields, payload = content[:length], content[length:]
        number: int = ACKNOWLEDGED_FIELDS.unpack_from(fields)[0]
        if kind is Kind.DATA and blake3(payload).digest() != fields[16:48]:
            raise WireError(f"{self.name}: frame {number} is not what was sent (digest mismatch)")
        with self._changed:
            self._await(round_, number, timeout_s)
            self._check_sound()
            if number != self._progress.due or self._progress.finished:
                raise WireError(f"{self.name}: frame {number} came where {self._progress.due} was expected")
            try:
                self._write(kind, fields, payload)
            except (DiskhaulError, OSError) as error:
                self._failure = error
                self._changed.notify_all()
                raise
            self._changed.notify_all()
            return ACKNOWLEDGED_FIELDS.pack(self._progress.due)

    def _check_sound(self) -> None:
        if self._failure is not None:
            raise StorageError(f"{self.name}: cannot be written: {self._failure}", path=self.name) from self._failure

    def stop(self) -> None:
        """End the streams there are, for good."""
        with self._changed:
            self._round += 1
            for stream in self._streams:
                stream.cut()
            self._changed.notify_all()

    def _await(self, round_: int, number: int, timeout_s: float) -> None:
        def may_go_on() -> bool:
            return round_ != self._round or self._failure is not None or number <= self._progress.due

        if not self._changed.wait_for(may_go_on, timeout_s):
            raise BrokenConnectionError(f"{self.name}: frame {self._progress.due} did not come")
        if round_ != self._round:
            raise BrokenConnectionError(f"{self.name}: the sender has begun anew")

    def _append(self, payload: Buffer) -> bytes:
        """Append to the file; return those of its last bytes that are not in it yet."""
        if self._direct_io is not None:
            self._file.use_direct_io(self._direct_io)
            self._direct_io = None  # asked for once, and not for a file whose size is set
        self._file.append([payload])
        return self._file.drain()

    def _write(self, kind: Kind, fields: memoryview, payload: memoryview) -> None:
        now = self._progress
        chain = next_chain(now.chain, kind, fields, len(payload))
        after = replace(now, due=now.due + 1, length=now.length + len(payload), chain=chain)
        if kind is Kind.DATA:
            _, offset, _ = DATA_FIELDS.unpack(fields)
            if now.raw:
                if offset + len(payload) > now.end:
                    raise WireError(f"{self.name}: data up to {offset + len(payload)} in a file of {now.end} bytes")
                self._file.write(offset, payload)
            else:
                if offset != now.end:
                    raise WireError(f"{self.name}: data at {offset} where the file ends at {now.end}")
                after = replace(after, end=offset + len(payload), tail=self._append(payload))
        elif kind is Kind.SIZE:
            _, size = SIZE_FIELDS.unpack(fields)
            if size >= 1 << 63 or (now.end and not now.raw):
                raise WireError(f"{self.name}: a size of {size}, where the file ends at {now.end}")
            self._file.set_size(size)
            after = replace(after, end=size, raw=True)
        else:
            _, length, given = TRAILER_FIELDS.unpack(fields)
            if length != now.length or given != now.chain:
                raise WireError(f"{self.name}: the trailer tells of other data than {now.length} bytes that came")
            self._file.finish()
            after = replace(after, finished=True, tail=b"")
        self._keep(after)
        self._progress = after
