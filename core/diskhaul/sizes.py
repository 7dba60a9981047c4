"""Sizes as people write them, in configurations and on the command line: ``4096``, ``64M``, ``1.5 GiB``."""

from __future__ import annotations

import re

from .names import printable

MAX_SIZE = 2**63 - 1
"""The largest size that a file or device can have (an off_t)."""

_SIZE = re.compile(r"([0-9]{1,20})(?:\.([0-9]{1,9}))? ?(?:([KMGTP])(?:iB)?|B)?", re.IGNORECASE)
_POWER = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}


def parse_size(text: str) -> int:
    """Return `text` as bytes: a number of bytes, or of KiB, MiB, GiB, TiB or PiB (``64M`` and ``64 MiB`` are the same).

    Units are binary and may be in any case. ``GB`` is refused: it means two things.

    Raises:
        ValueError: it is no size, or no whole number of bytes; the message is one line that says what `text` is instead.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f'cannot be understood as a size: {printable(text[:40])}; write for example "10 GiB" or "512M"')
    whole, fraction, unit = match[1], match[2] or "", (match[3] or "").upper()
    # In integers: a float would lose bytes of large sizes.
    parts: int = 10 ** len(fraction)
    size, left_over = divmod(int(whole + fraction) << _POWER[unit], parts)
    if left_over:
        raise ValueError(f"is not a whole number of bytes: {printable(text)}")
    return size
