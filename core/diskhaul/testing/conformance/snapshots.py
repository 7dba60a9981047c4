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
from diskhaul.host import with_defaults
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
    def backend(self, snapshots: Snapshots) -> Snapshots:
        """The snapshots as operations see it: with its Protocol's defaults for what it leaves out."""
        return with_defaults("snapshot", snapshots)

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
        self, backend: Snapshots, disk: Disk, leftovers: Callable[[Disk], list[str]]
    ) -> None:
        before = leftovers(disk)
        assert backend.refuses(disk) is None
        assert leftovers(disk) == before

    def test_a_disk_it_does_not_support_is_refused_in_one_line(self, backend: Snapshots, unsupported_disk: Disk) -> None:
        reason = backend.refuses(unsupported_disk)
        assert reason
        assert "\n" not in reason

    def test_a_plan_creates_nothing_and_is_always_the_same(
        self, backend: Snapshots, disk: Disk, run_id: str, leftovers: Callable[[Disk], list[str]]
    ) -> None:
        before = leftovers(disk)
        planned = backend.plan(disk, run_id)
        assert planned == backend.plan(disk, run_id)
        assert planned.run_id == run_id
        assert run_id in planned.reference
        assert not backend.exists(planned)
        assert leftovers(disk) == before

    def test_a_snapshot_keeps_the_bytes_of_its_time(
        self, backend: Snapshots, disk: Disk, run_id: str, write: Callable[[Disk, int, bytes], None]
    ) -> None:
        before = pattern(self.size)
        write(disk, 0, before)
        snapshot = backend.plan(disk, run_id)
        backend.create(snapshot)
        try:
            assert backend.exists(snapshot)
            write(disk, 0, pattern(self.size, seed=2))
            assert _content(backend, snapshot) == before
        finally:
            backend.remove(snapshot)

    def test_a_snapshot_is_one_moment_of_a_disk_that_is_being_written(
        self, backend: Snapshots, disk: Disk, run_id: str, write: Callable[[Disk, int, bytes], None]
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
        snapshot = backend.plan(disk, run_id)
        try:
            assert ready.wait(60)
            backend.create(snapshot)
            content = _content(backend, snapshot)
            again = _content(backend, snapshot)
        finally:
            done.set()
            writer.join()
            backend.remove(snapshot)
        stamps = [struct.unpack_from("<Q", content, slot * stride)[0] for slot in range(slots)]
        assert stamps[0] >= 1
        assert stamps == sorted(stamps, reverse=True)
        assert stamps[0] - stamps[-1] <= 1, stamps
        assert again == content

    def test_a_removed_snapshot_leaves_nothing(
        self, backend: Snapshots, disk: Disk, run_id: str, leftovers: Callable[[Disk], list[str]]
    ) -> None:
        before = leftovers(disk)
        snapshot = backend.plan(disk, run_id)
        backend.create(snapshot)
        backend.remove(snapshot)
        assert not backend.exists(snapshot)
        assert leftovers(disk) == before
        backend.remove(snapshot)

    def test_removing_what_was_never_created_is_fine(self, backend: Snapshots, disk: Disk, run_id: str) -> None:
        backend.remove(backend.plan(disk, run_id))

    def test_a_missing_snapshot_cannot_be_opened(self, backend: Snapshots, disk: Disk, run_id: str) -> None:
        with pytest.raises(SnapshotError):
            backend.open(backend.plan(disk, run_id))

    def test_creating_it_twice_fails_and_leaves_the_first(
        self, backend: Snapshots, disk: Disk, run_id: str, write: Callable[[Disk, int, bytes], None]
    ) -> None:
        write(disk, 0, b"first")
        snapshot = backend.plan(disk, run_id)
        backend.create(snapshot)
        try:
            write(disk, 0, b"other")
            with pytest.raises(SnapshotError):
                backend.create(snapshot)
            assert _content(backend, snapshot)[:5] == b"first"
        finally:
            backend.remove(snapshot)

    def test_two_runs_have_each_their_own(
        self, backend: Snapshots, disk: Disk, write: Callable[[Disk, int, bytes], None]
    ) -> None:
        one, other = backend.plan(disk, str(uuid4())), backend.plan(disk, str(uuid4()))
        assert one.reference != other.reference
        write(disk, 0, b"one")
        backend.create(one)
        write(disk, 0, b"two")
        backend.create(other)
        try:
            backend.remove(one)
            assert not backend.exists(one)
            assert _content(backend, other)[:3] == b"two"
        finally:
            backend.remove(one)
            backend.remove(other)

    def test_another_runs_snapshot_is_not_touched(self, backend: Snapshots, disk: Disk, run_id: str) -> None:
        snapshot = backend.plan(disk, run_id)
        backend.create(snapshot)
        try:
            try:
                backend.remove(replace(snapshot, run_id=str(uuid4())))
            except SnapshotError:
                pass  # saying so is even better than doing nothing
            assert backend.exists(snapshot)
        finally:
            backend.remove(snapshot)

    def test_another_process_finds_it_by_its_plan(self, backend: Snapshots, disk: Disk, run_id: str) -> None:
        """After a crash only what the journal kept is known: backend, disk, run id and reference."""
        backend.create(backend.plan(disk, run_id))
        planned = backend.plan(disk, run_id)
        rebuilt = Snapshot(backend=planned.backend, disk=disk, run_id=run_id, reference=planned.reference)
        assert backend.exists(rebuilt)
        backend.remove(rebuilt)
        assert not backend.exists(planned)

    def test_no_descriptor_is_left_open(self, backend: Snapshots, disk: Disk) -> None:
        def live() -> None:
            snapshot = backend.plan(disk, str(uuid4()))
            backend.refuses(disk)
            backend.create(snapshot)
            _content(backend, snapshot)
            backend.remove(snapshot)
            with pytest.raises(SnapshotError):
                backend.open(snapshot)

        live()  # whatever a backend keeps for itself is there from now on
        before = descriptors()
        live()
        assert descriptors() == before


def _content(backend: Snapshots, snapshot: Snapshot) -> bytes:
    reader = backend.open(snapshot)
    try:
        return read(reader, 0, reader.size)
    finally:
        close = getattr(reader, "close", None)
        if close is not None:
            close()
