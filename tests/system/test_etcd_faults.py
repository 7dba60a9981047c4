"""Locks in etcd while its members die and are cut off, and while holders stop.

``DISKHAUL_STRESS_SEED`` repeats the faults that were made at random (the seed is printed); ``DISKHAUL_LOCK_ROUNDS`` asks for more
rounds, as ``make stress`` does.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.conftest import requires
from tests.etcd import NAMES, EtcdCluster

import diskhaul
from diskhaul.api import BackendContext
from diskhaul.errors import LockError, LockLostError
from diskhaul.model import Cluster
from diskhaul.testing.conformance.locks import LONG_S, is_free, take
from diskhaul_plugins.locks.etcd.locks import EtcdLocks

if TYPE_CHECKING:
    from .conftest import Lab, Unchanged

NAME = "instance/web1.example.com"
LEASE_S = 2
ROUNDS = int(os.environ.get("DISKHAUL_LOCK_ROUNDS", "300"))
SEED = int(os.environ.get("DISKHAUL_STRESS_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
FAULT_S = 60.0  # longer than any fault lasts: a test that reaches it has failed

_HOLDER = """
import fcntl, hashlib, json, os, sys
from pathlib import Path
from diskhaul.api import BackendContext, LockMode
from diskhaul.errors import LockError, LockLostError
from diskhaul.model import Cluster
from diskhaul_plugins.locks.etcd.locks import EtcdLocks

options = json.loads(sys.argv[1])
locks = EtcdLocks(BackendContext(cluster=Cluster(name="lab", state_dir=Path("state")), options=options))

def take(name):
    return locks.acquire(
        name, LockMode.EXCLUSIVE, owner="the other process", deadline_s=60, on_wait=lambda holder: None, cancelled=lambda: False
    )

def record(log, what, held):
    # Nobody else can write between the check and the line: whoever stops us here stops them too.
    fcntl.flock(log, fcntl.LOCK_EX)
    try:
        held.check()
        os.write(log, f"{what} {held.token} {os.getpid()}\\n".encode())
    finally:
        fcntl.flock(log, fcntl.LOCK_UN)

def hammer(path):
    log, work = os.open(path, os.O_WRONLY | os.O_APPEND), bytes(4 << 20)
    while True:
        try:
            held = take("instance/hammered")
        except LockError:
            continue
        try:
            record(log, "granted", held)
            for _ in range(4):
                hashlib.blake2b(work)  # what a run does while it holds its locks
            record(log, "committed", held)
        except LockLostError:
            pass
        finally:
            try:
                held.release()
            except LockError:
                pass

print("ready", flush=True)
held = {}
for line in sys.stdin:
    verb, _, name = line.strip().partition(" ")
    try:
        if verb == "hammer":
            hammer(name)
        elif verb == "take":
            held[name] = take(name)
            print("held", held[name].token, flush=True)
        elif verb == "check":
            held[name].check()
            print("ok", flush=True)
        elif verb == "release":
            held.pop(name).release()
            print("released", flush=True)
    except LockLostError as error:
        print("lost", error, flush=True)
    except LockError as error:
        print("failed", error, flush=True)
