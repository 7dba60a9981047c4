"""A small cluster on real filesystems: nodes that are directories, and guests that are processes which write all the time."""

from __future__ import annotations

import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import diskhaul
from diskhaul.journal import Journal
from diskhaul.options import MIB
from diskhaul.testing import ProcessGuest
from diskhaul.testing.guest import BLOCK, GuestMarks

INSTANCE = "web1.example.com"
NODES = ("alpha", "beta", "gamma", "delta")
DISK_SIZE = 3 * MIB + 5 * BLOCK  # no multiple of a chunk
CHUNK_SIZE = 256 << 10  # small, so that small disks have many
THREAD_END_S = 30.0


def needs(*programs: str) -> None:
    """Skip, or fail in CI, when a program or root is missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    reasons = [f"needs {', '.join(missing)}"] if missing else []
    if os.geteuid() != 0:
        reasons.append("needs root")
    if reasons:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("; ".join(reasons))


@pytest.fixture(scope="session")
def reflink_filesystem(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An XFS with reflinks, one for all tests of the session."""
    needs("mkfs.xfs", "losetup", "mount")
    work = tmp_path_factory.mktemp("reflink")
    image, mount = work / "xfs.img", work / "xfs"
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(512 * MIB)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)
        image.unlink()


def fill_disk(path: Path, seed: int, size: int = DISK_SIZE) -> None:
    """Data that does not compress, text that does, zeros that were written, and a hole."""
    generator = random.Random(seed)
    with open(path, "wb") as file:
        file.write(generator.randbytes(MIB))
        file.write(b"the quick brown fox %08d\n" % seed * (MIB // 2 // 29))
        file.write(bytes(256 << 10))
        file.truncate(size)
        file.seek(size - 300_000)
        file.write(generator.randbytes(100_000))


@dataclass(frozen=True, slots=True)
class State:
    """What of this machine and this process an operation must leave as it was."""

    loops: tuple[str, ...]
    mounts: tuple[str, ...]
    subvolumes: tuple[str, ...]
    disk_files: tuple[str, ...]
    exports: tuple[str, ...]
    locks: tuple[str, ...]
    journal: tuple[str, ...]
    temporary: tuple[str, ...]
    children: tuple[str, ...]
    descriptors: tuple[str, ...]
    threads: tuple[str, ...]


@dataclass
class Lab:
    """One test's cluster. Directories are as in a real one; `guests` by instance.

    Attributes:
        path: holds the nodes, the state directory and the guests' programs.
        disks: where disks lie, on a filesystem with reflinks unless the test asked for none.
    """

    path: Path
    disks: Path
    guests: dict[str, ProcessGuest] = field(default_factory=dict)
    instances: dict[str, diskhaul.Instance] = field(default_factory=dict)
    contents: dict[Path, bytes] = field(default_factory=dict)
    node_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    # --- building ---

    def export_dir(self, node: str) -> Path:
        return self.path / node

    @property
    def state_dir(self) -> Path:
        return self.path / "state"

    @property
    def temporary(self) -> Path:
        return self.path / "tmp"

    def add_guest(
        self,
        name: str = INSTANCE,
        *,
        running: bool = True,
        disks: int = 1,
        place: Path | None = None,
        runtime_options: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> ProcessGuest:
        """An instance with a `ProcessGuest` that writes to its first disk; `place` holds the disks."""
        place = place or self.disks
        paths = [place / f"{name}-{index}.raw" for index in range(disks)]
        for index, path in enumerate(paths):
            fill_disk(path, seed=len(self.instances) * 10 + index)
        directory = self.path / f"guest-{name}"
        directory.mkdir()
        guest = ProcessGuest(directory, paths[0], first_offset=256 << 10)
        self.guests[name] = guest
        if running:
            subprocess.run([str(guest.program), "start"], check=True)
            guest.wait_for_progress()
        for path in paths:
            self.contents[path] = path.read_bytes()
        fields: dict[str, Any] = {"state": "up", "node": "alpha", "runtime": "command"} | more
        self.instances[name] = diskhaul.Instance(
            name=name,
            runtime_options=guest.runtime_options | dict(runtime_options or {}),
            disks=[diskhaul.Disk(path=path, name=f"disk{index}") for index, path in enumerate(paths)],
            **fields,
        )
        return guest

    def cluster(self, **changes: Any) -> diskhaul.Cluster:
        """The cluster as it is described so far."""
        fields: dict[str, Any] = {
            "name": "lab",
            "master": "alpha",
            "state_dir": self.state_dir,
            "nodes": [
                diskhaul.Node(name=name, **({"export_dir": self.export_dir(name)} | self.node_settings.get(name, {})))
                for name in NODES
            ],
            "instances": list(self.instances.values()),
        }
        return diskhaul.Cluster(**(fields | self.settings | changes))

    def document(self) -> dict[str, Any]:
        """The same cluster as a configuration file has it."""
        instances: dict[str, Any] = {}
        for name, instance in self.instances.items():
            instances[name] = {
                "node": instance.node,
                "state": instance.state,
                "runtime": instance.runtime,
                "runtime_options": dict(instance.runtime_options),
                "disks": [{"path": str(disk.path), "name": disk.name} for disk in instance.disks],
            }
        nodes = {name: {"export_dir": str(self.export_dir(name))} | self.node_settings.get(name, {}) for name in NODES}
        cluster = {"name": "lab", "master": "alpha", "state_dir": str(self.state_dir)}
        return {"cluster": cluster, "nodes": nodes, "instances": instances}

    def write_config(self, document: Mapping[str, Any] | str | None = None) -> Path:
        """Write ``cluster.toml``; text goes in as it is."""
        import tomli_w

        file = self.path / "cluster.toml"
        text = document if isinstance(document, str) else tomli_w.dumps(document or self.document())
        file.write_text(text)
        file.chmod(0o600)
        return file

    # --- operations ---

    def export(self, instance: str = INSTANCE, node: str = "beta", **more: Any) -> diskhaul.ExportResult:
        """`diskhaul.export` with small chunks; other keywords are options unless the function has them."""
        own = {key: more.pop(key) for key in ("plugins", "on_event", "cancel", "config") if key in more}
        options = diskhaul.ExportOptions(**({"chunk_size": CHUNK_SIZE, "lock_timeout_s": 60.0} | more))
        return diskhaul.export(instance, node=node, options=options, **({"config": self.cluster()} | own))

    def cli(self, *arguments: str | Path, config: Path | None = None, **settings: Any) -> subprocess.CompletedProcess[str]:
        """Run ``diskhaul --config FILE ARGUMENTS`` in a process of its own and wait for it."""
        return subprocess.run(
            self.command(*arguments, config=config),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.path,
            **settings,
        )

    def command(self, *arguments: str | Path, config: Path | None = None) -> list[str]:
        file = config or self.path / "cluster.toml"
        return [sys.executable, "-m", "diskhaul", "--config", str(file), *map(str, arguments)]

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "HOME": "/nonexistent",
            "TERM": "dumb",
            "LANG": "C.UTF-8",
            "PYTHONFAULTHANDLER": "1",
            "TMPDIR": str(self.temporary),
        }

    # --- looking ---

    def listed(self, instance: str | None = INSTANCE) -> list[tuple[str, str]]:
        """Node and id of every valid export. One that is not valid fails the test."""
        found = diskhaul.list_exports(config=self.cluster(), instance=instance)
        assert [record.problem for record in found.exports if record.problem] == []
        return [(record.node, record.export_id) for record in found.exports]

    def restored(self, record: diskhaul.ExportRecord, name: str = "restored") -> list[Path]:
        """The disks of an export, restored by an import that checks every digest."""
        target = self.path / name
        diskhaul.import_(record.path, to_dir=target)
        return [target / f"disk-{index}.raw" for index in range(record.disk_count)]

    def check_bytes(self, record: diskhaul.ExportRecord, instance: str = INSTANCE, *, running: bool = False) -> GuestMarks:
        """Check that an export holds the disks of one moment, every byte; return the guest's marks in it.

        Args:
            running: whether the guest ran at that moment.
        """
        guest = self.guests[instance]
        disks = [disk.path for disk in self.instances[instance].disks if disk.path is not None]
        copies = self.restored(record, f"restored-{record.export_id}")
        assert len(copies) == len(disks)
        marks = guest.marks(copies[0])
        assert marks.consistent, f"the copy is not of one moment: {marks}"
        assert marks.running == running
        for number, (copy, disk) in enumerate(zip(copies, disks, strict=True)):
            expected, found = bytearray(self.contents[disk]), bytearray(copy.read_bytes())
            if number == 0:
                for offset in (guest.first_offset, guest.last_offset):
                    expected[offset : offset + BLOCK] = found[offset : offset + BLOCK] = bytes(BLOCK)
            assert found == expected, f"disk {number} differs"
        shutil.rmtree(copies[0].parent)
        return marks

    def check_bytes_of_stopped(self, record: diskhaul.ExportRecord, instance: str = INSTANCE) -> None:
        """Check that an export of an instance that never ran holds its disks, every byte."""
        copies = self.restored(record, f"restored-{record.export_id}")
        disks = [disk.path for disk in self.instances[instance].disks if disk.path is not None]
        assert [copy.read_bytes() for copy in copies] == [self.contents[disk] for disk in disks]
        shutil.rmtree(copies[0].parent)

    def state(self) -> State:
        """Look at everything that an operation must not leave behind."""
        threads = _threads()  # first: while one is on its way out, it may still have something open
        base = str(self.path)
        loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout.splitlines()
        roots = (str(self.disks), base)
        locks = self.state_dir / "locks"
        unfinished = Journal(self.state_dir).unfinished() if (self.state_dir / "journal.sqlite").exists() else []
        return State(
            loops=tuple(sorted(line for line in loops if any(root in line for root in roots))),
            mounts=tuple(_mounts(roots)),
            subvolumes=tuple(line for root in (self.disks, self.path) for line in _subvolumes(root)),
            disk_files=tuple(sorted(str(path) for path in self.disks.rglob("*"))),
            # What lies directly in an export directory stays: the store's identity, and the instances' (empty) directories.
            exports=tuple(sorted(str(path) for node in NODES for path in self.export_dir(node).glob("*/**/*"))),
            locks=tuple(sorted(path.name for path in locks.iterdir() if path.name != "counter")) if locks.exists() else (),
            journal=tuple(f"{run.operation} of {run.instance}: {[note.kind for note in run.notes]}" for run in unfinished),
            temporary=tuple(sorted(str(path) for path in self.temporary.rglob("*"))),
            children=tuple(_children()),
            descriptors=tuple(_descriptors()),
            threads=tuple(threads),
        )


def _mounts(roots: Iterable[str]) -> list[str]:
    """What is mounted below `roots`, or from something below them. (Where `roots` themselves lie is mounted from outside.)"""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return sorted(line for line in lines if any(f"{root}/" in line or line.split()[4] == root for root in roots))


def _subvolumes(root: Path) -> list[str]:
    """Subvolumes of btrfs at or below `root`, and whether each can be written."""
    kind = subprocess.run(["stat", "--file-system", "--format=%T", str(root)], capture_output=True, text=True, check=True).stdout
    if kind.strip() != "btrfs":
        return []
    directories = (path for path in (root, *root.rglob("*")) if path.is_dir() and not path.is_symlink())
    # The top directory of every subvolume has this number, and on btrfs no other file has.
    return sorted(f"{path} writable: {os.access(path, os.W_OK)}" for path in directories if path.stat().st_ino == 256)


def _children() -> list[str]:
    """Child processes of this one, zombies too."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                text = (entry / "stat").read_text()
            except OSError:
                continue
            fields = text[text.rindex(")") + 2 :].split()
            if int(fields[1]) == os.getpid():
                found.append(text[: text.rindex(")") + 1] + (" zombie" if fields[0] == "Z" else ""))
    return sorted(found)


def _descriptors() -> list[str]:
    """What this process has open."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # that of the listing itself
        found.append(target)
    return sorted(target for target in found if not target.startswith("/proc/"))


def _threads() -> list[str]:
    """Threads of diskhaul that do not end. One that has done its work may take a moment to be gone."""
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("diskhaul")]
    for thread in ours:
        thread.join(THREAD_END_S)
    return sorted(thread.name for thread in ours if thread.is_alive())


class Unchanged:
    """Compares the state of a lab with what it was when this was made, or last taken."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._before = lab.state()

    def take(self) -> None:
        """From now on, compare with the state of now."""
        self._before = self._lab.state()

    def check(self, *, but: Sequence[str] = ()) -> None:
        """Fail unless everything is as before; `but` names fields of `State` that may differ."""
        after = self._lab.state()
        for name in State.__slots__:
            if name not in but:
                assert getattr(after, name) == getattr(self._before, name), f"{name} are not as they were"


@pytest.fixture
def lab(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """An empty cluster of four nodes, whose disks lie on a filesystem with reflinks.

    With ``@on_every_snapshotting_filesystem`` also on a subvolume of btrfs, with snapshots of that.
    """
    if getattr(request, "param", "reflink") == "reflink":
        disks = Path(tempfile.mkdtemp(dir=request.getfixturevalue("reflink_filesystem")))
    else:
        needs("btrfs", "mkfs.btrfs")
        disks = request.getfixturevalue("loop_filesystem")("btrfs").path / "disks"
        subprocess.run(["btrfs", "-q", "subvolume", "create", str(disks)], check=True)
    with _made(tmp_path, disks, monkeypatch) as made:
        if getattr(request, "param", "reflink") == "btrfs":
            made.settings["backends"] = {"snapshot": "btrfs"}
        yield made


@pytest.fixture
def plain_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """The same, with disks on a filesystem without reflinks: no snapshots."""
    disks = tmp_path / "disks"
    disks.mkdir(mode=0o700)
    with _made(tmp_path, disks, monkeypatch) as made:
        yield made


def end_guest(guest: ProcessGuest) -> None:
    """Kill a guest and wait until its process is gone: its lock is free a moment before its disk is closed."""
    try:
        descriptor = os.pidfd_open(guest.pid)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        guest.close()
        return
    try:
        guest.close()
        waiting = select.poll()
        waiting.register(descriptor, select.POLLIN)
        waiting.poll(30_000)
    finally:
        os.close(descriptor)


class _made:  # noqa: N801  # used like a function
    def __init__(self, path: Path, disks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._lab = Lab(path, disks)
        self._monkeypatch = monkeypatch

    def __enter__(self) -> Lab:
        lab = self._lab
        for name in NODES:
            lab.export_dir(name).mkdir(mode=0o700)
        lab.temporary.mkdir(mode=0o700)
        self._monkeypatch.setenv("TMPDIR", str(lab.temporary))
        self._monkeypatch.setattr(tempfile, "tempdir", str(lab.temporary))
        return lab

    def __exit__(self, *_: object) -> None:
        for guest in self._lab.guests.values():
            end_guest(guest)
        shutil.rmtree(self._lab.disks)


@pytest.fixture
def unchanged() -> Callable[[Lab], Unchanged]:
    """Make a checker: ``check = unchanged(lab)``, later ``check.check()``."""
    return Unchanged
