"""``diskhaul prepare`` and ``diskhaul receive``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ..errors import RefusedError, StorageError
from .invocation import PATH, Answer, Argument, Invocation, Operation, Option, Service, checked, common_options
from .json_output import jsonable
from .numbers import parse_seconds
from .restore import grow_option
from .text import escape

SECONDS = checked("seconds", parse_seconds)


@click.command("prepare", cls=Operation)
@click.argument("instance", cls=Argument, metavar="INSTANCE")
@click.option("--out", cls=Option, type=PATH, metavar="FILE", help="Write the document to FILE. [default: standard output]")
@common_options(hidden=True)
@click.pass_obj
def prepare_command(invocation: Invocation, /, instance: str, out: Path | None) -> Answer:
    """Prepare INSTANCE to be exported to another cluster.

    Makes a key and a certificate that are good for 24 hours, and a document for the other cluster's 'receive', signed with the
    cluster-domain secret. The private key stays here. The guest is not touched.

    \b
    Examples:
      diskhaul prepare web1 --out web1.prepared
    """
    import diskhaul

    from .render import notes

    result = diskhaul.prepare(instance, config=invocation.cluster(), on_event=invocation.on_event, cancel=invocation.cancel)
    if out is not None:
        _write(out, result.document)
    said = f"Prepared {escape(result.instance)}: {escape(str(out))} is good until {result.expires:%Y-%m-%d %H:%M} UTC."
    return Answer(
        document=jsonable(result),
        text=lambda: said if out is not None else _text(result.document),
        notes=notes(warnings=result.warnings),
        chatter=out is not None,
    )


@click.command("receive", cls=Service)
@click.argument("prepared", cls=Argument, metavar="PREPARED")
@click.option("--node", cls=Option, required=True, metavar="N", help="The node that takes the export: this machine.")
@click.option("--instance-name", cls=Option, metavar="NEW", help="Call the instance NEW.")
@click.option(
    "--timeout", "timeout_s", cls=Option, type=SECONDS, metavar="S", help="How long nothing may come, seconds. [default: 3600]"
)
@click.option(
    "--for-import",
    cls=Option,
    is_flag=True,
    help="Refuse, too, what an import into the instance's configured disks would be refused for.",
)
@grow_option
@click.option("--force", cls=Option, is_flag=True, help="For that import: overwrite disks that exist.")
@click.option("--out", cls=Option, type=PATH, metavar="FILE", help="Write the destination to FILE. [default: standard output]")
@common_options(hidden=True)
@click.pass_obj
def receive_command(
    invocation: Invocation,
    /,
    prepared: str,
    node: str,
    instance_name: str | None,
    timeout_s: float | None,
    for_import: bool,
    grow: tuple[tuple[int, int], ...],
    force: bool,
    out: Path | None,
) -> Answer:
    """Receive an export from another cluster.

    PREPARED is the file that 'prepare' made there, or - for standard input. Once the export can come, the destination is printed,
    one line, for 'export --remote' there. Then the export is waited for; when it is there, this command ends.

    \b
    Examples:
      diskhaul receive - --node gamma
      diskhaul receive web1.prepared --node gamma --instance-name web2.example.com --out web1.destination
    """
    import diskhaul

    from ..library import DEFAULT_RECEIVE_TIMEOUT_S
    from .render import notes

    if invocation.json and out is None:
        raise RefusedError("--json prints one document, at the end: say with --out FILE where the destination goes")

    if not for_import and (grow or force):
        raise RefusedError("--grow and --force are for the import that --for-import asks about: give that as well, or neither")

    def announce(destination: Mapping[str, Any]) -> None:
        if out is not None:
            _write(out, destination)
        else:
            sys.stdout.write(_text(destination) + "\n")
            sys.stdout.flush()

    result = diskhaul.receive(
        _standard_input() if prepared == "-" else Path(prepared),
        node=node,
        config=invocation.cluster(),
        announce=announce,
        instance_name=instance_name,
        timeout_s=DEFAULT_RECEIVE_TIMEOUT_S if timeout_s is None else timeout_s,
        for_import=diskhaul.import_options(grow=grow, force=force) if for_import else None,
        on_event=invocation.on_event,
        cancel=invocation.cancel,
    )
    said = f"Received {result.instance}@{result.export.export_id} on {result.node} from cluster {result.source_cluster}."
    told = () if invocation.quiet else (said,)
    return Answer(
        document=jsonable(result),
        text=lambda: "",  # standard output has the destination, and nothing else
        exit_code=result.exit_code,
        notes=(*told, *notes(warnings=result.warnings)),
    )


def _standard_input() -> Mapping[str, Any]:
    from ..remote.envelope import read_document
    from ..remote.signing import MAX_DOCUMENT

    try:
        data = sys.stdin.buffer.read(MAX_DOCUMENT + 1)
    except OSError as error:
        raise RefusedError(f"standard input: cannot be read: {error.strerror}") from error
    return read_document(data, "the prepared export")


def _text(document: Mapping[str, Any]) -> str:
    from ..remote.signing import render

    return render(document)


def _write(file: Path, document: Mapping[str, Any]) -> None:
    """Write a document so that nobody else can read it, and nobody sees half of it."""
    from ..certificates import write_durably

    if file.is_dir():
        raise StorageError(f"{file}: is a directory", path=str(file))
    write_durably(file, (_text(document) + "\n").encode("ascii"), 0o600)
