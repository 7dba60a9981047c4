"""The functions of diskhaul_native in plain Python: slow, short, and the oracle that tests compare the C core with.

Same names, arguments, results and errors as the package itself; nothing but tests should use it. It never stands in for a
missing C core.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import stat
import struct
import sys
from array import array
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from .errors import NativeIOError, io_error
from .ranges import (
    IO_LEVELS,
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

KERNELS = ("python",)
BEST_KERNEL = "python"

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10
FICLONE = 0x40049409
FICLONERANGE = 0x4020940D
FS_IOC_FIEMAP = 0xC020660B
FS_IOC_FSGETXATTR = 0x801C581F
BTRFS_IOC_FS_INFO = 0x8400941F
FIEMAP_FLAG_SYNC = 0x1
FIEMAP_EXTENT_UNTOLD = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400
FIEMAP_EXTENT_UNWRITTEN = 0x800
FS_XFLAG_REALTIME = 0x1
XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC = 0x58465342, 0x9123683E
BLKSSZGET = 0x1268
BLKGETSIZE64 = 0x80081272
BLKZEROOUT = 0x127F
UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY, errno.ENODEV, errno.EINVAL})
SYNC_FILE_RANGE_WAIT_BEFORE, SYNC_FILE_RANGE_WRITE, SYNC_FILE_RANGE_WAIT_AFTER = 1, 2, 4
STATX_DIOALIGN = 0x2000
AT_EMPTY_PATH = 0x1000
SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
PIECE = 1 << 20

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
LIBC.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
LIBC.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
LIBC.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
LIBC.fstatfs.argtypes = (ctypes.c_int, ctypes.c_char_p)
LIBC.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)


def is_zero(buffer: ReadableBuffer, *, kernel: str | None = None) -> bool:
    """See diskhaul_native.is_zero."""
    _check_kernel(kernel)
    return not any(memoryview(buffer).cast("B"))


def _check_kernel(kernel: str | None) -> None:
    if kernel is not None and kernel not in KERNELS:
        raise ValueError(f"no zero-scan kernel {kernel!r} here: {', '.join(KERNELS)}")


def sum_words(buffer: ReadableBuffer, *, kernel: str | None = None) -> int:
    """See diskhaul_native.sum_words."""
    _check_kernel(kernel)
    data = bytes(buffer)
    return sum(int.from_bytes(data[i : i + 8].ljust(8, b"\0"), sys.byteorder) for i in range(0, len(data), 8)) % 2**64


def crc32c(buffer: ReadableBuffer, crc: int = 0) -> int:
    """See diskhaul_native.crc32c."""
    if not 0 <= crc < 1 << 32:
        raise OverflowError(f"not a number of 32 bits: {crc}")
    crc ^= 0xFFFFFFFF
    for byte in memoryview(buffer).cast("B"):
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def read_into(fd: int, buffer: WriteableBuffer, offset: int, *, name: str = "") -> None:
    """See diskhaul_native.read_into."""
    view = memoryview(buffer).cast("B")
    check_range(offset, len(view))
    done = 0
    while done < len(view):
        try:
            count = os.preadv(fd, [view[done:]], offset + done)
        except OSError as error:
            raise io_error(error.errno or errno.EIO, "reading", fd, name=name, offset=offset + done) from None
        if count == 0:
            raise io_error(errno.ENODATA, "reading", fd, name=name, offset=offset + done)
        done += count


def read_scan(fd: int, buffer: WriteableBuffer, offset: int, *, kernel: str | None = None, name: str = "") -> bool:
    """See diskhaul_native.read_scan."""
    _check_kernel(kernel)
    read_into(fd, buffer, offset, name=name)
    return is_zero(buffer)


def read_direct(fd: int, buffer: WriteableBuffer, offset: int, needed: int, *, name: str = "") -> None:
    """See diskhaul_native.read_direct."""
    view = memoryview(buffer).cast("B")
    check_range(offset, len(view))
    check_needed(needed, len(view))
    if needed == 0:
        return
    try:
        count = os.preadv(fd, [view], offset)  # one piece, as it is for what is no larger than 2 GiB and is not interrupted
    except OSError as error:
        raise io_error(error.errno or errno.EIO, "reading", fd, name=name, offset=offset) from None
    if count < needed:
        raise io_error(errno.ENODATA, "reading", fd, name=name, offset=offset + count)


def write_from(fd: int, buffer: ReadableBuffer, offset: int, *, name: str = "") -> None:
    """See diskhaul_native.write_from."""
    view = memoryview(buffer).cast("B")
    check_range(offset, len(view))
    done = 0
    while done < len(view):
        try:
            count = os.pwrite(fd, view[done:], offset + done)
        except OSError as error:
            raise io_error(error.errno or errno.EIO, "writing", fd, name=name, offset=offset + done) from None
        if count == 0:
            raise io_error(errno.EIO, "writing", fd, name=name, offset=offset + done)
        done += count


def write_sparse(
    fd: int, buffer: ReadableBuffer, offset: int, *, block_size: int = 4096, zero_holes: bool = False, name: str = ""
) -> int:
    """See diskhaul_native.write_sparse."""
    view = memoryview(buffer).cast("B")
    check_range(offset, len(view))
    check_block_size(block_size)
    written = 0
    position = 0
    while position < len(view):
        size = min(len(view) - position, block_size - (offset + position) % block_size)
        block = view[position : position + size]
        if any(block):
            write_from(fd, block, offset + position, name=name)
            written += size
        elif zero_holes:
            zero_range(fd, offset + position, size, name=name)
        position += size
    return written


def extents(fd: int, size: int, *, start: int = 0, name: str = "") -> Iterator[tuple[int, int, bool]]:
    """See diskhaul_native.extents."""
    check_range(start, max(0, size - start))
    return _extents(fd, size, start, name)


def _extents(fd: int, size: int, start: int, name: str) -> Iterator[tuple[int, int, bool]]:
    position = start
    while position < size:
        data = _seek(fd, position, os.SEEK_DATA, name)
        if data is None or 0 <= data < position:  # cannot tell, or an answer that makes no sense
            yield position, size - position, True
            return
        if data < 0:  # no data up to the end of the file: a hole, as far as the file goes
            if os.fstat(fd).st_size < size:
                raise io_error(errno.ENODATA, "mapping extents", fd, name=name, offset=max(position, os.fstat(fd).st_size))
            data = size
        if data > position:
            end = min(data, size)
            yield position, end - position, False
        else:
            hole = _seek(fd, position, os.SEEK_HOLE, name)
            if hole == -1:
                raise io_error(errno.ENODATA, "mapping extents", fd, name=name, offset=position)
            end = size if hole is None or hole <= position else min(hole, size)
            yield position, end - position, True
        position = end


def _seek(fd: int, position: int, whence: int, name: str) -> int | None:
    """The offset lseek found; -1 for "nothing up to the end", None where the file cannot tell."""
    try:
        return os.lseek(fd, position, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return -1
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.ESPIPE):
            return None
        raise io_error(error.errno or errno.EIO, "mapping extents", fd, name=name, offset=position) from None


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
    """See diskhaul_native.copy_range."""
    target_start = offset if target_offset is None else target_offset
    check_range(offset, length)
    check_range(target_start, length)
    _refuse_overlap(source_fd, target_fd, offset, target_start, length, name)
    read = written = 0
    for extent_offset, extent_length, is_data in extents(source_fd, offset + length, start=offset, name=name):
        shift = target_start - offset
        if not is_data:
            if zero_holes:
                zero_range(target_fd, extent_offset + shift, extent_length, name=name)
            continue
        for position in range(extent_offset, extent_offset + extent_length, PIECE):
            piece = bytearray(min(PIECE, extent_offset + extent_length - position))
            read_into(source_fd, piece, position, name=name)
            read += len(piece)
            written += write_sparse(target_fd, piece, position + shift, zero_holes=zero_holes, name=name)
    return CopyResult(read, written)


def _status(fd: int, offset: int, name: str) -> os.stat_result:
    try:
        return os.fstat(fd)
    except OSError as error:
        raise io_error(error.errno or errno.EIO, "copying", fd, name=name, offset=offset) from None


def _refuse_overlap(source_fd: int, target_fd: int, offset: int, target_offset: int, length: int, name: str) -> None:
    source = _status(source_fd, offset, name)
    target = _status(target_fd, target_offset, name)
    same_file = (source.st_dev, source.st_ino) == (target.st_dev, target.st_ino)
    same_device = stat.S_ISBLK(source.st_mode) and stat.S_ISBLK(target.st_mode) and source.st_rdev == target.st_rdev
    if (same_file or same_device) and abs(offset - target_offset) < length:
        raise io_error(errno.EINVAL, "copying a range onto itself", source_fd, name=name, offset=offset)


def zero_range(fd: int, offset: int, length: int, *, method: str = "auto", name: str = "") -> str:
    """See diskhaul_native.zero_range."""
    check_range(offset, length)
    zero_method_number(method)
    methods = ZERO_METHODS[1:] if method == "auto" else (method,)
    for candidate in methods:
        try:
            _zero(fd, offset, length, candidate, name)
        except NativeIOError as error:
            if error.errno == errno.EOPNOTSUPP and method == "auto":
                continue
            raise
        return candidate
    raise io_error(errno.EOPNOTSUPP, "zeroing", fd, name=name, offset=offset)


def _zero(fd: int, offset: int, length: int, method: str, name: str) -> None:
    """Zero with this method; NativeIOError EOPNOTSUPP where the target does not have it."""
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise io_error(error.errno or errno.EIO, "zeroing", fd, name=name, offset=offset) from None
    is_block = stat.S_ISBLK(status.st_mode)
    sector = struct.unpack("I", fcntl.ioctl(fd, BLKSSZGET, bytes(4)))[0] if is_block else 1
    if is_block and offset + length > block_device_size(fd):
        raise io_error(errno.ENOSPC, "zeroing", fd, name=name, offset=offset)
    if length == 0:
        return
    first = -(-offset // sector) * sector
    last = (offset + length) // sector * sector
    if method == "write" or first >= last:
        _write_zeros(fd, offset, length, name)
        return
    if method == "punch":
        _fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, first, last - first, name)
        if stat.S_ISREG(status.st_mode) and os.fstat(fd).st_size < offset + length:
            write_from(fd, b"\0", offset + length - 1, name=name)
    elif method == "zero-range":
        _fallocate(fd, FALLOC_FL_ZERO_RANGE | (FALLOC_FL_KEEP_SIZE if is_block else 0), first, last - first, name)
    else:
        try:
            fcntl.ioctl(fd, BLKZEROOUT, struct.pack("QQ", first, last - first))
        except OSError as error:
            code = errno.EOPNOTSUPP if error.errno in UNSUPPORTED else error.errno or errno.EIO
            raise io_error(code, "zeroing", fd, name=name, offset=first) from None
    _write_zeros(fd, offset, first - offset, name)
    _write_zeros(fd, last, offset + length - last, name)


def _write_zeros(fd: int, offset: int, length: int, name: str) -> None:
    for position in range(offset, offset + length, PIECE):
        write_from(fd, bytes(min(PIECE, offset + length - position)), position, name=name)


def _fallocate(fd: int, mode: int, offset: int, length: int, name: str) -> None:
    while LIBC.fallocate(fd, mode, offset, length) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise io_error(errno.EOPNOTSUPP if code in UNSUPPORTED else code, "zeroing", fd, name=name, offset=offset)


def clone(
    source_fd: int, target_fd: int, *, source_offset: int = 0, length: int = 0, target_offset: int = 0, name: str = ""
) -> None:
    """See diskhaul_native.clone."""
    check_range(source_offset, length)
    check_range(target_offset, length)
    try:
        if source_offset == length == target_offset == 0:
            fcntl.ioctl(target_fd, FICLONE, source_fd)
        else:
            fcntl.ioctl(target_fd, FICLONERANGE, struct.pack("qQQQ", source_fd, source_offset, length, target_offset))
    except OSError as error:
        code = errno.EOPNOTSUPP if error.errno in (errno.ENOTTY, errno.ENOSYS) else error.errno or errno.EIO
        raise io_error(code, "cloning", target_fd, name=name, offset=target_offset) from None


def shared_blocks(first_fd: int, second_fd: int, size: int, *, name: str = "") -> SharedBlocks:
    """See diskhaul_native.shared_blocks."""
    check_range(0, size)
    both = (first_fd, second_fd)
    position = data = 0
    try:
        statuses = [os.fstat(fd) for fd in both]
        if not all(stat.S_ISREG(status.st_mode) for status in statuses):
            raise OSError(errno.EOPNOTSUPP, "")
        shorter = min(status.st_size for status in statuses)
        if shorter < size:
            position = shorter
            raise OSError(errno.ENODATA, "")
        kinds = [_filesystem_kind(fd) for fd in both]
        spaces = [_address_space(fd, kinds[0]) for fd in both] if kinds[0] == kinds[1] else kinds
        if spaces[0] != spaces[1]:
            raise OSError(errno.EXDEV, "")
        maps = [_extent_map(fd, size) for fd in both]
        bounds = sorted({0, size, *(place for found in maps for extent in found for place in extent[:2] if place < size)})
        for position, following in pairwise(bounds):
            ours, theirs = (_block_at(found, position) for found in maps)
            if ours != theirs:
                return SharedBlocks(position, data)
            data += 0 if ours is None else following - position
    except OSError as error:
        code = errno.EOPNOTSUPP if error.errno in {*UNSUPPORTED, errno.EBADR} else error.errno or errno.EIO
        raise io_error(code, "comparing blocks", first_fd, name=name, offset=position) from None
    return SharedBlocks(size, data)


def _filesystem_kind(fd: int) -> int:
    """`f_type` of statfs."""
    answer = ctypes.create_string_buffer(256)
    if LIBC.fstatfs(fd, answer) != 0:
        raise OSError(ctypes.get_errno(), "")
    return int(struct.unpack_from("l", answer)[0])


def _address_space(fd: int, kind: int) -> object:
    """What the physical offsets of the file's extents are offsets in; raises EOPNOTSUPP where nobody knows."""
    if kind == XFS_SUPER_MAGIC:
        (flags,) = struct.unpack_from("I", fcntl.ioctl(fd, FS_IOC_FSGETXATTR, bytes(28)))
        if not flags & FS_XFLAG_REALTIME:
            return os.fstat(fd).st_dev
    elif kind == BTRFS_SUPER_MAGIC:
        return fcntl.ioctl(fd, BTRFS_IOC_FS_INFO, bytes(1024))[16:32]
    raise OSError(errno.EOPNOTSUPP, "")


