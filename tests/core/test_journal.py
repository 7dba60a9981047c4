"""The journal: notes that outlive their process, and go when what they are about is settled."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from diskhaul.errors import OperationFailedError, RefusedError
from diskhaul.journal import Journal

WEB, DB = "web1.example.com", "db1.example.com"


def test_a_new_journal_has_no_run_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    assert journal.unfinished() == []
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "state" / "journal.sqlite").stat().st_mode) == 0o600


def test_a_run_is_unfinished_until_it_is_finished(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    journal.begin("run-1", "export", WEB)
    (run,) = journal.unfinished()
    assert (run.run_id, run.operation, run.instance, run.notes) == ("run-1", "export", WEB, ())
    assert run.started > 0
    journal.finish("run-1")
    assert journal.unfinished() == []
    journal.finish("run-1")
    journal.finish("never-begun")


def test_a_run_with_notes_stays_until_they_are_struck(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    journal.begin("run-1", "export", WEB)
    guest = journal.note("run-1", "guest", {"instance": WEB})
    snapshot = journal.note("run-1", "snapshot", {"reference": "/x/ö\n\"'", "list": [1, None, {"a": True}]})
    journal.finish("run-1")
    (run,) = journal.unfinished()
    assert [(note.note_id, note.kind) for note in run.notes] == [(guest, "guest"), (snapshot, "snapshot")]
    assert run.notes[1].data == {"reference": "/x/ö\n\"'", "list": [1, None, {"a": True}]}
    journal.strike(guest)
    journal.strike(guest)
    journal.finish("run-1")
    (run,) = journal.unfinished()
    assert [note.note_id for note in run.notes] == [snapshot]
    journal.strike(snapshot)
    journal.finish("run-1")
    assert journal.unfinished() == []


def test_runs_are_told_oldest_first_and_by_instance(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    for number, instance in enumerate([WEB, DB, WEB]):
        journal.begin(f"run-{number}", "export", instance)
        journal.note(f"run-{number}", "partial", {"number": number})
    assert [run.run_id for run in journal.unfinished()] == ["run-0", "run-1", "run-2"]
    assert [run.run_id for run in journal.unfinished(WEB)] == ["run-0", "run-2"]
    assert [note.data for note in journal.unfinished(DB)[0].notes] == [{"number": 1}]
    assert journal.unfinished("nobody") == []


def test_a_note_of_an_unknown_run_and_a_run_begun_twice_are_errors(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    with pytest.raises(OperationFailedError, match="another one has recovered it: nothing more is begun"):
        journal.note("never-begun", "guest", {})
    journal.begin("run-1", "export", WEB)
    with pytest.raises(sqlite3.IntegrityError):
        journal.begin("run-1", "export", WEB)


def test_a_note_number_is_not_given_again_to_a_note_that_is_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    journal.begin("run-1", "export", WEB)
    numbers = [journal.note("run-1", "guest", {}) for _ in range(5)]
    journal.strike(numbers[1])
    assert journal.note("run-1", "guest", {}) not in {*numbers} - {numbers[1]}


def test_a_second_journal_on_the_same_directory_sees_the_same(tmp_path: Path) -> None:
    Journal(tmp_path / "state").begin("run-1", "export", WEB)
    again = Journal(tmp_path / "state")
    assert [run.run_id for run in again.unfinished()] == ["run-1"]


def test_threads_may_write_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            journal.begin(f"run-{number}", "export", WEB)
            notes = [journal.note(f"run-{number}", "snapshot", {"index": index}) for index in range(5)]
            journal.strike(notes[0])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [[note.data["index"] for note in run.notes] for run in journal.unfinished()] == [[1, 2, 3, 4]] * 6


PROGRAM = """
import os, signal, sys
from pathlib import Path
from diskhaul.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.begin("run-1", "export", "web1.example.com")
done = journal.note("run-1", "snapshot", {"reference": "gone"})
journal.strike(done)
journal.note("run-1", "guest", {"instance": "web1.example.com"})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_had_noted_is_found(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "state")], env=environment)
    assert ended.returncode == -signal.SIGKILL
    (run,) = Journal(tmp_path / "state").unfinished()
    assert [(note.kind, note.data) for note in run.notes] == [("guest", {"instance": WEB})]


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    before = len(os.listdir("/proc/self/fd"))
    journal.begin("run-1", "export", WEB)
    journal.unfinished()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["garbage", "directory", "link", "parent"])
def test_a_journal_that_cannot_be_used_refuses_in_one_line(tmp_path: Path, kind: str) -> None:
    state = tmp_path / "state"
    if kind == "parent":
        state = tmp_path / "missing" / "state"
    else:
        state.mkdir()
        file = state / "journal.sqlite"
        if kind == "garbage":
            file.write_bytes(b"this is no database, and was never one" * 100)
        elif kind == "directory":
            file.mkdir()
        else:
            (tmp_path / "elsewhere").write_bytes(b"")
            file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="the journal cannot be written") as caught:
        Journal(state)
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)


