"""How the C core becomes the extension module diskhaul_native._core (cffi, API mode, stable ABI).

The declarations are read from csrc/dh_core.h, so there is one place to change. With DISKHAUL_BUILD=sanitize in the
environment the module is built with AddressSanitizer and UndefinedBehaviorSanitizer, and warnings are errors (see `make
sanitize`).
"""

from __future__ import annotations

import os
from pathlib import Path

from cffi import FFI

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    "zero_scan.c",
    "crc32c.c",
    "file_io.c",
    "page_cache.c",
    "direct_io.c",
    "io_priority.c",
    "allocation.c",
    "extents.c",
    "zero_range.c",
    "copy_range.c",
    "clone.c",
    "shared_blocks.c",
    "bitmap.c",
]
HEADERS = ["dh_core.h", "internal.h", "zero_scan_kernel.h"]
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow"]
SANITIZERS = ["-Werror", "-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]

# The functions that cffi generates convert between Python's and C's integers; the warnings are meant for our own code.
PRELUDE = """
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include "dh_core.h"
"""


def declarations() -> str:
    """What stands between the cdef marks of the header."""
    header = (ROOT / "native" / "csrc" / "dh_core.h").read_text(encoding="utf-8")
    return header.split("/* cdef begin */")[1].split("/* cdef end */")[0]


def make_builder() -> FFI:
    """The builder that setuptools runs (keyword `cffi_modules`); paths are relative to the project, as an sdist needs."""
    mode = os.environ.get("DISKHAUL_BUILD", "release")
    if mode not in ("release", "sanitize"):
        raise SystemExit(f"DISKHAUL_BUILD={mode!r}: 'release' or 'sanitize'")
    extra = SANITIZERS if mode == "sanitize" else ["-O3"]
    builder = FFI()
    builder.cdef(declarations())
    builder.set_source(
        "diskhaul_native._core",
        PRELUDE,
        sources=[f"native/csrc/{name}" for name in SOURCES],
        include_dirs=["native/csrc"],
        depends=[*(f"native/csrc/{name}" for name in HEADERS), "native/ffi_build.py", "native/build_backend.py"],
        define_macros=[("_FILE_OFFSET_BITS", "64")],
        extra_compile_args=["-std=c11", "-fvisibility=hidden", *WARNINGS, *extra],
        extra_link_args=["-fsanitize=address,undefined"] if mode == "sanitize" else [],
    )
    return builder


ffibuilder = make_builder()
