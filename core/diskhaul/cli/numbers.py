"""Numbers as people type them: seconds, sizes, counts. Everything that is not plainly a number in range is refused.

``float()`` is not used to judge: it takes ``nan``, ``inf``, ``1e99``, ``1_0`` and digits of any script.
"""

from __future__ import annotations

import re

from .. import sizes
from ..options import MAX_TIMEOUT_S
from .text import escape, iec

MAX_SECONDS = MAX_TIMEOUT_S
MAX_COUNT = 100_000
_DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_COUNT = re.compile(r"[0-9]{1,12}")


def parse_seconds(text: str) -> float:
    """Return `text` as seconds, 0 to 366 days.

    Raises:
        ValueError: it is not; the message is one line and says what would be.
    """
    if _DECIMAL.fullmatch(text) and (seconds := float(text)) <= MAX_SECONDS:
        return seconds
    raise ValueError(f"{_quoted(text)} is not a number of seconds from 0 to {MAX_SECONDS} (such as 90 or 0.5)")


def parse_count(text: str) -> int:
    """Return `text` as a count, 0 to 100000.

    Raises:
        ValueError: it is not.
    """
    if _COUNT.fullmatch(text) and (count := int(text)) <= MAX_COUNT:
        return count
    raise ValueError(f"{_quoted(text)} is not a whole number from 0 to {MAX_COUNT}")


def parse_size(text: str, *, smallest: int, largest: int) -> int:
    """Return `text`, a size as in a configuration (`diskhaul.sizes`), as bytes.

    Raises:
        ValueError: it is no size, or not from `smallest` to `largest` bytes.
    """
    try:
        size: int | None = sizes.parse_size(text)
    except ValueError:
        size = None
    if size is None or not smallest <= size <= largest:
        raise ValueError(f"{_quoted(text)} is not a size from {iec(smallest)} to {iec(largest)} (such as 64M or 1.5GiB)")
    return size


def _quoted(text: str) -> str:
    return f"'{escape(text, longest=40)}'" if text else "an empty text"
