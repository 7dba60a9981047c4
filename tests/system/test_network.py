"""The tests' own networks: what is disconnected is not reached, and nothing is left of them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
from tests.network import Network, ip

SERVER = """
import socket
server = socket.create_server(("", 7000))
print("ready", flush=True)
while True:
    server.accept()[0].close()
"""
CLIENT = "import socket, sys; socket.create_connection((sys.argv[1], 7000), timeout=float(sys.argv[2])).close()"


def test_machines_reach_each_other_until_one_is_disconnected_and_nothing_is_left(requires: Callable[..., None]) -> None:
    requires("ip", "python3", root=True)
    with Network(["one", "two"]) as network:
        bridge = network.namespace("one").partition("-")[0]
        server = subprocess.Popen(network.command("one", "python3", "-c", SERVER), stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"

            def reached(timeout_s: float = 30.0) -> bool:
                client = network.command("two", "python3", "-c", CLIENT, network.address("one"), str(timeout_s))
                return subprocess.run(client, stderr=subprocess.DEVNULL).returncode == 0

            assert reached()
            network.disconnect("one")
            assert not reached(0.3)
            network.connect("one")
            assert reached()
        finally:
            server.kill()
            server.communicate()
    assert bridge not in ip("link").stdout
    assert bridge not in ip("netns", "list").stdout


def test_two_networks_do_not_share_names_or_addresses(requires: Callable[..., None]) -> None:
    requires("ip", root=True)
    with Network(["one"]) as first, Network(["one"]) as second:
        assert first.address("one") != second.address("one")
        assert first.namespace("one") != second.namespace("one")
    with pytest.raises(ValueError, match="different names"):
        Network(["one", "one"])
