"""The life of an operation.

Every operation goes through the same steps in the same order, named as in Ganeti's logical units: `check_arguments`,
`expand_names`, `declare_locks` and the locks, `check_prerequisites`, the pre hook scripts, `execute`, the post hook scripts, and
the locks' release. Only `execute` may touch an instance.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, TypeVar

from ..api import HeldLock, LockMode
from ..cancellation import CancellationToken, run_shielded
from ..errors import DiskhaulError, LockError, RefusedError
from ..events import LockWaiting, OperationFinished
from ..feedback import EventListener, Feedback
from ..host import PluginHost
from ..journal import Journal
from ..model import Cluster, Instance, Node
from ..names import expand_name
from .plugin_answers import problems_from

if TYPE_CHECKING:
    from ..hook_scripts import HookScriptResult

R = TypeVar("R")
_OUTCOMES = {0: "ok", 4: "ok", 2: "refused", 130: "interrupted"}
"""What an exit code means to those who watch; every other is a failure."""


class LockLevel(IntEnum):
    """Locks are taken level by level in this order, and by name inside a level, so that operations can never deadlock."""

    FLEET = 0
    """A fleet's plan, exclusive for the one client that works on it. The fleet's exports take the others."""
    CLUSTER = 1
    INSTANCE = 2
    NODE = 3
    EXPORT = 4
    """A single export, by its id: shared by those who read it, exclusive for those who remove it."""


class RunContext:
    """What an operation works with: the cluster, the plugins, and the run it is.

    Attributes:
        plugins, on_event: those of the call, for operations that run other ones.
        run_id: uuid of this run.
        owner: one line that says who holds this run's locks.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        plugins: Sequence[object] = (),
        on_event: EventListener | None = None,
        token: CancellationToken | None = None,
    ) -> None:
        self.cluster = cluster
        self.plugins = tuple(plugins)
        self.on_event = on_event
        self.run_id = str(uuid.uuid4())
        self.token = token or CancellationToken()
        self.host = PluginHost(cluster, plugins, on_warning=lambda message: self.feedback.warn(message))
        self.feedback = Feedback(self.run_id, self.host, on_event)

    @cached_property
    def journal(self) -> Journal:
        return Journal(self.cluster.state_dir)

    def owner(self, doing: str) -> str:
        return f"{doing} (run {self.run_id[:8]})"


