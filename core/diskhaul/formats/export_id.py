"""Export ids: ``20261122T103308Z-1a2b3c4d``, UTC time and the start of the run id. Sorting them sorts by age.

Whether a text is an export id never depends on what time it is now: an export made while the clock was wrong stays valid.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

_EXPORT_ID = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})T([0-9]{2})([0-9]{2})([0-9]{2})Z-([0-9a-f]{8})")
_RUN_ID = re.compile(r"([0-9a-f]{8})-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}")
_PARTIAL = ".partial"
_REMOVING = ".removing"


def new_export_id(now: datetime, run_id: str) -> str:
    """Return the id of an export begun at `now` (any time zone, not naive) by the run `run_id` (a uuid).

    Raises:
        ValueError: `now` has no time zone, or `run_id` is no uuid.
    """
    if now.tzinfo is None:
        raise ValueError("an export id needs a time with a time zone")
    utc = now.astimezone(UTC)
    # Not strftime("%Y"): the C library does not pad years before 1000, and a wrong clock must still give a valid id.
    return f"{utc.year:04d}{utc:%m%dT%H%M%S}Z-{short_run_id(run_id)}"


def short_run_id(run_id: str) -> str:
    """Return the first eight hex digits of a run id.

    Raises:
        ValueError: it is no lower-case uuid.
    """
    match = _RUN_ID.fullmatch(run_id)
    if match is None:
        raise ValueError(f"{run_id[:60]!a} is not a run id (a lower-case uuid)")
    return match[1]


def is_run_id(text: str) -> bool:
    """True when `text` is a run id: a uuid in lower case, with or without dashes."""
    return _RUN_ID.fullmatch(text) is not None


def is_export_id(text: str) -> bool:
    """True when `text` is exactly an export id with a time that exists."""
    return _parse(text) is not None


def created_at(export_id: str) -> datetime:
    """Return the UTC time in an export id, to the second.

    Raises:
        ValueError: it is no export id.
    """
    when = _parse(export_id)
    if when is None:
        raise ValueError(f"{export_id[:60]!a} is not an export id")
    return when


def run_of(export_id: str) -> str:
    """Return the short run id in an export id.

    Raises:
        ValueError: it is no export id.
    """
    created_at(export_id)
    return export_id[-8:]


def partial_name(export_id: str) -> str:
    """Name of the directory in which an export is written before it is published."""
    return f".{export_id}{_PARTIAL}"


def removing_name(export_id: str) -> str:
    """Name that an export's directory gets before it is deleted."""
    return f".{export_id}{_REMOVING}"


def parse_partial(name: str) -> str | None:
    """The export id in a `partial_name`, or None when `name` is none."""
    return _inside(name, _PARTIAL)


def parse_removing(name: str) -> str | None:
    """The export id in a `removing_name`, or None when `name` is none."""
    return _inside(name, _REMOVING)


def _inside(name: str, suffix: str) -> str | None:
    if not (name.startswith(".") and name.endswith(suffix)):
        return None
    export_id = name[1 : -len(suffix)]
    return export_id if is_export_id(export_id) else None


def _parse(text: str) -> datetime | None:
    match = _EXPORT_ID.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:  # the 31st of February
        return None
