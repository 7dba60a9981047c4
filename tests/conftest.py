"""What all tests share: programs they need, filesystems on loop devices, and a guest that is a real process."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SEARCH_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
os.environ["PATH"] = SEARCH_PATH  # mkfs and losetup live in sbin, which is not on every user's path

# Shells have their background jobs ignore Ctrl-C, and programs that are started inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# An editable install is found by a hook of the environment's Python; child processes of tests are given sys.path instead.
for _package in ("diskhaul", "diskhaul_plugins", "diskhaul_native"):
    _spec = importlib.util.find_spec(_package)
    if _spec is not None and _spec.origin is not None:
        _root = str(Path(_spec.origin).parent.parent)
        if _root not in sys.path:
            sys.path.append(_root)


def requires(*programs: str, root: bool = False) -> None:
    """Skip the running test when a program (or root) is missing; in CI nothing is skipped, so fail there."""
    missing = [program for program in programs if shutil.which(program) is None]
    reasons = [f"needs {', '.join(missing)}: install it or run 'make test' as root"] if missing else []
    if root and os.geteuid() != 0:
        reasons.append("needs root")
    if reasons:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("; ".join(reasons))


@pytest.fixture(name="requires")
def _requires() -> Callable[..., None]:
    return requires


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """A command that runs in the test's own process ignores stopping signals at its end, as if the process were about to go."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


class LoopFilesystem:
    """A filesystem of its own on a loop device, mounted at `path`."""

    def __init__(self, work: Path, kind: str, size_mib: int, mkfs_options: tuple[str, ...] = ()) -> None:
        requires(f"mkfs.{kind}", "losetup", "mount", root=True)
        self.image = work / f"{kind}.img"
        self.path = work / f"{kind}.mnt"
        self.path.mkdir()
        with open(self.image, "wb") as image:
            image.truncate(size_mib << 20)
        subprocess.run([f"mkfs.{kind}", "-q", *mkfs_options, str(self.image)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(self.image), str(self.path)], check=True)

    def close(self) -> None:
        subprocess.run(["umount", str(self.path)], check=True)
        self.image.unlink()


@pytest.fixture
def loop_filesystem(tmp_path: Path) -> Iterator[Callable[..., LoopFilesystem]]:
    """Make mounted filesystems: ``loop_filesystem("xfs", size_mib=400)``; unmounted when the test ends."""
    made: list[LoopFilesystem] = []

    def make(kind: str, size_mib: int = 400, mkfs_options: tuple[str, ...] = ()) -> LoopFilesystem:
        work = tmp_path / f"fs{len(made)}"
        work.mkdir()
        filesystem = LoopFilesystem(work, kind, size_mib, mkfs_options)
        made.append(filesystem)
        return filesystem

    yield make
    for filesystem in reversed(made):
        filesystem.close()


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[Callable[[Path], str]]:
    """Attach image files as block devices: ``device = loop_device(image)``; detached when the test ends."""
    devices: list[str] = []

    def attach(image: Path) -> str:
        requires("losetup", root=True)
        attached = subprocess.run(["losetup", "-f", "--show", str(image)], check=True, capture_output=True, text=True)
        device = attached.stdout.strip()
        devices.append(device)
        return device

    yield attach
    for device in reversed(devices):
        subprocess.run(["losetup", "-d", device], check=True)
