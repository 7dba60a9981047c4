"""Which settings to try next.

A searcher is asked for settings and told what became of them. `GridSearch` needs nothing but this module; with optuna installed
`optuna_search` has another one.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator, Mapping
from typing import Protocol

from ...options import Setting
from .space import Settings, Space

Key = tuple[tuple[str, Setting], ...]

_REPEATS = 5
"""More often than this nothing is tried again."""
_FIRST_RUNG = 12
_KEPT = 3  # of so many the best one goes on to the next rung


class Searcher(Protocol):
    """Chooses settings. For one thread."""

    def ask(self) -> Settings | None:
        """The next settings to try, which may have been tried before; None when there is nothing left to try."""
        ...

    def tell(self, settings: Settings, score: float) -> None:
        """What became of `settings`: less is better; infinite when they did not work, or took too long. Told of any settings."""
        ...


def key_of(settings: Mapping[str, Setting]) -> Key:
    """Equal for equal settings, and for no others."""
    return tuple(sorted(settings.items()))


class Standings:
    """What is known of every setting that has been tried."""

    def __init__(self) -> None:
        self._scores: dict[Key, list[float]] = {}

    def add(self, settings: Settings, score: float) -> None:
        self._scores.setdefault(key_of(settings), []).append(score)

    @property
    def total(self) -> int:
        """How many scores have been added."""
        return sum(map(len, self._scores.values()))

    def count(self, settings: Settings) -> int:
        return len(self._scores.get(key_of(settings), ()))

    def score(self, settings: Settings) -> float:
        """The median of its scores; infinite for what was never tried."""
        return self._median(key_of(settings))

    def best(self, most: int) -> list[Settings]:
        """The best settings that work, best first."""
        working = [key for key in self._scores if math.isfinite(self._median(key))]
        return [dict(key) for key in sorted(working, key=self._median)[:most]]

    def _median(self, key: Key) -> float:
        return statistics.median(self._scores.get(key, [math.inf]))


class GridSearch:
    """Successive halving over a part of the grid, then single steps away from the best.

    Every trial reads the same sample, so what grows from rung to rung is how often the settings are tried: the first rung tries
    the defaults and some settings in which every value of every parameter comes up about equally often, once each; the best
    third is tried again, and so on. Then each setting that differs from the best one in one step of one parameter has its turn.
    What to try next follows from what has been told alone, so a run that is resumed goes on where it was.
    """

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        self._standings = Standings()
        self._seed = seed
        self._first = self._spread(random.Random(seed))

    def tell(self, settings: Settings, score: float) -> None:
        self._standings.add(settings, score)

    def ask(self) -> Settings | None:
        candidates = self._first
        for wanted in range(1, _REPEATS + 1):
            for settings in candidates:
                if self._standings.count(settings) < wanted:
                    return settings
            if len(candidates) == 1:
                break
            candidates = sorted(candidates, key=self._standings.score)[: -(-len(candidates) // _KEPT)]
        return self._step() or self._untried() or self._again()

    def _spread(self, draw: random.Random) -> list[Settings]:
        """The defaults, and settings drawn so that each value of a parameter comes up about equally often."""
        chosen = {key_of(self._space.defaults): self._space.defaults}
        count = min(_FIRST_RUNG, self._space.size)
        columns: dict[str, list[Setting]] = {}
        for parameter in self._space.parameters:
            column: list[Setting] = []
            while len(column) < count:
                column += draw.sample(parameter.values, len(parameter.values))
            columns[parameter.name] = column
        for number in range(count):
            settings = {name: column[number] for name, column in columns.items()}
            chosen.setdefault(key_of(settings), settings)
        return list(chosen.values())

    def _step(self) -> Settings | None:
        """Something one step away from the best settings that has not been tried."""
        for best in self._standings.best(2):
            for parameter in self._space.parameters:
                place = parameter.values.index(best[parameter.name])
                for value in (*parameter.values[max(0, place - 1) : place], *parameter.values[place + 1 : place + 2]):
                    settings = {**best, parameter.name: value}
                    if not self._standings.count(settings):
                        return settings
        return None

    def _untried(self) -> Settings | None:
        """Anything that has not been tried; found at random at first, then looked for."""
        draw = random.Random(self._seed + self._standings.total)
        for _ in range(20):
            settings = {each.name: draw.choice(each.values) for each in self._space.parameters}
            if not self._standings.count(settings):
                return settings
        if self._space.size > 1 << 16:
            return None
        return next((settings for settings in self._all() if not self._standings.count(settings)), None)

    def _again(self) -> Settings | None:
        """One of the best, as long as it has not been tried too often."""
        return next((settings for settings in self._standings.best(5) if self._standings.count(settings) < _REPEATS), None)

    def _all(self) -> Iterator[Settings]:
        for number in range(self._space.size):
            settings = {}
            for parameter in self._space.parameters:
                number, place = divmod(number, len(parameter.values))
                settings[parameter.name] = parameter.values[place]
            yield settings
