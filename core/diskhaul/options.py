"""What a caller may ask of an operation. The command line's flags have the same names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

VerifyMode = Literal["stored", "full", "none"]
Layout = Literal["diskhaul", "ganeti"]
DigestTime = Literal["now", "later"]
DirectIO = Literal["auto", "always", "never"]
IOPriority = Literal["normal", "low", "idle"]
Aim = Literal["fastest", "smallest", "least-cpu"]
Setting = str | int | float | bool
"""A value that a tuned option can have, as TOML holds it."""

COMPRESSORS = ("none", "zstd", "gzip")

MIB = 1 << 20
DEFAULT_CHUNK_SIZE = 4 * MIB
MIN_CHUNK_SIZE = 64 * 1024
MAX_CHUNK_SIZE = 64 * MIB

DEFAULT_READ_AHEAD = 4
DEFAULT_MEMORY = 192 * MIB
MIN_MEMORY = 16 * MIB

MAX_TIMEOUT_S = 366 * 24 * 3600
"""The longest wait that can be asked for: a longer one is a slip of the keyboard, and overflows timers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathOptions:
    """How bytes are moved, whatever is done with them: options of exports and imports alike.

    Attributes:
        threads: chunks worked on at once, for all disks together; 0 = one more than CPUs, at most 8.
        read_ahead: further chunks that are being read, or written, meanwhile, so that no CPU waits for the disk.
        direct_io: "auto" bypasses the page cache where file and filesystem allow it, but reads from the cache what is there
            already; "always" refuses what cannot be read and written directly; "never" goes through the cache.
        memory: bytes that the buffers of all disks may take together; fewer chunks are then worked on at once, but at least one.
        bwlimit: bytes per second that are read from disks and read back, over all disks of the run; 0 = no limit.
        nice: added to the CPU niceness of the threads that do the work, 0 to 19. The calling thread keeps its own.
        io_priority: I/O priority of those threads: "normal", "low" (best effort, lowest) or "idle" (only when nobody else
            wants the disk). Heeded by I/O schedulers that know priorities (bfq).
    """

    threads: int = 0
    read_ahead: int = DEFAULT_READ_AHEAD
    direct_io: DirectIO = "auto"
    memory: int = DEFAULT_MEMORY
    bwlimit: int = 0
    nice: int = 0
    io_priority: IOPriority = "normal"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions(PathOptions):
    """Options of an export, those of `PathOptions` included.

    Attributes:
        compress: "none", "zstd:LEVEL", "zstd:adaptive" (a level that follows the slower of disk, CPU and target),
            "zstd:adaptive:FLOOR" or "gzip:LEVEL".
        shutdown: stop the guest for the snapshots (or for the whole transfer); False exports it live.
        shutdown_timeout_s: how long a clean shutdown may take, seconds.
        long_sleep: where snapshots are impossible, keep the guest down while its disks are sent.
        zero_free_space: leave out (or zero) what the guest's filesystems do not use.
        zero_fill: name of the zero-fill backend, or None for the best one.
        zeroing_timeout_fixed_s, zeroing_timeout_per_mib_s: limit for zeroing = fixed + per MiB x size sum; None = 300 and 0.05.
        remove_instance: remove the instance after the export has been published and read back.
        ignore_remove_failures: a failing removal does not make the result incomplete.
        layout: "diskhaul" or "ganeti".
        verify: before old exports go, read back what was stored ("stored"), decode it too ("full"), or neither ("none":
            then nothing that the export supersedes is removed).
        digest: when digests are made of a raw disk that shares its blocks with the export instead of being copied: "now", by
            reading it, or "later", by the next `verify` of the export. Until then nothing that the export supersedes is removed
            by this run. A disk that is copied gets its digests now in any case.
        chunk_size: bytes per chunk, a power of two from 64 KiB to 64 MiB.
        lock_timeout_s: how long to wait for locks, seconds.
        hook_timeout_s: limit for one hook script, seconds.
        stall_timeout_s: a transfer in which nothing moves for so long fails, seconds.
        dry_run: stop after the pre hook scripts and say what would be done.
    """

    compress: str = "zstd:1"
    shutdown: bool = True
    shutdown_timeout_s: float = 120.0
    long_sleep: bool = False
    zero_free_space: bool = False
    zero_fill: str | None = None
    zeroing_timeout_fixed_s: float | None = None
    zeroing_timeout_per_mib_s: float | None = None
    remove_instance: bool = False
    ignore_remove_failures: bool = False
    layout: Layout = "diskhaul"
    verify: VerifyMode = "stored"
    digest: DigestTime = "now"
    chunk_size: int = DEFAULT_CHUNK_SIZE
    lock_timeout_s: float = 3600.0
    hook_timeout_s: float = 60.0
    stall_timeout_s: float = 600.0
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions(PathOptions):
    """Options of an import, those of `PathOptions` included.

    Attributes:
        force: overwrite disks that exist.
        grow: new disk sizes in bytes by disk index; a disk may grow, never shrink.
        lock_timeout_s, stall_timeout_s: as in `ExportOptions`.
        dry_run: check everything and write nothing.
    """

    force: bool = False
    grow: tuple[tuple[int, int], ...] = ()
    lock_timeout_s: float = 3600.0
    stall_timeout_s: float = 600.0
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepPolicy:
    """Which exports ``prune`` and the ``keep`` clean-up keep; 0 keeps none for that reason. Periods are UTC, weeks ISO."""

    last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    @property
    def keeps_nothing(self) -> bool:
        return not (self.last or self.daily or self.weekly or self.monthly or self.yearly)
