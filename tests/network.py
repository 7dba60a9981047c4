"""Machines of a network on this one: network namespaces on a bridge, whose links can be taken down."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence

PREFIX = "dhnet"
SUBNETS = 510  # of 198.18.0.0/15, which is set aside for tests of networks (RFC 2544)


def ip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run ``ip``; what it complains of is part of the error."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if check and done.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done


class Network:
    """A bridge of this machine with an address, and a namespace for each of `names` that is connected to it.

    Needs root. Use it in a ``with`` statement, or call `close`: that ends what runs in the namespaces, and removes everything.

    Attributes:
        host_address: this machine's own in this network.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if not 0 < len(names) < 200 or len(set(names)) != len(names):
            raise ValueError(f"not some different names: {names}")
        self._names = tuple(names)
        self._number = self._make_bridge()
        try:
            ip("addr", "add", f"{self.host_address}/24", "dev", self._bridge)
            ip("link", "set", self._bridge, "up")
            for name in names:
                self._connect(name)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def host_address(self) -> str:
        return self._address(254)

    def address(self, name: str) -> str:
        return self._address(self._index(name) + 1)

    def namespace(self, name: str) -> str:
        """What ``ip netns`` calls the machine `name`."""
        return f"{self._bridge}-{self._index(name)}"

    def command(self, name: str, *command: str) -> list[str]:
        """`command` as it is to be started to run on the machine `name`. The process is that of `command` itself."""
        # Not by 'ip netns exec': that makes a mount namespace too, in which whatever is mounted now would stay so while it runs.
        return ["nsenter", f"--net=/run/netns/{self.namespace(name)}", "--", *command]

    def disconnect(self, name: str) -> None:
        """Take the link of `name` down: nobody reaches it, nor it anybody. Connections stay, and hang."""
        ip("link", "set", self._link(name), "down")

    def connect(self, name: str) -> None:
        ip("link", "set", self._link(name), "up")

    def slow_down(self, name: str, rate: str) -> None:
        """Let no more than `rate` (as ``tc`` has it, "40mbit") through to `name`."""
        command = [
            "tc",
            "qdisc",
            "add",
            "dev",
            self._link(name),
            "root",
            "tbf",
            "rate",
            rate,
            "burst",
            "64kb",
            "latency",
            "500ms",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")

    def close(self) -> None:
        """Kill what runs in the namespaces, and remove them, their links and the bridge; complains at the end."""
        problems = []
        present = {line.split()[0] for line in ip("netns", "list").stdout.splitlines() if line.strip()}
        for name in self._names:
            namespace = self.namespace(name)
            if namespace not in present:
                continue
            for pid in ip("netns", "pids", namespace).stdout.split():
                try:
                    os.kill(int(pid), signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it has just ended
            # The link first: a namespace lives, with its end of it, until its last process is gone.
            if ip("link", "show", self._link(name), check=False).returncode == 0:
                problems.append(ip("link", "del", self._link(name), check=False).stderr.strip())
            problems.append(ip("netns", "del", namespace, check=False).stderr.strip())
        problems.append(ip("link", "del", self._bridge, check=False).stderr.strip())
        if any(problems):
            raise OSError(f"network {self._bridge}: {'; '.join(problem for problem in problems if problem)}")

    # --- names ---

    @property
    def _bridge(self) -> str:
        return f"{PREFIX}{self._number}"

    def _index(self, name: str) -> int:
        return self._names.index(name)

    def _link(self, name: str) -> str:
        """This machine's end of the link; at most 15 characters."""
        return f"{self._bridge}v{self._index(name)}"

    def _address(self, last: int) -> str:
        return f"198.{18 + self._number // 256}.{self._number % 256}.{last}"

    # --- making ---

    def _make_bridge(self) -> int:
        """Make a bridge whose name, and so whose subnet, no other test has; the kernel decides who is first."""
        for attempt in range(SUBNETS):
            number = (os.getpid() + attempt) % SUBNETS
            done = ip("link", "add", f"{PREFIX}{number}", "type", "bridge", check=False)
            if done.returncode == 0:
                return number
            if "exists" not in done.stderr:
                raise OSError(f"no bridge can be made: {done.stderr.strip()}")
        raise OSError(f"all {SUBNETS} test networks are in use")

    def _connect(self, name: str) -> None:
        namespace, link = self.namespace(name), self._link(name)
        ip("netns", "add", namespace)
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        ip("link", "set", link, "master", self._bridge, "up")
        ip("-n", namespace, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
        ip("-n", namespace, "link", "set", "lo", "up")
        ip("-n", namespace, "link", "set", "eth0", "up")
