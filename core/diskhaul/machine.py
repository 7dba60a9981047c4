"""What a measurement was made on: processor, memory, kernel, and what the disks and directories lie on. Only looks."""

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Mapping
from pathlib import Path

from .mounts import mount_of
from .options import Setting
from .version import __version__


def machine_facts(*, source: Path | None = None, target: Path | None = None) -> Mapping[str, Setting]:
    """Return facts about this machine, and about a source (file or device) and a target directory, by name.

    What cannot be found out is left out. ``memory`` is bytes; ``cores`` those that this process may use.
    """
    facts: dict[str, Setting] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": _memory(),
        "kernel": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "diskhaul": __version__,
    }
    for role, path in (("source", source), ("target", target)):
        if path is not None:
            facts |= {f"{role}{name}": value for name, value in _place(path).items()}
    return {name: value for name, value in facts.items() if value not in ("", 0)}


def same_device(one: Path, other: Path) -> bool:
    """Whether two paths (files, devices, directories) lie on the same disk, as far as the kernel tells."""
    first, second = _disk_number(one), _disk_number(other)
    return first is not None and first == second


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model", "cpu model")))
    return next(models, "") or platform.processor() or platform.machine()


def _memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def _place(path: Path) -> dict[str, str]:
    """The path itself (its name is ""), its filesystem and device."""
    found = {"": os.path.realpath(path)}
    try:
        status = os.stat(path)
    except OSError:
        return found
    if stat.S_ISBLK(status.st_mode):
        found["_device"] = _device_name(os.major(status.st_rdev), os.minor(status.st_rdev))
        return found
    mount = mount_of(path)
    if mount is not None:
        found["_filesystem"], found["_device"] = mount.kind, mount.source
    return found


def _device_name(major: int, minor: int) -> str:
    try:
        return f"/dev/{Path(f'/sys/dev/block/{major}:{minor}').resolve(strict=True).name}"
    except OSError:
        return f"{major}:{minor}"


def _disk_number(path: Path) -> str | None:
    """The number of the whole disk that `path` is, or lies on; of its filesystem where that is on no single disk."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    try:
        entry = Path("/sys/dev/block", name).resolve(strict=True)
        return (entry.parent / "dev").read_text().strip() if (entry / "partition").exists() else name
    except OSError:
        return name
