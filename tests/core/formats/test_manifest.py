"""Manifests."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from diskhaul.api import DiskRegion
from diskhaul.errors import StorageError
from diskhaul.formats import manifest as manifests
from diskhaul.formats.chunk_table import MAX_CHUNKS
from diskhaul.formats.corruption import CorruptError
from diskhaul.formats.manifest import DiskRecord, Manifest, instance_from_record, instance_record, read_manifest
from diskhaul.model import Disk, Instance, Nic

MIB = 1 << 20
RUN = "1a2b3c4d-5e6f-4a0b-8c1d-2e3f4a5b6c7d"

INSTANCE = Instance(
    name="web1.example.com",
    node="alpha",
    runtime="command",
    os="debian-12",
    disks=(
        Disk(path=Path("/srv/web1-root.raw"), size=5 * MIB, name="root", uuid="u-0"),
        Disk(storage="object", options={"bucket": "b"}),
    ),
    nics=(Nic(mac="52:54:00:00:00:01", ip="192.0.2.1", mode="bridged", link="br0"), Nic()),
    secondaries=("beta",),
    memory_mib=512,
    vcpus=2,
    tags=("web", "ünicode \x1b[31m"),
    runtime_options={"start": ["./vm", "start"], "grace": 1.5, "nested": {"a": [1, None, True]}},
    private={"password": "hunter2"},
    parameters={"hypervisor": "kvm"},
)


def disk_record(index: int = 0, **changes: Any) -> DiskRecord:
    return replace(
        DiskRecord(
            index=index,
            name="root",
            uuid="u-0",
            size=5 * MIB,
            file=f"disk-{index}.raw.zst",
            format="raw.zst",
            compress="zstd:1",
            stored_size=12345,
            chunk_size=4 * MIB,
            chunk_count=2,
            chunks_file=f"disk-{index}.chunks",
            root_digest="a" * 64,
            stored_root="b" * 64,
            data_bytes=3 * MIB,
            zero_bytes=MIB,
            free_bytes=MIB,
            consistency="stopped",
        ),
        **changes,
    )


def raw_record(index: int = 1, **changes: Any) -> DiskRecord:
    return disk_record(index, **({"file": f"disk-{index}.raw", "format": "raw", "compress": "none", "stored_root": ""} | changes))


GANETI = {"layout": "ganeti", "other_files": {"config.ini": "c" * 64}}

MANIFEST = Manifest(
    export_id="20261122T103308Z-1a2b3c4d",
    run_id=RUN,
    cluster="lab",
    created="2026-11-22T10:33:08Z",
    instance=instance_record(INSTANCE),
    options={"compress": "zstd:1", "shutdown": True, "threads": 0, "zero_fill": None, "timeout": 2.5},
    consistency="stopped",
    disks=(disk_record(), raw_record()),
    timings={"total": 1.25, "shutdown": 0.0},
)


def stored(content: Any) -> bytes:
    """Any content as a manifest whose digest is right."""
    content = dict(content) | {"manifest_digest": "0" * 64}
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    return with_digest(text.encode("ascii"))


def with_digest(data: bytes) -> bytes:
    """Put the right digest into the last place that has zeros for it."""
    at = data.rindex(b"0" * 64)
    return data[:at] + blake3(data).hexdigest().encode("ascii") + data[at + 64 :]


def content() -> dict[str, Any]:
    return json.loads(MANIFEST.to_bytes())  # type: ignore[no-any-return]


def refused(data: bytes) -> str:
    with pytest.raises(CorruptError) as caught:
        Manifest.from_bytes(data)
    problem = caught.value.problem
    assert problem.isprintable()
    assert problem.isascii()
    assert len(problem) < 400
    return problem


# --- round trips ------------------------------------------------------------------------------------------------------


REGION = DiskRegion(
    place="partition 1",
    offset=MIB,
    length=MIB,
    type="ext4",
    label="\x1b[31mröd",
    state="clean",
    block_size=4096,
    free=5,
    skipped=4,
)


def with_regions(*regions: DiskRegion, features: tuple[str, ...] = (manifests.DISK_REGIONS,)) -> Manifest:
    """A manifest of an export for which free space was looked for."""
    return replace(MANIFEST, disks=(disk_record(regions=regions), raw_record()), required_features=features)


def test_what_disks_held_comes_back() -> None:
    manifest = with_regions(REGION, replace(REGION, free=None, skipped=0, kept="for a reason"))
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


def test_manifests_without_regions_are_as_they_always_were() -> None:
    assert all("regions" not in disk for disk in content()["disks"])
    assert content()["required_features"] == []


def test_regions_and_the_feature_that_tells_of_them_go_together() -> None:
    with pytest.raises(ValueError, match="disk-regions does not go with the disks' regions"):
        with_regions(REGION, features=()).to_bytes()
    with pytest.raises(ValueError, match="disk-regions does not go with the disks' regions"):
        with_regions().to_bytes()


def test_only_so_many_regions_are_recorded() -> None:
    most = manifests.most_regions(2)
    assert Manifest.from_bytes(with_regions(*[REGION] * most).to_bytes()).disks[0].regions == (REGION,) * most
    with pytest.raises(ValueError, match="are more than are recorded"):
        with_regions(*[REGION] * (most + 1)).to_bytes()


def test_as_many_regions_as_are_recorded_fit_into_a_manifest() -> None:
    """Whatever guests call their filesystems: a label must not make an export fail."""
    for disks in (1, 2, 16, 64, 500):
        most = manifests.most_regions(disks)
        worst = replace(
            REGION, place='"' * 1000, type="x" * 1000, label="\U0001f600" * 1000, state="\0" * 1000, kept="\x7f" * 1000
        )
        instance = replace(INSTANCE, disks=tuple(Disk(path=Path(f"/{index}"), size=5 * MIB) for index in range(disks)))
        records = tuple(disk_record(index, regions=(worst if index == 0 else REGION,) * most) for index in range(disks))
        manifest = replace(
            MANIFEST, instance=instance_record(instance), disks=records, required_features=(manifests.DISK_REGIONS,)
        )
        assert len(Manifest.from_bytes(manifest.to_bytes()).disks) == disks


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"offset": -1}, "is not from 0"),
        ({"free": "5"}, "is not a whole number"),
        ({"skipped": None}, "is not a whole number"),
        ({"label": 5}, "is not a text"),
        ({"colour": "red"}, "is not a known key"),
    ],
    ids=repr,
)
def test_a_region_that_cannot_be_is_refused(change: dict[str, Any], problem: str) -> None:
    record = json.loads(with_regions(REGION).to_bytes())
    record["disks"][0]["regions"][0].update(change)
    assert problem in refused(stored(record))


def undigested(**changes: Any) -> Manifest:
    """A manifest whose raw disk has no digests yet."""
    disks = (disk_record(), raw_record(root_digest="", chunks_file="", **changes))
    return replace(MANIFEST, disks=disks, required_features=(manifests.DIGESTS_LATER,))


def test_disks_without_digests_come_back_and_say_so() -> None:
    manifest = Manifest.from_bytes(undigested().to_bytes())
    assert manifest == undigested()
    assert [disk.has_digests for disk in manifest.disks] == [True, False]
    assert (manifest.has_digests, MANIFEST.has_digests) == (False, True)


def test_digests_are_left_out_of_raw_disks_only_and_by_those_who_say_so() -> None:
    with pytest.raises(ValueError, match="digests-later does not go with the disks' digests"):
        replace(undigested(), required_features=()).to_bytes()
    with pytest.raises(ValueError, match="digests-later does not go with the disks' digests"):
        replace(MANIFEST, required_features=(manifests.DIGESTS_LATER,)).to_bytes()
    with pytest.raises(ValueError, match=r"disks\.1: chunks_file is given without a root_digest"):
        replace(undigested(), disks=(disk_record(), raw_record(root_digest=""))).to_bytes()
    with pytest.raises(ValueError, match=r"disks\.1: file name '' is not allowed"):
        replace(MANIFEST, disks=(disk_record(), raw_record(chunks_file=""))).to_bytes()
    with pytest.raises(ValueError, match=r"disks\.0: root_digest is missing"):
        replace(undigested(), disks=(disk_record(root_digest="", chunks_file="", stored_root=""), raw_record())).to_bytes()


def test_two_disks_without_chunk_tables_have_no_file_in_common() -> None:
    disks = tuple(raw_record(index, root_digest="", chunks_file="") for index in range(2))
    manifest = replace(MANIFEST, disks=disks, required_features=(manifests.DIGESTS_LATER,))
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


def test_a_manifest_comes_back_and_is_written_in_one_way() -> None:
    data = MANIFEST.to_bytes()
    assert Manifest.from_bytes(data) == MANIFEST
    assert Manifest.from_bytes(data).to_bytes() == data
    assert stored(content()) == data
    assert data.isascii()
    assert data.endswith(b"\n}\n")
    assert list(json.loads(data)) == sorted(json.loads(data))


def test_an_instance_comes_back_without_its_secrets() -> None:
    record = json.loads(json.dumps(instance_record(INSTANCE)))
    assert instance_from_record(record) == replace(INSTANCE, private={})
    assert "hunter2" not in json.dumps(record)
    assert b"hunter2" not in MANIFEST.to_bytes()
    assert "private" not in record


def test_an_export_without_disks_has_a_manifest() -> None:
    empty = replace(MANIFEST, instance=instance_record(replace(INSTANCE, disks=())), disks=())
    assert Manifest.from_bytes(empty.to_bytes()) == empty


def test_ganeti_dumps_may_be_called_by_uuid() -> None:
    dumps = tuple(raw_record(index, file=f"5ad1b2-{index}") for index in range(2))
    ganeti = replace(MANIFEST, **GANETI, disks=dumps)
    assert Manifest.from_bytes(ganeti.to_bytes()) == ganeti


def test_an_empty_disk_and_a_huge_one_have_records() -> None:
    empty = disk_record(size=0, chunk_count=0, data_bytes=0, zero_bytes=0, free_bytes=0)
    huge = raw_record(size=2 << 50, chunk_size=1 << 30, chunk_count=2 << 20, data_bytes=0, zero_bytes=2 << 50, free_bytes=0)
    manifest = replace(MANIFEST, disks=(empty, huge))
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(options=st.dictionaries(st.text(), JSON, max_size=4), tags=st.lists(st.text(), max_size=3))
@settings(max_examples=100, deadline=None)
def test_whatever_options_hold_comes_back(options: dict[str, Any], tags: list[str]) -> None:
    instance = replace(INSTANCE, runtime_options=options, tags=tags)
    manifest = replace(MANIFEST, instance=instance_record(instance), options=options)
    back = Manifest.from_bytes(manifest.to_bytes())
    assert back == manifest
    assert instance_from_record(back.instance).runtime_options == options


@pytest.mark.parametrize("decoy", ["0" * 64, '\n  "manifest_digest": "' + "0" * 64, '"manifest_digest": "' + "0" * 64])
def test_a_text_that_looks_like_the_digest_does_no_harm(decoy: str) -> None:
    manifest = replace(MANIFEST, options={"a": decoy, decoy: "x", "manifest_digest": decoy}, cluster="lab")
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


def test_what_a_manifest_cannot_hold_is_left_out_and_named() -> None:
    options = {
        "path": Path("/x"),
        "day": date(2026, 1, 2),
        "pair": (1, 2),
        "object": object(),
        "bytes": b"x",
        "huge": 10**40,
        "inf": float("inf"),
        "nan": float("nan"),
        "deep": {"ok": 1, 7: "key"},
        "list": [1, object()],
    }
    endless: dict[str, Any] = {}
    endless["again"] = endless
    left_out: list[str] = []
    instance = replace(INSTANCE, disks=(Disk(options=options),), parameters=endless)
    record = instance_record(instance, left_out)
    assert record["disks"][0]["options"] == {
        "path": "/x",
        "day": "2026-01-02",
        "pair": [1, 2],
        "deep": {"ok": 1},
        "list": [1],
    }
    where = "disks.0.options."
    assert set(left_out[:-1]) == {where + key for key in ("object", "bytes", "huge", "inf", "nan", "deep.7", "list.1")}
    assert left_out[-1].startswith("parameters.again.again")
    Manifest.from_bytes(replace(MANIFEST, instance=record, disks=(disk_record(),)).to_bytes())


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"a": object()}},
        {"options": {"a": float("nan")}},
        {"export_id": "x"},
        {"cluster": "../x"},
        {"disks": (disk_record(), disk_record())},
        {"disks": ()},
        {"consistency": "perhaps"},
        {"run_id": RUN.replace("1a", "2a")},
        {"timings": {"total": float("inf")}},
    ],
)
def test_a_manifest_that_could_not_be_read_back_is_not_written(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="manifest"):
        replace(MANIFEST, **change).to_bytes()


# --- damage -----------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_is_found() -> None:
    data = bytearray(MANIFEST.to_bytes())
    for at in range(len(data)):
        for bit in range(8):
            data[at] ^= 1 << bit
            refused(bytes(data))
            data[at] ^= 1 << bit


def test_a_manifest_that_was_cut_is_refused_wherever() -> None:
    data = MANIFEST.to_bytes()
    for length in range(len(data)):
        refused(data[:length])
    assert "empty" in refused(b"")
    refused(data + b"\n")
    refused(data + data)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 10_000 + b"]" * 10_000,
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'[{"a":' * 5_000 + b"1" + b"}]" * 5_000,
        b'{"format_version": 1, "options": ' + b"[" * 40 + b"]" * 40 + b"}",
        b"[" * manifests.MAX_MANIFEST_BYTES,
        b'"' * manifests.MAX_MANIFEST_BYTES,
        b'\\"' * (manifests.MAX_MANIFEST_BYTES // 2),
        b'"' + b'\\"' * (manifests.MAX_MANIFEST_BYTES // 2 - 1) + b"\\",
        b"[[]" + b",[]" * 5_000_000 + b"]",
        b"[" + b"1" * (manifests.MAX_MANIFEST_BYTES - 2) + b"]",
        b"[" + b"1" * 5000 + b".0]",
        b"[1e999999999]",
        b" " * (manifests.MAX_MANIFEST_BYTES + 1),
        b"]" * 100,
        b"[}",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        '{"a": "\u00fc"}'.encode(),
        b"null",
        b"[]",
        b"{}",
        b"1",
        b"\0" * 100,
        b'{"a": 1, "a": 1}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
    ],
    ids=lambda data: repr(data[:12]),
)
def test_hostile_json_is_refused_in_bounded_memory(data: bytes) -> None:
    tracemalloc.start()
    try:
        refused(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * manifests.MAX_MANIFEST_BYTES


def test_json_that_is_no_ascii_text_does_not_get_past_the_bounds() -> None:
    """Python's parser would take these bytes for UTF-16, in which the values do not lie in one string."""
    hidden = '{"a": "\\"", "b": [' + ", ".join(["{}"] * (manifests.MAX_VALUES + 1)) + '], "c": "\\""}'
    assert "not JSON" in refused(hidden.encode("utf-16-le"))


