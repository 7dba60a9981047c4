"""What ends the comparison, or takes one program out of it."""

from __future__ import annotations


class ComparisonError(Exception):
    """The comparison cannot go on; the message is one line for the person who called it."""


class ContestantError(Exception):
    """One program failed, or what it wrote is wrong: it gets no row, and the comparison fails in the end."""
