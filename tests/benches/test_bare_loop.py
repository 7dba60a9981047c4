"""The bare loop runs on any file, leaves nothing, and overwrites nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benches" / "bare_loop.py"


def bare_loop(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True, timeout=120)


def test_every_step_is_measured_and_nothing_is_left(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    with disk.open("wb") as file:
        file.write(os.urandom(9 << 20))
        file.truncate(40 << 20)
    ended = bare_loop(disk, tmp_path / "bare.out", "--rounds", "1")
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 6  # a heading and five steps
    assert all(float(figure) >= 0 for line in lines[1:] for figure in line.split()[-2:])
    assert os.listdir(tmp_path) == ["disk.raw"]


def test_a_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"x")
    ended = bare_loop(tmp_path / "precious", tmp_path / "precious")
    assert ended.returncode == 2
    assert "name a file that does not" in ended.stderr
    assert (tmp_path / "precious").read_bytes() == b"x"
