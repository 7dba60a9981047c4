"""The documentation is true: its examples run, its links lead somewhere, and what can be asked for is described."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import re
import runpy
import subprocess
import sys
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from blake3 import blake3

import diskhaul
import diskhaul.testing
import diskhaul.testing.conformance
from diskhaul import errors, events, hookspecs, library, operations
from diskhaul.cli.main import EPILOG, cli
from diskhaul.config import load_cluster
from diskhaul.config_schema import Document
from diskhaul.formats.chunk_table import HEADER_LENGTH
from diskhaul.formats.manifest import DiskRecord, Manifest
from diskhaul.host import STAGES
from diskhaul.operations.instance_env import instance_environment
from diskhaul.options import ExportOptions, ImportOptions, KeepPolicy, PathOptions

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
LIMIT_S = 240

_FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
_FILE_BLOCK = re.compile(r"python file=(\S+)(?: (run|pytest))?")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: what stands behind its backquotes, and its content."""

    info: str
    content: str


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _blocks(page: Path) -> list[Block]:
    return [Block(info, content) for info, content in _FENCE.findall(page.read_text(encoding="utf-8"))]


def _prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def _section(page: Path, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    text = _prose(page)
    match = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert match, f"{_name(page)} has no heading {heading!r}"
    rest = text[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def _rows(text: str) -> list[list[str]]:
    """The rows of all tables in `text`, without the lines below their heads."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]
    return [row for row in rows if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]


def _coded(text: str) -> set[str]:
    """Everything in `text` that stands between single backquotes."""
    return set(re.findall(r"`([^`\n]+)`", text))


def _environment(tmp_path: Path) -> dict[str, str]:
    """Runs find the packages under test, a `diskhaul` on their path, and put temporary files where they can be looked at."""
    packages = {str(Path(importlib.import_module(name).__file__ or "").parents[1]) for name in _PACKAGES}
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "diskhaul").write_text(f'#!/bin/sh\nexec {sys.executable} -m diskhaul "$@"\n')
    (programs / "diskhaul").chmod(0o755)
    (tmp_path / "tmp").mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DISKHAUL_")}
    return kept | {
        "PYTHONPATH": os.pathsep.join([*sorted(packages), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path / "tmp"),
    }


_PACKAGES = ("diskhaul", "diskhaul_plugins", "diskhaul_native")


def _run(argv: list[str], directory: Path, environment: Mapping[str, str]) -> str:
    finished = subprocess.run(
        argv,
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
    )
    assert finished.returncode == 0, finished.stdout
    return finished.stdout


# --- examples run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_runs_succeeds_and_leaves_nothing(example: Path, tmp_path: Path) -> None:
    environment = _environment(tmp_path)
    (tmp_path / "work").mkdir()
    said = _run([sys.executable, str(example)], tmp_path / "work", environment)
    assert "exported" in said
    assert "the same: True" in said
    assert not os.listdir(tmp_path / "work")
    assert not os.listdir(tmp_path / "tmp")


@pytest.mark.parametrize("example", ["storage_object.py", "storage_descriptor.py"])
def test_a_storage_example_is_about_25_lines_of_plugin(example: str) -> None:
    source = (EXAMPLES / example).read_text()
    lines = source.splitlines()
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    counted = sum(bool(line.strip()) for found in classes for line in lines[found.lineno - 1 : found.end_lineno])
    assert 15 < counted < 31


def _pages_with_programs() -> Iterator[Path]:
    for page in PAGES:
        if any((match := _FILE_BLOCK.fullmatch(block.info)) and match[2] for block in _blocks(page)):
            yield page


@pytest.mark.parametrize("page", list(_pages_with_programs()), ids=_name)
def test_the_programs_of_a_page_run_and_their_conformance_suites_pass(page: Path, tmp_path: Path) -> None:
    environment = _environment(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    for block in _blocks(page):
        match = _FILE_BLOCK.fullmatch(block.info)
        if match is None or match[2] is None:
            continue
        (work / match[1]).write_text(block.content)
        if match[2] == "run":
            assert _run([sys.executable, match[1]], work, environment).strip()
        else:
            own = ["-c", os.devnull, "--rootdir", str(work), "-p", "no:cacheprovider", "-W", "error"]
            assert re.search(r"\d+ passed", _run([sys.executable, "-m", "pytest", "-q", *own, match[1]], work, environment))
    assert [name for name in os.listdir(tmp_path / "tmp") if not name.startswith("pytest-of-")] == []


def test_the_commands_of_the_first_steps_run_as_they_stand(tmp_path: Path, requires: Callable[..., None]) -> None:
    requires("mke2fs", "debugfs", "sfdisk", "zstd", "cmp")
    commands = "".join(block.content for block in _blocks(DOCS / "getting-started.md") if block.info == "sh run")
    assert commands.count("diskhaul ") >= 10
    work = tmp_path / "work"
    work.mkdir()
    environment = _environment(tmp_path)
    try:
        said = _run(["bash", "-eux", "-o", "pipefail", "-c", commands], work, environment)
    finally:
        if (work / "lab/vm").exists():
            subprocess.run([work / "lab/vm", "stop", "web1"], check=True, timeout=60)
    assert "no damage found" in said
    assert not os.listdir(work)


@pytest.mark.parametrize(("page", "least"), [("tls.md", 8), ("remote.md", 6), ("object.md", 4)])
def test_the_lab_of_a_page_runs_as_it_stands(tmp_path: Path, requires: Callable[..., None], page: str, least: int) -> None:
    """One that starts services: they end with it, also where it fails."""
    requires("cmp")
    commands = "".join(block.content for block in _blocks(DOCS / page) if block.info == "sh run")
    assert commands.count("diskhaul ") >= least
    work = tmp_path / "work"
    work.mkdir()
    environment = _environment(tmp_path)
    environment["PATH"] += f":{Path(sys.executable).parent}"  # where pip puts programs
    cleaned_up = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n"
    said = _run(["bash", "-eux", "-o", "pipefail", "-c", cleaned_up + commands], work, environment)
    assert "no damage found" in said
    assert not os.listdir(work)


def test_the_example_cluster_works_as_its_first_lines_say(tmp_path: Path) -> None:
    text = (EXAMPLES / "cluster.toml").read_text()
    (tmp_path / "cluster.toml").write_text(text)
    command = re.search(r"Try it where this file lies: (.+)", text)
    assert command
    _run(["bash", "-euc", command[1]], tmp_path, os.environ)
    cluster = load_cluster(tmp_path / "cluster.toml")
    assert diskhaul.export("db1", node="alpha", config=cluster).export is not None


def test_the_root_digest_is_what_the_format_page_computes(tmp_path: Path) -> None:
    environment = _environment(tmp_path)
    (program,) = (block for block in _blocks(DOCS / "format.md") if block.info == "python file=root_digest.py")
    (tmp_path / "root_digest.py").write_text(program.content)
    disk = tmp_path / "disk.raw"
    disk.write_bytes(os.urandom(300_000))
    (tmp_path / "exports").mkdir()
    cluster = diskhaul.Cluster(
        name="lab",
        state_dir=tmp_path / "state",
        nodes=[diskhaul.Node(name="alpha", export_dir=tmp_path / "exports")],
        instances=[diskhaul.Instance(name="web1", node="alpha", disks=[diskhaul.Disk(path=disk)])],
    )
    result = diskhaul.export("web1", node="alpha", config=cluster, options=diskhaul.ExportOptions(chunk_size=1 << 16))
    assert result.export is not None
    manifest = f"{result.export.path}/manifest.json"
    argv = [sys.executable, "root_digest.py", manifest, "0"]
    assert _run([*argv, "disk.raw"], tmp_path, environment) == "the same disk\n"
    changed = bytearray(disk.read_bytes())
    changed[-1] ^= 1
    (tmp_path / "changed.raw").write_bytes(changed)
    assert _run([*argv, "changed.raw"], tmp_path, environment) == "another disk\n"
    table = Path(result.export.path, "disk-0.chunks").read_bytes()
    assert "tail -c +65 disk-0.chunks" in (DOCS / "format.md").read_text()
    assert HEADER_LENGTH == 64
    assert blake3(table[64 : 64 + 32 * 5]).hexdigest() == result.disks[0].root_digest


# --- blocks and links ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_block_is_of_a_known_kind_and_can_be_parsed(page: Path) -> None:
    for block in _blocks(page):
        assert block.info in ("python", "toml", "sh", "sh run", "text") or _FILE_BLOCK.fullmatch(block.info), block.info
        if block.info.startswith("python"):
            ast.parse(block.content)
        elif block.info == "toml":
            tomllib.loads(block.content)
        elif block.info.startswith("sh"):
            subprocess.run(["bash", "-n"], input=block.content, text=True, check=True)


def test_the_code_in_the_readme_is_that_of_the_examples() -> None:
    shown = [block.content for block in _blocks(ROOT / "README.md") if block.info == "python"]
    assert shown == [(EXAMPLES / name).read_text() for name in ("library.py", "storage_object.py")]


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to headings."""
    plain = (re.sub(r"[`*]", "", title).lower() for _, title in _HEADING.findall(_prose(page)))
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    for text, target in _LINK.findall(_prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        place, _, anchor = target.partition("#")
        file = (page.parent / place).resolve() if place else page
        assert file.exists(), f"[{text}]({target})"
        assert file.is_relative_to(ROOT)
        if anchor:
            assert anchor in _anchors(file), f"[{text}]({target})"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_name_that_is_linked_to_a_source_file_is_defined_there(page: Path) -> None:
    for text, target in _LINK.findall(_prose(page)):
        name = re.fullmatch(r"`([A-Za-z_][\w.]*)`", text)
        if not target.endswith(".py") or not name or name[1].endswith(".py") or "/" in name[1]:
            continue
        source = (page.parent / target).read_text()
        if name[1].startswith("diskhaul."):
            continue  # a module
        if target.endswith(f"/{name[1]}.py"):
            continue
        for part in name[1].split("."):
            assert re.search(rf"^\s*(?:class|def|async def) {part}\b", source, re.MULTILINE), f"{name[1]} is not in {target}"


def test_every_page_can_be_reached_from_the_first_one() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        targets = (target.partition("#")[0] for _, target in _LINK.findall(_prose(page)))
        waiting += [(page.parent / target).resolve() for target in targets if target.endswith(".md") and "://" not in target]
    assert reached == set(PAGES)


@pytest.mark.parametrize("page", [*PAGES, *sorted(EXAMPLES.iterdir())], ids=_name)
def test_text_is_plain(page: Path) -> None:
    if page.is_file():
        text = page.read_text(encoding="utf-8")
        assert "\u2014" not in text
        assert "\t" not in _FENCE.sub("", text)
        assert text.endswith("\n")
        assert not text.endswith("\n\n")


# --- nothing is left out ------------------------------------------------------------------------------------------------


def test_every_hook_is_described_on_a_page_of_its_own() -> None:
    hooks = {name for name in vars(hookspecs) if name.startswith("diskhaul_")}
    index = (DOCS / "plugins/index.md").read_text()
    described: dict[str, list[str]] = {hook: [] for hook in hooks}
    for page in sorted((DOCS / "plugins").glob("*.md")):
        code = "".join(block.content for block in _blocks(page) if block.info.endswith(" run"))
        for hook in hooks:
            if f"def {hook}(" in code:
                described[hook].append(page.stem)
    assert all(f"`{hook}`" in index for hook in hooks)
    assert all(len(pages) == 1 for pages in described.values()), described
    assert {pages[0] for pages in described.values()} == {*STAGES, "events", "tunables"}


def test_every_built_in_backend_stands_with_its_stage() -> None:
    rows = {row[0].partition("]")[0].strip("["): row[-1] for row in _rows((DOCS / "plugins/index.md").read_text())}
    for stage in STAGES:
        names = [found.name for found in diskhaul.plugins_report() if found.stage == stage and found.origin == "built-in"]
        assert re.findall(r"`([\w-]+)`", rows[stage]) == names
        page = (DOCS / f"plugins/{stage}.md").read_text()
        assert all(f"`{name}`" in page for name in names)


def test_every_conformance_suite_and_everything_for_tests_is_named() -> None:
    index = _coded((DOCS / "plugins/index.md").read_text())
    modules = pkgutil.iter_modules(diskhaul.testing.conformance.__path__, "diskhaul.testing.conformance.")
    suites = {name for module in modules for name in vars(importlib.import_module(module.name)) if name.endswith("Conformance")}
    assert len(suites) >= 8
    assert suites <= index
    used = "".join(block.content for page in (DOCS / "plugins").glob("*.md") for block in _blocks(page))
    assert all(f"({suite})" in used for suite in suites)
    assert set(diskhaul.testing.__all__) - {"Call"} <= index


def test_the_public_modules_are_those_that_the_built_in_plugins_may_import() -> None:
    rows = _rows(_section(DOCS / "plugins/index.md", "What is public"))
    described = [name for row in rows for name in re.findall(r"`(diskhaul[\w.]*)`", row[0])]
    assert len(described) == len(set(described))
    allowed = runpy.run_path(str(ROOT / "tests/core/test_layers.py"))["PUBLIC"]
    assert set(described) - {"diskhaul", "diskhaul.testing"} == allowed


def test_every_result_is_described_and_says_whether_it_has_an_exit_code() -> None:
    rows = {row[0].strip("`"): row for row in _rows(_section(DOCS / "library.md", "Results")) if row[0].startswith("`")}
    plain = ("plugins_report", "free_extents")  # sequences
    returned = {typing.get_type_hints(getattr(library, name))["return"] for name in library.__all__ if name not in plain}
    assert set(rows) == {kind.__name__ for kind in returned}
    for kind in returned:
        name, code, described = rows[kind.__name__]
        assert bool(code) == hasattr(kind, "exit_code"), name
        assert re.findall(r"`(\w+)`", described)
        own = {field.name for field in fields(kind)}
        assert {"incomplete", "unreachable", "skipped", "findings"} & own <= _coded(described), name


def test_unattended_use_says_what_each_exit_code_asks_for() -> None:
    rows = _rows(_section(DOCS / "unattended.md", "What the exit code asks for"))
    codes = [int(code) for row in rows[1:] for code in row[0].split(", ")]
    assert sorted(codes) == sorted(int(code) for code in re.findall(r"^ +(\d+)  ", EPILOG, re.MULTILINE))


def _described_options(heading: str) -> dict[str, str]:
    return {row[0].strip("`"): row[1] for row in _rows(_section(DOCS / "library.md", heading)) if row[0].startswith("`")}


@pytest.mark.parametrize(
    ("options", "heading"),
    [(PathOptions, "Path options"), (ExportOptions, "Export options"), (ImportOptions, "Import options")],
)
def test_every_option_is_described_with_its_default(options: type[Any], heading: str) -> None:
    described = _described_options(heading)
    own = [field for field in fields(options) if field.name in options.__annotations__]
    assert list(described) == [field.name for field in own]
    for field in own:
        text = described[field.name].strip("`")
        assert field.default is not MISSING
        value = int(text.removesuffix(" MiB")) << 20 if text.endswith(" MiB") else ast.literal_eval(text)
        assert value == field.default, field.name


def test_every_function_and_every_kind_of_keeping_is_described() -> None:
    text = (DOCS / "library.md").read_text()
    assert all(f"`diskhaul.{name}(" in text for name in (*library.__all__, "load_cluster"))
    keep = re.search(r"diskhaul\.KeepPolicy\(([^)]*)\)", text)
    assert keep
    assert re.findall(r"(\w+)=", keep[1]) == [field.name for field in fields(KeepPolicy)]


def _errors() -> dict[str, type[errors.DiskhaulError]]:
    return {
        name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.DiskhaulError)
    }


def test_the_table_of_errors_is_that_of_the_code() -> None:
    rows = [row for row in _rows(_section(DOCS / "library.md", "Errors")) if row[0].startswith("`")]
    assert {row[0].strip("`"): int(row[1]) for row in rows} == {name: kind.exit_code for name, kind in _errors().items()}


def test_the_exit_codes_are_the_same_everywhere_and_those_of_the_errors() -> None:
    readme = {row[0]: row[1] for row in _rows((ROOT / "README.md").read_text()) if row[0].isdigit()}
    page = {row[0]: row[1] for row in _rows(_section(DOCS / "command-line.md", "Exit codes")) if row[0].isdigit()}
    help_text = dict(re.findall(r"^ +(\d+)  (.+)$", re.sub(r"\n {6,}(?=[a-z])", " ", EPILOG), re.MULTILINE))  # lines continue
    assert readme == page == help_text
    assert {int(code) for code in page} == {0, 4} | {kind.exit_code for kind in _errors().values()}


def _model_keys(model: Any, prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for inner in get_args(field.annotation):
            if hasattr(inner, "model_fields"):
                yield from _model_keys(inner, f"{name}.")


def test_every_key_of_a_configuration_is_described_and_no_other() -> None:
    page = DOCS / "configuration.md"
    text = page.read_text()
    sections = Document.model_fields
    wanted: set[str] = set()
    for name in ("cluster", "backends"):
        wanted |= set(_model_keys(sections[name].annotation, f"{name}."))
    for name in ("nodes", "instances", "clusters"):
        wanted |= set(_model_keys(get_args(sections[name].annotation)[1], f"{name}.NAME."))
    known = _coded(text)
    assert wanted <= known, wanted - known
    assert {key for key in known if re.fullmatch(r"(cluster|clusters|backends|nodes|instances|disks|nics)\.[\w.]+", key)} - {
        "cluster.toml"
    } <= wanted
    headings = {title for _, title in _HEADING.findall(_prose(page))}
    assert {f"`[{name}]`" for name in ("cluster", "defaults", "backends")} <= headings
    assert {f"`[{name}.NAME]`" for name in ("backend_options", "nodes", "instances", "clusters")} <= headings
    assert set(sections) == {"cluster", "defaults", "backends", "backend_options", "nodes", "instances", "clusters"}


def test_every_option_of_the_built_in_backends_is_described() -> None:
    from diskhaul_plugins.runtimes.command import INHERITED, NEEDED, OPTIONAL
    from diskhaul_plugins.transfers.object_store.settings import Settings as ObjectSettings
    from diskhaul_plugins.transfers.tls.settings import Settings as TlsSettings

    page = DOCS / "configuration.md"
    assert {*NEEDED, *OPTIONAL, *INHERITED, "timeout_s", "environment"} <= _coded(_section(page, "The runtime `command`"))
    assert {field.name for field in fields(KeepPolicy)} <= _coded(_section(page, "The clean-up `keep`"))
    assert "lease_s" in _coded(_section(page, "The lock service `file`"))
    for transfer, settings in (("tls", TlsSettings), ("object", ObjectSettings)):
        described = {row[0].strip("`"): row[1] for row in _rows(_section(page, f"The transfer `{transfer}`"))[1:]}
        assert list(described) == [option.name for option in fields(settings)]
        for option in fields(settings):
            if isinstance(option.default, bool):
                assert described[option.name] == f"`{str(option.default).lower()}`", option.name
            elif isinstance(option.default, int | float):
                assert float(described[option.name]) == option.default, option.name


def _command(name: str) -> click.Command:
    command: click.Command = cli
    for part in name.split():
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), part)
        assert found is not None
        command = found
    return command


def _options(command: click.Command) -> set[str]:
    """Every spelling of every option that the command's help shows, but help itself."""
    shown = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    return {spelling for option in shown for spelling in (*option.opts, *option.secondary_opts)}


@pytest.mark.parametrize("name", [*cli.list_commands(click.Context(cli)), "fleet export"])
def test_every_command_is_described_with_every_option_and_no_other(name: str) -> None:
    command = _command(name)
    argument = "".join(f" {option.metavar}" for option in command.params if isinstance(option, click.Argument))
    section = _section(DOCS / "command-line.md", f"diskhaul {name}{argument}")
    cells = [cell for row in _rows(section) for cell in row[:1]]
    described = {spelling for text in (*cells, section) for spelling in re.findall(r"`(--[a-z-]+)", text)}
    assert described >= _options(command)
    in_table = {spelling for cell in cells for spelling in re.findall(r"`(--[a-z-]+)", cell)}
    assert in_table <= _options(command)
    assert f"`diskhaul {name}" in (ROOT / "README.md").read_text()


def test_the_common_options_are_described() -> None:
    described = set(re.findall(r"`(-[a-z-]+)", _section(DOCS / "command-line.md", "Common options")))
    assert described >= {*_options(cli), "-h", "--help"}


def test_every_event_is_described_with_its_fields() -> None:
    rows = {row[0].strip("`"): row for row in _rows((DOCS / "plugins/events.md").read_text())}
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)]
    for kind in kinds:
        if kind is events.Event:
            continue
        assert rows[kind.__name__][1] == f"`{kind.kind}`"
        own = {field.name for field in fields(kind)} - {"run_id", "time"}
        assert own == _coded(rows[kind.__name__][2])


