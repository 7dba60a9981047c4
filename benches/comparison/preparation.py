"""What has to be there before anything is measured: configuration, certificate, what restores read, disks of other shapes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Collection
from pathlib import Path

from .contestants import COMMON_NAME, SHAPED, Contestant, Place, export_command
from .disk import GIB, MIB, Announce, check_room, cut, data_bytes, scatter
from .errors import ComparisonError
from .running import SEARCH_PATH

_PIECES = 64  # places of the data on the sparse disk
_NODES = {"here": "here", "out": "out/exports", "inputs": "inputs/exports"}


def own_directory(path: Path) -> None:
    """Make the working directory, or see that it is ours and that nobody else may write to it."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = path.stat()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ComparisonError(f"{path} belongs to somebody else, or others may write to it; choose another --work")


def clear_output(place: Place) -> None:
    """Remove what the run before has made. Writing that back is no business of the next: page_cache.prepare() syncs."""
    if place.out.exists():
        shutil.rmtree(place.out)
    (place.out / "exports").mkdir(parents=True, mode=0o700)


def prepare(place: Place, taking_part: Collection[Contestant], announce: Announce) -> None:
    """Make what `taking_part` need. What was made from the same disk earlier is kept, but the export: that is diskhaul's today.

    Raises:
        ComparisonError: no room, or a step failed.
    """
    groups = {contestant.group for contestant in taking_part}
    names = {(contestant.group, contestant.name) for contestant in taking_part}
    data = data_bytes(place.disk)
    size = place.disk.stat().st_size
    _forget_other_disks(place)
    needed = int(1.05 * size)  # the largest output: a copy without holes
    needed += (int(1.3 * data) if "restore" in groups else 0) - _allocated(place.inputs)
    needed += (data + 2 * GIB if "shape" in groups else 0) - _allocated(place.shapes)
    check_room(place.work, max(0, needed), "the results")
    for directory in (place.work / "here", place.inputs, place.shapes):
        directory.mkdir(exist_ok=True, mode=0o700)
    clear_output(place)
    _write_config(place)
    if ("compressed", "ganeti") in names and not place.certificate.exists():
        announce("making a certificate")
        _make_certificate(place.certificate)
    if ("compressed", "diskhaul-tls") in names:
        _prepare_tls(place, announce)
    if ("uncompressed", "bmaptool") in names and not place.block_map.exists():
        announce("making a block map for bmaptool")
        _make(place.block_map, "bmaptool", "create", "-o", "@", str(place.disk))
    if "restore" in groups:
        _prepare_restore(place, {contestant.name for contestant in taking_part if contestant.group == "restore"}, announce)
    if "shape" in groups:
        _prepare_shapes(place, data, announce)


def _allocated(directory: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in directory.glob("*") if file.is_file()) if directory.exists() else 0


def _forget_other_disks(place: Place) -> None:
    """Remove what was made from another disk; `inputs` and `shapes` say from which they are."""
    found = place.disk.stat()
    identity = json.dumps([str(place.disk), found.st_size, found.st_mtime_ns])
    note = place.work / "made-from.json"
    if not note.exists() or note.read_text() != identity:
        for directory in (place.inputs, place.shapes):
            if directory.exists():
                shutil.rmtree(directory)
        note.write_text(identity)


def _write_config(place: Place) -> None:
    """The configurations; what stays below `inputs/exports` is not superseded by what goes to `out`: the clean-up is none."""
    common = _configuration(place)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    over_tls = [
        *("[backend_options.tls]", 'this = "here"', "[backends]", 'transfer = "tls"', 'cleanup = "none"'),
        *("[nodes.out.options]", f"address = {json.dumps(address)}"),
    ]
    for path, own in ((place.config, ["[backends]", 'cleanup = "none"']), (place.tls_config, over_tls)):
        path.write_text("\n".join([*common, *own]) + "\n")
        os.chmod(path, 0o600)


