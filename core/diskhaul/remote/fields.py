"""Fields of documents that came from elsewhere: exactly those that are expected, each of its kind."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from ..names import name_problem, printable
from .signing import UnreadableDocumentError


class Fields:
    """One object of a document. `where` is what messages call it.

    Every method raises `UnreadableDocumentError` for what is missing or of another kind.
    """

    def __init__(self, content: object, where: str, names: Collection[str]) -> None:
        """`names`: all fields that it has, and no others."""
        if not isinstance(content, Mapping):
            raise UnreadableDocumentError(f"{where} is no object")
        self._content, self._where = content, where
        if missing := sorted(set(names) - set(content)):
            raise UnreadableDocumentError(f"{where}: {', '.join(missing)}: missing")
        if extra := sorted(set(content) - set(names)):
            raise UnreadableDocumentError(f"{where}: {', '.join(printable(name[:40]) for name in extra[:5])}: not a field of it")

    def text(self, name: str) -> str:
        value = self._content[name]
        if not isinstance(value, str):
            raise self._wrong(name, "is no text")
        return value

    def name(self, name: str, kind: str) -> str:
        value = self.text(name)
        if problem := name_problem(kind, value):
            raise self._wrong(name, problem)
        return value

    def hex(self, name: str, length: int) -> str:
        """`length` bytes in hexadecimal."""
        value = self.text(name)
        if not re.fullmatch(f"[0-9a-f]{{{2 * length}}}", value):
            raise self._wrong(name, f"is not {length} bytes in hexadecimal")
        return value

    def number(self, name: str, lowest: int, highest: int) -> int:
        value = self._content[name]
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            raise self._wrong(name, f"is no whole number from {lowest} to {highest}")
        return value

    def time(self, name: str) -> datetime:
        """A time in UTC."""
        try:
            value = datetime.fromisoformat(self.text(name))
        except ValueError:
            raise self._wrong(name, "is no time") from None
        if value.tzinfo != UTC:
            raise self._wrong(name, "is no time in UTC")
        return value

    def objects(self, name: str, names: Collection[str], most: int) -> list[Fields]:
        """A list of objects."""
        value = self._content[name]
        if not isinstance(value, list) or len(value) > most:
            raise self._wrong(name, f"is no list of at most {most}")
        return [Fields(item, f"{self._where}.{name}[{index}]", names) for index, item in enumerate(value)]

    def object(self, name: str, names: Collection[str]) -> Fields:
        return Fields(self._content[name], f"{self._where}.{name}", names)

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._content[name]
        if not isinstance(value, dict):
            raise self._wrong(name, "is no object")
        return value

    def _wrong(self, name: str, problem: str) -> UnreadableDocumentError:
        return UnreadableDocumentError(f"{self._where}.{name}: {problem}")