def test_every_field_of_a_manifest_is_described() -> None:
    section = _section(DOCS / "format.md", "`manifest.json`")
    described = {name for row in _rows(section) for name in re.findall(r"`(\w+)`", row[0])}
    wanted = {field.name for kind in (Manifest, DiskRecord) for field in fields(kind)}
    assert described == wanted | {"manifest_digest"}


def test_every_variable_of_hook_scripts_is_described() -> None:
    section = _coded(_section(DOCS / "semantics.md", "Hook scripts"))
    instance = diskhaul.Instance(name="web1", node="alpha", disks=[diskhaul.Disk()], nics=[diskhaul.Nic()])
    for variable in instance_environment(instance, running=True, sizes={0: 1}):
        general = re.sub(r"(DISK|NIC)0_", r"\1n_", variable)
        assert general in section or (general.startswith("INSTANCE_NICn") and general.removeprefix("INSTANCE_NICn") in section)
    for module in ("export", "base", "../hook_scripts"):
        source = (Path(operations.__file__).parent / f"{module}.py").read_text()
        for variable in re.findall(r'^ +"([A-Z]+(?:_[A-Z]+)*)": ', source, re.MULTILINE):
            assert variable in section or variable == "PATH", variable


def test_every_invariant_stands_in_its_place_with_a_test_or_says_that_there_is_none() -> None:
    rows = [row for row in _rows(_section(DOCS / "trust.md", "Invariants")) if row[0].isdigit()]
    assert [int(row[0]) for row in rows] == list(range(1, 23))
    for row in rows:
        assert "`test_" in row[2] or "no test of its own" in row[2] or "there is no" in row[2], row[0]
