"""Python goes on while C waits: a write to a frozen filesystem blocks its own thread and no other."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import diskhaul_native

FITHAW = 0xC0045878

# The thread writes to a frozen filesystem. Only the main thread can thaw it, for which it needs the GIL.
CHILD = """
import fcntl, os, sys, threading
import diskhaul_native
mountpoint, call = sys.argv[1:]
fd = os.open(mountpoint + "/file", os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 1 << 20)
directory = os.open(mountpoint, os.O_RDONLY)
finished = []
thread = threading.Thread(target=lambda: (eval(call), finished.append(True)))
fcntl.ioctl(directory, 0xC0045877, 0)  # FIFREEZE
thread.start()
state = None
while state != "D":
    assert not finished, "the write did not block"
    with open(f"/proc/self/task/{thread.native_id}/stat") as status:
        state = status.read().rpartition(")")[2].split()[0]
assert not finished
fcntl.ioctl(directory, 0xC0045878, 0)  # FITHAW
thread.join()
assert finished
print("went on")
"""


@pytest.mark.parametrize(
    "call",
    [
        "diskhaul_native.write_from(fd, b'x' * 4096, 0)",
        "diskhaul_native.write_sparse(fd, b'x' * 4096, 0)",
        "diskhaul_native.zero_range(fd, 0, 4096)",
        "diskhaul_native.copy_range(os.open('/dev/zero', os.O_RDONLY), fd, 0, 1 << 20, zero_holes=True)",
    ],
    ids=["write_from", "write_sparse", "zero_range", "copy_range"],
)
def test_other_threads_go_on_while_a_write_is_blocked(loop_filesystem: Callable[..., Any], call: str) -> None:
    path = loop_filesystem("ext4", size_mib=16).path
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CHILD, str(path), call]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        output, errors = child.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        thaw(path)  # before anything else: a frozen filesystem blocks even the end of the process
        child.kill()
        pytest.fail(f"the blocked call kept the other thread from running: {child.communicate()}")
    thaw(path)
    assert output == "went on\n", errors


def thaw(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(directory, FITHAW, 0)
    except OSError:
        pass  # it is not frozen
    finally:
        os.close(directory)


def test_threads_share_a_descriptor(tmp_path: Path) -> None:
    pieces = [os.urandom(65536) for _ in range(32)]
    with open(tmp_path / "file", "w+b") as file, ThreadPoolExecutor(4) as pool:
        fd = file.fileno()

        def write_and_read(number: int) -> bytes:
            diskhaul_native.write_from(fd, pieces[number], number * 65536)
            buffer = bytearray(65536)
            diskhaul_native.read_into(fd, buffer, number * 65536)
            return bytes(buffer)

        assert list(pool.map(write_and_read, range(len(pieces)))) == pieces
        assert (tmp_path / "file").read_bytes() == b"".join(pieces)
