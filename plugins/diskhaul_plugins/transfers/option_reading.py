"""Reading the options of a transfer, ``[backend_options.NAME]``: all that is wrong with them is named together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from diskhaul.api import BackendContext
from diskhaul.errors import ConfigurationError
from diskhaul.names import printable, suggestion


def checked_options(
    context: BackendContext, name: str, settings: type[Any], problem: Callable[[str, object], str | None]
) -> dict[str, Any]:
    """Those options that are given.

    Args:
        name: the transfer's.
        settings: a dataclass with a field for each option there is.
        problem: says what is wrong with an option and its value, or None.

    Raises:
        ConfigurationError: some of them cannot be used; all are named.
    """
    where = f"backend_options.{name}"
    known = [field.name for field in fields(settings)]
    unknown = [key for key in context.options if key not in known]
    problems = [f"{where}.{printable(key)}: is not an option of {name}; {suggestion(key, known)}" for key in unknown]
    given = {key: value for key, value in context.options.items() if key in known}
    problems += [f"{where}.{key}: {wrong}" for key, value in given.items() if (wrong := problem(key, value))]
    if problems:
        raise ConfigurationError(problems)
    return given


def number_problem(key: str, value: object, limits: Mapping[str, tuple[float, float]]) -> str | None:
    """What is wrong with a number, whose name ends with ``_s`` where it need not be whole."""
    whole = not key.endswith("_s")
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not math.isfinite(value):
        return f"must be a {'whole ' if whole else ''}number"
    low, high = limits[key]
    return None if low <= value <= high else f"must be from {low:g} to {high:g}"
