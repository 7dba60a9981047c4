"""Which settings there are to try."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...api import Tunable
from ...errors import PluginError
from ...model import Cluster, Disk
from ...options import DEFAULT_READ_AHEAD, MIB, ExportOptions, Setting
from ...pipeline.workers import thread_count
from ...profile import PROFILE_OPTION_NAMES
from .request import TuneRequest, expand_compressions

Settings = Mapping[str, Setting]

CHUNK_SIZES = tuple(size * MIB for size in (1, 2, 4, 8, 16))
READ_AHEADS = (0, 1, 2, DEFAULT_READ_AHEAD, 8)
SMALL_COMPRESSIONS = ("zstd:1", "zstd:2", "zstd:3", "zstd:5", "zstd:7", "zstd:9", "zstd:12", "zstd:15")
"""What is tried for the smallest export where nothing is said."""
_MOST_THREADS = 64


@dataclass(frozen=True, slots=True)
class Parameter:
    """One thing that is searched.

    Attributes:
        name: of an option of exports, or ``BACKEND.OPTION``.
        values: neighbours are taken to be alike.
        default: what is used where nothing is tuned; one of `values`.
    """

    name: str
    values: tuple[Setting, ...]
    default: Setting


@dataclass(frozen=True, slots=True)
class Space:
    """What is searched, and what is not.

    Attributes:
        given: options of exports that are the same in every trial since the call gives them.
        kept: likewise, since they are not searched.
    """

    parameters: tuple[Parameter, ...]
    given: Mapping[str, Setting]
    kept: Mapping[str, Setting]

    @property
    def defaults(self) -> Settings:
        return {parameter.name: parameter.default for parameter in self.parameters}

    @property
    def fixed(self) -> Mapping[str, Setting]:
        """What is the same in every trial."""
        return {**self.given, **self.kept}

    @property
    def size(self) -> int:
        """How many different settings there are."""
        size = 1
        for parameter in self.parameters:
            size *= len(parameter.values)
        return size

    @property
    def largest_chunk(self) -> int:
        searched = [value for each in self.parameters if each.name == "chunk_size" for value in each.values]
        return max(int(value) for value in searched or [self.fixed["chunk_size"]])

    def holds(self, settings: Mapping[str, object]) -> bool:
        """Whether `settings` are some of this space: every parameter, with one of its values, and nothing else."""
        return settings.keys() == self.defaults.keys() and all(
            any(type(settings[each.name]) is type(value) and settings[each.name] == value for value in each.values)
            for each in self.parameters
        )

    def export_settings(self, settings: Settings) -> dict[str, Setting]:
        """The options of exports among `settings`, and what is given."""
        return dict(self.given) | {name: value for name, value in settings.items() if "." not in name}

    def ordered(self, settings: Settings) -> Settings:
        """`settings` in the order of the parameters."""
        return {parameter.name: settings[parameter.name] for parameter in self.parameters}

    def backend_settings(self, settings: Settings) -> dict[str, dict[str, Setting]]:
        """The options of backends among `settings`, for ``[backend_options]``."""
        found: dict[str, dict[str, Setting]] = {}
        for name, value in settings.items():
            backend, dot, option = name.partition(".")
            if dot:
                found.setdefault(backend, {})[option] = value
        return found


def make_space(
    request: TuneRequest, defaults: ExportOptions, cluster: Cluster, tunables: Iterable[Tunable], disks: Sequence[Disk]
) -> Space:
    """What `request` leaves to be searched, besides what `tunables` add for these `disks`.

    Args:
        defaults: the options of an export where nothing is tuned.

    Raises:
        RefusedError: `request.compressions` cannot be used.
        PluginError: a tunable cannot say what it applies to.
    """
    searched = _own_parameters(request, defaults)
    given = {name: request.fixed[name] for name in PROFILE_OPTION_NAMES if name in request.fixed}
    kept = {name: getattr(defaults, name) for name in PROFILE_OPTION_NAMES if name not in given and name not in searched}
    parameters = [parameter for name, parameter in searched.items() if name not in given]
    for tunable in tunables:
        if any(_applies(tunable, disk) for disk in disks):
            configured = cluster.backend_options.get(tunable.backend, {}).get(tunable.option, tunable.default)
            parameters.append(_parameter(tunable.name, tunable.values, configured))
    return Space(tuple(parameters), given, kept)


def _applies(tunable: Tunable, disk: Disk) -> bool:
    if tunable.applies is None:
        return disk.storage == tunable.backend
    try:
        return bool(tunable.applies(disk))
    except BaseException as error:  # a plugin may raise anything, SystemExit included
        raise PluginError(f"tunable {tunable.name}: its applies failed: {type(error).__name__}: {error}") from error


def _own_parameters(request: TuneRequest, defaults: ExportOptions) -> dict[str, Parameter]:
    found = {
        "chunk_size": _parameter("chunk_size", CHUNK_SIZES, defaults.chunk_size),
        "threads": _threads(defaults.threads),
        "read_ahead": _parameter("read_ahead", READ_AHEADS, defaults.read_ahead),
        "direct_io": _parameter("direct_io", ("auto", "never"), defaults.direct_io),
    }
    compressions = expand_compressions(request.compressions)
    if not compressions and request.aim == "smallest":
        compressions = SMALL_COMPRESSIONS
    if compressions:
        found["compress"] = _parameter("compress", compressions, defaults.compress)
    return found


def _threads(default: int) -> Parameter:
    """From one thread to two per CPU. What 0 means here stands as 0, so that a profile that does not differ there says so."""
    usual, cpus = thread_count(0), len(os.sched_getaffinity(0))
    counts = {1, usual // 2 or 1, usual, usual + (usual + 1) // 2, 2 * usual, cpus, 2 * cpus}
    numbers = tuple(0 if count == usual else count for count in sorted(counts) if count <= _MOST_THREADS)
    return _parameter("threads", numbers, 0 if default == usual else default)


def _parameter(name: str, values: Sequence[Setting], default: Setting) -> Parameter:
    """A parameter; a default that is not among the values comes to them, in its place among numbers, else as the first."""
    if default in values:
        return Parameter(name, tuple(values), default)
    numbers = [value for value in (*values, default) if isinstance(value, int | float)]
    if len(numbers) == len(values) + 1:
        return Parameter(name, tuple(sorted(numbers)), default)
    return Parameter(name, (default, *values), default)
