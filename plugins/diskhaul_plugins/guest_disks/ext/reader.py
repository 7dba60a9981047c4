"""The reader: may the bitmaps be believed, as they are or as the journal will leave them? Then what is free, else why not."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace

from ..reading import Reading
from ..volume import Volume
from .errors import KeptError
from .groups import check_in_use, check_tables, free_runs, metadata
from .journal import Journal, Replayed, read_journal, replay
from .libext2fs import Filesystem, load, open_filesystem
from .superblock import ERROR_FS, VALID_FS, Superblock, check_features, check_geometry, read_superblock

CLEAN, REPLAYED, DIRTY, ERRORS = "clean", "journal replayed", "dirty", "has errors"


def read_ext(volume: Volume) -> Reading:
    """Read which bytes of an ext2, ext3 or ext4 filesystem are free.

    Its block bitmaps are believed when it was unmounted or frozen, when its journal is empty, and otherwise as they will be
    when its journal has been replayed. All checksums and counts must fit, and what is known to be in use must not be called
    free. Nothing is written. Memory: about 200 bytes for a block group and for a block in the journal, 16 for a free range.

    Raises:
        NotThisError: there is no superblock of ext2.
        OSError: the superblock cannot be read.
    """
    superblock = read_superblock(volume)
    reading = Reading(
        type=superblock.type,
        label=superblock.label,
        size=min(superblock.blocks * superblock.block_size, volume.size),
        block_size=superblock.block_size * superblock.cluster_blocks,
        state=_state(superblock),
        free=superblock.free_blocks * superblock.block_size if superblock.free_blocks <= superblock.blocks else None,
    )
    try:
        check_features(superblock)
        check_geometry(superblock, volume.size)
        _check_state(superblock)
        return _read(volume, superblock, reading)
    except KeptError as error:
        return replace(reading, state=error.state or reading.state, kept=str(error))
    except MemoryError:
        return replace(reading, kept="it takes too much memory to read")
    except OSError as error:
        return replace(reading, kept=f"it cannot be read: {error.strerror or error}")


def _state(superblock: Superblock) -> str:
    if superblock.state & ERROR_FS:
        return ERRORS
    return DIRTY if superblock.needs_recovery or superblock.state != VALID_FS else CLEAN


def _check_state(superblock: Superblock) -> None:
    if superblock.state & ERROR_FS:
        raise KeptError("the filesystem has noted errors", state=ERRORS)
    if superblock.state != VALID_FS:  # without a journal that is so while it is mounted, too
        raise KeptError("it was not unmounted", state=DIRTY)
    if superblock.needs_recovery and not superblock.has_journal:
        raise KeptError("it wants to replay a journal, and has none")
    if superblock.has_journal and bool(superblock.journal_inode) == bool(superblock.journal_device):
        raise KeptError("it has no journal, or two")


def _read(volume: Volume, superblock: Superblock, reading: Reading) -> Reading:
    """The complete reading, from what is known before the groups are read."""
    with ExitStack() as opened:
        now = opened.enter_context(open_filesystem(volume, superblock))
        journal = read_journal(now, load()) if superblock.has_journal and superblock.journal_inode else None
        state, believed = CLEAN, now
        if journal is not None:
            _check_journal(superblock, journal)
        elif superblock.needs_recovery:
            raise KeptError("its journal is on another disk")
        if journal is not None and journal.start:
            state, believed = REPLAYED, opened.enter_context(_replayed(volume, superblock, journal))
        runs, free = free_runs(believed)
        if not superblock.needs_recovery and free != superblock.free_blocks * superblock.block_size:
            raise KeptError("its groups have another number of free blocks than it says")
        check_in_use(believed, metadata(believed), runs)
        check_tables(believed)
        if journal is not None:
            # The journal is found and read before it is replayed, so by what the disk has now.
            check_in_use(now, journal.file.pieces(), runs)
            if believed is not now:
                check_in_use(now, metadata(now), runs)
    return replace(reading, state=state, free=free, runs=runs)


def _check_journal(superblock: Superblock, journal: Journal) -> None:
    if journal.error:
        raise KeptError("its journal has noted an error", state=ERRORS)
    if superblock.needs_recovery and journal.has_fast_commits:
        raise KeptError("its journal has fast commits")
    if journal.start and not superblock.needs_recovery:
        raise KeptError("its journal has content, though it was unmounted")


def _replayed(volume: Volume, superblock: Superblock, journal: Journal) -> AbstractContextManager[Filesystem]:
    """The filesystem as it will be when the journal has been replayed."""
    changed = replay(journal, volume, load())
    source = Replayed(volume, superblock.block_size, changed)
    after = read_superblock(source)
    check_features(after)
    check_geometry(after, source.size)
    _check_state(after)
    if not after.is_laid_out_as(superblock):
        raise KeptError("it is being resized")  # what is read before a replay has to fit what comes after
    return open_filesystem(source, after)
