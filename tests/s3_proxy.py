"""A proxy before the real server, which passes requests on, refuses some, changes some, and loses some answers."""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

from tests.s3 import ADMIN, REGION

from diskhaul_plugins.transfers.object_store.credentials import Credentials
from diskhaul_plugins.transfers.object_store.signing import signed_headers

Fate = Literal["pass", "slow down", "forbid", "lose the request", "lose the answer", "say nothing", "without conditions"]
Rule = Callable[[str, str], Fate]
"""Says what becomes of a request, from its method and its path with the query; called before it is passed on."""

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_FORBIDDEN = b"<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>"


class S3Proxy:
    """Listens from when it is made until `close`.

    Attributes:
        rule: asked once for each request.
        edit: may change the body of an answer, by method, path and body.
        after: called when the server has answered a request, before the client learns of it.
        seen: what was asked for, in order: method, and path with the query.
    """

    def __init__(self, to: int, certificate: Path | None = None) -> None:
        self.rule: Rule = lambda method, path: "pass"
        self.after: Callable[[str, str], object] = lambda method, path: None
        self.edit: Callable[[str, str, bytes], bytes] = lambda method, path, body: body
        self.seen: list[tuple[str, str]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                proxy.seen.append((self.command, self.path))
                fate = proxy.rule(self.command, self.path)
                self.close_connection = fate in ("lose the request", "lose the answer")
                if fate == "lose the request":
                    return
                if fate == "slow down":
                    self.answer(503, [("content-type", "application/xml")], _SLOW_DOWN)
                    return
                if fate == "forbid":
                    self.answer(403, [("content-type", "application/xml")], _FORBIDDEN)
                    return
                if fate == "say nothing":
                    self.answer(200, [], b"")
                    return
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                if fate == "without conditions":
                    headers = without_condition(self.command, f"http://127.0.0.1:{to}{self.path}", body, self.headers)
                connection = http.client.HTTPConnection("127.0.0.1", to, timeout=60)
                try:
                    connection.request(self.command, self.path, body=body, headers=headers)
                    response = connection.getresponse()
                    content = response.read()
                finally:
                    connection.close()
                content = proxy.edit(self.command, self.path, content)
                proxy.after(self.command, self.path)
                if fate != "lose the answer":
                    self.answer(response.status, response.getheaders(), content)

            def answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
                self.send_response_only(status)
                length = str(len(content))
                for name, value in headers:
                    if name.lower() == "content-length":
                        length = length if content else value  # of a HEAD as well, which has no content
                    elif name.lower() not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.send_header("content-length", length)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one  # noqa: N815  # so the base class has it

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that has gone, or a server behind it

        self._server = Server(("127.0.0.1", 0), Handler)
        self._encrypted = certificate is not None
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"{'https://localhost' if self._encrypted else 'http://127.0.0.1'}:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def without_condition(method: str, url: str, body: bytes, headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a request that a server would get from somebody who has asked for no condition: signed anew."""
    if headers.get("if-none-match") is None:
        return dict(headers)
    now = datetime.now(UTC)
    return signed_headers(method, url, {}, {}, body, credentials=Credentials("the test", *ADMIN), region=REGION, now=now)


@contextmanager
def proxy_to(port: int, certificate: Path | None = None) -> Iterator[S3Proxy]:
    """A proxy to a server on this machine; over TLS with a file of a key and a certificate for ``localhost``."""
    proxy = S3Proxy(port, certificate)
    try:
        yield proxy
    finally:
        proxy.close()


def first(times: int, fate: Fate, *, method: str, part: str) -> Rule:
    """The `fate` of the first `times` requests with `method` and with `part` in their path; the others pass."""
    left = threading.Semaphore(times)

    def rule(asked: str, path: str) -> Fate:
        return fate if asked == method and part in path and left.acquire(blocking=False) else "pass"

    return rule
