"""Physical volumes of LVM2 and the logical volumes on them (LVM2: lib/format_text/layout.h, format-text.c, import_vsn1.c).

A volume group is believed when all of its physical volumes are on the disk and every copy of its metadata says the same. Of its
logical volumes those are read that are linear or striped, and that nothing else is made of: what is free in the origin of a
snapshot is not free in the snapshot.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from .lvm_text import MetadataError, Section, parse_metadata
from .reading import NotThisError
from .tables import DamagedTableError
from .volume import Joined, OutsideVolumeError, Striped, Volume

_SECTOR = 512
_LABEL = struct.Struct("<8sQII8s")
_LABEL_MARK, _LABEL_TYPE = b"LABELONE", b"LVM2 001"
_AREA = struct.Struct("<QQ")
_UUID_BYTES = 32
_AREA_HEADER = struct.Struct("<I16sIQQ")
_AREA_MARK = b" LVM2 x[5A%r0N*>"
_LOCATION = struct.Struct("<QQII")
_LOCATIONS = 4
_IGNORED = 1
_FIRST_CRC = 0xF597A6CF
_MAX_AREAS = 16
_MAX_TEXT = 4 << 20
_MAX_PIECES = 1 << 16
_MAX_VOLUMES = 1024

_GROUP_STATES = {"RESIZEABLE", "READ", "WRITE"}
_VOLUME_STATES = {"READ", "WRITE", "VISIBLE", "FIXED_MINOR"}
_VOLUME_FLAGS = {"ACTIVATION_SKIP"}

T = TypeVar("T", int, str, list[Any], dict[str, Any])


@dataclass(frozen=True, slots=True)
class PhysicalVolume:
    """What a physical volume says of itself.

    Attributes:
        volume: where it is.
        uuid: 32 characters.
        reserved: offset and size of what is its own, and no data: metadata and boot loader areas.
        texts: the metadata of its group, as often as it holds them.
    """

    volume: Volume
    uuid: str
    reserved: tuple[tuple[int, int], ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogicalVolume:
    """A logical volume.

    Attributes:
        name: its own.
        volume: its content; None where `problem` says why that cannot be had.
        kind: what it is made of: "linear", "striped", "thin-pool", ...
    """

    name: str
    kind: str
    volume: Volume | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class VolumeGroup:
    """A volume group, found on the physical volumes `on` (indexes); with a `problem` there are no volumes."""

    name: str
    on: tuple[int, ...]
    volumes: tuple[LogicalVolume, ...] = ()
    problem: str = ""


# --- physical volumes -------------------------------------------------------------------------------------------------


def read_physical_volume(volume: Volume) -> PhysicalVolume:
    """Read the label of a physical volume, and the metadata texts on it.

    Raises:
        NotThisError: it is none.
        DamagedTableError: it is one that cannot be believed.
        OSError: it cannot be read.
    """
    label = _label(volume)
    if label is None:
        raise NotThisError
    try:
        return _physical_volume(volume, label)
    except (OutsideVolumeError, struct.error):
        raise DamagedTableError("the physical volume's header points elsewhere") from None


def _label(volume: Volume) -> bytes | None:
    """The sector with the label, from where its content begins on."""
    found: list[bytes] = []
    for number in range(4):
        if volume.size < (number + 1) * _SECTOR:
            break
        sector = volume.read(number * _SECTOR, _SECTOR)
        mark, own, checksum, begin, kind = _LABEL.unpack_from(sector)
        if mark != _LABEL_MARK:
            continue
        if own != number or _crc(sector[20:]) != checksum or kind != _LABEL_TYPE or not _LABEL.size <= begin < _SECTOR:
            raise DamagedTableError("the physical volume's label is damaged")
        found.append(sector[begin:])
    if len(found) > 1:
        raise DamagedTableError("several labels of physical volumes")
    return found[0] if found else None


def _physical_volume(volume: Volume, header: bytes) -> PhysicalVolume:
    uuid = header[:_UUID_BYTES].decode("ascii", "replace")
    (size,) = struct.unpack_from("<Q", header, _UUID_BYTES)
    if size > volume.size:
        raise DamagedTableError("the physical volume is larger than what it lies on")
    place = _UUID_BYTES + 8
    _, place = _areas(header, place)  # data
    metadata, place = _areas(header, place)
    loaders: list[tuple[int, int]] = []
    (extension,) = struct.unpack_from("<I", header, place)
    if extension:
        loaders, _ = _areas(header, place + 8)
    texts: list[str] = []
    for offset, length in metadata:
        texts += _texts(volume, offset, length)
    return PhysicalVolume(volume, uuid, (*metadata, *loaders), tuple(texts))


def _areas(header: bytes, place: int) -> tuple[list[tuple[int, int]], int]:
    areas: list[tuple[int, int]] = []
    while True:
        offset, length = _AREA.unpack_from(header, place)
        place += _AREA.size
        if not offset:
            return areas, place
        areas.append((offset, length))
        if len(areas) > _MAX_AREAS:
            raise DamagedTableError("the physical volume has too many areas")


def _texts(volume: Volume, offset: int, length: int) -> Iterator[str]:
    """The metadata in one area: none where it is set aside, or was never written."""
    header = volume.read(offset, _SECTOR)
    checksum, mark, version, start, size = _AREA_HEADER.unpack_from(header)
    if mark != _AREA_MARK or version != 1 or start != offset or size != length or _crc(header[4:]) != checksum:
        raise DamagedTableError("the header of a metadata area is damaged")
    locations = [_LOCATION.unpack_from(header, _AREA_HEADER.size + index * _LOCATION.size) for index in range(_LOCATIONS)]
    (at, count, text_checksum, flags), *others = locations
    if any(other[0] for other in others):
        raise DamagedTableError("its metadata were being changed")
    if flags & _IGNORED or not at:
        return
    if not _SECTOR <= at < size or not 0 < count <= min(size - _SECTOR, _MAX_TEXT):
        raise DamagedTableError("its metadata lie elsewhere")
    first = min(count, size - at)  # the area is a ring behind its header
    text = volume.read(offset + at, first) + volume.read(offset + _SECTOR, count - first)
    if _crc(text) != text_checksum:
        raise DamagedTableError("the checksum of its metadata is wrong")
    try:
        yield text.rstrip(b"\0").decode("utf-8")
    except UnicodeDecodeError:
        raise DamagedTableError("its metadata are no text") from None


def _crc(content: bytes) -> int:
    """LVM2's checksum: CRC-32 with another beginning, and without the last inversion."""
    return zlib.crc32(content, _FIRST_CRC ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


# --- volume groups ----------------------------------------------------------------------------------------------------


def volume_groups(physical: Sequence[PhysicalVolume]) -> list[VolumeGroup]:
    """The groups that `physical` (all there are on the disk) belong to; those of no group make one without a name."""
    texts: dict[str, list[int]] = {}
    groups: list[VolumeGroup] = []
    for index, one in enumerate(physical):
        for text in one.texts:
            texts.setdefault(text, []).append(index)
    read: list[tuple[str, Section, list[int]]] = []
    damaged: set[int] = set()
    for text, holders in texts.items():
        try:
            name, content = _group_of(text)
        except (MetadataError, DamagedTableError) as error:
            groups.append(VolumeGroup("", tuple(dict.fromkeys(holders)), problem=f"metadata that cannot be read: {error}"))
            damaged.update(holders)
        else:
            read.append((name, content, holders))
    for name, content, holders in read:
        groups.append(_group(name, content, holders, physical, [other for other in read if other[1] is not content], damaged))
    mentioned = {index for group in groups for index in group.on}
    alone = tuple(index for index in range(len(physical)) if index not in mentioned)
    if alone:
        groups.append(VolumeGroup("", alone, problem="no volume group"))
    return groups


def _group_of(text: str) -> tuple[str, Section]:
    content = parse_metadata(text)
    if content.get("contents") != "Text Format Volume Group" or content.get("version") != 1:
        raise DamagedTableError("no description of a volume group")
    sections = [(name, value) for name, value in content.items() if isinstance(value, dict)]
    if len(sections) != 1:
        raise DamagedTableError("not one volume group")
    return sections[0]


def _group(
    name: str,
    content: Section,
    holders: Sequence[int],
    physical: Sequence[PhysicalVolume],
    others: Sequence[tuple[str, Section, list[int]]],
    damaged: set[int],
) -> VolumeGroup:
    on = tuple(dict.fromkeys(holders))
    try:
        _check_group(content)
        places = _places(_take(content, "physical_volumes", dict), physical)
        on = tuple(dict.fromkeys((*holders, *places.values())))
        taken = set(on)
        if damaged & taken:
            raise DamagedTableError("another copy of its metadata is damaged")
        for _, other, other_holders in others:
            if taken & set(other_holders) or _take(other, "id", str) == _take(content, "id", str):
                raise DamagedTableError("copies of its metadata differ")
        volumes = _Volumes(content, physical, places)
        return VolumeGroup(name, on, volumes.all())
    except DamagedTableError as error:
        return VolumeGroup(name, on, problem=str(error))


def _check_group(content: Section) -> None:
    if _take(content, "format", str) != "lvm2" or not set(_take(content, "status", list)) <= _GROUP_STATES:
        raise DamagedTableError("a volume group in an unusual state")
    if _take(content, "flags", list) or content.get("lock_type", "none") != "none":
        raise DamagedTableError("a volume group that is shared or unusual")


def _places(sections: Section, physical: Sequence[PhysicalVolume]) -> dict[str, int]:
    """Which of `physical` the metadata's names stand for."""
    places: dict[str, int] = {}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise DamagedTableError("its metadata are incomplete")
        uuid = _take(section, "id", str).replace("-", "")
        found = [index for index, one in enumerate(physical) if one.uuid == uuid]
        if not found:
            raise DamagedTableError("a volume group that reaches to other disks")
        if len(found) > 1 or found[0] in places.values():
            raise DamagedTableError("physical volumes with the same identity")
        if _take(section, "flags", list):
            raise DamagedTableError("a physical volume in an unusual state")
        places[name] = found[0]
    return places


class _Volumes:
    """Makes the logical volumes of one group."""

    def __init__(self, content: Section, physical: Sequence[PhysicalVolume], places: dict[str, int]) -> None:
        self._extent = _take(content, "extent_size", int) * _SECTOR
        if self._extent <= 0:
            raise DamagedTableError("extents without a size")
        self._sections = {name: v for name, v in content.get("logical_volumes", {}).items() if isinstance(v, dict)}  # type: ignore[union-attr]
        if len(self._sections) > _MAX_VOLUMES:
            raise DamagedTableError(f"more than {_MAX_VOLUMES} logical volumes")
        self._physical = {name: physical[index] for name, index in places.items()}
        self._begin: dict[str, int] = {}
        self._count: dict[str, int] = {}
        for name, section in _take(content, "physical_volumes", dict).items():
            self._begin[name] = _take(section, "pe_start", int) * _SECTOR
            self._count[name] = _take(section, "pe_count", int)
            self._check_data_area(name)
        self._used: list[tuple[str, int, int]] = []  # physical volume, first extent, and the one behind the last

    def _check_data_area(self, name: str) -> None:
        one, begin = self._physical[name], self._begin[name]
        end = begin + self._count[name] * self._extent
        if not 0 <= begin <= end <= one.volume.size:
            raise DamagedTableError("extents that are not on their physical volume")
        if any(offset < end and offset + length > begin for offset, length in one.reserved):
            raise DamagedTableError("extents that overlap the metadata")

    def all(self) -> tuple[LogicalVolume, ...]:
        made_of = self._referenced()
        volumes = tuple(self._volume(name, section, used_by_others=name in made_of) for name, section in self._sections.items())
        self._used.sort()
        for (one, _, end), (other, begin, _) in zip(self._used, self._used[1:], strict=False):
            if one == other and begin < end:
                raise DamagedTableError("logical volumes that overlap")
        return volumes

    def _referenced(self) -> set[str]:
        """Names of volumes that others are made of."""
        found: set[str] = set()
        for own, section in self._sections.items():
            for segment in section.values():
                if isinstance(segment, dict):
                    for value in segment.values():
                        names = value if isinstance(value, list) else [value]
                        found.update(name for name in names if isinstance(name, str) and name != own)
        return found

    def _volume(self, name: str, section: Section, *, used_by_others: bool) -> LogicalVolume:
        segments = self._segments(section)
        kinds = dict.fromkeys(_take(segment, "type", str) for segment in segments)
        pieces = [piece for segment in segments for piece in self._note_areas(segment)]
        kind = "linear" if kinds.keys() == {"striped"} and len(pieces) == len(segments) else ", ".join(kinds)
        status, flags = set(_take(section, "status", list)), set(_take(section, "flags", list))
        if used_by_others:
            return LogicalVolume(name, kind, None, "other volumes are made of it")
        if kinds.keys() != {"striped"}:
            return LogicalVolume(name, kind, None, f"a volume of kind {kind}")
        if not {"READ", "VISIBLE"} <= status <= _VOLUME_STATES or not flags <= _VOLUME_FLAGS:
            return LogicalVolume(name, kind, None, "in an unusual state")
        try:
            return LogicalVolume(name, kind, self._joined(segments))
        except DamagedTableError as error:
            return LogicalVolume(name, kind, None, str(error))

    def _segments(self, section: Section) -> list[Section]:
        count = _take(section, "segment_count", int)
        segments = [_take(section, f"segment{number}", dict) for number in range(1, min(count, _MAX_PIECES) + 1)]
        if not segments or len(segments) != sum(
            isinstance(value, dict) and key.startswith("segment") for key, value in section.items()
        ):
            raise DamagedTableError("segments are missing")
        return segments

    def _note_areas(self, segment: Section) -> list[str]:
        """Remember which extents of physical volumes a segment takes; return their volumes."""
        names: list[str] = []
        for key, value in segment.items():
            if not isinstance(value, list):
                continue
            length = _take(segment, "extent_count", int)
            if key == "stripes":
                length = -(-length // max(len(value) // 2, 1))
            for name, first in zip(value[0::2], value[1::2], strict=False):
                if isinstance(name, str) and name in self._physical and isinstance(first, int):
                    self._used.append((name, first, first + length))
                    names.append(name)
        if len(self._used) > _MAX_PIECES:
            raise DamagedTableError("too many segments")
        return names

    def _joined(self, segments: Sequence[Section]) -> Volume:
        pieces: list[tuple[Volume, int, int]] = []
        position = 0
        for segment in sorted(segments, key=lambda s: _take(s, "start_extent", int)):
            if _take(segment, "start_extent", int) != position:
                raise DamagedTableError("segments that do not follow each other")
            position += _take(segment, "extent_count", int)
            pieces.append(self._piece(segment))
        return Joined(pieces)

    def _piece(self, segment: Section) -> tuple[Volume, int, int]:
        extents, stripes = _take(segment, "extent_count", int), _take(segment, "stripes", list)
        count = _take(segment, "stripe_count", int)
        if count < 1 or len(stripes) != 2 * count or extents < 1 or extents % count:
            raise DamagedTableError("stripes that do not fit")
        columns: list[tuple[Volume, int]] = []
        for name, first in zip(stripes[0::2], stripes[1::2], strict=True):
            if name not in self._physical or not isinstance(first, int):
                raise DamagedTableError("a segment that lies on no physical volume")
            if not 0 <= first <= first + extents // count <= self._count[name]:
                raise DamagedTableError("a segment that is not on its physical volume")
            columns.append((self._physical[name].volume, self._begin[name] + first * self._extent))
        size = extents // count * self._extent
        if count == 1:
            return *columns[0], size
        stripe_size = _take(segment, "stripe_size", int) * _SECTOR
        if stripe_size <= 0 or size % stripe_size:
            raise DamagedTableError("stripes that do not fit")
        return Striped(columns, size, stripe_size), 0, size * count


def _take(section: Section, name: str, kind: type[T]) -> T:
    value = section.get(name)
    if not isinstance(value, kind):
        raise DamagedTableError("its metadata are incomplete")
    return value
