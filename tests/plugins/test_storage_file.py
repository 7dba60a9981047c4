"""Storage ``file``: raw images in regular files."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diskhaul.api import BackendContext, ExtentKind
from diskhaul.errors import StorageError
from diskhaul.model import Cluster, Disk
from diskhaul.testing.conformance.storages import StorageConformance, pattern, read
from diskhaul_plugins.storages.file import FileStorage

MIB = 1 << 20


@pytest.fixture
def storage(tmp_path: Path) -> FileStorage:
    return FileStorage(BackendContext(cluster=Cluster(name="lab", state_dir=tmp_path / "state")))


def image(tmp_path: Path, content: bytes, name: str = "disk.raw") -> Disk:
    path = tmp_path / name
    path.write_bytes(content)
    return Disk(path=path)


class TestFileStorage(StorageConformance):
    size = 192 * 1024 + 4096 + 77  # a file may end anywhere

    @pytest.fixture
    def storage(self, tmp_path: Path) -> FileStorage:
        return FileStorage(BackendContext(cluster=Cluster(name="lab", state_dir=tmp_path / "state")))

    @pytest.fixture
    def make_disk(self, tmp_path: Path) -> Callable[[bytes], Disk]:
        return lambda content: image(tmp_path, content, f"disk-{len(os.listdir(tmp_path))}.raw")

    @pytest.fixture
    def missing_disk(self, tmp_path: Path) -> Disk:
        return Disk(path=tmp_path / "missing.raw")

    @pytest.fixture
    def make_target(self, tmp_path: Path) -> Callable[[], Disk] | None:
        return lambda: Disk(path=tmp_path / "new.raw")


def test_holes_are_told_apart_from_data(storage: FileStorage, tmp_path: Path) -> None:
    path = tmp_path / "sparse.raw"
    with open(path, "wb") as file:
        file.truncate(8 * MIB)
        file.seek(3 * MIB)
        file.write(b"x" * 4096)
    reader = storage.open(Disk(path=path))
    data = [(extent.offset, extent.length) for extent in reader.extents() if extent.kind is ExtentKind.DATA]
    reader.close()
    assert data == [(3 * MIB, 4096)]


def test_a_file_that_shrinks_while_it_is_read_is_an_error_and_no_hole(storage: FileStorage, tmp_path: Path) -> None:
    disk = image(tmp_path, pattern(MIB))
    reader = storage.open(disk)
    os.truncate(tmp_path / "disk.raw", 300_000)
    with pytest.raises(StorageError, match="shrunk") as caught:
        read(reader, 200_000, 200_000)
    assert caught.value.offset is not None
    assert caught.value.offset >= 200_000
    with pytest.raises(StorageError, match="shrunk"):
        list(reader.extents())
    assert read(reader, 0, 100) == pattern(MIB)[:100]
    reader.close()


def test_a_linked_path_is_read_through_the_link(storage: FileStorage, tmp_path: Path) -> None:
    disk = image(tmp_path, pattern(8192))
    link = tmp_path / "link.raw"
    link.symlink_to("disk.raw")
    reader = storage.open(Disk(path=link))
    assert read(reader, 0, 8192) == pattern(8192)
    reader.close()
    assert storage.location(Disk(path=link)) == storage.location(disk) == str(tmp_path / "disk.raw")


def test_an_image_that_looks_like_qcow2_is_a_raw_disk_all_the_same(storage: FileStorage, tmp_path: Path) -> None:
    content = b"QFI\xfb\x00\x00\x00\x03" + bytes(4088)
    reader = storage.open(image(tmp_path, content))
    assert (reader.size, read(reader, 0, 4096)) == (4096, content)
    reader.close()


@pytest.mark.parametrize("kind", ["directory", "fifo", "device", "loop", "no path"])
def test_what_is_no_regular_file_is_refused_without_being_opened(storage: FileStorage, tmp_path: Path, kind: str) -> None:
    path: Path | None = tmp_path / "odd"
    assert path is not None
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)  # opening it for reading would wait for a writer for ever
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "loop":
        path.symlink_to("odd")
    else:
        path = None
    disk = Disk(path=path)
    problems = list(storage.check(disk))
    assert len(problems) == 1
    with pytest.raises(StorageError):
        storage.open(disk)
    with pytest.raises(StorageError):
        storage.create(disk, 4096, overwrite=True)


def test_a_file_that_may_not_be_read_is_a_problem(storage: FileStorage, requires: Callable[..., None]) -> None:
    requires(root=True)
    with tempfile.TemporaryDirectory() as directory:  # pytest's own directories are closed to other users
        os.chmod(directory, 0o755)
        disk = image(Path(directory), b"secret")
        os.chmod(os.path.join(directory, "disk.raw"), 0o600)
        os.seteuid(65534)
        try:
            problems = list(storage.check(disk))
        finally:
            os.seteuid(0)
    assert len(problems) == 1
    assert "permission denied" in problems[0]


# --- writing ----------------------------------------------------------------------------------------------------------


def written(writer: Any, pieces: dict[int, bytes]) -> None:
    for offset, content in pieces.items():
        writer.write(offset, memoryview(content))
    writer.flush()
    writer.close()


def test_a_new_file_is_sparse_private_and_as_large_as_the_disk(storage: FileStorage, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        writer = storage.create(Disk(path=tmp_path / "new.raw"), 64 * MIB, overwrite=False)
    finally:
        os.umask(old)
    assert writer.reads_zero
    written(writer, {0: bytes(MIB), MIB: bytes(4096) + b"x" * 4096 + bytes(MIB)})
    status = os.stat(tmp_path / "new.raw")
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_size == 64 * MIB
    assert status.st_blocks * 512 <= 64 * 1024


def test_a_file_without_anything_written_has_its_size_after_a_flush(storage: FileStorage, tmp_path: Path) -> None:
    written(storage.create(Disk(path=tmp_path / "new.raw"), 5 * MIB + 1, overwrite=False), {})
    assert (tmp_path / "new.raw").stat().st_size == 5 * MIB + 1


@pytest.mark.parametrize("old_size", [MIB // 2, MIB, 2 * MIB])
def test_an_overwritten_file_keeps_nothing_of_its_old_bytes(storage: FileStorage, tmp_path: Path, old_size: int) -> None:
    disk = image(tmp_path, pattern(old_size))
    written(storage.create(disk, MIB, overwrite=True), {4096: b"new"})
    assert (tmp_path / "disk.raw").read_bytes() == bytes(4096) + b"new" + bytes(MIB - 4099)
    assert (tmp_path / "disk.raw").stat().st_blocks * 512 <= 16 * 1024


def test_an_existing_file_is_left_alone_until_something_is_written(storage: FileStorage, tmp_path: Path) -> None:
    disk = image(tmp_path, pattern(MIB))
    storage.create(disk, 2 * MIB, overwrite=True).close()
    assert (tmp_path / "disk.raw").read_bytes() == pattern(MIB)
    with pytest.raises(StorageError, match="--force"):
        storage.create(disk, MIB, overwrite=False)
    assert (tmp_path / "disk.raw").read_bytes() == pattern(MIB)


def test_a_link_in_place_of_the_target_is_not_followed(storage: FileStorage, tmp_path: Path) -> None:
    victim = image(tmp_path, pattern(8192), "victim")
    link = tmp_path / "target.raw"
    link.symlink_to("victim")
    dangling = tmp_path / "dangling.raw"
    dangling.symlink_to("elsewhere")
    for path in (link, dangling):
        for overwrite in (False, True):
            with pytest.raises(StorageError):
                storage.create(Disk(path=path), 4096, overwrite=overwrite)
    assert victim.path is not None
    assert victim.path.read_bytes() == pattern(8192)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_with_several_names_is_not_overwritten(storage: FileStorage, tmp_path: Path) -> None:
    disk = image(tmp_path, pattern(8192))
    os.link(tmp_path / "disk.raw", tmp_path / "other.raw")
    with pytest.raises(StorageError, match="hard links"):
        storage.create(disk, 8192, overwrite=True)
    assert (tmp_path / "other.raw").read_bytes() == pattern(8192)


def test_a_file_that_another_process_has_open_is_not_overwritten(storage: FileStorage, tmp_path: Path) -> None:
    disk = image(tmp_path, pattern(8192))
    script = "import sys; file = open(sys.argv[1], 'r+b'); print('open', flush=True); sys.stdin.read()"
    guest = subprocess.Popen([sys.executable, "-c", script, str(disk.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert guest.stdout is not None
        assert guest.stdout.readline() == b"open\n"
        with pytest.raises(StorageError, match="another process"):
            storage.create(disk, 8192, overwrite=True)
    finally:
        guest.communicate()
    storage.create(disk, 8192, overwrite=True).close()


def test_a_file_behind_a_loop_device_is_not_overwritten(
    storage: FileStorage, tmp_path: Path, loop_device: Callable[[Path], str]
) -> None:
    disk = image(tmp_path, pattern(MIB))
    device = loop_device(tmp_path / "disk.raw")
    with pytest.raises(StorageError, match=device):
        storage.create(disk, MIB, overwrite=True)
    assert (tmp_path / "disk.raw").read_bytes() == pattern(MIB)


def test_a_full_filesystem_is_named_with_file_and_offset_and_stays_an_error(
    storage: FileStorage, loop_filesystem: Callable[..., Any]
) -> None:
    small = loop_filesystem("ext4", size_mib=8)
    path = small.path / "disk.raw"
    writer = storage.create(Disk(path=path), 64 * MIB, overwrite=False)

    def fill() -> None:
        for offset in range(0, 64 * MIB, MIB):
            writer.write(offset, memoryview(pattern(MIB)))

    with pytest.raises(StorageError) as caught:
        fill()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert caught.value.path == str(path)
    assert caught.value.offset is not None
    assert caught.value.offset >= MIB
    with pytest.raises(StorageError, match="earlier write"):
        writer.flush()
    writer.close()


def test_a_lost_write_fails_the_flush_and_every_flush_after_it(
    storage: FileStorage, loop_filesystem: Callable[..., Any], tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("mkfs.ext4", "mount", root=True)
    tmpfs = tmp_path / "tmpfs"
    tmpfs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmpfs)], check=True)
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    try:
        with open(tmpfs / "image", "wb") as backing:
            backing.truncate(32 * MIB)  # the filesystem believes in 32 MiB; the medium has 2
        subprocess.run(["mkfs.ext4", "-q", "-E", "nodiscard", "-O", "^has_journal", str(tmpfs / "image")], check=True)
        subprocess.run(["mount", "-o", "loop", str(tmpfs / "image"), str(mounted)], check=True)
        try:
            writer = storage.create(Disk(path=mounted / "disk.raw"), 8 * MIB, overwrite=False)
            try:
                for offset in range(0, 8 * MIB, MIB):
                    writer.write(offset, memoryview(pattern(MIB)))
                with pytest.raises(StorageError) as caught:
                    writer.flush()
                assert isinstance(caught.value.__cause__, OSError)
                assert caught.value.__cause__.errno in (errno.EIO, errno.ENOSPC)  # which one depends on the kernel
                with pytest.raises(StorageError, match="earlier"):
                    writer.flush()
            finally:
                writer.close()
        finally:
            subprocess.run(["umount", str(mounted)], check=True)
    finally:
        subprocess.run(["umount", str(tmpfs)], check=True)


def test_a_file_that_may_not_be_changed_is_refused(storage: FileStorage, tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("chattr", root=True)
    disk = image(tmp_path, pattern(8192))
    subprocess.run(["chattr", "+i", str(disk.path)], check=True)
    try:
        with pytest.raises(StorageError, match=str(disk.path)):
            storage.create(disk, 8192, overwrite=True)
    finally:
        subprocess.run(["chattr", "-i", str(disk.path)], check=True)
