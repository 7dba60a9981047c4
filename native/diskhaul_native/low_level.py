"""The one module that talks to the C core: owns the buffers that C sees, and turns return codes into exceptions.

Every function releases the GIL while C works, repeats what EINTR stopped and continues short reads and writes. Common to all:

- `fd` is an open descriptor. Its file position is not used; `extents` and `copy_range` move it. All functions may run in
  several threads, also on one descriptor.
- `offset` and `length` are bytes; what is no range of a file (negative, or ending beyond 2^63 - 1) is a ValueError.
- `buffer` is any C-contiguous buffer (BufferError or TypeError otherwise, and where one to be filled is read-only).
- `name` is the file's name for messages; without it they name what the descriptor refers to.
- A failing system call raises NativeIOError with errno, name and offset. A file that ends before the range that is to be
  read raises it with errno ENODATA. What was done before the failure stays done.
- A Python signal handler (so KeyboardInterrupt) runs when the C call returns, which is after at most one buffer, or
  `SLICE` bytes.
"""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ._core import ffi, lib
from .errors import NativeIOError, io_error
from .ranges import (
    ZERO_METHODS,
    CopyResult,
    SharedBlocks,
    check_bits,
    check_block_size,
    check_needed,
    check_range,
    io_level_number,
    zero_method_number,
)

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

SLICE = 256 << 20  # bytes that one call of a copy or a zeroing deals with before signals get their turn
SCRATCH = 1 << 20  # bytes; a copy by hand goes through a buffer of this size
RUNS = 256  # runs of bits that one call looks for


def _kernels() -> dict[str, int]:
    numbers = [number for number in range(lib.DH_KERNEL_COUNT) if lib.dh_kernel_available(number)]
    return {ffi.string(lib.dh_kernel_name(number)).decode(): number for number in numbers}


_KERNEL_NUMBERS = _kernels()
KERNELS: tuple[str, ...] = tuple(_KERNEL_NUMBERS)
BEST_KERNEL: str = ffi.string(lib.dh_kernel_name(lib.dh_best_kernel())).decode()


def _kernel_number(kernel: str | None) -> int:
    number = lib.DH_KERNEL_BEST if kernel is None else _KERNEL_NUMBERS.get(kernel)
    if number is None:
        raise ValueError(f"no zero-scan kernel {kernel!r} here: {', '.join(KERNELS)}")
    return number


def is_zero(buffer: ReadableBuffer, *, kernel: str | None = None) -> bool:
    """Are all bytes of the buffer zero? True for an empty one.

    `kernel` is one of KERNELS, by default BEST_KERNEL. Raises ValueError for one that this build or this processor lacks.
    """
    number = _kernel_number(kernel)
    with ffi.from_buffer("char[]", buffer) as data:
        return lib.dh_is_zero(number, data, len(data)) == 1


def sum_words(buffer: ReadableBuffer, *, kernel: str | None = None) -> int:
    """The sum of the buffer's 64-bit words in the processor's byte order, modulo 2^64; a shorter last one is filled with zeros.

    It reads the buffer as the zero scan of this kernel does, and has nothing to decide: for measurements, what reading
    memory costs. `kernel` as for `is_zero`.
    """
    number = _kernel_number(kernel)
    total = ffi.new("uint64_t *")
    with ffi.from_buffer("char[]", buffer) as data:
        lib.dh_sum_words(number, data, len(data), total)
    return int(total[0])


def crc32c(buffer: ReadableBuffer, crc: int = 0) -> int:
    """The CRC-32C (Castagnoli) of the buffer; `crc` is that of what comes before it. OverflowError unless it has 32 bits."""
    with ffi.from_buffer("char[]", buffer) as data:
        return lib.dh_crc32c(crc, data, len(data))


def read_into(fd: int, buffer: WriteableBuffer, offset: int, *, name: str = "") -> None:
    """Fill the whole buffer from the file. See `read_direct` for descriptors open with O_DIRECT."""
    with ffi.from_buffer("char[]", buffer, require_writable=True) as data:
        check_range(offset, len(data))
        done = ffi.new("size_t *")
        result = lib.dh_read(fd, data, len(data), offset, done)
    if result < 0:
        raise io_error(-result, "reading", fd, name=name, offset=offset + done[0])


def read_scan(fd: int, buffer: WriteableBuffer, offset: int, *, kernel: str | None = None, name: str = "") -> bool:
    """Fill the whole buffer from the file; True when all that was read is zero. `kernel` as for `is_zero`."""
    number = _kernel_number(kernel)
    with ffi.from_buffer("char[]", buffer, require_writable=True) as data:
        check_range(offset, len(data))
        done = ffi.new("size_t *")
        result = lib.dh_read_scan(fd, number, data, len(data), offset, done)
    if result < 0:
        raise io_error(-result, "reading", fd, name=name, offset=offset + done[0])
    return result == 1


