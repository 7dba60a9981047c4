"""What the package offers, what it needs, and what happens where the C core was not built."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import diskhaul_native
from diskhaul_native import _core, reference

PACKAGE = Path(inspect.getfile(diskhaul_native)).parent
CSRC = Path(__file__).parents[2] / "native" / "csrc"
FUNCTIONS = sorted(name for name in diskhaul_native.__all__ if inspect.isfunction(getattr(diskhaul_native, name)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_reference_has_the_same_function_with_the_same_arguments(name: str) -> None:
    assert inspect.signature(getattr(diskhaul_native, name)) == inspect.signature(getattr(reference, name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(diskhaul_native, name))


def test_the_core_under_test_is_the_one_that_was_built_for_it() -> None:
    expected = os.environ.get("DISKHAUL_EXPECT_CORE")  # set where a build of its own is tested, as under sanitizers
    core = Path(inspect.getfile(_core))
    assert core.parent == (Path(expected) / "diskhaul_native" if expected else PACKAGE)


def test_nothing_but_the_standard_library_is_imported() -> None:
    for module in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                assert name.partition(".")[0] in {*sys.stdlib_module_names, "_typeshed"}, f"{module.name} imports {name}"


def test_without_the_c_core_the_import_fails_and_says_what_to_do(tmp_path: Path) -> None:
    copy = tmp_path / "diskhaul_native"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    command = [sys.executable, "-S", "-c", "import diskhaul_native"]
    child = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert child.returncode == 1
    assert "the C core of diskhaul_native is not built" in child.stderr


def test_the_c_core_keeps_its_rules() -> None:
    forbidden = re.compile(r"Python\.h|\b(?:malloc|calloc|realloc|free|exit|abort|perror|fprintf|printf)\s*\(")
    sources = [*CSRC.glob("*.c"), *CSRC.glob("*.h")]
    assert sources
    for source in sources:
        assert not forbidden.search(source.read_text()), source.name
