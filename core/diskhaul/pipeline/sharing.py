"""Disks that need not be copied: a file of an export shares their blocks, and it is found out whether it really does."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from enum import Enum

import diskhaul_native as native

from ..api import CloneStoreFile, ExportReader, StoreFile
from ..errors import StorageError
from ..options import DirectIO
from .source import Source


class Shared(Enum):
    """How a stored file comes to hold a disk."""

    NO = "no"
    """Nothing is in it yet: it has to be copied."""
    CLAIMED = "claimed"
    """The store says that it shares the disk's blocks; its bytes have to be compared."""
    PROVEN = "proven"
    """It is the very same blocks, by the filesystem's own maps: what is read of the one is what is in the other."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """What became of the attempt to share a disk's blocks.

    Attributes:
        reason: why it is not `Shared.PROVEN`.
        data_bytes: what the blocks hold, holes left out; 0 unless it is `Shared.PROVEN`.
        file_id: device and inode of the file that it is proven for.
    """

    shared: Shared
    reason: str = ""
    data_bytes: int = 0
    file_id: tuple[int, int] = (0, 0)


def share_blocks(source: Source, file: StoreFile) -> Sharing:
    """Have `file`, in which nothing has been written, share all blocks of the disk `source`, if that can be.

    Raises:
        StorageError: the attempt failed, or the disk was written to meanwhile.
    """
    descriptor = source.whole_file()
    if descriptor is None:
        return Sharing(Shared.NO, "it is not read from a whole regular file")
    if not isinstance(file, CloneStoreFile):
        return Sharing(Shared.NO, "its store cannot share blocks")
    if not file.clone_from(descriptor, source.size):
        return Sharing(Shared.NO, "its blocks cannot be shared with the export: another filesystem, or one without reflinks")
    try:
        own = file.fileno()
        status = os.fstat(own)
        if os.path.samestat(status, os.fstat(descriptor)):  # of course it has the same blocks; as a copy it is none
            raise StorageError(f"{source.label}: its store gave the disk itself for a copy of it", path=source.label)
        found = native.shared_blocks(descriptor, own, source.size, name=source.label)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV):
            raise _failure(source, error) from error
        return Sharing(Shared.CLAIMED, "its filesystem does not tell which blocks are shared (compressed files, for example)")
    if found.end != source.size:
        raise StorageError(
            f"{source.label}: at offset {found.end} the export does not share its blocks: it was written to meanwhile",
            path=source.label,
            offset=found.end,
        )
    return Sharing(Shared.PROVEN, data_bytes=found.data, file_id=(status.st_dev, status.st_ino))


def open_shared(export: ExportReader, file: str, sharing: Sharing, *, direct_io: DirectIO) -> Source:
    """Open the stored `file` for which `sharing` is proven.

    Raises:
        StorageError: it cannot be opened, or the store gives another file than the one that was compared.
    """
    source = Source(export.open(file), f"{export.location}/{file}", direct_io=direct_io)
    descriptor = source.whole_file()
    status = os.fstat(descriptor) if descriptor is not None else None
    if status is None or (status.st_dev, status.st_ino) != sharing.file_id:
        source.close()
        raise StorageError(f"{source.label}: is not the file that shares the disk's blocks", path=source.label)
    return source


def _failure(source: Source, error: OSError) -> StorageError:
    offset = getattr(error, "offset", None)
    reason = "it has shrunk" if error.errno == errno.ENODATA else os.strerror(error.errno or 0)
    return StorageError(f"{source.label}: cannot tell which blocks it shares: {reason}", path=source.label, offset=offset)