@pytest.mark.parametrize(("disks", "allowed"), [(8, True), (9, False)])
def test_the_disks_of_an_export_have_so_many_chunks_at_the_most(disks: int, allowed: bool) -> None:
    """Sparse files cost nothing, and the tables of all disks are in memory at once."""
    size = (64 << 10) * MAX_CHUNKS
    changed = content()
    changed["disks"] = [
        changed["disks"][1]
        | {"index": index, "file": f"disk-{index}.raw", "chunks_file": f"disk-{index}.chunks", "size": size, "stored_size": size}
        | {"chunk_size": 64 << 10, "chunk_count": MAX_CHUNKS, "data_bytes": 0, "zero_bytes": size, "free_bytes": 0}
        for index in range(disks)
    ]
    changed["instance"]["disks"] = [changed["instance"]["disks"][1]] * disks
    if allowed:
        assert len(Manifest.from_bytes(stored(changed)).disks) == disks
    else:
        assert "disks: 18874368 chunks; an export has 16777216 at most" in refused(stored(changed))


@pytest.mark.parametrize("levels", [80, 10_000])
def test_deep_nesting_is_called_that_and_moderate_nesting_is_fine(levels: int) -> None:
    data = MANIFEST.to_bytes()
    assert "nested" in refused(data.replace(b'"threads": 0', b'"threads": ' + b"[" * levels + b"]" * levels))
    assert "changed" in refused(data.replace(b'"threads": 0', b'"threads": ' + b"[" * 20 + b"]" * 20))


