"""The level that ``zstd:adaptive`` compresses at: it follows the slower of disk, CPU and target.

While CPUs have nothing to do, since all threads wait for chunks to be read or for the target to take what they made, a higher
level costs no time and stores less. While the CPUs always have something to do, a lower level is faster. ``zstd --adapt`` does
the same with the queues of one stream.

Nothing here knows the time: whoever encodes tells what each chunk took, so equal observations give equal levels.
"""

from __future__ import annotations

import threading

CEILING = 9
"""The highest level. On a disk full of programs and their data, 10 to 12 store half a percent less for up to twice the time, and
an encoder takes 25 or 45 MiB for chunks of 4 MiB instead of 15: one for each thread that encodes at the same time."""

_STEPS = (-100, -50, -20, -10, -5, -1, *range(1, CEILING + 1))  # from each to the next takes some 1.2 to 1.5 times the CPU
_ZSTD_DEFAULT = 3  # what zstd takes level 0 for

_WINDOW_CHUNKS = 16  # chunks differ: a level is judged by several, and by
_WINDOW_S = 0.5  # so many seconds of threads, since small chunks differ even more
_IN_FLIGHT = 8  # observations after a change that may still be of chunks encoded at the level before
# Threads that hand over in order wait for the slowest of them, all the more where other programs want the CPUs: they may wait a
# quarter of the time although the CPU is the limit. Between the two lies more than a step, which takes up to 1.5 times as long.
_BUSY = 0.7  # a larger share of work means that the CPU may be what all wait for
_IDLE = 0.4  # with a smaller one, the next level leaves threads waiting as well
_TRIAL_WINDOWS = 2  # a raise that is taken back so soon was a mistake
_FIRST_PAUSE, _LONGEST_PAUSE = 4, 64  # windows until a mistake may be made again; doubled each time


class AdaptiveLevel:
    """Chooses the level for the next chunk by what the threads spent their time on.

    It begins at `floor`, moves one step at a time, and never goes below `floor` or above `CEILING` (a higher floor is a fixed
    level). Between the shares of work that make it move lies a gap wider than a step, and a level that at once proved too slow
    is left alone for a while, longer each time: so it comes to rest where the load is steady.

    Safe to use from several threads; they share one level, as they share the CPUs, disk and target.
    """

    def __init__(self, floor: int) -> None:
        lowest = floor or _ZSTD_DEFAULT
        self._levels: tuple[int, ...] = (floor, *(level for level in _STEPS if level > lowest))
        self._at = 0
        self._ignored = 0  # observations still to be left out
        self._chunks = 0
        self._work_s = self._idle_s = 0.0
        self._windows = 0  # judged so far
        self._raised_at: int | None = None  # window of the raise to this level; None where it was reached by lowering
        self._pauses = [0] * len(self._levels)  # by step: the last pause after a mistake
        self._not_before = [0] * len(self._levels)  # by step: the window from which on it may be tried
        self._lock = threading.Lock()

    @property
    def level(self) -> int:
        """The level for the next chunk."""
        return self._levels[self._at]

    def observe(self, work_s: float, idle_s: float) -> None:
        """Tell what one chunk took, in seconds by the wall clock.

        Tell it of every chunk that was encoded and of no other: chunks of zeros say nothing about the level.

        Args:
            work_s: for how long the chunk had a CPU: digests, encoding, and what else is done then.
            idle_s: for how long that CPU had had nothing to do before, since all threads waited for the disk or the target.
        """
        with self._lock:
            if self._ignored:
                self._ignored -= 1
                return
            self._chunks += 1
            self._work_s += work_s
            self._idle_s += idle_s
            total_s = self._work_s + self._idle_s
            if self._chunks >= _WINDOW_CHUNKS and total_s >= _WINDOW_S:
                self._judge(self._work_s / total_s)
                self._chunks = 0
                self._work_s = self._idle_s = 0.0

    def _judge(self, busy: float) -> None:
        """Move by one step or stay, after a window in which `busy` of the threads' time was work."""
        self._windows += 1
        on_trial = self._raised_at is not None and self._windows - self._raised_at <= _TRIAL_WINDOWS
        if not on_trial:
            self._pauses[self._at] = 0
        if busy > _BUSY and self._at > 0:
            if on_trial:
                pause = min(2 * self._pauses[self._at] or _FIRST_PAUSE, _LONGEST_PAUSE)
                self._pauses[self._at] = pause
                self._not_before[self._at] = self._windows + pause
            self._at -= 1
            self._raised_at = None
            self._ignored = _IN_FLIGHT
        elif busy < _IDLE and self._at + 1 < len(self._levels) and self._windows >= self._not_before[self._at + 1]:
            self._at += 1
            self._raised_at = self._windows
            self._ignored = _IN_FLIGHT
