"""Both searchers on costs that are computed: what they find, that they begin with the defaults, stop, and can be resumed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest

from diskhaul.operations.tuning.optuna_search import OptunaSearch
from diskhaul.operations.tuning.search import GridSearch, Searcher, Standings, key_of
from diskhaul.operations.tuning.space import Parameter, Settings, Space

SPACE = Space(
    (
        Parameter("a", (1, 2, 4, 8, 16), 4),
        Parameter("b", (0, 1, 2, 3), 2),
        Parameter("c", ("auto", "never"), "auto"),
    ),
    {},
    {},
)
BEST = {"a": 16, "b": 1, "c": "never"}
SEARCHERS: list[Callable[[Space, int], Searcher]] = [GridSearch, OptunaSearch]


def cost(settings: Settings) -> float:
    """Lowest at BEST; the first parameter counts most."""
    a, b = settings["a"], settings["b"]
    assert isinstance(a, int)
    assert isinstance(b, int)
    return 10 - 2 * math.log2(a) + abs(b - 1) + (settings["c"] != "never")


def run(searcher: Searcher, trials: int) -> list[Settings]:
    tried: list[Settings] = []
    while len(tried) < trials and (settings := searcher.ask()) is not None:
        searcher.tell(settings, cost(settings))
        tried.append(settings)
    return tried


@pytest.mark.parametrize("make", SEARCHERS)
def test_the_best_settings_are_found_with_far_fewer_trials_than_there_are_combinations_times_repeats(
    make: Callable[[Space, int], Searcher],
) -> None:
    tried = run(make(SPACE, 0), 45)
    assert BEST in tried
    assert all(SPACE.holds(settings) for settings in tried)


@pytest.mark.parametrize("make", SEARCHERS)
def test_the_same_seed_tries_the_same_and_another_one_does_not(make: Callable[[Space, int], Searcher]) -> None:
    assert run(make(SPACE, 1), 15) == run(make(SPACE, 1), 15)
    assert run(make(SPACE, 1), 15) != run(make(SPACE, 2), 15)


@pytest.mark.parametrize("make", SEARCHERS)
def test_a_search_that_knows_everything_stops(make: Callable[[Space, int], Searcher]) -> None:
    small = Space((Parameter("c", ("auto", "never"), "auto"),), {}, {})
    searcher = make(small, 0)
    tried = []
    while (settings := searcher.ask()) is not None:
        searcher.tell(settings, 1.0 if settings["c"] == "auto" else 2.0)
        tried.append(settings["c"])
        assert len(tried) < 20
    assert Counter(tried).keys() == {"auto", "never"}


@pytest.mark.parametrize("make", SEARCHERS)
def test_what_was_told_before_the_first_question_is_known(make: Callable[[Space, int], Searcher]) -> None:
    searcher = make(SPACE, 0)
    for _ in range(5):
        searcher.tell(SPACE.defaults, cost(SPACE.defaults))
        searcher.tell(BEST, cost(BEST))
    tried = run(searcher, 10)
    assert SPACE.defaults not in tried
    assert BEST not in tried, "both were measured often enough"


def test_the_grid_goes_on_where_it_was() -> None:
    whole = run(GridSearch(SPACE, 3), 40)
    resumed = GridSearch(SPACE, 3)
    for settings in whole[:25]:
        resumed.tell(settings, cost(settings))
    assert run(resumed, 15) == whole[25:]


def test_the_grid_s_first_rung_has_the_defaults_and_every_value_about_equally_often() -> None:
    tried = run(GridSearch(SPACE, 0), 20)
    first = tried[: next(number for number, settings in enumerate(tried) if settings in tried[:number])]
    assert len(first) >= 10
    assert first[0] == SPACE.defaults
    for parameter in SPACE.parameters:
        counts = Counter(settings[parameter.name] for settings in first)
        assert counts.keys() == set(parameter.values)
        assert max(counts.values()) - min(counts.values()) <= 3


def test_the_grid_tries_everything_before_it_stops() -> None:
    tried = {key_of(settings) for settings in run(GridSearch(SPACE, 0), 10_000)}
    assert len(tried) == SPACE.size


@pytest.mark.parametrize("make", SEARCHERS)
def test_settings_that_do_not_work_are_not_the_end(make: Callable[[Space, int], Searcher]) -> None:
    searcher = make(SPACE, 0)
    tried = []
    for _ in range(30):
        settings = searcher.ask()
        assert settings is not None
        searcher.tell(settings, math.inf if settings["c"] == "never" else cost(settings))
        tried.append(settings)
    assert {key_of(settings) for settings in tried if settings["c"] == "auto"}


def test_standings_go_by_medians_and_leave_out_what_does_not_work() -> None:
    standings = Standings()
    for score in (1.0, 9.0, 9.0):
        standings.add({"a": 1}, score)
    standings.add({"a": 2}, 5.0)
    standings.add({"a": 3}, math.inf)
    assert standings.best(5) == [{"a": 2}, {"a": 1}]
    assert (standings.count({"a": 1}), standings.count({"a": 4})) == (3, 0)
    assert (standings.score({"a": 1}), standings.score({"a": 4})) == (9.0, math.inf)
    assert standings.total == 5
