from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from diskhaul.errors import RefusedError
from diskhaul.model import Disk
from diskhaul.operations.tuning.request import TuneRequest, expand_compressions, request_problems


def problems(**asked: Any) -> list[str]:
    return request_problems(TuneRequest(**({"target": Path("/"), "source": Disk(path=Path("/x"))} | asked)))


def test_ranges_of_levels_stand_for_each_level_but_zero() -> None:
    assert expand_compressions(["zstd:-2..2", "none", "gzip:1"]) == ("zstd:-2", "zstd:-1", "zstd:1", "zstd:2", "none", "gzip:1")
    assert expand_compressions([]) == ()


@pytest.mark.parametrize(
    "asked",
    [["zstd:3..1"], ["zstd:-500..1"], ["zstd:1", "zstd:1"], ["zstd", "zstd:1..2"], ["lzma"], ["gzip:8..12"], ["zstd:a..b"]],
)
def test_compressions_that_cannot_be_searched_are_refused(asked: list[str]) -> None:
    with pytest.raises(RefusedError, match=r"^compress_range: "):
        expand_compressions(asked)


def test_a_plain_request_is_fine() -> None:
    assert problems() == []
    assert problems(aim="smallest", within_ratio=1.5, fixed={"threads": 2, "compress": "zstd:3"}) == []


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"source": None}, "source: "),
        ({"instance": "web1"}, "source: "),
        ({"aim": "quickest"}, "aim: "),
        ({"search": "magic"}, "search: "),
        ({"within_s": 3.0}, "within: is for the aim smallest"),
        ({"aim": "smallest", "within_s": 3.0, "within_ratio": 2.0}, "within: give seconds, or a ratio"),
        ({"aim": "smallest", "within_s": 0.0}, "within: must be"),
        ({"time_limit_s": 0.5}, "time_limit_s: "),
        ({"time_limit_s": math.nan}, "time_limit_s: "),
        ({"time_limit_s": True}, "time_limit_s: "),
        ({"sample_bytes": 1}, "sample_bytes: "),
        ({"write_limit": 1 << 61}, "write_limit: "),
        ({"seed": -1}, "seed: "),
        ({"fixed": {"remove_instance": True}}, "'remove_instance': is not an option that can be given here"),
        ({"fixed": {"thread": 2}}, "'thread': is not an option that can be given here; did you mean threads?"),
        ({"fixed": {"threads": -1}}, "threads: "),
        ({"compressions": ("lzma",)}, "compress_range: "),
        ({"compressions": ("none",), "fixed": {"compress": "zstd:1"}}, "compress: is both given and to be searched"),
        ({"resume": True}, "resume: "),
        ({"out": Path("/nowhere/p.toml")}, "out: "),
        ({"report": Path("/nowhere/r.html")}, "report: "),
    ],
)
def test_what_makes_no_sense_is_told_in_a_line(asked: dict[str, Any], told: str) -> None:
    (problem,) = problems(**asked)
    assert problem.startswith(told)
    assert "\n" not in problem


def test_all_problems_are_told_together() -> None:
    assert len(problems(source=None, aim="quickest", time_limit_s=0, fixed={"threads": "two"}, resume=True)) == 5
