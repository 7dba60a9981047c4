"""Documents that are signed with the cluster-domain secret: JSON under HMAC-SHA256 (RFC 2104).

    {"signed": {...}, "salt": "...", "hmac": "..."}

What an HMAC is over begins with its purpose, so that one that was made for something never counts for something else, and with
a random salt; each of them with its length before it. The content is JSON in one canonical form: keys sorted, no white space,
ASCII. How a document is laid out is therefore no matter; a single other character in it is.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from typing import Any

MAX_DOCUMENT = 4 << 20
"""Bytes of a document, at the most."""
_SALT_LENGTH = 16
_MAX_DEPTH = 64
Content = Mapping[str, Any]


class UnreadableDocumentError(ValueError):
    """What should be a document is none."""


def canonical(content: object) -> bytes:
    """The one form of JSON that is signed."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def new_salt() -> str:
    return secrets.token_hex(_SALT_LENGTH)


def digest(secret: bytes, purpose: str, salt: str, content: object) -> str:
    """The HMAC of `content` for `purpose`, in hexadecimal."""
    parts = (purpose.encode("utf-8"), salt.encode("utf-8"), canonical(content))
    message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return hmac.new(secret, message, hashlib.sha256).hexdigest()


def is_signed(secret: bytes, purpose: str, salt: str, content: object, given: str) -> bool:
    """Whether `given` is the HMAC of `content` for `purpose`; takes as long whatever is wrong."""
    return hmac.compare_digest(digest(secret, purpose, salt, content).encode("ascii"), given.encode("utf-8", "replace"))


def sign(secret: bytes, purpose: str, content: Content) -> dict[str, Any]:
    """A signed document."""
    salt = new_salt()
    return {"signed": dict(content), "salt": salt, "hmac": digest(secret, purpose, salt, content)}


def render(document: Content) -> str:
    """A document as text: one line."""
    return canonical(document).decode("ascii")


def parse(data: bytes | str) -> dict[str, Any]:
    """The document that `data` holds; not yet known to be genuine.

    Raises:
        UnreadableDocumentError: it is no JSON object, too long, too deep, or has a key twice or a number that is none.
    """
    if len(data) > MAX_DOCUMENT:
        raise UnreadableDocumentError(f"has more than {MAX_DOCUMENT >> 20} MiB")
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        document = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
        if _depth(document) > _MAX_DEPTH:
            raise RecursionError
        canonical(document)  # an integer of thousands of digits, or a lone surrogate, cannot be written again
    except RecursionError:
        raise UnreadableDocumentError("is nested too deeply") from None
    except ValueError as error:
        raise UnreadableDocumentError(f"is no JSON document: {str(error)[:200]}") from None
    if not isinstance(document, dict):
        raise UnreadableDocumentError("is no JSON object")
    return document


def _depth(value: object) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        found, depth = waiting.pop()
        deepest = max(deepest, depth)
        if isinstance(found, dict):
            waiting += [(inner, depth + 1) for inner in found.values()]
        elif isinstance(found, list):
            waiting += [(inner, depth + 1) for inner in found]
    return deepest


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key stands twice")
    return document


def _no_number(text: str) -> Any:
    raise ValueError(f"{text[:20]} is no number")
