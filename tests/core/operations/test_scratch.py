from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from diskhaul.operations.scratch import empty, scratch_directory

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
