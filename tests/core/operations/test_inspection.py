"""Inspecting a disk through the library."""

from __future__ import annotations

import inspect as standard_inspect
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

import diskhaul
from diskhaul.api import BackendContext, DiskMap, DiskReader, FreeExtents, ZeroFill
from diskhaul.cancellation import CancellationToken
from diskhaul.testing import MemoryDisk

MIB = 1 << 20


class Shelf:
    """A storage plugin with one disk, which is an object, and those who use it (or why that is not known)."""

    def __init__(self, disk: MemoryDisk, users: Iterable[str] | Exception = ()) -> None:
        self.disk, self.users = disk, users

    @diskhaul.hookimpl
    def diskhaul_storages(self) -> Iterable[diskhaul.StorageSpec]:
        yield diskhaul.StorageSpec(name="shelf", create=lambda context: self)  # type: ignore[arg-type,return-value]

    def open(self, disk: diskhaul.Disk, /) -> MemoryDisk:
        return self.disk

    def in_use(self, disk: diskhaul.Disk, /) -> Iterable[str]:
        if isinstance(self.users, Exception):
            raise self.users
        return self.users


class Scripted(ZeroFill):
    """A zero-fill plugin that answers what it is given, or fails with it."""

    writes = False

    def __init__(self, answer: DiskMap | BaseException) -> None:
        self.answer = answer

    @diskhaul.hookimpl
    def diskhaul_zerofills(self) -> Iterable[diskhaul.ZeroFillSpec]:
        yield diskhaul.ZeroFillSpec(name="own", create=self._create)

    def _create(self, context: BackendContext) -> ZeroFill:
        return self

    def refuses(self, disk: diskhaul.Disk, /) -> str | None:
        return "it is Sunday" if self.answer is SUNDAY else None

    def free_extents(self, disk: diskhaul.Disk, reader: DiskReader, /) -> Iterable[diskhaul.Extent]:
        return self.inspect(disk, reader).free

    def inspect(self, disk: diskhaul.Disk, reader: DiskReader, /) -> DiskMap:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


SUNDAY = ValueError()


