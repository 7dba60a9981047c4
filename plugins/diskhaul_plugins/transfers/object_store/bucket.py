"""The objects of one bucket, through obstore."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar
from xml.etree.ElementTree import Element

from diskhaul.errors import ConfigurationError

try:
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
    from obstore.store import S3Store
except ImportError as error:
    raise ConfigurationError("the transfer object needs obstore: pip install 'diskhaul[object]'") from error

from .answers import parsed, text
from .credentials import Credentials
from .faults import RequestError, patiently
from .requests import Requester
from .settings import Place, Settings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Credential

T = TypeVar("T")
_STATUS = re.compile(r"(?:status code: |HTTP status (?:client|server) error \()(\d{3})")
_CAUSES = ("Connection refused", "Connection reset", "timed out", "dns error", "certificate", "connection closed")


@dataclass(frozen=True, slots=True)
class Found:
    """An object: its size in bytes, and the tag that changes with its content."""

    key: str
    size: int
    tag: str


class Bucket:
    """Puts, gets, lists and deletes whole objects. Thread-safe.

    obstore itself tries nothing again here: it would not do so with a conditional put, whose answer may have been lost, and would
    not stop when an export is given up.
    """

    def __init__(self, place: Place, settings: Settings, credentials: Callable[[], Credentials]) -> None:
        self._retry_s = settings.retry_s
        client: ClientConfig = {
            "allow_http": settings.allow_http,
            "connect_timeout": timedelta(seconds=settings.connect_timeout_s),
            "timeout": "1h",  # of a whole request, which takes as long as what is read
            "read_timeout": timedelta(seconds=settings.silence_s),
            # Both ways of making requests are to go the same way: without a proxy. There is no other way to say so.
            "proxy_url": "http://localhost:1",
            "proxy_excludes": "*,0.0.0.0/0,::/0",
        }
        if settings.ca_file is not None:
            try:
                client["root_certificate"] = settings.ca_file.read_bytes()
            except OSError as error:
                raise ConfigurationError(f"backend_options.object.ca_file: {settings.ca_file}: {error.strerror}") from error

        def provide() -> S3Credential:
            found = credentials()
            return {
                "access_key_id": found.key_id,
                "secret_access_key": found.secret,
                "token": found.token,
                "expires_at": datetime.now(UTC),  # not kept: a file may be replaced
            }

        try:
            self._store = S3Store(
                place.bucket,
                # obstore asks the environment (AWS_*) for what is not given here, such as how to encrypt what is stored.
                endpoint=place.url if place.virtual else place.endpoint,
                region=place.region,
                virtual_hosted_style_request=place.virtual,
                skip_signature=False,
                unsigned_payload=False,
                request_payer=False,
                conditional_put="etag",
                disable_bulk_delete=True,  # not every server has it, and an export has few objects
                client_options=client,
                retry_config={"max_retries": 0},
                credential_provider=provide,
            )
        except (BaseError, ValueError) as error:
            raise ConfigurationError(f"nodes.{place.node}.options: {_reason(error)}") from error
        self._credentials = credentials
        self._requester = Requester(place, settings, credentials)

    def put_new(self, key: str, content: bytes, *, given_up: threading.Event | None = None, retry_s: float | None = None) -> None:
        """Put an object that is not there. One that has this very content is taken for ours, whose answer was lost.

        Raises:
            RequestError: with `RequestError.exists` when there is another.
        """

        def attempt() -> None:
            try:
                self._translated(lambda: obstore.put(self._store, key, content, mode="create", use_multipart=False))
            except RequestError as fault:
                if not fault.exists or not self._holds(key, content):
                    raise

        patiently(attempt, self._retry_s if retry_s is None else retry_s, given_up)

    def _holds(self, key: str, content: bytes) -> bool:
        try:
            return self.get(key, retry_s=0) == content
        except RequestError as fault:
            if fault.missing:  # taken away just now, or still being put
                raise RequestError.conflict() from fault
            raise

    def put(self, key: str, content: bytes | memoryview, given_up: threading.Event | None = None) -> None:
        """Put an object, in the place of one that is there."""
        self._patiently(lambda: obstore.put(self._store, key, content, use_multipart=False), given_up=given_up)

    def get(self, key: str, *, retry_s: float | None = None) -> bytes:
        """The whole content of a small object."""
        return self._patiently(lambda: bytes(obstore.get(self._store, key).bytes()), retry_s)

    def get_into(self, found: Found, offset: int, view: memoryview) -> None:
        """Fill `view` with the object's bytes from `offset` on.

        Raises:
            RequestError: with `RequestError.exists` when the object is no longer the one that was found.
        """
        if not len(view):
            return
        end = offset + len(view)

        def attempt() -> None:
            result = obstore.get(self._store, found.key, options={"range": (offset, end), "if_match": found.tag or None})
            content = memoryview(result.bytes())
            if len(content) != len(view):
                raise RequestError(0, "", f"{len(content)} bytes came instead of {len(view)}")
            view[:] = content

        self._patiently(attempt)

    def head(self, key: str) -> Found:
        meta = self._patiently(lambda: obstore.head(self._store, key))
        return Found(key, meta["size"], meta["e_tag"] or "")

    def below(self, prefix: str, retry_s: float | None = None) -> list[Found]:
        """Every object whose key begins with `prefix` and a slash, and could be one of ours."""
        return [
            Found(text(element, "Key"), _size(text(element, "Size")), text(element, "ETag"))
            for page in self._pages({"prefix": _directory(prefix)}, retry_s)
            for element in page.iterfind("Contents")
            if _could_be_ours(text(element, "Key")[len(prefix) :].removeprefix("/"))
        ]

    def directories(self, prefix: str, retry_s: float | None = None) -> Sequence[str]:
        """The names between `prefix` with a slash and the next slash."""
        names = {
            text(element, "Prefix")[len(_directory(prefix)) :].removesuffix("/")
            for page in self._pages({"prefix": _directory(prefix), "delimiter": "/"}, retry_s)
            for element in page.iterfind("CommonPrefixes")
        }
        return sorted(name for name in names if _could_be_ours(name))

    def _pages(self, query: Mapping[str, str], retry_s: float | None) -> Iterator[Element]:
        """A listing, page by page. obstore makes none where one key, of whomever, is not like those that it makes."""
        token: dict[str, str] = {}
        while True:
            asked = {"list-type": "2", **query, **token}
            page = patiently(
                lambda asked=asked: parsed(self._requester.request("GET", "", asked)),  # type: ignore[misc]
                self._retry_s if retry_s is None else retry_s,
            )
            if page.tag != "ListBucketResult":
                raise RequestError(200, "", "its answer is no listing")
            yield page
            after = {"continuation-token": text(page, "NextContinuationToken")}
            if text(page, "IsTruncated") != "true":
                return
            if after == token or not after["continuation-token"]:
                raise RequestError(200, "", "its listing does not go on")
            token = after

    def delete(self, keys: Iterator[str] | Sequence[str], *, retry_s: float | None = None) -> None:
        """Delete objects, one after the other. What is not there is fine."""
        for key in keys:
            try:
                self._patiently(lambda key=key: obstore.delete(self._store, key), retry_s)  # type: ignore[misc]
            except RequestError as fault:
                if not fault.missing:
                    raise

    def _patiently(self, call: Callable[[], T], retry_s: float | None = None, given_up: threading.Event | None = None) -> T:
        return patiently(lambda: self._translated(call), self._retry_s if retry_s is None else retry_s, given_up)

    def _translated(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except FileNotFoundError as error:
            raise RequestError.answered(404, _told(error)) from None
        except (AlreadyExistsError, PreconditionError) as error:
            raise RequestError.answered(412, _told(error)) from None
        except (BaseError, OSError, ValueError) as error:
            # Not raised from the cause: obstore's errors show whole requests and answers.
            told = _told(error)
            status = _STATUS.search(told)
            if status is None:
                self._credentials()  # raises what may be wrong with them; obstore has made text of that
                raise RequestError(0, "", _reason(error)) from None
            raise RequestError.answered(int(status[1]), told) from None


def _directory(prefix: str) -> str:
    return f"{prefix}/" if prefix else ""


def _size(said: str) -> int:
    if not (said.isascii() and said.isdigit()):
        raise RequestError(200, "", "its listing has an object without a size")
    return int(said)


def _could_be_ours(key: str) -> bool:
    """Whether all names in a key are such as we make; obstore could not even ask for some others."""
    return "\ufffd" not in key and not {"", ".", ".."} & set(key.split("/"))


def _told(error: BaseException) -> str:
    """What obstore says, without the debugger's view of it."""
    return str(error).partition("\n\nDebug source")[0]


def _reason(error: BaseException) -> str:
    whole = str(error)
    for cause in _CAUSES:
        if cause.lower() in whole.lower():
            return cause.lower() if cause != "dns error" else "its name is not known"
    return " ".join(_told(error).split())[-200:]
