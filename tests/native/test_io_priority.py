"""The I/O priority of a thread."""

from __future__ import annotations

import ctypes
import errno
import platform
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

IOPRIO_GET = {"x86_64": 252, "aarch64": 31}
IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
VALUES = {"normal": [(0, 0), (2, 4)], "low": [(2, 7)], "idle": [(3, 0), (3, 7)]}


def io_priority() -> tuple[int, int]:
    """Class and level of the calling thread. Linux calls no class, and the best-effort class it follows from, both."""
    value = ctypes.CDLL(None).syscall(IOPRIO_GET[platform.machine()], 1, 0)
    return value >> 13, value & 7


@pytest.mark.parametrize("level", VALUES)
def test_a_level_counts_for_the_calling_thread_only(native: ModuleType, level: str) -> None:
    before = io_priority()
    inside = []

    def run() -> None:
        native.set_io_priority("low" if level != "low" else "idle")
        native.set_io_priority(level)
        inside.append(io_priority())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert inside[0] in VALUES[level]
    assert io_priority() == before


def test_an_unknown_level_is_an_error_that_names_the_others(native: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"'best'.*normal, low, idle"):
        native.set_io_priority("best")


def test_a_kernel_without_priorities_is_an_error(tmp_path: Path, refused: Callable[..., Any]) -> None:
    (tmp_path / "file").touch()
    number = IOPRIO_SET[platform.machine()]
    assert refused(tmp_path / "file", "diskhaul_native.set_io_priority('idle')", number, errno.ENOSYS) == -errno.EOPNOTSUPP
