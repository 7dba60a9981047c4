"""Accepts connections, within bounds, and hands those whose peer is known to the service.

A connection costs a descriptor until its first byte has come, then a thread. Connections that are not authenticated yet are
few (`Settings.max_pending`): when one more comes, the oldest is closed. So somebody who opens thousands of them does not keep
out a node, whose handshake takes milliseconds. What is refused is logged in one line.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from diskhaul.api import Inventory, Receiver
from diskhaul.errors import ConfigurationError, StorageError
from diskhaul.model import Node
from diskhaul.names import escape

from ..directory import DirectoryStore
from .authorization import Authorization
from .connection import BrokenConnectionError, Connection, reason_of
from .identities import SENDERS, Identity, Peer, WrongPeerError, certificate_problem, peer_of
from .service import Service
from .sessions import Sessions
from .settings import Address, Settings
from .wire import Kind, WireError

_BACKLOG = 512
_LINGER_S = 1.0  # for a refused peer to read why
_PAUSE_S = 0.05  # when there are no descriptors: until another try


def _to_standard_error(line: str) -> None:
    print(f"diskhaul: {line}", file=sys.stderr, flush=True)


class TlsReceiver(Receiver):
    """The receiver of one node. `close` may be called from any thread."""

    def __init__(
        self,
        node: Node,
        cluster: str,
        address: Address,
        identity: Identity,
        settings: Settings,
        *,
        store: Callable[[], DirectoryStore],
        state_dir: Path,
        master: str,
        inventory: Inventory,
        log: Callable[[str], object] = _to_standard_error,
    ) -> None:
        """Listens from here on; `serve_forever` answers.

        Raises:
            ConfigurationError: the certificates cannot be used.
            StorageError: it cannot listen there.
        """
        self._cluster, self._identity, self._settings = cluster, identity, settings
        self._tell = log
        identity.context(server=True)
        self._sessions = Sessions(store, state_dir / f"receiver-{node.name}", settings, self._log)
        authorization = Authorization(master, inventory)
        self._service = Service(node, cluster, store, self._sessions, authorization, settings, self._log)
        self._pending: dict[socket.socket, float] = {}  # by age: when the handshake has to be over; a dict keeps its order
        self._greeting: set[socket.socket] = set()  # those of them that have a thread
        self._established: dict[Connection, Peer] = {}
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._threads = 0
        self._closing = False
        self._listener = _listening(address)
        self._wake, self._woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    @property
    def address(self) -> str:
        """Where it listens, as HOST:PORT; the port also where the configuration left it to the system."""
        host, port = self._listener.getsockname()[:2]
        return str(Address(host, port))

    def serve_forever(self) -> None:
        """Serve until `close`. May be called once."""
        for line in self._sessions.sweep():
            self._log(line)
        selector = selectors.DefaultSelector()
        try:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._wake, selectors.EVENT_READ)
            while not self._closing:
                self._turn(selector)
        finally:
            selector.close()
            self._end()

    def close(self) -> None:
        """Stop serving: connections end, exports that are being received stay as they are."""
        self._closing = True
        try:
            os.write(self._woken, b"x")
        except OSError:
            pass  # it is full, or has ended already

    def _log(self, line: str) -> None:
        self._tell(escape(line))

    # --- connections that are not authenticated ---------------------------------------------------------------------

    def _turn(self, selector: selectors.BaseSelector) -> None:
        oldest = self._oldest()
        timeout = None if oldest is None else max(0.0, oldest[1] - time.monotonic())
        for key, _ in selector.select(timeout):
            if key.fileobj is self._listener:
                self._accept(selector)
            elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._pending:
                self._greet(selector, key.fileobj)
        now = time.monotonic()
        while (oldest := self._oldest()) is not None and oldest[1] <= now:
            self._drop(selector, oldest[0], "no handshake in time")

    def _accept(self, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._make_room(selector, error)
            return  # anything else concerns the connection that was to be accepted
        connection.setblocking(False)
        with self._lock:
            self._pending[connection] = time.monotonic() + self._settings.handshake_timeout_s
        selector.register(connection, selectors.EVENT_READ)
        if len(self._pending) > self._settings.max_pending and (oldest := self._oldest()) is not None:
            self._drop(selector, oldest[0], "made room for newer ones")

    def _make_room(self, selector: selectors.BaseSelector, error: OSError) -> None:
        self._log(f"a connection could not be accepted: {error.strerror}")
        oldest = self._oldest()
        if oldest is not None:
            self._drop(selector, oldest[0], "made room for newer ones")
        else:
            time.sleep(_PAUSE_S)  # all descriptors are in use by what is being received

    def _oldest(self) -> tuple[socket.socket, float] | None:
        """The connection that has not been authenticated for longest, and when its handshake has to be over.

        Threads of connections that have been authenticated take theirs out at any time.
        """
        with self._lock:
            return next(iter(self._pending.items()), None)

    def _drop(self, selector: selectors.BaseSelector, connection: socket.socket, why: str) -> None:
        """End a connection that is not authenticated. One that has a thread is closed by that."""
        with self._lock:
            if self._pending.pop(connection, None) is None:
                return  # it has been authenticated just now
            greeted = connection in self._greeting
            if greeted:
                _shut_down(connection)
        if not greeted:
            self._log(f"{_from(connection)}: refused: {why}")
            selector.unregister(connection)
            connection.close()

    def _greet(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        selector.unregister(connection)
        with self._lock:
            self._greeting.add(connection)
            self._threads += 1
            deadline = self._pending[connection]
        try:
            threading.Thread(target=self._serve, args=(connection, deadline), daemon=True, name="diskhaul-tls-peer").start()
        except RuntimeError as error:  # the kernel has no thread left: those that there are go on
            self._log(f"{_from(connection)}: refused: {error}")
            self._forget(connection)

    # --- a connection's thread --------------------------------------------------------------------------------------

    def _serve(self, plain: socket.socket, deadline: float) -> None:
        source = _from(plain)
        connection: Connection | None = None
        try:
            tls, peer = self._authenticated(plain, deadline)
            connection = Connection(tls)
            refusal = self._establish(plain, connection, peer)
            try:
                if refusal:
                    self._log(f"{source}: {peer}: refused: {refusal}")
                    connection.receive(Kind.HELLO)  # first: what is closed with something unread may lose what was sent
                    connection.send_document(Kind.REFUSED, {"message": refusal, "busy": True})
                else:
                    self._service.serve(connection, peer)
            except (BrokenConnectionError, WireError):
                pass  # the end of most connections; what it means is the sender's to say
        except (WrongPeerError, ConfigurationError) as error:
            self._log(f"{source}: refused: {error}")
        except (OSError, ValueError) as error:
            self._log(f"{source}: refused: {_handshake_problem(error, self._identity.authority)}")
        except Exception as error:
            self._log(f"{source}: unexpected: {type(error).__name__}: {error}")
        finally:
            if connection is not None:
                with self._lock:
                    self._established.pop(connection, None)
                connection.close()
            else:
                _linger(plain)
            self._forget(plain)

    def _forget(self, connection: socket.socket) -> None:
        """Close a connection that had, or was to have, a thread."""
        with self._idle:
            self._pending.pop(connection, None)
            self._greeting.discard(connection)
            connection.close()
            self._threads -= 1
            self._idle.notify_all()

    def _authenticated(self, plain: socket.socket, deadline: float) -> tuple[ssl.SSLSocket, Peer]:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.settimeout(max(0.001, deadline - time.monotonic()))
        # On a duplicate: `plain` stays what `_drop` can end, whoever owns what is made of it.
        own = plain.dup()
        try:
            own.settimeout(plain.gettimeout())
            tls = self._identity.context(server=True).wrap_socket(own, server_side=True)
        except BaseException:
            own.close()
            raise
        try:
            return tls, self._peer(tls)
        except BaseException:
            tls.close()
            raise

    def _peer(self, tls: ssl.SSLSocket) -> Peer:
        """Who is at the other end; raises `WrongPeerError` for whom it may not be."""
        return peer_of(tls, cluster=self._cluster, roles=SENDERS)

    def _establish(self, plain: socket.socket, connection: Connection, peer: Peer) -> str:
        """Count the connection as its peer's; return why not, or ""."""
        with self._lock:
            if self._pending.pop(plain, None) is None or self._closing:
                return "this receiver is being stopped" if self._closing else "this receiver has too many connections"
            counted = Counter(other.name for other in self._established.values())
            if len(self._established) >= self._settings.max_connections:
                return f"this receiver has {len(self._established)} connections already"
            if counted[peer.name] >= self._settings.max_per_peer:
                return f"this node has {counted[peer.name]} connections already"
            self._established[connection] = peer
            return ""

    def _end(self) -> None:
        self._listener.close()
        with self._idle:
            self._closing = True
            for connection in self._established:
                connection.cut()
            for plain in list(self._pending):
                _shut_down(plain)
                if plain not in self._greeting:
                    plain.close()
            self._idle.wait_for(lambda: not self._threads, timeout=self._settings.handshake_timeout_s)
        self._sessions.close()
        os.close(self._wake)
        os.close(self._woken)


def _listening(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host or not address.host else socket.AF_INET
    try:
        found = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        families = [entry[0] for entry in found]
        both = not address.host and socket.has_dualstack_ipv6()
        if family not in families:
            family = families[0]
        return socket.create_server(
            (address.host, address.port), family=family, backlog=_BACKLOG, dualstack_ipv6=both and family == socket.AF_INET6
        )
    except OSError as error:
        raise StorageError(f"cannot listen on {address}: {error.strerror or error}", path=str(address)) from error


def _from(connection: socket.socket) -> str:
    try:
        return str(Address(*connection.getpeername()[:2]))
    except OSError:
        return "a connection"


def _shut_down(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is gone already


def _linger(connection: socket.socket) -> None:
    """Let a refused peer read why: what is closed with something unread loses what was sent."""
    deadline = time.monotonic() + _LINGER_S
    try:
        connection.shutdown(socket.SHUT_WR)
        for _ in range(16):
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            if not connection.recv(4096):
                return
    except OSError:
        pass  # it is gone, or has had its time


def _handshake_problem(error: Exception, authority: Path) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return certificate_problem(error, "", authority)
    if isinstance(error, TimeoutError):
        return "no handshake in time"
    return f"no TLS 1.3 handshake: {reason_of(error)}"
