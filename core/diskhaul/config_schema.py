"""The shape of a configuration file, for pydantic, and its complaints put into plain words.

Imported by `diskhaul.config` when a file is read, and by nothing else: pydantic takes longer to load than the rest together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from .names import escape, suggestion
from .options import COMPRESSORS
from .sizes import MAX_SIZE, parse_size

Location = tuple[str | int, ...]


def _refuse(message: str) -> PydanticCustomError:
    return PydanticCustomError("plain", "{message}", {"message": message})


def _text(value: object) -> object:
    if isinstance(value, str):
        if not value.strip():
            raise _refuse("is empty; give it a value")
        if "\0" in value:
            raise _refuse("holds a NUL character; take it out")
    return value


def _path(value: object) -> object:
    if isinstance(value, str) and value.startswith("~"):
        raise _refuse("'~' is not expanded in a configuration; write the whole path")
    return _text(value)


def _size(value: object) -> object:
    """Bytes from an integer or from text such as "10 GiB"."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _refuse(f'must be a whole number of bytes or text such as "10 GiB", not {_kind(value)}')
    try:
        size = parse_size(value.strip()) if isinstance(value, str) else value
    except ValueError as error:
        raise _refuse(str(error)) from None
    if not 0 < size <= MAX_SIZE:
        raise _refuse(f"must be from 1 byte to {MAX_SIZE} bytes")
    return size


Text = Annotated[str, BeforeValidator(_text)]
PathText = Annotated[str, BeforeValidator(_path)]
Size = Annotated[int, BeforeValidator(_size)]
Table = dict[str, Any]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


class ClusterSection(_Section):
    name: Text
    master: Text = ""
    state_dir: PathText = "state"
    hook_dir: PathText | None = None
    compression: list[Text] = [*COMPRESSORS]
    cluster_domain_secret: PathText | None = None


class NodeSection(_Section):
    export_dir: PathText | None = None
    offline: bool = False
    drained: bool = False
    options: Table = {}


class OtherClusterSection(_Section):
    command: Annotated[list[Text], Field(min_length=1)]


class DiskSection(_Section):
    storage: Text = "file"
    path: PathText | None = None
    size: Size | None = None
    snapshot: Text | None = None
    name: Text = ""
    uuid: Text = ""
    options: Table = {}


class NicSection(_Section):
    mac: Text = ""
    ip: Text = ""
    network: Text = ""
    name: Text = ""
    mode: Text = ""
    link: Text = ""


class InstanceSection(_Section):
    node: Text
    state: Literal["up", "down"] = "up"
    runtime: Text = "none"
    os: Text = ""
    memory_mib: Annotated[int, Field(ge=0, le=1 << 40)] = 0
    vcpus: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    tags: list[Text] = []
    secondaries: list[Text] = []
    disks: list[DiskSection] = []
    nics: list[NicSection] = []
    runtime_options: Table = {}
    private: Table = {}
    parameters: Table = {}


class BackendsSection(_Section):
    inventory: Text | None = None
    lock: Text | None = None
    snapshot: Text | None = None
    zerofill: Text | None = None
    transfer: Text | None = None
    cleanup: Text | None = None
    engine: Text | None = None


class Document(_Section):
    cluster: ClusterSection
    defaults: Table = {}
    backends: BackendsSection = BackendsSection()
    backend_options: dict[str, Table] = {}
    nodes: dict[str, NodeSection] = {}
    instances: dict[str, InstanceSection] = {}
    clusters: dict[str, OtherClusterSection] = {}


def check_shape(raw: Mapping[str, Any]) -> tuple[Document | None, list[str]]:
    """Return the document (None unless it has the right shape) and what is wrong with its shape, each with its key path."""
    try:
        return Document.model_validate(raw), []
    except ValidationError as error:
        return None, [f"{key_path(details['loc'])}: {_plain(details)}" for details in error.errors(include_url=False)]


