"""Asking whether a guest runs, starting it, stopping it: through its runtime, under its instance's lock."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, get_args

from ..api import LockMode, Runtime
from ..errors import DiskhaulError, GuestError, RefusedError
from ..events import GuestChanged
from ..feedback import Feedback
from ..model import Instance, Node
from ..names import name_problem, printable
from ..options import MAX_TIMEOUT_S
from ..records import GuestResult
from .base import LockLevel, Operation, RunContext, Timeouts
from .disk_identity import disk_identities
from .guest import GuestHangsError, GuestKeeper, guest_call, guest_runs
from .moving import being_moved
from .plugin_answers import problems_from
from .recover import settle_start

Action = Literal["status", "start", "stop"]
ACTIONS: tuple[Action, ...] = get_args(Action)
_LOOK_S = 30.0  # for one disk
_RUN_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class GuestOperation(Operation[GuestResult]):
    """Looks at, starts or stops one guest. What is so already is left alone.

    A start that another cluster's move asks for may come late, when the move has long been rolled back there: the command that
    carries it may have been cut off and still go on. So a stop on behalf of a move first revokes the move's id, under the lock
    that a start needs too, and a start with a revoked id is refused. A guest that was started on behalf of the move, or may have
    been, is left as it is by such a stop: what it has written since is nowhere else.

    Raises (from `run`):
        RefusedError: nothing was touched.
        LockTimeoutError: somebody else works on the instance.
        GuestError: its state cannot be found out, or it cannot be started or stopped.
    """

    name = "guest"

    def __init__(
        self,
        context: RunContext,
        action: str,
        instance: str,
        *,
        shutdown_timeout_s: float,
        lock_timeout_s: float,
        move: str | None = None,
        disks: bool = False,
    ) -> None:
        """With `move`, the id of the run at another cluster on whose behalf the guest is started or stopped.

        With `disks`, a status says of a guest that is down what its disks are.
        """
        super().__init__(context)
        self._move, self._disks = move, disks
        self._action, self._asked, self._shutdown_s = action, instance, shutdown_timeout_s
        self.timeouts = Timeouts(lock_s=lock_timeout_s)
        self.instance: Instance
        self.node: Node
        self.runtime: Runtime

    def describe(self) -> str:
        return f"{self._action} of {self.instance.name}"

    def check_arguments(self) -> None:
        problems = [problem for problem in (name_problem("instance", self._asked),) if problem]
        if self._action not in ACTIONS:
            problems.append(f"action {printable(str(self._action))}: one of {', '.join(ACTIONS)}")
        if self._move is not None and self._action == "status":
            problems.append("move: only for start and stop")
        if self._disks and self._action != "status":
            problems.append("disks: only for status")
        if self._move is not None and not _RUN_ID.fullmatch(self._move):
            problems.append(f"move {printable(self._move)}: is not the id of a run")
        if not 0 <= self._shutdown_s <= MAX_TIMEOUT_S:
            problems.append(f"shutdown_timeout_s: must be from 0 to {MAX_TIMEOUT_S}")
        if problems:
            raise RefusedError(problems)

    def expand_names(self) -> None:
        self.instance, self.node = self.instance_and_node(self._asked)

    def home(self) -> Node:
        return self.node

    def declare_locks(self, level: LockLevel) -> Mapping[str, LockMode]:
        if level is LockLevel.CLUSTER:
            return {self.cluster.name: LockMode.SHARED}
        if level is LockLevel.INSTANCE:
            return {self.instance.name: LockMode.SHARED if self._action == "status" else LockMode.EXCLUSIVE}
        return {}

    def check_prerequisites(self) -> None:
        self.runtime = self.host.runtime(self.instance.runtime)
        if problems := problems_from(self.instance.name, lambda: self.runtime.check(self.instance)):
            raise RefusedError(problems)
        if self._action == "start" and (lines := being_moved(self.context, self.instance.name)):
            raise RefusedError(lines)
        if self._action == "start" and self._move is not None and self.context.journal.is_revoked(self._move):
            raise RefusedError(
                f"{self.instance.name}: its move (run {self._move[:8]}) was rolled back: it is not started for that"
            )

    def execute(self, feedback: Feedback) -> GuestResult:
        ran = self._action == "stop" and self._move is not None and self.context.journal.has_begun(self._move)
        if self._action == "stop" and self._move is not None and not ran:
            self.context.journal.revoke(self._move, self.instance.name)
        before = guest_runs(self.runtime, self.instance)
        if self._action == "start":
            self._start(before, feedback)
        elif self._action == "stop" and before and not ran:
            self._stop(feedback)
        if self._action != "status" and self._move is None:  # no run that is gone is to start it once it has been stopped here
            settle_start(self.context, self.instance.name, started=self._action == "start")
        running = {"status": before, "start": True, "stop": before and ran}[self._action]
        return GuestResult(
            run_id=self.context.run_id,
            cluster=self.cluster.name,
            instance=self.instance.name,
            node=self.node.name,
            running=running,
            changed=running != before,
            ran=ran,
            disks=disk_identities(self.host, self.instance, limit_s=_LOOK_S) if self._disks and not running else (),
            warnings=tuple(feedback.warnings),
        )

    def _start(self, runs: bool, feedback: Feedback) -> None:
        """Start the guest unless it `runs`, and keep in mind for which move."""
        if self._move is not None:
            self.context.journal.begin_start(self._move, self.instance.name)
        if runs:
            return
        keeper = GuestKeeper(self.runtime, self.instance, self.context.journal, self.context.run_id, feedback)
        try:
            with feedback.stage("start", self.instance.name):
                self.locks.check()
                keeper.keep_running(0.0)
        except BaseException as error:
            if self._move is not None and not isinstance(error, GuestHangsError):
                self._forget_start(self._move, error)
            raise

    def _forget_start(self, move: str, error: BaseException) -> None:
        """A start that failed with `error` counts for nothing once the guest is known to be down."""
        try:
            if not guest_runs(self.runtime, self.instance):
                self.context.journal.forget_start(move)
        except DiskhaulError as doubt:
            error.add_note(f"while asking whether it runs: {doubt}")

    def _stop(self, feedback: Feedback) -> None:
        with feedback.stage("stop", self.instance.name):
            limit_s = self._shutdown_s
            guest_call("stop it", self.runtime, self.runtime.stop, self.instance, more_s=limit_s, timeout_s=limit_s)
            if guest_runs(self.runtime, self.instance):
                raise GuestError(f"{self.instance.name}: its runtime says that it stopped the guest, and it is still running")
        feedback.emit(GuestChanged(instance=self.instance.name, change="stopped"))
