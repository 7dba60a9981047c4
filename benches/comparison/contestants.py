"""Who takes part in the comparison, in which group, and with which commands.

Every command is what a person would type, and does the whole work. What a program needs beforehand (a block map for bmaptool, a
certificate) is prepared and not measured, in the program's favour.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from .results import FASTEST, Entry
from .running import PORT, Pipeline

Kind = Literal["raw", "zstd", "qcow2", "export", "skipping", "restored"]
GROUPS: Mapping[str, str] = {
    "compressed": "compressed export of the disk",
    "uncompressed": "uncompressed export of the disk to a file on the same filesystem",
    "restore": "restore of the compressed export to a new file",
    "shape": "what the shape of the disks costs: exports at zstd:1",
}
COMMON_NAME = "ganeti.example.com"  # in the certificate
SHAPED: Mapping[str, tuple[str, ...]] = {
    "disk": (),
    "halves": ("first-half.raw", "second-half.raw"),
    "dense-1g": ("dense-1g.raw",),
    "sparse-1t": ("sparse-1t.raw",),
}
"""Instances of the configuration and their disks below `Place.shapes`; "disk" has the disk itself."""

_GANETI_PROGRAMS = ("dd", "gzip", "socat", "openssl")
Variants = Mapping[str, Sequence[str]]
_ZSTD = ("--compress", "zstd:1")
_NONE = ("--compress", "none")
_UNVERIFIED = ("--verify", "none")
_SKIPPING = ("--zero-free-space",)
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where things lie: absolute paths. All but `disk` are below `work`."""

    work: Path
    disk: Path
    diskhaul: str

    @property
    def out(self) -> Path:
        """What a run writes; emptied before each."""
        return self.work / "out"

    @property
    def inputs(self) -> Path:
        """What restores read, and the map for bmaptool."""
        return self.work / "inputs"

    @property
    def shapes(self) -> Path:
        """Disks made from the disk."""
        return self.work / "shapes"

    @property
    def certificate(self) -> Path:
        """A certificate and its key in one file, as Ganeti has it."""
        return self.work / "certificate.pem"

    @property
    def config(self) -> Path:
        return self.work / "cluster.toml"

    @property
    def certificates(self) -> Path:
        """Those of the transfer tls, where the configurations look for them."""
        return self.work / "certs"

    @property
    def tls_config(self) -> Path:
        """As `config`, but exports go to a receiver on 127.0.0.1."""
        return self.work / "cluster-tls.toml"

    @property
    def zstd_input(self) -> Path:
        return self.inputs / "disk.raw.zst"

    @property
    def qcow2_input(self) -> Path:
        return self.inputs / "disk.qcow2"

    @property
    def block_map(self) -> Path:
        return self.inputs / "disk.bmap"

    def exported(self, instance: str = "disk") -> Path:
        """The directory of the one export of an instance among the inputs."""
        return only_export(self.inputs / "exports" / instance)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One row of a table: what is run, what it reads and writes, what it is compared with.

    Attributes:
        name: unique in its group, for --only.
        label: as tables show it.
        programs: what must be installed.
        pipelines: run at the same time.
        sources: the files whose place in the page cache matters.
        result: the file or directory it makes.
        kind: how `result` holds the disk; "skipping" is an export without the free blocks of the disk's one ext4 filesystem.
        originals: the disks that `result` must hold.
        versus: the contestant that its ratio is to; FASTEST for the fastest of the others.
        own: diskhaul itself, which does its own fsync.
    """

    group: str
    name: str
    label: str
    programs: tuple[str, ...]
    pipelines: tuple[Pipeline, ...]
    sources: tuple[Path, ...]
    result: Path
    kind: Kind
    originals: tuple[Path, ...]
    versus: str
    own: bool = False

    @property
    def entry(self) -> Entry:
        return Entry(group=self.group, name=self.name, label=self.label, versus=self.versus, own=self.own)

    @property
    def commands(self) -> list[str]:
        """The commands as for a shell, one line for each pipeline."""
        lines = []
        for pipeline in self.pipelines:
            line = " | ".join(shlex.join(stage) for stage in pipeline.stages)
            lines.append(f"{line} > {shlex.quote(str(pipeline.output))}" if pipeline.output else line)
        return lines


def only_export(directory: Path) -> Path:
    """The one export in an instance's directory; FileNotFoundError when there is none, or there are several."""
    found = [path for path in directory.glob("*") if not path.name.startswith(".")]
    if len(found) != 1:
        raise FileNotFoundError(f"{directory} holds {len(found)} exports, not one")
    return found[0]


