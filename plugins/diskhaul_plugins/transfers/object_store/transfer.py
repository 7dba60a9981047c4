"""The backend ``object``: buckets by ``[nodes.NAME.options]``."""

from __future__ import annotations

import threading

from diskhaul.api import BackendContext, ExportReader, Transfer
from diskhaul.errors import UnreachableNodeError
from diskhaul.model import Node

from ..directory import DirectoryTransfer
from .bucket import Bucket
from .credentials import Credentials, read_credentials
from .faults import RequestError
from .requests import Requester
from .settings import Place, Settings, place_of, read_settings
from .store import ObjectStore
from .uploads import Uploads

_LOOKING_S = 5.0
"""How long a store that does not answer is asked whether it is there: before anything has been begun."""


class ObjectTransfer(Transfer):
    """Reaches buckets. Thread-safe. Connections are kept for as long as this object is."""

    def __init__(self, context: BackendContext) -> None:
        self._settings: Settings = read_settings(context)
        self._directories = DirectoryTransfer(context)
        self._buckets: dict[Place, Bucket] = {}
        self._lock = threading.Lock()

    def store(self, node: Node, /) -> ObjectStore:
        """The store of `node`, which is asked for a listing.

        Raises:
            ConfigurationError: it is not configured, or not rightly, or there are no credentials.
            UnreachableNodeError: it does not answer, there is no such bucket, or the credentials are not accepted.
        """
        place = place_of(node, self._settings)
        credentials = self._credentials()
        bucket = self._bucket(place)
        try:
            bucket.directories(place.prefix, min(self._settings.retry_s, _LOOKING_S))
        except RequestError as fault:
            why = fault.explained(place, credentials, "list objects")
            raise UnreachableNodeError(node.name, f"node {node.name}: {why}") from fault
        uploads = Uploads(Requester(place, self._settings, self._credentials), self._settings.retry_s)
        return ObjectStore(place, self._settings, bucket, uploads, credentials)

    def open_path(self, path: str, /) -> ExportReader:
        return self._directories.open_path(path)

    def _bucket(self, place: Place) -> Bucket:
        with self._lock:
            if place not in self._buckets:
                self._buckets[place] = Bucket(place, self._settings, self._credentials)
            return self._buckets[place]

    def _credentials(self) -> Credentials:
        return read_credentials(self._settings.credentials_file, self._settings.profile)
