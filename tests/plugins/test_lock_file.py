"""Lock backend ``file``: with other processes that die, stop, fork and compete."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from diskhaul.api import BackendContext, LockMode, Locks
from diskhaul.errors import ConfigurationError, InterruptedRunError, LockError, LockLostError, LockTimeoutError
from diskhaul.model import Cluster
from diskhaul.testing.conformance.locks import EXCLUSIVE, LONG_S, SHARED, LockConformance, is_free, take
from diskhaul_plugins.locks import file as lock_file
from diskhaul_plugins.locks.file import FileLocks

NAME = "instance/web1.example.com"


def make(state_dir: Path, **options: Any) -> FileLocks:
    return FileLocks(BackendContext(cluster=Cluster(name="lab", state_dir=state_dir), options=options))


def leftovers(state_dir: Path) -> list[str]:
    return sorted(name for name in os.listdir(state_dir / "locks") if name != "counter")


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    return path


class TestFileLocks(LockConformance):
    @pytest.fixture
    def make_locks(self, state_dir: Path) -> Callable[[], Locks]:
        return lambda: make(state_dir)

    @pytest.fixture(autouse=True)
    def nothing_is_left(self, state_dir: Path) -> Iterator[None]:
        threads = threading.active_count()
        yield
        if (state_dir / "locks").exists():
            assert leftovers(state_dir) == []
        assert threading.active_count() == threads


# --- other processes --------------------------------------------------------------------------------------------------

_HOLDER = """
import sys
from pathlib import Path
from diskhaul.api import BackendContext, LockMode
from diskhaul.errors import LockLostError
from diskhaul.model import Cluster
from diskhaul_plugins.locks.file import FileLocks

cluster = Cluster(name="lab", state_dir=Path(sys.argv[1]))
locks = FileLocks(BackendContext(cluster=cluster, options={"lease_s": float(sys.argv[2])}))
print("ready", flush=True)
held = {}
for line in sys.stdin:
    verb, _, name = line.strip().partition(" ")
    try:
        if verb in ("shared", "exclusive"):
            held[name] = locks.acquire(
                name, LockMode(verb), owner="the other process", deadline_s=60,
                on_wait=lambda holder: print("waiting", flush=True), cancelled=lambda: False,
            )
            print("held", held[name].token, flush=True)
        elif verb == "check":
            held[name].check()
            print("ok", flush=True)
        elif verb == "release":
            held.pop(name).release()
            print("released", flush=True)
    except LockLostError as error:
        print("lost", error, flush=True)
