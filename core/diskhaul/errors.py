"""Every error diskhaul raises, one tree.

    DiskhaulError                       1   unexpected; the base of all
    ├── RefusedError                    2   nothing has been touched
    │   ├── ConfigurationError          2   a configuration that is not usable (all problems at once)
    │   ├── UnknownNameError            2   an instance, node or export that does not exist
    │   ├── AmbiguousNameError          2   a short name that fits several
    │   └── PluginError                 2   a plugin that cannot be used
    │       ├── PluginClashError        2   two plugins give the same backend name
    │       ├── UnknownBackendError     2   a backend name nobody provides
    │       ├── InvalidHookResultError  2   a hook answered with the wrong thing
    │       └── IncompatiblePluginError 2   built for another plugin API
    ├── OperationFailedError            3   failed; earlier exports are intact, the guest is as before unless it says IS DOWN
    │   ├── GuestError                  3   a guest could not be stopped, started, frozen or removed
    │   ├── SnapshotError               3   a snapshot could not be made, is missing or is not what it claims
    │   ├── StorageError                3   a disk or a stored file could not be read or written
    │   ├── UnreachableNodeError        3   a node does not answer
    │   └── HookScriptError             3   a pre hook script failed (nothing has been touched then, either)
    ├── LockError                       5
    │   ├── LockTimeoutError            5   a lock could not be had before its deadline
    │   └── LockLostError               3   a lease was lost in the middle of a run
    ├── VerificationError               6   stored bytes are not what the manifest says
    └── InterruptedRunError           130   cancelled; as for 3

The number is the exit code of the command line. A failure during clean-up is added to the first error as a note
(`BaseException.add_note`) and in `DiskhaulError.also`; it never replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar


class DiskhaulError(Exception):
    """The base of every error diskhaul raises on purpose.

    Attributes:
        exit_code: what the command line exits with.
        also: errors met while cleaning up after this one, oldest first.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.also: list[BaseException] = []

    def __reduce__(self) -> tuple[Callable[..., DiskhaulError], tuple[object, ...]]:
        """Errors travel between nodes: made again as they are, whatever their class wants to be given."""
        return _made_again, (type(self), self.args, self.__dict__)

    def add(self, error: BaseException, doing: str) -> None:
        """Attach a failure met while cleaning up (`doing` says what was being done)."""
        self.also.append(error)
        self.add_note(f"while {doing}: {error}")


class RefusedError(DiskhaulError):
    """The operation was refused before anything was touched.

    Attributes:
        problems: every reason found, one line each.
    """

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class ConfigurationError(RefusedError):
    """The configuration cannot be used; each problem starts with its file or key path."""


class UnknownNameError(RefusedError):
    """A name that does not exist.

    Attributes:
        kind: "instance", "node" or "export".
        name: what was asked for.
    """

    def __init__(self, kind: str, name: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.name = name


class AmbiguousNameError(RefusedError):
    """A short name that fits several full names (`candidates`)."""

    def __init__(self, kind: str, name: str, candidates: Iterable[str]) -> None:
        self.kind = kind
        self.name = name
        self.candidates = tuple(sorted(candidates))
        super().__init__(f"{kind} {name!r} fits several: {', '.join(self.candidates)}; give the full name")


class PluginError(RefusedError):
    """A plugin, or a backend it provides, that cannot be used."""


class PluginClashError(PluginError):
    """Two plugins provide a backend of the same name for one stage."""


class UnknownBackendError(PluginError):
    """No plugin provides the named backend; the message lists those that exist."""


class InvalidHookResultError(PluginError):
    """A hook returned something other than what its specification says."""


class IncompatiblePluginError(PluginError):
    """A plugin was built for another version of the plugin API."""


class OperationFailedError(DiskhaulError):
    """The operation failed after it began; guests and earlier exports are as before.

    Attributes:
        parts: the failed parts by name, for example ``("disk export: disk(s) 0, 2",)``.
        result: the operation's result as far as it came (`diskhaul.ExportResult` for an export), or None.
    """

    exit_code = 3

    def __init__(self, message: str, *, parts: Iterable[str] = (), result: object | None = None) -> None:
        super().__init__(message)
        self.parts = tuple(parts)
        self.result = result


class GuestError(OperationFailedError):
    """A guest could not be stopped, started, frozen, thawed or removed."""


class SnapshotError(OperationFailedError):
    """A snapshot could not be created, is gone, or is not what its backend claims."""


class StorageError(OperationFailedError):
    """A disk or a stored file could not be read or written.

    Attributes:
        path: the file or device, or a storage's own description of the disk.
        offset: bytes from its start, or None where the failure has no place.
    """

    def __init__(self, message: str, *, path: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.offset = offset


class UnreachableNodeError(OperationFailedError):
    """A node does not answer, or its export directory is not there.

    Attributes:
        node: its name.
        in_doubt: it was lost in the middle: nobody knows whether what ran there was done, goes on, or died.
    """

    def __init__(self, node: str, message: str, *, in_doubt: bool = False) -> None:
        super().__init__(message)
        self.node = node
        self.in_doubt = in_doubt


class HookScriptError(OperationFailedError):
    """A hook script that had to succeed did not."""


class LockError(DiskhaulError):
    """A lock could not be taken or kept."""

    exit_code = 5


class LockTimeoutError(LockError):
    """A lock was not free before its deadline.

    Attributes:
        lock: its level and name, for example ``instance/web1.example.com``.
        holder: who holds it, as far as is known.
    """

    def __init__(self, lock: str, holder: str, waited_s: float) -> None:
        super().__init__(f"lock {lock}: not free after {waited_s:.0f} s; held by {holder}")
        self.lock = lock
        self.holder = holder


class LockLostError(LockError):
    """A lease ran out, or another process took the lock over, in the middle of a run."""

    exit_code = 3


class VerificationError(DiskhaulError):
    """Stored bytes are not what the manifest says.

    Attributes:
        findings: every `diskhaul.Finding` (export, disk, file, offset, problem).
    """

    exit_code = 6

    def __init__(self, message: str, *, findings: Iterable[object] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings)


class InterruptedRunError(DiskhaulError):
    """The run was cancelled; what had been begun was undone."""

    exit_code = 130


def _made_again(kind: type[DiskhaulError], args: tuple[object, ...], state: Mapping[str, object]) -> DiskhaulError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error
