"""XFS, btrfs, NTFS, exFAT, FAT and F2FS: what is called free is what their own programs call free, and no file is hurt."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diskhaul_plugins.guest_disks.reading import NotThisError

from .filesystem_kinds import MIB, Btrfs, Exfat, F2fs, Fat, Kind, Ntfs, OldXfs, Xfs, overwrite, read, run

XFS = {
    "xfs": Xfs(size=320 * MIB),
    "xfs without reflink": Xfs(("-m", "reflink=0"), size=320 * MIB),
    "xfs with reverse maps, without big timestamps": Xfs(("-m", "rmapbt=1,bigtime=0"), size=320 * MIB),
    "xfs without checksums": OldXfs(size=320 * MIB),
    "xfs in blocks of 1 KiB": Xfs(("-b", "size=1024"), size=320 * MIB),
    "xfs in blocks of 512 bytes, version 4": OldXfs(("-b", "size=512"), size=320 * MIB),
    "xfs in sectors of 4 KiB": Xfs(("-s", "size=4096"), size=320 * MIB),
    "xfs with inodes of 1 KiB in many groups": Xfs(("-i", "size=1024", "-d", "agcount=16"), size=1280 * MIB),
    "xfs whose last group is short": Xfs(("-d", "agsize=90m"), size=320 * MIB),
}
BTRFS = {
    "btrfs": Btrfs(size=256 * MIB),
    "btrfs with everything once": Btrfs(("-m", "single", "-d", "single"), size=256 * MIB),
    "btrfs with everything twice": Btrfs(("-m", "dup", "-d", "dup"), size=320 * MIB),
    "btrfs with data and metadata mixed": Btrfs(("--mixed",), size=128 * MIB),
    "btrfs in nodes of 4 KiB": Btrfs(("-n", "4096"), size=256 * MIB),
    "btrfs in nodes of 64 KiB": Btrfs(("-n", "65536"), size=256 * MIB),
    "btrfs with SHA-256": Btrfs(("--csum", "sha256"), size=256 * MIB),
    "btrfs with BLAKE2": Btrfs(("--csum", "blake2"), size=256 * MIB),
    "btrfs of old": Btrfs(("-O", "^no-holes,^skinny-metadata", "-R", "^free-space-tree"), size=256 * MIB),
}
NTFS = {
    "ntfs": Ntfs(),
    "ntfs in clusters of 512 bytes": Ntfs(("-c", "512")),
    "ntfs in clusters of 64 KiB": Ntfs(("-c", "65536")),
    "ntfs in sectors of 4 KiB": Ntfs(("-s", "4096", "-c", "4096")),
    "ntfs that ends inside a cluster": Ntfs(("-c", "32768"), size=64 * MIB + 5 * 512),
}
EXFAT = {
    "exfat": Exfat(),
    "exfat in clusters of 512 bytes": Exfat(("-c", "512"), size=24 * MIB),
    "exfat in clusters of 1 MiB": Exfat(("-c", "1M"), size=640 * MIB),
}
FAT = {
    "fat12": Fat(("-F", "12"), size=6 * MIB),
    "fat12 on a floppy disk": Fat(("-F", "12"), size=1440 << 10),
    "fat16": Fat(("-F", "16"), size=32 * MIB),
    "fat16 with one table": Fat(("-F", "16", "-f", "1"), size=32 * MIB),
    "fat32": Fat(("-F", "32"), size=64 * MIB),
    "fat32 in clusters of 4 KiB": Fat(("-F", "32", "-s", "8"), size=300 * MIB),
    "fat32 in sectors of 4 KiB": Fat(("-F", "32", "-S", "4096", "-s", "1"), size=300 * MIB),
}
F2FS = {
    "f2fs": F2fs(size=512 * MIB),
    "f2fs with checksums": F2fs(("-O", "extra_attr,inode_checksum,sb_checksum"), size=512 * MIB),
}
KINDS: dict[str, Kind] = {**XFS, **BTRFS, **NTFS, **EXFAT, **FAT, **F2FS}


@pytest.fixture(autouse=True)
def _tidy(tmp_path: Path) -> Iterator[None]:
    """Images are large: pytest keeps what is left of a test."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, requires: Callable[..., None]) -> Kind:
    found = KINDS[request.param]
    requires(*found.programs, root=found.root)
    return found


@pytest.fixture(
    params=[XFS["xfs"], BTRFS["btrfs"], NTFS["ntfs"], EXFAT["exfat"], FAT["fat32"], F2FS["f2fs"]], ids=lambda kind: kind.type
)
def each(request: pytest.FixtureRequest, requires: Callable[..., None]) -> Kind:
    found: Kind = request.param
    requires(*found.programs, root=found.root)
    return found


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "disk.img"


