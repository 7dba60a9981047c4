"""``config.ini``: the description that Ganeti (2.x and 3.x) writes beside the dumps of an export, in both directions.

    [export]      version = 0, timestamp, source (the primary node), os, compression
    [instance]    name, maxmem, minmem, memory, vcpus, disk_template, hypervisor, tags (separated by spaces),
                  nic_count and nicN_mac/ip/network/name/mode/link, disk_count and diskN_ivname/dump/size/name (sizes in MiB)
    [hypervisor] [backend] [os] [os_private]      parameters, one key each

What Ganeti has not, it writes as ``None``. Its reader interpolates, so that a percent sign stands doubled in the file. The
parameters have no place of their own in `diskhaul.model.Instance` and live in its `parameters`, under the names of
`PARAMETER_SECTIONS` beside ``disk_template``, ``hypervisor``, ``minmem`` and ``maxmem``. Secrets (``os_private``) are read into
`Instance.private` and never written.

Ours begins with a comment that holds the BLAKE3 of the rest, so that flipped bits show; Ganeti passes over comments, and what
Ganeti wrote is read without one. A file whose first line is any other comment is refused: it may be a damaged one of ours.
"""

from __future__ import annotations

import configparser
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ..errors import RefusedError
from ..model import Disk, Instance, Nic
from ..names import escape, name_problem, printable
from .corruption import CorruptError

CONFIG_NAME = "config.ini"
MAX_CONFIG_BYTES = 256 << 10
EXPORT_VERSION = "0"

PARAMETER_SECTIONS = {"hypervisor_parameters": "hypervisor", "backend_parameters": "backend", "os_parameters": "os"}
"""Key in `Instance.parameters`, and the section it becomes."""

_MAX_DISKS = 1024
_MAX_NICS = 1024
_MAX_MIB = 2**43 - 1  # a disk of 2**63 bytes
_MAX_KEY = 128
_NIC_FIELDS = ("mac", "ip", "network", "name", "mode", "link")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}")
_KEY = re.compile(r"[a-z0-9][a-z0-9_.-]{0,127}")
_NUMBER = re.compile(r"[0-9]{1,19}")
_COMPRESSION = re.compile(r"[a-z0-9-]{1,32}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")
_CONTROL_IN_FILE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029]")  # lines end with \n; a tab may continue one
_DIGEST_LINE = "# diskhaul export, BLAKE3 of what follows: "
_NONE = "None"


@dataclass(frozen=True, slots=True, kw_only=True)
class GanetiDump:
    """One dumped disk.

    Attributes:
        file: name of the dump, Ganeti's disk uuid; a plain file name.
        size_mib: size of the disk in MiB, rounded up.
        ivname: what the instance calls it, ``disk/0``.
        name: the user's name for it, or "".
    """

    file: str
    size_mib: int
    ivname: str
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GanetiExport:
    """What a ``config.ini`` says.

    Attributes:
        instance: with a disk for each dump (name and uuid only: how large a disk is, its dump says).
        dumps: in order of the disks.
        timestamp: seconds since 1970.
        source: the node it was exported from.
        compression: of the dumps; "none" ever since Ganeti 2.1.
    """

    instance: Instance
    dumps: tuple[GanetiDump, ...]
    timestamp: int
    source: str
    compression: str


