"""What all commands share: options, one way to run, one way to answer.

A command's function parses nothing and prints nothing: it gets checked values, calls the library, and returns an `Answer`.
`Command.invoke` opens ``--events``, takes over signals and, with ``--json``, standard output, before the function runs, and
prints the answer after it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from ..cancellation import CancellationToken
from ..errors import RefusedError
from .failures import usage_problem
from .text import escape

if TYPE_CHECKING:
    from ..events import Event
    from ..model import Cluster
    from .event_log import EventLog
    from .progress import Reporter

_PROBLEMS = "diskhaul.cli.problems"
MakeReporter = Callable[..., "Reporter"]  # with quiet= and bars=
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a command has to say.

    Attributes:
        document: for ``--json``: a mapping of what `json_output.jsonable` takes. ``exit_code`` is added to it.
        text: makes the text for people, without a final newline; "" prints nothing.
        exit_code: as in `diskhaul.errors`.
        notes: lines for standard error: warnings, and what is left to do by hand.
        chatter: the text only says that all went well, so ``--quiet`` leaves it out.
    """

    document: Mapping[str, Any]
    text: Callable[[], str]
    exit_code: int = 0
    notes: Sequence[str] = ()
    chatter: bool = False


@dataclass(slots=True)
class Invocation:
    """One run of the command line: the common options, and what they lead to."""

    config: Path | None = None
    json: bool = False
    events: Path | None = None
    quiet: bool = False
    progress: bool = True
    cancel: CancellationToken = field(default_factory=CancellationToken)
    _log: EventLog | None = None
    _reporter: Reporter | None = None

    def cluster(self) -> Cluster:
        """Read the cluster that ``--config``, ``DISKHAUL_CONFIG`` or the usual places name.

        Raises:
            ConfigurationError: there is none, or it cannot be used.
        """
        from ..config import find_configuration, load_cluster

        return load_cluster(find_configuration(self.config))

    def cluster_if_any(self) -> Cluster | None:
        """Read the cluster, or return None where there is none and none was asked for.

        Raises:
            ConfigurationError: it cannot be used.
        """
        from ..config import find_configuration, load_cluster
        from ..errors import ConfigurationError

        try:
            path = find_configuration(self.config)
        except ConfigurationError:
            return None
        return load_cluster(path)

    def cluster_for(self, export: str) -> Cluster | None:
        """Read the cluster, or return None where there is none and `export` is a directory, which can do without.

        Raises:
            ConfigurationError: there is none and one is needed, or it cannot be used.
        """
        from ..operations.exports import is_export_path

        return self.cluster_if_any() if is_export_path(export) else self.cluster()

    def on_event(self, event: Event) -> None:
        """Log and show an event; for the library's ``on_event``."""
        if self._log is not None:
            self._log(event)
        if self._reporter is not None:
            self._reporter(event)

    @contextmanager
    def running(self, *, cancellable: bool, guest: bool, reporter: MakeReporter | None = None) -> Iterator[None]:
        """Hold everything a command needs while it runs.

        Raises:
            RefusedError: the ``--events`` file cannot be written, or is where the JSON document goes.
        """
        with ExitStack() as stack:
            if self.events is not None:
                from .event_log import EventLog

                self._log = EventLog(self.events)
                stack.callback(self._log.close)
                if self.json and _has_descriptor(sys.stdout) and self._log.is_same_file_as(sys.stdout.fileno()):
                    raise RefusedError("--events and --json would both write to standard output: choose another --events FILE")
            if cancellable:
                from .progress import reporter as usual_reporter
                from .signals import stopping_cleanly

                stack.enter_context(stopping_cleanly(self.cancel, guest=guest))
                self._reporter = stack.enter_context((reporter or usual_reporter)(quiet=self.quiet, bars=self.progress))
            yield

    def print(self, answer: Answer) -> int:
        """Print the answer and return the exit code, which is the answer's unless the answer could not be printed."""
        told = {f"warning: {message}" for message in self._reporter.warned} if self._reporter is not None else set()
        notes = [note for note in answer.notes if note not in told]
        if self._log is not None and self._log.lost:
            notes.append(f"--events {self.events}: {self._log.lost} events were not written: {self._log.problem}")
        if not self.json:
            for note in notes:
                print(f"diskhaul: {escape(note)}", file=sys.stderr)
        if self.json:
            from .json_output import dumps

            text = dumps(dict(answer.document) | {"exit_code": answer.exit_code})
        else:
            text = "" if self.quiet and answer.chatter else answer.text()
        return write_out(text, answer.exit_code)


def write_out(text: str, exit_code: int) -> int:
    """Write `text` to standard output; return `exit_code`, or 1 when that was 0 and the text could not be written.

    A reader that went away (``| head``) is no failure.
    """
    try:
        if text:
            sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            print(f"diskhaul: standard output: {error.strerror}", file=sys.stderr)
            return exit_code or 1
    return exit_code