def _extent_map(fd: int, size: int) -> list[tuple[int, int, int, int]]:
    """Start, end, physical offset and flags of all extents that begin before `size`."""
    found: list[tuple[int, int, int, int]] = []
    start = 0
    while start < size:
        answer = bytearray(struct.pack("QQIIII", start, size - start, FIEMAP_FLAG_SYNC, 0, 64, 0) + bytes(64 * 56))
        fcntl.ioctl(fd, FS_IOC_FIEMAP, answer)
        count = struct.unpack_from("QQII", answer)[3]
        for number in range(count):
            logical, physical, length, _, _, flags = struct.unpack_from("QQQQQI", answer, 32 + 56 * number)
            found.append((logical, logical + length, physical, flags))
        if count < 64:
            break
        start = found[-1][1]
    return found


def _block_at(extents: list[tuple[int, int, int, int]], position: int) -> int | None:
    """Where on the device the byte at `position` lies, None for zeros; raises EOPNOTSUPP where the map does not tell."""
    for start, end, physical, flags in extents:
        if start <= position < end:
            if flags & FIEMAP_EXTENT_UNTOLD:
                raise OSError(errno.EOPNOTSUPP, "")
            return None if flags & FIEMAP_EXTENT_UNWRITTEN else physical + position - start
    return None