def size_mib(size: int) -> int:
    """A size in bytes as Ganeti counts it: MiB, rounded up."""
    return -(-size // (1 << 20))


# --- writing ----------------------------------------------------------------------------------------------------------


def render_config_ini(
    instance: Instance, dumps: Sequence[GanetiDump], *, timestamp: int, source: str, compression: str = "none"
) -> bytes:
    """Return the ``config.ini`` of an export that Ganeti can import.

    `Instance.parameters` gives ``disk_template`` (else "plain", or "diskless") and ``hypervisor`` (else "kvm"), and mappings of
    parameters under `PARAMETER_SECTIONS`. `Instance.private` is not looked at.

    Raises:
        RefusedError: the format cannot hold it (a control character, a tag with a space, ...); every reason found.
    """
    problems: list[str] = []
    parameters = instance.parameters
    memory = {name: _text(parameters.get(name, instance.memory_mib)) for name in ("maxmem", "minmem")}
    values: dict[str, str] = {
        "name": instance.name,
        **memory,
        "memory": memory["maxmem"],  # what Ganeti before 2.6 reads
        "vcpus": str(instance.vcpus),
        "disk_template": _text(parameters.get("disk_template", "plain" if dumps else "diskless")),
        "hypervisor": _text(parameters.get("hypervisor", "kvm")),
        "tags": " ".join(instance.tags),
    }
    problems += [
        f"tag {printable(tag)} cannot be written: it is empty or has a space" for tag in instance.tags if tag.split() != [tag]
    ]
    for index, nic in enumerate(instance.nics):
        for name in _NIC_FIELDS:
            values[f"nic{index}_{name}"] = getattr(nic, name) or _NONE
        values[f"nic{index}_mac"] = nic.mac or "auto"  # Ganeti makes one then, but takes None for an address
    values["nic_count"] = str(len(instance.nics))
    for index, dump in enumerate(dumps):
        problems += _dump_problems(index, dump, dumps)
        values[f"disk{index}_ivname"] = dump.ivname
        values[f"disk{index}_dump"] = dump.file
        values[f"disk{index}_size"] = str(dump.size_mib)
        values[f"disk{index}_name"] = dump.name or _NONE
    values["disk_count"] = str(len(dumps))

    sections: dict[str, dict[str, str]] = {
        "export": {
            "version": EXPORT_VERSION,
            "timestamp": str(int(timestamp)),
            "source": source,
            "os": instance.os,
            "compression": compression,
        },
        "instance": values,
    }
    for option, section in PARAMETER_SECTIONS.items():
        given = parameters.get(option, {})
        if not isinstance(given, Mapping):
            problems.append(f"parameters.{option} is not a table")
            given = {}
        sections[section] = {str(key): _text(value) for key, value in given.items()}
    for name, value in (*memory.items(), ("vcpus", values["vcpus"])):
        sections["backend"].setdefault(name, value)
    sections["os_private"] = {}

    for section, options in sections.items():
        for key, value in options.items():
            if not _KEY.fullmatch(key):
                problems.append(f"{section} parameter {printable(key[:60])} has a name that a Ganeti export cannot hold")
            elif _CONTROL.search(value):
                problems.append(
                    f"{section} {key}: {printable(value[:60])} has a control character, which a Ganeti export cannot hold"
                )
    if problems:
        raise RefusedError(problems)
    return _written(sections)


def _dump_problems(index: int, dump: GanetiDump, dumps: Sequence[GanetiDump]) -> list[str]:
    problems = []
    if not _is_dump_name(dump.file) or [other.file for other in dumps].count(dump.file) > 1:
        problems.append(f"disk {index}: {printable(dump.file[:60])} cannot be the name of its dump")
    if not 0 <= dump.size_mib <= _MAX_MIB:
        problems.append(f"disk {index}: {dump.size_mib} MiB cannot be its size")
    return problems


def _written(sections: Mapping[str, Mapping[str, str]]) -> bytes:
    parser = configparser.ConfigParser(interpolation=None)
    for section, options in sections.items():
        parser[section] = {key: value.strip().replace("%", "%%") for key, value in options.items()}
    text = io.StringIO()
    parser.write(text)
    try:
        content = text.getvalue().encode("utf-8")
    except UnicodeEncodeError as error:
        raise RefusedError(f"a Ganeti export cannot hold {printable(text.getvalue()[error.start : error.end])}") from error
    data = _digest_line(content) + content
    try:
        parse_config_ini(data)
    except CorruptError as error:
        raise RefusedError(f"a Ganeti export cannot hold this instance: {error}") from error
    return data


def _digest_line(content: bytes) -> bytes:
    from blake3 import blake3

    return f"{_DIGEST_LINE}{blake3(content).hexdigest()}\n".encode("ascii")


def _text(value: Any) -> str:
    return _NONE if value is None else str(value)


# --- reading ----------------------------------------------------------------------------------------------------------


def is_ours(data: bytes) -> bool:
    """True for a ``config.ini`` that diskhaul wrote, damaged or not: there is a manifest that goes with it."""
    return data.startswith(_DIGEST_LINE.encode("ascii"))


def parse_config_ini(data: bytes) -> GanetiExport:
    """Read a ``config.ini``. Nothing is interpolated; what diskhaul does not know of is passed over.

    Raises:
        CorruptError: cut, too long, not of this format, or with a file name that is not safe.
    """
    sections = _parsed(data)
    export = _Section(sections, "export")
    described = _Section(sections, "instance")
    if export.text("version") != EXPORT_VERSION:
        export.refuse("version", f"{printable(export.text('version')[:60])} is not {EXPORT_VERSION}")
    compression = export.text("compression")
    if not _COMPRESSION.fullmatch(compression):
        export.refuse("compression", f"{printable(compression[:60])} is not the name of a compressor")
    dumps = _dumps(described)
    parameters: dict[str, Any] = {name: described.text(name) for name in ("disk_template", "hypervisor") if described.has(name)}
    maxmem = described.number("maxmem" if described.has("maxmem") else "memory", _MAX_MIB)
    parameters["maxmem"] = maxmem
    parameters["minmem"] = described.number("minmem", _MAX_MIB) if described.has("minmem") else maxmem
    for option, section in PARAMETER_SECTIONS.items():
        parameters[option] = dict(sections.get(section, {}))
    private = sections.get("os_private")
    try:
        instance = Instance(
            name=described.name("name", "instance"),
            node=export.name("source", "node"),
            os=export.text("os"),
            disks=tuple(Disk(name=dump.name, uuid=dump.file) for dump in dumps),
            nics=_nics(described),
            memory_mib=maxmem,
            vcpus=described.number("vcpus", 1 << 20),
            tags=tuple(described.text("tags").split()) if described.has("tags") else (),
            parameters=parameters,
            private={"os_parameters": dict(private)} if private else {},
        )
    except RefusedError as error:
        raise CorruptError(f"{CONFIG_NAME}: {error}") from error
    return GanetiExport(
        instance=instance,
        dumps=dumps,
        timestamp=export.number("timestamp", 2**63 - 1),
        source=instance.node,
        compression=compression,
    )


def _dumps(described: _Section) -> tuple[GanetiDump, ...]:
    dumps: list[GanetiDump] = []
    for index in range(described.number("disk_count", _MAX_DISKS)):
        file = described.text(f"disk{index}_dump")
        if not _is_dump_name(file):
            described.refuse(f"disk{index}_dump", f"file name {printable(file[:60])} is not allowed")
        if any(file == dump.file for dump in dumps):
            described.refuse(f"disk{index}_dump", f"file {file} belongs to another disk, too")
        dumps.append(
            GanetiDump(
                file=file,
                size_mib=described.number(f"disk{index}_size", _MAX_MIB),
                ivname=described.absent_or_text(f"disk{index}_ivname"),
                name=described.absent_or_text(f"disk{index}_name"),
            )
        )
    if described.has(f"disk{len(dumps)}_dump"):
        described.refuse("disk_count", f"is {len(dumps)}, but there are more disks")
    return tuple(dumps)


def _nics(described: _Section) -> tuple[Nic, ...]:
    nics = []
    for index in range(described.number("nic_count", _MAX_NICS)):
        nic = {name: described.absent_or_text(f"nic{index}_{name}") for name in _NIC_FIELDS}
        if nic["mac"] == "auto":
            nic["mac"] = ""
        nics.append(Nic(**nic))
    return tuple(nics)


def _is_dump_name(name: str) -> bool:
    return _FILE_NAME.fullmatch(name) is not None and name not in (CONFIG_NAME, "manifest.json") and not name.endswith(".chunks")


def _parsed(data: bytes) -> dict[str, dict[str, str]]:
    if not data:
        raise CorruptError(f"{CONFIG_NAME} is empty")
    if len(data) > MAX_CONFIG_BYTES:
        raise CorruptError(f"{CONFIG_NAME} is {len(data)} bytes long; {MAX_CONFIG_BYTES} is the most one can be")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptError(f"{CONFIG_NAME} is not UTF-8 at byte {error.start}") from error
    if not text.endswith("\n"):
        raise CorruptError(f"{CONFIG_NAME} was cut: its last line does not end")
    if data[:1] in (b"#", b";"):
        first, end, content = data.partition(b"\n")
        if first + end != _digest_line(content):
            raise CorruptError(f"{CONFIG_NAME} does not match the digest in its first line: it was changed")
    _check_lines(text)
    # No section is special, so that [DEFAULT] cannot put values into the others.
    parser = configparser.ConfigParser(interpolation=None, default_section="\0")
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise CorruptError(f"{CONFIG_NAME} cannot be read: {escape(str(error).splitlines()[0][:200])}") from error
    return {section: {key: value.replace("%%", "%") for key, value in parser.items(section)} for section in parser.sections()}


def _check_lines(text: str) -> None:
    """Refuse lines that `configparser` would take quadratic time for, or would read in a way nobody meant."""
    in_option = False
    for number, line in enumerate(text.split("\n"), start=1):
        content = line.strip()
        if _CONTROL_IN_FILE.search(line):
            problem = "has a control character"
        elif not content or content[0] in "#;" or (in_option and line[0] in " \t"):
            continue
        elif line[0] in " \t":
            problem = "is indented, but continues nothing"
        elif content[0] == "[":
            in_option = False
            problem = "" if len(content) > 2 and content[-1] == "]" and content.count("]") == 1 else "is not a section's name"
        else:
            in_option = True
            ends = [at for at in (content.find("=", 1, _MAX_KEY + 1), content.find(":", 1, _MAX_KEY + 1)) if at > 0]
            problem = "" if ends else "is not a key with a value"
        if problem:
            raise CorruptError(f"{CONFIG_NAME}: line {number} {problem}")


class _Section:
    """One section, whose values are checked as they are taken."""

    __slots__ = ("_name", "_values")

    def __init__(self, sections: Mapping[str, Mapping[str, str]], name: str) -> None:
        if name not in sections:
            raise CorruptError(f"{CONFIG_NAME} has no section [{name}]")
        self._name = name
        self._values = sections[name]

    def refuse(self, key: str, problem: str) -> NoReturn:
        raise CorruptError(f"{CONFIG_NAME}: {self._name}.{key}: {problem}")

    def has(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str) -> str:
        if key not in self._values:
            self.refuse(key, "is missing")
        return self._values[key]

    def absent_or_text(self, key: str) -> str:
        """A value that Ganeti may not have: then "" is returned."""
        value = self._values.get(key, _NONE)
        return "" if value.lower() == "none" else value

    def number(self, key: str, most: int) -> int:
        text = self.text(key)
        if not _NUMBER.fullmatch(text) or int(text) > most:
            self.refuse(key, f"{printable(text[:60])} is not a number from 0 to {most}")
        return int(text)

    def name(self, key: str, kind: str) -> str:
        text = self.text(key)
        problem = name_problem(kind, text)
        if problem is not None:
            self.refuse(key, problem)
        return text
