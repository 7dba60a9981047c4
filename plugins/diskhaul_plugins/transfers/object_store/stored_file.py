"""A file of an export on its way into an object: in parts, of which some are under way while the next is filled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import quote

from diskhaul.api import Buffer, MovingStoreFile
from diskhaul.errors import DiskhaulError, StorageError

from .bucket import Bucket, Found
from .faults import GivenUpError, RequestError
from .settings import MIB, Place, Settings
from .uploads import MAX_OBJECT, MAX_PARTS, Upload, Uploads, part_size

_LONGEST_COPY = 4 << 30  # bytes; S3 copies at most 5 GiB into one part


@dataclass(slots=True)
class _Part:
    """A part of a raw file that is being filled."""

    content: bytearray
    covered: int = 0


@dataclass(frozen=True, slots=True)
class Means:
    """What all files of an export share.

    Attributes:
        note: remembers an upload in the store, before anything is sent.
        failed: makes the error of a fault: of the fault, what could not be done, and the path.
    """

    place: Place
    bucket: Bucket
    uploads: Uploads
    settings: Settings
    note: Callable[[Upload], object]
    failed: Callable[[RequestError, str, str], StorageError]


class ObjectFile(MovingStoreFile):
    """A file that is being sent. Thread-safe as `diskhaul.api.StoreFile` says.

    What fits into one part is put as it is, in `finish`. Parts that are under way, and those of a raw file that are still being
    filled, take half of `Settings.memory_mib` each, but one part that is under way and one (of a raw file two) that is filled
    are kept however large.

    A raw file is written out of order, and what is not written of it is zeros, so nobody says when a part is complete that has
    some of those. It is sent when a later part beyond the memory is written. What comes even later is kept, and put right in the
    end by a second upload, for which the store copies all other parts itself.
    """

    def __init__(self, means: Means, name: str, key: str, path: str) -> None:
        self._means, self._name, self._key, self._path = means, name, key, path
        self._given_up = threading.Event()
        self._state = threading.Condition()
        self._sizing = threading.Lock()  # held while an upload is begun
        self._executor: ThreadPoolExecutor | None = None
        self._upload: Upload | None = None
        self._tags: dict[int, str] = {}
        self._moved = 0  # bytes
        self._under_way = 0  # bytes, also of parts that wait for a thread
        self._sending = 0  # threads
        self._failure: RequestError | DiskhaulError | None = None
        self._ended = False  # finished or closed
        self._durable = False
        self._first = means.settings.part_mib * MIB
        self._memory = means.settings.memory_mib * MIB
        self._end = 0
        self._next = 0  # number of the part that is filled by `append`
        self._filling = bytearray()
        self._size: int | None = None  # of a raw file
        self._parts: dict[int, _Part] = {}
        self._sent: set[int] = set()
        self._floor = 0  # parts before this one have been sent
        self._late: list[tuple[int, bytes]] = []
        self._late_bytes = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def durable(self) -> bool:
        """True once `finish` has succeeded."""
        return self._durable

    @property
    def size(self) -> int:
        """Bytes of the whole file, once it is durable."""
        return self._end if self._size is None else self._size

    @property
    def moved(self) -> int:
        return self._moved

    # --- in order -----------------------------------------------------------------------------------------------------

    def append(self, parts: Sequence[Buffer], /) -> None:
        self._check("write")
        if self._size is not None:
            raise StorageError(f"{self._path}: cannot append to a raw file", path=self._path)
        for part in parts:
            view = memoryview(part).cast("B")
            while len(view):
                room = part_size(self._next, self._first) - len(self._filling)
                if not room:
                    self._send_filled()
                    continue
                taken = view[:room]
                self._filling += taken
                self._end += len(taken)
                view = view[room:]

    def _send_filled(self) -> None:
        self._send(self._next, self._filling)
        self._next += 1
        self._filling = bytearray()

    # --- out of order ---------------------------------------------------------------------------------------------------

    def set_size(self, size: int, /) -> None:
        with self._state:
            self._check("set its size")
            if size == self._size:
                return
            if self._end or self._parts or self._sent or size > MAX_OBJECT:
                why = f"an object has at most {MAX_OBJECT} bytes" if size > MAX_OBJECT else "it has been written already"
                raise StorageError(f"{self._path}: cannot make it {size} bytes large: {why}", path=self._path)
            self._size = size
            self._first = part_size(0, self._first, size)

    def write(self, offset: int, buffer: Buffer, /) -> int:
        view = memoryview(buffer).cast("B")
        with self._state:
            self._check("write")
            if self._size is None or offset + len(view) > self._size:
                raise StorageError(f"{self._path}: cannot write at {offset}: it has {self._size or 0} bytes", path=self._path)
            ready = self._take(offset, view)
        for number, content in ready:
            self._send(number, content)
        return len(view)

    def _take(self, offset: int, view: memoryview) -> list[tuple[int, Buffer]]:
        """Keep what is written; return the parts that are to be sent now, which count as sent."""
        ready: list[tuple[int, Buffer]] = []
        if not len(view):
            return ready
        last = (offset + len(view) - 1) // self._first
        for number in range(offset // self._first, last + 1):
            begin = number * self._first
            length = self._length(number)
            low, high = max(offset, begin), min(offset + len(view), begin + length)
            piece = view[low - offset : high - offset]
            if number in self._sent:
                self._keep_late(low, piece)
                continue
            part = self._parts.setdefault(number, _Part(bytearray(length)))
            part.content[low - begin : high - begin] = piece
            part.covered += len(piece)
            if part.covered == length and self._count > 1:
                ready.append(self._given_away(number))
        kept = max(2, self._memory // 2 // self._first)
        for number in range(self._floor, last + 1 - kept):
            if number not in self._sent:
                ready.append(self._given_away(number))
            self._floor = number + 1
        return ready

    def _given_away(self, number: int) -> tuple[int, Buffer]:
        self._sent.add(number)
        part = self._parts.pop(number, None)
        return number, part.content if part is not None else self._zeros[: self._length(number)]

    @cached_property
    def _zeros(self) -> memoryview:
        """What all parts share in which nothing was written."""
        return memoryview(bytes(self._first))

    def _keep_late(self, offset: int, piece: memoryview) -> None:
        self._late_bytes += len(piece)
        if self._late_bytes > self._memory:
            why = "too much of it comes long after what lies behind it: set backend_options.object.memory_mib higher"
            raise StorageError(f"{self._path}: cannot write at {offset}: {why}", path=self._path, offset=offset)
        self._late.append((offset, bytes(piece)))

    def _length(self, number: int) -> int:
        assert self._size is not None
        return min(self._first, self._size - number * self._first)

    @property
    def _count(self) -> int:
        """Of the parts of a raw file; an empty one has none."""
        assert self._size is not None
        return -(-self._size // self._first)

    # --- sending --------------------------------------------------------------------------------------------------------

    def _send(self, number: int, content: Buffer) -> None:
        """Have a part sent; waits while too much is under way."""
        if number >= MAX_PARTS or self._end > MAX_OBJECT:
            why = f"an object has at most {MAX_PARTS} parts and {MAX_OBJECT} bytes"
            raise StorageError(f"{self._path}: is too large: {why}", path=self._path)
        upload, executor = self._begun()
        length = len(content)
        with self._state:
            room = max(self._memory // 2, length)
            self._state.wait_for(lambda: self._under_way + length <= room or self._failure is not None or self._given_up_now)
            self._check("write")
            self._under_way += length
        try:
            executor.submit(self._send_part, upload, number, content)
        except RuntimeError as error:  # closed meanwhile
            self._arrived(length)
            raise StorageError(f"{self._path}: cannot write: is closed", path=self._path) from error

    def _begun(self) -> tuple[Upload, ThreadPoolExecutor]:
        with self._sizing:
            if self._upload is None:
                try:
                    upload = self._means.uploads.begin(self._key, self._given_up)
                    self._means.note(upload)
                except RequestError as fault:
                    raise self._fail(fault, "begin an upload") from fault
                except GivenUpError as error:
                    raise StorageError(f"{self._path}: cannot write: was given up", path=self._path) from error
                self._upload = upload
            if self._executor is None:
                self._executor = ThreadPoolExecutor(self._means.settings.streams, thread_name_prefix="object-part")
            return self._upload, self._executor

    def _send_part(self, upload: Upload, number: int, content: Buffer) -> None:
        with self._state:
            self._sending += 1
        try:
            tag = self._means.uploads.send_part(upload, number, content, self._given_up)
            with self._state:
                self._tags[number] = tag
                self._moved += len(content)
        except RequestError as fault:
            with self._state:
                self._failure = self._failure or fault
            self._given_up.set()  # the other parts need not be tried any longer
        except GivenUpError:
            pass
        except DiskhaulError as error:  # the credentials cannot be read any more
            with self._state:
                self._failure = self._failure or error
            self._given_up.set()
        except Exception as error:  # nobody asks for this thread's result
            with self._state:
                self._failure = self._failure or RequestError(0, "", str(error) or type(error).__name__)
        finally:
            with self._state:
                self._sending -= 1
            self._arrived(len(content))

    def _arrived(self, length: int) -> None:
        with self._state:
            self._under_way -= length
            self._state.notify_all()

    # --- the end --------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        self._check("finish")
        try:
            if self._size is None:
                self._finish_appended()
            else:
                self._finish_raw(self._size)
        except RequestError as fault:
            raise self._fail(fault, "make it durable") from fault
        except GivenUpError as error:
            raise StorageError(f"{self._path}: cannot finish: was given up", path=self._path) from error
        self._durable = True
        self.close()

    def _finish_appended(self) -> None:
        if self._upload is None and len(self._filling) <= self._first:
            self._put(self._filling)
            return
        if self._filling:
            self._send_filled()
        self._complete(self._next)

    def _finish_raw(self, size: int) -> None:
        if self._count <= 1:
            part = self._parts.pop(0, None)
            self._put(part.content if part is not None else bytearray(size))
            return
        for number in range(self._count):
            with self._state:
                ready = [] if number in self._sent else [self._given_away(number)]
            for each in ready:
                self._send(*each)
        self._complete(self._count)
        if self._late:
            self._put_right(size)

    def _put(self, content: bytearray) -> None:
        self._means.bucket.put(self._key, bytes(content), self._given_up)

    def _complete(self, count: int) -> None:
        with self._state:
            # Once it is given up, parts that wait for a thread never arrive.
            self._state.wait_for(lambda: not self._under_way or self._failure is not None or self._given_up_now)
            if self._failure is not None:
                raise self._failure
            tags = dict(self._tags)
        if self._given_up_now or len(tags) != count:
            raise GivenUpError
        assert self._upload is not None, "there are parts"
        self._complete_upload(self._upload, tags, self.size)

    def _complete_upload(self, upload: Upload, tags: dict[int, str], size: int, before: Found | None = None) -> None:
        """Complete an upload, in the place of the object `before` where there was one."""
        try:
            self._means.uploads.complete(upload, tags, self._given_up)
        except RequestError as fault:
            if not fault.missing or not self._is_there(size, before):
                raise

    def _is_there(self, size: int, before: Found | None) -> bool:
        """Whether an upload that the store no longer knows was completed, and only the answer lost."""
        try:
            found = self._means.bucket.head(self._key)
        except RequestError as fault:
            if fault.missing:
                return False
            raise
        return found.size == size and (before is None or bool(before.tag and found.tag and found.tag != before.tag))

    def _put_right(self, size: int) -> None:
        """Make the object anew of its own parts, but for those that something came too late for."""
        uploads, bucket = self._means.uploads, self._means.bucket
        found = bucket.head(self._key)
        source = f"{self._means.place.bucket}/{quote(self._key)}"
        upload = uploads.begin(self._key)
        self._means.note(upload)
        tags: dict[int, str] = {}
        step = max(_LONGEST_COPY // self._first, 1) * self._first

        def copy(begin: int, end: int) -> None:
            for low in range(begin, end, step):
                tags[len(tags)] = uploads.copy_part(upload, len(tags), source, low, min(low + step, end))

        done = 0
        for number in sorted({offset // self._first for offset, _ in self._late}):
            begin, length = number * self._first, self._length(number)
            copy(done, begin)
            content = bytearray(length)
            bucket.get_into(found, begin, memoryview(content))
            for offset, piece in self._late:  # none crosses a part's end
                if begin <= offset < begin + length:
                    content[offset - begin : offset - begin + len(piece)] = piece
            tags[len(tags)] = uploads.send_part(upload, len(tags), content, self._given_up)
            done = begin + length
        copy(done, size)
        self._complete_upload(upload, tags, size, found)

    def close(self) -> None:
        self._ended = True
        self._given_up.set()
        with self._state:
            self._state.notify_all()
        with self._sizing:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)
        self._filling = bytearray()
        self._parts = {}

    def wait_until_quiet(self, limit_s: float) -> None:
        """After `close`: wait until no part is being sent any more, or `limit_s` seconds."""
        with self._state:
            self._state.wait_for(lambda: not self._sending, limit_s)

    @property
    def _given_up_now(self) -> bool:
        return self._given_up.is_set()

    def _check(self, action: str) -> None:
        if isinstance(self._failure, RequestError):
            raise self._means.failed(self._failure, action, self._path) from self._failure
        if self._failure is not None:
            raise StorageError(f"{self._path}: cannot {action}: {self._failure}", path=self._path) from self._failure
        if self._ended:
            raise StorageError(f"{self._path}: cannot {action}: is closed", path=self._path)

    def _fail(self, fault: RequestError, action: str) -> StorageError:
        with self._state:
            self._failure = self._failure or fault
        return self._means.failed(fault, action, self._path)
