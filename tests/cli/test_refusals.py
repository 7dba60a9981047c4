"""Bad input, given to the real command line: exit code 2, clear lines, nothing touched."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from .conftest import Lab, Ran

Run = Callable[..., Ran]

NOT_SECONDS = [
    "",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "-1",
    "-0.5",
    "1e99",
    "1e3",
    "1_000",
    "0x10",
    "99999999999",
    "ten",
    "1;2",
    "\x1b[2J",
]
SECOND_OPTIONS = ["--shutdown-timeout", "--zeroing-timeout-fixed", "--zeroing-timeout-per-mib"]


@pytest.mark.parametrize("number", NOT_SECONDS)
def test_numbers_that_are_none_are_refused_all_together_by_option(diskhaul: Run, lab: Lab, number: str) -> None:
    given = [word for option in SECOND_OPTIONS for word in (option, number)]
    ran = diskhaul("--config", lab.config, "export", "web1", "--node", "beta", *given)
    assert ran.code == 2
    assert [line.split(":")[1].strip() for line in ran.problems] == SECOND_OPTIONS
    assert all("is not a number of seconds" in line and line.isprintable() for line in ran.problems)
    assert not (lab.path / "state").exists()
    assert os.listdir(lab.path / "beta") == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing command (see 'diskhaul --help')"),
        (["bogus"], "No such command 'bogus'"),
        (["--bogus", "list"], "--bogus"),
        (["export"], "INSTANCE is missing"),
        (["export", "web1"], "--node is missing (see 'diskhaul export --help')"),
        (["export", "web1", "extra", "--node", "beta"], "extra"),
        (["export", "web1", "--node", "beta", "--bogus"], "--bogus"),
        (["export", "web1", "--node", "beta", "--layout", "tar"], "--layout: 'tar' is not one of"),
        (["export", "web1", "--node", "beta", "--verify", "twice"], "--verify: 'twice' is not one of"),
        (["export", "web1", "--node"], "--node"),
        (["export", "-x", "--node", "beta"], "-x"),
        (["--config", "", "list"], "--config: the path is empty"),
        (["--events", "", "list"], "--events: the path is empty"),
        (["import", "web1", "--to-dir", ""], "--to-dir: the path is empty"),
        (["import", "web1", "--disk", "x"], "--disk: 'x' is not N=PATH"),
        (["import", "web1", "--disk", "-1=/x"], "--disk: '-1=/x' is not N=PATH"),
        (["import", "web1", "--disk", "0="], "--disk: '0=' is not N=PATH"),
        (["import", "web1", "--disk", "=/x"], "--disk: '=/x' is not N=PATH"),
        (["import", "web1", "--disk", "0=/x", "--disk", "0=/y"], "--disk: disk 0 is given twice"),
        (["remove"], "EXPORT... is missing"),
        (["prune"], "this keeps nothing, and would remove every export"),
        (["prune", "--keep-last", "-1"], "--keep-last: '-1' is not a whole number"),
        (["prune", "--keep-daily", "1.5", "--keep-weekly", ""], "--keep-weekly: an empty text is not a whole number"),
        (["demo", "x", "--size", "nan"], "--size: 'nan' is not a size from"),
        (["demo", "x", "--size", "1K"], "--size: '1K' is not a size from"),
        (["demo", ""], "DIR: the path is empty"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused_with_a_line_that_says_where(
    diskhaul: Run, lab: Lab, arguments: Sequence[str], says: str
) -> None:
    before = lab.state()
    ran = diskhaul(*arguments, env={"DISKHAUL_CONFIG": str(lab.config)})
    assert ran.code == 2
    assert says in ran.err
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert lab.state() == before
    assert not (lab.path / "state").exists()


BAD_NAMES = {
    "up": "../x",
    "absolute": "/x",
    "dot": ".",
    "empty": "",
    "newline": "a\nb",
    "escape": "a\x1b[2Jb",
    "space": "a b",
    "long": "x" * 300,
    "unknown": "nobody",
}


EXPORTS = ["export {} --node beta", "export web1 --node {}"]
OTHERS = [
    "plan {} --node beta",
    "list {}",
    "list --node {}",
    "show --node {} web1",
    "verify --node {}",
    "prune {} --keep-last 1",
    "recover {}",
    "remove {}@20260131T130500Z-1a2b3c4d",
]


@pytest.mark.parametrize(
    ("command", "name"),
    [(command, name) for command in EXPORTS for name in BAD_NAMES.values()]
    + [(command, BAD_NAMES[kind]) for command in OTHERS for kind in ("up", "unknown")],
)
def test_a_bad_name_is_refused_in_one_line_and_nothing_is_touched(diskhaul: Run, lab: Lab, command: str, name: str) -> None:
    before = lab.state()
    arguments = [word.replace("{}", name) for word in command.split()]
    ran = diskhaul("--config", lab.config, *arguments, "--no-progress", "--quiet")
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.problems) == 1
    assert ran.err.rstrip("\n").isprintable()
    assert lab.state() == before


def test_a_name_that_starts_with_a_dash_is_refused_also_after_two_dashes(diskhaul: Run, lab: Lab) -> None:
    ran = diskhaul("--config", lab.config, "export", "--node", "beta", "--quiet", "--", "-x")
    assert ran.code == 2
    assert "instance name '-x' is not allowed" in ran.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("export web2 --node beta", "fits several: web2.example.com, web2.other.example; give the full name"),
        ("export web1 --node drained", "drained"),
        ("export empty --node beta", "no disks"),
        ("export web1 --node beta --compress xz:9", "compress"),
        ("export web1 --node beta --compress zstd:99", "compress"),
        ("export web1 --node beta --zeroing-timeout-fixed 5", "zeroing"),
        ("export web1 --node beta --no-shutdown --long-sleep", "long"),
        ("show web1", "no valid export"),
        ("show web1@nonsense", "export id 'nonsense' is not one"),
        ("verify /nonexistent/export", "/nonexistent/export"),
        ("import web1 --to-dir restored", "no valid export"),
        ("import ./nowhere --to-dir restored", "nowhere"),
        ("remove web1", "--all"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(diskhaul: Run, lab: Lab, arguments: str, says: str) -> None:
    before = lab.state()
    ran = diskhaul("--config", lab.config, "--quiet", *arguments.split())
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert says in ran.err
    assert len(ran.problems) == 1
    assert lab.state() == before


def test_an_offline_target_is_refused(diskhaul: Run, lab: Lab) -> None:
    ran = diskhaul("--config", lab.with_offline_node(), "--quiet", "export", "web1", "--node", "offline")
    assert ran.code == 2
    assert "offline" in ran.err


def test_several_refusals_are_told_together(diskhaul: Run, lab: Lab) -> None:
    ran = diskhaul("--config", lab.config, "--quiet", "--json", "export", "nobody", "--node", "nowhere")
    assert ran.code == 2
    problems = " ".join(ran.document["error"]["problems"])
    assert "nobody" in problems
    assert "nowhere" in problems


def test_no_configuration_is_refused_with_what_to_do(diskhaul: Run) -> None:
    ran = diskhaul("list")
    assert ran.code == 2
    assert "give --config FILE" in ran.err
    assert "diskhaul demo DIR" in ran.err


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda text: text.replace("cleanup =", "clean_up ="), "backends.clean_up"),
        (lambda text: text + "\n[nodes.alpha]\n", "alpha"),
        (lambda text: text.replace('node = "alpha"', "node = 5"), "node"),
        (lambda text: text + "\n[defaults]\nshutdown_timeout_s = nan\n", "defaults.shutdown_timeout_s"),
        (lambda text: "[cluster", "TOML"),
    ],
)
def test_a_configuration_that_is_not_right_is_refused_by_key(
    diskhaul: Run, lab: Lab, spoil: Callable[[str], str], says: str
) -> None:
    lab.config.write_text(spoil(lab.config.read_text()))
    ran = diskhaul("--config", lab.config, "list")
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err


def test_a_configuration_that_everybody_can_write_is_not_trusted(diskhaul: Run, lab: Lab) -> None:
    lab.config.chmod(stat.S_IMODE(lab.config.stat().st_mode) | stat.S_IWOTH)
    ran = diskhaul("--config", lab.config, "export", "web1", "--node", "beta")
    assert (ran.code, ran.out) == (2, "")
    assert "is not trusted" in ran.err


def test_every_refusal_is_one_json_document_when_asked_for(diskhaul: Run, lab: Lab) -> None:
    for arguments in (["--json", "export"], ["export", "--json", "--bogus"], ["--json"], ["--json", "bogus"], ["list", "--json"]):
        ran = diskhaul(*arguments, cwd=Path("/"))
        assert ran.code == 2
        assert ran.document["error"]["exit_code"] == 2
        assert ran.err == ""
    ran = diskhaul("--json", "export", "web1", "--node", "beta", "--shutdown-timeout", "nan", "--layout", "x")
    told = [problem.split(":")[0] for problem in ran.document["error"]["problems"]]
    assert told == ["--shutdown-timeout", "--layout", "no configuration"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--long-sleep", "--no-shutdown"], "--long-sleep: contradicts --no-shutdown; a guest"),
        (["--zero-fill", "ext"], "--zero-fill: has no meaning without --zero-free-space; ask for --zero-free-space too"),
        (["--remove-instance", "--verify", "none"], "--remove-instance: with --verify none the only copy"),
        (["--layout", "ganeti", "--compress", "zstd:1"], "so --compress zstd:1 cannot be used; use --compress none"),
        (["--compress", "lzma"], "--compress: "),
    ],
)
def test_a_refusal_speaks_of_the_flags_that_were_typed(diskhaul: Run, lab: Lab, flags: list[str], says: str) -> None:
    ran = diskhaul("--config", lab.config, "export", "web1", "--node", "beta", *flags)
    assert ran.code == 2
    assert says in ran.err
    as_json = diskhaul("--config", lab.config, "--json", "export", "web1", "--node", "beta", *flags)
    assert any(says in problem for problem in as_json.document["error"]["problems"])


def test_what_is_wrong_with_the_only_export_is_told_where_a_valid_one_is_needed(diskhaul: Run, lab: Lab, tmp_path: Path) -> None:
    exported = diskhaul("--config", lab.config, "--json", "export", "web1", "--node", "beta").document["export"]
    (Path(exported["path"]) / "disk-0.chunks").write_bytes(b"")
    ran = diskhaul("--config", lab.config, "import", "web1", "--to-dir", tmp_path / "restored")
    assert ran.code == 2
    assert f"1 not valid, the newest {exported['export_id']} on beta: " in ran.err
    assert "disk-0.chunks has 0 bytes" in ran.err
