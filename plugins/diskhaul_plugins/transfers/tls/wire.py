"""What goes over a connection: frames of bounded sizes.

    head      8 bytes: magic "dh", kind (1 byte), zero (1 byte), length of what follows (4 bytes, big-endian)
    content   strict JSON (one object, no duplicate keys, no floats), or the fixed fields below, or bytes

A connection begins with the client's HELLO: the protocol's magic and version, the cluster, and what it is for. The server
answers READY once it has looked at who the client is and what it asks for, or REFUSED with a reason. Only then has the client
been let in: with TLS 1.3 its handshake succeeds before the server has seen its certificate.

While an answer takes long (an fsync), WORKING says that the receiver lives.

DATA, SIZE and TRAILER are numbered from 0 within their file. The *chain* of a file begins as the digest of its magic value and
takes in each frame's fields and digest: equal chains mean the same frames, in the same order, with the same content.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from blake3 import blake3

from diskhaul.api import Buffer

PROTOCOL = "diskhaul-tls"
VERSION = 2  # 1 had frames of 4 MiB at the most, and no files of which what is appended comes with its digest
HEAD = struct.Struct("!2sBBI")
_MAGIC = b"dh"
MAX_DATA = (4 << 20) + (64 << 10)
"""Bytes of a file in one frame, at the most: whatever a chunk of 4 MiB may become."""
MAX_BODY = 64 << 20
"""Bytes that may come with a call, at the most: a manifest."""
DIGEST_LENGTH = 32


class WireError(Exception):
    """What came is not what may come: the connection cannot go on."""


class Kind(IntEnum):
    HELLO = 1
    READY = 2
    REFUSED = 3
    CALL = 4
    BODY = 5
    RESULT = 6
    DATA = 8
    SIZE = 9
    TRAILER = 10
    ACKNOWLEDGED = 11
    DURABLE = 12
    WORKING = 15
    READ = 13
    BYTES = 14
    DIGEST = 16
    DIGESTED = 17


DATA_FIELDS = struct.Struct("!QQ32s")  # number, offset, digest of the bytes that follow
SIZE_FIELDS = struct.Struct("!QQ")  # number, the file's size from here on
TRAILER_FIELDS = struct.Struct("!QQ32s")  # number, bytes in all DATA frames, chain
ACKNOWLEDGED_FIELDS = struct.Struct("!Q")  # every frame below this number has been written
READ_FIELDS = struct.Struct("!QI")  # offset, length; also those of DIGEST
_LIMITS: Mapping[Kind, int] = {
    Kind.HELLO: 16 << 10,
    Kind.READY: 16 << 10,
    Kind.REFUSED: 16 << 10,
    Kind.CALL: 64 << 10,
    Kind.BODY: MAX_BODY,
    Kind.RESULT: 16 << 20,
    Kind.DATA: DATA_FIELDS.size + MAX_DATA,
    Kind.SIZE: SIZE_FIELDS.size,
    Kind.TRAILER: TRAILER_FIELDS.size,
    Kind.ACKNOWLEDGED: ACKNOWLEDGED_FIELDS.size,
    Kind.DURABLE: ACKNOWLEDGED_FIELDS.size,
    Kind.WORKING: 0,
    Kind.READ: READ_FIELDS.size,
    Kind.BYTES: MAX_DATA,
    Kind.DIGEST: READ_FIELDS.size,
    Kind.DIGESTED: DIGEST_LENGTH,
}


def head(kind: Kind, length: int) -> bytes:
    """The head of a frame with `length` bytes of content."""
    if length > _LIMITS[kind]:
        raise WireError(f"{kind.name} of {length} bytes: more than {_LIMITS[kind]}")
    return HEAD.pack(_MAGIC, kind, 0, length)


def parse_head(data: Buffer, expected: Sequence[Kind]) -> tuple[Kind, int]:
    """Kind and length of what follows.

    Raises:
        WireError: it is no head, of a kind that may not come now, or announces more than that kind may have.
    """
    magic, number, zero, length = HEAD.unpack(data)
    if magic != _MAGIC or zero:
        raise WireError("what came is no frame")
    if number not in expected:
        raise WireError(f"a frame of kind {number} came where {' or '.join(kind.name for kind in expected)} was expected")
    kind = Kind(number)
    if length > _LIMITS[kind]:
        raise WireError(f"{kind.name} announces {length} bytes: more than {_LIMITS[kind]}")
    return kind, length


def dump(document: Mapping[str, object]) -> bytes:
    """A document as it goes over the wire."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def load(content: Buffer) -> dict[str, Any]:
    """A document that came.

    Raises:
        WireError: it is no JSON object, has a key twice, or numbers that are not whole.
    """
    try:
        document = json.loads(
            bytes(content).decode("utf-8"), object_pairs_hook=_once, parse_float=_no_number, parse_constant=_no_number
        )
    except (ValueError, RecursionError) as error:
        raise WireError(f"what came is no document: {str(error)[:200]}") from None
    if not isinstance(document, dict):
        raise WireError("what came is no document: not an object")
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key stands twice")
    return document


def _no_number(text: str) -> Any:
    raise ValueError(f"{text[:20]} is no whole number")


def field(document: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    """The field `name`, which must be of exactly this `kind`.

    Raises:
        WireError: it is missing, or something else.
    """
    value = document.get(name)
    if type(value) is not kind:
        raise WireError(f"the field {name} is {'missing' if name not in document else 'of the wrong kind'}")
    return value


def binary_field(document: Mapping[str, Any], name: str, length: int) -> bytes:
    """The field `name`, which must be `length` bytes in hexadecimal."""
    text = field(document, name, str)
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != length or value.hex() != text:
        raise WireError(f"the field {name} is not {length} bytes in hexadecimal")
    return value


# --- frames of a file -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FileFrame:
    """A numbered frame of a file. `fields` are as they go over the wire; `payload` is what a DATA frame carries."""

    kind: Kind
    number: int
    fields: bytes
    payload: Buffer = b""

    @property
    def parts(self) -> tuple[bytes, Buffer]:
        """The whole frame as it goes over the wire."""
        length = len(self.fields) + len(self.payload)
        return head(self.kind, length) + self.fields, self.payload


def data_frame(number: int, offset: int, payload: Buffer, digest: bytes | None = None) -> FileFrame:
    """A frame with `payload`, whose BLAKE3 is `digest` where that is known."""
    return FileFrame(Kind.DATA, number, DATA_FIELDS.pack(number, offset, digest or blake3(payload).digest()), payload)


def size_frame(number: int, size: int) -> FileFrame:
    return FileFrame(Kind.SIZE, number, SIZE_FIELDS.pack(number, size))


def trailer_frame(number: int, length: int, chain: bytes) -> FileFrame:
    return FileFrame(Kind.TRAILER, number, TRAILER_FIELDS.pack(number, length, chain))


def first_chain(magic: bytes) -> bytes:
    """The chain of a file of which nothing has been sent."""
    return blake3(b"diskhaul-tls file" + magic).digest()


def next_chain(chain: bytes, kind: Kind, fields: Buffer, length: int) -> bytes:
    """The chain with one more frame: its fields (with the digest of its `length` bytes of data) after all before it."""
    return blake3(chain + bytes([kind]) + length.to_bytes(4, "big") + bytes(fields)).digest()
