"""One connection: frames in and out, each wait with a deadline; and how a client makes one."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from typing import Any

from diskhaul.api import Buffer
from diskhaul.errors import OperationFailedError, StorageError, UnreachableNodeError
from diskhaul.model import Node
from diskhaul.names import escape

from .identities import RECEIVERS, Identity, WrongPeerError, certificate_problem, peer_of
from .settings import Address, Settings
from .wire import HEAD, PROTOCOL, VERSION, Kind, WireError, dump, field, head, load, parse_head

_CHECK_S = 0.25  # between two looks at whether it is worth waiting
_LINGER_S = 1.0


class BrokenConnectionError(Exception):
    """The other end is gone, or silent: worth another connection."""


class BusyError(BrokenConnectionError):
    """The receiver has no room now: worth another connection a while later."""


class AlertError(BrokenConnectionError):
    """The other end said, in a TLS alert, that it does not want us: not worth another."""


class Connection:
    """Frames over a TLS connection. Used by one thread at a time; `cut` by any."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self._tls = tls
        self._timeout_s = tls.gettimeout()
        self._head = bytearray(HEAD.size)

    def fileno(self) -> int:
        return self._tls.fileno()

    def pending(self) -> bool:
        """Whether something is there to be received that the kernel does not know of any more."""
        return self._tls.pending() > 0

    def readable(self) -> bool:
        """Whether something has come that can be received now."""
        if self.pending():
            return True
        poll = select.poll()
        poll.register(self._tls.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def set_timeout(self, timeout_s: float) -> None:
        """How long the other end may neither send nor take anything."""
        self._timeout_s = timeout_s
        self._tls.settimeout(timeout_s)

    def send(self, kind: Kind, *parts: Buffer) -> None:
        """Send a frame.

        Raises:
            BrokenConnectionError: it cannot be sent.
        """
        self.send_raw(head(kind, sum(len(part) for part in parts)) + b"".join(parts))

    def send_document(self, kind: Kind, document: Mapping[str, object]) -> None:
        self.send(kind, dump(document))

    def send_raw(self, *parts: Buffer) -> None:
        """Send a whole frame that has its head."""
        write = self._tls.write
        try:
            for part in parts:
                view, sent, length = memoryview(part), 0, len(part)
                while sent < length:  # once for each TLS record, so it is kept short
                    sent += write(view[sent:])
        except (OSError, ValueError) as error:
            raise _broken(error) from error

    def receive_head(self, *expected: Kind) -> tuple[Kind, int]:
        """Kind and length of the next frame, whose content has to be received next.

        Raises:
            BrokenConnectionError: the other end is gone, or silent.
            WireError: what came may not come.
        """
        self.receive_into(memoryview(self._head))
        return parse_head(self._head, expected)

    def receive_into(self, view: memoryview) -> None:
        """Fill the whole of `view`."""
        try:
            if self._filled(view) < len(view):
                raise TimeoutError
        except (OSError, ValueError) as error:
            raise _broken(error) from error

    def receive_into_unless(self, view: memoryview, check: Callable[[], object]) -> None:
        """`receive_into`, which while nothing comes calls `check` again and again: that may raise."""
        received, length, heard = 0, len(view), time.monotonic()
        try:
            self._tls.settimeout(_CHECK_S if self._timeout_s is None else min(_CHECK_S, self._timeout_s))
            while received < length:
                before = received
                received = self._filled(view, received)
                if received < length:  # and nothing has come for a while
                    check()
                    now = time.monotonic()
                    heard = now if received > before else heard
                    if self._timeout_s is not None and now >= heard + self._timeout_s:
                        raise TimeoutError
        except (OSError, ValueError) as error:
            raise _broken(error) from error
        finally:
            self._tls.settimeout(self._timeout_s)

    def _filled(self, view: memoryview, received: int = 0) -> int:
        """Fill what is left of `view`; returns up to where, which is its end unless nothing came for the socket's timeout."""
        read: Callable[[int, memoryview], int] = self._tls.read  # type: ignore[assignment]  # with a buffer it counts
        length = len(view)
        try:
            while received < length:  # once for each TLS record, so it is kept short
                count = read(length - received, view[received:])
                if not count:
                    raise BrokenConnectionError("the other end closed the connection")
                received += count
        except TimeoutError:
            pass
        return received

    def discard(self, kind: Kind, length: int) -> None:
        """Receive the next frame, of this kind and length, and keep nothing of it.

        Raises:
            WireError: it is another.
        """
        self.receive_head_of(kind, length)
        buffer = memoryview(bytearray(min(length, 65536)))
        for left in range(length, 0, -65536):
            self.receive_into(buffer[: min(left, 65536)])

    def receive_head_of(self, kind: Kind, length: int) -> None:
        """Receive the head of a frame that has been announced."""
        if self.receive_head(kind)[1] != length:
            raise WireError(f"{kind.name} of another length than the {length} bytes that were announced")

    def receive(self, *expected: Kind) -> tuple[Kind, bytearray]:
        """The next frame, whole."""
        kind, length = self.receive_head(*expected)
        content = bytearray(length)
        self.receive_into(memoryview(content))
        return kind, content

    def receive_document(self, *expected: Kind) -> tuple[Kind, dict[str, Any]]:
        kind, content = self.receive(*expected)
        return kind, load(content)

    def cut(self) -> None:
        """End it at once; whoever waits for it is told that it is broken. `close` has still to be called."""
        try:
            self._tls.shutdown(socket.SHUT_RDWR)
        except (OSError, ValueError):
            pass  # it is broken already

    def linger(self) -> None:
        """Let the other end read what was sent last: what is closed with something unread may lose that. `close` comes next."""
        deadline = time.monotonic() + _LINGER_S
        try:
            socket.socket.shutdown(self._tls, socket.SHUT_WR)  # that of an SSLSocket would forget its keys for receiving, too
            while (left_s := deadline - time.monotonic()) > 0:
                self._tls.settimeout(left_s)
                if not socket.socket.recv(self._tls, 65536):
                    return
        except (OSError, ValueError):
            pass  # it is gone, or has had its time

    def close(self) -> None:
        self._tls.close()


def _broken(error: Exception) -> BrokenConnectionError:
    alert = isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or "")
    return AlertError(reason_of(error)) if alert else BrokenConnectionError(reason_of(error))


