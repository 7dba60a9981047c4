"""Results and errors as JSON documents.

A dataclass becomes an object with its fields, a moment an ISO 8601 text, a path a text. Fields kept out of ``repr`` (secrets,
see `diskhaul.Instance.private`) are kept out here too. The text is pure ASCII on one line: nothing in it can act on a terminal.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from ..errors import DiskhaulError


def jsonable(value: Any) -> Any:
    """Return `value` in JSON's own types; what JSON has no type for becomes its ``str()``."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # JSON has no NaN or infinity
    if isinstance(value, Enum):
        return jsonable(value.value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in fields(value) if field.repr}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in value]
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if isinstance(value, os.PathLike):
        return str(os.fspath(value))
    return str(value)


def error_document(error: BaseException, problems: tuple[str, ...], exit_code: int) -> dict[str, Any]:
    """Return ``{"error": {"type", "message", "problems", "exit_code", ...}}`` with the error's own public attributes."""
    attributes = vars(error) if isinstance(error, DiskhaulError) else {}
    return {
        "error": {name: jsonable(value) for name, value in attributes.items() if not name.startswith("_")}
        | {
            "type": type(error).__name__,
            "message": str(error),
            "problems": list(problems),
            "exit_code": exit_code,
        }
    }


def dumps(document: Any) -> str:
    """Return the document as one line of ASCII JSON."""
    return json.dumps(jsonable(document), allow_nan=False, ensure_ascii=True)
