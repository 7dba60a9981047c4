from __future__ import annotations

import random

import pytest

from diskhaul.operations.tuning.comparison import judge
from diskhaul.operations.tuning.objective import Objective
from diskhaul.operations.tuning.trial import Cost
from diskhaul.options import Aim
from diskhaul.records import TuneRound, TuneTrial


def trial(seconds: float, cpu: float = 1.0, stored: int = 1000) -> TuneTrial:
    return TuneTrial(number=1, phase="compare", settings={}, seconds=seconds, cpu_seconds=cpu, stored_bytes=stored)


def rounds(*pairs: tuple[float, float]) -> list[TuneRound]:
    return [TuneRound(defaults=trial(before), found=trial(after)) for before, after in pairs]


FASTEST = Objective("fastest")


def test_clearly_faster_in_every_round_is_better() -> None:
    verdict = judge(rounds((1.0, 0.8), (1.1, 0.9), (0.9, 0.7), (1.0, 0.79), (1.2, 0.95)), FASTEST)
    assert verdict.better
    assert verdict.ratio == pytest.approx(0.8, abs=0.03)
    assert "better than the defaults" in verdict.words


@pytest.mark.parametrize(
    "pairs",
    [
        [(1.0, 1.0)] * 5,
        [(1.0, 1.2), (1.0, 1.1), (1.0, 1.3)],
        [(1.0, 0.99), (1.0, 0.985), (1.0, 0.99)],  # too little to be worth it
        [(1.0, 0.7), (1.0, 0.9), (1.0, 1.3)],  # lost one of three
        [(1.0, 0.5), (1.0, 0.98), (1.0, 0.7), (1.0, 1.2), (1.0, 1.1), (1.0, 0.9)],
        [(1.0, 0.5), (1.0, 0.5)],  # too few
        [],
    ],
)
def test_everything_else_is_not(pairs: list[tuple[float, float]]) -> None:
    verdict = judge(rounds(*pairs), FASTEST)
    assert not verdict.better
    assert "defaults stand" in verdict.words


def test_one_bad_round_of_many_is_forgiven_if_the_others_are_clear() -> None:
    pairs = [(1.0, 0.6), (1.0, 0.62), (1.0, 1.05), (1.0, 0.58), (1.0, 0.6), (1.0, 0.61), (1.0, 0.59), (1.0, 0.6)]
    assert judge(rounds(*pairs), FASTEST).better
    assert not judge(rounds(*pairs[:4]), FASTEST).better


def test_noise_alone_hardly_ever_wins() -> None:
    draw = random.Random(0)
    for count in (3, 5, 9):
        pairs = [[(draw.gauss(1, 0.1), draw.gauss(1, 0.1)) for _ in range(count)] for _ in range(1000)]
        assert sum(judge(rounds(*each), FASTEST).better for each in pairs) < 30


def test_each_aim_looks_at_its_own_figure() -> None:
    better: dict[Aim, TuneTrial] = {
        "fastest": trial(0.5, 2.0, 2000),
        "smallest": trial(2.0, 2.0, 500),
        "least-cpu": trial(2.0, 0.5, 2000),
    }
    for aim in better:
        for kind, found in better.items():
            verdict = judge([TuneRound(defaults=trial(1.0), found=found)] * 3, Objective(aim))
            assert verdict.better == (aim == kind), (aim, kind)
            assert verdict.ratio == (0.5 if aim == kind else 2.0)


def test_a_little_smaller_is_better_since_sizes_have_no_noise() -> None:
    found = [TuneRound(defaults=trial(1.0, stored=10_000), found=trial(1.0, stored=9_900))] * 3
    assert judge(found, Objective("smallest")).better


def test_what_breaks_a_limit_when_measured_again_is_not_better() -> None:
    found = [TuneRound(defaults=trial(1.0), found=trial(2.5, stored=100))] * 3
    assert judge(found, Objective("smallest", seconds_limit=3.0)).better
    verdict = judge(found, Objective("smallest", seconds_limit=2.0))
    assert not verdict.better
    assert "takes longer than it may" in verdict.words
    larger = [TuneRound(defaults=trial(1.0), found=trial(0.5, stored=1100))] * 3
    assert "stores more than it may" in judge(larger, Objective("fastest", stored_limit=1020)).words


def test_keeping_a_limit_that_the_defaults_break_is_better_whatever_it_costs() -> None:
    found = [TuneRound(defaults=trial(3.0, stored=100), found=trial(1.0, stored=150))] * 3
    verdict = judge(found, Objective("smallest", seconds_limit=2.0))
    assert verdict.better
    assert verdict.ratio == 1.5


def test_scores_put_what_breaks_a_limit_behind_everything_that_does_not() -> None:
    objective = Objective("smallest", seconds_limit=2.0)
    allowed, slow, slower = Cost(1.9, 1, 10_000), Cost(2.1, 1, 5_000), Cost(4.0, 1, 5_000)
    assert objective.score(allowed) < objective.score(slow) < objective.score(slower)
    assert Objective("least-cpu").score(Cost(1.0, 5.0, 1)) < Objective("least-cpu").score(Cost(3.0, 5.0, 1))
