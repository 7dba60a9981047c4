"""Transfer ``directory``: exports in directories, published and removed by one rename each."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diskhaul.api import BackendContext
from diskhaul.errors import ConfigurationError, StorageError, UnreachableNodeError
from diskhaul.formats.export_id import partial_name, removing_name
from diskhaul.formats.ganeti import CONFIG_NAME
from diskhaul.formats.manifest import MANIFEST_NAME
from diskhaul.model import Cluster, Node
from diskhaul.testing.conformance.storages import pattern, read
from diskhaul.testing.conformance.transfers import INSTANCE, MANIFEST, NEW, OLD, TransferConformance, content, make, put
from diskhaul_plugins.transfers import beneath, directory
from diskhaul_plugins.transfers.directory import DirectoryStore, DirectoryTransfer

MIB = 1 << 20


def directory_transfer(tmp_path: Path) -> DirectoryTransfer:
    return DirectoryTransfer(BackendContext(cluster=Cluster(name="lab", state_dir=tmp_path / "state")))


@pytest.fixture
def transfer(tmp_path: Path) -> DirectoryTransfer:
    return directory_transfer(tmp_path)


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    path = tmp_path / "exports"
    path.mkdir(mode=0o755)
    return path


@pytest.fixture
def store(transfer: DirectoryTransfer, exports: Path) -> DirectoryStore:
    return transfer.store(Node(name="alpha", export_dir=exports))


def tree(path: Path) -> list[str]:
    """Everything below `path`, names and kinds, following no link."""
    return sorted(os.path.join(os.path.relpath(at, path), name) for at, _, names in os.walk(path) for name in names) + sorted(
        os.path.join(os.path.relpath(at, path), name) + "/" for at, names, _ in os.walk(path) for name in names
    )


class TestDirectoryTransfer(TransferConformance):
    @pytest.fixture
    def transfer(self, tmp_path: Path) -> DirectoryTransfer:
        return directory_transfer(tmp_path)

    @pytest.fixture
    def node(self, exports: Path) -> Node:
        return Node(name="alpha", export_dir=exports)

    @pytest.fixture
    def other_node(self, tmp_path: Path) -> Node:
        (tmp_path / "other").mkdir()
        return Node(name="beta", export_dir=tmp_path / "other")

    @pytest.fixture
    def same_node(self, exports: Path, tmp_path: Path) -> Node | None:
        (tmp_path / "link").symlink_to(exports)  # the operator's own link to an export directory is followed
        return Node(name="gamma", export_dir=tmp_path / "link")

    @pytest.fixture
    def missing_node(self, tmp_path: Path) -> Node:
        return Node(name="delta", export_dir=tmp_path / "not mounted")


# --- what lies there --------------------------------------------------------------------------------------------------


def test_an_export_is_private_whatever_the_umask(store: DirectoryStore, exports: Path) -> None:
    for umask, export_id in ((0, OLD), (0o777, NEW)):
        previous = os.umask(umask)
        try:
            make(store, export_id)
        finally:
            os.umask(previous)
        export = exports / INSTANCE / export_id
        modes = {name: stat.S_IMODE(os.stat(export / name).st_mode) for name in os.listdir(export)}
        assert modes == {"disk-0.raw": 0o600, "manifest.json": 0o600}
        assert stat.S_IMODE(export.stat().st_mode) == 0o700
        assert stat.S_IMODE((exports / INSTANCE).stat().st_mode) == 0o700
    assert stat.S_IMODE((exports / ".diskhaul-store").stat().st_mode) == 0o600


def test_nothing_but_the_export_and_the_identity_is_left(store: DirectoryStore, exports: Path) -> None:
    make(store, NEW)
    assert tree(exports) == [
        "./.diskhaul-store",
        f"{INSTANCE}/{NEW}/disk-0.raw",
        f"{INSTANCE}/{NEW}/manifest.json",
        f"./{INSTANCE}/",
        f"{INSTANCE}/{NEW}/",
    ]
    store.remove(INSTANCE, NEW)
    assert tree(exports) == ["./.diskhaul-store"]


def test_looking_changes_nothing(transfer: DirectoryTransfer, store: DirectoryStore, exports: Path) -> None:
    before = os.stat(exports)
    for _ in range(2):
        assert list(store.check(INSTANCE, for_writing=True)) == []
        assert list(store.exports(INSTANCE)) == []
        assert list(store.instances()) == []
        store.remove(INSTANCE, NEW)
        assert store.identity == f"path:{before.st_dev}:{before.st_ino}"
    assert tree(exports) == []
    assert os.stat(exports).st_mtime_ns == before.st_mtime_ns


def test_the_identity_comes_with_the_first_export_and_stays(store: DirectoryStore, exports: Path, tmp_path: Path) -> None:
    store.begin(INSTANCE, NEW).abort()
    kept = store.identity
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", kept)
    make(store, NEW)
    exports.rename(tmp_path / "moved")
    assert DirectoryStore(str(tmp_path / "moved")).identity == kept


def test_nodes_that_begin_in_one_directory_at_once_agree_on_its_identity(exports: Path) -> None:
    script = (
        "import sys; from diskhaul_plugins.transfers.directory import DirectoryStore\n"
        "store = DirectoryStore(sys.argv[1]); sys.stdin.readline()\n"
        "store.begin(sys.argv[2], sys.argv[3]).abort(); print(store.identity)"
    )
    nodes = [python(script, str(exports), f"web{number}", NEW) for number in range(4)]
    for node in nodes:
        assert node.stdin is not None
        node.stdin.write("go\n")
        node.stdin.flush()
    answers = [node.communicate() for node in nodes]
    assert len({out for out, _ in answers}) == 1, answers
    assert answers[0][0].strip() == DirectoryStore(str(exports)).identity
    assert not [name for name in os.listdir(exports) if name.endswith(".tmp")]


def test_a_spoiled_identity_is_a_problem_and_never_replaced(store: DirectoryStore, exports: Path) -> None:
    for spoil in (b"", b"not a uuid\n", b"\xff" * 5000):
        (exports / ".diskhaul-store").write_bytes(spoil)
        assert any("identity" in line for line in store.check(INSTANCE, for_writing=True))
        with pytest.raises(StorageError, match="identity"):
            make(store, NEW)
        assert (exports / ".diskhaul-store").read_bytes() == spoil
    (exports / ".diskhaul-store").unlink()
    (exports / ".diskhaul-store").symlink_to("/etc/hostname")
    with pytest.raises(StorageError, match="regular"):
        _ = store.identity


def test_a_killed_first_export_leaves_no_half_identity(store: DirectoryStore, exports: Path) -> None:
    (exports / ".diskhaul-store.1234.tmp").write_bytes(b"12")
    make(store, NEW)
    assert sorted(os.listdir(exports)) == [".diskhaul-store", INSTANCE]


def test_zeros_stay_holes_in_a_raw_file(store: DirectoryStore, exports: Path) -> None:
    writer = store.begin(INSTANCE, NEW)
    file = writer.create("disk-0.raw")
    file.set_size(1 << 40)
    file.write(5 * MIB, bytes(MIB) + pattern(8192) + bytes(MIB))
    file.finish()
    writer.publish(MANIFEST)
    status = (exports / INSTANCE / NEW / "disk-0.raw").stat()
    assert (status.st_size, status.st_blocks * 512) == (1 << 40, 8192)


def test_the_file_can_be_copied_into_through_its_descriptor(store: DirectoryStore) -> None:
    writer = store.begin(INSTANCE, NEW)
    file = writer.create("disk-0.raw")
    os.pwrite(file.fileno(), b"bytes", 0)
    file.finish()
    writer.publish(MANIFEST)
    assert content(store.open(INSTANCE, NEW), "disk-0.raw") == b"bytes"


# --- what others may have put there -----------------------------------------------------------------------------------


def test_an_instance_directory_that_is_a_link_is_refused_everywhere(store: DirectoryStore, exports: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / OLD).mkdir(parents=True)
    (outside / OLD / "manifest.json").write_bytes(b"{}")
    (exports / INSTANCE).symlink_to(outside)
    assert any("link" in line for line in store.check(INSTANCE, for_writing=False))
    assert store.instances() == []
    for use in (
        lambda: store.exports(INSTANCE),
        lambda: store.partials(INSTANCE),
        lambda: store.begin(INSTANCE, NEW),
        lambda: store.open(INSTANCE, OLD),
        lambda: store.remove(INSTANCE, OLD),
        lambda: store.remove_partial(INSTANCE, OLD),
    ):
        with pytest.raises(StorageError, match="link"):
            use()
    assert tree(outside) == [f"{OLD}/manifest.json", f"./{OLD}/"]


def test_a_link_in_place_of_an_export_is_not_listed_not_read_and_not_removed(
    store: DirectoryStore, exports: Path, tmp_path: Path
) -> None:
    make(store, OLD)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    for name in (NEW, partial_name(NEW), removing_name(NEW)):
        (exports / INSTANCE / name).symlink_to(outside)
    assert list(store.exports(INSTANCE)) == [OLD]
    assert list(store.partials(INSTANCE)) == []
    for use in (store.open, store.remove, store.remove_partial, store.begin):
        with pytest.raises(StorageError):
            use(INSTANCE, NEW)
    assert (outside / "precious").read_bytes() == b"precious"


def test_a_link_inside_an_export_is_removed_and_not_what_it_points_to(
    store: DirectoryStore, exports: Path, tmp_path: Path
) -> None:
    make(store, NEW)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    export = exports / INSTANCE / NEW
    (export / "directory").symlink_to(outside)
    (export / "file").symlink_to(outside / "precious")
    (export / "deep" / "er").mkdir(parents=True)
    (export / "deep" / "er" / "link").symlink_to(outside)
    store.remove(INSTANCE, NEW)
    assert store.exports(INSTANCE) == []
    assert not export.exists()
    assert (outside / "precious").read_bytes() == b"precious"


def test_only_regular_files_of_an_export_are_opened(store: DirectoryStore, exports: Path) -> None:
    make(store, NEW)
    export = exports / INSTANCE / NEW
    (export / "link").symlink_to("disk-0.raw")
    os.mkfifo(export / "fifo")
    (export / "dir").mkdir()
    if os.geteuid() == 0:
        os.mknod(export / "device", 0o20600, os.makedev(1, 5))
    reader = store.open(INSTANCE, NEW)
    for name in reader.names():
        if name in ("disk-0.raw", "manifest.json"):
            assert content(reader, name)
        else:
            with pytest.raises(StorageError, match="not a regular file"):
                reader.open(name)


def test_files_that_a_writer_creates_do_not_land_on_what_was_planted(
    store: DirectoryStore, exports: Path, tmp_path: Path
) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    writer = store.begin(INSTANCE, NEW)
    for name in ("disk-0.raw", ".manifest.json.tmp", "manifest.json"):
        (exports / INSTANCE / partial_name(NEW) / name).symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError):
        writer.create("disk-0.raw")
    with pytest.raises(StorageError):
        writer.publish(MANIFEST)
    assert store.exports(INSTANCE) == []
    writer.abort()
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_an_export_that_is_swapped_while_it_is_read_is_an_error(store: DirectoryStore, exports: Path) -> None:
    make(store, OLD)
    make(store, NEW)
    reader = store.open(INSTANCE, OLD)
    (exports / INSTANCE / OLD).rename(exports / "aside")
    (exports / INSTANCE / NEW).rename(exports / INSTANCE / OLD)
    with pytest.raises(StorageError, match="replaced"):
        reader.open("disk-0.raw")
    with pytest.raises(StorageError, match="replaced"):
        reader.names()


def test_an_export_does_not_replace_one_that_appeared_meanwhile(store: DirectoryStore, exports: Path) -> None:
    for plant in (lambda path: path.mkdir(), lambda path: path.symlink_to("elsewhere"), lambda path: path.write_bytes(b"x")):
        writer = store.begin(INSTANCE, NEW)
        put(writer.create("disk-0.raw"), b"bytes")
        planted = exports / INSTANCE / NEW
        plant(planted)
        with pytest.raises(StorageError):
            writer.publish(MANIFEST)
        writer.abort()
        assert os.path.lexists(planted)
        if planted.is_dir():
            planted.rmdir()
        else:
            planted.unlink()


def test_without_renameat2_an_export_does_not_replace_another_either(
    store: DirectoryStore, exports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beneath, "_renameat2", lambda: None)  # as on a C library without it
    make(store, NEW)
    writer = store.begin(INSTANCE, OLD)
    (exports / INSTANCE / OLD).mkdir()
    with pytest.raises(StorageError):
        writer.publish(MANIFEST)
    writer.abort()
    assert list(store.exports(INSTANCE)) == [OLD, NEW]


def test_the_names_of_files_are_those_of_the_formats() -> None:
    assert directory.MANIFEST == MANIFEST_NAME
    assert directory._GANETI_CONFIG == CONFIG_NAME


# --- checks -----------------------------------------------------------------------------------------------------------


def test_an_export_directory_that_is_not_there_makes_the_node_unreachable(transfer: DirectoryTransfer, tmp_path: Path) -> None:
    with pytest.raises(UnreachableNodeError, match="create it or mount it"):
        transfer.store(Node(name="beta", export_dir=tmp_path / "missing"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnreachableNodeError):
        transfer.store(Node(name="beta", export_dir=tmp_path / "file" / "below"))


def test_an_export_directory_that_is_a_file_is_a_problem(transfer: DirectoryTransfer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = transfer.store(Node(name="beta", export_dir=tmp_path / "file"))
    assert list(store.check(INSTANCE, for_writing=True)) == [f"{tmp_path}/file: is not a directory"]


def test_a_directory_that_everybody_writes_to_is_a_problem_only_for_writing(store: DirectoryStore, exports: Path) -> None:
    make(store, NEW)
    for path in (exports, exports / INSTANCE):
        path.chmod(0o1777)
        problems = list(store.check(INSTANCE, for_writing=True))
        assert len(problems) == 1
        assert problems[0].startswith(f"{path}: everybody may write")
        assert list(store.check(INSTANCE, for_writing=False)) == []
        path.chmod(0o755)


def test_a_read_only_filesystem_is_a_problem_only_for_writing(
    transfer: DirectoryTransfer, loop_filesystem: Callable[..., Any]
) -> None:
    path = loop_filesystem("ext4", size_mib=16).path
    store = transfer.store(Node(name="alpha", export_dir=path))
    make(store, OLD)
    subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
    try:
        problems = list(store.check(INSTANCE, for_writing=True))
        assert problems
        assert all("read-only" in line for line in problems)
        assert list(store.check(INSTANCE, for_writing=False)) == []
        assert content(store.open(INSTANCE, OLD), "manifest.json") == MANIFEST
        with pytest.raises(StorageError, match="Read-only"):
            store.begin(INSTANCE, NEW)
        with pytest.raises(StorageError, match="Read-only"):
            store.remove(INSTANCE, OLD)
        assert list(store.exports(INSTANCE)) == [OLD]
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(path)], check=True)
    assert list(store.instances()) == [INSTANCE]  # and not lost+found


def test_an_immutable_directory_is_a_problem(store: DirectoryStore, exports: Path, requires: Callable[..., None]) -> None:
    requires("chattr", root=True)
    subprocess.run(["chattr", "+i", str(exports)], check=True)
    try:
        assert [line for line in store.check(INSTANCE, for_writing=True) if "chattr" in line]
        with pytest.raises(StorageError):
            store.begin(INSTANCE, NEW)
    finally:
        subprocess.run(["chattr", "-i", str(exports)], check=True)
    assert os.listdir(exports) == []


def test_files_that_are_not_ours_are_named(store: DirectoryStore, exports: Path) -> None:
    make(store, OLD)
    store.begin(INSTANCE, NEW)
    home = exports / INSTANCE
    (home / removing_name("20250101T000000Z-00000007")).mkdir()
    assert list(store.check(INSTANCE, for_writing=True)) == []
    (home / "notes\x1b[31m.txt").write_bytes(b"")
    (home / "20250101T000000Z-00000008").write_bytes(b"a file where an export should be")
    (home / "config.ini").write_bytes(b"[something]\nelse = 1\n")
    problems = list(store.check(INSTANCE, for_writing=True))
    assert len(problems) == 3
    assert all("move it elsewhere" in line and "\x1b" not in line for line in problems)
    assert list(store.check(INSTANCE, for_writing=False)) == []


def test_a_ganeti_export_beside_ours_is_no_problem_but_what_it_does_not_name_is(store: DirectoryStore, exports: Path) -> None:
    make(store, OLD)
    home = exports / INSTANCE
    dump = "5d9b8a2e-8a0f-4a53-a1c4-1d0a43a7fd0b.snap"
    (home / "config.ini").write_text(
        f"[export]\nversion = 0\nsource = alpha\n\n[instance]\nname = {INSTANCE}\ndisk_count = 1\ndisk0_dump = {dump}\n"
    )
    (home / dump).write_bytes(b"dump")
    assert list(store.check(INSTANCE, for_writing=True)) == []
    (home / "stray").write_bytes(b"")
    assert [line for line in store.check(INSTANCE, for_writing=True) if "stray" in line]
    (home / "stray").unlink()
    (home / "config.ini").write_text("[export]\n[instance]\ndisk0_dump = ../../etc\ndisk1_dump = .\n")
    assert len(list(store.check(INSTANCE, for_writing=True))) == 1  # the dump is no longer named


def test_an_export_by_path_is_read_whatever_its_directory_is_called(transfer: DirectoryTransfer, tmp_path: Path) -> None:
    place = tmp_path / "from ganeti"
    place.mkdir()
    (place / "config.ini").write_bytes(b"[export]\n")
    (place / "secret").symlink_to("/etc/shadow")
    (tmp_path / "link").symlink_to(place)
    for path in (place, tmp_path / "link"):
        reader = transfer.open_path(str(path))
        assert reader.location == str(place)
        assert list(reader.names()) == ["config.ini", "secret"]
        assert content(reader, "config.ini") == b"[export]\n"
        with pytest.raises(StorageError):
            reader.open("secret")
    for missing in (str(tmp_path / "missing"), str(place / "config.ini"), "a\0b"):
        with pytest.raises(StorageError):
            transfer.open_path(missing)


# --- faults -----------------------------------------------------------------------------------------------------------


def test_a_full_store_names_file_and_offset_and_publishes_nothing(
    transfer: DirectoryTransfer, loop_filesystem: Callable[..., Any]
) -> None:
    path = loop_filesystem("ext4", size_mib=8).path
    store = transfer.store(Node(name="alpha", export_dir=path))
    free = store.free_bytes()
    assert free is not None
    assert 0 < free < 8 * MIB
    for layout in ("appended", "raw"):
        writer = store.begin(INSTANCE, NEW)
        file = writer.create("disk-0.raw")
        block = pattern(MIB)

        def fill(file: Any = file, block: bytes = block, layout: str = layout) -> None:
            for number in range(16):
                if layout == "appended":
                    file.append([block])
                else:
                    file.write(number * MIB, block)

        with pytest.raises(StorageError) as caught:
            fill()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.ENOSPC
        assert caught.value.offset is not None
        assert MIB <= caught.value.offset < 16 * MIB
        assert caught.value.path.endswith("disk-0.raw")
        for use in (file.finish, lambda file=file: file.append([b"x"]), lambda writer=writer: writer.publish(MANIFEST)):
            with pytest.raises(StorageError):
                use()
        assert list(store.exports(INSTANCE)) == []
        writer.abort()
        assert store.free_bytes() == pytest.approx(free, abs=64 * 1024)


def test_a_file_that_cannot_be_deleted_leaves_the_export_invisible_and_the_removal_can_be_repeated(
    store: DirectoryStore, exports: Path, requires: Callable[..., None]
) -> None:
    requires("chattr", root=True)
    make(store, NEW)
    stubborn = exports / INSTANCE / NEW / "disk-0.raw"
    subprocess.run(["chattr", "+i", str(stubborn)], check=True)
    left = exports / INSTANCE / removing_name(NEW) / "disk-0.raw"
    try:
        for remove in (store.remove, store.remove, store.remove_partial):
            with pytest.raises(StorageError, match="disk-0"):
                remove(INSTANCE, NEW)
            assert list(store.exports(INSTANCE)) == []
            assert list(store.partials(INSTANCE)) == [NEW]
    finally:
        subprocess.run(["chattr", "-i", str(left if left.exists() else stubborn)], check=True)
    store.remove_partial(INSTANCE, NEW)
    assert list(store.partials(INSTANCE)) == []


PUBLISH = """
import os, sys
from diskhaul_plugins.transfers.directory import DirectoryStore
store = DirectoryStore(sys.argv[1])
writer = store.begin(sys.argv[2], sys.argv[3])
file = writer.create("disk-0.raw")
file.append([b"bytes"])
file.finish()
os.write(1, b"go\\n")
try:
    writer.publish(sys.argv[4].encode())
