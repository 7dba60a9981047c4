"""Options are judged before anything is looked up: each value, and what contradicts what."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from diskhaul.option_checks import import_option_problems, option_problems, value_problem
from diskhaul.options import ExportOptions, ImportOptions


def test_the_defaults_are_right() -> None:
    assert option_problems(ExportOptions()) == []
    assert import_option_problems(ImportOptions()) == []


def test_every_option_has_a_check() -> None:
    for option in (*fields(ExportOptions), *fields(ImportOptions)):
        assert value_problem(option.name, object()) is not None, option.name


def test_an_option_that_does_not_exist_is_a_problem() -> None:
    assert value_problem("compres", "none") == "compres: there is no such option"


@pytest.mark.parametrize(
    "name",
    [
        "shutdown_timeout_s",
        "lock_timeout_s",
        "hook_timeout_s",
        "stall_timeout_s",
        "zeroing_timeout_fixed_s",
        "zeroing_timeout_per_mib_s",
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1, -0.5, 1e99, 10**400, "5", True])
def test_no_timeout_takes_what_is_no_time(name: str, value: object) -> None:
    problem = value_problem(name, value)
    assert problem is not None
    assert problem.startswith(f"{name}: must be ")
    assert len(problem) < 200


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("shutdown_timeout_s", (0, 0.5, 120, 31622400)),
        ("zeroing_timeout_fixed_s", (None, 0, 300)),
        ("hook_timeout_s", (0.1, 60)),
        ("compress", ("none", "zstd:1", "zstd:-7", "zstd:adaptive", "zstd:adaptive:3", "gzip:6")),
        ("chunk_size", (65536, 4 << 20, 64 << 20)),
        ("threads", (0, 1, 1024)),
        ("layout", ("diskhaul", "ganeti")),
        ("verify", ("stored", "full", "none")),
        ("zero_fill", (None, "ext")),
        ("dry_run", (True, False)),
        ("grow", ((), ((0, 1), (1, 1 << 40)))),
    ],
)
def test_good_values_are_taken(name: str, good: tuple[object, ...]) -> None:
    assert [value_problem(name, value) for value in good] == [None] * len(good)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("hook_timeout_s", (0,)),
        ("compress", ("zstd:adaptive:", "zstd:adaptive:10", "gzip:adaptive", "none:adaptive")),
        ("compress", ("", "zstd:", "zstd:x", "zstd:1:2", "zstd:99999999999", "lz4", "gzip:0", "zstd:nan", None, 1)),
        ("chunk_size", (0, -65536, 32768, 65537, 128 << 20, 1 << 200, 65536.0, True)),
        ("threads", (-1, 1025, 1.0, True)),
        ("layout", ("qcow", "", None)),
        ("verify", ("maybe", True)),
        ("zero_fill", ("", " ", 5)),
        ("dry_run", (1, 0, "yes", None)),
        ("grow", ((0, 1), ((0,),), ((-1, 5),), ((0, 0),), ((0, 1 << 63),), ((0, 5), (0, 6)), ((0, 1.5),), None)),
    ],
)
def test_bad_values_are_said_in_one_line(name: str, bad: tuple[object, ...]) -> None:
    for value in bad:
        problem = value_problem(name, value)
        assert problem is not None, value
        assert problem.startswith(f"{name}: ")
        assert "\n" not in problem


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"long_sleep": True, "shutdown": False}, "long_sleep: contradicts shutdown = false"),
        ({"zeroing_timeout_fixed_s": 5}, "zeroing_timeout_fixed_s: has no meaning without zero_free_space"),
        ({"zeroing_timeout_per_mib_s": 5}, "zeroing_timeout_per_mib_s: has no meaning without zero_free_space"),
        ({"zero_fill": "ext"}, "zero_fill: has no meaning without zero_free_space"),
        ({"zero_free_space": True, "compress": "none"}, "zero_free_space: gains nothing with compress = none"),
        ({"remove_instance": True, "verify": "none"}, "remove_instance: with verify = none"),
        ({"layout": "ganeti", "compress": "zstd:1"}, "layout: ganeti holds raw disks"),
        ({"layout": "ganeti", "compress": "zstd:adaptive"}, "layout: ganeti holds raw disks"),
        ({"digest": "later"}, "digest: later is for disks that are not copied"),
        ({"digest": "later", "compress": "none", "remove_instance": True}, "remove_instance: with digest = later"),
    ],
)
def test_a_contradiction_is_a_problem(options: dict[str, Any], message: str) -> None:
    (problem,) = option_problems(ExportOptions(**options))
    assert problem.startswith(message)


@pytest.mark.parametrize(
    "options",
    [
        {"long_sleep": True},
        {"shutdown": False},
        {"zero_free_space": True, "zero_fill": "ext", "zeroing_timeout_fixed_s": 5.0, "zeroing_timeout_per_mib_s": 0.1},
        {"remove_instance": True},
        {"layout": "ganeti", "compress": "none"},
        {"verify": "none"},
        {"digest": "later", "compress": "none"},
        {"digest": "later", "compress": "none", "layout": "ganeti", "verify": "none"},
    ],
)
def test_what_fits_together_is_no_problem(options: dict[str, Any]) -> None:
    assert option_problems(ExportOptions(**options)) == []


def test_all_problems_come_together() -> None:
    options = ExportOptions(
        long_sleep=True, shutdown=False, zero_fill="ext", remove_instance=True, verify="none", layout="ganeti"
    )
    assert [problem.partition(":")[0] for problem in option_problems(options)] == [
        "long_sleep",
        "zero_fill",
        "remove_instance",
        "layout",
    ]
    assert len(option_problems(ExportOptions(threads=-1, lock_timeout_s=float("nan"), compress="x"))) == 3