class LockSet:
    """The locks of one run. Released by `release`, last taken first."""

    def __init__(self, context: RunContext, doing: str) -> None:
        self._context = context
        self._owner = context.owner(doing)
        self._held: list[tuple[str, HeldLock]] = []

    def acquire(self, level: LockLevel, wanted: Mapping[str, LockMode], deadline_s: float) -> ExitStack:
        """Take all of `wanted`, sorted by name, within `deadline_s` seconds together; return a stack that releases just these.

        Raises:
            LockTimeoutError, LockError, InterruptedRunError: none of `wanted` is held then.
        """
        locks = self._context.host.locks()
        until = time.monotonic() + deadline_s
        stack = ExitStack()
        with ExitStack() as undo:
            undo.push(stack)
            for name in sorted(wanted):
                full_name = f"{level.name.lower()}/{name}"

                def on_wait(holder: str, full_name: str = full_name) -> None:
                    self._context.feedback.emit(LockWaiting(lock=full_name, holder=holder))

                try:
                    held = locks.acquire(
                        full_name,
                        wanted[name],
                        owner=self._owner,
                        deadline_s=max(0.0, until - time.monotonic()),
                        on_wait=on_wait,
                        cancelled=lambda: self._context.token.cancelled,
                    )
                except DiskhaulError:
                    raise
                except BaseException as error:  # a plugin may raise anything, SystemExit included
                    raise LockError(f"lock {full_name}: the lock service failed: {type(error).__name__}: {error}") from error
                if not callable(getattr(held, "check", None)) or not callable(getattr(held, "release", None)):
                    raise LockError(f"lock {full_name}: the lock service gave {held!r}, which is no lock")
                entry = (full_name, held)
                self._held.append(entry)
                stack.callback(self._release, entry)
            undo.pop_all()
        return stack

    def _release(self, entry: tuple[str, HeldLock]) -> None:
        if entry in self._held:
            self._held.remove(entry)
            try:
                entry[1].release()
            except BaseException as error:  # the work is done; a lock that cannot be given back expires by its lease
                self._context.feedback.warn(f"lock {entry[0]} could not be released: {error}; it expires by itself")

    def check(self) -> None:
        """Raise `LockLostError` unless every lock of this run is still held (asked of the lock service)."""
        self.checker()()

    def checker(self) -> Callable[[], None]:
        """`check` of the locks that are held now, for any thread, and also once they have been released."""
        held = [lock for _, lock in self._held]

        def check() -> None:
            for lock in held:
                lock.check()

        return check

    def release(self) -> None:
        for entry in reversed(self._held.copy()):
            self._release(entry)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Seconds an operation waits: for all locks of one level, and for one hook script."""

    lock_s: float = 3600.0
    hook_s: float = 60.0


class Operation(Generic[R]):
    """Base of all operations; subclasses fill in the steps they need.

    Attributes:
        name: what messages and the journal call it.
        hooks_name: the directory prefix of its hook scripts ("instance-export"), or "" for none.
        locks: what this run holds.
    """

    name: ClassVar[str] = ""
    hooks_name: ClassVar[str] = ""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.cluster = context.cluster
        self.host = context.host
        self.feedback = context.feedback
        self.token = context.token
        self.timeouts = Timeouts()
        self.dry_run = False
        self.locks = LockSet(context, self.name)

    # --- the steps, in order ----------------------------------------------------------------------------------------

    def check_arguments(self) -> None:
        """Reject contradictory options before anything is looked up."""

    def expand_names(self) -> None:
        """Turn short names into full ones."""

    def instance_and_node(self, asked: str) -> tuple[Instance, Node]:
        """The instance that `asked` means, and the node it lives on; for `expand_names`.

        Raises:
            RefusedError: it is unknown, or its node is.
        """
        inventory = self.host.inventory()
        instances, nodes = inventory.instances(), inventory.nodes()
        instance = instances[expand_name("instance", asked, instances)]
        if instance.node not in nodes:
            raise RefusedError(f"instance {instance.name}: its node {instance.node!r} is unknown")
        return instance, nodes[instance.node]

    def declare_locks(self, level: LockLevel) -> Mapping[str, LockMode]:
        """Say which locks of `level` are needed; the levels above are held by now."""
        return {}

    def check_prerequisites(self) -> None:
        """Read state under the locks; every refusal happens here or earlier."""

    def build_hooks_env(self) -> dict[str, str]:
        """What hook scripts see, without the ``DISKHAUL_`` prefix."""
        return {}

    def build_hooks_nodes(self) -> list[str]:
        """On which nodes hook scripts run."""
        return []

    def execute(self, feedback: Feedback) -> R:
        """Do the work."""
        raise NotImplementedError

    def dry_run_result(self) -> R:
        """What `run` answers instead of executing."""
        raise NotImplementedError

    def home(self) -> Node | None:
        """The node whose guest and disks it works on, once names are expanded; None where it may run anywhere."""
        return None

    def describe(self) -> str:
        """What this run is doing, for those who wait for its locks."""
        return self.name

    # --- the life ---------------------------------------------------------------------------------------------------

    def run(self) -> R:
        """Live the life described above. Ctrl-C cancels and never tears (`run_shielded`).

        Raises:
            DiskhaulError: see `diskhaul.errors`; RefusedError and LockTimeoutError mean that nothing was touched.
        """
        try:
            return run_shielded(self._live_and_tell, self.token)
        finally:
            self.feedback.close()

    def _live_and_tell(self) -> R:
        for warning in self.host.blocked_in_vain:
            self.feedback.warn(warning)
        try:
            result = self._live()
        except BaseException as error:
            self.feedback.emit(ending(self.name, error=error, result=getattr(error, "result", None)))
            raise
        self.feedback.emit(ending(self.name, error=None, result=result))
        return result

    def _live(self) -> R:
        self.check_arguments()
        self.expand_names()
        self.locks = LockSet(self.context, self.describe())
        with ExitStack() as stack:
            stack.callback(self.locks.release)
            self._take_locks()
            self.token.raise_if_cancelled()
            with self.feedback.stage("prerequisites"):
                self.check_prerequisites()
            environment = self._hooks_environment()
            self._run_pre_hooks(environment)
            self.token.raise_if_cancelled()
            if self.dry_run:
                return self.dry_run_result()
            result = self.execute(self.feedback)
            self._run_post_hooks(environment)
            return result

    def _take_locks(self) -> None:
        wanted_anything = False
        for level in LockLevel:
            wanted = self.declare_locks(level)
            if not wanted:
                continue
            if not wanted_anything:
                _ = self.context.journal  # makes the state directory, which locks may lie in too
                problems = problems_from("locks", self.host.locks().check)
                if problems:
                    raise RefusedError(problems)
                wanted_anything = True
            with self.feedback.stage("locks", f"{level.name.lower()}: {', '.join(sorted(wanted))}"):
                self.locks.acquire(level, wanted, self.timeouts.lock_s)

    # --- hook scripts -----------------------------------------------------------------------------------------------

    @property
    def _has_hooks(self) -> bool:
        return bool(self.hooks_name) and self.cluster.hook_dir is not None

    def _hooks_environment(self) -> dict[str, str]:
        return self.build_hooks_env() if self._has_hooks else {}

    def _run_pre_hooks(self, environment: Mapping[str, str]) -> None:
        if not self._has_hooks:
            return
        with self.feedback.stage("pre hooks"):
            self._run_hooks("pre", environment)

    def _run_post_hooks(self, environment: Mapping[str, str]) -> None:
        """Post scripts see what held before, and under ``POST_`` what holds now; their failures are warnings."""
        if not self._has_hooks:
            return
        with self.feedback.stage("post hooks"):
            try:
                after = {f"POST_{name}": value for name, value in self.build_hooks_env().items()}
                self._run_hooks("post", {**environment, **after})
            except Exception as error:  # the work is done and stays done
                self.feedback.warn(f"post hook scripts: {error}")

    def _run_hooks(self, phase: Literal["pre", "post"], environment: Mapping[str, str]) -> None:
        from ..hook_scripts import run_hooks

        assert self.cluster.hook_dir is not None
        basic = {
            "HOOKS_VERSION": "1",
            "HOOKS_PATH": self.hooks_name,
            "OP_CODE": self.name,
            "CLUSTER": self.cluster.name,
            "MASTER": self.cluster.master,
            "RUN_ID": self.context.run_id,
        }
        environment, nodes, timeout_s = {**basic, **environment}, self.build_hooks_nodes(), self.timeouts.hook_s
        if self.host.engine().distributed:
            from .at_node import run_hooks_at

            results: Sequence[HookScriptResult] = run_hooks_at(
                self.context, nodes, phase, self.hooks_name, timeout_s=timeout_s, environment=environment
            )
        else:
            results = run_hooks(
                self.cluster.hook_dir,
                phase,
                self.hooks_name,
                environment=environment,
                nodes=nodes,
                timeout_s=timeout_s,
                # Once the work is done, the scripts that follow it run whatever is asked meanwhile.
                cancelled=lambda: phase == "pre" and self.token.cancelled,
            )
        for result in results:
            if result.problem:
                self.feedback.warn(result.problem)


def ending(operation: str, *, error: BaseException | None, result: object) -> OperationFinished:
    """The last event of an operation that raised `error`, or ended with `result`."""
    if isinstance(error, DiskhaulError):
        exit_code = error.exit_code
    elif error is not None:
        exit_code = 1
    else:
        exit_code = getattr(result, "exit_code", 0)
    return OperationFinished(
        operation=operation,
        outcome=_OUTCOMES.get(exit_code, "failed"),
        exit_code=exit_code,
        error=str(error) if error is not None else "",
        export_id=getattr(getattr(result, "export", None), "export_id", ""),
    )
