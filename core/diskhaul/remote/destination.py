"""What the destination answers: who receives, where each disk goes, and the token that is good for it once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..certificates import self_signed_problems
from ..errors import RefusedError
from ..names import printable
from .envelope import (
    CERTIFICATE_PURPOSE,
    DESTINATION,
    DISK_PURPOSE,
    HMAC_LENGTH,
    KEY_PURPOSE,
    MAX_DISK_SIZE,
    MAX_DISKS,
    SALT_LENGTH,
    VERSION,
    Document,
    is_sealed,
    open_document,
    seal,
    time_problems,
)
from .fields import Fields
from .prepared import ID_LENGTH, Prepared, read_key
from .signing import UnreadableDocumentError, sign

TOKEN_LENGTH = 32
_DISK_FIELDS = ("prepared", "index", "size", "host", "port", "token", "salt", "hmac")
_FIELDS = (
    *("format", "version", "created", "expires", "prepared", "key", "source_cluster", "source_instance"),
    *("cluster", "node", "instance", "certificate", "disks"),
)
_CERTIFICATE_FIELDS = ("prepared", "pem", "salt", "hmac")
_MAX_HOST = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskDestination:
    """Where one disk goes. `token` has to be known by whoever sends it."""

    index: int
    size: int
    host: str
    port: int
    token: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where a remote export goes.

    Attributes:
        created, expires: UTC; after that nobody waits for it any more.
        prepared: the id of what it answers, and so the name of the source's key.
        cluster, node, instance: where it will lie, and under which name.
        certificate: the receiver's, PEM.
    """

    created: datetime
    expires: datetime
    prepared: str
    source_cluster: str
    source_instance: str
    cluster: str
    node: str
    instance: str
    certificate: str
    disks: tuple[DiskDestination, ...]


def destination_document(
    secret: bytes,
    prepared: Prepared,
    *,
    cluster: str,
    node: str,
    instance: str,
    certificate: str,
    host: str,
    port: int,
    tokens: Sequence[bytes],
    now: datetime,
    expires: datetime,
) -> dict[str, Any]:
    """The signed document."""
    disks = [
        seal(
            secret,
            DISK_PURPOSE,
            {"prepared": prepared.id, "index": index, "size": size, "host": host, "port": port, "token": token.hex()},
        )
        for index, (size, token) in enumerate(zip(prepared.sizes, tokens, strict=True))
    ]
    content = {
        "format": DESTINATION,
        "version": VERSION,
        "created": now.isoformat(),
        "expires": min(expires, prepared.expires).isoformat(),
        "prepared": prepared.id,
        "key": dict(prepared.key),
        "source_cluster": prepared.cluster,
        "source_instance": prepared.instance.name,
        "cluster": cluster,
        "node": node,
        "instance": instance,
        "certificate": seal(secret, CERTIFICATE_PURPOSE, {"prepared": prepared.id, "pem": certificate}),
        "disks": disks,
    }
    return sign(secret, DESTINATION, content)


def check_destination(
    document: Document, secret: bytes, *, now: datetime, cluster: str, instance: str, sizes: Sequence[int | None]
) -> tuple[Destination, list[str]]:
    """What a document says, which came from elsewhere, and every reason not to believe it, one line each.

    Args:
        cluster, instance: the source's, which it has to be for.
        sizes: of the instance's disks, bytes; None where one is not known.

    Raises:
        RefusedError: it cannot even be read.
    """
    content, genuine, destination, key = _opened(document, secret)
    problems = [] if genuine else ["the destination: its HMAC is wrong: it was changed, or the clusters' secrets differ"]
    problems += [f"the destination {problem}" for problem in time_problems(destination.created, destination.expires, now)]
    if not is_sealed(secret, KEY_PURPOSE, key):
        problems.append("the destination: the HMAC of the key's name is wrong")
    if key["name"] != destination.prepared:
        problems.append("the destination: its key is that of another prepared export")
    if (destination.source_cluster, destination.source_instance) != (cluster, instance):
        of = f"{printable(destination.source_instance)} of cluster {printable(destination.source_cluster)}"
        problems.append(f"the destination is for {of}, not for {instance} of cluster {cluster}")
    problems += _certificate_problems(content["certificate"], secret, destination, now)
    problems += _disk_problems(content["disks"], secret, destination, sizes)
    return destination, problems


