"""What two clusters tell each other: believed only as it was signed, with the same secret, in time."""

from __future__ import annotations

import copy
import json
import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from diskhaul.certificates import make_self_signed
from diskhaul.errors import RefusedError
from diskhaul.model import Disk, Instance, Nic
from diskhaul.remote.destination import Destination, check_destination, destination_document
from diskhaul.remote.envelope import (
    CERTIFICATE_PURPOSE,
    DESTINATION,
    DISK_PURPOSE,
    KEY_PURPOSE,
    LIFE,
    PREPARED,
    is_sealed,
    read_document,
    seal,
)
from diskhaul.remote.prepared import Prepared, check_prepared, prepared_document
from diskhaul.remote.signing import render, sign

SECRET, OTHER_SECRET = secrets.token_bytes(32), secrets.token_bytes(32)
NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
SIZES = (1 << 20, 3 << 20)
INSTANCE = Instance(
    name="web1.example.com",
    node="alpha",
    disks=[Disk(name="root"), Disk(options={"cache": "none"})],
    nics=[Nic(mac="aa:00:00:00:00:01")],
    private={"password": "never to be seen"},
    parameters={"weight": 1.5},
)
ID = "0123456789abcdef" * 2
Document = dict[str, Any]


def certificate(cluster: str, role: Any, name: str, now: datetime = NOW) -> str:
    return make_self_signed(cluster, role, name, now=now, until=now + LIFE)[1].decode("ascii")


SOURCE, RECEIVER = certificate("east", "source", INSTANCE.name), certificate("west", "receiver", "gamma")


def prepared(now: datetime = NOW, secret: bytes = SECRET, **changes: Any) -> Document:
    given: dict[str, Any] = {
        "id_": ID,
        "cluster": "east",
        "instance": INSTANCE,
        "sizes": SIZES,
        "certificate": SOURCE,
    }
    return prepared_document(secret, now=now, **(given | changes))


def destination(secret: bytes = SECRET, **changes: Any) -> Document:
    given: dict[str, Any] = {
        "cluster": "west",
        "node": "gamma",
        "instance": "web2.example.com",
        "certificate": RECEIVER,
        "host": "gamma.example.com",
        "port": 7421,
        "tokens": [bytes([number]) * 32 for number in range(len(SIZES))],
        "now": NOW,
        "expires": NOW + timedelta(hours=1),
    }
    return destination_document(secret, check_prepared(prepared(), SECRET, now=NOW), **(given | changes))


def believed(document: Document, now: datetime = NOW, **changes: Any) -> Destination:
    """The destination, as the source sees it."""
    given: dict[str, Any] = {"cluster": "east", "instance": INSTANCE.name, "sizes": SIZES}
    found, problems = check_destination(document, SECRET, now=now, **(given | changes))
    if problems:
        raise RefusedError(problems)
    return found


def resigned(document: Document, change: Callable[[Document], object]) -> Document:
    """`document` with a change in what is signed, and an HMAC around it that is right."""
    content = copy.deepcopy(document["signed"])
    change(content)
    return sign(SECRET, content["format"], content)


# --- right ones -------------------------------------------------------------------------------------------------------


def test_a_prepared_document_says_what_was_prepared_and_nothing_private() -> None:
    document = prepared()
    found = check_prepared(json.loads(json.dumps(document, indent=4)), SECRET, now=NOW)  # how it is laid out is no matter
    assert isinstance(found, Prepared)
    assert (found.id, found.cluster, found.node, found.sizes, found.certificate) == (ID, "east", "alpha", SIZES, SOURCE)
    assert list(found.instance.nics) == list(INSTANCE.nics)
    assert found.instance.parameters == INSTANCE.parameters
    assert found.expires == NOW + timedelta(hours=24)
    assert "never to be seen" not in render(document)


def test_a_destination_says_where_each_disk_goes() -> None:
    found = believed(destination())
    assert (found.cluster, found.node, found.instance, found.prepared) == ("west", "gamma", "web2.example.com", ID)
    assert [(disk.index, disk.size, disk.host, disk.port) for disk in found.disks] == [
        (index, size, "gamma.example.com", 7421) for index, size in enumerate(SIZES)
    ]
    assert found.disks[1].token == b"\1" * 32
    assert found.expires == NOW + timedelta(hours=1)


