"""benches/compare.py as a whole, on a small disk: rows for those who do it right, and only for those."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with open(path, "wb") as file:
        file.truncate(16 << 20)
        file.seek(1 << 20)
        file.write(os.urandom(1 << 20) + b"text " * 400_000)
    return path


@pytest.fixture
def diskhaul(tmp_path: Path) -> Path:
    """The diskhaul under test as a program."""
    program = tmp_path / "diskhaul"
    packages = os.pathsep.join(entry for entry in sys.path if entry)
    program.write_text(f'#!/bin/sh\nPYTHONPATH={packages} exec {sys.executable} -m diskhaul "$@"\n')
    program.chmod(0o755)
    return program


@pytest.fixture
def compare(tmp_path: Path, disk: Path, diskhaul: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, str(ROOT / "benches/compare.py"), "--work", str(tmp_path / "work"), "--disk", str(disk)]
        argv += ["--diskhaul", str(diskhaul), "--rounds", "1", "--cache", "hot", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}, timeout=240)

    return run


def test_each_program_gets_a_row_and_its_result_is_checked(
    compare: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("time", "zstd", "cp", "dd")
    names = "diskhaul,zstd-1,zstd-dc,cp,dd-sparse"
    finished = compare("--only", names, "--group", "compressed,uncompressed,restore", "--json", str(tmp_path / "results.json"))
    assert finished.returncode == 0, finished.stderr
    document = json.loads((tmp_path / "results.json").read_text())
    assert [(table["group"], [row["name"] for row in table["rows"]]) for table in document["tables"]] == [
        ("compressed", ["diskhaul", "zstd-1"]),
        ("uncompressed", ["diskhaul", "cp", "dd-sparse"]),
        ("restore", ["diskhaul", "zstd-dc"]),
    ]
    for table in document["tables"]:
        assert all(row["wall_s"] > 0 and row["peak"] > 0 and row["apparent"] > 0 for row in table["rows"])
        assert all(row["ratio"] for row in table["rows"])
    assert os.listdir(tmp_path / "work/out/exports") == []


def test_two_disks_and_a_sparse_tebibyte_are_exported_and_checked(
    compare: Callable[..., subprocess.CompletedProcess[str]], requires: Callable[..., None]
) -> None:
    requires("time", "zstd")
    finished = compare("--group", "shape", "--variant", "unverified=--verify none")
    assert finished.returncode == 0, finished.stderr
    assert len([line for line in finished.stdout.splitlines() if "unverified" in line]) == 4
    assert "1 TiB disk" in finished.stdout


def test_a_wrong_result_is_an_error_and_no_row(
    compare: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("time", "cp", "dd")
    liar = tmp_path / "liars/cp"
    liar.parent.mkdir()
    liar.write_text(f'#!/bin/sh\n{shutil.which("cp")} "$@" && printf x | dd of="$2" bs=1 seek=5000 conv=notrunc\n')
    liar.chmod(0o755)
    results = tmp_path / "results.json"
    arguments = ("--group", "uncompressed", "--only", "cp,dd-sparse", "--json", str(results))
    finished = compare(*arguments, path=f"{liar.parent}:{os.environ['PATH']}")
    assert finished.returncode == 1
    problem = f"uncompressed/cp: {tmp_path}/work/out/disk.raw differs from {tmp_path}/disk.raw at offset 5000"
    assert f"FAILED: {problem}" in finished.stdout
    document = json.loads(results.read_text())
    assert document["failed"] == [problem]
    assert [row["name"] for row in document["tables"][0]["rows"]] == ["dd-sparse"]


def test_who_is_not_installed_is_named_and_left_out(
    compare: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("time", "cp")
    few = tmp_path / "few"
    few.mkdir()
    for program in ("time", "cp"):
        (few / program).symlink_to(shutil.which(program) or "")
    finished = compare("--group", "uncompressed", "--only", "cp,qemu-img", path=str(few))
    assert finished.returncode == 0, finished.stderr
    assert "left out: uncompressed/qemu-img: qemu-img not installed" in finished.stdout
    assert "left out: uncompressed/qemu-img: qemu-img not installed" in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--only", "zip"), "compare.py: --only: there is no 'zip' in the groups"),
        (("--disk", "/nowhere/disk.raw"), "compare.py: --disk: "),
        (("--json", "/nowhere/results.json"), "compare.py: /nowhere/results.json cannot be written"),
        (("--from", "/dev/null"), "compare.py: /dev/null holds no results of this program"),
    ],
)
def test_what_cannot_begin_is_one_line_and_status_2(
    compare: Callable[..., subprocess.CompletedProcess[str]],
    arguments: tuple[str, ...],
    words: str,
    requires: Callable[..., None],
) -> None:
    requires("time")
    finished = compare(*arguments)
    assert finished.returncode == 2
    (line,) = finished.stderr.splitlines()
    assert line.startswith(words)


def test_a_working_directory_that_others_may_write_to_is_refused(
    compare: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, requires: Callable[..., None]
) -> None:
    requires("time")
    (tmp_path / "work").mkdir()
    (tmp_path / "work").chmod(0o777)
    finished = compare("--group", "uncompressed", "--only", "cp")
    assert finished.returncode == 2
    assert "others may write to it" in finished.stderr
    assert os.listdir(tmp_path / "work") == []


def test_an_interrupted_comparison_ends_what_it_has_started_and_says_so(
    tmp_path: Path, disk: Path, diskhaul: Path, requires: Callable[..., None]
) -> None:
    requires("time", "cp")
    slow = tmp_path / "slow/cp"
    slow.parent.mkdir()
    os.mkfifo(tmp_path / "started")
    version = f'[ "$1" != --version ] || exec {shutil.which("cp")} --version'
    slow.write_text(f"#!/bin/sh\n{version}\necho $$ >{tmp_path}/started\nexec sleep 600\n")
    slow.chmod(0o755)
    argv = [sys.executable, str(ROOT / "benches/compare.py"), "--work", str(tmp_path / "work"), "--disk", str(disk)]
    argv += ["--diskhaul", str(diskhaul), "--cache", "hot", "--group", "uncompressed", "--only", "cp,dd-sparse"]
    environment = {**os.environ, "PATH": f"{slow.parent}:{os.environ['PATH']}"}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        pid = int((tmp_path / "started").read_text())  # waits until it has been started
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: what has been measured so far is shown" in said
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    assert os.listdir(tmp_path / "work/out/exports") == []
