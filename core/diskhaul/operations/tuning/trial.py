"""One export of the sample, timed: the real operation, with everything that belongs to it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import diskhaul_native as native

from ...api import DiskReader, Storage
from ...cancellation import CancellationToken
from ...errors import InterruptedRunError
from ...events import Event, StageFinished, StageStarted
from ...host import PluginHost
from ...model import Cluster, Disk, Instance, Node
from ...options import ExportOptions
from ..base import RunContext
from ..export import ExportOperation
from ..scratch import empty
from .sample import STORAGE_NAME, SampleStorage, Unit
from .space import Settings, Space

_NAME = "tune"


@dataclass(frozen=True, slots=True)
class Cost:
    """What one trial took.

    Attributes:
        seconds: from the first byte read to the published export, verification included.
        cpu_seconds: of the whole process meanwhile.
        stored_bytes: size of the files that were stored.
    """

    seconds: float
    cpu_seconds: float
    stored_bytes: int


class TrialTooLongError(Exception):
    """The trial was stopped at its limit: it is no candidate."""


class TrialToken(CancellationToken):
    """Cancelled when the run's own token is, or at a moment of the monotonic clock."""

    def __init__(self, outer: CancellationToken, until: float) -> None:
        self._outer, self._until = outer, until
        self._own = False
        super().__init__()

    @property
    def cancelled(self) -> bool:
        return self._own or self._outer.cancelled or time.monotonic() >= self._until

    @cancelled.setter
    def cancelled(self, value: bool) -> None:
        self._own = value


class _Clock:
    """Listens to an export and notes when its data began to move, and when it was published."""

    def __init__(self) -> None:
        self.begun = self.ended = (0.0, 0.0)

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "send":
            self.begun = time.monotonic(), time.process_time()
        elif isinstance(event, StageFinished) and event.stage == "publish":
            self.ended = time.monotonic(), time.process_time()


class TrialRunner:
    """Runs trials, one at a time. Each begins with the sample out of the page cache and an empty target, and leaves it empty.

    Args:
        cluster: whose backends' options are used, besides those of a trial.
        disks: what the sample is of.
        base: options of the export that are the same in every trial, whatever else is said.
        scratch: an empty directory.

    Attributes:
        written_bytes: what all trials have written.
        warnings: what exports warned of, each once.
    """

    def __init__(
        self,
        cluster: Cluster,
        plugins: Sequence[object],
        disks: Sequence[Disk],
        space: Space,
        base: ExportOptions,
        scratch: Path,
        token: CancellationToken,
    ) -> None:
        self.written_bytes = 0
        self.warnings: list[str] = []
        self._cluster, self._plugins, self._disks = cluster, plugins, disks
        self._space, self._base, self._token = space, base, token
        self._store = scratch / "exports"
        self._store.mkdir(mode=0o700)
        self._state = scratch / "state"
        self._sample: dict[int, tuple[tuple[int, int], ...]] = {}

    def use(self, sample: Sequence[Unit]) -> None:
        """Take `sample` for all trials from now on."""
        fragments: dict[int, list[tuple[int, int]]] = {}
        for unit in sample:
            fragments.setdefault(unit.disk, []).extend(unit.fragments)
        self._sample = {disk: tuple(parts) for disk, parts in fragments.items()}

    def run(self, settings: Settings, until: float) -> Cost:
        """Export the sample with `settings`.

        Args:
            until: moment of the monotonic clock at which it is stopped.

        Raises:
            TrialTooLongError: it was.
            InterruptedRunError: the whole run is to stop.
            DiskhaulError, OSError: it failed.
        """
        options: dict[str, object] = {**self._space.kept, **self._space.export_settings(settings)}
        cluster = self._cluster_with(self._space.backend_settings(settings))
        storages = self._storages(cluster)
        self._forget_cached(storages)
        clock = _Clock()
        context = RunContext(
            cluster,
            plugins=[*self._plugins, SampleStorage(self._disks, storages, self._sample)],
            on_event=clock,
            token=TrialToken(self._token, until),
        )
        try:
            export_options = replace(self._base, **options)  # type: ignore[arg-type]  # checked by the operation
            result = ExportOperation(context, _NAME, _NAME, export_options).run()
        except InterruptedRunError as error:
            self._token.raise_if_cancelled()
            raise TrialTooLongError from error
        finally:
            empty(self._store)
        stored = sum(disk.bytes_written for disk in result.disks)
        self.written_bytes += stored
        self.warnings += [warning for warning in result.warnings if warning not in self.warnings]
        return Cost(clock.ended[0] - clock.begun[0], clock.ended[1] - clock.begun[1], stored)

    def _cluster_with(self, tuned: Mapping[str, Mapping[str, object]]) -> Cluster:
        """A cluster of its own: one node, which is the scratch directory, and one instance without a guest."""
        options = {name: dict(given) for name, given in self._cluster.backend_options.items()}
        for name, given in tuned.items():
            options[name] = {**options.get(name, {}), **given}
        return Cluster(
            name=_NAME,
            state_dir=self._state,
            backends={"cleanup": "none"},
            backend_options=options,
            source=self._cluster.source,
            nodes=[Node(name=_NAME, export_dir=self._store)],
            instances=[
                Instance(name=_NAME, node=_NAME, state="down", disks=[Disk(storage=STORAGE_NAME) for _ in self._disks]),
            ],
        )

    def _storages(self, cluster: Cluster) -> list[Storage]:
        host = PluginHost(cluster, self._plugins)
        return [host.storage(disk.storage) for disk in self._disks]

    def _forget_cached(self, storages: Sequence[Storage]) -> None:
        """Ask the kernel to drop what it has cached of the sample: a disk is rarely in memory when it is exported."""
        for index, fragments in self._sample.items():
            reader = storages[index].open(self._disks[index])
            try:
                for offset, length in fragments:
                    _forget(reader, offset, length)
            finally:
                close = getattr(reader, "close", None)
                if callable(close):
                    close()


def _forget(reader: DiskReader, offset: int, length: int) -> None:
    fileno = getattr(reader, "fileno", None)
    if not callable(fileno):
        return
    try:
        native.drop_cache(fileno(), offset, length)
    except OSError:
        pass  # advice: not every file takes it
