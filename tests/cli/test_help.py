from __future__ import annotations

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from diskhaul.cli.main import cli

from .conftest import ENVIRONMENT

COMMANDS = [
    *(
        "export",
        "import",
        "list",
        "show",
        "verify",
        "remove",
        "prune",
        "plan",
        "recover",
        "prepare",
        "receive",
        "move",
        "guest",
        "fleet",
    ),
    *("inspect", "certs", "node", "bench", "tune", "plugins", "doctor", "demo"),
]
PATH_FLAGS = ["--threads", "--read-ahead", "--direct-io", "--memory", "--bwlimit", "--nice", "--io-priority"]
EXPORT_FLAGS = [
    "--node",
    "--no-shutdown",
    "--shutdown-timeout",
    "--long-sleep",
    "--zero-free-space",
    "--zero-fill",
    "--zeroing-timeout-fixed",
    "--zeroing-timeout-per-mib",
    "--compress",
    "--remove-instance",
    "--ignore-remove-failures",
    "--layout",
    "--chunk-size",
    "--verify",
    "--profile",
    "--digest",
    *PATH_FLAGS,
]
HEAVY = (
    "pydantic rich filelock zstandard blake3 sqlite3 tomllib subprocess cffi diskhaul_native diskhaul_plugins "
    "optuna matplotlib numpy ssl cryptography"
)
FLAGS = {
    "export": [*EXPORT_FLAGS, "--remote", "--dry-run"],
    "plan": EXPORT_FLAGS,
    "import": ["--node", "--to-dir", "--disk", "--instance-name", "--grow", "--force", "--dry-run", "--profile", *PATH_FLAGS],
    "list": ["--node"],
    "show": ["--node"],
    "verify": ["--node"],
    "remove": ["--node", "--all", "--dry-run"],
    "prune": ["--node", "--keep-last", "--keep-daily", "--keep-weekly", "--keep-monthly", "--keep-yearly", "--dry-run"],
    "recover": [],
    "prepare": ["--out"],
    "receive": ["--node", "--instance-name", "--timeout", "--for-import", "--grow", "--force", "--out"],
    "move": [
        *("--to", "--node", "--instance-name", "--nic", "--grow", "--force", "--keep-source-instance", "--dry-run"),
        *("--shutdown-timeout", "--zero-free-space", "--zero-fill", "--zeroing-timeout-fixed", "--zeroing-timeout-per-mib"),
        *("--compress", "--chunk-size", "--verify", "--profile"),
        *PATH_FLAGS,
    ],
    "guest": ["--shutdown-timeout", "--move", "--disks"],
    "fleet": [],
    "inspect": ["--zero-fill", "--svg"],
    "certs": ["--dir", "--cluster", "--role", "--dns", "--days", "--force"],
    "node": ["--node"],
    "bench": ["--source", "--target", "--time", "--compress", "--chunk-size", "--profile", *PATH_FLAGS],
    "tune": [
        *("--source", "--instance", "--target", "--aim", "--within", "--time", "--compress-range", "--sample", "--write-limit"),
        *("--search", "--seed", "--out", "--report", "--resume", "--compress", "--chunk-size"),
        *PATH_FLAGS,
    ],
    "plugins": [],
    "doctor": [],
    "demo": ["--size"],
}


def command(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def test_the_help_lists_every_command_with_one_whole_sentence_and_the_exit_codes() -> None:
    result = CliRunner().invoke(cli, ["--help"], terminal_width=110)
    assert result.exit_code == 0
    assert cli.list_commands(click.Context(cli)) == COMMANDS
    for name in COMMANDS:
        assert f"\n  {name}" in result.output
        assert " ".join(command(name).get_short_help_str().split()) in " ".join(result.output.split())
    for code in (0, 1, 2, 3, 4, 5, 6, 130):
        assert f"{code:>7}  " in result.output
    assert "_DISKHAUL_COMPLETE=bash_source" in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_explains_it_has_examples_that_parse_and_describes_every_option(name: str) -> None:
    result = CliRunner().invoke(cli, [name, "--help"], terminal_width=110)
    assert result.exit_code == 0
    examples = [line.strip() for line in result.output.splitlines() if line.startswith("    diskhaul ")]
    assert examples
    for example in examples:
        words = example.split()[1:]
        while words[0].startswith("--"):
            words = words[2:] if words[0] == "--config" else words[1:]
        command(words[0]).make_context(words[0], words[1:], obj=None)
    for parameter in command(name).params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


@pytest.mark.parametrize("name", COMMANDS)
def test_the_flags_are_those_of_the_design(name: str) -> None:
    shown = [parameter for parameter in command(name).params if isinstance(parameter, click.Option) and not parameter.hidden]
    flags = {flag for parameter in shown for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert set(FLAGS[name]) <= flags
    opposites = {f.replace("--no-", "--") if f.startswith("--no-") else f.replace("--", "--no-", 1) for f in FLAGS[name]}
    assert flags <= set(FLAGS[name]) | opposites


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["export", "--help"],
        ["tune", "--help"],
        ["bench", "--time", "no"],
        ["export", "web1", "--shutdown-timeout", "nan"],
    ],
)
def test_help_and_usage_errors_load_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from diskhaul.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit:\n"
        "    pass\n"
        f"heavy = {HEAVY!r}.split()\n"
        "print('LOADED', [name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "LOADED []", done.stderr


def test_completion_knows_the_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from diskhaul.cli import main; main()"],
        env=ENVIRONMENT | {"_DISKHAUL_COMPLETE": "bash_complete", "COMP_WORDS": "diskhaul ex", "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "plain,export\n", done.stderr
