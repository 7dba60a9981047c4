"""Runs operations where they belong: with an engine whose nodes are other processes, on the node an instance lives on.

There everything is at hand that an export touches (the guest, its disks, their snapshots, the journal), so an operation is run
there whole, and what it tells comes back. The node goes by its own configuration; only names and options travel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..api import Link
from ..cancellation import CancellationToken, run_shielded
from ..config import load_cluster
from ..errors import DiskhaulError, RefusedError, UnknownNameError, UnreachableNodeError
from ..events import Event, OperationFinished
from ..hook_scripts import HookScriptResult, Phase, run_hooks
from ..model import Node
from ..names import expand_name
from ..records import RecoverResult
from ..this_node import this_node
from .base import Operation, RunContext, ending
from .catalog import PARALLEL_NODES
from .recover import RecoverOperation

R = TypeVar("R")


def run_where_it_belongs(kind: type[Operation[R]], context: RunContext, *arguments: Any, **options: Any) -> R:
    """Run ``kind(context, *arguments, **options)`` on the node it belongs to.

    Raises:
        UnreachableNodeError: that node does not answer, or is gone in the middle: then nobody can say what became of the run,
            until the node is back and recovers.
        DiskhaulError: what the operation raises.
    """
    operation = kind(context, *arguments, **options)
    home = _home(operation)
    if home is None:
        return operation.run()
    engine, told = context.host.engine(), _Told(context)

    def run_there() -> R:
        try:
            if context.plugins:
                raise RefusedError(f"plugins given in a call do not reach node {home.name}: install them there (entry points)")
            if home.offline:
                raise UnreachableNodeError(home.name, f"node {home.name} is marked offline in the configuration")
            answer: R = engine.run_linked(home, run_here, kind, arguments, options, on_message=told.pass_on, token=context.token)
            return answer
        except BaseException as error:
            if not told.ending:
                context.feedback.emit(ending(kind.name, error=error, result=None))
            raise

    try:
        return run_shielded(run_there, context.token)
    finally:
        context.feedback.close()


def _home(operation: Operation[Any]) -> Node | None:
    """The node that `operation` is to be sent to, or None where it is run here, if only to be refused."""
    engine = operation.host.engine()
    if not engine.distributed:
        return None
    try:
        operation.check_arguments()
        operation.expand_names()
    except DiskhaulError:
        return None  # it says so itself, to all who listen
    home = operation.home()
    return None if home is None or engine.here(home) else home


class _Told:
    """Hands on what a run tells from its node, and knows whether it has told its end."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self.ending = False

    def pass_on(self, event: Event) -> None:
        self.ending = self.ending or isinstance(event, OperationFinished)
        self._context.feedback.emit(event)


def run_here(link: Link, kind: type[Operation[R]], arguments: Sequence[Any], options: dict[str, Any]) -> R:
    """What a node does when it is asked to run an operation."""
    context = RunContext(load_cluster(_own_configuration()), on_event=link.send, token=link.token)
    return kind(context, *arguments, **options).run()


def _own_configuration() -> Path:
    node = this_node()
    if node is None:
        raise RefusedError("this process is no node: start it with 'diskhaul node serve'")
    return node.config


# --- hook scripts -----------------------------------------------------------------------------------------------------


def run_hooks_at(
    context: RunContext, nodes: Sequence[str], phase: Phase, operation: str, *, timeout_s: float, **arguments: Any
) -> list[HookScriptResult]:
    """Run the scripts of one phase on each of `nodes`, as `hook_scripts.run_hooks` does here.

    Raises:
        UnreachableNodeError: a node does not answer; only before the operation, later it is among the results.
        HookScriptError, InterruptedRunError: as `run_hooks`.
    """
    engine, known = context.host.engine(), context.host.inventory().nodes()
    results: list[HookScriptResult] = []
    for name in dict.fromkeys(nodes):
        if name not in known:
            raise RefusedError(f"hook scripts are to run on node {name!r}, which is unknown: correct cluster.master")
        try:
            results += engine.run_linked(
                known[name],
                _hooks_here,
                name,
                phase,
                operation,
                timeout_s,
                arguments,
                on_message=_ignore,
                token=context.token if phase == "pre" else CancellationToken(),
                brief=True,
            )
        except UnreachableNodeError as error:
            if phase == "pre":
                raise
            results.append(HookScriptResult(script=Path(f"{operation}-{phase}.d"), node=name, phase=phase, problem=str(error)))
    return results


def _ignore(message: object) -> None:
    pass


