"""``diskhaul inspect``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import RefusedError, UnknownNameError
from .invocation import PATH, Answer, Argument, Invocation, Operation, Option, common_options

if TYPE_CHECKING:
    from ..records import InspectedDisk


@click.command("inspect", cls=Operation)
@click.argument("disk", cls=Argument, metavar="DISK")
@click.option(
    "--zero-fill",
    cls=Option,
    metavar="BACKEND",
    help="The zero-fill backend that reads it, such as ext. [default: the first that can, skip]",
)
@click.option("--svg", cls=Option, type=PATH, metavar="FILE", help="Write a picture of the disk, too.")
@common_options(hidden=True)
@click.pass_obj
def inspect_command(invocation: Invocation, /, disk: str, zero_fill: str | None, svg: Path | None) -> Answer:
    """Say what is on a disk, what of it is free, and draw a map of it.

    DISK is a raw image, a block device, or INSTANCE[:INDEX] of the configuration; what is a file here, or has a slash, is a path.
    It is only read. Shown are partitions, logical volumes, filesystems and swap space, how much each calls free, and how much of
    that an export with --zero-free-space leaves out, or why all of it is kept. The filesystems of a running guest change under
    the reader; there is a warning then. Data of guests is read by a process without privileges.

    \b
    Examples:
      diskhaul inspect web1.raw
      diskhaul inspect /dev/vg/web1 --svg web1.svg
      diskhaul --config cluster.toml inspect web1:0
      diskhaul --json inspect web1.raw --zero-fill ext
    """
    import diskhaul

    from .render import notes
    from .render_inspection import disk_document, disk_text, style_of

    common: dict[str, Any] = {
        "zero_fill": zero_fill,
        "svg": svg,
        "on_event": invocation.on_event,
        "cancel": invocation.cancel,
    }
    if not disk:
        raise RefusedError("DISK is empty: give an image, a device or an instance")
    if _is_path(disk):
        result = diskhaul.inspect(disk, config=invocation.cluster_if_any(), **common)
    else:
        result = _of_instance(invocation, disk, common)
    return Answer(
        document=disk_document(result),
        text=lambda: disk_text(result, style_of(sys.stdout, os.environ)),
        notes=notes(warnings=result.warnings),
    )


def _is_path(text: str) -> bool:
    return "/" in text or os.path.lexists(text)


def _of_instance(invocation: Invocation, disk: str, common: dict[str, Any]) -> InspectedDisk:
    """The disk of an instance; where there is none either, it is most likely a file's name that is wrong."""
    import diskhaul

    cluster = invocation.cluster_if_any()
    if cluster is None:
        raise RefusedError(f"{disk}: there is no such file, and without a configuration no instance")
    try:
        return diskhaul.inspect(instance=disk, config=cluster, **common)
    except UnknownNameError as error:
        error.add_note(f"there is no file {disk} either")
        raise
