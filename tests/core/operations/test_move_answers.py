"""Answers of another cluster during a move that are not about what it was asked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from diskhaul.certificates import make_self_signed
from diskhaul.model import Disk, Instance
from diskhaul.operations.move_answers import destination_problems, import_problem
from diskhaul.records import ExportRecord
from diskhaul.remote.destination import destination_document
from diskhaul.remote.prepared import check_prepared, prepared_document

EXPORT = ExportRecord(
    node="gamma.example.com",
    instance="web1.example.com",
    export_id="20261129T074231Z-54f8ddc3",
    store="",
    created=datetime(2026, 11, 29, tzinfo=UTC),
    path="/exports/web1.example.com/20261129T074231Z-54f8ddc3",
)
GOOD: dict[str, Any] = {
    "instance": EXPORT.instance,
    "source": EXPORT.path,
    "dry_run": False,
    "disks": [{"index": 0, "size": 4096, "error": ""}, {"index": 1, "size": 9000, "error": ""}],
}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({}, ""),
        ({"instance": "web2.example.com"}, "its answer is about another export"),
        ({"source": "/exports/web1.example.com/20261129T074231Z-00000000"}, "its answer is about another export"),
        ({"source": None}, "its answer is about another export"),
        ({"dry_run": True}, "it does not say that anything was written"),
        ({"dry_run": None}, "it does not say that anything was written"),
        ({"disks": None}, "it does not say that 2 disk(s) were written"),
        ({"disks": GOOD["disks"][:1]}, "it does not say that 2 disk(s) were written"),
        ({"disks": [GOOD["disks"][0], 7]}, "it does not say that disk 1 was written whole"),
        ({"disks": [GOOD["disks"][0]] * 2}, "it does not say that disk 1 was written whole"),
        ({"disks": [GOOD["disks"][0] | {"size": 4095}, GOOD["disks"][1]]}, "it does not say that disk 0 was written whole"),
        ({"disks": [GOOD["disks"][0] | {"error": "lost"}, GOOD["disks"][1]]}, "it does not say that disk 0 was written whole"),
        ({"disks": [GOOD["disks"][0], GOOD["disks"][1] | {"size": 8999}]}, "it does not say that disk 1 was written whole"),
    ],
)
def test_only_what_was_asked_for_counts_as_an_import(changed: dict[str, Any], problem: str) -> None:
    assert import_problem(GOOD | changed, EXPORT, [4096, 8000], {1: 9000}) == problem


def test_a_destination_is_that_of_who_was_asked() -> None:
    secret, now = b"s" * 64, datetime.now(UTC)
    _, certificate = make_self_signed("east", "source", "web1.example.com", now=now, until=now + timedelta(hours=24))
    instance = Instance(name="web1.example.com", node="alpha", disks=[Disk(index=0, path=Path("/disk.raw"))])
    pem = certificate.decode("ascii")
    sent = prepared_document(secret, id_="5" * 32, cluster="east", instance=instance, sizes=[4096], certificate=pem, now=now)
    document = destination_document(
        secret,
        check_prepared(sent, secret, now=now),
        cluster="west",
        node="gamma.example.com",
        instance="web2.example.com",
        certificate=pem,
        host="192.0.2.1",
        port=7000,
        tokens=[b"t" * 32],
        now=now,
        expires=now + timedelta(hours=1),
    )

    def problems(cluster: str, node: str, instance: str) -> list[str]:
        return destination_problems(document, cluster=cluster, node=node, instance=instance)

    assert problems("west", "gamma", "web2.example.com") == []
    assert problems("west", "gamma.example.com", "web2.example.com") == []
    assert problems("north", "gam", "web1.example.com") == [
        "the command of cluster north was answered by cluster west: correct the configuration",
        "cluster north: node gam was asked for, and node gamma.example.com answered",
        "cluster north: web1.example.com was to be received, and web2.example.com would be",
    ]
