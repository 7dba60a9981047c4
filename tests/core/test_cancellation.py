"""Cancelling from outside, and Ctrl-C that never tears."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from diskhaul.cancellation import CancellationToken, run_shielded
from diskhaul.errors import InterruptedRunError

END_S = 30.0


def test_a_token_is_cancelled_once_and_keeps_the_first_reason() -> None:
    token = CancellationToken()
    assert not token.cancelled
    token.raise_if_cancelled()
    token.cancel("first")
    token.cancel("second")
    assert token.cancelled
    assert token.reason == "first"
    with pytest.raises(InterruptedRunError, match="interrupted: first") as caught:
        token.raise_if_cancelled()
    assert caught.value.exit_code == 130


def until_cancelled(token: CancellationToken) -> None:
    """Those who wait for a token poll it."""
    pause = threading.Event()
    for _ in range(3000):
        if token.cancelled:
            return
        pause.wait(0.01)
    raise AssertionError("it was not cancelled")


def test_a_signal_handler_may_cancel_in_the_middle_of_a_cancel() -> None:
    token = CancellationToken()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: token.cancel("signal"))
    try:
        for _ in range(200):
            os.kill(os.getpid(), signal.SIGUSR1)
            token.cancel("call")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert token.cancelled
    assert token.reason in ("signal", "call")


def test_what_is_shielded_runs_beside_the_main_thread_and_its_answer_comes_back() -> None:
    names = run_shielded(lambda: threading.current_thread().name, CancellationToken())
    assert names == "diskhaul-operation"
    assert run_shielded(lambda: None, CancellationToken()) is None


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt()])
def test_what_is_raised_inside_comes_out(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        run_shielded(fail, CancellationToken())
    assert caught.value is error


def test_on_another_thread_it_simply_runs() -> None:
    names: list[str] = []
    thread = threading.Thread(
        target=lambda: names.append(run_shielded(lambda: threading.current_thread().name, CancellationToken())), name="mine"
    )
    thread.start()
    thread.join(END_S)
    assert names == ["mine"]


def until_the_main_thread_waits() -> None:
    """A handler that raises must not come while the thread is being started: that would be an interrupt before the work."""
    main = threading.main_thread().ident
    assert main is not None
    pause = threading.Event()
    for _ in range(3000):
        if sys._current_frames()[main].f_code.co_name == "run_shielded":
            return
        pause.wait(0.01)
    raise AssertionError("the main thread does not wait")


def interrupted_work(token: CancellationToken, times: int) -> tuple[list[str], KeyboardInterrupt]:
    """Shield work that is interrupted; return what it did, and what came out."""
    steps: list[str] = []

    def work() -> None:
        until_the_main_thread_waits()
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            until_cancelled(token)
        steps.append("undone")
        token.raise_if_cancelled()

    with pytest.raises(KeyboardInterrupt) as caught:
        run_shielded(work, token)
    return steps, caught.value


@pytest.mark.parametrize("times", [1, 3])
def test_ctrl_c_cancels_and_is_raised_when_the_work_has_ended(times: int) -> None:
    token = CancellationToken()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        steps, raised = interrupted_work(token, times)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps == ["undone"]
    assert token.reason == "Ctrl-C"
    assert isinstance(raised.__cause__, InterruptedRunError)


def test_a_programs_own_handler_that_raises_cancels_as_well() -> None:
    token = CancellationToken()

    def own(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, own)
    try:
        steps, _ = interrupted_work(token, 1)
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps == ["undone"]


def test_a_handler_that_does_not_raise_stays_in_charge() -> None:
    seen: list[int] = []
    handled = threading.Event()

    def own(number: int, frame: object) -> None:
        seen.append(number)
        handled.set()

    def work() -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return handled.wait(END_S)

    token = CancellationToken()
    before = signal.signal(signal.SIGINT, own)
    try:
        assert run_shielded(work, token) is True
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]
    assert not token.cancelled


PROGRAM = """
import sys, threading
from diskhaul.cancellation import CancellationToken, run_shielded
token = CancellationToken()
def work():
    print("begun", flush=True)
    while not token.cancelled:
        threading.Event().wait(0.01)
    print("undoing", flush=True)
    sys.stdin.readline()
    print("undone", flush=True)
