"""Whole exports at the command line to another node's receiver, which is a process of its own."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import diskhaul
from diskhaul.events import Event, StageStarted

from ..network import Network
from ..plugins.transfer_tls.faulty_proxy import Fault, FaultyProxy
from ..plugins.transfer_tls.test_resuming import SERVERS_FIRST

LIMIT_S = 120
MIB = 1 << 20
INSTANCE = "web1.example.com"
DISK_SIZE = 24 * MIB + 4096

CONFIGURATION = """
[cluster]
name = "lab"
master = "alpha"
state_dir = "state-{transfer}"
[defaults]
chunk_size = 262144
[backends]
transfer = "{transfer}"
[backend_options.tls]
certificates = "certs"
this = "alpha"
window_mib = 1
retry_s = 20
[nodes.alpha]
export_dir = "alpha"
[nodes.beta]
export_dir = "{beta}"
options = {{ address = "{address}", listen = "{host}:0" }}
[instances."{instance}"]
node = "alpha"
runtime = "command"
[instances."{instance}".runtime_options]
start = ["touch", "running"]
stop = ["rm", "-f", "running"]
status = ["test", "-e", "running"]
status_off = [1]
[[instances."{instance}".disks]]
path = "disk.raw"
snapshot = "reflink"
"""


class Lab:
    """Two nodes in one directory: alpha, where the guest is, and beta, which has a receiver."""

    def __init__(self, work: Path, network: Network | None = None) -> None:
        """With `network`, beta's receiver runs on the machine "beta" of that."""
        self.work, self._network = work, network
        self._host = "127.0.0.1" if network is None else network.address("beta")
        self.receiver: subprocess.Popen[str] | None = None
        for name in ("alpha", "beta", "beta-local"):
            (work / name).mkdir()
        self.run("certs", "init", "--cluster", "lab")
        self.run("certs", "node", "alpha", "beta")
        generator = random.Random(7)
        with (work / "disk.raw").open("wb") as disk:
            disk.write(generator.randbytes(9 * MIB))
            disk.write(b"text that can be compressed\n" * 100_000)
            disk.truncate(DISK_SIZE)
            disk.seek(DISK_SIZE - MIB)
            disk.write(generator.randbytes(MIB))
        (work / "running").touch()
        self.configure("127.0.0.1:1")

    def configure(self, address: str) -> None:
        for transfer, beta in (("tls", "beta"), ("directory", "beta-local")):
            text = CONFIGURATION.format(transfer=transfer, beta=beta, address=address, host=self._host, instance=INSTANCE)
            (self.work / f"{transfer}.toml").write_text(text)

    def start(self, *arguments: str, machine: str = "") -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-m", "diskhaul", *arguments]
        return subprocess.Popen(
            command if self._network is None or not machine else self._network.command(machine, *command),
            cwd=self.work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, transfer: str = "", code: int = 0) -> str:
        """Run a command, which has to end with `code`; return what it printed."""
        common = ["--config", f"{transfer}.toml"] if transfer else []
        process = self.start(*common, *arguments)
        out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == code, out + err
        return out + err

    def serve(self) -> str:
        """Start beta's receiver; return where it listens."""
        self.receiver = self.start("--config", "tls.toml", "node", "serve", "--node", "beta", machine="beta")
        assert self.receiver.stderr is not None
        line = self.receiver.stderr.readline()
        assert f"node beta listens on {self._host}:" in line
        return line.split()[-1]

    def kill_receiver(self) -> None:
        if self.receiver is not None:
            self.receiver.kill()
            self.receiver.communicate(timeout=LIMIT_S)
            self.receiver = None

    @property
    def guest_runs(self) -> bool:
        return (self.work / "running").exists()

    def exports(self) -> list[str]:
        """Files below beta's directory for the instance, also of what is not listed."""
        return sorted(os.listdir(self.work / "beta" / INSTANCE)) if (self.work / "beta" / INSTANCE).exists() else []