def swap_content(size: int) -> bytes:
    """Swap space of 4 KiB pages, as `union swap_header` of Linux's include/linux/swap.h has it, full of what was swapped out."""
    header = bytearray(4096)
    header[1024:1028] = (1).to_bytes(4, "little")
    header[1028:1032] = (size // 4096 - 1).to_bytes(4, "little")
    header[-10:] = b"SWAPSPACE2"
    return bytes(header) + b"x" * (size - 4096)


DISK = diskhaul.Disk(storage="shelf")


def test_a_disk_that_is_an_object_of_a_storage_plugin_is_read_through_it() -> None:
    shelf = Shelf(MemoryDisk(swap_content(MIB)))
    found = diskhaul.inspect(DISK, plugins=[shelf])
    (region,) = found.regions
    assert (region.type, region.skipped) == ("swap", MIB - 4096)
    assert (found.size, found.free_bytes, found.data_bytes, found.hole_bytes) == (MIB, MIB - 4096, 4096, 0)
    assert found.backend == "skip"
    assert found.in_use == found.warnings == ()

    free = diskhaul.free_extents(DISK, plugins=[shelf])
    assert isinstance(free, FreeExtents)
    assert list(free) == [diskhaul.Extent(4096, MIB - 4096, diskhaul.ExtentKind.FREE)]
    assert shelf.disk.closes == 4, "looked at and read, twice"


def test_what_was_never_written_is_free_and_is_no_allocated_byte(tmp_path: Path) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(swap_content(MIB)[:4096])
    os.truncate(image, MIB)
    found = diskhaul.inspect(image)
    assert found.free.total == MIB - 4096
    assert (found.free_bytes, found.hole_bytes) == (0, MIB - 4096)


def test_who_is_writing_to_the_disk_is_told_and_it_is_read_anyway() -> None:
    found = diskhaul.inspect(DISK, plugins=[Shelf(MemoryDisk(swap_content(MIB)), ["is open in process 7 (qemu)"])])
    assert found.in_use == ("disk 0 is open in process 7 (qemu)",)
    assert found.warnings == ("disk 0 is open in process 7 (qemu): what is seen of the disk may be out of date",)
    assert found.free_bytes == MIB - 4096


def test_where_nobody_knows_who_writes_there_is_one_warning() -> None:
    found = diskhaul.inspect(DISK, plugins=[Shelf(MemoryDisk(swap_content(MIB)), OSError(5, "no answer"))])
    (warning,) = found.warnings
    assert warning.startswith("disk 0: cannot find out who uses it: no answer: ")


@pytest.mark.parametrize("answer", [RuntimeError("\x1b[2Jbroken"), SystemExit(0), DiskMap(size=1, regions=())])
def test_a_reader_that_fails_or_answers_nonsense_is_a_failure_that_names_disk_and_reader(answer: DiskMap | BaseException) -> None:
    shelf = Shelf(MemoryDisk(swap_content(MIB)))
    with pytest.raises(diskhaul.OperationFailedError, match=r"^disk 0: nothing is known of it: own: ") as raised:
        diskhaul.inspect(DISK, zero_fill="own", plugins=[shelf, Scripted(answer)])
    assert str(raised.value).isprintable()
    assert shelf.disk.closes == 2


@pytest.mark.parametrize("failure", [OSError(5, "gone"), SystemExit(0), diskhaul.StorageError("disk 0: gone", path="disk 0")])
def test_a_disk_that_is_gone_when_it_is_to_be_read_is_a_failure_that_names_it(failure: BaseException) -> None:
    shelf = Shelf(MemoryDisk(swap_content(MIB)))

    class Vanishing(Shelf):
        def open(self, disk: diskhaul.Disk, /) -> MemoryDisk:
            if shelf.disk.closes:
                raise failure
            return shelf.disk

    with pytest.raises(diskhaul.StorageError, match="disk 0: "):
        diskhaul.inspect(DISK, plugins=[Vanishing(shelf.disk)])


def test_a_reader_that_refuses_the_disk_and_an_unknown_one_are_refused() -> None:
    shelf = Shelf(MemoryDisk(swap_content(MIB)))
    with pytest.raises(diskhaul.RefusedError, match="disk 0: nothing can tell its free space: own: it is Sunday"):
        diskhaul.inspect(DISK, zero_fill="own", plugins=[shelf, Scripted(SUNDAY)])
    with pytest.raises(diskhaul.UnknownBackendError, match="'nobody' is unknown"):
        diskhaul.free_extents(DISK, zero_fill="nobody", plugins=[shelf])
    with pytest.raises(diskhaul.RefusedError, match="'shelf' is unknown"):
        diskhaul.free_extents(DISK, plugins=[])


def test_a_backend_that_has_guests_trim_is_no_reader(tmp_path: Path) -> None:
    shelf = Shelf(MemoryDisk(swap_content(MIB)))
    with pytest.raises(diskhaul.RefusedError, match="trim reads no disks"):
        diskhaul.inspect(DISK, zero_fill="trim", plugins=[shelf])
    cluster = diskhaul.Cluster(name="lab", state_dir=tmp_path / "state", backends={"zerofill": "trim"})
    assert diskhaul.inspect(DISK, config=cluster, plugins=[shelf]).backend == "skip"


def test_an_instance_has_to_say_which_of_its_disks(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.raw").write_bytes(swap_content((number + 1) * MIB))
    disks = [diskhaul.Disk(path=tmp_path / f"{number}.raw") for number in range(2)]
    instances = [
        diskhaul.Instance(name="two.example", node="a", disks=disks),
        diskhaul.Instance(name="one.example", node="a", disks=disks[:1]),
        diskhaul.Instance(name="none.example", node="a"),
    ]
    node = diskhaul.Node(name="a", export_dir=tmp_path)
    cluster = diskhaul.Cluster(name="lab", state_dir=tmp_path / "state", nodes=[node], instances=instances)
    assert diskhaul.inspect(instance="two:1", config=cluster).size == 2 * MIB
    assert diskhaul.inspect(instance="one", config=cluster).size == MIB
    for wrong, told in (
        ("two", "has 2 disks: say which one, two.example:0 to two.example:1"),
        ("two:2", "has no disk '2'"),
        ("two:-1", "has no disk '-1'"),
        ("two:\u0661", "has no disk"),
        ("two:", "has no disk ''"),
        ("none", "has no disks"),
    ):
        with pytest.raises(diskhaul.RefusedError, match=told):
            diskhaul.inspect(instance=wrong, config=cluster)
    with pytest.raises(diskhaul.UnknownNameError):
        diskhaul.inspect(instance="three", config=cluster)
    assert not (tmp_path / "state").exists(), "no locks, no journal"


def test_neither_and_both_and_an_instance_without_a_configuration_are_refused() -> None:
    for given in ({}, {"disk": DISK, "instance": "web1"}):
        with pytest.raises(diskhaul.RefusedError, match="give either a disk or an instance"):
            diskhaul.inspect(**given)  # type: ignore[arg-type]
    with pytest.raises(diskhaul.RefusedError, match="give a configuration"):
        diskhaul.inspect(instance="web1")


def test_a_cancelled_one_reads_nothing() -> None:
    token = CancellationToken()
    token.cancel()
    with pytest.raises(diskhaul.InterruptedRunError):
        diskhaul.inspect(DISK, plugins=[Shelf(MemoryDisk(swap_content(MIB)))], cancel=token)


def test_the_standard_library_keeps_its_own_module() -> None:
    assert standard_inspect.getsource(diskhaul.inspect).startswith("def inspect(")
