"""Requests to servers that are slow, or answer before they have heard everything."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from diskhaul_plugins.transfers.object_store.credentials import Credentials
from diskhaul_plugins.transfers.object_store.faults import RequestError
from diskhaul_plugins.transfers.object_store.requests import Requester
from diskhaul_plugins.transfers.object_store.settings import Place, Settings

MIB = 1 << 20
FORBIDDEN = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"


@contextmanager
def answering(act: Callable[[socket.socket], object]) -> Iterator[str]:
    """The endpoint of a server that does `act` with its only connection, and closes that."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            act(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join()


def requester(endpoint: str, settings: Settings) -> Requester:
    place = Place(
        node="alpha", url=f"{endpoint}/bucket", endpoint=endpoint, bucket="bucket", prefix="", region="us-east-1", virtual=False
    )
    return Requester(place, settings, lambda: Credentials("the test", "key", "secret"))


def test_a_part_may_take_longer_than_a_server_may_be_silent() -> None:
    size = 24 * MIB
    taken = bytearray()

    def take(connection: socket.socket) -> None:
        while b"\r\n\r\n" not in taken or len(taken) - taken.index(b"\r\n\r\n") - 4 < size:
            data = connection.recv(65536)
            if not data:
                return
            taken.extend(data)
            threading.Event().wait(0.008)
        connection.sendall(b'HTTP/1.1 200 OK\r\nETag: "tag"\r\nContent-Length: 0\r\n\r\n')

    body = bytes(range(256)) * (size // 256)
    with answering(take) as endpoint:
        answer = requester(endpoint, Settings(silence_s=1.0)).request("PUT", "key", {"partNumber": "1"}, body)
    assert answer.headers["etag"] == '"tag"'
    assert bytes(taken[-size:]) == body


def test_an_answer_that_comes_before_the_part_was_read_is_heard() -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n" % len(FORBIDDEN) + FORBIDDEN)

    with answering(refuse) as endpoint, pytest.raises(RequestError) as caught:
        requester(endpoint, Settings()).request("PUT", "key", {"partNumber": "1"}, bytes(16 * MIB))
    assert (caught.value.status, caught.value.code) == (403, "AccessDenied")
    assert not caught.value.passing