def test_a_disk_that_fails_is_told_with_the_journal_s_name(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    journal.begin("run-1", "export", "web1")
    (tmp_path / "state" / "journal.sqlite").write_bytes(b"torn" * 5000)
    for use in (journal.unfinished, lambda: journal.note("run-1", "guest", {}), lambda: journal.finish("run-1")):
        with pytest.raises(OperationFailedError, match=r"/state/journal\.sqlite: could not be read or written: "):
            use()


def test_a_note_can_be_amended_and_found_until_it_is_struck(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    journal.begin("run-1", "export", WEB)
    note = journal.note("run-1", "guest", {"instance": WEB})
    assert journal.has(note)
    journal.amend(note, {"instance": WEB, "stopped": True})
    (run,) = journal.unfinished()
    assert run.notes[0].data == {"instance": WEB, "stopped": True}
    journal.strike(note)
    assert not journal.has(note)
    journal.amend(note, {"instance": DB})
    assert journal.unfinished()[0].notes == ()


def test_a_run_is_begun_with_its_first_note_or_not_at_all(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    with pytest.raises(sqlite3.IntegrityError, match="NOT NULL"):
        journal.begin_with("run-1", "removal", WEB, None, {"node": "beta"})  # type: ignore[arg-type]  # so that the note fails
    assert journal.unfinished() == [], "without its note it would be taken for a run with nothing to be done"
    note = journal.begin_with("run-1", "removal", WEB, "removing", {"node": "beta"})
    (run,) = journal.unfinished()
    assert [(each.note_id, each.kind, each.data) for each in run.notes] == [(note, "removing", {"node": "beta"})]
    with pytest.raises(sqlite3.IntegrityError):
        journal.begin_with("run-1", "removal", WEB, "removing", {"node": "gamma"})
    assert len(journal.unfinished()[0].notes) == 1


def test_a_link_that_leads_nowhere_is_not_followed_either(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "journal.sqlite").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match="is not a regular file"):
        Journal(tmp_path / "state")
    assert not (tmp_path / "elsewhere").exists()


def test_whether_there_is_a_journal_can_be_asked_without_making_one(tmp_path: Path) -> None:
    assert not Journal.is_in(tmp_path / "state")
    assert not (tmp_path / "state").exists()
    Journal(tmp_path / "state")
    assert Journal.is_in(tmp_path / "state")


OPENED = """
import sys
from pathlib import Path
opened = []
def look(event, arguments):
    if event == "open" and "journal.sqlite" in str(arguments[0]):
        opened.append(arguments[0])
sys.addaudithook(look)
from diskhaul.journal import Journal
for _ in range(2):
    journal = Journal(Path(sys.argv[1]))
    journal.begin_with(f"run-{_}", "export", "web1.example.com", "guest", {})
    journal.unfinished()
print(opened)
"""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_nobody_but_sqlite_opens_the_database_since_closing_it_would_drop_locks(tmp_path: Path) -> None:
    program = [sys.executable, "-c", OPENED, str(tmp_path / "state")]
    done = subprocess.run(program, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


WRITE_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0)
try:
    connection.execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError as error:
    print(error)
else:
    print("got it")
"""


def test_a_transaction_keeps_its_lock_while_other_threads_use_and_open_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "state")
    database = tmp_path / "state" / "journal.sqlite"

    def of_another_process() -> str:
        program = [sys.executable, "-c", WRITE_LOCK, str(database)]
        return subprocess.run(program, env=environment(), capture_output=True, text=True, check=True).stdout.strip()

    with journal._connection() as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert of_another_process() == "database is locked"
        thread = threading.Thread(target=lambda: (journal.unfinished(), Journal(tmp_path / "state").unfinished()))
        thread.start()
        thread.join()
        assert of_another_process() == "database is locked"
    assert of_another_process() == "got it"


BUSY = """
import sys, threading
from pathlib import Path
from diskhaul.journal import Journal
state, tag, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
failures = []

def work(thread):
    try:
        for number in range(rounds):
            journal, run = Journal(state), f"{tag}-{thread}-{number}"
            note = journal.begin_with(run, "export", tag, "guest", {"filling": "y" * 2000})
            kept = journal.note(run, "snapshot", {"thread": thread, "number": number})
            assert journal.has(note)
            journal.strike(note)
            journal.finish(run)
    except BaseException as error:
        failures.append(error)

threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit("; ".join(map(repr, failures)) or 0)
"""


def test_threads_of_several_processes_lose_nothing_and_meet_no_error(tmp_path: Path) -> None:
    rounds = 4
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", BUSY, str(tmp_path / "state"), tag, str(rounds)],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for tag in ("one", "two", "three")
    ]
    assert [(program.communicate()[1], program.returncode) for program in programs] == [("", 0)] * 3
    runs = Journal(tmp_path / "state").unfinished()
    assert len(runs) == 3 * 3 * rounds
    assert all([note.kind for note in run.notes] == ["snapshot"] for run in runs)
    database = sqlite3.connect(tmp_path / "state" / "journal.sqlite")
    try:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        database.close()
