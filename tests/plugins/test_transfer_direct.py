"""Files of an export that are written past the page cache: their bytes, what they read back, and filesystems that refuse."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import diskhaul_native as native
from diskhaul.api import BackendContext, DirectStoreFile
from diskhaul.errors import StorageError
from diskhaul.formats.export_id import partial_name
from diskhaul.model import Cluster, Node
from diskhaul.testing.conformance.transfers import INSTANCE, NEW
from diskhaul_plugins.transfers.direct import LARGEST_BLOCK, STAGE_SIZE
from diskhaul_plugins.transfers.directory import DirectoryFile, DirectoryTransfer, DirectoryWriter

MIB = 1 << 20


def begin(exports: Path) -> DirectoryWriter:
    transfer = DirectoryTransfer(BackendContext(cluster=Cluster(name="lab", state_dir=exports / "state")))
    return transfer.store(Node(name="beta", export_dir=exports)).begin(INSTANCE, NEW)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[DirectoryWriter]:
    made = begin(tmp_path)
    yield made
    made.abort()


@pytest.fixture
def file(writer: DirectoryWriter) -> DirectoryFile:
    made = writer.create("disk-0")
    made.use_direct_io("always")
    return made


def stored(tmp_path: Path) -> Path:
    return tmp_path / INSTANCE / partial_name(NEW) / "disk-0"


@pytest.mark.parametrize("length", [0, 1, 4096, STAGE_SIZE - 1, STAGE_SIZE, STAGE_SIZE + 1, 3 * STAGE_SIZE + 12345])
def test_what_is_appended_in_pieces_is_there_to_the_byte(file: DirectoryFile, tmp_path: Path, length: int) -> None:
    content = os.urandom(length)
    for begin_at in range(0, length, 700_001):
        file.append([content[begin_at : begin_at + 350_000], b"", content[begin_at + 350_000 : begin_at + 700_001]])
    file.finish()
    assert stored(tmp_path).read_bytes() == content


def test_what_has_settled_is_not_in_the_cache_and_can_be_read_back(file: DirectoryFile, tmp_path: Path) -> None:
    content = os.urandom(STAGE_SIZE + 5000)
    assert isinstance(file, DirectStoreFile)
    file.append([content])
    assert file.settled == STAGE_SIZE
    with open(stored(tmp_path), "rb") as opened:
        assert native.cached_bytes(opened.fileno(), 0, STAGE_SIZE) == 0
    view = native.aligned_buffer(MIB)
    assert file.read_back(MIB, view)
    assert view == content[MIB : 2 * MIB]


def test_what_has_been_drained_lies_in_the_file_but_for_what_is_not_worth_a_write(file: DirectoryFile, tmp_path: Path) -> None:
    content = b""
    for length in (5, LARGEST_BLOCK - 5, LARGEST_BLOCK - 1, 10_001, 1, STAGE_SIZE + 700, 0, 2 * STAGE_SIZE):
        part = os.urandom(length)
        file.append([part])
        content += part
        rest = file.drain()
        assert len(rest) < LARGEST_BLOCK
        assert stored(tmp_path).read_bytes() + rest == content
        assert file.settled == len(content) - len(rest)
    file.finish()
    assert stored(tmp_path).read_bytes() == content


def test_what_is_drained_where_direct_writes_are_refused_goes_through_the_cache(
    file: DirectoryFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(native, "write_from", refuse)
    content = os.urandom(100_001)
    file.append([content])
    assert file.drain() == b""
    file.append([b"more"])
    assert file.drain() == b""
    file.finish()
    assert stored(tmp_path).read_bytes() == content + b"more"


def test_what_cannot_be_drained_is_an_error_that_stays(file: DirectoryFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **more: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    file.append([os.urandom(100_001)])
    with monkeypatch.context() as patched:
        patched.setattr(native, "write_from", fail)
        with pytest.raises(StorageError, match="cannot write at offset 0: Input/output error"):
            file.drain()
    with pytest.raises(StorageError, match="an earlier write failed"):
        file.drain()
    with pytest.raises(StorageError, match="an earlier write failed"):
        file.finish()


def test_read_back_shows_what_the_medium_holds_and_not_what_was_written(file: DirectoryFile, tmp_path: Path) -> None:
    file.append([bytes(STAGE_SIZE)])
    with open(stored(tmp_path), "r+b") as other:
        os.pwrite(other.fileno(), b"rot", MIB)
    view = native.aligned_buffer(MIB)
    assert file.read_back(MIB, view)
    assert view[:3] == b"rot"


def test_chunks_written_in_any_order_keep_their_holes(file: DirectoryFile, tmp_path: Path) -> None:
    data, size = os.urandom(MIB), 8 * MIB + 1000
    chunk = native.aligned_buffer(MIB)
    chunk[:] = data[: MIB // 2] + bytes(MIB // 2)
    tail = native.aligned_buffer(1000)
    tail[:] = data[:1000]
    assert file.write(8 * MIB, tail) == 1000
    assert file.write(4 * MIB, chunk) == MIB // 2
    file.set_size(size)
    file.finish()
    assert stored(tmp_path).read_bytes() == bytes(4 * MIB) + bytes(chunk) + bytes(3 * MIB) + data[:1000]
    assert stored(tmp_path).stat().st_blocks * 512 < MIB


def test_a_buffer_that_is_not_aligned_is_written_all_the_same(file: DirectoryFile, tmp_path: Path) -> None:
    content = os.urandom(MIB + 3)
    file.write(0, memoryview(content)[3:])
    file.finish()
    assert stored(tmp_path).read_bytes() == content[3:]


def test_without_direct_io_nothing_settles_and_nothing_is_read_back(writer: DirectoryWriter) -> None:
    file = writer.create("disk-0")
    file.use_direct_io("never")
    file.append([os.urandom(2 * STAGE_SIZE)])
    assert file.settled == 0
    assert not file.read_back(0, native.aligned_buffer(MIB))


def test_closing_leaves_no_descriptor(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    made = begin(tmp_path)
    for number, ending in enumerate(("finish", "close")):
        file = made.create(f"disk-{number}")
        file.use_direct_io("always")
        file.append([bytes(STAGE_SIZE)])
        getattr(file, ending)()
    made.abort()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_filesystem_that_fills_up_is_an_error_that_stays(loop_filesystem: Callable[..., Any]) -> None:
    exports = loop_filesystem("ext4", size_mib=32).path
    made = begin(exports)
    file = made.create("disk-0")
    file.use_direct_io("always")
    with pytest.raises(StorageError, match=r"cannot write at offset \d+: No space left on device"):
        file.append([os.urandom(STAGE_SIZE)] * 20)
    with pytest.raises(StorageError, match="an earlier write failed"):
        file.finish()
    made.abort()
    assert list(exports.glob(f"{INSTANCE}/.*")) == []


CHILD = """
import sys
from pathlib import Path
from tests_direct import begin
file = begin(Path(sys.argv[1])).create("disk-0")
file.use_direct_io("auto")
content = Path(sys.argv[2]).read_bytes()
for at in range(0, len(content), 1 << 20):
    file.append([content[at : at + (1 << 20)]])