def test_a_newer_manifest_says_so_before_anything_else() -> None:
    newer = json.dumps({"format_version": 2, "all": "different"}).encode("ascii")
    assert refused(newer) == "made by a newer diskhaul: format version 2, and this one reads up to 1"
    feature = stored(content() | {"required_features": ["dedup", "\x1b[2J"]})
    assert refused(feature).startswith("made by a newer diskhaul: it requires 'dedup', '\\x1b[2J'")


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", None, [1]])
def test_a_format_version_that_is_none_is_refused(version: Any) -> None:
    assert "format version" in refused(stored(content() | {"format_version": version}))


def test_duplicate_keys_are_refused_at_every_level() -> None:
    data = MANIFEST.to_bytes().replace(json.loads(MANIFEST.to_bytes())["manifest_digest"].encode(), b"0" * 64)
    for line in (b'  "cluster": "lab",\n', b'      "index": 0,\n', b'    "vcpus": 2\n'):
        assert data.count(line) == 1
        doubled = data.replace(line, line.rstrip(b",\n") + b",\n" + line)
        assert "twice" in refused(with_digest(doubled))


@pytest.mark.parametrize("digest", ["", "0" * 63, "A" * 64, 5, None, "0" * 64])
def test_a_digest_that_is_none_or_wrong_is_refused(digest: Any) -> None:
    assert "digest" in refused(json.dumps(content() | {"manifest_digest": digest}, indent=2, sort_keys=True).encode())


