"""Names: which are allowed, and how a short one becomes a full one."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .errors import AmbiguousNameError, RefusedError, UnknownNameError

MAX_NAME_BYTES = 253  # a DNS name's limit (RFC 1035, section 2.3.4); such a name is also a legal file name
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\Z")


def name_problem(kind: str, name: str) -> str | None:
    """Say in one line why `name` cannot be the name of a `kind`, or return None.

    Names become directory names on other people's hosts, so only letters, digits and ``_ . + -`` are allowed, not starting
    with a dot or a dash, at most 253 bytes.
    """
    try:
        check_text(kind, name)
    except RefusedError as error:
        return str(error)
    if not name:
        return f"{kind} name is empty"
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        return f"{kind} name {printable(name[:40])}... is longer than {MAX_NAME_BYTES} bytes"
    if not _NAME.match(name) or ".." in name:
        return (
            f"{kind} name {printable(name)} is not allowed: use letters, digits and _ . + -, "
            "start with a letter, digit or _, and no '..'"
        )
    return None


def check_text(kind: str, name: object) -> None:
    """Raise `RefusedError` when `name` is no text: callers of the library may give anything."""
    if not isinstance(name, str):
        raise RefusedError(f"{kind} name: must be text, not {type(name).__name__}")


def check_name(kind: str, name: str) -> None:
    """Raise `RefusedError` when `name` cannot be the name of a `kind`."""
    problem = name_problem(kind, name)
    if problem:
        raise RefusedError(problem)


def expand_name(kind: str, name: str, full_names: Iterable[str]) -> str:
    """Return the one full name that `name` means: itself, or the only one that starts with ``name.``.

    Raises:
        RefusedError: the name is not a legal name at all.
        UnknownNameError: none fits; the message lists close ones.
        AmbiguousNameError: several fit.
    """
    check_name(kind, name)
    known = sorted(full_names)
    if name in known:
        return name
    fitting = [full for full in known if full.startswith(name + ".")]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise AmbiguousNameError(kind, name, fitting)
    hint = suggestion(name, known, none=f"no {kind} is configured")
    raise UnknownNameError(kind, name, f"{kind} {name!r} is unknown; {hint}")


_MOST_LISTED = 20  # of names to choose from: a cluster may have thousands of instances


def suggestion(name: str, known: Iterable[str], *, none: str = "there is none") -> str:
    """Say what somebody who wrote `name` may have meant: ``did you mean NAME?``, or which names there are, or `none`.

    Safe for a terminal, whatever is in `known`.
    """
    import difflib

    names = sorted(known)
    if not names:
        return none
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {escape(close[0])}?"
    listed = [escape(each) for each in names[:_MOST_LISTED]]
    return f"there is {', '.join(listed)}{', ...' if len(names) > _MOST_LISTED else ''}"


def printable(text: str) -> str:
    """Quote `text` for a terminal: control characters and escapes come out as escapes."""
    return ascii(text)


def escape(text: str) -> str:
    """Return `text` with everything that is not a visible character or a plain space as a backslash escape.

    That covers newlines, terminal escapes, right-to-left overrides and undecodable bytes; letters of any script stay.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else character.encode("unicode_escape").decode() for character in text)
