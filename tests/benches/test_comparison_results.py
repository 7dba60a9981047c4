"""Ratios, rows and tables of the comparison with other programs, and what is made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from benches.comparison import report
from benches.comparison.errors import ComparisonError
from benches.comparison.report import Report
from benches.comparison.results import FASTEST, Entry, Run, paired_ratio, tables
from benches.comparison.running import Usage


def usage(wall_s: float) -> Usage:
    return Usage(wall_s=wall_s, user_s=wall_s / 2, system_s=wall_s / 4, peak=64 << 20)


def run(group: str, name: str, number: int, wall_s: float, *, cache: str = "hot", sync_s: float | None = None) -> Run:
    durable = None if sync_s is None else usage(wall_s).followed_by(usage(sync_s))
    return Run(
        group=group,
        name=name,
        cache=cache,
        round=number,
        usage=usage(wall_s),
        durable=durable,
        apparent=5 << 20,
        allocated=3 << 20,
    )


def entry(group: str, name: str, versus: str, *, own: bool = False) -> Entry:
    return Entry(group=group, name=name, label=f"the {name}", versus=versus, own=own)


EXPORTS = [entry("compressed", "diskhaul", "zstd-1", own=True), entry("compressed", "zstd-1", "zstd-1")]


def test_a_ratio_pairs_runs_of_the_same_round_so_a_machine_that_slows_down_does_not_change_it() -> None:
    reference = [(1, 10.0), (2, 20.0), (3, 40.0)]
    twice_as_fast = [(3, 20.0), (1, 5.0), (2, 10.0)]
    assert paired_ratio(reference, twice_as_fast) == 2.0
    assert paired_ratio(reference, [(1, 5.0), (2, 4.0), (3, 40.0)]) == 2.0  # of 2, 5 and 1


def test_rounds_that_only_one_of_two_has_do_not_count() -> None:
    assert paired_ratio([(1, 10.0), (2, 1.0)], [(1, 5.0), (3, 100.0)]) == 2.0
    assert paired_ratio([(1, 10.0)], [(2, 5.0)]) is None
    assert paired_ratio([], [(2, 5.0)]) is None


def test_a_row_has_medians_of_times_and_the_largest_memory() -> None:
    runs = [run("compressed", "zstd-1", number, wall) for number, wall in enumerate((3.0, 1.0, 2.0), start=1)]
    (table,) = tables(runs, EXPORTS)
    (row,) = table.rows
    assert (row.wall_s, row.fastest_s, row.slowest_s, row.rounds) == (2.0, 1.0, 3.0, 3)
    assert row.cpu_s == 1.5
    assert row.ratio == 1.0
    assert (row.peak, row.apparent, row.allocated) == (64 << 20, 5 << 20, 3 << 20)


def test_a_row_whose_reference_did_not_run_has_no_ratio() -> None:
    (table,) = tables([run("compressed", "diskhaul", 1, 2.0)], EXPORTS)
    assert table.rows[0].ratio is None
    assert "-" in report.text(made_report([run("compressed", "diskhaul", 1, 2.0)], EXPORTS))


def test_the_fastest_other_is_never_diskhaul_itself() -> None:
    entries = [
        entry("uncompressed", "diskhaul", FASTEST, own=True),
        entry("uncompressed", "slow", FASTEST),
        entry("uncompressed", "quick", FASTEST),
    ]
    runs = [run("uncompressed", name, 1, wall) for name, wall in (("diskhaul", 1.0), ("slow", 9.0), ("quick", 3.0))]
    (table,) = tables(runs, entries)
    assert [(row.name, row.versus, row.ratio) for row in table.rows] == [
        ("diskhaul", "quick", 3.0),
        ("slow", "quick", pytest.approx(1 / 3)),
        ("quick", "quick", 1.0),
    ]


def test_cold_and_hot_and_runs_with_an_fsync_have_tables_of_their_own() -> None:
    runs = [
        run("compressed", name, 1, wall, cache=cache, sync_s=sync_s)
        for cache in ("hot", "cold")
        for name, wall, sync_s in (("diskhaul", 2.0, 0.0), ("zstd-1", 3.0, 1.0))
    ]
    found = tables(runs, EXPORTS)
    assert [(table.cache, table.durable) for table in found] == [("cold", False), ("cold", True), ("hot", False), ("hot", True)]
    assert [table.rows[0].ratio for table in found] == [1.5, 2.0, 1.5, 2.0]
    assert [table.rows[1].cpu_s for table in found] == [2.25, 3.0, 2.25, 3.0]


def test_where_only_diskhaul_runs_there_is_no_second_table_with_an_fsync() -> None:
    entries = [entry("shape", "one-disk", "one-disk", own=True)]
    assert len(tables([run("shape", "one-disk", 1, 2.0, sync_s=0.0)], entries)) == 1


def made_report(runs: list[Run], entries: list[Entry]) -> Report:
    return Report(
        machine={
            "cpu": "A CPU",
            "cpus": 2,
            "memory_bytes": 8 << 30,
            "kernel": "6.1",
            "architecture": "x86_64",
            "filesystem": "ext4 (rw)",
            "python": "3.11.2",
        },
        versions={"zstd": "1.5.4"},
        disk={"path": "/d", "size": 5 << 30, "data": 4 << 30},
        settings={"rounds": 1, "caches": ["hot"], "durable": True, "trial": False},
        entries=entries,
        commands={"compressed/zstd-1": ["zstd -1 disk"]},
        runs=runs,
        left_out=["uncompressed/bmaptool: bmaptool not installed"],
        failed=["compressed/liar: differs at offset 3"],
    )


RUNS = [run("compressed", "diskhaul", 1, 2.0, sync_s=0.0), run("compressed", "zstd-1", 1, 3.0, sync_s=0.5)]


def test_the_text_names_what_was_measured_who_is_missing_and_who_failed() -> None:
    said = report.text(made_report(RUNS, EXPORTS))
    assert "A CPU, 2 CPUs, 8.0 GiB of memory, Linux 6.1" in said
    assert "zstd 1.5.4" in said
    assert "left out: uncompressed/bmaptool: bmaptool not installed" in said
    assert "FAILED: compressed/liar: differs at offset 3" in said
    lines = [line.split() for line in said.splitlines() if line.startswith("the ")]
    assert lines[0] == ["the", "diskhaul", "2.00", "(2.00-2.00)", "1.50", "zstd-1", "1.50", "64", "5", "3"]
    assert len(lines) == 4


def test_the_tables_for_the_readme_are_markdown_tables() -> None:
    said = report.readme(made_report(RUNS, EXPORTS))
    rows = [line for line in said.splitlines() if line.startswith("|")]
    assert len(rows) == 2 * (2 + 2)
    assert {row.count("|") for row in rows} == {7}
    assert "times as fast as `the zstd-1`" in rows[0]
    assert "| **the diskhaul** | 2.00 (2.00-2.00) | 1.50 |" in said
    assert "—" not in said


def test_results_can_be_saved_and_shown_again(tmp_path: Path) -> None:
    before = made_report(RUNS, EXPORTS)
    report.save(before, tmp_path / "results.json")
    after = report.load(tmp_path / "results.json")
    assert after == before
    assert report.text(after) == report.text(before)
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["tables"][0]["rows"][0]["ratio"] == 1.5
    assert document["commands"] == {"compressed/zstd-1": ["zstd -1 disk"]}
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_results_that_were_measured_bit_by_bit_are_put_together_and_paired_each_with_its_own() -> None:
    first = made_report([run("compressed", "diskhaul", 1, 1.0), run("compressed", "zstd-1", 1, 2.0)], EXPORTS)
    slower = made_report([run("compressed", "diskhaul", 1, 10.0), run("compressed", "zstd-1", 1, 30.0)], EXPORTS)
    restore = [entry("restore", "diskhaul", "zstd-dc", own=True)]
    other = made_report([run("restore", "diskhaul", 1, 5.0)], restore)
    both = report.merge([other, first, slower])
    assert both.settings["rounds"] == 2
    assert [(table.group, [row.rounds for row in table.rows]) for table in both.tables] == [
        ("compressed", [2, 2]),
        ("restore", [1]),
    ]
    assert both.tables[0].rows[0].ratio == 2.5
    assert both.failed == first.failed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"machine": {"cpu": "Another"}}, "another machine or another disk"),
        ({"disk": {"path": "/e"}}, "another machine or another disk"),
        ({"versions": {"zstd": "1.5.5"}}, "another version than the first: zstd"),
    ],
)
def test_results_that_do_not_belong_together_are_refused(change: dict[str, dict[str, str]], words: str) -> None:
    one = made_report(RUNS, EXPORTS)
    with pytest.raises(ComparisonError, match=words):
        report.merge([one, replace(one, **change)])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"tables": [], "runs": [{}], "entries": []}'])
def test_a_file_that_holds_something_else_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ComparisonError, match="holds no results of this program") as refused:
        report.load(tmp_path / "results.json")
    assert "\n" not in str(refused.value)


def test_results_are_drawn_or_it_is_said_why_not(tmp_path: Path) -> None:
    reason = report.chart(made_report(RUNS, EXPORTS), tmp_path / "chart.png")
    if reason:
        assert reason == "no chart: matplotlib is not installed (the extra 'bench' has it)"
    else:
        assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
