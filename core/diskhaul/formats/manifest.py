"""``manifest.json``: what an export is, and everything needed to make its instance again. No secrets.

Plain JSON: ASCII, two spaces, sorted keys. Its field ``manifest_digest`` is the BLAKE3 of the whole file with that field's own
64 digits as zeros, so that every flipped bit shows. It detects accidents; whoever can write to the store can write a new one.

Reading assumes the worst: the size, the nesting and the number of values are bounded before anything is parsed, and every
field is checked before anyone uses it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, time, timedelta
from pathlib import Path, PurePath
from typing import Any, NoReturn

from ..api import DiskRegion, ExportReader
from ..errors import RefusedError
from ..model import Disk, Instance, Nic
from ..names import escape, name_problem, printable
from ..version import __version__
from .chunk_table import MAX_EXPORT_CHUNKS, chunk_count, is_effective_chunk_size
from .codec import codec_for, parse_compress
from .corruption import CorruptError
from .export_id import is_export_id, is_run_id, run_of, short_run_id

FORMAT_VERSION = 1
DIGESTS_LATER = "digests-later"
"""The feature of exports of which some disk has no digests yet: whoever does not know it would look for a chunk table."""
DISK_REGIONS = "disk-regions"
"""The feature of exports that say what their disks held: `DiskRecord.regions`, a key that older readers do not know."""
KNOWN_FEATURES: frozenset[str] = frozenset({DIGESTS_LATER, DISK_REGIONS})
"""Features that this version can read when a manifest requires them. A feature that old versions would get wrong goes here."""

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20
MAX_DEPTH = 32
MAX_VALUES = 200_000  # a Python object takes 50 bytes and more where JSON takes two: bounds memory to some 30 MiB
MAX_QUOTES = 5 * MAX_VALUES  # a key and a text take four
MAX_SIZE = 2**63 - 1  # what an off_t holds

_CONSISTENCIES = ("stopped", "filesystem", "crash")
_LAYOUTS = ("diskhaul", "ganeti")
_EXTRA_FILES = {"diskhaul": frozenset[str](), "ganeti": frozenset({"config.ini"})}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_DUMP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}")
_NOT_DUMPS = frozenset({MANIFEST_NAME, "config.ini"})
_NO_DIGEST = "0" * 64
_CREATED = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?:Z|\+00:00)")

# A string, or one that the end of the file cuts off. The possessive loop and the second way to end keep the search linear.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def chunks_name(index: int) -> str:
    """The name of a disk's chunk table."""
    return f"disk-{index}.chunks"


