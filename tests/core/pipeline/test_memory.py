"""The data path's memory does not grow with the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from pathlib import Path
from diskhaul.api import BackendContext
from diskhaul.cancellation import CancellationToken
from diskhaul.formats.chunk_table import effective_chunk_size
from diskhaul.formats.codec import codec_for, parse_compress
from diskhaul.model import Cluster, Node
from diskhaul.options import PathOptions
from diskhaul.pipeline.meter import Meter
from diskhaul.pipeline.send import SendJob
from diskhaul.pipeline.source import Source
from diskhaul.pipeline.workers import run_jobs
from diskhaul.testing import SparseMemoryDisk
from diskhaul_plugins.transfers.directory import DirectoryTransfer

def peak_kib():  # not ru_maxrss: that one begins with what the parent process had
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))

directory, compress = Path(sys.argv[1]), parse_compress(sys.argv[2])
size = 64 << 30
disk = SparseMemoryDisk(size)
for index in range(8):
    disk.write(index * (size // 8) + (5 << 20), b"data" * 16384)
codec = codec_for(compress.name, compress.level)
store = DirectoryTransfer(BackendContext(cluster=Cluster(name="lab", state_dir=directory))).store(
    Node(name="beta", export_dir=directory))
writer = store.begin("web1", "20261122T103308Z-1a2b3c4d")
before = peak_kib()
job = SendJob(Source(disk, "disk 0"), writer.create("disk-0"), chunk_size=effective_chunk_size(size, 4 << 20), codec=codec,
              meter=Meter(0, "send", size, lambda event: None), window=8, when_sent=lambda: None)
run_jobs([job], PathOptions(threads=4), token=CancellationToken(), stall_timeout_s=300)
if job.error:
    raise job.error
assert job.data_bytes + job.zero_bytes == size and job.data_bytes >= 8 * 65536
writer.abort()
print(peak_kib() - before)
"""


@pytest.mark.parametrize("compress", ["none", "zstd:1", "gzip:1"])
def test_a_disk_of_64_gib_takes_the_memory_of_some_chunks(tmp_path: Path, compress: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), compress], env=environment, capture_output=True, text=True, timeout=240
    )
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) < 96 << 10, "KiB besides what Python and its modules take"
