"""XFS, btrfs, NTFS, exFAT, FAT and F2FS that are dirty, hibernated, damaged or new: nothing of them is skipped."""

from __future__ import annotations

import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import diskhaul_native as native
from diskhaul_plugins.guest_disks.reading import NotThisError
from diskhaul_plugins.guest_disks.volume import OutsideVolumeError

from .filesystem_kinds import MIB, Btrfs, Exfat, F2fs, Fat, Kind, Ntfs, Xfs, run

SECTOR = 512


@pytest.fixture(autouse=True)
def _tidy(tmp_path: Path) -> Iterator[None]:
    """Images are large: pytest keeps what is left of a test."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture
def make(tmp_path: Path, requires: Callable[..., None]) -> Callable[[Kind], Path]:
    """``image = make(kind)``"""

    def make(kind: Kind) -> Path:
        requires(*kind.programs, root=kind.root)
        image = tmp_path / f"{kind.type}.img"
        kind.make(image)
        assert len(kind.read(image).runs) > 0
        return image

    return make


def _get(image: Path, offset: int, length: int) -> bytes:
    with open(image, "rb") as file:
        file.seek(offset)
        return file.read(length)


def _put(image: Path, offset: int, content: bytes) -> None:
    with open(image, "r+b") as file:
        file.seek(offset)
        file.write(content)


def _change(image: Path, offset: int, form: str, change: Callable[[int], int]) -> None:
    (value,) = struct.unpack(form, _get(image, offset, struct.calcsize(form)))
    _put(image, offset, struct.pack(form, change(value)))


def _assert_kept(kind: Kind, image: Path, state: str, reason: str) -> None:
    reading = kind.read(image)
    assert (list(reading.runs), reading.state) == ([], state)
    assert reason in reading.kept


# --- FAT --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [12, 16, 32])
def test_fat_that_linux_has_mounted(bits: int, make: Callable[[Kind], Path]) -> None:
    kind = Fat(("-F", str(bits)), size={12: 4, 16: 32, 32: 64}[bits] * MIB)
    image = make(kind)
    _change(image, 65 if bits == 32 else 37, "B", lambda byte: byte | 1)
    _assert_kept(kind, image, "dirty", "is mounted")


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize(("bit", "state"), [(15, "dirty"), (14, "has errors")])
def test_fat_that_windows_has_mounted_or_found_errors_on(bits: int, bit: int, state: str, make: Callable[[Kind], Path]) -> None:
    kind = Fat(("-F", str(bits)), size=64 * MIB)
    image = make(kind)
    (reserved,) = struct.unpack("<H", _get(image, 14, 2))
    (length,) = struct.unpack("<I" if bits == 32 else "<H", _get(image, 36, 4) if bits == 32 else _get(image, 22, 2))
    shift = bit + 12 if bits == 32 else bit
    for table in range(2):
        place = (reserved + table * length) * SECTOR + bits // 8
        _change(image, place, "<I" if bits == 32 else "<H", lambda entry: entry & ~(1 << shift))
    _assert_kept(kind, image, state, "")


def test_fat_whose_tables_differ(make: Callable[[Kind], Path]) -> None:
    kind = Fat(("-F", "32"))
    image = make(kind)
    (reserved,) = struct.unpack("<H", _get(image, 14, 2))
    _put(image, reserved * SECTOR + 4000 * 4, b"\xff\xff\xff\x0f")
    _assert_kept(kind, image, "has errors", "copies of its table differ")


def test_fat32_whose_second_table_alone_is_in_use(make: Callable[[Kind], Path]) -> None:
    kind = Fat(("-F", "32"))
    image = make(kind)
    before = kind.read(image).runs.total
    (reserved,) = struct.unpack("<H", _get(image, 14, 2))
    (length,) = struct.unpack("<I", _get(image, 36, 4))
    _put(image, (reserved + length) * SECTOR + 4000 * 4, b"\xff\xff\xff\x0f")
    _put(image, 40, b"\x81\x00")
    _assert_kept(kind, image, "has errors", "free clusters and has")
    _change(image, SECTOR + 488, "<I", lambda count: count - 1)
    assert kind.read(image).runs.total == before - SECTOR


def test_fat_with_so_many_clusters_that_systems_disagree(make: Callable[[Kind], Path]) -> None:
    kind = Fat(("-F", "16", "-s", "4"), size=12 * MIB)
    image = make(kind)
    reserved, tables, roots, _, _, length = struct.unpack("<HBHHBH", _get(image, 14, 10))
    sectors = reserved + tables * length + roots * 32 // SECTOR + 4 * 4086
    _put(image, 19, struct.pack("<H", sectors))
    _assert_kept(kind, image, "", "FAT12 or FAT16")


# --- exFAT ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flag", "state"), [(2, "dirty"), (4, "has errors"), (1, "has errors")])
def test_exfat_with_flags(flag: int, state: str, make: Callable[[Kind], Path]) -> None:
    kind = Exfat()
    image = make(kind)
    _change(image, 106, "<H", lambda flags: flags | flag)
    _assert_kept(kind, image, state, "")


@pytest.mark.parametrize("offset", [72, 88, 92, 96, 109, 120, 700, 5000])
def test_exfat_whose_boot_sectors_were_changed(offset: int, make: Callable[[Kind], Path]) -> None:
    kind = Exfat()
    image = make(kind)
    _change(image, offset, "B", lambda byte: byte ^ 1)
    _assert_kept(kind, image, "has errors", "")


def test_exfat_whose_bitmap_frees_itself(make: Callable[[Kind], Path]) -> None:
    kind = Exfat()
    image = make(kind)
    (heap,) = struct.unpack("<I", _get(image, 88, 4))
    _put(image, heap * SECTOR, b"\xfe")
    _assert_kept(kind, image, "has errors", "what it needs itself")


# --- NTFS -------------------------------------------------------------------------------------------------------------


def test_ntfs_that_is_marked_dirty(make: Callable[[Kind], Path]) -> None:
    kind = Ntfs()
    image = make(kind)
    run("ntfsfix", image)
    _assert_kept(kind, image, "dirty", "marked dirty")


@pytest.mark.parametrize("flag", [0x0001, 0x0002, 0x0004, 0x0010, 0x4000])
def test_ntfs_on_which_something_is_left_to_be_done(flag: int, make: Callable[[Kind], Path]) -> None:
    kind = Ntfs()
    image = make(kind)
    record = _record(image, 3)
    content = _get(image, record, 1024)
    information = content.index(struct.pack("<II", 0x70, 0x28)) + 24
    _change(image, record + information + 10, "<H", lambda flags: flags | flag)
    _assert_kept(kind, image, "dirty", "left to be done")


@pytest.mark.parametrize(
    ("in_use", "flags", "state"), [(0, 0, "dirty"), (0xFFFF, 0, "clean"), (0, 2, "clean"), (0xFFFF, 2, "clean"), (1, 4, "dirty")]
)
def test_ntfs_whose_log_windows_left(in_use: int, flags: int, state: str, make: Callable[[Kind], Path]) -> None:
    kind = Ntfs()
    image = make(kind)
    log = _log_at(image)
    _put(image, log, _restart_page(7, in_use, flags))
    _put(image, log + 4096, _restart_page(6, 0, 0))
    assert kind.read(image).state == state
    _put(image, log + 4096, _restart_page(8, 0, 0))
    _assert_kept(kind, image, "dirty", "its log is open")


def test_ntfs_whose_log_was_written_in_part(make: Callable[[Kind], Path]) -> None:
    kind = Ntfs()
    image = make(kind)
    log = _log_at(image)
    page = _restart_page(7, 0xFFFF, 2)
    _put(image, log, page[:1534] + b"xx" + page[1536:])
    _assert_kept(kind, image, "has errors", "not written as a whole")
    _put(image, log, bytes(4096))
    _assert_kept(kind, image, "dirty", "cannot be read")
    _put(image, log, b"\xff" * 4096)
    assert kind.read(image).state == "clean"
    _put(image, log + MIB, b"RCRD")
    _assert_kept(kind, image, "dirty", "no beginning")


@pytest.mark.parametrize(
    ("name", "content", "state"),
    [
        ("hiberfil.sys", b"hibr" + bytes(8188), "hibernated"),
        ("hiberfil.sys", b"HIBR" + bytes(8188), "hibernated"),
        ("HiberFil.SYS", b"\x81\x81\xff" + bytes(8188), "hibernated"),
        ("hiberfil.sys", b"wake" + b"x" * 8188, "clean"),
        ("hiberfil.sys", bytes(8192), "clean"),
        ("hiberfil.sys", b"", "clean"),
        ("hiberfil.bak", b"hibr" + bytes(8188), "clean"),
    ],
)
@pytest.mark.parametrize("others", [0, 300])
def test_ntfs_of_a_hibernated_windows(
    name: str, content: bytes, state: str, others: int, make: Callable[[Kind], Path], tmp_path: Path
) -> None:
    kind = Ntfs()
    image = make(kind)
    with kind.mounted(image) as root:
        for number in range(others):
            (root / f"file-{number}").write_bytes(b"")
        (root / name).write_bytes(content)
    assert kind.read(image).state == state


def test_ntfs_with_shadow_copies(make: Callable[[Kind], Path]) -> None:
    """The header as libvshadow documents it: identifier, version, type of record, its own offset, two unknown ones, catalog."""
    kind = Ntfs()
    image = make(kind)
    head = bytes.fromhex("6b87083876c1484eb7ae04046e6cc752") + struct.pack("<IIQQQ", 1, 1, 0x1E00, 0, 0)
    _put(image, 0x1E00, head + struct.pack("<Q", 0x4000))
    _assert_kept(kind, image, "clean", "has shadow copies")
    _put(image, 0x1E00, head + struct.pack("<Q", 0))  # there were some once
    assert list(kind.read(image).runs)


def test_ntfs_whose_bitmap_frees_the_table_of_files(make: Callable[[Kind], Path]) -> None:
    kind = Ntfs()
    image = make(kind)
    _put(image, _data_run(image, 6), b"\x00")
    _assert_kept(kind, image, "has errors", "what it needs itself")


def _record(image: Path, number: int) -> int:
    (sector_size, per_cluster) = struct.unpack("<HB", _get(image, 11, 3))
    (mft,) = struct.unpack("<Q", _get(image, 48, 8))
    return int(mft * sector_size * per_cluster + number * 1024)


def _data_run(image: Path, number: int) -> int:
    """Where the content of a file in one piece begins."""
    (sector_size, per_cluster) = struct.unpack("<HB", _get(image, 11, 3))
    content = _get(image, _record(image, number), 1024)
    (at,) = struct.unpack_from("<H", content, 20)
    while struct.unpack_from("<I", content, at)[0] != 0x80:
        at += struct.unpack_from("<I", content, at + 4)[0]
    runs = at + struct.unpack_from("<H", content, at + 32)[0]
    length, place = content[runs] & 15, content[runs] >> 4
    cluster = int.from_bytes(content[runs + 1 + length : runs + 1 + length + place], "little", signed=True)
    return int(cluster * sector_size * per_cluster)


def _log_at(image: Path) -> int:
    return _data_run(image, 2)


def _restart_page(sequence: int, in_use: int, flags: int) -> bytes:
    """One of the two pages that the log of a used volume begins with."""
    page = bytearray(4096)
    page[:4] = b"RSTR"
    struct.pack_into("<HHQIIHHH", page, 4, 30, 9, 0, 4096, 4096, 56, 1, 1)
    struct.pack_into("<QHHHH", page, 56, sequence, 1, 0xFFFF, in_use, flags)
    page[30:32] = b"\x05\x00"
    for number in range(1, 9):
        end = number * SECTOR
        page[30 + 2 * number : 32 + 2 * number] = page[end - 2 : end]
        page[end - 2 : end] = b"\x05\x00"
    return bytes(page)


# --- XFS --------------------------------------------------------------------------------------------------------------


XFS = Xfs(size=320 * MIB)


@pytest.mark.parametrize(
    ("offset", "reason"),
    [
        (12, "checksum of its superblock"),
        (SECTOR + 52, "checksum of allocation group 0"),
        (80 * MIB + SECTOR + 16, "checksum of allocation group 1"),
        (80 * MIB, "no copy of the superblock"),
    ],
)
def test_xfs_with_a_byte_changed(offset: int, reason: str, make: Callable[[Kind], Path]) -> None:
    image = make(XFS)
    _change(image, offset, "B", lambda byte: byte ^ 0x10)
    _assert_kept(XFS, image, "has errors", reason)


def test_xfs_with_every_byte_of_its_free_extents_changed(make: Callable[[Kind], Path]) -> None:
    image = make(XFS)
    (root,) = struct.unpack(">I", _get(image, SECTOR + 16, 4))
    for at in range(80):
        offset = root * 4096 + at
        _change(image, offset, "B", lambda byte: byte ^ 0x01)
        assert not len(XFS.read(image).runs)
        _change(image, offset, "B", lambda byte: byte ^ 0x01)
    assert XFS.read(image).state == "clean"


@pytest.mark.parametrize(
    ("offset", "bit", "state"),
    [(212, 0x100, ""), (216, 0x10, "has errors"), (216, 0x100, ""), (220, 0x1, "")],
    ids=["read-only feature", "needs repair", "feature", "feature of the log"],
)
def test_xfs_with_features_that_are_not_known(offset: int, bit: int, state: str, make: Callable[[Kind], Path]) -> None:
    image = make(XFS)
    superblock = bytearray(_get(image, 0, SECTOR))
    (before,) = struct.unpack_from(">I", superblock, offset)
    struct.pack_into(">I", superblock, offset, before | bit)
    superblock[224:228] = bytes(4)
    struct.pack_into("<I", superblock, 224, native.crc32c(superblock))
    _put(image, 0, bytes(superblock))
    _assert_kept(XFS, image, state, "")


def test_xfs_whose_log_ends_differently(make: Callable[[Kind], Path]) -> None:
    image = make(XFS)
    log = _xfs_log(image)
    _put(image, log + SECTOR + 9, b"\x00")
    _assert_kept(XFS, image, "dirty", "its log is not empty")
    _put(image, log + SECTOR + 9, b"\x20")
    assert XFS.read(image).state == "clean"
    _put(image, log + 5 * SECTOR, struct.pack(">I", 1))  # something arrived behind the head
    _assert_kept(XFS, image, "dirty", "not written to its end")
    _put(image, log + 5 * SECTOR, bytes(4))
    _put(image, log, bytes(SECTOR))
    _assert_kept(XFS, image, "dirty", "never written")


def test_xfs_with_a_log_elsewhere(make: Callable[[Kind], Path], tmp_path: Path) -> None:
    log = tmp_path / "log.img"
    with open(log, "wb") as file:
        file.truncate(80 * MIB)
    kind = Xfs(("-l", f"logdev={log},size=64m"), size=320 * MIB)
    kind.make(tmp_path / "disk.img")
    _assert_kept(kind, tmp_path / "disk.img", "", "a log on another device")


def _xfs_log(image: Path) -> int:
    raw = _get(image, 0, SECTOR)
    (start,) = struct.unpack_from(">Q", raw, 48)
    (blocks,) = struct.unpack_from(">I", raw, 84)
    return int(((start >> raw[124]) * blocks + (start & (1 << raw[124]) - 1)) * 4096)


# --- btrfs ------------------------------------------------------------------------------------------------------------

BTRFS = Btrfs(size=128 * MIB)
SUPERBLOCK = 64 << 10


def _seal(image: Path, offset: int, form: str, change: Callable[[int], int]) -> None:
    """Change a field of the superblock, and its checksum with it."""
    _change(image, SUPERBLOCK + offset, form, change)
    _put(image, SUPERBLOCK, struct.pack("<I", native.crc32c(_get(image, SUPERBLOCK + 32, 4064))))


@pytest.mark.parametrize(
    ("offset", "form", "state", "reason"),
    [
        (96, "<Q", "dirty", "log of recent fsyncs"),
        (136, "<Q", "", "2 devices"),
        (120, "<Q", "has errors", "bytes in use"),
        (72, "<Q", "has errors", "belongs elsewhere"),
        (80, "<Q", "has errors", ""),
        (112, "<Q", "has errors", "as large as it says"),
    ],
)
def test_btrfs_with_one_more_in_a_field(offset: int, form: str, state: str, reason: str, make: Callable[[Kind], Path]) -> None:
    image = make(BTRFS)
    _seal(image, offset, form, lambda value: value + 1)
    _assert_kept(BTRFS, image, state, reason)


@pytest.mark.parametrize("bit", [7, 11, 12, 13, 14, 20])
def test_btrfs_with_features_that_are_not_known(bit: int, make: Callable[[Kind], Path]) -> None:
    image = make(BTRFS)
    _seal(image, 188, "<Q", lambda flags: flags | 1 << bit)
    _assert_kept(BTRFS, image, "", "a feature like")


def test_btrfs_with_a_byte_changed_in_its_trees(make: Callable[[Kind], Path]) -> None:
    image = make(BTRFS)
    reading = BTRFS.read(image)
    free = list(reading.runs)
    nodes = 0
    for offset in range(MIB, 128 * MIB, 16384):
        if any(begin <= offset < begin + length for begin, length in free):
            continue
        content = _get(image, offset, 16384)
        (owner,) = struct.unpack_from("<Q", content, 88)
        if owner not in (1, 2, 3):
            continue
        nodes += 1
        _change(image, offset + 200, "B", lambda byte: byte ^ 0x80)
        # Trees are read from the first copy; a second one may well be damaged.
        changed = BTRFS.read(image)
        assert list(changed.runs) in ([], free)
        nodes -= bool(changed.runs.total)
        _change(image, offset + 200, "B", lambda byte: byte ^ 0x80)
    assert nodes == 3  # the root tree, the extent tree, the chunk tree


def test_btrfs_on_two_devices_or_in_stripes(tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("mkfs.btrfs")
    for profile in ("raid0", "raid1"):
        images = [tmp_path / f"{profile}-{number}" for number in range(2)]
        for image in images:
            image.unlink(missing_ok=True)
            with open(image, "wb") as file:
                file.truncate(128 * MIB)
        run("mkfs.btrfs", "-q", "-m", profile, "-d", profile, *images)
        _assert_kept(BTRFS, images[0], "", "")


# --- F2FS -------------------------------------------------------------------------------------------------------------

F2FS = F2fs(size=128 * MIB)
F2FS_MAGIC = 0xF2F52010


def _change_checkpoint(image: Path, change: Callable[[bytearray], None]) -> None:
    (checkpoint,) = struct.unpack("<I", _get(image, 1024 + 76, 4))
    for pack in (0, 512):
        begin = checkpoint + pack
        head = bytearray(_get(image, begin * 4096, 4096))
        (blocks,) = struct.unpack_from("<I", head, 136)
        if struct.unpack_from("<Q", head)[0] == 0:
            continue
        change(head)
        struct.pack_into("<I", head, 4092, zlib.crc32(head[:4092], F2FS_MAGIC ^ 0xFFFFFFFF) ^ 0xFFFFFFFF)
        for place in (begin, begin + blocks - 1):
            _put(image, place * 4096, bytes(head))


@pytest.mark.parametrize(
    ("flags", "state"), [(0, "dirty"), (0x4, "dirty"), (0x9, "has errors"), (0x11, "has errors"), (0x1001, "has errors")]
)
def test_f2fs_with_flags(flags: int, state: str, make: Callable[[Kind], Path]) -> None:
    image = make(F2FS)
    _change_checkpoint(image, lambda head: struct.pack_into("<I", head, 132, flags))
    _assert_kept(F2FS, image, state, "")


@pytest.mark.parametrize(("newer", "state"), [(0, "dirty"), (-1, "clean"), (1, "clean")])
@pytest.mark.parametrize("crc", [0, 0x12345678], ids=["without", "with the checkpoint's checksum"])
def test_f2fs_that_an_fsync_has_written_to_since_its_checkpoint(
    newer: int, crc: int, state: str, make: Callable[[Kind], Path]
) -> None:
    """The version in a node's footer is that of the checkpoint before it; mounting begins where the checkpoint says."""
    image = make(F2FS)
    checkpoint, main = struct.unpack("<I", _get(image, 1024 + 76, 4))[0], struct.unpack("<I", _get(image, 1024 + 92, 4))[0]
    heads = [_get(image, (checkpoint + pack) * 4096, 4096) for pack in (0, 512)]
    head = max(heads, key=lambda head: int(struct.unpack_from("<Q", head)[0]))
    (version,), (segment,), (block,) = (struct.unpack_from(*what) for what in (("<Q", head), ("<I", head, 40), ("<H", head, 70)))
    footer = struct.pack("<IIIQI", 5, 5, 2, (version + newer) | crc << 32, 0)
    _put(image, (main + segment * 512 + block) * 4096, bytes(4096 - len(footer)) + footer)
    reading = F2FS.read(image)
    assert (reading.state, bool(list(reading.runs))) == (state, state == "clean")


