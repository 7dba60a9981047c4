"""Lock backend ``etcd``, with a real cluster of three members."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import requires
from tests.etcd import EtcdCluster

from diskhaul.api import BackendContext, Locks
from diskhaul.errors import ConfigurationError, LockError, LockLostError
from diskhaul.model import Cluster
from diskhaul.testing.conformance.locks import LONG_S, SHARED, LockConformance, is_free, take
from diskhaul_plugins.locks.etcd.locks import EtcdLocks

NOBODY = "http://127.0.0.1:9"


def make(endpoints: list[str], **options: Any) -> EtcdLocks:
    cluster = Cluster(name="lab", state_dir=Path("state"))
    return EtcdLocks(BackendContext(cluster=cluster, options={"endpoints": endpoints, **options}))


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdCluster]:
    requires("ip", "etcd", root=True)
    cluster = EtcdCluster()
    try:
        yield cluster
    finally:
        cluster.close()


class TestEtcdLocks(LockConformance):
    @pytest.fixture
    def make_locks(self, etcd: EtcdCluster) -> Callable[[], Locks]:
        return lambda: make(etcd.endpoints)

    @pytest.fixture(autouse=True)
    def nothing_is_left(self, etcd: EtcdCluster) -> Iterator[None]:
        threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
        yield
        assert etcd.keys() == 0
        assert threading.active_count() == threads
        assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"endpoints: needed: a list of addresses"),
        ({"endpoints": "http://a:1"}, r"endpoints: needed: a list"),
        ({"endpoints": []}, r"endpoints: there is none"),
        ({"endpoints": ["http://a:1", "http://a:1/"]}, r"'http://a:1/' is there twice"),
        ({"endpoints": ["a:2379"]}, r"'a:2379' is not like http://HOST:PORT"),
        ({"endpoints": ["http://a"]}, r"is not like"),
        ({"endpoints": ["http://root:secret@a:1"]}, r"is not like"),
        ({"endpoints": ["http://a:99999"]}, r"is not like"),
        ({"endpoints": [7]}, r"7 is not like"),
        ({"endpoints": ["http://a:1"], "lease_s": 1}, r"lease_s: 1 is not a whole number of seconds from 2 to 3600"),
        ({"endpoints": ["http://a:1"], "lease_s": True}, r"lease_s: True is not"),
        ({"endpoints": ["http://a:1"], "lease_s": 2.5}, r"lease_s: 2.5 is not"),
        ({"endpoints": ["https://a:1"], "cert": "/c"}, r"cert and key go together"),
        ({"endpoints": ["http://a:1"], "ca": "/c"}, r"http://a:1: ca, cert and key need https"),
        ({"endpoints": ["https://a:1"], "ca": 3}, r"ca: 3 is not the path of a file"),
        ({"endpoints": ["http://a:1"], "leases": 3}, r"leases: unknown; there are endpoints, lease_s, ca, cert, key"),
    ],
)
def test_bad_options_are_refused_by_their_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        EtcdLocks(BackendContext(cluster=Cluster(name="lab", state_dir=Path("state")), options=options))


@pytest.mark.parametrize("missing", ["etcd3gw", "requests"])
def test_without_etcd3gw_it_is_said_what_to_install(tmp_path: Path, missing: str) -> None:
    program = (
        f"import pathlib, sys; sys.modules[{missing!r}] = None\n"
        "import diskhaul\n"
        "options = {'etcd': {'endpoints': ['http://127.0.0.1:9']}}\n"
        "backends, state_dir = {'lock': 'etcd'}, pathlib.Path(sys.argv[1])\n"
        "cluster = diskhaul.Cluster(name='lab', state_dir=state_dir, backends=backends, backend_options=options)\n"
        "try: diskhaul.recover(config=cluster)\n"
        "except diskhaul.DiskhaulError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "state")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "the lock etcd needs etcd3gw: pip install 'diskhaul[etcd]'" in said


def test_all_bad_options_are_told_of_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        make(["nonsense"], lease_s=0, more=1)
    assert str(caught.value).count("backend_options.etcd.") == 3


def test_files_that_are_missing_or_that_others_can_read_are_problems(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.touch(0o644)
    locks = make(["https://127.0.0.1:9"], ca=str(tmp_path / "ca.pem"), cert=str(key), key=str(key))
    problems = list(locks.check())
    assert [problem.partition(":")[0] for problem in problems] == ["backend_options.etcd.ca", "backend_options.etcd.key"]
    assert "others can read" in problems[1]


def test_where_nobody_answers_each_endpoint_is_named_with_a_remedy() -> None:
    locks = make([NOBODY, "http://127.0.0.1:10"], lease_s=2)
    problems = list(locks.check())
    assert len(problems) == 2
    for problem, endpoint in zip(problems, [NOBODY, "http://127.0.0.1:10"], strict=True):
        assert problem.startswith(f"etcd: {endpoint}: ")
        assert "is etcd running there" in problem
    with pytest.raises(LockError, match="no endpoint answered") as caught:
        take(locks)
    assert caught.value.exit_code == 5


def test_endpoints_that_refuse_or_hang_are_passed_over(etcd: EtcdCluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        locks = make([NOBODY, f"http://127.0.0.1:{silent.getsockname()[1]}", etcd.endpoints[0]])
        assert list(locks.check()) == []
        held = take(locks)
        held.check()
        assert not is_free(make(etcd.endpoints))
        held.release()
    assert etcd.keys() == 0


def test_an_endpoint_that_is_no_etcd_is_named() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]"
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()
        server.settimeout(0.1)

        def serve() -> None:
            while not ended.is_set():
                try:
                    connection = server.accept()[0]
                except TimeoutError:
                    continue
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            (problem,) = make([f"http://127.0.0.1:{server.getsockname()[1]}"], lease_s=2).check()
        finally:
            ended.set()
            thread.join()
    assert "no answer of etcd" in problem


def test_a_lock_whose_key_somebody_removed_is_lost_and_stays_lost(etcd: EtcdCluster) -> None:
    held = take(make(etcd.endpoints))
    held.check()
    from diskhaul_plugins.locks.etcd.gateway import ClusterIdentity, Gateway, encode

    gateway = Gateway(make(etcd.endpoints)._options, ClusterIdentity())
    gateway.call("kv/deleterange", {"key": encode(b"/diskhaul/"), "range_end": encode(b"/diskhaul0")}, LONG_S)
    gateway.close()
    for _ in range(2):
        with pytest.raises(LockLostError, match="its key is gone from etcd"):
            held.check()
    held.release()


def test_clusters_of_different_names_do_not_meet(etcd: EtcdCluster) -> None:
    held = take(make(etcd.endpoints))
    other = Cluster(name="lab2", state_dir=Path("state"))
    assert is_free(EtcdLocks(BackendContext(cluster=other, options={"endpoints": etcd.endpoints})))
    held.release()


def test_the_lock_is_kept_for_longer_than_its_lease(etcd: EtcdCluster) -> None:
    held = take(make(etcd.endpoints, lease_s=2))
    with pytest.raises(LockError, match="not free after"):
        take(make(etcd.endpoints), deadline_s=5)
    held.check()
    held.release()


def test_a_forked_child_holds_nothing_and_cannot_release(etcd: EtcdCluster) -> None:
    held = take(make(etcd.endpoints), mode=SHARED)
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
    assert f"held by process {os.getpid()}" in queue.get()
    process.join(LONG_S)
    held.check()
    held.release()