def read_direct(fd: int, buffer: WriteableBuffer, offset: int, needed: int, *, name: str = "") -> None:
    """Read at least the first `needed` bytes of the buffer, through a descriptor that is open with O_DIRECT.

    The buffer, its length and the offset are multiples of `direct_alignment` (otherwise EINVAL); `needed` is any
    number up to the length (ValueError). So the end of a file is read by asking for whole blocks and needing what is
    there, which `read_into` cannot do. What the buffer has beyond `needed` bytes is unspecified. Works without
    O_DIRECT too.
    """
    with ffi.from_buffer("char[]", buffer, require_writable=True) as data:
        check_range(offset, len(data))
        check_needed(needed, len(data))
        done = ffi.new("size_t *")
        result = lib.dh_read_direct(fd, data, len(data), offset, needed, done)
    if result < 0:
        raise io_error(-result, "reading", fd, name=name, offset=offset + done[0])


def write_from(fd: int, buffer: ReadableBuffer, offset: int, *, name: str = "") -> None:
    """Write the whole buffer. The descriptor must not be open with O_APPEND (Linux would append).

    With O_DIRECT the buffer, its length and the offset must be multiples of `direct_alignment` (EINVAL).
    """
    with ffi.from_buffer("char[]", buffer) as data:
        check_range(offset, len(data))
        done = ffi.new("size_t *")
        result = lib.dh_write(fd, data, len(data), offset, done)
    if result < 0:
        raise io_error(-result, "writing", fd, name=name, offset=offset + done[0])


def write_sparse(
    fd: int, buffer: ReadableBuffer, offset: int, *, block_size: int = 4096, zero_holes: bool = False, name: str = ""
) -> int:
    """Write only the blocks of the buffer that are not all zero; returns the bytes written.

    Blocks lie at multiples of `block_size` (bytes) in the file. Blocks of zeros are left alone: the target must be
    known to read as zeros there, and to be long enough, as nothing extends it. With `zero_holes` they are made zero as
    by `zero_range`, which does not count as written.
    """
    check_block_size(block_size)
    with ffi.from_buffer("char[]", buffer) as data:
        check_range(offset, len(data))
        done = ffi.new("size_t *")
        result = lib.dh_write_sparse(fd, data, len(data), offset, block_size, zero_holes, done)
    if result < 0:
        raise io_error(-result, "writing", fd, name=name, offset=offset + done[0])
    return result


def extents(fd: int, size: int, *, start: int = 0, name: str = "") -> Iterator[tuple[int, int, bool]]:
    """The data and the holes of [start, size): (offset, length, is data), ascending and without gaps.

    What the file cannot tell apart (block devices, old filesystems) is one data extent. A file that is shorter than
    `size` raises NativeIOError (ENODATA) when the iteration gets there: what is missing is no hole. The map is made
    while it is iterated; a file that is cut meanwhile can have had its end reported as a hole already.
    """
    check_range(start, max(0, size - start))
    return _extents(fd, size, start, name)


def _extents(fd: int, size: int, start: int, name: str) -> Iterator[tuple[int, int, bool]]:
    extent_end = ffi.new("int64_t *")
    position = start
    while position < size:
        kind = lib.dh_next_extent(fd, position, size, extent_end)
        end = extent_end[0]
        if kind < 0:
            raise io_error(-kind, "mapping extents", fd, name=name, offset=end)
        yield position, end - position, kind == lib.DH_DATA
        position = end


def copy_range(
    source_fd: int,
    target_fd: int,
    offset: int,
    length: int,
    *,
    target_offset: int | None = None,
    zero_holes: bool = False,
    name: str = "",
) -> CopyResult:
    """Copy [offset, offset + length) of the source to `target_offset` (by default the same) of the target; holes stay holes.

    The kernel copies, or shares blocks, where both files allow it (copy_file_range); otherwise data is read and
    written, and blocks of 4096 zero bytes count as holes. Holes are left alone: the target must be known to read as
    zeros there, and to be long enough. With `zero_holes` they are made zero as by `zero_range`. Raises NativeIOError
    (EINVAL) for ranges of one file that overlap; an error's offset is one in the file that failed, source or target,
    which the message says.
    """
    target_start = offset if target_offset is None else target_offset
    check_range(offset, length)
    check_range(target_start, length)
    progress = ffi.new("struct dh_copy_progress *")
    with ffi.from_buffer("char[]", aligned_buffer(SCRATCH), require_writable=True) as scratch:
        result = 1
        while result > 0:
            result = lib.dh_copy_range(
                source_fd, target_fd, offset, length, target_start, zero_holes, scratch, len(scratch), SLICE, progress
            )
    if result < 0:
        on_source = progress.failed_side == lib.DH_SIDE_SOURCE
        action, fd = ("copying: reading the source", source_fd) if on_source else ("copying: writing the target", target_fd)
        raise io_error(-result, action, fd, name=name, offset=progress.failed_at)
    return CopyResult(progress.read, progress.written)


