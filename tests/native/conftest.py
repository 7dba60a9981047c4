"""What the tests of the C core share: open descriptors, both implementations, small filesystems, injected faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

import diskhaul_native
from diskhaul_native import reference


@pytest.fixture(params=[diskhaul_native, reference], ids=["c", "reference"])
def native(request: pytest.FixtureRequest) -> ModuleType:
    """Both implementations: what is tested with this fixture holds for the C core and for its reference."""
    module: ModuleType = request.param
    return module


@pytest.fixture
def content(tmp_path: Path) -> tuple[Path, bytes]:
    """A file of 100,000 random bytes: its path, and the bytes."""
    data = os.urandom(100_000)
    path = tmp_path / "content"
    path.write_bytes(data)
    return path, data


@pytest.fixture
def tmpfs(tmp_path: Path, requires: Callable[..., None]) -> Iterator[Callable[[int], Path]]:
    """``path = tmpfs(2)``: a tmpfs of so many MiB, unmounted when the test ends."""
    mounted: list[Path] = []

    def mount(size_mib: int) -> Path:
        requires("mount", root=True)
        path = tmp_path / f"tmpfs{len(mounted)}"
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(path)], check=True)
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def opened(
    tmpfs: Callable[[int], Path], loop_filesystem: Callable[..., Any], loop_device: Callable[[Path], str]
) -> Iterator[Callable[..., int]]:
    """``fd = opened(path)``: a descriptor for reading and writing, made when missing; closed when the test ends.

    It needs the other fixtures so that they end later: what is open cannot be unmounted.
    """
    descriptors: list[int] = []

    def open_it(path: Path | str, flags: int = os.O_RDWR | os.O_CREAT) -> int:
        descriptors.append(os.open(path, flags | os.O_CLOEXEC, 0o600))
        return descriptors[-1]

    yield open_it
    for descriptor in descriptors:
        os.close(descriptor)


class Traced(NamedTuple):
    """What a function did under strace: its result, or its error with offset, and the system calls on the file."""

    result: Any
    errno: int | None
    offset: int | None
    calls: list[str]


CHILD = """
import json, os, sys
import diskhaul_native
#first
fd = os.open(sys.argv[1], os.O_RDWR)
buffer = bytearray(b"d" * 65536)
try:
    outcome = {"result": eval(sys.argv[2]), "errno": None, "offset": None}
except diskhaul_native.NativeIOError as error:
    outcome = {"result": None, "errno": error.errno, "offset": error.offset}
print(json.dumps(outcome))
"""


@pytest.fixture
def injected(tmp_path: Path, requires: Callable[..., None]) -> Callable[..., Traced]:
    """``injected(path, "diskhaul_native.fsync(fd)", "fsync:error=EIO")``: run an expression with a fault in its calls.

    Only system calls on the path are meant, and strace takes one fault for each kind of call. The expression sees `fd`,
    open on the path, and `buffer`, 64 KiB of "d".
    """

    def run(path: Path | str, expression: str, *faults: str) -> Traced:
        requires("strace")
        python = os.path.realpath(sys.executable)
        with open(python, "rb") as binary:
            assert binary.read(4) == b"\x7fELF", "a wrapper script would be traced instead of Python"
        log = tmp_path / "strace.log"
        calls = ",".join(dict.fromkeys(fault.split(":")[0] for fault in faults))
        options = [f"--inject={fault}" for fault in faults]
        command = ["strace", "-f", "-qq", "-o", str(log), "-P", str(path), f"--trace={calls}", *options]
        search_path = os.pathsep.join(entry for entry in sys.path if entry)
        environment = {**os.environ, "PYTHONPATH": search_path}
        child = subprocess.run(
            [*command, sys.executable, "-c", CHILD, str(path), expression],
            capture_output=True,
            text=True,
            env=environment,
            timeout=120,
        )
        assert child.returncode == 0, child.stderr
        lines = [line.split(maxsplit=1)[1] for line in log.read_text().splitlines()]
        assert any("INJECTED" in line for line in lines), f"no fault was injected: {lines}"
        return Traced(**json.loads(child.stdout), calls=lines)

    return run


# A filter of the kernel's (seccomp): the system call with this number fails with this errno, all others are let through.
REFUSE = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)
program = b"".join(struct.pack("HBBI", *instruction) for instruction in (
    (0x20, 0, 0, 0),  # load the number
    (0x15, 0, 1, int(sys.argv[3])),  # go on if it is equal, else skip one
    (0x06, 0, 0, 0x00050000 | int(sys.argv[4])),  # fail with the errno
    (0x06, 0, 0, 0x7FFF0000),  # allow
))
code = ctypes.create_string_buffer(program)
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 4, ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, ctypes.addressof(filter), 0, 0) == 0, ctypes.get_errno()  # PR_SET_SECCOMP
"""


@pytest.fixture
def refused() -> Callable[..., Any]:
    """``refused(path, "diskhaul_native.cached_bytes(fd, 0, 1)", 451, errno.ENOSYS)``: run where a system call is missing.

    Returns what the expression is, or the errno of its NativeIOError, negative.
    """

    def run(path: Path | str, expression: str, syscall: int, error: int) -> Any:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
        command = [sys.executable, "-c", CHILD.replace("#first", REFUSE), str(path), expression, str(syscall), str(error)]
        child = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert child.returncode == 0, child.stderr
        outcome = json.loads(child.stdout)
        return outcome["result"] if outcome["errno"] is None else -outcome["errno"]

    return run