def fsync(fd: int, *, name: str = "") -> None:
    """See diskhaul_native.fsync."""
    try:
        os.fsync(fd)
    except OSError as error:
        raise io_error(error.errno or errno.EIO, "syncing", fd, name=name) from None


def drop_cache(fd: int, offset: int = 0, length: int = 0) -> None:
    """See diskhaul_native.drop_cache."""
    check_range(offset, length)
    try:
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise io_error(error.errno or errno.EIO, "dropping the cache", fd, offset=offset) from None


def cached_bytes(fd: int, offset: int, length: int) -> int:
    """See diskhaul_native.cached_bytes. By mincore, byte for byte."""
    check_range(offset, length)
    action = "asking for cached pages"
    size = _size_of_file_or_device(fd, action, offset)
    end = min(offset + length, size)
    if offset >= end:
        return 0
    writer = os.access(f"/proc/self/fd/{fd}", os.W_OK, effective_ids=True)
    if os.geteuid() != os.fstat(fd).st_uid and not writer:  # mincore calls everything resident then
        raise io_error(errno.EOPNOTSUPP, action, fd, offset=offset)
    start = offset - offset % mmap.PAGESIZE
    address = LIBC.mmap(None, end - start, mmap.PROT_READ, mmap.MAP_SHARED, fd, start)
    if address == ctypes.c_void_p(-1).value:
        raise io_error(errno.EOPNOTSUPP, action, fd, offset=offset)
    resident = ctypes.create_string_buffer(-(-(end - start) // mmap.PAGESIZE))
    result = LIBC.mincore(address, end - start, resident)
    code = ctypes.get_errno()
    LIBC.munmap(address, end - start)
    if result != 0:
        raise io_error(code, action, fd, offset=offset)
    pages = range(start, end, mmap.PAGESIZE)
    inside = [min(page + mmap.PAGESIZE, end) - max(page, offset) for page in pages]
    return sum(count for count, state in zip(inside, resident.raw, strict=True) if state & 1)


def _size_of_file_or_device(fd: int, action: str, offset: int | None = None) -> int:
    """The size in bytes; NativeIOError EOPNOTSUPP for what is neither a regular file nor a block device."""
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise io_error(error.errno or errno.EIO, action, fd, offset=offset) from None
    if stat.S_ISBLK(status.st_mode):
        return block_device_size(fd)
    if not stat.S_ISREG(status.st_mode):
        raise io_error(errno.EOPNOTSUPP, action, fd, offset=offset)
    return status.st_size


def start_writeback(fd: int, offset: int = 0, length: int = 0, *, name: str = "") -> None:
    """See diskhaul_native.start_writeback."""
    _sync_file_range(fd, offset, length, SYNC_FILE_RANGE_WRITE, "starting writeback", name)


def wait_writeback(fd: int, offset: int = 0, length: int = 0, *, name: str = "") -> None:
    """See diskhaul_native.wait_writeback."""
    flags = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER
    _sync_file_range(fd, offset, length, flags, "writing back", name)


def _sync_file_range(fd: int, offset: int, length: int, flags: int, action: str, name: str) -> None:
    check_range(offset, length)
    if LIBC.sync_file_range(fd, offset, length, flags) != 0:
        raise io_error(ctypes.get_errno(), action, fd, name=name, offset=offset)


def open_direct(fd: int, *, writable: bool = False, name: str = "") -> int:
    """See diskhaul_native.open_direct."""
    action = "opening for direct I/O"
    try:
        given = os.fstat(fd)
        if not stat.S_ISREG(given.st_mode) and not stat.S_ISBLK(given.st_mode):
            raise io_error(errno.EOPNOTSUPP, action, fd, name=name)
        direct_fd = os.open(f"/proc/self/fd/{fd}", (os.O_RDWR if writable else os.O_RDONLY) | os.O_DIRECT | os.O_CLOEXEC)
    except NativeIOError:
        raise
    except OSError as error:
        code = errno.EOPNOTSUPP if error.errno == errno.EINVAL else error.errno or errno.EIO
        raise io_error(code, action, fd, name=name) from None
    if not os.path.sameopenfile(fd, direct_fd):
        os.close(direct_fd)
        raise io_error(errno.ESTALE, action, fd, name=name)
    return direct_fd


def direct_alignment(fd: int) -> int:
    """See diskhaul_native.direct_alignment."""
    _size_of_file_or_device(fd, "asking for the alignment of direct I/O")
    extended = ctypes.create_string_buffer(256)
    if LIBC.statx(fd, b"", AT_EMPTY_PATH, STATX_DIOALIGN, extended) == 0:
        (mask,) = struct.unpack_from("I", extended)
        if mask & STATX_DIOALIGN:
            memory, offset = struct.unpack_from("II", extended, 0x98)
            return max(int(memory), int(offset))
    if stat.S_ISBLK(os.fstat(fd).st_mode):
        return int(struct.unpack("I", fcntl.ioctl(fd, BLKSSZGET, bytes(4)))[0])
    return 4096


def set_io_priority(level: str) -> None:
    """See diskhaul_native.set_io_priority."""
    priority = {"normal": 0, "low": 2 << 13 | 7, "idle": 3 << 13}[IO_LEVELS[io_level_number(level)]]
    if LIBC.syscall(SYS_IOPRIO_SET[platform.machine()], 1, 0, priority) != 0:
        code = ctypes.get_errno()
        raise NativeIOError(code, f"setting the I/O priority {level!r}: {os.strerror(code)}")


def keep_freed_memory() -> bool:
    """See diskhaul_native.keep_freed_memory."""
    arena_max, mmap_threshold, trim_threshold = -8, -3, -1  # malloc.h
    set_option = getattr(LIBC, "mallopt", None)
    return set_option is not None and all(
        set_option(option, value) for option, value in ((mmap_threshold, 32 << 20), (trim_threshold, 256 << 20), (arena_max, 2))
    )


def clear_bit_runs(bitmap: ReadableBuffer, first: int, count: int) -> array[int]:
    """See diskhaul_native.clear_bit_runs."""
    view = memoryview(bitmap).cast("B")
    check_bits(first, count, len(view))
    found = array("Q")
    for position in range(first, first + count):
        if view[position // 8] >> position % 8 & 1:
            continue
        if found and found[-2] + found[-1] == position:
            found[-1] += 1
        else:
            found.extend((position, 1))
    return found


def address_of(buffer: ReadableBuffer) -> int:
    """See diskhaul_native.address_of."""
    view = memoryview(buffer).cast("B")
    return ctypes.addressof((ctypes.c_char * len(view)).from_buffer(view))


def aligned_buffer(size: int) -> memoryview:
    """See diskhaul_native.aligned_buffer."""
    if size < 1:
        raise ValueError(f"not a buffer size in bytes: {size}")
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def block_device_size(fd: int) -> int:
    """See diskhaul_native.block_device_size."""
    try:
        if not stat.S_ISBLK(os.fstat(fd).st_mode):
            raise io_error(errno.ENOTBLK, "asking for the device's size", fd)
        size: int = struct.unpack("Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))[0]
    except NativeIOError:
        raise
    except OSError as error:
        raise io_error(error.errno or errno.EIO, "asking for the device's size", fd) from None
    return size