class Tap:
    """Passes connections on to an address, counts bytes, and lets somebody know when there have been enough."""

    def __init__(self, to: str, enough: int) -> None:
        self._to, self._enough, self._passed = to, enough, 0
        self.reached, self.nobody_there = threading.Event(), threading.Event()
        self._held = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def let_go(self) -> None:
        self._held.set()

    def close(self) -> None:
        self._held.set()
        for each in list(self._sockets):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended
        for thread in list(self._threads):
            thread.join(LIMIT_S)
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            host, _, port = self._to.rpartition(":")
            try:
                server = socket.create_connection((host, int(port)), LIMIT_S)
            except OSError:
                self.nobody_there.set()
                client.close()
                continue
            self._sockets += [client, server]
            for source, sink in ((client, server), (server, client)):
                thread = threading.Thread(target=self._pass_on, args=(source, sink))
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self._passed += len(data)
                if self._passed >= self._enough and not self.reached.is_set():
                    self.reached.set()
                if self.reached.is_set():
                    self._held.wait(LIMIT_S)
                sink.sendall(data)
        except OSError:
            pass  # the other side is gone
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has ended


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.kill_receiver()


@pytest.fixture
def tap(lab: Lab) -> Iterator[Tap]:
    """Between the sender and beta's receiver; holds everything up after 3 MiB."""
    made = Tap(lab.serve(), 3 * MIB)
    lab.configure(made.address)
    yield made
    made.close()


@pytest.mark.parametrize("compress", ["zstd:1", "none"])
def test_an_export_over_tls_is_the_local_one_byte_for_byte_and_comes_back(lab: Lab, compress: str) -> None:
    lab.configure(lab.serve())
    for transfer in ("directory", "tls"):
        lab.run("export", "web1", "--node", "beta", "--long-sleep", "--compress", compress, transfer=transfer)
        assert lab.guest_runs
    (local,), (remote,) = ([*(lab.work / name / INSTANCE).iterdir()] for name in ("beta-local", "beta"))
    files = sorted(path.name for path in local.iterdir())
    assert files == sorted(path.name for path in remote.iterdir())
    assert len(files) == 3
    for name in set(files) - {"manifest.json"}:
        assert (remote / name).read_bytes() == (local / name).read_bytes(), name
    disks = [json.loads((path / "manifest.json").read_text())["disks"] for path in (local, remote)]
    assert disks[0] == disks[1]

    assert "no damage found" in lab.run("verify", "web1", transfer="tls")
    assert remote.name in lab.run("list", transfer="tls")
    lab.run("import", f"web1@{remote.name}", "--to-dir", "back", transfer="tls")
    (restored,) = (lab.work / "back").glob("*.raw")
    assert restored.read_bytes() == (lab.work / "disk.raw").read_bytes()
    lab.run("remove", f"web1@{remote.name}", transfer="tls")
    assert lab.exports() == []


def test_a_receiver_that_is_killed_and_started_again_in_the_middle_does_not_fail_the_export(lab: Lab, tap: Tap) -> None:
    export = lab.start("--config", "tls.toml", "export", "web1", "--node", "beta", "--long-sleep")
    assert tap.reached.wait(LIMIT_S)
    lab.kill_receiver()
    tap._to = lab.serve()
    tap.let_go()
    out, err = export.communicate(timeout=LIMIT_S)
    assert export.returncode == 0, out + err
    assert lab.guest_runs
    assert "no damage found" in lab.run("verify", "web1", transfer="tls")


def test_a_receiver_that_stays_away_fails_the_export_the_guest_runs_and_nothing_is_listed(lab: Lab, tap: Tap) -> None:
    config = lab.work / "tls.toml"
    config.write_text(config.read_text().replace("retry_s = 20", "retry_s = 0.5"))
    export = lab.start("--config", "tls.toml", "export", "web1", "--node", "beta", "--long-sleep")
    assert tap.reached.wait(LIMIT_S)
    lab.kill_receiver()
    tap.let_go()
    out, err = export.communicate(timeout=LIMIT_S)
    assert export.returncode == 3, out + err
    assert "node beta" in err
    assert lab.guest_runs
    tap._to = lab.serve()
    assert INSTANCE not in lab.run("list", transfer="tls")
    lab.run("recover", transfer="tls")
    assert lab.exports() == []


