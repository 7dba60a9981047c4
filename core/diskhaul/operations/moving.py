"""Who runs a guest that is being moved: noted before the other cluster is told to start it, and found out again if need be.

From the moment on in which the other cluster is told to start the guest, nobody here may start it without having heard from
there that it is down: it must never run at both. The note says so, and says more than that of a guest that is owed a start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..api import Runtime
from ..errors import DiskhaulError, OperationFailedError, RefusedError
from ..journal import Journal, Note, UnfinishedRun
from ..model import Cluster, Instance
from ..names import printable
from ..remote.other_side import OtherSide
from .base import LockSet, RunContext
from .deadlines import CALL_LIMIT_S
from .guest import GuestKeeper, guest_runs
from .guest_removal import remove_guest
from .plugin_answers import problems_from

ANSWER_S = 900.0
"""How long the other cluster may take to start or stop a guest, with its own attempts and waiting for its own locks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MovingNote:
    """What the journal says of a guest that another cluster was told to start.

    Attributes:
        instance: what it is called here.
        cluster, name: where it goes, and what it is called there.
        keep: it is not to be removed here.
        started: it is known to run there.
        ran: it ran here before, and so is started there.
        removing: its removal here has begun.
    """

    instance: str
    cluster: str
    name: str
    keep: bool
    started: bool = False
    ran: bool = True
    removing: bool = False

    def data(self) -> dict[str, object]:
        return {
            "instance": self.instance,
            "cluster": self.cluster,
            "name": self.name,
            "keep": self.keep,
            "started": self.started,
            "ran": self.ran,
            "removing": self.removing,
        }


def being_moved(context: RunContext, instance: str) -> list[str]:
    """A line that says so where it is not known whether `instance` runs at another cluster by now. Needs its lock.

    Makes no journal where there is none: plans ask as well.
    """
    if not Journal.is_in(context.cluster.state_dir):
        return []
    return [
        f"{instance} was being moved to cluster {note.data['cluster']} by a run that is gone, and may run there: "
        f"'diskhaul recover {instance}' finds out"
        for run in context.journal.unfinished(instance)
        for note in run.notes
        if note.kind == "moving"
    ]


def other_side(cluster: Cluster, name: str) -> OtherSide:
    """The other cluster `name`.

    Raises:
        RefusedError: it is not configured.
    """
    for other in cluster.clusters:
        if other.name == name:
            return OtherSide(other)
    raise RefusedError(f"cluster {name} is not configured: add [clusters.{name}] with the command that runs diskhaul there")


def runs_there(side: OtherSide, name: str, action: str = "status", move: str | None = None) -> bool:
    """Ask for the guest there, or have it started on behalf of the move `move`; whether it runs there now.

    Raises:
        OtherSideError: no answer that says so, from that cluster and about that guest.
    """
    return bool(_answered(side, name, action, move)["running"])


def _answered(side: OtherSide, name: str, action: str, move: str | None) -> Mapping[str, Any]:
    """As `runs_there`, but for what it answers, with "running" in it."""
    answer = side.ask("guest", action, name, *(() if move is None else ("--move", move)), limit_s=ANSWER_S)
    running = answer.get("running")
    asked = f"guest {action} {name}"
    if answer.get("cluster") != side.name:
        raise side.no_answer(asked, f"who answered calls itself cluster {printable(str(answer.get('cluster')))}")
    if answer.get("instance") != name:
        raise side.no_answer(asked, f"it does not know {name} by its full name")
    if not isinstance(running, bool):
        raise side.no_answer(asked, "it does not say whether it runs")
    return answer