def value_problems(value: object, where: Location) -> list[str]:
    """What in a free-form table cannot be kept: numbers that are none, dates, empty keys; each with its key path."""
    if isinstance(value, Mapping):
        problems: list[str] = []
        for key, inner in value.items():
            if not key.strip():
                problems.append(f"{key_path(where)}: has an empty key; name it or take it out")
            problems += value_problems(inner, (*where, key))
        return problems
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [problem for index, inner in enumerate(value) for problem in value_problems(inner, (*where, index))]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{key_path(where)}: is not a number that can be used; write a finite one"]
    if isinstance(value, str) and "\0" in value:
        return [f"{key_path(where)}: holds a NUL character; take it out"]
    if not isinstance(value, str | int | float):
        return [f"{key_path(where)}: is {_kind(value)}, which cannot be kept here; put it in quotes"]
    return []


def key_path(location: Location) -> str:
    """A place in the file as TOML would write it: ``instances."web1.example.com".disks[0].path``."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            bare = re.match(r"[A-Za-z0-9_-]+\Z", part)
            path += ("." if path else "") + (part if bare else _quoted(part))
    return path


def _kind(value: object) -> str:
    words: dict[type, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number with a fraction",
        str: "text",
        list: "a list",
        dict: "a table",
    }
    return words.get(type(value), "a date or time")


_EXAMPLES: dict[str, str] = {
    "cluster": 'a [cluster] section with name = "..."',
    "name": 'name = "..."',
    "export_dir": 'export_dir = "exports"',
    "node": 'node = "NODE", one of those under [nodes]',
    "command": 'command = ["ssh", "root@HOST", "diskhaul"]',
}

_EXPECTED: dict[str, str] = {
    "string_type": "text in quotes",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "list_type": "a list in [ ]",
    "dict_type": "a table",
    "model_type": "a table",
}


def _plain(details: ErrorDetails) -> str:
    kind, location, context = details["type"], details["loc"], details.get("ctx", {})
    given = details["input"]
    if kind == "plain":
        return str(context["message"])
    if kind == "missing":
        return f"is missing; add {_EXAMPLES.get(str(location[-1]), 'it')}"
    if kind == "extra_forbidden":
        if isinstance(given, dict) and len(location) == 3 and location[0] in ("instances", "nodes", "clusters"):
            name = f'[{location[0]}."{location[1]}.{location[2]}..."]'
            return f"is a table of its own; a name with dots needs quotes: {escape(name)}"
        return _unknown_key(location)
    if kind in _EXPECTED:
        return f"must be {_EXPECTED[kind]}, not {_kind(given)}"
    if kind == "literal_error":
        return f"must be {str(context['expected']).replace(chr(39), chr(34))}, not {_shown(given)}"
    if kind == "greater_than_equal":
        return f"must not be below {context['ge']}"
    if kind == "too_short":
        return f"is empty; write it like {_EXAMPLES.get(str(location[-1]), 'one')}"
    if kind == "less_than_equal":
        return f"must not be above {context['le']}"
    return f"{details['msg'][:1].lower()}{details['msg'][1:]}; correct it"


def _shown(value: object) -> str:
    return _quoted(value[:40]) if isinstance(value, str) else _kind(value)


def _quoted(text: str) -> str:
    """`text` in double quotes as TOML has it, safe for a terminal."""
    return '"' + text.encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'


def _unknown_key(location: Location) -> str:
    return f"is not a key here; {suggestion(str(location[-1]), _section_at(location[:-1]).model_fields)}"


def _section_at(location: Location) -> type[BaseModel]:
    """The section whose keys stand at `location`: names and indexes in between say nothing about it."""
    sections: dict[str, type[BaseModel]] = {
        "cluster": ClusterSection,
        "nodes": NodeSection,
        "backends": BackendsSection,
        "clusters": OtherClusterSection,
    }
    if not location:
        return Document
    if location[0] == "instances":
        inner = location[2] if len(location) > 2 else ""
        return DiskSection if inner == "disks" else NicSection if inner == "nics" else InstanceSection
    return sections[str(location[0])]
