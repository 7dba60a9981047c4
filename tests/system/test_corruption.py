"""Damaged, cut and forged exports: verify and import tell, and nothing but the target is ever written.

The exports are small, so that every single byte of them can be flipped; with DISKHAUL_STRESS=1 no position is left out.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

import diskhaul
from diskhaul.formats.chunk_table import HEADER_LENGTH, ChunkTable, chunk_digest, stored_digest
from diskhaul.formats.codec import codec_for, parse_compress
from diskhaul.formats.manifest import Manifest
from diskhaul.operations.base import RunContext
from diskhaul.operations.restore import ImportOperation, ImportWhere
from diskhaul.operations.verify import VerifyOperation

STRESS = bool(os.environ.get("DISKHAUL_STRESS"))
INSTANCE = "web1.example.com"
CHUNK = 64 << 10
SAMPLES = 300  # positions of a raw disk's data that are flipped, outside of a stress run
LAYOUTS = {
    "zstd": {"compress": "zstd:1"},
    "gzip": {"compress": "gzip:1"},
    "raw": {"compress": "none"},
    "ganeti": {"compress": "none", "layout": "ganeti"},
}
MIB = 1 << 20


def disks_of(seed: int = 0) -> list[bytes]:
    """Three disks: data, text and zeros in whole chunks and a short one; one of zeros alone; one of no bytes at all."""
    chance = random.Random(seed)
    text = b"to be, or not to be %d; " % seed * CHUNK
    return [
        chance.randbytes(300) + text[: CHUNK - 300] + text[:CHUNK] + bytes(2 * CHUNK) + chance.randbytes(200),
        bytes(CHUNK),
        b"",
    ]


def make_cluster(base: Path, seed: int = 0, name: str = INSTANCE) -> diskhaul.Cluster:
    base.mkdir(exist_ok=True)
    paths = []
    for index, content in enumerate(disks_of(seed)):
        path = base / f"{name}-{index}.raw"
        path.write_bytes(content)
        paths.append(path)
    nodes = []
    for node in ("alpha", "beta"):
        (base / node).mkdir(mode=0o700, exist_ok=True)
        nodes.append(diskhaul.Node(name=node, export_dir=base / node))
    instance = diskhaul.Instance(
        name=name, node="alpha", state="down", disks=[diskhaul.Disk(path=path, size=path.stat().st_size) for path in paths]
    )
    return diskhaul.Cluster(name="lab", state_dir=base / "state", nodes=nodes, instances=[instance])


@dataclass
class Export:
    """A copy of an export that a test may damage, in a store of its own."""

    path: Path
    cluster: diskhaul.Cluster
    target: Path

    def __post_init__(self) -> None:
        # One host of plugins for all operations of a test: looking for plugins takes longer than reading these exports.
        self._context = RunContext(diskhaul.Cluster(name="none", state_dir=Path("/nonexistent")))

    @property
    def manifest(self) -> Manifest:
        return Manifest.from_bytes((self.path / "manifest.json").read_bytes())

    def verify(self) -> tuple[diskhaul.Finding, ...]:
        return VerifyOperation(self._context, str(self.path), None, 1).run().findings

    def import_fails(self) -> diskhaul.VerificationError:
        """Import it, which has to fail for its damage, and to leave no file that passes for a disk."""
        where, options = ImportWhere(to_dir=self.target), diskhaul.ImportOptions(threads=1, read_ahead=0)
        with pytest.raises(diskhaul.VerificationError) as caught:
            ImportOperation(self._context, str(self.path), where, options, has_cluster=False).run()
        left = sorted(os.listdir(self.target)) if self.target.exists() else []
        assert all(name.endswith(".incomplete") for name in left), left
        shutil.rmtree(self.target, ignore_errors=True)
        assert caught.value.exit_code == 6
        return caught.value

    def listed_problem(self) -> str:
        (record,) = diskhaul.list_exports(INSTANCE, config=self.cluster, node="beta").exports
        return record.problem

    def refused(self, match: str = "") -> None:
        """It is found damaged by both, and for the reason that the test is about."""
        findings = self.verify()
        assert findings
        assert any(match in finding.problem for finding in findings), findings
        assert match in str(self.import_fails())

    # --- forging: as somebody would who can write to the store ---

    def resign(self, text: str) -> None:
        """Store `text` as the manifest, with a digest that is right."""
        before, key, after = text.partition('"manifest_digest": "')
        if key:
            after = after[64:]
            text = before + key + blake3(f"{before}{key}{'0' * 64}{after}".encode()).hexdigest() + after
        (self.path / "manifest.json").write_text(text)

    def change(self, change: Callable[[dict[str, Any]], object]) -> None:
        content = json.loads((self.path / "manifest.json").read_text())
        change(content)
        content["manifest_digest"] = "0" * 64
        self.resign(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=True) + "\n")

    def table(self, index: int = 0) -> ChunkTable:
        record = self.manifest.disks[index]
        codec = codec_for(parse_compress(record.compress).name)
        data = (self.path / record.chunks_file).read_bytes()
        return ChunkTable.from_bytes(data, disk_size=record.size, chunk_size=record.chunk_size, encoded=codec.encoded)

    def frames(self) -> list[bytes]:
        """The stored frames of disk 0, and what follows them."""
        data = (self.path / self.manifest.disks[0].file).read_bytes()
        offsets = self.table().stored_offsets()
        return [*(data[begin:end] for begin, end in pairwise(offsets)), data[offsets[-1] :]]

    def forge_frames(self, frames: list[bytes], *, lengths: list[int] | None = None, after: bytes = b"") -> None:
        """Store other frames for disk 0; table, seek table and manifest all say that it should be so."""
        record = self.manifest.disks[0]
        codec = codec_for(parse_compress(record.compress).name)
        old = self.table()
        table = ChunkTable(record.size, record.chunk_size, codec.encoded)
        for chunk in range(old.count):
            length = lengths[chunk] if lengths else len(frames[chunk])
            table.set(chunk, old.digest(chunk), length, stored_digest(frames[chunk]))
        trailer = b"".join(codec.trailer(table.stored_lengths(), table.chunk_lengths()))
        data = b"".join(frames) + trailer + after
        (self.path / record.file).write_bytes(data)
        (self.path / record.chunks_file).write_bytes(table.to_bytes())

        def record_it(content: dict[str, Any]) -> None:
            content["disks"][0] |= {"stored_size": len(data), "stored_root": table.stored_root()}

        self.change(record_it)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A directory with one good export of each layout, made once; by the layout's name."""
    made: dict[str, Path] = {}

    def get(layout: str) -> Path:
        if layout not in made:
            base = tmp_path_factory.mktemp(layout)
            options = diskhaul.ExportOptions(chunk_size=CHUNK, **LAYOUTS[layout])  # type: ignore[arg-type]
            diskhaul.export(INSTANCE, node="beta", config=make_cluster(base), options=options)
            made[layout] = base
        return made[layout]

    return get


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: thousands of imports would make a disk flush thousands of files."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="diskhaul-test-") as made:
        yield Path(made)


