"""Zero-fill ``fill``: what is free becomes zero, no other byte changes, finished or killed, and only on a disk at rest."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import diskhaul
from diskhaul.api import BackendContext, DiskInPlace, DiskMap, Storage
from diskhaul.errors import InterruptedRunError, OperationFailedError, StorageError
from diskhaul_plugins.storages.block import BlockStorage
from diskhaul_plugins.storages.file import FileStorage
from diskhaul_plugins.zerofills.fill import FillZeroFill

from .guest_disks.filesystem_kinds import MIB, Btrfs, Exfat, Fat, Kind, Ntfs, Xfs, attached, overwrite, run


@pytest.fixture(autouse=True)
def _tidy(tmp_path: Path) -> Iterator[None]:
    """Images are large: pytest keeps what is left of a test."""
    yield
    shutil.rmtree(tmp_path)


@pytest.fixture
def context(tmp_path: Path) -> BackendContext:
    return BackendContext(cluster=diskhaul.Cluster(name="lab", state_dir=tmp_path / "state"))


@pytest.fixture
def fill(context: BackendContext) -> FillZeroFill:
    return FillZeroFill(context)


def _prepared(kind: Kind, image: Path, work: Path) -> list[tuple[int, int]]:
    """A filesystem with files, whose free space is full of old data. Returns where that is."""
    kind.make(image)
    for name in ("kept", "gone"):
        source = work / name
        source.mkdir()
        for number in range(30):
            (source / f"{number}").write_bytes(os.urandom(number * 3000))
        kind.add(image, source, name)
        shutil.rmtree(source)
    kind.remove(image, "gone")
    reading = kind.read(image)
    assert len(reading.runs) > 0
    overwrite(image, reading)
    return list(reading.runs)


def _assert_only_free_bytes_changed(before: Path, after: Path, free: list[tuple[int, int]], *, finished: bool) -> int:
    """Compare the whole disk, byte by byte. Returns how many free blocks of 4096 bytes are zero."""
    zeroed = 0
    position = 0
    with open(before, "rb") as old, open(after, "rb") as new:
        assert os.fstat(old.fileno()).st_size == os.fstat(new.fileno()).st_size
        for offset, length in (*free, (before.stat().st_size, 0)):
            while position < offset:
                part = min(MIB, offset - position)
                assert os.pread(new.fileno(), part, position) == os.pread(old.fileno(), part, position), position
                position += part
            while position < offset + length:
                part = min(512, offset + length - position)
                found = os.pread(new.fileno(), part, position)
                if finished or found != os.pread(old.fileno(), part, position):
                    assert found == bytes(part), position
                    zeroed += 1
                position += part
    return zeroed


def _zero(fill: FillZeroFill, target: DiskInPlace, *, deadline_s: float = 60.0) -> DiskMap:
    return fill.zero(diskhaul.Disk(path="unused"), target, deadline_s=deadline_s, cancelled=lambda: False)


@contextlib.contextmanager
def _opened(storage: Storage, path: Path | str) -> Iterator[DiskInPlace]:
    target = storage.open_in_place(diskhaul.Disk(path=path))
    try:
        yield target
    finally:
        target.close()


KINDS = [Xfs(size=320 * MIB), Btrfs(size=128 * MIB), Ntfs(size=32 * MIB), Exfat(size=32 * MIB), Fat(("-F", "16"), size=32 * MIB)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.type)
def test_a_file_loses_its_old_data_and_nothing_else(
    kind: Kind, tmp_path: Path, fill: FillZeroFill, context: BackendContext, requires: Callable[..., None]
) -> None:
    requires(*kind.programs, root=kind.root)
    image, before = tmp_path / "disk.raw", tmp_path / "before.raw"
    free = _prepared(kind, image, tmp_path)
    run("cp", "--sparse=always", image, before)
    with _opened(FileStorage(context), image) as target:
        found = _zero(fill, target)
    assert list(found.free.ranges()) == free  # type: ignore[attr-defined]
    _assert_only_free_bytes_changed(before, image, free, finished=True)
    assert image.stat().st_blocks * 512 <= kind.size - sum(length for _, length in free) + MIB  # they are holes now
    kind.check(image)


def test_a_device_loses_its_old_data_and_nothing_else(
    tmp_path: Path, fill: FillZeroFill, context: BackendContext, requires: Callable[..., None]
) -> None:
    kind = Fat(("-F", "32"))
    requires(*kind.programs, "losetup", root=True)
    image, before = tmp_path / "disk.raw", tmp_path / "before.raw"
    free = _prepared(kind, image, tmp_path)
    run("cp", "--sparse=always", image, before)
    with attached(image) as device, _opened(BlockStorage(context), device) as target:
        _zero(fill, target)
    _assert_only_free_bytes_changed(before, image, free, finished=True)


@pytest.mark.parametrize("as_device", [False, True], ids=["file", "device"])
def test_where_no_blocks_can_be_given_back_zeros_are_written(
    as_device: bool, tmp_path: Path, fill: FillZeroFill, context: BackendContext, requires: Callable[..., None]
) -> None:
    """The image lies on a filesystem that cannot punch holes."""
    lower, kind = Ntfs(size=128 * MIB), Fat(("-F", "32"))
    requires(*lower.programs, *kind.programs, root=True)
    before = tmp_path / "before.raw"
    free = _prepared(kind, before, tmp_path)
    lower.make(tmp_path / "lower.img")
    with lower.mounted(tmp_path / "lower.img") as root:
        image = root / "disk.raw"
        shutil.copyfile(before, image)
        with open(image, "r+b") as file, pytest.raises(OSError, match="not supported"):
            _punch(file.fileno())
        with contextlib.ExitStack() as stack:
            path = stack.enter_context(attached(image)) if as_device else image
            storage = BlockStorage(context) if as_device else FileStorage(context)
            _zero(fill, stack.enter_context(_opened(storage, path)))
        _assert_only_free_bytes_changed(before, image, free, finished=True)


def _punch(descriptor: int) -> None:
    import diskhaul_native as native

    native.zero_range(descriptor, 0, 4096, method="punch")


def test_what_is_zero_or_a_hole_already_is_left_alone(
    tmp_path: Path, fill: FillZeroFill, context: BackendContext, requires: Callable[..., None]
) -> None:
    kind = Fat(("-F", "32"))
    requires(*kind.programs)
    image = tmp_path / "disk.raw"
    kind.make(image)
    ((offset, _),) = kind.read(image).runs
    begin, end = offset + 10 * MIB, offset + 20 * MIB
    with open(image, "r+b") as file:
        for place in (begin, end - 8192):
            file.seek(place)
            file.write(os.urandom(8192))
    with _opened(FileStorage(context), image) as target:
        recorded = _Recorded(target)
        _zero(fill, recorded)
        assert recorded.flushed == 1
        # Blocks of the image's filesystem that hold something else as well stay.
        assert sum(length for _, length in recorded.zeroed) <= 20 * MIB + 4096
        recorded.zeroed.clear()
        _zero(fill, recorded)
        assert sum(length for _, length in recorded.zeroed) < 4096


class _Recorded:
    """A disk in place that notes what is asked of it, and may do something before."""

    def __init__(self, target: DiskInPlace, before: Callable[[int], None] = lambda count: None) -> None:
        self._target, self._before = target, before
        self.zeroed: list[tuple[int, int]] = []
        self.flushed = 0
        self.fileno = target.fileno  # type: ignore[attr-defined]
        self.extents = target.extents  # type: ignore[attr-defined]
        self.users, self.read_into, self.close, self.size = target.users, target.read_into, target.close, target.size

    def zero(self, offset: int, length: int, /) -> object:
        self._before(len(self.zeroed))
        self.zeroed.append((offset, length))
        return self._target.zero(offset, length)

    def flush(self) -> object:
        self.flushed += 1
        return self._target.flush()


# --- killed -----------------------------------------------------------------------------------------------------------

_KILLED = """
    import os, random, signal, sys, threading
    import diskhaul
    from diskhaul.api import BackendContext
    from diskhaul_plugins.storages.file import FileStorage
    from diskhaul_plugins.zerofills import fill as module

    image, event, spins = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    module._SLICE = 1 << 20
    context = BackendContext(cluster=diskhaul.Cluster(name="lab", state_dir="/nonexistent"))
    target = FileStorage(context).open_in_place(diskhaul.Disk(path=image))
    zero, calls = target.zero, 0

    def die():
        for _ in range(spins):
            pass
        os.kill(os.getpid(), signal.SIGKILL)

    def counted(offset, length):
        global calls
        if calls == event:
            threading.Thread(target=die).start()
        calls += 1
        zero(offset, length)

    target.zero = counted
    module.FillZeroFill(context).zero(diskhaul.Disk(path=image), target, deadline_s=60.0, cancelled=lambda: False)
    print(calls)
    if calls > event:
        signal.pause()