run_shielded(work, token)
"""


def test_a_second_ctrl_c_does_not_tear_the_undoing() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "undoing\n"
        process.send_signal(signal.SIGINT)
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "undone\n"
        assert process.wait(END_S) != 0


def test_a_wait_ends_when_the_token_is_cancelled_or_the_time_is_over() -> None:
    token = CancellationToken()
    assert token.wait(0.01) is False
    threading.Timer(0.05, token.cancel).start()
    assert token.wait(END_S) is True
    assert token.wait(END_S) is True


class LeavingError(Exception):
    """What a program's own handler raises."""


def test_whatever_a_programs_handler_raises_comes_out_when_the_work_has_ended() -> None:
    token = CancellationToken()
    steps: list[str] = []

    def own(number: int, frame: object) -> None:
        raise LeavingError

    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        until_cancelled(token)
        steps.append("undone")
        token.raise_if_cancelled()

    before = signal.signal(signal.SIGTERM, own)
    try:
        with pytest.raises(LeavingError) as caught:
            run_shielded(work, token)
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
    assert steps == ["undone"]
    assert token.reason == "LeavingError"
    assert isinstance(caught.value.__cause__, InterruptedRunError)


def test_a_signal_in_the_middle_of_the_programs_handler_does_not_tear_either() -> None:
    """The second one comes where the first one's exception has just been raised: at the worst moment."""
    token = CancellationToken()
    depth = 0
    steps: list[str] = []

    def own(number: int, frame: object) -> None:
        nonlocal depth
        depth += 1
        try:
            if depth < 20:
                signal.raise_signal(signal.SIGINT)
        finally:
            raise KeyboardInterrupt

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        until_cancelled(token)
        steps.append("undone")

    before = signal.signal(signal.SIGINT, own)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_shielded(work, token)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (depth, steps) == (20, ["undone"])


def test_a_handler_that_the_program_chooses_meanwhile_stays() -> None:
    def own(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # "I have heard you"
        handled.set()

    def work() -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        return handled.wait(END_S)

    handled = threading.Event()
    before = signal.signal(signal.SIGINT, own)
    try:
        assert run_shielded(work, CancellationToken())
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    token = CancellationToken()
    try:
        run_shielded(lambda: os.kill(os.getpid(), signal.SIGINT), token)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert not token.cancelled


STORM = """
import os, signal, sys, threading
from diskhaul.cancellation import CancellationToken, run_shielded

def own(number, frame):
    raise KeyboardInterrupt

if sys.argv[1] == "own":
    signal.signal(signal.SIGINT, own)
undone = []

def work():
    token_of_work = token
    for _ in range(int(sys.argv[2])):
        os.kill(os.getpid(), signal.SIGINT)  # as fast as they can come
    while not token_of_work.cancelled:
        threading.Event().wait(0.001)
    for _ in range(int(sys.argv[2])):
        os.kill(os.getpid(), signal.SIGINT)
    undone.append(True)

torn = 0
for _ in range(100):
    token = CancellationToken()
    undone.clear()
    try:
        run_shielded(work, token)
    except KeyboardInterrupt:
        pass
    else:
        torn += 1
    torn += not undone
    before = signal.getsignal(signal.SIGINT)
    assert before is (own if sys.argv[1] == "own" else signal.default_int_handler), before
print(torn)
"""


@pytest.mark.parametrize("handler", ["own", "default"])
@pytest.mark.parametrize("signals", [1, 2, 20])
def test_no_number_of_signals_tears(handler: str, signals: int) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    program = [sys.executable, "-c", STORM, handler, str(signals)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