"""


class OtherProcess:
    """A process with locks of its own that does what it is told."""

    def __init__(self, endpoints: list[str], command: Callable[..., list[str]] = lambda *words: [*words]) -> None:
        options = json.dumps({"endpoints": endpoints, "lease_s": LEASE_S})
        self.process = subprocess.Popen(
            command(sys.executable, "-c", _HOLDER, options),
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

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def cluster() -> Iterator[EtcdCluster]:
    requires("ip", "etcd", root=True)
    made = EtcdCluster()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def etcd(cluster: EtcdCluster) -> EtcdCluster:
    """All members work, whatever the test before did to them."""
    cluster.mend()
    return cluster


@pytest.fixture
def other_process(etcd: EtcdCluster) -> Iterator[Callable[..., OtherProcess]]:
    started: list[OtherProcess] = []

    def start(*arguments: Any) -> OtherProcess:
        started.append(OtherProcess(*arguments))
        return started[-1]

    yield start
    for other in started:
        other.process.kill()
        other.process.communicate()


def make(etcd: EtcdCluster, lease_s: int = LEASE_S) -> EtcdLocks:
    options = {"endpoints": etcd.endpoints, "lease_s": lease_s}
    return EtcdLocks(BackendContext(cluster=Cluster(name="lab", state_dir=Path("state")), options=options))


def test_a_holder_stopped_past_its_lease_loses_the_lock_to_a_higher_token(
    etcd: EtcdCluster, other_process: Callable[..., OtherProcess]
) -> None:
    other = other_process(etcd.endpoints)
    first = int(other.ask(f"take {NAME}").split()[1])
    assert other.ask(f"check {NAME}") == "ok"
    other.stop()
    held = take(make(etcd))
    assert held.token > first
    other.go_on()
    assert other.ask(f"check {NAME}").startswith(f"lost lock {NAME}: lost:")
    assert other.ask(f"release {NAME}") == "released"
    held.check()
    held.release()
    assert etcd.keys() == 0


def test_a_killed_holder_is_free_when_its_lease_ends(etcd: EtcdCluster, other_process: Callable[..., OtherProcess]) -> None:
    other = other_process(etcd.endpoints)
    first = int(other.ask(f"take {NAME}").split()[1])
    other.process.kill()
    assert not is_free(make(etcd))
    held = take(make(etcd))
    assert held.token > first
    held.release()


@pytest.mark.parametrize("leads", [True, False], ids=["that leads", "that follows"])
def test_a_member_that_is_cut_off_together_with_a_holder_is_not_believed(
    etcd: EtcdCluster, other_process: Callable[..., OtherProcess], leads: bool
) -> None:
    leader = etcd.leader()
    name = leader if leads else next(each for each in NAMES if each != leader)
    etcd.wait_for_quorum()
    # It asks the member of its own machine first, and once that is cut off it reaches no other.
    endpoints = sorted(etcd.endpoints, key=lambda endpoint: endpoint != etcd.endpoint(name))
    other = other_process(endpoints, lambda *words: etcd.network.command(name, *words))
    first = int(other.ask(f"take {NAME}").split()[1])

    etcd.network.disconnect(name)
    assert other.ask(f"check {NAME}").startswith(f"lost lock {NAME}: ")
    assert other.ask("take instance/another").startswith("failed lock instance/another: etcd: no endpoint answered")
    etcd.wait_for_quorum(*(each for each in NAMES if each != name))
    held = take(make(etcd, lease_s=30))
    assert held.token > first

    etcd.network.connect(name)
    etcd.wait_for_quorum()
    assert other.ask(f"check {NAME}").startswith(f"lost lock {NAME}: lost:"), "what was lost stays lost"
    held.check()
    held.release()


def test_a_lock_outlives_the_leader(etcd: EtcdCluster) -> None:
    held = take(make(etcd, lease_s=30))
    waiting = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(take, make(etcd, lease_s=30), on_wait=lambda holder: waiting.set())
        assert waiting.wait(LONG_S)
        etcd.kill(etcd.leader())
        held.check()
        assert not future.done()
        held.release()
        second = future.result(LONG_S)
    assert second.token > held.token
    second.check()
    second.release()
    assert etcd.keys() == 0


def test_without_a_quorum_nothing_is_believed_and_what_was_held_is_lost(etcd: EtcdCluster) -> None:
    held = take(make(etcd))
    for name in NAMES[:2]:
        etcd.kill(name)
    with pytest.raises(LockLostError, match="counts as lost"):
        held.check()
    with pytest.raises(LockError, match="no endpoint answered") as refused:
        take(make(etcd))
    assert refused.value.exit_code == 5
    problems = list(make(etcd, lease_s=9).check())
    assert [problem.split(": ")[1] for problem in problems] == etcd.endpoints
    assert "no quorum" in problems[2]
    assert "is etcd running there" in problems[0]
    with pytest.raises(LockError, match="cannot be released"):
        held.release()
    etcd.mend()
    take(make(etcd)).release()
    assert etcd.keys() == 0


# --- real exports -----------------------------------------------------------------------------------------------------


def lock_in(lab: Lab, etcd: EtcdCluster) -> None:
    lab.settings["backends"] = {"lock": "etcd"}
    lab.settings["backend_options"] = {"etcd": {"endpoints": etcd.endpoints, "lease_s": LEASE_S}}


def lose_quorum(etcd: EtcdCluster, stage: str, when: str) -> Callable[[Any], None]:
    """What kills two of three members at the first event of that kind."""
    done = threading.Event()

    def on_event(event: Any) -> None:
        if event.kind == f"stage-{when}" and event.stage == stage and not done.is_set():
            done.set()
            for name in NAMES[:2]:
                etcd.kill(name)

    return on_event


@pytest.mark.parametrize(("stage", "when"), [("stop", "finished"), ("send", "finished"), ("publish", "started")])
def test_an_export_that_loses_the_quorum_fails_before_it_publishes_and_the_guest_runs(
    lab: Lab, unchanged: Callable[[Lab], Unchanged], etcd: EtcdCluster, stage: str, when: str
) -> None:
    lock_in(lab, etcd)
    guest = lab.add_guest()
    earlier = lab.export(node="gamma")
    assert earlier.export is not None
    check = unchanged(lab)

    with pytest.raises(
        diskhaul.OperationFailedError, match=r"lock cluster/lab: cannot be checked|lock cluster/lab: lost"
    ) as failed:
        lab.export(on_event=lose_quorum(etcd, stage, when))

    assert failed.value.exit_code == 3
    assert guest.running
    assert lab.listed() == [("gamma", earlier.export.export_id)]
    check.check(but=("children",))  # members of etcd are
    etcd.mend()
    result = lab.export()
    assert result.exit_code == 0, result.incomplete
    assert result.export is not None
    assert lab.listed() == [("beta", result.export.export_id)]


def test_an_export_whose_locks_are_lost_after_publishing_keeps_what_it_supersedes(lab: Lab, etcd: EtcdCluster) -> None:
    lock_in(lab, etcd)
    guest = lab.add_guest()
    earlier = lab.export(node="gamma")
    assert earlier.export is not None

    result = lab.export(on_event=lose_quorum(etcd, "publish", "finished"))

    assert result.exit_code == 4
    assert guest.running
    assert len(lab.listed()) == 2


def test_a_quorum_that_is_lost_while_locks_are_taken_is_a_lock_that_could_not_be_had(
    lab: Lab, unchanged: Callable[[Lab], Unchanged], etcd: EtcdCluster
) -> None:
    lock_in(lab, etcd)
    guest = lab.add_guest()
    assert lab.listed() == []
    check = unchanged(lab)
    with pytest.raises(LockError, match="no endpoint answered") as refused:
        lab.export(on_event=lose_quorum(etcd, "locks", "finished"))
    assert refused.value.exit_code == 5
    assert "stop" not in guest.calls()
    check.check(but=("children",))  # members of etcd are


def test_the_command_line_refuses_without_a_quorum_and_waits_for_a_holder_only_so_long(lab: Lab, etcd: EtcdCluster) -> None:
    lock_in(lab, etcd)
    guest = lab.add_guest()
    settings = {key: lab.settings[key] for key in ("backends", "backend_options")}
    lab.write_config(lab.document() | settings | {"defaults": {"lock_timeout_s": 0.1}})
    held = take(make(etcd, lease_s=30), owner="somebody's export")

    late = lab.cli("export", "web1", "--node", "beta")
    assert late.returncode == 5, late.stderr
    assert "somebody's export" in late.stderr
    held.release()

    for name in NAMES[:2]:
        etcd.kill(name)
    refused = lab.cli("export", "web1", "--node", "beta")
    assert refused.returncode == 2, refused.stderr
    for endpoint in etcd.endpoints:
        assert f"etcd: {endpoint}: " in refused.stderr
    assert "stop" not in guest.calls()
    assert guest.running


# --- many rounds ------------------------------------------------------------------------------------------------------


class Hammering:
    """Processes that take one lock again and again; each line of `log` was written by one that held it."""

    def __init__(self, log: Path, processes: list[OtherProcess]) -> None:
        self.log, self.processes = log, processes
        log.touch()
        for other in processes:
            other.say(f"hammer {log}")

    def lines(self) -> list[tuple[str, int, int]]:
        found = []
        for line in self.log.read_text().splitlines():
            what, token, pid = line.split()
            found.append((what, int(token), int(pid)))
        return found

    def commits(self, *, but: int = 0) -> int:
        return sum(what == "committed" and pid != but for what, _, pid in self.lines())

    def wait_for(self, more: int, *, but: int = 0) -> None:
        """Wait for `more` commits of processes other than `but`."""
        enough, until = self.commits(but=but) + more, time.monotonic() + FAULT_S
        while self.commits(but=but) < enough:
            assert time.monotonic() < until, "nobody gets the lock any more"
            assert all(other.process.poll() is None for other in self.processes)
            time.sleep(0.01)


def stop_the_holder(hammering: Hammering) -> bool:
    """Stop the process that holds the lock until another has committed; False when it did not hold it any more.

    It may be stopped in the middle of anything, also between a check and its line: then nobody gets on until it is continued.
    """
    lines = hammering.lines()
    if not lines or lines[-1][0] != "granted":
        return False
    pid = lines[-1][2]
    (other,) = (each for each in hammering.processes if each.process.pid == pid)
    other.stop()
    try:
        caught = hammering.lines()[-1] == lines[-1]
        enough, until = hammering.commits(but=pid) + 5, time.monotonic() + 3 * LEASE_S
        while caught and hammering.commits(but=pid) < enough:
            if time.monotonic() > until:
                return False
            time.sleep(0.01)
    finally:
        other.go_on()
    return caught


def make_fault(kind: str, generator: random.Random, etcd: EtcdCluster, hammering: Hammering) -> None:
    if kind == "stop":
        while not stop_the_holder(hammering):
            pass
    elif kind == "cut off":
        name = generator.choice(NAMES)
        etcd.network.disconnect(name)
        hammering.wait_for(5)
        etcd.mend()
    elif kind == "kill the leader":
        etcd.kill(etcd.leader())
        hammering.wait_for(5)
        etcd.mend()
    else:
        for name in generator.sample(NAMES, 2):
            etcd.kill(name)
        etcd.mend()
    hammering.wait_for(5)


FAULTS = ("stop", "cut off", "kill the leader", "lose the quorum")


@pytest.mark.timeout(max(300, ROUNDS))
def test_processes_that_hammer_one_lock_through_faults_never_hold_it_both_at_commit(
    tmp_path: Path, etcd: EtcdCluster, other_process: Callable[..., OtherProcess]
) -> None:
    print(f"DISKHAUL_STRESS_SEED={SEED}")
    generator = random.Random(SEED)
    processes = [other_process(etcd.endpoints[number:] + etcd.endpoints[:number]) for number in range(2)]
    hammering = Hammering(tmp_path / "log", processes)
    hammering.wait_for(5)
    faults = 0
    while faults < len(FAULTS) or hammering.commits() < ROUNDS:
        kind = FAULTS[faults] if faults < len(FAULTS) else generator.choice(FAULTS)
        print(f"{hammering.commits()} commits; now: {kind}")
        make_fault(kind, generator, etcd, hammering)
        hammering.wait_for(generator.randrange(20, 60))
        faults += 1
    for other in processes:
        other.process.kill()
        other.process.wait()

    lines = hammering.lines()
    assert len({pid for what, _, pid in lines if what == "committed"}) == 2, "one never had it: nothing was tested"
    highest, owner = 0, {}
    for number, (what, token, pid) in enumerate(lines):
        assert token >= highest, f"line {number}: {what} with token {token}, when {highest} had been granted"
        assert owner.setdefault(token, pid) == pid, f"line {number}: token {token} was given to two"
        highest = token
    committed = [token for what, token, _ in lines if what == "committed"]
    assert len(set(committed)) == len(committed)
