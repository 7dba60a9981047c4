"""Export an instance, verify the export and restore it, all through the library."""

import filecmp
import tempfile
from pathlib import Path

import diskhaul

with tempfile.TemporaryDirectory() as work:
    lab = Path(work)
    (lab / "exports").mkdir()
    (lab / "web1.raw").write_bytes(b"a small disk".ljust(64 << 20, b"\0"))
    cluster = diskhaul.Cluster(  # or the path of a cluster.toml
        name="lab",
        state_dir=lab / "state",
        nodes=[diskhaul.Node(name="alpha", export_dir=lab / "exports")],
        instances=[diskhaul.Instance(name="web1.example.com", node="alpha", disks=[diskhaul.Disk(path=lab / "web1.raw")])],
    )
    result = diskhaul.export("web1", node="alpha", config=cluster, options=diskhaul.ExportOptions(compress="zstd:3"))
    print(f"exported to {result.export.path}: {result.disks[0].bytes_written} bytes written")
    print("damage found:", diskhaul.verify("web1", config=cluster).findings)
    diskhaul.import_("web1", config=cluster, to_dir=lab / "restored")
    same = filecmp.cmp(lab / "web1.raw", lab / "restored" / "disk-0.raw", shallow=False)
    print("restored disk is the same:", same)