@pytest.fixture
def damaged(pristine: Callable[[str], Path], memory_path: Path) -> Callable[[str], Export]:
    """A copy of the good export to damage: ``damaged("zstd")``."""

    def make(layout: str = "zstd") -> Export:
        base = memory_path / layout
        shutil.copytree(pristine(layout), base)
        (path,) = (base / "beta" / INSTANCE).iterdir()
        return Export(path, make_cluster(base), memory_path / "restored")

    return make


@pytest.fixture
def export(damaged: Callable[[str], Export]) -> Export:
    return damaged("zstd")


@contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """Fail when Python objects take more than `limit` bytes meanwhile (zstandard and mmap allocate elsewhere)."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_exports_are_good_before_they_are_damaged(damaged: Callable[[str], Export], layout: str) -> None:
    export = damaged(layout)
    assert export.verify() == ()
    assert export.listed_problem() == ""
    diskhaul.import_(str(export.path), to_dir=export.target)
    assert [(export.target / f"disk-{index}.raw").read_bytes() for index in range(3)] == disks_of()


# --- flipped bytes ----------------------------------------------------------------------------------------------------


def positions(size: int, *, sampled: bool) -> Iterable[int]:
    """Which bytes of a file of `size` bytes are flipped."""
    if not sampled or STRESS or size <= SAMPLES:
        return range(size)
    edges = {0, CHUNK - 1, CHUNK, 2 * CHUNK, 4 * CHUNK - 1, 4 * CHUNK, size - 1} & set(range(size))
    return sorted(edges | set(random.Random(size).sample(range(size), SAMPLES)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.timeout(3600 if STRESS else 300)
def test_every_flipped_byte_makes_verify_and_import_fail_and_name_the_place(
    damaged: Callable[[str], Export], layout: str
) -> None:
    export = damaged(layout)
    manifest = export.manifest
    disk_of = {name: disk.index for disk in manifest.disks for name in (disk.file, disk.chunks_file)}
    data_files = {disk.file: disk for disk in manifest.disks}
    chance = random.Random(layout)
    for file in sorted(export.path.iterdir()):
        record = data_files.get(file.name)
        offsets = list(export.table(record.index).stored_offsets()) if record is not None else []
        content = file.read_bytes()
        raw_data = record is not None and record.stored_root == ""
        same_elsewhere = file.name == "manifest.json" and layout != "zstd"  # every byte of one manifest is enough
        for position in positions(len(content), sampled=raw_data or same_elsewhere):
            flipped = bytearray(content)
            flipped[position] ^= 1 << chance.randrange(8) if chance.random() < 0.9 else chance.randrange(1, 256)
            file.write_bytes(flipped)
            where = f"{file.name} at {position}"

            findings = export.verify()
            assert findings, where
            failure = export.import_fails()
            for found in (findings, failure.findings):
                assert [(f.file, f.disk) for f in found] == [(file.name, disk_of.get(file.name))], (where, found)
            if record is not None and position < offsets[-1]:
                chunk = next(index for index, (begin, end) in enumerate(pairwise(offsets)) if begin <= position < end)
                assert [(f.offset, f.file_offset) for f in (*findings, *failure.findings)] == [(chunk * CHUNK, None)] * 2, where
                assert f"offset {chunk * CHUNK}" in str(failure)
            elif (record is not None and record.stored_root) or (file.suffix == ".chunks" and position < HEADER_LENGTH):
                # A seek table, or a header: what should stand there is known, byte by byte.
                assert [(f.offset, f.file_offset) for f in (*findings, *failure.findings)] == [(None, position)] * 2, where
                assert f"{file.name} offset {position}" in str(failure)
            else:
                # A digest over the whole tells that there is damage, and not where.
                assert [(f.offset, f.file_offset) for f in (*findings, *failure.findings)] == [(None, None)] * 2, where
        file.write_bytes(content)
    assert export.verify() == ()


# --- cut files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_cut_anywhere_is_never_listed_as_valid(damaged: Callable[[str], Export], layout: str) -> None:
    export = damaged(layout)
    manifest = export.manifest
    for file in sorted(export.path.iterdir()):
        content = file.read_bytes()
        size = len(content)
        cuts = {0, 1, size // 2, size - 2, size - 1, *range(0, size, max(1, size // 25))}
        for disk in manifest.disks:
            if file.name == disk.file and disk.stored_root:
                offsets = export.table(disk.index).stored_offsets()
                cuts |= {offset + off for offset in offsets for off in (-1, 0, 1)}
            elif file.name == disk.chunks_file:
                cuts |= {64, 64 + 32 * disk.chunk_count, 64 + 36 * disk.chunk_count}
        for cut in sorted(cut for cut in cuts if 0 <= cut < size):
            file.write_bytes(content[:cut])
            where = f"{file.name} cut at {cut}"
            assert export.listed_problem(), where
            problems = [finding.problem for finding in export.verify()]
            assert problems, where
            assert len(problems) == len(set(problems)), "nothing is told twice"
            export.import_fails()
        file.write_bytes(content)
    assert export.listed_problem() == ""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_with_something_after_its_end_is_not_valid(damaged: Callable[[str], Export], layout: str) -> None:
    export = damaged(layout)
    for file in sorted(export.path.iterdir()):
        content = file.read_bytes()
        for more in (b"\n", b"\0", b"\0" * 4096, content[-20:] + b"x"):
            file.write_bytes(content + more)
            assert export.listed_problem(), file.name
            assert export.verify(), file.name
            export.import_fails()
        file.write_bytes(content)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_missing_file_and_one_too_many_are_found(damaged: Callable[[str], Export], layout: str) -> None:
    export = damaged(layout)
    for file in sorted(export.path.iterdir()):
        file.rename(export.target)
        assert export.listed_problem(), file.name
        export.target.rename(file.with_name("other"))
        if file.name != "manifest.json" or layout != "ganeti":
            assert export.verify(), file.name
        else:  # without its manifest it looks like an export that Ganeti made; the digest in config.ini says otherwise
            with pytest.raises(diskhaul.RefusedError, match="holds no digests"):
                export.verify()
        export.import_fails()
        file.with_name("other").rename(file)
    for name in ("extra", ".hidden", "disk-3.raw", "disk-0.raw.zst~", "\x1b[2J", "\udcff"):
        (export.path / name).write_bytes(b"")
        export.refused("does not belong to it")
        (export.path / name).unlink()
    assert export.verify() == ()


# --- files that are something else ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["disk-0.raw.zst", "disk-0.chunks", "manifest.json"])
@pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "device", "directory", "socket"])
def test_what_is_no_regular_file_is_not_read(
    export: Export, requires: Callable[..., None], monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    file = export.path / name
    elsewhere = export.path.parent / "elsewhere"
    file.rename(elsewhere)
    if kind == "symlink":
        file.symlink_to(elsewhere)
    elif kind == "dangling":
        file.symlink_to("/nonexistent/file")
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "directory":
        file.mkdir()
    elif kind == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as listener:
            monkeypatch.chdir(file.parent)  # a socket's path cannot be long
            listener.bind(name)
    else:
        requires(root=True)
        os.mknod(file, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    assert export.listed_problem()
    findings = export.verify()
    assert any(finding.file == name or finding.disk == 0 or name in finding.problem for finding in findings)
    export.import_fails()


def test_an_export_that_is_a_link_is_not_followed_by_its_name(export: Export) -> None:
    aside = export.path.with_name("aside")
    export.path.rename(aside)
    export.path.symlink_to(aside)
    assert diskhaul.list_exports(INSTANCE, config=export.cluster).exports == ()


# --- hostile manifests ------------------------------------------------------------------------------------------------


def test_a_manifest_of_a_gigabyte_is_not_read(export: Export) -> None:
    os.truncate(export.path / "manifest.json", 1 << 30)
    with memory_below(20 * MIB):
        export.refused("1073741824 bytes long")
        assert export.listed_problem()


@pytest.mark.parametrize("brackets", ["[", '{"a":'])
def test_a_manifest_of_ten_thousand_levels_is_refused(export: Export, brackets: str) -> None:
    closing = "]" if brackets == "[" else "}"
    text = brackets * 10_000 + "1" + closing * 10_000
    (export.path / "manifest.json").write_text(text)
    with memory_below(20 * MIB):
        export.refused("levels deep")
    export.resign('{"manifest_digest": "' + "a" * 64 + f'", "x": {text}}}')
    export.refused("levels deep")


@pytest.mark.parametrize("text", ["", "\0" * 100, "null", "[]", "{}", '"text"', "not JSON", "\ufeff{}", "{" * 20])
def test_a_manifest_that_is_none_is_refused(export: Export, text: str) -> None:
    (export.path / "manifest.json").write_text(text)
    assert export.listed_problem()
    export.refused("manifest")


def set_disk(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["disks"][0].update(values)


WRONG_SIZES = [-1, 2**63, 2**64, 1.5, "65536", None, True, [], 10**19]
HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    **{f"{field} {value!r}": set_disk(**{field: value}) for field in ("size", "stored_size") for value in WRONG_SIZES},
    **{
        f"{field} {value!r}": set_disk(**{field: value})
        for field in ("chunk_size", "chunk_count")
        for value in (-1, 0, 2**63, 1.0, "1")
    },
    **{
        f"{field} {name!r}": set_disk(**{field: name})
        for field in ("file", "chunks_file")
        for name in ("../../etc/x", "/etc/passwd", "..", ".", "", "a/b", "disk-1.raw.zst", "x\0y", "manifest.json", "\x1b[2J")
    },
    "a huge chunk": set_disk(chunk_size=1 << 30, chunk_count=1),
    "another index": set_disk(index=1),
    "a digest cut": set_disk(root_digest="ab"),
    "no stored digest": set_disk(stored_root=""),
    "another format": set_disk(format="raw"),
    "another compressor": set_disk(compress="none"),
    "an unknown compressor": set_disk(compress="xz:9"),
    "counts that do not add up": set_disk(data_bytes=0),
    "an unknown field": set_disk(surprise=1),
    "a newer version": lambda content: content.update(format_version=2),
    "version zero": lambda content: content.update(format_version=0),
    "version text": lambda content: content.update(format_version="1"),
    "an unknown feature": lambda content: content.update(required_features=["encrypted"]),
    "no disks": lambda content: content.update(disks=[]),
    "one disk less": lambda content: content["disks"].pop(),
    "a disk twice": lambda content: content["disks"].append(content["disks"][0]),
    "disks in another order": lambda content: content["disks"].reverse(),
    "disks an object": lambda content: content.update(disks={"0": 1}),
    "an instance named ..": lambda content: content["instance"].update(name=".."),
    "an instance with a path": lambda content: content["instance"].update(name="../../etc"),
    "an instance that is no object": lambda content: content.update(instance=[]),
    "no export id": lambda content: content.pop("export_id"),
    "an export id with a path": lambda content: content.update(export_id="../x"),
    "an unknown layout": lambda content: content.update(layout="tar"),
    "Ganeti's layout": lambda content: content.update(layout="ganeti"),
    "other files": lambda content: content.update(other_files={"../../etc/passwd": "0" * 64}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_manifest_is_refused_though_its_digest_is_right(export: Export, what: str) -> None:
    export.change(HOSTILE[what])
    with memory_below(20 * MIB):
        assert export.listed_problem()
        findings = export.verify()
        export.import_fails()
    assert findings
    assert not any("own digest" in finding.problem for finding in findings), "the check that is meant was not reached"
    assert all(str(finding).isprintable() for finding in findings)


@pytest.mark.parametrize(
    ("old", "new"), [('"index": 0,', '"index": 0, "index": 0,'), ('"layout"', '"layout": "ganeti", "layout"')]
)
def test_a_key_that_stands_twice_is_refused(export: Export, old: str, new: str) -> None:
    text = (export.path / "manifest.json").read_text()
    assert old in text
    export.resign(text.replace(old, new, 1))
    export.refused("twice")


def test_a_larger_disk_than_was_exported_is_refused(export: Export) -> None:
    """Everything that belongs to a size is changed with it: then the chunk table is the one that does not fit."""
    size = 2**62
    while -(-size // (chunk := 1 << 30)) > 2**21:
        size //= 2
    record = export.manifest.disks[0]
    added = size - record.size
    export.change(set_disk(size=size, chunk_size=chunk, chunk_count=-(-size // chunk), zero_bytes=record.zero_bytes + added))
    with memory_below(20 * MIB):
        export.refused("bytes instead of")


def test_text_of_a_manifest_cannot_play_with_the_terminal(export: Export) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\u202e\n\r\x9b31m"

    def poison(content: dict[str, Any]) -> None:
        content["created_by"] = content["instance"]["os"] = content["options"]["compress"] = evil
        content["instance"]["tags"] = [evil]
        content["disks"][0]["name"] = content["disks"][0]["uuid"] = evil
        content["instance"]["disks"][0]["name"] = content["instance"]["disks"][0]["path"] = evil
        content["options"][evil] = content["timings"][evil] = 1.0

    export.change(poison)
    config = export.path.parents[2] / "cluster.toml"
    config.write_text(
        '[cluster]\nname = "lab"\nstate_dir = "state"\n[nodes.alpha]\nexport_dir = "alpha"\n[nodes.beta]\nexport_dir = "beta"\n'
    )
    config.chmod(0o600)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "LANG": "C.UTF-8"}
    for command in (["list"], ["show", INSTANCE], ["verify"], ["import", INSTANCE, "--to-dir", str(export.target)]):
        for options in ([], ["--json"]):
            shutil.rmtree(export.target, ignore_errors=True)
            arguments = [sys.executable, "-m", "diskhaul", "--config", str(config), *options, *command]
            ended = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60)
            assert ended.returncode == 0, ended.stderr
            shown = (ended.stdout + ended.stderr).replace("\n", "")
            assert shown.isprintable(), (command, [character for character in shown if not character.isprintable()])
            if options:
                json.loads(ended.stdout)


# --- streams that were put together by hand ---------------------------------------------------------------------------


def test_two_exports_whose_files_were_swapped_are_both_damaged(export: Export, tmp_path: Path) -> None:
    other = make_cluster(tmp_path / "other", seed=1)
    diskhaul.export(INSTANCE, node="beta", config=other, options=diskhaul.ExportOptions(chunk_size=CHUNK))
    (place,) = (tmp_path / "other" / "beta" / INSTANCE).iterdir()
    second = Export(place, other, tmp_path / "restored")
    for name in ("disk-0.raw.zst", "disk-0.chunks"):
        mine, others = export.path / name, second.path / name
        swapped = mine.read_bytes(), others.read_bytes()
        others.write_bytes(swapped[0])
        mine.write_bytes(swapped[1])
        assert any(finding.disk == 0 for finding in export.verify())
        assert any(finding.disk == 0 for finding in second.verify())
        export.import_fails()
        second.import_fails()
    # Data and tables go together now; the manifests say that they are not theirs.
    assert "root digest" in str(export.verify())


def test_an_export_under_the_name_of_another_is_not_taken_for_it(export: Export, tmp_path: Path) -> None:
    other = make_cluster(tmp_path / "other", seed=1)
    diskhaul.export(INSTANCE, node="beta", config=other, options=diskhaul.ExportOptions(chunk_size=CHUNK))
    (place,) = (tmp_path / "other" / "beta" / INSTANCE).iterdir()
    shutil.rmtree(place)
    shutil.copytree(export.path, place)
    (record,) = diskhaul.list_exports(config=other).exports
    assert "its manifest is that of" in record.problem
    asked = f"{INSTANCE}@{place.name}"
    assert "its manifest is that of" in str(diskhaul.verify(asked, config=other).findings)
    with pytest.raises(diskhaul.VerificationError, match="its manifest is that of"):
        diskhaul.import_(asked, config=other, to_dir=export.target)
    assert not export.target.exists()


def test_frames_that_were_repeated_or_reordered_are_found_where_they_stand(export: Export) -> None:
    good = export.frames()[:-1]
    for order, wrong in (([0, 0, 2, 3, 4], 1), ([1, 0, 2, 3, 4], 0), ([0, 1, 1, 3, 4], 2), ([0, 1, 2, 0, 4], 3)):
        export.forge_frames([good[index] for index in order])
        findings = export.verify()
        assert (findings[0].disk, findings[0].offset) == (0, wrong * CHUNK)
        assert export.import_fails().findings[0].offset == wrong * CHUNK


@pytest.mark.parametrize("size", [9, 100, 4096])
def test_a_skippable_frame_is_no_data(export: Export, size: int) -> None:
    frames = export.frames()[:-1]
    skippable = b"\x50\x2a\x4d\x18" + (size - 8).to_bytes(4, "little") + b"\xaa" * (size - 8)
    export.forge_frames([frames[0], skippable, *frames[2:]])
    export.refused("skippable frame")
    for both in (skippable + frames[1], frames[1] + skippable):
        export.forge_frames([frames[0], both, *frames[2:]])
        findings = export.verify()
        assert [(finding.disk, finding.offset) for finding in findings] == [(0, CHUNK)]
        export.import_fails()


def test_bytes_after_the_seek_table_are_found_though_the_manifest_counts_them(export: Export) -> None:
    frames = export.frames()[:-1]
    for after in (b"\0", b"\x50\x2a\x4d\x18\0\0\0\0", frames[0]):
        export.forge_frames(frames, after=after)
        export.refused("frames end at")


def test_a_stream_cut_at_a_frame_is_found_though_the_manifest_counts_it_so(export: Export, requires: Callable[..., None]) -> None:
    requires("zstd")
    data = b"".join(export.frames()[:3])
    file = export.path / "disk-0.raw.zst"
    file.write_bytes(data)
    subprocess.run(["zstd", "-tq", str(file)], check=True)  # for zstd it is whole
    export.change(set_disk(stored_size=len(data)))
    export.refused("frames end at")


def test_frames_that_overlap_are_found(export: Export) -> None:
    frames = export.frames()[:-1]
    lengths = [len(frame) for frame in frames]
    for change in ((1, -1), (5, -5), (1, 0), (-1, 1)):
        export.forge_frames(frames, lengths=[lengths[0] + change[0], lengths[1] + change[1], *lengths[2:]])
        findings = export.verify()
        assert any(finding.disk == 0 for finding in findings)
        export.import_fails()


def test_a_frame_that_becomes_256_mib_takes_no_memory(export: Export) -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor(level=19, write_checksum=True).compress(bytes(256 * MIB))
    assert len(bomb) < 16 << 10
    frames = export.frames()[:-1]
    export.forge_frames([frames[0], bomb, *frames[2:]])
    findings: list[list[Any]] = []
    assert _peak_of(export, findings) < 100 * MIB
    assert findings[0][:2] == [0, CHUNK]
    assert "declares 268435456 bytes" in findings[0][2]
    export.import_fails()


def test_a_frame_that_says_too_little_takes_no_memory(export: Export) -> None:
    import zstandard

    bomb = bytearray(zstandard.ZstdCompressor(level=19, write_checksum=True).compress(bytes(256 * MIB)))
    at = bomb.index((256 * MIB).to_bytes(4, "little"), 5)
    bomb[at : at + 4] = CHUNK.to_bytes(4, "little")
    frames = export.frames()[:-1]
    export.forge_frames([frames[0], bytes(bomb), *frames[2:]])
    assert _peak_of(export, []) < 100 * MIB
    assert [(finding.disk, finding.offset) for finding in export.verify()] == [(0, CHUNK)]
    export.import_fails()


def _peak_of(export: Export, findings: list[list[Any]]) -> int:
    """Verify the export in a process of its own; return the memory it took at most, in bytes."""
    program = (
        "import diskhaul, json, sys\n"
        "found = diskhaul.verify(sys.argv[1]).findings\n"
        "print(json.dumps([[f.disk, f.offset, f.problem] for f in found]))\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run(
        [sys.executable, "-c", program, str(export.path)], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    found, peak = ended.stdout.splitlines()
    findings += json.loads(found)
    return int(peak) << 10


def test_a_frame_with_a_window_of_2_gib_is_refused(export: Export) -> None:
    frames = export.frames()[:-1]
    header = b"\x28\xb5\x2f\xfd" + bytes([0b10000100, 21 << 3]) + CHUNK.to_bytes(4, "little")
    export.forge_frames([header + b"\x01\0\0", *frames[1:]])
    export.refused("window of 2147483648 bytes")


def test_a_frame_without_a_checksum_is_not_taken_on_trust(export: Export) -> None:
    import zstandard

    chunk = disks_of()[0][:CHUNK]
    plain = zstandard.ZstdCompressor(level=1, write_checksum=False).compress(chunk)
    assert chunk_digest(chunk) == export.table().digest(0)
    export.forge_frames([plain, *export.frames()[1:-1]])
    export.refused("no content checksum")
