"""What replaying a journal would change: compared with what e2fsprogs make of logs that are written here, block by block."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from diskhaul_plugins.guest_disks.ext import journal as jbd2
from diskhaul_plugins.guest_disks.ext.journal import read_journal
from diskhaul_plugins.guest_disks.ext.libext2fs import load, open_filesystem
from diskhaul_plugins.guest_disks.ext.superblock import read_superblock

from ..ext_images import PROGRAMS, assert_replay_is_foreseen, debugfs, make, opened, read

MAGIC = jbd2.MAGIC.to_bytes(4, "big")
UNCHECKED, WIDE, V2, V3 = 0, jbd2.INCOMPAT_64BIT, jbd2.INCOMPAT_CSUM_V2, jbd2.INCOMPAT_CSUM_V3
FORMATS = {
    "no checksums": UNCHECKED,
    "no checksums, 64 bits": WIDE,
    "version 2": V2,
    "version 2, 64 bits": WIDE | V2,
    "version 3": V3,
    "version 3, 64 bits": WIDE | V3,
}
FREE = 12_000
"""Blocks from here on belong to no file."""


@pytest.fixture(autouse=True)
def _programs(requires: Callable[..., None]) -> None:
    requires(*PROGRAMS)


class Log:
    """Writes a log into the journal of an image, in any of the formats, as sound or as damaged as a test wants it."""

    def __init__(self, image: Path, features: int = V3 | WIDE, *, start: int = 1, sequence: int = 1) -> None:
        self.image = image
        self.features = features
        self.start, self.first_sequence, self.sequence = start, sequence, sequence
        with opened(image) as volume, open_filesystem(volume, read_superblock(volume)) as filesystem:
            self.journal = read_journal(filesystem, load())
        self.size = self.journal.block_size
        self.seed = load().crc32c(jbd2.NONE, self._read(0)[48:64])
        self.position = start

    @property
    def is_checked(self) -> bool:
        return bool(self.features & (V2 | V3))

    def _read(self, index: int) -> bytes:
        with opened(self.image) as volume:
            return volume.read(self.journal.file.on_disk(index) * self.size, self.size)

    def _write(self, index: int, block: bytes) -> None:
        assert len(block) == self.size
        with open(self.image, "r+b") as file:
            file.seek(self.journal.file.on_disk(index) * self.size)
            file.write(block)

    def append(self, block: bytes) -> int:
        """The next block of the log; returns where it is."""
        index = self.position
        self._write(index, block)
        self.position = index + 1 if index + 1 < self.journal.end else self.journal.first
        return index

    def sealed(self, block: bytes, at: int) -> bytes:
        """The block with its checksum at this offset, where there are checksums."""
        block = block.ljust(self.size, b"\0")
        if not self.is_checked:
            return block
        checksum = load().crc32c(self.seed, block[:at] + bytes(4) + block[at + 4 :])
        return block[:at] + checksum.to_bytes(4, "big") + block[at + 4 :]

    def header(self, kind: int) -> bytes:
        return struct.pack(">III", jbd2.MAGIC, kind, self.sequence & 0xFFFFFFFF)

    def tag(self, block: int, flags: int, content: bytes) -> bytes:
        checksum = load().crc32c(load().crc32c(self.seed, self.header(0)[8:12]), content) if self.is_checked else 0
        low, high = struct.pack(">I", block & 0xFFFFFFFF), struct.pack(">I", block >> 32)
        if self.features & V3:
            return low + struct.pack(">I", flags) + high + struct.pack(">I", checksum)
        tag = low + struct.pack(">HH", checksum & 0xFFFF, flags)
        tag += high if self.features & WIDE else b""
        return tag + (b"\0\0" if self.features & V2 else b"")

    def describe(self, blocks: Mapping[int, bytes]) -> list[int]:
        """A descriptor block, and the copies it describes; returns where those are."""
        block = self.header(jbd2.DESCRIPTOR)
        copies = []
        for number, (place, content) in enumerate(blocks.items()):
            flags = (jbd2.SAME_UUID if number else 0) | (jbd2.LAST_TAG if number == len(blocks) - 1 else 0)
            if content.startswith(MAGIC):
                flags |= jbd2.ESCAPED
                content = bytes(4) + content[4:]
            block += self.tag(place, flags, content) + (b"" if number else bytes(16))
            copies.append(content)
        self.append(self.sealed(block, self.size - 4))
        return [self.append(content) for content in copies]

    def revoke(self, *blocks: int) -> int:
        record = ">Q" if self.features & WIDE else ">I"
        content = b"".join(struct.pack(record, block) for block in blocks)
        return self.append(self.sealed(self.header(jbd2.REVOKE) + struct.pack(">I", 16 + len(content)) + content, self.size - 4))

    def commit(self, time_s: int = 1_700_000_000) -> int:
        index = self.append(self.sealed(self.header(jbd2.COMMIT) + bytes(36) + struct.pack(">QI", time_s, 0), 16))
        self.sequence += 1
        return index

    def finish(self, **changes: int) -> None:
        """Write the superblocks: there is something to replay. Changes are of the journal's fields, by name."""
        fields = {
            "end": self.journal.end,
            "first": self.journal.first,
            "sequence": self.first_sequence & 0xFFFFFFFF,
            "start": self.start,
            "errno": 0,
            "compat": 0,
            "incompat": jbd2.INCOMPAT_REVOKE | self.features,
        } | changes
        raw = bytearray(self._read(0))
        struct.pack_into(">IIIIi", raw, 16, *(fields[name] for name in ("end", "first", "sequence", "start", "errno")))
        struct.pack_into(">III", raw, 36, fields["compat"], fields["incompat"], 0)
        raw[0x50] = 4 if fields["incompat"] & (V2 | V3) else 0
        raw[0xFC:0x100] = bytes(4)
        if raw[0x50]:
            raw[0xFC:0x100] = load().crc32c(jbd2.NONE, bytes(raw[:1024])).to_bytes(4, "big")
        self._write(0, bytes(raw))
        debugfs(self.image, "feature needs_recovery")


