"""A disk of a tebibyte that is almost empty: exported and restored in the memory of some chunks, and sparse again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
DATA = GIB if os.environ.get("DISKHAUL_STRESS") else 64 * MIB
PIECE = 4 * MIB
LIMIT = 256 * MIB

PROGRAM = """
import json, sys
from pathlib import Path
import diskhaul

base, compress, size = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
nodes = [diskhaul.Node(name=name, export_dir=base / name) for name in ("alpha", "beta")]
instance = diskhaul.Instance(name="big", node="alpha", state="down", disks=[diskhaul.Disk(path=base / "big.raw")])
cluster = diskhaul.Cluster(name="lab", state_dir=base / "state", nodes=nodes, instances=[instance])

def peak():  # not ru_maxrss: that one begins with what the parent process had
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) << 10

result = diskhaul.export("big", node="beta", config=cluster, options=diskhaul.ExportOptions(compress=compress, verify="full"))
exported = peak()
verified = diskhaul.verify(result.export.path)
diskhaul.import_(result.export.path, to_dir=base / "restored")
disk = result.disks[0]
print(json.dumps({
    "peaks": [exported, peak()],
    "findings": len(verified.findings),
    "path": result.export.path,
    "disk": [disk.size, disk.bytes_read, disk.data_bytes, disk.zero_bytes, disk.free_bytes],
}))
"""


def make_disk(path: Path) -> list[int]:
    """A sparse disk with pieces of data all over it; return where they are."""
    count = DATA // PIECE
    offsets = [index * (TIB // count) // PIECE * PIECE + 4096 * index for index in range(count - 1)] + [TIB - PIECE]
    with open(path, "wb") as file:
        try:
            file.truncate(TIB)
        except OSError as error:
            pytest.skip(f"this filesystem has no files of 1 TiB: {error}")
        for index, offset in enumerate(offsets):
            file.seek(offset)
            file.write(random.Random(index).randbytes(PIECE // 2) + b"text" * (PIECE // 8))
    return offsets


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("compress", ["zstd:1", "none"])  # gzip takes 18 KiB for each of 262,144 chunks of zeros
def test_a_sparse_tebibyte_takes_little_memory_and_comes_back_sparse(tmp_path: Path, compress: str) -> None:
    for node in ("alpha", "beta"):
        (tmp_path / node).mkdir(mode=0o700)
    disk = tmp_path / "big.raw"
    offsets = make_disk(disk)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), compress, str(TIB)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=3500,
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert max(told["peaks"]) < LIMIT, told["peaks"]
    assert told["findings"] == 0
    size, read, data, zero, free = told["disk"]
    assert size == TIB
    assert data + zero + free == TIB
    assert DATA <= read <= DATA + len(offsets) * 64 * 1024, "only what holds data is read"
    stored = sum(file.stat().st_blocks * 512 for file in Path(told["path"]).iterdir())
    assert stored < DATA + 32 * MIB, "zeros take next to nothing"

    restored = tmp_path / "restored" / "disk-0.raw"
    assert restored.stat().st_size == TIB
    assert restored.stat().st_blocks <= disk.stat().st_blocks + 8 * len(offsets)
    with open(disk, "rb") as before, open(restored, "rb") as after:
        for offset in offsets:
            for begin in (offset - MIB, offset, offset + PIECE):  # what lies around is zeros in both
                if 0 <= begin < TIB:
                    before.seek(begin)
                    after.seek(begin)
                    assert before.read(MIB) == after.read(MIB)
            before.seek(offset)
            after.seek(offset)
            assert before.read(PIECE) == after.read(PIECE)
        position = 0
        while position < TIB:  # and there is data nowhere else
            try:
                position = os.lseek(after.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(after.fileno(), position, os.SEEK_HOLE)
            inside = [offset for offset in offsets if offset - 4096 <= position and end <= offset + PIECE + 4096]
            assert inside, f"data at {position} to {end}"
            position = end