"""


class OtherProcess:
    """A process with locks of its own that does what it is told."""

    def __init__(self, state_dir: Path, lease_s: float = 30.0, command: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*command, sys.executable, "-c", _HOLDER, str(state_dir), str(lease_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self.answer() == "ready"

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        self.say(line)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture
def other_process(state_dir: Path) -> Iterator[Callable[..., OtherProcess]]:
    started: list[OtherProcess] = []

    def start(lease_s: float = 30.0, command: tuple[str, ...] = ()) -> OtherProcess:
        started.append(OtherProcess(state_dir, lease_s, command))
        return started[-1]

    yield start
    for other in started:
        other.process.kill()
        other.process.communicate()


def test_a_lock_of_another_process_is_waited_for_by_name_and_process(
    state_dir: Path, other_process: Callable[..., OtherProcess]
) -> None:
    other = other_process()
    assert other.ask(f"exclusive {NAME}").startswith("held")
    told: list[str] = []
    waiting = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(take, make(state_dir), on_wait=lambda line: (told.append(line), waiting.set()))
        assert waiting.wait(LONG_S)
        assert other.ask(f"release {NAME}") == "released"
        future.result(LONG_S).release()
    assert told[0].startswith(f"the other process (pid {other.process.pid} on ")


def test_a_killed_holder_is_noticed_long_before_its_lease_ends(
    state_dir: Path, other_process: Callable[..., OtherProcess]
) -> None:
    other = other_process(lease_s=3600)
    first = int(other.ask(f"exclusive {NAME}").split()[1])
    assert not is_free(make(state_dir))
    other.kill()
    held = take(make(state_dir), deadline_s=0)
    assert held.token > first
    held.release()
    assert leftovers(state_dir) == []


def test_a_holder_that_is_a_zombie_is_dead(state_dir: Path, other_process: Callable[..., OtherProcess]) -> None:
    other = other_process(lease_s=3600)
    other.ask(f"exclusive {NAME}")
    other.process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, other.process.pid, os.WEXITED | os.WNOWAIT)
    take(make(state_dir), deadline_s=0).release()


def test_a_killed_process_that_was_waiting_does_not_block_the_queue(
    state_dir: Path, other_process: Callable[..., OtherProcess]
) -> None:
    held = take(make(state_dir), mode=SHARED)
    other = other_process(lease_s=3600)
    assert other.ask(f"exclusive {NAME}") == "waiting"
    assert not is_free(make(state_dir), mode=SHARED), "an exclusive request is not overtaken"
    other.kill()
    assert is_free(make(state_dir), mode=SHARED)
    held.release()
    assert leftovers(state_dir) == []


def test_locks_of_killed_processes_that_nobody_asks_for_again_are_removed_too(
    state_dir: Path, other_process: Callable[..., OtherProcess]
) -> None:
    other = other_process(lease_s=3600)
    for name in ("export/1", "export/2", "node/beta"):
        other.ask(f"exclusive {name}")
    other.kill()
    assert len(leftovers(state_dir)) == 3
    take(make(state_dir), "instance/of-another-name").release()
    assert leftovers(state_dir) == []


def test_a_holder_stopped_past_its_lease_loses_the_lock_and_is_told_so(
    state_dir: Path, other_process: Callable[..., OtherProcess]
) -> None:
    other = other_process(lease_s=0.5)
    first = int(other.ask(f"exclusive {NAME}").split()[1])
    assert other.ask(f"check {NAME}") == "ok"
    other.stop()
    assert not is_free(make(state_dir)), "its lease has not ended yet"
    held = take(make(state_dir))
    assert held.token > first
    other.go_on()
    assert other.ask(f"check {NAME}").startswith(f"lost lock {NAME}: lost:")
    held.check()
    assert other.ask(f"release {NAME}") == "released"
    held.check()
    held.release()


def test_a_stopped_holder_keeps_the_lock_while_nobody_wants_it(
    state_dir: Path, other_process: Callable[..., OtherProcess]
) -> None:
    other = other_process(lease_s=0.2)
    other.ask(f"exclusive {NAME}")
    other.stop()
    signal.sigtimedwait([], 0.5)  # longer than its lease
    other.go_on()
    assert other.ask(f"check {NAME}") == "ok"


def test_a_waiting_process_that_was_taken_for_dead_queues_again(
    state_dir: Path, other_process: Callable[..., OtherProcess]
) -> None:
    held = take(make(state_dir), mode=SHARED)
    other = other_process(lease_s=0.3)
    assert other.ask(f"exclusive {NAME}") == "waiting"
    other.stop()
    second = take(make(state_dir), mode=SHARED)  # gets in only once the stopped request has been removed
    other.go_on()
    held.release()
    assert not other.process.stdout.closed  # type: ignore[union-attr]
    second.check()
    second.release()
    answers = [other.answer()]
    while not answers[-1].startswith("held"):
        answers.append(other.answer())
    assert int(answers[-1].split()[1]) > second.token
    assert other.ask(f"check {NAME}") == "ok"
    assert not is_free(make(state_dir))


def test_a_live_holder_keeps_its_lock_however_long_it_could_not_write(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_file._Request, "_beat", lambda self, interval_s: None)
    held = take(make(state_dir, lease_s=0.2))
    with pytest.raises(LockTimeoutError):
        take(make(state_dir), deadline_s=0.8)
    held.check()
    held.release()


def test_a_forked_child_holds_nothing_and_cannot_release(state_dir: Path) -> None:
    held = take(make(state_dir))
    context = multiprocessing.get_context("fork")
    queue: Any = context.SimpleQueue()

    def child() -> None:
        try:
            held.check()
        except LockLostError as error:
            queue.put(str(error))
        held.release()

    process = context.Process(target=child)
    process.start()
    answer = queue.get()
    process.join(LONG_S)
    assert process.exitcode == 0
    assert f"held by process {os.getpid()}" in answer
    held.check()
    assert not is_free(make(state_dir))
    held.release()


def test_a_forked_child_does_not_keep_its_dead_parents_lock(state_dir: Path) -> None:
    program = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from diskhaul.api import BackendContext, LockMode\n"
        "from diskhaul.model import Cluster\n"
        "from diskhaul_plugins.locks.file import FileLocks\n"
        "locks = FileLocks(BackendContext(cluster=Cluster(name='lab', state_dir=Path(sys.argv[1]))))\n"
        f"held = locks.acquire({NAME!r}, LockMode.EXCLUSIVE, owner='parent', deadline_s=9, on_wait=print, cancelled=bool)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os.close(1)\n"
        "    time.sleep(1000)\n"
        "print(child, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.run([sys.executable, "-c", program, str(state_dir)], env=environment, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout)
    try:
        assert parent.returncode == -signal.SIGKILL
        os.kill(child, 0)
        take(make(state_dir), deadline_s=0).release()
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_holder_in_another_pid_namespace_is_judged_by_its_lease(
    state_dir: Path, other_process: Callable[..., OtherProcess], requires: Callable[..., None]
) -> None:
    requires("unshare", root=True)
    other = other_process(lease_s=0.5, command=("unshare", "--pid", "--fork", "--kill-child", "--mount-proc"))
    other.ask(f"exclusive {NAME}")
    with pytest.raises(LockTimeoutError):
        take(make(state_dir), deadline_s=1.5)
    assert other.ask(f"check {NAME}") == "ok", "it beats, so it lives, although its process id means nothing here"
    other.kill()
    assert not is_free(make(state_dir))
    take(make(state_dir)).release()


def rewrite(state_dir: Path, **fields: object) -> Path:
    """Change what the only record in the directory says, as if another process had written it."""
    (name,) = leftovers(state_dir)
    path = state_dir / "locks" / name
    beat, _, text = path.read_text().partition("\n")
    path.write_text(beat + "\n" + json.dumps(json.loads(text) | fields) + "\n")
    return path


def test_a_process_id_that_was_used_again_is_not_taken_for_the_holder(state_dir: Path) -> None:
    held = take(make(state_dir))
    rewrite(state_dir, started=1)  # our own process id, with the start time of an earlier process
    take(make(state_dir), deadline_s=0).release()
    with pytest.raises(LockLostError):
        held.check()
    held.release()


def test_a_holder_from_before_the_last_boot_is_dead_on_a_local_filesystem(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = take(make(state_dir))
    rewrite(state_dir, boot="00000000-0000-0000-0000-000000000000")
    monkeypatch.setattr(lock_file, "_LOCAL_FILESYSTEMS", frozenset())  # as if this were NFS: it may run on another machine
    assert not is_free(make(state_dir))
    monkeypatch.undo()
    take(make(state_dir), deadline_s=0).release()
    held.release()


@pytest.mark.parametrize("name", ["plain", "zwei Wörter", os.fsdecode(b"undecodable \xff")])
@pytest.mark.parametrize(("kind", "free"), [("tmpfs", True), ("ramfs", False)])
def test_a_holder_from_another_boot_is_judged_by_the_mount_that_holds_the_state(
    tmp_path: Path, requires: Callable[..., None], name: str, kind: str, free: bool
) -> None:
    requires("mount", "umount", root=True)
    place = tmp_path / name
    place.mkdir()
    subprocess.run(["mount", "-t", kind, "scratch", str(place)], check=True)  # tmpfs counts as local, ramfs as unknown
    try:
        state_dir = place / "state"
        state_dir.mkdir(mode=0o700)
        held = take(make(state_dir))
        rewrite(state_dir, boot="00000000-0000-0000-0000-000000000000")
        assert is_free(make(state_dir)) is free
        held.release()
    finally:
        subprocess.run(["umount", str(place)], check=True)


def elsewhere(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only record in the directory is of a process that the kernel knows nothing of."""
    monkeypatch.setattr(lock_file, "_LOCAL_FILESYSTEMS", frozenset())
    rewrite(state_dir, boot="another machine's")


