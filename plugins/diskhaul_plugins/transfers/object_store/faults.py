"""What a store answers when it does not do what it was asked: kept apart by whether asking again may help."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from diskhaul.errors import StorageError
from diskhaul.names import printable

from .credentials import Credentials
from .settings import Place

T = TypeVar("T")
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_UNANSWERED_STATUS = frozenset({0, 408, 500, 502, 504})
_CONFLICT = "ConditionalRequestConflict"
_PASSING_CODES = frozenset(
    {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "Throttling", "OperationAborted", _CONFLICT}
)
_KEYS_CODES = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired", "InvalidSecurity"}
)
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,64})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{0,200})</Message>")


class RequestError(Exception):
    """A request that failed.

    Attributes:
        status: the HTTP status; 0 where no answer came.
        code: what S3 calls it, or "".
        reason: in a few words, for people; nothing of the request's headers is in it.
    """

    def __init__(self, status: int, code: str, reason: str) -> None:
        super().__init__(f"{code or status or 'no answer'}: {reason}")
        self.status = status
        self.code = code
        self.reason = reason

    @classmethod
    def answered(cls, status: int, body: str) -> RequestError:
        """From what a server said."""
        code, message = _CODE.search(body), _MESSAGE.search(body)
        return cls(status, code[1] if code else "", printable(message[1]) if message else "")

    @property
    def passing(self) -> bool:
        """Whether it may pass by itself."""
        return self.status == 0 or self.status in _PASSING_STATUS or self.code in _PASSING_CODES

    @property
    def unanswered(self) -> bool:
        """Whether it may have been done all the same, or still be done: a server, or one on the way to it, has not said so."""
        return self.status in _UNANSWERED_STATUS

    @property
    def missing(self) -> bool:
        """Whether what was asked for is not there (but the bucket is)."""
        return self.status == 404 and self.code != "NoSuchBucket"

    @property
    def exists(self) -> bool:
        """Whether a condition was not met: an object is there, or is another one."""
        return self.status == 412

    @classmethod
    def conflict(cls) -> RequestError:
        """Somebody else puts or deletes the same key at this moment."""
        return cls(409, _CONFLICT, "somebody else puts or deletes it")

    def explained(self, place: Place, credentials: Credentials, action: str) -> str:
        """One line: what is wrong, and where it is to be put right."""
        where = f"{place.endpoint}, bucket {place.bucket}"
        options = f"nodes.{place.node}.options"
        if self.status == 0:
            return f"{place.endpoint} does not answer: {self.reason}: is {options}.endpoint right, and the server running?"
        said = " ".join(part for part in (self.code, f"({self.reason})" if self.reason else "") if part) or f"HTTP {self.status}"
        if self.code == "NoSuchBucket":
            return f"{where}: does not exist: create it, or correct {options}.bucket"
        if self.status == 401 or self.code in _KEYS_CODES:
            return f"{where}: does not accept the credentials: {self.code or self.status}: correct {credentials.source}"
        if self.code == "RequestTimeTooSkewed":
            return f"{where}: this machine's clock differs from the server's: set it"
        if self.status == 403:
            return f"{where}: cannot {action}: {said}: the credentials ({credentials.source}) do not allow it"
        if self.status in (301, 307) or self.code == "AuthorizationHeaderMalformed":
            return f"{where}: lies in another region: correct {options}.region: {said}"
        return f"{where}: cannot {action}: {said}"

    def as_error(self, place: Place, credentials: Credentials, action: str, path: str) -> StorageError:
        return StorageError(f"{path}: {self.explained(place, credentials, action)}", path=path)


class GivenUpError(Exception):
    """The one who wanted it does not want it any more."""


def patiently(attempt: Callable[[], T], limit_s: float, given_up: threading.Event | None = None) -> T:
    """Call `attempt` until it does not fail with a fault that may pass, with growing pauses, for `limit_s` seconds.

    Raises:
        RequestError: the last one.
        GivenUpError: `given_up` was set meanwhile.
    """
    end = time.monotonic() + limit_s
    pause_s = _FIRST_PAUSE_S
    while True:
        if given_up is not None and given_up.is_set():
            raise GivenUpError
        try:
            return attempt()
        except RequestError as fault:
            if not fault.passing or time.monotonic() + pause_s > end:
                raise
        # Not all at the same moment: a server that is asked to slow down has many clients.
        (given_up or threading.Event()).wait(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
