from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from diskhaul.cli.event_log import EventLog
from diskhaul.errors import RefusedError
from diskhaul.events import DiskProgress, StageStarted, Warned


def test_events_are_appended_as_they_happen_to_a_file_of_mode_0600(tmp_path: Path) -> None:
    path = tmp_path / "events"
    before = os.umask(0)
    try:
        log = EventLog(path)
    finally:
        os.umask(before)
    log(StageStarted(run_id="r", stage="stop", detail="web1"))
    assert json.loads(path.read_text())["stage"] == "stop", "not buffered"
    log(Warned(message="bad \x1b[1m\n\udcff"))
    log.close()
    again = EventLog(path)
    again(DiskProgress(disk=0, activity="send", total=10, done=5, read=5, written=1))
    again.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lines = path.read_bytes().split(b"\n")
    assert [json.loads(line)["event"] for line in lines[:-1]] == ["stage-started", "warning", "disk-progress"]
    assert json.loads(lines[1])["message"] == "bad \x1b[1m\n\udcff"
    assert b"\x1b" not in path.read_bytes()


def test_a_place_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "events"):
        with pytest.raises(RefusedError, match=r"^--events /.*: (Is a directory|No such file or directory)$") as caught:
            EventLog(path)
        assert len(caught.value.problems) == 1


def test_a_pipe_that_nobody_reads_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RefusedError, match="nobody reads this pipe"):
        EventLog(tmp_path / "pipe")


def test_a_reader_that_stopped_reading_loses_events_and_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    log = EventLog(tmp_path / "pipe")
    for number in range(2000):
        log(Warned(message=f"{number} " + "x" * 100))
    assert log.lost > 0
    assert log.problem
    lost = log.lost
    received = b""
    while True:
        try:
            received += os.read(reader, 1 << 16)
        except BlockingIOError:
            break
    assert len([json.loads(line) for line in received.splitlines()]) == 2000 - lost, "what arrived is whole lines"
    log(Warned(message="heard again"))
    assert b"heard again" in os.read(reader, 1 << 16)
    os.close(reader)
    log(Warned(message="nobody is there"))
    assert log.lost == lost + 1
    log.close()


def test_a_line_that_only_half_fits_into_a_pipe_is_completed_before_the_next(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    log = EventLog(tmp_path / "pipe")
    log(Warned(message="a" * 200_000))  # a pipe takes 64 KiB
    received = b""
    while len(received) < 150_000:
        received += os.read(reader, 1 << 20)
        log(Warned(message="b"))
    received += os.read(reader, 1 << 20)
    log.close()
    os.close(reader)
    messages = [json.loads(line)["message"] for line in received.splitlines()]
    assert messages[0] == "a" * 200_000
    assert set(messages[1:]) == {"b"}
    assert len(messages) > 1


def test_a_full_disk_is_told_and_does_not_raise() -> None:
    log = EventLog(Path("/dev/full"))
    log(Warned(message="x"))
    log(Warned(message="x"))
    log.close()
    assert (log.lost, log.problem) == (2, "No space left on device")