def read_destination(document: Document) -> Destination:
    """What a document says, whoever made it: for names, and not to be acted upon.

    Raises:
        RefusedError: it cannot be read.
    """
    return _opened(document, b"")[2]


def _opened(document: Document, secret: bytes) -> tuple[dict[str, Any], bool, Destination, Mapping[str, str]]:
    """Content, whether it is genuine, what it says, and the key's name under its HMAC."""
    try:
        content, genuine = open_document(document, secret, DESTINATION)
        fields = Fields(content, "destination", _FIELDS)
        return content, genuine, _read(fields), read_key(fields)
    except UnreadableDocumentError as error:
        raise RefusedError(f"the destination {error}") from error


def _certificate_problems(sealed: Mapping[str, Any], secret: bytes, destination: Destination, now: datetime) -> list[str]:
    if not is_sealed(secret, CERTIFICATE_PURPOSE, sealed) or sealed["prepared"] != destination.prepared:
        # What nobody vouches for is not looked into.
        return ["the receiver's certificate is not signed with the cluster-domain secret"]
    found = self_signed_problems(destination.certificate, destination.cluster, "receiver", destination.node, now=now)
    return [f"the receiver's certificate {problem}" for problem in found]


def _disk_problems(
    sealed: Sequence[Mapping[str, Any]], secret: bytes, destination: Destination, sizes: Sequence[int | None]
) -> list[str]:
    problems = []
    if len(destination.disks) != len(sizes):
        problems.append(f"the destination has places for {len(destination.disks)} disk(s), and the instance has {len(sizes)}")
    for position, (entry, disk) in enumerate(zip(sealed, destination.disks, strict=True)):
        if not is_sealed(secret, DISK_PURPOSE, entry) or entry["prepared"] != destination.prepared:
            problems.append(f"disk {position}: the HMAC of its destination is wrong")
        elif disk.index != position:
            problems.append(f"disk {position}: its destination is that of disk {disk.index}")
        size = sizes[position] if position < len(sizes) else None
        if size is not None and disk.size != size:
            problems.append(f"disk {position} has {size} bytes, and its destination is for {disk.size}: prepare it anew")
    if len({(disk.host, disk.port) for disk in destination.disks}) > 1:
        problems.append("the destination: its disks go to different addresses, which this diskhaul does not do")
    if len({disk.token for disk in destination.disks}) != len(destination.disks):
        problems.append("the destination: two disks have one token")
    return problems


def _read(fields: Fields) -> Destination:
    disks = fields.objects("disks", _DISK_FIELDS, MAX_DISKS)
    certificate = fields.object("certificate", _CERTIFICATE_FIELDS)
    for sealed in (certificate, *disks):
        sealed.hex("prepared", ID_LENGTH)
        sealed.hex("salt", SALT_LENGTH)
        sealed.hex("hmac", HMAC_LENGTH)
    return Destination(
        created=fields.time("created"),
        expires=fields.time("expires"),
        prepared=fields.hex("prepared", ID_LENGTH),
        source_cluster=fields.name("source_cluster", "cluster"),
        source_instance=fields.name("source_instance", "instance"),
        cluster=fields.name("cluster", "cluster"),
        node=fields.name("node", "node"),
        instance=fields.name("instance", "instance"),
        certificate=certificate.text("pem"),
        disks=tuple(_disk(disk) for disk in disks),
    )


def _disk(fields: Fields) -> DiskDestination:
    host = fields.text("host")
    if not 0 < len(host) <= _MAX_HOST or not host.isascii() or not host.isprintable() or " " in host:
        raise UnreadableDocumentError("destination: a host that cannot be one")
    return DiskDestination(
        index=fields.number("index", 0, MAX_DISKS),
        size=fields.number("size", 0, MAX_DISK_SIZE),
        host=host,
        port=fields.number("port", 1, 65535),
        token=bytes.fromhex(fields.hex("token", TOKEN_LENGTH)),
    )