def most_regions(disks: int) -> int:
    """How many regions the record of each of so many disks holds at the most; `MAX_VALUES` is far away then."""
    return max(1, min(256, 4096 // max(disks, 1)))


def being_written(name: str) -> str:
    """The name under which a file of a published export is written anew."""
    return f".{name}.tmp"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRecord:
    """One disk of an export. Sizes are bytes.

    Attributes:
        index: its position, from 0.
        name, uuid: as in `diskhaul.model.Disk`.
        size: of the disk.
        file: its data file; ``disk-N.FORMAT`` in diskhaul's own layout, the dump's name in Ganeti's.
        format: "raw", "raw.zst" or "raw.gz".
        compress: for example "zstd:1"; goes with `format`.
        stored_size: size of the data file; of a raw one, holes included.
        chunk_size, chunk_count: as in its chunk table.
        chunks_file: the chunk table, always ``disk-N.chunks``; "" while there are no digests.
        root_digest, stored_root: of the chunk table; `stored_root` is "" for raw data, both while there are no digests.
        data_bytes, zero_bytes, free_bytes: what the disk consists of; together its size.
        consistency: "stopped", "filesystem" or "crash".
        regions: what it held, and what of it was left out as free, where free space was looked for (`DISK_REGIONS`); at most
            `most_regions`. Texts of the guest's own are in it.
    """

    index: int
    name: str = ""
    uuid: str = ""
    size: int
    file: str
    format: str
    compress: str
    stored_size: int
    chunk_size: int
    chunk_count: int
    chunks_file: str
    root_digest: str
    stored_root: str
    data_bytes: int
    zero_bytes: int
    free_bytes: int
    consistency: str
    regions: tuple[DiskRegion, ...] = ()

    @property
    def has_digests(self) -> bool:
        """False while nothing says what its bytes must be (`DIGESTS_LATER`)."""
        return self.root_digest != ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an export is.

    Attributes:
        format_version: of the manifest, and of everything it describes.
        required_features: what a reader must know to read the export right.
        export_id, run_id: `run_id` is the run's whole uuid; the id holds its start.
        cluster: name of the cluster it comes from.
        created: ISO 8601, UTC.
        created_by: program and version.
        instance: `instance_record` of the instance; `instance_from_record` gives it back.
        options: the options of the export, as plain data.
        consistency: the worst of the disks'.
        layout: "diskhaul" or "ganeti".
        disks: in order; there may be none.
        other_files: BLAKE3 (hex) of every file that belongs to no disk, by name: Ganeti's ``config.ini``.
        timings: seconds by stage.
    """

    format_version: int = FORMAT_VERSION
    required_features: tuple[str, ...] = ()
    export_id: str
    run_id: str
    cluster: str
    created: str
    created_by: str = f"diskhaul {__version__}"
    instance: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    consistency: str
    layout: str = "diskhaul"
    disks: tuple[DiskRecord, ...] = ()
    other_files: Mapping[str, str] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)

    @property
    def has_digests(self) -> bool:
        """Whether every disk has."""
        return all(disk.has_digests for disk in self.disks)

    def to_bytes(self) -> bytes:
        """The manifest as it is stored, read back before it is returned.

        Raises:
            ValueError: `from_bytes` would refuse it; the message says why.
        """
        content = _record_of(self)
        content["manifest_digest"] = _NO_DIGEST
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"
        # Only a top-level key stands behind exactly two spaces on a line of its own, so this is never part of a text field.
        before, key, after = text.partition('\n  "manifest_digest": "')
        data = f"{before}{key}{_blake3(text.encode('ascii'))}{after[len(_NO_DIGEST) :]}".encode("ascii")
        try:
            Manifest.from_bytes(data)
        except CorruptError as error:
            raise ValueError(f"this manifest could not be read back: {error}") from error
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read a stored manifest.

        Raises:
            CorruptError: anything about it is not as it should be; the format version is looked at first.
        """
        content = _parse(data)
        _check_version(content)
        _check_digest(data, content)
        return _manifest(content)


def read_manifest(reader: ExportReader) -> Manifest:
    """Read the manifest of an export, at most `MAX_MANIFEST_BYTES` of it.

    Raises:
        CorruptError: it is not a valid manifest.
        StorageError, OSError: it is missing, no regular file, or cannot be read.
    """
    stored = reader.open(MANIFEST_NAME)
    try:
        size = stored.size
        if size > MAX_MANIFEST_BYTES:
            raise CorruptError(f"the manifest is {size} bytes long; {MAX_MANIFEST_BYTES} is the most one can be")
        data = bytearray(size)
        if size:
            stored.read_into(0, memoryview(data))
    finally:
        stored.close()
    return Manifest.from_bytes(bytes(data))


# --- instances --------------------------------------------------------------------------------------------------------


def instance_record(instance: Instance, left_out: list[str] | None = None) -> dict[str, Any]:
    """Return an instance as plain data for a manifest: everything but `Instance.private`.

    Options may hold any Python object when an instance was built in code. Numbers, texts, truth values, None, lists, mappings
    with text keys, paths, dates and times are recorded (the last three as text); anything else is left out, and its key path
    is appended to `left_out` so that a caller can say so.
    """
    missing: list[str] = [] if left_out is None else left_out
    return {
        "name": instance.name,
        "node": instance.node,
        "state": instance.state,
        "runtime": instance.runtime,
        "os": instance.os,
        "disks": [
            {
                "storage": disk.storage,
                "path": None if disk.path is None else str(disk.path),
                "size": disk.size,
                "snapshot": disk.snapshot,
                "name": disk.name,
                "uuid": disk.uuid,
                "options": _plain_mapping(disk.options, f"disks.{disk.index}.options", missing),
            }
            for disk in instance.disks
        ],
        "nics": [{name: getattr(nic, name) for name in _NIC_FIELDS} for nic in instance.nics],
        "secondaries": list(instance.secondaries),
        "memory_mib": instance.memory_mib,
        "vcpus": instance.vcpus,
        "tags": list(instance.tags),
        "runtime_options": _plain_mapping(instance.runtime_options, "runtime_options", missing),
        "parameters": _plain_mapping(instance.parameters, "parameters", missing),
    }


def instance_from_record(record: Mapping[str, Any]) -> Instance:
    """Make the instance that `instance_record` recorded.

    Raises:
        CorruptError: the record is not one.
    """
    return _instance(_Fields(record, "instance"))


_INSTANCE_FIELDS = (
    *("name", "node", "state", "runtime", "os", "disks", "nics", "secondaries"),
    *("memory_mib", "vcpus", "tags", "runtime_options", "parameters"),
)
_NIC_FIELDS = ("mac", "ip", "network", "name", "mode", "link")
_LEFT_OUT = object()
_OPTIONS_DEPTH = 20  # less than MAX_DEPTH: options lie up to four levels deep in a manifest


def _plain_mapping(options: Mapping[str, Any], where: str, missing: list[str], depth: int = _OPTIONS_DEPTH) -> dict[str, Any]:
    plain = _plain(options, where, missing, depth)
    return plain if isinstance(plain, dict) else {}


def _plain(value: Any, where: str, missing: list[str], depth: int) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        if -MAX_SIZE <= value <= MAX_SIZE:
            return int(value)
    elif isinstance(value, float):
        if value - value == 0:  # neither infinite nor NaN
            return float(value)
    elif isinstance(value, PurePath):
        return str(value)
    elif isinstance(value, date | time):  # TOML has them; datetime is a date
        return value.isoformat()
    elif isinstance(value, Mapping) and depth:
        items = {}
        for key, item in value.items():
            if not isinstance(key, str):
                missing.append(f"{where}.{key!r}")
                continue
            plain = _plain(item, f"{where}.{key}", missing, depth - 1)
            if plain is not _LEFT_OUT:
                items[key] = plain
        return items
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview) and depth:
        listed = [_plain(item, f"{where}.{index}", missing, depth - 1) for index, item in enumerate(value)]
        return [item for item in listed if item is not _LEFT_OUT]
    missing.append(where)
    return _LEFT_OUT


def _instance(fields: _Fields) -> Instance:
    fields.only(_INSTANCE_FIELDS)
    state = fields.choice("state", ("up", "down"))
    try:
        return Instance(
            name=fields.name("name", "instance"),
            node=fields.name("node", "node"),
            state="up" if state == "up" else "down",
            runtime=fields.text("runtime"),
            os=fields.text("os"),
            disks=tuple(_disk(disk) for disk in fields.records("disks")),
            nics=tuple(_nic(nic) for nic in fields.records("nics")),
            secondaries=fields.names("secondaries", "node"),
            memory_mib=fields.integer("memory_mib"),
            vcpus=fields.integer("vcpus"),
            tags=fields.texts("tags"),
            runtime_options=fields.mapping("runtime_options"),
            parameters=fields.mapping("parameters"),
        )
    except RefusedError as error:  # the model's own checks
        raise CorruptError(f"manifest: instance: {error}") from error


def _disk(fields: _Fields) -> Disk:
    fields.only(["storage", "path", "size", "snapshot", "name", "uuid", "options"])
    path = fields.optional("path", fields.text)
    if path is not None and "\0" in path:
        fields.refuse("path", "holds a NUL")
    return Disk(
        storage=fields.text("storage"),
        path=None if path is None else Path(path),
        size=fields.optional("size", fields.integer),
        snapshot=fields.optional("snapshot", fields.text),
        name=fields.text("name"),
        uuid=fields.text("uuid"),
        options=fields.mapping("options"),
    )


def _nic(fields: _Fields) -> Nic:
    fields.only(_NIC_FIELDS)
    return Nic(**{name: fields.text(name) for name in _NIC_FIELDS})


# --- from bytes to fields ---------------------------------------------------------------------------------------------


def _parse(data: bytes) -> dict[str, Any]:
    if not data:
        raise CorruptError("the manifest is empty")
    if len(data) > MAX_MANIFEST_BYTES:
        raise CorruptError(f"the manifest is {len(data)} bytes long; {MAX_MANIFEST_BYTES} is the most one can be")
    if not data.isascii():
        raise CorruptError("the manifest is not ASCII")
    _check_shape(data)
    try:
        content = json.loads(
            data.decode("ascii"),  # bytes with zeros among them would be taken for UTF-16 or UTF-32, unlike above
            object_pairs_hook=_no_duplicates,
            parse_int=_bounded_int,
            parse_float=_finite,
            parse_constant=_no_constant,
        )
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"the manifest is not JSON: {escape(str(error))}") from error
    if not isinstance(content, dict):
        raise CorruptError("the manifest is not a JSON object")
    return content