def test_a_digest_that_stands_twice_is_refused() -> None:
    doubled = content()
    doubled["options"]["copy"] = doubled["manifest_digest"]
    assert "exactly once" in refused(json.dumps(doubled, indent=2, sort_keys=True).encode())


def put(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: Any) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = value

    return change


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(manifest: Any) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        del manifest[path[-1]]

    return change


SIZES = [-1, 2**63, 10**19, 1.0, 5242880.0, True, "5242880", None, [], {}, 0.5]
NAMES = ["../x", "/x", ".", "", "a\0b", "a\nb", "-x", "x" * 300, "a/b", "..", 5, None, "a\x1b[31m"]
FILES = [
    *(
        "../../etc/x",
        "/etc/passwd",
        ".",
        "..",
        "",
        ".disk-0.raw.zst",
        "manifest.json",
        "disk-0.chunks",
        "disk-1.raw",
        "disk-00.raw.zst",
    ),
    *(
        "disk-0.raw",
        "disk-0.raw.zst\n",
        "disk-0.raw.zst/",
        "./disk-0.raw.zst",
        "DISK-0.raw.zst",
        "x" * 300,
        "a\0",
        None,
        0,
        ["disk-0.raw.zst"],
    ),
]
WHOLE = ("size", "stored_size", "index", "chunk_size", "chunk_count", "data_bytes", "zero_bytes", "free_bytes")
TIMES = ("", "yesterday", "2026-11-22T10:33:08", "2026-11-22T10:33:08+01:00", "2026-02-31T10:33:08Z", 5)
DIGESTS = ("a" * 63, "a" * 65, "A" * 64, "g" * 64, 5, None)
HOSTILE: list[tuple[str, Callable[[dict[str, Any]], None]]] = [
    *(("disks.0", put("disks", 0, key, value=size)) for key in WHOLE for size in SIZES),
    *(("instance", put("instance", key, value=size)) for key in ("memory_mib", "vcpus") for size in SIZES),
    *(("instance.disks.0", put("instance", "disks", 0, "size", value=size)) for size in SIZES if size is not None),
    *(("disks.0", put("disks", 0, "file", value=name)) for name in FILES),
    *(("disks.0", put("disks", 0, "chunks_file", value=name)) for name in FILES if name != "disk-0.chunks"),
    *(("instance", put("instance", "name", value=name)) for name in NAMES),
    *(("instance", put("instance", "node", value=name)) for name in NAMES),
    *(("instance", put("instance", "secondaries", value=[name])) for name in NAMES),
    *(("cluster", put("cluster", value=name)) for name in NAMES),
    *(("export_id", put("export_id", value=value)) for value in ("", "../x", "20261122T103308Z-1A2b3c4d", None, 5)),
    *(("run_id", put("run_id", value=value)) for value in ("", "1a2b3c4d", RUN.upper(), "9" + RUN[1:], None)),
    *(("created", put("created", value=value)) for value in TIMES),
    *(("root_digest", put("disks", 0, "root_digest", value=value)) for value in ("", *DIGESTS)),
    *(("stored_root", put("disks", 0, "stored_root", value=value)) for value in ("", *DIGESTS)),
    ("stored_root", put("disks", 1, "stored_root", value="a" * 64)),
    *(("disks.0", put("disks", 0, "chunk_size", value=value)) for value in (0, 1, 3 * MIB, 1 << 15, 1 << 27, 1 << 31)),
    *(("disks.0", put("disks", 0, "chunk_count", value=value)) for value in (0, 1, 3, 2**62)),
    *(("disks.0", put("disks", 0, "data_bytes", value=value)) for value in (0, 3 * MIB + 1, 2**63 - 1)),
    *(("disks.0", put("disks", 0, "compress", value=value)) for value in ("none", "gzip:1", "zstd:99", "lz4", "", None, 5)),
    *(("disks.0", put("disks", 0, "format", value=value)) for value in ("raw", "raw.gz", "qcow2", "", None)),
    *(("consistency", put("consistency", value=value)) for value in ("", "perfect", None, ["stopped"])),
    ("consistency", put("disks", 0, "consistency", value="perfect")),
    *(("layout", put("layout", value=value)) for value in ("qcow2", "", None)),
    ("other_files", put("layout", value="ganeti")),
    *(("other_files", put("other_files", value=value)) for value in ([], None, {"x": "c" * 64}, {"config.ini": "c" * 64})),
    ("disks.0", put("disks", 0, "index", value=1)),
    ("disks", put("disks", value={})),
    ("disks", put("disks", value=[])),
    ("disks.0", put("disks", value=[None, None])),
    ("disks", drop("disks", 0)),
    ("disks", drop("instance", "disks", 0)),
    ("known key", put("extra", value=1)),
    ("known key", put("disks", 0, "extra", value=1)),
    ("known key", put("instance", "private", value={})),
    ("known key", put("instance", "disks", 0, "\x1b[2J", value=1)),
    ("known key", put("instance", "nics", 0, "vlan", value="1")),
    *(("is missing", drop(key)) for key in ("cluster", "timings", "options", "disks", "required_features")),
    *(("is missing", drop("disks", 0, key)) for key in ("size", "file", "root_digest")),
    *(("is missing", drop("instance", key)) for key in ("name", "disks", "parameters")),
    *(("instance", put("instance", value=value)) for value in (None, [], "x", {})),
    *(("instance.disks.0", put("instance", "disks", 0, "path", value=value)) for value in (5, "a\0b", ["/x"])),
    *(("instance", put("instance", "state", value=value)) for value in ("maybe", None, 1)),
    *(("instance.tags", put("instance", "tags", value=value)) for value in ("web", [1], None, {"a": 1})),
    *(("instance.runtime_options", put("instance", "runtime_options", value=value)) for value in ([], "x", None)),
    *(("options", put("options", value=value)) for value in ([], "x", None)),
    *(("timings", put("timings", value=value)) for value in ([], {"total": "1"}, {"total": True}, {"total": None})),
    *(("required_features", put("required_features", value=value)) for value in ("x", None, {})),
]  # fmt: skip