def reason_of(error: Exception) -> str:
    """Why a connection is broken, in a few words."""
    if isinstance(error, TimeoutError):
        return "the other end has been silent for too long"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "closed"


# --- a client's -------------------------------------------------------------------------------------------------------


class Dialler:
    """Makes connections to the receiver of one node. Thread-safe."""

    def __init__(self, node: Node, address: Address, cluster: str, identity: Identity, settings: Settings) -> None:
        self.node = node
        self.settings = settings
        self._address, self._cluster, self._identity = address, cluster, identity

    @property
    def label(self) -> str:
        """How messages call the node."""
        return f"node {self.node.name} ({self._address})"

    def dial(self, purpose: str, **asked: object) -> tuple[Connection, dict[str, Any]]:
        """A connection for `purpose` that the receiver has accepted, and what it said when it did.

        Raises:
            BrokenConnectionError: there is none now, and there may be one later; `BusyError` where the receiver says so.
            UnreachableNodeError: whoever answers is not the node's receiver, or does not know us.
            StorageError: the receiver refuses what is asked for.
        """
        try:
            connection = Connection(self._connected())
        except ssl.SSLCertVerificationError as error:
            why = certificate_problem(error, self.node.name, self._identity.authority)
            raise self.unreachable(f"is refused: {why}") from error
        except WrongPeerError as error:
            raise self.unreachable(f"is refused: {error}") from error
        except (OSError, UnicodeError) as error:
            raise BrokenConnectionError(reason_of(error)) from error
        try:
            hello: dict[str, object] = {
                "protocol": PROTOCOL,
                "version": VERSION,
                "cluster": self._cluster,
                "to": self.node.name,
                "for": purpose,
            }
            hello["silence_ms"] = max(1, int(self.settings.silence_s * 1000))
            connection.send_document(Kind.HELLO, hello | asked)
            kind, answer = connection.receive_document(Kind.READY, Kind.REFUSED)
            if kind is Kind.REFUSED:
                raise failure(self, answer)
            connection.set_timeout(self.settings.silence_s)
        except (WireError, AlertError) as error:
            connection.close()
            alert = f"refuses this node: {error}: its log says why; 'diskhaul certs show' here may, too"
            raise self.unreachable(alert if isinstance(error, AlertError) else error) from error
        except BaseException:
            connection.close()
            raise
        return connection, answer

    def _connected(self) -> ssl.SSLSocket:
        deadline = time.monotonic() + self.settings.connect_timeout_s
        plain = socket.create_connection((self._address.host, self._address.port), self.settings.connect_timeout_s)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.settimeout(max(0.001, deadline - time.monotonic()))
            tls = self._identity.context(server=False).wrap_socket(plain, server_hostname=self.node.name)
        except BaseException:
            plain.close()
            raise
        try:
            peer = peer_of(tls, cluster=self._cluster, roles=RECEIVERS)
            if peer.name != self.node.name:
                raise WrongPeerError(f"its certificate is that of {peer}")
        except BaseException:
            tls.close()
            raise
        return tls

    def unreachable(self, why: object) -> UnreachableNodeError:
        return UnreachableNodeError(self.node.name, f"{self.label}: {why}")


def failure(dialler: Dialler, answer: Mapping[str, Any]) -> OperationFailedError | BusyError:
    """The error that a receiver told of."""
    message = "\n".join(escape(line[:2000]) for line in field(answer, "message", str).splitlines()[:20])
    if answer.get("busy") is True:
        return BusyError(message)
    if answer.get("unreachable") is True:
        return dialler.unreachable(message)
    return StorageError(f"{dialler.label}: {message}", path=dialler.node.name)
