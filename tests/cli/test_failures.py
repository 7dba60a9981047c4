from __future__ import annotations

import inspect
import re

import click
import pytest

from diskhaul import errors
from diskhaul.cli.failures import exit_code, lines


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (name, code)
        for code, names in {
            1: ["DiskhaulError"],
            2: [
                "RefusedError",
                "ConfigurationError",
                "UnknownNameError",
                "AmbiguousNameError",
                "PluginError",
                "PluginClashError",
                "UnknownBackendError",
                "InvalidHookResultError",
                "IncompatiblePluginError",
            ],
            3: [
                "OperationFailedError",
                "GuestError",
                "SnapshotError",
                "StorageError",
                "UnreachableNodeError",
                "HookScriptError",
                "LockLostError",
            ],
            5: ["LockError", "LockTimeoutError"],
            6: ["VerificationError"],
            130: ["InterruptedRunError"],
        }.items()
        for name in names
    ],
)
def test_every_error_has_the_exit_code_of_its_drawing(name: str, code: int) -> None:
    error = getattr(errors, name)
    assert exit_code(error.__new__(error)) == code
    assert re.search(rf"\b{name} +{code}\b", errors.__doc__ or ""), "the drawing says something else"


def test_no_error_is_left_out_of_the_table_above() -> None:
    (marked,) = (mark for mark in test_every_error_has_the_exit_code_of_its_drawing.pytestmark)  # type: ignore[attr-defined]
    tested = {name for name, _ in marked.args[1]}
    assert tested == {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }


def test_a_refusal_is_one_line_per_problem_and_nothing_in_it_acts_on_the_terminal() -> None:
    assert lines(errors.RefusedError(["a\nb", "c\x1b[2J"])) == (r"a\nb", r"c\x1b[2J")


def test_a_failure_names_its_parts_once_and_what_failed_while_cleaning_up() -> None:
    error = errors.OperationFailedError(
        "export failed: export finalization", parts=["export finalization", "disk export: disk(s) 0"]
    )
    error.add(OSError("device busy"), "removing a snapshot")
    assert lines(error) == (
        "export failed: export finalization",
        "disk export: disk(s) 0",
        "while removing a snapshot: device busy",
    )


def test_usage_errors_name_the_option_and_where_help_is() -> None:
    command = click.Command("export", params=[click.Option(["-n", "--node"], required=True)])
    context = click.Context(command, info_name="diskhaul export")
    assert lines(click.MissingParameter(ctx=context, param=command.params[0])) == (
        "--node is missing (see 'diskhaul export --help')",
    )
    assert lines(click.BadParameter("no\ngood", ctx=context, param=command.params[0])) == ("--node: no good",)
    assert lines(click.UsageError("Odd.\n", ctx=context)) == ("Odd (see 'diskhaul export --help')",)
    assert exit_code(click.UsageError("x")) == 2


def test_interrupts_and_surprises_have_their_codes() -> None:
    assert exit_code(KeyboardInterrupt()) == 130
    assert lines(KeyboardInterrupt()) == ("interrupted",)
    assert exit_code(ValueError("x")) == 1
    assert lines(ValueError("x\n")) == (r"unexpected error: ValueError: x\n",)


def test_what_failed_alike_several_times_is_told_once_and_counted() -> None:
    error = errors.GuestError("web1: start failed")
    for _ in range(3):
        error.add_note("while trying again: web1: start failed")
    error.add_note("another")
    assert lines(error) == ("web1: start failed", "while trying again: web1: start failed (3 times)", "another")
