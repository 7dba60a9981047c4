from __future__ import annotations

from pathlib import Path

import pytest

from diskhaul.errors import RefusedError, StorageError
from diskhaul.operations.tuning.trial_log import TrialLog, log_path, read_log
from diskhaul.records import TuneTrial

ABOUT = {"aim": "fastest", "sample_limit": 1}


def trial(number: int) -> TuneTrial:
    return TuneTrial(number=number, phase="search", settings={"threads": number}, seconds=1.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "profile.toml.trials"


def begun(path: Path, count: int) -> None:
    log = TrialLog.begin(path, ABOUT)
    for number in range(1, count + 1):
        log.add(trial(number))
    log.close()


def test_the_log_lies_beside_the_profile() -> None:
    assert log_path(Path("/a/profile.toml")) == Path("/a/profile.toml.trials")


def test_what_was_written_is_read_and_can_be_gone_on_with(path: Path) -> None:
    begun(path, 2)
    assert read_log(path) == (ABOUT, [trial(1), trial(2)])
    log = TrialLog.resume(path)
    log.add(trial(3))
    log.close()
    assert read_log(path)[1] == [trial(1), trial(2), trial(3)]


def test_each_trial_can_be_read_as_soon_as_it_was_added(path: Path) -> None:
    log = TrialLog.begin(path, ABOUT)
    log.add(trial(1))
    assert read_log(path)[1] == [trial(1)]
    log.close()


def test_a_new_run_begins_a_new_log(path: Path) -> None:
    begun(path, 3)
    begun(path, 1)
    assert len(read_log(path)[1]) == 1


def test_a_line_that_was_cut_short_is_as_if_it_had_not_been_written(path: Path) -> None:
    begun(path, 2)
    path.write_bytes(path.read_bytes()[:-5])
    assert read_log(path)[1] == [trial(1)]
    log = TrialLog.resume(path)
    log.add(trial(7))
    log.close()
    assert read_log(path)[1] == [trial(1), trial(7)]


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense\n", b"[]\n", b'{"format": 99, "about": {}}\n', b'{"format": 1, "about": {}}\n{"unknown": 1}\n', b"\xff\n"],
)
def test_what_is_no_log_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(RefusedError, match=r"no log of a tuning run.*--resume"):
        read_log(path)


def test_a_missing_log_is_refused(path: Path) -> None:
    with pytest.raises(RefusedError, match="nothing to resume"):
        read_log(path)


def test_a_log_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        TrialLog.begin(tmp_path / "nowhere" / "log", ABOUT)
