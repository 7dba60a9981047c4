"""Reading the objects of one export."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from diskhaul.api import ExportReader, StoreReader
from diskhaul.errors import StorageError
from diskhaul.names import printable

from ..beneath import is_single
from .bucket import Bucket, Found
from .faults import RequestError

Failed = Callable[[RequestError, str, str], StorageError]
"""Makes the error of a fault: of the fault, what could not be done, and the path."""


class ObjectReader(ExportReader):
    """An export that is read: a published one, or what there is of one that is being made. Thread-safe; keeps nothing open.

    Args:
        location: how messages name the export.
        prefix: what the keys of its objects begin with, without the last slash.
        check: raises when it may not be read any more.
    """

    def __init__(self, bucket: Bucket, location: str, prefix: str, failed: Failed, check: Callable[[], object]) -> None:
        self._bucket, self._location, self._prefix, self._failed, self._check = bucket, location, prefix, failed, check

    @property
    def location(self) -> str:
        return self._location

    def names(self) -> Sequence[str]:
        self._check()
        try:
            found = self._bucket.below(self._prefix)
        except RequestError as fault:
            raise self._failed(fault, "list its objects", self._location) from fault
        return sorted({each.key[len(self._prefix) + 1 :].split("/", 1)[0] for each in found})

    def open(self, name: str, /) -> ObjectFileReader:
        path = f"{self._location}/{name}"
        if not is_single(name):
            raise StorageError(f"{printable(path)}: {printable(name)} is not the name of a file in an export", path=path)
        self._check()
        try:
            found = self._bucket.head(f"{self._prefix}/{name}")
        except RequestError as fault:
            if fault.missing:
                raise StorageError(f"{path}: does not exist", path=path) from fault
            raise self._failed(fault, "look at it", path) from fault
        return ObjectFileReader(self._bucket, found, path, self._failed)


class ObjectFileReader(StoreReader):
    """One object, as it was when it was opened, read by ranges. Thread-safe."""

    def __init__(self, bucket: Bucket, found: Found, path: str, failed: Failed) -> None:
        self._bucket, self._found, self._path, self._failed = bucket, found, path, failed
        self._closed = False

    @property
    def size(self) -> int:
        return self._found.size

    def read_into(self, offset: int, buffer: memoryview, /) -> None:
        view = memoryview(buffer).cast("B")
        if self._closed:
            raise StorageError(f"{self._path}: is closed", path=self._path)
        if offset + len(view) > self.size:
            raise StorageError(f"{self._path}: ends at {self.size}", path=self._path, offset=offset)
        try:
            self._bucket.get_into(self._found, offset, view)
        except RequestError as fault:
            if fault.exists or fault.missing:
                what = "replaced" if fault.exists else "removed"
                raise StorageError(f"{self._path}: was {what} while it was read", path=self._path) from fault
            raise self._failed(fault, f"read at {offset}", self._path) from fault

    def close(self) -> None:
        self._closed = True
