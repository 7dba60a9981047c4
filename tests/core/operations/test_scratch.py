from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from diskhaul.errors import StorageError
from diskhaul.model import Disk
from diskhaul.operations.scratch import empty, scratch_directory, target_problems

HOLDER = """
import sys
from pathlib import Path
from diskhaul.operations.scratch import scratch_directory
with scratch_directory(Path(sys.argv[1])) as path:
    (path / "file").write_text("x")
    print(path, flush=True)
    sys.stdin.read()
"""


def holder(target: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def test_a_scratch_directory_is_ours_alone_and_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    with scratch_directory(tmp_path) as path:
        assert path.parent == tmp_path
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        (path / "deep/er").mkdir(parents=True)
        (path / "deep/er/file").write_text("x")
    assert os.listdir(tmp_path) == []


def test_it_goes_when_the_block_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with scratch_directory(tmp_path) as path:
            (path / "file").write_text("x")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_goes_with_the_next_one_and_nothing_else_does(tmp_path: Path) -> None:
    (tmp_path / ".diskhaul-scratch-of-somebody").mkdir()
    (tmp_path / ".diskhaul-scratch-0123456789abcdef").write_text("a file, not a directory")
    with holder(tmp_path) as dead, holder(tmp_path) as alive:
        assert dead.stdout is not None
        assert alive.stdout is not None
        left, held = Path(dead.stdout.readline().strip()), Path(alive.stdout.readline().strip())
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert left.exists()
        with scratch_directory(tmp_path):
            assert not left.exists()
            assert held.exists(), "its process is alive"
        alive.communicate("")
    assert sorted(os.listdir(tmp_path)) == [".diskhaul-scratch-0123456789abcdef", ".diskhaul-scratch-of-somebody"]


def test_emptying_a_directory_follows_no_link(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    full = tmp_path / "full"
    (full / "inner").mkdir(parents=True)
    (full / "link").symlink_to(kept)
    (full / "file").write_text("x")
    empty(full)
    assert os.listdir(full) == []
    assert os.listdir(kept) == ["file"]


def test_a_target_that_is_none_or_that_everybody_may_change_is_told(tmp_path: Path) -> None:
    assert target_problems(tmp_path, [Disk(path=tmp_path / "nothing"), Disk()]) == []
    assert "is not a directory" in target_problems(tmp_path / "nowhere", [])[0]
    tmp_path.chmod(0o777)
    assert "chmod o-w" in target_problems(tmp_path, [])[0]
    tmp_path.chmod(0o1777)  # as /tmp
    assert target_problems(tmp_path, []) == []


def test_a_directory_that_cannot_be_made_or_not_be_removed_is_a_storage_error(tmp_path: Path) -> None:
    def use(target: Path, *, fail: bool) -> None:
        with scratch_directory(target) as path:
            path.rename(tmp_path / "elsewhere")  # so that it cannot be removed
            if fail:
                raise KeyError

    with pytest.raises(StorageError, match="no directory can be made"), scratch_directory(tmp_path / "nowhere"):
        pass
    with pytest.raises(StorageError, match="could not be removed, do so by hand"):
        use(tmp_path, fail=False)
    (tmp_path / "elsewhere").rmdir()
    with pytest.raises(KeyError) as caught:
        use(tmp_path, fail=True)
    assert "could not be removed" in caught.value.__notes__[0]
