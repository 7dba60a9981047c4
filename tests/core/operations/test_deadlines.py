"""What a plugin's call may take."""

from __future__ import annotations

import threading

import pytest

from diskhaul.errors import OperationFailedError
from diskhaul.operations.deadlines import PluginHangsError, within

END_S = 30.0


def test_what_the_call_returns_is_returned() -> None:
    assert within(END_S, "asking", lambda: 42) == 42
    assert within(END_S, "asking", lambda: None) is None


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt(), OperationFailedError("y")], ids=repr)
def test_what_the_call_raises_is_raised(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        within(END_S, "asking", fail)
    assert caught.value is error


def test_a_call_that_hangs_is_left_behind_and_may_end_later() -> None:
    release, ended = threading.Event(), threading.Event()

    def hang() -> str:
        release.wait(END_S)
        ended.set()
        return "too late"

    with pytest.raises(PluginHangsError, match=r"asking did not return within 0\.05 s; it was left behind and may still do"):
        within(0.05, "asking", hang)
    assert not ended.is_set()
    release.set()
    assert ended.wait(END_S)


def test_without_a_thread_to_be_had_the_call_is_made_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_more)
    assert within(END_S, "starting a guest", lambda: threading.current_thread().name) == "MainThread"