def _check_shape(data: bytes) -> None:
    """Bound nesting and number of values, without recursion and without a Python step per byte."""
    if data.count(b'"') > MAX_QUOTES:
        raise CorruptError(f"the manifest has more than {MAX_QUOTES} quotation marks")
    skeleton = _STRING.sub(b"", data)
    if skeleton.count(b",") + skeleton.count(b"[") + skeleton.count(b"{") > MAX_VALUES:
        raise CorruptError(f"the manifest has more than {MAX_VALUES} values")
    brackets = skeleton.translate(None, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return
        # Takes away the innermost pairs, so one level a round, or two where both kinds of bracket alternate.
        inner = brackets.replace(b"[]", b"").replace(b"{}", b"")
        if inner == brackets:
            raise CorruptError("the manifest is not JSON: it was cut, or brackets do not match")
        brackets = inner
    if brackets:
        raise CorruptError(f"the manifest is nested more than {MAX_DEPTH} levels deep, or was cut")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise CorruptError(f"the manifest has the key {_shown(key)} twice")
            seen.add(key)
    return content


def _bounded_int(text: str) -> int:
    if len(text) > 20:  # int() of a million digits takes minutes
        raise CorruptError("the manifest has a number that is too large")
    return int(text)


def _finite(text: str) -> float:
    value = float(text) if len(text) <= 40 else float("inf")
    if value - value != 0:
        raise CorruptError("the manifest has a number that is too large")
    return value


def _no_constant(text: str) -> NoReturn:
    raise CorruptError(f"the manifest has {text} where a number belongs")


def _check_version(content: dict[str, Any]) -> None:
    """First of all: a manifest of a newer format may break every other rule, and the reader should be told that."""
    version = content.get("format_version")
    if type(version) is not int or version < 1:
        raise CorruptError("the manifest has no valid format version")
    if version > FORMAT_VERSION:
        raise CorruptError(f"made by a newer diskhaul: format version {version}, and this one reads up to {FORMAT_VERSION}")
    features = content.get("required_features")
    if isinstance(features, list):
        unknown = [feature for feature in features if not isinstance(feature, str) or feature not in KNOWN_FEATURES]
        if unknown:
            shown = ", ".join(_shown(str(feature)) for feature in unknown[:5])[:300]
            raise CorruptError(f"made by a newer diskhaul: it requires {shown}, which this one does not know")


def _check_digest(data: bytes, content: dict[str, Any]) -> None:
    digest = content.get("manifest_digest")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise CorruptError("the manifest has no valid digest of itself")
    before, found, after = data.partition(digest.encode("ascii"))
    if not found or digest.encode("ascii") in after:
        raise CorruptError("the manifest's own digest does not stand in it exactly once")
    if _blake3(before + _NO_DIGEST.encode("ascii") + after) != digest:
        raise CorruptError("the manifest does not match its own digest: it was changed")


def _blake3(data: bytes) -> str:
    from blake3 import blake3

    return blake3(data).hexdigest()


# --- from fields to records -------------------------------------------------------------------------------------------

_DISK_FIELDS = tuple(name for name in DiskRecord.__dataclass_fields__ if name != "regions")
_REGION_FIELDS = tuple(DiskRegion.__dataclass_fields__)
_MANIFEST_FIELDS = tuple(Manifest.__dataclass_fields__)


def _record_of(manifest: Manifest) -> dict[str, Any]:
    content = {name: getattr(manifest, name) for name in _MANIFEST_FIELDS}
    content["required_features"] = list(manifest.required_features)
    missing: list[str] = []
    for name in ("instance", "options", "other_files", "timings"):
        content[name] = _plain_mapping(content[name], name, missing, MAX_DEPTH)
    if missing:
        raise ValueError(f"a manifest cannot hold {', '.join(missing)}")
    content["disks"] = [_disk_content(disk) for disk in manifest.disks]
    return content


def _disk_content(disk: DiskRecord) -> dict[str, Any]:
    content = {name: getattr(disk, name) for name in _DISK_FIELDS}
    if disk.regions:
        content["regions"] = [asdict(region) for region in disk.regions]
    return content


def _manifest(content: dict[str, Any]) -> Manifest:
    fields = _Fields(content, "")
    fields.only((*_MANIFEST_FIELDS, "manifest_digest"))
    manifest = Manifest(
        format_version=fields.integer("format_version"),
        required_features=fields.texts("required_features"),
        export_id=fields.text("export_id"),
        run_id=fields.text("run_id"),
        cluster=fields.name("cluster", "cluster"),
        created=fields.text("created"),
        created_by=fields.text("created_by"),
        instance=fields.mapping("instance"),
        options=fields.mapping("options"),
        consistency=fields.choice("consistency", _CONSISTENCIES),
        layout=fields.choice("layout", _LAYOUTS),
        disks=_disk_records(fields.records("disks")),
        other_files=_other_files(fields.mapping("other_files"), fields.text("layout")),
        timings=_timings(fields.mapping("timings")),
    )
    if not is_export_id(manifest.export_id):
        fields.refuse("export_id", f"{_shown(manifest.export_id)} is no export id")
    if not is_run_id(manifest.run_id):
        fields.refuse("run_id", f"{_shown(manifest.run_id)} is no run id")
    if short_run_id(manifest.run_id) != run_of(manifest.export_id):
        fields.refuse("run_id", "is not the one in export_id")
    if not _is_utc(manifest.created):
        fields.refuse("created", f"{_shown(manifest.created)} is not a UTC time")
    instance = instance_from_record(manifest.instance)
    if len(instance.disks) != len(manifest.disks):
        fields.refuse("disks", f"there are {len(manifest.disks)}, but the instance has {len(instance.disks)}")
    _check_disks(manifest)
    return manifest


def _disk_records(records: Sequence[_Fields]) -> tuple[DiskRecord, ...]:
    return tuple(_disk_record(record, len(records)) for record in records)


def _disk_record(fields: _Fields, disks: int) -> DiskRecord:
    fields.only(_DISK_FIELDS, optional=("regions",))
    regions = fields.records("regions") if fields.has("regions") else []
    if len(regions) > most_regions(disks):
        fields.refuse("regions", f"{len(regions)} are more than are recorded")
    return DiskRecord(
        index=fields.integer("index"),
        name=fields.text("name"),
        uuid=fields.text("uuid"),
        size=fields.integer("size"),
        file=fields.text("file"),
        format=fields.text("format"),
        compress=fields.text("compress"),
        stored_size=fields.integer("stored_size"),
        chunk_size=fields.integer("chunk_size"),
        chunk_count=fields.integer("chunk_count"),
        chunks_file=fields.text("chunks_file"),
        root_digest=fields.digest("root_digest", may_be_empty=True),
        stored_root=fields.digest("stored_root", may_be_empty=True),
        data_bytes=fields.integer("data_bytes"),
        zero_bytes=fields.integer("zero_bytes"),
        free_bytes=fields.integer("free_bytes"),
        consistency=fields.choice("consistency", _CONSISTENCIES),
        regions=tuple(_disk_region(region) for region in regions),
    )


def _disk_region(fields: _Fields) -> DiskRegion:
    fields.only(_REGION_FIELDS)
    return DiskRegion(
        place=fields.text("place"),
        offset=fields.integer("offset"),
        length=fields.integer("length"),
        type=fields.text("type"),
        label=fields.text("label"),
        state=fields.text("state"),
        block_size=fields.integer("block_size"),
        free=fields.optional("free", fields.integer),
        skipped=fields.integer("skipped"),
        kept=fields.text("kept"),
    )


def _check_disks(manifest: Manifest) -> None:
    """What the fields of a disk must be to each other, and to those of other disks."""
    files: set[str] = set()
    for position, disk in enumerate(manifest.disks):
        problem = _disk_problem(position, disk, manifest.layout)
        if problem is None and not files.isdisjoint((disk.file, disk.chunks_file)):
            problem = f"file {_shown(disk.file)} belongs to another disk, too"
        if problem is not None:
            raise CorruptError(f"manifest: disks.{position}: {problem}")
        files |= {disk.file, disk.chunks_file} - {""}
    chunks = sum(disk.chunk_count for disk in manifest.disks)
    if chunks > MAX_EXPORT_CHUNKS:
        raise CorruptError(f"manifest: disks: {chunks} chunks; an export has {MAX_EXPORT_CHUNKS} at most")
    if manifest.has_digests == (DIGESTS_LATER in manifest.required_features):
        raise CorruptError(f"manifest: required_features: {DIGESTS_LATER} does not go with the disks' digests")
    if any(disk.regions for disk in manifest.disks) != (DISK_REGIONS in manifest.required_features):
        raise CorruptError(f"manifest: required_features: {DISK_REGIONS} does not go with the disks' regions")


def _disk_problem(position: int, disk: DiskRecord, layout: str) -> str | None:
    if disk.index != position:
        return f"index {disk.index} stands where {position} belongs"
    try:
        codec = codec_for(parse_compress(disk.compress).name)
    except RefusedError as error:
        return str(error)
    if disk.format != codec.suffix[1:]:
        return f"format {_shown(disk.format)} does not go with {disk.compress}"
    if layout == "ganeti":
        if codec.encoded:
            return "a dump in Ganeti's layout is not compressed"
        if not _DUMP_NAME.fullmatch(disk.file) or disk.file in _NOT_DUMPS or disk.file.endswith(".chunks"):
            return f"file name {_shown(disk.file)} is not allowed"
    elif disk.file != f"disk-{position}.{disk.format}":
        return f"file name {_shown(disk.file)} is not allowed"
    if not disk.has_digests:
        if codec.encoded:
            return "root_digest is missing"
        if disk.chunks_file:
            return "chunks_file is given without a root_digest"
    elif disk.chunks_file != chunks_name(position):
        return f"file name {_shown(disk.chunks_file)} is not allowed"
    if not is_effective_chunk_size(disk.size, disk.chunk_size):
        return f"chunk size {disk.chunk_size} is not allowed for a disk of {disk.size} bytes"
    if disk.chunk_count != chunk_count(disk.size, disk.chunk_size):
        return f"{disk.chunk_count} chunks of {disk.chunk_size} bytes are not a disk of {disk.size} bytes"
    if disk.data_bytes + disk.zero_bytes + disk.free_bytes != disk.size:
        return f"data, zero and free bytes are not {disk.size} bytes together"
    if codec.encoded == (disk.stored_root == ""):
        return "stored_root is missing" if codec.encoded else "stored_root is given for a raw disk"
    return None


def _other_files(digests: Mapping[str, Any], layout: str) -> dict[str, str]:
    expected = _EXTRA_FILES[layout]
    if digests.keys() != expected:
        raise CorruptError(
            f"manifest: other_files: layout {layout} has {', '.join(sorted(expected)) or 'none'} besides the disks'"
        )
    for name, digest in digests.items():
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise CorruptError(f"manifest: other_files: the digest of {name} is not one")
    return dict(digests)


def _timings(timings: Mapping[str, Any]) -> dict[str, float]:
    for stage, seconds in timings.items():
        if type(seconds) not in (int, float):
            raise CorruptError(f"manifest: timings: {_shown(stage)} is not a number")
    return {stage: float(seconds) for stage, seconds in timings.items()}


def _is_utc(text: str) -> bool:
    if not _CREATED.fullmatch(text):
        return False
    try:
        return datetime.fromisoformat(text).utcoffset() == timedelta()
    except ValueError:
        return False


def _shown(text: str) -> str:
    return printable(text if len(text) <= 60 else text[:60] + "...")


class _Fields:
    """The fields of one JSON object, each checked as it is taken; a problem names the key path."""

    __slots__ = ("_record", "_where")

    def __init__(self, record: Mapping[str, Any], where: str) -> None:
        self._record = record
        self._where = where
        if not isinstance(record, Mapping):
            raise CorruptError(f"manifest: {where} is not an object")

    def refuse(self, key: str, problem: str) -> NoReturn:
        raise CorruptError(f"manifest: {self._path(key)}: {problem}")

    def has(self, key: str) -> bool:
        return key in self._record

    def only(self, names: Sequence[str], *, optional: Sequence[str] = ()) -> None:
        """Refuse unknown keys and missing ones; those that are optional may be missing."""
        unknown = sorted(self._record.keys() - set(names) - set(optional))
        if unknown:
            self.refuse(_shown(unknown[0]), "is not a known key")
        for name in names:
            if name not in self._record:
                self.refuse(name, "is missing")

    def optional(self, key: str, take: Callable[[str], Any]) -> Any:
        return None if self._record[key] is None else take(key)

    def text(self, key: str) -> str:
        value = self._record[key]
        if not isinstance(value, str):
            self.refuse(key, "is not a text")
        return value

    def choice(self, key: str, values: Sequence[str]) -> str:
        value = self.text(key)
        if value not in values:
            self.refuse(key, f"{_shown(value)} is none of {', '.join(values)}")
        return value

    def digest(self, key: str, *, may_be_empty: bool = False) -> str:
        value = self.text(key)
        if not (_DIGEST.fullmatch(value) or (may_be_empty and not value)):
            self.refuse(key, "is not 64 lower-case hex digits")
        return value

    def name(self, key: str, kind: str) -> str:
        return self._named(key, kind, self.text(key))

    def names(self, key: str, kind: str) -> tuple[str, ...]:
        return tuple(self._named(key, kind, name) for name in self.texts(key))

    def integer(self, key: str) -> int:
        value = self._record[key]
        if type(value) is not int:  # neither True nor 1.0
            self.refuse(key, "is not a whole number")
        if not 0 <= value <= MAX_SIZE:
            self.refuse(key, f"{value} is not from 0 to {MAX_SIZE}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._list(key)
        if not all(isinstance(value, str) for value in values):
            self.refuse(key, "is not a list of texts")
        return tuple(values)

    def records(self, key: str) -> list[_Fields]:
        return [_Fields(value, f"{self._path(key)}.{index}") for index, value in enumerate(self._list(key))]

    def mapping(self, key: str) -> dict[str, Any]:
        value = self._record[key]
        if not isinstance(value, Mapping):
            self.refuse(key, "is not an object")
        return dict(value)

    def _list(self, key: str) -> list[Any]:
        value = self._record[key]
        if not isinstance(value, list):
            self.refuse(key, "is not a list")
        return value

    def _named(self, key: str, kind: str, name: str) -> str:
        problem = name_problem(kind, name)
        if problem is not None:
            self.refuse(key, problem)
        return name

    def _path(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key
