"""What every snapshot backend has to do."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from uuid import uuid4

import pytest

from diskhaul.api import Snapshot, Snapshots
from diskhaul.errors import SnapshotError
from diskhaul.model import Disk

from .storages import descriptors, pattern, read

KIB = 1024


class SnapshotConformance:
    """Subclass it, and give the fixtures that say how to make the backend and a disk that it supports::

        class TestMySanSnapshots(SnapshotConformance):
            @pytest.fixture
            def snapshots(self):
                return MySanSnapshots(...)

            @pytest.fixture
            def disk(self):
                return Disk(storage="my-san", options={"volume": make_volume(self.size)})

            @pytest.fixture
            def unsupported_disk(self):
                return Disk(storage="memory")

            @pytest.fixture
            def write(self):  # writes to the disk as its guest would
                return lambda disk, offset, content: ...

            @pytest.fixture
            def leftovers(self):  # everything there that a snapshot could leave behind
                return lambda disk: sorted(list_volumes())

    `write` and `leftovers` need not be given for disks that are files.
    """

    size: int = 256 * KIB

    @pytest.fixture
    def snapshots(self) -> Snapshots:
        raise NotImplementedError("define the fixture 'snapshots'")

    @pytest.fixture
    def disk(self) -> Disk:
        raise NotImplementedError("define the fixture 'disk'")

    @pytest.fixture
    def unsupported_disk(self) -> Disk:
        return Disk(storage="no such storage")

    @pytest.fixture
    def write(self) -> Callable[[Disk, int, bytes], None]:
        def to_file(disk: Disk, offset: int, content: bytes) -> None:
            assert disk.path is not None
            with open(disk.path, "r+b") as file:
                file.seek(offset)
                file.write(content)

        return to_file

    @pytest.fixture
    def leftovers(self) -> Callable[[Disk], list[str]]:
        def beside_file(disk: Disk) -> list[str]:
            assert disk.path is not None
            return sorted(os.listdir(disk.path.parent))

        return beside_file

    @pytest.fixture
    def run_id(self) -> str:
        return str(uuid4())

    def test_a_disk_it_supports_is_not_refused_and_nothing_is_left(
        self, snapshots: Snapshots, disk: Disk, leftovers: Callable[[Disk], list[str]]
    ) -> None:
        before = leftovers(disk)
        assert snapshots.refuses(disk) is None
        assert leftovers(disk) == before

    def test_a_disk_it_does_not_support_is_refused_in_one_line(self, snapshots: Snapshots, unsupported_disk: Disk) -> None:
        reason = snapshots.refuses(unsupported_disk)
        assert reason
        assert "\n" not in reason

    def test_a_plan_creates_nothing_and_is_always_the_same(
        self, snapshots: Snapshots, disk: Disk, run_id: str, leftovers: Callable[[Disk], list[str]]
    ) -> None:
        before = leftovers(disk)
        planned = snapshots.plan(disk, run_id)
        assert planned == snapshots.plan(disk, run_id)
        assert planned.run_id == run_id
        assert run_id in planned.reference
        assert not snapshots.exists(planned)
        assert leftovers(disk) == before

    def test_a_snapshot_keeps_the_bytes_of_its_time(
        self, snapshots: Snapshots, disk: Disk, run_id: str, write: Callable[[Disk, int, bytes], None]
    ) -> None:
        before = pattern(self.size)
        write(disk, 0, before)
        snapshot = snapshots.plan(disk, run_id)
        snapshots.create(snapshot)
        try:
            assert snapshots.exists(snapshot)
            write(disk, 0, pattern(self.size, seed=2))
            assert _content(snapshots, snapshot) == before
        finally:
            snapshots.remove(snapshot)

    def test_a_snapshot_is_one_moment_of_a_disk_that_is_being_written(
        self, snapshots: Snapshots, disk: Disk, run_id: str, write: Callable[[Disk, int, bytes], None]
    ) -> None:
        """The writer stamps slot after slot with the number of its round, over and over: at every moment the first slots
        hold one number and the others the number before."""
        slots, stride = 32, self.size // 32
        write(disk, 0, bytes(self.size))
        rounds, done, ready = 0, threading.Event(), threading.Event()

        def stamp() -> None:
            nonlocal rounds
            while not done.is_set():
                rounds += 1
                for slot in range(slots):
                    write(disk, slot * stride, struct.pack("<Q", rounds))
                ready.set()

        writer = threading.Thread(target=stamp)
        writer.start()
        snapshot = snapshots.plan(disk, run_id)
        try:
            assert ready.wait(60)
            snapshots.create(snapshot)
            content = _content(snapshots, snapshot)
            again = _content(snapshots, snapshot)
        finally:
            done.set()
            writer.join()
            snapshots.remove(snapshot)
        stamps = [struct.unpack_from("<Q", content, slot * stride)[0] for slot in range(slots)]
        assert stamps[0] >= 1
        assert stamps == sorted(stamps, reverse=True)
        assert stamps[0] - stamps[-1] <= 1, stamps
        assert again == content

    def test_a_removed_snapshot_leaves_nothing(
        self, snapshots: Snapshots, disk: Disk, run_id: str, leftovers: Callable[[Disk], list[str]]
    ) -> None:
        before = leftovers(disk)
        snapshot = snapshots.plan(disk, run_id)
        snapshots.create(snapshot)
        snapshots.remove(snapshot)
        assert not snapshots.exists(snapshot)
        assert leftovers(disk) == before
        snapshots.remove(snapshot)

    def test_removing_what_was_never_created_is_fine(self, snapshots: Snapshots, disk: Disk, run_id: str) -> None:
        snapshots.remove(snapshots.plan(disk, run_id))

    def test_a_missing_snapshot_cannot_be_opened(self, snapshots: Snapshots, disk: Disk, run_id: str) -> None:
        with pytest.raises(SnapshotError):
            snapshots.open(snapshots.plan(disk, run_id))

    def test_creating_it_twice_fails_and_leaves_the_first(
        self, snapshots: Snapshots, disk: Disk, run_id: str, write: Callable[[Disk, int, bytes], None]
    ) -> None:
        write(disk, 0, b"first")
        snapshot = snapshots.plan(disk, run_id)
        snapshots.create(snapshot)
        try:
            write(disk, 0, b"other")
            with pytest.raises(SnapshotError):
                snapshots.create(snapshot)
            assert _content(snapshots, snapshot)[:5] == b"first"
        finally:
            snapshots.remove(snapshot)

    def test_two_runs_have_each_their_own(
        self, snapshots: Snapshots, disk: Disk, write: Callable[[Disk, int, bytes], None]
    ) -> None:
        one, other = snapshots.plan(disk, str(uuid4())), snapshots.plan(disk, str(uuid4()))
        assert one.reference != other.reference
        write(disk, 0, b"one")
        snapshots.create(one)
        write(disk, 0, b"two")
        snapshots.create(other)
        try:
            snapshots.remove(one)
            assert not snapshots.exists(one)
            assert _content(snapshots, other)[:3] == b"two"
        finally:
            snapshots.remove(one)
            snapshots.remove(other)

    def test_another_runs_snapshot_is_not_touched(self, snapshots: Snapshots, disk: Disk, run_id: str) -> None:
        snapshot = snapshots.plan(disk, run_id)
        snapshots.create(snapshot)
        try:
            try:
                snapshots.remove(replace(snapshot, run_id=str(uuid4())))
            except SnapshotError:
                pass  # saying so is even better than doing nothing
            assert snapshots.exists(snapshot)
        finally:
            snapshots.remove(snapshot)

    def test_another_process_finds_it_by_its_plan(self, snapshots: Snapshots, disk: Disk, run_id: str) -> None:
        """After a crash only what the journal kept is known: backend, disk, run id and reference."""
        snapshots.create(snapshots.plan(disk, run_id))
        planned = snapshots.plan(disk, run_id)
        rebuilt = Snapshot(backend=planned.backend, disk=disk, run_id=run_id, reference=planned.reference)
        assert snapshots.exists(rebuilt)
        snapshots.remove(rebuilt)
        assert not snapshots.exists(planned)

    def test_no_descriptor_is_left_open(self, snapshots: Snapshots, disk: Disk) -> None:
        def live() -> None:
            snapshot = snapshots.plan(disk, str(uuid4()))
            snapshots.refuses(disk)
            snapshots.create(snapshot)
            _content(snapshots, snapshot)
            snapshots.remove(snapshot)
            with pytest.raises(SnapshotError):
                snapshots.open(snapshot)

        live()  # whatever a backend keeps for itself is there from now on
        before = descriptors()
        live()
        assert descriptors() == before


def _content(snapshots: Snapshots, snapshot: Snapshot) -> bytes:
    reader = snapshots.open(snapshot)
    try:
        return read(reader, 0, reader.size)
    finally:
        close = getattr(reader, "close", None)
        if close is not None:
            close()
