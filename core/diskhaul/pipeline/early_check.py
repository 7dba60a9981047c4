"""Reading back what a store has on its medium already, while the rest of the disk is still being sent.

The medium is then read while the CPUs compress, and little is left to be read back in the end. Works for files that are a
`diskhaul.api.DirectStoreFile` or `diskhaul.api.DigestingStoreFile`; of others nothing is checked here, and all of it afterwards.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ..api import DigestingStoreFile, DirectStoreFile, StoreFile
from ..errors import StorageError
from ..formats.chunk_table import STORED_DIGEST_LENGTH, ChunkTable, chunk_digest, stored_digest
from .source import digest_there
from .workers import Scratch

_PAGE = 4096  # what is read back begins and ends at
_BATCH = 4 << 20  # bytes of frames that are read back together


@dataclass(frozen=True, slots=True)
class StoredFrame:
    """Where a chunk's frame lies in its file, bytes."""

    index: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


class EarlyCheck:
    """Checks stored chunks of one disk by their digests as soon as they can be read from the medium. Thread-safe.

    Attributes:
        checked: a byte for each chunk: 1 when what is stored for it has been read back and was right.
    """

    def __init__(self, file: StoreFile, table: ChunkTable, label: str) -> None:
        self.checked = bytearray(table.count)
        self._here = file if isinstance(file, DirectStoreFile) else None
        self._there = file if isinstance(file, DigestingStoreFile) and self._here is None else None
        self._checking = 0  # batches that have been taken
        self._table, self._label = table, label
        self._waiting: deque[StoredFrame] = deque()
        self._lock = threading.Lock()

    def stored(self, frame: StoredFrame) -> None:
        """A frame has been appended; frames come in the order of the file."""
        if self._here is not None or self._there is not None:
            with self._lock:
                self._waiting.append(frame)

    def take(self) -> Sequence[StoredFrame]:
        """Frames to be checked next: those that lie on the medium, once there is enough to be worth a read; else none."""
        file = self._here or self._there
        if file is None:
            return ()
        settled = file.settled
        with self._lock:
            if not self._waiting or settled - self._waiting[0].offset < _BATCH:
                return ()
            if self._there is not None and self._checking:
                return ()  # a thread that waits for another node does nothing else: one is enough
            frames: list[StoredFrame] = []
            limit = self._waiting[0].offset + _BATCH
            while self._waiting and self._waiting[0].end <= settled and (self._waiting[0].end <= limit or not frames):
                frames.append(self._waiting.popleft())
            self._checking += bool(frames)
            return frames

    def check(self, frames: Sequence[StoredFrame], scratch: Scratch) -> None:
        """Read back `frames`, which `take` has given, and compare them.

        Raises:
            StorageError: they cannot be read, or are not what was stored.
        """
        try:
            if self._here is not None:
                self._check_here(self._here, frames, scratch)
            elif self._there is not None:
                self._check_there(self._there, frames)
        finally:
            with self._lock:
                self._checking -= 1

    def _check_here(self, file: DirectStoreFile, frames: Sequence[StoredFrame], scratch: Scratch) -> None:
        begin, end = frames[0].offset - frames[0].offset % _PAGE, frames[-1].end + -frames[-1].end % _PAGE
        view = scratch.buffer(end - begin)
        if file.read_back(begin, view):
            with scratch.computing:
                for frame in frames:
                    self._compare(frame, stored_digest(view[frame.offset - begin : frame.end - begin]))

    def _check_there(self, file: DigestingStoreFile, frames: Sequence[StoredFrame]) -> None:
        for frame in frames:
            digest = digest_there(file, self._label, frame.offset, frame.length)
            if digest is None:
                return
            self._compare(frame, digest[:STORED_DIGEST_LENGTH])

    def _compare(self, frame: StoredFrame, digest: bytes) -> None:
        if digest != self._table.stored_digest(frame.index):
            raise self._damaged(frame.index)
        self.checked[frame.index] = 1

    def check_raw(self, index: int, view: memoryview, scratch: Scratch) -> None:
        """Read chunk `index`, which has just been written as it is, back into `view` and compare it; raises as `check`."""
        if self._here is None or len(view) % _PAGE:
            return
        if self._here.read_back(index * self._table.chunk_size, view):
            with scratch.computing:
                if chunk_digest(view) != self._table.digest(index):
                    raise self._damaged(index)
            self.checked[index] = 1

    def _damaged(self, index: int) -> StorageError:
        offset = self._table.chunk_offset(index)
        return StorageError(
            f"{self._label}: read back, what is stored for offset {offset} is not what was written (digest mismatch)",
            path=self._label,
            offset=offset,
        )
