"""Who may import whom, read from the source; and that starting up loads nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE, PLUGINS, NATIVE = ROOT / "core/diskhaul", ROOT / "plugins/diskhaul_plugins", ROOT / "native/diskhaul_native"

PUBLIC = {
    f"diskhaul.{name}"
    for name in (
        "api",
        "hookspecs",
        "model",
        "errors",
        "options",
        "records",
        "events",
        "names",
        "retention",
        "processes",
        "mounts",
        "permissions",
        "certificates",
    )
} | {"diskhaul.formats.export_id"}

HEAVY = ("pydantic", "rich", "filelock", "zstandard", "blake3", "sqlite3", "ssl", "cryptography")

FOUNDATION = {"errors", "names", "sizes", "version", "model", "options", "records", "events", "api", "hookspecs", "cancellation"}
"""What everything may use, and what uses nothing else."""


def sources(directory: Path) -> list[Path]:
    found = sorted(directory.rglob("*.py"))
    assert found, f"{directory} holds no module"
    return found


def module_name(file: Path, root: Path) -> str:
    parts = file.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path, root: Path, *, running: bool = False) -> Iterator[tuple[str, int]]:
    """Full names of what `file` imports (modules, or names in them) with line numbers, wherever in the file that stands.

    With `running`, without what stands under ``if TYPE_CHECKING``.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    package = module_name(file, root).split(".")
    if file.name != "__init__.py":
        package = package[:-1]
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if running and isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            skipped |= {inner for statement in node.body for inner in ast.walk(statement)}
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def is_module(name: str) -> bool:
    """Whether a dotted name below diskhaul is a module or package rather than a name in one."""
    place = CORE.parent / Path(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def imported_core_modules(file: Path, root: Path, *, running: bool = False) -> Iterator[tuple[str, int]]:
    for name, line in imports(file, root, running=running):
        if name == "diskhaul" or name.startswith("diskhaul."):
            while not is_module(name):  # a name in a module; "diskhaul" itself is always one
                name = name.rpartition(".")[0]
            yield name, line


def layer(module: str) -> str:
    """The layer of a core module, by its place in the tree."""
    parts = module.split(".")
    if len(parts) == 1 or parts[1] == "library":
        return "face"
    if parts[1] in ("cli", "__main__"):
        return "command line"
    if parts[1] in ("operations", "testing"):
        return parts[1]
    if parts[1] in ("pipeline", "formats"):
        return "pipeline"
    return "foundation" if parts[1] in FOUNDATION else "services"


MAY_USE = {
    "face": {"face", "operations", "pipeline", "services", "foundation"},
    "command line": {"face", "command line", "operations", "pipeline", "services", "foundation"},
    "testing": {"face", "testing", "operations", "pipeline", "services", "foundation"},
    "operations": {"operations", "pipeline", "services", "foundation"},
    "services": {"pipeline", "services", "foundation"},
    "pipeline": {"pipeline", "foundation"},
    "foundation": {"foundation"},
}


def test_the_core_imports_only_downwards() -> None:
    wrong = []
    for file in sources(CORE):
        own = layer(module_name(file, CORE))
        for used, line in imported_core_modules(file, CORE):
            if layer(used) not in MAY_USE[own]:
                wrong.append(f"{file.relative_to(ROOT)}:{line}: {own} uses {used} ({layer(used)})")
    assert wrong == []


def test_plugins_use_only_what_is_public_and_the_native_core() -> None:
    wrong = []
    for file in sources(PLUGINS):
        wrong += [
            f"{file.relative_to(ROOT)}:{line}: {used}"
            for used, line in imported_core_modules(file, PLUGINS)
            if used not in PUBLIC
        ]
    assert wrong == []


def test_the_native_core_uses_only_the_standard_library() -> None:
    wrong = []
    for file in sources(NATIVE):
        for used, line in imports(file, NATIVE, running=True):
            top = used.partition(".")[0]
            if top not in sys.stdlib_module_names and top not in ("diskhaul_native", "_diskhaul_native"):
                wrong.append(f"{file.relative_to(ROOT)}:{line}: {used}")
    assert wrong == []


def test_the_core_names_the_built_in_plugins_once_in_the_host() -> None:
    named = [
        f"{file.relative_to(CORE)}: {used}"
        for file in sources(CORE)
        for used, _line in imports(file, CORE)
        if used.partition(".")[0] == "diskhaul_plugins"
    ]
    assert named == ["host.py: diskhaul_plugins.builtin"]


def test_no_core_module_imports_the_built_in_plugins_by_a_string() -> None:
    named = [
        f"{file.relative_to(CORE)}:{node.lineno}"
        for file in sources(CORE)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and any(
            isinstance(a, ast.Constant) and isinstance(a.value, str) and a.value.startswith("diskhaul_plugins") for a in node.args
        )
    ]
    assert named == []


@pytest.mark.parametrize("root", [CORE, PLUGINS, NATIVE], ids=["core", "plugins", "native"])
def test_no_module_is_called_after_nothing(root: Path) -> None:
    vague = {"util", "utils", "helper", "helpers", "misc", "common", "manager"}
    assert [str(file) for file in sources(root) if file.stem in vague] == []


@pytest.mark.parametrize(
    "module", ["diskhaul", "diskhaul.host", "diskhaul.config", "diskhaul.cli.main", "diskhaul_plugins.builtin"]
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    environment = {"PYTHONPATH": ":".join(str(root.parent) for root in (CORE, PLUGINS, NATIVE))}
    finished = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == []


def test_building_a_host_loads_nothing_heavy() -> None:
    program = f"""
import sys
from diskhaul.host import PluginHost
PluginHost(None)
print(*sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    environment = {"PYTHONPATH": ":".join(str(root.parent) for root in (CORE, PLUGINS, NATIVE))}
    finished = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split() == []
