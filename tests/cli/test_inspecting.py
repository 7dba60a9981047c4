"""``inspect`` as it is typed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from .conftest import ENVIRONMENT, Lab, Ran

MIB = 1 << 20
HOSTILE = "\x1b[2Jroot<b>"

Run = Callable[..., Ran]


@pytest.fixture
def disk(tmp_path: Path, requires: Callable[..., None]) -> Path:
    """GPT with ext4, swap space and something unknown; the filesystem's label is an attack on terminals."""
    requires("sfdisk", "mke2fs", "mkswap")
    path = tmp_path / "disk.raw"
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(2 * MIB))
    ext, swap = tmp_path / "ext", tmp_path / "swap"
    ext.write_bytes(b"old" * (16 * MIB // 3))
    swap.write_bytes(b"out" * (8 * MIB // 3))
    for image, size in ((ext, 16), (swap, 8)):
        os.truncate(image, size * MIB)
    run("mke2fs", "-q", "-F", "-t", "ext4", "-E", "nodiscard", "-L", HOSTILE, "-d", tree, ext)
    run("mkswap", "-L", "swap0", swap)
    path.touch()
    os.truncate(path, 32 * MIB)
    run("sfdisk", "-q", path, text="label: gpt\nstart=2048, size=32768\nstart=34816, size=16384\nstart=51200, size=2048\n")
    with open(path, "r+b") as file:
        for offset, content in ((1, ext.read_bytes()), (17, swap.read_bytes()), (25, os.urandom(MIB))):
            file.seek(offset * MIB)
            file.write(content)
    return path


def run(*argv: str | Path, text: str | None = None) -> None:
    finished = subprocess.run([str(each) for each in argv], input=text, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def test_it_shows_what_is_where_what_is_free_and_a_map(diskhaul: Run, disk: Path) -> None:
    before = disk.read_bytes()
    ran = diskhaul("inspect", disk)
    assert ran.code == 0, ran.err
    rows = {line[2:14].strip(): line for line in ran.out.splitlines() if line.startswith(("  disk", "  partition"))}
    assert rows["disk"].split() == ["disk", "gpt", "32.0", "MiB"]
    assert rows["partition 1"].rstrip().endswith("clean")
    assert "ext4" in rows["partition 1"]
    assert rows["partition 2"].split()[2:] == ["swap", "swap0", "8.0", "MiB", "4.0", "KiB", "8.0", "MiB", "8.0", "MiB", "clean"]
    assert rows["partition 3"].endswith("nothing that is known")
    assert "\x1b" not in ran.out
    assert r"\x1b[2Jroot<b>" in ran.out
    drawn = [line.strip() for line in ran.out.splitlines() if len(line) == 66 and set(line.strip()) <= set("#?.-")]
    assert len(drawn) == 4
    assert set("".join(drawn)) == set("#?.-")
    assert "each character: 128.0 KiB" in ran.out
    assert disk.read_bytes() == before


def test_the_json_document_has_every_region_the_free_extents_and_the_picture(diskhaul: Run, disk: Path) -> None:
    document = diskhaul("--json", "inspect", disk).document
    assert document["exit_code"] == 0
    assert [each["type"] for each in document["regions"]] == ["gpt", "ext4", "swap", "unknown"]
    ext4, swap = document["regions"][1:3]
    assert ext4["label"] == HOSTILE
    assert (swap["offset"], swap["length"], swap["skipped"]) == (17 * MIB, 8 * MIB, 8 * MIB - 4096)
    assert [17 * MIB + 4096, 8 * MIB - 4096] in document["free"]
    assert sum(length for _, length in document["free"]) == ext4["skipped"] + swap["skipped"]
    assert document["free_bytes"] + document["data_bytes"] + document["hole_bytes"] == document["size"] == 32 * MIB
    picture = document["picture"]
    assert sum(picture["free"]) == document["free_bytes"]
    assert sum(picture["kept"]) == MIB
    assert picture["cell_size"] * len(picture["used"]) == 32 * MIB


def test_what_a_filesystem_calls_free_is_what_its_own_tool_says(diskhaul: Run, disk: Path, tmp_path: Path) -> None:
    said = subprocess.run(["dumpe2fs", "-h", tmp_path / "ext"], capture_output=True, text=True, check=True).stdout
    facts = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
    free = int(facts["Free blocks"]) * int(facts["Block size"])
    ext4 = diskhaul("--json", "inspect", disk).document["regions"][1]
    assert ext4["free"] == ext4["skipped"] == free


def test_a_backend_that_reads_only_swap_keeps_the_rest(diskhaul: Run, disk: Path) -> None:
    document = diskhaul("--json", "inspect", disk, "--zero-fill", "swap").document
    assert document["backend"] == "swap"
    assert document["regions"][1]["kept"]
    assert document["free"] == [[17 * MIB + 4096, 8 * MIB - 4096]]


def test_a_picture_is_written_and_replaced_but_nothing_else_is(diskhaul: Run, disk: Path, tmp_path: Path) -> None:
    svg = tmp_path / "disk.svg"
    for _ in range(2):
        ran = diskhaul("inspect", disk, "--svg", svg)
        assert ran.code == 0, ran.err
    assert f"picture        {svg}" in ran.out
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert "<b>" not in svg.read_text()

    for wrong, told in (
        (disk, "is the disk itself"),
        (tmp_path / "swap", "is no SVG picture"),
        (tmp_path, "is no regular file"),
        (tmp_path / "no/disk.svg", "is not a directory"),
    ):
        before = disk.read_bytes()
        ran = diskhaul("--no-progress", "inspect", disk, "--svg", wrong)
        assert ran.code == 2
        (problem,) = ran.problems
        assert problem.startswith("diskhaul: --svg: ")
        assert told in problem
        assert disk.read_bytes() == before


def test_what_is_no_disk_is_refused_in_a_line(diskhaul: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty.raw"
    empty.touch()
    for wrong, told in (
        (tmp_path / "missing.raw", "does not exist"),
        (tmp_path, "is a directory"),
        (empty, "is empty: there is nothing to look at"),
        ("/dev/null", "is not a regular file"),
        ("missing.raw", "there is no such file, and without a configuration no instance"),
        ("", "DISK is empty"),
    ):
        ran = diskhaul("inspect", wrong)
        assert (ran.code, ran.out) == (2, "")
        (problem,) = [line for line in ran.problems if line.startswith("diskhaul: ")]
        assert told in problem
        refused = diskhaul("--json", "inspect", wrong)
        assert refused.document["error"]["exit_code"] == 2


def test_a_disk_of_zeros_holds_nothing_and_all_of_it_is_kept(diskhaul: Run, tmp_path: Path) -> None:
    path = tmp_path / "zeros.raw"
    path.write_bytes(bytes(MIB))
    document = diskhaul("--json", "inspect", path).document
    assert document["free"] == []
    assert document["data_bytes"] == sum(document["picture"]["kept"]) == MIB


def test_a_disk_of_an_instance_is_found_by_its_name_and_a_file_goes_first(diskhaul: Run, lab: Lab, tmp_path: Path) -> None:
    config = ("--config", lab.config, "--json")
    for name in ("web1", "web1:0", "web1.example.com:0"):
        assert diskhaul(*config, "inspect", name).document["disk"] == str(lab.disk)
    assert "has no disk '1'" in diskhaul(*config, "inspect", "web1:1").document["error"]["message"]
    assert "has no disks" in diskhaul(*config, "inspect", "empty").document["error"]["message"]
    unknown = diskhaul("--config", lab.config, "inspect", "disk.raw")
    assert unknown.code == 2
    assert "there is no file disk.raw either" in unknown.err
    (tmp_path / "work/web1").write_bytes(bytes(4096))
    assert diskhaul(*config, "inspect", "web1").document["size"] == 4096


def test_it_warns_of_a_disk_that_somebody_writes_to(diskhaul: Run, disk: Path) -> None:
    with open(disk, "r+b"):
        ran = diskhaul("inspect", disk)
        document = diskhaul("--json", "inspect", disk).document
    assert ran.code == 0
    (warning,) = [line for line in ran.problems if "warning" in line]
    assert f"process {os.getpid()} " in warning
    assert "what is seen of the disk may be out of date" in warning
    assert len(document["in_use"]) == 1
    assert diskhaul("--json", "inspect", disk).document["in_use"] == []


def test_a_block_device_is_inspected_as_its_image_is(diskhaul: Run, disk: Path, loop_device: Callable[[Path], str]) -> None:
    image = diskhaul("--json", "inspect", disk).document
    device = diskhaul("--json", "inspect", loop_device(disk)).document
    assert device["regions"] == image["regions"]
    assert device["free"] == image["free"]


def test_on_a_terminal_the_map_is_coloured_unless_nobody_wants_that(disk: Path) -> None:
    import pty

    def shown(**environment: str) -> str:
        ours, theirs = pty.openpty()
        program = [sys.executable, "-m", "diskhaul", "--quiet", "inspect", str(disk)]
        with subprocess.Popen(program, env=ENVIRONMENT | environment, stdin=subprocess.DEVNULL, stdout=theirs) as process:
            os.close(theirs)
            said = bytearray()
            try:
                while part := os.read(ours, 1 << 16):
                    said += part
            except OSError:
                pass  # a terminal's way to say that nobody writes to it any more
            finally:
                os.close(ours)
        assert process.returncode == 0
        return said.decode()

    assert "\x1b[34m\u2588" in shown(TERM="xterm")
    assert "\x1b" not in shown(TERM="xterm", NO_COLOR="1")
    assert "\u2588" in shown(TERM="xterm", NO_COLOR="1")
    assert "\x1b" not in shown(TERM="dumb")
