"""The error of stored bytes that are not what they should be."""

from __future__ import annotations

Buffer = bytes | bytearray | memoryview


class CorruptError(Exception):
    """Stored bytes are damaged, cut, forged, or made by something else.

    The caller knows which export, file and disk it was reading and makes a `diskhaul.Finding` of it.

    Attributes:
        problem: what is wrong, one printable line; text taken from the damaged file is escaped in it.
        offset: where, in bytes from the start of the *disk*, or None where it has no place on it.
        file: the damaged file's name, "" for the one that the caller was reading.
        file_offset: where in that file the first wrong byte is, in bytes from its start, or None where that is not known.
    """

    def __init__(self, problem: str, offset: int | None = None, *, file: str = "", file_offset: int | None = None) -> None:
        super().__init__(problem, offset)
        self.problem = problem
        self.offset = offset
        self.file = file
        self.file_offset = file_offset

    def __str__(self) -> str:
        return self.problem


def first_difference(found: Buffer, wanted: Buffer) -> int:
    """The index of the first byte that differs, of two byte strings of one length that do."""
    return next(index for index, (one, other) in enumerate(zip(found, wanted, strict=True)) if one != other)
