"""Swap space (mkswap(8); Linux: include/linux/swap.h, ``union swap_header``): its content is worthless once the guest is off.

What a guest needs to use it again is kept: the header page, with its UUID and label. So is everything where a hibernated system
may lie in it.
"""

from __future__ import annotations

import struct

from .reading import FreeRuns, NotThisError, Reading
from .volume import Volume

PAGE_SIZES = tuple(1 << shift for shift in range(12, 17))
"""Every page size that Linux has had on machines with swap; the signature ends the first page, so that it tells the size."""

SIGNATURES = (b"SWAPSPACE2", b"SWAP-SPACE")
HIBERNATION = (b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001", b"\xed\xc3\x02\xe9\x98\x56\xe5\x0c")
"""In place of the signature while a hibernated system lies there (swsusp, swsusp of 2.6.0, uswsusp, TuxOnIce old and new)."""

_BOOT_BYTES = 1024
_INFO = struct.Struct("<III16s16s117I")  # version, last page, number of bad pages, UUID, label, padding
_BAD_PAGES_AT = _BOOT_BYTES + _INFO.size
_LONGEST_SIGNATURE = 10


def read_swap(volume: Volume) -> Reading:
    """All pages but the first, and but those that its maker found bad.

    Raises:
        NotThisError: it is no swap space.
        OSError: it cannot be read.
    """
    found = [(size, signature) for size in PAGE_SIZES if (signature := _signature(volume, size))]
    if not found:
        raise NotThisError
    page_size, signature = found[0]
    if len(found) > 1:
        return _kept(volume, page_size, "signatures of two page sizes")
    if signature in HIBERNATION:
        return _kept(volume, page_size, "holds a hibernated system", state="hibernated")
    if signature != b"SWAPSPACE2":
        return _kept(volume, page_size, "an old format")
    header = volume.read(0, page_size)
    order = "<" if struct.unpack_from("<I", header, _BOOT_BYTES)[0] == 1 else ">"
    version, last_page, bad_count = struct.unpack_from(f"{order}III", header, _BOOT_BYTES)
    label = header[_BOOT_BYTES + 28 : _BOOT_BYTES + 44].partition(b"\0")[0].decode("utf-8", "replace")
    if version != 1:
        return _kept(volume, page_size, "an unknown version", label=label)
    if not 0 < last_page < volume.size // page_size:
        return _kept(volume, page_size, "larger than what it lies on", label=label)
    if bad_count > (page_size - _LONGEST_SIGNATURE - _BAD_PAGES_AT) // 4:
        return _kept(volume, page_size, "more bad pages than it has room for", label=label)
    bad = sorted(set(struct.unpack_from(f"{order}{bad_count}I", header, _BAD_PAGES_AT)))
    if bad and not 0 < bad[0] <= bad[-1] <= last_page:
        return _kept(volume, page_size, "bad pages that it does not have", label=label)
    runs = FreeRuns()
    begin = 1
    for page in (*bad, last_page + 1):
        if page > begin:
            runs.add(begin * page_size, (page - begin) * page_size)
        begin = page + 1
    return Reading(
        type="swap",
        label=label,
        size=(last_page + 1) * page_size,
        block_size=page_size,
        state="clean",
        free=runs.total,
        runs=runs,
    )


def _signature(volume: Volume, page_size: int) -> bytes:
    if volume.size < page_size:
        return b""
    end = volume.read(page_size - _LONGEST_SIGNATURE, _LONGEST_SIGNATURE)
    return next((known for known in (*SIGNATURES, *HIBERNATION) if end.startswith(known)), b"")


def _kept(volume: Volume, page_size: int, why: str, *, label: str = "", state: str = "") -> Reading:
    size = volume.size - volume.size % page_size
    return Reading(type="swap", label=label, size=size, block_size=page_size, state=state, free=None, kept=why)
