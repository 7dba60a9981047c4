"""A file that is being received takes exactly the frames that were sent, and keeps how far it has come."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Literal

import pytest

import diskhaul_native as native
from diskhaul.errors import StorageError
from diskhaul.testing.conformance.storages import pattern
from diskhaul.testing.conformance.transfers import INSTANCE, NEW
from diskhaul_plugins.transfers.directory import DirectoryFile, DirectoryStore, DirectoryWriter, KeptFile
from diskhaul_plugins.transfers.tls.connection import BrokenConnectionError
from diskhaul_plugins.transfers.tls.progress import Progress, ProgressFile
from diskhaul_plugins.transfers.tls.received_file import ReceivedFile
from diskhaul_plugins.transfers.tls.window import Window
from diskhaul_plugins.transfers.tls.wire import FileFrame, Kind, WireError, data_frame, size_frame, trailer_frame

MAGIC = b"m" * 16
LIMIT_S = 30.0


@pytest.fixture
def writer(tmp_path: Path) -> DirectoryWriter:
    (tmp_path / "exports").mkdir()
    return DirectoryStore(str(tmp_path / "exports")).begin(INSTANCE, NEW)


@pytest.fixture
def kept() -> list[Progress]:
    return []


@pytest.fixture
def file(writer: DirectoryWriter, kept: list[Progress]) -> ReceivedFile:
    made = ReceivedFile(writer.create("disk-0.raw"), MAGIC, kept.append)
    made.begin_round()
    return made


def take(file: ReceivedFile, frame: FileFrame, round_: int = 1) -> None:
    file.take(round_, frame.kind, memoryview(frame.fields + bytes(frame.payload)), timeout_s=LIMIT_S)


def stored(tmp_path: Path) -> bytes:
    return next((tmp_path / "exports" / INSTANCE).glob(".*.partial/disk-0.raw")).read_bytes()


def frames_of(*payloads: bytes) -> list[FileFrame]:
    """What a sender makes of data that are appended."""
    window = Window("disk-0.raw", MAGIC, 1 << 20)
    offset = 0
    for payload in payloads:
        window.put_data(offset, payload)
        offset += len(payload)
    window.put_trailer()
    found = []
    while (frame := window.take()) is not None:
        found.append(frame)
    return found


def test_the_frames_of_a_file_make_it_durable(file: ReceivedFile, tmp_path: Path, kept: list[Progress]) -> None:
    for frame in frames_of(b"one", b"two"):
        take(file, frame)
    assert stored(tmp_path) == b"onetwo"
    assert [(progress.due, progress.end, progress.finished) for progress in kept] == [(1, 3, False), (2, 6, False), (3, 6, True)]


def test_bytes_that_are_not_those_that_were_sent_are_not_written(file: ReceivedFile, tmp_path: Path) -> None:
    frame = data_frame(0, 0, b"bytes")
    with pytest.raises(WireError, match="digest mismatch"):
        take(file, FileFrame(frame.kind, 0, frame.fields, b"bytez"))
    assert stored(tmp_path) == b""
    take(file, frame)
    assert stored(tmp_path) == b"bytes"


WRONG = {
    "a frame again": [data_frame(0, 0, b"one"), data_frame(0, 0, b"one")],
    "a gap": [data_frame(0, 0, b"one"), data_frame(1, 4, b"two")],
    "an overlap": [data_frame(0, 0, b"one"), data_frame(1, 2, b"two")],
    "beyond the size of a raw file": [size_frame(0, 10), data_frame(1, 8, b"two")],
    "a size that is none": [size_frame(0, 1 << 63)],
    "a size of a file that was appended to": [data_frame(0, 0, b"one"), size_frame(1, 10)],
    "a trailer of another length": [*frames_of(b"one")[:1], trailer_frame(1, 4, b"c" * 32)],
    "a trailer of other data": [data_frame(0, 0, b"two"), frames_of(b"one")[1]],
    "a trailer of data in another order": [data_frame(0, 0, b"two"), data_frame(1, 3, b"one"), frames_of(b"one", b"two")[2]],
    "data without its fields": [FileFrame(Kind.DATA, 0, b"\0" * 47, b"")],
    "data without a number": [FileFrame(Kind.DATA, 0, b"\0" * 7, b"")],
    "a size of which a byte is missing": [FileFrame(Kind.SIZE, 0, b"\0" * 15, b"")],
    "an empty trailer": [FileFrame(Kind.TRAILER, 0, b"", b"")],
    "data after the trailer": [*frames_of(b"one"), data_frame(2, 3, b"two")],
}


@pytest.mark.parametrize("frames", WRONG.values(), ids=WRONG)
def test_a_frame_that_cannot_come_there_is_refused(
    file: ReceivedFile, writer: DirectoryWriter, tmp_path: Path, frames: list[FileFrame]
) -> None:
    for frame in frames[:-1]:
        take(file, frame)
    before, progress = stored(tmp_path), file.progress
    with pytest.raises(WireError):
        take(file, frames[-1])
    assert (stored(tmp_path), file.progress) == (before, progress)
    if not progress.finished:
        with pytest.raises(StorageError, match="not finished"):
            writer.publish(b"{}")


def test_a_file_without_its_trailer_keeps_the_export_from_being_published(file: ReceivedFile, writer: DirectoryWriter) -> None:
    for frame in frames_of(b"one", b"two")[:-1]:
        take(file, frame)
    with pytest.raises(StorageError, match=r"disk-0\.raw not finished"):
        writer.publish(b"{}")
    writer.abort()


def test_frames_of_a_round_that_is_over_are_not_taken(file: ReceivedFile, tmp_path: Path) -> None:
    first, second, _ = frames_of(b"one", b"two")
    take(file, first)
    assert file.begin_round()[0] == 2
    with pytest.raises(BrokenConnectionError):
        take(file, second, round_=1)
    assert stored(tmp_path) == b"one"
    take(file, second, round_=2)


def test_progress_is_the_newest_whole_record(tmp_path: Path) -> None:
    place = tmp_path / "x.progress"
    records = ProgressFile(place, new=True)
    assert records.read(0) is None
    for due in range(5):
        tail = bytes([due]) * (100 - due)
        records.write(1, Progress(due, 10 * due, 20 * due, raw=True, finished=due == 4, chain=bytes([due] * 32), tail=tail))
    assert records.read(1) == Progress(4, 40, 80, raw=True, finished=True, chain=b"\4" * 32, tail=b"\4" * 96)
    assert records.read(0) is None
    whole = place.read_bytes()
    begin = whole.index(b"\4" * 32) - 32  # of the newest record; its chain comes after 32 bytes, a check and the tail after that
    for position in range(begin, begin + 64 + 16 + 96):
        torn = bytearray(whole)
        torn[position] ^= 0xFF
        place.write_bytes(torn)
        found = records.read(1)
        assert found is not None
        assert found.due == 3, position
    records.close()


def test_a_pattern_of_many_frames_comes_out_whole(file: ReceivedFile, tmp_path: Path) -> None:
    whole = pattern(300_000)
    for frame in frames_of(*(whole[begin : begin + 7_001] for begin in range(0, len(whole), 7_001))):
        take(file, frame)
    assert stored(tmp_path) == whole


@pytest.mark.parametrize("modes", [("auto",), ("auto", "never"), ("never", "auto"), ("never",)], ids="-".join)
def test_what_is_not_worth_a_write_lies_in_the_record_and_a_later_receiver_goes_on_with_it(
    tmp_path: Path, modes: tuple[Literal["auto", "never"], ...]
) -> None:
    (tmp_path / "exports").mkdir()
    store = DirectoryStore(str(tmp_path / "exports"))
    payloads = [pattern(5), pattern(5000), pattern(300_000), pattern(1), pattern(8192), pattern(70_001)]
    whole = b"".join(payloads)
    *frames, trailer = frames_of(*payloads)
    records = ProgressFile(tmp_path / "x.progress", new=True)

    tails, mode = [], cycle(modes)

    def received(made: DirectoryFile, progress: Progress | None) -> ReceivedFile:
        return ReceivedFile(made, MAGIC, lambda now: records.write(0, now), progress, direct_io=next(mode))

    writer = store.begin(INSTANCE, NEW)
    file = received(writer.create("disk-0.raw"), None)
    for number, frame in enumerate(frames):
        take(file, frame, round_=file.begin_round()[0])
        progress = records.read(0)
        assert progress is not None
        assert progress.end == len(b"".join(payloads[: number + 1]))
        tails.append(len(progress.tail))
        assert stored(tmp_path) + progress.tail == whole[: progress.end]
        # As when the receiver is killed here: the file is longer, since the next frame had been written and not noted.
        with open(next((tmp_path / "exports" / INSTANCE).glob(".*.partial/disk-0.raw")), "ab") as torn:
            torn.write(b"not noted")
        writer.leave()
        writer = store.resume(INSTANCE, NEW, [KeptFile("disk-0.raw", progress.end - len(progress.tail), finished=False)])
        made = writer.file("disk-0.raw")
        assert made is not None
        file = received(made, progress)
    take(file, trailer, round_=file.begin_round()[0])
    assert stored(tmp_path) == whole
    if modes == ("auto",):
        with open(next((tmp_path / "exports" / INSTANCE).glob(".*.partial/disk-0.raw")), "rb") as written:
            block = native.direct_alignment(written.fileno())
        left = 305_005 % block
        assert tails == [5, 5005, left, left + 1, left + 8193, (left + 8193 + 70_001) % block]
    elif modes == ("never",):
        assert not any(tails)
    writer.abort()
    records.close()
