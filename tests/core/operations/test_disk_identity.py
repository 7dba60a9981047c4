"""Whether a disk at another cluster may be one that lies here."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from diskhaul.host import PluginHost
from diskhaul.model import Cluster, Disk, Instance, Node
from diskhaul.operations.disk_identity import disk_identities, same_disks
from diskhaul.options import MIB
from diskhaul.records import DiskIdentity


def test_a_disk_is_known_by_its_place_its_size_and_its_beginning(tmp_path: Path) -> None:
    full, empty = tmp_path / "full.raw", tmp_path / "empty.raw"
    full.write_bytes(b"x" * MIB + b"y" * 4096)
    empty.write_bytes(bytes(4096))
    paths = (full, empty, tmp_path / "none.raw")
    instance = Instance(name="web1", node="alpha", disks=[Disk(index=index, path=path) for index, path in enumerate(paths)])
    cluster = Cluster(
        name="lab", state_dir=tmp_path / "state", nodes=[Node(name="alpha", export_dir=tmp_path)], instances=[instance]
    )
    first, second, third = disk_identities(PluginHost(cluster, []), instance, limit_s=60.0)
    assert (first.size, first.digest) == (MIB + 4096, hashlib.sha256(b"x" * MIB).hexdigest())
    assert str(full) in first.location
    assert (second.size, second.digest) == (4096, "")
    assert third == DiskIdentity(index=2)


HERE = (DiskIdentity(index=0, location="pool/a", size=4096, digest="aa"), DiskIdentity(index=1, location="pool/b", size=4096))


@pytest.mark.parametrize(
    ("there", "count"),
    [
        ([{"location": "pool/a", "size": 4096, "digest": "aa"}], 1),
        ([{"location": "pool/x", "size": 4096, "digest": "aa"}], 0),
        ([{"location": "pool/a", "size": 8192, "digest": "aa"}], 0),
        ([{"location": "pool/a", "size": 4096, "digest": "bb"}], 0),
        ([{"location": "pool/b", "size": 4096, "digest": ""}], 0),
        ([{"location": [], "size": {}, "digest": []}, 7], 0),
        (None, 0),
    ],
)
def test_only_what_agrees_in_all_of_it_may_be_the_same(there: object, count: int) -> None:
    assert len(same_disks(HERE, there)) == count