@pytest.mark.parametrize(("where", "change"), HOSTILE, ids=range(len(HOSTILE)))
def test_a_manifest_with_a_wrong_field_is_refused_and_the_field_named(
    where: str, change: Callable[[dict[str, Any]], None]
) -> None:
    changed = content()
    change(changed)
    assert where in refused(stored(changed))


@pytest.mark.parametrize("file", [*FILES[:7], "config.ini", "a.chunks", "disk-1.raw"])
def test_a_dump_in_ganetis_layout_needs_a_safe_name_of_its_own(file: Any) -> None:
    changed = json.loads(replace(MANIFEST, **GANETI, disks=(raw_record(0), raw_record(1))).to_bytes())
    changed["disks"][0]["file"] = file
    refused(stored(changed))


@pytest.mark.parametrize(
    "files", [{}, {"../x": "c" * 64}, {"config.ini": "c" * 63}, {"config.ini": None}, {"config.ini": "c" * 64, "x": "c" * 64}]
)
def test_the_other_files_of_ganetis_layout_are_exactly_its_description(files: Any) -> None:
    changed = json.loads(replace(MANIFEST, **GANETI, disks=(raw_record(0), raw_record(1))).to_bytes())
    changed["other_files"] = files
    assert "other_files" in refused(stored(changed))


