"""Export directories where two things happen at once: a removal while an export begins, and an abort while one is published."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import diskhaul_plugins.transfers.beneath as beneath
from diskhaul.errors import StorageError
from diskhaul_plugins.transfers.directory import DirectoryStore, DirectoryWriter

INSTANCE = "web1.example.com"
FIRST, SECOND = "20261122T103308Z-1a2b3c4d", "20261122T103309Z-1a2b3c4d"
END_S = 30.0


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    (tmp_path / "exports").mkdir(mode=0o700)
    return DirectoryStore(str(tmp_path / "exports"))


def names(store: DirectoryStore) -> list[str]:
    """What lies in the instance's directory."""
    place = Path(store._path) / INSTANCE
    return sorted(os.listdir(place)) if place.exists() else []


def filled(store: DirectoryStore, export_id: str) -> DirectoryWriter:
    writer = store.begin(INSTANCE, export_id)
    file = writer.create("disk-0.raw")
    file.append([b"data"])
    file.finish()
    return writer


# --- begin, and the removal of the last export ------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 4])
def test_an_export_begins_although_a_removal_takes_the_empty_directory_away(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    make = beneath.make_directory
    taken: list[str] = []

    def taken_away(root: int, name: str, place: str) -> int:
        descriptor = make(root, name, place)
        if len(taken) < times:
            os.rmdir(name, dir_fd=root)
            taken.append(name)
        return descriptor

    monkeypatch.setattr(beneath, "make_directory", taken_away)
    before = len(os.listdir("/proc/self/fd"))
    writer = filled(store, FIRST)
    assert len(taken) == times
    writer.publish(b"{}")
    assert store.exports(INSTANCE) == [FIRST]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_that_is_always_taken_away_is_an_error_and_leaves_nothing_open(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = beneath.make_directory

    def taken_away(root: int, name: str, place: str) -> int:
        descriptor = make(root, name, place)
        os.rmdir(name, dir_fd=root)
        return descriptor

    monkeypatch.setattr(beneath, "make_directory", taken_away)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StorageError, match="No such file"):
        store.begin(INSTANCE, FIRST)
    assert len(os.listdir("/proc/self/fd")) == before


def test_exports_begin_while_others_are_removed(store: DirectoryStore) -> None:
    """Nothing is scripted here: each thread removes the instance's last export all the time, under the others' feet."""
    failures: list[BaseException] = []

    def work(thread: int) -> None:
        try:
            for number in range(40):
                export_id = f"20261122T1033{number:02}Z-0000000{thread}"
                filled(store, export_id).publish(b"{}")
                store.remove(INSTANCE, export_id)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(END_S)
    assert failures == []
    assert names(store) == []


# --- publish and abort ------------------------------------------------------------------------------------------------


class Step:
    """A step of `publish` that can be held up, before or after it is done."""

    def __init__(self, step: Callable[..., object], *, after: bool) -> None:
        self._step, self._after = step, after
        self.reached, self.release = threading.Event(), threading.Event()

    def __call__(self, *arguments: object) -> object:
        if self._after:
            result = self._step(*arguments)
            self._wait()
            return result
        self._wait()
        return self._step(*arguments)

    def _wait(self) -> None:
        self.reached.set()
        self.release.wait(END_S)


@pytest.mark.parametrize("where", ["manifest", "before the rename", "after the rename"])
def test_an_export_that_is_aborted_while_it_is_published_is_not_listed_in_the_end(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    writer = filled(store, FIRST)
    if where == "manifest":
        step = Step(DirectoryWriter._write_manifest, after=False)
        monkeypatch.setattr(DirectoryWriter, "_write_manifest", lambda self, manifest: step(self, manifest))
    else:
        rename = beneath.rename_new
        step = Step(rename, after=where == "after the rename")

        def held_up(descriptor: int, old: str, new: str) -> None:
            (step if new == FIRST else rename)(descriptor, old, new)

        monkeypatch.setattr(beneath, "rename_new", held_up)
    failures: list[StorageError] = []

    def publish() -> None:
        try:
            writer.publish(b"{}")
        except StorageError as error:
            failures.append(error)

    publishing = threading.Thread(target=publish)
    publishing.start()
    assert step.reached.wait(END_S)
    aborting = threading.Thread(target=writer.abort)
    aborting.start()
    while not writer._aborting:
        pass  # the abort waits for the publish, which has the lock; it has said so before
    step.release.set()
    publishing.join(END_S)
    aborting.join(END_S)
    assert store.exports(INSTANCE) == []
    assert names(store) == []
    (failure,) = failures
    assert "was given up meanwhile" in str(failure.__cause__)


def test_an_abort_after_publishing_changes_nothing(store: DirectoryStore) -> None:
    writer = filled(store, FIRST)
    writer.publish(b"{}")
    writer.abort()
    assert store.exports(INSTANCE) == [FIRST]


def test_a_publish_after_an_abort_is_an_error(store: DirectoryStore) -> None:
    writer = filled(store, SECOND)
    writer.abort()
    with pytest.raises(StorageError, match="no longer being written"):
        writer.publish(b"{}")
    assert names(store) == []
