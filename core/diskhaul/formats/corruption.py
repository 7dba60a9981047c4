"""The error of stored bytes that are not what they should be."""

from __future__ import annotations


class CorruptError(Exception):
    """Stored bytes are damaged, cut, forged, or made by something else.

    The caller knows which export, file and disk it was reading and makes a `diskhaul.Finding` of it.

    Attributes:
        problem: what is wrong, one printable line; text taken from the damaged file is escaped in it.
        offset: where, in bytes from the start of the *disk*, or None where it has no place.
    """

    def __init__(self, problem: str, offset: int | None = None) -> None:
        super().__init__(problem, offset)
        self.problem = problem
        self.offset = offset

    def __str__(self) -> str:
        return self.problem
