from __future__ import annotations

import io

import pytest

from diskhaul.cli.progress import BarReporter, LineReporter, Reporter, StageReporter, reporter
from diskhaul.events import DiskProgress, ExportRemoved, GuestChanged, LockWaiting, StageFinished, StageStarted, Warned

MIB = 1 << 20


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class ClosedTerminal(Terminal):
    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def progress(done: int, *, disk: int = 0, total: int = 1000 * MIB, finished: bool = False) -> DiskProgress:
    return DiskProgress(disk=disk, activity="send", total=total, done=done, read=done, written=done // 2, finished=finished)


def test_stages_waits_guests_and_removals_are_one_line_each() -> None:
    out = io.StringIO()
    tell = StageReporter(out)
    tell(StageStarted(stage="stop", detail="web1.example.com"))
    tell(StageFinished(stage="stop", ok=True, seconds=1))
    tell(StageStarted(stage="publish"))
    tell(StageFinished(stage="publish", ok=False, seconds=2))
    tell(LockWaiting(lock="instance/web1", holder="pid 7 on alpha"))
    tell(GuestChanged(instance="web1", change="started"))
    tell(ExportRemoved(node="beta", instance="web1", export_id="ID", reason="superseded"))
    tell(progress(5 * MIB))
    assert out.getvalue().splitlines() == [
        "diskhaul: stop: web1.example.com",
        "diskhaul: publish",
        "diskhaul: publish: failed after 2.0 s",
        "diskhaul: waiting for lock instance/web1, held by pid 7 on alpha",
        "diskhaul: web1: started",
        "diskhaul: removed web1@ID on beta: superseded",
    ]


def test_quiet_tells_warnings_only_and_remembers_them() -> None:
    out = io.StringIO()
    tell = Reporter(out)
    tell(StageStarted(stage="stop"))
    tell(progress(0))
    tell(Warned(message="a node is away"))
    assert out.getvalue() == "diskhaul: warning: a node is away\n"
    assert tell.warned == {"a node is away"}


def test_without_a_terminal_each_disk_is_told_of_every_few_seconds_with_rate_and_time_left() -> None:
    out, clock = io.StringIO(), Clock()
    tell = LineReporter(out, clock=clock)
    tell(progress(0))
    tell(progress(0, disk=1))
    for second in range(1, 11):
        clock.now = 100.0 + second
        tell(progress(second * 50 * MIB))
    tell(progress(1000 * MIB, finished=True))
    assert out.getvalue().splitlines() == [
        "diskhaul: sending disk 0: 25% of 1000.0 MiB, 50.0 MiB/s, about 15.0 s left",
        "diskhaul: sending disk 0: 50% of 1000.0 MiB, 50.0 MiB/s, about 10.0 s left",
        "diskhaul: sending disk 0: all of 1000.0 MiB (read 1000.0 MiB, wrote 500.0 MiB)",
    ]


def test_a_stalled_or_empty_disk_divides_by_nothing() -> None:
    out, clock = io.StringIO(), Clock()
    tell = LineReporter(out, clock=clock)
    tell(progress(0))
    tell(progress(0, disk=1, total=0))
    clock.now += 60
    tell(progress(0))
    tell(progress(0, disk=1, total=0))
    tell(progress(0, disk=1, total=0, finished=True))
    assert out.getvalue().splitlines() == [
        "diskhaul: sending disk 0: 0% of 1000.0 MiB, 0 B/s",
        "diskhaul: sending disk 1: empty, 0 B/s",
        "diskhaul: sending disk 1: all of 0 B (read 0 B, wrote 0 B)",
    ]


def test_a_terminal_gets_a_bar_per_disk_and_lines_above(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    out = Terminal()
    with reporter(quiet=False, bars=True, stream=out) as tell:
        assert isinstance(tell, BarReporter)
        tell(StageStarted(stage="send"))
        tell(progress(500 * MIB))
        tell(progress(250 * MIB, disk=1))
        tell(Warned(message="[bold]not markup[/bold] \x1b[2J"))
        tell(progress(1000 * MIB, finished=True))
        tell(progress(100 * MIB))
        tell(progress(0, disk=2, total=0, finished=True))
    shown = out.getvalue()
    assert "sending disk 0" in shown
    assert "sending disk 1" in shown
    assert " 25%" in shown
    assert "100 bytes" not in shown, "the size is known from the start"
    assert r"diskhaul: warning: [bold]not markup[/bold] \x1b[2J" in shown
    assert "\x1b[?25h" in shown, "the cursor is shown again"


def test_bars_are_for_terminals_that_can_and_for_people_who_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert type(reporter(quiet=False, bars=True, stream=io.StringIO())) is LineReporter
    assert type(reporter(quiet=False, bars=False, stream=Terminal())) is StageReporter
    assert type(reporter(quiet=True, bars=True, stream=Terminal())) is Reporter
    monkeypatch.setenv("TERM", "dumb")
    assert type(reporter(quiet=False, bars=True, stream=Terminal())) is LineReporter


def test_a_terminal_that_went_away_silences_progress_and_disturbs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for tell in (Reporter(ClosedTerminal()), LineReporter(ClosedTerminal()), BarReporter(ClosedTerminal())):
        tell(Warned(message="x"))
        tell(progress(1))
        tell.close()
    stream = io.StringIO()
    closed = LineReporter(stream)
    stream.close()
    closed(Warned(message="x"))