def zero_range(fd: int, offset: int, length: int, *, method: str = "auto", name: str = "") -> str:
    """Make [offset, offset + length) read as zeros; returns the method that did it.

    `method`: "punch" (fallocate, deallocates), "zero-range" (fallocate, keeps the range allocated), "blkzeroout"
    (ioctl, block devices only), "write", or "auto": the first of these that the target has. A named one that the target
    lacks raises NativeIOError (EOPNOTSUPP); an unknown one ValueError. A method that failed is not replaced by the
    next. A regular file that ends before the range's end is extended; beyond a block device's end is ENOSPC. When it
    fails, parts of the range may be zero already.
    """
    check_range(offset, length)
    number = zero_method_number(method)
    failed_at = ffi.new("int64_t *")
    end = offset + length
    used = number
    while True:
        result = lib.dh_zero_range(fd, offset, min(SLICE, end - offset), number, failed_at)
        if result < 0:
            raise io_error(-result, "zeroing", fd, name=name, offset=failed_at[0])
        used = max(used, result)  # what came last, in the order of ZERO_METHODS
        offset += SLICE
        if offset >= end:
            return ZERO_METHODS[used]


def clone(
    source_fd: int, target_fd: int, *, source_offset: int = 0, length: int = 0, target_offset: int = 0, name: str = ""
) -> None:
    """Make the target share the source's blocks (FICLONE, FICLONERANGE); without numbers the whole file.

    `length` 0: up to the source's end. Raises NativeIOError: EOPNOTSUPP where the filesystem has no reflinks, EXDEV
    between filesystems, EINVAL for offsets that are no multiples of its block size.
    """
    check_range(source_offset, length)
    check_range(target_offset, length)
    result = lib.dh_clone(source_fd, target_fd, source_offset, length, target_offset)
    if result < 0:
        raise io_error(-result, "cloning", target_fd, name=name, offset=target_offset)


def shared_blocks(first_fd: int, second_fd: int, size: int, *, name: str = "") -> SharedBlocks:
    """Up to where the first `size` bytes of two files are held by the very same blocks: all of them when ``end == size``.

    The filesystem's maps (FIEMAP) are compared; what is still in the cache is written first, so a file that was written to
    since it was cloned has other blocks. Holes and blocks that were never written are zeros on both sides. Raises
    NativeIOError: EOPNOTSUPP where there is no telling (neither XFS nor btrfs, an XFS realtime file; at the error's offset:
    compressed, inline and other extents whose map does not say where their bytes are), EXDEV between filesystems, ENODATA for
    a file of less than `size` bytes.
    """
    check_range(0, size)
    position, data = ffi.new("int64_t *"), ffi.new("int64_t *")
    result = lib.dh_shared_blocks(first_fd, second_fd, size, position, data)
    if result < 0:
        raise io_error(-result, "comparing blocks", first_fd, name=name, offset=position[0])
    return SharedBlocks(position[0], data[0])


def clear_bit_runs(bitmap: ReadableBuffer, first: int, count: int) -> array[int]:
    """The runs of clear bits among `count` bits of a bitmap from bit `first` on: number of the first, length, and so on in turn.

    Bits are counted as filesystems do: the lowest bit of a byte is its first. Runs are ascending and as long as they can
    be. Raises ValueError for bits that the bitmap does not have.
    """
    found = array("Q")
    scratch = array("Q", bytes(16 * RUNS))
    with ffi.from_buffer("char[]", bitmap) as data, ffi.from_buffer("uint64_t[]", scratch, require_writable=True) as runs:
        check_bits(first, count, len(data))
        position = ffi.new("uint64_t *", first)
        while position[0] < first + count:
            number = lib.dh_clear_bit_runs(data, len(data), position, first + count, runs, RUNS)
            found.extend(scratch[: 2 * number])
    return found


def fsync(fd: int, *, name: str = "") -> None:
    """Wait until the file is on stable storage. A failure is final: never repeat it, the kernel reports lost data once."""
    result = lib.dh_sync(fd)
    if result < 0:
        raise io_error(-result, "syncing", fd, name=name)


def drop_cache(fd: int, offset: int = 0, length: int = 0) -> None:
    """Ask the kernel to forget the range's clean cached pages (length 0: up to the end). Advice: dirty pages stay."""
    check_range(offset, length)
    result = lib.dh_drop_cache(fd, offset, length)
    if result < 0:
        raise io_error(-result, "dropping the cache", fd, offset=offset)


