"""What `import diskhaul` offers: one list, told to programs and to type checkers alike, and complete."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import diskhaul
from diskhaul import api, errors, library, records, version
from diskhaul.formats.manifest import Manifest

SOURCE = Path(diskhaul.__file__)


def classes(module: Any) -> dict[str, type]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def is_protocol(kind: type) -> bool:
    return bool(getattr(kind, "_is_protocol", False))


def told_to_type_checkers() -> dict[str, str]:
    """Each name imported under ``if TYPE_CHECKING`` and the module it comes from."""
    (block,) = (
        node
        for node in ast.parse(SOURCE.read_text()).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    told: dict[str, str] = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        assert statement.level == 1
        for alias in statement.names:
            assert alias.asname == alias.name, f"{alias.name}: without the redundant alias strict type checkers do not see it"
            assert alias.name not in told
            told[alias.name] = str(statement.module)
    return told


def test_type_checkers_are_told_the_same_as_programs() -> None:
    assert told_to_type_checkers() == diskhaul._HOME_OF
    assert list(told_to_type_checkers()) == [name for names in diskhaul._HOMES.values() for name in names.split()]


@pytest.mark.parametrize("name", diskhaul.__all__)
def test_every_name_is_there_and_listed(name: str) -> None:
    assert getattr(diskhaul, name) is not None
    assert name in dir(diskhaul)


def test_a_name_that_is_not_there_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="module 'diskhaul' has no attribute 'exprot'"):
        _ = diskhaul.exprot


def test_what_is_called_made_returned_or_caught_is_here_and_what_is_subclassed_is_in_the_api() -> None:
    offered = set(diskhaul.__all__)
    assert {*classes(errors), *classes(records), *library.__all__} <= offered
    made = {name for name, kind in classes(api).items() if not is_protocol(kind)} - {"BackendSpec"}
    assert made <= offered
    protocols = {name for name, kind in classes(api).items() if is_protocol(kind)}
    assert {"Storage", "Runtime", "Snapshots", "Locks", "Transfer", "DiskReader", "DiskWriter"} <= protocols
    assert not protocols & offered


@pytest.mark.parametrize("name", library.__all__)
def test_a_functions_docstring_tells_its_errors_and_each_argument_that_needs_words(name: str) -> None:
    function: Callable[..., object] = getattr(library, name)
    text = inspect.getdoc(function) or ""
    assert "Raises:" in text
    told = re.findall(r"^    ([\w, ]+): ", text, re.MULTILINE)  # the entries under "Args:", several names to one, perhaps
    described = {argument for entry in told for argument in entry.split(", ")} | set(re.findall(r"[`*]+(\w+)`", text))
    everywhere = {"config", "options", "plugins", "on_event", "cancel"}  # said once, with `export`
    missing = set(inspect.signature(function).parameters) - described
    assert missing <= everywhere - ({"plugins"} if name == "export" else set()), missing


def test_the_version_is_said_in_one_place() -> None:
    assert diskhaul.__version__ == version.__version__
    assert Manifest.__dataclass_fields__["created_by"].default == f"diskhaul {version.__version__}"
    root = SOURCE.parents[2]
    said = [
        str(path.relative_to(root))
        for path in (root / "pyproject.toml", *sorted((root / "core").rglob("*.py")))
        if f'"{version.__version__}"' in path.read_text() or f"diskhaul {version.__version__}" in path.read_text()
    ]
    assert said == ["core/diskhaul/version.py"]


def test_asking_for_the_version_loads_no_other_module_of_diskhaul() -> None:
    program = "import sys, diskhaul; diskhaul.__version__; print(*sorted(n for n in sys.modules if n.startswith('diskhaul')))"
    roots = {"PYTHONPATH": ":".join(sys.path)}
    finished = subprocess.run([sys.executable, "-c", program], env=roots, capture_output=True, text=True, check=True)
    assert finished.stdout.split() == ["diskhaul", "diskhaul.version"]
