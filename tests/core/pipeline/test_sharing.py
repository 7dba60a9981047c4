"""Disks whose blocks a stored file shares: what is believed, what is compared, and what has to be copied."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import diskhaul_native as native
from diskhaul.api import Buffer, DiskReader, Extent, ExtentKind
from diskhaul.cancellation import CancellationToken
from diskhaul.errors import StorageError
from diskhaul.formats.chunk_table import ChunkTable, chunk_digest
from diskhaul.formats.codec import codec_for
from diskhaul.options import PathOptions
from diskhaul.pipeline.digest import digest_job
from diskhaul.pipeline.meter import Meter
from diskhaul.pipeline.send import SendJob
from diskhaul.pipeline.sharing import Shared, open_shared, share_blocks
from diskhaul.pipeline.source import Source
from diskhaul.pipeline.workers import run_jobs
from diskhaul.testing import MemoryDisk

KIB, MIB = 1 << 10, 1 << 20
CHUNK = 64 * KIB
SIZE = 2 * MIB + 3 * KIB


class FileDisk:
    """A disk that is a file, and whose bytes cannot be had through anything but its descriptor."""

    def __init__(self, path: Path, size: int | None = None) -> None:
        self._file = path.open("rb")
        self.size = os.fstat(self.fileno()).st_size if size is None else size

    def fileno(self) -> int:
        return self._file.fileno()

    def read_into(self, offset: int, buffer: memoryview, /) -> None:
        raise AssertionError("the descriptor is read")

    def close(self) -> None:
        self._file.close()


class CloningFile:
    """A `CloneStoreFile` on a real filesystem. `lie` is called after it has been cloned, or in place of that."""

    name = "disk-0.raw"

    def __init__(self, path: Path, lie: Callable[[CloningFile], object] | None = None, *, clones: bool = True) -> None:
        self.path = path
        self.written: list[tuple[int, int]] = []
        self.shown: int | None = None
        self._file = path.open("x+b")
        self._lie, self._clones = lie, clones

    def clone_from(self, descriptor: int, size: int, /) -> bool:
        if self._clones:
            native.clone(descriptor, self.fileno())
        if self._lie is not None:
            self._lie(self)
        return self._clones or self._lie is not None

    def fileno(self) -> int:
        return self._file.fileno() if self.shown is None else self.shown

    def append(self, parts: Sequence[Buffer], /) -> None:
        raise AssertionError("a raw disk is not appended")

    def write(self, offset: int, buffer: Buffer, /) -> int:
        self.written.append((offset, len(buffer)))
        return os.pwrite(self._file.fileno(), buffer, offset)

    def set_size(self, size: int, /) -> None:
        os.truncate(self._file.fileno(), size)

    def finish(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class Lab:
    """A disk on a filesystem with reflinks, and files beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = os.urandom(MIB) + bytes(512 * KIB) + os.urandom(SIZE - MIB - 512 * KIB)
        self.disk = path / "disk"
        with self.disk.open("wb") as file:
            file.write(self.content[:MIB])
            file.seek(MIB + 512 * KIB)
            file.write(self.content[MIB + 512 * KIB :])
        self._opened: list[Any] = []

    def source(self, path: Path | None = None, size: int | None = None) -> Source:
        self._opened.append(Source(FileDisk(path or self.disk, size), "disk 0 (disk)"))
        return self._opened[-1]  # type: ignore[no-any-return]

    def file(self, lie: Callable[[CloningFile], object] | None = None, *, clones: bool = True) -> CloningFile:
        self._opened.append(CloningFile(self.path / f"stored-{len(self._opened)}", lie, clones=clones))
        return self._opened[-1]  # type: ignore[no-any-return]

    def close(self) -> None:
        for opened in self._opened:
            opened.close()


@pytest.fixture(params=["xfs", "btrfs"])
def lab(request: pytest.FixtureRequest, loop_filesystem: Callable[..., Any]) -> Iterator[Lab]:
    made = Lab(loop_filesystem(request.param).path)
    yield made
    made.close()


def expected_table(content: bytes) -> ChunkTable:
    table = ChunkTable(len(content), CHUNK, encoded=False)
    for index in range(table.count):
        table.set(index, chunk_digest(content[index * CHUNK : (index + 1) * CHUNK]))
    return table


def sent(source: Source, file: Any) -> SendJob:
    job = SendJob(
        source,
        file,
        chunk_size=CHUNK,
        codec=codec_for("none"),
        meter=Meter(0, "send", source.size, lambda event: None),
        window=4,
        when_sent=lambda: None,
        share=share_blocks,
    )
    run_jobs([job], PathOptions(threads=2), token=CancellationToken(), stall_timeout_s=60.0)
    return job


def digested(source: Source) -> SendJob:
    job = digest_job(source, CHUNK, Meter(0, "digest", source.size, lambda event: None))
    run_jobs([job], PathOptions(threads=2), token=CancellationToken(), stall_timeout_s=60.0)
    return job


class Export:
    """An export that gives one file, whatever it is asked for."""

    location = "the export"

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> Sequence[str]:
        return ["disk-0.raw"]

    def open(self, name: str, /) -> Any:
        return FileDisk(self._path)


def test_a_disk_whose_blocks_are_shared_is_neither_read_nor_written(lab: Lab) -> None:
    file = lab.file()
    job = sent(lab.source(), file)
    assert (job.error, job.sent, job.sharing.shared) == (None, True, Shared.PROVEN)
    assert (job.meter.done, job.meter.read, job.meter.written, file.written) == (SIZE, 0, 0, [])
    assert (job.stored_bytes, job.data_bytes + job.zero_bytes, job.free_bytes) == (SIZE, SIZE, 0)
    assert job.zero_bytes == 512 * KIB
    assert file.path.read_bytes() == lab.content