def test_dumps_in_ganetis_layout_are_never_compressed() -> None:
    changed = content() | GANETI
    assert "not compressed" in refused(stored(changed))


@given(st.binary(max_size=300))
def test_noise_is_no_manifest(data: bytes) -> None:
    refused(data)


@given(JSON)
@settings(deadline=None)
def test_no_json_is_taken_for_a_manifest_and_none_breaks_the_reader(value: Any) -> None:
    refused(json.dumps(value).encode("ascii"))
    for key in content():
        if key not in ("options", "created_by", "cluster"):  # which take many values
            changed = content()
            same = changed[key] == value
            changed[key] = value
            if not same and not (key == "timings" and isinstance(value, dict)):
                refused(stored(changed) if key != "manifest_digest" else json.dumps(changed).encode("ascii"))


# --- reading from a store ---------------------------------------------------------------------------------------------


@dataclass
class Stored:
    """A file of an export, in memory; what it says about its size may be a lie."""

    data: bytes
    size: int
    closed: bool = False
    most_read: int = 0

    def read_into(self, offset: int, buffer: memoryview, /) -> None:
        self.most_read = max(self.most_read, len(buffer))
        piece = self.data[offset : offset + len(buffer)]
        if len(piece) < len(buffer):
            raise OSError("the file is shorter")
        buffer[:] = piece

    def close(self) -> None:
        self.closed = True


