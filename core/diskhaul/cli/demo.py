"""``diskhaul demo``."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from .invocation import PATH, Answer, Argument, Command, Invocation, Option, checked, common_options
from .numbers import parse_size

MIB = 1 << 20


def _size(text: str) -> int:
    return parse_size(text, smallest=16 * MIB, largest=1 << 40)


@click.command("demo", cls=Command)
@click.argument("directory", cls=Argument, metavar="DIR", type=PATH)
@click.option("--size", cls=Option, type=checked("size", _size), metavar="SIZE", help="Size of the guest's disk (such as 256M).")
@common_options(hidden=True)
@click.pass_obj
def demo_command(invocation: Invocation, directory: Path, size: int | None) -> Answer:
    """Make a small cluster to try things with in DIR, which must be empty or new.

    Two nodes, alpha and beta, are directories in it; the instance web1.example.com has a real disk with an ext4 filesystem,
    and a process that plays the guest.

    \b
    Examples:
      diskhaul demo /tmp/lab
      diskhaul --config /tmp/lab/cluster.toml export web1 --node beta
    """
    from diskhaul.demo import make_demo

    if size is None:
        make_demo(directory)
    else:
        make_demo(directory, size_mib=-(-size // MIB))
    config = directory / "cluster.toml"

    def text() -> str:
        from .text import escape

        shown = escape(shlex.quote(str(config)))
        return "\n".join(
            [
                f"Made a cluster in {escape(directory)}. Try:",
                f"  diskhaul --config {shown} export web1 --node beta",
                f"  diskhaul --config {shown} list",
                f"  diskhaul --config {shown} verify",
                f"  diskhaul --config {shown} import web1 --to-dir restored",
            ]
        )

    return Answer(document={"directory": directory, "config": config}, text=text, chatter=True)