@pytest.mark.parametrize(("offset", "reason"), [(32, "free segments and has"), (16, "free segments and has")])
def test_f2fs_whose_counts_do_not_fit(offset: int, reason: str, make: Callable[[Kind], Path]) -> None:
    image = make(F2FS)
    _change_checkpoint(image, lambda head: struct.pack_into("<I", head, offset, 1))
    _assert_kept(F2FS, image, "has errors", reason)


def test_f2fs_without_a_valid_checkpoint(make: Callable[[Kind], Path]) -> None:
    image = make(F2FS)
    (checkpoint,) = struct.unpack("<I", _get(image, 1024 + 76, 4))
    for pack in (0, 512):
        _change(image, (checkpoint + pack) * 4096 + 300, "B", lambda byte: byte ^ 1)
    _assert_kept(F2FS, image, "has errors", "no valid checkpoint")


def test_f2fs_whose_bitmap_and_count_of_a_segment_differ(make: Callable[[Kind], Path]) -> None:
    image = make(F2FS)
    (table,) = struct.unpack("<I", _get(image, 1024 + 80, 4))
    for half in (0, 512):
        _change(image, (table + half) * 4096 + 20 * 74 + 10, "B", lambda byte: byte ^ 1)
    _assert_kept(F2FS, image, "has errors", "another number of blocks")