def settle(side: OtherSide, name: str, move: str) -> bool:
    """Find out where a guest is that was told to start there, whatever became of that: True, it runs there; False, its
    start on behalf of this move failed there, or has not come, and will not be obeyed there any more, however late it may come.

    Raises:
        OtherSideError: neither can be said; it ran there, and does not any more.
    """
    if runs_there(side, name):
        return True
    answer = _answered(side, name, "stop", move)
    if not isinstance(answer.get("ran"), bool):
        raise side.no_answer(
            f"guest stop {name}", "it does not say whether it was started there; install the same version here and there"
        )
    if answer["ran"] and not answer["running"]:
        raise side.no_answer(
            f"guest stop {name}",
            "it was started there, or may have been, and does not run there now: see what became of it there, and start it there",
        )
    if answer["running"] and not answer["ran"]:
        raise side.no_answer(f"guest stop {name}", "it does not say that it is down")
    return bool(answer["running"])


def recover_move(context: RunContext, locks: LockSet, run: UnfinishedRun, noted: Note) -> str:
    """Find out where the guest runs, and bring the move to one of its two ends; say which.

    Raises:
        DiskhaulError: that is not known, or could not be done; nothing was started.
    """
    note = MovingNote(**noted.data)
    side = other_side(context.cluster, note.cluster)

    def begin() -> None:
        context.journal.amend(noted.note_id, replace(note, removing=True).data())

    if not note.ran:
        runs = runs_there(side, note.name)
        if not note.removing and not runs:
            there = f"at cluster {note.cluster} it is imported as {note.name}"
            return f"{note.instance} is down, as it was, and was not removed; {there}"
    elif note.started:
        if not runs_there(side, note.name):
            kept = "; what is here is kept" if not note.keep else ""
            raise OperationFailedError(
                f"{note.instance} was started at cluster {note.cluster} as {note.name}, and does not run there now{kept}, and is "
                f"not started here: see what became of it there, start it there, and run 'diskhaul recover {note.instance}' again"
            )
    elif not settle(side, note.name, run.run_id):
        return _rolled_back(context, locks, run, note)
    return _finished(context, locks, note, begin)


def _rolled_back(context: RunContext, locks: LockSet, run: UnfinishedRun, note: MovingNote) -> str:
    instance = context.host.inventory().instances().get(note.instance)
    if instance is None:
        return f"{note.instance} is no longer configured, and was not started; at cluster {note.cluster} it is down"
    runtime = context.host.runtime(instance.runtime)
    locks.check()
    GuestKeeper(runtime, instance, context.journal, run.run_id, context.feedback).keep_running(0.0)
    return f"{note.instance} runs again: its move to cluster {note.cluster} was rolled back"


def _finished(context: RunContext, locks: LockSet, note: MovingNote, begin: Callable[[], object]) -> str:
    where = f"{note.instance} {'runs' if note.ran else 'is'} at cluster {note.cluster} as {note.name}"
    instance = context.host.inventory().instances().get(note.instance)
    if instance is None:
        return f"{where}, and is no longer configured here"
    runtime = context.host.runtime(instance.runtime)
    try:
        if guest_runs(runtime, instance):
            raise _RunsTwiceError(f"{where}, AND RUNS HERE AS WELL: stop one of them")
        if note.keep:
            return f"{where}; here it is down, and was kept as asked"
        remove_guest(context.host, locks, runtime, instance, limit_s=CALL_LIMIT_S, begin=begin)
    except _RunsTwiceError:
        raise
    except DiskhaulError as error:
        if not note.removing or not _is_lost(context, runtime, instance):
            raise
        # The run that is gone had removed it, or had begun to, and what is not there cannot be removed.
        return f"{where}, and its removal here had begun; what is left is to be removed by hand: {error}"
    return f"{where}, and was removed here"


class _RunsTwiceError(OperationFailedError):
    """The guest runs at both clusters."""


def _is_lost(context: RunContext, runtime: Runtime, instance: Instance) -> bool:
    """Whether a guest cannot be started here any more, since its runtime does not know it or a disk is gone."""
    if problems_from(instance.name, partial(runtime.check, instance)):
        return True
    return any(problems_from(disk.label, partial(context.host.storage(disk.storage).check, disk)) for disk in instance.disks)
