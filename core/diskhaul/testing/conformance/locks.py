"""What every lock service has to do. Subclass `LockConformance` in a test module and override `make_locks`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ...api import HeldLock, LockMode, Locks
from ...errors import InterruptedRunError, LockLostError, LockTimeoutError
from ...host import with_defaults

SHARED, EXCLUSIVE = LockMode.SHARED, LockMode.EXCLUSIVE
LONG_S = 60.0
"""Longer than anything here takes: a test that reaches it has failed."""


def take(
    locks: Locks,
    name: str = "instance/web1.example.com",
    mode: LockMode = EXCLUSIVE,
    *,
    owner: str = "a test",
    deadline_s: float = LONG_S,
    on_wait: Callable[[str], object] = lambda holder: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> HeldLock:
    """`Locks.acquire` with everything filled in."""
    return locks.acquire(name, mode, owner=owner, deadline_s=deadline_s, on_wait=on_wait, cancelled=cancelled)


def is_free(locks: Locks, name: str = "instance/web1.example.com", mode: LockMode = EXCLUSIVE) -> bool:
    """Whether the lock can be had at once."""
    try:
        take(locks, name, mode, deadline_s=0).release()
    except LockTimeoutError:
        return False
    return True


class LockConformance:
    """Override `make_locks`: each call gives another client of one lock service, in which nothing is held."""

    @pytest.fixture
    def make_locks(self) -> Callable[[], Locks]:
        raise NotImplementedError("override the fixture 'make_locks'")

    @pytest.fixture
    def locks(self, make_locks: Callable[[], Locks]) -> Locks:
        return with_defaults("lock", make_locks())

    @pytest.fixture
    def others(self, make_locks: Callable[[], Locks]) -> Locks:
        return with_defaults("lock", make_locks())

    def test_a_lock_service_that_works_has_no_problems(self, locks: Locks) -> None:
        assert list(locks.check()) == []
        take(locks).release()
        assert list(locks.check()) == []

    def test_an_exclusive_lock_excludes_every_other(self, locks: Locks, others: Locks) -> None:
        held = take(locks)
        assert not is_free(others, mode=EXCLUSIVE)
        assert not is_free(others, mode=SHARED)
        held.release()
        assert is_free(others, mode=EXCLUSIVE)

    def test_one_client_cannot_take_a_lock_twice(self, locks: Locks) -> None:
        held = take(locks)
        assert not is_free(locks)
        held.release()
        assert is_free(locks)

    def test_shared_locks_go_together_and_exclude_an_exclusive_one(self, locks: Locks, others: Locks) -> None:
        first, second = take(locks, mode=SHARED), take(others, mode=SHARED)
        assert not is_free(others)
        first.release()
        assert not is_free(others)
        second.release()
        assert is_free(others)

    def test_locks_of_different_names_do_not_meet(self, locks: Locks, others: Locks) -> None:
        names = [
            "instance/web1",
            "instance/web1.example.com",
            "instance/web",
            "node/web1",
            "export/web1@1",
            "export/web1",
            "web1",
        ]
        held = [take(locks, name) for name in names]
        assert not any(is_free(others, name) for name in names)
        for lock in held:
            lock.release()
        assert all(is_free(others, name) for name in names)

    @pytest.mark.parametrize(
        "name",
        [
            "export/20260102T030405Z-0a1b2c3d",
            "instance/" + "x" * 253,
            "cluster/..",
            "node/ä ö",
            "instance/%2e@=~",
            "a/b/c/../../d",
        ],
    )
    def test_any_name_can_be_locked(self, locks: Locks, others: Locks, name: str) -> None:
        held = take(locks, name)
        held.check()
        assert not is_free(others, name)
        held.release()

    def test_long_names_that_begin_alike_are_different_locks(self, locks: Locks, others: Locks) -> None:
        held = take(locks, "instance/" + "x" * 252 + "1")
        assert is_free(others, "instance/" + "x" * 252 + "2")
        held.release()

    def test_tokens_grow_with_every_exclusive_lock(self, locks: Locks, others: Locks) -> None:
        tokens = []
        for client in (locks, others, locks):
            held = take(client)
            tokens.append(held.token)
            held.release()
        assert tokens[0] < tokens[1] < tokens[2]

    def test_a_held_lock_passes_its_check_and_a_released_one_does_not(self, locks: Locks) -> None:
        for mode in (SHARED, EXCLUSIVE):
            held = take(locks, mode=mode)
            held.check()
            held.release()
            with pytest.raises(LockLostError):
                held.check()

    def test_releasing_twice_is_harmless_and_frees_nobody_elses_lock(self, locks: Locks, others: Locks) -> None:
        first = take(locks)
        first.release()
        second = take(others)
        first.release()
        second.check()
        assert not is_free(locks)
        second.release()

    def test_a_lock_that_is_not_free_in_time_is_an_error_that_names_lock_and_holder(self, locks: Locks, others: Locks) -> None:
        held = take(locks, owner="export of web1, run 1234")
        with pytest.raises(LockTimeoutError, match=r"web1\.example\.com") as caught:
            take(others, deadline_s=0.05)
        assert caught.value.lock == "instance/web1.example.com"
        assert "export of web1, run 1234" in caught.value.holder
        held.release()

    def test_a_request_that_was_given_up_does_not_stand_in_the_way(self, locks: Locks, others: Locks) -> None:
        held = take(locks, mode=SHARED)
        assert not is_free(others, mode=EXCLUSIVE)
        assert is_free(others, mode=SHARED)
        held.release()

    def test_who_waits_is_told_for_whom_and_gets_the_lock(self, locks: Locks, others: Locks) -> None:
        held = take(locks, owner="export of web1, run 1234")
        told: list[str] = []
        waiting = threading.Event()

        def on_wait(holder: str) -> None:
            told.append(holder)
            waiting.set()

        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(take, others, on_wait=on_wait)
            assert waiting.wait(LONG_S)
            assert not future.done()
            held.release()
            second = future.result(LONG_S)
        second.check()
        assert second.token > held.token
        second.release()
        assert len(told) == 1, "told once for each holder"
        assert "export of web1, run 1234" in told[0]

    def test_waiting_can_be_cancelled_and_leaves_nothing_behind(self, locks: Locks, others: Locks) -> None:
        held = take(locks)
        waiting = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(take, others, on_wait=lambda holder: waiting.set(), cancelled=waiting.is_set)
            with pytest.raises(InterruptedRunError):
                future.result(LONG_S)
        held.check()
        held.release()
        assert is_free(locks)

    def test_what_the_waiting_callback_raises_comes_through_and_leaves_nothing_behind(self, locks: Locks, others: Locks) -> None:
        held = take(locks, mode=SHARED)

        def on_wait(holder: str) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            take(others, on_wait=on_wait)
        assert is_free(others, mode=SHARED)
        held.release()

    def test_threads_exclude_each_other(self, locks: Locks, others: Locks) -> None:
        inside: list[int] = []
        most: list[int] = []

        def work(client: Locks) -> None:
            for _ in range(10):
                held = take(client)
                inside.append(1)
                most.append(len(inside))
                inside.pop()
                held.release()

        with ThreadPoolExecutor(4) as pool:
            for future in [pool.submit(work, client) for client in (locks, others, locks, others)]:
                future.result(LONG_S)
        assert len(most) == 40
        assert max(most) == 1
