"""Requests that obstore does not make: signed here, and each over a connection of its own.

A part of an upload is several MiB, so a connection costs little beside it, and none is left open that the server has closed.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

from diskhaul.api import Buffer
from diskhaul.errors import ConfigurationError

from .credentials import Credentials
from .faults import RequestError
from .settings import Place, Settings
from .signing import encoded_query, signed_headers

_SLICE = 256 << 10  # bytes
_ANSWER_LIMIT = 8 << 20  # bytes; a listing of 1000 uploads is a few hundred KiB


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered: headers by name in lower case, and the body."""

    headers: Mapping[str, str]
    body: bytes


class Requester:
    """Makes signed requests for keys of one bucket. Thread-safe; keeps nothing open."""

    def __init__(self, place: Place, settings: Settings, credentials: Callable[[], Credentials]) -> None:
        self._place, self._settings, self._credentials = place, settings, credentials
        self._context: ssl.SSLContext | None = None
        if place.url.startswith("https:"):
            self._context = trusting(settings)

    def request(
        self, method: str, key: str, query: Mapping[str, str], body: Buffer = b"", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Make one request, once.

        Args:
            key: of an object; "" for the bucket.
            headers: others, with names in lower case.

        Raises:
            RequestError: no answer came, or one that is no success.
        """
        url = f"{self._place.url}/{quote(key, safe='/-_.~')}" if key else f"{self._place.url}/"
        parts = urlsplit(url)
        signed = signed_headers(
            method,
            url,
            query,
            {**(headers or {}), "content-length": str(len(body))},
            body,
            credentials=self._credentials(),
            region=self._place.region,
            now=datetime.now(UTC),
        )
        target = f"{parts.path}?{encoded_query(query)}" if query else parts.path
        connection = self._connect(parts.hostname or "", parts.port)
        try:
            connection.connect()
            if connection.sock is not None:
                connection.sock.settimeout(self._settings.silence_s)
            try:
                connection.request(method, target, body=_slices(body), headers=signed)
            except (BrokenPipeError, ConnectionResetError) as error:
                # A server that refuses a request need not read all of it: what it has answered is here already.
                try:
                    response = connection.getresponse()
                except (OSError, http.client.HTTPException):
                    raise error from None
            else:
                response = connection.getresponse()
            answer = Answer({name.lower(): value for name, value in response.getheaders()}, response.read(_ANSWER_LIMIT))
        except (OSError, http.client.HTTPException) as error:
            # An OSError that is no errno's (a timeout, a certificate) has no strerror.
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise RequestError(0, "", reason[:1].lower() + reason[1:]) from error
        finally:
            connection.close()
        if not 200 <= response.status < 300:
            raise RequestError.answered(response.status, answer.body[:65536].decode("utf-8", "replace"))
        return answer

    def _connect(self, host: str, port: int | None) -> http.client.HTTPConnection:
        timeout_s = self._settings.connect_timeout_s
        if self._context is None:
            return http.client.HTTPConnection(host, port, timeout=timeout_s)
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=self._context)


def _slices(body: Buffer) -> Iterator[memoryview]:
    """What is sent at a time: a socket's timeout is for all of it."""
    view = memoryview(body).cast("B")
    for begin in range(0, len(view), _SLICE):
        yield view[begin : begin + _SLICE]


def trusting(settings: Settings) -> ssl.SSLContext:
    """A context that trusts the system's authorities and those of `Settings.ca_file`.

    Raises:
        ConfigurationError: the file cannot be used.
    """
    context = ssl.create_default_context()
    if settings.ca_file is not None:
        try:
            context.load_verify_locations(cafile=settings.ca_file)
        except OSError as error:  # ssl.SSLError is one
            why = error.strerror or "holds no certificate"
            raise ConfigurationError(f"backend_options.object.ca_file: {settings.ca_file}: {why}") from error
    return context
