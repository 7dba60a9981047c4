"""Whether a file is in the page cache is found out, not assumed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from benches.comparison import page_cache
from benches.comparison.errors import ContestantError
from benches.comparison.machine import filesystem


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """256 MiB, two of them data."""
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.truncate(256 << 20)
        for offset in (5 << 20, 200 << 20):
            file.seek(offset)
            file.write(os.urandom(1 << 20))
    return path


def test_hot_is_in_the_cache_and_cold_is_not(sparse: Path) -> None:
    if filesystem(sparse).startswith("tmpfs"):
        pytest.skip("temporary files are on tmpfs, and always in the page cache")
    page_cache.prepare([sparse], "hot")
    assert page_cache.resident_share(sparse) == 1
    page_cache.prepare([sparse], "cold")
    assert page_cache.resident_share(sparse) < 0.01
    page_cache.prepare([sparse], "hot")
    assert page_cache.resident_share(sparse) == 1


def test_a_file_in_memory_cannot_be_cold(tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("mount", "umount", root=True)
    (tmp_path / "mnt").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path / "mnt")], check=True)
    try:
        (tmp_path / "mnt/file").write_bytes(os.urandom(1 << 20))
        with pytest.raises(ContestantError, match="is it on tmpfs"):
            page_cache.prepare([tmp_path / "mnt/file"], "cold")
    finally:
        subprocess.run(["umount", str(tmp_path / "mnt")], check=True)
