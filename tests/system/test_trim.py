"""A guest that runs is asked to give back what it does not use, before it is stopped or its disks are snapshotted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import diskhaul
from diskhaul.events import StageFinished, StageStarted
from diskhaul.testing.guest import ScriptedRuntime

MIB = 1 << 20
NAME = "web1.example.com"


def _run(*argv: object) -> str:
    return subprocess.run([str(word) for word in argv], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def disk(tmp_path: Path, requires: Callable[..., None]) -> Path:
    """An ext4 filesystem with a small file, full of what was deleted."""
    requires("mkfs.ext4", "losetup", "mount", "fstrim", root=True)
    path = tmp_path / "disk.raw"
    with open(path, "wb") as file:
        file.truncate(48 * MIB)
    _run("mkfs.ext4", "-q", "-E", "nodiscard", path)
    (tmp_path / "mnt").mkdir()
    _run("mount", "-o", "loop,nodiscard", path, tmp_path / "mnt")
    try:
        (tmp_path / "mnt" / "kept").write_bytes(b"kept" * 10_000)
        (tmp_path / "mnt" / "gone").write_bytes(os.urandom(30 * MIB))
        os.sync()
        (tmp_path / "mnt" / "gone").unlink()
    finally:
        _run("umount", tmp_path / "mnt")
    return path


def _guest_trims(disk: Path) -> Callable[[diskhaul.Instance], None]:
    """What a guest's fstrim comes to where discards reach the image."""

    def trim(instance: diskhaul.Instance) -> None:
        _run("mount", "-o", "loop", disk, disk.parent / "mnt")
        try:
            _run("fstrim", disk.parent / "mnt")
        finally:
            _run("umount", disk.parent / "mnt")

    return trim


def _export(disk: Path, runtime: ScriptedRuntime, events: list[object] | None = None, **options: object) -> diskhaul.ExportResult:
    chosen = {"zero_free_space": True, "zero_fill": "trim", "long_sleep": True, **options}
    return diskhaul.export(
        NAME,
        node="beta",
        config=_cluster(disk),
        options=diskhaul.ExportOptions(**chosen),  # type: ignore[arg-type]
        plugins=[runtime],
        on_event=(events if events is not None else []).append,
    )


def _cluster(disk: Path) -> diskhaul.Cluster:
    for name in ("alpha", "beta"):
        (disk.parent / name).mkdir(exist_ok=True)
    return diskhaul.Cluster(
        name="lab",
        state_dir=disk.parent / "state",
        nodes=[diskhaul.Node(name=name, export_dir=disk.parent / name) for name in ("alpha", "beta")],
        instances=[diskhaul.Instance(name=NAME, node="alpha", runtime="scripted", disks=[diskhaul.Disk(path=disk)])],
    )


def test_what_the_guest_gave_back_is_left_out(disk: Path) -> None:
    runtime = ScriptedRuntime(running=[NAME], can_trim=True, on_trim=_guest_trims(disk))
    events: list[object] = []
    result = _export(disk, runtime, events)
    assert result.warnings == () or not any("trim" in warning for warning in result.warnings)
    assert result.disks[0].bytes_read < 10 * MIB
    calls = [call for call, _ in runtime.calls if call in ("trim", "stop", "start")]
    assert calls == ["trim", "stop", "start"]
    stages = [event.stage for event in events if isinstance(event, StageStarted)]
    assert stages.index("trim") < stages.index("stop")
    assert "trim" in [event.stage for event in events if isinstance(event, StageFinished)]
    diskhaul.import_(NAME, config=_cluster(disk), to_dir=disk.parent / "back")
    restored = disk.parent / "back" / "disk-0.raw"
    assert restored.read_bytes() == disk.read_bytes()
    _run("e2fsck", "-fn", restored)


def test_a_trim_that_fails_is_a_warning_and_everything_is_sent(disk: Path) -> None:
    runtime = ScriptedRuntime(running=[NAME], can_trim=True, fail={"trim": {1}})
    result = _export(disk, runtime)
    assert any("scripted failure of trim" in warning for warning in result.warnings)
    assert result.disks[0].bytes_read > 30 * MIB
    assert runtime.running == {NAME}


def test_a_guest_that_is_off_is_not_asked(disk: Path) -> None:
    runtime = ScriptedRuntime(can_trim=True)
    result = _export(disk, runtime)
    assert any("does not run, so it cannot trim" in warning for warning in result.warnings)
    assert runtime.count("trim") == 0


def test_a_runtime_that_cannot_do_it_is_refused_beforehand(disk: Path) -> None:
    runtime = ScriptedRuntime(running=[NAME])
    with pytest.raises(diskhaul.RefusedError, match="cannot have it trim"):
        _export(disk, runtime)
    assert runtime.count("stop") == 0


def test_no_other_backend_has_the_guest_trim(disk: Path) -> None:
    runtime = ScriptedRuntime(running=[NAME], can_trim=True)
    _export(disk, runtime, zero_fill="skip")
    assert runtime.count("trim") == 0


def test_a_plan_says_when_it_will_be_known(disk: Path) -> None:
    runtime = ScriptedRuntime(running=[NAME], can_trim=True)
    options = diskhaul.ExportOptions(zero_free_space=True, zero_fill="trim", long_sleep=True)
    plan = diskhaul.plan(NAME, node="beta", config=_cluster(disk), options=options, plugins=[runtime])
    assert plan.disks[0].free_basis == "trim: known once the guest has given it back"
    assert any(step.startswith(f"have {NAME} give back") for step in plan.steps)
    assert runtime.count("trim") == 0