def contestants(group: str, place: Place, variants: Variants) -> list[Contestant]:
    """Everybody in a group, in the order of their turns; `variants` are names and further options for diskhaul."""
    make = {"compressed": _compressed, "uncompressed": _uncompressed, "restore": _restore, "shape": _shape}[group]
    return make(place, variants)


def export_command(place: Place, instance: str, *options: str, node: str = "out") -> tuple[str, ...]:
    """An export of an instance of the configuration to a node."""
    return (place.diskhaul, "--config", str(place.config), "--quiet", "export", instance, "--node", node, *options)


@dataclass(frozen=True, slots=True)
class _Group:
    """What the contestants of a group have in common."""

    name: str
    place: Place
    versus: str

    def export(
        self,
        name: str,
        label: str,
        options: Sequence[str],
        *,
        instance: str = "disk",
        versus: str | None = None,
        kind: Kind = "export",
    ) -> Contestant:
        """diskhaul exporting an instance."""
        place = self.place
        sources = tuple(place.shapes / disk for disk in SHAPED[instance]) or (place.disk,)
        return Contestant(
            group=self.name,
            name=name,
            label=label,
            programs=(place.diskhaul, "dumpe2fs") if kind == "skipping" else (place.diskhaul,),
            pipelines=(Pipeline(stages=(export_command(place, instance, *options),)),),
            sources=sources,
            result=place.out / "exports" / instance,
            kind="restored" if instance == "sparse-1t" else kind,
            originals=sources,
            versus=self.versus if versus is None else versus,
            own=True,
        )

    def other(
        self,
        name: str,
        label: str,
        argv: Sequence[str],
        *,
        needs: tuple[str, ...] = (),
        source: Path | None = None,
        result: Path | None = None,
        kind: Kind = "raw",
        redirected: bool = False,
    ) -> Contestant:
        """One command of another program, which reads the disk (or `source`) and makes `result` (or a raw disk).

        `needs`: programs besides the first word; `redirected`: the result is what it writes to its standard output.
        """
        result = result or self.place.out / "disk.raw"
        pipeline = Pipeline(stages=(tuple(argv),), output=result if redirected else None)
        return self.pipeline(name, label, (pipeline,), (argv[0], *needs), source or self.place.disk, result, kind)

    def pipeline(
        self,
        name: str,
        label: str,
        pipelines: tuple[Pipeline, ...],
        programs: tuple[str, ...],
        source: Path,
        result: Path,
        kind: Kind = "raw",
    ) -> Contestant:
        """Other programs, together."""
        return Contestant(
            group=self.name,
            name=name,
            label=label,
            programs=programs,
            pipelines=pipelines,
            sources=(source,),
            result=result,
            kind=kind,
            originals=(self.place.disk,),
            versus=self.versus,
        )


