"""Commands at another cluster: what they answer, how they fail, and that nobody waits for them for ever."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diskhaul.cancellation import CancellationToken
from diskhaul.errors import InterruptedRunError
from diskhaul.model import OtherCluster
from diskhaul.remote.other_side import OtherSide, OtherSideError

LIMIT_S = 60.0
Side = Callable[[str], OtherSide]


@pytest.fixture
def side(tmp_path: Path) -> Side:
    """Another cluster whose command is a shell script."""

    def made(script: str) -> OtherSide:
        program = tmp_path / "run"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return OtherSide(OtherCluster(name="west", command=(str(program), "first")))

    return made


def alive(file: Path) -> bool:
    """Whether the process whose id is in `file` is there, other than as a zombie."""
    try:
        text = Path(f"/proc/{int(file.read_text())}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text[text.rindex(")") + 2] != "Z"


def gone(file: Path) -> bool:
    until = time.monotonic() + LIMIT_S
    while alive(file) and time.monotonic() < until:
        threading.Event().wait(0.02)
    return not alive(file)


def test_an_answer_is_the_document_on_standard_output_and_arguments_arrive(side: Side) -> None:
    asked = side('echo some progress >&2; printf \'{"said": "%s", "exit_code": 0}\' "$*"')
    assert asked.ask("guest", "status", "web1", limit_s=LIMIT_S)["said"] == "first --json --quiet guest status web1"


@pytest.mark.parametrize(
    "script",
    ["echo '{\"exit_code\": 4}'; exit 4", "echo '{\"exit_code\": 4}'", "echo '{\"exit_code\": false}'", "echo '{\"x\": 1}'"],
)
def test_what_does_not_say_that_all_went_well_is_no_answer(side: Side, script: str) -> None:
    with pytest.raises(OtherSideError, match="ended with exit code"):
        side(script).ask("import", "x", limit_s=LIMIT_S)


@pytest.mark.parametrize(
    ("script", "code", "problem"),
    [
        ("echo 'ssh: no route' >&2; exit 255", 255, "cluster west: guest start: ssh: no route"),
        ("exit 3", 3, "cluster west: guest start: ended with exit code 3"),
        ("echo no json", 0, "ended with exit code 0"),
        ("true", 0, "ended with exit code 0"),
        ("kill -KILL $$", -9, "ended with exit code -9"),
        (
            'echo \'{}\' | sed \'s/{}/{"error": {"problems": ["it is off", "and away"]}}/\'; exit 2',
            2,
            "cluster west: guest start: it is off; and away",
        ),
        ("printf 'evil \\033[2J text\\n' >&2; exit 1", 1, r"evil \x1b[2J text"),
    ],
)
def test_a_failure_says_what_the_command_said(side: Side, script: str, code: int, problem: str) -> None:
    with pytest.raises(OtherSideError) as failed:
        side(script).ask("guest", "start", "web1", limit_s=LIMIT_S)
    assert failed.value.code == code
    assert problem in str(failed.value)


def test_a_command_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(OtherSideError, match="cannot be run: No such file"):
        OtherSide(OtherCluster(name="west", command=(str(tmp_path / "none"),))).ask("x", limit_s=LIMIT_S)


def test_a_command_that_does_not_answer_is_ended_with_what_it_started(side: Side, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with pytest.raises(OtherSideError, match=r"cluster west does not answer within 0\.5 s"):
        side(f"sleep 1000 & echo $! > {file}.new; mv {file}.new {file}; wait").ask("guest", limit_s=0.5)
    assert gone(file)


def test_waiting_ends_when_the_run_is_cancelled(side: Side, tmp_path: Path) -> None:
    token, file = CancellationToken(), tmp_path / "pid"
    asked = side(f"sleep 1000 & echo $! > {file}.new; mv {file}.new {file}; wait")

    def cancel() -> None:
        until = time.monotonic() + LIMIT_S
        while not file.exists() and time.monotonic() < until:
            threading.Event().wait(0.02)
        token.cancel("enough")

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(InterruptedRunError, match="enough"):
        asked.ask("import", limit_s=LIMIT_S, token=token)
    thread.join()
    assert gone(file)


def test_what_a_command_leaves_behind_keeps_nobody_waiting(side: Side, tmp_path: Path) -> None:
    """As the shared connection of ssh does, which holds the output of the command that made it."""
    file = tmp_path / "pid"
    asked = side(f"setsid sleep 1000 & echo $! > {file}; echo '{{\"exit_code\": 0}}'")
    try:
        assert asked.ask("guest", limit_s=LIMIT_S) == {"exit_code": 0}
    finally:
        os.kill(int(file.read_text()), signal.SIGKILL)


def test_what_a_command_started_is_ended_with_it_also_when_it_has_ended_itself(side: Side, tmp_path: Path) -> None:
    """Its output is still open then, and what it started would go on."""
    file = tmp_path / "pid"
    reception = side(f"cat; sleep 1000 & echo $! > {file}.new; mv {file}.new {file}; exit 3").receive({"a": 1}, limit_s=LIMIT_S)
    with pytest.raises(OtherSideError, match="receive: ended with exit code 3"):
        reception.finish(LIMIT_S)
    assert gone(file)


def test_a_reception_whose_output_is_held_open_ends_with_it(side: Side, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    reception = side(f"cat; setsid sleep 1000 & echo $! > {file}; exit 0").receive({"a": 1}, limit_s=LIMIT_S)
    try:
        reception.finish(LIMIT_S)
    finally:
        os.kill(int(file.read_text()), signal.SIGKILL)


def test_an_answer_without_end_is_bounded(side: Side, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with pytest.raises(OtherSideError, match="cluster west answers more than 4194304 bytes"):
        side(f"echo $$ > {file}; exec cat /dev/zero").ask("guest", limit_s=LIMIT_S)
    assert gone(file)
    with pytest.raises(OtherSideError, match=r"cluster west: guest: .*the end"):
        side("head -c 20000000 /dev/zero | tr '\\0' 'x' >&2; echo >&2; echo the end >&2; exit 3").ask("guest", limit_s=LIMIT_S)


def test_a_reception_is_read_all_the_time_and_never_written_to_for_ever(side: Side, tmp_path: Path) -> None:
    many = "head -c 3000000 /dev/zero | tr '\\0' 'x'"
    reception = side(f"cat; {many} >&2; {many}; exit 0").receive({"a": 1}, limit_s=LIMIT_S)
    reception.finish(LIMIT_S)
    file = tmp_path / "pid"
    with pytest.raises(OtherSideError, match="does not answer within"):
        side(f"echo $$ > {file}; exec sleep 1000").receive({"x": "y" * 1_000_000}, limit_s=0.5)
    assert gone(file)


def test_a_reception_that_closes_its_output_and_goes_on_is_told(side: Side, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with pytest.raises(OtherSideError, match="does not answer within"):
        side(f"echo $$ > {file}; exec >&- 2>&-; exec sleep 1000").receive({"a": 1}, limit_s=0.5)
    assert gone(file)


def test_a_reception_gives_its_destination_and_then_its_end(side: Side) -> None:
    script = """read -r line; echo "$line" | sed 's/sent/came/'; exec >&-; sleep 0.2; exit 0"""
    reception = side(script).receive({"what": "sent"}, "--node", "gamma", limit_s=LIMIT_S)
    assert reception.destination == {"what": "came"}
    reception.finish(LIMIT_S)


@pytest.mark.parametrize(
    ("script", "code", "problem"),
    [
        ("cat > /dev/null; echo 'diskhaul: its HMAC is wrong' >&2; exit 2", 2, "cluster west: receive: its HMAC is wrong"),
        ("exit 255", 255, "cluster west: receive: ended with exit code 255"),
        ("cat > /dev/null; echo nonsense; sleep 1000", None, "its destination is no JSON document"),
    ],
)
def test_a_reception_that_does_not_begin_says_why(side: Side, script: str, code: int | None, problem: str) -> None:
    with pytest.raises(OtherSideError) as failed:
        side(script).receive({"x": json.dumps("y" * 100_000)}, limit_s=LIMIT_S)
    assert failed.value.code == code
    assert problem in str(failed.value)


def test_a_reception_that_says_nothing_is_ended(side: Side, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with pytest.raises(OtherSideError, match="does not answer within"):
        side(f"echo $$ > {file}; cat > /dev/null; exec sleep 1000").receive({}, limit_s=0.5)
    assert gone(file)


def test_a_reception_that_fails_or_does_not_end_is_told(side: Side, tmp_path: Path) -> None:
    reception = side("cat; echo 'diskhaul: the source has given up' >&2; exit 3").receive({"a": 1}, limit_s=LIMIT_S)
    with pytest.raises(OtherSideError, match="cluster west: receive: the source has given up"):
        reception.finish(LIMIT_S)
    file = tmp_path / "pid"
    reception = side(f"echo $$ > {file}; cat; exec sleep 1000").receive({"a": 1}, limit_s=LIMIT_S)
    with pytest.raises(OtherSideError, match="its reception does not end"):
        reception.finish(0.2)
    assert gone(file)
    reception.stop()  # once more does no harm