def content(size: int, seed: int = 0) -> bytes:
    """What a block is to be: nothing that looks like the journal's own."""
    return b"\1" + random.Random(seed).randbytes(size - 1)


@pytest.fixture(params=[1024, 4096])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A filesystem with an empty journal of 1024 blocks, of which many are free from block FREE on."""
    path = tmp_path / "image"
    block_size: int = request.param
    make(path, 16 * block_size >> 10, "-b", str(block_size), "-J", f"size={block_size >> 10}")
    return path


@pytest.fixture(params=FORMATS)
def log(request: pytest.FixtureRequest, image: Path) -> Log:
    """An empty log in each format."""
    return Log(image, FORMATS[request.param])


def kept(log: Log) -> str:
    """Why nothing is skipped."""
    reading = read(log.image)
    assert reading.runs.total == 0
    assert reading.state == "dirty"
    return reading.kept


def test_the_last_copy_of_a_block_counts(log: Log, tmp_path: Path) -> None:
    log.describe({FREE + number: content(log.size, number) for number in range(9)})
    log.commit()
    (last,) = log.describe({FREE + 4: content(log.size, 99)})
    log.commit()
    log.finish()
    changed = assert_replay_is_foreseen(log.image, tmp_path)
    assert set(changed) == set(range(FREE, FREE + 9))
    assert changed[FREE + 4] == log.journal.file.on_disk(last) << 1
    assert read(log.image).kept == ""


def test_a_transaction_of_many_descriptors(log: Log, tmp_path: Path) -> None:
    for begin in range(0, 300, 50):
        log.describe({FREE + number: content(log.size, number) for number in range(begin, begin + 50)})
    log.commit()
    log.finish()
    assert len(assert_replay_is_foreseen(log.image, tmp_path)) == 300


def test_a_revoked_block_is_left_as_it_is(log: Log, tmp_path: Path) -> None:
    log.describe({FREE: content(log.size), FREE + 1: content(log.size), FREE + 2: content(log.size)})
    log.commit()
    log.describe({FREE + 1: content(log.size, 1), FREE + 2: content(log.size, 1)})
    log.revoke(FREE, FREE + 1)  # in the transaction that writes one of them
    log.commit()
    log.describe({FREE: content(log.size, 2)})  # in a later one it counts again
    log.commit()
    log.revoke(FREE + 2)
    log.commit()
    log.finish()
    assert set(assert_replay_is_foreseen(log.image, tmp_path)) == {FREE}


def test_what_was_revoked_in_a_transaction_that_was_not_finished_is_not(log: Log, tmp_path: Path) -> None:
    log.describe({FREE: content(log.size)})
    log.commit()
    log.revoke(FREE)
    log.describe({FREE + 1: content(log.size)})
    log.finish()
    assert set(assert_replay_is_foreseen(log.image, tmp_path)) == {FREE}


def test_a_block_that_looks_like_the_journals_own_comes_back_as_it_was(log: Log, tmp_path: Path) -> None:
    log.describe({FREE: MAGIC + content(log.size)[4:], FREE + 1: content(log.size)})
    log.commit()
    log.finish()
    changed = assert_replay_is_foreseen(log.image, tmp_path)
    assert (changed[FREE] & 1, changed[FREE + 1] & 1) == (1, 0)


@pytest.mark.parametrize("room", range(6))
def test_a_log_that_goes_round(log: Log, room: int, tmp_path: Path) -> None:
    begun = Log(log.image, log.features, start=log.journal.end - room - 1, sequence=77)
    for number in range(4):
        begun.describe({FREE + number: content(log.size, number), FREE + 9: content(log.size, number)})
        begun.commit()
    begun.finish()
    assert set(assert_replay_is_foreseen(log.image, tmp_path)) == {*range(FREE, FREE + 4), FREE + 9}


def test_transactions_are_counted_round_as_well(log: Log, tmp_path: Path) -> None:
    begun = Log(log.image, log.features, sequence=0xFFFFFFFE)
    for number in range(4):
        begun.describe({FREE + number: content(log.size, number), FREE + 9: content(log.size, number)})
        begun.commit()
    begun.revoke(FREE + 1, FREE + 3)
    begun.commit()
    begun.finish()
    assert set(assert_replay_is_foreseen(log.image, tmp_path)) == {FREE, FREE + 2, FREE + 9}


def test_older_transactions_behind_the_end_do_not_count(log: Log, tmp_path: Path) -> None:
    old = Log(log.image, log.features, start=1, sequence=5)
    for number in range(3):
        old.describe({FREE + number: content(log.size, number)})
        old.commit()
    new = Log(log.image, log.features, start=1, sequence=9)
    new.describe({FREE + 7: content(log.size, 7)})
    new.commit()
    new.finish()
    assert set(assert_replay_is_foreseen(log.image, tmp_path)) == {FREE + 7}


@pytest.mark.parametrize("cut", ["commit", "copies", "all"])
def test_a_transaction_that_was_not_finished_does_not_count(log: Log, cut: str, tmp_path: Path) -> None:
    log.describe({FREE: content(log.size)})
    log.commit()
    if cut != "all":
        copies = log.describe({FREE + 1: content(log.size), FREE + 2: content(log.size)})
        if cut == "copies":
            log._write(copies[1], bytes(log.size))
    log.finish()
    assert set(assert_replay_is_foreseen(log.image, tmp_path)) == {FREE}
    assert read(log.image).state == "journal replayed"


def test_a_descriptor_that_was_only_half_written_ends_the_log(image: Path, tmp_path: Path) -> None:
    log = Log(image)
    log.describe({FREE: content(log.size)})
    log.commit()
    torn = log.position
    log.describe({FREE + 1: content(log.size), FREE + 2: content(log.size)})
    log._write(torn, log._read(torn)[:512].ljust(log.size, b"\x77"))
    log.finish()
    assert set(assert_replay_is_foreseen(log.image, tmp_path)) == {FREE}


def test_an_empty_log_changes_nothing(log: Log) -> None:
    log.finish(start=0)
    reading = read(log.image)
    assert (reading.kept, reading.state) == ("", "clean")


def test_what_debugfs_writes_is_read(image: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(random.Random(1).randbytes(16 << 12))
    commands = f"jo -c -v 3\njw -b {FREE}-{FREE + 10} {tmp_path}/data\njw -r {FREE + 3}\njc"
    debugfs(image, *commands.splitlines())
    assert set(assert_replay_is_foreseen(image, tmp_path)) == {*range(FREE, FREE + 11)} - {FREE + 3}


# --- what is not believed ---


@pytest.fixture
def checked(image: Path) -> Log:
    """A log with checksums: two transactions, the first of which writes a block and revokes another."""
    log = Log(image)
    log.describe({FREE: content(log.size), FREE + 1: content(log.size, 1)})
    log.revoke(FREE + 1)
    log.commit()
    log.describe({FREE + 2: content(log.size, 2)})
    log.commit()
    return log


@pytest.mark.parametrize("index", [1, 2, 4, 5, 6, 7, 8])
def test_a_flipped_bit_anywhere_in_a_finished_transaction_is_noticed(checked: Log, index: int) -> None:
    block = bytearray(checked._read(index))
    block[600] ^= 4
    checked._write(index, bytes(block))
    checked.finish()
    assert "checksum" in kept(checked)


def test_a_copy_that_is_revoked_need_not_fit_its_checksum(checked: Log, tmp_path: Path) -> None:
    checked._write(3, content(checked.size, 5))
    checked.finish()
    assert set(assert_replay_is_foreseen(checked.image, tmp_path)) == {FREE, FREE + 2}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"compat": 1}, "features"),
        ({"incompat": 0x4 | V3}, "features"),
        ({"incompat": 0x40 | V3}, "features"),
        ({"incompat": 0x20 | V3 | WIDE}, "fast commits"),
        ({"incompat": V2 | V3}, "two kinds"),
        ({"first": 0}, "does not fit"),
        ({"first": 5000}, "does not fit"),
        ({"end": 0}, "does not fit"),
        ({"end": 1025}, "does not fit"),
        ({"end": 0xFFFFFFFF}, "does not fit"),
        ({"start": 1024}, "does not fit"),
        ({"start": 0xFFFFFFFF}, "does not fit"),
    ],
)
def test_a_journal_that_is_not_understood_is_not_used(checked: Log, changes: dict[str, int], reason: str) -> None:
    checked.finish(**changes)
    assert reason in kept(checked)


def test_a_journal_that_has_noted_an_error_is_not_used(checked: Log) -> None:
    checked.finish(errno=-5)
    reading = read(checked.image)
    assert (reading.state, reading.kept, reading.runs.total) == ("has errors", "its journal has noted an error", 0)


def test_a_wrong_checksum_of_the_journals_superblock_is_noticed(checked: Log) -> None:
    checked.finish()
    block = bytearray(checked._read(0))
    block[0x100] ^= 1
    checked._write(0, bytes(block))
    assert kept(checked) == "the checksum of its journal's superblock is wrong"


@pytest.mark.parametrize("place", ["journal", "behind the end", "far away"])
def test_a_journal_that_changes_what_it_must_not_is_not_used(log: Log, place: str) -> None:
    with opened(log.image) as volume:
        end = volume.size // log.size
    where = {"journal": log.journal.file.on_disk(9), "behind the end": end, "far away": 0xFFFFFFFF}[place]
    log.describe({FREE: content(log.size), where: content(log.size)})
    log.commit()
    log.finish()
    assert kept(log) == "its journal changes what it must not"


def test_a_revoke_block_that_is_longer_than_a_block_is_not_believed(log: Log) -> None:
    block = log.header(jbd2.REVOKE) + struct.pack(">I", log.size + 8)
    log.append(log.sealed(block, log.size - 4))
    log.commit()
    log.finish()
    assert "too long" in kept(log)


def test_a_log_without_an_end_is_left(log: Log) -> None:
    count = log.journal.end - log.journal.first
    for _ in range(count):
        log.commit()
    log.finish()
    assert kept(log) == "its journal goes round more than once"


def test_a_journal_that_has_content_though_it_was_unmounted_is_not_believed(checked: Log) -> None:
    checked.finish()
    debugfs(checked.image, "feature -needs_recovery")
    reading = read(checked.image)
    assert (reading.kept, reading.runs.total) == ("its journal has content, though it was unmounted", 0)


def test_a_filesystem_that_grows_meanwhile_is_kept(checked: Log) -> None:
    with opened(checked.image) as volume:
        raw = bytearray(volume.read(0, 2048))
    raw[1024 + 4 : 1024 + 8] = struct.pack("<I", 15_000)
    raw[1024 + 0x3FC : 2048] = struct.pack("<I", load().crc32c(jbd2.NONE, bytes(raw[1024 : 1024 + 0x3FC])))
    size = checked.size
    checked.describe({1024 // size: bytes(raw)[1024 // size * size :][:size].ljust(size, b"\0")})
    checked.commit()
    checked.finish()
    assert kept(checked) == "it is being resized"
