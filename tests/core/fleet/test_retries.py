"""What is tried again, after how long, and what is left to people."""

from __future__ import annotations

import random

import pytest

from diskhaul import errors
from diskhaul.fleet.retries import LONGEST_BACKOFF_S, backoff_s, may_pass, remedy


def refused_because_unreachable() -> errors.RefusedError:
    error = errors.RefusedError("node beta: gone")
    error.__cause__ = errors.UnreachableNodeError("beta", "node beta: gone")
    return error


@pytest.mark.parametrize(
    "error",
    [
        errors.LockTimeoutError("instance/web1", "somebody", 1.0),
        errors.LockLostError("gone"),
        errors.UnreachableNodeError("beta", "gone"),
        errors.StorageError("cannot be read", path="x"),
        errors.OperationFailedError("disk export failed"),
        errors.VerificationError("damaged on its way"),
        errors.InterruptedRunError("interrupted: the node is being stopped"),
        refused_because_unreachable(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_may_pass_is_tried_again(error: BaseException) -> None:
    assert may_pass(error)
    assert "resume" in remedy(error, "web1")


@pytest.mark.parametrize(
    "error",
    [
        errors.RefusedError("no disks"),
        errors.UnknownNameError("node", "x", "unknown"),
        errors.PluginError("broken"),
        errors.GuestError("web1 IS DOWN"),
        errors.HookScriptError("exit 1"),
        ZeroDivisionError("a mistake"),
        SystemExit(0),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_somebody_has_to_look_at_is_not(error: BaseException) -> None:
    assert not may_pass(error)
    assert remedy(error, "web1")


def test_a_guest_that_is_down_is_told_how_to_be_started() -> None:
    assert remedy(errors.GuestError("web1 IS DOWN: ..."), "web1") == "start it: diskhaul recover web1"


def test_waits_double_up_to_an_hour_and_are_spread() -> None:
    chance = random.Random(1)
    for attempt, whole in ((1, 30.0), (2, 60.0), (3, 120.0), (50, LONGEST_BACKOFF_S), (5000, LONGEST_BACKOFF_S)):
        waits = [backoff_s(attempt, 30.0, chance) for _ in range(50)]
        assert all(whole / 2 <= wait <= whole for wait in waits)
        assert max(waits) - min(waits) > whole / 4