def test_a_destination_counts_no_longer_than_what_it_answers() -> None:
    assert believed(destination(expires=NOW + timedelta(days=30))).expires == NOW + LIFE


def test_two_documents_of_the_same_content_have_different_hmacs() -> None:
    one, other = prepared(), prepared()
    assert one["signed"]["id"] == other["signed"]["id"]
    assert one["hmac"] != other["hmac"]


# --- changed ones -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "check"),
    [
        pytest.param(prepared, lambda document: check_prepared(document, SECRET, now=NOW), id="prepared"),
        pytest.param(destination, believed, id="destination"),
    ],
)
def test_a_document_with_any_byte_changed_is_refused(made: Callable[[], Document], check: Callable[[Document], object]) -> None:
    text = render(made()).encode("ascii")
    check(read_document(text, "it"))
    for place in range(len(text)):
        for bit in (1 << place % 7, 0x20):
            changed = bytearray(text)
            changed[place] ^= bit
            with pytest.raises(RefusedError):
                check(read_document(bytes(changed), "it"))


def test_a_document_of_which_anything_is_missing_or_cut_is_refused() -> None:
    text = render(destination())
    for length in range(0, len(text), 7):
        with pytest.raises(RefusedError):
            believed(read_document(text[:length], "the destination"))
    for name in destination()["signed"]:
        content = {key: value for key, value in destination()["signed"].items() if key != name}
        with pytest.raises(RefusedError, match=r"missing|is no diskhaul|version"):
            believed(sign(SECRET, DESTINATION, content))


def test_what_another_secret_signed_is_refused_in_every_part() -> None:
    with pytest.raises(RefusedError) as refused:
        believed(destination(OTHER_SECRET))
    problems = refused.value.problems
    assert len(problems) == 4  # the key's name is still that of the source
    assert "its HMAC is wrong: it was changed, or the clusters' secrets differ" in problems[0]
    assert "certificate is not signed" in problems[1]
    assert [problem for problem in problems if problem.startswith("disk ")] == list(problems[2:])
    with pytest.raises(RefusedError) as refused:
        check_prepared(prepared(secret=OTHER_SECRET), SECRET, now=NOW)
    assert len(refused.value.problems) == 2


def test_an_hmac_counts_only_for_what_it_was_made_for() -> None:
    purposes = (KEY_PURPOSE, CERTIFICATE_PURPOSE, DISK_PURPOSE, PREPARED, DESTINATION)
    assert len(set(purposes)) == len(purposes)
    for made_for in purposes:
        sealed = seal(SECRET, made_for, {"name": "x"})
        assert [purpose for purpose in purposes if is_sealed(SECRET, purpose, sealed)] == [made_for]
    with pytest.raises(RefusedError, match="but a diskhaul-remote-prepared"):
        believed(prepared())
    with pytest.raises(RefusedError, match="but a diskhaul-remote-destination"):
        check_prepared(destination(), SECRET, now=NOW)


