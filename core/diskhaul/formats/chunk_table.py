"""``disk-N.chunks``: the digest of every chunk of a disk, and of what is stored for it.

    header     64 bytes: magic, version, flags, chunk size, disk size, chunk count, zeros        all little-endian
    digests    32 bytes per chunk: BLAKE3 of the chunk
    and, where chunks are stored encoded:
    lengths     4 bytes per chunk: bytes stored for it; their running sum is where it lies
    stored     16 bytes per chunk: the first half of BLAKE3 of the stored bytes

The manifest holds a digest over each part (`ChunkTable.root_digest`, `ChunkTable.stored_root`), and the header has only one
right value, so that every flipped bit shows. 128 bits are enough for `stored`: it tells damage in what is stored without
decoding it; what a chunk must be is said by its full digest.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate

from blake3 import blake3

from ..api import Buffer
from ..errors import RefusedError
from ..options import MAX_CHUNK_SIZE, MIN_CHUNK_SIZE
from .codec import max_stored_length
from .corruption import CorruptError, first_difference

MAX_CHUNKS = 2**21
"""Chunks per disk. A table then takes 104 MiB of memory at most; disks larger than this many chunks get larger chunks."""

MAX_EXPORT_CHUNKS = 2**24
"""Chunks of all disks of an export: whoever verifies or imports it has all tables in memory."""

MAX_GROWN_CHUNK_SIZE = 1 << 30
"""The largest chunk that `effective_chunk_size` grows to: disks of 2 PiB, twice what ext4 files and most block layers allow
in practice, and still a size of which every worker can hold one."""

DIGEST_LENGTH = 32
STORED_DIGEST_LENGTH = 16
HEADER_LENGTH = 64

_FIRST_BLOCK, _MOST_BLOCK = 1, 1024  # chunks that `run_length` compares at once: most runs are short or very long

_MAGIC = b"dhchunks"
_VERSION = 1
_FLAG_ENCODED = 1
_HEADER = struct.Struct("<8sIIQQQ24x")

assert _HEADER.size == HEADER_LENGTH
assert array("I").itemsize == 4


def chunk_digest(buffer: Buffer) -> bytes:
    """BLAKE3 of a chunk, 32 bytes. Releases the GIL."""
    return blake3(buffer).digest()


def stored_digest(buffer: Buffer) -> bytes:
    """The first 16 bytes of BLAKE3 of what is stored for a chunk. Releases the GIL."""
    return blake3(buffer).digest(STORED_DIGEST_LENGTH)


@lru_cache(maxsize=64)
def zero_digest(length: int) -> bytes:
    """`chunk_digest` of `length` zero bytes; computed once."""
    hasher = blake3()
    zeros = bytes(min(length, 1 << 20))
    for _ in range(length // len(zeros) if zeros else 0):
        hasher.update(zeros)
    hasher.update(bytes(length % len(zeros) if zeros else 0))
    return hasher.digest()


def chunk_count(disk_size: int, chunk_size: int) -> int:
    """How many chunks a disk has; the last may be shorter."""
    return -(-disk_size // chunk_size)


def effective_chunk_size(disk_size: int, wanted: int) -> int:
    """Return `wanted`, doubled until a disk of `disk_size` bytes has at most `MAX_CHUNKS` chunks.

    Raises:
        RefusedError: `wanted` is no power of two from `MIN_CHUNK_SIZE` to `MAX_CHUNK_SIZE`, or the disk is too large.
    """
    if wanted & (wanted - 1) or not MIN_CHUNK_SIZE <= wanted <= MAX_CHUNK_SIZE:
        raise RefusedError(
            f"chunk size {wanted} is not allowed: use a power of two from {MIN_CHUNK_SIZE} to {MAX_CHUNK_SIZE} bytes"
        )
    size = wanted
    while chunk_count(disk_size, size) > MAX_CHUNKS:
        size *= 2
    if size > MAX_GROWN_CHUNK_SIZE:
        raise RefusedError(f"a disk of {disk_size} bytes is too large: {MAX_CHUNKS * MAX_GROWN_CHUNK_SIZE} bytes at most")
    return size


def is_effective_chunk_size(disk_size: int, chunk_size: int) -> bool:
    """True when `effective_chunk_size` gives `chunk_size` for some wanted size.

    Sizes above `MAX_CHUNK_SIZE` only for disks that need them, so that a forged manifest cannot ask for large buffers cheaply.
    """
    if chunk_size & (chunk_size - 1) or not MIN_CHUNK_SIZE <= chunk_size <= MAX_GROWN_CHUNK_SIZE:
        return False
    if chunk_count(disk_size, chunk_size) > MAX_CHUNKS:
        return False
    return chunk_size <= MAX_CHUNK_SIZE or chunk_count(disk_size, chunk_size // 2) > MAX_CHUNKS


class ChunkTable:
    """Digests of one disk's chunks, while they are gathered and when they are checked.

    Setting different chunks from several threads is fine, and so is reading while others set. Sums, digests over the table and
    `to_bytes` want a table that is complete.

    Attributes:
        disk_size, chunk_size: bytes.
        encoded: whether stored lengths and stored digests are kept too.
        count: number of chunks; 0 for a disk of size 0.
    """

    __slots__ = ("_digests", "_lengths", "_stored", "chunk_size", "count", "disk_size", "encoded")

    def __init__(self, disk_size: int, chunk_size: int, encoded: bool) -> None:
        if disk_size < 0 or chunk_size < 1:
            raise ValueError(f"disk size {disk_size}, chunk size {chunk_size}")
        self.disk_size = disk_size
        self.chunk_size = chunk_size
        self.encoded = encoded
        self.count = chunk_count(disk_size, chunk_size)
        if self.count > MAX_CHUNKS:
            raise ValueError(f"{self.count} chunks: a disk has {MAX_CHUNKS} at most")
        self._digests = bytearray(self.count * DIGEST_LENGTH)
        self._lengths = array("I", bytes(self.count * 4 if encoded else 0))
        self._stored = bytearray(self.count * STORED_DIGEST_LENGTH if encoded else 0)

    # --- one chunk ---

    def chunk_offset(self, index: int) -> int:
        """Where chunk `index` begins on the disk."""
        return self._checked(index) * self.chunk_size

    def chunk_length(self, index: int) -> int:
        """Bytes of chunk `index`: the chunk size, or what is left for the last one."""
        return min(self.chunk_size, self.disk_size - self._checked(index) * self.chunk_size)

    def digest(self, index: int) -> bytes:
        at = self._checked(index) * DIGEST_LENGTH
        return bytes(self._digests[at : at + DIGEST_LENGTH])

    def stored_length(self, index: int) -> int:
        """Bytes stored for chunk `index`; its own length where chunks are stored as they are."""
        return self._lengths[self._checked(index)] if self.encoded else self.chunk_length(index)

    def stored_digest(self, index: int) -> bytes:
        """`stored_digest` of what is stored for chunk `index`; b"" where chunks are stored as they are."""
        at = self._checked(index) * STORED_DIGEST_LENGTH
        return bytes(self._stored[at : at + STORED_DIGEST_LENGTH])

    def set(self, index: int, digest: bytes, stored_length: int = 0, stored_digest: bytes = b"") -> None:
        """Record chunk `index`. The last two arguments are wanted exactly where chunks are encoded."""
        self.set_run(index, 1, digest, stored_length, stored_digest)

    def set_run(self, first: int, count: int, digest: bytes, stored_length: int = 0, stored_digest: bytes = b"") -> None:
        """Record `count` equal chunks from `first` on, in time that does not depend on Python per chunk.

        The chunks must have one length, too: a short last chunk is no part of a run of whole ones.

        Raises:
            IndexError: there are no such chunks.
            ValueError: a digest or the stored length is not what this table holds; nothing has been recorded.
        """
        if count < 1 or first < 0 or first + count > self.count:
            raise IndexError(f"chunks {first} to {first + count - 1} of {self.count}")
        if len(digest) != DIGEST_LENGTH:
            raise ValueError(f"a chunk's digest has {DIGEST_LENGTH} bytes, not {len(digest)}")
        if count > 1 and self.chunk_length(first + count - 1) != self.chunk_size:
            raise ValueError(f"chunk {first + count - 1} is shorter than those before it")
        if self.encoded:
            if len(stored_digest) != STORED_DIGEST_LENGTH:
                raise ValueError(f"a stored digest has {STORED_DIGEST_LENGTH} bytes, not {len(stored_digest)}")
            if not 1 <= stored_length <= max_stored_length(self.chunk_length(first)):
                raise ValueError(f"chunk {first} cannot be stored in {stored_length} bytes")
        elif stored_length or stored_digest:
            raise ValueError("this table is for chunks that are stored as they are")
        # Slices of unchanged length, each one assignment under the GIL: safe beside other threads' assignments.
        self._digests[first * DIGEST_LENGTH : (first + count) * DIGEST_LENGTH] = digest * count
        if self.encoded:
            at = first * STORED_DIGEST_LENGTH
            self._stored[at : at + count * STORED_DIGEST_LENGTH] = stored_digest * count
            if count == 1:
                self._lengths[first] = stored_length
            else:
                self._lengths[first : first + count] = array("I", (stored_length,)) * count

    def run_length(self, first: int, digest: bytes, longest: int) -> int:
        """How many chunks in a row from `first` on have `digest`, up to `longest`; found in large steps."""
        end = min(first + longest, self.count)
        index, block = self._checked(first), _FIRST_BLOCK
        while block:
            block = min(block, end - index)
            at = index * DIGEST_LENGTH
            if self._digests[at : at + block * DIGEST_LENGTH] == digest * block:
                index += block
                block = min(2 * block, _MOST_BLOCK) if index < end else 0
            else:
                block //= 2
        return index - first

    def is_run(self, first: int, count: int, stored_digest: bytes) -> bool:
        """Whether all of `count` chunks from `first` on are stored with this `stored_digest`."""
        at = self._checked(first) * STORED_DIGEST_LENGTH
        return self._stored[at : at + count * STORED_DIGEST_LENGTH] == stored_digest * count

    def first_unset(self) -> int | None:
        """The first chunk that was never recorded, or None when the table is complete."""
        nothing = bytes(DIGEST_LENGTH)  # no chunk has this digest, or BLAKE3 is broken
        at = self._digests.find(nothing)
        while at >= 0:
            index = -(-at // DIGEST_LENGTH)  # a digest may end in zeros and run into the next: look at whole entries only
            if self._digests[index * DIGEST_LENGTH : (index + 1) * DIGEST_LENGTH] == nothing:
                return index
            at = self._digests.find(nothing, index * DIGEST_LENGTH)
        return None

    # --- all chunks ---

    def chunk_lengths(self) -> array[int]:
        """The length of every chunk, as an array of u32."""
        lengths = array("I", (self.chunk_size,)) * self.count
        if lengths:
            lengths[-1] = self.chunk_length(self.count - 1)
        return lengths

    def stored_lengths(self) -> array[int]:
        """The stored length of every chunk, as an array of u32 (a copy)."""
        return self._lengths[:] if self.encoded else self.chunk_lengths()

    def stored_offsets(self) -> array[int]:
        """Where in the data file each chunk's stored bytes begin, and at the end where the last one ends: count + 1 times u64."""
        return array("Q", accumulate(self.stored_lengths(), initial=0))

    def root_digest(self) -> str:
        """BLAKE3 over all chunk digests, 64 hex digits."""
        return blake3(self._digests).hexdigest()

    def stored_root(self) -> str:
        """BLAKE3 over stored lengths and stored digests, 64 hex digits; "" where chunks are stored as they are."""
        if not self.encoded:
            return ""
        return blake3(_little_endian(self._lengths).tobytes()).update(self._stored).hexdigest()

    def parts(self) -> Iterator[bytes | memoryview]:
        """Yield what `to_bytes` joins, mostly without copying: for `diskhaul.api.StoreFile.append`.

        Raises:
            ValueError: a chunk was never recorded.
        """
        unset = self.first_unset()
        if unset is not None:
            raise ValueError(f"chunk {unset} was never recorded")
        yield self._header()
        yield memoryview(self._digests).toreadonly()
        if self.encoded:
            yield _little_endian(self._lengths).tobytes()
            yield memoryview(self._stored).toreadonly()

    def to_bytes(self) -> bytes:
        """The table as it is stored."""
        return b"".join(self.parts())

    @classmethod
    def stored_size(cls, count: int, encoded: bool) -> int:
        """Bytes that a stored table of `count` chunks takes."""
        return HEADER_LENGTH + count * (DIGEST_LENGTH + (4 + STORED_DIGEST_LENGTH if encoded else 0))

    @classmethod
    def from_bytes(
        cls,
        data: Buffer,
        *,
        disk_size: int,
        chunk_size: int,
        encoded: bool,
        root_digest: str | None = None,
        stored_root: str | None = None,
    ) -> ChunkTable:
        """Read a stored table for exactly this disk, and compare its digests with those of the manifest where given.

        Read no more than ``stored_size() + 1`` bytes of the file to call this.

        Raises:
            CorruptError: header, length, a stored length or a digest is not what it should be.
        """
        table = cls(disk_size, chunk_size, encoded)
        stored = memoryview(data).cast("B")
        wanted = cls.stored_size(table.count, encoded)
        if len(stored) != wanted:
            raise CorruptError(f"the chunk table has {len(stored)} bytes, not {wanted}")
        header = table._header()
        if stored[:HEADER_LENGTH] != header:
            at = first_difference(stored[:HEADER_LENGTH], header)
            raise CorruptError("the chunk table's header is not that of this disk", file_offset=at)
        digests_end = HEADER_LENGTH + table.count * DIGEST_LENGTH
        table._digests[:] = stored[HEADER_LENGTH:digests_end]
        if encoded:
            lengths_end = digests_end + table.count * 4
            lengths = array("I")
            lengths.frombytes(stored[digests_end:lengths_end])
            table._lengths = _little_endian(lengths)
            table._stored[:] = stored[lengths_end:]
        if root_digest is not None and table.root_digest() != root_digest:
            raise CorruptError("the chunk digests do not match the manifest's root digest")
        if stored_root is not None and table.stored_root() != stored_root:
            raise CorruptError("the stored lengths and digests do not match the manifest's digest of them")
        table._check_stored_lengths()
        return table

    def _check_stored_lengths(self) -> None:
        """Refuse lengths that no codec makes: they would become buffers and offsets."""
        if not self._lengths:
            return
        last = self.count - 1
        if min(self._lengths) == 0:
            index = self._lengths.index(0)
            raise CorruptError("nothing is stored for a chunk", self.chunk_offset(index))
        limit = max_stored_length(self.chunk_size)
        longest = max(self._lengths)
        if longest > limit:
            index = self._lengths.index(longest)
            raise CorruptError(f"{longest} bytes are said to be stored for a chunk", self.chunk_offset(index))
        if self._lengths[last] > max_stored_length(self.chunk_length(last)):
            raise CorruptError(f"{self._lengths[last]} bytes are said to be stored for a chunk", self.chunk_offset(last))

    def _header(self) -> bytes:
        flags = _FLAG_ENCODED if self.encoded else 0
        return _HEADER.pack(_MAGIC, _VERSION, flags, self.chunk_size, self.disk_size, self.count)

    def _checked(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(f"chunk {index} of {self.count}")
        return index


def _little_endian(values: array[int]) -> array[int]:
    """`values` for the file, or from it; on a big-endian machine a swapped copy."""
    if sys.byteorder == "big":  # pragma: no cover
        values = values[:]
        values.byteswap()
    return values