def _compressed(place: Place, variants: Variants) -> list[Contestant]:
    group = _Group("compressed", place, versus="zstd-1")
    disk, packed, qcow2, raw = str(place.disk), place.out / "disk.raw.zst", place.out / "disk.qcow2", place.out / "disk.raw"
    convert = ("qemu-img", "convert", "-f", "raw", "-c", "-O", "qcow2", "-o", "compression_type=zstd", disk, str(qcow2))
    return [
        group.export("diskhaul", "diskhaul zstd:1", _ZSTD),
        group.export("diskhaul-unverified", "diskhaul zstd:1, --verify none", (*_ZSTD, *_UNVERIFIED)),
        group.export("diskhaul-skip", "diskhaul zstd:1, --zero-free-space", (*_ZSTD, *_SKIPPING), kind="skipping"),
        group.export(
            "diskhaul-skip-unverified",
            "diskhaul zstd:1, --zero-free-space, --verify none",
            (*_ZSTD, *_SKIPPING, *_UNVERIFIED),
            kind="skipping",
        ),
        *(group.export(f"diskhaul-{name}", f"diskhaul zstd:1, {name}", (*_ZSTD, *more)) for name, more in variants.items()),
        *(
            group.other(
                f"zstd-{level}",
                f"zstd -{level} -T0",
                ("zstd", f"-{level}", "-T0", "-q", "-o", str(packed), disk),
                result=packed,
                kind="zstd",
            )
            for level in (1, 3)
        ),
        group.other("qemu-img-zstd", "qemu-img convert -c, zstd", convert, result=qcow2, kind="qcow2"),
        _over_tls(place),
        group.pipeline("ganeti", "Ganeti: dd, gzip -1, socat with TLS", _ganeti(place, raw), _GANETI_PROGRAMS, place.disk, raw),
    ]


def _over_tls(place: Place) -> Contestant:
    """An export to a receiver, which is a service: it is there before, as the daemons that start Ganeti's socat are."""
    service = (place.diskhaul, "--config", str(place.tls_config), "node", "serve", "--node", "out")
    export = (place.diskhaul, "--config", str(place.tls_config), "--quiet", "export", "disk", "--node", "out", *_ZSTD)
    return Contestant(
        group="compressed",
        name="diskhaul-tls",
        label="diskhaul zstd:1, over TLS",
        programs=(place.diskhaul,),
        pipelines=(Pipeline(stages=(service,), listens=True, serves=True), Pipeline(stages=(export,))),
        sources=(place.disk,),
        result=place.out / "exports/disk",
        kind="export",
        originals=(place.disk,),
        versus="ganeti",
        own=True,
    )


