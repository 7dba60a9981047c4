"""Multipart uploads: what the store has to be asked for them, one method per request of the S3 API."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar
from xml.sax.saxutils import escape

from diskhaul.api import Buffer

from .answers import parsed, text
from .faults import RequestError, patiently
from .requests import Answer, Requester

T = TypeVar("T")
MIN_PART = 5 << 20
"""Bytes: S3 refuses smaller parts, but for the last one of a file."""
MAX_PARTS = 10_000
MAX_OBJECT = 5 << 40
"""Bytes: what one object can hold in S3."""
MAX_PART = 5 << 30
_STEP = 1000


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload that was begun: of which key, and how the store calls it."""

    key: str
    upload_id: str


def part_size(number: int, first: int, whole: int | None = None) -> int:
    """How many bytes part `number` (from 0) of a file has.

    `MAX_PARTS` parts hold `MAX_OBJECT` bytes, so of a file whose size is not known parts have to grow. They do as late as they
    can: from the end backwards, the size doubles every 1000 parts.

    Args:
        first: bytes of the first part, at least `MIN_PART`.
        whole: the file's size where it is known: then all parts have one size.
    """
    if whole is not None:
        mib = 1 << 20
        return max(first, -(-whole // MAX_PARTS // mib) * mib)
    return first << max(0, number // _STEP - _steady(first))


def _steady(first: int) -> int:
    """After how many thousands of parts they begin to grow."""
    for steady in range(MAX_PARTS // _STEP - 1, 0, -1):
        sizes = [first << max(0, thousand - steady) for thousand in range(MAX_PARTS // _STEP)]
        if sum(sizes) * _STEP >= MAX_OBJECT and sizes[-1] <= MAX_PART:
            return steady
    return 0


class Uploads:
    """The multipart uploads of one bucket. Thread-safe. Requests that fail in a way that may pass are made again."""

    def __init__(self, requester: Requester, retry_s: float) -> None:
        self._requester, self._retry_s = requester, retry_s

    def begin(self, key: str, given_up: threading.Event | None = None, *, retry_s: float | None = None) -> Upload:
        """Begin an upload. One whose answer was lost is begun again; the first is found by `below`."""
        answer = self._patiently(lambda: self._requester.request("POST", key, {"uploads": ""}), given_up, retry_s)
        upload_id = text(parsed(answer), "UploadId")
        if not upload_id:
            raise RequestError(200, "", "it began an upload without an id")
        return Upload(key, upload_id)

    def send_part(self, upload: Upload, number: int, body: Buffer, given_up: threading.Event | None = None) -> str:
        """Send part `number` (from 0); return its tag. Sent again, it replaces itself."""

        def attempt() -> str:
            query = {"partNumber": str(number + 1), "uploadId": upload.upload_id}
            return _tag(self._requester.request("PUT", upload.key, query, body))

        return self._patiently(attempt, given_up)

    def copy_part(self, upload: Upload, number: int, source: str, begin: int, end: int) -> str:
        """Have the store copy bytes from `begin` up to `end` of the object named `source` (``bucket/key``) as a part."""

        def attempt() -> str:
            query = {"partNumber": str(number + 1), "uploadId": upload.upload_id}
            copied = {"x-amz-copy-source": source, "x-amz-copy-source-range": f"bytes={begin}-{end - 1}"}
            tag = text(parsed(self._requester.request("PUT", upload.key, query, headers=copied)), "ETag")
            if not tag:
                raise RequestError(200, "", "it copied a part without naming its ETag")
            return tag

        return self._patiently(attempt, None)

    def complete(self, upload: Upload, tags: Mapping[int, str], given_up: threading.Event | None = None) -> None:
        """Make the object of the parts with `tags`, in order of their numbers.

        Raises:
            RequestError: with `RequestError.missing` when there is no such upload: an earlier answer may have been lost.
        """
        parts = "".join(
            f"<Part><PartNumber>{number + 1}</PartNumber><ETag>{escape(tags[number])}</ETag></Part>" for number in sorted(tags)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()

        def attempt() -> None:
            answer = self._requester.request("POST", upload.key, {"uploadId": upload.upload_id}, body)
            if b"<Error>" in answer.body:  # S3 may find out after it has answered 200
                raise RequestError.answered(500, answer.body[:65536].decode("utf-8", "replace"))
            if not answer.body.strip() or parsed(answer).tag != "CompleteMultipartUploadResult":
                raise RequestError(0, "", "it has not said whether it completed an upload")

        self._patiently(attempt, given_up)

    def abort(self, upload: Upload, *, retry_s: float | None = None) -> None:
        """Have the store forget an upload and its parts. One that is not there is fine."""
        try:
            query = {"uploadId": upload.upload_id}
            self._patiently(lambda: self._requester.request("DELETE", upload.key, query), None, retry_s)
        except RequestError as fault:
            if not fault.missing:
                raise

    def below(self, prefix: str) -> Iterator[Upload]:
        """Uploads of keys that begin with `prefix`, begun and neither completed nor aborted."""
        marker: dict[str, str] = {}
        while True:
            query = {"uploads": "", "prefix": prefix} | marker
            found = parsed(self._patiently(lambda query=query: self._requester.request("GET", "", query), None))  # type: ignore[misc]
            for element in found.iterfind("Upload"):
                upload = Upload(text(element, "Key"), text(element, "UploadId"))
                if upload.key.startswith(prefix) and upload.upload_id:
                    yield upload
            after = {"key-marker": text(found, "NextKeyMarker"), "upload-id-marker": text(found, "NextUploadIdMarker")}
            if text(found, "IsTruncated") != "true" or after == marker:
                return
            marker = after

    def _patiently(self, attempt: Callable[[], T], given_up: threading.Event | None, retry_s: float | None = None) -> T:
        return patiently(attempt, self._retry_s if retry_s is None else retry_s, given_up)


def _tag(answer: Answer) -> str:
    tag = answer.headers.get("etag", "")
    if not tag:
        raise RequestError(200, "", "it took a part without naming its ETag")
    return tag