"""


@pytest.mark.parametrize("share", range(5))
def test_killed_at_random_points_no_allocated_byte_has_changed(share: int, tmp_path: Path, requires: Callable[..., None]) -> None:
    """Ten of fifty kills, each at another call, and somewhere in it or shortly after."""
    kind = Fat(("-F", "16"), size=32 * MIB)
    requires(*kind.programs)
    image, before = tmp_path / "disk.raw", tmp_path / "before.raw"
    free = _prepared(kind, before, tmp_path)
    script = textwrap.dedent(_KILLED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    shutil.copyfile(before, image)
    whole = [sys.executable, "-c", script, str(image), "1000000", "0"]
    calls = int(subprocess.run(whole, check=True, capture_output=True, env=environment).stdout)
    assert calls > 20
    generator = random.Random(share)
    complete = _assert_only_free_bytes_changed(before, image, free, finished=True)
    progress = set()
    for _ in range(10):
        shutil.copyfile(before, image)
        command = [sys.executable, "-c", script, str(image), str(generator.randrange(calls)), str(generator.randrange(3000))]
        killed = subprocess.run(command, check=False, capture_output=True, env=environment)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        progress.add(_assert_only_free_bytes_changed(before, image, free, finished=False))
        kind.check(image)
    assert len(progress) > 3
    assert min(progress) < complete
    with open(image, "rb"):  # what was killed can be done again
        again = subprocess.run(whole, check=True, capture_output=True, env=environment)
    assert int(again.stdout) <= calls
    assert _assert_only_free_bytes_changed(before, image, free, finished=True) == complete


# --- not at all -------------------------------------------------------------------------------------------------------


def test_a_filesystem_that_is_not_clean_is_not_touched(
    tmp_path: Path, fill: FillZeroFill, context: BackendContext, requires: Callable[..., None]
) -> None:
    kind = Xfs(size=320 * MIB)
    requires(*kind.programs, root=True)
    image, dirty = tmp_path / "disk.raw", tmp_path / "dirty.raw"
    kind.make(image)
    with kind.mounted(image) as root:
        (root / "file").write_bytes(os.urandom(MIB))
        os.sync()
        run("cp", "--sparse=always", image, dirty)
    with _opened(FileStorage(context), dirty) as target:
        recorded = _Recorded(target)
        found = _zero(fill, recorded)
    assert recorded.zeroed == []
    ((region),) = found.regions
    assert (region.state, region.skipped) == ("dirty", 0)


def test_a_journal_that_would_have_to_be_replayed_is_reason_enough(
    tmp_path: Path, fill: FillZeroFill, context: BackendContext, requires: Callable[..., None]
) -> None:
    """What `skip` may leave out by looking into the journal stays: the bitmaps on the disk are behind."""
    requires("mkfs.ext4", "mount", root=True)
    image, dirty = tmp_path / "disk.raw", tmp_path / "dirty.raw"
    with open(image, "wb") as file:
        file.truncate(64 * MIB)
    run("mkfs.ext4", "-q", image)
    mount_point = tmp_path / "mnt"
    mount_point.mkdir()
    run("mount", "-o", "loop", image, mount_point)
    try:
        for number in range(20):
            (mount_point / f"file-{number}").write_bytes(os.urandom(100_000))
        run("sync", mount_point / "file-1")
        run("cp", "--sparse=always", image, dirty)
    finally:
        run("umount", mount_point)
    with _opened(FileStorage(context), dirty) as target:
        recorded = _Recorded(target)
        _zero(fill, recorded)
    assert recorded.zeroed == []


def test_a_disk_that_a_process_writes_to_is_not_touched(
    tmp_path: Path, fill: FillZeroFill, context: BackendContext, requires: Callable[..., None]
) -> None:
    kind = Fat(("-F", "32"))
    requires(*kind.programs)
    image = tmp_path / "disk.raw"
    _prepared(kind, image, tmp_path)
    writer = subprocess.Popen(
        [sys.executable, "-c", "import sys; f = open(sys.argv[1], 'r+b'); print(flush=True); sys.stdin.read()", str(image)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        with _opened(FileStorage(context), image) as target:
            recorded = _Recorded(target)
            with pytest.raises(StorageError, match=rf"open for writing in process {writer.pid}"):
                _zero(fill, recorded)
        assert recorded.zeroed == []
    finally:
        writer.communicate(b"")


def test_a_mounted_device_cannot_even_be_opened(tmp_path: Path, context: BackendContext, requires: Callable[..., None]) -> None:
    kind = Xfs(size=320 * MIB)
    requires(*kind.programs, root=True)
    kind.make(tmp_path / "disk.raw")
    with attached(tmp_path / "disk.raw") as device:
        (tmp_path / "mnt").mkdir()
        run("mount", device, tmp_path / "mnt")
        try:
            with pytest.raises(StorageError, match="is in use"):
                BlockStorage(context).open_in_place(diskhaul.Disk(path=device))
        finally:
            run("umount", tmp_path / "mnt")


def test_it_stops_when_it_is_cancelled_or_out_of_time(
    tmp_path: Path, fill: FillZeroFill, context: BackendContext, requires: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diskhaul_plugins.zerofills.fill._SLICE", MIB)  # a small disk in many calls
    kind = Fat(("-F", "16"), size=32 * MIB)
    requires(*kind.programs)
    image, before = tmp_path / "disk.raw", tmp_path / "before.raw"
    free = _prepared(kind, image, tmp_path)
    shutil.copyfile(image, before)
    disk = diskhaul.Disk(path=image)
    with _opened(FileStorage(context), image) as target:
        recorded = _Recorded(target)
        with pytest.raises(InterruptedRunError):
            fill.zero(disk, recorded, deadline_s=60.0, cancelled=lambda: bool(recorded.zeroed))
        assert (len(recorded.zeroed), recorded.flushed) == (1, 0)
        clock = _Clock()
        monkeypatch.setattr("diskhaul_plugins.zerofills.fill.time", clock)
        late = _Recorded(target, before=clock.advance)
        with pytest.raises(OperationFailedError, match="no time left"):
            fill.zero(disk, late, deadline_s=60.0, cancelled=lambda: False)
        assert len(late.zeroed) == 1
    _assert_only_free_bytes_changed(before, image, free, finished=False)


class _Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def advance(self, _: int) -> None:
        self.now += 61.0


def test_a_failure_is_not_papered_over_by_the_next_flush(
    tmp_path: Path, fill: FillZeroFill, context: BackendContext, requires: Callable[..., None]
) -> None:
    kind = Fat(("-F", "32"))
    requires(*kind.programs)
    image = tmp_path / "disk.raw"
    _prepared(kind, image, tmp_path)
    with _opened(FileStorage(context), image) as target:
        read_only = os.open(image, os.O_RDONLY)
        os.dup2(read_only, target.fileno())  # type: ignore[attr-defined]
        os.close(read_only)
        with pytest.raises(StorageError, match="cannot zero"):
            target.zero(0, 4096)
        with pytest.raises(StorageError, match="an earlier zeroing or flush failed"):
            target.flush()


# --- as part of an export ---------------------------------------------------------------------------------------------


def test_an_export_zeroes_the_disk_of_an_instance_that_is_off(tmp_path: Path, requires: Callable[..., None]) -> None:
    kind = Fat(("-F", "32"))
    requires(*kind.programs)
    image, before = tmp_path / "disk.raw", tmp_path / "before.raw"
    free = _prepared(kind, image, tmp_path)
    shutil.copyfile(image, before)
    cluster = _cluster(tmp_path, image)
    options = diskhaul.ExportOptions(zero_free_space=True, zero_fill="fill")
    result = diskhaul.export("vm", node="beta", config=cluster, options=options)
    _assert_only_free_bytes_changed(before, image, free, finished=True)
    assert result.disks[0].data_bytes <= kind.size - sum(length for _, length in free) + 4096
    diskhaul.import_("vm", config=cluster, to_dir=tmp_path / "back")
    assert (tmp_path / "back" / "disk-0.raw").read_bytes() == image.read_bytes()
    kind.check(image)


def test_an_export_says_what_it_left_as_it_is(tmp_path: Path, requires: Callable[..., None]) -> None:
    kind = Fat(("-F", "32"))
    requires(*kind.programs)
    image = tmp_path / "disk.raw"
    _prepared(kind, image, tmp_path)
    with open(image, "r+b") as file:
        file.seek(65)
        file.write(b"\x01")
    options = diskhaul.ExportOptions(zero_free_space=True, zero_fill="fill")
    result = diskhaul.export("vm", node="beta", config=_cluster(tmp_path, image), options=options)
    assert any("fat32 is not zeroed by fill: is mounted" in warning for warning in result.warnings), result.warnings


def test_a_storage_that_cannot_zero_in_place_is_refused_beforehand(tmp_path: Path, requires: Callable[..., None]) -> None:
    class Elsewhere(FileStorage):
        open_in_place = Storage.open_in_place  # type: ignore[assignment]
        check_in_place = Storage.check_in_place  # type: ignore[assignment]

        def __init__(self) -> None:
            pass

        @diskhaul.hookimpl
        def diskhaul_storages(self) -> Iterator[diskhaul.StorageSpec]:
            yield diskhaul.StorageSpec(name="elsewhere", create=lambda context: self)

    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(MIB))
    options = diskhaul.ExportOptions(zero_free_space=True, zero_fill="fill")
    cluster = _cluster(tmp_path, image, storage="elsewhere")
    with pytest.raises(diskhaul.RefusedError, match="cannot zero disks in place"):
        diskhaul.export("vm", node="beta", config=cluster, options=options, plugins=[Elsewhere()])


def _cluster(work: Path, image: Path, storage: str = "file") -> diskhaul.Cluster:
    for name in ("alpha", "beta"):
        (work / name).mkdir()
    return diskhaul.Cluster(
        name="lab",
        state_dir=work / "state",
        nodes=[diskhaul.Node(name=name, export_dir=work / name) for name in ("alpha", "beta")],
        instances=[diskhaul.Instance(name="vm", node="alpha", disks=[diskhaul.Disk(path=image, storage=storage)])],
    )


# --- opened in place --------------------------------------------------------------------------------------------------


def test_a_file_is_opened_through_the_link_that_is_configured(tmp_path: Path, context: BackendContext) -> None:
    (tmp_path / "disk.raw").write_bytes(b"x" * 200_000)
    (tmp_path / "link").symlink_to("disk.raw")
    storage = FileStorage(context)
    assert list(storage.check_in_place(diskhaul.Disk(path=tmp_path / "link"))) == []
    with _opened(storage, tmp_path / "link") as target:
        target.zero(4097, 150_000)
        target.zero(199_000, 10)
        target.flush()
    expected = b"x" * 4097 + bytes(150_000) + b"x" * (199_000 - 154_097) + bytes(10) + b"x" * 990
    assert (tmp_path / "disk.raw").read_bytes() == expected


@pytest.mark.parametrize(("offset", "length"), [(-1, 10), (0, 200_001), (200_000, 1), (10, -1)])
def test_what_is_not_on_the_disk_is_not_zeroed(offset: int, length: int, tmp_path: Path, context: BackendContext) -> None:
    (tmp_path / "disk.raw").write_bytes(b"x" * 200_000)
    with _opened(FileStorage(context), tmp_path / "disk.raw") as target, pytest.raises(StorageError, match="are not on a disk"):
        target.zero(offset, length)
    assert (tmp_path / "disk.raw").read_bytes() == b"x" * 200_000


@pytest.mark.parametrize("what", ["directory", "missing"])
def test_what_is_no_image_is_not_opened(what: str, tmp_path: Path, context: BackendContext) -> None:
    with pytest.raises(StorageError):
        FileStorage(context).open_in_place(diskhaul.Disk(path=tmp_path if what == "directory" else tmp_path / what))


def test_a_read_only_device_is_refused_beforehand(tmp_path: Path, context: BackendContext, requires: Callable[..., None]) -> None:
    requires("losetup", root=True)
    (tmp_path / "disk.raw").write_bytes(bytes(MIB))
    device = run("losetup", "-r", "-f", "--show", tmp_path / "disk.raw").strip()
    try:
        storage, disk = BlockStorage(context), diskhaul.Disk(path=device, storage="block")
        assert [line.partition(": ")[2] for line in storage.check_in_place(disk)] == [
            "cannot be zeroed in place: it is read-only"
        ]
        with pytest.raises(StorageError):
            storage.open_in_place(disk)
    finally:
        run("losetup", "-d", device)
