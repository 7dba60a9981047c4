"""A storage plugin with a file descriptor: volumes are sparse files of a pool. Reading and finding holes happen in C."""

import io
import os
import tempfile
from pathlib import Path

import diskhaul
import diskhaul_native as native


class PoolDisk(io.FileIO):  # for its fileno() and close(); byte 0 of the descriptor is byte 0 of the disk
    reads_zero = False  # what is not written keeps old bytes

    def __init__(self, path: Path) -> None:
        super().__init__(path, "r+")
        self.size = os.fstat(self.fileno()).st_size

    def read_into(self, offset: int, buffer: memoryview) -> None:
        native.read_into(self.fileno(), buffer, offset)

    def write(self, offset: int, buffer: memoryview) -> None:
        self.check(offset + len(buffer))
        native.write_sparse(self.fileno(), buffer, offset, zero_holes=True)

    def zero(self, offset: int, length: int) -> None:
        self.check(offset + length)
        native.zero_range(self.fileno(), offset, length)

    def check(self, end: int) -> None:  # a file would grow
        if end > self.size:
            raise OSError("beyond the end of the volume")

    def flush(self) -> None:
        native.fsync(self.fileno())


class PoolStorage:
    def __init__(self, pool: Path) -> None:
        self.pool = pool

    @diskhaul.hookimpl
    def diskhaul_storages(self):
        yield diskhaul.StorageSpec(name="pool", create=lambda context: self)

    def open(self, disk: diskhaul.Disk) -> PoolDisk:
        return PoolDisk(self.pool / disk.options["volume"])

    def create(self, disk: diskhaul.Disk, size: int, *, overwrite: bool) -> PoolDisk:
        if not overwrite:
            raise diskhaul.StorageError("the volume exists: overwrite it with force", path=disk.label)
        return self.open(disk)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        lab = Path(work)
        (lab / "exports").mkdir()
        with open(lab / "root", "wb") as volume:
            volume.write(b"bytes of a volume")
            volume.truncate(64 << 20)
        storage, before = PoolStorage(lab), (lab / "root").read_bytes()
        disk = diskhaul.Disk(storage="pool", options={"volume": "root"})
        cluster = diskhaul.Cluster(
            name="lab",
            state_dir=lab / "state",
            nodes=[diskhaul.Node(name="alpha", export_dir=lab / "exports")],
            instances=[diskhaul.Instance(name="web1", node="alpha", disks=[disk])],
        )
        result = diskhaul.export("web1", node="alpha", config=cluster, plugins=[storage])
        print(f"exported to {result.export.path}: {result.disks[0].bytes_read} of {result.disks[0].size} bytes read")
        (lab / "root").write_bytes(b"x" * len(before))
        diskhaul.import_("web1", config=cluster, plugins=[storage], options=diskhaul.ImportOptions(force=True))
        print("restored volume is the same:", (lab / "root").read_bytes() == before)