settled = file.settled
file.finish()
print(settled)
"""


def traced(tmp_path: Path, content: bytes, fault: str) -> subprocess.CompletedProcess[str]:
    """Write `content` to an export's file in a process whose system calls on that file fail as `fault` says."""
    (tmp_path / "content").write_bytes(content)
    (tmp_path / "tests_direct.py").write_text(Path(__file__).read_text())
    (tmp_path / "exports").mkdir()
    path = stored(tmp_path / "exports")
    log = tmp_path / "strace.log"
    strace = ["strace", "-f", "-qq", "-o", str(log), "-P", str(path), f"--trace={fault.split(':')[0]}", f"--inject={fault}"]
    python = os.path.realpath(sys.executable)
    finished = subprocess.run(
        [*strace, python, "-c", CHILD, str(tmp_path / "exports"), str(tmp_path / "content")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "INJECTED" in log.read_text(), "no fault was injected"
    return finished


@pytest.mark.parametrize("call", [1, 2])
def test_a_filesystem_that_refuses_direct_writes_only_when_it_comes_to_them_is_written_through_the_cache(
    tmp_path: Path, requires: Callable[..., None], call: int
) -> None:
    requires("strace")
    content = os.urandom(3 * STAGE_SIZE + 777)
    finished = traced(tmp_path, content, f"pwrite64:error=EINVAL:when={call}")
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) == (call - 1) * STAGE_SIZE
    assert stored(tmp_path / "exports").read_bytes() == content


@pytest.mark.parametrize(
    ("fault", "words"), [("pwrite64:error=EIO:when=2", "cannot write"), ("fsync:error=EIO", "make it durable")]
)
def test_an_error_of_the_medium_is_final(tmp_path: Path, requires: Callable[..., None], fault: str, words: str) -> None:
    requires("strace")
    finished = traced(tmp_path, os.urandom(3 * STAGE_SIZE), fault)
    assert finished.returncode == 1
    assert words in finished.stderr
    assert os.strerror(errno.EIO) in finished.stderr
