"""A TCP proxy that breaks one of its connections at a given TLS record, by a reset or by silence."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

_RECORD_HEAD = 5  # bytes; the last two are the length of what follows (RFC 8446, section 5.1)


@dataclass(frozen=True)
class Fault:
    """Where and how a connection breaks.

    Attributes:
        connection: its number among those that reached `upstream`, from 0.
        sent_by: whose records are counted.
        record: the record at which it breaks, from 0; those before it are passed on.
        inside: the bytes of that record's first half are passed on, too.
        how: "reset" for both ends, "silence" without an end, or what is called instead, and then a reset.
    """

    connection: int
    sent_by: Literal["client", "server"]
    record: int
    inside: bool = False
    how: Literal["reset", "silence"] | Callable[[], None] = "reset"


class FaultyProxy:
    """Listens on loopback and passes on to `upstream`, which may change.

    Attributes:
        struck: how many faults came to pass.
        connections: how many connections reached `upstream`.
        turned_away: how many did not, since nobody listened there.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.faults: list[Fault] = []
        self.struck = 0
        self.connections = self.turned_away = 0
        self._calling = threading.Lock()  # while a fault's callable runs, nobody gets through
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._wake, self._woken = socket.socketpair()
        self._threads: list[threading.Thread] = []
        self._closing = False
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._closing = True
        self._woken.close()  # everybody who waits sees that the other end is gone
        self._accepting.join(30)
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in [self._accepting, *self._threads])
        self._listener.close()
        self._wake.close()

    def _accept(self) -> None:
        while not self._closing:
            ready, _, _ = select.select([self._listener, self._wake], [], [])
            if self._wake in ready:
                return
            client, _ = self._listener.accept()
            with self._calling:
                host, _, port = self.upstream.rpartition(":")
                try:
                    server = socket.create_connection((host, int(port)), 30)
                except OSError:
                    client.close()
                    self.turned_away += 1
                    continue
            number, self.connections = self.connections, self.connections + 1
            thread = threading.Thread(target=self._pass_on, args=(client, server, number))
            self._threads.append(thread)
            thread.start()

    def _pass_on(self, client: socket.socket, server: socket.socket, number: int) -> None:
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        faults = {fault.sent_by: fault for fault in self.faults if fault.connection == number}
        ends = {client: _Direction(server, faults.get("client")), server: _Direction(client, faults.get("server"))}
        try:
            while not self._closing:
                ready, _, _ = select.select([*ends, self._wake], [], [])
                if self._wake in ready:
                    return
                for end in ready:
                    direction = ends[end]
                    data = end.recv(65536)
                    if not data:
                        return
                    if direction.send(data):
                        self.struck += 1
                        assert direction.fault is not None
                        how = direction.fault.how
                        if how == "silence":
                            self._stay_silent(end)
                            return
                        if callable(how):
                            with self._calling:
                                how()
                        for each in ends:  # both ends get a reset
                            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        return
        except OSError:
            return  # one end is gone, and the other will be in a moment
        finally:
            client.close()
            server.close()

    def _stay_silent(self, end: socket.socket) -> None:
        """Pass nothing on, and let nobody know, until the end at which it was heard has gone."""
        poll = select.poll()
        poll.register(end, select.POLLRDHUP)
        poll.register(self._wake, select.POLLIN)
        poll.poll()


class _Direction:
    """What one end sends, cut into TLS records."""

    def __init__(self, to: socket.socket, fault: Fault | None) -> None:
        self._to, self.fault = to, fault
        self._held = b""
        self._record = 0

    def send(self, data: bytes) -> bool:
        """Pass on; True when the fault's place has come."""
        if self.fault is None:
            self._to.sendall(data)
            return False
        self._held += data
        while len(self._held) >= _RECORD_HEAD:
            length = _RECORD_HEAD + int.from_bytes(self._held[3:5], "big")
            if len(self._held) < length:
                return False
            if self._record == self.fault.record:
                if self.fault.inside:
                    self._to.sendall(self._held[: length // 2])
                return True
            self._to.sendall(self._held[:length])
            self._held = self._held[length:]
            self._record += 1
        return False
