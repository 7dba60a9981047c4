"""What documents of both kinds have in common: the HMAC around them, format and version, and how long they count."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from ..certificates import BACKDATED
from ..errors import RefusedError
from .fields import Fields
from .signing import UnreadableDocumentError, canonical, digest, is_signed, new_salt, parse

VERSION = 1
LIFE = timedelta(hours=24)
"""How long a document, and the key and the certificate that were made with it, count."""
SALT_LENGTH, HMAC_LENGTH = 16, 32
MAX_DISKS = 256
MAX_DISK_SIZE = (1 << 63) - 1

KEY_PURPOSE = "diskhaul remote: key name"
CERTIFICATE_PURPOSE = "diskhaul remote: receiver's certificate"
DISK_PURPOSE = "diskhaul remote: destination of a disk"
Document = Mapping[str, Any]


class Sealed(NamedTuple):
    """A document's content, and whether the HMAC around it is right."""

    content: dict[str, Any]
    genuine: bool


def open_document(document: Document, secret: bytes, format_: str) -> Sealed:
    """Look at a document, which may be anything.

    Raises:
        UnreadableDocumentError: it has not the shape of one of this format and version.
    """
    # As it would come from a file: what cannot be written as JSON is refused, and nothing in it can change meanwhile.
    copy = parse(_written(document))
    fields = Fields(copy, "document", ("signed", "salt", "hmac"))
    content = fields.mapping("signed")
    salt, hmac = fields.hex("salt", SALT_LENGTH), fields.hex("hmac", HMAC_LENGTH)
    found, version = content.get("format"), content.get("version")
    if found != format_:
        raise UnreadableDocumentError(f"is no {format_}" + (f", but a {found}" if found in (PREPARED, DESTINATION) else ""))
    if version != VERSION or isinstance(version, bool):
        raise UnreadableDocumentError(f"is of a version that this diskhaul does not know; it knows {VERSION}")
    return Sealed(content, is_signed(secret, format_, salt, content, hmac))


def _written(document: Document) -> bytes:
    try:
        return canonical(document)
    except (TypeError, ValueError, RecursionError):
        raise UnreadableDocumentError("is no JSON document") from None


PREPARED, DESTINATION = "diskhaul-remote-prepared", "diskhaul-remote-destination"


def seal(secret: bytes, purpose: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` with a salt and its HMAC beside it, as parts of documents have them."""
    salt = new_salt()
    return {**content, "salt": salt, "hmac": digest(secret, purpose, salt, content)}


def is_sealed(secret: bytes, purpose: str, sealed: Mapping[str, Any]) -> bool:
    """Whether what `seal` gave is still what it was. Its salt and HMAC are known to be hexadecimal."""
    content = {name: value for name, value in sealed.items() if name not in ("salt", "hmac")}
    return is_signed(secret, purpose, sealed["salt"], content, sealed["hmac"])


def time_problems(created: datetime, expires: datetime, now: datetime) -> list[str]:
    """Why a document does not count now."""
    if now >= expires:
        return [f"has expired at {expires:%Y-%m-%d %H:%M:%S} UTC"]
    if created > now + BACKDATED:
        return [f"was made at {created:%Y-%m-%d %H:%M:%S} UTC, which is yet to come: correct the clocks"]
    if expires - created > LIFE:
        return [f"counts for longer than {LIFE.total_seconds() / 3600:g} hours"]
    return []


def read_document(data: bytes | str, what: str) -> dict[str, Any]:
    """The document in `data`, not looked at closely.

    Raises:
        RefusedError: it is none.
    """
    try:
        return parse(data)
    except UnreadableDocumentError as error:
        raise RefusedError(f"{what} {error}") from error
