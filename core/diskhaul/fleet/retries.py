"""Which failures of an export may pass by themselves, when it is tried again, and what to do about those that stay."""

from __future__ import annotations

import random

from ..errors import (
    DiskhaulError,
    GuestError,
    HookScriptError,
    InterruptedRunError,
    LockError,
    OperationFailedError,
    RefusedError,
    UnreachableNodeError,
    VerificationError,
)

LONGEST_BACKOFF_S = 3600.0


def unreachable_node(error: BaseException) -> str:
    """The node that did not answer, if that is why `error` was raised, or ""."""
    for each in (error, error.__cause__):
        if isinstance(each, UnreachableNodeError):
            return each.node
    return ""


def in_doubt(error: BaseException) -> bool:
    """Whether `error` leaves open what became of the export."""
    return any(isinstance(each, UnreachableNodeError) and each.in_doubt for each in (error, error.__cause__))


def may_pass(error: BaseException) -> bool:
    """Whether another attempt makes sense: somebody else holds a lock, a node does not answer or was stopped, a transfer failed.

    Not where the configuration, a hook script, or a guest that does not obey has to be looked at first, nor after an error that
    nobody expected.
    """
    if isinstance(error, RefusedError):
        return bool(unreachable_node(error))
    if isinstance(error, GuestError | HookScriptError):
        return False
    return isinstance(error, InterruptedRunError | LockError | OperationFailedError | VerificationError)


def backoff_s(attempt: int, first_s: float, chance: random.Random) -> float:
    """Seconds to wait after the `attempt`-th failure (from 1 on): doubled each time, an hour at the most, and up to half less.

    What is taken off at random keeps those that failed together from coming back together.
    """
    return float(min(first_s * 2.0 ** min(attempt - 1, 60), LONGEST_BACKOFF_S) * (1.0 - chance.random() / 2))


def remedy(error: BaseException, instance: str) -> str:
    """What a person can do about `error`, in a few words."""
    if "IS DOWN" in str(error):
        return f"start it: diskhaul recover {instance}"
    if node := unreachable_node(error):
        return f"bring back node {node}, then resume"
    if isinstance(error, RefusedError):
        return "correct what it says, then resume"
    if isinstance(error, LockError):
        return "resume once the other run is over"
    if isinstance(error, HookScriptError):
        return "look at the hook script, then resume"
    if isinstance(error, VerificationError):
        return "check the target's storage, then resume"
    if isinstance(error, DiskhaulError):
        return "resume to try it again"
    return f"report it, with the traceback of: DISKHAUL_DEBUG=1 diskhaul export {instance}"
