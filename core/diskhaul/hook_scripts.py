"""Hook scripts: programs of the administrator that run before and after an operation.

They lie in ``<hook_dir>/<operation>-<phase>.d/`` (``instance-export-pre.d``, ``instance-export-post.d``) and run in the order of
their names, once for every node of the operation. Which files are scripts follows run-parts(8): the name consists of letters,
digits, ``_`` and ``-``, with ``.sh`` or ``.py`` at its end or without; so ``10-quiesce``, ``20-notify.sh``, but not
``10-quiesce~``, ``notify.dpkg-old`` or ``.hidden``. A file that nobody may execute is switched off. A symbolic link counts as
what it leads to.

A script has a clean environment: a fixed PATH, and variables that begin with ``DISKHAUL_``, among them ``DISKHAUL_NODE`` (the
node it runs for), ``DISKHAUL_OPERATION`` and ``DISKHAUL_HOOKS_PHASE``. It starts in ``/`` with umask 077, without standard
input, in a process group of its own that is ended with it: what it leaves in the background is killed.

Since scripts run with our rights, they and their directories must belong to root or to us, and nobody else may write to them.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import HookScriptError, InterruptedRunError
from .permissions import stranger_problems
from .processes import SEARCH_PATH, run

Phase = Literal["pre", "post"]
PHASES: tuple[Phase, Phase] = ("pre", "post")
PREFIX = "DISKHAUL_"
_SCRIPT_NAME = re.compile(r"[A-Za-z0-9_-]+(\.(sh|py))?\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class HookScriptResult:
    """How one script ended for one node.

    Attributes:
        script: its path.
        exit_code: minus the signal's number when a signal ended it; None when it was not, or could not be, run.
        output: its last lines, escaped.
        problem: why it counts as failed, in one line that names script and node, or "".
        seconds: how long it ran.
    """

    script: Path
    node: str
    phase: Phase
    exit_code: int | None = None
    output: str = ""
    problem: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.problem


def run_hooks(
    directory: Path,
    phase: Phase,
    operation: str,
    *,
    environment: Mapping[str, str],
    nodes: Sequence[str],
    timeout_s: float,
    cancelled: Callable[[], bool],
) -> Sequence[HookScriptResult]:
    """Run the scripts of one phase, for each node in the order given (a node that stands twice counts once).

    Args:
        directory: the cluster's ``hook_dir``; one without scripts for this phase gives an empty result.
        environment: variables without the prefix ``DISKHAUL_``, which is added to every name.
        nodes: names; ``DISKHAUL_NODE`` is set to each in turn.
        timeout_s: limit for each script, seconds.
        cancelled: asked while a script runs; when it says True, the script is ended.

    Returns:
        What came of every script. After ``post`` the caller turns every `HookScriptResult.problem` into a warning.

    Raises:
        HookScriptError: a pre script failed or may not be run; later ones were not run.
        InterruptedRunError: `cancelled` said so.
        ValueError: a variable that no environment can hold.
    """
    folder = directory / f"{operation}-{phase}.d"
    variables = _prefixed(environment) | {
        "PATH": SEARCH_PATH,
        PREFIX + "OPERATION": operation,
        PREFIX + "HOOKS_PHASE": phase,
    }
    results: list[HookScriptResult] = []
    try:
        # Asked again although prerequisites did: a script may have changed in between.
        folder_problems = [*_directory_problems(directory), *_directory_problems(folder)] if folder.exists() else []
        scripts = list(_scripts(folder))
    except OSError as error:
        problem = f"hook scripts in {folder} cannot be listed: {error.strerror}"
        if phase == "pre":
            raise HookScriptError(problem) from error
        return (HookScriptResult(script=folder, node="", phase=phase, problem=problem),)
    if folder_problems and scripts:
        if phase == "pre":
            raise HookScriptError(f"hook scripts not run: {folder_problems[0]}")
        return (HookScriptResult(script=folder, node="", phase=phase, problem=f"hook scripts not run: {folder_problems[0]}"),)
    for node in dict.fromkeys(nodes):
        for script in scripts:
            if cancelled():
                raise InterruptedRunError(f"cancelled before hook script {script} on node {node}")
            result = _run_one(script, node, phase, variables, timeout_s, cancelled)
            results.append(result)
            if phase == "pre" and not result.ok:
                raise HookScriptError(result.problem)
    return tuple(results)


def hook_problems(hook_dir: Path, operation: str) -> list[str]:
    """Say, one line each, why the scripts of an operation may not be run: owners, permissions, a missing `hook_dir`."""
    if not hook_dir.is_dir():
        state = "is not a directory" if os.path.lexists(hook_dir) else "does not exist"
        return [f"cluster.hook_dir: {hook_dir} {state}: create it, or leave out hook_dir"]
    problems = _directory_problems(hook_dir)
    for phase in PHASES:
        folder = hook_dir / f"{operation}-{phase}.d"
        if not os.path.lexists(folder):
            continue
        try:
            problems += _directory_problems(folder)
            for script in _scripts(folder):
                problems += _script_problems(script)
        except OSError as error:
            problems.append(f"{folder}: {error.strerror}")
    return problems


def _prefixed(environment: Mapping[str, str]) -> dict[str, str]:
    variables = {}
    for name, value in environment.items():
        if not _VARIABLE.match(name) or "\0" in value:
            raise ValueError(f"{name!r} cannot be a variable of a hook script")
        variables[PREFIX + name] = value
    return variables


def _scripts(folder: Path) -> Iterator[Path]:
    """Paths of the scripts in `folder`, in order; nothing when there is no such directory."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    for name in names:
        path = folder / name
        if not _SCRIPT_NAME.match(name):
            continue
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:  # a link that leads nowhere
            continue
        if stat.S_ISREG(mode) and mode & 0o111:
            yield path


def _script_problems(script: Path) -> list[str]:
    """Why `script` may not be run."""
    problems = [f"hook script {problem}" for problem in stranger_problems(script, os.stat(script))]
    if script.is_symlink():
        problems += _directory_problems(script.resolve().parent)
    return problems


def _directory_problems(directory: Path) -> list[str]:
    """Why scripts in `directory` cannot be trusted."""
    found = os.stat(directory)
    if not stat.S_ISDIR(found.st_mode):
        return [f"hook directory {directory} is not a directory"]
    return [f"hook directory {problem}" for problem in stranger_problems(directory, found)]


def _run_one(
    script: Path, node: str, phase: Phase, variables: Mapping[str, str], timeout_s: float, cancelled: Callable[[], bool]
) -> HookScriptResult:
    place = f"{phase} hook script {script} on node {node}"
    try:
        problems = _script_problems(script)
        if problems:
            return HookScriptResult(script=script, node=node, phase=phase, problem=f"{place}: not run: {problems[0]}")
        finished = run(
            [str(script)],
            environment={**variables, PREFIX + "NODE": node},
            timeout_s=timeout_s,
            cancelled=cancelled,
            umask=0o077,
        )
    except OSError as error:
        problem = f"{place}: cannot be run: {error.strerror}"
        return HookScriptResult(script=script, node=node, phase=phase, problem=problem)
    if finished.ending == "cancelled":
        raise InterruptedRunError(f"cancelled during {place}")
    output = finished.last_lines()
    problem = "" if finished.ok else f"{place}: {finished.describe()}" + (f": {output}" if output else "")
    return HookScriptResult(
        script=script,
        node=node,
        phase=phase,
        exit_code=finished.exit_code,
        output=output,
        problem=problem,
        seconds=finished.seconds,
    )
