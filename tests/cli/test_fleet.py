"""``diskhaul fleet export`` as people and programs see it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from diskhaul import FleetMember, FleetResult
from diskhaul.cli.fleet_progress import FleetLines, FleetTable, fleet_reporter
from diskhaul.cli.progress import Reporter
from diskhaul.cli.render_fleet import fleet_text
from diskhaul.events import DiskProgress, FleetStarted, MemberEvent, MemberFinished, MemberStarted, StageStarted, Warned

from .conftest import Lab, Ran

Run = Callable[..., Ran]
SMALL = ("--chunk-size", "64K")


def test_every_problem_of_a_command_is_told_at_once_in_its_own_words_and_nothing_is_touched(diskhaul: Run, lab: Lab) -> None:
    before = lab.state()
    arguments = ("web9", "x*", "--tag", "none", "--to", "nowhere", "--per-source", "0", "--backoff", "nan", "--retries", "-1")
    ran = diskhaul("--config", lab.config, "fleet", "export", *arguments, "--long-sleep", "--no-shutdown")
    assert ran.code == 2
    assert ran.out == ""
    for part in (
        "--backoff",
        "--per-source: must be",
        "--retries: must be",
        "'web9' is unknown",
        "'x*' fits no instance",
        "'none' is had by no instance",
        "node 'nowhere' is unknown",
        "--long-sleep: contradicts --no-shutdown",
    ):
        assert sum(part in line for line in ran.problems) == 1, (part, ran.err)
    assert lab.state() == before


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "no instances are chosen"),
        (("--all",), "--to: is missing"),
        (("--all", "web1", "--to", "beta"), "--all: chooses every instance"),
        (("--all", "--to", "drained"), "node drained is drained"),
        (("--all", "--to", "beta", "--nodes", "alpha"), "--nodes: is for round-robin and most-free"),
        (("--all", "--to", "round-robin", "--nodes", "alpha,drained"), "node drained is drained"),
        (("--resume",), "--resume: no plan is unfinished"),
        (("--resume", "--plan", "x"), "plan x: there is no such plan"),
        (("--resume", "--all"), "--resume: goes on with what was asked before"),
        (("--resume", "--compress", "none"), "--resume: goes on with what was asked before"),
        (("--all", "--to", "beta", "--plan", "../x"), "plan name '../x' is not allowed"),
    ],
)
def test_what_makes_no_sense_is_refused(diskhaul: Run, lab: Lab, arguments: tuple[str, ...], problem: str) -> None:
    ran = diskhaul("--config", lab.config, "fleet", "export", *arguments)
    assert ran.code == 2
    assert problem in ran.err
    assert not list(lab.path.glob("*/*/*Z-*"))


def test_exports_are_made_told_and_reported_and_the_worst_gives_the_exit_code(diskhaul: Run, lab: Lab, tmp_path: Path) -> None:
    events = tmp_path / "events"
    ran = diskhaul("--config", lab.config, "--events", events, "fleet", "export", "--all", "--to", "beta", *SMALL)
    assert ran.code == 2  # one has no disks
    assert "diskhaul: web1.example.com: alpha -> beta" in ran.problems
    assert sum("exported in" in line for line in ran.problems) == 3
    assert "Failed:\n  instance" in ran.out
    assert "empty.example.com has no disks" in ran.out
    assert "correct what it says, then resume" in ran.out
    assert "exported  3 of 4" in ran.out
    assert "Go on with: diskhaul fleet export --resume --plan fleet-" in ran.out
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    of_web1 = {line["event"] for line in lines if line.get("instance") == "web1.example.com"}
    assert {"member-started", "stage-started", "disk-progress", "operation-finished", "member-finished"} <= of_web1
    assert lines[-1]["event"] == "operation-finished"
    assert (lines[-1]["operation"], lines[-1]["exit_code"]) == ("fleet export", 2)


def test_json_is_one_document_and_nothing_else(diskhaul: Run, lab: Lab) -> None:
    ran = diskhaul("--config", lab.config, "--json", "--quiet", "fleet", "export", "web*", "--to", "round-robin", *SMALL)
    assert ran.code == 0
    document = ran.document
    assert (document["exit_code"], document["done"], document["failed"], document["pending"]) == (0, 3, 0, 0)
    assert {member["target"] for member in document["members"]} == {"beta"}
    assert ran.err == ""


def test_a_dry_run_says_who_would_go_where_and_changes_nothing(diskhaul: Run, lab: Lab) -> None:
    before = lab.state()
    ran = diskhaul("--config", lab.config, "fleet", "export", "web1", "web2.o*", "--to", "most-free", "--dry-run")
    assert ran.code == 0
    assert "Would export 2 instances" in ran.out
    assert "beta" in ran.out
    assert "Dry run: nothing was changed" in ran.out
    assert lab.state() == before
    assert not (lab.path / "state").exists()


def test_a_plan_that_is_at_its_end_is_no_hindrance_and_can_be_resumed_in_vain(diskhaul: Run, lab: Lab) -> None:
    for _ in range(2):
        assert diskhaul("--config", lab.config, "fleet", "export", "web1", "--to", "beta", "--plan", "p", *SMALL).code == 0
    ran = diskhaul("--config", lab.config, "--json", "fleet", "export", "--resume", "--plan", "p")
    assert ran.code == 0
    assert [member["earlier"] for member in ran.document["members"]] == [True]


def test_the_report_names_failures_reasons_and_remedies_first_and_escapes_what_others_wrote() -> None:
    done = FleetMember(instance="web1", source="alpha", target="beta", state="done", size=1 << 20, seconds=2.0, attempts=2)
    failed = FleetMember(
        instance="web2",
        source="alpha",
        target="beta",
        state="failed",
        exit_code=5,
        attempts=3,
        error="lock\x1b[2J held",
        remedy="resume once the other run is over",
    )
    text = fleet_text(FleetResult(run_id="", plan="p", members=(done, failed, FleetMember(instance="web3", source="alpha"))))
    assert text.index("web2") < text.index("exported")
    assert "\x1b" not in text
    for part in ("resume once the other run is over", "1 of 3", "still to do", "tried again", "Slowest:", "--resume --plan p"):
        assert part in text


def member(event: object) -> MemberEvent:
    return MemberEvent(instance="web1", source="alpha", target="beta", event=event)  # type: ignore[arg-type]  # a test gives events


def started(instance: str = "web1", attempt: int = 1) -> MemberStarted:
    return MemberStarted(instance=instance, source="alpha", target="beta", attempt=attempt, size=1 << 20)


def finished(state: str, **more: object) -> MemberFinished:
    fields = {"instance": "web1", "source": "alpha", "target": "beta", "attempt": 1, "exit_code": 0, "seconds": 1.5} | more
    return MemberFinished(state=state, **fields)  # type: ignore[arg-type]  # the fields are right


def test_lines_tell_starts_ends_retries_and_warnings_with_their_instance() -> None:
    stream = io.StringIO()
    lines = FleetLines(stream)
    for event in (
        FleetStarted(plan="p", total=3, done=1),
        started(),
        member(Warned(message="odd")),
        member(StageStarted(stage="send")),
        finished("retry", error="node beta: gone", retry_in_s=30.0),
        started(attempt=2),
        finished("done"),
    ):
        lines(event)
    assert stream.getvalue().splitlines() == [
        "diskhaul: plan p: 3 instances, 1 of them exported already",
        "diskhaul: web1: alpha -> beta",
        "diskhaul: web1: warning: odd",
        "diskhaul: web1: failed, and is tried again in 30.0 s: node beta: gone",
        "diskhaul: web1: alpha -> beta, attempt 2",
        "diskhaul: web1: exported in 1.5 s (2 of 3)",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_table_of_what_runs_with_totals(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    now = [100.0]
    table = FleetTable(terminal, clock=lambda: now[0])
    table(FleetStarted(plan="p", total=5, done=1))
    table(started("web1"))
    table(started("web2"))
    table(member(StageStarted(stage="send")))
    progress = {"disk": 0, "activity": "send", "total": 100 << 20, "read": 0, "written": 0}
    table(member(DiskProgress(**progress, done=0)))  # type: ignore[arg-type]  # the fields are right
    now[0] = 110.0
    table(member(DiskProgress(**progress, done=25 << 20)))  # type: ignore[arg-type]  # the fields are right
    console = Console(width=120, file=io.StringIO())
    console.print(table.table())
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    (row,) = (line.split() for line in shown.splitlines() if line.startswith("web1"))
    assert row == ["web1", "alpha", "beta", "send", "25%", "2.5", "MiB/s", "30.0", "s"]
    assert "2 running, 2 waiting, 1 done, 0 failed of 5; 25.0 MiB sent, 2.5 MiB/s" in shown
    table(finished("failed", error="no room"))
    table(finished("done", instance="web2"))
    table.close()
    assert "diskhaul: web1: failed: no room" in terminal.getvalue()
    assert (table.done, table.failed) == (2, 1)


def test_who_asks_for_quiet_gets_warnings_only_and_what_is_no_terminal_gets_lines() -> None:
    quiet = fleet_reporter(quiet=True, bars=True, stream=Terminal())
    assert isinstance(quiet, Reporter)
    assert not isinstance(quiet, FleetLines)
    assert type(fleet_reporter(quiet=False, bars=True, stream=io.StringIO())) is FleetLines
