"""Exports over TLS to a machine whose packets are dropped: nobody is told that the connection is gone."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diskhaul.config import load_cluster
from diskhaul.host import PluginHost
from diskhaul.testing.conformance.storages import pattern
from diskhaul.testing.conformance.transfers import MANIFEST, NEW
from diskhaul_plugins.transfers.tls.client_stream import TlsFile

from ..network import Network
from .test_export_over_tls import INSTANCE, LIMIT_S, MIB, Lab

RATE = "40mbit"
"""Of the link: 24 MiB take seconds, in which it can be cut."""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {LIMIT_S} s"
        threading.Event().wait(0.01)


@pytest.fixture
def network(requires: Callable[..., None]) -> Iterator[Network]:
    requires("ip", "tc", "ss", root=True)
    with Network(["beta"]) as made:
        made.slow_down("beta", RATE)
        yield made


@pytest.fixture
def lab(tmp_path: Path, network: Network) -> Iterator[Lab]:
    made = Lab(tmp_path, network)
    made.configure(made.serve())
    yield made
    made.kill_receiver()


def settle(lab: Lab, **options: object) -> None:
    """Set options of the transfer."""
    config = lab.work / "tls.toml"
    lines = "".join(f"{key} = {value}\n" for key, value in options.items())
    config.write_text(config.read_text().replace("retry_s = 20\n", lines))


def received(lab: Lab) -> int:
    """Bytes of disks that lie in beta's unpublished export."""
    return sum(path.stat().st_size for path in (lab.work / "beta" / INSTANCE).glob(".*.partial/disk-*"))


def wait_for_another_try(network: Network) -> None:
    """Until the sender has given up its connection, and tries to make another."""
    ask = ["ss", "-Htn", "state", "syn-sent", "dst", network.address("beta")]
    wait_until(lambda: subprocess.run(ask, capture_output=True, text=True, check=True).stdout != "", "another connection tried")


def test_an_export_goes_on_once_packets_come_through_again(lab: Lab, network: Network) -> None:
    settle(lab, retry_s=LIMIT_S, silence_s=1, connect_timeout_s=1)
    export = lab.start("--config", "tls.toml", "export", "web1", "--node", "beta", "--long-sleep")
    wait_until(lambda: received(lab) >= 2 * MIB, "some of the disk")
    network.disconnect("beta")
    assert received(lab) < 8 * MIB, "and not all of it"
    wait_for_another_try(network)
    network.connect("beta")
    out, err = export.communicate(timeout=LIMIT_S)
    assert export.returncode == 0, out + err
    assert lab.guest_runs
    assert "no damage found" in lab.run("verify", "web1", transfer="tls")


def test_what_is_sent_again_after_packets_were_dropped_is_no_more_than_one_window(lab: Lab, network: Network) -> None:
    settle(lab, retry_s=LIMIT_S, silence_s=1, connect_timeout_s=1)
    cluster = load_cluster(lab.work / "tls.toml")
    host = PluginHost(cluster)
    writer = host.transfer().store(host.inventory().nodes()["beta"]).begin(INSTANCE, NEW)
    file = writer.create("disk-0.raw.zst")
    assert isinstance(file, TlsFile)
    whole = pattern(8 * MIB)
    for begin in range(0, len(whole), MIB // 4):
        if begin == 3 * MIB:
            network.disconnect("beta")
            comes_back = threading.Thread(target=lambda: (wait_for_another_try(network), network.connect("beta")))
            comes_back.start()
        file.append([whole[begin : begin + MIB // 4]])
    file.finish()
    comes_back.join(LIMIT_S)
    writer.publish(MANIFEST)
    assert 0 < file.resent <= MIB
    assert (lab.work / "beta" / INSTANCE / NEW / "disk-0.raw.zst").read_bytes() == whole


def test_an_export_fails_when_packets_do_not_come_through_again_the_guest_runs_and_nothing_is_listed(
    lab: Lab, network: Network
) -> None:
    settle(lab, retry_s=1, silence_s=1, connect_timeout_s=1)
    export = lab.start("--config", "tls.toml", "export", "web1", "--node", "beta", "--long-sleep")
    wait_until(lambda: received(lab) >= 2 * MIB, "some of the disk")
    network.disconnect("beta")
    out, err = export.communicate(timeout=LIMIT_S)
    assert export.returncode == 3, out + err
    assert "node beta" in err
    assert lab.guest_runs
    network.connect("beta")
    assert INSTANCE not in lab.run("list", transfer="tls")
    lab.run("recover", transfer="tls")
    assert lab.exports() == []
    lab.run("export", "web1", "--node", "beta", "--long-sleep", transfer="tls")
    assert len(lab.exports()) == 1
