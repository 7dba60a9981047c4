"""Numbers as people type them: seconds, sizes, counts. Everything that is not plainly a number in range is refused.

``float()`` is not used to judge: it takes ``nan``, ``inf``, ``1e99``, ``1_0`` and digits of any script.
"""

from __future__ import annotations

import re

from .text import escape, iec

MAX_SECONDS = 366 * 24 * 3600
MAX_COUNT = 100_000
_DECIMAL = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_COUNT = re.compile(r"[0-9]{1,12}")
_SIZE = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,9})?) ?(?:([KMGT])(?:iB)?|B)?", re.IGNORECASE)
_POWER = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


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
    """Return `text`, a number of bytes or of KiB, MiB, GiB, TiB (``512M``, ``1.5GiB``), as bytes.

    Raises:
        ValueError: it is no size, or not from `smallest` to `largest` bytes.
    """
    match = _SIZE.fullmatch(text)
    if match:
        number, unit = match.group(1), (match.group(2) or "").upper()
        whole, _, fraction = number.partition(".")
        # In integers: a float would lose bytes of large sizes.
        size = (int(whole) << _POWER[unit]) + ((int(fraction) << _POWER[unit]) // 10 ** len(fraction) if fraction else 0)
        if smallest <= size <= largest:
            return size
    raise ValueError(f"{_quoted(text)} is not a size from {iec(smallest)} to {iec(largest)} (such as 64M or 1.5GiB)")


def _quoted(text: str) -> str:
    return f"'{escape(text, longest=40)}'" if text else "an empty text"
