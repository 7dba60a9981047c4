"""The distribution: an sdist that can be built anywhere, and a wheel that brings the compiled core along."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from diskhaul.version import __version__

PROJECT = Path(__file__).parents[2]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LD_PRELOAD")}


def build(kind: str, source: Path, target: Path) -> Path:
    """Build from a directory, without the network: with the build tools that the tests run with."""
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(target), str(source)]
    finished = subprocess.run(command, check=False, capture_output=True, text=True, env=ENVIRONMENT, cwd=target)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    (made,) = target.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources: what is installed and what is lying about must play no part."""
    source = tmp_path_factory.mktemp("source") / "project"
    generated = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "*.o")
    shutil.copytree(PROJECT, source, ignore=generated)
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the unpacked sdist, as an installation from a package index does it."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["tar", "-xf", str(sdist), "-C", str(unpacked)], check=True)
    (source,) = unpacked.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def test_the_sdist_has_the_c_sources_and_what_builds_them(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {f"native/csrc/{path.name}" for path in (PROJECT / "native" / "csrc").iterdir()}
    needed = {"pyproject.toml", "LICENSE", "README.md", "native/ffi_build.py", "native/build_backend.py", *sources}
    assert needed - names == set()


def test_the_wheel_has_the_three_packages_the_compiled_core_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"diskhaul", "diskhaul_plugins", "diskhaul_native"}
    assert [name for name in names if name.endswith(".so")] == ["diskhaul_native/_core.abi3.so"]
    for top in tops:
        assert f"{top}/py.typed" in names
    assert "diskhaul_native/_core.pyi" in names


def test_the_distribution_has_the_version_that_the_program_says(sdist: Path, wheel: Path) -> None:
    assert sdist.name == f"diskhaul-{__version__}.tar.gz"
    assert wheel.name.startswith(f"diskhaul-{__version__}-")


def test_every_module_of_the_sources_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for root in ("core", "plugins", "native"):
        for package in (PROJECT / root).glob("diskhaul*"):
            for module in package.rglob("*.py"):
                assert module.relative_to(PROJECT / root).as_posix() in names


PROBE = """
import json
import diskhaul, diskhaul_plugins, diskhaul_native
from diskhaul_native import _core
assert diskhaul_native.is_zero(bytes(1000)) and not diskhaul_native.is_zero(b"x")
print(json.dumps([module.__file__ for module in (diskhaul, diskhaul_plugins, diskhaul_native, _core)]))
"""


def test_the_wheel_works_in_a_clean_environment(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    python = environment / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, env=ENVIRONMENT)
    install = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps", str(wheel)]
    subprocess.run([sys.executable, *install], check=True, env=ENVIRONMENT)
    # The dependencies come from where the tests run. A path in a .pth file brings no .pth files of its own, so an editable
    # installation of this project there stays out.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    probe = subprocess.run(
        [str(python), "-c", PROBE], check=False, capture_output=True, text=True, cwd=elsewhere, env=ENVIRONMENT
    )
    assert probe.returncode == 0, probe.stderr
    for file in json.loads(probe.stdout):
        assert Path(file).is_relative_to(site)
    help_text = subprocess.run(
        [str(environment / "bin" / "diskhaul"), "--help"],
        check=False,
        capture_output=True,
        text=True,
        cwd=elsewhere,
        env=ENVIRONMENT,
    )
    assert help_text.returncode == 0, help_text.stderr
    assert "export" in help_text.stdout
