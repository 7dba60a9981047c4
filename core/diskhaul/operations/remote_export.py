"""Exporting an instance to another cluster, to the destination that its `receive` gave: refusals, and what differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from ..api import LockMode, RemoteParty, RemoteStore, RemoteTerms
from ..errors import DiskhaulError, RefusedError
from ..feedback import Feedback
from ..model import Node
from ..options import ExportOptions
from ..pipeline.source import Source
from ..records import ExportRecord, ExportResult
from ..remote.destination import Destination, check_destination, read_destination
from ..remote.envelope import Document
from ..remote.keys import RemoteKeys
from ..remote.secret import read_secret
from .base import LockLevel, RunContext
from .export import ExportOperation
from .export_task import ExportTask

T = TypeVar("T")


class RemoteExportOperation(ExportOperation):
    """Exports one instance to one destination at another cluster, which it was prepared for.

    Raises (from `run`): as `ExportOperation`. What is wrong with the destination is among the reasons of a `RefusedError`.
    """

    def __init__(self, context: RunContext, instance: str, destination: Document, options: ExportOptions) -> None:
        super().__init__(context, instance, "", options)
        self._document = destination
        self._keys = RemoteKeys(self.cluster.state_dir)
        self._sizes: dict[int, int] = {}
        self._store: RemoteStore | None = None
        self._destination: Destination

    def describe(self) -> str:
        return f"export of {self.instance.name} to cluster {self._destination.cluster}"

    # --- before anything is touched ---------------------------------------------------------------------------------

    def _asked(self) -> dict[str, str]:
        return {"instance": self._asked_instance}

    def _argument_problems(self) -> list[str]:
        problems = super()._argument_problems()
        if isinstance(self.options, ExportOptions) and self.options.layout != "diskhaul":
            problems.append(f"layout = {self.options.layout}: an export to another cluster has the layout diskhaul")
        return problems

    def _target_node(self, found: Mapping[str, str]) -> Node:
        self._destination = read_destination(self._document)  # names alone count before it has been found to be genuine
        return Node(name=self._destination.node)

    def declare_locks(self, level: LockLevel) -> Mapping[str, LockMode]:
        return {self.source.name: LockMode.SHARED} if level is LockLevel.NODE else super().declare_locks(level)

    def _open_disks(self, sources: dict[int, Source], problems: list[str]) -> None:
        super()._open_disks(sources, problems)
        self._sizes = {index: source.size for index, source in sources.items()}

    def _target_problems(self, problems: list[str]) -> int | None:
        found = self._destination_problems()
        problems += found
        # Nobody is spoken to whom nobody vouches for.
        return None if found else super()._target_problems(problems)

    def _destination_problems(self) -> list[str]:
        """Why the destination is not to be believed, or the source cannot use it."""
        try:
            secret = read_secret(self.cluster)
        except RefusedError as error:
            return list(error.problems)
        destination, problems = check_destination(
            self._document,
            secret,
            now=datetime.now(UTC),
            cluster=self.cluster.name,
            instance=self.instance.name,
            sizes=[self._sizes.get(disk.index) for disk in self.instance.disks],
        )
        if problem := self._keys.problem(destination.prepared):
            problems.append(problem)
        if problems:
            return problems
        try:
            self._store = self.host.remote_transfer().remote_store(
                self._terms(destination), destination.disks[0].host, destination.disks[0].port
            )
        except RefusedError as error:
            return list(error.problems)
        return []

    def _terms(self, destination: Destination) -> RemoteTerms:
        own = self._keys.peek(destination.prepared)
        certificate = own[own.index(b"-----BEGIN CERTIFICATE-----") :]
        receiver = destination.certificate.encode("ascii")
        return RemoteTerms(
            source=RemoteParty(cluster=self.cluster.name, name=self.instance.name, certificate=certificate),
            receiver=RemoteParty(cluster=destination.cluster, name=destination.node, certificate=receiver),
            own=own,
            instance=destination.instance,
            tokens=tuple(disk.token for disk in destination.disks),
        )

    def at_target(self, function: Callable[..., T], *arguments: object) -> T:
        assert self._store is not None, "nothing is asked of the destination before it has been found to be genuine"
        return function(self._store, *arguments)

    @property
    def target_instance(self) -> str:
        return self._destination.instance

    def _cleanup_problems(self) -> list[str]:
        return []

    # --- plan and hook scripts --------------------------------------------------------------------------------------

    def _cleanup_steps(self) -> list[str]:
        return []

    def _expected_cleanup(self, listed: object) -> tuple[ExportRecord, ...]:
        return ()

    def build_hooks_env(self) -> dict[str, str]:
        return {**super().build_hooks_env(), "EXPORT_MODE": "remote"}

    def build_hooks_nodes(self) -> list[str]:
        return list(dict.fromkeys(name for name in (self.cluster.master, self.source.name) if name))

    # --- the work ---------------------------------------------------------------------------------------------------

    def _task(self) -> ExportTask:
        there = replace(self.instance, name=self.target_instance, node=self.target.name, secondaries=())
        return replace(super()._task(), exported=there, remote=self._destination.cluster)

    def execute(self, feedback: Feedback) -> ExportResult:
        self._keys.take(self._destination.prepared)  # whoever is first; whatever becomes of the export, the key has been used
        result = super().execute(feedback)
        self._say_farewell()
        return result

    def _say_farewell(self) -> None:
        assert self._store is not None, "it was exported there"
        try:
            self._store.farewell()
        except DiskhaulError as error:
            self.feedback.warn(f"the export stands, and its receiver could not be told so: {error}")
