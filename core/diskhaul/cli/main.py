"""The ``diskhaul`` command itself: common options, the list of commands, and what becomes of failures."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from . import failures
from .invocation import Invocation, common_options, flush_or_discard, write_out
from .signals import ignore_from_now_on

_COMMANDS = {
    "export": "export",
    "import": "restore",
    "list": "exports",
    "show": "exports",
    "verify": "exports",
    "remove": "exports",
    "prune": "exports",
    "plan": "export",
    "recover": "recover",
    "prepare": "remote",
    "receive": "remote",
    "move": "move",
    "guest": "guest",
    "fleet": "fleet",
    "inspect": "inspection",
    "certs": "certs",
    "node": "node",
    "bench": "tuning",
    "tune": "tuning",
    "plugins": "machine",
    "doctor": "machine",
    "demo": "demo",
}
"""Command to the module it is in. In this order in the help; a module is imported only when its command is looked at."""

EPILOG = """\b
Try it:
  diskhaul demo /tmp/lab
  diskhaul --config /tmp/lab/cluster.toml export web1 --node beta
  diskhaul --config /tmp/lab/cluster.toml list

\b
Exit codes:
    0  done
    1  unexpected error
    2  refused: nothing was touched
    3  failed: earlier exports are intact, and the guest is as before unless
         the error says IS DOWN
    4  done, but a clean-up or a removal is incomplete, or a node did not answer
    5  a lock could not be had
    6  verification failed
  130  interrupted (otherwise as 3)

--config, --json, --events, --quiet and --no-progress may stand after the command as well.
Ctrl-C, SIGTERM and SIGHUP stop a command cleanly; there is no need to send them twice.

\b
Completion for bash (zsh and fish likewise):
  eval "$(_DISKHAUL_COMPLETE=bash_source diskhaul)"
"""


class _Commands(click.Group):
    """The commands, imported when needed, and the one place where failures end."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f".{_COMMANDS[cmd_name]}", __package__)
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *_: Any, **extra: Any) -> NoReturn:
        """Run, print what went wrong, and exit with the code that says how it went."""
        arguments = list(sys.argv[1:] if args is None else args)
        name = prog_name or "diskhaul"
        if "_DISKHAUL_COMPLETE" in os.environ:
            super().main(args=arguments, prog_name=name)
        _escape_unencodable()
        json = _asks_for_json(arguments)
        try:
            with self.make_context(name, arguments.copy(), **extra) as context:
                code = self.invoke(context)
        except click.exceptions.Exit as done:  # --help and --version, which have printed what there is
            code = write_out("", done.exit_code)
        except (Exception, KeyboardInterrupt) as error:
            ignore_from_now_on()
            code = _failed(error, json=json)
        ignore_from_now_on()
        flush_or_discard()
        sys.exit(code)


def _failed(error: BaseException, *, json: bool) -> int:
    code = failures.exit_code(error)
    try:
        if os.environ.get("DISKHAUL_DEBUG"):
            traceback.print_exception(error)
        elif code == failures.UNEXPECTED:
            print("diskhaul: run with DISKHAUL_DEBUG=1 for the traceback", file=sys.stderr)
        if not json:
            for line in failures.lines(error):
                print(f"diskhaul: {line}", file=sys.stderr)
    except OSError:
        pass  # standard error is gone: the exit code still tells
    if json:
        from .json_output import dumps, error_document

        write_out(dumps(error_document(error, failures.problems(error), code)), code)
    return code


def _asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether ``--json`` is among the options. Looked for by hand, because it counts for errors found while parsing, too."""
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def _escape_unencodable() -> None:
    """Let characters that the terminal's encoding lacks come out as escapes instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from diskhaul import __version__

    click.echo(f'{{"version": "{__version__}"}}' if _asks_for_json(sys.argv[1:]) else f"diskhaul {__version__}")
    ctx.exit()


@click.group(
    cls=_Commands,
    no_args_is_help=False,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "auto_envvar_prefix": None},
)
@common_options(hidden=False)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show the version.")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Export virtual-machine instances and bring them back.

    An export stops or freezes a guest, snapshots its disks, starts it again, and streams the disks (without their holes,
    compressed, with a digest on every chunk) to another node, where it appears only once it is complete.
    """
    ctx.ensure_object(Invocation)
