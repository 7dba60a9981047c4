"""Memory that is freed, and kept."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

PROGRAM = """
import importlib, os, resource, sys, tempfile
file = tempfile.TemporaryFile()
file.write(b"x" * (1 << 20))
file.flush()
native = importlib.import_module(sys.argv[1])
kept = native.keep_freed_memory() if sys.argv[2] == "keep" else False
os.pread(file.fileno(), 8 << 20, 0)  # as an encoder: room for what there may be, shrunk to what there is
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    os.pread(file.fileno(), 8 << 20, 0)
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(native: ModuleType, what: str) -> tuple[bool, int]:
    """Whether memory is kept, and how many pages the kernel had to give for 20 times 1 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, native.__name__, what], capture_output=True, text=True, timeout=60, check=True
    )
    kept, faults = done.stdout.split()
    return kept == "1", int(faults)


def test_memory_that_was_freed_is_used_again_without_asking_the_kernel(native: ModuleType) -> None:
    kept, faults = page_faults(native, "keep")
    if "DISKHAUL_EXPECT_CORE" in os.environ:  # sanitizers have a malloc of their own, without these settings
        assert not kept
        return
    assert kept
    assert faults < 100
    assert page_faults(native, "leave")[1] > 20 * 200