def _ganeti(place: Place, raw: Path) -> tuple[Pipeline, ...]:
    """How Ganeti exports a disk to a node: the commands of its import-export daemon and its node daemon, versions 2.2 to 3.x.

    The receiver decompresses: Ganeti compresses for the way only. Its ``oflag=dsync`` is for writing to raw disks, not for the
    files of an export. Both sides are on 127.0.0.1 here.
    """
    pem = place.certificate
    tls = f"verify=1,key={pem},cert={pem},cafile={pem},openssl-min-proto-version=TLS1.2"
    tcp = "keepalive,keepidle=60,keepintvl=10,keepcnt=5"
    socat = ("socat", "-ls", "-d", "-d", "-b1048576", "-u")
    receiver = Pipeline(
        stages=(
            (*socat, f"OPENSSL-LISTEN:0,bind=127.0.0.1,pf=ipv4,reuseaddr,{tcp},{tls}", "stdout"),
            ("gzip", "-d", "-c"),
            ("dd", "bs=1048576"),
        ),
        output=raw,
        listens=True,
    )
    size_mib = str(-(-place.disk.stat().st_size // _MIB)) if place.disk.exists() else "SIZE"
    sender = Pipeline(
        stages=(
            ("dd", f"if={place.disk}", "bs=1048576", f"count={size_mib}"),
            ("dd", "bs=1048576"),
            ("gzip", "-1", "-c"),
            (*socat, "stdin", f"OPENSSL:127.0.0.1:{PORT},pf=ipv4,openssl-commonname={COMMON_NAME},{tcp},{tls}"),
        ),
    )
    return (receiver, sender)


def _uncompressed(place: Place, variants: Variants) -> list[Contestant]:
    group = _Group("uncompressed", place, versus=FASTEST)
    disk, raw = str(place.disk), str(place.out / "disk.raw")
    convert = ("-f", "raw", "-O", "raw", disk, raw)
    direct = ("-W", "-m", "8", "-T", "none", "-t", "none")
    return [
        group.export("diskhaul", "diskhaul none", _NONE),
        group.export("diskhaul-unverified", "diskhaul none, --verify none", (*_NONE, *_UNVERIFIED)),
        *(group.export(f"diskhaul-{name}", f"diskhaul none, {name}", (*_NONE, *more)) for name, more in variants.items()),
        group.other("cp-sparse", "cp --sparse=always", ("cp", "--sparse=always", disk, raw)),
        group.other("cp", "cp", ("cp", disk, raw)),
        group.other("dd-sparse", "dd bs=4M conv=sparse", ("dd", f"if={disk}", f"of={raw}", "bs=4M", "conv=sparse")),
        group.other("qemu-img", "qemu-img convert", ("qemu-img", "convert", *convert)),
        group.other("qemu-img-direct", f"qemu-img convert {' '.join(direct)}", ("qemu-img", "convert", *direct, *convert)),
        group.other(
            "nbdcopy", "nbdcopy, nbdkit file", ("nbdcopy", "--", "[", "nbdkit", "file", disk, "]", raw), needs=("nbdkit",)
        ),
        group.other("bmaptool", "bmaptool copy", ("bmaptool", "-q", "copy", "--bmap", str(place.block_map), disk, raw)),
    ]


def _restore(place: Place, variants: Variants) -> list[Contestant]:
    group = _Group("restore", place, versus="zstd-dc")
    try:
        export = place.exported()
    except FileNotFoundError:  # not prepared yet: the commands are shown, not run
        export = place.inputs / "exports/disk/EXPORT"
    stored, packed, qcow2, raw = export / "disk-0.raw.zst", place.zstd_input, place.qcow2_input, place.out / "disk.raw"
    server = ("[", "qemu-nbd", "-r", "-e", "8", "-f", "qcow2", str(qcow2), "]")

    def own(name: str, label: str, *options: str) -> Contestant:
        restored = place.out / "restored"
        argv = (place.diskhaul, "--quiet", "import", str(export), "--to-dir", str(restored), *options)
        made = group.other(name, label, argv, source=stored, result=restored / "disk-0.raw")
        return replace(made, own=True)

    convert = ("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(qcow2), str(raw))
    sparse = ("zstd", "-q", "-d", "--sparse", "-o", str(raw), str(stored))
    plain = ("zstd", "-q", "-dc")
    return [
        own("diskhaul", "diskhaul import"),
        *(own(f"diskhaul-{name}", f"diskhaul import, {name}", *more) for name, more in variants.items()),
        group.other("zstd-dc", "zstd -dc > file", (*plain, str(stored)), source=stored, redirected=True),
        group.other("zstd-d-sparse", "zstd -d --sparse", sparse, source=stored),
        group.other("zstd-dc-own", "zstd -dc, of zstd's own file", (*plain, str(packed)), source=packed, redirected=True),
        group.other("qemu-img", "qemu-img convert, from qcow2", convert, source=qcow2),
        group.other(
            "nbdcopy",
            "nbdcopy, qemu-nbd from qcow2",
            ("nbdcopy", "--", *server, str(raw)),
            needs=("qemu-nbd", "qemu-img"),
            source=qcow2,
        ),
    ]


def _shape(place: Place, variants: Variants) -> list[Contestant]:
    group = _Group("shape", place, versus="")
    made = []
    for name, label, instance, versus in (
        ("one-disk", "one disk", "disk", "one-disk"),
        ("two-disks", "the same as two disks", "halves", "one-disk"),
        ("dense-1g", "1 GiB disk full of data", "dense-1g", "dense-1g"),
        ("sparse-1t", "1 TiB disk, the same data", "sparse-1t", "dense-1g"),
    ):
        made.append(group.export(name, label, _ZSTD, instance=instance, versus=versus))
        for variant, more in variants.items():
            reference = f"{versus}-{variant}"
            made.append(
                group.export(f"{name}-{variant}", f"{label}, {variant}", (*_ZSTD, *more), instance=instance, versus=reference)
            )
    return made
