"""Searching with optuna's TPE sampler. Imported only where optuna is installed.

The study is in memory: what has been measured is in our own log, and is told again when a run is resumed, whichever searcher
measured it.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import optuna

from .search import _REPEATS, Searcher, Standings, key_of
from .space import Settings, Space

_STARTUP_TRIALS = 8
_ATTEMPTS = 20
_AS_BAD_AS = 10.0  # times the worst score so far: what did not work at all


class OptunaSearch(Searcher):
    """Asks a seeded TPE sampler. Parameters are places in their lists of values, so that neighbours count as alike."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space, self._seed = space, seed
        self._standings = Standings()
        self._asked: dict[Any, list[optuna.trial.Trial]] = {}
        self._worst = 1.0
        self._study: optuna.Study | None = None
        self._told: list[tuple[Settings, float]] = []

    def tell(self, settings: Settings, score: float) -> None:
        self._standings.add(settings, score)
        if math.isfinite(score):
            self._worst = max(self._worst, score)
        if self._study is None:
            self._told.append((settings, score))
        else:
            self._tell_study(self._study, settings, score)

    def ask(self) -> Settings | None:
        study = self._ready()
        for _ in range(_ATTEMPTS):
            trial = study.ask()
            settings = {
                each.name: each.values[trial.suggest_int(each.name, 0, len(each.values) - 1)] for each in self._space.parameters
            }
            if self._standings.count(settings) < _REPEATS:
                self._asked.setdefault(key_of(settings), []).append(trial)
                return settings
            study.tell(trial, self._standings.score(settings))  # known well enough: once more for the sampler is free
        return None

    def _ready(self) -> optuna.Study:
        """The study, which is made when it is first needed: its seed counts what is known already, so as not to repeat it."""
        if self._study is None:
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a sampler's option is experimental
                sampler = optuna.samplers.TPESampler(
                    seed=(self._seed + len(self._told)) % (1 << 32), n_startup_trials=_STARTUP_TRIALS, multivariate=True
                )
            self._study = optuna.create_study(sampler=sampler)
            for settings, score in self._told:
                self._tell_study(self._study, settings, score)
        return self._study

    def _tell_study(self, study: optuna.Study, settings: Settings, score: float) -> None:
        value = score if math.isfinite(score) else self._worst * _AS_BAD_AS
        asked = self._asked.get(key_of(settings))
        if asked:
            study.tell(asked.pop(), value)
            return
        places = {each.name: each.values.index(settings[each.name]) for each in self._space.parameters}
        ranges: dict[str, optuna.distributions.BaseDistribution] = {}
        for each in self._space.parameters:
            ranges[each.name] = optuna.distributions.IntDistribution(0, len(each.values) - 1)
        study.add_trial(optuna.trial.create_trial(params=places, distributions=ranges, value=value))