def _configuration(place: Place) -> list[str]:
    """The lines that the configurations have in common."""
    lines = ["[cluster]", 'name = "comparison"', 'state_dir = "state"']
    for node, directory in _NODES.items():
        lines += [f"[nodes.{node}]", f"export_dir = {json.dumps(directory)}"]
        (place.work / directory).mkdir(parents=True, exist_ok=True, mode=0o700)
    for instance, disks in SHAPED.items():
        lines += [f'[instances."{instance}"]', 'node = "here"', 'state = "down"']
        for path in [place.shapes / disk for disk in disks] or [place.disk]:
            lines += [f'[[instances."{instance}".disks]]', f"path = {json.dumps(str(path))}"]
    return lines


def _prepare_tls(place: Place, announce: Announce) -> None:
    if not (place.certificates / "out.pem").exists():
        announce("making certificates for the receiver")
        directory = ("--dir", str(place.certificates))
        _run(place.diskhaul, "certs", "init", "--cluster", "comparison", "--force", *directory)
        _run(place.diskhaul, "certs", "node", "here", "out", "--force", *directory)


def _run(*argv: str) -> None:
    environment = {"PATH": SEARCH_PATH, "LC_ALL": "C", "HOME": os.environ.get("HOME", "/")}
    finished = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    if finished.returncode:
        words = (finished.stderr or finished.stdout).strip().splitlines() or [f"status {finished.returncode}"]
        raise ComparisonError(f"{argv[0]}: {words[-1]}")


def _make(target: Path, *argv: str) -> None:
    """Run a command that writes the file "@", which gets its name when it is complete."""
    unfinished = target.with_name(f"{target.name}.partial")
    unfinished.unlink(missing_ok=True)
    _run(*(str(unfinished) if argument == "@" else argument for argument in argv))
    os.replace(unfinished, target)


def _make_certificate(path: Path) -> None:
    key, certificate = path.with_suffix(".key"), path.with_suffix(".crt")
    _run(
        *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650", "-subj", f"/CN={COMMON_NAME}"),
        *("-addext", f"subjectAltName=DNS:{COMMON_NAME}", "-keyout", str(key), "-out", str(certificate)),
    )
    unfinished = path.with_suffix(".partial")
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(key.read_text() + certificate.read_text())
    key.unlink()
    certificate.unlink()
    os.replace(unfinished, path)


def _prepare_restore(place: Place, names: Collection[str], announce: Announce) -> None:
    announce("exporting the disk for the restores")
    exports = place.inputs / "exports"
    if exports.exists():
        shutil.rmtree(exports)
    exports.mkdir(mode=0o700)
    _run(*export_command(place, "disk", "--compress", "zstd:1", node="inputs"))
    if "zstd-dc-own" in names and not place.zstd_input.exists():
        announce("compressing the disk with zstd -1 -T0 for a restore")
        _make(place.zstd_input, "zstd", "-1", "-T0", "-q", "-f", "-o", "@", str(place.disk))
    if {"qemu-img", "nbdcopy"} & set(names) and not place.qcow2_input.exists():
        announce("making a compressed qcow2 image for the restores")
        convert = ("qemu-img", "convert", "-f", "raw", "-c", "-O", "qcow2", "-o", "compression_type=zstd")
        _make(place.qcow2_input, *convert, str(place.disk), "@")


def _prepare_shapes(place: Place, data: int, announce: Announce) -> None:
    if all((place.shapes / disk).exists() for disks in SHAPED.values() for disk in disks):
        return
    announce("making the disks of other shapes")
    shutil.rmtree(place.shapes)
    place.shapes.mkdir(mode=0o700)
    unfinished = place.work / "shapes.partial"
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(mode=0o700)
    size = place.disk.stat().st_size
    middle = size // 2 // MIB * MIB
    first, second = SHAPED["halves"]
    cut(place.disk, unfinished / first, 0, middle)
    cut(place.disk, unfinished / second, middle, size - middle)
    piece = min(GIB, data) // _PIECES // 4096 * 4096
    scatter(place.disk, unfinished / SHAPED["dense-1g"][0], piece * _PIECES, piece * _PIECES, _PIECES)
    scatter(place.disk, unfinished / SHAPED["sparse-1t"][0], 1024 * GIB, piece * _PIECES, _PIECES)
    place.shapes.rmdir()
    os.replace(unfinished, place.shapes)