def flush_or_discard() -> None:
    """Flush standard output and error. What cannot be written any more is dropped.

    Otherwise the interpreter's own flush at exit fails, and ends the process with 120 instead of the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            _discard(stream)


def _discard(stream: TextIO) -> None:
    if _has_descriptor(stream):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _has_descriptor(stream: Any) -> bool:
    try:
        stream.fileno()
    except (OSError, ValueError, AttributeError):
        return False
    return True


@contextmanager
def standard_output_reserved() -> Iterator[None]:
    """Send what plugins, and programs they start, print to standard output to standard error instead."""
    with redirect_stdout(sys.stderr), ExitStack() as stack:
        if _has_descriptor(sys.__stdout__) and _has_descriptor(sys.stderr):
            kept = os.dup(1)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 1)
            os.dup2(sys.stderr.fileno(), 1)
        yield


class _Collecting(click.Parameter):
    """A parameter whose problems are told together with those of the others."""

    def handle_parse_result(self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]) -> tuple[Any, list[str]]:
        try:
            return super().handle_parse_result(ctx, opts, args)
        except click.BadParameter as error:
            if ctx.resilient_parsing:
                raise
            error.ctx, error.param = error.ctx or ctx, error.param or self
            ctx.meta.setdefault(_PROBLEMS, []).append(usage_problem(error))
            return None, args


class Option(_Collecting, click.Option):
    """An option whose problems are told together with those of the others."""


class Argument(_Collecting, click.Argument):
    """An argument whose problems are told together with those of the others."""


class Command(click.Command):
    """A command that returns an `Answer`."""

    cancellable = False
    guest = False
    keeps_memory = False
    reporter: MakeReporter | None = None
    """Makes what shows progress; None is that of a single operation."""

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the whole first paragraph of the help; click would cut it at 45 characters."""
        return " ".join((self.help or "").partition("\n\n")[0].split())

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        if problems := ctx.meta.pop(_PROBLEMS, ()):
            raise RefusedError([*problems, *self.further_problems(ctx)])
        return rest

    def further_problems(self, ctx: click.Context) -> Sequence[str]:
        """What else is wrong, as far as it can be found out from the parameters that could be read; told together."""
        return ()

    def invoke(self, ctx: click.Context) -> int:
        invocation = ctx.ensure_object(Invocation)
        if self.keeps_memory:
            from diskhaul_native import keep_freed_memory

            keep_freed_memory()
        with invocation.running(cancellable=self.cancellable, guest=self.guest, reporter=self.reporter):
            with ExitStack() as stack:
                if invocation.json:
                    stack.enter_context(standard_output_reserved())
                try:
                    answer: Answer = super().invoke(ctx)
                except SystemExit as error:
                    # A plugin's sys.exit(0) must not look like success.
                    raise RuntimeError(f"a plugin tried to end the process (exit {error.code!r})") from error
                except RefusedError as error:
                    from .flags import in_flags

                    told = in_flags(error, self)
                    if told is error:
                        raise
                    raise told from error.__cause__
                finally:
                    if invocation._reporter is not None:
                        invocation._reporter.close()
            return invocation.print(answer)


class Operation(Command):
    """A command that runs for a while: it shows progress and is stopped cleanly by signals."""

    cancellable = True
    keeps_memory = True


class Service(Operation):
    """An operation that serves others until it is stopped. Between them it gives its memory back."""

    keeps_memory = False


class GuestOperation(Operation):
    """An operation that may stop a guest."""

    guest = True


class _Checked(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4, and not at run time before
    """A parameter type from a function that raises `ValueError` with a clear line."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def checked(metavar: str, parse: Callable[[str], Any]) -> click.ParamType:  # type: ignore[type-arg]
    """Return a parameter type that is shown as `metavar` and checked by `parse`, which raises `ValueError`."""
    return _Checked(metavar, parse)


def _path(text: str) -> Path:
    if not text:
        raise ValueError("the path is empty")
    return Path(text)


PATH = checked("path", _path)


def _sets(attribute: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value is not None:
            setattr(ctx.ensure_object(Invocation), attribute, value)

    return callback


def common_options(*, hidden: bool) -> Callable[[F], F]:
    """Add the options that may stand before and after the command's name (shown in help once, before it)."""

    def add(function: F) -> F:
        flags = [
            ("--no-progress", "progress", False, "Show no progress bars or percentages, only stages."),
            (
                "--quiet",
                "quiet",
                True,
                "Show no progress, and nothing of what went well: only warnings, errors and what was asked for.",
            ),
            ("--json", "json", True, "Print one JSON document on standard output, for errors too, and nothing else there."),
        ]
        for name, attribute, value, text in flags:
            function = click.option(
                name,
                cls=Option,
                is_flag=True,
                flag_value=value,
                type=bool,
                default=None,
                expose_value=False,
                callback=_sets(attribute),
                hidden=hidden,
                help=text,
            )(function)
        function = click.option(
            "--events",
            cls=Option,
            type=PATH,
            metavar="FILE",
            expose_value=False,
            callback=_sets("events"),
            hidden=hidden,
            help="Append what happens to FILE as JSON lines, as it happens.",
        )(function)
        return click.option(
            "--config",
            cls=Option,
            type=PATH,
            metavar="FILE",
            expose_value=False,
            callback=_sets("config"),
            hidden=hidden,
            help="The cluster's configuration.",
        )(function)

    return add
