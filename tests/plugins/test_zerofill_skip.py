"""The backends that read what guests have on their disks."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from diskhaul.api import BackendContext
from diskhaul.errors import RefusedError
from diskhaul.model import Cluster
from diskhaul.testing.conformance.zerofills import ZeroFillConformance
from diskhaul_plugins.zerofills.fill import FillZeroFill
from diskhaul_plugins.zerofills.skip import ExtZeroFill, SkipZeroFill, SwapZeroFill

MIB = 1 << 20


def context(tmp_path: Path, **options: object) -> BackendContext:
    return BackendContext(cluster=Cluster(name="lab", state_dir=tmp_path), options=options)


@pytest.fixture
def swap_disk(tmp_path: Path, requires: Callable[..., None]) -> Path:
    """A disk with swap space in its second partition, full of what was swapped out."""
    requires("sfdisk", "mkswap")
    image, space = tmp_path / "disk.raw", tmp_path / "swap"
    with open(image, "wb") as file:
        file.truncate(32 * MIB)
    table = "label: gpt\nstart=2048, size=8192\nstart=16384, size=32768\n"
    subprocess.run(["sfdisk", "-q", str(image)], input=table, text=True, check=True)
    space.write_bytes(b"swapped out " * (16 * MIB // 12) + b"1234")
    subprocess.run(["mkswap", str(space)], check=True, capture_output=True)
    with open(image, "r+b") as file, open(space, "rb") as content:
        file.seek(8 * MIB)
        shutil.copyfileobj(content, file)
    return image


class _OnSwap:
    @pytest.fixture
    def image(self, swap_disk: Path) -> Path:
        return swap_disk

    @pytest.fixture
    def in_use(self) -> list[tuple[int, int]]:
        return [(0, 8 * MIB + 4096), (24 * MIB, 8 * MIB)]

    @pytest.fixture
    def free_bytes(self) -> int:
        return 16 * MIB - 4096


class TestSkip(_OnSwap, ZeroFillConformance):
    @pytest.fixture
    def zerofill(self, tmp_path: Path) -> SkipZeroFill:
        return SkipZeroFill(context(tmp_path))


class TestSwap(_OnSwap, ZeroFillConformance):
    @pytest.fixture
    def zerofill(self, tmp_path: Path) -> SwapZeroFill:
        return SwapZeroFill(context(tmp_path))


class TestFill(_OnSwap, ZeroFillConformance):
    @pytest.fixture
    def zerofill(self, tmp_path: Path) -> FillZeroFill:
        return FillZeroFill(context(tmp_path))


class TestExt(ZeroFillConformance):
    """On a disk that is one filesystem."""

    @pytest.fixture
    def zerofill(self, tmp_path: Path) -> ExtZeroFill:
        return ExtZeroFill(context(tmp_path))

    @pytest.fixture
    def image(self, tmp_path: Path, requires: Callable[..., None]) -> Path:
        requires("mkfs.ext4")
        made = tmp_path / "ext4.raw"
        with open(made, "wb") as file:
            file.truncate(64 * MIB)
        subprocess.run(["mkfs.ext4", "-q", str(made)], check=True, capture_output=True)
        return made

    @pytest.fixture
    def in_use(self) -> list[tuple[int, int]]:
        return [(0, 2048)]

    @pytest.fixture
    def free_bytes(self, image: Path) -> int:
        counted = subprocess.run(["dumpe2fs", "-h", str(image)], check=True, capture_output=True, text=True).stdout
        found = {name: value.strip() for name, _, value in (line.partition(":") for line in counted.splitlines())}
        return int(found["Free blocks"]) * int(found["Block size"])


@pytest.mark.parametrize("options", [{"timeout_s": 0}, {"timeout_s": "long"}, {"timeout_s": True}, {"timout_s": 1}], ids=repr)
def test_options_that_cannot_be_are_refused(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(RefusedError, match=r"backend_options\.skip"):
        SkipZeroFill(context(tmp_path, **options))