def _files(directory: Path, seed: int, count: int, largest: int) -> Path:
    generator = random.Random(seed)
    directory.mkdir()
    for number in range(count):
        (directory / f"{number:03}").write_bytes(generator.randbytes(generator.randrange(largest)))
    return directory


def _populate(kind: Kind, image: Path, work: Path) -> None:
    """Several generations of files, with every other one removed: free space in many pieces, full of what was there."""
    work.mkdir()
    room = kind.read(image).runs.total
    unit = max(room // (100 if kind.type in ("btrfs", "f2fs") else 40), 4096)  # these give room away in large pieces
    for generation in range(5):
        kind.add(image, _files(work / f"g{generation}", generation, 20, unit // 5), f"g{generation}")
        kind.add(image, _files(work / f"h{generation}", generation, 12, unit // 4), f"h{generation}")
    kind.remove(image, "g0", "g2", "h1", "h3", "h4")
    kind.add(image, _files(work / "large", 9, 2, unit * 3), "large")


def _assert_only_free_space_is_skipped(kind: Kind, image: Path) -> None:
    """Count with its own program; then fill what would be skipped with garbage, check, and compare all files."""
    reading = kind.read(image)
    assert (reading.kept, reading.state) == ("", "clean")
    assert reading.type.startswith(kind.type)
    assert reading.runs.total == kind.free(image) - kind.kept(image)
    kind.check(image)
    before = kind.tree(image)  # mounting it changes it: read again what is free
    reading = kind.read(image)
    assert reading.kept == ""
    overwrite(image, reading)
    kind.check(image)
    assert kind.tree(image) == before


def test_a_new_filesystem(kind: Kind, image: Path) -> None:
    kind.make(image)
    _assert_only_free_space_is_skipped(kind, image)


def test_a_filesystem_that_was_lived_in(kind: Kind, image: Path, tmp_path: Path) -> None:
    kind.make(image)
    _populate(kind, image, tmp_path / "work")
    assert len(kind.read(image).runs) > 1
    _assert_only_free_space_is_skipped(kind, image)


def test_a_filesystem_that_is_nearly_full(each: Kind, image: Path, tmp_path: Path) -> None:
    each.make(image)
    room = each.read(image).runs.total
    directory = tmp_path / "large"
    directory.mkdir()
    # Some need room to move things.
    share = {"f2fs": 0.45, "btrfs": 0.6, "xfs": 0.85}.get(each.type, 0.95)
    with open(directory / "file", "wb") as file:
        for _ in range(int(room * share) // MIB):
            file.write(os.urandom(MIB))
    each.add(image, directory, "large")
    each.add(image, _files(tmp_path / "small", 1, 20, 2000), "small")
    _assert_only_free_space_is_skipped(each, image)


def test_a_volume_that_is_larger_than_its_filesystem(each: Kind, image: Path) -> None:
    each.make(image)
    before = list(each.read(image).runs)
    with open(image, "r+b") as file:
        file.truncate(each.size + 64 * MIB)
    assert list(each.read(image).runs) == before


def test_of_a_filesystem_that_was_cut_nothing_is_skipped(each: Kind, image: Path) -> None:
    each.make(image)
    with open(image, "r+b") as file:
        file.truncate(each.size - 2 * MIB)
    reading = each.read(image)
    assert (len(reading.runs), reading.state) == (0, "has errors")
    assert reading.kept


@pytest.mark.parametrize("size", [0, 1, 511, 512, 4096, 65536, 70000])
def test_what_is_empty_or_short_is_nothing_of_it(each: Kind, image: Path, size: int) -> None:
    image.write_bytes(bytes(size))
    with pytest.raises(NotThisError):
        each.read(image)


def test_each_reader_leaves_the_others_alone(each: Kind, image: Path) -> None:
    each.make(image)
    for other in (Xfs, Btrfs, Ntfs, Exfat, Fat, F2fs):
        if other is not type(each):
            with pytest.raises(NotThisError):
                read(other.reader, image)


def test_labels_are_read(image: Path, requires: Callable[..., None]) -> None:
    labelled: tuple[Kind, ...] = (
        Xfs(("-L", "daten"), size=320 * MIB),
        Btrfs(("-L", "daten"), size=128 * MIB),
        Ntfs(("-L", "daten")),
        Exfat(("-L", "daten")),
        Fat(("-F", "32", "-n", "DATEN")),
        F2fs(("-l", "daten"), size=128 * MIB),
    )
    requires(*(program for kind in labelled for program in kind.programs), root=True)
    for kind in labelled:
        kind.make(image)
        assert kind.read(image).label.lower() == "daten"


# --- what is not believed ---------------------------------------------------------------------------------------------


def _assert_nothing_is_skipped(kind: Kind, image: Path, state: str) -> None:
    reading = kind.read(image)
    assert (len(reading.runs), reading.state) == (0, state)
    assert reading.kept


@pytest.mark.parametrize("kind", [XFS["xfs"], EXFAT["exfat"]], ids=["xfs", "exfat"])
def test_of_a_mounted_filesystem_nothing_is_skipped(
    kind: Kind, image: Path, tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires(*kind.programs, root=True)
    kind.make(image)
    with kind.mounted(image) as root:
        for number in range(50):
            (root / f"file-{number}").write_bytes(os.urandom(5000))
        os.sync()
        copy = tmp_path / "copy.img"
        run("cp", "--sparse=always", image, copy)
    _assert_nothing_is_skipped(kind, copy, "dirty")


def test_btrfs_with_a_log_of_fsyncs_is_kept(image: Path, tmp_path: Path, requires: Callable[..., None]) -> None:
    kind = BTRFS["btrfs"]
    requires(*kind.programs, root=True)
    kind.make(image)
    copy = tmp_path / "copy.img"
    with kind.mounted(image) as root, open(root / "file", "wb") as file:
        file.write(os.urandom(100_000))
        os.sync()
        file.write(os.urandom(100_000))
        file.flush()
        os.fsync(file.fileno())
        run("cp", "--sparse=always", image, copy)
    _assert_nothing_is_skipped(kind, copy, "dirty")


def test_mounted_btrfs_without_one_is_what_its_superblock_says(
    image: Path, tmp_path: Path, requires: Callable[..., None]
) -> None:
    kind = BTRFS["btrfs"]
    requires(*kind.programs, root=True)
    kind.make(image)
    copy = tmp_path / "copy.img"
    with kind.mounted(image) as root:
        for number in range(50):
            (root / f"file-{number}").write_bytes(os.urandom(50_000))
        os.sync()
        for number in range(0, 50, 2):
            (root / f"file-{number}").unlink()
        run("cp", "--sparse=always", image, copy)
    _assert_only_free_space_is_skipped(kind, copy)


def test_a_frozen_xfs_is_believed(image: Path, tmp_path: Path, requires: Callable[..., None]) -> None:
    kind = XFS["xfs"]
    requires(*kind.programs, "xfs_freeze", root=True)
    kind.make(image)
    copy = tmp_path / "copy.img"
    with kind.mounted(image) as root:
        for number in range(200):
            (root / f"file-{number}").write_bytes(os.urandom(20_000))
        os.sync()
        for number in range(0, 200, 2):
            (root / f"file-{number}").unlink()
        run("xfs_freeze", "-f", root)
        try:
            run("cp", "--sparse=always", image, copy)
        finally:
            run("xfs_freeze", "-u", root)
    reading = kind.read(copy)
    assert (reading.kept, reading.state) == ("", "clean")
    overwrite(copy, reading)
    files = kind.tree(copy)  # mounting replays the log, as the guest will
    assert len(files) == 101
    kind.check(copy)
    assert kind.read(copy).runs.total == kind.free(copy) - kind.kept(copy)


def test_xfs_and_btrfs_snapshots_reflinks_and_holes_are_in_use(image: Path, requires: Callable[..., None]) -> None:
    for kind in (XFS["xfs"], BTRFS["btrfs"]):
        requires(*kind.programs, root=True)
        kind.make(image)
        with kind.mounted(image) as root:
            (root / "old").mkdir()
            for number in range(40):
                (root / "old" / f"{number}").write_bytes(os.urandom(100_000))
            if kind.type == "btrfs":
                run("btrfs", "subvolume", "snapshot", root, root / "snapshot")
                run("btrfs", "subvolume", "create", root / "gone")
                (root / "gone" / "file").write_bytes(os.urandom(5 * MIB))
                run("btrfs", "subvolume", "delete", "-c", root / "gone")
                (root / "nocow").touch()
                run("chattr", "+C", root / "nocow")
                (root / "nocow").write_bytes(os.urandom(3 * MIB))
            run("cp", "-a", "--reflink=always", root / "old", root / "new")
            with open(root / "new" / "1", "r+b") as file:
                file.write(b"changed")
            with open(root / "holes", "wb") as file:
                for offset in (0, 7 * MIB, 1 << 40):
                    file.seek(offset)
                    file.write(b"here")
            with open(root / "reserved", "wb") as file:
                os.posix_fallocate(file.fileno(), 0, 3 * MIB)
            os.truncate(root / "holes", 7 * MIB + 9)  # what follows is too large to be read
            shutil.rmtree(root / "old")
        _assert_only_free_space_is_skipped(kind, image)
