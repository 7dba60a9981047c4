"""The C core of diskhaul and its Python face: zero scan, checksums, whole reads and writes, direct I/O, the page cache,
extents, sparse copies, zeroing, reflinks, what files share, and bitmaps.

Thin on purpose: `low_level` talks to C and says what all functions have in common. `diskhaul_native.reference` has the
same functions in plain Python, for tests; it is never used in place of the C core, which must be built.
"""

from __future__ import annotations

from .errors import DIRECT_IO_REFUSED, NativeIOError

try:
    from .low_level import (
        BEST_KERNEL,
        KERNELS,
        address_of,
        aligned_buffer,
        block_device_size,
        cached_bytes,
        clear_bit_runs,
        clone,
        copy_range,
        crc32c,
        direct_alignment,
        drop_cache,
        extents,
        fsync,
        is_zero,
        keep_freed_memory,
        open_direct,
        read_direct,
        read_into,
        read_scan,
        set_io_priority,
        shared_blocks,
        start_writeback,
        sum_words,
        wait_writeback,
        write_from,
        write_sparse,
        zero_range,
    )
except ModuleNotFoundError as error:
    if error.name != f"{__name__}._core":
        raise
    raise ImportError("the C core of diskhaul_native is not built: run 'make', or install the package with pip") from error
from .ranges import CopyResult, SharedBlocks

__all__ = [
    "BEST_KERNEL",
    "DIRECT_IO_REFUSED",
    "KERNELS",
    "CopyResult",
    "NativeIOError",
    "SharedBlocks",
    "address_of",
    "aligned_buffer",
    "block_device_size",
    "cached_bytes",
    "clear_bit_runs",
    "clone",
    "copy_range",
    "crc32c",
    "direct_alignment",
    "drop_cache",
    "extents",
    "fsync",
    "is_zero",
    "keep_freed_memory",
    "open_direct",
    "read_direct",
    "read_into",
    "read_scan",
    "set_io_priority",
    "shared_blocks",
    "start_writeback",
    "sum_words",
    "wait_writeback",
    "write_from",
    "write_sparse",
    "zero_range",
]
