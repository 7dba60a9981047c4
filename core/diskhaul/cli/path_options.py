"""How bytes are moved: options that every command has which moves disks (`diskhaul.options.PathOptions`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from ..option_checks import MAX_BWLIMIT, MAX_MEMORY, MAX_READ_AHEAD, MAX_THREADS
from ..options import MIN_MEMORY, DirectIO, IOPriority
from .invocation import Option, checked
from .numbers import parse_size

if TYPE_CHECKING:
    from ..records import Profile

F = TypeVar("F", bound=Callable[..., Any])

# Declaration, type, metavar, help. All defaults are None, "not given".
_OPTIONS: tuple[tuple[str, click.ParamType[Any], str | None, str], ...] = (
    ("--threads", click.IntRange(0, MAX_THREADS), "N", "Chunks worked on at once. [default: 0, one more than CPUs, at most 8]"),
    ("--read-ahead", click.IntRange(0, MAX_READ_AHEAD), "N", "Further chunks read or written meanwhile. [default: 4]"),
    (
        "--direct-io",
        click.Choice(get_args(DirectIO)),
        None,
        "Bypass the page cache: where possible and useful, always (or refuse), or never. [default: auto]",
    ),
    (
        "--memory",
        checked("a size", partial(parse_size, smallest=MIN_MEMORY, largest=MAX_MEMORY)),
        "SIZE",
        "What buffers may take, over all disks. [default: 192M]",
    ),
    (
        "--bwlimit",
        checked("a size", partial(parse_size, smallest=0, largest=MAX_BWLIMIT)),
        "SIZE",
        "Read at most so much a second, over all disks (such as 200M). [default: 0, no limit]",
    ),
    ("--nice", click.IntRange(0, 19), "N", "Lower the CPU priority of the work, as nice(1). [default: 0]"),
    (
        "--io-priority",
        click.Choice(get_args(IOPriority)),
        None,
        "I/O priority of the work, as ionice(1), where the scheduler heeds it. [default: normal]",
    ),
)


def path_options(function: F) -> F:
    """Add the options to a command; it gets them by the names of `PathOptions`' fields, None where not given."""
    for declaration, kind, metavar, text in reversed(_OPTIONS):
        function = click.option(declaration, cls=Option, type=kind, default=None, metavar=metavar, help=text)(function)
    return function


def profile_option(function: F) -> F:
    """Add ``--profile`` to a command; it gets a `diskhaul.Profile`, or None where not given."""
    return click.option(
        "--profile",
        cls=Option,
        type=checked("profile", _load),
        metavar="FILE",
        help="Settings that 'diskhaul tune' found; options given here count more.",
    )(function)


def _load(text: str) -> Profile:
    from ..profile import load_profile

    return load_profile(text)