except Exception as error:
    print(type(error).__name__, error)
    writer.abort()
print("done")
"""

REMOVE = """
import os, sys
from diskhaul_plugins.transfers.directory import DirectoryStore
store = DirectoryStore(sys.argv[1])
os.write(1, b"go\\n")
store.remove(sys.argv[2], sys.argv[3])
print("done")
"""

CHANGING = "openat,mkdirat,fchmod,pwritev,pwritev2,ftruncate,fsync,close,renameat2,renameat,rename,unlinkat,rmdir"


def test_a_publication_killed_at_any_system_call_leaves_a_whole_export_or_a_partial_one(
    exports: Path, tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("strace", root=True)
    store = DirectoryStore(str(exports))
    make(store, OLD)
    steps = calls_of(PUBLISH, exports, tmp_path)
    assert {name for name, _ in steps} >= {"openat", "fsync", "renameat2", "close"}
    assert any(name.startswith("pwritev") for name, _ in steps)
    store.remove(INSTANCE, NEW)
    outcomes = set()
    for name, number in steps:
        traced(PUBLISH, exports, tmp_path, name, f"{name}:signal=SIGKILL:when={number}")
        visible = NEW in store.exports(INSTANCE)
        assert visible or list(store.partials(INSTANCE)) == [NEW], (name, number)
        assert OLD in store.exports(INSTANCE)
        if visible:
            export = store.open(INSTANCE, NEW)
            assert list(export.names()) == ["disk-0.raw", "manifest.json"]
            assert json.loads(content(export, "manifest.json")) == json.loads(MANIFEST)
            assert content(export, "disk-0.raw") == b"bytes"
        outcomes.add(visible)
        store.remove(INSTANCE, NEW)
        store.remove_partial(INSTANCE, NEW)
        assert os.listdir(exports / INSTANCE) == [OLD]
    assert outcomes == {True, False}


def test_a_publication_that_meets_an_error_at_any_system_call_is_not_listed(
    exports: Path, tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("strace", root=True)
    store = DirectoryStore(str(exports))
    make(store, OLD)
    steps = [step for step in calls_of(PUBLISH, exports, tmp_path) if step[0] != "close"]
    store.remove(INSTANCE, NEW)
    for name, number in steps:
        done = traced(PUBLISH, exports, tmp_path, name, f"{name}:error=EIO:when={number}")
        assert "StorageError" in done.stdout, (name, number, done.stdout, done.stderr)
        assert list(store.exports(INSTANCE)) == [OLD], (name, number)
        store.remove_partial(INSTANCE, NEW)
        assert os.listdir(exports / INSTANCE) == [OLD]


def test_a_removal_killed_at_any_system_call_leaves_the_export_whole_or_invisible(
    exports: Path, tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("strace", root=True)
    store = DirectoryStore(str(exports))
    make(store, OLD)
    make(store, NEW)
    steps = calls_of(REMOVE, exports, tmp_path)
    assert {name for name, _ in steps} >= {"fsync", "renameat2", "unlinkat"}
    outcomes = set()
    for name, number in steps:
        store.remove(INSTANCE, NEW)
        make(store, NEW)
        traced(REMOVE, exports, tmp_path, name, f"{name}:signal=SIGKILL:when={number}")
        visible = NEW in store.exports(INSTANCE)
        if visible:
            assert list(store.open(INSTANCE, NEW).names()) == ["disk-0.raw", "manifest.json"]
        outcomes.add(visible)
        assert OLD in store.exports(INSTANCE)
        store.remove(INSTANCE, NEW)
        assert os.listdir(exports / INSTANCE) == [OLD]
    assert outcomes == {True, False}


def test_the_files_and_the_directory_are_durable_before_the_export_is_visible(
    exports: Path, tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("strace", root=True)
    trace = tmp_path / "order"
    run(PUBLISH, exports, ["strace", "-f", "-y", "-o", str(trace), "-e", "trace=fsync,renameat2,write"])
    lines = trace.read_text().splitlines()
    order = [re.sub(r".*?(fsync|renameat2|write)\(", r"\1(", line) for line in lines if re.search("fsync|renameat2|go", line)]
    after = order[next(number for number, line in enumerate(order) if "go" in line) + 1 :]
    partial = f"{exports}/{INSTANCE}/{partial_name(NEW)}"
    wanted = [
        ("fsync", f"<{partial}/.manifest.json.tmp>"),
        ("renameat2", '"manifest.json"'),
        ("fsync", f"<{partial}>"),
        ("renameat2", f'"{NEW}"'),
        ("fsync", f"<{exports}/{INSTANCE}>"),
    ]
    assert len(after) == len(wanted), after
    for line, (call, what) in zip(after, wanted, strict=True):
        assert line.startswith(call), after
        assert what in line, after
    before = order[: order.index(next(line for line in order if "go" in line))]
    for durable in (f"<{partial}/disk-0.raw>", f"<{exports}/{INSTANCE}>", f"<{exports}>"):
        assert any(line.startswith("fsync") and durable in line for line in before), (durable, before)


def test_what_is_read_back_does_not_come_from_the_cache(
    store: DirectoryStore, exports: Path, requires: Callable[..., None]
) -> None:
    requires("fincore")
    writer = store.begin(INSTANCE, NEW)
    put(writer.create("disk-0.raw"), pattern(4 * MIB))
    path = exports / INSTANCE / partial_name(NEW) / "disk-0.raw"

    def cached() -> int:
        shown = subprocess.run(["fincore", "-b", "-n", "-o", "RES", str(path)], check=True, capture_output=True, text=True)
        return int(shown.stdout)

    if not cached():
        pytest.skip("this filesystem keeps no cache")
    reader = writer.reader().open("disk-0.raw")
    assert cached() == 0
    assert read(reader, 0, 4 * MIB) == pattern(4 * MIB)
    reader.close()
    writer.abort()


def python(script: str, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """Run a script in a process of its own; the interpreter itself, not a version manager's shim."""
    return subprocess.Popen(
        [*prefix, os.path.realpath(sys.executable), "-S", "-B", "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


def run(script: str, exports: Path, prefix: list[str]) -> subprocess.CompletedProcess[str]:
    process = python(script, str(exports), INSTANCE, NEW, MANIFEST.decode(), prefix=tuple(prefix))
    out, err = process.communicate()
    return subprocess.CompletedProcess(prefix, process.returncode, out, err)


def traced(script: str, exports: Path, tmp_path: Path, call: str, inject: str) -> subprocess.CompletedProcess[str]:
    return run(script, exports, ["strace", "-f", "-o", str(tmp_path / "trace"), "-e", f"trace={call}", "-e", f"inject={inject}"])


def calls_of(script: str, exports: Path, tmp_path: Path) -> list[tuple[str, int]]:
    """The system calls that change something between "go" and "done", each with its number among the calls of its name."""
    trace = tmp_path / "calls"
    done = run(script, exports, ["strace", "-f", "-o", str(trace), "-e", f"trace=write,?{CHANGING.replace(',', ',?')}"])
    assert "done" in done.stdout, (done.stdout, done.stderr)
    steps: list[tuple[str, int]] = []
    counts: dict[str, int] = {}
    begun = False
    for line in trace.read_text().splitlines():
        match = re.match(r"\d+ +(\w+)\((.*)", line)
        if match is None:
            continue
        name, rest = match.groups()
        counts[name] = counts.get(name, 0) + 1
        if name == "write" and rest.startswith('1, "done'):
            break
        if begun and name != "write":
            steps.append((name, counts[name]))
        begun = begun or (name == "write" and rest.startswith('1, "go'))
    return steps


def test_a_node_without_an_export_directory_is_refused(transfer: DirectoryTransfer) -> None:
    with pytest.raises(ConfigurationError, match=r"nodes\.alpha\.export_dir: is missing"):
        transfer.store(Node(name="alpha"))
