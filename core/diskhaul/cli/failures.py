"""What a failure looks like: lines for people, and the exit code."""

from __future__ import annotations

from collections import Counter

import click

from ..errors import DiskhaulError, OperationFailedError, RefusedError, VerificationError
from .text import escape

UNEXPECTED = 1
REFUSED = 2
INTERRUPTED = 130


def exit_code(error: BaseException) -> int:
    """Return what the command line exits with for `error`."""
    if isinstance(error, DiskhaulError):
        return error.exit_code
    if isinstance(error, click.ClickException):
        return REFUSED
    return INTERRUPTED if isinstance(error, (KeyboardInterrupt, click.Abort)) else UNEXPECTED


def problems(error: BaseException) -> tuple[str, ...]:
    """Return what is wrong, one line each, as it is (not escaped)."""
    if isinstance(error, RefusedError):
        return error.problems
    if isinstance(error, VerificationError):
        return (str(error), *(line for line in map(str, error.findings) if line not in str(error)))
    if isinstance(error, OperationFailedError):
        return (str(error), *(part for part in error.parts if part not in str(error)))
    if isinstance(error, DiskhaulError):
        return (str(error),)
    if isinstance(error, click.ClickException):
        return (usage_problem(error),)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return ("interrupted",)
    return (f"unexpected error: {type(error).__name__}: {error}",)


def usage_problem(error: click.ClickException) -> str:
    """Return a usage error in one line that names the option or argument and says where help is."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    see = f"see '{context.command_path} --help'" if context else "see 'diskhaul --help'"
    parameter = error.param if isinstance(error, click.BadParameter) else None
    if parameter is None:
        return f"{_one_line(error.format_message())} ({see})"
    called = max(parameter.opts, key=len) if isinstance(parameter, click.Option) else parameter.human_readable_name
    if isinstance(error, click.MissingParameter):
        return f"{called} is missing ({see})"
    return f"{called}: {_one_line(error.message)}"


def lines(error: BaseException) -> tuple[str, ...]:
    """Return everything to tell people about `error`: its problems, then what went wrong while cleaning up; escaped."""
    told = Counter([*problems(error), *getattr(error, "__notes__", ())])  # in the order in which each came first
    return tuple(escape(line) + (f" ({times} times)" if times > 1 else "") for line, times in told.items())


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
