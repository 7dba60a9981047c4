"""Fleets of real exports: limits as seen from outside, clients that are killed or stopped, and failures among many that work."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import diskhaul
from diskhaul.api import BackendContext, Runtime, RuntimeSpec
from diskhaul.events import Event, MemberEvent, MemberFinished, MemberStarted
from diskhaul.fleet.plan_store import PlanStore
from diskhaul_plugins.engines.local import LocalEngine

from .conftest import NODES, Lab

DEADLINE_S = 60.0
SMALL = diskhaul.ExportOptions(chunk_size=64 << 10, lock_timeout_s=60.0, memory=16 << 20, threads=1)


@pytest.fixture
def fleet(tmp_path: Path) -> Callable[..., Lab]:
    """Make a cluster with so many instances without guests, spread over its nodes."""

    def make(number: int, *, size: int = 20_000, runtime: str = "none") -> Lab:
        lab = Lab(path=tmp_path, disks=tmp_path / "disks")
        for directory in (lab.disks, lab.temporary, *map(lab.export_dir, NODES)):
            directory.mkdir(mode=0o700)
        chance = random.Random(number)
        for index in range(number):
            name = f"vm{index:03}.example.com"
            disk = lab.disks / f"{name}.raw"
            disk.write_bytes(chance.randbytes(size + 512 * (index % 7)))
            lab.instances[name] = diskhaul.Instance(
                name=name, node=NODES[index % 4], state="down", runtime=runtime, disks=[diskhaul.Disk(path=disk, name="root")]
            )
        return lab

    return make


def ids(lab: Lab) -> dict[str, list[str]]:
    """The valid exports of every instance; one that is not valid, or not published, fails the test."""
    found: dict[str, list[str]] = {}
    for record in diskhaul.list_exports(config=lab.cluster()).exports:
        assert record.problem == ""
        found.setdefault(record.instance, []).append(record.export_id)
    assert partials(lab) == Counter()
    return found


def partials(lab: Lab) -> Counter[str]:
    """How many exports are being written to each node, as its directory shows."""
    return Counter(path.parts[len(lab.path.parts)] for path in lab.path.glob("*/*/.*.partial"))


class Gate(Runtime):
    """The runtime of every guest: holds each export until as many run as the limits allow, and notes who runs.

    Attributes:
        most: the highest number of exports that ran at once: of each source, to each target, together.
        instances_given: how many instances the clusters of the exports have.
    """

    def __init__(self, per_source: int, parallel: int, left: Counter[str]) -> None:
        self.most: Counter[str] = Counter()
        self.released_when_full = 0
        self.instances_given: set[int] = set()
        self._per_source, self._parallel = per_source, parallel
        self._left = left
        self._targets: dict[str, str] = {}
        self._running: Counter[str] = Counter()
        self._changed = threading.Condition()

    # Noted as soon as the export has its locks, and taken back as late as a plugin hears of it.

    @diskhaul.hookimpl
    def diskhaul_runtimes(self) -> list[RuntimeSpec]:
        return [RuntimeSpec(name="gate", create=self._create, capability=lambda: diskhaul.Capability(works=True))]

    def _create(self, context: BackendContext) -> Gate:
        self.instances_given.add(len(context.cluster.instances))
        return self

    @diskhaul.hookimpl
    def diskhaul_prerequisites(self, plan: diskhaul.Plan) -> None:
        assert plan.source is not None
        assert plan.target is not None
        with self._changed:
            self._targets[plan.instance.name] = plan.target.name
            self._left[plan.source.name] -= 1
            self._running += Counter([f"from {plan.source.name}", f"to {plan.target.name}", "together"])
            self.most |= self._running
            self._changed.notify_all()

    def activate_disks(self, instance: diskhaul.Instance) -> bool:
        with self._changed:
            assert self._changed.wait_for(self._full, DEADLINE_S), f"no more than {self._running} run, {self._left} wait"
            self.released_when_full += 1
        return True

    def _full(self) -> bool:
        """Whether as many run as can, with what is left to begin."""
        could = sum(min(self._per_source, self._running[f"from {node}"] + self._left[node]) for node in NODES)
        return self._running["together"] >= min(self._parallel, could)

    def deactivate_disks(self, instance: diskhaul.Instance) -> None:
        with self._changed:
            self._running -= Counter([f"from {instance.node}", f"to {self._targets[instance.name]}", "together"])
            self._changed.notify_all()

    def is_running(self, instance: diskhaul.Instance) -> bool:
        return False

    def stop(self, instance: diskhaul.Instance, *, timeout_s: float) -> None:
        raise AssertionError("nothing runs")

    def start(self, instance: diskhaul.Instance) -> None:
        raise AssertionError("nothing ran")


def test_two_hundred_instances_are_exported_with_as_many_at_a_time_as_the_limits_allow_and_never_more(
    fleet: Callable[..., Lab],
) -> None:
    lab = fleet(200, runtime="gate")
    gate = Gate(2, 6, Counter(instance.node for instance in lab.instances.values()))
    written: Counter[str] = Counter()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            now = partials(lab)
            for name, number in (*now.items(), ("together", now.total())):
                written[name] = max(written[name], number)
            over.wait(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = diskhaul.fleet_export(
            all_instances=True,
            to="round-robin",
            per_source=2,
            per_target=2,
            parallel=6,
            config=lab.cluster(),
            options=SMALL,
            plugins=[gate],
        )
    finally:
        over.set()
        watcher.join()
    assert [(member.instance, member.error) for member in result.members if member.state != "done"] == []
    assert result.exit_code == 0
    assert gate.released_when_full == 200
    assert gate.instances_given == {1}  # what an export looks through does not grow with the fleet
    assert gate.most["together"] == 6
    assert {gate.most[f"from {node}"] for node in NODES} == {2}
    assert {gate.most[f"to {node}"] for node in NODES} == {2}
    assert 0 < written["together"] <= 6
    assert all(written[node] <= 2 for node in NODES)
    assert all(member.source != member.target for member in result.members)
    assert {name: len(found) for name, found in ids(lab).items()} == dict.fromkeys(lab.instances, 1)
    verified = diskhaul.verify(config=lab.cluster())
    assert (len(verified.checked), verified.findings) == (200, ())


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Run ``diskhaul fleet export`` in a process of its own, with its progress to read line by line; it ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(lab: Lab, *arguments: str) -> subprocess.Popen[str]:
        lab.write_config()
        process = subprocess.Popen(
            lab.command("fleet", "export", *arguments, "--chunk-size", "64K"),
            env=lab.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def wait_for(text: str, process: subprocess.Popen[str], number: int) -> None:
    assert process.stderr is not None
    lines = []
    killer = threading.Timer(DEADLINE_S, process.kill)
    killer.start()
    try:
        for line in process.stderr:
            lines.append(line)
            number -= text in line
            if number == 0:
                return
    finally:
        killer.cancel()
    pytest.fail(f"it ended before {text!r} had come so often: " + "".join(lines))


SLOW = ("--all", "--to", "round-robin", "--parallel", "4", "--bwlimit", "1M")  # 16 times 80 KB, read twice


def resumed(lab: Lab, *arguments: str) -> Any:
    done = lab.cli("fleet", "export", "--resume", "--json", *arguments)
    document = json.loads(done.stdout)
    assert done.returncode == document["exit_code"], done.stderr
    return document


def test_a_client_that_was_killed_goes_on_and_exports_nothing_twice(fleet: Callable[..., Lab], start: Start) -> None:
    lab = fleet(16, size=80_000)
    process = start(lab, *SLOW)
    wait_for("exported in", process, 4)
    process.kill()
    process.wait(DEADLINE_S)
    (plan,) = PlanStore(lab.state_dir).plans()
    assert 4 <= plan.done < 16
    states = {member.instance: member for member in PlanStore(lab.state_dir).members(plan.name)}
    running = [name for name, member in states.items() if member.state == "running"]
    assert running

    again = lab.cli("fleet", "export", *SLOW, "--chunk-size", "64K")
    assert again.returncode == 2
    assert f"plan {plan.name} is unfinished ({plan.done} of 16 exported): go on with it (--resume)" in again.stderr

    document = resumed(lab)
    assert document["exit_code"] == 0
    assert (document["plan"], document["done"], document["failed"], document["pending"]) == (plan.name, 16, 0, 0)
    found = ids(lab)
    assert {name: len(exports) for name, exports in found.items()} == dict.fromkeys(lab.instances, 1)
    for member in document["members"]:
        before = states[member["instance"]]
        assert member["earlier"] == (before.state == "done")
        assert found[member["instance"]] == [member["export_id"]]
        if member["earlier"]:
            assert member["export_id"] == before.export_id


def test_ctrl_c_ends_it_cleanly_and_the_plan_stays(fleet: Callable[..., Lab], start: Start) -> None:
    lab = fleet(16, size=80_000)
    process = start(lab, *SLOW, "--plan", "nightly")
    wait_for("exported in", process, 2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "Stopped before the end." in out
    assert "diskhaul fleet export --resume --plan nightly" in out
    before = ids(lab)
    assert 2 <= len(before) < 16
    members = PlanStore(lab.state_dir).members("nightly")
    assert {member.instance for member in members if member.state == "done"} == set(before)
    assert {member.state for member in members} == {"done", "pending"}
    # One that was published just before Ctrl-C had no time to clean up: that stays told.
    unfinished = {member.instance for member in members if member.incomplete}
    document = resumed(lab, "--plan", "nightly")
    assert document["exit_code"] == (4 if unfinished else 0)
    assert {member["instance"] for member in document["members"] if member["incomplete"]} == unfinished
    assert all(member["state"] == "done" for member in document["members"])
    assert set(ids(lab)) == set(lab.instances)


def test_a_guest_that_a_killed_client_left_down_runs_again_once_the_plan_goes_on(fleet: Callable[..., Lab], start: Start) -> None:
    lab = fleet(2)
    guest = lab.add_guest("web1.example.com", place=lab.path / "disks")
    try:
        process = start(
            lab, "web1", "--to", "beta", "--long-sleep", "--bwlimit", "100K", "--plan", "p", "--shutdown-timeout", "5"
        )
        until = time.monotonic() + DEADLINE_S
        while not (partials(lab) and not guest.running) and time.monotonic() < until:
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.fail(f"it ended with {process.wait(0.05)} before it had begun to send")
        process.kill()
        process.wait(DEADLINE_S)
        assert not guest.running
        assert resumed(lab, "--plan", "p", "--bwlimit", "0")["exit_code"] == 0
        assert guest.running
        assert len(ids(lab)["web1.example.com"]) == 1
    finally:
        guest.close()


def test_an_export_that_was_published_just_before_the_client_died_counts(fleet: Callable[..., Lab]) -> None:
    lab = fleet(3)
    first = diskhaul.fleet_export(all_instances=True, to="beta", plan="p", config=lab.cluster(), options=SMALL)
    store = PlanStore(lab.state_dir)
    # What a SIGKILL between the publication and its note leaves.
    (_, last, _) = store.members("p")
    store.record("p", [replace(last, state="running", export_id="")])
    store.end("p", ended=False)
    second = diskhaul.fleet_export(resume=True, config=lab.cluster())
    assert second.exit_code == 0
    assert [member.export_id for member in second.members] == [member.export_id for member in first.members]
    assert [member.earlier for member in second.members] == [True, False, True]


def test_an_export_of_another_run_does_not_count_whatever_the_clocks_say(fleet: Callable[..., Lab]) -> None:
    lab = fleet(3)
    first = diskhaul.fleet_export(all_instances=True, to="beta", plan="p", config=lab.cluster(), options=SMALL)
    store = PlanStore(lab.state_dir)
    (_, middle, _) = members = store.members("p")
    store.begin("p", store.plans()[0].request, [*members[:1], replace(middle, state="running", export_id=""), *members[2:]])
    assert store.runs("p", middle.instance) == []
    second = diskhaul.fleet_export(resume=True, config=lab.cluster())
    assert second.exit_code == 0
    same = [member.export_id == before.export_id for member, before in zip(second.members, first.members, strict=True)]
    assert same == [True, False, True]
    (run,) = store.runs("p", middle.instance)
    assert second.members[1].export_id.endswith(run[:8])


def test_an_attempt_that_was_lost_with_its_node_and_goes_on_is_waited_for_and_not_repeated(
    fleet: Callable[..., Lab],
) -> None:
    from diskhaul.api import LockMode
    from diskhaul.operations.base import LockLevel, LockSet, RunContext

    lab = fleet(3)
    first = diskhaul.fleet_export(all_instances=True, to="beta", plan="p", config=lab.cluster(), options=SMALL)
    store = PlanStore(lab.state_dir)
    (_, last, _) = store.members("p")
    store.record("p", [replace(last, state="lost", export_id="", exit_code=3)])
    context = RunContext(lab.cluster())
    # As the journal has it of a run that is at work.
    context.journal.begin(context.run_id, "export", last.instance)
    context.journal.note(context.run_id, "guest", {"instance": last.instance, "stopped": True})
    with LockSet(context, "the first attempt").acquire(LockLevel.INSTANCE, {last.instance: LockMode.EXCLUSIVE}, 5.0):
        again = diskhaul.fleet_export(resume=True, plan="p", retries=1, backoff_s=0, config=lab.cluster())
    (waiting,) = (member for member in again.members if member.state != "done")
    assert (waiting.instance, waiting.state, waiting.exit_code, waiting.attempts) == (last.instance, "failed", 5, 3)
    assert "an earlier attempt is still going on" in waiting.error
    assert {name: len(found) for name, found in ids(lab).items()} == dict.fromkeys(lab.instances, 1)
    context.journal.finish(context.run_id)
    third = diskhaul.fleet_export(resume=True, plan="p", config=lab.cluster())
    assert third.exit_code == 0
    assert [member.export_id for member in third.members] == [member.export_id for member in first.members]


def test_a_plan_that_another_client_threw_away_before_it_was_locked_does_not_go_on(fleet: Callable[..., Lab]) -> None:
    from diskhaul_plugins.locks.file import FileLocks

    lab = fleet(2)
    diskhaul.fleet_export(["vm000"], to="beta", plan="p", config=lab.cluster(), options=SMALL)
    store = PlanStore(lab.state_dir)
    other = [replace(member, instance="vm001.example.com", state="pending") for member in store.members("p")]

    class Late(FileLocks):
        """Another client was first, and has begun another plan of that name."""

        def acquire(self, *arguments: Any, **more: Any) -> Any:
            store.begin("p", {"patterns": ["vm001"], "to": "beta"}, other)
            return super().acquire(*arguments, **more)

    class Plugin:
        @diskhaul.hookimpl
        def diskhaul_locks(self) -> list[diskhaul.LockSpec]:
            return [diskhaul.LockSpec(name="late", create=Late, capability=lambda: diskhaul.Capability(works=True))]

    cluster = replace(lab.cluster(), backends={**lab.cluster().backends, "lock": "late"})
    with pytest.raises(diskhaul.RefusedError, match="plan p was thrown away meanwhile by another client"):
        diskhaul.fleet_export(resume=True, plan="p", config=cluster, plugins=[Plugin()])
    assert [(member.instance, member.state) for member in store.members("p")] == [("vm001.example.com", "pending")]
    assert set(ids(lab)) == {"vm000.example.com"}


def test_a_cancelled_fleet_is_answered_stands_in_the_way_and_can_be_given_up(fleet: Callable[..., Lab]) -> None:
    lab = fleet(12)
    token = diskhaul.CancellationToken()

    def stop_after_one(event: Event) -> None:
        if isinstance(event, MemberFinished) and event.state == "done":
            token.cancel("the test wants it")

    def again(**more: Any) -> diskhaul.FleetResult:
        return diskhaul.fleet_export(["vm*"], to="beta", per_target=1, config=lab.cluster(), options=SMALL, **more)

    result = again(on_event=stop_after_one, cancel=token)
    assert (result.interrupted, result.exit_code) == (True, 130)
    assert {member.state for member in result.members} == {"done", "pending"}
    assert partials(lab) == Counter()
    with pytest.raises(diskhaul.RefusedError, match=rf"plan {result.plan} is unfinished \(\d+ of 12 exported\)"):
        again()
    anew = again(discard=True)
    assert anew.exit_code == 0
    assert [member.earlier for member in anew.members] == [False] * 12
    with pytest.raises(diskhaul.RefusedError, match="no plan is unfinished"):
        diskhaul.fleet_export(resume=True, config=lab.cluster())


def test_an_export_that_has_gone_since_is_made_again_and_the_others_are_not(fleet: Callable[..., Lab]) -> None:
    lab = fleet(4)
    first = diskhaul.fleet_export(all_instances=True, to="beta", plan="p", config=lab.cluster(), options=SMALL)
    gone = first.members[2]
    diskhaul.remove(f"{gone.instance}@{gone.export_id}", config=lab.cluster())
    second = diskhaul.fleet_export(plan="p", resume=True, config=lab.cluster())
    assert second.exit_code == 0
    assert [member.earlier for member in second.members] == [True, True, False, True]
    assert [a.export_id == b.export_id for a, b in zip(first.members, second.members, strict=True)] == [True, True, False, True]
    assert any("is gone: it is exported again" in warning for warning in second.warnings)


class Deaf(LocalEngine):
    """Nodes are asked, and `answer` is called first.

    Attributes:
        asked: whom, in turn.
    """

    def __init__(self, answer: Callable[[str], object]) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def run(self, node: Any, function: Any, /, *arguments: Any) -> Any:
        self.asked.append(node.name)
        self.answer(node.name)
        return super().run(node, function, *arguments)

    @diskhaul.hookimpl
    def diskhaul_engines(self) -> list[diskhaul.EngineSpec]:
        return [diskhaul.EngineSpec(name="deaf", create=lambda context: self, capability=lambda: diskhaul.Capability(works=True))]

    def of(self, lab: Lab) -> diskhaul.Cluster:
        return lab.cluster(backends={"engine": "deaf"})


def test_a_node_that_does_not_say_what_is_still_there_is_left_behind_when_the_plan_goes_on(
    fleet: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diskhaul.operations import fleet_export

    lab = fleet(2)
    diskhaul.fleet_export(all_instances=True, to="beta", plan="p", config=lab.cluster(), options=SMALL)
    ended = threading.Event()
    deaf = Deaf(lambda name: ended.wait(DEADLINE_S))
    monkeypatch.setattr(fleet_export, "NODE_LIMIT_S", 0.05)
    try:
        again = diskhaul.fleet_export(resume=True, plan="p", config=deaf.of(lab), plugins=[deaf])
    finally:
        ended.set()
    assert [member.earlier for member in again.members] == [True, True]
    assert any("2 exports are still on beta could not be found out" in warning for warning in again.warnings)


def test_a_plan_that_goes_on_can_be_cancelled_while_a_node_does_not_say_what_is_still_there(fleet: Callable[..., Lab]) -> None:
    lab = fleet(2)
    diskhaul.fleet_export(all_instances=True, to="beta", plan="p", config=lab.cluster(), options=SMALL)
    token, ended = diskhaul.CancellationToken(), threading.Event()

    def hang(name: str) -> None:
        token.cancel("enough")
        assert ended.wait(DEADLINE_S)

    deaf = Deaf(hang)
    try:
        with pytest.raises(diskhaul.InterruptedRunError, match="enough"):
            diskhaul.fleet_export(resume=True, plan="p", config=deaf.of(lab), plugins=[deaf], cancel=token)
        assert not ended.is_set()
    finally:
        ended.set()
    assert diskhaul.fleet_export(resume=True, plan="p", config=lab.cluster()).exit_code == 0


def test_a_node_that_does_not_answer_is_not_asked_again_for_the_size_of_each_of_its_instances(fleet: Callable[..., Lab]) -> None:
    lab = fleet(12)

    def answer(name: str) -> None:
        if name == "alpha":
            raise diskhaul.UnreachableNodeError(name, "gone")

    deaf = Deaf(answer)
    planned = diskhaul.fleet_export(all_instances=True, to="round-robin", dry_run=True, config=deaf.of(lab), plugins=[deaf])
    assert Counter(deaf.asked) == {"alpha": 1, "beta": 3, "gamma": 3, "delta": 3}
    assert {member.size for member in planned.members if member.source == "alpha"} == {0}
    assert all(member.size for member in planned.members if member.source != "alpha")


def test_what_cannot_be_exported_fails_alone_with_its_reason_and_is_not_tried_again(fleet: Callable[..., Lab]) -> None:
    lab = fleet(6)
    broken = "vm003.example.com"
    (lab.disks / f"{broken}.raw").unlink()
    result = diskhaul.fleet_export(all_instances=True, to="round-robin", plan="p", config=lab.cluster(), options=SMALL)
    assert result.exit_code == 2
    (failed,) = (member for member in result.members if member.state != "done")
    assert (failed.instance, failed.attempts, failed.exit_code) == (broken, 1, 2)
    assert f"{broken}.raw" in failed.error
    assert failed.remedy == "correct what it says, then resume"
    (lab.disks / f"{broken}.raw").write_bytes(b"repaired" * 1000)
    again = diskhaul.fleet_export(plan="p", resume=True, config=lab.cluster())
    assert again.exit_code == 0
    assert [member.instance for member in again.members if not member.earlier] == [broken]


def test_a_target_that_does_not_answer_is_tried_again_elsewhere(fleet: Callable[..., Lab]) -> None:
    lab = fleet(8)
    lab.export_dir("beta").rmdir()
    events: list[Event] = []
    result = diskhaul.fleet_export(
        all_instances=True, to="round-robin", backoff_s=0, config=lab.cluster(), options=SMALL, on_event=events.append
    )
    assert [(member.instance, member.error) for member in result.members if member.state != "done"] == []
    assert "beta" not in {member.target for member in result.members}
    retries = [event for event in events if isinstance(event, MemberFinished) and event.state == "retry"]
    assert retries
    assert all(event.target == "beta" and "beta" in event.error for event in retries)


def test_an_instance_that_somebody_else_works_on_fails_as_locked_after_its_retries(fleet: Callable[..., Lab]) -> None:
    from diskhaul.api import LockMode
    from diskhaul.operations.base import LockLevel, LockSet, RunContext

    lab = fleet(3)
    held = "vm001.example.com"
    context = RunContext(lab.cluster())
    _ = context.journal  # makes the directory that locks lie in
    options = diskhaul.ExportOptions(chunk_size=64 << 10, lock_timeout_s=0.5)
    with LockSet(context, "a test").acquire(LockLevel.INSTANCE, {held: LockMode.EXCLUSIVE}, 5.0):
        result = diskhaul.fleet_export(
            all_instances=True, to="beta", retries=2, backoff_s=0, config=lab.cluster(), options=options
        )
    assert result.exit_code == 5
    states = {member.instance: (member.state, member.attempts, member.exit_code) for member in result.members}
    assert states == {
        "vm000.example.com": ("done", 1, 0),
        held: ("failed", 3, 5),
        "vm002.example.com": ("done", 1, 0),
    }


def test_a_second_client_is_kept_from_the_plan_while_the_first_works_on_it(fleet: Callable[..., Lab], start: Start) -> None:
    lab = fleet(8, size=200_000)
    wait_for(" -> ", start(lab, *SLOW, "--bwlimit", "50K", "--plan", "p"), 1)  # takes half a minute, and is killed at the end
    second = lab.cli("fleet", "export", "--resume", "--plan", "p")
    assert second.returncode == 5
    assert "fleet/p" in second.stderr
    third = lab.cli("fleet", "export", *SLOW, "--bwlimit", "50K", "--plan", "q", "--chunk-size", "64K", "--discard")
    assert third.returncode == 5
    assert "fleet/request-" in third.stderr
    assert [(plan.name, plan.ended) for plan in PlanStore(lab.state_dir).plans()] == [("p", None)]


def test_a_client_that_lost_its_plan_to_another_one_stops_and_leaves_what_that_one_wrote(fleet: Callable[..., Lab]) -> None:
    lab = fleet(4)
    store: PlanStore | None = None
    token = diskhaul.CancellationToken()

    def take_over(event: Event) -> None:
        nonlocal store
        if isinstance(event, MemberFinished) and store is None:
            for record in (lab.state_dir / "locks").glob("fleet%2F*"):  # as if the client had slept for longer than its lease
                record.unlink()
            store = PlanStore(lab.state_dir)
            store.record("p", [replace(member, state="pending", attempts=7) for member in store.members("p")])

    with pytest.raises(diskhaul.LockLostError, match="fleet/p"):
        diskhaul.fleet_export(
            all_instances=True,
            to="beta",
            parallel=1,
            plan="p",
            config=lab.cluster(),
            options=SMALL,
            on_event=take_over,
            cancel=token,
        )
    assert token.cancelled
    assert store is not None
    assert [(member.state, member.attempts) for member in store.members("p")] == [("pending", 7)] * 4
    assert partials(lab) == Counter()
    assert len(ids(lab)) == 1


def test_events_say_which_instance_they_are_of_and_a_listener_is_called_one_at_a_time(fleet: Callable[..., Lab]) -> None:
    lab = fleet(8)
    inside = threading.Lock()
    events: list[Event] = []

    def listen(event: Event) -> None:
        assert inside.acquire(blocking=False), "called while it is at work"
        events.append(event)
        inside.release()

    result = diskhaul.fleet_export(all_instances=True, to="most-free", config=lab.cluster(), options=SMALL, on_event=listen)
    assert result.exit_code == 0
    assert result.warnings == ()
    names = set(lab.instances)
    assert {event.instance for event in events if isinstance(event, MemberStarted)} == names
    assert {event.instance for event in events if isinstance(event, MemberEvent)} == names
    lines = [event.as_dict() for event in events if isinstance(event, MemberEvent)]
    ended = [line for line in lines if line["event"] == "operation-finished"]
    assert {line["instance"] for line in ended} == names
    assert len({line["run_id"] for line in ended}) == 8


def test_all_exports_together_stay_below_the_bandwidth_that_was_given(fleet: Callable[..., Lab]) -> None:
    lab = fleet(6)
    asked: list[tuple[str, float]] = []

    class Noting:
        @diskhaul.hookimpl
        def diskhaul_prerequisites(self, plan: diskhaul.Plan) -> None:
            asked.append((plan.instance.name, float(str(plan.options["bwlimit"]))))

    result = diskhaul.fleet_export(
        all_instances=True, to="beta", per_target=3, bwlimit=3_000_000, config=lab.cluster(), options=SMALL, plugins=[Noting()]
    )
    assert result.exit_code == 0
    assert len(asked) == 6
    assert all(1_000_000 <= share <= 3_000_000 for _, share in asked)
    assert sorted(share for _, share in asked)[:3] == [1_000_000] * 3


def test_the_exit_code_is_that_of_the_worst_export() -> None:
    def result(*codes: int, interrupted: bool = False) -> int:
        members = tuple(diskhaul.FleetMember(instance=f"vm{code}", source="alpha", exit_code=code) for code in codes)
        return diskhaul.FleetResult(run_id="", plan="p", members=members, interrupted=interrupted).exit_code

    order = [0, 4, 2, 5, 3, 6, 1]
    assert [result(*order[: number + 1]) for number in range(len(order))] == order
    assert result(*order, interrupted=True) == 130
    assert result() == 0
