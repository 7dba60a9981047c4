"""What a run has begun is undone completely, the guest first."""

from __future__ import annotations

import pytest

from diskhaul.errors import OperationFailedError
from diskhaul.operations.run_state import RunState


def test_lower_orders_are_undone_first_and_of_one_order_the_latest() -> None:
    state, undone = RunState(), []
    for name, order in (("partial", 2), ("disks", 2), ("start", 1), ("thaw", 0), ("snapshot", 2)):
        state.undo_later(name, lambda name=name: undone.append(name), order=order)  # type: ignore[misc]
    state.undo_all(OperationFailedError("failed"))
    assert undone == ["thaw", "start", "snapshot", "disks", "partial"]


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(0)], ids=repr)
def test_a_step_that_fails_is_told_with_the_first_error_and_the_others_are_still_done(error: BaseException) -> None:
    state, undone = RunState(), []

    def fail() -> None:
        raise error

    state.undo_later("removing the unfinished export", lambda: undone.append("partial"))
    state.undo_later("starting the guest again", fail, order=1)
    failure = OperationFailedError("failed")
    state.undo_all(failure)
    assert undone == ["partial"]
    assert failure.also == [error]
    assert [note.partition(":")[0] for note in failure.__notes__] == ["while starting the guest again"]


def test_what_is_done_is_not_undone_and_nothing_is_undone_twice() -> None:
    state, undone = RunState(), []
    step = state.undo_later("a", lambda: undone.append("a"))
    state.undo_later("b", lambda: undone.append("b"))
    state.done(step)
    state.done(step)
    state.done(None)
    state.undo_all(OperationFailedError("failed"))
    state.undo_all(OperationFailedError("failed"))
    assert undone == ["b"]


def test_the_part_that_failed_keeps_its_name() -> None:
    state = RunState()
    with state.part_named("snapshot"):
        assert state.part == "snapshot"
    assert state.part == ""
    with pytest.raises(ValueError, match="x"), state.part_named("shutdown"):
        raise ValueError("x")
    assert state.part == "shutdown"
