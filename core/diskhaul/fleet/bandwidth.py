"""What each export of a fleet may read a second, so that all together stay below one limit."""

from __future__ import annotations


class BandwidthShares:
    """Divides a total between the exports that run. Not thread-safe: one thread schedules.

    An export keeps for its whole life what it gets when it begins: the running ones may be anywhere by then. It gets an equal
    share, with those that can still begin beside it, of what the running ones leave: while many wait, that is the total divided
    by how many may run at once; towards the end the last ones get more. The sum is never above the total.

    Args:
        total: bytes a second; 0 is no limit.
        slots: how many exports can run at once at the most.
    """

    def __init__(self, total: int, slots: int) -> None:
        self._total = total
        self._slots = slots
        self._given: dict[str, int] = {}
        self._left = total

    def take(self, instance: str, *, waiting: int) -> int:
        """The share of an export that begins, bytes a second; 0 is no limit. `waiting` others have yet to begin."""
        if not self._total:
            return 0
        beside = min(self._slots - len(self._given), waiting + 1)
        share = max(self._left // max(beside, 1), 1)
        self._given[instance] = share
        self._left -= share
        return share

    def give_back(self, instance: str) -> None:
        self._left += self._given.pop(instance, 0)
