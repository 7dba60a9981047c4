"""``diskhaul demo``."""

from __future__ import annotations

from pathlib import Path

import click

from .invocation import PATH, Answer, Argument, Command, Invocation, Option, checked, common_options
from .json_output import jsonable
from .numbers import parse_size
from .text import escape

MIB = 1 << 20


def _size(text: str) -> int:
    from diskhaul.demo import MAX_SIZE_MIB, MIN_SIZE_MIB

    return parse_size(text, smallest=MIN_SIZE_MIB * MIB, largest=MAX_SIZE_MIB * MIB)


@click.command("demo", cls=Command)
@click.argument("directory", cls=Argument, metavar="DIR", type=PATH)
@click.option("--size", cls=Option, type=checked("size", _size), metavar="SIZE", help="Size of the guest's disk. [default: 256M]")
@common_options(hidden=True)
@click.pass_obj
def demo_command(invocation: Invocation, directory: Path, size: int | None) -> Answer:
    """Make a small cluster to try things with in DIR, which must be empty or new.

    Its nodes are directories in it; the instance web1.example.com has a real disk with an ext4 filesystem, and a process that
    plays the guest and holds that disk. Ends by saying what to try, and how to remove everything.

    \b
    Examples:
      diskhaul demo /tmp/lab
      diskhaul --config /tmp/lab/cluster.toml export web1 --node beta
    """
    from diskhaul.demo import make_demo

    made = make_demo(directory) if size is None else make_demo(directory, size_mib=size // MIB)
    return Answer(
        document=jsonable(made),
        text=lambda: "\n".join(map(escape, made.text.splitlines())),
        chatter=True,
    )
