"""From a disk to what it holds: partition tables, what lies in their partitions, and which of it is free.

Three rules make it safe. A volume is believed to hold something only where everything on it says the same: two claims (what is
left of an earlier filesystem, say) mean that it is kept. Whatever is not understood, does not fit or cannot be read is kept, and
so is all that lies between partitions, where boot loaders are. And where a system hibernates, all of the disk is kept: it has its
filesystems mounted, and goes on with what it knows of them, whatever their journals say.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from diskhaul.api import DiskRegion

from .gpt import read_gpt
from .lvm import PhysicalVolume, read_physical_volume, volume_groups
from .mbr import read_mbr
from .reading import NotThisError, Reader, Reading
from .signatures import HIBERNATED_SWAP, claims
from .tables import DamagedTableError, Table
from .volume import Part, Volume

MAX_DEPTH = 4
"""How deep tables and logical volumes are followed into each other."""

MAX_REGIONS = 2048
MAX_RANGES = 1 << 20
"""Free ranges of a disk; where there are more, the shortest are kept."""
MAX_TEXT = 200

_LAYERS = {
    "42": "a Windows dynamic disk",
    "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3": "a Windows dynamic disk",  # its database
    "af9b60a0-1431-4f62-bc68-3311714a69ad": "a Windows dynamic disk",  # its volumes
    "e75caf8f-f680-4cee-afa3-b001e56efc2d": "part of a storage pool of Windows",
}
"""Types of partitions whose content lies elsewhere than it seems to: volumes of several pieces (Microsoft: PARTITION_LDM and
PARTITION_SPACES). What such a partition begins with may be the filesystem of the first of them."""


class Disbelief(Exception):  # noqa: N818  # it is no error of anyone's
    """Why something is kept, in a few words."""


@dataclass(slots=True)
class _Node:
    """A region that is being found, what lies in it, and its free ranges on the disk (offset, length, offset, ...)."""

    place: str
    volume: Volume
    type: str
    kept: str = ""
    reading: Reading | None = None
    label: str = ""
    covers: bool = True  # False: where it lies is not known, its volume is what it lies on
    inside: list[_Node] = field(default_factory=list)
    free: array[int] = field(default_factory=lambda: array("Q"))

    def all(self) -> Iterator[_Node]:
        yield self
        for node in self.inside:
            yield from node.all()


class Walk:
    """Looks through one disk. Use once: `run`, then `regions` and `free_ranges`."""

    def __init__(self, readers: Sequence[Reader], missing: Sequence[str] = (), *, only_clean: bool = False) -> None:
        """`missing`: why readers that were wanted are not among `readers`. `only_clean`: keep what is in any other state."""
        self._readers, self._missing, self._only_clean = readers, missing, only_clean
        self._count = 0
        self._ranges = 0
        self._hibernated = False
        self._least = 1  # free ranges shorter than this are kept
        self._physical: list[tuple[_Node, PhysicalVolume]] = []  # physical volumes whose groups have not been looked for
        self._arrays: list[array[int]] = []
        self._roots: list[_Node] = []

    def run(self, disk: Volume) -> None:
        """Look through `disk`: first what it and its partitions hold, then the logical volumes, which may lie on several."""
        self._run(disk)
        if self._hibernated:
            for node in self._nodes():
                del node.free[:]
                node.kept = node.kept or "a system hibernates on this disk"

    def _run(self, disk: Volume) -> None:
        self._roots = [self._look(disk, "disk", 0)]
        for _ in range(MAX_DEPTH):
            found, self._physical = self._physical, []
            if not found:
                return
            self._assemble(found)
        for node, _ in self._physical:
            node.kept = "nested too deep"

    def regions(self) -> tuple[DiskRegion, ...]:
        """What was found: each region before those in it."""
        return tuple(_region(node) for node in self._nodes())

    def free_ranges(self) -> array[int]:
        """What may be left out of the disk: offset and length of each range by turns, ascending, without overlap.

        Raises:
            ValueError: two regions share bytes. Nothing that was found can be believed then.
        """
        found: array[int] = array("Q")
        for node in self._nodes():
            found.extend(node.free)
        return _sorted_ranges(found)

    def _nodes(self) -> Iterator[_Node]:
        for root in self._roots:
            yield from root.all()

    # --- one volume -------------------------------------------------------------------------------------------------

    def _look(self, volume: Volume, place: str, depth: int, problem: str = "") -> _Node:
        """Find out what `volume` holds; with a `problem`, only its name."""
        self._count += 1
        if self._count > MAX_REGIONS:
            return _Node(place, volume, "unknown", "more regions than are looked at")
        try:
            return self._examine(volume, place, depth, problem)
        except (DamagedTableError, Disbelief) as reason:
            return _Node(place, volume, "unknown", str(reason))
        except OSError as error:
            return _Node(place, volume, "unknown", f"cannot be read: {error}")

    def _examine(self, volume: Volume, place: str, depth: int, problem: str) -> _Node:
        found = claims(volume)
        self._hibernated = self._hibernated or HIBERNATED_SWAP in found
        table: Table | None = None
        try:
            table = _read_table(volume)
        except DamagedTableError as error:
            return _Node(place, volume, "partition table", problem or str(error))
        kinds = (*found, *([table.type] if table is not None else ()))
        if len(kinds) > 1:
            return _Node(place, volume, "unknown", problem or f"claims to be several things: {', '.join(kinds)}")
        kind = kinds[0] if kinds else "unknown"
        if problem:
            return _Node(place, volume, kind, problem)
        if table is not None:
            return self._partitioned(volume, place, depth, table)
        if kind == "lvm":
            node = _Node(place, volume, kind)
            self._physical.append((node, read_physical_volume(volume)))
            return node
        return self._filesystem(volume, place, kind)

    def _partitioned(self, volume: Volume, place: str, depth: int, table: Table) -> _Node:
        if depth >= MAX_DEPTH:
            return _Node(place, volume, table.type, "nested too deep")
        node = _Node(place, volume, table.type)
        for partition in table.partitions:
            inner = f"partition {partition.number}" if place == "disk" else f"{place}, partition {partition.number}"
            part = Part(volume, partition.offset, partition.size)
            layer = _LAYERS.get(partition.kind.lower())
            node.inside.append(self._look(part, inner, depth + 1, partition.problem or (f"{layer}: not read" if layer else "")))
        return node

    def _assemble(self, found: Sequence[tuple[_Node, PhysicalVolume]]) -> None:
        """Put logical volumes together, and look into them; each is listed with the first physical volume of its group."""
        for group in volume_groups([physical for _, physical in found]):
            nodes = [found[index][0] for index in group.on]
            for node in nodes:
                node.label, node.kept = group.name, group.problem
            for logical in group.volumes:
                where = f"{nodes[0].place}, " if len(nodes) == 1 and nodes[0].place != "disk" else ""
                place = f"{where}volume {group.name}/{logical.name}"
                if logical.volume is None:
                    inner = _Node(place, nodes[0].volume, logical.kind, logical.problem, covers=False)
                else:
                    inner = self._look(logical.volume, place, 1)
                nodes[0].inside.append(inner)

    def _filesystem(self, volume: Volume, place: str, kind: str) -> _Node:
        for reader in self._readers:
            try:
                reading = reader(volume)
            except NotThisError:
                continue
            except Exception as error:  # a reader may raise anything: then all is kept
                return _Node(place, volume, kind, f"cannot be understood: {str(error) or type(error).__name__}")
            return self._read(volume, place, reading)
        reason = "nothing that is known" if kind == "unknown" else f"free space of {kind} is not known"
        return _Node(place, volume, kind, "; ".join((reason, *self._missing)))

    def _read(self, volume: Volume, place: str, reading: Reading) -> _Node:
        node = _Node(place, volume, reading.type, reading.kept, reading)
        self._hibernated = self._hibernated or reading.state == "hibernated"
        if reading.size > volume.size and not node.kept:
            node.kept = "larger than what it lies on"
        if self._only_clean and reading.state != "clean" and not node.kept:
            node.kept = f"is not clean: {reading.state}"
        end = 0
        if not node.kept:
            self._arrays.append(node.free)
            for offset, length in reading.runs:
                end = offset + length
                if end > reading.size:
                    node.kept = "calls bytes free that are not its own"
                    del node.free[:]
                    break
                for piece in volume.on_disk(offset, length):
                    self._add(node, *piece)
        return node

    def _add(self, node: _Node, offset: int, length: int) -> None:
        if length < self._least:
            return
        node.free.extend((offset, length))
        self._ranges += 1
        if self._ranges > MAX_RANGES:
            self._coarsen()

    def _coarsen(self) -> None:
        """Keep the shortest free ranges, so that half of the room is free again."""
        while self._ranges > MAX_RANGES // 2:
            self._least = max(2 * self._least, 4096)
            self._ranges = 0
            for ranges in self._arrays:
                kept = array("Q")
                for offset, length in zip(ranges[0::2], ranges[1::2], strict=True):
                    if length >= self._least:
                        kept.extend((offset, length))
                ranges[:] = kept
                self._ranges += len(kept) // 2


def _read_table(volume: Volume) -> Table | None:
    for read in (read_gpt, read_mbr):
        try:
            return read(volume)
        except NotThisError:
            continue
    return None


def _region(node: _Node) -> DiskRegion:
    begin = min((offset for offset, _ in node.volume.on_disk(0, min(node.volume.size, 1))), default=0)
    reading = node.reading
    return DiskRegion(
        place=node.place[:MAX_TEXT],
        offset=begin,
        length=node.volume.size if node.covers else 0,
        type=node.type[:MAX_TEXT],
        label=(reading.label if reading is not None else node.label)[:MAX_TEXT],
        state=reading.state[:MAX_TEXT] if reading is not None else "",
        block_size=reading.block_size if reading is not None else 0,
        free=reading.free if reading is not None else None,
        skipped=sum(node.free[1::2]),
        kept=node.kept[:MAX_TEXT],
    )


def _sorted_ranges(found: array[int]) -> array[int]:
    offsets = found[0::2]
    order = range(len(offsets)) if _ascends(offsets) else sorted(range(len(offsets)), key=offsets.__getitem__)
    merged: array[int] = array("Q")
    end = -1
    for index in order:
        offset, length = found[2 * index], found[2 * index + 1]
        if offset < end:
            raise ValueError(f"two regions call bytes free at {offset}")
        if offset == end:
            merged[-1] += length
        else:
            merged.extend((offset, length))
        end = offset + length
    return merged


def _ascends(offsets: array[int]) -> bool:
    return all(offsets[index] < offsets[index + 1] for index in range(len(offsets) - 1))
