"""Pieces that come in any order reach the file in the right one."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable, Sequence

import pytest

from diskhaul.api import Buffer
from diskhaul.pipeline.ordered import OrderedAppender

END_S = 30.0  # far more than anything here takes: a deadlock fails instead of hanging


class Appended:
    """A `StoreFile` of which only `append` is used; notices two threads in it at once."""

    name = "disk-0.raw.zst"

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.before: Callable[[int], object] = lambda number: None
        self._inside = threading.Lock()

    def append(self, parts: Sequence[Buffer], /) -> None:
        assert self._inside.acquire(blocking=False), "two threads append at once"
        try:
            self.before(len(self.parts))
            self.parts.append(b"".join(parts))
        finally:
            self._inside.release()

    def write(self, offset: int, buffer: Buffer, /) -> None:
        raise AssertionError("pieces are appended")

    def set_size(self, size: int, /) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


def started(*functions: Callable[[], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=function, daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    return threads


def ended(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(END_S)
        assert not thread.is_alive(), "a thread still waits"


def until(reached: Callable[[], bool]) -> None:
    """Let other threads run until something is so; there is nothing to wait on from outside."""
    pause = threading.Event()
    for _ in range(3000):
        if reached():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come to it")


@pytest.mark.parametrize("seed", range(5))
def test_pieces_of_several_threads_in_random_order_are_in_order_in_the_file(seed: int) -> None:
    chance = random.Random(seed)
    count, threads, window = 300, 6, 12
    file = Appended()
    appender = OrderedAppender(file, window)
    following = iter(range(count))
    taking = threading.Lock()
    naps = [chance.random() / 2000 for _ in range(count)]

    def work() -> None:
        while True:
            with taking:
                number = next(following, None)
            if number is None:
                return
            threading.Event().wait(naps[number])  # shakes up the order
            appender.put(number, (b"%d" % number, b";" * (number % 3)))

    ended(started(*[work] * threads))
    wanted = [b"%d" % number + b";" * (number % 3) for number in range(count)]
    assert file.parts == wanted
    assert appender.written == sum(map(len, wanted))


def test_a_digest_goes_along_to_a_file_that_has_use_for_it() -> None:
    class Digested(Appended):
        def append_digested(self, part: Buffer, digest: bytes, /) -> None:
            self.append((part, b" with ", digest))

    for file, wanted in ((Digested(), b"one with its digest"), (Appended(), b"one")):
        appender = OrderedAppender(file, 4)
        appender.put(1, (b"one",), b"its digest")
        appender.put(0, (b"ze", b"ro"))
        appender.put(2, (b"two",))
        assert file.parts == [b"zero", wanted, b"two"]
        assert appender.written == len(b"zeroonetwo")


def test_a_piece_too_far_ahead_waits_for_the_one_that_is_due() -> None:
    file = Appended()
    appender = OrderedAppender(file, 2)
    appender.put(1, (b"one",))
    arrived = threading.Event()

    def ahead() -> None:
        appender.put(2, (b"two",))
        arrived.set()

    threads = started(ahead)
    assert not arrived.wait(0.2)
    assert file.parts == []
    appender.put(0, (b"zero",))
    ended(threads)
    assert file.parts == [b"zero", b"one", b"two"]


def test_whoever_waits_for_the_window_is_let_go_by_a_failure() -> None:
    file = Appended()
    appender = OrderedAppender(file, 1)
    threads = started(lambda: appender.put(1, (b"one",)), lambda: appender.put(5, (b"five",)))
    appender.fail()
    ended(threads)
    appender.put(0, (b"zero",))
    assert file.parts == []
    assert appender.written == 0


def test_a_failing_file_is_raised_to_the_writer_and_ends_the_others() -> None:
    file = Appended()
    appender = OrderedAppender(file, 4)

    def full(number: int) -> None:
        if number == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    file.before = full
    appender.put(1, (b"one",))
    threads = started(lambda: appender.put(7, (b"seven",)))
    with pytest.raises(OSError, match="No space left"):
        appender.put(0, (b"zero",))
    ended(threads)
    appender.put(2, (b"two",))
    assert file.parts == [b"zero"]
    assert appender.written == 4


def test_nobody_waits_for_a_slow_file_but_the_one_who_writes() -> None:
    file = Appended()
    appender = OrderedAppender(file, 8)
    inside, go_on = threading.Event(), threading.Event()

    def slow(number: int) -> None:
        inside.set()
        assert go_on.wait(END_S)

    file.before = slow
    threads = started(lambda: appender.put(0, (b"0",)))
    assert inside.wait(END_S)
    for number in range(1, 8):
        appender.put(number, (b"%d" % number,))  # returns at once: within the window
    go_on.set()
    ended(threads)
    assert b"".join(file.parts) == b"01234567"


def test_a_failure_while_the_file_is_written_drops_what_waits() -> None:
    file = Appended()
    appender = OrderedAppender(file, 8)
    file.before = lambda number: appender.fail() if number == 0 else None
    appender.put(1, (b"one",))
    appender.put(0, (b"zero",))
    assert file.parts == [b"zero"]
