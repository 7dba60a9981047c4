"""diskhaul_native: the C core's face. Temporarily the Python reference until the extension is there."""

from __future__ import annotations

from .errors import NativeIOError
from .ranges import CopyResult
from .reference import (
    KERNELS,
    aligned_buffer,
    block_device_size,
    clone,
    copy_range,
    drop_cache,
    extents,
    fsync,
    is_zero,
    read_into,
    read_scan,
    write_from,
    write_sparse,
    zero_range,
)

__all__ = [
    "KERNELS",
    "CopyResult",
    "NativeIOError",
    "aligned_buffer",
    "block_device_size",
    "clone",
    "copy_range",
    "drop_cache",
    "extents",
    "fsync",
    "is_zero",
    "read_into",
    "read_scan",
    "write_from",
    "write_sparse",
    "zero_range",
]
