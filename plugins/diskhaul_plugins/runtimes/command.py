"""Runtime ``command``: your own programs start, stop and ask the guest.

``[instances.NAME.runtime_options]``:

=================== ============================================================================================
``start``           starts the guest (needed)
``stop``            shuts it down cleanly and returns when it is down, or soon will be (needed)
``status``          exit code 0: it runs; one of ``status_off``: it does not; anything else: unknown (needed)
``remove``          removes the stopped instance for good, disks included
``freeze, thaw``    flush and freeze the guest's filesystems, and undo it (both or neither)
``trim``            has the running guest discard what its filesystems do not use, and returns when it has
``activate_disks``  make a stopped instance's disks readable; ``deactivate_disks`` undoes it (both or neither)
``timeout_s``       seconds each of them may take, 60 unless given; ``stop`` gets the shutdown timeout instead, ``trim`` the
                    zeroing timeout
``status_off``      the exit codes of ``status`` that mean "off", ``[1, 3]`` unless given
``environment``     table of more variables
=================== ============================================================================================

Each command is a list of strings, run without a shell in the directory of the configuration. A program with a slash in it is
relative to that directory; one without is looked for in PATH. Many programs exit with 1 for "no" and for "I could not find out"
alike; give ``status_off`` where yours has a code that only means "off", as ``systemctl is-active`` has with 3. (Whatever it
says, no disk that something still writes to is exported as that of a guest that is off.)

A command sees PATH, HOME, USER, LOGNAME, LANG, LC_ALL, TZ and TMPDIR of diskhaul, ``DISKHAUL_INSTANCE``, for ``stop`` also
``DISKHAUL_SHUTDOWN_TIMEOUT`` (whole seconds), for ``trim`` ``DISKHAUL_TRIM_TIMEOUT``, and ``environment``.
A start command should detach the guest (own session, output elsewhere): what it leaves behind is not touched, but a command
that overruns its time has its whole process group ended.
"""

from __future__ import annotations

import math
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping

from diskhaul.api import STOP_GRACE_S, BackendContext, Capability, Runtime
from diskhaul.errors import GuestError
from diskhaul.model import Instance
from diskhaul.permissions import tampering_problem
from diskhaul.processes import SEARCH_PATH, Finished, run

NEEDED = ("start", "stop", "status")
OPTIONAL = ("remove", "freeze", "thaw", "trim", "activate_disks", "deactivate_disks")
PAIRS = (("freeze", "thaw"), ("activate_disks", "deactivate_disks"))
INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR")
DEFAULT_TIMEOUT_S = 60.0
MAX_TIMEOUT_S = 7 * 24 * 3600.0
RUNNING, STATUS_OFF = 0, (1, 3)  # 3 is what init scripts answer for "not running" (LSB core, 22.2)


def capability() -> Capability:
    return Capability(works=True)


