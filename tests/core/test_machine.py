"""Facts about the machine: there, of the right kind, and which paths lie on one disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from diskhaul.machine import machine_facts, same_device
from diskhaul.mounts import mount_of
from diskhaul.version import __version__


def test_the_machine_has_a_processor_cores_memory_and_a_kernel() -> None:
    facts = machine_facts()
    assert facts.keys() == {"cpu", "cores", "memory", "kernel", "architecture", "diskhaul"}
    assert facts["cores"] == len(os.sched_getaffinity(0))
    assert isinstance(facts["memory"], int)
    assert facts["memory"] > 1 << 20
    assert str(facts["kernel"]).startswith("Linux ")
    assert facts["diskhaul"] == __version__


def test_a_file_and_a_directory_are_told_with_what_they_lie_on(tmp_path: Path) -> None:
    file = tmp_path / "disk.raw"
    file.touch()
    facts = machine_facts(source=file, target=tmp_path)
    mount = mount_of(tmp_path)
    assert mount is not None
    assert (facts["source"], facts["target"]) == (str(file), str(tmp_path))
    assert (facts["source_filesystem"], facts["source_device"]) == (mount.kind, mount.source)
    assert "source_filesystem" not in machine_facts(source=tmp_path / "nothing")


def test_paths_on_one_filesystem_lie_on_one_device(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert same_device(tmp_path / "file", tmp_path)
    assert not same_device(tmp_path / "nothing", tmp_path)
    assert not same_device(Path("/proc"), Path("/sys"))


def test_a_block_device_is_told_by_its_name_and_is_the_disk_of_what_lies_on_it(
    tmp_path: Path, loop_device: Callable[[Path], str], loop_filesystem: Callable[..., object]
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    device = Path(loop_device(image))
    assert machine_facts(source=device)["source_device"] == str(device)
    assert not same_device(device, tmp_path)
    mounted = loop_filesystem("ext4", size_mib=16)
    mount = mount_of(mounted.path)  # type: ignore[attr-defined]
    assert mount is not None
    assert same_device(Path(mount.source), mounted.path)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["source", "target"])
def test_what_is_not_given_is_not_told(name: str) -> None:
    assert not [fact for fact in machine_facts() if fact.startswith(name)]
