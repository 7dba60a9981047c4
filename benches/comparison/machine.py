"""What the comparison ran on, and the versions of everything that took part."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .running import SEARCH_PATH

_VERSION_ARGUMENTS = {"socat": ("-V",), "openssl": ("version",)}
_NUMBER = re.compile(r"\d+(?:\.\d+)+\w*")


def facts(work: Path) -> dict[str, object]:
    """CPU, memory, kernel, filesystem of `work`, Python."""
    return {
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "filesystem": filesystem(work),
        "python": platform.python_version(),
    }


def cpu_model() -> str:
    """The processor's name, or its architecture where the kernel does not tell."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        found = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def filesystem(path: Path) -> str:
    """Type and mount options of the filesystem that `path` is on."""
    resolved = str(path.resolve())
    best, described = -1, "unknown"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            point, options = before.split()[4:6]
            point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), point)
            inside = resolved == point or resolved.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= best:  # of two on the same point, the later one is on top
                best, described = len(point), f"{after.split()[0]} ({options})"
    return described


def versions(programs: Iterable[str]) -> dict[str, str]:
    """The version of each program that is installed, "unknown" where it does not say, and of the libraries that diskhaul uses."""
    found = {}
    for program in dict.fromkeys(programs):
        if shutil.which(program, path=SEARCH_PATH):
            found[Path(program).name] = _version(program)
    for package in ("zstandard", "blake3"):
        try:
            found[f"Python package {package}"] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[f"Python package {package}"] = "unknown"
    try:
        import zstandard

        found["libzstd of zstandard"] = ".".join(str(part) for part in zstandard.ZSTD_VERSION)
    except ImportError:
        pass
    return found


def _version(program: str) -> str:
    environment = {"PATH": SEARCH_PATH, "LC_ALL": "C", "HOME": os.environ.get("HOME", "/")}
    argv = [program, *_VERSION_ARGUMENTS.get(Path(program).name, ("--version",))]
    try:
        finished = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env=environment, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    number = _NUMBER.search(finished.stdout or finished.stderr)
    return number[0] if number else "unknown"
