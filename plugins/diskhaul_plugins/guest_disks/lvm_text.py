"""The text in which LVM2 keeps its metadata: sections, numbers, strings and lists (lvm.conf(5) has the same grammar)."""

from __future__ import annotations

import re
from typing import Union

MAX_DEPTH = 8
MAX_TOKENS = 500_000

Value = Union[int, str, list[int | str], "Section"]
Section = dict[str, Value]

_TOKEN = re.compile(
    r"""(?P<space>[\s,]+|\#[^\n]*)
      | (?P<string>"(?:[^"\\]|\\.)*+")
      | (?P<number>-?[0-9]+(?![A-Za-z_.0-9+-]))
      | (?P<name>[A-Za-z0-9_.+-]{1,255})
      | (?P<mark>[={}\[\]])""",
    re.VERBOSE | re.ASCII,
)


class MetadataError(ValueError):
    """It is no such text. The message says what is wrong."""


def parse_metadata(text: str) -> Section:
    """The text's values by their names.

    Raises:
        MetadataError: it is not whole, repeats a name, or is larger or nested deeper than metadata are.
    """
    tokens = _tokens(text)
    section, place = _section(tokens, 0, 0)
    if place != len(tokens):
        raise MetadataError("a bracket too many")
    return section


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            raise MetadataError(f"character {place} belongs to nothing")
        place = match.end()
        if match.lastgroup != "space":
            tokens.append((match.lastgroup, match.group()))
            if len(tokens) > MAX_TOKENS:
                raise MetadataError("it is too long")
    return tokens


def _section(tokens: list[tuple[str, str]], place: int, depth: int) -> tuple[Section, int]:
    if depth > MAX_DEPTH:
        raise MetadataError("it is nested too deep")
    section: Section = {}
    while place < len(tokens) and tokens[place] != ("mark", "}"):
        kind, name = tokens[place]
        if kind not in ("name", "number") or name in section:
            raise MetadataError(f"{name[:40]!r} where a new name belongs")
        follows = tokens[place + 1] if place + 1 < len(tokens) else ("end", "")
        if follows == ("mark", "{"):
            section[name], place = _section(tokens, place + 2, depth + 1)
            if place >= len(tokens):
                raise MetadataError("it was cut")
            place += 1
        elif follows == ("mark", "="):
            section[name], place = _value(tokens, place + 2)
        else:
            raise MetadataError(f"nothing stands behind {name[:40]!r}")
    return section, place


def _value(tokens: list[tuple[str, str]], place: int) -> tuple[Value, int]:
    if place < len(tokens) and tokens[place] == ("mark", "["):
        values: list[int | str] = []
        place += 1
        while place < len(tokens) and tokens[place] != ("mark", "]"):
            values.append(_single(tokens[place]))
            place += 1
        if place >= len(tokens):
            raise MetadataError("it was cut")
        return values, place + 1
    if place >= len(tokens):
        raise MetadataError("it was cut")
    return _single(tokens[place]), place + 1


def _single(token: tuple[str, str]) -> int | str:
    kind, text = token
    if kind == "number" and len(text) <= 20:
        return int(text)
    if kind == "string":
        return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
    if kind == "name":  # a number with a fraction
        return text
    raise MetadataError(f"{text[:40]!r} where a value belongs")
