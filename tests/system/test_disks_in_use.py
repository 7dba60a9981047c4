"""A guest that counts as off, or as stopped, while something still writes to its disks: looked for whatever the runtime says."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import diskhaul
from diskhaul.errors import OperationFailedError

if TYPE_CHECKING:
    from .conftest import Lab, Unchanged

INSTANCE = "web1.example.com"
MakeUnchanged = Callable[["Lab"], "Unchanged"]
_WRITER = (
    "import os, sys; os.open(sys.argv[1], os.O_RDWR if sys.argv[2] == 'w' else os.O_RDONLY); print(flush=True); sys.stdin.read()"
)


@pytest.fixture
def opened() -> Iterator[Callable[[Path, str], int]]:
    """Processes that have a file open: ``pid = opened(path, "w")``; ended with the test."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(path: Path, mode: str) -> int:
        process = subprocess.Popen(
            [sys.executable, "-IS", "-c", _WRITER, str(path), mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        return process.pid

    yield start
    for process in processes:
        process.communicate()


def disk_of(lab: Lab) -> Path:
    path = lab.instances[INSTANCE].disks[0].path
    assert path is not None
    return path


# --- a guest that counts as off -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["runtime none", "status false", "pid file gone"])
def test_a_guest_that_runs_and_counts_as_off_is_refused_and_the_process_named(
    lab: Lab, unchanged: MakeUnchanged, wrong: str
) -> None:
    options: dict[str, Any] = {"status": ["false"]} if wrong == "status false" else {}
    guest = lab.add_guest(runtime_options=options)
    if wrong == "runtime none":
        lab.instances[INSTANCE] = diskhaul.Instance(
            name=INSTANCE, node="alpha", state="down", disks=lab.instances[INSTANCE].disks
        )
    elif wrong == "pid file gone":
        lab.instances[INSTANCE] = diskhaul.Instance(
            name=INSTANCE,
            node="alpha",
            runtime="command",
            runtime_options=guest.runtime_options | {"status": ["test", "-e", str(lab.path / "web1.pid")]},
            disks=lab.instances[INSTANCE].disks,
        )
    lab.write_config()
    check = unchanged(lab)

    done = lab.cli("export", "web1", "--node", "beta")

    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len([line for line in lines if line.startswith("diskhaul: ")]) == 1, lines
    assert f"disk 0 ({disk_of(lab)})" in lines[-1]
    assert f"open for writing in process {guest.pid} (" in lines[-1]
    assert "counts as off" in lines[-1]
    assert "end that" in lines[-1]
    check.check(but=["journal"])
    assert guest.running
    guest.wait_for_progress()


def test_every_disk_that_is_in_use_is_told_in_one_refusal_with_the_other_problems(
    lab: Lab, opened: Callable[[Path, str], int]
) -> None:
    lab.add_guest(running=False, disks=2)
    pids = [opened(disk.path, "w") for disk in lab.instances[INSTANCE].disks if disk.path is not None]
    lab.node_settings = {"beta": {"drained": True}}

    with pytest.raises(diskhaul.RefusedError) as refused:
        lab.export()

    assert len(refused.value.problems) == 3
    for index, pid in enumerate(pids):
        assert any(f"disk {index} " in line and f"process {pid} " in line for line in refused.value.problems)


def test_a_plan_is_refused_likewise(lab: Lab, opened: Callable[[Path, str], int]) -> None:
    lab.add_guest(running=False)
    opened(disk_of(lab), "w")

    with pytest.raises(diskhaul.RefusedError, match="open for writing"):
        diskhaul.plan(INSTANCE, node="beta", config=lab.cluster())


def test_who_only_reads_does_not_stop_an_export(lab: Lab, opened: Callable[[Path, str], int]) -> None:
    lab.add_guest(running=False)
    opened(disk_of(lab), "r")

    result = lab.export()

    assert result.consistency == "stopped"


def test_what_this_process_has_open_does_not_stop_an_export(lab: Lab) -> None:
    lab.add_guest(running=False)
    with open(disk_of(lab), "r+b"):
        assert lab.export().export is not None


def test_an_instance_without_a_guest_is_exported(lab: Lab) -> None:
    lab.add_guest(running=False)
    lab.instances[INSTANCE] = diskhaul.Instance(name=INSTANCE, node="alpha", state="down", disks=lab.instances[INSTANCE].disks)

    result = lab.export()

    assert result.export is not None
    assert result.warnings == ()


def test_a_device_that_is_mounted_to_be_written_is_refused_and_one_mounted_to_be_read_is_not(
    lab: Lab, requires: Callable[..., None], loop_device: Callable[[Path], str]
) -> None:
    requires("mkfs.ext4", "mount", root=True)
    image, mount = lab.path / "image", lab.path / "mounted"
    mount.mkdir()
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    device = Path(loop_device(image))
    lab.instances[INSTANCE] = diskhaul.Instance(name=INSTANCE, node="alpha", disks=[diskhaul.Disk(storage="block", path=device)])
    subprocess.run(["mount", str(device), str(mount)], check=True)
    try:
        with pytest.raises(diskhaul.RefusedError) as refused:
            lab.export()
    finally:
        subprocess.run(["umount", str(mount)], check=True)
    assert len(refused.value.problems) == 1
    assert f"disk 0 ({device})" in refused.value.problems[0]
    assert f"mounted read-write on {mount}" in refused.value.problems[0]

    subprocess.run(["mount", "-o", "ro", str(device), str(mount)], check=True)
    try:
        assert lab.export().export is not None
    finally:
        subprocess.run(["umount", str(mount)], check=True)


# --- a guest that is said to have stopped -----------------------------------------------------------------------------------


def add_guest_that_only_says_that_it_stops(lab: Lab) -> None:
    """Its runtime goes by a file; the process is none of its concern."""
    lab.add_guest()
    up = lab.path / "up"
    up.touch()
    disks = lab.instances[INSTANCE].disks
    lab.instances[INSTANCE] = diskhaul.Instance(
        name=INSTANCE,
        node="alpha",
        runtime="command",
        runtime_options={
            "start": ["touch", str(up)],
            "stop": ["rm", str(up)],
            "status": ["test", "-e", str(up)],
            "remove": ["rm", *(str(disk.path) for disk in disks)],
        },
        disks=disks,
    )


@pytest.mark.parametrize("remove", [False, True])
def test_a_stop_after_which_the_disk_is_still_written_to_fails_the_export_and_the_guest_is_brought_back(
    lab: Lab, unchanged: MakeUnchanged, remove: bool
) -> None:
    add_guest_that_only_says_that_it_stops(lab)
    check = unchanged(lab)

    with pytest.raises(OperationFailedError) as failed:
        lab.export(remove_instance=remove)

    assert failed.value.exit_code == 3
    assert failed.value.parts == ("shutdown",)
    assert f"open for writing in process {lab.guests[INSTANCE].pid} (" in str(failed.value)
    assert f"disk 0 ({disk_of(lab)})" in str(failed.value)
    assert (lab.path / "up").exists()
    assert lab.guests[INSTANCE].running
    assert disk_of(lab).exists()
    assert lab.listed() == []
    check.check()


def test_a_guest_that_lets_go_of_its_disk_a_moment_after_its_stop_is_waited_for(
    lab: Lab, opened: Callable[[Path, str], int]
) -> None:
    add_guest_that_only_says_that_it_stops(lab)
    guest = lab.guests[INSTANCE]
    late = ["sh", "-c", f"rm {lab.path / 'up'}; (sleep 0.3; kill -TERM {guest.pid}) >/dev/null 2>&1 &"]
    instance = lab.instances[INSTANCE]
    lab.instances[INSTANCE] = diskhaul.Instance(
        name=INSTANCE,
        node="alpha",
        runtime="command",
        runtime_options={**instance.runtime_options, "stop": late},
        disks=instance.disks,
    )

    result = lab.export()

    assert result.consistency == "stopped"
    assert result.export is not None
    lab.check_bytes(result.export)


def test_a_disk_that_somebody_begins_to_write_to_while_it_is_read_fails_the_export(
    plain_lab: Lab, opened: Callable[[Path, str], int]
) -> None:
    lab = plain_lab
    lab.add_guest()
    begun: list[int] = []

    def on_event(event: object) -> None:
        if type(event).__name__ == "StageStarted" and getattr(event, "stage", "") == "send" and not begun:
            begun.append(opened(disk_of(lab), "w"))

    with pytest.raises(OperationFailedError) as failed:
        lab.export(long_sleep=True, on_event=on_event)

    assert begun
    assert f"open for writing in process {begun[0]} (" in str(failed.value)
    assert lab.guests[INSTANCE].running
    assert lab.listed() == []


def test_an_instance_whose_disk_is_written_to_by_somebody_else_is_not_removed(
    lab: Lab, opened: Callable[[Path, str], int]
) -> None:
    lab.add_guest()
    begun: list[int] = []

    def on_event(event: object) -> None:
        if type(event).__name__ == "StageStarted" and getattr(event, "stage", "") == "remove":
            begun.append(opened(disk_of(lab), "w"))

    result = lab.export(remove_instance=True, on_event=on_event)

    assert result.export is not None
    assert len(result.incomplete) == 1
    assert "the instance was not removed" in result.incomplete[0]
    assert f"process {begun[0]} (" in result.incomplete[0]
    assert disk_of(lab).exists()
    assert lab.listed() == [("beta", result.export.export_id)]