def _hooks_here(
    link: Link, name: str, phase: Phase, operation: str, timeout_s: float, arguments: dict[str, Any]
) -> list[HookScriptResult]:
    hook_dir = load_cluster(_own_configuration()).hook_dir
    if hook_dir is None:
        return []
    results = run_hooks(
        hook_dir,
        phase,
        operation,
        nodes=[name],
        timeout_s=timeout_s,
        # Once the work is done, the scripts that follow it run whatever is asked meanwhile.
        cancelled=lambda: phase == "pre" and link.token.cancelled,
        **arguments,
    )
    return list(results)


# --- recovery ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recovered:
    """What a node says when it was asked to recover. `elsewhere`: instances of which the journal tells, and the nodes to ask."""

    result: RecoverResult
    elsewhere: Mapping[str, str]


def recover_everywhere(context: RunContext, instance: str | None, lock_timeout_s: float) -> RecoverResult:
    """Have every node recover what runs on it have left; here too.

    A node that does not answer, or cannot recover, is among what is incomplete. No other node does its work.

    Raises:
        UnknownNameError: no node that answers knows `instance`.
        InterruptedRunError: cancelled.
    """
    engine, emit = context.host.engine(), context.feedback.emit
    if not engine.distributed or this_node() is not None:
        return RecoverOperation(context, instance, lock_timeout_s).run()
    nodes = [node for node in context.host.inventory().nodes().values() if not node.offline]

    def at(node: Node) -> _Recovered | DiskhaulError:
        try:
            recovered: _Recovered = engine.run_linked(
                node, _recover_here, instance, lock_timeout_s, on_message=emit, token=context.token, brief=True
            )
            return recovered
        except UnreachableNodeError as error:
            return error
        except DiskhaulError as error:
            if context.token.cancelled:
                raise
            return error

    def everywhere() -> RecoverResult:
        with ThreadPoolExecutor(PARALLEL_NODES) as pool:
            answers = list(pool.map(at, nodes))
        answered = [answer for answer in answers if not isinstance(answer, UnreachableNodeError)]
        unknown = [answer for answer in answered if isinstance(answer, UnknownNameError)]
        if unknown and len(unknown) == len(answered) and not (instance is not None and _home_of(context, instance)):
            raise unknown[0]
        told = dict(zip((node.name for node in nodes), answers, strict=True))
        recovered = [answer for answer in answers if isinstance(answer, _Recovered)]
        homes = {name: home for answer in recovered for name, home in answer.elsewhere.items()}
        if instance is not None and not (recovered and engine.shared_state_dir):
            homes |= _home_of(context, instance)
        return _together(told, {name: home for name, home in homes.items() if home not in told})

    try:
        return run_shielded(everywhere, context.token)
    finally:
        context.feedback.close()


def _recover_here(link: Link, instance: str | None, lock_timeout_s: float) -> _Recovered:
    context = RunContext(load_cluster(_own_configuration()), on_event=link.send, token=link.token)
    operation = RecoverOperation(context, instance, lock_timeout_s)
    return _Recovered(result=operation.run(), elsewhere=operation.elsewhere)


def _home_of(context: RunContext, instance: str) -> dict[str, str]:
    """The instance's full name, and the node it lives on, as far as they are known here."""
    instances = context.host.inventory().instances()
    try:
        name = expand_name("instance", instance, instances)
    except RefusedError:
        return {}
    return {name: instances[name].node}


def _together(told: Mapping[str, _Recovered | DiskhaulError], not_asked: Mapping[str, str]) -> RecoverResult:
    """What the nodes told, as one result; `not_asked`: instances, and their nodes that are not among them."""
    results, incomplete, unreachable, failed = [], [], [], []
    for name, answer in told.items():
        if isinstance(answer, _Recovered):
            results.append(answer.result)
        elif isinstance(answer, UnreachableNodeError):
            unreachable.append(name)
        elif not isinstance(answer, UnknownNameError):  # another node knows it
            failed.append(name)
        if name in (*unreachable, *failed):
            incomplete.append(f"node {name}: {answer}")
    for instance, home in sorted(not_asked.items()):
        incomplete.append(f"node {home} is offline or unknown, and was not asked: nobody else recovers {instance}")
    return RecoverResult(
        done=tuple(line for result in results for line in result.done),
        incomplete=(*(line for result in results for line in result.incomplete), *incomplete),
        busy=tuple(name for result in results for name in result.busy),
        unreachable=(*unreachable, *sorted(set(not_asked.values()))),
        failed=tuple(failed),
    )