@dataclass
class Directory:
    location: str
    files: dict[str, Stored]

    def names(self) -> Sequence[str]:
        return sorted(self.files)

    def open(self, name: str, /) -> Stored:
        if name not in self.files:
            raise StorageError(f"{name} is missing", path=self.location)
        return self.files[name]


def test_a_manifest_is_read_from_a_store_and_the_file_closed() -> None:
    data = MANIFEST.to_bytes()
    file = Stored(data, len(data))
    assert read_manifest(Directory("here", {"manifest.json": file})) == MANIFEST
    assert file.closed


@pytest.mark.parametrize("size", [0, manifests.MAX_MANIFEST_BYTES + 1, 1 << 30, 2**63])
def test_a_manifest_of_a_hostile_size_is_refused_unread(size: int) -> None:
    file = Stored(b"", size)
    with pytest.raises(CorruptError):
        read_manifest(Directory("here", {"manifest.json": file}))
    assert file.closed
    assert file.most_read == 0


def test_a_manifest_that_is_missing_or_shrinks_is_the_stores_error() -> None:
    with pytest.raises(StorageError):
        read_manifest(Directory("here", {}))
    file = Stored(b"{}", 100)
    with pytest.raises(OSError, match="shorter"):
        read_manifest(Directory("here", {"manifest.json": file}))
    assert file.closed