def test_its_digests_are_made_from_what_is_stored_and_are_those_of_a_copy(lab: Lab) -> None:
    file = lab.file()
    job = sent(lab.source(), file)
    stored = open_shared(Export(file.path), "disk-0.raw", job.sharing, direct_io="auto")
    made = digested(stored)
    stored.close()
    copied = sent(lab.source(), lab.file(clones=False))
    assert copied.sharing.shared is Shared.NO
    table = expected_table(lab.content)
    assert made.table.root_digest() == copied.table.root_digest() == table.root_digest()
    assert (made.data_bytes, made.zero_bytes) == (copied.data_bytes, copied.zero_bytes)
    assert made.meter.read == SIZE - 512 * KIB  # holes are not
    assert made.meter.written == 0


def test_another_file_than_the_one_that_was_compared_is_not_read_for_digests(lab: Lab) -> None:
    job = sent(lab.source(), lab.file())
    other = lab.file()
    sent(lab.source(), other)
    with pytest.raises(StorageError, match="is not the file that shares the disk's blocks"):
        open_shared(Export(other.path), "disk-0.raw", job.sharing, direct_io="auto")


def test_a_store_that_claims_what_it_has_not_done_fails_the_disk(lab: Lab) -> None:
    def copy_instead(file: CloningFile) -> None:
        os.pwrite(file.fileno(), lab.content, 0)

    with pytest.raises(StorageError, match="at offset 0 the export does not share its blocks") as caught:
        share_blocks(lab.source(), lab.file(copy_instead, clones=False))
    assert caught.value.offset == 0


def test_a_disk_that_is_written_to_meanwhile_fails(lab: Lab) -> None:
    def write_to_the_disk(file: CloningFile) -> None:
        with lab.disk.open("r+b") as disk:
            disk.seek(MIB - 100)
            disk.write(b"x")

    job = sent(lab.source(), lab.file(write_to_the_disk))
    assert isinstance(job.error, StorageError)
    assert "it was written to meanwhile" in str(job.error)
    assert job.error.offset == MIB - 4 * KIB
    assert not job.sent


def test_a_store_that_gives_the_disk_itself_for_a_copy_fails(lab: Lab) -> None:
    source = lab.source()

    def show_the_disk(file: CloningFile) -> None:
        file.shown = source.whole_file()

    with pytest.raises(StorageError, match="gave the disk itself"):
        share_blocks(source, lab.file(show_the_disk))


def test_where_nobody_can_tell_the_disk_is_read_and_compared_with_what_is_stored(
    loop_filesystem: Callable[..., Any], requires: Callable[..., None]
) -> None:
    requires("btrfs")
    btrfs = loop_filesystem("btrfs").path
    subprocess.run(["btrfs", "property", "set", str(btrfs), "compression", "zstd"], check=True)
    lab = Lab(btrfs)
    try:
        lab.disk.write_bytes(b"text that compresses; " * 50_000)
        lab.content = lab.disk.read_bytes()
        file = lab.file()
        job = sent(lab.source(), file)
        assert (job.error, job.sharing.shared) == (None, Shared.CLAIMED)
        assert "does not tell" in job.sharing.reason
        assert (job.meter.read, job.meter.written, file.written) == (len(lab.content), 0, [])
        assert job.table.root_digest() == expected_table(lab.content).root_digest()
        assert file.path.read_bytes() == lab.content
    finally:
        lab.close()


class SlicedDisk(FileDisk):
    """Says itself what of its file is data."""

    def extents(self) -> list[Extent]:
        return [Extent(0, self.size, ExtentKind.DATA)]


@pytest.mark.parametrize("kind", ["no descriptor", "a part of a file", "free space", "a device"])
def test_what_is_no_whole_file_is_copied(lab: Lab, loop_device: Callable[[Path], str], kind: str) -> None:
    readers: dict[str, Callable[[], DiskReader]] = {
        "no descriptor": lambda: MemoryDisk(lab.content),
        "a part of a file": lambda: SlicedDisk(lab.disk, MIB),
        "free space": lambda: FileDisk(lab.disk),
        "a device": lambda: FileDisk(Path(loop_device(lab.disk)), MIB),
    }
    source = Source(readers[kind](), "disk 0")
    if kind == "free space":
        source.free = [Extent(0, CHUNK, ExtentKind.FREE)]
    try:
        sharing = share_blocks(source, lab.file())
    finally:
        source.close()
    assert (sharing.shared, sharing.reason) == (Shared.NO, "it is not read from a whole regular file")


def test_a_store_that_knows_nothing_of_it_gets_a_copy(lab: Lab) -> None:
    from diskhaul.pipeline.digest import NOWHERE

    sharing = share_blocks(lab.source(), NOWHERE)
    assert (sharing.shared, sharing.reason) == (Shared.NO, "its store cannot share blocks")


@pytest.mark.parametrize("size", [0, 1, 700, 4096, 100_001])
def test_disks_of_any_size_are_shared_or_compared(lab: Lab, size: int) -> None:
    content = os.urandom(size)
    lab.disk.write_bytes(content)
    file = lab.file()
    job = sent(lab.source(), file)
    assert job.error is None
    assert job.sharing.shared is not Shared.NO
    assert file.path.read_bytes() == content
    assert digested(lab.source(file.path)).table.root_digest() == expected_table(content).root_digest()
