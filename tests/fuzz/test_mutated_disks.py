"""Whatever stands on a guest's disk, reading it ends soon and in bounds; and what is skipped, a checker does not need.

`make stress` runs many thousands of cases, this is a sample. One is named by its disk and its seed, and run again by
``python -m tests.fuzz --replay ext4:123``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ..ext_images import reported
from .bases import RECIPES, make_base
from .repaired import compare

ROOT = Path(__file__).parents[2]


def fuzz(*arguments: str) -> str:
    """What the command prints; nothing has failed."""
    done = subprocess.run([sys.executable, "-m", "tests.fuzz", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def _every_kind(requires: Callable[..., None]) -> None:
    """All kinds of disks can be made here."""
    programs = {program for recipe in RECIPES.values() for program in recipe.programs}
    requires(*sorted(programs), root=True)


@pytest.mark.usefixtures("_every_kind")
def test_no_mutated_disk_makes_its_reader_hang_crash_or_say_nonsense() -> None:
    said = fuzz("--cases", "560", "--inspect-every", "20")
    assert "left out" not in said
    # Were all of them kept, or none, nothing but the first checks would have been reached.
    for name in RECIPES:
        (line,) = [line for line in said.splitlines() if line.startswith(f"{name}: ")]
        assert "skips" in line
        assert "keeps" in line


def test_what_a_checker_makes_of_a_mutated_ext_is_the_same_without_what_is_skipped(requires: Callable[..., None]) -> None:
    requires("mkfs.ext4", "debugfs", "dumpe2fs", "e2fsck")
    said = fuzz("--compare", "--cases", "140", "--bases", "ext2", "ext4", "ext4-uninit", "ext4-dirty", "ext3-dirty")
    assert "sound" in said
    assert "repaired" in said


BAD = """
import ctypes, os, sys
from pathlib import Path
from tests.fuzz.bases import make_base
from tests.fuzz.harness import run_batch
def bad(disk):
    {body}
print(run_batch(make_base("swap", Path(sys.argv[1])), range(2), bad, 0.2).failures)
"""


@pytest.mark.parametrize(
    ("body", "why"),
    [
        pytest.param("while True: pass", "hangs", id="hangs"),
        pytest.param("ctypes.string_at(0)", "SIGSEGV", id="crashes"),
        pytest.param("bytearray(1 << 30)", "MemoryError", id="takes memory"),
        pytest.param("int('x')", "ValueError", id="raises"),
        pytest.param("os.fork()", "PermissionError", id="starts something"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_noticed(body: str, why: str, tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("mkswap")
    command = [sys.executable, "-c", BAD.format(body=body), tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(why) == 2


def test_a_reader_that_does_not_look_into_the_journal_is_found_out(tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("mkfs.ext4", "debugfs", "dumpe2fs", "e2fsck")
    base = make_base("ext4-dirty", tmp_path)
    stale, _ = reported(base.path, is_sound=False)
    assert any(compare(base, seed, tmp_path, lambda _: stale).failures for seed in range(10))