# --- anything ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [XFS, BTRFS, F2FS, Ntfs(size=16 * MIB), Exfat(size=16 * MIB), Fat(("-F", "12"), size=2 * MIB), Fat(("-F", "32"))],
    ids=lambda kind: " ".join((kind.type, *kind.options)),
)
def test_random_changes_are_answered_or_refused(kind: Kind, make: Callable[[Kind], Path]) -> None:
    """No other exception, no endless loop; nor is what holds metadata ever called free where there are checksums."""
    image = make(kind)
    generator = random.Random(kind.type)
    free = list(kind.read(image).runs)
    places = [offset for offset, length in _used(free, kind.size) for offset in range(offset, offset + min(length, MIB), 512)]
    places = [place for place in places if _get(image, place, 512).strip(b"\0")]
    for _ in range(400):
        changes: list[tuple[int, bytes]] = []
        for _ in range(generator.choice((1, 1, 2, 5))):
            place = generator.choice(places) + generator.randrange(512)
            length = generator.choice((1, 2, 4, 8))
            if place + length <= image.stat().st_size:
                changes.append((place, _get(image, place, length)))
                _put(image, place, generator.choice((generator.randbytes(length), b"\xff" * length, bytes(length))))
        try:
            reading = kind.read(image)
        except (NotThisError, OutsideVolumeError, OSError, ValueError, struct.error):
            pass
        else:
            assert all(0 <= offset < offset + length <= image.stat().st_size for offset, length in reading.runs)
            if kind.type in ("xfs", "btrfs"):
                assert list(reading.runs) in ([], free)
        for place, before in reversed(changes):
            _put(image, place, before)
    assert list(kind.read(image).runs) == free


def _used(free: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    found = []
    position = 0
    for offset, length in (*free, (size, 0)):
        if offset > position:
            found.append((position, offset - position))
        position = offset + length
    return found


def test_a_disk_that_cannot_be_read_is_an_error(make: Callable[[Kind], Path]) -> None:
    class Unreadable:
        size = 64 * MIB

        def read(self, offset: int, length: int, /) -> bytes:
            raise OSError(5, os.strerror(5))

    for kind in (Xfs, Btrfs, Ntfs, Exfat, Fat, F2fs):
        with pytest.raises(OSError, match="Input/output error"):
            kind.reader(Unreadable())  # type: ignore[arg-type]
