"""Saying what a disk holds and what of it is free, without touching anything."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..api import ZeroFill
from ..errors import DiskhaulError, InterruptedRunError, OperationFailedError, RefusedError, StorageError
from ..feedback import Feedback
from ..model import Disk
from ..names import escape, expand_name
from ..pipeline.free_space import checked_free_extents
from ..pipeline.source import Source
from ..records import InspectedDisk
from ..report.disk_picture import picture_of, svg_problem, write_disk_svg
from .base import Operation, RunContext
from .deadlines import CALL_LIMIT_S, within
from .disk_use import GLANCE_S, disks_in_use
from .free_space import look_for_free_space
from .plugin_answers import failure_lines, problems_from


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectRequest:
    """What is to be looked at; `diskhaul.inspect` describes each. Either `disk` or `instance` is given."""

    disk: Disk | None = None
    instance: str | None = None
    zero_fill: str | None = None
    svg: Path | None = None


class InspectOperation(Operation[InspectedDisk]):
    """Reads one disk. Takes no locks: what it says may be out of date a moment later anyway, and it changes nothing.

    Raises (from `run`):
        RefusedError: nothing could be read, or not be written where it should.
        OperationFailedError: nothing is known of the disk; or the picture could not be written.
        InterruptedRunError: cancelled.
    """

    name = "inspect"

    def __init__(self, context: RunContext, request: InspectRequest) -> None:
        super().__init__(context)
        self._request = request
        self._disk: Disk
        self._chosen: tuple[str, ZeroFill]

    # --- before anything is read ------------------------------------------------------------------------------------

    def expand_names(self) -> None:
        if self._request.disk is not None:
            self._disk = self._request.disk
            return
        assert self._request.instance is not None
        name, colon, index = self._request.instance.rpartition(":")
        if not colon:
            name = index
        instances = self.host.inventory().instances()
        full = expand_name("instance", name, instances)
        self._disk = _one_of(full, instances[full].disks, index if colon else None)

    def check_prerequisites(self) -> None:
        problems = self._svg_problems() + self._disk_problems()
        problems += self._zero_fill_problems()
        if problems:
            raise RefusedError(problems)

    def _zero_fill_problems(self) -> list[str]:
        """Choose the backend. Where the configured one has guests trim their disks, it is the first other one that reads them."""
        disk, asked = self._disk, self._request.zero_fill
        choice = self.host.zerofill_for(disk, asked)
        if choice.backend is not None and choice.backend.trims:
            if asked is not None:
                return [f"zero_fill: {asked} reads no disks, the guest trims them; choose another"]
            others = (self.host.zerofill_for(disk, each.name) for each in self.host.registered("zerofill"))
            choice = next((each for each in others if each.backend is not None and not each.backend.trims), choice)
        if choice.backend is None or choice.backend.trims:
            reasons = "; ".join(choice.reasons) or "no zero-fill backend that reads disks is installed"
            return [f"{disk.label}: nothing can tell its free space: {reasons}"]
        self._chosen = choice.name, choice.backend
        return []

    def _svg_problems(self) -> list[str]:
        if self._request.svg is None:
            return []
        svg, disk = self._request.svg, self._disk.path
        if disk is not None and os.path.realpath(svg) == os.path.realpath(disk):
            return [f"svg: {svg} is the disk itself"]
        problem = svg_problem(svg)
        return [f"svg: {problem}"] if problem else []

    def _disk_problems(self) -> list[str]:
        disk = self._disk
        problems = problems_from(disk.label, lambda: self.host.storage(disk.storage).check(disk))
        if problems:
            return problems
        try:
            source = self._open()
            size = source.size
            source.close()
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            return failure_lines(disk.label, error)
        return [] if size else [f"{disk.label} is empty: there is nothing to look at"]

    def _open(self) -> Source:
        return Source(self.host.storage(self._disk.storage).open(self._disk), self._disk.label)

    # --- the work ---------------------------------------------------------------------------------------------------

    def execute(self, feedback: Feedback) -> InspectedDisk:
        name, backend = self._chosen
        disk = self._disk
        with feedback.stage("inspect", disk.label):
            used = self._users()
            source = self._open_again()
            try:
                try:
                    found = look_for_free_space(backend, disk, source.reader, limit_s=CALL_LIMIT_S, token=self.token)
                except InterruptedRunError:
                    raise
                except BaseException as error:  # a plugin may raise anything, SystemExit included
                    why = str(error) or type(error).__name__
                    raise OperationFailedError(f"{disk.label}: nothing is known of it: {name}: {escape(why)}") from error
                source.free = free = checked_free_extents(found.free, found.size)
                picture = within(
                    CALL_LIMIT_S,
                    f"finding out what of {disk.label} is allocated",
                    lambda: picture_of(source.extents(), found),
                    token=self.token,
                )
            finally:
                source.close()
            used = used or self._users()  # somebody may have begun meanwhile
        for line in used:
            feedback.warn(f"{line}: what is seen of the disk may be out of date")
        result = InspectedDisk(
            run_id=self.context.run_id,
            disk=str(disk.path) if disk.path is not None else f"{disk.storage} {disk.label}",
            backend=name,
            size=found.size,
            regions=found.regions,
            free=free,
            free_bytes=sum(picture.free),
            data_bytes=sum(picture.used) + sum(picture.kept),
            hole_bytes=sum(picture.hole),
            picture=picture,
            in_use=tuple(used),
            warnings=tuple(feedback.warnings),
            svg_path=str(self._request.svg or ""),
        )
        if self._request.svg is not None:
            write_disk_svg(result, self._request.svg)
        return result

    def _open_again(self) -> Source:
        try:
            return self._open()
        except DiskhaulError:
            raise
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            raise StorageError("; ".join(failure_lines(self._disk.label, error)), path=self._disk.label) from error

    def _users(self) -> list[str]:
        """Who may be writing to the disk. Where that cannot be found out, it is a warning: nothing depends on it here."""
        try:
            return disks_in_use(self.host, [self._disk], patience_s=GLANCE_S, limit_s=CALL_LIMIT_S)
        except InterruptedRunError:
            raise
        except DiskhaulError as error:
            message = f"{error}: if it is being written to, what is seen of it may be out of date"
            if message not in self.feedback.warnings:
                self.feedback.warn(message)
            return []


def _one_of(instance: str, disks: Sequence[Disk], index: str | None) -> Disk:
    """The disk that is meant by ``INSTANCE`` or ``INSTANCE:INDEX``."""
    if not disks:
        raise RefusedError(f"{instance} has no disks: there is nothing to look at")
    which = f"{instance}:0" if len(disks) == 1 else f"{instance}:0 to {instance}:{len(disks) - 1}"
    if index is None:
        if len(disks) > 1:
            raise RefusedError(f"{instance} has {len(disks)} disks: say which one, {which}")
        return disks[0]
    if not (index.isascii() and index.isdigit() and len(index) < 6 and int(index) < len(disks)):
        raise RefusedError(f"{instance} has no disk {escape(index[:40])!r}: there is {which}")
    return disks[int(index)]