@pytest.mark.parametrize("mode", [EXCLUSIVE, SHARED])
def test_whoever_waits_for_less_than_the_lease_still_takes_over_from_a_dead_holder_elsewhere(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, mode: LockMode
) -> None:
    monkeypatch.setattr(lock_file._Request, "_beat", lambda self, interval_s: None)
    held = take(make(state_dir, lease_s=0.5))
    elsewhere(state_dir, monkeypatch)
    assert not is_free(make(state_dir)), "who does not want to wait does not"
    second = take(make(state_dir), mode=mode, deadline_s=0.05)
    assert second.token > held.token
    with pytest.raises(LockLostError):
        held.check()
    second.release()
    held.release()


def test_whoever_waits_for_less_than_the_lease_does_not_wait_on_once_a_holder_elsewhere_has_shown_that_it_lives(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = take(make(state_dir, lease_s=1.5))
    elsewhere(state_dir, monkeypatch)
    with pytest.raises(LockTimeoutError):
        take(make(state_dir), deadline_s=0.05)
    held.check()
    held.release()


def test_whoever_waits_for_less_than_the_lease_does_not_wait_on_for_one_that_lives_and_is_first(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_file._Request, "_beat", lambda self, interval_s: None)
    held = take(make(state_dir, lease_s=3600))
    elsewhere(state_dir, monkeypatch)
    waiting, enough = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(take, make(state_dir), on_wait=lambda holder: waiting.set(), cancelled=enough.is_set)
        assert waiting.wait(LONG_S)
        with pytest.raises(LockTimeoutError):
            take(make(state_dir), deadline_s=0.05)
        enough.set()
        with pytest.raises(InterruptedRunError):
            first.result(LONG_S)
    held.release()


def test_waiting_on_for_a_holder_elsewhere_can_be_cancelled(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_file._Request, "_beat", lambda self, interval_s: None)
    held = take(make(state_dir, lease_s=3600))
    elsewhere(state_dir, monkeypatch)
    asked = iter(range(20))
    with pytest.raises(InterruptedRunError):
        take(make(state_dir), deadline_s=0.001, cancelled=lambda: next(asked, None) is None)
    held.release()


class Clock:
    """The monotonic clock of the one who waits; it stands still but for its steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now = time.monotonic()
        monkeypatch.setattr(lock_file.time, "monotonic", lambda: self._now)

    def step(self, seconds: float) -> None:
        self._now += seconds


def test_the_lease_is_measured_by_the_one_who_waits_whatever_the_clocks_say(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = take(make(state_dir))
    path = rewrite(state_dir, boot="another machine's", lease_s=0.45, since="2001-01-01T00:00:00+00:00")
    os.utime(path, (0, 0))
    watch = lock_file._Watch(path.parent)
    watch._local = False
    assert watch.look(path, waiting=True) is not None, "old by its dates, but seen for the first time"
    clock = Clock(monkeypatch)
    for _ in range(4):
        clock.step(0.1)
        assert watch.look(path, waiting=True) is not None, "not unchanged for more than its lease"
    clock.step(0.1)
    assert watch.look(path, waiting=True) is None
    assert not path.exists()
    monkeypatch.undo()
    held.release()


def test_time_during_which_the_waiting_process_was_stopped_does_not_count(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = take(make(state_dir))
    path = rewrite(state_dir, boot="another machine's", lease_s=5.0)
    watch = lock_file._Watch(path.parent)
    watch._local = False
    assert watch.look(path, waiting=True) is not None
    now = time.monotonic()
    monkeypatch.setattr(lock_file.time, "monotonic", lambda: now + 3600)
    assert watch.look(path, waiting=True) is not None
    monkeypatch.undo()
    held.release()


def test_a_record_that_its_creator_could_not_write_any_more_is_removed(state_dir: Path) -> None:
    take(make(state_dir)).release()
    empty = state_dir / "locks" / f"{lock_file._stem(NAME)}@{0:020d}.x"
    empty.touch()
    with open(state_dir / "locks" / "counter", "rb+") as counter:
        fcntl.flock(counter, fcntl.LOCK_EX)
        watch = lock_file._Watch(state_dir / "locks")
        assert watch.look(empty, waiting=True) is not None, "somebody may just be writing it"
    take(make(state_dir), deadline_s=0).release()
    assert leftovers(state_dir) == []


# --- many at once -----------------------------------------------------------------------------------------------------


def hammer(state_dir: Path, ledger: Path, rounds: int, threads: int, seed: int) -> None:
    """Take shared and exclusive locks in turn; write down, unprotected, who is inside."""
    locks = make(state_dir)

    def work(thread: int) -> None:
        for number in range(rounds):
            mode = SHARED if (number + thread + seed) % 4 == 0 else EXCLUSIVE
            held = take(locks, mode=mode, owner=f"{os.getpid()}/{thread}")
            held.check()
            with open(ledger, "r+b", buffering=0) as file:
                if mode is EXCLUSIVE:  # read, give others a chance, write: two at once would lose one
                    count = int(file.read())
                    os.sched_yield()
                    file.seek(0)
                    file.write(b"%010d" % (count + 1))
                else:
                    before = file.read()
                    os.sched_yield()
                    file.seek(0)
                    assert file.read() == before, "somebody wrote while a shared lock was held"
            held.release()

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work, thread) for thread in range(threads)]:
            future.result(LONG_S)


def test_processes_and_threads_never_overlap_in_a_thousand_rounds(state_dir: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    ledger.write_bytes(b"%010d" % 0)
    context = multiprocessing.get_context("spawn")
    processes, threads, rounds = 4, 2, 128
    workers = [context.Process(target=hammer, args=(state_dir, ledger, rounds, threads, seed)) for seed in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(LONG_S)
    assert [worker.exitcode for worker in workers] == [0] * processes
    assert processes * threads * rounds >= 1000
    assert int(ledger.read_bytes()) == processes * threads * rounds * 3 // 4
    assert leftovers(state_dir) == []
    assert int((state_dir / "locks" / "counter").read_text()) >= processes * threads * rounds


def test_killed_holders_never_let_two_in_at_once(state_dir: Path, other_process: Callable[..., OtherProcess]) -> None:
    tokens = []
    for _ in range(5):
        other = other_process(lease_s=3600)
        tokens.append(int(other.ask(f"exclusive {NAME}").split()[1]))
        with ThreadPoolExecutor(4) as pool:
            waiting = [threading.Event() for _ in range(4)]

            def one(event: threading.Event) -> int:
                held = take(make(state_dir), on_wait=lambda holder: event.set())
                held.check()
                held.release()
                return held.token

            futures = [pool.submit(one, event) for event in waiting]
            for event in waiting:
                assert event.wait(LONG_S)
            other.kill()
            tokens += sorted(future.result(LONG_S) for future in futures)
    assert tokens == sorted(set(tokens))


# --- files and prerequisites ------------------------------------------------------------------------------------------


def test_only_the_counter_stays_and_everything_is_private(state_dir: Path) -> None:
    held = take(make(state_dir))
    (record,) = leftovers(state_dir)
    assert (state_dir / "locks").stat().st_mode & 0o777 == 0o700
    assert (state_dir / "locks" / record).stat().st_mode & 0o777 == 0o600
    held.release()
    assert os.listdir(state_dir / "locks") == ["counter"]
    assert (state_dir / "locks" / "counter").stat().st_mode & 0o777 == 0o600


def test_a_lock_whose_record_was_removed_is_lost(state_dir: Path) -> None:
    held = take(make(state_dir))
    (record,) = leftovers(state_dir)
    (state_dir / "locks" / record).unlink()
    with pytest.raises(LockLostError, match=NAME):
        held.check()
    held.release()


def test_a_record_that_was_replaced_is_not_ours(state_dir: Path) -> None:
    held = take(make(state_dir))
    rewrite(state_dir, identity="somebody else's")
    with pytest.raises(LockLostError):
        held.check()
    held.release()


def test_tokens_go_on_growing_after_everything_was_released(state_dir: Path) -> None:
    first = take(make(state_dir))
    first.release()
    second = take(make(state_dir))
    second.release()
    assert second.token > first.token


def test_a_process_that_stopped_while_changing_the_queue_is_reported_at_the_deadline(state_dir: Path) -> None:
    take(make(state_dir)).release()
    with open(state_dir / "locks" / "counter", "rb+") as counter:
        fcntl.flock(counter, fcntl.LOCK_EX)
        with pytest.raises(LockTimeoutError, match="changing the queue"):
            take(make(state_dir), deadline_s=0.05)


def test_a_queue_that_is_being_changed_is_no_problem(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_file, "_CHECK_WAIT_S", 0.05)
    take(make(state_dir)).release()
    with open(state_dir / "locks" / "counter", "rb+") as counter:
        fcntl.flock(counter, fcntl.LOCK_EX)
        assert list(make(state_dir).check()) == []


def test_an_owner_with_control_characters_is_shown_escaped(state_dir: Path) -> None:
    held = take(make(state_dir), owner="evil\x1b[2J\nline")
    with pytest.raises(LockTimeoutError, match=r"held by evil\\x1b\[2J\\nline \(pid"):
        take(make(state_dir), deadline_s=0)
    held.release()


@pytest.mark.parametrize("content", [b"", b"x", b"{}", b"\0" * 4000, b"[" * 16000, b"0" * 33 + b'{"pid": "x"}'])
def test_a_damaged_record_does_not_crash_and_does_not_block(state_dir: Path, content: bytes) -> None:
    take(make(state_dir)).release()
    path = state_dir / "locks" / f"{lock_file._stem(NAME)}@{0:020d}.x"
    path.write_bytes(content)
    take(make(state_dir), deadline_s=0).release()
    assert leftovers(state_dir) == []


def test_a_damaged_counter_is_an_error_and_a_problem(state_dir: Path) -> None:
    take(make(state_dir)).release()
    (state_dir / "locks" / "counter").write_text("12 sheep")
    with pytest.raises(LockError, match="damaged"):
        take(make(state_dir))
    assert "damaged" in "".join(make(state_dir).check())


def test_a_missing_state_directory_is_a_problem_and_an_error(tmp_path: Path) -> None:
    locks = make(tmp_path / "missing")
    assert "does not exist" in "".join(locks.check())
    with pytest.raises(LockError, match="missing"):
        take(locks)
    assert not (tmp_path / "missing").exists()


def test_a_state_directory_that_is_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is not a directory" in "".join(make(tmp_path / "file").check())


def test_a_state_directory_that_everybody_may_write_is_a_problem(state_dir: Path) -> None:
    state_dir.chmod(0o1777)
    assert list(make(state_dir).check()) == [
        f"cluster.state_dir: {state_dir} can be written by every user; run: chmod o-w {state_dir}"
    ]
    state_dir.chmod(0o775)
    assert list(make(state_dir).check()) == [], "administrators may share it as a group"


def test_a_state_directory_of_another_user_is_a_problem(state_dir: Path, requires: Callable[..., None]) -> None:
    requires(root=True)
    os.chown(state_dir, 65534, -1)
    assert list(make(state_dir).check()) == [f"cluster.state_dir: {state_dir} belongs to uid 65534; run: chown root {state_dir}"]


def test_a_read_only_state_directory_is_a_problem_and_an_error(
    loop_filesystem: Callable[..., Any], requires: Callable[..., None]
) -> None:
    requires("mount", root=True)
    filesystem = loop_filesystem("ext4", size_mib=8)
    subprocess.run(["mount", "-o", "remount,ro", str(filesystem.path)], check=True)
    assert "cannot be written" in "".join(make(filesystem.path).check())
    with pytest.raises(LockError, match="Read-only"):
        take(make(filesystem.path))


def test_a_full_filesystem_is_an_error_and_leaves_no_record(state_dir: Path, requires: Callable[..., None]) -> None:
    requires("mount", root=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=20,mode=700", "tmpfs", str(state_dir)], check=True)
    try:
        take_all = make(state_dir)
        with pytest.raises(LockError, match="No space left"):
            take(take_all)
        assert leftovers(state_dir) == []
    finally:
        subprocess.run(["umount", str(state_dir)], check=True)


def test_a_symbolic_link_in_place_of_the_locks_directory_is_refused(state_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (state_dir / "locks").symlink_to(tmp_path / "elsewhere")
    assert "is not a directory" in "".join(make(state_dir).check())
    with pytest.raises(LockError, match="is not a directory"):
        take(make(state_dir))
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("value", ["30", True, 0, -1, float("nan"), float("inf"), 1e9])
def test_a_lease_that_makes_no_sense_is_a_configuration_error(state_dir: Path, value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"backend_options\.file\.lease_s"):
        make(state_dir, lease_s=value)


def test_an_unknown_option_is_a_configuration_error(state_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"backend_options\.file\.leese_s: unknown; there is lease_s"):
        make(state_dir, leese_s=3)
