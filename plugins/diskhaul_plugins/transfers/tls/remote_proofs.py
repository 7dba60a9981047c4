"""What the source of an export to another cluster shows its receiver: that it knows the tokens, without sending them."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence

from .sessions import MAGIC_LENGTH

PROOF_LENGTH = 32
_FILE = re.compile(r"disk-(0|[1-9][0-9]{0,3})\.(?:raw|raw\.zst|raw\.gz|chunks)\Z")


def session_proof(tokens: Sequence[bytes], session: bytes) -> bytes:
    """Shows that whoever begins `session` knows the tokens of all disks."""
    return hmac.new(b"".join(tokens), b"diskhaul remote session" + session, hashlib.sha256).digest()


def disk_of(name: str) -> int | None:
    """Index of the disk that a file of an export belongs to, or None."""
    match = _FILE.match(name)
    return int(match.group(1)) if match else None


def file_magic(tokens: Sequence[bytes], session: bytes, name: str) -> bytes | None:
    """The magic value of a file in `session`, which only whoever knows its disk's token can tell; None for no disk's."""
    index = disk_of(name)
    if index is None or index >= len(tokens):
        return None
    message = b"diskhaul remote file" + session + name.encode("ascii")
    return hmac.new(tokens[index], message, hashlib.sha256).digest()[:MAGIC_LENGTH]