def test_a_sender_that_is_killed_leaves_nothing_listed_and_recover_starts_the_guest_and_cleans_up(lab: Lab, tap: Tap) -> None:
    export = lab.start("--config", "tls.toml", "export", "web1", "--node", "beta", "--long-sleep")
    assert tap.reached.wait(LIMIT_S)
    assert not lab.guest_runs
    export.send_signal(signal.SIGKILL)
    export.communicate(timeout=LIMIT_S)
    tap.let_go()
    assert INSTANCE not in lab.run("list", transfer="tls")
    assert [name for name in lab.exports() if not name.startswith(".")] == []
    lab.run("recover", transfer="tls")
    assert lab.guest_runs
    assert lab.exports() == []
    assert os.listdir(lab.work / "state-tls" / "receiver-beta") == []


def test_a_lock_that_is_lost_while_the_receiver_is_away_is_found_before_publishing_is_tried_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab.work)  # where the commands of the runtime look for the guest
    tap = Tap(lab.serve(), 1 << 60)
    lab.configure(tap.address)
    away: list[threading.Thread] = []
    options = diskhaul.ExportOptions(long_sleep=True)

    def lose_lock_and_come_back() -> None:
        assert tap.nobody_there.wait(LIMIT_S)
        for record in (lab.work / "state-tls" / "locks").glob("instance*"):
            record.unlink()
        tap._to = lab.serve()

    def go_away(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "publish":
            lab.kill_receiver()
            away.append(threading.Thread(target=lose_lock_and_come_back))
            away[0].start()

    try:
        with pytest.raises(diskhaul.DiskhaulError, match=r"lock instance.*: lost") as failed:
            diskhaul.export(INSTANCE, node="beta", config=lab.work / "tls.toml", options=options, on_event=go_away)
    finally:
        for thread in away:
            thread.join(LIMIT_S)
        tap.close()
    assert failed.value.exit_code == 3
    assert away
    assert lab.guest_runs
    assert lab.exports() == []


def test_an_export_that_was_published_unheard_by_a_receiver_that_stays_away_is_told_of_and_recover_removes_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(lab.work)  # where the commands of the runtime look for the guest
    proxy = FaultyProxy(lab.serve())
    lab.configure(proxy.address)
    config = lab.work / "tls.toml"
    config.write_text(config.read_text().replace("retry_s = 20", "retry_s = 0.5"))
    reachable = proxy.upstream

    def go_away() -> None:
        proxy.upstream = "127.0.0.1:1"

    def lose_answer(event: Event) -> None:
        if isinstance(event, StageStarted) and event.stage == "publish":
            proxy.faults = [Fault(proxy.connections, "server", SERVERS_FIRST + 1, how=go_away)]

    try:
        options = diskhaul.ExportOptions(long_sleep=True)
        with pytest.raises(diskhaul.DiskhaulError, match="node beta") as failed:
            diskhaul.export(INSTANCE, node="beta", config=config, options=options, on_event=lose_answer)
        assert proxy.struck == 1
        assert failed.value.exit_code == 3
        assert any("while removing the unfinished export: node beta" in note for note in failed.value.__notes__)
        assert lab.guest_runs
        proxy.upstream = reachable
        (name,) = lab.exports()
        assert name in lab.run("list", transfer="tls"), "it is whole"
        lab.run("recover", transfer="tls")
        assert lab.exports() == []
    finally:
        proxy.close()


def test_a_key_that_others_can_read_refuses_the_export_before_anything_is_touched(lab: Lab) -> None:
    lab.configure(lab.serve())
    (lab.work / "certs" / "alpha.pem").chmod(0o644)
    said = lab.run("export", "web1", "--node", "beta", "--long-sleep", transfer="tls", code=2)
    assert "alpha.pem holds a private key and others can read it" in said
    assert lab.guest_runs
    assert lab.exports() == []


def test_a_receiver_is_refused_where_it_cannot_be_one(lab: Lab) -> None:
    refusal = "the configured transfer and engine need nothing to be run on nodes"
    assert refusal in lab.run("node", "serve", "--node", "beta", transfer="directory", code=2)
    assert "nodes.alpha.options.address: is missing" in lab.run("node", "serve", "--node", "alpha", transfer="tls", code=2)
    assert "is unknown" in lab.run("node", "serve", "--node", "delta", transfer="tls", code=2)