class CommandRuntime(Runtime):
    """Runs the instance's own commands. Thread-safe: it keeps nothing between calls."""

    def __init__(self, context: BackendContext) -> None:
        source = context.cluster.source
        self._directory = source.resolve().parent if source is not None else None

    # --- what an operation asks for ---

    def is_running(self, instance: Instance, /) -> bool:
        return self._is_running(instance, _timeout_s(instance))

    def longest_call_s(self, instance: Instance, /) -> float:
        # A start and the wait that follows it each get the time; the rest is for ending a program that does not listen.
        return 2 * _timeout_s(instance) + STOP_GRACE_S + 30.0

    def stop(self, instance: Instance, /, *, timeout_s: float) -> object:
        """Run ``stop`` and wait until ``status`` says that the guest is down.

        Both together get `timeout_s` and `STOP_GRACE_S`.

        Raises:
            GuestError: the command failed or overran (the guest may or may not be down), or the guest still runs.
        """
        deadline = time.monotonic() + timeout_s + STOP_GRACE_S
        more = {"DISKHAUL_SHUTDOWN_TIMEOUT": f"{timeout_s:.0f}"}
        self._command(instance, "stop", timeout_s + STOP_GRACE_S, more)
        self._wait_until(instance, running=False, deadline=deadline)
        return None

    def start(self, instance: Instance, /) -> object:
        """Run ``start`` and wait until ``status`` says that the guest runs; each gets ``timeout_s``.

        Raises:
            GuestError: the command failed or overran, or the guest does not run.
        """
        timeout_s = _timeout_s(instance)
        self._command(instance, "start", timeout_s)
        self._wait_until(instance, running=True, deadline=time.monotonic() + timeout_s)
        return None

    def remove(self, instance: Instance, /) -> object:
        if "remove" not in instance.runtime_options:
            raise GuestError(f"{instance.name}: cannot be removed, its runtime_options have no 'remove' command")
        self._command(instance, "remove", _timeout_s(instance))
        return None

    def can_freeze(self, instance: Instance, /) -> bool:
        return "freeze" in instance.runtime_options and "thaw" in instance.runtime_options

    def freeze(self, instance: Instance, /) -> object:
        if not self.can_freeze(instance):
            raise GuestError(f"{instance.name}: cannot be frozen, its runtime_options have no 'freeze' and 'thaw' commands")
        self._command(instance, "freeze", _timeout_s(instance))
        return None

    def thaw(self, instance: Instance, /) -> object:
        if "thaw" in instance.runtime_options:
            self._command(instance, "thaw", _timeout_s(instance))
        return None

    def can_trim(self, instance: Instance, /) -> bool:
        return "trim" in instance.runtime_options

    def trim(self, instance: Instance, /, *, timeout_s: float) -> object:
        if not self.can_trim(instance):
            raise GuestError(f"{instance.name}: cannot be trimmed, its runtime_options have no 'trim' command")
        self._command(instance, "trim", timeout_s, {"DISKHAUL_TRIM_TIMEOUT": f"{timeout_s:.0f}"})
        return None

    def activate_disks(self, instance: Instance, /) -> bool:
        """Run ``activate_disks`` where there is one. Always counts as a change then, so that ``deactivate_disks`` follows."""
        if "activate_disks" not in instance.runtime_options:
            return False
        self._command(instance, "activate_disks", _timeout_s(instance))
        return True

    def deactivate_disks(self, instance: Instance, /) -> object:
        if "deactivate_disks" in instance.runtime_options:
            self._command(instance, "deactivate_disks", _timeout_s(instance))
        return None

    # --- how ---

    def _is_running(self, instance: Instance, timeout_s: float) -> bool:
        finished = self._run(instance, "status", timeout_s)
        if finished.ending == "exited" and finished.exit_code == RUNNING:
            return True
        if finished.ending == "exited" and finished.exit_code in _status_off(instance):
            return False
        raise GuestError(_failure(instance, "status", finished) + "; so it is unknown whether the guest runs")

    def _wait_until(self, instance: Instance, *, running: bool, deadline: float) -> None:
        """Ask for the status, at growing intervals, until it is `running`; at the deadline it is an error."""
        interval_s = 0.02
        while True:
            # The last question gets a moment even when the command took all the time there was.
            left = max(deadline - time.monotonic(), 1.0)
            try:
                if self._is_running(instance, min(left, _timeout_s(instance))) == running:
                    return
                error = None
            except GuestError as unknown:  # it may be neither here nor there on its way up or down
                error = unknown
            left = deadline - time.monotonic()
            if left <= 0:
                claimed, found = ("start", "does not run") if running else ("stop", "still runs")
                raise error or GuestError(f"{instance.name}: command '{claimed}' succeeded, but the guest {found}")
            time.sleep(min(interval_s, left))
            interval_s = min(interval_s * 1.5, 1.0)

    def _command(self, instance: Instance, verb: str, timeout_s: float, more: Mapping[str, str] | None = None) -> None:
        finished = self._run(instance, verb, timeout_s, more)
        if not finished.ok:
            raise GuestError(_failure(instance, verb, finished))

    def _run(self, instance: Instance, verb: str, timeout_s: float, more: Mapping[str, str] | None = None) -> Finished:
        problems = [*_command_problems(instance, verb)]
        if problems:
            raise GuestError(problems[0])
        argv = [str(word) for word in instance.runtime_options[verb]]
        environment = self._environment(instance) | dict(more or {})
        program = self._program(argv[0], environment["PATH"])
        if program is None:
            raise GuestError(f"{instance.name}: command '{verb}': {self._program_missing(argv[0])}")
        try:
            return run(
                [program, *argv[1:]],
                cwd=self._directory or "/",
                environment=environment,
                timeout_s=timeout_s,
                # A guest that was started in the background of its command has to outlive it.
                end_group=False,
            )
        except OSError as error:
            raise GuestError(f"{instance.name}: command '{verb}': {program} cannot be run: {error.strerror}") from error

    def _environment(self, instance: Instance) -> dict[str, str]:
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        # System programs live in sbin, which is not on every user's PATH.
        environment["PATH"] = ":".join(filter(None, (environment.get("PATH"), SEARCH_PATH)))
        environment["DISKHAUL_INSTANCE"] = instance.name
        extra = instance.runtime_options.get("environment", {})
        return environment | {str(name): str(value) for name, value in extra.items()}

    def _program(self, name: str, search_path: str) -> str | None:
        """Where the program is, or None."""
        if "/" not in name:
            return shutil.which(name, path=search_path)
        if os.path.isabs(name):
            return name
        return str(self._directory / name) if self._directory is not None else None

    def _program_missing(self, name: str) -> str:
        if "/" in name:
            return f"program {name!r} is relative, and a cluster built in code has no directory: give an absolute path"
        return f"program {name!r} is not in PATH"

    # --- prerequisites ---

    def check(self, instance: Instance, /) -> Iterable[str]:
        prefix = f"instances.{instance.name}.runtime_options"
        options = instance.runtime_options
        known = (*NEEDED, *OPTIONAL, "timeout_s", "status_off", "environment")
        problems = [f"{prefix}.{key}: unknown; there is {', '.join(known)}" for key in options if key not in known]
        problems += [f"{prefix}.{verb}: missing" for verb in NEEDED if verb not in options]
        for one, other in PAIRS:
            if (one in options) != (other in options):
                present, absent = (one, other) if one in options else (other, one)
                problems.append(f"{prefix}.{absent}: missing, but there is '{present}'")
        environment_problems = list(_environment_problems(prefix, options.get("environment", {})))
        problems += environment_problems
        if "timeout_s" in options and not _is_duration(options["timeout_s"]):
            problems.append(f"{prefix}.timeout_s: {options['timeout_s']!r} is not seconds above 0, at most a week")
        if "status_off" in options and not _are_exit_codes(options["status_off"]):
            problems.append(f"{prefix}.status_off: {options['status_off']!r} is not a list of exit codes, 1 to 255, as in [3]")
        search_path = self._environment(instance)["PATH"] if not environment_problems else SEARCH_PATH
        for verb in (*NEEDED, *OPTIONAL):
            if verb in options:
                wrong = list(_command_problems(instance, verb))
                problems += wrong or self._program_problems(f"{prefix}.{verb}", options[verb][0], search_path)
        return problems

    def _program_problems(self, key: str, name: str, search_path: str) -> list[str]:
        program = self._program(name, search_path)
        if program is None:
            return [f"{key}: {self._program_missing(name)}"]
        try:
            mode = os.stat(program).st_mode
        except OSError as error:
            return [f"{key}: program {program}: {error.strerror}"]
        if not stat.S_ISREG(mode) or not os.access(program, os.X_OK):
            return [f"{key}: program {program} is not an executable file"]
        problem = tampering_problem(program)
        return [f"{key}: program {name!r} is not safe: {problem}"] if problem else []


