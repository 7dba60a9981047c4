"""partclone as a second opinion: its map is read strictly, and only what both call free is left out."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diskhaul.api import DiskMap
from diskhaul_plugins.guest_disks.inspection import GuestDiskReaderError, inspect_disk
from diskhaul_plugins.guest_disks.partclone import NonsenseError, common, free_of_map
from diskhaul_plugins.guest_disks.reading import FreeRuns
from diskhaul_plugins.storages.raw import RawReader

from .filesystem_kinds import MIB, Btrfs, Exfat, F2fs, Fat, Kind, Ntfs, Xfs, run


@pytest.fixture(autouse=True)
def _tidy(tmp_path: Path) -> Iterator[None]:
    """Images are large: pytest keeps what is left of a test."""
    yield
    shutil.rmtree(tmp_path)


HEAD = "# Domain logfile created by unset_name v0.3.23\n# Source: /tmp/0\n# Offset: 0x00000000\n# current_pos  current_status\n"
MAP = HEAD + (
    "0x00A00000     ?\n"
    "#      pos        size  status\n"
    "0x00000000  0x00100000  +\n"
    "0x00100000  0x00700000  ?\n"
    "0x00800000  0x00001000  +\n"
    "0x00801000  0x001FF000  ?\n"
)  # fmt: skip
FREE = [(0x100000, 0x700000), (0x801000, 0x1FF000)]


def test_a_map_is_read() -> None:
    assert list(free_of_map(MAP.encode(), 0xA00000)) == FREE


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (MAP, ""),
        ("\n0x00801000  0x001FF000  ?\n", "\n"),  # a part is missing
        ("0x001FF000  ?\n", "0x001FF000  ?"),  # the last line was cut
        ("0x00800000  0x00001000  +\n", ""),
        ("0x00800000  0x00001000  +", "0x00700000  0x00001000  +"),
        ("0x00800000  0x00001000  +", "0x00800000  0x00001000  ?"),
        ("0x00800000  0x00001000  +", "0x00800000  0x00000000  +"),
        ("0x00800000  0x00001000  +", "0x00800000  0x00001000  -"),
        ("0x00800000  0x00001000  +", "0x00800000  -0x0001000  +"),
        ("0x00800000  0x00001000  +", "block 0 4127"),
        ("0x00800000  0x00001000  +", "0x00800000  0x00001000  + "),
        ("0x001FF000", "0x101FF000"),
        ("0x00A00000     ?", "0x00B00000     ?"),
        ("0x00A00000     ?", "0x00A00000     +"),
        ("# Offset: 0x00000000", "# Offset: 0x00000200"),
        ("#      pos", "#  pos"),
        ("# Domain", "# Rescue"),
    ],
)
def test_nonsense_is_no_map(old: str, new: str) -> None:
    assert old in MAP
    with pytest.raises(NonsenseError):
        list(free_of_map(MAP.replace(old, new).encode(), 0xA00000))


def test_a_map_of_more_than_there_is_is_nonsense() -> None:
    with pytest.raises(NonsenseError):
        list(free_of_map(MAP.encode(), 0xA00000 - 1))


def test_any_change_to_a_map_is_nonsense_or_another_map_of_the_same_bytes() -> None:
    generator = random.Random(1)
    for _ in range(5000):
        changed = bytearray(MAP.encode())
        for _ in range(generator.choice((1, 2, 3))):
            changed[generator.randrange(len(changed))] = generator.choice(b"0123456789ABCDEF?+x #\n-\xff")
        try:
            found = list(free_of_map(bytes(changed), 0xA00000))
        except NonsenseError:
            continue
        assert all(0 <= offset < offset + length <= 0xA00000 for offset, length in found)


@pytest.mark.parametrize(
    ("ours", "theirs", "both"),
    [
        ([], [(0, 10)], []),
        ([(0, 10)], [], []),
        ([(0, 10)], [(0, 10)], [(0, 10)]),
        ([(0, 10)], [(2, 3), (7, 20)], [(2, 3), (7, 3)]),
        ([(2, 3), (7, 20)], [(0, 10)], [(2, 3), (7, 3)]),
        ([(0, 5), (10, 5)], [(5, 5)], []),
        ([(0, 5), (10, 5), (20, 5)], [(3, 18)], [(3, 2), (10, 5), (20, 1)]),
    ],
)
def test_what_is_in_both(ours: list[tuple[int, int]], theirs: list[tuple[int, int]], both: list[tuple[int, int]]) -> None:
    assert list(common(ours, theirs)) == both


def test_common_ranges_are_those_of_sets_of_bytes() -> None:
    generator = random.Random(2)

    def ranges() -> FreeRuns:
        runs, position = FreeRuns(), 0
        for _ in range(generator.randrange(8)):
            position += generator.randrange(1, 6)
            runs.add(position, length := generator.randrange(1, 6))
            position += length
        return runs

    def bytes_of(runs: FreeRuns) -> set[int]:
        return {byte for offset, length in runs for byte in range(offset, offset + length)}

    for _ in range(2000):
        ours, theirs = ranges(), ranges()
        assert bytes_of(common(ours, theirs)) == bytes_of(ours) & bytes_of(theirs)


# --- with partclone ---------------------------------------------------------------------------------------------------


def _inspect(image: Path, family: str) -> DiskMap:
    reader = RawReader(os.open(image, os.O_RDONLY), image.stat().st_size, str(image))
    try:
        return inspect_disk(reader, [family])
    finally:
        reader.close()


@pytest.mark.parametrize(
    ("kind", "program"),
    [
        (Xfs(size=320 * MIB), "partclone.xfs"),
        (Ntfs(), "partclone.ntfs"),
        (Exfat(), "partclone.exfat"),
        (Fat(("-F", "16"), size=32 * MIB), "partclone.fat"),
        (Fat(("-F", "32")), "partclone.fat"),
        (F2fs(size=512 * MIB), "partclone.f2fs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_partclone_and_our_own_readers_agree(kind: Kind, program: str, tmp_path: Path, requires: Callable[..., None]) -> None:
    requires(*kind.programs, program, root=True)
    image = tmp_path / "disk.img"
    kind.make(image)
    source = tmp_path / "source"
    source.mkdir()
    for number in range(40):
        (source / f"{number}").write_bytes(os.urandom(number * 3000))
    for name in ("one", "two", "three"):
        kind.add(image, source, name)
    kind.remove(image, "two")
    alone, together = _inspect(image, kind.type), _inspect(image, "partclone")
    assert [region.kept for region in together.regions] == [""]
    assert list(together.free) == list(alone.free)
    assert "diskhaul" not in Path("/proc/self/mounts").read_text()


def test_of_btrfs_partclone_calls_free_what_is_not_and_it_is_kept(tmp_path: Path, requires: Callable[..., None]) -> None:
    kind = Btrfs(("-m", "dup", "-d", "dup"), size=320 * MIB)
    requires(*kind.programs, "partclone.btrfs", root=True)
    image = tmp_path / "disk.img"
    kind.make(image)
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(os.urandom(5 * MIB))
    kind.add(image, source, "files")
    alone = set(_bytes_of(_inspect(image, "btrfs")))
    together = set(_bytes_of(_inspect(image, "partclone")))
    assert together
    assert together <= alone
    report = subprocess.run(
        ["partclone.btrfs", "-D", "-q", "-F", "-L", "/dev/null", "-s", image, "-O", "/dev/stdout"],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ).stdout
    theirs = {
        block for offset, length in free_of_map(report, kind.size) for block in range(offset // 4096, (offset + length) // 4096)
    }
    assert theirs - alone  # the second copies, for example


def _bytes_of(found: DiskMap) -> list[int]:
    return [block for extent in found.free for block in range(-(-extent.offset // 4096), extent.end // 4096)]


def test_fat12_is_kept(tmp_path: Path, requires: Callable[..., None]) -> None:
    kind = Fat(("-F", "12"), size=4 * MIB)
    requires(*kind.programs, "partclone.fat", root=True)
    kind.make(tmp_path / "disk.img")
    (region,) = _inspect(tmp_path / "disk.img", "partclone").regions
    assert (region.kept, region.skipped) == ("there is no partclone for fat12", 0)


SLOW = """
import time
from diskhaul_plugins.guest_disks import child, served
answer = served.ServedVolumes._answer
served.ServedVolumes._answer = lambda self: (time.sleep(1), answer(self))
child.start()
"""
"""What partclone reads comes slowly: at least five times it has to wait."""


def test_partclone_is_ended_with_the_one_who_wanted_it(tmp_path: Path, requires: Callable[..., None]) -> None:
    """Nothing is left of a run that took too long: no process, no mount."""
    kind = Xfs(size=320 * MIB)
    requires(*kind.programs, "partclone.xfs", root=True)
    image = tmp_path / "disk.img"
    kind.make(image)
    reader = RawReader(os.open(image, os.O_RDONLY), image.stat().st_size, str(image))
    try:
        with pytest.raises(GuestDiskReaderError, match="took too long"):
            inspect_disk(reader, ["partclone"], deadline_s=3, program=SLOW)
    finally:
        reader.close()
    assert "fuse diskhaul" not in run("cat", "/proc/mounts")
