"""Why a filesystem is kept as it is."""

from __future__ import annotations


class KeptError(Exception):
    """Nothing of the filesystem may be left out; the message says why in a few words.

    Attributes:
        state: what the filesystem's state turned out to be; "" where that is nothing new.
    """

    def __init__(self, reason: str, *, state: str = "") -> None:
        super().__init__(reason)
        self.state = state