def cached_bytes(fd: int, offset: int, length: int) -> int:
    """How many bytes of the range are in the page cache now, dirty ones included (cachestat, else mincore).

    Bytes beyond the file's end never are. Raises NativeIOError (EOPNOTSUPP) for what is neither a regular file nor a
    block device, and where the kernel does not tell: before Linux 6.5 only those who own the file or may write to it,
    later kernels may want that too.
    """
    check_range(offset, length)
    result = lib.dh_cached_bytes(fd, offset, length)
    if result < 0:
        raise io_error(-result, "asking for cached pages", fd, offset=offset)
    return result


def start_writeback(fd: int, offset: int = 0, length: int = 0, *, name: str = "") -> None:
    """Start writing the range's dirty pages (length 0: up to the end); waits only while the device's queue is full.

    No durability: it needs `fsync` in the end, which then has less to do.
    """
    check_range(offset, length)
    result = lib.dh_start_writeback(fd, offset, length)
    if result < 0:
        raise io_error(-result, "starting writeback", fd, name=name, offset=offset)


def wait_writeback(fd: int, offset: int = 0, length: int = 0, *, name: str = "") -> None:
    """Write the range's dirty pages (length 0: up to the end) and wait for them.

    No durability: metadata (so the way to new blocks) is not covered, nor is the device's own cache; it needs `fsync`
    in the end. A failure is final: pages of the file are lost, the kernel reports it once, and `fsync` on this
    descriptor may succeed afterwards.
    """
    check_range(offset, length)
    result = lib.dh_wait_writeback(fd, offset, length)
    if result < 0:
        raise io_error(-result, "writing back", fd, name=name, offset=offset)


def open_direct(fd: int, *, writable: bool = False, name: str = "") -> int:
    """Another descriptor of the same file, open with O_DIRECT for reading (`writable`: for both); the caller closes it.

    It is opened anew through /proc/self/fd, so no path can be swapped, and permissions are checked again; `fd` stays as it
    is. Close-on-exec. Raises NativeIOError: EOPNOTSUPP for what is neither a regular file nor a block device, and
    where the filesystem has no direct I/O. Mixing both kinds of I/O on one range is coherent only when one ended before
    the other began.
    """
    result = lib.dh_open_direct(fd, writable)
    if result < 0:
        raise io_error(-result, "opening for direct I/O", fd, name=name)
    return result


def direct_alignment(fd: int) -> int:
    """What offset, length and memory address of direct I/O must be multiples of, in bytes (a power of two).

    As the kernel says (statx, Linux 6.1), else a block device's logical sector, else 4096. 0: the kernel says that
    this file has no direct I/O. Raises NativeIOError (EOPNOTSUPP) for what is neither a regular file nor a block device.
    """
    result = lib.dh_direct_alignment(fd)
    if result < 0:
        raise io_error(-result, "asking for the alignment of direct I/O", fd)
    return result


def set_io_priority(level: str) -> None:
    """Set the I/O priority of the calling thread; threads it starts later inherit it.

    "normal" (as the thread's nice value says, which is the default), "low" (the last of those that are served in turn) or
    "idle" (only when nobody else wants the disk: can be never). It counts where the device's scheduler knows priorities (bfq,
    mq-deadline). ValueError for an unknown level; NativeIOError where the kernel refuses.
    """
    result = lib.dh_set_io_priority(io_level_number(level))
    if result < 0:
        raise NativeIOError(-result, f"setting the I/O priority {level!r}: {os.strerror(-result)}")


def keep_freed_memory() -> bool:
    """Have the C library keep memory that is freed, for the whole process and for good; False where it cannot (not glibc).

    For programs that export and do little else, to be called before they start threads: chunks are encoded into memory of
    their own, which would be given back to the kernel after each, and be cleared and mapped again for the next.
    """
    return bool(lib.dh_keep_freed_memory() == 0)


def address_of(buffer: ReadableBuffer) -> int:
    """Where in memory the buffer begins; what direct I/O wants to be a multiple of `direct_alignment`."""
    with ffi.from_buffer("char[]", buffer) as data:
        return int(ffi.cast("uintptr_t", data))


def aligned_buffer(size: int) -> memoryview:
    """A writable buffer of `size` zero bytes at a page boundary, as direct I/O needs it; freed with its last reference."""
    if size < 1:
        raise ValueError(f"not a buffer size in bytes: {size}")
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def block_device_size(fd: int) -> int:
    """The size of a block device in bytes. Raises NativeIOError (ENOTBLK) for anything else."""
    result = lib.dh_block_device_size(fd)
    if result < 0:
        raise io_error(-result, "asking for the device's size", fd)
    return result
