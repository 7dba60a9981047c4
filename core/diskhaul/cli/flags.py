"""Refusals in the words of the command line: ``long_sleep: contradicts shutdown = false`` is about flags there."""

from __future__ import annotations

import re
from collections.abc import Iterable

import click

from ..errors import RefusedError


def in_flags(error: RefusedError, command: click.Command) -> RefusedError:
    """Return `error` with the library's options named as the flags of `command`; other kinds of refusals as they are.

    An option is recognised at the start of a problem (``name: ...``), with a value (``name = value``), and, when its name has an
    underscore and so is no word of a sentence, anywhere.
    """
    if type(error) is not RefusedError:  # configurations and plugins have names of their own
        return error
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    told = RefusedError([_translated(problem, options) for problem in error.problems])
    for note in getattr(error, "__notes__", ()):
        told.add_note(note)
    return told


def _translated(problem: str, options: Iterable[click.Option]) -> str:
    for option in options:
        if option.name is None:
            continue
        flag = max(option.opts, key=len)
        off = max(option.secondary_opts, key=len) if option.secondary_opts else flag

        def with_value(match: re.Match[str], flag: str = flag, off: str = off, is_flag: bool = bool(option.is_flag)) -> str:
            value = match[1].strip('"')
            if is_flag:
                return off if value == "false" else flag
            return f"{flag} {value}"

        # Not as the end of a key path, nor of a flag.
        name = rf"(?<![\w.-]){re.escape(option.name)}"
        problem = re.sub(rf'{name} = ("[^"]*"|[^\s,;)]+)', with_value, problem)
        problem = re.sub(rf"{name}\b" if "_" in option.name else rf"^{re.escape(option.name)}(?=: )", flag, problem)
    return problem
