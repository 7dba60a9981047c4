"""The comparison of two saved runs of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benches.diff import Difference, Measured, differences, find, main, table


def saved(storage: Path, number: int, name: str, medians: dict[str, float], *, kernel: str = "6.1") -> Path:
    """A file as pytest-benchmark saves it, with what is read of it."""
    path = storage / f"Linux-CPython-3.11-64bit/{number:04}_{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    benchmarks = [
        {
            "fullname": fullname,
            "stats": {"median": median, "q1": median * 0.9, "q3": median * 1.1},
            "extra_info": {"kernel": kernel, "cpu": "A CPU", "bytes": 1},
        }
        for fullname, median in medians.items()
    ]
    path.write_text(json.dumps({"benchmarks": benchmarks}))
    return path


def test_a_ratio_above_one_means_that_the_second_run_is_faster() -> None:
    before = {"a": Measured(median=2.0, q1=1.9, q3=2.1)}
    after = {"a": Measured(median=1.0, q1=0.9, q3=1.1), "b": Measured(median=1.0, q1=1.0, q3=1.0)}
    (found,) = differences(before, after)
    assert (found.name, found.ratio, found.certain) == ("a", 2.0, True)


def test_a_difference_within_the_spread_is_not_certain() -> None:
    before = {"a": Measured(median=2.0, q1=1.5, q3=2.5)}
    after = {"a": Measured(median=1.6, q1=1.2, q3=1.8)}
    (found,) = differences(before, after)
    assert not found.certain
    assert table([found]).splitlines()[1].endswith("(1.25)")


def test_the_table_ends_with_the_geometric_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, 1, "before", {"x.py::a": 4.0, "x.py::b": 1.0, "x.py::gone": 1.0})
    saved(tmp_path, 2, "after", {"x.py::a": 1.0, "x.py::b": 1.0})
    assert main(["before", "after", "--storage", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:4]] == ["4.00", "(1.00)", "2.00"]
    assert lines[-1] == "1 benchmarks are in one of the runs only"


def test_the_newest_run_of_a_name_is_taken(tmp_path: Path) -> None:
    saved(tmp_path, 1, "fast", {"a": 1.0})
    newest = saved(tmp_path, 12, "fast", {"a": 2.0})
    saved(tmp_path, 13, "not_fast", {"a": 3.0})
    assert find("fast", tmp_path) == newest
    assert find(str(newest), tmp_path) == newest


def test_runs_of_two_machines_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, 1, "before", {"a": 1.0}, kernel="6.1")
    saved(tmp_path, 2, "after", {"a": 1.0}, kernel="6.12")
    assert main(["before", "after", "--storage", str(tmp_path)]) == 0
    assert "Not the same machine" in capsys.readouterr().out


def test_what_cannot_be_compared_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, 1, "before", {"a": 1.0})
    saved(tmp_path, 2, "other", {"b": 1.0})
    assert main(["before", "nothing", "--storage", str(tmp_path)]) == 2
    assert f"no saved run 'nothing' in {tmp_path}; there are: before, other" in capsys.readouterr().err
    assert main(["before", "other", "--storage", str(tmp_path)]) == 2
    assert "no benchmark in common" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text("{}")
    assert main(["before", str(tmp_path / "bad.json"), "--storage", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("seconds", "said"), [(2.0, "2.00 s"), (0.0021, "2.10 ms"), (3e-6, "3.00 us"), (4e-8, "40 ns")])
def test_times_have_the_unit_that_fits(seconds: float, said: str) -> None:
    line = table([Difference(name="a", before=seconds, after=1.0, certain=True)]).splitlines()[1]
    assert f" {said} " in line
