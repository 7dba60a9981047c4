"""What the source hands out: which instance is to come, who will send it, and under which key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..certificates import self_signed_problems
from ..errors import RefusedError
from ..formats.corruption import CorruptError
from ..formats.manifest import instance_from_record, instance_record
from ..model import Instance
from .envelope import (
    HMAC_LENGTH,
    KEY_PURPOSE,
    LIFE,
    MAX_DISK_SIZE,
    MAX_DISKS,
    PREPARED,
    SALT_LENGTH,
    VERSION,
    Document,
    is_sealed,
    open_document,
    seal,
    time_problems,
)
from .fields import Fields
from .signing import UnreadableDocumentError, sign

ID_LENGTH = 16
KEY_FIELDS = ("name", "salt", "hmac")
_FIELDS = ("format", "version", "id", "created", "expires", "cluster", "node", "instance", "disks", "key", "certificate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An instance that is ready to be exported to another cluster.

    Attributes:
        id: 16 random bytes in hexadecimal; also what the source calls the key.
        created, expires: UTC.
        cluster, node: where the instance is.
        instance: how it is configured there, without what is private.
        sizes: of its disks, by index, bytes.
        key: the key's name under its HMAC, as it goes back to the source.
        certificate: the source's, PEM.
    """

    id: str
    created: datetime
    expires: datetime
    cluster: str
    node: str
    instance: Instance
    sizes: tuple[int, ...]
    key: Mapping[str, str]
    certificate: str


def prepared_document(
    secret: bytes,
    *,
    id_: str,
    cluster: str,
    instance: Instance,
    sizes: Sequence[int],
    certificate: str,
    now: datetime,
    left_out: list[str] | None = None,
) -> dict[str, Any]:
    """The signed document. Key paths of options that JSON cannot hold are appended to `left_out`."""
    content = {
        "format": PREPARED,
        "version": VERSION,
        "id": id_,
        "created": now.isoformat(),
        "expires": (now + LIFE).isoformat(),
        "cluster": cluster,
        "node": instance.node,
        "instance": instance_record(instance, left_out),
        "disks": [{"index": index, "size": size} for index, size in enumerate(sizes)],
        "key": seal(secret, KEY_PURPOSE, {"name": id_}),
        "certificate": certificate,
    }
    return sign(secret, PREPARED, content)


def check_prepared(document: Document, secret: bytes, *, now: datetime) -> Prepared:
    """What a document says, which came from elsewhere.

    Raises:
        RefusedError: every reason not to believe it, together.
    """
    try:
        content, genuine = open_document(document, secret, PREPARED)
        prepared = _read(Fields(content, "prepared", _FIELDS))
    except UnreadableDocumentError as error:
        raise RefusedError(f"the prepared export {error}") from error
    except CorruptError as error:
        raise RefusedError(f"the prepared export: {error}") from error
    problems = [] if genuine else ["the prepared export: its HMAC is wrong: it was changed, or the clusters' secrets differ"]
    problems += [f"the prepared export {problem}" for problem in time_problems(prepared.created, prepared.expires, now)]
    if not is_sealed(secret, KEY_PURPOSE, prepared.key):
        problems.append("the prepared export: the HMAC of its key's name is wrong")
    if genuine:  # what nobody vouches for is not looked into
        found = self_signed_problems(prepared.certificate, prepared.cluster, "source", prepared.instance.name, now=now)
        problems += [f"the source's certificate {problem}" for problem in found]
    if len(prepared.sizes) != len(prepared.instance.disks):
        problems.append(f"the prepared export: {len(prepared.sizes)} sizes of {len(prepared.instance.disks)} disks")
    if problems:
        raise RefusedError(problems)
    return prepared


def _read(fields: Fields) -> Prepared:
    disks = fields.objects("disks", ("index", "size"), MAX_DISKS)
    if [disk.number("index", 0, MAX_DISKS) for disk in disks] != list(range(len(disks))):
        raise UnreadableDocumentError("prepared.disks: are not in their order")
    return Prepared(
        id=fields.hex("id", ID_LENGTH),
        created=fields.time("created"),
        expires=fields.time("expires"),
        cluster=fields.name("cluster", "cluster"),
        node=fields.name("node", "node"),
        instance=instance_from_record(fields.mapping("instance")),
        sizes=tuple(disk.number("size", 0, MAX_DISK_SIZE) for disk in disks),
        key=read_key(fields),
        certificate=fields.text("certificate"),
    )


def read_key(fields: Fields) -> Mapping[str, str]:
    """The key's name under its HMAC."""
    key = fields.object("key", KEY_FIELDS)
    return {"name": key.text("name"), "salt": key.hex("salt", SALT_LENGTH), "hmac": key.hex("hmac", HMAC_LENGTH)}