def disk(content: Document, index: int = 0) -> Document:
    found: Document = content["disks"][index]
    return found


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda content: disk(content).update(host="evil.example.com"), "disk 0: the HMAC of its destination is wrong"),
        (lambda content: disk(content, 1).update(port=1), "disk 1: the HMAC of its destination is wrong"),
        (lambda content: disk(content).update(token="f" * 64), "disk 0: the HMAC of its destination is wrong"),
        (lambda content: disk(content).update(size=5), "disk 0 has 1048576 bytes, and its destination is for 5"),
        (lambda content: content["disks"].reverse(), "disk 0: its destination is that of disk 1"),
        (lambda content: content["disks"].pop(), "places for 1 disk(s), and the instance has 2"),
        (lambda content: content["key"].update(hmac="0" * 64), "the HMAC of the key's name is wrong"),
        (lambda content: content["key"].update(name="f" * 32), "the HMAC of the key's name is wrong"),
        (lambda content: content.update(prepared="f" * 32), "its key is that of another prepared export"),
        (lambda content: content["certificate"].update(hmac="0" * 64), "certificate is not signed with the cluster-domain"),
        (lambda content: content["certificate"].update(pem=SOURCE), "certificate is not signed with the cluster-domain"),
        (lambda content: content.update(source_instance="db1.example.com"), "is for 'db1.example.com' of cluster 'east'"),
        (lambda content: content.update(source_cluster="north"), "of cluster 'north', not for"),
        (lambda content: content.update(node="delta"), "certificate is invalid: it is that of receiver 'gamma'"),
    ],
)
def test_each_part_is_signed_by_itself(change: Callable[[Document], object], problem: str) -> None:
    with pytest.raises(RefusedError) as refused:
        believed(resigned(destination(), change))
    assert any(problem in line for line in refused.value.problems), refused.value.problems
    assert not any("destination: its HMAC" in line for line in refused.value.problems)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(version=2),
        lambda content: content.update(version=True),
        lambda content: content.update(more=1),
        lambda content: content.update(created="yesterday"),
        lambda content: content.update(created="2026-03-01T12:00:00"),
        lambda content: content.update(instance="../x"),
        lambda content: content.update(disks={}),
        lambda content: content.update(disks=[[]]),
        lambda content: disk(content).update(port=0),
        lambda content: disk(content).update(port=True),
        lambda content: disk(content).update(port=65536),
        lambda content: disk(content).update(host=""),
        lambda content: disk(content).update(host="two words"),
        lambda content: disk(content).update(size=-1),
        lambda content: disk(content).update(size=1 << 63),
        lambda content: disk(content).update(token="00"),
        lambda content: disk(content).update(salt=disk(content)["salt"].upper() + "g"),
    ],
)
def test_what_is_signed_and_cannot_be_is_refused(change: Callable[[Document], object]) -> None:
    with pytest.raises(RefusedError):
        believed(resigned(destination(), change))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        '{"signed": {}}',
        '{"a": 1, "a": 2}',
        "[" * 100_000,
        '{"signed":' * 5000,
        "9" * 5000,
        '{"x": NaN}',
        "\xff",
    ],
)
def test_what_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        believed(read_document(text, "the destination"))
    with pytest.raises(RefusedError):
        check_prepared(read_document(text.encode("latin-1"), "the prepared export"), SECRET, now=NOW)


# --- in time ----------------------------------------------------------------------------------------------------------


def test_a_document_counts_until_it_expires() -> None:
    believed(destination(), now=NOW + timedelta(minutes=59))
    with pytest.raises(RefusedError, match="has expired at 2026-03-01 13:00:00 UTC"):
        believed(destination(), now=NOW + timedelta(hours=1))
    check_prepared(prepared(), SECRET, now=NOW + timedelta(hours=23, minutes=59))
    with pytest.raises(RefusedError) as refused:
        check_prepared(prepared(), SECRET, now=NOW + timedelta(hours=24, seconds=1))
    assert any("the prepared export has expired" in line for line in refused.value.problems)
    assert "the source's certificate has expired" in refused.value.problems


def test_a_document_of_tomorrow_or_for_longer_than_a_day_is_refused() -> None:
    with pytest.raises(RefusedError, match="yet to come: correct the clocks"):
        check_prepared(prepared(NOW + timedelta(hours=2)), SECRET, now=NOW)
    long = resigned(prepared(), lambda content: content.update(expires=(NOW + timedelta(days=3)).isoformat()))
    with pytest.raises(RefusedError, match="counts for longer than 24 hours"):
        check_prepared(long, SECRET, now=NOW)


@pytest.mark.parametrize(
    ("pem", "problem"),
    [
        ("no certificate", "is invalid"),
        (RECEIVER + RECEIVER, "is invalid"),
        (RECEIVER + "more", "is invalid"),
        (SOURCE, "is that of source 'web1.example.com' of cluster 'east'"),
        (certificate("west", "receiver", "delta"), "is that of receiver 'delta'"),
        (certificate("west", "receiver", "gamma", NOW + timedelta(hours=3)), "is not valid yet"),
    ],
)
def test_a_certificate_that_is_signed_and_cannot_be_the_receiver_s_is_refused(pem: str, problem: str) -> None:
    with pytest.raises(RefusedError) as refused:
        believed(destination(certificate=pem))
    assert all(line.startswith("the receiver's certificate ") for line in refused.value.problems)
    assert any(problem in line for line in refused.value.problems)


def test_an_expired_certificate_is_told_beside_everything_else() -> None:
    old = certificate("west", "receiver", "gamma", NOW - timedelta(days=2))
    broken = resigned(destination(certificate=old), lambda content: content["disks"].pop())
    with pytest.raises(RefusedError) as refused:
        believed(broken)
    assert "the receiver's certificate has expired" in refused.value.problems
    assert any("places for 1 disk(s)" in line for line in refused.value.problems)
