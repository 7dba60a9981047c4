"""Whose a sample of a profile is, and what shares follow."""

from __future__ import annotations

from collections import Counter

import pytest
from benches.python_share import Profile, category, perf_samples, profile_of, py_spy_samples, table

PACKAGES = "/v/lib/python3.11/site-packages"


@pytest.mark.parametrize(
    ("symbol", "library", "whose"),
    [
        ("_PyEval_EvalFrameDefault", "/usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0", "Python"),
        ("take_gil", "/usr/bin/python3.11", "Python"),
        ("cdata_dealloc", f"{PACKAGES}/_cffi_backend.cpython-311-x86_64-linux-gnu.so", "Python"),
        ("time_time", "/usr/lib/python3.11/lib-dynload/time.cpython-311-x86_64-linux-gnu.so", "Python"),
        ("ZSTD_compressBlock_fast", f"{PACKAGES}/zstandard/backend_c.cpython-311-x86_64-linux-gnu.so", "zstd"),
        ("HUF_compress1X_usingCTable", f"{PACKAGES}/zstandard/backend_c.cpython-311-x86_64-linux-gnu.so", "zstd"),
        ("ZstdCompressor_compress", f"{PACKAGES}/zstandard/backend_c.cpython-311-x86_64-linux-gnu.so", "Python"),
        ("_blake3_hash_many_avx512", f"{PACKAGES}/blake3/blake3.cpython-311-x86_64-linux-gnu.so", "BLAKE3"),
        ("pyo3::gil::GILGuard::acquire", f"{PACKAGES}/blake3/blake3.cpython-311-x86_64-linux-gnu.so", "Python"),
        ("dh_is_zero_avx2", "/s/native/diskhaul_native/_core.abi3.so", "C core"),
        ("_copy_to_iter", "[kernel.kallsyms]", "kernel"),
        ("ext4_file_read_iter", "[ext4]", "kernel"),
        ("[unknown]", "[unknown]", "kernel"),
        ("__memmove_avx512_unaligned_erms", "/usr/lib/x86_64-linux-gnu/libc.so.6", "libc"),
        ("clock_gettime", "[vdso]", "libc"),
        ("sqlite3_step", "/usr/lib/x86_64-linux-gnu/libsqlite3.so.0.8.6", "other"),
        # as py-spy has them
        ("export", "diskhaul/library.py", "Python"),
        ("_find_and_load", "<frozen importlib._bootstrap>", "Python"),
        ("FSE_encodeSymbol", "zstd.c", "zstd"),
    ],
)
def test_a_sample_belongs_to_whom_its_library_and_symbol_say(symbol: str, library: str, whose: str) -> None:
    assert category(symbol, library) == whose


def test_each_line_of_perf_is_a_sample() -> None:
    script = """
     7fd1f6794950 find_empty_slot (/usr/lib/libpython3.11.so.1.0)
 ffffffff821f2fa7 exc_page_fault ([kernel.kallsyms])
     7fd1f679aaaa [unknown] (/opt/a (copy)/libother.so)
"""
    assert list(perf_samples(script)) == [
        ("find_empty_slot", "/usr/lib/libpython3.11.so.1.0", 1),
        ("exc_page_fault", "[kernel.kallsyms]", 1),
        ("", "7fd1f679aaaa [unknown] (/opt/a (copy)/libother.so)", 1),
    ]


def test_lines_of_py_spy_are_samples_of_the_innermost_frame_without_those_in_libc() -> None:
    raw = """<module> (diskhaul/__main__.py:5);export (diskhaul/library.py:90);ZSTD_count (zstd.c:20019) 7
<module> (diskhaul/__main__.py:5);wait (threading.py:331);0x7f0c7aaa3f16 (libc.so.6) 331
run (diskhaul/pipeline/send.py:44) 2
"""
    assert list(py_spy_samples(raw)) == [("ZSTD_count", "zstd.c", 7), ("run", "diskhaul/pipeline/send.py", 2)]


def profile(**numbers: int) -> Profile:
    return Profile(categories=Counter(numbers), python=Counter(eval_frame=numbers.get("Python", 0)))


def test_start_up_is_subtracted_from_the_whole() -> None:
    transfer = profile(Python=30, zstd=60, kernel=30).without(profile(Python=20, kernel=10, other=5))
    assert transfer.categories == Counter(zstd=60, kernel=20, Python=10)
    assert transfer.share("Python") == 10 / 90
    assert transfer.python == Counter(eval_frame=10)


def test_what_cannot_be_attributed_is_counted_to_python_in_the_upper_bound() -> None:
    found = profile(Python=5, zstd=80, libc=10, other=5)
    assert found.share("Python") == 0.05
    assert found.at_most == pytest.approx(0.20)
    assert Profile(categories=Counter(), python=Counter()).at_most == 0


def test_the_table_has_every_category_and_names_pythons_symbols() -> None:
    samples = [("take_gil", "/usr/bin/python3.11", 25), ("ZSTD_count", "zstd.c", 75)]
    said = table(profile_of(samples), profile_of(samples))
    lines = {line.split()[0]: line.split()[1:] for line in said.splitlines()[1:]}
    assert lines["zstd"] == ["75.0%", "75.0%"]
    assert lines["samples"] == ["100", "100"]
    assert {"Python", "BLAKE3", "C", "kernel", "libc", "other"} <= set(lines)
    assert said.endswith("take_gil 25.0%")