def _command_problems(instance: Instance, verb: str) -> Iterator[str]:
    """Say in one line why the command `verb` is no list of strings."""
    key = f"instances.{instance.name}.runtime_options.{verb}"
    argv = instance.runtime_options.get(verb)
    if argv is None:
        yield f"{key}: missing"
    elif not isinstance(argv, list | tuple) or not argv or not all(isinstance(word, str) for word in argv):
        yield f'{key}: {argv!r} is not a list of strings, as in ["./vm", "{verb}"]'
    elif not argv[0] or any("\0" in word for word in argv):
        yield f"{key}: the program is empty, or a word holds a NUL"


def _environment_problems(prefix: str, environment: object) -> Iterator[str]:
    if not isinstance(environment, Mapping):
        yield f"{prefix}.environment: {environment!r} is not a table of strings"
        return
    for name, value in environment.items():
        if not isinstance(name, str) or not isinstance(value, str):
            yield f"{prefix}.environment.{name}: {value!r} is not a string"
        elif not name or "=" in name or "\0" in name + value:
            yield f"{prefix}.environment: {name!r} is not a variable"


def _is_duration(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 < value <= MAX_TIMEOUT_S


def _timeout_s(instance: Instance) -> float:
    value = instance.runtime_options.get("timeout_s", DEFAULT_TIMEOUT_S)
    if not _is_duration(value):
        raise GuestError(f"instances.{instance.name}.runtime_options.timeout_s: {value!r} is not a number of seconds above 0")
    return float(value)


def _are_exit_codes(value: object) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(type(code) is int and 1 <= code <= 255 for code in value)


def _status_off(instance: Instance) -> tuple[int, ...]:
    value = instance.runtime_options.get("status_off", STATUS_OFF)
    if not _are_exit_codes(value):
        raise GuestError(f"instances.{instance.name}.runtime_options.status_off: {value!r} is not a list of exit codes")
    return tuple(value)


def _failure(instance: Instance, verb: str, finished: Finished) -> str:
    lines = finished.last_lines()
    return f"{instance.name}: command '{verb}' failed: {finished.describe()}" + (f": {lines}" if lines else "")
