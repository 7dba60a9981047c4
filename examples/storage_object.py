"""A storage plugin without a file descriptor: the bytes of a disk come from a Python object, here a bytearray."""

import tempfile
from pathlib import Path

import diskhaul


class ObjectDisk:
    reads_zero = False  # what is not written keeps old bytes

    def __init__(self, content: bytearray) -> None:
        self.content, self.size = memoryview(content), len(content)

    def part(self, offset: int, length: int) -> memoryview:
        if offset + length > self.size:
            raise OSError("beyond the end of the disk")
        return self.content[offset : offset + length]

    def read_into(self, offset: int, buffer: memoryview) -> None:  # an export needs this and `size`
        buffer[:] = self.part(offset, len(buffer))

    def write(self, offset: int, buffer: memoryview) -> None:  # the rest is for imports
        self.part(offset, len(buffer))[:] = buffer

    def zero(self, offset: int, length: int) -> None:
        self.part(offset, length)[:] = bytes(length)

    def flush(self) -> None: ...
    def close(self) -> None: ...


class ObjectStorage:
    def __init__(self, volumes: dict[str, bytearray]) -> None:
        self.volumes = volumes

    @diskhaul.hookimpl
    def diskhaul_storages(self):
        yield diskhaul.StorageSpec(name="object", create=lambda context: self)

    def open(self, disk: diskhaul.Disk) -> ObjectDisk:
        if disk.options["volume"] not in self.volumes:
            raise diskhaul.StorageError("there is no such volume", path=disk.label)
        return ObjectDisk(self.volumes[disk.options["volume"]])

    def create(self, disk: diskhaul.Disk, size: int, *, overwrite: bool) -> ObjectDisk:
        if not overwrite:
            raise diskhaul.StorageError("the volume exists: overwrite it with force", path=disk.label)
        return self.open(disk)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        volume = bytearray(b"bytes of a volume".ljust(8 << 20, b"\0"))
        storage, before = ObjectStorage({"root": volume}), bytes(volume)
        disk = diskhaul.Disk(storage="object", options={"volume": "root"})
        cluster = diskhaul.Cluster(
            name="lab",
            state_dir=Path(work) / "state",
            nodes=[diskhaul.Node(name="alpha", export_dir=Path(work))],
            instances=[diskhaul.Instance(name="web1", node="alpha", disks=[disk])],
        )
        result = diskhaul.export("web1", node="alpha", config=cluster, plugins=[storage])
        print(f"exported {result.disks[0].bytes_read} bytes to {result.export.path}")
        volume[:] = b"x" * len(volume)
        diskhaul.import_("web1", config=cluster, plugins=[storage], options=diskhaul.ImportOptions(force=True))
        print("restored volume is the same:", bytes(volume) == before)
